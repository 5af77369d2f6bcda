"""One view of many containers: the members of a tarball, zip, wheel, Debian package or folder, read one at a time."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from harness.errors import UserError

#: What the standard library raises on a damaged container.
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, UnicodeDecodeError)


@dataclass(frozen=True)
class Source:
    """Named members of a container.

    Attributes:
        label: how messages name it.
        names: member names with forward slashes, sorted.
        read: the bytes of one member.
        root: the folder, when it is one.
    """

    label: str
    names: tuple[str, ...]
    read: Callable[[str], bytes]
    root: Path | None = None

    def matching(self, pattern: str) -> list[str]:
        """Names that match a shell pattern in which ``*`` stays within one folder, sorted."""
        depth = pattern.count("/")
        return [name for name in self.names if name.count("/") == depth and fnmatchcase(name, pattern)]

    def one(self, name: str) -> bytes:
        """The bytes of a member that must exist."""
        if name not in self.names:
            raise UserError(f"{self.label} has no member {name!r}; it is not the version that the card describes.")
        return self.read(name)


@contextmanager
def opened(path: Path, label: str) -> Iterator[Source]:
    """Open a folder, ``.tgz``/``.tar.gz``, ``.zip``/``.whl`` or ``.deb``; the container closes with the block."""
    if path.is_dir():
        yield folder(path, label)
    elif path.suffix in (".zip", ".whl"):
        with zipfile.ZipFile(path) as zipped:
            names = sorted(name for name in zipped.namelist() if not name.endswith("/"))
            yield Source(label, tuple(names), zipped.read)
    elif path.suffix == ".deb":
        with tarfile.open(fileobj=io.BytesIO(_debian_data(path)), mode="r:*") as inner:
            yield _tar(inner, label)
    else:
        with tarfile.open(path, mode="r:*") as tar:
            yield _tar(tar, label)


def folder(path: Path, label: str) -> Source:
    """The files below ``path``."""
    names = sorted(item.relative_to(path).as_posix() for item in path.rglob("*") if item.is_file())
    return Source(label, tuple(names), lambda name: (path / name).read_bytes(), path)


def _tar(tar: tarfile.TarFile, label: str) -> Source:
    members = {member.name.removeprefix("./"): member for member in tar.getmembers() if member.isfile()}

    def read(name: str) -> bytes:
        stream = tar.extractfile(members[name])
        assert stream is not None  # only regular files are members
        return stream.read()

    return Source(label, tuple(sorted(members)), read)


def _debian_data(path: Path) -> bytes:
    """The ``data.tar`` of a Debian package: ar, 60-byte headers (name 0..16, size 48..58), even padding."""
    content = path.read_bytes()
    if not content.startswith(b"!<arch>\n"):
        raise tarfile.ReadError("not a Debian package")
    at = 8
    while at + 60 <= len(content):
        name, size = content[at : at + 16].strip().rstrip(b"/"), int(content[at + 48 : at + 58])
        if name.startswith(b"data.tar"):
            return content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise tarfile.ReadError("no data.tar in the Debian package")

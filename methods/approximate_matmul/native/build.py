"""Compile the C++ kernels: beside their sources when the project is installed, else on demand into the user's cache.

One shared library per (sources, flags, compiler): the file name carries their hash, so that a changed source, another
compiler or another machine never meets an old build. Nothing is tuned to the machine that compiles: the level is chosen
at run time (see ``amm.h``). ``setup.py`` imports this module where nothing but setuptools is installed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.errors import Unavailable

SOURCES = (
    "driver.cpp",
    "pool.cpp",
    "nearest.cpp",
    "bytes.cpp",
    "popcount.cpp",
    "few.cpp",
    "scalar.cpp",
    "avx2.cpp",
    "avx512.cpp",
    "vbmi.cpp",
    "amx.cpp",
    "neon.cpp",
)
HEADERS = ("amm.h", "pictures.h", "pool.h", "sink.h", "source.h", "subspaces.h", "walk512.h")
#: No -march and no -ffast-math: levels are chosen at run time and comparisons with NaN must stay false.
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-pthread", "-fno-math-errno")
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT_S = 300.0


def compiler() -> list[str]:
    """The C++ compiler as an argument list: ``$CXX``, else the first of c++, g++, clang++.

    Raises:
        Unavailable: there is none.
    """
    chosen = os.environ.get("CXX")
    words = shlex.split(chosen) if chosen else []
    if words:
        path = shutil.which(words[0])
        if path is None:
            raise Unavailable(f"$CXX names {words[0]!r}, which is no program here; unset CXX or name a C++17 compiler.")
        return [path, *words[1:]]
    for name in COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return [path]
    raise Unavailable(
        f"the native kernels need a C++17 compiler ({', '.join(COMPILERS)} or $CXX) and none was found; install one, "
        'or choose backend="torch".'
    )


def folder() -> Path:
    """Where sources stand."""
    return Path(__file__).resolve().parent


def version(command: list[str]) -> str:
    """First line of ``compiler --version``."""
    try:
        text = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{command[0]} --version failed: {error}; name a working compiler in $CXX.") from error
    return text.splitlines()[0] if text else "unknown"


def key(command: list[str], flags: tuple[str, ...] = FLAGS) -> str:
    """Hash of sources, flags, compiler and machine."""
    return _hash([*command, *flags, version(command), sys.platform, platform.machine()])


def _hash(facts: list[str]) -> str:
    digest = hashlib.sha256()
    for name in (*HEADERS, *SOURCES):
        digest.update(name.encode() + b"\0" + (folder() / name).read_bytes() + b"\0")
    digest.update("\0".join(facts).encode())
    return digest.hexdigest()[:24]


def installed_name() -> str:
    """File name of the library that an install builds from these sources; which compiler did it stands beside it."""
    return f"amm-{_hash([*FLAGS, sys.platform, platform.machine()])}.so"


def installed() -> Path | None:
    """The library that the install built from exactly these sources; None when there is none."""
    path = folder() / installed_name()
    return path if path.is_file() else None


def installed_compiler() -> str:
    """What compiled :func:`installed`."""
    try:
        note = (folder() / installed_name()).with_suffix(".json").read_text(encoding="utf-8")
        return str(json.loads(note)["compiler"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def install(place: Path) -> Path:
    """Compile into ``place``, with a note of the compiler; libraries of other sources there are removed.

    Raises:
        Unavailable: no compiler, a failed build, or a folder that cannot be written.
    """
    _posix()
    command = compiler()
    target = place / installed_name()
    _compile(command, FLAGS, target)
    note = {"compiler": version(command), "flags": list(FLAGS)}
    try:
        target.with_suffix(".json").write_text(json.dumps(note) + "\n", encoding="utf-8")
    except OSError as error:
        raise Unavailable(f"cannot write to {place}: {error}") from error
    for old in place.glob("amm-*"):
        if old.suffix in (".so", ".json") and old.stem != target.stem:
            with contextlib.suppress(OSError):
                old.unlink()
    return target


def _posix() -> None:
    if os.name != "posix":
        raise Unavailable(
            f'the native kernels are built on Linux and macOS only, not on {os.name}; use backend="torch".'
        )


def _compile(command: list[str], flags: tuple[str, ...], target: Path) -> None:
    """Compile into a temporary file beside ``target`` and rename it: readers see all of it or nothing."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=".building-", suffix=".so", dir=target.parent)
    except OSError as error:
        raise Unavailable(f"cannot write to {target.parent}: {error}") from error
    os.close(handle)
    call = [*command, *flags, "-shared", *(str(folder() / name) for name in SOURCES), "-o", temporary]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode != 0:
            tail = "\n".join(done.stderr.splitlines()[-8:])
            raise Unavailable(f"compiling the native kernels failed ({shlex.join(call)}):\n{tail}")
        os.chmod(temporary, 0o755)  # a temporary file is its owner's alone; a package is everybody's
        os.replace(temporary, target)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"compiling the native kernels failed: {error}") from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def library() -> Path:
    """Path of the shared library, compiled now if the cache has none.

    Raises:
        Unavailable: no compiler, a failed build, or a cache that cannot be written, each with what to do.
    """
    from filelock import FileLock

    from harness.catalogue.data.cache import cache_folder

    _posix()
    command = compiler()
    place = cache_folder() / "native"
    target = place / f"amm-{key(command)}.so"
    if target.exists():
        return target
    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / f"{target.name}.lock"):
            if not target.exists():
                _compile(command, FLAGS, target)
    except OSError as error:
        raise Unavailable(f"cannot write to {place}: {error}; set $SPEEDCLAIM_CACHE to a folder of yours.") from error
    return target

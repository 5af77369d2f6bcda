"""A record that lies in two folders counts once."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

from harness.record import store
from harness.record.copies import distinct

RECORD = Path(__file__).parents[2] / "reports/records/h100/20261122T202425295781Z-vm-1344.jsonl.gz"


def test_a_copy_in_another_folder_counts_once(tmp_path: Path) -> None:
    for name in ("results", "records"):
        (tmp_path / name).mkdir()
        shutil.copy(RECORD, tmp_path / name)
    alone, twice = store.read_runs(RECORD), store.read_runs([tmp_path / "results", tmp_path / "records"])
    assert len(twice) == len(alone)
    assert set(twice["file"]) == {str(tmp_path / "results" / RECORD.name)}
    assert len(store.read_headers(tmp_path)) == 1


def test_a_copy_made_while_the_file_grew_gives_way_to_the_whole(tmp_path: Path) -> None:
    lines = gzip.decompress(RECORD.read_bytes()).splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines[:2]))
    (tmp_path / "b.jsonl").write_bytes(b"".join(lines))
    assert distinct([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]) == [tmp_path / "b.jsonl"]


def test_files_that_part_after_the_header_both_stay(tmp_path: Path) -> None:
    lines = gzip.decompress(RECORD.read_bytes()).splitlines(keepends=True)
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "empty.jsonl"]
    paths[0].write_bytes(b"".join(lines[:2]))
    paths[1].write_bytes(b"".join([lines[0], lines[2]]))
    paths[2].write_bytes(b"")
    assert distinct(paths) == paths


def test_a_record_counts_once_beside_its_packed_copy(tmp_path: Path) -> None:
    plain = gzip.decompress(RECORD.read_bytes())
    (tmp_path / "a.jsonl").write_bytes(plain)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain))
    assert distinct([tmp_path / "b.jsonl.gz", tmp_path / "a.jsonl"]) == [tmp_path / "b.jsonl.gz"]
    assert len(store.read_headers(tmp_path)) == 1
    (tmp_path / "a.jsonl").write_bytes(plain + plain[plain.rstrip(b"\n").rfind(b"\n") + 1 :])
    assert distinct([tmp_path / "b.jsonl.gz", tmp_path / "a.jsonl"]) == [tmp_path / "a.jsonl"]

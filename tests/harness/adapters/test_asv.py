"""asv, end to end in a tiny repository: two commits, a failed method, a missing need, a dirty tree, one toy plug-in."""

import json
import math
import os
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from harness.adapters import asv, cases
from harness.catalogue.protocol import PROTOCOL_VERSION
from harness.catalogue.registry import ROOT
from harness.errors import UserError

PROBLEM = "uniform-2000-float64-cpu"


def git(repository, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(repository), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The harness and asv's door alone: every suite and method comes from the plug-in."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    root = tmp_path / "repository"
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "harness", root / "harness", ignore=leave)
    shutil.copytree(ROOT / "suites" / "micro", root / "suites" / "micro", ignore=leave)
    shutil.copy(ROOT / "asv.conf.json", root)
    (root / "pyproject.toml").write_text('[project]\nname = "speedclaim"\nversion = "0"\n')
    (root / ".gitignore").write_text(".asv/\n__pycache__/\n")
    git(root, "init", "--quiet", "--initial-branch", "trunk")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return root


def call(root, *arguments):
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "harness.adapters.asv", *arguments],
        cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def results(root, commit):
    """Case id -> what asv stored for one commit."""
    (path,) = (root / ".asv" / "results").glob(f"*/{commit[:8]}-*.json")
    stored = json.loads(path.read_text())
    assert stored["commit_hash"] == commit
    row = dict(zip(stored["result_columns"], stored["results"]["speed.track_toy"], strict=False))
    assert row["version"] == f"protocol-{PROTOCOL_VERSION}"
    ids = [name.strip("'") for name in row["params"][0]]
    return dict(zip(ids, row["result"], strict=True))


@pytest.mark.skipif(util.find_spec("asv") is None, reason="asv is not installed (pip install 'asv>=0.6.4')")
def test_two_commits_are_measured_saved_and_published(repository, toy):
    toy("wrong", "needs_cuda")
    first = git(repository, "rev-parse", "HEAD")
    done = call(repository, "--bench", "uniform-2000")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "inaccurate: gap" in done.stdout + done.stderr

    note = repository / "NOTE"
    note.write_text("dirty\n")
    refused = call(repository)
    assert refused.returncode == 2
    assert refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert first[:10] in line
    assert "ommit or stash" in line

    git(repository, "add", "NOTE")
    git(repository, "commit", "--quiet", "-m", "second")
    second = git(repository, "rev-parse", "HEAD")
    done = call(repository, "--bench", "uniform-2000")
    assert done.returncode == 0, done.stderr + done.stdout

    for commit in (first, second):
        found = results(repository, commit)
        assert found[f"toy.plain/{PROBLEM}"] > 0
        assert found[f"toy.wrong/{PROBLEM}"] is None, "a failed method shows as failed"
        if cases.cell(f"toy.needs_cuda/{PROBLEM}").skip:
            assert math.isnan(found[f"toy.needs_cuda/{PROBLEM}"]), "a missing need shows as n/a"
    page = repository / ".asv" / "html"
    index = json.loads((page / "index.json").read_text())
    assert set(index["revision_to_hash"].values()) >= {first, second}
    assert index["benchmarks"]["speed.track_toy"]["params"][0][0] == f"'toy.needs_cuda/{PROBLEM}'"
    graphs = [json.loads(p.read_text()) for p in page.rglob("speed.track_toy.json")]
    assert any(len(graph) == 2 for graph in graphs), "the history has both commits"


def test_the_grid_is_the_registry_with_the_same_ids(toy):
    toy("added", "needs_cuda")
    stub = asv.stubs()["track_toy"]
    assert stub.params == [[cell.id for cell in cases.cells() if cell.suite == "toy"]]
    assert f"toy.added/{PROBLEM}" in stub.params[0]
    assert stub.version == f"protocol-{PROTOCOL_VERSION}"
    assert stub.unit == "seconds"
    assert not hasattr(stub, "setup")


def test_a_stub_gives_samples_a_failure_or_not_here(toy, capsys):
    toy("added", "wrong", "raises", "refuses", "needs_cuda", "late_cheat", "too_fast")
    stub = asv.stubs()["track_toy"]
    answer = stub(f"toy.added/{PROBLEM}")
    assert set(answer) == {"samples", "number"}
    assert answer["number"] == 1
    assert all(isinstance(value, float) and value > 0 for value in answer["samples"])
    for name, reason in [("wrong", "inaccurate: gap"), ("raises", "no luck today"), ("late_cheat", "in a block")]:
        with pytest.raises(SystemExit, match=reason):
            stub(f"toy.{name}/{PROBLEM}")
    with pytest.raises(SystemExit, match="physical floor"):
        stub(f"toy.too_fast/{PROBLEM}")
    for name, reason in [("refuses", "only even lists"), ("needs_cuda", "needs CUDA")]:
        if name == "needs_cuda" and cases.cell(f"toy.needs_cuda/{PROBLEM}").skip is None:
            continue
        assert math.isnan(stub(f"toy.{name}/{PROBLEM}"))
        assert reason in capsys.readouterr().err


def test_the_door_shows_asv_nothing_but_the_stubs():
    """asv takes every public function or class of these modules whose name begins like a benchmark."""
    from suites.micro import bench_cases, speed

    begins = ("time_", "timeraw_", "mem_", "peakmem_", "track_", "Time", "TimeRaw", "Mem", "PeakMem", "Track")
    for module in (bench_cases, speed):
        public = {name for name in vars(module) if not name.startswith("_")}
        shown = {name for name in public if name.startswith(begins)}
        assert shown == (set(asv.stubs()) if module is speed else set())
        assert not hasattr(module, "setup")
    configuration = json.loads((ROOT / "asv.conf.json").read_text())
    assert configuration["benchmark_dir"] == "suites/micro"
    assert configuration["environment_type"] == "existing"
    assert configuration["launch_method"] == "spawn"


def test_a_missing_asv_is_a_clear_mistake(repository, monkeypatch, capsys):
    monkeypatch.setattr(asv.environment, "importable", lambda module: module != "asv")
    assert asv.main(["--root", str(repository)]) == 2
    assert "asv is not installed" in capsys.readouterr().err


def test_no_checkout_is_a_clear_mistake(tmp_path):
    with pytest.raises(UserError, match="no git checkout"):
        asv.clean_commit(Path(tmp_path))

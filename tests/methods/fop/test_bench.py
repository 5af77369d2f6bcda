"""The timing script runs on a CPU, checks before it times, and survives an arm that fails."""

import argparse
import json

import pytest

from methods.fop import _bench

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """A bench of small arms in short periods, one of them broken."""

    def broken(model, **options):
        raise RuntimeError("no such thing")

    def make(**given):
        arms = {name: _bench.ARMS[name] for name in ("kfac", "fop")} | {"broken": broken}
        monkeypatch.setattr(_bench, "ARMS", arms)
        monkeypatch.setattr(_bench, "PERIOD", 4)
        chosen = {"net": "small", "batch": 8, "device": "cpu", "products": "as-set", "rounds": 2, "arms": None}
        return _bench.Bench(argparse.Namespace(**{**chosen, "seconds": 1e9, "out": str(tmp_path), **given}))

    return make


def test_arms_are_checked_timed_and_compared(bench, tmp_path, capsys):
    found = bench().run()
    assert found["arms"]["kfac"]["ratio"] == 1.0
    assert found["arms"]["fop"]["error"] < 1e-3
    assert len(found["arms"]["fop"]["turns"]) == 2
    assert "no such thing" in found["arms"]["broken"]["failed"]
    assert "broken: FAILED" in capsys.readouterr().out
    assert [line.split()[0] for line in _bench.table(found).splitlines()] == ["arm", "kfac", "fop", "broken"]
    assert (
        json.loads((tmp_path / "fop-small.json").read_text())["arms"]["fop"]["turns"] == found["arms"]["fop"]["turns"]
    )


def test_every_arm_is_written_as_soon_as_it_is_known_and_nothing_begins_too_late(bench, monkeypatch, tmp_path):
    made = bench(seconds=100.0)
    left = iter([100.0, 100.0])
    seen = []
    first = made._first

    def watched(name, x, y):
        first(name, x, y)
        seen.append(list(json.loads((tmp_path / "fop-small.json").read_text())["arms"]))

    monkeypatch.setattr(made, "_first", watched)
    monkeypatch.setattr(made, "left", lambda: next(left, 0.0))
    found = made.run()
    assert seen[0] == ["kfac"]
    assert found["arms"]["broken"] == {"left_out": "time"}
    assert all(len(one.get("turns", [0])) == 1 for one in found["arms"].values()), "no round was begun"
    assert "left out" in _bench.table(found)

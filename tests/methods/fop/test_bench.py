"""The timing script runs on a CPU, checks before it times, and survives an arm that fails."""

import argparse

import pytest

from methods.fop import _bench

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves to")


def test_arms_are_checked_timed_and_compared(monkeypatch, capsys):
    def broken(model, **options):
        raise RuntimeError("no such thing")

    arms = {name: _bench.ARMS[name] for name in ("kfac", "fop")} | {"broken": broken}
    monkeypatch.setattr(_bench, "ARMS", arms)
    monkeypatch.setattr(_bench, "TURN", 2)
    monkeypatch.setattr(_bench, "REFRESH", 4)
    options = argparse.Namespace(net="small", batch=8, device="cpu", products="as-set", rounds=2)
    found = _bench.run(options)
    assert found["arms"]["kfac"]["ratio"] == 1.0
    assert found["arms"]["fop"]["error"] < 1e-3
    assert len(found["arms"]["fop"]["turns"]) == 2
    assert "no such thing" in found["arms"]["broken"]["failed"]
    assert "broken: FAILED" in capsys.readouterr().out
    assert [line.split()[0] for line in _bench.table(found).splitlines()] == ["arm", "kfac", "fop", "broken"]

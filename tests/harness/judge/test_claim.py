"""Claims are read strictly: a malformed file names itself, the claim and the field."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from harness.catalogue import registry
from harness.errors import UserError
from harness.judge.claim import Claim, load_claims, parse_claims

GOOD = """
[[claim]]
id = "toy.fast"
group = "toy"
title = "fast"
kind = "speedup-about"
words = "twice as fast"
source = "a paper"
task = "toy"
candidate = "toy.new"
baseline = "toy.old"
problems = ["gaussian-*"]
ratio = 2.0
error_metric = "error"
"""


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (("ratio = 2.0", "ratio = 'two'"), "field ratio", "got 'two'"),
        (("ratio = 2.0", "ratio = 0.5"), "claim as a whole", "over 1"),
        (("ratio = 2.0", ""), "claim as a whole", "needs a ratio"),
        (("ratio = 2.0", "ratio = 2.0\nspeed = 3"), "field speed", "Extra inputs"),
        (('kind = "speedup-about"', 'kind = "fastest"'), "field kind", "'fastest'"),
        (('title = "fast"', ""), "field title", "required"),
        (('baseline = "toy.old"', ""), "claim as a whole", "needs a baseline"),
        (('baseline = "toy.old"', 'baseline = "old"'), "claim as a whole", "task.method"),
        (('problems = ["gaussian-*"]', ""), "claim as a whole", "problems or a workload"),
        (('error_metric = "error"', ""), "claim as a whole", "error_metric"),
        (("ratio = 2.0", "ratio = 2.0\nanchors = [{device = 'X'}]"), "field anchors.0.problem", "required"),
        (("ratio = 2.0", "ratio = 2.0\nanchors = 3"), "field anchors.0", "got 3"),
    ],
)
def test_malformed_claim_names_file_claim_and_field(change: tuple[str, str], field: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_claims(GOOD.replace(*change), "toy.toml")
    text = str(caught.value)
    assert text.startswith("toy.toml, claim 'toy.fast'")
    assert field in text
    assert message in text


def test_a_claim_without_id_is_named_by_its_place() -> None:
    with pytest.raises(UserError, match="claim 'number 1', field id"):
        parse_claims(GOOD.replace('id = "toy.fast"', ""), "toy.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [("[[claim]\n", "not valid TOML"), ("[other]\nx = 1", "unknown table 'other'"), ("claim = 3", r"\[\[claim\]\]")],
)
def test_malformed_file_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_claims(text, "toy.toml")
    assert "toy.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("exists", "dated evidence"), ("only-reaches", "needs a workload"), ("growth", "needs a ratio")],
)
def test_each_kind_asks_for_what_it_needs(kind: str, missing: str) -> None:
    text = GOOD.replace("speedup-about", kind).replace("ratio = 2.0", "")
    with pytest.raises(UserError, match=missing):
        parse_claims(text, "toy.toml")


def test_file_level_anchors_reach_the_claims_that_run_their_method() -> None:
    anchor = '[[anchor]]\ndevice = "H100"\nproblem = "p"\nmethod = "{}"\nvalue_s = 0.002\nsource = "measured"\n'
    claims = parse_claims(anchor.format("toy.new") + anchor.format("toy.other") + GOOD, "toy.toml")
    assert [a.method for a in claims[0].anchors] == ["toy.new"]
    with pytest.raises(UserError, match="anchor 1, field value_s"):
        parse_claims(anchor.format("toy.new").replace("0.002", "0"), "toy.toml")


def test_paths_may_be_files_or_folders_and_ids_are_unique(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text(GOOD.replace("toy.fast", "toy.b"))
    (tmp_path / "a.toml").write_text(GOOD)
    assert [c.id for c in load_claims([tmp_path])] == ["toy.fast", "toy.b"]
    assert [c.id for c in load_claims([tmp_path / "b.toml"])] == ["toy.b"]
    (tmp_path / "c.toml").write_text(GOOD)
    with pytest.raises(UserError, match=r"'toy.fast' stands in .*a\.toml and in .*c\.toml"):
        load_claims([tmp_path])
    with pytest.raises(UserError, match="no claims at"):
        load_claims([tmp_path / "none.toml"])


def test_a_third_party_package_adds_its_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "toy_ledger_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "ledger.toml").write_text(GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    entry = registry.Entry(name="toy", target="toy_ledger_package", owner="toy")
    monkeypatch.setattr(registry, "entries", lambda group: {"toy": entry} if group == "claims" else {})
    claims = load_claims()
    sys.modules.pop("toy_ledger_package")
    assert [(c.id, c.file) for c in claims] == [("toy.fast", "toy_ledger_package/ledger.toml")]


@pytest.mark.parametrize(
    ("fields", "command"),
    [
        ({}, "python -m harness run --suite toy --tier standard --method toy.new --method toy.old"),
        (
            {"suite": "s", "tier": "full"},
            "python -m harness run --suite s --tier full --method toy.new --method toy.old",
        ),
        ({"command": "speedclaim run --suite x"}, "python -m harness run --suite x"),
        ({"problems": [], "workload": "w"}, "python -m harness train w toy.new toy.old --seeds 10"),
    ],
)
def test_command_that_reproduces(claim: Any, fields: dict[str, Any], command: str) -> None:
    assert claim(**fields).reproduce("python -m harness") == command


def test_hardware_and_coverage(claim: Any) -> None:
    made: Claim = claim(hardware="H100 or H200", problems=["gaussian-128x*x*-bfloat16-cuda"])
    assert made.same_hardware("NVIDIA H100 80GB HBM3")
    assert not made.same_hardware("NVIDIA L40S")
    assert not claim(hardware=None).strict("any device")
    assert claim(hardware=None, hardware_free=True).strict("any device")
    assert made.covers("gaussian-128x512x512-bfloat16-cuda")
    assert not made.covers("gaussian-512x512-bfloat16-cuda")

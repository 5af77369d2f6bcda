"""The claims lint: flags exactly the known disagreements of the shipped sources, and any number that is changed."""

import json

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import UserError
from harness.judge import lint
from harness.judge.claim import load_claims
from harness.judge.formula import Formula, FormulaError

SHIPPED = {source.id: source for source in lint.load_sources()}
LEDGER = load_claims()

#: Disagreement -> the checks that show it. Found by hand: i to vii, and a to c of the press article; the last digits of
#: 10.48 and 7.50, and the scaling, by the lint itself.
KNOWN = {
    "i": {"text.cifar-2048-kfac": "contradiction"},
    "ii": {"text.cifar-4096-sgd": "contradiction"},
    "iii": {"text.long-tail-baseline": "contradiction"},
    "iv": {"text.long-tail-kfac": "contradiction"},
    "v": {"abstract.kfac": "contradiction", "abstract.first-order": "contradiction"},
    "vi": dict.fromkeys(
        ["t2.kfac_4096.speedup", "t2.fop_2048.speedup", "t2.fop_4096.speedup", "t3.fop_8192.speedup"], "last digit"
    ),
    "vii": {"tables.baselines": "not alike"},
    "press-a": {"press.title-against-body": "contradiction"},
    "press-b": {"press.bill": "contradiction"},
    "press-c": {"press.twice-kfac": "absent"},
    "press-d": {"press.near-linear": "contradiction"},
}


def checks(name):
    return lint.lint(SHIPPED[name], LEDGER)


def test_exactly_the_known_disagreements_are_flagged():
    found = {}
    for name in ("fop", "fop-press"):
        for check in checks(name):
            if check.flagged:
                found.setdefault(check.group, {})[check.id] = check.found
    assert found == KNOWN


def test_consistent_rows_are_recomputed_and_not_flagged():
    quiet = {check.id: check for check in checks("fop") if not check.flagged}
    assert {"text.cifar-2048-sgd", "text.cifar-2048-adamw", "table1.same-batch", "t1.fop_50000.speedup"} <= set(quiet)
    assert len([name for name in quiet if name.endswith(".speedup")]) == 17
    assert {check.found for check in checks("muon")} == {"consistent"}


def test_every_ledger_row_of_fop_with_a_published_ratio_is_recomputed():
    recomputed = {check.id for check in checks("fop") if check.group == "ledger"}
    ratios = {c.id for c in LEDGER if c.file.endswith("claims/fop.toml") and c.ratio and c.ratio < 100}
    assert ratios - recomputed == {"fop.15.kfac", "fop.15.sgd", "fop.19.memory"}


@pytest.mark.parametrize(
    ("old", "new", "flagged"),
    [
        ("epochs = 58, seconds = 743.3", "epochs = 58, seconds = 843.3", {"text.cifar-2048-sgd", "fop.06.sgd.time"}),
        ("seconds = 84.3, speedup = 5.43", "seconds = 84.3, speedup = 6.43", {"t1.fop_50000.speedup"}),
        ("c10_100 = 26.65", "c10_100 = 25.65", {"fop.14.c10-if100.kfac", "fop.14.c10-if100.sgd"}),
        ("value = 1.56", "value = 1.65", {"text.cifar-2048-sgd"}),
        ('rows = ["t1.sgd_4096", "t1.fop_4096"]', 'rows = ["t1.sgd_4096", "t1.fop_8192"]', {"table1.same-batch"}),
        ("epochs = 37, seconds = 588.7", "epochs = 38, seconds = 588.7", {"fop.06.kfac.samples"}),
    ],
)
def test_a_changed_number_is_flagged(old, new, flagged, tmp_path):
    text = next(text for label, text in lint._texts(None) if label.endswith("/fop.toml"))
    assert text.count(old) == 1
    (tmp_path / "fop.toml").write_text(text.replace(old, new), encoding="utf-8")
    (changed,) = lint.load_sources([tmp_path])
    before = {check.id for check in checks("fop") if check.flagged}
    after = {check.id for check in lint.lint(changed, LEDGER) if check.flagged}
    assert flagged <= after - before


def test_a_changed_ledger_row_is_flagged():
    claims = [c.model_copy(update={"ratio": 1.26}) if c.id == "fop.06.kfac.time" else c for c in LEDGER]
    found = {check.id for check in lint.lint(SHIPPED["fop"], claims) if check.flagged and check.group == "ledger"}
    assert found == {"fop.06.kfac.time"}
    with pytest.raises(UserError, match=r"no row 'fop.06.kfac.time' with a ratio"):
        lint.lint(SHIPPED["fop"], [c for c in LEDGER if c.id != "fop.06.kfac.time"])


def test_costs_per_gpu():
    rows = {(row["table"], row["row"]): row for row in lint.costs(SHIPPED["fop"])}
    headline = rows["t3", "fop_8192"]
    assert headline["gpu_hours"] == pytest.approx(335.1 * 8 / 60)
    assert headline["speedup"] == pytest.approx(7.4936, abs=1e-4)
    assert headline["cost_ratio"] == pytest.approx(1.0676, abs=1e-4)
    assert headline["efficiency"] == pytest.approx(0.609, abs=1e-3)
    assert rows["t3", "sgd_1024"]["cost_ratio"] == 1.0
    assert rows["t3", "sgd_1024"]["efficiency"] is None
    assert rows["t2", "fop_4096"]["cost_ratio"] == pytest.approx(1 / 1.311, abs=1e-3)
    assert rows["t1", "sgd_2048"]["step_s"] == pytest.approx(0.525, abs=1e-3)
    assert rows["t1", "sgd_4096"]["step_s"] == pytest.approx(0.514, abs=1e-3)
    assert {table for table, _ in rows} == {"t1", "t2", "t3"}


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_flags_and_the_bill_and_exits_by_request():
    run = CliRunner()
    plain = run.invoke(app, ["lint-claims", "--price", "2.5"], env={"COLUMNS": "200"})
    assert plain.exit_code == 0
    assert "printed 1.69; recomputed 2.517" in plain.stdout
    assert "111.70" in plain.stdout
    assert run.invoke(app, ["lint-claims", "--strict"]).exit_code == 1
    told = json.loads(run.invoke(app, ["lint-claims", "--json"], env={"SPEEDCLAIM_GPU_PRICE": "3"}).stdout)
    money = {(row["table"], row["row"]): row["money"] for row in told["costs"]}
    assert money["t3", "fop_8192"] == pytest.approx(3 * 44.68)
    assert sum(check["found"] != "consistent" for check in told["checks"]) == sum(map(len, KNOWN.values()))
    assert "press.wall-clock" in run.invoke(app, ["lint-claims", "--all", "--json"]).stdout


def test_strict_is_quiet_about_a_consistent_source(tmp_path):
    text = next(text for label, text in lint._texts(None) if label.endswith("/muon.toml"))
    (tmp_path / "muon.toml").write_text(text, encoding="utf-8")
    assert CliRunner().invoke(app, ["lint-claims", "--strict", "--source", str(tmp_path)]).exit_code == 0


# -- what is malformed -------------------------------------------------------------------------------------------------


SMALL = """
[source]
id = "x"
title = "x"
citation = "x"
[[table]]
id = "t"
title = "x"
place = "x"
rows = [{{ key = "a", n = 2.0 }}, {{ key = "b", n = 4.0 }}]
{rest}
"""
SAYS = '[[statement]]\nid = "s"\ngroup = "g"\nplace = "p"\nsays = "w"\n'


@pytest.mark.parametrize(
    ("rest", "text"),
    [
        (SAYS + 'value = 1.0\ncompute = ["t.c.n"]', "'c' is unknown; known: a, b"),
        (SAYS + 'value = 1.0\ncompute = ["t.a.n / (t.b.n - 4)"]', "divides by 0"),
        (SAYS + 'value = 1.0\ncompute = ["t.a.key"]', "is no number"),
        (SAYS + 'value = 1.0\ncompute = ["__import__(1)"]', "is not arithmetic"),
        (SAYS + "value = 1.0", "compute goes with"),
        (SAYS + 'value = 1.0\nabsent = true\ncompute = ["t.a.n"]', "exactly one of"),
        ("[[statement]\n", "not valid TOML"),
    ],
)
def test_mistakes_are_named(rest, text, tmp_path):
    (tmp_path / "x.toml").write_text(SMALL.format(rest=rest), encoding="utf-8")
    with pytest.raises(UserError, match=text):
        [lint.lint(source) for source in lint.load_sources([tmp_path / "x.toml"])]


def test_absent_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no source at"):
        lint.load_sources([tmp_path / "none.toml"])


def test_formulas():
    names = {"t": {"a": {"n": 2.0}}, "row": {"n": 3.0}}
    assert Formula("min(t.a.n, row.n) * -2 + abs(1 - 4) / max(1, 3)")(names) == -3.0
    with pytest.raises(FormulaError, match="is not arithmetic"):
        Formula("t.a.n +")
    with pytest.raises(FormulaError, match="is not arithmetic"):
        Formula("[1 for x in t]")(names)


def test_a_folder_without_sources_and_a_file_that_is_no_text_are_errors(tmp_path):
    with pytest.raises(UserError, match="no source in the folder"):
        lint.load_sources([tmp_path])
    (tmp_path / "noise.toml").write_bytes(bytes(range(128, 256)))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        lint.load_sources([tmp_path])


@pytest.mark.parametrize("price", ["nan", "inf", "0", "-1"])
def test_a_price_is_a_finite_number_above_zero(price):
    found = CliRunner().invoke(app, ["lint-claims", "--price", price])
    assert isinstance(found.exception, UserError)
    assert "a finite number above 0" in str(found.exception)

"""Pages across workloads: sweeps over the batch size, components of FOP, long tails, published figures."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.record.store import read_headers, read_runs
from reports import ablation, batch_sweep, boards, html, long_tail, published, training

OLD = "sweep--old.html"
DEVICE = "NVIDIA H100 80GB HBM3"
ARMS = ("kfac-cholesky", "kfac-halves", "fop-beta0", "fop-random", "fop-eta1", "fop")
#: Time constants in evaluations: halves give nothing, eta gives a third, the orthogonal term nothing.
TAU = dict(zip(ARMS, (3.0, 3.0, 2.0, 2.0, 3.0, 2.0), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, trainer: Any, training_arm: Any, usual_arms: Any) -> Path:
    """A sweep of three sizes, six arms of FOP on digits, a long tail."""
    where = tmp_path_factory.mktemp("boards")
    sgd, adamw, muon = usual_arms
    for batch, tau in ((512, 1.5), (2048, 2.5), (8192, 6.0)):
        name = "cifar10-resnet18" + ("" if batch == 512 else f"-b{batch}")
        missing = replace(sgd, final=0.90) if batch == 8192 else replace(sgd, tau=2 * tau)
        arms = [missing, replace(muon, tau=tau), replace(adamw, tau=2.5 * tau, fates={1: "diverged"})]
        trainer(workload=name, value=0.91, batch=batch, updates=round(1.2e6 / batch), device="cuda", device_name=DEVICE,
                evaluations=30).write(where / f"sweep-{batch}.jsonl", arms, seeds=6)  # fmt: skip
    fop = [training_arm(method=f"training.{name}", tau=TAU[name], final=0.995) for name in ARMS]
    trainer(workload="digits-fullbatch", evaluations=25, updates=100, batch=1442).write(
        where / "fop.jsonl", fop, seeds=10
    )
    tail = [replace(arm, final=0.72 + 0.01 * k, tau=2.0) for k, arm in enumerate((sgd, muon, fop[5]))]
    trainer(workload="cifar10lt-resnet32", value=0.7195, device="cuda", device_name=DEVICE).write(
        where / "tail.jsonl", tail, seeds=6
    )
    return where


@pytest.fixture(scope="module")
def places(folder: Path) -> list[training.Place]:
    return training.places(read_runs(folder), read_headers(folder))


@pytest.fixture(scope="module")
def rendered(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages")
    (out / OLD).write_text("a page of an earlier rendering", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:  # the workloads' own figures are drawn, and read, in other tests
        patched.setattr(html.training_charts, "sections", lambda place: [])
        html.render(read_runs(folder), read_headers(folder), [], out)
    return out


# -- sweeps ------------------------------------------------------------------------------------------------------------


def test_sizes_of_one_name_and_device_are_one_sweep(places: list[training.Place]) -> None:
    found = batch_sweep.sweeps(places)
    assert list(found) == [("cifar10-resnet18", DEVICE)]
    assert [batch for batch, _ in found["cifar10-resnet18", DEVICE]] == [512, 2048, 8192]
    assert batch_sweep.stem("imagenet1k-resnet50-b8192") == "imagenet1k-resnet50"
    assert batch_sweep.stem("digits-bf16") == "digits-bf16"
    assert batch_sweep.sweeps(places[:1]) == {}


def test_rows_are_medians_and_misses_are_infinite(places: list[training.Place]) -> None:
    sizes = batch_sweep.sweeps(places)["cifar10-resnet18", DEVICE]
    rows = {(row["arm"], row["batch"]): row for row in batch_sweep.rows(sizes)}
    assert len(rows) == 9
    lost = rows["training.sgd", 8192]
    assert (lost["hits"], lost["steps"], lost["device_s"]) == (0, math.inf, math.inf)
    assert lost["statuses"] == {"budget_exhausted": 6}
    kept = rows["training.muon", 512]
    assert kept["hits"] == 6
    runs = sizes[0][1].arms["training.muon"].values()
    values = sorted(run.metrics["steps_to_target"] for run in runs)
    assert kept["steps"] == pytest.approx((values[2] + values[3]) / 2)
    assert kept["samples"] == pytest.approx(kept["steps"] * 512)
    assert kept["epochs"] == pytest.approx(kept["steps"] / round(1.2e6 / 512) * 12.0), "of a schedule of 12 epochs"
    assert lost["epochs"] == math.inf
    assert rows["training.adamw", 2048]["statuses"]["diverged"] == 1


def test_the_front_has_no_beaten_row() -> None:
    rows = [
        {"arm": "a", "steps": 10.0, "device_s": 5.0},
        {"arm": "b", "steps": 10.0, "device_s": 6.0},
        {"arm": "c", "steps": 5.0, "device_s": 9.0},
        {"arm": "d", "steps": math.inf, "device_s": 1.0},
        {"arm": "e", "steps": 10.0, "device_s": 5.0},
    ]
    assert [(row["arm"], row["front"]) for row in batch_sweep.front(rows)] == [
        ("a", True), ("b", False), ("c", True), ("e", True)
    ]  # fmt: skip


def test_the_lead_names_the_largest_size_and_who_gets_nowhere(places: list[training.Place]) -> None:
    (board,) = batch_sweep.made(places)
    assert board.lead.startswith("3 batch sizes from 512 to 8,192, to test accuracy 91.00")
    assert "is 8,192, by muon" in board.lead
    table = board.sections[2].tables[0]
    assert len(table.rows) == 9
    assert [name for name in ("updates", "epochs", "time", "device time", "stall") if name not in table.head] == []
    assert all(len(row) == len(table.head) for row in table.rows)
    chart = board.sections[0].charts[0]
    assert "muon:" in chart.sentence
    assert "sgd" in chart.svg
    assert len(chart.rows) == 9


# -- components --------------------------------------------------------------------------------------------------------


def test_each_component_is_one_paired_ratio(places: list[training.Place]) -> None:
    (place,) = [place for place in places if place.workload == "digits-fullbatch"]
    rows = {row["component"]: row for row in ablation.rows(place)}
    assert list(rows) == [name for _, _, name, _ in ablation.COMPONENTS]
    assert rows["eta alone"]["side"] == "faster"
    assert rows["eta alone"]["ratio"] == pytest.approx(1.5, rel=0.1)
    assert rows["eta of each layer"]["side"] == "faster"
    assert {rows[name]["side"] for name in ("two half batches", "the orthogonal term", "the sign of beta")} <= {
        "open", "level"
    }  # fmt: skip
    assert rows["all together"]["hits"] == ["10 of 10", "10 of 10"]
    assert 0 < rows["eta alone"]["floor"] < 0.2
    (board,) = ablation.made(places)
    assert board.lead.startswith("FOP needs fewer updates thanks to eta alone, eta of each layer.")
    assert {row[0].text for row in board.sections[1].tables[0].rows} == {f"training.{name}" for name in ARMS}


@pytest.mark.parametrize("halved", [False, True])
def test_a_longer_step_is_not_told_as_a_component(
    tmp_path: Path, trainer: Any, training_arm: Any, halved: bool
) -> None:
    """At one learning rate the arms with an eta of 2 take steps twice as long."""
    arms = []
    for name in ARMS:
        long = name in ("fop", "fop-beta0", "fop-random")
        hyper = {"lr": 0.05 if long and halved else 0.1, **({"eta_ref": "sum"} if long else {})}
        arms.append(replace(training_arm(method=f"training.{name}", tau=TAU[name], final=0.995), hyper=hyper))
    trainer(workload="digits-fullbatch").write(tmp_path / "a.jsonl", arms, seeds=6)
    (board,) = ablation.made(training.places(read_runs(tmp_path), read_headers(tmp_path)))
    said = "rate times eta differs for eta alone, eta of each layer, all together: the rate may be what is seen"
    assert (said in board.lead) is not halved
    first = board.sections[0].tables[0].rows[1]
    assert [cell.small[1] for cell in first[1:3]] == [
        "rate × eta 0.1",
        "rate × eta 0.1" if halved else "rate × eta 0.2",
    ]


def test_arms_of_other_files_are_not_compared(tmp_path: Path, trainer: Any, training_arm: Any) -> None:
    for k, names in enumerate((("fop", "fop-beta0"), ("kfac-cholesky", "kfac-halves"))):
        arms = [training_arm(method=f"training.{name}", tau=2.0, final=0.995) for name in names]
        trainer(workload="digits-fullbatch").write(tmp_path / f"{k}.jsonl", arms, seeds=6)
    (place,) = training.places(read_runs(tmp_path), read_headers(tmp_path))
    assert [row["component"] for row in ablation.rows(place)] == ["two half batches", "the orthogonal term"]


def test_few_seeds_only_screen(tmp_path: Path, trainer: Any, training_arm: Any) -> None:
    arms = [training_arm(method=f"training.{name}", tau=TAU[name], final=0.995) for name in ARMS]
    trainer(workload="digits-fullbatch").write(tmp_path / "a.jsonl", arms, seeds=3)
    (board,) = ablation.made(training.places(read_runs(tmp_path), read_headers(tmp_path)))
    assert "3 seeds can only screen" in board.lead
    assert "fewer updates" not in board.lead


def test_an_alias_that_misses_leaves_the_floor_unbounded(tmp_path: Path, trainer: Any, training_arm: Any) -> None:
    arms = [training_arm(method=f"training.{name}", tau=2.0, final=0.995) for name in ("fop", "fop-beta0")]
    arms[0] = replace(arms[0], fates=dict.fromkeys(range(6), "budget_exhausted"))
    trainer(workload="digits-fullbatch").write(tmp_path / "a.jsonl", arms, seeds=6)
    (board,) = ablation.made(training.places(read_runs(tmp_path), read_headers(tmp_path)))
    (row,) = board.sections[0].tables[0].rows
    assert (row[5].text, row[5].sort) == ("unbounded", "")
    assert board.sections[0].charts[0].rows[0]["floor"] is None


# -- long tails and published figures ----------------------------------------------------------------------------------


def test_final_errors_stand_beside_the_published_ones(places: list[training.Place]) -> None:
    (board,) = long_tail.made(places)
    rows = {row[0].text: row for row in board.sections[0].tables[0].rows}
    assert rows["fop"][1].text == "26.65\u00a0%"
    assert rows["training.fop"][1].sort == pytest.approx(26.0, abs=1.0)
    assert "cifar10lt-resnet32: least error" in board.lead
    assert long_tail.column("cifar10lt-resnet32-f50") == "c10_50"
    assert long_tail.column("cifar10-resnet18") is None


def test_the_published_page_needs_no_run() -> None:
    (board,) = published.made()
    assert board.priced
    flags = {row[0].text: row[3].text for row in board.sections[0].tables[0].rows}
    assert flags["The GPU bill is 87 % smaller."] == "contradiction"
    costs = {(row[0].text, row[1].text): row for section in board.sections[1:] for row in section.tables[0].rows}
    headline = costs["FOP", "8,192"]
    assert [cell.text for cell in headline[4:7]] == ["7.49×", "44.7", "0.94×"]
    assert headline[7].gpu_hours == pytest.approx(44.68)


def test_without_runs_only_the_published_page_is_made() -> None:
    assert [board.slug for board in boards.boards([])] == ["published"]


# -- the pages ---------------------------------------------------------------------------------------------------------


def test_pages_are_written_linked_and_complete(rendered: Path) -> None:
    names = {path.name for path in rendered.glob("*.html")}
    made = {name.split("--")[0] for name in names if name.startswith(("sweep", "ablation", "longtail"))}
    assert made == {"sweep", "ablation", "longtail"}
    index = (rendered / "index.html").read_text(encoding="utf-8")
    for name in names:
        text = (rendered / name).read_text(encoding="utf-8")
        assert f'href="{name}"' in index
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert len(ids) == len(set(ids)), name
        for block in re.findall(r'<script type="application/json" class="rows">(.*?)</script>', text, re.DOTALL):
            json.loads(block, parse_constant=lambda word, name=name: pytest.fail(f"{name} has {word}"))
        for href in re.findall(r'href="([^"#:]+\.html)', text):
            assert href in names, (name, href)


def test_pages_of_an_earlier_rendering_go(rendered: Path) -> None:
    assert not (rendered / OLD).exists()


def test_a_price_fills_the_bill(browser: Any, rendered: Path) -> None:
    page = browser.new_page()
    try:
        page.goto((rendered / "published.html").as_uri())
        page.fill("[data-price]", "2.5")
        bills = page.eval_on_selector_all("[data-gpu-hours='44.68']", "cells => cells.map(c => c.textContent)")
        assert bills == ["111.70"]
        page.fill("[data-price]", "")
        assert page.eval_on_selector("[data-gpu-hours='44.68']", "cell => cell.textContent") == "—"
    finally:
        page.close()

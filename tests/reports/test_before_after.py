"""The page of two records side by side: words, figures, environment, escaping, and the command line behind it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.judge.compare import compare
from harness.record.store import read_headers, read_runs
from reports import before_after

ROOT = Path(__file__).resolve().parents[2]


def rewritten(source: str, target: Path, factors: dict[str, float], torch: str) -> Path:
    """A copy of a record in which some methods take ``factor`` times as long, under another torch."""
    lines = []
    for text in Path(source).read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["record"] == "header":
            line["environment"]["torch"] = torch
            line["project"]["commit"] = "f" * 40
        for measurement in line.get("measurements", []):
            if measurement["metric"] == "op_s":
                factor = factors.get(line["method"], 1.0)
                measurement["samples"] = [factor * sample for sample in measurement["samples"]]
        lines.append(json.dumps(line))
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


@pytest.fixture(scope="module")
def sides(record: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sides")
    source = next(h["file"] for h in record.headers if h["environment"]["device"] == "cpu")
    before = Path(shutil.copy(source, folder / "before.jsonl"))
    factors = {"polar.aol-torch": 0.5, "polar.turbo-torch": 2.0}
    return before, rewritten(source, folder / "after.jsonl", factors, "9.9 <b>")


@pytest.fixture(scope="module")
def rows(sides: tuple[Path, Path]) -> list[dict[str, Any]]:
    headers = [read_headers(side) for side in sides]
    found = compare(read_runs(sides[0]), read_runs(sides[1]), headers_a=headers[0], headers_b=headers[1])
    return [row.model_dump(mode="json") for row in found]


def test_the_worst_news_comes_first_and_numbers_are_said_once(rows: list[dict[str, Any]]) -> None:
    shown = before_after.drawn(rows)
    assert len(shown) == len(rows)
    assert shown[0]["word"] == "slower"
    assert {row["method"] for row in shown if row["changed"]} == {"polar.aol-torch", "polar.turbo-torch"}
    assert all(row["bar"].startswith("<svg") for row in shown)
    said = before_after.sentence(rows)
    words = [row["word"] for row in rows]
    assert said.startswith(f"{len(rows)} cases in both: {words.count('slower')} slower, {words.count('faster')} faster")
    assert "Nothing changed" in before_after.sentence([row for row in rows if row["word"] == "no difference"])


def test_environments_are_told_apart(sides: tuple[Path, Path]) -> None:
    differing, same = before_after.environments(read_headers(sides[0]), read_headers(sides[1]))
    assert ("torch", "2.14.1+cu130", "9.9 <b>") in differing
    assert [label for label, _, _ in differing] == ["commit", "torch"]
    assert ("python", "3.11.7") in same


def test_the_page_is_whole_escaped_and_fetches_nothing(
    rows: list[dict[str, Any]], sides: tuple[Path, Path], tmp_path: Path
) -> None:
    headers = [read_headers(side) for side in sides]
    path = before_after.render(rows, headers[0], headers[1], tmp_path / "deep", ("a<b>", "b.jsonl"))
    text = path.read_text(encoding="utf-8")
    assert path.name == "compare.html"
    assert "9.9 &lt;b&gt;" in text
    assert "<b>.jsonl" not in text
    assert "<script>alert" not in text
    assert not re.search(r"(src|href)=[\"']https?://", text)
    assert "default-src 'none'" in text
    assert "index.html" not in text, "no link to a page that is not there"
    assert text.count('data-changed="yes"') == sum(row["word"] in ("faster", "slower") for row in rows)


def test_an_unwritable_folder_is_one_clear_line(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the comparison into"):
        before_after.render(rows, [], [], tmp_path / "file", ("a", "b"))


def test_the_command_writes_the_page_and_keeps_json_and_exit_code(
    sides: tuple[Path, Path], warm: Any, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "harness", "compare", *map(str, sides), "--json"]
    plain = warm.run(command, cwd=ROOT)
    page = [*command, "--html", "--out", str(tmp_path)]
    paged = warm.run(page, cwd=ROOT)
    assert plain.returncode == paged.returncode == 1
    assert json.loads(plain.stdout) == json.loads(paged.stdout)
    assert (tmp_path / "compare.html").is_file()


def test_only_changed_hides_the_rest(
    browser: Any, rows: list[dict[str, Any]], sides: tuple[Path, Path], tmp_path: Path
) -> None:
    path = before_after.render(rows, read_headers(sides[0]), read_headers(sides[1]), tmp_path, ("a", "b"))
    for width in (1280, 390):
        page = browser.new_page(viewport={"width": width, "height": 900})
        loud: list[str] = []
        page.on("console", lambda m, loud=loud: loud.append(m.text))
        page.on("pageerror", lambda e, loud=loud: loud.append(str(e)))
        page.goto(path.as_uri())
        shown = page.locator("#compare-table tbody tr")
        assert shown.filter(visible=True).count() == len(rows)
        page.get_by_label("Only changed").check()
        changed = sum(row["word"] in ("faster", "slower") for row in rows)
        assert shown.filter(visible=True).count() == changed
        page.locator("[data-filter=compare-table]").fill("turbo")
        assert shown.filter(visible=True).count() == sum(
            row["word"] == "slower" and "turbo" in row["case"] for row in rows
        )
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert loud == []
        page.close()

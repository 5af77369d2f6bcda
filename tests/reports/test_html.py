"""Pages: complete, self-contained, escaped, linked, under 2 MB, made without torch."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.errors import UserError
from reports import html
from reports.cases import cases

VOID = {"meta", "link", "input", "br", "img", "hr"}


class Page(HTMLParser):
    """Tags, ids, links and visible text of one page; unbalanced markup is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def ids(self) -> list[str]:
        return [a["id"] or "" for _, a in self.attributes if "id" in a]


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.name: Page(path.read_text(encoding="utf-8")) for path in site.glob("*.html")}


def test_the_expected_pages_exist(pages: dict[str, Page]) -> None:
    assert {"index.html", "claims.html", "methods.html", "audit.html"} <= set(pages)
    assert sum(name.startswith("task--polar--") for name in pages) == 2


def test_pages_stay_under_two_megabytes(site: Path) -> None:
    assert {p.name: p.stat().st_size for p in site.glob("*.html") if p.stat().st_size > 2_000_000} == {}


def test_ids_are_unique_and_every_inner_link_arrives(pages: dict[str, Page], site: Path) -> None:
    for name, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), name
        for tag, attrs in page.attributes:
            target = attrs.get("href") or ""
            if tag != "a" or target.startswith(("data:", "https://")):
                continue
            file, _, anchor = target.partition("#")
            assert (site / (file or name)).is_file(), target
            if anchor:
                assert anchor in pages[file or name].ids, f"{name}: {target}"


def test_nothing_is_fetched(pages: dict[str, Page]) -> None:
    for page in pages.values():
        for tag, attrs in page.attributes:
            for key in ("src", "srcset", "data", "poster", "action"):
                assert key not in attrs, (tag, key)
            if tag == "link":
                assert attrs["href"] == "data:,"
        policy = next(a["content"] for t, a in page.attributes if a.get("http-equiv") == "Content-Security-Policy")
        assert policy is not None
        assert policy.startswith("default-src 'none'")


def test_the_policy_allows_exactly_our_script(site: Path) -> None:
    import hashlib

    text = (site / "index.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL).group(1)  # type: ignore[union-attr]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_hostile_text_stays_text(pages: dict[str, Page], site: Path) -> None:
    for name, page in pages.items():
        kinds = [a.get("type") for t, a in page.attributes if t == "script"]
        assert kinds.count(None) == 1, name
        assert set(kinds) <= {None, "application/json"}
        assert "img" not in page.tags
        assert not any(key.startswith("on") for _, a in page.attributes for key in a)
        raw = (site / name).read_text(encoding="utf-8")
        assert "<script>alert" not in raw
        assert "<img" not in raw
    assert "polar.<script>alert(1)</script>" in pages["index.html"].text
    assert "onerror=alert(2)" in pages["methods.html"].text


def test_the_front_page_holds_what_a_reader_needs(pages: dict[str, Page]) -> None:
    text = pages["index.html"].text
    for wanted in (
        *("reproduced", "partly", "not reproduced", "inconclusive", "not testable here", "invalid"),
        *("Claim number 1", "1.60×", "1.90×", "[1.82, 1.97]", "own implementation", "needs CUDA: no NVIDIA device"),
        *("speedclaim run --suite polar", "noise floor", "left out by the time budget", "thermal slowdown"),
        *("AMD EPYC 7B13", "NVIDIA H100 80GB HBM3", "load average 2.7 on 2 cores", "torch", "precision", "Legend"),
        *("out of memory", "no answer within 120 s", "unfinished", "the input was changed in place"),
    ):
        assert wanted in text, wanted


def test_figures_carry_their_rows_and_a_sentence(site: Path) -> None:
    for path in site.glob("task--*.html"):
        text = path.read_text(encoding="utf-8")
        figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
        assert len(figures) >= 5
        for figure in figures:
            rows = json.loads(re.search(r'class="rows">(.*?)</script>', figure, re.DOTALL).group(1))  # type: ignore[union-attr]
            assert rows
            assert re.search(r"</h3><p>[A-Z0-9][^<]{20,}\.", figure)


def test_rows_behind_figures_are_json_for_every_reader(site: Path) -> None:
    for path in site.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r'<script type="application/json" class="rows">(.*?)</script>', text, re.DOTALL):
            json.loads(block, parse_constant=lambda word, name=path.name: pytest.fail(f"{name} has {word}"))


def test_sources_become_links_and_stay_escaped() -> None:
    text = str(
        html.linked("<b> arXiv:2512.04632 §3, https://example.org/a?b=1&c=2. (https://x.org/y) javascript:alert(1)")
    )
    assert text.startswith('&lt;b&gt; <a href="https://arxiv.org/abs/2512.04632"')
    assert '<a href="https://example.org/a?b=1&amp;c=2" rel="noreferrer">' in text
    assert '<a href="https://x.org/y" rel="noreferrer">https://x.org/y</a>)' in text
    assert text.count("<a ") == 3


def test_every_case_stands_on_its_task_page(pages: dict[str, Page], record: Any) -> None:
    shown = sorted(i for name, page in pages.items() if name.startswith("task--") for i in page.ids)
    assert sorted(case.anchor for case in cases(record.runs, record.headers)) == [i for i in shown if i[:6] == "case--"]


def test_downloads_hold_the_record(site: Path, pages: dict[str, Page], record: Any) -> None:
    links = {a["download"]: a["href"] or "" for t, a in pages["audit.html"].attributes if "download" in a}

    def content(name: str) -> bytes:
        href = links[name]
        if href.startswith("data:"):
            return base64.b64decode(href.partition("base64,")[2])
        return (site / href).read_bytes()

    found = pd.read_csv(io.BytesIO(content("cases.csv")))
    assert len(found) == len(cases(record.runs, record.headers))
    assert len(pd.read_csv(io.BytesIO(gzip.decompress(content("runs.csv.gz"))))) == len(record.runs)
    assert len(json.loads(content("claims.json"))) == len(record.verdicts)
    assert len(json.loads(content("headers.json"))) == len(record.headers)


def test_no_record_gives_a_page_that_says_what_to_do(empty_record: Any, tmp_path: Path) -> None:
    path = html.render(empty_record.runs, [], [], tmp_path)
    assert path == tmp_path / "index.html"
    assert "make bench" in Page(path.read_text(encoding="utf-8")).text


def test_claims_without_runs_are_shown(empty_record: Any, record: Any, tmp_path: Path) -> None:
    text = Page(html.render(empty_record.runs, [], record.verdicts, tmp_path).read_text(encoding="utf-8")).text
    assert "Claim number 1" in text
    assert "No measurement is stored yet" in text


def test_long_tables_are_split_into_parts(make_record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make_record(tmp_path / "records")
    monkeypatch.setattr(html, "CASES_PER_PAGE", 40)
    monkeypatch.setattr("reports.charts.sections", lambda *_: [("Time against size", "", [])])
    html.render(record.runs, record.headers, [], tmp_path)
    parts = sorted(tmp_path.glob("task--*.html"))
    assert len(parts) == 6
    shown = [Page(path.read_text(encoding="utf-8")) for path in parts]
    anchors = [i for page in shown for i in page.ids if i.startswith("case--")]
    assert len(anchors) == len(set(anchors)) == 192
    front = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    for _, attrs in front.attributes:
        file, _, anchor = (attrs.get("href") or "").partition("#")
        if anchor.startswith("case--"):
            page = next(p for path, p in zip(parts, shown, strict=True) if path.name == file)
            assert anchor in page.ids


def test_pages_of_an_earlier_rendering_are_removed(make_record: Any, tmp_path: Path) -> None:
    record = make_record(tmp_path / "records", 2, [("gaussian", (64, 64))], ["polar.svd", "polar.ns-torch"])
    old, other = tmp_path / "task--gone--cpu.html", tmp_path / "notes.html"
    old.write_text("old")
    other.write_text("mine")
    html.render(record.runs, record.headers, record.verdicts, tmp_path)
    assert not old.exists()
    assert other.read_text() == "mine"
    assert list(tmp_path.glob("task--*.html"))


def test_an_unwritable_folder_is_one_clear_line(record: Any, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot write the report into"):
        html.render(record.runs.iloc[:0], [], [], blocked)


def test_rendering_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, pandas as pd, pathlib; from harness.record.store import COLUMNS; from reports import html;"
        f"html.render(pd.DataFrame(columns=list(COLUMNS)), [], [], pathlib.Path({str(tmp_path)!r}));"
        "print(sorted({'torch', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"

"""The report: plain rows and figures assembled into self-contained pages that open from disk without a network."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

import harness
from harness.errors import UserError
from reports import (
    audit,
    boards,
    break_even_width,
    charts,
    downloads,
    figures,
    kfac_spectrum,
    ledger,
    memory,
    plain,
    product_charts,
    product_costs,
    product_finetuning,
    product_threads,
    products,
    robustness,
    scaling,
    sentences,
    suite_pages,
    tables,
    theme,
    time_parts,
    training,
    training_charts,
    training_levels,
)
from reports.cases import Case, cases, devices

Row = dict[str, Any]
Header = dict[str, Any]
#: Keeps the front page under 2 MB: what all matrices together may weigh, and what a cell and one reading weigh.
MATRIX_BYTES, CELL_BYTES, ENTRY_BYTES = 1_100_000, 210, 120
MATRIX_PROBLEMS = 30
CASES_PER_PAGE = 600
ROWS_ON_FRONT = 60
ROWS_ON_AUDIT = 1500
FILES_ON_FRONT = 4
#: Pages that an earlier rendering may have left: of tasks and workloads that are in no record any more.
EARLIER = ("task--*.html", "train--*.html", *boards.EARLIER, "robustness--*.html", "memory--*.html", "scaling--*.html",
           *(f"{kind}--*.html" for kind in ("spectrum", "break-even-width", "time-parts")))  # fmt: skip
#: Suites that time nothing and have pages of their own.
UNTIMED = (robustness, memory, kfac_spectrum)
#: Further pages over what other suites and trainings have stored.
FURTHER = (scaling, break_even_width, time_parts)
FILES_ON_AUDIT = 60
#: Task and section of its page that means nothing for it.
MEANINGLESS = {("whole_network", "Singular values of the outputs")}
VIEWS = 40
_ADDRESS = re.compile(r"""https://[^\s<>"'();,]+[^\s<>"'();,.]|arXiv[: ](?P<arxiv>\d{4}\.\d{4,5})""")


def render(runs: pd.DataFrame, headers: list[Header], verdicts: list[Row], out: Path) -> Path:
    """Write the report's pages.

    Args:
        runs: rows of :func:`harness.record.store.read_runs`.
        headers: headers of :func:`harness.record.store.read_headers`.
        verdicts: judged claims as plain dictionaries.
        out: folder, made if missing.

    Returns:
        The path of ``index.html``.

    Raises:
        UserError: the folder cannot be written.
    """
    site = _Site(runs, headers, verdicts)
    pages = site.pages()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            (out / name).write_text(text, encoding="utf-8")
        for pattern in EARLIER:
            for page in out.glob(pattern):
                if page.name not in pages:
                    page.unlink()
        for name, content in site.side_files.items():
            (out / name).write_bytes(content)
    except OSError as error:
        raise UserError(
            f"cannot write the report into {out}: {error.strerror or error}; choose another folder with --out."
        ) from error
    return out / "index.html"


def page(template: str, name: str, title: str, nav: Mapping[str, Any], home: str = "index.html", **context: Any) -> str:
    """One page from its template, with the house's style, script and policy inside."""
    script, css = _asset("script.js"), theme.css_variables() + _asset("style.css") + _view_rules()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _templates().get_template(template).render(
        page=name, title=title, nav=nav, home=home, css=css, script=script, script_hash=f"sha256-{digest}",
        version=harness.__version__, verdict_signs=theme.VERDICTS, status_signs=theme.STATUSES, **context,
    )  # fmt: skip


class _Site:
    """Everything that several pages share."""

    def __init__(self, runs: pd.DataFrame, headers: list[Header], verdicts: list[Row]) -> None:
        self.runs, self.headers = runs, headers
        self.cases = cases(runs[~runs["task"].isin([module.TASK for module in UNTIMED])], headers)
        self.suites = [page for module in (*UNTIMED, *FURTHER) for page in module.pages(runs, headers)]
        self.problems = tables.problem_index(headers)
        self.places = training.places(runs[~scaling.mine(runs)], headers)
        self.boards = boards.boards(self.places)
        self.ledger = _drawn(ledger.rows(verdicts))
        self.claim_charts = [
            chart for device in dict.fromkeys(row["device"] for row in self.ledger)
            if (chart := charts.claims(self.ledger, device)) is not None
        ]  # fmt: skip
        self.files = audit.files(headers, self.cases)
        self.left_out = audit.left_out(headers)
        self.discarded = audit.discarded(runs, headers)
        self.parts = _task_parts(self.cases)
        self.side_files: dict[str, bytes] = {}
        self.drawn: dict[tuple[str, str], list[charts.Section]] = {}
        self.nav = {
            "before": [("index.html", "Overview"), ("claims.html", "Claims")],
            "tasks": [
                *((f"{slug}.html", f"{task} on {device}") for (device, task), (slug, _) in self.parts.items()),
                *((f"{page.slug}.html", page.title) for page in self.suites),
            ],
            "training": [
                *((f"{place.slug}.html", f"{place.workload} on {place.device}") for place in self.places),
                *((f"{board.slug}.html", board.title) for board in self.boards if not board.priced),
            ],
            "after": [
                *((f"{board.slug}.html", board.title) for board in self.boards if board.priced),
                ("methods.html", "Methods"),
                ("audit.html", "Audit"),
            ],
        }

    def pages(self) -> dict[str, str]:
        """File name -> text of every page."""
        found = {"index.html": self._index(), "claims.html": self._claims(), "methods.html": self._methods()}
        for (device, task), (slug, own) in self.parts.items():
            found.update(self._task(device, task, slug, own))
        found.update({f"{place.slug}.html": self._training(place) for place in self.places})
        found.update({f"{page.slug}.html": self._suite(page) for page in self.suites})
        for board in self.boards:
            found[f"{board.slug}.html"] = self._page("board.j2", f"{board.slug}.html", board.title, board=board)
        found["audit.html"] = self._audit()
        return found

    def _page(self, template: str, name: str, title: str, **context: Any) -> str:
        return page(template, name, title, nav=self.nav, **context)

    def _index(self) -> str:
        rank = {device: place for place, device in enumerate(ledger.devices(self.ledger))}
        shown = [
            {"device": device, "slug": plain.anchor("device", device), "tasks": self._tasks(device, own)}
            for device, own in sorted(devices(self.cases), key=lambda item: rank.get(item[0], len(rank)))
        ]
        return self._page(
            "index.j2", "index.html", "Overview",
            where=sentences.where(self.files), lead=self._lead(),
            claims=[{**row, "detail_anchor": row["anchor"]} for row in ledger.by_verdict(self.ledger)],
            counts=ledger.counts(self.ledger), untested=ledger.untested(self.ledger),
            trainings=training.overview(self.places), devices=shown,
            headlines=sentences.headlines(self.ledger, self.cases),
            files=self.files[-ROWS_ON_FRONT:], environments=self._environments(FILES_ON_FRONT),
            more_files=max(0, len(self.headers) - FILES_ON_FRONT),
            left_out=audit.by_reason(self.left_out), discarded=audit.by_reason(self.discarded),
        )  # fmt: skip

    def _lead(self) -> str:
        runs = sum(len(place.runs) for place in self.places)
        return sentences.front(self.ledger, self.cases, self.files, runs, len({p.workload for p in self.places}))

    def _training(self, place: training.Place) -> str:
        siblings = [
            (f"{other.slug}.html", other.device)
            for other in self.places
            if other.workload == place.workload and other.device != place.device
        ]
        claims = [
            row for row in self.ledger
            if f" train {place.workload} " in row["command"] and row["device"] == place.device
        ]  # fmt: skip
        return self._page(
            "training.j2", f"{place.slug}.html", f"{place.workload} on {place.device}", workload=place.workload,
            device=place.device, lead=training.lead(place), siblings=siblings, claims=claims,
            metric=plain.spoken(place.metric), rows=training.table(place), levels=training_levels.rows(place),
            asked=training_levels.asked(place),
            sections=[*training_charts.sections(place), *product_finetuning.sections(place)],
            facts=training.facts(place), hyper=training.hyper_rows(place), runs=training.run_rows(place),
            run_count=len(place.runs),
        )  # fmt: skip

    def _suite(self, told: suite_pages.Page) -> str:
        siblings = [(f"{other.slug}.html", other.device) for other in self.suites
                    if other.suite == told.suite and other.device != told.device]  # fmt: skip
        command = told.command or f"python -m suites.{told.suite}"
        claims = [row for row in self.ledger if row["command"].startswith(command) and row["device"] == told.device]
        return self._page(
            "suite.j2", f"{told.slug}.html", told.title, lead=told.lead, siblings=siblings, claims=claims,
            tables=told.tables, sections=told.sections, after=told.after, command=command,
        )  # fmt: skip

    def _tasks(self, device: str, own: list[Case]) -> list[Row]:
        rows = []
        for task in dict.fromkeys(case.task for case in own):
            mine = [case for case in own if case.task == task]
            slug = self.parts[device, task][0]
            errors = tables.error_names(mine, self.headers, task)
            width = _width(mine, errors, len(self.parts))
            grid = tables.matrix(mine, errors, self.problems, self._pager(device, task), width)
            rows.append(
                {
                    "name": task,
                    "anchor": plain.anchor("task", task, device),
                    "page": f"{slug}.html",
                    "sentence": sentences.task(mine),
                    "errors": errors,
                    "matrix": grid,
                    "matrix_id": plain.anchor("matrix", task, device),
                    "size_chart": next(iter(self._sections(device, task)[0][2]), None),
                }
            )
        return rows

    def _pager(self, device: str, task: str) -> Mapping[str, str]:
        slug, own = self.parts[device, task]
        return {case.anchor: _part_name(slug, place // CASES_PER_PAGE) for place, case in enumerate(own)}

    def _claims(self) -> str:
        groups: dict[str, list[Row]] = {}
        for row in self.ledger:
            facts = [(label, row[key]) for label, key in sentences.CLAIM_FACTS if row[key] not in ("", plain.DASH)]
            table_id = plain.anchor("problems", row["id"], row["device"])
            groups.setdefault(row["group"] or row["id"], []).append(
                {**row, "facts": facts, "table_id": table_id, "sentence": sentences.claim(row)}
            )
        named = [({"name": name, "anchor": plain.anchor("group", name)}, rows) for name, rows in groups.items()]
        lead = sentences.ledger(self.ledger)
        return self._page("claims.j2", "claims.html", "Claims", groups=named, lead=lead, claim_charts=self.claim_charts)

    def _methods(self) -> str:
        cards = audit.method_cards(self.headers, self.cases, training.where(self.places))
        return self._page("methods.j2", "methods.html", "Methods", cards=cards, lead=sentences.methods(cards))

    def _task(self, device: str, task: str, slug: str, own: list[Case]) -> dict[str, str]:
        errors = tables.error_names(own, self.headers, task)
        count = max(1, -(-len(own) // CASES_PER_PAGE))
        parts = [(_part_name(slug, place), f"part {place + 1}") for place in range(count)]
        siblings = [
            (f"{other}.html", where)
            for (where, name), (other, _) in self.parts.items()
            if name == task and where != device
        ]
        found = {}
        for place, (name, _) in enumerate(parts):
            chunk = own[place * CASES_PER_PAGE : (place + 1) * CASES_PER_PAGE]
            sections = self._told(device, task) if place == 0 else []
            own_tables = task == products.TASK and place == 0
            first, last = place * CASES_PER_PAGE + 1, place * CASES_PER_PAGE + len(chunk)
            note = f"Cases {first} to {last} of {len(own)}; time is the median over blocks, clock: {own[0].clock}."
            note += _threads(own)
            found[name] = self._page(
                "task.j2", name, f"{task} on {device}", task=task, device=device, lead=sentences.task(own),
                parts=parts, siblings=siblings, sections=sections, cases_note=note, error_names=list(errors),
                rows=[tables.case_row(case, errors) for case in chunk],
                ablation=self._options(device, task) if own_tables else [],
                theorem=products.theorem(own) if own_tables else [],
                costs=product_costs.tables(own, self.problems) if own_tables else [],
                implementations=products.implementations(own) if own_tables else [],
            )  # fmt: skip
        return found

    def _told(self, device: str, task: str) -> list[charts.Section]:
        """Sections of a task's page: those that every task has, and the products' own before them."""
        usual = self._sections(device, task)
        if task != products.TASK:
            return [section for section in usual if (task, section[0]) not in MEANINGLESS]
        own = self.parts[device, task][1]
        elsewhere = [place for (place, name), (_, cases) in self.parts.items()
                     if name == task and cases[0].kind == "cuda"]  # fmt: skip
        gpu = self._gpu(own[0]) if own[0].kind == "cuda" else {}
        drawn = product_charts.sections(own, self.problems, device, gpu, elsewhere)
        threads = [] if gpu else product_threads.sections(self.runs, self.headers, device)
        return [*drawn, *threads, *(section for section in usual if section[0] not in products.REPLACED)]

    def _options(self, device: str, task: str) -> list[Row]:
        """Variants of MADDNESS, each with a link to its case on whichever part of the page holds it."""
        parts = self._pager(device, task)
        rows = products.ablation(self.parts[device, task][1])
        return [{**row, "link": f"{parts[row['anchor']]}#{row['anchor']}"} for row in rows]

    def _gpu(self, case: Case) -> Mapping[str, Any]:
        """What the record says about the GPU of a case."""
        described = [h.get("environment", {}).get("gpu") for h in self.headers if h["file"] == case.file]
        return next((gpu for gpu in described if gpu), {"name": case.device})

    def _sections(self, device: str, task: str) -> list[charts.Section]:
        if (device, task) not in self.drawn:
            own = self.parts[device, task][1]
            errors = list(tables.error_names(own, self.headers, task))
            self.drawn[device, task] = charts.sections(own, errors, self.problems, device)
        return self.drawn[device, task]

    def _audit(self) -> str:
        links, self.side_files = downloads.downloads(
            self.runs, self.cases, self.ledger, self.headers, training.flat(self.places)
        )
        failed = [case for case in self.cases if case.time_s is None]
        rows = [{**tables.case_row(case, ()), "device": case.device} for case in failed[:ROWS_ON_AUDIT]]
        return self._page(
            "audit.j2", "audit.html", "Audit", lead=sentences.audit(self.runs, self.files, self.discarded),
            downloads=links, files=self.files, environments=self._environments(FILES_ON_AUDIT),
            left_out=self.left_out[:ROWS_ON_AUDIT], left_out_groups=audit.by_reason(self.left_out),
            failed=rows, failed_more=len(failed) - len(rows),
            discarded=self.discarded[:ROWS_ON_AUDIT],
        )  # fmt: skip

    def _environments(self, limit: int) -> list[Row]:
        return [
            {
                "file": plain.base(header["file"]),
                "device": header.get("environment", {}).get("device_name") or plain.DASH,
                "environment": audit.environment(header),
                "protocol": audit.protocol(header),
            }
            for header in self.headers[-limit:]
        ]


def linked(text: str) -> Markup:
    """Escaped text whose https addresses and arXiv numbers are links (followed only when clicked)."""
    parts, end = [], 0
    for found in _ADDRESS.finditer(text):
        shown = found.group(0)
        number = found.group("arxiv")
        address = f"https://arxiv.org/abs/{number}" if number else shown
        parts += [
            escape(text[end : found.start()]),
            Markup('<a href="{}" rel="noreferrer">{}</a>').format(address, shown),
        ]
        end = found.end()
    return Markup("").join([*parts, escape(text[end:])])


def _width(own: list[Case], errors: Mapping[str, str], matrices: int) -> int:
    """How many problems one of several matrices may show."""
    column = len({case.method for case in own}) * (CELL_BYTES + ENTRY_BYTES * (len(errors) + 6))
    return max(1, min(MATRIX_PROBLEMS, MATRIX_BYTES // max(1, matrices * column)))


def _drawn(rows: list[Row]) -> list[Row]:
    """Ledger rows with their small interval bar; bars of one device share one scale."""
    for device in {row["device"] for row in rows}:
        own = [row for row in rows if row["device"] == device and row["quantity"] == "ratio"]
        scale = figures.bar_scale(own)
        for row in (row for row in rows if row["device"] == device):
            row["bar"] = figures.bar(row, scale) if row["ratio"] and row["quantity"] == "ratio" else ""
    return rows


def _task_parts(found: list[Case]) -> dict[tuple[str, str], tuple[str, list[Case]]]:
    parts: dict[tuple[str, str], list[Case]] = {}
    for case in found:
        parts.setdefault((case.device, case.task), []).append(case)
    return {key: (plain.anchor("task", key[1], key[0]), own) for key, own in parts.items()}


def _threads(own: list[Case]) -> str:
    """How many threads the cases of a processor's page had."""
    counts = Counter(case.threads for case in own if case.kind != "cuda" and case.threads is not None)
    if not counts:
        return ""
    told = ", ".join(f"{plain.count(count, 'thread')} ({n})" for count, n in counts.most_common())
    rest = "; of files with several numbers the one that most cases have speaks" if len(counts) > 1 else ""
    return f" Threads (cases): {told}{rest}."


def _part_name(slug: str, place: int) -> str:
    return f"{slug}.html" if place == 0 else f"{slug}-part-{place + 1}.html"


def _view_rules() -> str:
    return "".join(f"table.matrix[data-view='{n}'] .v{n}{{display:block}}" for n in range(VIEWS))


@cache
def _asset(name: str) -> str:
    return resources.files("reports").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _templates() -> jinja2.Environment:
    """Autoescape is always on; only our own SVG, CSS and script pass unescaped."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters["linked"] = linked
    environment.filters["svg"] = Markup
    environment.filters["raw"] = Markup
    return environment

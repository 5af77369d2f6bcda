"""The command line ``speedclaim``; every command takes ``--json``. Training: ``cli_*``.

Exit codes: 0 done, 1 a checked expectation failed, 2 the user's mistake, 3 inconclusive, 130 interrupted.
"""

from __future__ import annotations

import io
import json
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from harness import cli_data
from harness.errors import SpeedclaimError, UserError

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Is a published speed claim true on this machine, now, by how much, and at what price in accuracy and memory?",
)

app.add_typer(cli_data.app, name="data")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
From = Annotated[
    list[Path] | None,
    typer.Option("--from", help="Record files or folders; default: results/ and reports/records/."),
]
SuiteOption = Annotated[list[str] | None, typer.Option("--suite", help="Only this suite (repeatable).")]
MethodOption = Annotated[
    list[str] | None, typer.Option("--method", help="Only this candidate (repeatable); the baseline always runs.")
]
ProblemOption = Annotated[list[str] | None, typer.Option("--problem", help="Only this problem id (repeatable).")]
TierOption = Annotated[str, typer.Option("--tier", help="quick, standard or full.")]
BlocksOption = Annotated[int | None, typer.Option("--blocks", help="Interleaved blocks, at least 6.")]
#: Seconds that a bench measures and trains: reading, judging and rendering the records of 2026-11-23 takes two minutes
#: more on two cores, so that a bench is done in about ten.
BENCH_S = 450.0
BudgetOption = Annotated[float | None, typer.Option("--budget-s", help="Seconds to spend; whole problems are dropped.")]
EnergyOption = Annotated[
    bool, typer.Option("--energy", help="Joules a call in every block too, half a second an arm: what a verdict needs.")
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu or cuda; default: cuda when there is one.")]
#: What the parser raises for a line that it cannot read; typer's own copy of click's class has no public name.
USAGE: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
#: Exit code after Ctrl-C.
INTERRUPTED = 130
#: Verbs that go on with an unfinished record.
RESUMED = {"run", "train", "tune", "bench", "scale"}
OutOption = Annotated[Path, typer.Option("--out", help="Folder of the record files.")]


def main() -> NoReturn:
    """Entry of the console script: one clear line and exit code 2 for a user's mistake, never a traceback."""
    warnings.simplefilter("default", UserWarning)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, _terminated)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)  # type: ignore[assignment]
    try:
        code = app(standalone_mode=False)
    except USAGE as error:
        _misused(error)
    except UserError as error:
        _fail(str(error), 2)
    except SpeedclaimError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _interrupted()
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] in ("harness", "methods", "suites", "reports"):
            raise
        _fail(f"the package {error.name!r} is missing in {sys.executable}: run make install, or pip install it.", 2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}. Nothing that was recorded is lost.", 2)
    if code == INTERRUPTED:  # typer makes this of Ctrl-C, without a word
        _interrupted()
    sys.exit(code if isinstance(code, int) else 0)


def _misused(error: Any) -> NoReturn:
    """An argument that the parser refuses, in the form of every other mistake; help where nothing was asked for."""
    if not error.format_message():
        print(error.ctx.get_help())
        sys.exit(error.exit_code)
    told = " ".join(error.format_message().split()).removesuffix(".")
    place = f"{error.ctx.command_path} --help" if error.ctx is not None else "speedclaim --help"
    _fail(f"{told[:1].lower()}{told[1:]}; see {place}", error.exit_code)


def _interrupted() -> NoReturn:
    kept = " What was recorded is kept; the same command resumes where it stopped."
    _fail("interrupted." + (kept if set(sys.argv[1:2]) & RESUMED else ""), INTERRUPTED)


def _terminated(number: int, frame: object) -> NoReturn:
    """SIGTERM ends like Ctrl-C: workers are killed, the store stays valid."""
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> NoReturn:
    print(f"speedclaim: {message}", file=sys.stderr)
    sys.exit(code)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))


@app.command("list")
def list_(
    task: Annotated[str | None, typer.Option(help="Only methods of this task.")] = None, as_json: Json = False
) -> None:
    """The catalogue: every method, whether it can run here, and why not."""
    from harness.catalogue import registry
    from harness.errors import UnknownName
    from harness.measure import availability

    rows = [
        {
            "name": m.name,
            "task": m.task,
            "available": (why := availability.reason(m)) is None,
            "reason": why,
            "needs": list(m.needs),
            "source": m.source,
            "summary": m.summary,
        }
        for m in registry.methods().values()
    ]
    for name, why in registry.broken_methods().items():
        rows.append({"name": name, "task": name.split(".")[0], "available": False, "reason": why, "needs": [],
                     "source": "", "summary": ""})  # fmt: skip
    if task is not None:
        known = sorted({str(row["task"]) for row in rows})
        if task not in known:
            raise UnknownName("task", task, known)
        rows = [row for row in rows if row["task"] == task]
    if as_json:
        _print_json(rows)
        return
    from harness import terminal

    terminal.methods(rows)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine has, and which methods can run here, with the reason for each that cannot."""
    from harness import terminal
    from harness.catalogue import registry
    from harness.measure import availability
    from harness.record import environment

    facts = environment.collect(availability.devices()[0])
    methods = [
        {"name": m.name, "available": (why := availability.reason(m)) is None, "reason": why}
        for m in registry.methods().values()
    ]
    methods += [{"name": n, "available": False, "reason": why} for n, why in registry.broken_methods().items()]
    if as_json:
        _print_json({"environment": facts, "methods": methods})
    else:
        terminal.doctor(facts, methods)


def _request(
    suite: list[str] | None,
    tier: str,
    method: list[str] | None,
    problem: list[str] | None,
    blocks: int | None,
    budget_s: float | None,
    device: str | None,
    energy: bool = False,
) -> Any:
    from harness.measure.plan import Request

    return Request(
        suites=tuple(suite or ()),
        tier=tier,  # type: ignore[arg-type]
        methods=tuple(method or ()),
        problems=tuple(problem or ()),
        blocks=blocks,
        budget_s=budget_s,
        device=device,
        energy=energy,
    )


@app.command()
def plan(
    suite: SuiteOption = None,
    tier: TierOption = "standard",
    method: MethodOption = None,
    problem: ProblemOption = None,
    blocks: BlocksOption = None,
    device: DeviceOption = None,
    as_json: Json = False,
) -> None:
    """What a run would measure, and what it would leave out, without measuring."""
    from harness import terminal
    from harness.measure import plan as planning

    built = planning.build(_request(suite, tier, method, problem, blocks, None, device))
    described = built.describe("")
    described["cases"] = [case.id for part in built.suites for case in part.cases()]
    if as_json:
        _print_json(described)
    else:
        terminal.plan(described)


@app.command()
def run(
    suite: SuiteOption = None,
    tier: TierOption = "standard",
    method: MethodOption = None,
    problem: ProblemOption = None,
    blocks: BlocksOption = None,
    budget_s: BudgetOption = None,
    device: DeviceOption = None,
    energy: EnergyOption = False,
    out: OutOption = Path("results"),
    as_json: Json = False,
) -> None:
    """Measure: gate, interleaved blocks, memory; append every run to OUT/*.jsonl, resuming an unfinished file."""
    request = _request(suite, tier, method, problem, blocks, budget_s, device, energy)
    told = _measure(request, out, as_json, quiet=as_json)
    if as_json:
        _print_json(told)


def _measure(request: Any, out: Path, as_json: bool, quiet: bool) -> dict[str, Any]:
    """Measure; what was found is printed for people, or returned for the caller to print as JSON.

    ``quiet`` tells no progress on standard error.
    """
    from harness import terminal
    from harness.measure import executor, progress
    from harness.measure import plan as planning
    from harness.record import folders, store

    folders.check(out, "the record")
    built = planning.build(request)
    if not as_json:
        terminal.plan(built.describe(""), brief=True)
    command = "speedclaim " + " ".join(sys.argv[1:])
    with progress.for_terminal(quiet=quiet) as listener:
        result = executor.execute(built, out, command, listener)
    frame = store.read_runs(result.path)
    header = store.read_headers(result.path)[0]
    rows = _summary(frame, header)
    if not as_json:
        terminal.summary(rows, header)
        planned = f" (planned {result.planned_s:.0f} s)" if result.planned_s else ""
        print(f"{result.runs} runs in {result.elapsed_s:.0f} s{planned}: {result.path}")
    return {"file": str(result.path.resolve()), "resumed": result.resumed, "elapsed_s": round(result.elapsed_s, 1),
            "rows": rows}  # fmt: skip


def _summary(frame: pd.DataFrame, header: dict[str, Any]) -> list[dict[str, Any]]:
    from harness.judge import summary

    return summary.rows(frame, header)


def _sources(given: list[Path] | None, results: Path = Path("results")) -> list[Path]:
    """``--from``, or the default folders that exist, this machine's results first."""
    if given:
        return given
    from harness.catalogue.registry import ROOT

    return [path for path in (results, ROOT / "reports" / "records") if path.is_dir()]


def _read(given: list[Path] | None) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    from harness.record import store

    sources = _sources(given)
    return store.read_runs(sources), store.read_headers(sources)


def _judged(frame: pd.DataFrame, headers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every claim's verdicts as plain dictionaries."""
    from harness.judge import claim, verdict

    return [item.model_dump(mode="json") for item in verdict.judge_all(claim.load_claims(), frame, headers)]


@app.command()
def claims(
    source: From = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 when a claim is not reproduced, 3 when one is inconclusive.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The ledger: every published claim with its verdict, interval, noise floor, device and reproducing command."""
    from harness import terminal

    verdicts = _judged(*_read(source))
    if as_json:
        _print_json(verdicts)
    else:
        terminal.claims(verdicts)
    if check:
        words = {item["verdict"] for item in verdicts}
        raise typer.Exit(1 if words & {"not reproduced", "invalid"} else 3 if "inconclusive" in words else 0)


@app.command()
def report(
    source: From = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the pages.")] = Path("reports/html"),
    as_json: Json = False,
) -> None:
    """Render the offline HTML report from stored runs; needs no torch."""
    path = _report(source, out)
    if as_json:
        _print_json({"index": str(path.resolve())})
    else:
        print(f"report: {path.resolve()}")


def _report(source: list[Path] | None, out: Path) -> Path:
    from harness.record import folders

    folders.check(out, "the report")
    frame, headers = _read(source)
    return _render(frame, headers, _judged(frame, headers), out)


def _render(frame: pd.DataFrame, headers: list[dict[str, Any]], verdicts: list[dict[str, Any]], out: Path) -> Path:
    from harness.catalogue import registry

    renderers = registry.entries("reports")
    if "html" not in renderers:
        raise UserError("no renderer called 'html' is registered; reinstall speedclaim.")
    try:
        path = renderers["html"].load()(frame, headers, verdicts, out)
    except OSError as error:
        raise UserError(f"cannot write the report to {out}: {error.strerror or error}; choose --out.") from error
    return Path(path)


@app.command()
def bench(
    tier: Annotated[str | None, typer.Option("--tier", help="quick, standard (default) or full.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="About three minutes on two cores.")] = False,
    budget_s: BudgetOption = None,
    device: DeviceOption = None,
    out: OutOption = Path("results"),
    html: Annotated[Path, typer.Option("--html", help="Folder of the pages.")] = Path("reports/html"),
    as_json: Json = False,
) -> None:
    """What ``make bench`` does: measure every suite, judge the claims, render the report.

    JSON: ``run`` and ``training`` (null when none was done) as ``run`` and ``train`` print them, this machine's
    ``claims`` and the report's ``index``; progress goes to standard error.
    """
    from harness import terminal
    from harness.record import folders

    folders.check(out, "the record")
    folders.check(html, "the report", "--html")
    chosen = tier or ("quick" if quick else "standard")
    budget = budget_s if budget_s is not None else (100.0 if quick else BENCH_S)
    _read_headers(_sources(None, out))  # an unreadable file stops the bench now, not after ten minutes
    own, training = cli_train.bench_budget(budget, device)
    asked = _request(_heaviest() if quick else None, chosen, None, None, None, own, device)
    told = _measure(asked, out, as_json, quiet=False)
    trained = cli_train.bench(training, quick, device, out, as_json)
    frame, headers = _read(_sources(None, out))
    verdicts = _judged(frame, headers)
    header = next(h for h in headers if Path(h["file"]).resolve() == Path(told["file"]))
    here = _here(verdicts, header["environment"])
    if not as_json:
        terminal.claims(here, brief=True)
    page = _render(frame, headers, verdicts, html).resolve()
    if as_json:
        _print_json({"run": told, "training": trained, "claims": here, "index": str(page)})
    else:
        print(f"report: {page}")


def _heaviest() -> list[str]:
    """The suite of the largest weight: two minutes are spent on starting processes when each suite has its own."""
    from harness.catalogue import registry

    suites = registry.suites()
    chosen = max(suites, key=lambda name: suites[name].weight)
    left = ", ".join(name for name in suites if name != chosen)
    if left:
        print(f"QUICK measures the suite {chosen} alone; left out: {left}", file=sys.stderr)
    return [chosen]


def _read_headers(sources: list[Path]) -> list[dict[str, Any]]:
    from harness.record import store

    return store.read_headers(sources)


def _here(verdicts: list[dict[str, Any]], environment: dict[str, Any]) -> list[dict[str, Any]]:
    """This machine's verdicts; a claim with none is counted once among those that cannot be tested here."""
    from harness.record.environment import cpu_label

    here = (environment["device_name"], cpu_label(environment["cpu"], environment.get("simd", ())), "any", "")
    own = [v for v in verdicts if v["device"] in here]
    known = {v["id"] for v in own}
    others = {v["id"]: {**v, "verdict": "not testable here"} for v in verdicts if v["id"] not in known}
    return [*own, *others.values()]


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="Record file or folder A.")],
    after: Annotated[Path, typer.Argument(help="Record file or folder B.")],
    metric: Annotated[str, typer.Option(help="Timing metric.")] = "op_s",
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A table for a pull request.")] = False,
    html: Annotated[bool, typer.Option("--html", help="Also write compare.html into OUT.")] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder of the page.")] = Path("reports/html"),
) -> None:
    """Before against after: the ratio of every case in both, paired where blocks match. Exit 1: a case is slower."""
    from harness import terminal
    from harness.judge import compare as comparing
    from harness.record import folders, store

    if html:
        folders.check(out, "the page")
    headers = store.read_headers(before), store.read_headers(after)
    found = comparing.compare(
        store.read_runs(before), store.read_runs(after), metric, headers_a=headers[0], headers_b=headers[1]
    )
    rows = [row.model_dump(mode="json") for row in found]
    if not rows:
        raise UserError(f"no case of {before} has {metric} in {after} too; choose records of the same suite.")
    page = _compare_page(rows, headers, out, (str(before), str(after))) if html else None
    if as_json:
        _print_json(rows)
    else:
        terminal.comparison(rows, markdown)
        if page is not None and not markdown:
            print(f"report: {page.resolve()}")
    words = {row["word"] for row in rows}
    raise typer.Exit(1 if "slower" in words else 3 if words == {"inconclusive"} else 0)


def _compare_page(rows: list[dict[str, Any]], headers: Any, out: Path, names: tuple[str, str]) -> Path:
    from harness.catalogue import registry

    renderers = registry.entries("reports")
    if "compare" not in renderers:
        raise UserError("no renderer called 'compare' is registered; reinstall speedclaim.")
    return Path(renderers["compare"].load()(rows, *headers, out, names))


@app.command()
def export(
    source: From = None,
    to: Annotated[str, typer.Option("--to", help="parquet or csv.")] = "parquet",
    out: Annotated[Path | None, typer.Option("--out", help="File to write; default runs.<to>.")] = None,
    as_json: Json = False,
) -> None:
    """Every stored run as one table."""
    from harness.record import store

    path = store.export(_sources(source), to, out or Path(f"runs.{to}"))
    if as_json:
        _print_json({"file": str(path.resolve())})
    else:
        print(path)


from harness import cli_lint, cli_scale, cli_train, cli_tune  # noqa: E402, F401 (its commands hang themselves into app)

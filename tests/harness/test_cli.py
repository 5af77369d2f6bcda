"""The command line: every verb answers in JSON, and every mistake is one clear line with exit code 2."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from harness.catalogue.registry import ROOT
from harness.errors import UnknownName, UserError
from harness.record import folders


@pytest.fixture
def cli(tmp_path, warm):
    def call(*arguments, code=0, **environment):
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        done = warm.run(
            [sys.executable, "-m", "harness", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **environment},
        )
        expected = code if isinstance(code, tuple) else (code,)
        assert done.returncode in expected, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


def one_line(done, *parts):
    text = " ".join(done.stderr.split())
    for part in parts:
        assert part in text, (part, text)


@pytest.fixture
def record(toy, cli, tmp_path):
    toy("added", "nan")
    cli("run", "--suite", "toy", "--tier", "quick", "--out", "out")
    return next((tmp_path / "out").glob("*.jsonl"))


def test_list_and_doctor_tell_what_runs_here_and_why_not(cli, toy):
    toy("needs_cuda")
    rows = {row["name"]: row for row in json.loads(cli("list", "--json").stdout)}
    assert rows["toy.plain"]["available"] is True
    assert rows["polar.ns-torch"]["source"]
    assert set(rows["toy.plain"]) >= {"name", "task", "available", "reason", "needs", "source"}
    hidden = {row["name"]: row for row in json.loads(cli("list", "--json", CUDA_VISIBLE_DEVICES="").stdout)}
    assert "CUDA" in hidden["toy.needs_cuda"]["reason"]
    assert [r["task"] for r in json.loads(cli("list", "--task", "toy", "--json").stdout)] == ["toy", "toy"]
    facts = json.loads(cli("doctor", "--json").stdout)
    assert facts["environment"]["cpu"]
    assert {"simd", "cores_physical", "load1", "gpu", "torch", "triton", "compiler"} <= set(facts["environment"])
    assert "toy.plain" in cli("doctor").stdout
    assert "toy.plain" in cli("list").stdout


def test_plan_says_what_would_run_without_running_it(cli, toy, tmp_path):
    toy("added")
    plan = json.loads(cli("plan", "--suite", "toy", "--tier", "quick", "--json").stdout)
    assert sorted(plan["cases"]) == sorted(
        f"toy.{m}/uniform-{n}-float64-cpu" for m in ("plain", "added") for n in (2000, 4000)
    )
    assert not list(tmp_path.glob("results/*"))


def test_run_report_export_and_compare(cli, record, tmp_path):
    again = json.loads(cli("run", "--suite", "toy", "--tier", "quick", "--out", "out2", "--json").stdout)
    assert {row["status"] for row in again["rows"]} == {"passed", "nonfinite"}
    passed = [r for r in again["rows"] if r["method"] == "toy.added"]
    assert all(r["low"] <= r["speedup"] <= r["high"] and r["n"] == 6 and r["floor"] >= 0.005 for r in passed)
    page = json.loads(cli("report", "--from", record, "--out", "html", "--json").stdout)["index"]
    text = Path(page).read_text(encoding="utf-8")
    assert "toy.added" in text
    assert not re.search(r"(src|href)=[\"']https?://", text)
    cli("export", "--from", record, "--to", "csv", "--out", "t.csv")
    assert "toy.added" in (tmp_path / "t.csv").read_text()
    compared = comparison(cli, record, again["file"])
    assert {row["case"] for row in compared} >= {"toy.added/uniform-2000-float64-cpu"}
    assert all(row["word"] for row in compared)


def comparison(cli, before, after):
    """Timing never decides a test: any of the three answers of ``compare`` will do."""
    done = cli("compare", before, after, "--json", code=(0, 1, 3))
    return json.loads(done.stdout)


def test_claims_works_with_no_results_at_all(cli):
    answers = json.loads(cli("claims", "--from", ROOT / "suites", "--json").stdout)
    assert len(answers) >= 7
    keys = {"id", "verdict", "claimed", "ratio", "low", "high", "floor", "device", "reason", "command"}
    for answer in answers:
        assert keys <= set(answer)
        assert answer["reason"]
        if answer["device"] == "any":  # "exists" is judged by the ledger's own dated evidence
            continue
        assert answer["verdict"] == "not testable here"
        assert re.search(r"\b(run|train)\b|python -m ", answer["command"]), answer["command"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("run", "--suite", "polr"), ("unknown suite 'polr'", "Did you mean polar?")),
        (("run", "--method", "polar.aol-trton"), ("unknown method", "polar.aol-triton")),
        (("run", "--suite", "polar", "--problem", "gaussian-1x1-float32-cpu"), ("unknown problem",)),
        (("run", "--tier", "huge"), ("expected one of quick, standard, full",)),
        (("run", "--blocks", "3"), ("at least 6",)),
        (("run", "--device", "tpu"), ("this machine has",)),
        (("report", "--from", "nowhere.jsonl"), ("no record at nowhere.jsonl",)),
        (("claims", "--from", "nowhere"), ("no record at nowhere",)),
        (("compare", "a", "b"), ("no record at a",)),
        (("export", "--from", ".", "--to", "xml"), ("expected parquet or csv",)),
        (("list", "--task", "polr"), ("unknown task",)),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(cli, arguments, parts):
    one_line(cli(*arguments, code=2), *parts)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("frobnicate",), "speedclaim: no such command 'frobnicate'"),
        (("run", "--bogus"), "speedclaim: no such option: --bogus"),
        (("run", "--blocks", "ten"), "speedclaim: invalid value for '--blocks': "),
        (("compare", "a"), "speedclaim: missing argument"),
        (("data", "frobnicate"), "speedclaim: no such command 'frobnicate'"),
    ],
)
def test_a_line_that_cannot_be_parsed_is_one_line_too(cli, arguments, told):
    done = cli(*arguments, code=2)
    [line] = done.stderr.splitlines()
    assert line.startswith(told), line
    assert line.endswith("--help")
    assert not done.stdout


def test_help_where_nothing_is_asked_for(cli):
    for arguments in ((), ("--help",), ("data",)):
        done = cli(*arguments, code=0 if arguments == ("--help",) else 2)
        assert "Usage" in done.stdout
        assert not done.stderr


def test_bad_files_and_unwritable_folders(cli, toy, tmp_path):
    toy()
    (tmp_path / "bad.jsonl").write_text("hello\n")
    one_line(cli("report", "--from", "bad.jsonl", code=2), "bad.jsonl", "line 1")
    (tmp_path / "blocked").write_text("a file")
    one_line(cli("run", "--suite", "toy", "--tier", "quick", "--out", "blocked/x", code=2), "cannot write")
    one_line(cli("report", "--from", ROOT / "suites", "--out", "blocked/x", code=2), "cannot write the report")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("bench", "--quick", "--html", "/proc/x"), ("cannot write the report to /proc/x", "with --html")),
        (("bench", "--quick", "--out", "/proc/x"), ("cannot write the record to /proc/x", "with --out")),
        (("report", "--from", "bad.jsonl", "--out", "/proc/x"), ("cannot write the report to /proc/x",)),
        (("export", "--from", "bad.jsonl", "--to", "csv", "--out", "/proc/x/a.csv"), ("cannot write the table to",)),
        (("export", "--from", "bad.jsonl", "--to", "csv", "--out", "/tmp"), ("exists and is no .csv file",)),
        (("compare", "bad.jsonl", "bad.jsonl", "--html", "--out", "/proc/x"), ("cannot write the page to /proc/x",)),
        (("run", "--suite", "nope", "--out", "/proc/x"), ("cannot write the record to /proc/x",)),
        (("train", "nope", "--out", "/proc/x"), ("cannot write the record to /proc/x",)),
        (("tune", "nope", "sgd", "--out", "/proc/x"), ("cannot write the record to /proc/x",)),
        (("scale", "digits-cnn", "sgd", "--out", "/proc/x"), ("cannot write the record to /proc/x",)),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(cli, tmp_path, arguments, parts):
    (tmp_path / "bad.jsonl").write_text("not read\n")
    done = cli(*arguments, code=2)
    one_line(done, *parts)
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_tried_folder_leaves_nothing_behind(tmp_path):
    folders.check(tmp_path / "a" / "b", "the record")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="it is no folder"):
        folders.check(tmp_path / "file", "the record")


def test_the_baseline_always_runs(cli, toy):
    toy("added")
    one = json.loads(cli("plan", "--suite", "toy", "--method", "toy.added", "--tier", "quick", "--json").stdout)
    assert {c.split("/")[0] for c in one["cases"]} == {"toy.added", "toy.plain"}, "the baseline always runs"


def test_bench_shows_this_machine_and_counts_the_rest_once():
    from harness.cli import _here

    verdicts = [
        {"id": "a", "device": "CPU", "verdict": "partly"},
        {"id": "a", "device": "GPU", "verdict": "reproduced"},
        {"id": "b", "device": "GPU", "verdict": "reproduced"},
        {"id": "c", "device": "", "verdict": "not testable here"},
    ]
    shown = _here(verdicts, {"device_name": "CPU", "cpu": "CPU"})
    assert [(v["id"], v["verdict"]) for v in shown] == [
        ("a", "partly"), ("c", "not testable here"), ("b", "not testable here"),
    ]  # fmt: skip


def test_bench_prints_json_alone_and_its_progress_on_standard_error(toy, warm_workers, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from harness import cli, cli_train

    toy("added")
    request, trained = cli._request, []

    def train(asked, out, as_json, quiet, crew):
        trained.append((as_json, quiet))
        return {"file": "trained.jsonl", "rows": []}

    monkeypatch.setattr(cli, "_request", lambda suite, *rest: request(["toy"], *rest))
    monkeypatch.setattr(cli, "_sources", lambda given, results=None: given or [p for p in [results] if p.is_dir()])
    monkeypatch.setattr(cli_train, "bench_budget", lambda budget_s, device: (budget_s, 1.0))
    monkeypatch.setattr(cli_train, "measure", train)
    out, html = tmp_path / "out", tmp_path / "html"
    done = CliRunner().invoke(cli.app, ["bench", "--quick", "--out", str(out), "--html", str(html), "--json"])
    assert done.exit_code == 0, (done.exception, done.stderr)
    answer = json.loads(done.stdout)
    assert set(answer) == {"run", "training", "claims", "index"}
    assert {row["method"] for row in answer["run"]["rows"]} == {"toy.plain", "toy.added"}
    assert Path(answer["run"]["file"]).parent == out
    assert answer["training"] == {"file": "trained.jsonl", "rows": []}
    assert trained == [(True, False)]
    assert {claim["verdict"] for claim in answer["claims"]} >= {"not testable here"}
    assert Path(answer["index"]).is_file()
    assert "steps" in done.stderr


def test_an_unknown_name_lists_the_nearest_of_its_task_alone():
    known = [f"{task}.{name}-{number}" for task in ("a", "b") for name in ("fast", "slow") for number in range(20)]
    text = str(UnknownName("method", "b.slow-x", known))
    shown = text.partition("Known: ")[2].partition(" and ")[0].split(", ")
    assert len(shown) == 10
    assert all(name.startswith("b.slow-") for name in shown)
    assert text.endswith(" and 70 more (speedclaim list).")
    assert "more" not in str(UnknownName("suite", "x", ["b", "a"]))
    assert str(UnknownName("suite", "x", ["b", "a"])).endswith("Known: a, b.")


@pytest.mark.parametrize(
    ("verb", "line"),
    [
        ("train", "interrupted. What was recorded is kept; the same command resumes where it stopped."),
        ("run", "interrupted. What was recorded is kept; the same command resumes where it stopped."),
        ("report", "interrupted."),
    ],
)
def test_an_interrupted_verb_says_so_in_one_line(monkeypatch, capsys, verb, line):
    import signal
    import warnings

    import typer

    from harness import cli

    app = typer.Typer()

    @app.callback(invoke_without_command=True)
    def interrupted(name: str):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["speedclaim", verb])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"speedclaim: {line}\n"


def test_bench_names_every_tier_that_it_takes():
    import inspect

    from harness import cli
    from harness.catalogue.suite import TIERS

    [option] = inspect.signature(cli.bench, eval_str=True).parameters["tier"].annotation.__metadata__
    assert all(tier in option.help for tier in TIERS)


def test_every_verb_takes_json():
    import typer

    from harness import cli

    def verbs(group, *path):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from verbs(command, *path, name)
            else:
                yield " ".join((*path, name)), {option for one in command.params for option in one.opts}

    found = dict(verbs(typer.main.get_command(cli.app)))
    assert {"bench", "claims", "train", "data fetch"} <= set(found)
    assert [verb for verb, options in found.items() if "--json" not in options] == []

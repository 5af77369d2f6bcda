"""Rules of the house: what any part of the repository must keep to."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROOMS = ("harness", "methods", "suites", "reports")


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_installed_entry_points_match_the_project():
    """Editable installs keep old entry points until they are installed again."""
    try:
        installed = metadata.distribution("speedclaim")
    except metadata.PackageNotFoundError:
        pytest.skip("speedclaim is not installed: this clone is used through python -m harness")
    for group, points in PROJECT["entry-points"].items():
        found = {p.name: p.value for p in installed.entry_points if p.group == group}
        assert found == points, f"{group} is stale: run make install again"


def test_listing_and_reporting_import_neither_torch_nor_triton():
    code = """
import sys
from harness.catalogue import registry
from harness.measure import availability, plan
import harness.cli, harness.terminal, harness.judge.verdict, harness.judge.claim, harness.judge.compare
import harness.record.store, harness.record.environment, reports.html, harness.judge.summary
names = [availability.reason(m) for m in registry.methods().values()]
registry.suites()
plan.build(plan.Request())
print([m for m in ("torch", "triton") if m in sys.modules])
"""
    assert python(code).strip() == "[]"


def test_listing_imports_no_heavy_library():
    code = """
import sys
sys.argv = ["speedclaim", "list", "--json"]
import contextlib, io
from harness.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main()
print([m for m in ("torch", "pandas", "scipy", "numpy", "matplotlib") if m in sys.modules])
"""
    assert python(code).strip() == "[]", "speedclaim list must answer in under half a second"


def test_every_method_resolves_and_is_described():
    pytest.importorskip("torch")
    from harness.catalogue import registry

    for name, method in registry.methods().items():
        assert method.summary, name
        assert len(method.source) > 10, f"{name}: a source names a paper section or an upstream"
        if "triton" not in method.needs and not any(need.startswith("package:") for need in method.needs):
            assert callable(registry.resolve(method.impl)), name
        for target in (method.reference, method.cost):
            assert target is None or callable(registry.resolve(target)), (name, target)


def test_every_suite_has_its_baseline_and_unique_problems():
    from harness.catalogue import registry

    for name, suite in registry.suites().items():
        assert suite.baseline in registry.methods(suite.task.name), name
        ids = [p.id for p in suite.problems]
        assert len(ids) == len(set(ids)), name
        assert suite.task.primary_error in suite.task.errors


def tracked(*suffixes):
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False).stdout
    names = listed.split() or [str(p.relative_to(ROOT)) for room in ROOMS for p in (ROOT / room).rglob("*.py")]
    return [ROOT / n for n in names if n.endswith(suffixes) and (ROOT / n).exists()]


def test_the_repository_speaks_of_no_workplace():
    words = re.compile(r"/w[o]rk/(main|shared|\.lib)|helper-\d|\bsubagent|lent (GPU|machine)|facts file", re.IGNORECASE)
    for path in tracked(".py", ".md", ".toml", ".j2", ".yml", "Makefile"):
        found = words.search(path.read_text(encoding="utf-8"))
        assert not found or path.name == "test_house.py", f"{path}: {found}"


def test_datasets_is_no_package_and_modules_stay_readable():
    assert not (ROOT / "datasets" / "__init__.py").exists(), "it would shadow Hugging Face's datasets"
    assert not list((ROOT / "tests").rglob("__init__.py"))
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 560, f"{path} has more than one subject"


def test_public_functions_have_docstrings_and_nothing_is_a_stub():
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text()
            tree = ast.parse(text)
            assert ast.get_docstring(tree), f"{path} needs a docstring"
            for node in ast.walk(tree) if "NotImplementedError" in text else ():
                if isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node):
                    raise AssertionError(f"{path}:{node.lineno} is a stub")


def test_the_makefile_documents_every_verb():
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"\.PHONY: (.*)", text).group(1).split()
    shown = subprocess.run(["make", "help"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for verb in phony:
        assert f"make {verb}" in shown, verb


def test_readme_tells_the_truth_about_commands():
    text = (ROOT / "README.md").read_text()
    assert "make bench" in text
    assert "make test" in text
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for verb in re.findall(r"`make ([a-z-]+)", text):
        assert verb in verbs, verb
    help_text = subprocess.run(
        [sys.executable, "-m", "harness", "--help"], capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
    ).stdout  # fmt: skip
    for verb in re.findall(r"`speedclaim ([a-z]+)", text):
        assert re.search(rf"\b{verb}\b", help_text), verb


def test_committed_records_are_readable_and_name_their_device():
    from harness import read_runs
    from harness.record.store import read_headers

    folder = ROOT / "reports" / "records"
    if not any(folder.rglob("*.jsonl*")):
        pytest.skip("no committed records")
    for header in read_headers(folder):
        environment = header["environment"]
        assert environment["device_name"], header["file"]
        assert environment["torch"], header["file"]
        json.dumps(header)
    frame = read_runs(folder)
    metric, training = frame["metric"].fillna(""), frame["phase"] == "training"
    assert set(frame[metric.str.endswith("_s") & ~training]["status"]) <= {"passed"}
    # A run that missed its target has seconds, but no time to it.
    assert set(frame[metric.str.contains("time_to_") & training]["status"]) <= {"target_reached"}


def test_every_record_that_a_document_names_is_committed():
    """Names as 20261122T130748456868Z-vm-669.jsonl, with or without the ending; of scripts the beginning will do."""
    kept = [path.name for path in (ROOT / "reports" / "records").rglob("*") if path.is_file()]
    places = ("*.md", "reports/*.md", "methods/*/README.md", "suites/claims/*.toml", "suites/training/recipes/*.toml")
    told = {
        (path.name, name)
        for place in places
        for path in ROOT.glob(place)
        for name in re.findall(r"\b\d{8}T\d{4,12}Z(?:-[\w-]+)?", path.read_text())
    }
    assert told
    assert not [one for one in sorted(told) if not any(name.startswith(one[1]) for name in kept)]

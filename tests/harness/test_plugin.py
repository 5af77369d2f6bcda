"""A third party plugs in with one file and one entry point, without an edit here."""

import json
import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

from harness import read_runs
from harness.catalogue import registry
from harness.catalogue.registry import ROOT
from harness.errors import DuplicateName, Unavailable, UnknownName
from harness.measure import availability, plan

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "my-polar"
version = "1.0"
[tool.setuptools]
py-modules = ["my_polar"]
[project.entry-points."speedclaim.methods"]
"polar.mine" = "my_polar:METHOD"
"""
MODULE = '''
"""The README's example: a polar method in one file."""
from harness import Method

def orthogonalize(G):
    import torch
    U, _, Vh = torch.linalg.svd(G.double(), full_matrices=False)
    return (U @ Vh).to(G.dtype)

METHOD = Method(
    name="polar.mine", impl="my_polar:orthogonalize", needs=("torch",),
    summary="mine <script>alert(1)</script>", source="this very test",
)
'''


@pytest.fixture
def installed(tmp_path):
    """The tiny package, really installed with pip into a folder of its own."""
    if util.find_spec("pip") is None or util.find_spec("setuptools") is None:
        pytest.skip("needs pip and setuptools in this interpreter")
    source, site = tmp_path / "my-polar", tmp_path / "site"
    source.mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "my_polar.py").write_text(MODULE)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
         "--disable-pip-version-check", "--target", str(site), str(source)],
        check=True,
    )  # fmt: skip
    return site


def test_an_installed_package_shows_in_the_list_the_run_and_the_report(installed, warm, tmp_path):
    pytest.importorskip("torch")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(installed)])}

    def call(*arguments):
        done = warm.run([sys.executable, "-m", "harness", *arguments], cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    names = [row["name"] for row in json.loads(call("list", "--json"))]
    assert "polar.mine" in names
    problem = "gaussian-100x257-float32-cpu"
    answer = json.loads(
        call("run", "--suite", "polar", "--tier", "quick", "--method", "polar.mine", "--problem", problem, "--json",
             "--device", "cpu")
    )  # fmt: skip
    frame = read_runs(answer["file"])
    mine = frame[frame["method"] == "polar.mine"]
    assert set(mine["status"]) == {"passed"}
    assert mine[mine["metric"] == "op_s"]["block"].nunique() == 6
    page = json.loads(call("report", "--from", answer["file"], "--json", "--out", "html"))["index"]
    pages = "".join(p.read_text(encoding="utf-8") for p in Path(page).parent.glob("*.html"))
    assert "polar.mine" in pages
    assert "<script>alert(1)</script>" not in pages


def test_the_readmes_example_passes_conformance(plugin, tmp_path):
    """The first method that a newcomer copies is right, also on the edge cases."""
    pytest.importorskip("torch")
    from harness import conformance

    text = (ROOT / "README.md").read_text()
    code = text.split("# my_polar.py", 1)[1].split("```", 1)[0]
    folder = plugin({"polar.mine": "my_polar:METHOD"})
    (folder / "my_polar.py").write_text(code)
    findings = conformance.check("polar.mine")
    assert len(findings) > 40
    assert not [f for f in findings if not f.passed]
    sys.modules.pop("my_polar", None)


def test_a_plugin_that_exits_or_is_no_json_is_broken_alone(plugin, tmp_path, capsys):
    folder = plugin({"toy.plain": "toy_methods:PLAIN", "toy.exits": "exits_now:METHOD", "toy.odd": "odd_tags:METHOD"})
    (folder / "exits_now.py").write_text("print('hello from import')\nraise SystemExit(3)\n")
    (folder / "odd_tags.py").write_text(
        "from harness import Method\n"
        "METHOD = Method(name='toy.odd', impl='x:y', summary='s', source='s', tags=({1, 2},))\n"
    )
    assert set(registry.methods("toy")) == {"toy.plain"}
    broken = registry.broken_methods("toy")
    assert "SystemExit" in broken["toy.exits"]
    assert "tuple of strings" in broken["toy.odd"]
    assert capsys.readouterr().out == ""


def test_a_plugin_whose_function_is_not_there_says_so_before_it_runs(plugin):
    names = ("there", "absent", "elsewhere", "torn", "late")
    folder = plugin({f"toy.{name}": f"my_methods:{name.upper()}" for name in names})
    targets = ("my_methods:work", "my_methods:wrok", "no_such_module:work", "torn:work", "open_ended:work")
    made = "".join(
        f"{name.upper()} = Method(name='toy.{name}', impl='{target}', summary='s', source='s')\n"
        for name, target in zip(names, targets, strict=True)
    )
    (folder / "my_methods.py").write_text(f"from harness import Method\nif True:\n    def work(x): return x\n{made}")
    (folder / "torn.py").write_text("def work(:\n")
    (folder / "open_ended.py").write_text("from math import *\n")
    found = {name: availability.reason(registry.methods("toy")[f"toy.{name}"]) for name in names}
    assert found["there"] is None
    absent = "its impl is my_methods:wrok, but my_methods.py has no wrok; "
    assert found["absent"] == absent + "mend it in package 'toy-plugin' and install it again"
    assert found["elsewhere"].startswith("its impl is no_such_module:work, but there is no module no_such_module; ")
    assert "torn.py cannot be read (SyntaxError" in found["torn"]
    assert found["late"] is None, "a star may bring it"


def test_two_owners_of_one_name_are_an_error_that_names_both(plugin):
    plugin({"polar.ns-torch": "toy_methods:PLAIN"})
    with pytest.raises(DuplicateName, match=r"'speedclaim' \(.*'toy-plugin' \("):
        registry.method("polar.ns-torch")


def test_two_owners_of_a_renderer_are_an_error_at_once(plugin):
    plugin({}, reports={"html": "toy_methods:PLAIN"})
    with pytest.raises(DuplicateName, match=r"report 'html'.*'speedclaim'.*'toy-plugin'"):
        registry.entries("reports")


def test_a_contested_name_stops_only_who_asks_for_it(plugin, warm, tmp_path):
    """Two plug-ins own toy.added; toy.plain and all of ours go on, with one warning that names both."""
    suite = {"toy": "toy_task:SUITE"}
    plugin({"toy.plain": "toy_methods:PLAIN", "toy.added": "toy_methods:ADDED"}, suites=suite)
    folder = plugin({"toy.added": "toy_methods:PLAIN"}, name="other-plugin")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), "COLUMNS": "200"}

    def call(*arguments):
        done = warm.run([sys.executable, "-m", "harness", *arguments], cwd=tmp_path, env=environment)
        return done.returncode, done.stdout, done.stderr.splitlines()

    code, out, told = call("list", "--json")
    assert code == 0
    (warning,) = told
    assert warning.startswith("warning: method 'toy.added' is registered by ")
    assert "'toy-plugin'" in warning
    assert "'other-plugin'" in warning
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["toy.plain"]["available"]
    assert rows["polar.svd"]["source"]
    assert not rows["toy.added"]["available"]
    assert "'other-plugin'" in rows["toy.added"]["reason"]

    code, out, told = call("plan", "--suite", "toy", "--tier", "quick", "--json")
    assert (code, len(told)) == (0, 1)
    assert {case.split("/")[0] for case in json.loads(out)["cases"]} == {"toy.plain"}

    code, _, told = call("plan", "--suite", "toy", "--method", "toy.added", "--tier", "quick", "--json")
    assert code == 2
    (error,) = told
    assert error.startswith("speedclaim: method 'toy.added' is registered by ")
    assert "'toy-plugin'" in error
    assert "'other-plugin'" in error


def test_a_contested_baseline_is_named_as_such(plugin):
    plugin({"toy.plain": "toy_methods:PLAIN", "toy.added": "toy_methods:ADDED"}, suites={"toy": "toy_task:SUITE"})
    plugin({"toy.plain": "toy_methods:ADDED"}, name="other-plugin")
    with (
        pytest.warns(UserWarning, match=r"toy\.plain.*left out"),
        pytest.raises(DuplicateName, match=r"'other-plugin'.*'toy-plugin'|'toy-plugin'.*'other-plugin'"),
    ):
        plan.build(plan.Request(suites=("toy",), tier="quick"))


def test_a_contested_suite_is_left_out_and_cannot_be_asked_for(plugin):
    plugin({"toy.plain": "toy_methods:PLAIN"}, suites={"toy": "toy_task:SUITE"})
    plugin({}, suites={"toy": "toy_task:SUITE"}, name="other-plugin")
    with pytest.warns(UserWarning, match="suite 'toy' is registered by"):
        assert "toy" not in registry.suites()
    with pytest.raises(DuplicateName, match="suite 'toy'"):
        registry.suite("toy")


def test_a_missing_third_party_module_is_unavailable_with_a_reason(plugin):
    plugin({"toy.plain": "toy_methods:PLAIN", "toy.gone": "no_such_module:METHOD", "toy.odd": "toy_methods:plain"})
    assert "toy.plain" in registry.methods("toy")
    broken = registry.broken_methods("toy")
    assert set(broken) == {"toy.gone", "toy.odd"}
    assert "no_such_module" in broken["toy.gone"]
    assert "must be a Method" in broken["toy.odd"]
    with pytest.raises(Unavailable, match="no_such_module"):
        registry.method("toy.gone")


def test_unknown_names_list_the_known_ones(plugin):
    plugin({"toy.plain": "toy_methods:PLAIN"})
    with pytest.raises(UnknownName, match=r"Did you mean toy\.plain"):
        registry.method("toy.plian")


def test_load_gives_the_implementation():
    pytest.importorskip("torch")
    import torch

    import harness

    out = harness.load("polar.svd")(torch.eye(3) * 5)
    assert torch.allclose(out, torch.eye(3))
    assert "polar.svd" in harness.list_methods("polar")


def test_load_sets_a_method_s_own_options():
    pytest.importorskip("torch")
    import harness

    option = "approximate_matmul.maddness-float-tables"
    assert registry.method(option).hyper["lut_bits"] is None
    made, plain = harness.load(option), harness.load("approximate_matmul.maddness")
    assert made(codebooks=2).hyper["lut_bits"] is None
    assert made(codebooks=2, lut_bits=8).hyper["lut_bits"] == plain(codebooks=2).hyper["lut_bits"] == 8

"""The workflows of the repository: valid YAML, the README's commands, artifacts of the benchmark run."""

import re
from pathlib import Path

import pytest

from harness.catalogue.registry import ROOT

FOLDER = ROOT / ".github" / "workflows"


def load(name):
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    # YAML 1.1 reads the key "on" as true.
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def steps(job):
    return "\n".join(str(step.get("run", "")) + " " + str(step.get("uses", "")) for step in job["steps"])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yml")), ids=lambda path: path.name)
def test_a_workflow_has_spaces_names_and_pinned_actions(path: Path):
    text = path.read_text(encoding="utf-8")
    assert "\t" not in text
    assert re.search(r"^name: \S", text, re.MULTILINE)
    assert re.search(r"^permissions:\n  contents: read$", text, re.MULTILINE)
    for used in re.findall(r"uses: (\S+)", text):
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", used), used


def test_ci_runs_the_one_script_on_both_pythons():
    workflow = load("ci.yml")
    assert set(workflow[True]) >= {"push", "pull_request"}
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert "bash .ci/run" in steps(job)
    setup = next(step for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert setup["with"]["cache"] == "pip"


def test_the_benchmark_runs_on_a_gpu_when_asked():
    workflow = load("benchmark.yml")
    assert set(workflow[True]) == {"workflow_dispatch", "pull_request"}
    assert workflow[True]["pull_request"]["types"] == ["labeled"]
    (job,) = workflow["jobs"].values()
    assert job["runs-on"] == ["self-hosted", "gpu"]
    assert "github.event.label.name == 'gpu'" in job["if"]
    assert "make bench PYTHON=python3" in steps(job)
    upload = next(step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))
    assert upload["with"]["path"].split() == ["results/", "reports/html/"]

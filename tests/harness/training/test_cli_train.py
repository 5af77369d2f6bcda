"""``speedclaim train``: a summary in JSON, plain lines for people, one clear line and exit code 2 for a mistake."""

import json
import os
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness.catalogue.registry import ROOT
from harness.cli_train import nothing_trained


@pytest.fixture
def cli(toys, warm, tmp_path):
    def call(*arguments, code=0):
        path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
        done = warm.run(
            [sys.executable, "-m", "harness", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        )
        assert done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


def test_one_invocation_for_machines_and_for_people(cli):
    arguments = ("train", "blobs", "toy-sgd", "--seeds", 1, "--epochs", 3, "--hyper", "lr=0.2", "--out", "out")
    answer = json.loads(cli(*arguments, "--json").stdout)
    [row] = answer["rows"]
    assert (row["arm"], row["runs"], row["metric"]) == ("training.toy-sgd", 1, "test_accuracy")
    assert row["step_s"] > 0
    assert not answer["resumed"]
    shown = cli(*arguments)
    assert "blobs on cpu: test_accuracy >= 0.9; toy-sgd; 1 seed" in shown.stdout
    assert "1/1 blobs toy-sgd seed 0:" in shown.stderr
    assert "median time" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("train", "blobs", "toy-sgd", "--hyper", "lrr=1"), "no hyper-parameter 'lrr'"),
        (("train", "blobs", "toy-sgd", "--precision", "fp8"), "expected one of ieee"),
        (("train", "digits-cnn", "rs-kfac", "--hyper", "rank=-5"), "training.rs-kfac refuses rank=-5: rank is a whole"),
        (("train", "digits-cnn", "kfac-eigh", "--hyper", "dampling=1"), "unknown hyper-parameter 'dampling'"),
        (
            ("train", "digits-cnn", "kfac-cholesky", "--hyper", "packed=False"),
            "packed='False' (from the command line): expected true or false",
        ),
        (
            ("train", "digits-cnn", "sgd", "--hyper", "lr=fast"),
            "training.sgd: hyper-parameter lr='fast' (from the command line): expected a number.",
        ),
        (("train", "digits-cnn", "sgd", "--hyper", "lr=nan"), "lr='nan' (from the command line): expected a number."),
        (("train", "digits-cnn", "sgd", "--hyper", "lr=NaN"), "lr=nan (from the command line): expected a number."),
        (("train", "blobs", "toy-sgd", "--epochs", 0), "--epochs 0: expected a positive number."),
        (("train", "blobs", "toy-sgd", "--seed-start", -1), "--seed-start -1: expected at least 0."),
        (("train", "blobs", "toy-sgd", "training.toy-sgd"), "training.toy-sgd is named twice"),
        (("train", "blobbs"), "unknown workload 'blobbs'"),
        (("train", "blobs", "polar.svd"), "training needs training.* methods"),
        (("train", "--tier", "tiny"), "expected one of quick"),
        (("train", "blobs", "toy-sgd", "--nproc", 5000), "--nproc 5000: this machine has "),
    ],
)
def test_mistakes(cli, arguments, text):
    done = cli(*arguments, code=2)
    assert done.stderr.startswith("speedclaim: ")
    assert text in done.stderr


def test_a_training_in_which_nothing_trained_ends_with_one_line_and_code_1(cli):
    done = cli("train", "blobs", "toy-raises", "toy-refuses", "--seeds", 1, "--out", "out", "--json", code=1)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("speedclaim: no run trained (")
    assert "1 error" in last
    assert "1 unsupported" in last
    assert [row["other"] for row in json.loads(done.stdout)["rows"]] == [{"error": 1}, {"unsupported": 1}]


def test_a_search_in_which_every_trial_failed_prints_no_best_and_ends_with_code_1(cli, tmp_path):
    pytest.importorskip("optuna")
    (tmp_path / "s.toml").write_text("[lr]\nvalues = [0.1, 0.2]\n")
    done = cli("tune", "blobs", "toy-raises", "--trials", 2, "--space", "s.toml", "--out", "out", code=1)
    assert "best of" not in done.stdout
    assert "evidence" not in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("speedclaim: no trial gave a value; the first says: ")


def test_a_searched_name_that_the_method_itself_refuses_ends_the_search_before_its_first_trial(cli, tmp_path):
    pytest.importorskip("optuna")
    (tmp_path / "s.toml").write_text("[dampling]\nlow = 0.1\nhigh = 1\n")
    done = cli("tune", "digits-cnn", "kfac-eigh", "--space", "s.toml", "--out", "out", code=2)
    assert "unknown hyper-parameter 'dampling'" in done.stderr
    assert not list((tmp_path / "out").rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("statuses", "text"),
    [
        (["error", "diverged"], None),
        (["unsupported", "budget_exhausted"], None),
        (["out_of_memory", "error"], "1 out_of_memory, 1 error"),
        ([], None),
    ],
)
def test_a_run_that_missed_or_diverged_has_trained(statuses, text, monkeypatch):
    rows = [
        {"phase": "training", "run": str(k), "arm": f"a{k}", "workload": "w", "seed": 0, "status": one, "reason": "why"}
        for k, one in enumerate(statuses)
    ]
    left_out = {"phase": "plan", "run": "x", "arm": "b", "workload": "w", "seed": 1, "status": "unsupported"}
    monkeypatch.setattr("harness.record.store.read_runs", lambda path: pd.DataFrame([left_out, *rows]))
    found = nothing_trained(Path("record"))
    assert (found is None) == (text is None)
    assert text is None or f"({text})" in found

"""``speedclaim train``: a summary in JSON, plain lines for people, one clear line and exit code 2 for a mistake."""

import json
import os
import subprocess
import sys

import pytest

from harness.catalogue.registry import ROOT


@pytest.fixture
def cli(toys, tmp_path):
    def call(*arguments, code=0):
        path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
        done = subprocess.run(
            [sys.executable, "-m", "harness", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
            check=False,
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
        (("train", "digits-cnn", "sgd", "--hyper", "lr=fast"), "training.sgd refuses lr='fast'"),
        (("train", "blobbs"), "unknown workload 'blobbs'"),
        (("train", "blobs", "polar.svd"), "training needs training.* methods"),
        (("train", "--tier", "tiny"), "expected one of quick"),
    ],
)
def test_mistakes(cli, arguments, text):
    done = cli(*arguments, code=2)
    assert done.stderr.startswith("speedclaim: ")
    assert text in done.stderr

"""Scripts of the suites: a user's mistake is one line and exit code 2."""

import sys

import pytest

from harness.catalogue.registry import ROOT
from harness.errors import UserError
from suites import command


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("choose another"), 2, "choose another\n"),
        (
            FileNotFoundError(2, "No such file or directory", "/proc/none"),
            2,
            "/proc/none: No such file or directory.\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_an_end_has_one_line_and_its_code(error, code, text, capsys):
    assert command.ended(lambda: _raise(error)) == code
    assert capsys.readouterr().err == text


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        command.ended(lambda: 1 // 0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("suites.spectrum", "--widths", "0"), "--widths: expected at least 1"),
        (("suites.spectrum", "--lr", "nan"), "--lr: expected a finite number"),
        (("suites.robustness", "--method", "nope"), "unknown method 'nope'"),
        (("suites.robustness", "--steps", "0"), "--steps 0: expected at least 1"),
        (("suites.state_memory", "--network", "nope"), "unknown network 'nope'"),
    ],
)
def test_mistakes_of_the_scripts(warm, arguments, text):
    done = warm.run([sys.executable, "-m", *arguments], cwd=ROOT)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert text in done.stderr

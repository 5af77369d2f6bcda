"""asv, history per commit: one ``track_`` stub per suite over our own timer (``python -m harness.adapters.asv``).

A stub returns ``{"samples": [...], "number": 1}``, of which asv makes its full statistics. It has no ``setup`` (asv
would then change ``number``), takes the case id as its only parameter, and its version is the protocol's, so that an
edit of this file does not cut the history and a new protocol does. A case that fails ends its process and shows as
failed, one that cannot run here as n/a; both print their reason on standard error.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.adapters import cases
from harness.errors import MissingDependency, SpeedclaimError, UserError
from harness.record import environment

CONFIGURATION = "asv.conf.json"
#: Exit code of ``asv run`` when a benchmark failed although the results were saved.
SOME_FAILED = 2
_START_S = 90.0

Stub = Callable[[str], Any]


def stubs() -> dict[str, Stub]:
    """``track_<suite>`` -> stub, for every suite of the registry that has a quick problem on this machine."""
    grids: dict[str, list[cases.Cell]] = {}
    for cell in cases.cells():
        grids.setdefault(cell.suite, []).append(cell)
    found = {}
    for suite, grid in grids.items():
        stub = _stub(suite, grid)
        found[stub.__name__] = stub
    return found


def _stub(suite: str, grid: Sequence[cases.Cell]) -> Stub:
    known = {cell.id: cell for cell in grid}

    def track(case: str) -> Any:
        try:
            return {"samples": cases.samples(known[case]), "number": 1}
        except cases.Skipped as skipped:
            print(f"speedclaim: {case} skipped: {skipped}", file=sys.stderr)
            # asv's own word for "not here": NaN in the store, n/a on the page.
            return float("nan")
        except SpeedclaimError as error:
            # One line and exit code 1, which asv files as a failure, instead of a traceback through asv.
            raise SystemExit(f"speedclaim: {error}") from None

    protocol = grid[0].protocol
    attributes = {
        "params": [list(known)],
        "param_names": ["case"],
        "unit": "seconds",
        "version": f"protocol-{protocol.version}",
        "timeout": protocol.case_timeout_s + _START_S,
        "pretty_source": f"# gate first, then the samples of op_s (protocol {protocol.version})\n"
        f"speedclaim run --suite {suite} --tier quick",
    }
    track.__name__ = track.__qualname__ = f"track_{re.sub(r'[^0-9A-Za-z_]', '_', suite)}"
    track.__dict__.update(attributes)
    return track


def clean_commit(root: Path) -> str:
    """The commit that ``root`` stands at, which must have no uncommitted difference.

    Raises:
        UserError: no git checkout, or a dirty tree (asv would file its numbers under a commit they are not of).
    """
    state = environment.git(root)
    if not (root / ".git").exists() or not state["commit"]:
        raise UserError(f"asv files numbers under a commit, but {root} is no git checkout with a commit.")
    if state["diff"]:
        raise UserError(
            f"the working tree differs from commit {state['commit'][:10]}; asv would file its numbers under that "
            f"commit. Commit or stash the changes first (git status lists them)."
        )
    return state["commit"]


def run(root: Path, bench: str | None = None) -> Path:
    """Measure the clean commit of ``root``, save, publish; returns the page.

    Raises:
        UserError: a dirty tree, or asv could not run or publish.
        MissingDependency: asv is not installed.
    """
    commit = clean_commit(root)
    if not environment.importable("asv"):
        raise MissingDependency(f"asv is not installed in {sys.executable}: run pip install 'asv>=0.6.4'.")
    _asv(root, "machine", "--yes")
    chosen = ["--bench", bench] if bench else []
    measured = _asv(
        root, "run", "--environment", "existing:same", "--set-commit-hash", commit, "--show-stderr", *chosen
    )
    saved = list((root / ".asv" / "results").glob(f"*/{commit[:8]}-*.json"))
    if measured not in (0, SOME_FAILED) or not saved:
        raise UserError(f"asv run ended with exit code {measured} and saved nothing for {commit[:8]}; see above.")
    if published := _asv(root, "publish"):
        raise UserError(f"asv publish ended with exit code {published}; see above.")
    return root / ".asv" / "html" / "index.html"


def _asv(root: Path, verb: str, *arguments: str) -> int:
    # asv takes PYTHONPATH away from the processes that measure, unless it is told so under this name.
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "asv", verb, "--config", CONFIGURATION, *arguments]
    return subprocess.run(
        command, cwd=root, env={**os.environ, "ASV_PYTHONPATH": path, "PYTHONPATH": path}, check=False
    ).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0 when results were saved and published, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m harness.adapters.asv", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the checkout with asv.conf.json")
    parser.add_argument("--bench", help="regular expression on track_<suite>('case id')")
    options = parser.parse_args(arguments)
    try:
        page = run(options.root.resolve(), options.bench)
    except SpeedclaimError as error:
        print(f"speedclaim: {error}", file=sys.stderr)
        return 2
    print(f"{page} (asv preview serves it; the stock asv page loads its plotting library from the network)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

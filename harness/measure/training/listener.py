"""What the training executor tells while it works: a rich bar per run on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from harness import units


class Listener(Protocol):
    """Listener of the executor."""

    def plan(self, total: int, done: int) -> None:
        """``total`` runs will be made, of which ``done`` were finished by an earlier invocation."""

    def begin(self, label: str) -> None:
        """A run begins."""

    def progress(self, label: str, message: Mapping[str, Any]) -> None:
        """A run's block has ended."""

    def end(self, label: str, status: str, text: str) -> None:
        """A run has its row."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""


def now_text(message: Mapping[str, Any]) -> str:
    """Epoch, metric and time to target so far, for people."""
    if message.get("what") != "training":
        return str(message.get("what", ""))
    text = f"epoch {message['epoch']:.1f}, {message['metric']} {message['value']:.4g}, loss {message['loss']:.3g}, "
    reached = message.get("reached_s")
    if reached is not None:
        return f"{text}target after {units.seconds(reached)}"
    return f"{text}{units.seconds(message['train_s'])} so far"


class Silent:
    """No output."""

    def plan(self, total: int, done: int) -> None:
        """Ignore."""

    def begin(self, label: str) -> None:
        """Ignore."""

    def progress(self, label: str, message: Mapping[str, Any]) -> None:
        """Ignore."""

    def end(self, label: str, status: str, text: str) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""


class Plain(Silent):
    """A line per run on standard error, and one every ten seconds within a long run."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s, self._last = every_s, time.monotonic()
        self._total = self._done = 0

    def plan(self, total: int, done: int) -> None:
        """Print how many runs there are."""
        self._total, self._done = total, done
        resumed = f", {done} done before" if done else ""
        print(f"training: {total} runs{resumed}", file=sys.stderr, flush=True)

    def progress(self, label: str, message: Mapping[str, Any]) -> None:
        """Print at most every ten seconds."""
        if time.monotonic() - self._last >= self._every_s:
            self._last = time.monotonic()
            print(f"  {label}: {now_text(message)}", file=sys.stderr, flush=True)

    def end(self, label: str, status: str, text: str) -> None:
        """Print the run's end."""
        self._done += 1
        self._last = time.monotonic()
        print(f"  {self._done}/{self._total} {label}: {status} {text}".rstrip(), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print."""
        print(f"  {text}", file=sys.stderr, flush=True)


@contextmanager
def for_terminal(quiet: bool = False) -> Iterator[Listener]:
    """Rich bars when standard error is a terminal, plain lines otherwise, nothing when ``quiet``."""
    if quiet or not sys.stderr.isatty():
        yield Silent() if quiet else Plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[now]}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        yield _Rich(bars)


class _Rich(Silent):
    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._whole: Any = None
        self._runs: dict[str, Any] = {}

    def plan(self, total: int, done: int) -> None:
        self._whole = self._bars.add_task("runs", total=total, completed=done, now="")

    def begin(self, label: str) -> None:
        self._runs[label] = self._bars.add_task(label, total=None, now="starting")

    def progress(self, label: str, message: Mapping[str, Any]) -> None:
        if label in self._runs:
            done, total = message.get("done"), message.get("updates")
            self._bars.update(self._runs[label], completed=done, total=total, now=now_text(message))

    def end(self, label: str, status: str, text: str) -> None:
        if label in self._runs:
            self._bars.remove_task(self._runs.pop(label))
        self._bars.console.print(f"  {label}: {status} {text}", markup=False, highlight=False)
        self._bars.update(self._whole, advance=1)

    def note(self, text: str) -> None:
        self._bars.console.print(f"  {text}", style="yellow", markup=False)

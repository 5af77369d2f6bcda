"""What the executor tells while it works: rich bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Listener of the executor."""

    def phase(self, title: str, total: int, done: int = 0) -> None:
        """A new phase with ``total`` steps, of which ``done`` were finished by an earlier invocation."""

    def step(self, text: str) -> None:
        """One step is finished; ``text`` says which."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""


class Silent:
    """No output."""

    def phase(self, title: str, total: int, done: int = 0) -> None:
        """Ignore."""

    def step(self, text: str) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""


class Plain:
    """A line now and then on standard error, for logs."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s, self._last = every_s, 0.0
        self._title, self._total, self._done = "", 0, 0

    def phase(self, title: str, total: int, done: int = 0) -> None:
        """Print the title."""
        self._title, self._total, self._done = title, total, done
        resumed = f", {done} done before" if done else ""
        print(f"{title}: {total} steps{resumed}", file=sys.stderr, flush=True)

    def step(self, text: str) -> None:
        """Print at most every ten seconds, and the last step."""
        self._done += 1
        now = time.monotonic()
        if now - self._last >= self._every_s or self._done == self._total:
            self._last = now
            print(f"  {self._done}/{self._total} {text}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print."""
        print(f"  {text}", file=sys.stderr, flush=True)


@contextmanager
def for_terminal(quiet: bool = False) -> Iterator[Progress]:
    """Rich bars when standard error is a terminal, plain lines otherwise, nothing when ``quiet``."""
    if quiet:
        yield Silent()
        return
    if not sys.stderr.isatty():
        yield Plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[now]}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        yield _Rich(bars)


class _Rich:
    def __init__(self, bars: object) -> None:
        from rich.progress import Progress as Bars
        from rich.progress import TaskID

        assert isinstance(bars, Bars)
        self._bars = bars
        self._task: TaskID | None = None

    def phase(self, title: str, total: int, done: int = 0) -> None:
        self._task = self._bars.add_task(title, total=total, completed=done, now="")

    def step(self, text: str) -> None:
        if self._task is not None:
            self._bars.update(self._task, advance=1, now=text)

    def note(self, text: str) -> None:
        self._bars.console.print(f"[yellow]{text}")

"""Downloads through the ordinary clients (npm, pip, apt-get, torchvision), so that a user's own registries hold.

No address is written here. A client that shows no byte within :data:`CONNECT_S`, or none for :data:`STALL_S` later, is
stopped, and the next route is tried.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.catalogue.data.cards import Route
from harness.errors import Unavailable, UserError

#: Seconds until the first byte; the design's limit for a route that does not answer.
CONNECT_S = 10.0
#: Seconds without a further byte after which a download counts as cut.
STALL_S = 60.0
#: Bytes that a client writes for itself (logs, lock files) before anything arrives.
OWN_BYTES = 65_536
#: A client that needs longer to start and resolve than to connect (an interpreter, an import of torch).
START_S = 50.0

Report = Callable[[int], None]


def download(route: Route, stage: Path, report: Report) -> Path:
    """Run the route's client in ``stage``; returns the downloaded file or folder."""
    folder = stage / "download"
    folder.mkdir()
    return {"npm": _npm, "pip": _pip, "apt": _apt, "torchvision": _torchvision}[route.kind](route, folder, report)


def _npm(route: Route, folder: Path, report: Report) -> Path:
    """``npm pack`` fetches the tarball alone: no dependency, and no script is run."""
    command = [_tool("npm"), "pack", f"{route.name}@{route.version}", "--silent", "--ignore-scripts"]
    command += ["--pack-destination", str(folder), "--cache", str(folder.parent / "npm")]
    command += ["--fetch-retries", "1", "--fetch-retry-mintimeout", "1000", "--fetch-retry-maxtimeout", "2000"]
    _run(command, folder, report, first_s=CONNECT_S)
    return _single(route, folder)


def _pip(route: Route, folder: Path, report: Report) -> Path:
    """``pip download --no-deps`` with the hash as a requirement, so that nothing unknown is unpacked or built."""
    wanted = f"{route.name}=={route.version}" if route.version else route.name
    if route.sha256:
        wanted += f" --hash=sha256:{route.sha256}"
    requirements = folder.parent / "requirements.txt"
    requirements.write_text(wanted + "\n", encoding="utf-8")
    if importlib.util.find_spec("pip") is None:
        raise Unavailable(f"{sys.executable} has no pip")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "--timeout",
        f"{CONNECT_S:.0f}",
    ]
    command += ["--retries", "1", "download", "--quiet", "--no-deps", "-d", str(folder), "-r", str(requirements)]
    _run(command, folder, report, first_s=START_S)
    return _single(route, folder)


def _apt(route: Route, folder: Path, report: Report) -> Path:
    """``apt-get download`` with the system's package lists, or with lists fetched into the stage (no root)."""
    patience = [f"-oAcquire::{way}::Timeout={CONNECT_S:.0f}" for way in ("http", "https")] + ["-oAcquire::Retries=1"]
    tool = _tool("apt-get")
    wanted = f"{route.name}={route.version}" if route.version else route.name
    try:
        _run([tool, *patience, "-q", "download", wanted], folder, report, first_s=START_S)
    except UserError:
        lists, own = folder.parent / "lists", folder.parent / "apt"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        (own / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        private = [f"-oDir::State::lists={lists}", f"-oDir::Cache={own}", "-oDebug::NoLocking=true"]
        _run([tool, *patience, *private, "-q", "update"], folder, report, first_s=START_S)
        _run([tool, *patience, *private, "-q", "download", wanted], folder, report, first_s=START_S)
    return _single(route, folder)


def _torchvision(route: Route, folder: Path, report: Report) -> Path:
    """The own class of torchvision downloads into the stage, in a process of its own that can be stopped."""
    if importlib.util.find_spec("torchvision") is None:
        raise Unavailable("torchvision is not installed (optional)")
    code = (
        f"import socket; socket.setdefaulttimeout({CONNECT_S}); import torchvision.datasets as d; "
        f"d.{route.name}({str(folder)!r}, train=True, download=True)"
    )
    _run([sys.executable, "-c", code], folder, report, first_s=START_S)
    return folder


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} is not installed")
    return found


def _single(route: Route, folder: Path) -> Path:
    """The one file that the client left."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if len(files) != 1:
        raise UserError(f"{route.label}: the client left {len(files)} files instead of one")
    return files[0]


def _run(command: Sequence[str], folder: Path, report: Report, first_s: float) -> None:
    """Run a client in ``folder``; watch the bytes below the stage; stop it when none come.

    Raises:
        UserError: it failed or was stopped; the text ends with the client's last line.
    """
    stage = folder.parent
    name = "torchvision" if "-c" in command else "pip" if "pip" in command else Path(command[0]).name
    environment = {**os.environ, "TMPDIR": str(stage), "LC_ALL": "C"}
    log = stage / "client.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            silent = _watch(child, stage, report, first_s)
        finally:
            _stop(child)
    if silent is not None:
        raise UserError(f"{name} received nothing for {silent:.0f} s and was stopped")
    if child.returncode:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise UserError(f"{name} ended with {child.returncode}: {_telling(lines)}")


def _watch(child: subprocess.Popen[bytes], stage: Path, report: Report, first_s: float) -> float | None:
    """Wait for the end; returns the patience that ran out, or None when the client ended by itself."""
    started = changed = time.monotonic()
    seen = 0
    while True:
        try:
            child.wait(timeout=0.2)
            return None
        except subprocess.TimeoutExpired:
            now, size = time.monotonic(), _bytes(stage)
        if size != seen:
            seen, changed = size, now
            report(size)
        patience = first_s if seen < OWN_BYTES else STALL_S
        if now - (started if seen < OWN_BYTES else changed) > patience:
            return patience


def _bytes(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.stat(os.path.join(root, file)).st_size
            except OSError:  # a temporary file of the client, already gone
                continue
    return total


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the client and its own children (they share its session)."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _telling(lines: list[str]) -> str:
    """The line of a client's output that says most: the last one that speaks of an error, else the last."""
    loud = [line for line in lines if any(word in line.lower() for word in ("error", "err!", "unable", "could not"))]
    return ((loud or lines or ["no output"])[-1])[:200]

"""Children that start at once: a server that has imported torch forks one for every command line that a test runs.

Importing torch and its optimizers takes a Python process some five seconds of one core, and a test of a whole
invocation starts several. A child of this server has everything of ``python …`` that a test can see: arguments,
environment, folder, descriptors, module path, a session of its own, an exit code or the signal it died of, and nothing
that another test did. It is not for a test about what an import costs or brings with it. ``python warm.py SOCKET``
serves; :class:`Warm` asks. Where a child asks for other threads, devices or libraries than the server was started
with, a real process is started.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
#: Read when a library is loaded: too late for a child of the server.
EARLY = ("OMP_", "MKL_", "KMP_", "GOMP_", "CUDA_", "TRITON_", "TORCH", "PYTORCH_", "LD_", "ASAN_", "PYTHON")
#: Not the server's: what a child is told anew, and what libraries (inductor, threadpoolctl) leave in the environment
#: of a process that has run other tests; with these counted, every later child would be a real process.
FREE = (
    *("PYTHONPATH", "PYTHONFAULTHANDLER"),
    *("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK"),
)
#: What the children of one invocation import, none of which looks at the environment or at installed plug-ins.
LOADED = (
    *("torch", "pandas", "scipy.stats", "harness.cli", "harness.terminal", "harness.conformance"),
    *("harness.judge.verdict", "harness.judge.compare", "harness.judge.summary"),
    *("harness.measure.executor", "harness.measure.worker", "harness.measure.training.executor"),
    *("harness.measure.training.launch", "harness.measure.training.worker"),
)


def early(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment must be the server's own."""
    return {k: v for k, v in environment.items() if k.startswith(EARLY) and k not in FREE}


class Warm:
    """Asks the server. Stands in for the module ``subprocess`` where :mod:`harness.measure.isolate` uses it."""

    PIPE = subprocess.PIPE

    def __init__(self, path: str, fixed: Mapping[str, str]) -> None:
        self.path, self.fixed = path, dict(fixed)

    def Popen(self, command: Sequence[str], **options: Any) -> Any:
        """A child with the part of ``subprocess.Popen``'s interface that tests and workers use."""
        environment = dict(os.environ if options.get("env") is None else options["env"])
        if command[0] != sys.executable or early(environment) != self.fixed:
            return subprocess.Popen(command, **options)
        return Child(self.path, list(command[1:]), {**options, "env": environment})

    def run(self, command: Sequence[str], timeout: float = 120.0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Wait for the end; output is captured as text."""
        with TemporaryFile() as out, TemporaryFile() as err:
            child = self.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, **options)
            try:
                code = child.wait(timeout)
            except subprocess.TimeoutExpired:
                child.kill()
                raise
            out.seek(0)
            err.seek(0)
            shown, told = out.read().decode(), err.read().decode()
        return subprocess.CompletedProcess(list(command), code, shown, told)


class Child:
    """A process of the server."""

    def __init__(self, path: str, arguments: list[str], options: Mapping[str, Any]) -> None:
        self.stdin: IO[bytes] | None = None
        self.returncode: int | None = None
        with contextlib.ExitStack() as ours:
            names = enumerate(("stdin", "stdout", "stderr"))
            given = [self._stream(ours, place, options.get(name)) for place, name in names]
            passed = list(options.get("pass_fds", ()))
            request = {
                "arguments": arguments, "environment": options["env"], "folder": str(options.get("cwd") or os.getcwd()),
                "session": options.get("start_new_session", False), "places": [0, 1, 2, *passed],
            }  # fmt: skip
            self._line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._line.connect(path)
            socket.send_fds(self._line, [json.dumps(request).encode()], [*given, *passed])
            self.pid = int(self._line.recv(64))

    def _stream(self, ours: contextlib.ExitStack, place: int, given: Any) -> int:
        if given == subprocess.PIPE:
            assert place == 0, "only standard input may be a pipe"
            read, write = os.pipe()
            ours.callback(os.close, read)
            self.stdin = os.fdopen(write, "wb")
            return read
        if given == subprocess.DEVNULL:
            null = os.open(os.devnull, os.O_RDWR)
            ours.callback(os.close, null)
            return null
        if given is None:
            return place
        return int(given if isinstance(given, int) else given.fileno())

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0.0)
            self.returncode = int(self._line.recv(64) or b"-9")
            self._line.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# -- the server --------------------------------------------------------------------------------------------------------


def serve(path: str) -> None:
    """Import, then fork for ever; whoever started the server takes it along."""
    _die_with_parent()
    fixed = early(os.environ)
    base = sys.path[1:]
    sys.path[:0] = [str(ROOT)]
    for name in LOADED:
        importlib.import_module(name)
    import torch

    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)  # the first optimizer imports another 3 s
    from harness.catalogue import registry
    from harness.measure import isolate

    isolate.__dict__["subprocess"] = Warm(path, fixed)
    sys.path[:] = base
    registry.forget()
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1, "a fork keeps one thread alone"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(path)
        listening.listen(64)
        print("ready", flush=True)
        children: list[_Kept] = []
        while True:
            ends = {end: kept for kept in children for end in (kept.own, kept.owner)}
            for found in select.select([listening.fileno(), *ends], [], [])[0]:
                if found == listening.fileno():
                    children += _started(listening.accept()[0])
                elif found == ends[found].own:
                    children.remove(ends[found])
                    ends[found].tell()
                else:  # whoever asked has died: nothing may outlive it
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(ends[found].pid, signal.SIGKILL)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class _Kept(NamedTuple):
    """A child: its process, descriptors that tell the end of it and of its owner, the line to the owner."""

    pid: int
    own: int
    owner: int
    line: socket.socket

    def tell(self) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        with contextlib.suppress(ConnectionError), self.line:
            self.line.send(str(code).encode())
        os.close(self.own)
        os.close(self.owner)


def _started(line: socket.socket) -> list[_Kept]:
    """The child that the line asks for; none if whoever asked has gone already."""
    owner = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    text, descriptors, _, _ = socket.recv_fds(line, 1 << 20, 32)
    if not text:
        return []
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(json.loads(text), descriptors, write)
    for descriptor in (write, *descriptors):
        os.close(descriptor)
    os.read(read, 1)  # it has its session by now: a signal to its group finds it
    os.close(read)
    own = os.pidfd_open(pid)
    with contextlib.suppress(ConnectionError, ProcessLookupError):
        kept = _Kept(pid, own, os.pidfd_open(owner), line)
        line.send(str(pid).encode())
        return [kept]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return []


def _become(request: Mapping[str, Any], descriptors: list[int], ready: int) -> None:
    code = 1
    _die_with_parent()
    try:
        if request["session"]:
            os.setsid()
        os.write(ready, b"x")
        _place(dict(zip(request["places"], descriptors, strict=True)))
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        importlib.invalidate_caches()
        if os.environ.get("PYTHONFAULTHANDLER"):
            faulthandler.enable()
        warnings.filterwarnings("ignore", message=".*found in sys.modules after import of package")
        code = _run(request["arguments"])
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _place(wanted: Mapping[int, int]) -> None:
    """The descriptors at their numbers, and no others."""
    high = {place: fcntl.fcntl(descriptor, fcntl.F_DUPFD, 500) for place, descriptor in wanted.items()}
    for place, descriptor in high.items():
        os.dup2(descriptor, place)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in wanted:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _run(arguments: list[str]) -> int:
    first, *rest = arguments
    try:
        if first == "-m":
            sys.argv = rest
            sys.path.insert(0, os.getcwd())
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif first == "-c":
            sys.argv = ["-c", *rest[1:]]
            sys.path.insert(0, "")
            sys.modules["__main__"] = module = types.ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), module.__dict__)
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(first).parent))
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])

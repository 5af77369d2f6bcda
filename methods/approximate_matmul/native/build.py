"""Compile the C++ kernels on demand into the user's cache.

One shared library per (sources, flags, compiler): the file name carries their hash, so that a changed source, another
compiler or another machine never meets an old build. Nothing is tuned to the machine that compiles: the level is chosen
at run time (see ``amm.h``).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from harness.catalogue.data.cache import cache_folder
from harness.errors import Unavailable

SOURCES = ("driver.cpp", "pool.cpp", "scalar.cpp", "avx2.cpp", "avx512.cpp", "neon.cpp")
HEADERS = ("amm.h", "pool.h")
#: No -march and no -ffast-math: levels are chosen at run time and comparisons with NaN must stay false.
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-pthread", "-fno-math-errno")
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT_S = 300.0


def compiler() -> list[str]:
    """The C++ compiler as an argument list: ``$CXX``, else the first of c++, g++, clang++.

    Raises:
        Unavailable: there is none.
    """
    chosen = os.environ.get("CXX")
    words = shlex.split(chosen) if chosen else []
    if words:
        path = shutil.which(words[0])
        if path is None:
            raise Unavailable(f"$CXX names {words[0]!r}, which is no program here; unset CXX or name a C++17 compiler.")
        return [path, *words[1:]]
    for name in COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return [path]
    raise Unavailable(
        f"the native kernels need a C++17 compiler ({', '.join(COMPILERS)} or $CXX) and none was found; install one, "
        'or choose backend="torch".'
    )


def folder() -> Path:
    """Where sources stand."""
    return Path(__file__).resolve().parent


def version(command: list[str]) -> str:
    """First line of ``compiler --version``."""
    try:
        text = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{command[0]} --version failed: {error}; name a working compiler in $CXX.") from error
    return text.splitlines()[0] if text else "unknown"


def key(command: list[str], flags: tuple[str, ...] = FLAGS) -> str:
    """Hash of sources, flags, compiler and machine."""
    digest = hashlib.sha256()
    for name in (*HEADERS, *SOURCES):
        digest.update(name.encode() + b"\0" + (folder() / name).read_bytes() + b"\0")
    digest.update("\0".join([*command, *flags, version(command), sys.platform, platform.machine()]).encode())
    return digest.hexdigest()[:24]


def _compile(command: list[str], flags: tuple[str, ...], target: Path) -> None:
    """Compile into a temporary file beside ``target`` and rename it: readers see all of it or nothing."""
    handle, temporary = tempfile.mkstemp(prefix=".building-", suffix=".so", dir=target.parent)
    os.close(handle)
    call = [*command, *flags, "-shared", *(str(folder() / name) for name in SOURCES), "-o", temporary]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode != 0:
            tail = "\n".join(done.stderr.splitlines()[-8:])
            raise Unavailable(f"compiling the native kernels failed ({shlex.join(call)}):\n{tail}")
        os.replace(temporary, target)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"compiling the native kernels failed: {error}") from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def library() -> Path:
    """Path of the shared library, compiled now if the cache has none.

    Raises:
        Unavailable: no compiler, a failed build, or a cache that cannot be written, each with what to do.
    """
    if os.name != "posix":
        raise Unavailable(
            f'the native kernels are built on Linux and macOS only, not on {os.name}; use backend="torch".'
        )
    command = compiler()
    place = cache_folder() / "native"
    target = place / f"amm-{key(command)}.so"
    if target.exists():
        return target
    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / f"{target.name}.lock"):
            if not target.exists():
                _compile(command, FLAGS, target)
    except OSError as error:
        raise Unavailable(f"cannot write to {place}: {error}; set $SPEEDCLAIM_CACHE to a folder of yours.") from error
    return target

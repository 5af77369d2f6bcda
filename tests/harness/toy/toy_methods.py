"""Honest and dishonest ways to double a list."""

import ctypes
import os
import sys
import time

from harness.catalogue.method import Cost, Method
from harness.errors import Unsupported

_BY_ADDRESS = {}
_BY_CONTENT = {}
_STATIC = []


def plain(values):
    return [2 * x for x in values]


def added(values):
    return [x + x for x in values]


def mutates(values):
    result = [2 * x for x in values]
    values[0] = 7.0
    return result


def by_address(values):
    if id(values) not in _BY_ADDRESS:
        _BY_ADDRESS[id(values)] = plain(values)
    return list(_BY_ADDRESS[id(values)])


def by_content(values):
    return _BY_CONTENT.setdefault(hash(tuple(values)), plain(values))


def static_output(values):
    if not _STATIC:
        _STATIC.append([0.0] * len(values))
    _STATIC[0][:] = plain(values)
    return _STATIC[0]


def nan(values):
    return [float("nan"), *plain(values)[1:]]


def negated(values):
    return [-2 * x for x in values]


def wrong(values):
    return [2.1 * x for x in values]


def short(values):
    return plain(values)[:-1]


def raises(values):
    raise ValueError("no luck today")


def refuses(values):
    raise Unsupported("only even lists, please")


def hangs(values):
    time.sleep(60)


def segfaults(values):
    ctypes.string_at(0)


def out_of_memory(values):
    raise MemoryError("cannot allocate a gibibyte")


def killed(values):
    os.kill(os.getpid(), 9)


def garbage(values):
    print('{"event": "done"}', flush=True)
    sys.stdout.buffer.write(b"\xff\xfe\x00garbage\n")
    os.write(2, b"\xff more garbage\n")
    return plain(values)


_CALLS = [0]


def late_cheat(values):
    """Right while the gate looks (it calls at most a few times), wrong afterwards; blocks are fresh processes."""
    _CALLS[0] += 1
    if "gate.py" in {os.path.basename(f.f_code.co_filename) for f in _frames()}:
        return plain(values)
    return [3 * x for x in values]


def _frames():
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def dies_in_blocks(values):
    if "gate.py" not in {os.path.basename(f.f_code.co_filename) for f in _frames()} and any(
        f.f_code.co_name == "_arm" for f in _frames()
    ):
        os.abort()
    return plain(values)


def huge_cost(shape, itemsize):
    return Cost(flops=1e18, bytes=0.0)


def _method(name, **fields):
    return Method(name=f"toy.{name}", impl=f"toy_methods:{name}", summary=name, source="tests", **fields)


PLAIN = _method("plain")


def exits(values):
    """Ends its process as if all were well."""
    os._exit(0)


def writes_to_pipes(values):
    for descriptor in range(3, 30):
        try:
            os.write(descriptor, b"garbage\n")
        except OSError:
            continue
    return plain(values)


_STALE = []


def goes_stale(values):
    """Right at the gate and on its first calls, then the same old answer: only the last timed output shows it."""
    if "gate.py" in {os.path.basename(f.f_code.co_filename) for f in _frames()} or len(_STALE) < 2:
        _STALE.append(plain(values))
        return list(_STALE[-1])
    return list(_STALE[0])


NAMES = """
added mutates by_address by_content static_output nan negated wrong short raises refuses hangs segfaults
out_of_memory killed garbage late_cheat goes_stale exits writes_to_pipes dies_in_blocks
""".split()  # noqa: SIM905
globals().update({name.upper(): _method(name) for name in NAMES})
UNFAITHFUL = Method(
    name="toy.unfaithful",
    impl="toy_methods:wrong",
    reference="toy_methods:plain",
    summary="differs from its reference",
    source="tests",
)
TOO_FAST = Method(
    name="toy.too_fast",
    impl="toy_methods:plain",
    cost="toy_methods:huge_cost",
    summary="under the floor",
    source="tests",
)
NEEDS_CUDA = Method(name="toy.needs_cuda", impl="toy_methods:plain", needs=("cuda",), summary="x", source="tests")

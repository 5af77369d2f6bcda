"""The C++ kernels: every level of this processor against a NumPy oracle, bit for bit."""

import contextlib
import ctypes
import functools
import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from harness.catalogue import registry
from harness.errors import Unavailable, Unsupported, UserError
from methods.approximate_matmul.native import binding, build
from methods.approximate_matmul.native import team as lending

REASON = binding.available()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
LEVELS = [] if REASON else binding.LEVELS[: binding.LEVELS.index(binding.highest_level()) + 1]


def walk(a, columns, thresholds):
    codes = np.zeros((len(a), len(columns)), np.uint8)
    for c in range(len(columns)):
        i = np.zeros(len(a), int)
        for t in range(4):
            i = 2 * i + (a[:, columns[c, t]] >= thresholds[c, (1 << t) - 1 + i])
        codes[:, c] = i
    return codes


def tree_mean(values):
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    return (tree_mean(values[:half]) + tree_mean(values[half:]) + 1) >> 1


def problem(n, d, codebooks, m, seed=0):
    """Small integers (many ties), NaN and both infinities."""
    rng = np.random.default_rng([seed, n, d, codebooks, m])
    a = rng.integers(-3, 4, (n, d)).astype(np.float32)
    kinds = rng.random(a.shape)
    a[kinds < 0.02], a[kinds > 0.98], a[(kinds > 0.5) & (kinds < 0.52)] = np.nan, np.inf, -np.inf
    columns = rng.integers(0, d, (codebooks, 4)).astype(np.int32)
    thresholds = rng.integers(-3, 4, (codebooks, 15)).astype(np.float32)
    tables = rng.integers(0, 256, (codebooks, 16, m)).astype(np.uint8)
    return a, columns, thresholds, tables


def lookups(codes, tables):
    return [tables[c, codes[:, c]].astype(np.int64) for c in range(len(tables))]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n", [1, 31, 33, 1000])
@pytest.mark.parametrize("codebooks", [1, 2, 3, 16, 64, 257])
def test_codes_and_sums_equal_the_oracle(level, n, codebooks):
    for d in (3, 65):
        a, columns, thresholds, _ = problem(n, d, codebooks, 1)
        want = walk(a, columns, thresholds)
        wide = np.full((2 * n, 3 * d), 9, np.float32)
        wide[::2, ::3] = a
        for layout in (a, np.asfortranarray(a), wide[::2, ::3], a[::-1][::-1], np.asfortranarray(a[::-1])[::-1]):
            packed = binding.encode(layout, columns, thresholds, level=level)
            np.testing.assert_array_equal(packed.data, binding.pack(want).data)
            np.testing.assert_array_equal(binding.unpack(packed), want)
    for m in (1, 3, 13, 100) if codebooks < 257 else (3, 8):
        tables = problem(n, 1, codebooks, m)[3]
        if m == 3:
            tables[:] = 255  # the largest sum: 65535 at 257 codebooks
        sums = sum(lookups(want, tables))
        np.testing.assert_array_equal(binding.scan(packed, tables, "uint16", level=level), sums)
        np.testing.assert_array_equal(binding.scan(packed, tables, "uint16", order="column", level=level), sums)
        np.testing.assert_array_equal(binding.scan(packed, tables, "uint8", level=level), np.minimum(sums, 255))


@functools.cache
def wanted(n, codebooks, m):
    """A problem, its codes and its sums, the same for every level."""
    a, columns, thresholds, tables = problem(n, 9, codebooks, m, seed=1)
    codes = walk(a, columns, thresholds)
    return (a, columns, thresholds, tables), codes, sum(lookups(codes, tables))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("remainder", range(4))
def test_every_number_of_codebooks(level, remainder):
    for codebooks in range(1 + remainder, 258, 4):
        n, m = (1, 33, 64, 161)[codebooks // 4 % 4], (1, 4, 6, 8, 11, 16, 37)[codebooks // 4 % 7]
        (a, columns, thresholds, tables), codes, sums = wanted(n, codebooks, m)
        packed = binding.encode(np.asfortranarray(a), columns, thresholds, level=level)
        np.testing.assert_array_equal(binding.unpack(packed), codes)
        for order in ("row", "column"):
            got = binding.scan(packed, tables, "uint16", order=order, level=level)
            np.testing.assert_array_equal(got, sums)
        y = binding.matmul(a[:, ::-1], 8 - columns, thresholds, binding.prepare(tables), level=level)
        np.testing.assert_array_equal(y, sums)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("m", [*range(1, 20), 31, 32, 33, 47, 48, 95, 100])
def test_every_number_of_outputs(level, m):
    n, codebooks = 300, 6
    a, columns, thresholds, tables = problem(n, 30, codebooks, m, seed=2)
    sums = sum(lookups(walk(a, columns, thresholds), tables))
    packed = binding.encode(a, columns, thresholds, level=level)
    for out, want in (("uint8", np.minimum(sums, 255)), ("uint16", sums), ("float32", sums)):
        np.testing.assert_array_equal(binding.scan(packed, tables, out, level=level), want)
    wide = np.full((n, m + 3), 7, np.float32)
    binding.matmul(a, columns, thresholds, tables, out=wide[:, 1 : m + 1], level=level)
    np.testing.assert_array_equal(wide[:, 1 : m + 1], sums)
    assert (wide[:, [0, m + 1, m + 2]] == 7).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("n", "m", "codebooks"), [(1, 1, 1), (33, 3, 5), (1000, 100, 16), (300, 13, 64), (64, 8, 257)])
def test_fused_product_equals_encode_and_scan(level, n, m, codebooks):
    a, columns, thresholds, tables = problem(n, 70, codebooks, m)
    rng = np.random.default_rng(1)
    scale, offset = rng.random(m).astype(np.float32), rng.standard_normal(m).astype(np.float32)
    sums = sum(lookups(walk(a, columns, thresholds), tables))
    prepared = binding.prepare(tables, scale, offset)
    y = binding.matmul(np.asfortranarray(a), columns, thresholds, prepared, level=level)
    assert y.shape == (n, m)
    assert y.dtype == np.float32
    # One fused multiply-add: its result is rounded once, so twice the unit roundoff of both terms bounds the error.
    exact = sums * scale.astype(float) + offset
    assert np.all(np.abs(y - exact) <= 2.0**-23 * (np.abs(sums * scale.astype(float)) + np.abs(offset)))
    np.testing.assert_array_equal(binding.matmul(a, columns, thresholds, prepared, threads=3, level=level), y)
    packed = binding.encode(a, columns, thresholds, level=level)
    np.testing.assert_array_equal(binding.scan(packed, prepared, level=level, threads=2), y)
    np.testing.assert_array_equal(binding.matmul(a, columns, thresholds, prepared, level="scalar"), y)
    room = np.full((n, m + 5), 7, np.float32)
    binding.matmul(a, columns, thresholds, tables, scale, offset, out=room[:, :m], level=level)
    np.testing.assert_array_equal(room[:, :m], y)
    assert (room[:, m:] == 7).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("n", "m"), [(2711, 100), (2020, 133), (1040, 260)])
def test_large_outputs_are_the_same_by_every_habit(level, n, m):
    a, columns, thresholds, tables = problem(n, 30, 3, m)
    sums = sum(lookups(walk(a, columns, thresholds), tables))
    prepared = binding.prepare(tables)
    try:
        for asking, fetching in ((False, False), (True, False), (False, True), (True, True)):
            binding.habits(asking, fetching)
            for given in (a, np.asfortranarray(a)):
                y = binding.matmul(given, columns, thresholds, prepared, threads=2, level=level)
                np.testing.assert_array_equal(y, sums)
    finally:
        binding.habits()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("n", "codebooks", "threads"), [(8231, 16, 1), (8192, 5, 2), (4133, 70, 1), (2100, 257, 1)])
def test_many_rows_of_columns(level, n, codebooks, threads):
    a, columns, thresholds, tables = problem(n, 30, codebooks, 9)
    sums = sum(lookups(walk(a, columns, thresholds), tables))
    y = binding.matmul(np.asfortranarray(a), columns, thresholds, binding.prepare(tables), threads=threads, level=level)
    np.testing.assert_array_equal(y, sums)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("upcast", [1, 2, 4, 8, 16, 32, 64, 128])
def test_averages_equal_a_scalar_tree(level, upcast):
    codebooks, m = (2 * upcast if upcast < 128 else 128), 9
    a, columns, thresholds, tables = problem(100, 20, codebooks, m)
    values = lookups(walk(a, columns, thresholds), tables)
    groups = sum(tree_mean(values[c : c + upcast]) for c in range(0, codebooks, upcast))
    packed = binding.encode(a, columns, thresholds, level=level)
    got = binding.scan(packed, tables, "uint16", aggregation="average", upcast=upcast, level=level)
    np.testing.assert_array_equal(got, groups)
    y = binding.scan(packed, tables, scale=0.5, offset=3.0, aggregation="average", upcast=upcast, level=level)
    want = (upcast * groups - codebooks * math.log2(upcast) / 4) * 0.5 + 3.0
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-3)


def test_average_bias_is_the_predicted_one():
    codebooks = upcast = 8
    a, columns, thresholds, tables = problem(4000, 40, codebooks, 20)
    a = np.random.default_rng(3).standard_normal(a.shape).astype(np.float32)
    exact = sum(lookups(walk(a, columns, thresholds), tables))
    y = binding.matmul(a, columns, thresholds, binding.prepare(tables, aggregation="average", upcast=upcast))
    excess = (y - exact).mean(axis=0)  # per output: rows share tables, outputs are independent
    assert abs(excess.mean()) < 4 * excess.std(ddof=1) / math.sqrt(len(excess))


def test_torch_tensors_are_read_in_place_and_give_tensors():
    torch = pytest.importorskip("torch")
    a, columns, thresholds, tables = problem(100, 40, 8, 10)
    want = binding.matmul(a, columns, thresholds, tables)
    tensor = torch.tensor(a, requires_grad=True)
    y = binding.matmul(tensor, torch.tensor(columns), torch.tensor(thresholds), torch.tensor(tables))
    assert isinstance(y, torch.Tensor)
    np.testing.assert_array_equal(y.numpy(), want)
    np.testing.assert_array_equal(tensor.detach().numpy(), a)
    column_major = torch.tensor(a).t().contiguous().t()
    np.testing.assert_array_equal(binding.matmul(column_major, columns, thresholds, tables).numpy(), want)
    with pytest.raises(Unsupported, match="float32"):
        binding.encode(torch.tensor(a).to(torch.bfloat16), columns, thresholds)
    with pytest.raises(Unsupported, match="meta"):
        binding.encode(torch.tensor(a).to("meta"), columns, thresholds)


def test_no_rows():
    _, columns, thresholds, tables = problem(1, 40, 8, 10)
    a = np.empty((0, 40), np.float32)
    packed = binding.encode(a, columns, thresholds)
    assert binding.unpack(packed).shape == (0, 8)
    for out in ("float32", "uint16", "uint8"):
        assert binding.scan(packed, tables, out).shape == (0, 10)
    assert binding.scan(packed, tables, "uint16", order="column").shape == (0, 10)
    assert binding.matmul(a, columns, thresholds, tables).shape == (0, 10)


def test_pack_is_undone_by_unpack():
    codes = np.random.default_rng(0).integers(0, 16, (77, 5)).astype(np.uint8)
    np.testing.assert_array_equal(binding.unpack(binding.pack(codes)), codes)


BAD = [
    (lambda a, c, v, q: binding.encode(a[0], c, v), UserError, r"\[N, D\]"),
    (lambda a, c, v, q: binding.encode(a.astype(float), c, v), Unsupported, "float32"),
    (lambda a, c, v, q: binding.encode(a.astype(">f4"), c, v), Unsupported, "float32"),
    (lambda a, c, v, q: binding.encode(a.tolist(), c, v), UserError, "NumPy array or a torch tensor"),
    (lambda a, c, v, q: binding.encode(a, c + 40, v), UserError, "column"),
    (lambda a, c, v, q: binding.encode(a, -1 - c, v), UserError, "column"),
    (lambda a, c, v, q: binding.encode(a, c[:, :3], v), UserError, r"\[C, 4\]"),
    (lambda a, c, v, q: binding.encode(a, c, v[:4]), UserError, r"\[8, 15\]"),
    (lambda a, c, v, q: binding.encode(a, c.astype(float), v), UserError, "int32"),
    (lambda a, c, v, q: binding.matmul(a, c, v, q[:7]), UserError, "agree"),
    (lambda a, c, v, q: binding.matmul(a, c, v, q[:, :8]), UserError, r"\[C, 16, M\]"),
    (lambda a, c, v, q: binding.matmul(a, c, v, q.astype(np.int32) + 200), UserError, "fit uint8"),
    (lambda a, c, v, q: binding.matmul(a, c, v, q, np.ones(3)), UserError, "scale"),
    (lambda a, c, v, q: binding.matmul(a, c, v, q, out=np.empty((9, 10), np.float32)), UserError, r"\[50, 10\]"),
    (lambda a, c, v, q: binding.matmul(a, c, v, q, out=np.empty((10, 50), np.float32).T), UserError, "neighbouring"),
    (lambda a, c, v, q: binding.scan(binding.encode(a, c, v), q[:7]), UserError, "agree"),
    (lambda a, c, v, q: binding.scan(binding.encode(a, c, v), q, "int64"), UserError, "uint16"),
    (lambda a, c, v, q: binding.scan(binding.encode(a, c, v), q, order="column"), UserError, "column"),
    (lambda a, c, v, q: binding.prepare(q, aggregation="average", upcast=16), UserError, "divides"),
    (lambda a, c, v, q: binding.prepare(q, aggregation="average", upcast=3), UserError, "power of two"),
    (lambda a, c, v, q: binding.prepare(q, aggregation="mean"), UserError, "exact"),
    (lambda a, c, v, q: binding.prepare(np.zeros((258, 16, 1), np.uint8)), UserError, "257"),
    (lambda a, c, v, q: binding.pack(np.full((4, 4), 16, np.uint8)), UserError, "0..15"),
    (lambda a, c, v, q: binding.encode(a, c, v, level="sse"), UserError, "avx2"),
]


@pytest.mark.parametrize(("call", "error", "text"), BAD)
def test_wrong_input_is_one_clear_error(call, error, text):
    a, c, v, q = problem(50, 40, 8, 10)
    with pytest.raises(error, match=text):
        call(a, c, v, q)


def test_c_checks_sizes_itself():
    """Truncated buffers come back as an error code, never as a crash."""
    a, c, v, q = problem(50, 40, 8, 10)
    packed, tables = binding.encode(a, c, v), binding.prepare(q)
    cut = binding.Packed(packed.data[:1], packed.n, packed.codebooks)
    with pytest.raises(UserError, match="buffer"):
        binding.scan(cut, tables)
    half = np.ascontiguousarray(tables.data[:, :4])
    with pytest.raises(UserError, match="buffer"):
        binding.scan(packed, binding.Tables(half, tables.scale, tables.offset, 8, "exact", 16))


def test_the_variable_limits_the_level(monkeypatch):
    monkeypatch.setenv(binding.VARIABLE, "scalar")
    assert binding.level() == "scalar"
    assert binding.describe(threads=2)["level"] == "scalar"
    monkeypatch.setenv(binding.VARIABLE, binding.LEVELS[-1])
    assert binding.level() == binding.highest_level()
    monkeypatch.setenv(binding.VARIABLE, "avx1024")
    with pytest.raises(UserError, match="SPEEDCLAIM_SIMD"):
        binding.level()


def test_threads_default(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert binding.default_threads() == torch.get_num_threads()
    monkeypatch.delitem(sys.modules, "torch")
    assert binding.default_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert binding.default_threads() == 1


borrows = pytest.mark.skipif(
    not torch.backends.openmp.is_available() or sys.platform != "linux", reason="needs a torch with OpenMP on Linux"
)


@contextlib.contextmanager
def torch_threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@borrows
def test_torchs_threads_share_the_rows_and_give_what_a_pool_of_its_own_gives():
    a, c, v, q = problem(5003, 40, 8, 11)
    want = binding.matmul(a, c, v, q, threads=1)
    codes = binding.encode(a, c, v, threads=1)
    for team in (1, 2, 3):
        with torch_threads(team):
            for threads in (2, 3, 64):
                assert (binding.pool(threads) == "own") == (threads > team)
                assert binding.describe(threads)["pool"] == binding.pool(threads)
                assert np.array_equal(binding.matmul(a, c, v, q, threads=threads), want)
                assert np.array_equal(binding.encode(a, c, v, threads=threads).data, codes.data)
    assert "pool" not in binding.describe(threads=1)


@borrows
@pytest.mark.parametrize("name", ["maddness", "bolt", "popcount"])
def test_operators_say_whose_threads_they_run_on(name):
    train = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    op = registry.load(f"approximate_matmul.{name}")(codebooks=4).fit(train, train[:5].T.contiguous())
    for count in (1, 2):
        with torch_threads(count):
            told = op.describe()
            assert told["threads"] == count
            assert told["pool"] == (None if count == 1 else binding.pool(2))


def lent_to(parallel, team):
    """The library told of another run-time until the next call of Python's door."""
    binding.workers(2)
    lending.use_openmp(binding.library(), ctypes.cast(parallel, ctypes.c_void_p).value, team)


@borrows
@pytest.mark.parametrize("come", [1, 4])
def test_the_whole_team_is_asked_for_and_so_many_work_as_are_wanted(come):
    """A team of another size would end threads; a run-time may give fewer: the work is taken by whoever comes."""
    given = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def parallel(body, data, threads, flags):
        given.append(threads)
        for _ in range(come):
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(body)(data)

    a, c, v, q = problem(70, 40, 8, 11)
    want = binding.matmul(a, c, v, q, threads=1)
    with torch_threads(4):
        try:
            lent_to(parallel, 4)
            assert np.array_equal(binding.matmul(a, c, v, q, threads=3), want)
            assert given == [4]
        finally:
            lending._lent = (0, 0, "own")
            binding.workers(2)


CHILD = """
import os, sys, torch
torch.set_num_threads(2)
a = torch.randn(4096, 512)
{before}
from methods.approximate_matmul.native import binding
{native}
child = os.fork()
if child == 0:
    from tests.methods.approximate_matmul.test_native import problem
    given = problem(3000, 40, 8, 10)
    right = (binding.matmul(*given, threads=2) == binding.matmul(*given, threads=1)).all()
    os._exit(0 if right and binding.pool(2) == "own" else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("native", ["", "binding.workers(2)"])
@pytest.mark.parametrize("before", ["", "(a @ a.T).sin()"])
def test_a_forked_child_has_a_pool_of_its_own(native, before):
    code = CHILD.format(before=before, native=native)
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


WORKER = """
import multiprocessing, sys, torch

def work(out):
    from tests.methods.approximate_matmul.test_native import problem
    from methods.approximate_matmul.native import binding
    given = problem(3000, 40, 8, 10)
    out.put((binding.pool(2), bool((binding.matmul(*given, threads=2) == binding.matmul(*given, threads=1)).all())))

if __name__ == "__main__":
    torch.set_num_threads(2)
    a = torch.randn(4096, 512)
    (a @ a.T).sin()
    context = multiprocessing.get_context("fork")
    out = context.SimpleQueue()
    worker = context.Process(target=work, args=(out,))
    worker.start()
    name, right = out.get()
    worker.join()
    sys.exit(0 if right and name == "own" else 3)
"""


def test_a_forked_worker_that_is_first_to_import_the_kernels_has_a_pool_of_its_own():
    assert subprocess.run([sys.executable, "-c", WORKER], timeout=60, check=False).returncode == 0


@borrows
def test_calls_of_few_rows_leave_torchs_threads_alone():
    """Linux numbers threads upwards: none is started between two operations of torch."""
    code = """
import os, torch
torch.set_num_threads(8)
from tests.methods.approximate_matmul.test_native import problem
from methods.approximate_matmul.native import binding
given, a = problem(200, 40, 8, 10), torch.randn(1000, 1000)
def round():
    a.sin(), binding.matmul(*given, threads=8), binding.matmul(*given, threads=2)
round()
before = set(os.listdir("/proc/self/task"))
for _ in range(20):
    round()
assert set(os.listdir("/proc/self/task")) == before, "threads came or went"
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_concurrent_callers_and_a_forked_child():
    a, c, v, q = problem(3000, 40, 8, 10)
    want = binding.matmul(a, c, v, q, threads=1)
    wrong = []

    def call():
        wrong.extend(1 for _ in range(20) if not np.array_equal(binding.matmul(a, c, v, q, threads=3), want))

    workers = [threading.Thread(target=call) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(binding.matmul(a, c, v, q, threads=3), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_without_a_compiler_the_reason_is_clear(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match=r"C\+\+17 compiler.*backend=\"torch\""):
        build.library()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Unavailable, match=r"\$CXX"):
        build.library()


def test_a_failed_build_names_the_command_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("SPEEDCLAIM_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-fno-such-flag-here"))
    with pytest.raises(Unavailable, match="no-such-flag-here"):
        build.library()
    assert not [path for path in (tmp_path / "native").iterdir() if path.suffix == ".so"]


def test_listing_imports_no_torch():
    code = "import sys, methods.approximate_matmul.native.binding; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

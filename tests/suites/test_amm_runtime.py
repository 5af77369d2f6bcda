"""Gate, contents and facts of the task of approximate products, on toy methods."""

from __future__ import annotations

import dataclasses
import itertools
import math
import types

import numpy as np
import pytest
import torch

from harness.catalogue import registry
from harness.catalogue.method import Method
from harness.catalogue.suite import Problem
from harness.catalogue.task import Described, Divided
from harness.errors import Unsupported
from harness.measure import gate
from harness.measure.device import open_device
from suites.amm import contents, fitted, sources, theorem
from suites.amm.contents import Rows
from suites.amm.runtime import RUNTIME, accuracy_limit, fidelity_limit

PROBLEM = Problem(
    kind="lowrank_c4",
    shape=(70, 24, 12),
    dtype="float32",
    params={"data": "lowrank", "hyper": {"codebooks": 4, "rank": 4}},
)


class Fitted:
    """An operator made of a function, with the attributes that the suite reads."""

    def __init__(self, product, dtype="float32"):
        self.product, self.times, self.kind = product, {"train_s": 0.0, "table_s": 0.25}, dtype

    def __call__(self, a):
        return self.product(a)

    def describe(self):
        return {"dtype": self.kind, "backend": "toy", "level": ("none",)}

    def bytes_read(self, n):
        return 8.0 * n


class Estimator:
    def __init__(self, fit):
        self.fit = fit


def exact():
    return Estimator(lambda train, b: Fitted(lambda a: a @ b))


def negated():
    return Estimator(lambda train, b: Fitted(lambda a: -(a @ b)))


def tf32():
    return Estimator(lambda train, b: Fitted(lambda a: _short(a) @ _short(b)))


def called_bf16():
    return Estimator(lambda train, b: Fitted(lambda a: (a.bfloat16() @ b.bfloat16()).float(), "bfloat16"))


def cached():
    memory = []

    def product(a, b):
        if not memory:
            memory.append(a @ b)
        return memory[0].clone()

    return Estimator(lambda train, b: Fitted(lambda a: product(a, b)))


def zero_sketch(rank=1):
    return Estimator(lambda train, b: Fitted(lambda a: torch.zeros(len(a), b.shape[1])))


def sketch(rank=1):
    def fit(train, b):
        signs = torch.randint(0, 2, (b.shape[0], rank), generator=torch.Generator().manual_seed(3)) * 2.0 - 1
        return Fitted(lambda a: (a @ signs) @ (signs.T @ b) / rank)

    return Estimator(fit)


def loud_sketch(rank=1):
    return Estimator(lambda train, b: Fitted(lambda a: 30.0 * (a @ b)))


def other_codes(codebooks=4):
    """A look-up product whose every twentieth row took another code."""

    def product(a, b):
        y = a @ b
        y[::20] += y.std()
        return y

    return Estimator(lambda train, b: Fitted(lambda a: product(a, b)))


def refuses(rank=1):
    from harness.errors import UserError

    raise UserError("rank must be below M")


def writes(rank=1):
    return Estimator(lambda train, b: Fitted(lambda a: a.mul_(2.0) @ b))


def _short(x):
    """Round to the 10 mantissa bits of TF32."""
    return (x.contiguous().view(torch.int32).add(0x1000) & ~0x1FFF).view(torch.float32)


@pytest.fixture
def check(monkeypatch):
    device = open_device("cpu", True, "ieee")

    def run(impl, reference=None, problem=PROBLEM):
        found = {"x:impl": impl, "x:reference": reference}
        monkeypatch.setattr(gate, "resolve", found.__getitem__)
        method = Method(
            name="approximate_matmul.toy",
            impl="x:impl",
            reference="x:reference" if reference else None,
            summary="x",
            source="tests",
        )
        return gate.check(method=method, runtime=RUNTIME, problem=problem, device=device, seeds=3)

    return run


@pytest.mark.parametrize(
    ("impl", "reference", "status", "reason"),
    [
        (exact, None, "passed", ""),
        (exact, exact, "passed", ""),
        (negated, None, "inaccurate", "rounding_error"),
        (negated, exact, "unfaithful", "fidelity_error"),
        (tf32, None, "inaccurate", "rounding_error"),
        (tf32, exact, "unfaithful", "fidelity_error"),
        (called_bf16, None, "passed", ""),
        (cached, exact, "unfaithful", ""),
        (sketch, None, "passed", ""),
        (zero_sketch, None, "inaccurate", "beats the answer zero"),
        (loud_sketch, None, "inaccurate", "nmse_norm"),
        (other_codes, exact, "unfaithful", "fidelity_error|mismatched_rows"),
        (refuses, None, "unsupported", "rank must be below M"),
        (writes, None, "impure", "input was changed"),
    ],
)
def test_the_gate(check, impl, reference, status, reason):
    outcome = check(impl, reference)
    assert outcome.status == status, outcome.reason
    assert not reason or any(part in outcome.reason for part in reason.split("|"))


def test_tf32_is_told_from_float32_up_to_wide_products(check):
    wide = Problem(kind="lowrank_c4", shape=(64, 2048, 16), dtype="float32", params={"data": "lowrank"})
    assert check(exact, problem=wide).status == "passed"
    assert check(tf32, problem=wide).status == "inaccurate"


def test_an_absent_card_is_unsupported_and_names_the_command(check, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEEDCLAIM_CACHE", str(tmp_path))
    monkeypatch.delenv("SPEEDCLAIM_DATA", raising=False)
    for data, command in (
        ("ucr:gunpoint", "speedclaim data fetch ucr-gunpoint"),
        ("features:cifar10-net", "python -m suites.amm.features features-cifar10-net"),
    ):
        problem = Problem(kind="x_c4", shape=(150, 320, 32), dtype="float32", params={"data": data})
        outcome = check(exact, problem=problem)
        assert outcome.status == "unsupported"
        assert command in outcome.reason


def test_facts_reach_the_outcome_once_the_gate_is_passed(check):
    assert isinstance(RUNTIME, Described)
    assert isinstance(RUNTIME, Divided)
    outcome = check(exact)
    assert outcome.facts == {"table_s": ([0.25], "s"), "bytes_read": ([560.0], "bytes")}
    assert outcome.detail["runs"] == {"dtype": "float32", "backend": "toy", "level": ["none"]}
    assert len(outcome.detail["data"]) == 16
    assert check(negated).facts == {}


def test_bytes_read_are_told_how_a_lies_in_memory():
    for layout in ("rows", "columns"):
        problem = dataclasses.replace(PROBLEM, kind=f"lowrank_{layout}_c4", params={**PROBLEM.params, "layout": layout})
        operation = RUNTIME.bind(registry.load("approximate_matmul.maddness"), problem, {"codebooks": 2})
        numbers, detail = RUNTIME.facts(operation, RUNTIME.content(problem, 0), problem)
        assert detail["bytes_read"] == {"layout": layout, "item_bytes": 4, "line_bytes": 64}
        assert numbers["bytes_read"] == ([operation.op.bytes_read(70, layout=layout)], "bytes")


def test_options_of_the_problem_win_where_the_factory_knows_them():
    def factory(*, codebooks=2, ridge=1.0):
        return None

    def open_factory(**hyper):
        return None

    assert fitted.options(factory, PROBLEM, {"ridge": 3.0}) == {"codebooks": 4, "ridge": 3.0}
    assert fitted.options(open_factory, PROBLEM, {"codebooks": 16}) == {"codebooks": 4}
    assert fitted.options(exact, PROBLEM, {}) == {}


def test_contents_are_functions_of_seed_and_variations_only_move_rows():
    found = sources.source(PROBLEM)
    one, two = contents.draw(PROBLEM, found, 1), contents.draw(PROBLEM, found, 1)
    assert torch.equal(one.a, two.a)
    assert not torch.equal(one.a, contents.draw(PROBLEM, found, 2).a)
    seen = {one.a.numpy().tobytes()}
    for step in range(1, 6):
        moved = RUNTIME.vary(one, step)
        assert sorted(moved.numbers()) == sorted(one.index)
        assert np.array_equal(found.pool[moved.numbers()], moved.whole().numpy())
        seen.add(moved.whole().numpy().tobytes())
    assert len(seen) == 6


def test_many_rows_of_a_random_problem_have_the_pools_distribution():
    problem = Problem(kind="lowrank_c4", shape=(20_000, 6, 4), dtype="float32", params={"data": "lowrank"})
    found = sources.source(problem)
    assert len(found.pool) == sources.POOL
    rows = contents.draw(problem, found, 0).a.numpy()
    assert rows.shape == (20_000, 6)
    assert np.allclose(np.cov(rows.T), np.cov(found.pool.T), atol=0.12 * np.cov(found.pool.T).max())


def test_labels_follow_their_rows():
    problem = Problem(
        kind="digits_c4", shape=(355, 64, 10), dtype="float32", params={"data": "digits", "hyper": {"codebooks": 4}}
    )
    accuracies = set()
    for seed in range(3):
        content = RUNTIME.vary(RUNTIME.content(problem, seed), seed)
        answer = RUNTIME.oracle(content, problem)
        errors = RUNTIME.glance(answer.y.float(), content, answer, problem)
        assert errors["accuracy"] == errors["accuracy_exact"]
        assert errors["argmax_agreement"] == 1.0
        accuracies.add(round(errors["accuracy"], 6))
    assert len(accuracies) == 1
    assert accuracies.pop() > 0.94


def test_errors_of_known_answers():
    content = RUNTIME.content(PROBLEM, 0)
    answer = RUNTIME.oracle(content, PROBLEM)
    y = answer.y
    mean = RUNTIME.glance(torch.full_like(y, float(y.mean())), content, answer, PROBLEM)
    assert math.isclose(mean["nmse"], 1.0, rel_tol=1e-9)
    assert mean["beats_mean"] == 0.0
    zero = RUNTIME.glance(torch.zeros_like(y), content, answer, PROBLEM)
    assert math.isclose(zero["nmse_norm"], 1.0, rel_tol=1e-9)
    assert zero["cosine"] == 0.0
    twice = RUNTIME.glance(2 * y, content, answer, PROBLEM)
    assert math.isclose(twice["nmse_norm"], 1.0, rel_tol=1e-9)
    assert math.isclose(twice["pearson"], 1.0, rel_tol=1e-9)
    assert math.isclose(twice["max_abs_error"], float(y.abs().max()), rel_tol=1e-9)
    assert RUNTIME.glance(y, content, answer, PROBLEM)["nmse"] == 0.0


def test_limits_by_arithmetic():
    problem = Problem(kind="lowrank_c4", shape=(8, 16, 4), dtype="bfloat16", params={"data": "lowrank"})
    assert accuracy_limit(None, PROBLEM) < 1e-6
    assert accuracy_limit(None, problem) >= 2**-8
    assert fidelity_limit(None, PROBLEM) < 1e-6


def test_a_float16_content_is_multiplied_after_its_rounding():
    problem = Problem(kind="lowrank_c4", shape=(9, 8, 4), dtype="float16", params={"data": "lowrank"})
    content = RUNTIME.content(problem, 0)
    b = torch.from_numpy(sources.source(problem).b).half().double()
    assert torch.equal(RUNTIME.oracle(content, problem).y, content.a.double() @ b)


def test_buffers_keep_strides_and_bits_decide_equality():
    a = torch.arange(12.0).reshape(4, 3).t()
    rows = Rows(a=a, index=np.arange(3))
    buffer = RUNTIME.buffer_like(rows)
    RUNTIME.fill(buffer, rows)
    assert buffer.a.stride() == a.stride()
    assert RUNTIME.same(buffer, rows)
    buffer.a[0, 0] = -0.0
    assert not RUNTIME.same(buffer, rows)


@pytest.mark.parametrize(
    ("name", "covered"),
    [("maddness", True), ("maddness-ridge100", True), ("maddness-avg", False), ("maddness-direct", False),
     ("maddness-pq", False), ("maddness-sparse", False), ("maddness-float-tables", False), ("bolt", False)],
)  # fmt: skip
def test_the_theorem_is_shown_for_what_it_speaks_of(name, covered):
    assert theorem.covers(registry.method(f"approximate_matmul.{name}").hyper) == covered


def test_the_theorems_bound():
    """nu = 16 (4 * 9 + 256) log 2 + log 20; the rest of the formula by hand."""
    nu = 16 * 292 * math.log(2) + math.log(20)
    assert math.isclose(theorem.description_bits(16, 512, 0.05), nu, rel_tol=1e-12)
    wanted = 16 * 100 * 2 / 2 * (1 / 256 + (8 + math.sqrt(nu)) / math.sqrt(20_000))
    got = theorem.bound(codebooks=16, columns=512, rows=10_000, sigma=100.0, norm_b=2.0)
    assert math.isclose(got, wanted, rel_tol=1e-12)
    assert theorem.bound(codebooks=16, columns=512, rows=10**9, sigma=100.0, norm_b=2.0) < got
    with pytest.raises(ValueError, match="positive"):
        theorem.bound(codebooks=0, columns=512, rows=10, sigma=1.0, norm_b=1.0)
    case = {"codebooks": 2, "columns": 8, "rows": 200, "sigma": 3.0, "norm_b": 5.0, "ridge": 4.0, "delta": 0.1}
    assert theorem.bound(**{**case, "sigma": 6.0}) == pytest.approx(2 * theorem.bound(**case))
    assert theorem.bound(**{**case, "ridge": 16.0}) == pytest.approx(theorem.bound(**case) / 2)
    assert theorem.bound(**{**case, "rows": 10**12}) == pytest.approx(7.5 / 256, rel=1e-2)


class Divisible:
    """An operator that tells what it was asked for."""

    def __init__(self):
        self.scanned = []

    def encode(self, a):
        raise AssertionError("plain codes cost more than encoding")

    def codes(self, a):
        return float(a[0, 0])

    def scan(self, codes):
        self.scanned.append(codes)
        return codes


def test_parts_time_the_back_ends_own_codes_and_scan_what_was_encoded():
    inner = Divisible()
    parts = RUNTIME.parts(types.SimpleNamespace(op=inner))
    assert set(parts) == {"encode_s", "scan_s", "scan_hot_s"}
    rows = [Rows(a=torch.full((2, 2), float(i)), index=np.arange(2)) for i in range(6)]
    parts["scan_s"](rows[5])
    assert inner.scanned == [5.0]
    for row in rows[:3]:
        parts["encode_s"](row)
    inner.scanned.clear()
    for _ in range(8):
        parts["scan_s"](rows[0])
    assert sorted(inner.scanned[:4]) == [0.0, 1.0, 2.0, 5.0]
    assert all(left != right for left, right in itertools.pairwise(inner.scanned))


def test_parts_of_a_look_up_product_add_up_to_its_answer():
    train = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    op = registry.load("approximate_matmul.maddness")(codebooks=4).fit(train, torch.randn(16, 3))
    parts = RUNTIME.parts(types.SimpleNamespace(op=op))
    rows = Rows(a=train[:50], index=np.arange(50))
    parts["encode_s"](rows)
    assert set(parts) == {"encode_s", "scan_s", "scan_hot_s", "scan_fix_up_s"}
    assert torch.equal(parts["scan_fix_up_s"](rows), op(rows.a))
    sums = torch.as_tensor(np.asarray(parts["scan_s"](rows)).astype(np.float32))
    mended = sums * torch.from_numpy(op.tables.scale) + torch.from_numpy(op.tables.offset)
    assert torch.allclose(mended, op(rows.a), rtol=1e-6, atol=1e-6), (
        "the scan stops at integers; the fix-up is all else"
    )


@pytest.mark.parametrize("aggregation", ["exact", "average"])
@pytest.mark.parametrize("backend", ["native", "torch", "numpy"])
def test_all_back_ends_stop_at_the_same_integers(backend, aggregation):
    generator = torch.Generator().manual_seed(0)
    train, b = torch.randn(200, 16, generator=generator), torch.randn(16, 3, generator=generator)
    options = {"codebooks": 4, "aggregation": aggregation}
    make = registry.load("approximate_matmul.maddness")
    want = make(**options, backend="numpy").fit(train, b)
    op = make(**options, backend=backend).fit(train, b)
    codes = op.codes(train[:50])
    if backend == "torch" and aggregation == "exact":
        assert not op.integer_totals
        assert set(RUNTIME.parts(types.SimpleNamespace(op=op))) == {"encode_s", "scan_s", "scan_hot_s"}
        with pytest.raises(Unsupported, match="no integer totals"):
            op.totals(codes)
        return
    assert np.array_equal(np.asarray(op.totals(codes)), np.asarray(want.totals(want.codes(train[:50]))))


def test_float_tables_have_no_totals():
    op = registry.load("approximate_matmul.maddness")(codebooks=4, lut_bits=None, backend="numpy")
    op = op.fit(torch.randn(100, 16), torch.randn(16, 3))
    assert not op.integer_totals
    with pytest.raises(Unsupported, match="float32 tables"):
        op.totals(op.codes(torch.randn(5, 16)))


def test_methods_without_codes_have_no_parts():
    op = registry.load("approximate_matmul.exact")().fit(torch.randn(20, 4), torch.randn(4, 2))
    assert RUNTIME.parts(types.SimpleNamespace(op=op)) == {}


def test_a_column_by_column_has_the_same_numbers_and_keeps_its_order():
    rows = dataclasses.replace(PROBLEM, params={**PROBLEM.params})
    columns = dataclasses.replace(PROBLEM, kind="lowrank_columns_c4", params={**PROBLEM.params, "layout": "columns"})
    plain, turned = RUNTIME.content(rows, 3), RUNTIME.content(columns, 3)
    assert torch.equal(plain.a, turned.a)
    assert plain.a.stride() == (24, 1)
    assert turned.a.stride() == (1, 70)
    buffer = RUNTIME.buffer_like(turned)
    RUNTIME.fill(buffer, RUNTIME.vary(turned, 1))
    assert buffer.a.stride() == (1, 70)
    assert RUNTIME.snapshot(turned).a.stride() == (1, 70)
    assert torch.equal(buffer.a, RUNTIME.vary(plain, 1).whole())

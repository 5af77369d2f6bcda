"""The checks behind :mod:`methods.orthogonalize._tune`: every product and engine against float64, one job a case."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from methods.orthogonalize import _triton_launch as launch
from methods.orthogonalize import reference, triton_fast, triton_graph, triton_published
from methods.orthogonalize._triton_configs import Config, Design, Line, make

#: Largest error of a half-precision product relative to its largest entry: about two roundings of the dtype.
PRODUCT_TOLERANCE = {torch.bfloat16: 8e-3, torch.float16: 1.5e-3}
#: float32's unit roundoff.
UNIT = 2.0**-24
#: ||X - X_ref||_F / ||X_ref||_F of a whole engine on a well-conditioned gaussian (aspect 1 : 2).
ENGINE_TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.01, torch.float32: 1e-3}
TWINS = {
    "ns_symmetric": reference.ns_torch,
    "ns_fused": reference.ns_torch,
    "tail4": reference.tail4,
    "aol": reference.aol,
    "turbo": reference.turbo,
    "schatten4": reference.schatten4,
    "turbo_fast": reference.turbo,
    "turbo_graph": reference.turbo,
}
#: Not to be captured or interpreted: it captures by itself.
GRAPHS = ("turbo_graph",)
_OWN: dict[str, Any] = {"turbo_fast": triton_fast, "turbo_graph": triton_graph}
ALPHA, BETA, LINEAR = 0.75, -1.5, 3.25

Operands = dict[str, torch.Tensor]


def engines() -> Iterator[tuple[str, Callable[[torch.Tensor], torch.Tensor]]]:
    """Every engine by its function's name."""
    for name in TWINS:
        yield name, getattr(_OWN.get(name, triton_published), name)


def product_tolerance(dtype: torch.dtype, depth: int) -> float:
    """Largest error of a product that sums ``depth`` terms, relative to the size that :func:`_worst` is given.

    In half precision the rounding of the stored result rules. In float32 the sum itself does: its roundings, each up
    to u = 2^-24 of a partial sum, add up like a random walk (N. Higham and T. Mary, SIAM J. Sci. Comput. 41, 2019,
    A2815), hence 4 sqrt(depth) u, and no less than 8 u for few terms.
    """
    return PRODUCT_TOLERANCE[dtype] if dtype in PRODUCT_TOLERANCE else UNIT * max(8.0, 4.0 * depth**0.5)


@dataclass(frozen=True)
class Job:
    """One check: a product or an engine, a layout and a dtype."""

    kind: Literal["products", "engine", "edges", "graph", "huge"]
    subject: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = "contiguous"
    config: Config | None = None

    @property
    def label(self) -> str:
        """What is checked, in a line."""
        size = "x".join(map(str, self.shape))
        return f"{self.kind} {self.subject} {size} {self.dtype} {self.layout}"


@dataclass(frozen=True)
class Candidate:
    """One configuration of one product of one design."""

    design: Design
    line: Line
    config: Config

    @property
    def label(self) -> str:
        """What is tried, in a line."""
        return f"candidate {self.design} {self.line} {self.config.describe()}"

    def call(self, operands: Operands) -> Callable[[], None]:
        """The product on these operands, as the engines run it."""
        X, A, C, B, Y, S = (operands[key] for key in "XACBYS")
        calls: dict[tuple[str, str], Callable[[], Any]] = {
            ("published", "gram"): lambda: launch.line_1(X, C, self.config),
            ("published", "square"): lambda: launch.line_2(A, C, ALPHA, BETA, self.config),
            ("published", "apply"): lambda: launch.line_3(B, X, Y, LINEAR, self.config),
            ("fast", "gram"): lambda: launch.symmetric_fast(X, C, config=self.config),
            ("fast", "square"): lambda: launch.symmetric_fast(
                A, C, alpha=ALPHA, beta=BETA, addend=True, config=self.config
            ),
            ("fast", "apply"): lambda: launch.apply_fast(B, X, Y, LINEAR, config=self.config),
        }
        assert S.dtype == torch.float32
        return calls[self.design, self.line]


def operands(shape: tuple[int, int, int], dtype: torch.dtype, device: str, layout: str = "contiguous") -> Operands:
    """Random operands of the three products, outputs filled with NaN."""
    batch, n, m = shape
    generator = torch.Generator(device=device).manual_seed(batch + 7 * n + 31 * m)

    def random(*extents: int) -> torch.Tensor:
        return torch.randn(extents, generator=generator, device=device)

    def poison(*extents: int) -> torch.Tensor:
        return torch.full(extents, torch.nan, device=device, dtype=dtype)

    X = (random(*shape) / m**0.5).to(dtype)
    if layout == "transposed":
        X = X.mT.contiguous().mT
    elif layout == "sliced":
        wide = poison(batch, n, 2 * m + 3)
        wide[..., 1 : 2 * m : 2] = X
        X = wide[..., 1 : 2 * m : 2]
    half = random(batch, n, n) / n**0.5
    A = (half @ half.mT).to(dtype)
    A = (A.tril() + A.tril(-1).mT).contiguous()
    Y = poison(batch, m, n).mT if layout == "transposed" else poison(*shape)
    B = (random(batch, n, n) / n**0.5).to(dtype)
    S = torch.rand(batch, n, generator=generator, device=device) + 0.5
    return {"X": X, "A": A, "B": B, "C": poison(batch, n, n), "Y": Y, "S": S}


def library_call(line: Line, operands: Operands) -> Callable[[], Any]:
    """The same product by the library, without symmetry."""
    X, A, C, B, Y = (operands[key] for key in "XACBY")
    if line == "gram":
        return lambda: torch.bmm(X, X.mT, out=C)
    if line == "square":
        return lambda: torch.baddbmm(A, A, A, alpha=ALPHA, beta=BETA, out=C)
    return lambda: torch.baddbmm(X, B, X, beta=LINEAR, out=Y)


def executed_flops(line: Line, shape: tuple[int, int, int]) -> float:
    """Operations with half of a symmetric product left out."""
    batch, n, m = shape
    return float(batch) * n * n * {"gram": m, "square": n, "apply": 2 * m}[line]


def jobs(dry: bool) -> list[Job]:
    """Odd and normal shapes in every dtype, bfloat16 first; captured and huge inputs only on a GPU."""
    dtypes = ("float32", "float16") if dry else ("bfloat16", "float16", "float32")
    found = []
    for dtype in dtypes:
        found += _product_jobs(dtype, dry)
        few = dtype != dtypes[0] and not dry
        names = ("ns_symmetric", "turbo", "schatten4", "turbo_fast") if few else tuple(TWINS)
        names = tuple(name for name in names if not dry or name not in GRAPHS)
        shapes = [(48, 96)] if dry else [(100, 257), (2048, 1024)] if few else [(100, 257), (1024, 2048), (3, 384, 192)]
        for name in names:
            found += [Job("engine", name, shape, dtype) for shape in shapes]
            found.append(Job("edges", name, (24, 40) if dry else (160, 200), dtype))
        if dtype == "bfloat16":
            found += [Job("graph", name, (512, 1024), dtype) for name in TWINS if name not in GRAPHS]
            found += [Job("huge", name, (9000, 256, 1024), dtype) for name in ("ns_symmetric", "turbo", "turbo_fast")]
    return found


def _product_jobs(dtype: str, dry: bool) -> list[Job]:
    layouts = ("contiguous", "transposed", "sliced")
    if dry:
        small = make(32, 32, 32, 4, 2, tma=True)
        return [Job("products", "all", (3, 65, 130), dtype, layout, small) for layout in layouts]
    shapes = ((1, 100, 257), (1, 1, 7), (3, 65, 130), (2, 320, 640))
    found = [Job("products", "all", shape, dtype, layout) for shape in shapes for layout in layouts]
    found.append(Job("products", "all", (1, 2304, 2560), dtype))
    if dtype != "float32":
        for bm, bn in ((128, 256), (256, 128), (64, 64)):
            tile = make(bm, bn, 64, 8 if bm * bn > 64 * 64 else 4, 3, tma=True)
            found += [Job("products", f"{bm}x{bn}", (2, 640, 1280), dtype, layout, tile) for layout in layouts[:2]]
    return found


def perform(work: Job | Candidate) -> tuple[bool, str]:
    """Run one job or candidate; errors become text."""
    torch.set_num_threads(1)
    try:
        if isinstance(work, Candidate):
            return _candidate(work)
        return _CHECKS[work.kind](work)
    except Exception as error:
        return False, f"{type(error).__name__}: {str(error)[-300:]}"
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # many workers share the device


def _device() -> str:
    return "cpu" if launch.INTERPRETED else "cuda"


def _worst(got: torch.Tensor, want: torch.Tensor, size: float | None = None) -> float:
    """Largest error relative to ``size``, by default the largest entry; infinite for NaN."""
    error = float((got.double() - want).abs().max()) / (size or float(want.abs().max()))
    return float("inf") if error != error else error


def _square_size(A: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> float:
    """What errors of ``ALPHA A Aᵀ + BETA A`` are relative to.

    In float32 the largest terms before they cancel: on the diagonal here, 0.75 * 2 - 1.5 * 1 leaves little of either
    (0.12 of 3.4 for 2304 rows), but the error of the sum is in proportion to what was summed. In half precision the
    rounding of the result is larger than that, so the result is the stricter measure.
    """
    if dtype != torch.float32:
        return float(want.abs().max())
    return abs(ALPHA) * float((A @ A.mT).abs().max()) + abs(BETA) * float(A.abs().max())


def _candidate(work: Candidate) -> tuple[bool, str]:
    dtype = torch.float32 if launch.INTERPRETED else torch.bfloat16
    values = operands((1, 40, 72) if launch.INTERPRETED else (2, 384, 768), dtype, _device())
    work.call(values)()
    X, A, B = (values[key].double() for key in "XAB")
    want = {"gram": X @ X.mT, "square": ALPHA * A @ A.mT + BETA * A, "apply": LINEAR * X + B @ X}[work.line]
    size = _square_size(A, want, dtype) if work.line == "square" else None
    error = _worst(values["Y" if work.line == "apply" else "C"], want, size)
    passed = error < product_tolerance(dtype, max(X.shape))
    return passed, f"{'error' if passed else 'wrong: error'} {error:.1e}"


def _products(job: Job) -> tuple[bool, str]:
    """All three products of both designs, the folded forms included; outputs start as NaN."""
    dtype: torch.dtype = getattr(torch, job.dtype)
    shape = (job.shape[0], job.shape[1], job.shape[2])
    values = operands(shape, dtype, _device(), job.layout)
    X, A, B, S = (values[key].double() for key in "XABS")
    gram, square = X @ X.mT, ALPHA * A @ A.mT + BETA * A
    errors = {}

    def record(name: str, target: str, want: torch.Tensor, run: Callable[[], Any], size: float | None = None) -> None:
        values[target].fill_(torch.nan)
        run()
        errors[name] = _worst(values[target], want, size)

    v, c = values, job.config
    record("line_1", "C", gram, lambda: launch.line_1(v["X"], v["C"], c))
    skew = _worst(v["C"], v["C"].mT.double())
    record("fast gram", "C", gram, lambda: launch.symmetric_fast(v["X"], v["C"], config=c))
    skew = max(skew, _worst(v["C"], v["C"].mT.double()))
    scales: list[torch.Tensor] = []
    record("sums", "C", gram, lambda: scales.append(launch.gram_with_scale(v["X"], v["C"], c)))
    errors["scale"] = _worst(scales[0] if scales else v["S"], gram.abs().sum(-1).rsqrt())
    size = _square_size(A, square, dtype)
    record("line_2", "C", square, lambda: launch.line_2(v["A"], v["C"], ALPHA, BETA, c), size)

    def fast_square(scale: torch.Tensor | None) -> None:
        launch.symmetric_fast(v["A"], v["C"], alpha=ALPHA, beta=BETA, addend=True, scale=scale, config=c)

    record("fast square", "C", square, lambda: fast_square(None), size)
    folded = square * S.unsqueeze(-2)
    record("folded", "C", folded, lambda: fast_square(v["S"]), _square_size(A, folded, dtype))
    record("line_3", "Y", LINEAR * X + B @ X, lambda: launch.line_3(v["B"], v["X"], v["Y"], LINEAR, c))
    record("fast apply", "Y", LINEAR * X + B @ X, lambda: launch.apply_fast(v["B"], v["X"], v["Y"], LINEAR, config=c))
    folded = LINEAR * S.unsqueeze(-1) * X + B @ X
    record("folded apply", "Y", folded, lambda: launch.apply_fast(v["B"], v["X"], v["Y"], LINEAR, v["S"], c))
    bound = product_tolerance(dtype, max(shape[1:]))
    bad = {name: f"{error:.1e}" for name, error in errors.items() if not error < bound}
    symmetric = skew == 0.0 or launch.INTERPRETED
    text = f"worst {max(errors.values()):.1e}" if not bad else f"wrong: {bad}"
    return not bad and symmetric, text + ("" if symmetric else f"; asymmetric by {skew:.1e}")


def _gaussian(shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(getattr(torch, dtype)).to(_device())


def _distance(got: torch.Tensor, want: torch.Tensor) -> float:
    distance = float((got.double() - want).norm() / want.norm())
    return float("inf") if distance != distance else distance


def _engine(job: Job) -> tuple[bool, str]:
    """An engine against its plain twin in float64; repeated bit for bit, input untouched."""
    run = dict(engines())[job.subject]
    G = _gaussian(job.shape, job.dtype)
    before = G.clone()
    first, second = run(G), run(G)
    error = _distance(first, TWINS[job.subject](G))
    same = bool(torch.equal(first, second)) and bool(torch.equal(G, before))
    form = first.shape == G.shape and first.dtype == G.dtype and first.device == G.device
    passed = error < ENGINE_TOLERANCE[G.dtype] and same and form
    return passed, f"distance {error:.1e}{'' if same else '; not repeatable or input changed'}"


def _edges(job: Job) -> tuple[bool, str]:
    """Scales 1e±12, zero, rank one, a zero row, NaN, one row, non-contiguous inputs."""
    run = dict(engines())[job.subject]
    dtype: torch.dtype = getattr(torch, job.dtype)
    tolerance = ENGINE_TOLERANCE[dtype]
    G = _gaussian(job.shape, job.dtype)
    want = TWINS[job.subject](G)
    bad = []
    for scale in (1e-12, 1e12) if dtype != torch.float16 else (1e-3, 1e4):
        scaled = _gaussian(job.shape, job.dtype, scale)
        error = _distance(run(scaled), TWINS[job.subject](scaled))
        if not error < 2 * tolerance:
            bad.append(f"scale {scale:g}: {error:.1e}")
    if bool(run(torch.zeros_like(G)).any()):
        bad.append("zero")
    rank_one = (torch.outer(G[:, 0], G[0]) / 8).to(dtype)
    holed = G.clone()
    holed[3] = 0
    for name, value in (("rank one", rank_one), ("zero row", holed), ("one row", G[:1]), ("one column", G[:, :1])):
        if not bool(run(value).isfinite().all()):
            bad.append(f"{name} not finite")
    poisoned = G.clone()
    poisoned[1, 2] = torch.nan
    if not bool(run(poisoned).isnan().any()):
        bad.append("NaN lost")
    wide = torch.full((2 * G.shape[0], 2 * G.shape[1]), torch.nan, dtype=dtype, device=G.device)
    wide[::2, 1::2] = G
    for name, value, goal in (("strided", wide[::2, 1::2], want), ("transposed", G.mT, want.mT)):
        if not _distance(run(value), goal) < 2 * tolerance:
            bad.append(name)
    return not bad, "; ".join(bad) or "all"


def _graph(job: Job) -> tuple[bool, str]:
    """Captured in a CUDA graph, replayed on a new input."""
    run = dict(engines())[job.subject]
    G, other = _gaussian(job.shape, job.dtype), _gaussian(job.shape, job.dtype, 3.0).flip(0).contiguous()
    run(G)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(G)
    G.copy_(other)
    graph.replay()
    same = bool(torch.equal(out, run(other)))
    return same, "replay equals a call" if same else "wrong: replay differs"


def _huge(job: Job) -> tuple[bool, str]:
    """More than 2^31 elements: the last matrix equals the same matrix alone, up to the configuration's rounding."""
    run = dict(engines())[job.subject]
    G = torch.randn(job.shape, device=_device(), dtype=torch.bfloat16)
    alone = run(G[-2:].clone())
    error = _distance(run(G)[-2:], alone.double())
    return error < ENGINE_TOLERANCE[torch.bfloat16] and G.numel() > 2**31, f"distance {error:.1e}"


_CHECKS = {"products": _products, "engine": _engine, "edges": _edges, "graph": _graph, "huge": _huge}

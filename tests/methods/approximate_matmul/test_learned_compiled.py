"""The trainable look-ups' kernels compile for an H100 (no GPU needed)."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="needs triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from methods.approximate_matmul.learned import _tree_kernels as trees
from methods.approximate_matmul.learned import _window_kernels as windows

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

SQUARE = {"KW": 3, "TAPS": 9, "SH": 1, "SW": 1, "PH": 1, "PW": 1, "DH": 1, "DW": 1}
WIDE = {"KW": 3, "TAPS": 6, "SH": 2, "SW": 1, "PH": 0, "PW": 2, "DH": 1, "DW": 2}
KINDS = {"CODES": "*u8", "COLUMNS": "*i64", "BY_CHANNEL": "*i64", "FIRST": "*i64"}


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    ("kernel", "constants", "warps"),
    [
        (trees.codes_kernel, {"BR": 4, "BC": 64}, 4),
        (trees.gradient_kernel, {"BR": 4, "BC": 64}, 4),
        (trees.table_kernel, {"BR": 64, "BC": 8, "BN": 128, "PRECISION": "tf32"}, 8),
        (trees.table_kernel, {"BR": 32, "BC": 8, "BN": 16, "PRECISION": "tf32x3"}, 8),
        (windows.gather_kernel, {**SQUARE, "BR": 8, "BU": 128}, 4),
        (windows.gather_kernel, {**WIDE, "BR": 1024, "BU": 1}, 4),
        (windows.scatter_kernel, {**SQUARE, "BR": 16, "BC": 64}, 4),
        (windows.scatter_kernel, {**WIDE, "BR": 1024, "BC": 1}, 4),
    ],
)
def test_a_kernel_compiles_without_spilling(kernel, constants, warps, aligned):
    """``aligned``: sizes and pointers are multiples of 16 and images are stored channels last."""
    signature, fixed, hints = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        last = aligned and name == "x_channel"
        if name in constants or last:
            signature[name], fixed[(i,)] = "constexpr", constants.get(name, 1)
            continue
        signature[name] = KINDS.get(name, "*fp32" if name.isupper() else "i32")
        if kernel is trees.codes_kernel and name == "OUT":
            signature[name] = "*u8"
        if aligned:
            hints[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=hints)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert ".local" not in made.asm["ptx"]
    if kernel is trees.table_kernel:
        assert "mma" in made.asm["ptx"]

"""The kernels compile for an H100 (no GPU needed): what the interpreter cannot see, from constants to tensor cores."""

from __future__ import annotations

import os
import re

import pytest

pytest.importorskip("triton", reason="needs triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from methods.approximate_matmul.gpu import _configs as configs
from methods.approximate_matmul.gpu import _kernels as kernels
from methods.approximate_matmul.linear import _kernels_product as scaled
from methods.approximate_matmul.linear import products

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

#: Compute capability 9.0.
H100 = GPUTarget("cuda", 90, 32)
TYPES = {"J": "*i32", "V": "*fp32", "codes": "*u8", "source": "*u8", "T": "*i8", "S": "*fp32", "O": "*fp32"}
ALIGNED = ("depth", "plane", "words", "m", "y_row", "s_row", "c_row", "codebooks", "a_row")


def compiled(kernel, constants, config, types=(), ones=(), aligned=ALIGNED):
    """PTX of a kernel: pointers and ``aligned`` integers are multiples of 16, ``ones`` are 1."""
    kinds = {"A": "*bf16", "Y": "*bf16", **TYPES, **dict(types)}
    signature, fixed, hints = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants or name in ones:
            signature[name] = "constexpr"
            fixed[(i,)] = constants.get(name, 1)
            continue
        signature[name] = kinds.get(name, "i32")
        if name in kinds or name in aligned:
            hints[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=hints)
    options = {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": False}
    return triton.compile(source, target=H100, options=options).asm["ptx"]


def product(config, fused, kind, split, raw=False, packed=False):
    shift = 128 if kind == "int8" else 0
    return {
        "FUSED": fused, "PACKED": packed, "SHIFT": shift, "SPLIT": split, "RAW": raw,
        "BM": config.bm, "BN": config.bn, "BC": config.bc, "GROUP": config.group,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "table", "split", "instruction"),
    [
        ("int8", "*i8", False, r"s32\.s8\.s8"),
        ("bfloat16", "*bf16", False, r"f32\.bf16\.bf16"),
        ("float8", "*fp8e4nv", True, r"f32\.e4m3\.e4m3"),
    ],
)
def test_products_run_on_tensor_cores(kind, table, split, instruction):
    config = configs.onehot(65536, 1024, kind, split)
    ptx = compiled(kernels.onehot_kernel, product(config, False, kind, split), config, {"T": table}, ("s_col",))
    assert re.search(r"wgmma\.mma_async\S*" + instruction, ptx)


def test_fused_runs_on_tensor_cores():
    config = configs.fused(128, "int8")
    made = product(config, True, "int8", False)
    ptx = compiled(kernels.onehot_kernel, made, config, {"source": "*bf16"}, ("s_col",))
    assert re.search(r"wgmma\.mma_async\S*s32\.s8\.s8", ptx)
    assert "fma.rn.f32" not in ptx


def test_one_of_everything_compiles():
    """Integers that are 1 become constants; arithmetic on them must still be arithmetic on tensors."""
    config = configs.fused(1, "int8")
    ones = ("n", "m", "codebooks", "s_row", "s_col", "y_row")
    compiled(kernels.onehot_kernel, product(config, True, "int8", False), config, {"source": "*fp32"}, ones)
    config = configs.onehot(1, 1, "int8", False)
    compiled(kernels.onehot_kernel, product(config, False, "int8", False, True, True), config, {"Y": "*i32"}, ones)
    config, ones = configs.lookup(1, 1), ("n", "m", "codebooks", "c_row", "c_col", "y_row")
    made = {"PACKED": True, "RAW": False, "BM": config.bm, "BW": config.bn // 4}
    compiled(kernels.lookup_kernel, made, config, {"T": "*i32"}, ones)
    config, ones = configs.encode(1, False), ("n", "codebooks", "a_row", "a_col", "c_row", "c_col")
    made = {"PACKED": True, "BM": config.bm, "BC": config.bn}
    compiled(kernels.encode_kernel, made, config, {"A": "*fp16"}, ones)


def test_tables_are_read_sixteen_bytes_at_a_time():
    config = configs.lookup(65536, 1024)
    made = {"PACKED": False, "RAW": False, "BM": config.bm, "BW": config.bn // 4}
    assert re.search(r"ld\.global\S*v4\.b32", compiled(kernels.lookup_kernel, made, config, {"T": "*i32"}, ("c_col",)))


@pytest.mark.parametrize("contiguous_rows", [False, True])
def test_encode_compiles(contiguous_rows):
    config = configs.encode(64, contiguous_rows)
    made = {"PACKED": False, "BM": config.bm, "BC": config.bn}
    compiled(kernels.encode_kernel, made, config, (), ("a_row",) if contiguous_rows else ("a_col",))


@pytest.mark.parametrize("name", products.TILES)
@pytest.mark.parametrize("rows", [False, True])
def test_scaled_products_run_on_tensor_cores(name, rows):
    tile = products.TILES[name]
    made = {"ROWS": rows, "BM": tile.rows, "BN": tile.outputs, "BK": 128, "GROUP": 8}
    ptx = compiled(scaled.product_kernel, made, tile, {"Q": "*i8", "W": "*i8", "T": "*fp32"}, (), ("n", "m", "k"))
    assert re.search(r"wgmma\.mma_async\S*s32\.s8\.s8", ptx)
    assert re.search(r"cp\.async\S*\s.*0x10", ptx), "rows of Q are fetched 16 bytes at a time"

"""Triton kernels of MADDNESS at run time: codes from rows, and sums of table entries from codes.

Two designs of the sum: :func:`lookup_kernel` reads the entries (rows of tables, out of the first-level cache) and adds
two 16-bit sums a word; :func:`onehot_kernel` multiplies one-hot rows, built in registers, by the tables on tensor
cores, and with FUSED makes the codes itself. Both sums are exact integers. Offsets into A and Y have 64 bits.

Source of the algorithm: Blalock and Guttag, arXiv 2106.10860, Algorithm 1 and section 4.4; the kernels are ours.
"""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tree_codes(
    A: tl.tensor,
    J: tl.tensor,
    V: tl.tensor,
    rows: tl.tensor,
    books: tl.tensor,
    n: tl.tensor,
    codebooks: tl.tensor,
    a_row: tl.tensor,
    a_col: tl.tensor,
) -> tl.tensor:
    """[BM, BC] int32 codes, i <- 2 i + [x >= v_i] four times; NaN compares false; rows have 64 bits.

    J [4, C] int32 names the columns of A; V [C, 16] holds the 15 thresholds of a tree side by side. The entries of A
    do not depend on the path, so all four are asked for at once; thresholds are looked up along it. Codebooks come
    first while codes are made: Triton then gives neighbouring threads neighbouring codebooks (it breaks ties between
    axes that way), and the one-hot rows behind need no wide exchange.
    """
    inside = books < codebooks
    both = inside[:, None] & (rows < n)[None, :]
    base = (A + rows * a_row)[None, :]
    j0 = tl.load(J + books, mask=inside, other=0).to(tl.int64) * a_col
    j1 = tl.load(J + codebooks + books, mask=inside, other=0).to(tl.int64) * a_col
    j2 = tl.load(J + 2 * codebooks + books, mask=inside, other=0).to(tl.int64) * a_col
    j3 = tl.load(J + 3 * codebooks + books, mask=inside, other=0).to(tl.int64) * a_col
    x0 = tl.load(base + j0[:, None], mask=both, other=0.0).to(tl.float32)
    x1 = tl.load(base + j1[:, None], mask=both, other=0.0).to(tl.float32)
    x2 = tl.load(base + j2[:, None], mask=both, other=0.0).to(tl.float32)
    x3 = tl.load(base + j3[:, None], mask=both, other=0.0).to(tl.float32)
    tree = 16 * books[:, None] + tl.zeros_like(both).to(tl.int32)
    node = (x0 >= tl.load(V + tree, mask=both, other=0.0)).to(tl.int32)
    node = 2 * node + (x1 >= tl.load(V + tree + 1 + node, mask=both, other=0.0)).to(tl.int32)
    node = 2 * node + (x2 >= tl.load(V + tree + 3 + node, mask=both, other=0.0)).to(tl.int32)
    node = 2 * node + (x3 >= tl.load(V + tree + 7 + node, mask=both, other=0.0)).to(tl.int32)
    return tl.trans(node)


@triton.jit
def encode_kernel(
    A: tl.tensor,
    J: tl.tensor,
    V: tl.tensor,
    codes: tl.tensor,
    n: tl.tensor,
    codebooks: tl.tensor,
    a_row: tl.tensor,
    a_col: tl.tensor,
    c_row: tl.tensor,
    c_col: tl.tensor,
    PACKED: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
) -> None:
    """Codes of A [n, D] (any strides) as uint8 [n, C], or with PACKED [n, ceil(C / 2)], the even codebook low.

    A program makes BM rows of BC bytes.
    """
    width = (codebooks + 1) // 2 if PACKED else codebooks
    across = tl.cdiv(width, BC)
    pid = tl.program_id(0)
    rows = (pid // across).to(tl.int64) * BM + tl.arange(0, BM)
    places = (pid % across) * BC + tl.arange(0, BC)
    if PACKED:
        low = tree_codes(A, J, V, rows, 2 * places, n, codebooks, a_row, a_col)
        high = tree_codes(A, J, V, rows, 2 * places + 1, n, codebooks, a_row, a_col)
        made = low + 16 * tl.where((2 * places + 1 < codebooks)[None, :], high, 0)
    else:
        made = tree_codes(A, J, V, rows, places, n, codebooks, a_row, a_col)
    target = codes + rows[:, None] * c_row + places[None, :].to(tl.int64) * c_col
    tl.store(target, made.to(tl.uint8), mask=(rows < n)[:, None] & (places < width)[None, :])


@triton.jit
def finish(
    Y: tl.tensor,
    S: tl.tensor,
    O: tl.tensor,  # noqa: E741
    total: tl.tensor,
    rows: tl.tensor,
    cols: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    y_row: tl.tensor,
    RAW: tl.constexpr,
) -> None:
    """Store the integer sums ``total`` [BM, BN], or ``total S + O`` rounded as two float32 operations."""
    inside = (rows < n)[:, None] & (cols < m)[None, :]
    target = Y + rows[:, None] * y_row + cols[None, :]
    if RAW:
        tl.store(target, total.to(Y.dtype.element_ty), mask=inside)
    else:
        scale = tl.load(S + cols, mask=cols < m, other=0.0)
        offset = tl.load(O + cols, mask=cols < m, other=0.0)
        y = total.to(tl.float32) * scale[None, :] + offset[None, :]
        tl.store(target, y.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def lookup_kernel(
    codes: tl.tensor,
    T: tl.tensor,
    S: tl.tensor,
    O: tl.tensor,  # noqa: E741
    Y: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    codebooks: tl.tensor,
    words: tl.tensor,
    c_row: tl.tensor,
    c_col: tl.tensor,
    y_row: tl.tensor,
    PACKED: tl.constexpr,
    RAW: tl.constexpr,
    BM: tl.constexpr,
    BW: tl.constexpr,
) -> None:
    """``Y[i, :] = sum over c of T[c, codes[i, c], :]`` for BM rows and 4 BW outputs a program.

    T [C, 16, words] int32 holds four outputs' bytes a word. Even and odd bytes are added in two words of two 16-bit
    sums each, which cannot overflow for C <= 257. The BW words of every entry stay in the first-level cache.
    """
    across = tl.cdiv(words, BW)
    pid = tl.program_id(0)
    rows = (pid // across).to(tl.int64) * BM + tl.arange(0, BM)
    first = (pid % across) * BW
    at = first + tl.arange(0, BW)
    even = tl.zeros((BM, BW), dtype=tl.int32)
    odd = tl.zeros((BM, BW), dtype=tl.int32)
    valid = rows < n
    for c in range(codebooks):
        if PACKED:
            byte = tl.load(codes + rows * c_row + (c // 2) * c_col, mask=valid, other=0).to(tl.int32)
            code = (byte >> (4 * (c % 2))) & 15
        else:
            code = tl.load(codes + rows * c_row + c * c_col, mask=valid, other=0).to(tl.int32)
        entry = T + (c * 16 + code)[:, None] * words + at[None, :]
        word = tl.load(entry, mask=(at < words)[None, :], other=0)
        even += word & 0x00FF00FF
        odd += (word >> 8) & 0x00FF00FF
    y02 = tl.interleave(even & 0xFFFF, (even >> 16) & 0xFFFF)
    y13 = tl.interleave(odd & 0xFFFF, (odd >> 16) & 0xFFFF)
    cols = 4 * first + tl.arange(0, 4 * BW)
    finish(Y, S, O, tl.interleave(y02, y13), rows, cols, n, m, y_row, RAW)


@triton.jit
def tile(tiles_m: tl.tensor, tiles_n: tl.tensor, GROUP: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """This program's tile, GROUP rows of tiles at a time so that they share what the L2 cache holds."""
    pid = tl.program_id(0)
    first = pid // (GROUP * tiles_n) * GROUP
    height = tl.minimum(GROUP, tiles_m - first)
    local = pid % (GROUP * tiles_n)
    return first + local % height, local // height


@triton.jit
def word(code: tl.tensor, quarter: tl.constexpr, one: tl.constexpr) -> tl.tensor:
    """Four bytes of a one-hot row of 16: byte j of the result is ``one`` where ``code == 4 quarter + j``."""
    shift = 8 * code - 32 * quarter
    near = (shift >= 0) & (shift < 32)
    return tl.where(near, one << tl.where(near, shift, 0), 0)


@triton.jit
def byte(words: tl.tensor, j: tl.constexpr) -> tl.tensor:
    """Byte j of each word, as int8."""
    return ((words >> (8 * j)) & 255).to(tl.uint8).to(tl.int8, bitcast=True)


@triton.jit
def column_of(w0: tl.tensor, w1: tl.tensor, w2: tl.tensor, w3: tl.tensor, j: tl.constexpr) -> tl.tensor:
    """[BM, BC, 2, 2]: byte j of the four words of each row of 16."""
    return tl.join(tl.join(byte(w0, j), byte(w2, j)), tl.join(byte(w1, j), byte(w3, j)))


@triton.jit
def onehot(code: tl.tensor, kind: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr) -> tl.tensor:
    """[BM, 16 BC] ones and zeros of a dtype from codes [BM, BC]; a code outside 0..15 gives zeros.

    Bytes are made four in a word, and joined so that a thread holds all 16 of a code: one wide store to shared
    memory instead of sixteen. Bits 0x38 are 1.0 in float8 e4m3.
    """
    if kind.primitive_bitwidth == 8:
        one: tl.constexpr = 0x38 if kind.is_fp8() else 1
        w0 = word(code, 0, one)
        w1 = word(code, 1, one)
        w2 = word(code, 2, one)
        w3 = word(code, 3, one)
        even = tl.join(column_of(w0, w1, w2, w3, 0), column_of(w0, w1, w2, w3, 2))
        odd = tl.join(column_of(w0, w1, w2, w3, 1), column_of(w0, w1, w2, w3, 3))
        hot = tl.reshape(tl.join(even, odd), (BM, 16 * BC)).to(kind, bitcast=True)
    else:
        hot = tl.reshape((code[:, :, None] == tl.arange(0, 16)[None, None, :]).to(kind), (BM, 16 * BC))
    return hot


@triton.jit
def onehot_kernel(
    source: tl.tensor,
    J: tl.tensor,
    V: tl.tensor,
    T: tl.tensor,
    S: tl.tensor,
    O: tl.tensor,  # noqa: E741
    Y: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    codebooks: tl.tensor,
    depth: tl.tensor,
    plane: tl.tensor,
    s_row: tl.tensor,
    s_col: tl.tensor,
    y_row: tl.tensor,
    FUSED: tl.constexpr,
    PACKED: tl.constexpr,
    SHIFT: tl.constexpr,
    SPLIT: tl.constexpr,
    RAW: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    """``Y = G T``, G the one-hot form of the codes; ``source`` holds codes, or A itself with FUSED.

    T [M', depth] (M' a multiple of BN, depth one of 16 BC, zeros beyond C and m; 8-bit products want both operands
    contiguous in depth) holds tables as int8 shifted by -SHIFT, or as bfloat16, float16 or float8; with SPLIT two
    planes, ``plane`` entries apart, of the high and low four bits (float8 holds integers to 16 only). A codebook
    beyond C has code -1, an empty one-hot. int8 sums in int32. Floats sum in float32 what needs 16 bits at most, or 12
    with SPLIT, which a float8 product's 14-bit accumulator on Hopper holds (DeepSeek-V3, arXiv 2412.19437, 3.3.2).
    """
    tile_m, tile_n = tile(tl.cdiv(n, BM), tl.cdiv(m, BN), GROUP)
    rows = tile_m.to(tl.int64) * BM + tl.arange(0, BM)
    first = tile_n.to(tl.int64) * BN
    ks = tl.arange(0, 16 * BC)
    entries = T + (first + tl.arange(0, BN))[:, None] * depth + ks[None, :]
    kind = tl.int32 if T.dtype.element_ty == tl.int8 else tl.float32
    acc = tl.zeros((BM, BN), dtype=kind)
    acc_low = tl.zeros((BM, BN), dtype=kind)
    valid = rows < n
    for start in range(0, codebooks, BC):
        books = start + tl.arange(0, BC)
        if FUSED:
            code = tree_codes(source, J, V, rows, books, n, codebooks, s_row, s_col)
            code = tl.where((books < codebooks)[None, :], code, -1)
        else:
            places = books // 2 if PACKED else books
            at = source + rows[:, None] * s_row + places[None, :].to(tl.int64) * s_col
            inside = valid[:, None] & (books < codebooks)[None, :]
            if PACKED:
                code = (tl.load(at, mask=inside, other=0).to(tl.int32) >> (4 * (books % 2))[None, :]) & 15
                code = tl.where(inside, code, -1)
            else:
                code = tl.load(at, mask=inside, other=255).to(tl.int32)
        hot = onehot(code, T.dtype.element_ty, BM, BC)
        table = tl.load(entries)
        acc = tl.dot(hot, tl.trans(table), acc, out_dtype=kind)
        if SPLIT:
            low = tl.load(entries + plane)
            acc_low = tl.dot(hot, tl.trans(low), acc_low, out_dtype=kind)
        entries += 16 * BC
    if SPLIT:
        acc = 16 * acc + acc_low
    total = acc.to(tl.int32) + SHIFT * codebooks
    cols = first + tl.arange(0, BN)
    finish(Y, S, O, total, rows, cols, n, m, y_row, RAW)

// Rows cut into subspaces, for encoding by the nearest of 16 centroids (nearest.cpp).
#pragma once
#include <cstring>
#include <vector>

#include "amm.h"
#include "source.h"

namespace amm {

// Columns of whole subspaces, staged block by block where rows do not lie together.
struct Subspaces {
    const float* a;
    int64_t n, d, row_stride, col_stride;
    const int32_t* starts;  // C + 1 of them, from 0 to d
    const float* own;       // 16 norms and 16 numbers a column for each codebook, one after another
    int codebooks;
    std::vector<int32_t> groups, slots;  // for Kernels::gather

    const float* codebook(int c) const { return own + kPrototypes * (static_cast<int64_t>(c) + starts[c]); }
};

inline int check_subspaces(const Subspaces& s, int64_t own_elements) {
    if (!s.starts || !s.own || (!s.a && s.n > 0)) return kNull;
    if (s.n < 0 || s.d < 1 || s.d > INT32_MAX - 8) return kSize;
    if (s.codebooks < 1 || s.codebooks > kMaxTrees) return kCodebooks;
    if (s.starts[0] != 0 || s.starts[s.codebooks] != s.d) return kColumn;
    for (int c = 0; c < s.codebooks; ++c)
        if (s.starts[c + 1] < s.starts[c]) return kColumn;
    return own_elements < kPrototypes * (s.codebooks + s.d) ? kBuffer : kOk;
}

inline void group_columns(Subspaces& s) {
    if (s.col_stride != 1 || s.d < 4) return;
    for (int64_t j = 0; j < s.d; j += 4) {
        const int32_t start = static_cast<int32_t>(j + 4 <= s.d ? j : s.d - 4);
        s.groups.push_back(start);
        for (int32_t i = 0; i < 4; ++i) s.slots.push_back(start + i < j ? -1 : start + i);
    }
}

// Asks for `lines` runs of `floats` floats: what a later block reads, while the present one computes.
inline void ask(const float* first, int64_t stride, int64_t lines, int64_t floats) {
    for (int64_t i = 0; i < lines; ++i)
        for (int64_t j = 0; j < floats; j += 16) __builtin_prefetch(first + i * stride + j, 0, 2);
}

inline void nearest_columns(const Subspaces& s, Nearest nearest, Span span, uint8_t* codes) {
    const float* base = s.a + span.row;
    for (int c = 0; c < s.codebooks; ++c) {
        const float* x = base + s.starts[c] * s.col_stride;
        const int columns = s.starts[c + 1] - s.starts[c];
        const int after = c + 1 < s.codebooks ? s.starts[c + 2] - s.starts[c + 1] : 0;
        for (int b = 0; b < span.rows / kBlock; ++b) {
            ask(x + columns * s.col_stride + b * kBlock, s.col_stride, after, kBlock);
            nearest(x + b * kBlock, s.col_stride, s.codebook(c), columns,
                    codes + b * code_bytes(s.codebooks) + c * kBlock);
        }
    }
}

inline void nearest_span(const Kernels& k, Nearest nearest, const Subspaces& s, Span span, uint8_t* codes) {
    std::memset(codes, 0, static_cast<size_t>(span.rows / kBlock * code_bytes(s.codebooks)));
    if (s.row_stride == 1 && span.valid == span.rows)
        return nearest_columns(s, nearest, span, codes);
    float* stage = static_cast<float*>(stage_scratch.take(static_cast<size_t>(s.d) * kBlock * sizeof(float)));
    for (int r = 0; r < span.rows; r += kBlock) {
        const float* from = s.a + (span.row + r) * s.row_stride;
        const int valid = span.valid - r < kBlock ? span.valid - r : kBlock;
        if (!s.groups.empty() && valid == kBlock)
            k.gather(from, s.row_stride, s.groups.data(), s.slots.data(), static_cast<int>(s.groups.size()), kBlock,
                     stage, kBlock);
        else
            for (int64_t j = 0; j < s.d; ++j)
                for (int i = 0; i < kBlock; ++i)  // no score is less than NaN: rows beyond the last get code 0
                    stage[j * kBlock + i] =
                        i < valid ? from[i * s.row_stride + j * s.col_stride] : __builtin_nanf("");
        const bool more = s.col_stride == 1 && span.row + r + 2 * kBlock <= s.n;
        for (int c = 0; c < s.codebooks; ++c) {
            const int columns = s.starts[c + 1] - s.starts[c];
            if (more) ask(from + kBlock * s.row_stride + s.starts[c], s.row_stride, kBlock, columns);
            nearest(stage + s.starts[c] * kBlock, kBlock, s.codebook(c), columns,
                    codes + r / kBlock * code_bytes(s.codebooks) + c * kBlock);
        }
    }
}

}  // namespace amm

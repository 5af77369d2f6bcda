// Rows of bytes on their way to trees over them (bytes.cpp).
#pragma once
#include <cstring>
#include <vector>

#include "amm.h"
#include "source.h"

namespace amm {

// Rows of bytes and the trees over them.
struct Pictures {
    const uint8_t* a;
    int64_t n, row_stride, col_stride;
    const int32_t* columns;  // [C, 4]
    const uint8_t* own;      // 32 bytes a codebook, see bytes.cpp
    int codebooks;
    std::vector<int32_t> used, slots;            // touched columns in order; where each of `columns` stands among them
    std::vector<int32_t> starts, slots_of_groups;  // for columns_of_bytes: 16 columns each
};

inline bool prepare_pictures(Pictures& s, int64_t d) {
    std::vector<int32_t> slot(static_cast<size_t>(d), -1);
    for (int i = 0; i < 4 * s.codebooks; ++i) {
        if (s.columns[i] < 0 || s.columns[i] >= d) return false;
        slot[static_cast<size_t>(s.columns[i])] = 0;
    }
    for (int32_t j = 0; j < d; ++j)
        if (slot[static_cast<size_t>(j)] == 0) {
            slot[static_cast<size_t>(j)] = static_cast<int32_t>(s.used.size());
            s.used.push_back(j);
        }
    s.slots.resize(4 * static_cast<size_t>(s.codebooks));
    for (int i = 0; i < 4 * s.codebooks; ++i) s.slots[i] = slot[static_cast<size_t>(s.columns[i])];
    if (s.col_stride != 1 || d < 16) return true;
    for (int32_t j : s.used) {
        const int32_t start = j / 16 * 16 + 16 <= d ? j / 16 * 16 : static_cast<int32_t>(d) - 16;
        if (s.starts.empty() || s.starts.back() != start) {
            s.starts.push_back(start);
            s.slots_of_groups.insert(s.slots_of_groups.end(), 16, -1);
        }
        s.slots_of_groups[s.slots_of_groups.size() - 16 + static_cast<size_t>(j - start)] = slot[static_cast<size_t>(j)];
    }
    return true;
}

inline void walk_block(const Pictures& s, WalkBytes walk, const uint8_t* base, int64_t stride, const int32_t* columns,
                int codebook, uint8_t* codes) {
    const int32_t* j = columns + 4 * codebook;
    const uint8_t* const x[4] = {base + j[0] * stride, base + j[1] * stride, base + j[2] * stride, base + j[3] * stride};
    walk(x, s.own + 2 * kPrototypes * codebook, codes);
}

inline void stage_bytes(const Pictures& s, bool vectors, const uint8_t* from, int valid, uint8_t* stage) {
#if defined(__x86_64__)
    if (vectors && valid == kBlock && !s.starts.empty())
        return columns_of_bytes_avx2(from, s.row_stride, s.starts.data(), s.slots_of_groups.data(),
                                     static_cast<int>(s.starts.size()), stage);
#endif
    (void)vectors;
    for (int i = 0; i < valid; ++i, from += s.row_stride)
        for (size_t j = 0; j < s.used.size(); ++j) stage[j * kBlock + i] = from[s.used[j] * s.col_stride];
}

inline void walk_span(const Pictures& s, WalkBytes walk, bool vectors, Span span, uint8_t* codes) {
    const int64_t step = code_bytes(s.codebooks);
    std::memset(codes, 0, static_cast<size_t>(span.rows / kBlock * step));
    if (s.row_stride == 1 && span.valid == span.rows) {
        for (int c = 0; c < s.codebooks; ++c)
            for (int b = 0; b < span.rows / kBlock; ++b)
                walk_block(s, walk, s.a + span.row + b * kBlock, s.col_stride, s.columns, c,
                           codes + b * step + c * kBlock);
        return;
    }
    uint8_t* stage = static_cast<uint8_t*>(stage_scratch.take(s.used.size() * kBlock));
    for (int r = 0; r < span.rows; r += kBlock, codes += step) {
        const int valid = span.valid - r < kBlock ? span.valid - r : kBlock;
        stage_bytes(s, vectors, s.a + (span.row + r) * s.row_stride, valid, stage);
        for (int c = 0; c < s.codebooks; ++c) {
            walk_block(s, walk, stage, kBlock, s.slots.data(), c, codes + c * kBlock);
            for (int i = valid; i < kBlock; ++i) codes[c * kBlock + i] = 0;
        }
    }
}

}  // namespace amm

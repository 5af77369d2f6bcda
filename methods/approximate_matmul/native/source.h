// Rows of A as the kernels want them: chunks, the columns that a tree reads, staging of rows into columns.
#pragma once
#include <cstdlib>
#include <new>
#include <vector>

#include "amm.h"

namespace amm {

constexpr int64_t kAheadBytes = 256 * 1024;  // of the next chunk's input: what half of a small L2 holds

// Scratch that a thread keeps between chunks and calls.
struct Scratch {
    void* data = nullptr;
    size_t size = 0;
    ~Scratch() { std::free(data); }
    void* take(size_t bytes) {
        if (bytes > size) {
            std::free(data);
            size = 0;
            data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
            if (!data) throw std::bad_alloc();
            size = bytes;
        }
        return data;
    }
};
inline thread_local Scratch code_scratch, stage_scratch, tile_scratch, row_scratch;

struct Span {
    int64_t row;
    int valid, rows;  // rows = valid rounded up to a block
};

// Whole blocks first, then the last rows, fewer than a block, on their own.
struct Spans {
    int64_t whole, n;
    int step;
    Spans(int64_t n_, int step_) : whole(n_ / kBlock * kBlock), n(n_), step(step_) {}
    int64_t count() const { return (whole + step - 1) / step + (whole < n ? 1 : 0); }
    Span at(int64_t i) const {
        const int64_t row = i * step;
        if (row >= whole) return {whole, static_cast<int>(n - whole), kBlock};
        const int rows = static_cast<int>(whole - row < step ? whole - row : step);
        return {row, rows, rows};
    }
};

struct Source {
    const float* a;
    int64_t n, row_stride, col_stride;
    int codebooks;
    const int32_t* columns;
    std::vector<float> own;                       // thresholds
    std::vector<int32_t> used, slots_of_columns;  // touched columns in order; slot of column (c, t)
    std::vector<int32_t> groups, slots;           // for Kernels::gather
    std::vector<int32_t> lines;                   // cache lines of a row that are read, as its elements
};

inline bool prepare_source(const Kernels& k, Source& s, int64_t d, const float* thresholds) {
    for (int i = 0; i < 4 * s.codebooks; ++i)
        if (s.columns[i] < 0 || s.columns[i] >= d) return false;
    s.own.assign(32 * static_cast<size_t>(s.codebooks), 0.0f);
    k.thresholds(thresholds, s.codebooks, s.own.data());
    if (s.row_stride == 1 && s.n % kBlock == 0) return true;  // nothing is ever staged
    std::vector<int32_t> slot(static_cast<size_t>(d), -1);
    for (int i = 0; i < 4 * s.codebooks; ++i) slot[s.columns[i]] = 0;
    const int32_t last = static_cast<int32_t>(d) - 4;
    for (int64_t j = 0; j < d; ++j) {
        if (slot[j] < 0) continue;
        slot[j] = static_cast<int32_t>(s.used.size());
        s.used.push_back(static_cast<int32_t>(j));
        const int32_t start = static_cast<int32_t>(j / 4 * 4) < last ? static_cast<int32_t>(j / 4 * 4) : last;
        if (s.groups.empty() || s.groups.back() != start) {
            s.groups.push_back(start);
            s.slots.insert(s.slots.end(), 4, -1);
        }
        s.slots[s.slots.size() - 4 + (j - start)] = slot[j];
    }
    for (int32_t start : s.groups)
        if (s.lines.empty() || s.lines.back() != start / 16 * 16) s.lines.push_back(start / 16 * 16);
    s.slots_of_columns.resize(4 * static_cast<size_t>(s.codebooks));
    for (int i = 0; i < 4 * s.codebooks; ++i) s.slots_of_columns[i] = slot[s.columns[i]];
    return true;
}

// What `next` will read, for as long as the present span is looked up.
inline Ahead ahead_of(const Source& s, Span next) {
    Ahead a;
    if (s.row_stride == 1 && next.valid == next.rows) {
        a.base = s.a + next.row;
        a.stride = s.col_stride;
        a.which = s.columns;
        a.n = (next.rows + 15) / 16;
        a.units = 4 * s.codebooks;
    } else if (s.col_stride == 1 && !s.lines.empty()) {
        a.rows = true;
        a.base = s.a + next.row * s.row_stride;
        a.stride = s.row_stride;
        a.which = s.lines.data();
        a.n = static_cast<int>(s.lines.size());
        a.units = next.valid;
    }
    const int64_t most = a.n ? kAheadBytes / (64 * a.n) : 0;
    if (a.units > most) a.units = static_cast<int>(most);
    return a;
}

// `far`: rows to the chunk that this thread probably encodes next; 0: it is fetched otherwise.
inline void encode_span(const Kernels& k, const Source& s, int64_t d, Span span, int64_t far, uint8_t* codes) {
    if (s.row_stride == 1 && span.valid == span.rows) {
        k.encode({s.a + span.row, s.col_stride, far}, s.columns, s.own.data(), s.codebooks, span.rows, codes);
        return;
    }
    float* stage = static_cast<float*>(stage_scratch.take(s.used.size() * kBlock * sizeof(float)));
    for (int r = 0; r < span.rows; r += kBlock) {
        const float* from = s.a + (span.row + r) * s.row_stride;
        const int valid = span.valid - r < kBlock ? span.valid - r : kBlock;
        if (s.col_stride == 1 && valid == kBlock && d >= 4) {
            k.gather(from, s.row_stride, s.groups.data(), s.slots.data(), static_cast<int>(s.groups.size()), kBlock,
                     stage, kBlock);
        } else {
            for (size_t j = 0; j < s.used.size(); ++j)
                for (int i = 0; i < kBlock; ++i)  // a NaN compares false: rows beyond the last get code 0
                    stage[j * kBlock + i] =
                        i < valid ? from[i * s.row_stride + s.used[j] * s.col_stride] : __builtin_nanf("");
        }
        k.encode({stage, kBlock, 0}, s.slots_of_columns.data(), s.own.data(), s.codebooks, kBlock,
                 codes + r / kBlock * code_bytes(s.codebooks));
    }
}

inline int check_source(const Source& s, int64_t d, const float* thresholds) {
    if (!s.columns || !thresholds || (!s.a && s.n > 0)) return kNull;
    if (s.n < 0 || d < 1 || d > INT32_MAX - 8) return kSize;
    return s.codebooks < 1 || s.codebooks > kMaxTrees ? kCodebooks : kOk;
}

}  // namespace amm

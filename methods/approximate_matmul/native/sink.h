// Sums on their way into the caller's memory: which lines, in what order, asked for when.
#pragma once
#include <algorithm>
#include <atomic>
#include <climits>
#include <cstring>

#include "amm.h"
#include "source.h"

namespace amm {

// What only a measurement can judge; amm_set_habits switches it.
enum Habit { kAsking = 1, kFetching = 2 };
inline std::atomic<int> habits{kAsking | kFetching};

constexpr int64_t kAskedBytes = 128 * 1024;  // never more: the second-level cache also holds tables and input
constexpr int64_t kNearBytes = 1 << 20;      // outputs that such a cache holds anyway
constexpr int kNearRows = 4 * kBlock, kNearWidth = 104;  // rows of tiles whose lines should be whole before they leave
constexpr int64_t kFewRows = 128;            // for fewer, tables in another order are not worth their making

struct Sink {
    int m, codebooks, aggregation, upcast, kind;
    const uint8_t* tables;
    const float *scale, *offset;
    void* out;
    int64_t stride, n;
    uint8_t* own;  // tables in the kernels' own order

    Sink(int m_, int codebooks_, int aggregation_, int upcast_, int kind_, const uint8_t* tables_, const float* scale_,
         const float* offset_, void* out_, int64_t stride_, int64_t n_)
        : m(m_), codebooks(codebooks_), aggregation(aggregation_), upcast(upcast_), kind(kind_), tables(tables_),
          scale(scale_), offset(offset_), out(out_), stride(stride_), n(n_),
          own(nullptr) {}

    void order(const Kernels& k, Scratch& room) {
        if (!k.tables || kind != kFloat || n < kFewRows) return;
        own = static_cast<uint8_t*>(room.take(static_cast<size_t>(m) * static_cast<size_t>(padded(codebooks)) * kPrototypes));
        k.tables(tables, codebooks, m, own);
    }
};

inline void narrow(const Kernels& k, const void* tile, Span span, int outputs, uint8_t* out, int64_t stride) {
    uint16_t wide[kChunk * kGroup];
    k.store_u16(tile, span.rows, span.valid, outputs, wide, kGroup);
    for (int r = 0; r < span.valid; ++r)
        for (int o = 0; o < outputs; ++o) {
            const uint16_t v = wide[r * kGroup + o];
            out[r * stride + o] = static_cast<uint8_t>(v < 255 ? v : 255);
        }
}

inline void store_group(const Kernels& k, const Sink& s, Span span, int first, int outputs, const char* tile) {
    const int64_t at = span.row * s.stride + first;
    if (s.kind == kFloat)
        k.store_f32(tile, span.rows, span.valid, outputs, s.scale + first, s.offset + first,
                    static_cast<float*>(s.out) + at, s.stride);
    else if (s.kind == kU16)
        k.store_u16(tile, span.rows, span.valid, outputs, static_cast<uint16_t*>(s.out) + at, s.stride);
    else
        narrow(k, tile, span, outputs, static_cast<uint8_t*>(s.out) + at, s.stride);
}

inline void store_columns(const Kernels& k, const Sink& s, Span span, int first, int outputs, const char* tile) {
    const int64_t output_bytes = static_cast<int64_t>(span.rows) * k.tile_bytes;
    for (int o = 0; o < outputs; ++o) {
        uint16_t* to = static_cast<uint16_t*>(s.out) + (first + o) * s.stride + span.row;
        if (span.valid == span.rows) {
            k.column_u16(tile + o * output_bytes, span.rows, to);
            continue;
        }
        uint16_t spare[kBlock];
        k.column_u16(tile + o * output_bytes, span.rows, spare);
        std::memcpy(to, spare, sizeof(uint16_t) * static_cast<size_t>(span.valid));
    }
}

// The last rows, fewer than a block, through a block of their own.
inline void scan_rest(const Kernels& k, const Sink& s, Span span, const uint8_t* codes) {
    constexpr int outputs = 64;
    const int64_t table_bytes = static_cast<int64_t>(padded(s.codebooks)) * kPrototypes;
    const bool columns = s.kind == kU16Columns;
    const int64_t element = s.kind == kFloat ? 4 : s.kind == kU8 ? 1 : 2, stride = columns ? kBlock : outputs;
    char* spare = static_cast<char*>(tile_scratch.take(kBlock * outputs * sizeof(float)));
    for (int first = 0; first < s.m; first += outputs) {
        const int m = s.m - first < outputs ? s.m - first : outputs;
        const float* scale = s.kind == kFloat ? s.scale + first : nullptr;
        const float* offset = s.kind == kFloat ? s.offset + first : nullptr;
        k.scan({codes, s.tables + first * table_bytes, s.codebooks, kBlock, m, s.kind, scale, offset, spare, stride,
                nullptr, nullptr});
        const int64_t at = columns ? first * s.stride + span.row : span.row * s.stride + first;
        char* to = static_cast<char*>(s.out) + element * at;
        for (int i = 0; i < (columns ? m : span.valid); ++i)
            std::memcpy(to + element * i * s.stride, spare + element * i * stride,
                        static_cast<size_t>(element * (columns ? span.valid : m)));
    }
}

// Groups of kGroup outputs; the last takes the remainder with it, so that two overlapping whole stores cover it.
inline void scan_tiles(const Kernels& k, const Sink& s, Span span, const uint8_t* codes, Beside* beside, double from,
                       double to) {
    const int64_t table_bytes = static_cast<int64_t>(padded(s.codebooks)) * kPrototypes;
    const int64_t output_bytes = static_cast<int64_t>(span.rows) * k.tile_bytes;
    char* tile = static_cast<char*>(tile_scratch.take(static_cast<size_t>(2 * kGroup * output_bytes)));
    for (int first = 0; first < s.m;) {
        int outputs = s.m - first;
        if (outputs >= 2 * kGroup) outputs = kGroup;
        k.sums(codes, s.tables + first * table_bytes, s.codebooks, span.rows, outputs, s.aggregation, s.upcast,
               tile);
        if (s.kind == kU16Columns) {
            store_columns(k, s, span, first, outputs, tile);
        } else {
            const int extra = outputs > kGroup ? outputs - kGroup : 0;
            store_group(k, s, span, first, outputs - extra, tile);
            if (extra) store_group(k, s, span, first + extra, kGroup, tile + extra * output_bytes);
        }
        first += outputs;
        if (beside) beside->at(from + (to - from) * static_cast<double>(first) / s.m);
    }
}

// Rows that tiles of all outputs cover before the next rows do: the lines that they write in pieces should stay near
// until they are whole.
inline int rows_of_tiles(const Sink& s, Span span) {
    return s.kind == kFloat && s.m > 64 && s.m <= kNearWidth ? std::min(kNearRows, span.rows) : span.rows;
}

// Up to where this thread has asked for lines: its next span goes on there.
inline thread_local const char* asked = nullptr;

// The lines that a span's outputs fill are asked for a little before they are written, else every store waits for its
// line; the first lines of the next span too if this thread goes on with it.
inline void ask_for_outputs(const Kernels& k, const Sink& s, Span span, bool alone, Beside& beside) {
    const int64_t row = s.m * (s.kind == kFloat ? 4 : s.kind == kU8 ? 1 : 2);
    int64_t lead = row * (k.scan ? pass_rows(s.m, s.codebooks) : rows_of_tiles(s, span));
    if (k.scan && lead > kAskedBytes) lead = row * 2 * kBlock;  // a part of a long pass is better than none
    if (!(habits & kAsking) || s.kind == kU16Columns || s.stride != s.m) return;
    if (s.n * row <= kNearBytes || lead > kAskedBytes) return;
    const char* out = static_cast<const char*>(s.out);
    beside.begin = out + span.row * row;
    beside.bytes = span.rows * row;
    beside.lead = lead;
    beside.end = out + (alone ? s.n : span.row + span.valid) * row;
    const bool on = asked >= beside.begin && asked <= beside.begin + beside.lead;
    beside.next = on ? asked : beside.begin;
}

inline void scan_span(const Kernels& k, const Sink& s, Span span, const uint8_t* codes, Beside& beside, bool alone) {
    if (span.valid < span.rows) return k.scan ? scan_rest(k, s, span, codes) : scan_tiles(k, s, span, codes, nullptr, 0, 1);
    ask_for_outputs(k, s, span, alone, beside);
    if (!k.scan) {
        const int step = rows_of_tiles(s, span);
        for (int r = 0; r < span.rows; r += step) {
            const int rows = span.rows - r < step ? span.rows - r : step;
            const double from = static_cast<double>(r) / span.rows, to = static_cast<double>(r + rows) / span.rows;
            scan_tiles(k, s, {span.row + r, rows, rows}, codes + r / kBlock * code_bytes(s.codebooks), &beside, from, to);
        }
        asked = beside.next;
        return;
    }
    const int64_t element = s.kind == kFloat ? 4 : s.kind == kU8 ? 1 : 2;
    const int64_t at = s.kind == kU16Columns ? span.row : span.row * s.stride;
    k.scan({codes, s.tables, s.codebooks, span.rows, s.m, s.kind, s.scale, s.offset,
            static_cast<char*>(s.out) + element * at, s.stride, &beside, s.own});
    asked = beside.next;
}

inline int check_sink(int64_t n, const Sink& s, int64_t tables_bytes, int64_t out_elements) {
    if (!s.tables || !s.out || (s.kind == kFloat && (!s.scale || !s.offset))) return kNull;
    if (s.m < 1 || n < 0) return kSize;
    if (s.kind < kFloat || s.kind > kU8) return kOutput;
    const int u = s.upcast;
    if (s.aggregation == kAverage) {
        if (u < 1 || u > kMaxUpcast || (u & (u - 1)) || s.codebooks % u) return kUpcast;
    } else if (s.aggregation != kExact) {
        return kUpcast;
    }
    if (s.codebooks < 1 || s.codebooks / (s.aggregation == kAverage ? u : 1) > kMaxCodebooks) return kCodebooks;
    if (tables_bytes < static_cast<int64_t>(s.m) * padded(s.codebooks) * kPrototypes) return kBuffer;
    const int64_t lines = s.kind == kU16Columns ? s.m : n, width = s.kind == kU16Columns ? n : s.m;
    if (s.stride < width || s.stride > INT64_MAX / 8 / (lines > 0 ? lines : 1)) return kSize;
    if (lines > 0 && width > 0 && out_elements < (lines - 1) * s.stride + width) return kBuffer;
    return kOk;
}

}  // namespace amm

// The C interface: checks every size, picks the level, cuts rows into chunks and shares them among threads.
//
// All functions return 0 or an error code of `Error`; binding.py turns the codes into words. Strides are in elements.
#include <atomic>
#include <chrono>
#include <climits>
#include <cstring>
#include <exception>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "amm.h"
#include "pool.h"
#include "source.h"

namespace amm {
namespace {

enum Error {
    kOk = 0, kNull = 1, kSize = 2, kColumn = 3, kBuffer = 4, kCodebooks = 5, kUpcast = 6, kMemory = 7, kLevel = 8,
    kOutput = 9
};

constexpr int kChunk = kTileRows;            // rows; codes of 64 codebooks and the tables of 8 outputs then fit a 32 KiB L1
constexpr int kEncoded = 1024;         // the same where nothing is looked up
constexpr int kCodeBytes = 16 * 1024;  // fewer rows when codes would take more
constexpr int kMaxTrees = 1 << 15;
constexpr int kMaxUpcast = 128;

int highest_level() {
#if defined(AMM_INTRINSICS)
    return 4;  // emulated, for tests
#elif defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return 1;
    if (!__builtin_cpu_supports("avx512vbmi") || !__builtin_cpu_supports("avx512vnni")) return 2;
    return amx_ready() ? 4 : 3;
#elif defined(__aarch64__)
    return 1;
#else
    return 0;
#endif
}

// The quad layout of the top levels serves exact sums only: averages run below them.
const Kernels* kernels(int level, int aggregation) {
    if (level < 0 || level > highest_level()) return nullptr;
#if defined(__x86_64__)
    if (level >= 3 && aggregation == kAverage) level = 2;
    if (level == 4) return &amx_kernels();
    if (level == 3) return &vbmi_kernels();
    if (level == 2) return &avx512_kernels();
    if (level == 1) return &avx2_kernels();
#elif defined(__aarch64__)
    if (level == 1) return &neon_kernels();
#endif
    (void)aggregation;
    return &scalar_kernels();
}

int chunk_rows(int codebooks, int rows = kChunk) {
    while (rows > 64 && static_cast<int64_t>(padded(codebooks)) * rows > kCodeBytes) rows /= 2;
    return rows;
}

// Codes alone: a column's longer runs are what the processor's own fetching is made for, if every thread gets a few.
int encoded_rows(int codebooks, int64_t n, int threads) {
    int rows = kEncoded;
    while (rows > kChunk && n < 4 * static_cast<int64_t>(threads) * rows) rows /= 2;
    return chunk_rows(codebooks, rows);
}

// What only a measurement can judge; amm_set_habits switches it.
enum Habit { kStaging = 1, kFetching = 2 };
constexpr int64_t kStagedBytes = 1 << 20;  // outputs that a second-level cache holds are written as they come
constexpr int kStagedRows = 2 * kBlock;
constexpr int kStagedWidth = 104;  // 26 KiB, so that the first cache also holds the codes; wider rows gained nothing
std::atomic<int> habits{kStaging | kFetching};

constexpr int64_t kFewRows = 128;  // for fewer, tables in another order are not worth their making

struct Sink {
    int m, codebooks, aggregation, upcast, kind;
    const uint8_t* tables;
    const float *scale, *offset;
    void* out;
    int64_t stride;
    bool staged;   // many float32 outputs in short rows that follow each other without gaps
    uint8_t* own;  // tables in the kernels' own order

    Sink(int m_, int codebooks_, int aggregation_, int upcast_, int kind_, const uint8_t* tables_, const float* scale_,
         const float* offset_, void* out_, int64_t stride_, int64_t n)
        : m(m_), codebooks(codebooks_), aggregation(aggregation_), upcast(upcast_), kind(kind_), tables(tables_),
          scale(scale_), offset(offset_), out(out_), stride(stride_),
          staged((habits & kStaging) && kind == kFloat && m <= kStagedWidth && stride == m &&
                 n > kStagedBytes / (4 * (m > 0 ? m : 1))),
          own(nullptr) {}

    void order(const Kernels& k, int64_t n, Scratch& room) {
        if (!k.tables || kind != kFloat || n < kFewRows) return;
        own = static_cast<uint8_t*>(room.take(static_cast<size_t>(m) * static_cast<size_t>(padded(codebooks)) * kPrototypes));
        k.tables(tables, codebooks, m, own);
    }
};

void narrow(const Kernels& k, const void* tile, Span span, int outputs, uint8_t* out, int64_t stride) {
    uint16_t wide[kChunk * kGroup];
    k.store_u16(tile, span.rows, span.valid, outputs, wide, kGroup);
    for (int r = 0; r < span.valid; ++r)
        for (int o = 0; o < outputs; ++o) {
            const uint16_t v = wide[r * kGroup + o];
            out[r * stride + o] = static_cast<uint8_t>(v < 255 ? v : 255);
        }
}

void store_group(const Kernels& k, const Sink& s, Span span, int first, int outputs, const char* tile) {
    const int64_t at = span.row * s.stride + first;
    if (s.kind == kFloat)
        k.store_f32(tile, span.rows, span.valid, outputs, s.scale + first, s.offset + first,
                    static_cast<float*>(s.out) + at, s.stride);
    else if (s.kind == kU16)
        k.store_u16(tile, span.rows, span.valid, outputs, static_cast<uint16_t*>(s.out) + at, s.stride);
    else
        narrow(k, tile, span, outputs, static_cast<uint8_t*>(s.out) + at, s.stride);
}

void store_columns(const Kernels& k, const Sink& s, Span span, int first, int outputs, const char* tile) {
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
void scan_rest(const Kernels& k, const Sink& s, Span span, const uint8_t* codes) {
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
void scan_tiles(const Kernels& k, const Sink& s, Span span, const uint8_t* codes, Ahead* ahead) {
    const int64_t table_bytes = static_cast<int64_t>(padded(s.codebooks)) * kPrototypes;
    const int64_t output_bytes = static_cast<int64_t>(span.rows) * k.tile_bytes;
    char* tile = static_cast<char*>(tile_scratch.take(static_cast<size_t>(2 * kGroup * output_bytes)));
    const int begin = ahead ? ahead->next : 0;
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
        if (ahead) ahead->fetch(begin + static_cast<int>(static_cast<int64_t>(ahead->units - begin) * first / s.m));
    }
}

void scan_whole(const Kernels& k, const Sink& s, Span span, const uint8_t* codes, Ahead* ahead) {
    if (!k.scan) return scan_tiles(k, s, span, codes, ahead);
    const int64_t element = s.kind == kFloat ? 4 : s.kind == kU8 ? 1 : 2;
    const int64_t at = s.kind == kU16Columns ? span.row : span.row * s.stride;
    k.scan({codes, s.tables, s.codebooks, span.rows, s.m, s.kind, s.scale, s.offset,
            static_cast<char*>(s.out) + element * at, s.stride, ahead, s.own});
}

// Past the caches: a line written whole need not be fetched first, and whoever reads a megabyte of outputs begins with
// those that have left them.
void stream(float* to, const float* from, int64_t n) {
#if defined(__x86_64__)
    int64_t i = 0;
    for (; i < n && (reinterpret_cast<uintptr_t>(to + i) & 15); ++i) to[i] = from[i];
    for (; i + 4 <= n; i += 4) _mm_stream_ps(to + i, _mm_loadu_ps(from + i));
    for (; i < n; ++i) to[i] = from[i];
#else
    std::memcpy(to, from, sizeof(float) * static_cast<size_t>(n));
#endif
}

// Some rows at a time in memory that stays in the first cache, then in order to where they belong: groups of outputs
// would fetch and write every line of the caller's memory in pieces, and rows that are no whole lines share them.
void scan_staged(const Kernels& k, const Sink& s, Span span, const uint8_t* codes, Ahead* ahead) {
    const int units = ahead ? ahead->units : 0;
    Sink near = s;
    near.out = row_scratch.take(sizeof(float) * static_cast<size_t>(kStagedRows) * static_cast<size_t>(s.m));
    for (int r = 0; r < span.rows; r += kStagedRows) {
        const int rows = span.rows - r < kStagedRows ? span.rows - r : kStagedRows;
        if (ahead) ahead->units = static_cast<int>(static_cast<int64_t>(units) * (r + rows) / span.rows);
        scan_whole(k, near, {0, rows, rows}, codes + r / kBlock * code_bytes(s.codebooks), ahead);
        stream(static_cast<float*>(s.out) + (span.row + r) * s.stride, static_cast<const float*>(near.out),
               static_cast<int64_t>(rows) * s.m);
    }
#if defined(__x86_64__)
    _mm_sfence();  // such stores keep no order with those that tell others of the end
#endif
}

void scan_span(const Kernels& k, const Sink& s, Span span, const uint8_t* codes, Ahead* ahead = nullptr) {
    if (span.valid < span.rows) return k.scan ? scan_rest(k, s, span, codes) : scan_tiles(k, s, span, codes, ahead);
    if (s.staged) return scan_staged(k, s, span, codes, ahead);
    scan_whole(k, s, span, codes, ahead);
}

int check_sink(int64_t n, const Sink& s, int64_t tables_bytes, int64_t out_elements) {
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

int check_source(const Source& s, int64_t d, const float* thresholds) {
    if (!s.columns || !thresholds || (!s.a && s.n > 0)) return kNull;
    if (s.n < 0 || d < 1 || d > INT32_MAX - 8) return kSize;
    return s.codebooks < 1 || s.codebooks > kMaxTrees ? kCodebooks : kOk;
}

// Runs `work` on every span; the first exception, which can only be want of memory, becomes an error code.
template <class Work>
int each(const Spans& spans, int threads, const Work& work) {
    std::atomic<bool> failed{false};
    share(spans.count(), threads, [&](int64_t i) {
        try {
            work(spans.at(i), i);
        } catch (const std::exception&) {
            failed = true;
        }
    });
    return failed ? kMemory : kOk;
}

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

int check_subspaces(const Subspaces& s, int64_t own_elements) {
    if (!s.starts || !s.own || (!s.a && s.n > 0)) return kNull;
    if (s.n < 0 || s.d < 1 || s.d > INT32_MAX - 8) return kSize;
    if (s.codebooks < 1 || s.codebooks > kMaxTrees) return kCodebooks;
    if (s.starts[0] != 0 || s.starts[s.codebooks] != s.d) return kColumn;
    for (int c = 0; c < s.codebooks; ++c)
        if (s.starts[c + 1] < s.starts[c]) return kColumn;
    return own_elements < kPrototypes * (s.codebooks + s.d) ? kBuffer : kOk;
}

void group_columns(Subspaces& s) {
    if (s.col_stride != 1 || s.d < 4) return;
    for (int64_t j = 0; j < s.d; j += 4) {
        const int32_t start = static_cast<int32_t>(j + 4 <= s.d ? j : s.d - 4);
        s.groups.push_back(start);
        for (int32_t i = 0; i < 4; ++i) s.slots.push_back(start + i < j ? -1 : start + i);
    }
}

// Asks for `lines` runs of `floats` floats: what a later block reads, while the present one computes.
void ask(const float* first, int64_t stride, int64_t lines, int64_t floats) {
    for (int64_t i = 0; i < lines; ++i)
        for (int64_t j = 0; j < floats; j += 16) __builtin_prefetch(first + i * stride + j, 0, 2);
}

void nearest_columns(const Subspaces& s, Nearest nearest, Span span, uint8_t* codes) {
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

void nearest_span(const Kernels& k, Nearest nearest, const Subspaces& s, Span span, uint8_t* codes) {
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

bool prepare_pictures(Pictures& s, int64_t d) {
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

void walk_block(const Pictures& s, WalkBytes walk, const uint8_t* base, int64_t stride, const int32_t* columns,
                int codebook, uint8_t* codes) {
    const int32_t* j = columns + 4 * codebook;
    const uint8_t* const x[4] = {base + j[0] * stride, base + j[1] * stride, base + j[2] * stride, base + j[3] * stride};
    walk(x, s.own + 2 * kPrototypes * codebook, codes);
}

void stage_bytes(const Pictures& s, bool vectors, const uint8_t* from, int valid, uint8_t* stage) {
#if defined(__x86_64__)
    if (vectors && valid == kBlock && !s.starts.empty())
        return columns_of_bytes_avx2(from, s.row_stride, s.starts.data(), s.slots_of_groups.data(),
                                     static_cast<int>(s.starts.size()), stage);
#endif
    (void)vectors;
    for (int i = 0; i < valid; ++i, from += s.row_stride)
        for (size_t j = 0; j < s.used.size(); ++j) stage[j * kBlock + i] = from[s.used[j] * s.col_stride];
}

void walk_span(const Pictures& s, WalkBytes walk, bool vectors, Span span, uint8_t* codes) {
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

uint8_t* codes_for(int codebooks, int rows) {
    return static_cast<uint8_t*>(code_scratch.take(static_cast<size_t>(padded(codebooks)) * static_cast<size_t>(rows)));
}

}  // namespace
}  // namespace amm

using namespace amm;

extern "C" {

int amm_abi() { return 5; }

int amm_highest_level() { return highest_level(); }

// The core's clock now, by a chain of multiplications of 3 cycles each (Intel since Nehalem, AMD since Zen); 0: unknown.
double amm_gigahertz() {
#if defined(__x86_64__)
    double best = 0;
    for (int round = 0; round < 5; ++round) {
        constexpr int chain = 200000;
        uint64_t x = 3;
        const auto begin = std::chrono::steady_clock::now();
        for (int i = 0; i < chain; ++i) __asm__ volatile("imul %0, %0" : "+r"(x));
        const double ns = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count();
        if (3.0 * chain / ns > best) best = 3.0 * chain / ns;
    }
    return best;
#else
    return 0;
#endif
}

void amm_set_habits(int bits) { habits = bits; }

const char* amm_level_name(int level) {
    const Kernels* k = kernels(level, kExact);
    return k ? k->name : "unknown";
}

// The level whose kernels sum: some have none of their own.
const char* amm_sums_name(int level, int aggregation) {
    const Kernels* k = kernels(level, aggregation);
    if (!k) return "unknown";
#if defined(__x86_64__)
    if (k->sums == avx2_kernels().sums) return avx2_kernels().name;
#endif
    return k->name;
}

// a: N x D floats; columns: [C, 4]; thresholds: [C, 15] heap order; packed: [ceil(N / 32)][ceil(C / 2)][32] bytes.
int amm_encode(int level, const float* a, int64_t n, int64_t d, int64_t row_stride, int64_t col_stride,
               const int32_t* columns, const float* thresholds, int codebooks, uint8_t* packed, int64_t packed_bytes,
               int threads) try {
    const Kernels* k = kernels(level, kExact);
    if (!k) return kLevel;
    Source s{a, n, row_stride, col_stride, codebooks, columns, {}, {}, {}, {}, {}, {}};
    if (const int error = check_source(s, d, thresholds)) return error;
    if (!packed && n > 0) return kNull;
    const int pairs = (codebooks + 1) / 2;
    if (packed_bytes < (n + kBlock - 1) / kBlock * pairs * kBlock) return kBuffer;
    if (!prepare_source(*k, s, d, thresholds)) return kColumn;
    const int rows = encoded_rows(codebooks, n, threads > 1 ? threads : 1);
    const int64_t far = static_cast<int64_t>(rows) * (threads > 1 ? threads : 1);
    return each(Spans(n, rows), threads, [&](Span span, int64_t) {
        uint8_t* codes = codes_for(codebooks, rows);
        encode_span(*k, s, d, span, span.row + far < n && (habits & kFetching) ? far : 0, codes);
        k->pack(codes, codebooks, span.rows, packed + span.row * pairs);
    });
} catch (const std::exception&) {
    return kMemory;
}

// As amm_encode over bytes; own: [C, 32], see bytes.cpp.
int amm_encode_bytes(int level, const uint8_t* a, int64_t n, int64_t d, int64_t row_stride, int64_t col_stride,
                     const int32_t* columns, const uint8_t* own, int codebooks, uint8_t* packed, int64_t packed_bytes,
                     int threads) try {
    const Kernels* k = kernels(level, kAverage);  // plain codes at every level
    if (!k) return kLevel;
    if (!columns || !own || (n > 0 && (!a || !packed))) return kNull;
    if (n < 0 || d < 1 || d > INT32_MAX - 8) return kSize;
    if (codebooks < 1 || codebooks > kMaxTrees) return kCodebooks;
    const int pairs = (codebooks + 1) / 2;
    if (packed_bytes < (n + kBlock - 1) / kBlock * pairs * kBlock) return kBuffer;
    Pictures s{a, n, row_stride, col_stride, columns, own, codebooks, {}, {}, {}, {}};
    if (!prepare_pictures(s, d)) return kColumn;
    WalkBytes walk = walk_bytes_scalar;
#if defined(__x86_64__)
    if (level >= 1) walk = walk_bytes_avx2;
#endif
    const int rows = encoded_rows(codebooks, n, threads > 1 ? threads : 1);
    return each(Spans(n, rows), threads, [&](Span span, int64_t) {
        uint8_t* codes = codes_for(codebooks, rows);
        walk_span(s, walk, level >= 1, span, codes);
        k->pack(codes, codebooks, span.rows, packed + span.row * pairs);
    });
} catch (const std::exception&) {
    return kMemory;
}

// As amm_encode by the nearest of 16 centroids; starts: C + 1 first columns; own: see nearest.cpp.
int amm_nearest(int level, const float* a, int64_t n, int64_t d, int64_t row_stride, int64_t col_stride,
                const int32_t* starts, const float* own, int64_t own_elements, int codebooks, uint8_t* packed,
                int64_t packed_bytes, int threads) try {
    const Kernels* k = kernels(level, kAverage);  // plain codes at every level
    if (!k) return kLevel;
    Subspaces s{a, n, d, row_stride, col_stride, starts, own, codebooks, {}, {}};
    if (const int error = check_subspaces(s, own_elements)) return error;
    if (!packed && n > 0) return kNull;
    const int pairs = (codebooks + 1) / 2;
    if (packed_bytes < (n + kBlock - 1) / kBlock * pairs * kBlock) return kBuffer;
    group_columns(s);
    Nearest nearest = nearest_scalar;
#if defined(__x86_64__)
    if (level >= 1) nearest = nearest_avx2;
#endif
    const int rows = chunk_rows(codebooks);
    return each(Spans(n, rows), threads, [&](Span span, int64_t) {
        uint8_t* codes = codes_for(codebooks, rows);
        nearest_span(*k, nearest, s, span, codes);
        k->pack(codes, codebooks, span.rows, packed + span.row * pairs);
    });
} catch (const std::exception&) {
    return kMemory;
}

// tables: [M][ceil4(C)][16] bytes, zero for padding codebooks; out: kind 0 float32 [N, M], 1 uint16 [N, M], 2 uint16
// [M, N], 3 uint8 [N, M] (saturated); out_elements counts what `out` holds.
int amm_scan(int level, const uint8_t* packed, int64_t packed_bytes, int64_t n, const uint8_t* tables,
             int64_t tables_bytes, int codebooks, int m, const float* scale, const float* offset, int aggregation,
             int upcast, int kind, void* out, int64_t out_stride, int64_t out_elements, int threads) try {
    const Kernels* k = kernels(level, aggregation);
    if (!k) return kLevel;
    Sink s(m, codebooks, aggregation, upcast, kind, tables, scale, offset, out, out_stride, n);
    if (n == 0) return kOk;
    if (!packed) return kNull;
    if (const int error = check_sink(n, s, tables_bytes, out_elements)) return error;
    const int pairs = (codebooks + 1) / 2;
    if (packed_bytes < (n + kBlock - 1) / kBlock * pairs * kBlock) return kBuffer;
    const int rows = chunk_rows(codebooks);
    Scratch room;
    s.order(*k, n, room);
    return each(Spans(n, rows), threads, [&](Span span, int64_t) {
        uint8_t* codes = codes_for(codebooks, rows);
        k->unpack(packed + span.row * pairs, codebooks, span.rows, codes);
        scan_span(*k, s, span, codes);
    });
} catch (const std::exception&) {
    return kMemory;
}

// Encode and scan chunk by chunk: codes never leave the first-level cache.
int amm_matmul(int level, const float* a, int64_t n, int64_t d, int64_t row_stride, int64_t col_stride,
               const int32_t* columns, const float* thresholds, const uint8_t* tables, int64_t tables_bytes,
               int codebooks, int m, const float* scale, const float* offset, int aggregation, int upcast, int kind,
               void* out, int64_t out_stride, int64_t out_elements, int threads) try {
    const Kernels* k = kernels(level, aggregation);
    if (!k) return kLevel;
    Source s{a, n, row_stride, col_stride, codebooks, columns, {}, {}, {}, {}, {}, {}};
    Sink to(m, codebooks, aggregation, upcast, kind, tables, scale, offset, out, out_stride, n);
    if (n == 0) return kOk;
    if (const int error = check_source(s, d, thresholds)) return error;
    if (const int error = check_sink(n, to, tables_bytes, out_elements)) return error;
    if (!prepare_source(*k, s, d, thresholds)) return kColumn;
    const int rows = chunk_rows(codebooks);
    const Spans spans(n, rows);
    Scratch room;
    to.order(*k, n, room);
    return each(spans, threads, [&](Span span, int64_t i) {
        const int64_t next = i + (threads > 1 ? threads : 1);
        uint8_t* codes = codes_for(codebooks, rows);
        encode_span(*k, s, d, span, 0, codes);
        Ahead ahead;
        if (next < spans.count() && (habits & kFetching)) ahead = ahead_of(s, spans.at(next));
        scan_span(*k, to, span, codes, &ahead);
    });
} catch (const std::exception&) {
    return kMemory;
}

}  // extern "C"

// The C interface: checks every size, picks the level, cuts rows into chunks and shares them among threads.
//
// All functions return 0 or an error code of `Error`; binding.py turns the codes into words. Strides are in elements.
#include <atomic>
#include <chrono>
#include <exception>

#include "amm.h"
#include "pictures.h"
#include "pool.h"
#include "sink.h"
#include "source.h"
#include "subspaces.h"

namespace amm {
namespace {

constexpr int kEncoded = 1024;         // rows of a chunk where nothing is looked up
constexpr int kCodeBytes = 16 * 1024;  // fewer rows when codes would take more

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

uint8_t* codes_for(int codebooks, int rows) {
    return static_cast<uint8_t*>(code_scratch.take(static_cast<size_t>(padded(codebooks)) * static_cast<size_t>(rows)));
}

}  // namespace
}  // namespace amm

using namespace amm;

extern "C" {

int amm_abi() { return 6; }

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

// The address of GOMP_parallel in the OpenMP run-time whose team of threads is to be used; null: threads of its own.
void amm_use_openmp(void* parallel, int team) { borrow(reinterpret_cast<Parallel>(parallel), team); }

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
    s.order(*k, room);
    return each(Spans(n, rows), threads, [&](Span span, int64_t) {
        uint8_t* codes = codes_for(codebooks, rows);
        k->unpack(packed + span.row * pairs, codebooks, span.rows, codes);
        Beside beside;
        scan_span(*k, s, span, codes, beside, threads < 2);
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
    to.order(*k, room);
    return each(spans, threads, [&](Span span, int64_t i) {
        const int64_t next = i + (threads > 1 ? threads : 1);
        uint8_t* codes = codes_for(codebooks, rows);
        encode_span(*k, s, d, span, 0, codes);
        Beside beside;
        if (next < spans.count() && (habits & kFetching)) beside.ahead = ahead_of(s, spans.at(next));
        scan_span(*k, to, span, codes, beside, threads < 2);
    });
} catch (const std::exception&) {
    return kMemory;
}

}  // extern "C"

// Bits in which codes differ: Hamming distances of every row's code from every output's, 64 bits a word.
//
// The outputs' codes lie word by word, [words][padded M], so that neighbouring outputs are neighbouring lanes.
#include <atomic>
#include <exception>

#include "amm.h"
#include "pool.h"
#include "source.h"

#if defined(__x86_64__) && !defined(AMM_INTRINSICS)
#include <immintrin.h>
#endif

namespace amm {
namespace {

constexpr int64_t kDistanceRows = 256;  // of a chunk

void distances_plain(const uint64_t* code, const uint64_t* outputs, int words, int64_t padded_m, uint16_t* out) {
    for (int64_t o = 0; o < padded_m; ++o) {
        int sum = 0;
        for (int w = 0; w < words; ++w) sum += __builtin_popcountll(code[w] ^ outputs[w * padded_m + o]);
        out[o] = static_cast<uint16_t>(sum);
    }
}

#if defined(__x86_64__) && !defined(AMM_INTRINSICS)
__attribute__((target("popcnt"))) void distances_popcnt(const uint64_t* code, const uint64_t* outputs, int words,
                                                        int64_t padded_m, uint16_t* out) {
    for (int64_t o = 0; o < padded_m; ++o) {
        int64_t sum = 0;
        for (int w = 0; w < words; ++w) sum += _mm_popcnt_u64(code[w] ^ outputs[w * padded_m + o]);
        out[o] = static_cast<uint16_t>(sum);
    }
}

__attribute__((target("avx512f,avx512vpopcntdq"))) void distances_512(const uint64_t* code, const uint64_t* outputs,
                                                                      int words, int64_t padded_m, uint16_t* out) {
    for (int64_t o = 0; o < padded_m; o += 8) {
        __m512i sum = _mm512_setzero_si512();
        for (int w = 0; w < words; ++w) {
            const __m512i other = _mm512_loadu_si512(outputs + w * padded_m + o);
            const __m512i differ = _mm512_xor_si512(other, _mm512_set1_epi64(static_cast<long long>(code[w])));
            sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(differ));
        }
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + o), _mm512_cvtepi64_epi16(sum));
    }
}
#endif

using Distances = void (*)(const uint64_t*, const uint64_t*, int, int64_t, uint16_t*);

Distances distances_of(int level) {
#if defined(__x86_64__) && !defined(AMM_INTRINSICS)
    __builtin_cpu_init();
    if (level >= 2 && __builtin_cpu_supports("avx512vpopcntdq")) return distances_512;
    if (level >= 1) return distances_popcnt;
#endif
    (void)level;
    return distances_plain;
}

}  // namespace
}  // namespace amm

using namespace amm;

// What counts at a level here.
extern "C" const char* amm_distances_name(int level) {
#if defined(__x86_64__) && !defined(AMM_INTRINSICS)
    const Distances run = distances_of(level);
    if (run == distances_512) return "avx512vpopcntdq";
    if (run == distances_popcnt) return "popcnt";
#endif
    (void)level;
    return "plain";
}

// codes: [N][words]; outputs: [words][padded_m], padded_m a multiple of 8 and at least m. With `table` (64 words + 1
// numbers) out is float32 [N, m] = row_scale[n] * scale[o] * table[distance], else uint16 [N, m].
extern "C" int amm_distances(int level, const uint64_t* codes, int64_t n, const uint64_t* outputs, int64_t padded_m,
                             int64_t m, int words, const float* table, const float* row_scale, const float* scale,
                             void* out, int64_t out_elements, int threads) try {
    if (n == 0) return 0;
    if (!codes || !outputs || !out || (table && (!row_scale || !scale))) return 1;
    if (n < 0 || m < 1 || padded_m < m || padded_m % 8 || words < 1 || words > 1023 || n > INT64_MAX / 4 / m) return 2;
    if (out_elements < n * m) return 4;
    const Distances run = distances_of(level);
    const int64_t chunks = (n + kDistanceRows - 1) / kDistanceRows;
    std::atomic<bool> failed{false};
    share(chunks, threads, [&](int64_t chunk) {
        try {
            uint16_t* found = static_cast<uint16_t*>(row_scratch.take(sizeof(uint16_t) * static_cast<size_t>(padded_m)));
            const int64_t end = (chunk + 1) * kDistanceRows < n ? (chunk + 1) * kDistanceRows : n;
            for (int64_t r = chunk * kDistanceRows; r < end; ++r) {
                run(codes + r * words, outputs, words, padded_m, found);
                if (table) {
                    float* to = static_cast<float*>(out) + r * m;
                    for (int64_t o = 0; o < m; ++o) to[o] = row_scale[r] * scale[o] * table[found[o]];
                } else {
                    uint16_t* to = static_cast<uint16_t*>(out) + r * m;
                    for (int64_t o = 0; o < m; ++o) to[o] = found[o];
                }
            }
        } catch (const std::exception&) {
            failed = true;
        }
    });
    return failed ? 7 : 0;
} catch (const std::exception&) {
    return 7;
}

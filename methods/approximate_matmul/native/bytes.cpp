// Codes of trees over bytes, such as pictures have: 32 rows a register, so that a code costs four shuffles and compares.
//
// `own` of a codebook: 16 thresholds in heap order (x >= v of an integer x is x >= ceil v), then 16 masks, 0 where no
// byte is large enough. The last of each is padding.
#include "amm.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace amm {

void walk_bytes_scalar(const uint8_t* const x[4], const uint8_t* own, uint8_t* codes) {
    for (int r = 0; r < kBlock; ++r) {
        int node = 0;
        for (int t = 0; t < 4; ++t)
            node = 2 * node + 1 + (x[t][r] >= own[node] && own[kPrototypes + node] ? 1 : 0);
        codes[r] = static_cast<uint8_t>(node - kNodes);
    }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void walk_bytes_avx2(const uint8_t* const x[4], const uint8_t* own, uint8_t* codes) {
    const __m256i values = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(own)));
    const __m256i masks = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(own + 16)));
    const __m256i one = _mm256_set1_epi8(1);
    __m256i node = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) {
        const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x[t]));
        const __m256i least = _mm256_max_epu8(at, _mm256_shuffle_epi8(values, node));
        const __m256i bit = _mm256_and_si256(_mm256_cmpeq_epi8(least, at), _mm256_shuffle_epi8(masks, node));
        node = _mm256_sub_epi8(_mm256_add_epi8(_mm256_add_epi8(node, node), one), bit);
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), _mm256_sub_epi8(node, _mm256_set1_epi8(kNodes)));
}

// Four rounds of interleaving rotate the eight bits of (row, column) by half: rows r and r + 16 share a register, whose
// lanes are transposed each for itself, so that a column's 32 bytes come out in order.
__attribute__((target("avx2"))) void columns_of_bytes_avx2(const uint8_t* a, int64_t row_stride, const int32_t* starts,
                                                           const int32_t* slots, int groups, uint8_t* stage) {
    for (int g = 0; g < groups; ++g, slots += 16) {
        __m256i m[16], t[16];
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) {
            const uint8_t* at = a + r * row_stride + starts[g];
            const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
            const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 16 * row_stride));
            m[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
        }
#pragma GCC unroll 2
        for (int round = 0; round < 2; ++round) {
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                t[2 * i] = _mm256_unpacklo_epi8(m[i], m[i + 8]);
                t[2 * i + 1] = _mm256_unpackhi_epi8(m[i], m[i + 8]);
            }
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                m[2 * i] = _mm256_unpacklo_epi8(t[i], t[i + 8]);
                m[2 * i + 1] = _mm256_unpackhi_epi8(t[i], t[i + 8]);
            }
        }
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j)
            if (slots[j] >= 0) _mm256_storeu_si256(reinterpret_cast<__m256i*>(stage + slots[j] * kBlock), m[j]);
    }
}
#endif

}  // namespace amm

// Codes of k-means codebooks (Bolt, arXiv 1706.10283): the nearest of 16 centroids in each subspace, for 32 rows.
//
// `own` of a codebook: the 16 squared norms, then for each of its columns the 16 coordinates times -2, so that a score
// |c|^2 - 2 x.c is a chain of multiply-adds in the order of the columns, rounded alike at every level. The first of
// equal scores wins; a row whose scores are NaN has code 0.
#include "amm.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace amm {

void nearest_scalar(const float* x, int64_t stride, const float* own, int columns, uint8_t* codes) {
    for (int r = 0; r < kBlock; ++r) {
        float score[kPrototypes];
        for (int k = 0; k < kPrototypes; ++k) score[k] = own[k];
        for (int j = 0; j < columns; ++j) {
            const float at = x[j * stride + r];
            const float* c = own + kPrototypes * (j + 1);
            for (int k = 0; k < kPrototypes; ++k) score[k] = __builtin_fmaf(at, c[k], score[k]);
        }
        int best = 0;
        for (int k = 1; k < kPrototypes; ++k)
            if (score[k] < score[best]) best = k;
        codes[r] = static_cast<uint8_t>(best);
    }
}

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX2_INLINE __attribute__((target("avx2,fma"), always_inline)) static inline

// Two registers of rows times `Together` centroids from `first` on: with six, twelve chains and what they read fill the
// sixteen registers, and a multiply-add's latency is hidden on two ports.
template <int Together>
AVX2_INLINE void better(const float* x, int64_t stride, const float* own, int columns, int first, __m256* least,
                        __m256i* which) {
    __m256 score[Together][2];
#pragma GCC unroll 6
    for (int k = 0; k < Together; ++k) score[k][0] = score[k][1] = _mm256_set1_ps(own[first + k]);
    const float* c = own + kPrototypes + first;
    for (int j = 0; j < columns; ++j, x += stride, c += kPrototypes) {
        const __m256 low = _mm256_loadu_ps(x), high = _mm256_loadu_ps(x + 8);
#pragma GCC unroll 6
        for (int k = 0; k < Together; ++k) {
            const __m256 each = _mm256_broadcast_ss(c + k);
            score[k][0] = _mm256_fmadd_ps(low, each, score[k][0]);
            score[k][1] = _mm256_fmadd_ps(high, each, score[k][1]);
        }
    }
#pragma GCC unroll 6
    for (int k = 0; k < Together; ++k)
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            if (first + k == 0) {
                least[i] = score[0][i];
                continue;
            }
            const __m256 less = _mm256_cmp_ps(score[k][i], least[i], _CMP_LT_OQ);
            least[i] = _mm256_blendv_ps(least[i], score[k][i], less);
            which[i] = _mm256_blendv_epi8(which[i], _mm256_set1_epi32(first + k), _mm256_castps_si256(less));
        }
}

AVX2 void nearest_avx2(const float* x, int64_t stride, const float* own, int columns, uint8_t* codes) {
    for (int r = 0; r < kBlock; r += 16) {
        __m256 least[2];
        __m256i which[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        better<6>(x + r, stride, own, columns, 0, least, which);
        better<6>(x + r, stride, own, columns, 6, least, which);
        better<4>(x + r, stride, own, columns, 12, least, which);
        // Both packs work inside lanes: rows 0-3, 8-11 | 4-7, 12-15 of the words, so of the bytes.
        const __m256i words = _mm256_packs_epi32(which[0], which[1]);
        const __m256i rows = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words, words),
                                                         _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + r), _mm256_castsi256_si128(rows));
    }
}
#endif

}  // namespace amm

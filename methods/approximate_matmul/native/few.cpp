// Fewer outputs than a group of eight, as a pair of image filters has: sums that lie output by output become rows.
#include "amm.h"
#if defined(__x86_64__)
#include <immintrin.h>

namespace amm {
namespace {

#define AVX2 __attribute__((target("avx2,fma")))
#define AVX2_INLINE __attribute__((target("avx2,fma"), always_inline)) static inline

AVX2_INLINE __m256 scaled(const uint16_t* from, __m256 scale, __m256 offset) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(wide), scale, offset);
}

template <int M>
AVX2 void rows_of(const uint16_t* from, int64_t apart, int rows, const float* scale, const float* offset, float* out,
                  int64_t stride) {
    __m256 s[M], f[M];
#pragma GCC unroll 8
    for (int o = 0; o < M; ++o) s[o] = _mm256_set1_ps(scale[o]), f[o] = _mm256_set1_ps(offset[o]);
    int r = 0;
    for (; r + 8 <= rows; r += 8) {
        __m256 y[M];
#pragma GCC unroll 8
        for (int o = 0; o < M; ++o) y[o] = scaled(from + o * apart + r, s[o], f[o]);
        float* to = out + r * stride;
        if constexpr (M == 1) {
            if (stride == 1) {
                _mm256_storeu_ps(to, y[0]);
                continue;
            }
        }
        if constexpr (M == 2) {
            if (stride == 2) {
                const __m256 low = _mm256_unpacklo_ps(y[0], y[1]), high = _mm256_unpackhi_ps(y[0], y[1]);
                _mm256_storeu_ps(to, _mm256_permute2f128_ps(low, high, 0x20));
                _mm256_storeu_ps(to + 8, _mm256_permute2f128_ps(low, high, 0x31));
                continue;
            }
        }
        float each[M][8];
#pragma GCC unroll 8
        for (int o = 0; o < M; ++o) _mm256_storeu_ps(each[o], y[o]);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i)
#pragma GCC unroll 8
            for (int o = 0; o < M; ++o) to[i * stride + o] = each[o][i];
    }
    for (; r < rows; ++r)
        for (int o = 0; o < M; ++o)
            out[r * stride + o] = __builtin_fmaf(static_cast<float>(from[o * apart + r]), scale[o], offset[o]);
}

}  // namespace

void rows_of_columns(const uint16_t* from, int64_t apart, int rows, int outputs, const float* scale,
                     const float* offset, float* out, int64_t stride) {
    switch (outputs) {
        case 1: return rows_of<1>(from, apart, rows, scale, offset, out, stride);
        case 2: return rows_of<2>(from, apart, rows, scale, offset, out, stride);
        case 3: return rows_of<3>(from, apart, rows, scale, offset, out, stride);
        case 4: return rows_of<4>(from, apart, rows, scale, offset, out, stride);
        case 5: return rows_of<5>(from, apart, rows, scale, offset, out, stride);
        case 6: return rows_of<6>(from, apart, rows, scale, offset, out, stride);
        default: return rows_of<7>(from, apart, rows, scale, offset, out, stride);
    }
}

}  // namespace amm
#endif

// The AVX-512 level without VBMI: 16-wide encoding; 256-bit sums, since wider shuffles showed no gain on a Zen 4 core.
#include "walk512.h"
#if defined(__x86_64__)

namespace amm {
namespace {

TARGET_PLAIN void encode(Columns a, const int32_t* columns, const float* own, int codebooks, int rows, uint8_t* codes) {
    const int64_t step = code_bytes(codebooks);
    const __m256i none = _mm256_setzero_si256();
    for (int c = 0; c < padded(codebooks); ++c) {
        uint8_t* to = codes + c * kBlock;
        if (c >= codebooks) {
            for (int r = 0; r < rows; r += kBlock, to += step) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), none);
            continue;
        }
        const float *x[4], *v[2] = {own + 32 * c, own + 32 * c};
        columns_of(a, columns, c, x);
        for (int r = 0; r < rows; r += kBlock, to += step) {
            const float* at[2][4];
            for (int t = 0; t < 4; ++t) {
                at[0][t] = x[t] + r, at[1][t] = x[t] + r + 16;
                if (a.ahead) __builtin_prefetch(at[0][t] + a.ahead), __builtin_prefetch(at[1][t] + a.ahead);
            }
            __m512i i[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
            walk16<2>(at, v, i);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(i[0]));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 16), _mm512_cvtepi32_epi8(i[1]));
        }
    }
}

}  // namespace

const Kernels& avx512_kernels() {
    static const Kernels kernels = [] {
        Kernels k = avx2_kernels();
        k.name = "avx512";
        k.thresholds = thresholds512;
        k.encode = encode;
        return k;
    }();
    return kernels;
}

}  // namespace amm
#endif

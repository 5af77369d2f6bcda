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
        const Tree tree[2] = {Tree(own + 32 * c), Tree(own + 32 * c)};
        const float* x[2][4];
        columns_of(a, columns, c, x[0]);
        for (int r = 0; r < rows; r += kBlock, to += step) {
            __m512i i[2][2];
            if (a.ahead)
                walk<1, 2, true>(x, tree, a.ahead, i);
            else
                walk<1, 2, false>(x, tree, 0, i);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(i[0][0]));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 16), _mm512_cvtepi32_epi8(i[0][1]));
            for (int level = 0; level < 4; ++level) x[0][level] += kBlock;
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

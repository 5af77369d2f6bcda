// The AVX-512 level without VBMI: 16-wide encoding; 256-bit sums, since wider shuffles showed no gain on a Zen 4 core.
#include "walk512.h"
#if defined(__x86_64__)

namespace amm {
namespace {

TARGET_PLAIN void encode(Columns a, const int32_t* columns, const float* own, int codebooks, int rows, uint8_t* codes) {
    const int64_t step = code_bytes(codebooks);
    for (int c = 0; c < padded(codebooks); ++c) {
        const float* x[4];
        if (c < codebooks) columns_of(a, columns, c, x);
        for (int r = 0; r < rows; r += 16) {
            uint8_t* to = codes + r / kBlock * step + c * kBlock + r % kBlock;
            if (c < codebooks && a.ahead)
                for (int t = 0; t < 4; ++t) __builtin_prefetch(x[t] + r + a.ahead);
            const __m512i zero = _mm512_setzero_si512();
            const __m512i i = c < codebooks ? walk16(x, r, own + 32 * c, zero) : zero;
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(i));
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

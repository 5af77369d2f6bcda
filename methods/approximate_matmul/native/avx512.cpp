// The AVX-512 levels. Without VBMI: 16-wide encoding, 256-bit sums (wider ones showed no gain on a Zen 4 core).
// With VBMI and VNNI: a 64-byte register holds the tables of FOUR codebooks for one output, one byte permute looks up
// 4 codebooks x 16 rows, and one dot product with ones adds the four exactly in 32 bits.
#include "amm.h"
#if defined(__x86_64__)
#ifdef AMM_INTRINSICS  // a header that emulates the instructions: lets tests run this level on any processor
#include AMM_INTRINSICS
#define TARGET_PLAIN
#define TARGET_VBMI
#else
#include <immintrin.h>
#define TARGET_PLAIN __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")))
#define TARGET_VBMI __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni")))
#endif
#define INLINE __attribute__((always_inline)) static inline

namespace amm {
namespace {

void own_thresholds(const float* heap, int codebooks, float* own) {
    for (int c = 0; c < codebooks; ++c)
        for (int t = 0; t < 4; ++t)
            for (int i = 0; i < 8; ++i)
                own[32 * c + 8 * t + i] = i < (1 << t) ? heap[kNodes * c + (1 << t) - 1 + i] : 0.0f;
}

// Codes of 16 rows as 32-bit numbers.
TARGET_PLAIN INLINE __m512i walk16(const float* const x[4], int r, const float* v) {
    const __m512i one = _mm512_set1_epi32(1);
    __m512i i = _mm512_maskz_mov_epi32(
        _mm512_cmp_ps_mask(_mm512_loadu_ps(x[0] + r), _mm512_set1_ps(v[0]), _CMP_GE_OQ), one);
#pragma GCC unroll 3
    for (int t = 1; t < 4; ++t) {
        const __m512 level = _mm512_castps256_ps512(_mm256_loadu_ps(v + 8 * t));  // i < 8: the upper half is never read
        const __mmask16 bit = _mm512_cmp_ps_mask(_mm512_loadu_ps(x[t] + r), _mm512_permutexvar_ps(i, level), _CMP_GE_OQ);
        i = _mm512_add_epi32(i, i);
        i = _mm512_mask_add_epi32(i, bit, i, one);
    }
    return i;
}

INLINE void columns_of(Columns a, const int32_t* columns, int c, const float* x[4]) {
    for (int t = 0; t < 4; ++t) x[t] = a.base + columns[4 * c + t] * a.stride;
}

TARGET_PLAIN void encode_plain(Columns a, const int32_t* columns, const float* own, int codebooks, int rows,
                               uint8_t* codes) {
    const int64_t step = code_bytes(codebooks);
    for (int c = 0; c < padded(codebooks); ++c) {
        const float* x[4];
        if (c < codebooks) columns_of(a, columns, c, x);
        for (int r = 0; r < rows; r += 16) {
            uint8_t* to = codes + r / kBlock * step + c * kBlock + r % kBlock;
            const __m512i i = c < codebooks ? walk16(x, r, own + 32 * c) : _mm512_setzero_si512();
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(i));
        }
    }
}

TARGET_VBMI void encode_quad(Columns a, const int32_t* columns, const float* own, int codebooks, int rows,
                             uint8_t* codes) {
    const int64_t step = code_bytes(codebooks);
    for (int c = 0; c < codebooks; c += 4) {
        const int count = codebooks - c < 4 ? codebooks - c : 4;
        const float* x[4][4];
        for (int k = 0; k < count; ++k) columns_of(a, columns, c + k, x[k]);
        for (int r = 0; r < rows; r += 16) {
            __m512i quad = _mm512_set1_epi32(0x30201000);
            for (int k = 0; k < count; ++k) {
                const __m512i i = walk16(x[k], r, own + 32 * (c + k));
                quad = _mm512_or_si512(quad, _mm512_sllv_epi32(i, _mm512_set1_epi32(8 * k)));
            }
            _mm512_storeu_si512(codes + r / kBlock * step + c * kBlock + 4 * (r % kBlock), quad);
        }
    }
}

TARGET_VBMI void unpack_quad(const uint8_t* packed, int codebooks, int rows, uint8_t* codes) {
    const int pairs = (codebooks + 1) / 2;
    const __m256i nibble = _mm256_set1_epi8(15), base = _mm256_set1_epi32(0x30201000);
    for (int b = 0; b < rows / kBlock; ++b, packed += pairs * kBlock)
        for (int c = 0; c < padded(codebooks); c += 4, codes += 4 * kBlock) {
            const __m256i* from = reinterpret_cast<const __m256i*>(packed + c / 2 * kBlock);
            const __m256i p = _mm256_loadu_si256(from);
            const __m256i q = c / 2 + 1 < pairs ? _mm256_loadu_si256(from + 1) : _mm256_setzero_si256();
            const __m256i c0 = _mm256_and_si256(p, nibble), c1 = _mm256_and_si256(_mm256_srli_epi16(p, 4), nibble);
            const __m256i c2 = _mm256_and_si256(q, nibble), c3 = _mm256_and_si256(_mm256_srli_epi16(q, 4), nibble);
            const __m256i a0 = _mm256_unpacklo_epi8(c0, c1), a1 = _mm256_unpackhi_epi8(c0, c1);
            const __m256i b0 = _mm256_unpacklo_epi8(c2, c3), b1 = _mm256_unpackhi_epi8(c2, c3);
            // Lane 0 holds rows 4 g .. 4 g + 3 and lane 1 rows 16 + 4 g .. of piece g.
            const __m256i piece[4] = {_mm256_unpacklo_epi16(a0, b0), _mm256_unpackhi_epi16(a0, b0),
                                      _mm256_unpacklo_epi16(a1, b1), _mm256_unpackhi_epi16(a1, b1)};
            for (int g = 0; g < 4; ++g) {
                const __m256i v = _mm256_or_si256(piece[g], base);
                _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 16 * g), _mm256_castsi256_si128(v));
                _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 64 + 16 * g), _mm256_extracti128_si256(v, 1));
            }
        }
}

// 32 rows x NO outputs: 2 NO independent chains of permute and dot product.
template <int NO>
TARGET_VBMI INLINE void block_sums(const uint8_t* codes, const uint8_t* tables, int count, int rows, int32_t* to) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i sum[NO][2];
#pragma GCC unroll 4
    for (int o = 0; o < NO; ++o) sum[o][0] = sum[o][1] = _mm512_setzero_si512();
    for (int c = 0; c < count; c += 4) {
        const __m512i low = _mm512_loadu_si512(codes + c * kBlock), high = _mm512_loadu_si512(codes + c * kBlock + 64);
#pragma GCC unroll 4
        for (int o = 0; o < NO; ++o) {
            const __m512i t = _mm512_loadu_si512(tables + (static_cast<int64_t>(o) * count + c) * kPrototypes);
            sum[o][0] = _mm512_dpbusd_epi32(sum[o][0], _mm512_permutexvar_epi8(low, t), ones);
            sum[o][1] = _mm512_dpbusd_epi32(sum[o][1], _mm512_permutexvar_epi8(high, t), ones);
        }
    }
#pragma GCC unroll 4
    for (int o = 0; o < NO; ++o) {
        _mm512_storeu_si512(to + static_cast<int64_t>(o) * rows, sum[o][0]);
        _mm512_storeu_si512(to + static_cast<int64_t>(o) * rows + 16, sum[o][1]);
    }
}

TARGET_VBMI void sums(const uint8_t* codes, const uint8_t* tables, int codebooks, int rows, int outputs, int, int,
                      void* tile) {
    const int count = padded(codebooks);
    int o = 0;
    for (; o + 4 <= outputs; o += 4) {
        const uint8_t* table = tables + static_cast<int64_t>(o) * count * kPrototypes;
        int32_t* to = static_cast<int32_t*>(tile) + static_cast<int64_t>(o) * rows;
        for (int r = 0; r < rows; r += kBlock)
            block_sums<4>(codes + r / kBlock * code_bytes(codebooks), table, count, rows, to + r);
    }
    for (; o < outputs; ++o) {
        const uint8_t* table = tables + static_cast<int64_t>(o) * count * kPrototypes;
        int32_t* to = static_cast<int32_t*>(tile) + static_cast<int64_t>(o) * rows;
        for (int r = 0; r < rows; r += kBlock)
            block_sums<1>(codes + r / kBlock * code_bytes(codebooks), table, count, rows, to + r);
    }
}

// 16 rows x 8 outputs of 32-bit elements; t[j] = row j (outputs 0..7) and row j + 8... as [row a | row b], see rows_of.
TARGET_VBMI INLINE void transpose(const int32_t* tile, int rows, int outputs, __m512i t[8]) {
    __m512i m[8], u[8];
#pragma GCC unroll 8
    for (int o = 0; o < 8; ++o)
        m[o] = o < outputs ? _mm512_loadu_si512(tile + static_cast<int64_t>(o) * rows) : _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        u[2 * i] = _mm512_unpacklo_epi32(m[2 * i], m[2 * i + 1]);
        u[2 * i + 1] = _mm512_unpackhi_epi32(m[2 * i], m[2 * i + 1]);
    }
    // m[i], i < 4: outputs 0..3 of rows 4 l + i in lane l; m[4 + i] the same of outputs 4..7.
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        m[4 * h] = _mm512_unpacklo_epi64(u[4 * h], u[4 * h + 2]);
        m[4 * h + 1] = _mm512_unpackhi_epi64(u[4 * h], u[4 * h + 2]);
        m[4 * h + 2] = _mm512_unpacklo_epi64(u[4 * h + 1], u[4 * h + 3]);
        m[4 * h + 3] = _mm512_unpackhi_epi64(u[4 * h + 1], u[4 * h + 3]);
    }
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_permutex2var_epi64(m[i], first, m[4 + i]);       // rows i and i + 4
        t[4 + i] = _mm512_permutex2var_epi64(m[i], second, m[4 + i]);  // rows i + 8 and i + 12
    }
}

INLINE int row_of(int j, int half) { return j % 4 + 8 * (j / 4) + 4 * half; }

TARGET_VBMI void store_f32(const void* tile, int rows, int valid, int outputs, const float* scale, const float* offset,
                           float* out, int64_t out_stride) {
    const __mmask8 mask = static_cast<__mmask8>((1u << outputs) - 1);
    const __m256 s8 = _mm256_maskz_loadu_ps(mask, scale), f8 = _mm256_maskz_loadu_ps(mask, offset);
    const __m512 s = _mm512_broadcast_f32x8(s8), f = _mm512_broadcast_f32x8(f8);
    for (int r = 0; r < valid; r += 16) {
        __m512i t[8];
        transpose(static_cast<const int32_t*>(tile) + r, rows, outputs, t);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            const __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(t[j]), s, f);
            const int r0 = r + row_of(j, 0), r1 = r + row_of(j, 1);
            if (r0 < valid) _mm256_mask_storeu_ps(out + r0 * out_stride, mask, _mm512_castps512_ps256(y));
            if (r1 < valid) _mm256_mask_storeu_ps(out + r1 * out_stride, mask, _mm512_extractf32x8_ps(y, 1));
        }
    }
}

TARGET_VBMI void store_u16(const void* tile, int rows, int valid, int outputs, uint16_t* out, int64_t out_stride) {
    const __mmask8 mask = static_cast<__mmask8>((1u << outputs) - 1);
    for (int r = 0; r < valid; r += 16) {
        __m512i t[8];
        transpose(static_cast<const int32_t*>(tile) + r, rows, outputs, t);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            const __m256i y = _mm512_cvtepi32_epi16(t[j]);
            const int r0 = r + row_of(j, 0), r1 = r + row_of(j, 1);
            if (r0 < valid) _mm_mask_storeu_epi16(out + r0 * out_stride, mask, _mm256_castsi256_si128(y));
            if (r1 < valid) _mm_mask_storeu_epi16(out + r1 * out_stride, mask, _mm256_extracti128_si256(y, 1));
        }
    }
}

TARGET_VBMI void column_u16(const void* tile, int rows, uint16_t* out) {
    const int32_t* from = static_cast<const int32_t*>(tile);
    for (int r = 0; r < rows; r += 16)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r), _mm512_cvtepi32_epi16(_mm512_loadu_si512(from + r)));
}

}  // namespace

const Kernels& avx512_kernels() {
    static const Kernels kernels = [] {
        Kernels k = avx2_kernels();
        k.name = "avx512";
        k.thresholds = own_thresholds;
        k.encode = encode_plain;
        return k;
    }();
    return kernels;
}

const Kernels& vbmi_kernels() {
    static const Kernels kernels = {"avx512vbmi",      4,           own_thresholds, encode_quad,
                                    avx2_kernels().gather, nullptr, unpack_quad,    sums,
                                    store_f32,         store_u16,   column_u16};
    return kernels;
}

}  // namespace amm
#endif

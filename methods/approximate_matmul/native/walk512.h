// What the AVX-512 levels share: the instructions' home and the walk down a tree, 16 rows at a time.
#pragma once
#include "amm.h"
#if defined(__x86_64__)
#ifdef AMM_INTRINSICS  // a header that emulates the instructions: lets tests run these levels on any x86 processor
#include AMM_INTRINSICS
#define TARGET_PLAIN
#define TARGET_VBMI
#define TARGET_AMX
#define KEEP(x)
#else
#define KEEP(x) __asm__("" : "+v"(x))  // keeps GCC 12 from copying every sum twice an iteration
#include <immintrin.h>
#define TARGET_PLAIN __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")))
#define TARGET_VBMI __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni")))
#define TARGET_AMX \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,amx-tile,amx-int8")))
#endif
#define OPAQUE(x) __asm__("" : "+r"(x))
#define INLINE __attribute__((always_inline)) static inline
#define INLINE_MEMBER __attribute__((always_inline)) inline

namespace amm {

// 32 floats a codebook. Nodes are indexed by 8 b0 + 4 b1 + 2 b2, so that bits of the code are set in their final place
// and never shifted: level 2 stands at 0, 4, 8, 12 and level 3 at 16 + 0, 2, .., 14; 1 holds the root, 2 and 3 level 1.
inline void thresholds512(const float* heap, int codebooks, float* own) {
    for (int c = 0; c < codebooks; ++c, heap += kNodes, own += 32) {
        for (int i = 0; i < 3; ++i) own[1 + i] = heap[i];
        for (int i = 0; i < 4; ++i) own[4 * i] = heap[3 + i];
        for (int i = 0; i < 8; ++i) own[16 + 2 * i] = heap[7 + i];
    }
}

// Codes of 16 rows as 32-bit numbers; bits of `start` outside the lowest four stay.
TARGET_PLAIN INLINE __m512i walk16(const float* const x[4], int64_t r, const float* v, __m512i start) {
    const __mmask16 b0 = _mm512_cmp_ps_mask(_mm512_loadu_ps(x[0] + r), _mm512_set1_ps(v[1]), _CMP_GE_OQ);
    const __m512 v1 = _mm512_mask_blend_ps(b0, _mm512_set1_ps(v[2]), _mm512_set1_ps(v[3]));
    const __mmask16 b1 = _mm512_cmp_ps_mask(_mm512_loadu_ps(x[1] + r), v1, _CMP_GE_OQ);
    __m512i i = _mm512_mask_or_epi32(start, b0, start, _mm512_set1_epi32(8));
    i = _mm512_mask_or_epi32(i, b1, i, _mm512_set1_epi32(4));
    const __m512 v2 = _mm512_permutexvar_ps(i, _mm512_loadu_ps(v));
    const __mmask16 b2 = _mm512_cmp_ps_mask(_mm512_loadu_ps(x[2] + r), v2, _CMP_GE_OQ);
    i = _mm512_mask_or_epi32(i, b2, i, _mm512_set1_epi32(2));
    const __m512 v3 = _mm512_permutexvar_ps(i, _mm512_loadu_ps(v + 16));
    const __mmask16 b3 = _mm512_cmp_ps_mask(_mm512_loadu_ps(x[3] + r), v3, _CMP_GE_OQ);
    return _mm512_mask_or_epi32(i, b3, i, _mm512_set1_epi32(1));
}

INLINE void columns_of(Columns a, const int32_t* columns, int c, const float* x[4]) {
    for (int t = 0; t < 4; ++t) x[t] = a.base + columns[4 * c + t] * a.stride;
}

}  // namespace amm
#endif

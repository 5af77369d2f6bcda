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

// Codes of 16 rows as 32-bit numbers, COUNT groups of rows side by side, level by level: one after the other they are
// longer than what a scheduler sees at a time.
template <int COUNT>
TARGET_PLAIN INLINE void walk16(const float* const x[COUNT][4], const float* const v[COUNT], __m512i i[COUNT]) {
    __mmask16 b[COUNT];
#pragma GCC unroll 8
    for (int k = 0; k < COUNT; ++k)
        b[k] = _mm512_cmp_ps_mask(_mm512_loadu_ps(x[k][0]), _mm512_set1_ps(v[k][1]), _CMP_GE_OQ);
#pragma GCC unroll 8
    for (int k = 0; k < COUNT; ++k) {
        const __m512 v1 = _mm512_mask_blend_ps(b[k], _mm512_set1_ps(v[k][2]), _mm512_set1_ps(v[k][3]));
        i[k] = _mm512_mask_or_epi32(i[k], b[k], i[k], _mm512_set1_epi32(8));
        b[k] = _mm512_cmp_ps_mask(_mm512_loadu_ps(x[k][1]), v1, _CMP_GE_OQ);
    }
#pragma GCC unroll 8
    for (int k = 0; k < COUNT; ++k) {
        i[k] = _mm512_mask_or_epi32(i[k], b[k], i[k], _mm512_set1_epi32(4));
        const __m512 v2 = _mm512_permutexvar_ps(i[k], _mm512_loadu_ps(v[k]));
        b[k] = _mm512_cmp_ps_mask(_mm512_loadu_ps(x[k][2]), v2, _CMP_GE_OQ);
    }
#pragma GCC unroll 8
    for (int k = 0; k < COUNT; ++k) {
        i[k] = _mm512_mask_or_epi32(i[k], b[k], i[k], _mm512_set1_epi32(2));
        const __m512 v3 = _mm512_permutexvar_ps(i[k], _mm512_loadu_ps(v[k] + 16));
        b[k] = _mm512_cmp_ps_mask(_mm512_loadu_ps(x[k][3]), v3, _CMP_GE_OQ);
    }
#pragma GCC unroll 8
    for (int k = 0; k < COUNT; ++k) i[k] = _mm512_mask_or_epi32(i[k], b[k], i[k], _mm512_set1_epi32(1));
}

INLINE void columns_of(Columns a, const int32_t* columns, int c, const float* x[4]) {
    for (int t = 0; t < 4; ++t) x[t] = a.base + columns[4 * c + t] * a.stride;
}

}  // namespace amm
#endif

// What the AVX-512 levels share: the instructions' home and the walk down a tree, 16 rows at a time.
#pragma once
#include <type_traits>

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

// Thresholds of a tree in registers.
struct Tree {
    __m512 root, left, right, third, last;
    TARGET_PLAIN INLINE_MEMBER explicit Tree(const float* own)
        : root(_mm512_set1_ps(own[1])), left(_mm512_set1_ps(own[2])), right(_mm512_set1_ps(own[3])),
          third(_mm512_loadu_ps(own)), last(_mm512_loadu_ps(own + 16)) {}
};

// Codes, as 32-bit numbers, of 16 GROUPS rows by two trees at most, level by level: one walk after the other is longer
// than what a scheduler sees at a time.
template <int TREES, int GROUPS, bool AHEAD>
TARGET_PLAIN INLINE void walk(const float* const x[2][4], const Tree (&tree)[2], int64_t ahead, __m512i i[2][GROUPS]) {
    __m512 v[TREES][GROUPS];
    // Bits of `level`, then thresholds of the next one; a template's parameter, so that loops are unrolled before use.
    const auto level = [&](auto number) __attribute__((always_inline)) TARGET_PLAIN {
        constexpr int at = decltype(number)::value;
#pragma GCC unroll 2
        for (int t = 0; t < TREES; ++t)
#pragma GCC unroll 4
            for (int g = 0; g < GROUPS; ++g) {
                const float* const from = x[t][at] + 16 * g;
                if (AHEAD) __builtin_prefetch(from + ahead);
                const __m512 value = _mm512_loadu_ps(from), bound = at ? v[t][g] : tree[t].root;
                const __mmask16 b = _mm512_cmp_ps_mask(value, bound, _CMP_GE_OQ);
                const __m512i bit = _mm512_set1_epi32(8 >> at);
                i[t][g] = at ? _mm512_mask_or_epi32(i[t][g], b, i[t][g], bit) : _mm512_maskz_mov_epi32(b, bit);
                if (at == 0) v[t][g] = _mm512_mask_blend_ps(b, tree[t].left, tree[t].right);
                if (at == 1 || at == 2) v[t][g] = _mm512_permutexvar_ps(i[t][g], at == 1 ? tree[t].third : tree[t].last);
            }
    };
    level(std::integral_constant<int, 0>());
    level(std::integral_constant<int, 1>());
    level(std::integral_constant<int, 2>());
    level(std::integral_constant<int, 3>());
}

INLINE void columns_of(Columns a, const int32_t* columns, int c, const float* x[4]) {
    for (int t = 0; t < 4; ++t) x[t] = a.base + columns[4 * c + t] * a.stride;
}

}  // namespace amm
#endif

// The AVX2 level: byte shuffles as 16-entry tables.
#include "amm.h"
#if defined(__x86_64__)
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma")))
#ifndef AMM_INLINE_TREE  // largest averaging tree that is inlined; sanitizers want small functions
#define AMM_INLINE_TREE 16
#endif
#define AVX2_INLINE __attribute__((target("avx2,fma"), always_inline)) static inline

namespace amm {
namespace {

AVX2_INLINE __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
AVX2_INLINE void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

// The tree is walked with n = -i (a compare yields -1): n <- 2 n + mask needs no extra negation. Four thresholds of a
// level stand at (-i) & 3 of both lanes, the bits that the permute inside lanes reads; the last level's two fours are
// told apart by the first compare. (One permute across lanes would do, at twice the instructions' price on a Zen.)
void own_thresholds(const float* heap, int codebooks, float* own) {
    for (int c = 0; c < codebooks; ++c)
        for (int t = 0; t < 4; ++t)
            for (int p = 0; p < 8; ++p) {
                const int i = t == 0 ? 0 : ((4 - p) & 3) + (t == 3 ? p & 4 : 0);
                own[32 * c + 8 * t + p] = i < (1 << t) ? heap[kNodes * c + (1 << t) - 1 + i] : 0.0f;
            }
}

struct Thresholds {
    __m256 first, second, third, low, high;
};

AVX2_INLINE Thresholds thresholds_of(const float* v) {
    return {_mm256_loadu_ps(v), _mm256_loadu_ps(v + 8), _mm256_loadu_ps(v + 16),
            _mm256_broadcast_ps(reinterpret_cast<const __m128*>(v + 24)),
            _mm256_broadcast_ps(reinterpret_cast<const __m128*>(v + 28))};
}

AVX2_INLINE __m256i at_least(const float* x, __m256 v) {
    return _mm256_castps_si256(_mm256_cmp_ps(v, _mm256_loadu_ps(x), _CMP_LE_OQ));
}

AVX2_INLINE __m256i twice_and(__m256i n, __m256i bit) { return _mm256_add_epi32(_mm256_add_epi32(n, n), bit); }

AVX2_INLINE __m256i bytes(const __m256i* n) {
    return _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
}

// 32 rows, level by level: four independent chains side by side, which a scheduler of some sixty entries would not find
// one after the other.
AVX2_INLINE __m256i walk32(const float* x0, const float* x1, const float* x2, const float* x3, const Thresholds& v) {
    __m256i top[4], n[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) top[i] = at_least(x0 + 8 * i, v.first);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) n[i] = twice_and(top[i], at_least(x1 + 8 * i, _mm256_permutevar_ps(v.second, top[i])));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) n[i] = twice_and(n[i], at_least(x2 + 8 * i, _mm256_permutevar_ps(v.third, n[i])));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m256 low = _mm256_permutevar_ps(v.low, n[i]), high = _mm256_permutevar_ps(v.high, n[i]);
        top[i] = at_least(x3 + 8 * i, _mm256_blendv_ps(low, high, _mm256_castsi256_ps(top[i])));
    }
    const __m256i three = bytes(n), last = bytes(top);
    return _mm256_add_epi8(_mm256_add_epi8(three, three), last);
}

AVX2 void encode(Columns a, const int32_t* columns, const float* own, int codebooks, int rows, uint8_t* codes) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const int64_t step = code_bytes(codebooks);
    for (int c = 0; c < padded(codebooks); ++c) {
        uint8_t* to = codes + c * kBlock;
        if (c >= codebooks) {
            for (int r = 0; r < rows; r += 32, to += step) store(to, _mm256_setzero_si256());
            continue;
        }
        const float* x0 = a.base + columns[4 * c] * a.stride;
        const float* x1 = a.base + columns[4 * c + 1] * a.stride;
        const float* x2 = a.base + columns[4 * c + 2] * a.stride;
        const float* x3 = a.base + columns[4 * c + 3] * a.stride;
        const Thresholds v = thresholds_of(own + 32 * c);
        for (int r = 0; r < rows; r += 32, to += step) {
            const __m256i mixed = walk32(x0 + r, x1 + r, x2 + r, x3 + r, v);
            store(to, _mm256_abs_epi8(_mm256_permutevar8x32_epi32(mixed, order)));
        }
    }
}

// 8 rows x 4 columns at a time: rows r and r + 4 share a register, so two rounds of interleaving finish the transpose.
AVX2 void gather(const float* a, int64_t row_stride, const int32_t* groups, const int32_t* slots, int n_groups,
                 int rows, float* out, int64_t out_stride) {
    const int ahead = rows_ahead(groups, n_groups);
    for (int r = 0; r < rows; r += 8) {
        const float* row = a + r * row_stride;
        for (int g = 0; g < n_groups; ++g) {
            const float* p = row + groups[g];
            const int32_t* slot = slots + 4 * g;
            if (ahead && begins_line(groups, g))
#pragma GCC unroll 8
                for (int i = 0; i < 8; ++i) __builtin_prefetch(p + (i + ahead) * row_stride, 0, 2);
            __m256 q[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i)
                q[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + i * row_stride)),
                                            _mm_loadu_ps(p + (i + 4) * row_stride), 1);
            const __m256 a01 = _mm256_unpacklo_ps(q[0], q[1]), a23 = _mm256_unpacklo_ps(q[2], q[3]);
            const __m256 b01 = _mm256_unpackhi_ps(q[0], q[1]), b23 = _mm256_unpackhi_ps(q[2], q[3]);
            if (slot[0] >= 0) _mm256_storeu_ps(out + slot[0] * out_stride + r, _mm256_shuffle_ps(a01, a23, 0x44));
            if (slot[1] >= 0) _mm256_storeu_ps(out + slot[1] * out_stride + r, _mm256_shuffle_ps(a01, a23, 0xee));
            if (slot[2] >= 0) _mm256_storeu_ps(out + slot[2] * out_stride + r, _mm256_shuffle_ps(b01, b23, 0x44));
            if (slot[3] >= 0) _mm256_storeu_ps(out + slot[3] * out_stride + r, _mm256_shuffle_ps(b01, b23, 0xee));
        }
    }
}

AVX2 void pack(const uint8_t* codes, int codebooks, int rows, uint8_t* packed) {
    const int pairs = (codebooks + 1) / 2;
    for (int b = 0; b < rows / kBlock; ++b, codes += code_bytes(codebooks))
        for (int j = 0; j < pairs; ++j, packed += kBlock) {
            const uint8_t* low = codes + 2 * j * kBlock;
            store(packed, _mm256_or_si256(load(low), _mm256_slli_epi16(load(low + kBlock), 4)));
        }
}

AVX2 void unpack(const uint8_t* packed, int codebooks, int rows, uint8_t* codes) {
    const int pairs = (codebooks + 1) / 2;
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int b = 0; b < rows / kBlock; ++b, packed += pairs * kBlock)
        for (int j = 0; j < padded(codebooks) / 2; ++j, codes += 2 * kBlock) {
            const __m256i both = j < pairs ? load(packed + j * kBlock) : _mm256_setzero_si256();
            store(codes, _mm256_and_si256(both, nibble));
            store(codes + kBlock, _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble));
        }
}

// A table serves NB blocks of 32 rows: one broadcast load for NB shuffles.
template <int NB>
struct Bytes {
    __m256i v[NB];
};

// Rounding-average tree over U neighbouring codebooks. Inlined up to AMM_INLINE_TREE; larger trees call those of
// half their size, which costs one call per 16 look-ups and keeps the code small.
template <int U, int NB>
struct Tree {
    AVX2_INLINE Bytes<NB> run(const uint8_t* codes, int64_t step, const uint8_t* table) {
        Bytes<NB> a, b;
        if constexpr (U > AMM_INLINE_TREE) {
            call(codes, step, table, &a);
            call(codes + U / 2 * kBlock, step, table + U / 2 * kPrototypes, &b);
        } else {
            a = Tree<U / 2, NB>::run(codes, step, table);
            b = Tree<U / 2, NB>::run(codes + U / 2 * kBlock, step, table + U / 2 * kPrototypes);
        }
#pragma GCC unroll 4
        for (int i = 0; i < NB; ++i) a.v[i] = _mm256_avg_epu8(a.v[i], b.v[i]);
        return a;
    }
    AVX2 __attribute__((noinline)) static void call(const uint8_t* codes, int64_t step, const uint8_t* table,
                                                    Bytes<NB>* out) {
        *out = Tree<U / 2, NB>::run(codes, step, table);
    }
};
template <int NB>
struct Tree<1, NB> {
    AVX2_INLINE Bytes<NB> run(const uint8_t* codes, int64_t step, const uint8_t* table) {
        const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
        Bytes<NB> a;
#pragma GCC unroll 4
        for (int i = 0; i < NB; ++i) a.v[i] = _mm256_shuffle_epi8(t, load(codes + i * step));
        return a;
    }
};

// Even rows and odd rows of a block as 16-bit numbers.
struct Halves {
    __m256i even, odd;
};

// Exact sums: bytes are added as 16-bit pairs, even + 256 odd modulo 2^16, and the odd ones once more on their own; the
// even ones follow by subtraction. (Sums rebuilt from rounding averages and byte sums need 3.1 instead of 4 instructions
// a look-up, but compilers spill registers and they measured slower.)
template <int NB>
AVX2_INLINE void exact(const uint8_t* codes, int64_t step, const uint8_t* table, int count, uint8_t* to) {
    __m256i all[NB], odd[NB];
    for (int b = 0; b < NB; ++b) all[b] = odd[b] = _mm256_setzero_si256();
    for (int c = 0; c < count; c += 4) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            const __m128i* row = reinterpret_cast<const __m128i*>(table + (c + k) * kPrototypes);
            const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(row));
#pragma GCC unroll 4
            for (int b = 0; b < NB; ++b) {
                const __m256i v = _mm256_shuffle_epi8(t, load(codes + b * step + (c + k) * kBlock));
                all[b] = _mm256_add_epi16(all[b], v);
                odd[b] = _mm256_add_epi16(odd[b], _mm256_srli_epi16(v, 8));
            }
        }
    }
    for (int b = 0; b < NB; ++b) {
        store(to + 64 * b, _mm256_sub_epi16(all[b], _mm256_slli_epi16(odd[b], 8)));
        store(to + 64 * b + 32, odd[b]);
    }
}

template <int U, int NB>
AVX2_INLINE void average_part(const uint8_t* codes, int64_t step, const uint8_t* table, int count, uint8_t* to) {
    const __m256i byte = _mm256_set1_epi16(255);
    Halves h[NB];
    for (int b = 0; b < NB; ++b) h[b].even = h[b].odd = _mm256_setzero_si256();
    for (int c = 0; c < count; c += U) {
        const Bytes<NB> m = Tree<U, NB>::run(codes + c * kBlock, step, table + c * kPrototypes);
#pragma GCC unroll 4
        for (int b = 0; b < NB; ++b) {
            h[b].even = _mm256_add_epi16(h[b].even, _mm256_and_si256(m.v[b], byte));
            h[b].odd = _mm256_add_epi16(h[b].odd, _mm256_srli_epi16(m.v[b], 8));
        }
    }
    for (int b = 0; b < NB; ++b) {
        store(to + 64 * b, h[b].even);
        store(to + 64 * b + 32, h[b].odd);
    }
}

template <int U>
AVX2 void average(const uint8_t* codes, int64_t step, const uint8_t* table, int count, int rows, uint8_t* to) {
    int r = 0;
    for (; r + 64 <= rows; r += 64) average_part<U, 2>(codes + r / 32 * step, step, table, count, to + 2 * r);
    for (; r < rows; r += 32) average_part<U, 1>(codes + r / 32 * step, step, table, count, to + 2 * r);
}

AVX2 void exact_rows(const uint8_t* codes, int64_t step, const uint8_t* table, int count, int rows, uint8_t* to) {
    int r = 0;
    for (; r + 64 <= rows; r += 64) exact<2>(codes + r / 32 * step, step, table, count, to + 2 * r);
    for (; r < rows; r += 32) exact<1>(codes + r / 32 * step, step, table, count, to + 2 * r);
}

AVX2 void sums(const uint8_t* codes, const uint8_t* tables, int codebooks, int rows, int outputs, int aggregation,
               int upcast, void* tile) {
    const int count = padded(codebooks);
    const int64_t step = code_bytes(codebooks);
    for (int o = 0; o < outputs; ++o) {
        const uint8_t* table = tables + static_cast<int64_t>(o) * count * kPrototypes;
        uint8_t* to = static_cast<uint8_t*>(tile) + static_cast<int64_t>(o) * rows * 2;
        if (aggregation == kExact) {
            exact_rows(codes, step, table, count, rows, to);
            continue;
        }
        switch (upcast) {
            case 1: average<1>(codes, step, table, codebooks, rows, to); break;
            case 2: average<2>(codes, step, table, codebooks, rows, to); break;
            case 4: average<4>(codes, step, table, codebooks, rows, to); break;
            case 8: average<8>(codes, step, table, codebooks, rows, to); break;
            case 16: average<16>(codes, step, table, codebooks, rows, to); break;
            case 32: average<32>(codes, step, table, codebooks, rows, to); break;
            case 64: average<64>(codes, step, table, codebooks, rows, to); break;
            default: average<128>(codes, step, table, codebooks, rows, to); break;
        }
    }
}

// t[i] = outputs 0..7 of element i in the low lane and of element i + 8 in the high lane; half 0 holds even rows.
AVX2_INLINE void transpose(const uint16_t* tile, int rows, int outputs, __m256i* t) {
    __m256i m[8], u[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) m[i] = i < outputs ? load(tile + static_cast<int64_t>(i) * rows) : _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        u[i] = _mm256_unpacklo_epi16(m[2 * i], m[2 * i + 1]);
        u[i + 4] = _mm256_unpackhi_epi16(m[2 * i], m[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h)
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            m[4 * h + i] = _mm256_unpacklo_epi32(u[4 * h + 2 * i], u[4 * h + 2 * i + 1]);
            m[4 * h + i + 2] = _mm256_unpackhi_epi32(u[4 * h + 2 * i], u[4 * h + 2 * i + 1]);
        }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[2 * i] = _mm256_unpacklo_epi64(m[2 * i], m[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi64(m[2 * i], m[2 * i + 1]);
    }
}

AVX2 void column_u16(const void* tile, int rows, uint16_t* out) {
    const uint16_t* from = static_cast<const uint16_t*>(tile);
    for (int r = 0; r < rows; r += 32) {
        const __m256i even = load(from + r), odd = load(from + r + 16);
        const __m256i a = _mm256_unpacklo_epi16(even, odd), b = _mm256_unpackhi_epi16(even, odd);
        store(out + r, _mm256_permute2x128_si256(a, b, 0x20));
        store(out + r + 16, _mm256_permute2x128_si256(a, b, 0x31));
    }
}

AVX2 void store_f32(const void* tile, int rows, int valid, int outputs, const float* scale, const float* offset,
                    float* out, int64_t out_stride) {
    if (outputs < kGroup) {
        uint16_t columns[(kGroup - 1) * kTileRows];
        for (int o = 0; o < outputs; ++o)
            column_u16(static_cast<const uint16_t*>(tile) + static_cast<int64_t>(o) * rows, rows, columns + o * rows);
        return rows_of_columns(columns, rows, valid, outputs, scale, offset, out, out_stride);
    }
    float spare[16] = {0};
    for (int o = 0; o < outputs; ++o) {
        spare[o] = scale[o];
        spare[8 + o] = offset[o];
    }
    const __m256 s = _mm256_loadu_ps(spare), f = _mm256_loadu_ps(spare + 8);
    for (int r = 0; r < valid; r += 32)
        for (int half = 0; half < 2; ++half) {
            __m256i t[8];
            transpose(static_cast<const uint16_t*>(tile) + r + 16 * half, rows, outputs, t);
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                const __m256i low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(t[i]));
                const __m256i high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(t[i], 1));
                const __m256 y0 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(low), s, f);
                const __m256 y1 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(high), s, f);
                const int r0 = r + 2 * i + half, r1 = r0 + 16;
                if (r + 32 <= valid) {
                    _mm256_storeu_ps(out + r0 * out_stride, y0);
                    _mm256_storeu_ps(out + r1 * out_stride, y1);
                    continue;
                }
                float y[8];
                _mm256_storeu_ps(y, y0);
                for (int o = 0; o < outputs && r0 < valid; ++o) out[r0 * out_stride + o] = y[o];
                _mm256_storeu_ps(y, y1);
                for (int o = 0; o < outputs && r1 < valid; ++o) out[r1 * out_stride + o] = y[o];
            }
        }
}

AVX2 void store_u16(const void* tile, int rows, int valid, int outputs, uint16_t* out, int64_t out_stride) {
    for (int r = 0; r < valid; r += 32)
        for (int half = 0; half < 2; ++half) {
            __m256i t[8];
            transpose(static_cast<const uint16_t*>(tile) + r + 16 * half, rows, outputs, t);
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i)
#pragma GCC unroll 2
                for (int lane = 0; lane < 2; ++lane) {
                    const int row = r + 2 * i + half + 16 * lane;
                    const __m128i y = lane ? _mm256_extracti128_si256(t[i], 1) : _mm256_castsi256_si128(t[i]);
                    uint16_t part[8];
                    uint16_t* to = out + row * out_stride;
                    const bool whole = outputs == kGroup && r + 32 <= valid;
                    _mm_storeu_si128(reinterpret_cast<__m128i*>(whole ? to : part), y);
                    for (int o = 0; !whole && row < valid && o < outputs; ++o) to[o] = part[o];
                }
        }
}

}  // namespace

const Kernels& avx2_kernels() {
    static const Kernels kernels = {"avx2", 2, own_thresholds, encode,    gather,    pack,
                                    unpack, sums, store_f32,      store_u16, column_u16, nullptr, nullptr};
    return kernels;
}

}  // namespace amm
#endif

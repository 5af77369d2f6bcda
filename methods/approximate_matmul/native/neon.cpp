// The NEON level, which every 64-bit Arm processor has: byte permutes as 16-entry tables, and as 16-float ones.
#include "amm.h"
#if defined(__aarch64__)
#include <arm_neon.h>

#define NEON_INLINE __attribute__((always_inline)) static inline

namespace amm {
namespace {

constexpr int kHalf = 16;  // rows of one register of codes

// Heap order; the 64 bytes of a tree's thresholds are one table of the four-register permute.
void own_thresholds(const float* heap, int codebooks, float* own) {
    for (int c = 0; c < codebooks; ++c)
        for (int i = 0; i <= kNodes; ++i) own[32 * c + i] = i < kNodes ? heap[kNodes * c + i] : 0.0f;
}

// Codes of four rows: i <- 2 i + [x >= v_i]; a mask's sign bit is the comparison, and a NaN compares false.
NEON_INLINE uint32x4_t walk4(const float* const x[4], int r, uint8x16x4_t table, float root) {
    const uint32x4_t bytes = vdupq_n_u32(0x03020100);
    uint32x4_t i = vshrq_n_u32(vcgeq_f32(vld1q_f32(x[0] + r), vdupq_n_f32(root)), 31);
#pragma GCC unroll 3
    for (int t = 1; t < 4; ++t) {
        const uint32x4_t node = vaddq_u32(i, vdupq_n_u32((1u << t) - 1));
        const uint8x16_t at = vreinterpretq_u8_u32(vmlaq_n_u32(bytes, node, 0x04040404));
        const float32x4_t v = vreinterpretq_f32_u8(vqtbl4q_u8(table, at));
        i = vsraq_n_u32(vaddq_u32(i, i), vcgeq_f32(vld1q_f32(x[t] + r), v), 31);
    }
    return i;
}

void encode(Columns a, const int32_t* columns, const float* own, int codebooks, int rows, uint8_t* codes) {
    const int64_t step = code_bytes(codebooks);
    for (int c = 0; c < padded(codebooks); ++c) {
        const float* x[4] = {a.base, a.base, a.base, a.base};
        for (int t = 0; t < 4 && c < codebooks; ++t) x[t] = a.base + columns[4 * c + t] * a.stride;
        const float* v = own + 32 * (c < codebooks ? c : 0);
        const uint8_t* bytes = reinterpret_cast<const uint8_t*>(v);
        const uint8x16x4_t table = {{vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32), vld1q_u8(bytes + 48)}};
        for (int r = 0; r < rows; r += kHalf) {
            uint8_t* to = codes + r / kBlock * step + c * kBlock + r % kBlock;
            if (c >= codebooks) {
                vst1q_u8(to, vdupq_n_u8(0));
                continue;
            }
            const uint16x4_t n0 = vmovn_u32(walk4(x, r, table, v[0])), n1 = vmovn_u32(walk4(x, r + 4, table, v[0]));
            const uint16x4_t n2 = vmovn_u32(walk4(x, r + 8, table, v[0])), n3 = vmovn_u32(walk4(x, r + 12, table, v[0]));
            const uint8x8_t low = vmovn_u16(vcombine_u16(n0, n1)), high = vmovn_u16(vcombine_u16(n2, n3));
            vst1q_u8(to, vcombine_u8(low, high));
        }
    }
}

// 32 rows x NO outputs, in row order: four chains of widening additions an output, codes loaded once.
template <int NO>
NEON_INLINE void exact(const uint8_t* codes, const uint8_t* tables, int count, int pitch, int rows, uint16_t* to) {
    uint16x8_t sum[NO][4];
#pragma GCC unroll 4
    for (int o = 0; o < NO; ++o) sum[o][0] = sum[o][1] = sum[o][2] = sum[o][3] = vdupq_n_u16(0);
    for (int c = 0; c < count; ++c) {
        const uint8x16_t first = vld1q_u8(codes + c * kBlock), second = vld1q_u8(codes + c * kBlock + kHalf);
#pragma GCC unroll 4
        for (int o = 0; o < NO; ++o) {
            const uint8x16_t table = vld1q_u8(tables + (static_cast<int64_t>(o) * pitch + c) * kPrototypes);
            const uint8x16_t a = vqtbl1q_u8(table, first), b = vqtbl1q_u8(table, second);
            sum[o][0] = vaddw_u8(sum[o][0], vget_low_u8(a));
            sum[o][1] = vaddw_high_u8(sum[o][1], a);
            sum[o][2] = vaddw_u8(sum[o][2], vget_low_u8(b));
            sum[o][3] = vaddw_high_u8(sum[o][3], b);
        }
    }
#pragma GCC unroll 4
    for (int o = 0; o < NO; ++o)
        for (int k = 0; k < 4; ++k) vst1q_u16(to + static_cast<int64_t>(o) * rows + 8 * k, sum[o][k]);
}

// Rounding-average tree over U neighbouring codebooks of 16 rows.
template <int U>
NEON_INLINE uint8x16_t mean(const uint8_t* codes, const uint8_t* table) {
    if constexpr (U == 1)
        return vqtbl1q_u8(vld1q_u8(table), vld1q_u8(codes));
    else
        return vrhaddq_u8(mean<U / 2>(codes, table), mean<U / 2>(codes + U / 2 * kBlock, table + U / 2 * kPrototypes));
}

template <int U>
void average(const uint8_t* codes, int64_t step, const uint8_t* table, int count, int rows, uint16_t* to) {
    for (int r = 0; r < rows; r += kHalf) {
        const uint8_t* from = codes + r / kBlock * step + r % kBlock;
        uint16x8_t low = vdupq_n_u16(0), high = vdupq_n_u16(0);
        for (int c = 0; c < count; c += U) {
            const uint8x16_t m = mean<U>(from + c * kBlock, table + c * kPrototypes);
            low = vaddw_u8(low, vget_low_u8(m));
            high = vaddw_high_u8(high, m);
        }
        vst1q_u16(to + r, low);
        vst1q_u16(to + r + 8, high);
    }
}

void averages(const uint8_t* codes, int64_t step, const uint8_t* table, int count, int rows, int upcast, uint16_t* to) {
    switch (upcast) {
        case 1: return average<1>(codes, step, table, count, rows, to);
        case 2: return average<2>(codes, step, table, count, rows, to);
        case 4: return average<4>(codes, step, table, count, rows, to);
        case 8: return average<8>(codes, step, table, count, rows, to);
        case 16: return average<16>(codes, step, table, count, rows, to);
        case 32: return average<32>(codes, step, table, count, rows, to);
        case 64: return average<64>(codes, step, table, count, rows, to);
        default: return average<128>(codes, step, table, count, rows, to);
    }
}

void sums(const uint8_t* codes, const uint8_t* tables, int codebooks, int rows, int outputs, int aggregation,
          int upcast, void* tile) {
    const int pitch = padded(codebooks);
    const int64_t step = code_bytes(codebooks), width = static_cast<int64_t>(pitch) * kPrototypes;
    uint16_t* to = static_cast<uint16_t*>(tile);
    int o = 0;
    for (; aggregation == kExact && o + 4 <= outputs; o += 4)
        for (int r = 0; r < rows; r += kBlock)
            exact<4>(codes + r / kBlock * step, tables + o * width, codebooks, pitch, rows,
                     to + static_cast<int64_t>(o) * rows + r);
    for (; o < outputs; ++o) {
        if (aggregation != kExact) {
            averages(codes, step, tables + o * width, codebooks, rows, upcast, to + static_cast<int64_t>(o) * rows);
            continue;
        }
        for (int r = 0; r < rows; r += kBlock)
            exact<1>(codes + r / kBlock * step, tables + o * width, codebooks, pitch, rows,
                     to + static_cast<int64_t>(o) * rows + r);
    }
}

// 8 rows x 8 outputs of 16-bit sums: t[j] holds the outputs of row j.
NEON_INLINE void transpose(const uint16_t* tile, int rows, int outputs, uint16x8_t t[8]) {
    uint16x8_t m[8];
    for (int o = 0; o < 8; ++o) m[o] = o < outputs ? vld1q_u16(tile + static_cast<int64_t>(o) * rows) : vdupq_n_u16(0);
    uint32x4_t p[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        p[i] = vreinterpretq_u32_u16(vtrn1q_u16(m[2 * i], m[2 * i + 1]));      // even rows, outputs 2 i and 2 i + 1
        p[4 + i] = vreinterpretq_u32_u16(vtrn2q_u16(m[2 * i], m[2 * i + 1]));  // odd rows
    }
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
        const uint32x4_t* q = p + 4 * odd;
        const uint64x2_t a = vreinterpretq_u64_u32(vtrn1q_u32(q[0], q[1])), b = vreinterpretq_u64_u32(vtrn1q_u32(q[2], q[3]));
        const uint64x2_t c = vreinterpretq_u64_u32(vtrn2q_u32(q[0], q[1])), d = vreinterpretq_u64_u32(vtrn2q_u32(q[2], q[3]));
        t[odd] = vreinterpretq_u16_u64(vtrn1q_u64(a, b));
        t[4 + odd] = vreinterpretq_u16_u64(vtrn2q_u64(a, b));
        t[2 + odd] = vreinterpretq_u16_u64(vtrn1q_u64(c, d));
        t[6 + odd] = vreinterpretq_u16_u64(vtrn2q_u64(c, d));
    }
}

void store_f32(const void* tile, int rows, int valid, int outputs, const float* scale, const float* offset, float* out,
               int64_t out_stride) {
    float spare[16] = {0};
    for (int o = 0; o < outputs; ++o) {
        spare[o] = scale[o];
        spare[8 + o] = offset[o];
    }
    const float32x4_t s0 = vld1q_f32(spare), s1 = vld1q_f32(spare + 4);
    const float32x4_t f0 = vld1q_f32(spare + 8), f1 = vld1q_f32(spare + 12);
    for (int r = 0; r < valid; r += 8) {
        uint16x8_t t[8];
        transpose(static_cast<const uint16_t*>(tile) + r, rows, outputs, t);
        for (int j = 0; j < 8 && r + j < valid; ++j) {
            float part[8];
            float* to = out + (r + j) * out_stride;
            float* at = outputs == kGroup ? to : part;
            vst1q_f32(at, vfmaq_f32(f0, vcvtq_f32_u32(vmovl_u16(vget_low_u16(t[j]))), s0));
            vst1q_f32(at + 4, vfmaq_f32(f1, vcvtq_f32_u32(vmovl_high_u16(t[j])), s1));
            for (int o = 0; at == part && o < outputs; ++o) to[o] = part[o];
        }
    }
}

void store_u16(const void* tile, int rows, int valid, int outputs, uint16_t* out, int64_t out_stride) {
    for (int r = 0; r < valid; r += 8) {
        uint16x8_t t[8];
        transpose(static_cast<const uint16_t*>(tile) + r, rows, outputs, t);
        for (int j = 0; j < 8 && r + j < valid; ++j) {
            uint16_t part[8];
            uint16_t* to = out + (r + j) * out_stride;
            vst1q_u16(outputs == kGroup ? to : part, t[j]);
            for (int o = 0; outputs != kGroup && o < outputs; ++o) to[o] = part[o];
        }
    }
}

}  // namespace

const Kernels& neon_kernels() {
    static const Kernels kernels = [] {
        Kernels k = scalar_kernels();  // gathering, packing and columns: plain loops that compilers vectorise
        k.name = "neon";
        k.thresholds = own_thresholds;
        k.encode = encode;
        k.sums = sums;
        k.store_f32 = store_f32;
        k.store_u16 = store_u16;
        return k;
    }();
    return kernels;
}

}  // namespace amm
#endif

// The scalar level: the oracle of every other level, and what runs on a processor that has none of them.
#include "amm.h"

namespace amm {
namespace {

void own_thresholds(const float* heap, int codebooks, float* own) {
    for (int c = 0; c < codebooks; ++c)
        for (int i = 0; i < kNodes; ++i) own[32 * c + i] = heap[kNodes * c + i];
}

// i <- 2 i + [x >= v], level by level; a NaN compares false.
int walk(const float* const x[4], int row, const float* v) {
    int i = 0;
    for (int t = 0; t < 4; ++t) i = 2 * i + (x[t][row] >= v[(1 << t) - 1 + i] ? 1 : 0);
    return i;
}

void encode(Columns a, const int32_t* columns, const float* own, int codebooks, int rows, uint8_t* codes) {
    for (int c = 0; c < padded(codebooks); ++c) {
        const float* x[4] = {a.base, a.base, a.base, a.base};
        for (int t = 0; t < 4 && c < codebooks; ++t) x[t] = a.base + columns[4 * c + t] * a.stride;
        for (int r = 0; r < rows; ++r)
            codes[r / kBlock * code_bytes(codebooks) + c * kBlock + r % kBlock] =
                static_cast<uint8_t>(c < codebooks ? walk(x, r, own + 32 * c) : 0);
    }
}

void gather(const float* a, int64_t row_stride, const int32_t* groups, const int32_t* slots, int n_groups, int rows,
            float* out, int64_t out_stride) {
    const int ahead = rows_ahead(groups, n_groups);
    for (int g = 0; g < n_groups; ++g)
        if (ahead && begins_line(groups, g))
            for (int r = 0; r < rows; ++r) __builtin_prefetch(a + (r + ahead) * row_stride + groups[g], 0, 2);
    for (int g = 0; g < n_groups; ++g)
        for (int i = 0; i < 4; ++i) {
            if (slots[4 * g + i] < 0) continue;
            float* to = out + slots[4 * g + i] * out_stride;
            const float* from = a + groups[g] + i;
            for (int r = 0; r < rows; ++r) to[r] = from[r * row_stride];
        }
}

void pack(const uint8_t* codes, int codebooks, int rows, uint8_t* packed) {
    const int pairs = (codebooks + 1) / 2;
    for (int b = 0; b < rows / kBlock; ++b)
        for (int j = 0; j < pairs; ++j) {
            const uint8_t* low = codes + b * code_bytes(codebooks) + 2 * j * kBlock;
            uint8_t* to = packed + (static_cast<int64_t>(b) * pairs + j) * kBlock;
            for (int r = 0; r < kBlock; ++r) to[r] = static_cast<uint8_t>(low[r] | (low[kBlock + r] << 4));
        }
}

void unpack(const uint8_t* packed, int codebooks, int rows, uint8_t* codes) {
    const int pairs = (codebooks + 1) / 2;
    for (int b = 0; b < rows / kBlock; ++b)
        for (int j = 0; j < padded(codebooks) / 2; ++j) {
            uint8_t* low = codes + b * code_bytes(codebooks) + 2 * j * kBlock;
            const uint8_t* from = packed + (static_cast<int64_t>(b) * pairs + j) * kBlock;
            for (int r = 0; r < kBlock; ++r) {
                low[r] = j < pairs ? from[r] & 15 : 0;
                low[kBlock + r] = j < pairs ? from[r] >> 4 : 0;
            }
        }
}

// Balanced tree of rounding averages over neighbours: mean(a, b) = (a + b + 1) >> 1.
int mean(const uint8_t* codes, const uint8_t* tables, int count) {
    if (count == 1) return tables[codes[0]];
    const int half = count / 2;
    const int left = mean(codes, tables, half);
    const int right = mean(codes + half * kBlock, tables + half * kPrototypes, half);
    return (left + right + 1) >> 1;
}

void sums(const uint8_t* codes, const uint8_t* tables, int codebooks, int rows, int outputs, int aggregation,
          int upcast, void* tile) {
    const int step = aggregation == kAverage ? upcast : 1;
    for (int o = 0; o < outputs; ++o) {
        const uint8_t* table = tables + static_cast<int64_t>(o) * padded(codebooks) * kPrototypes;
        uint16_t* to = static_cast<uint16_t*>(tile) + static_cast<int64_t>(o) * rows;
        for (int r = 0; r < rows; ++r) {
            const uint8_t* code = codes + r / kBlock * code_bytes(codebooks) + r % kBlock;
            int sum = 0;
            for (int c = 0; c < codebooks; c += step)
                sum += mean(code + c * kBlock, table + c * kPrototypes, step);
            to[r] = static_cast<uint16_t>(sum);
        }
    }
}

void store_f32(const void* tile, int rows, int valid, int outputs, const float* scale, const float* offset, float* out,
               int64_t out_stride) {
    const uint16_t* from = static_cast<const uint16_t*>(tile);
    for (int r = 0; r < valid; ++r)
        for (int o = 0; o < outputs; ++o)
            out[r * out_stride + o] =
                __builtin_fmaf(static_cast<float>(from[static_cast<int64_t>(o) * rows + r]), scale[o], offset[o]);
}

void store_u16(const void* tile, int rows, int valid, int outputs, uint16_t* out, int64_t out_stride) {
    const uint16_t* from = static_cast<const uint16_t*>(tile);
    for (int r = 0; r < valid; ++r)
        for (int o = 0; o < outputs; ++o) out[r * out_stride + o] = from[static_cast<int64_t>(o) * rows + r];
}

void column_u16(const void* tile, int rows, uint16_t* out) {
    const uint16_t* from = static_cast<const uint16_t*>(tile);
    for (int r = 0; r < rows; ++r) out[r] = from[r];
}

}  // namespace

const Kernels& scalar_kernels() {
    static const Kernels kernels = {"scalar", 2, own_thresholds, encode,    gather,    pack,
                                    unpack,   sums, store_f32,      store_u16, column_u16, nullptr, nullptr};
    return kernels;
}

}  // namespace amm

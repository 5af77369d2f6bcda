// Shared declarations of the CPU kernels for tree-encoded approximate products (MADDNESS, arXiv 2106.10860).
//
// A kernel works on one chunk of rows, a multiple of kBlock; buffers are padded by the driver and no pointer is assumed
// to be aligned. The driver (driver.cpp) checks every size before a kernel sees it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace amm {

constexpr int kBlock = 32;          // rows of one block of packed codes
constexpr int kTileRows = 256;      // most rows of a tile
constexpr int kChunk = kTileRows;   // rows; codes of 64 codebooks and the tables of 8 outputs then fit a 32 KiB L1
constexpr int kGroup = 8;           // outputs that one transposing store handles
constexpr int kPrototypes = 16;     // 4-bit codes, four levels
constexpr int kNodes = 15;          // thresholds of a tree in heap order
constexpr int kMaxTrees = 1 << 15;  // codebooks that may be encoded
constexpr int kMaxUpcast = 128;
constexpr int kMaxCodebooks = 257;  // 257 * 255 = 65535: the largest count whose sums fit 16 bits

inline int padded(int codebooks) { return (codebooks + 3) & ~3; }
inline int64_t code_bytes(int codebooks) { return static_cast<int64_t>(padded(codebooks)) * kBlock; }

// What the C functions return.
enum Error {
    kOk = 0, kNull = 1, kSize = 2, kColumn = 3, kBuffer = 4, kCodebooks = 5, kUpcast = 6, kMemory = 7, kLevel = 8,
    kOutput = 9
};
enum Aggregation { kExact = 0, kAverage = 1 };
enum Output { kFloat = 0, kU16 = 1, kU16Columns = 2, kU8 = 3 };

// Unpacked codes of a chunk, block after block of code_bytes(C) bytes, ceil4(C) codebooks (padding has code 0):
//   plain: byte [block][c][r % 32] = code
//   quad:  byte [block][c / 4][r % 2][r % 32 / 2][c % 4] = code + 16 * (c % 4), the index of a 64-byte permute
// Columns of floats whose rows are contiguous: element (r, j) is base[j * stride + r]. A kernel may ask for the element
// `ahead` rows further on; 0: it has nothing to ask for.
struct Columns {
    const float* base;
    int64_t stride, ahead;
};

// What the next chunk will read, fetched little by little while look-ups leave the memory idle. Along rows, unit u is
// the row base + u * stride with `n` lines at which[i]; else it is the column base + which[u] * stride with `n` lines.
// Kernels spread what is left of them over a job.
struct Ahead {
    const float* base = nullptr;
    int64_t stride = 0;
    const int32_t* which = nullptr;
    int n = 0, units = 0, next = 0;
    bool rows = false;
    void fetch(int until) {
        for (; next < until; ++next)
            for (int i = 0; i < n; ++i)
                __builtin_prefetch(rows ? base + next * stride + which[i] : base + which[next] * stride + 16 * i, 0, 2);
    }
};

// What memory is asked for while look-ups compute: the next chunk's input, and the lines that are written soon, `lead`
// bytes before they are.
struct Beside {
    Ahead ahead;
    const char *begin = nullptr, *end = nullptr, *next = nullptr;  // of the job's outputs; of all that may be asked for
    int64_t bytes = 0, lead = 0;

    // As much of it as belongs to this share of the job.
    void at(double share) {
        ahead.fetch(static_cast<int>(ahead.units * share));
        if (!begin) return;
        const char* until = begin + static_cast<int64_t>(static_cast<double>(bytes) * share) + lead;
        if (until > end) until = end;
        for (; next < until; next += 64) __builtin_prefetch(next, 1, 2);
    }
};

// Rows that are gathered ask for later ones: a row's lines are too few and too far apart to be foreseen by the processor.
inline bool begins_line(const int32_t* groups, int g) { return g == 0 || (groups[g] ^ groups[g - 1]) >> 4; }

// How many rows ahead: as many as half of a small L2 holds beside the present ones, at least 16; 0: none.
inline int rows_ahead(const int32_t* groups, int n_groups) {
    int lines = 0;
    for (int g = 0; g < n_groups; ++g) lines += begins_line(groups, g);
    if (lines < 16) return 0;  // few: fetched during look-ups (Ahead), whole chunks at a time
    const int rows = 2048 / lines / 8 * 8;
    return rows < 16 ? 16 : rows;
}

// Rows of one pass of Kernels::scan over all outputs: what they store should stay in a 48 KiB L1, unless the tables are so
// large that reading them again would cost more.
inline int pass_rows(int m, int codebooks) {
    const int64_t tables = static_cast<int64_t>(m) * padded(codebooks) * kPrototypes;
    return tables > (1 << 19) || m <= 32 ? kTileRows : 2 * kBlock;
}

// Sums of a chunk of whole blocks and their way into the caller's memory.
struct Job {
    const uint8_t *codes, *tables;  // tables [m][ceil4(C)][16]
    int codebooks, rows, m, kind;
    const float *scale, *offset;
    void* out;
    int64_t stride;
    Beside* beside;      // may be null
    const uint8_t* own;  // what Kernels::tables made of the tables; may be null
};

struct Kernels {
    const char* name;
    int tile_bytes;  // bytes of one sum in a tile
    // Thresholds [C, 15] into the kernel's own order, 32 floats a codebook.
    void (*thresholds)(const float* heap, int codebooks, float* own);
    // Codes of `rows` rows.
    void (*encode)(Columns a, const int32_t* columns, const float* own, int codebooks, int rows, uint8_t* codes);
    // Row-major rows into columns: group g covers columns groups[g]..+3, column i goes to slot slots[4 g + i] (-1: not
    // needed). `rows` is a multiple of 8.
    void (*gather)(const float* a, int64_t row_stride, const int32_t* groups, const int32_t* slots, int n_groups,
                   int rows, float* out, int64_t out_stride);
    // Packed bytes of a chunk, [block][ceil2(C) / 2][32], low nibble the even codebook.
    void (*pack)(const uint8_t* codes, int codebooks, int rows, uint8_t* packed);
    void (*unpack)(const uint8_t* packed, int codebooks, int rows, uint8_t* codes);
    // Sums of `outputs` outputs; tables [outputs][ceil4(C)][16]. Output o starts at element o * rows of the tile; the
    // order of rows inside a block is the kernel's own affair.
    void (*sums)(const uint8_t* codes, const uint8_t* tables, int codebooks, int rows, int outputs, int aggregation,
                 int upcast, void* tile);
    // Up to kGroup outputs of a tile, `valid` <= `rows` rows, row-major: float32 = sum * scale + offset, or 16 bits.
    void (*store_f32)(const void* tile, int rows, int valid, int outputs, const float* scale, const float* offset,
                      float* out, int64_t out_stride);
    void (*store_u16)(const void* tile, int rows, int valid, int outputs, uint16_t* out, int64_t out_stride);
    // One output in row order.
    void (*column_u16)(const void* tile, int rows, uint16_t* out);
    // All of this at once for exact sums; null: by tiles, as above.
    void (*scan)(const Job& job);
    // Tables in an order of the level's own, as many bytes; null: as they come.
    void (*tables)(const uint8_t* tables, int codebooks, int outputs, uint8_t* own);
};

// Codes of 32 rows in one codebook of centroids (nearest.cpp): element (r, j) of its columns is x[j * stride + r].
using Nearest = void (*)(const float* x, int64_t stride, const float* own, int columns, uint8_t* codes);
void nearest_scalar(const float* x, int64_t stride, const float* own, int columns, uint8_t* codes);
#if defined(__x86_64__)
// Rows of 1 to 7 outputs (few.cpp): row r of output o is from[o * apart + r]; float32 = sum * scale + offset.
void rows_of_columns(const uint16_t* from, int64_t apart, int rows, int outputs, const float* scale,
                     const float* offset, float* out, int64_t stride);
void nearest_avx2(const float* x, int64_t stride, const float* own, int columns, uint8_t* codes);
#endif

// Codes of 32 rows of bytes by one tree (bytes.cpp): x[t] is the column of level t.
using WalkBytes = void (*)(const uint8_t* const x[4], const uint8_t* own, uint8_t* codes);
void walk_bytes_scalar(const uint8_t* const x[4], const uint8_t* own, uint8_t* codes);
#if defined(__x86_64__)
void walk_bytes_avx2(const uint8_t* const x[4], const uint8_t* own, uint8_t* codes);
// 32 rows of bytes into columns: group g covers starts[g]..+15, its column i goes to slot slots[16 g + i] (-1: not needed).
void columns_of_bytes_avx2(const uint8_t* a, int64_t row_stride, const int32_t* starts, const int32_t* slots, int groups,
                           uint8_t* stage);
#endif

const Kernels& scalar_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& vbmi_kernels();
const Kernels& amx_kernels();
bool amx_ready();  // what no compiler's own check tells: the system's leave
#elif defined(__aarch64__)
const Kernels& neon_kernels();
#endif

}  // namespace amm

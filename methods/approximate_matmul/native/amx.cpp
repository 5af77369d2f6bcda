// The level with AMX: look-ups as products of bytes. A row's codes of four codebooks become 64 bytes with four ones, 16
// such rows are a tile, and the tables of four codebooks and 16 outputs are another: one instruction adds 1024 look-ups in
// 16 cycles, 64 a cycle like the permutes of the VBMI level, but beside the vector units, which meanwhile write the next
// one-hot rows and turn the last sums into floats. Sums come row by row, so nothing is transposed.
#include <cstring>

#include "source.h"
#include "walk512.h"
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace amm {
namespace {

constexpr int kSide = 16;                    // rows and outputs of a tile
constexpr int kTile = kSide * 64;            // its bytes
constexpr int kSet = 2 * kSide;              // rows (a block) and outputs of one set of four sums
constexpr int kSetSums = 4 * kSide * kSide;  // 32-bit sums of a set

struct Config {  // of the eight tiles: 16 rows of 64 bytes each
    uint8_t palette = 1, start = 0, reserved[14] = {0};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// What compilers are not told: tile instructions read and write more memory than their operands say.
#define BARRIER __asm__ volatile("" ::: "memory")

// Other libraries may leave tiles configured and expect them so: what was there is put back.
struct Tiles {
    alignas(64) uint8_t before[64];
    TARGET_AMX Tiles() {
        alignas(64) static constexpr Config wanted;
        _tile_storeconfig(before);
        _tile_loadconfig(&wanted);
        BARRIER;
    }
    TARGET_AMX ~Tiles() {
        BARRIER;
        if (before[0])
            _tile_loadconfig(before);
        else
            _tile_release();
    }
};

// Four registers of 16 elements: afterwards x[i] holds in lane l what all four had at 4 l + i.
TARGET_AMX INLINE void transpose4(__m512i x[4]) {
    const __m512i a0 = _mm512_unpacklo_epi32(x[0], x[1]), a1 = _mm512_unpackhi_epi32(x[0], x[1]);
    const __m512i b0 = _mm512_unpacklo_epi32(x[2], x[3]), b1 = _mm512_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi64(a0, b0);
    x[1] = _mm512_unpackhi_epi64(a0, b0);
    x[2] = _mm512_unpacklo_epi64(a1, b1);
    x[3] = _mm512_unpackhi_epi64(a1, b1);
}

// Tables as tiles, [m / 16][c / 4][entry / 4][output][entry % 4]: every output's 64 bytes of four codebooks, in fours.
TARGET_AMX void tables(const uint8_t* from, int codebooks, int m, uint8_t* to) {
    const int64_t step = static_cast<int64_t>(padded(codebooks)) * kPrototypes;
    for (int g = 0; g + kSide <= m; g += kSide, from += kSide * step)
        for (int64_t q = 0; q < step; q += 64, to += kTile)
            for (int n = 0; n < kSide; n += 4) {
                __m512i x[4];
                for (int i = 0; i < 4; ++i) x[i] = _mm512_loadu_si512(from + (n + i) * step + q);
                transpose4(x);
                for (int i = 0; i < 4; ++i) {
                    alignas(64) uint8_t lanes[64];
                    _mm512_store_si512(lanes, x[i]);
                    for (int l = 0; l < 4; ++l) std::memcpy(to + 64 * (4 * l + i) + 4 * n, lanes + 16 * l, 16);
                }
            }
}

// One-hot rows of one quad of a block: [row % 2][row / 2][64].
TARGET_AMX INLINE void ones_of(const uint8_t* quad, uint8_t* hot, int64_t half) {
    const __m512i spread = _mm512_set_epi64(0x0303030303030303, 0x0303030303030303, 0x0202020202020202, 0x0202020202020202,
                                            0x0101010101010101, 0x0101010101010101, 0, 0);
    alignas(64) static const uint8_t count[64] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                  16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                                                  32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
                                                  48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    const __m512i place = _mm512_load_si512(count), one = _mm512_set1_epi8(1);
    for (int h = 0; h < 2; ++h)
#pragma GCC unroll 4
        for (int i = 0; i < kSide; ++i) {
            int32_t codes;
            std::memcpy(&codes, quad + 64 * h + 4 * i, 4);
            const __m512i four = _mm512_shuffle_epi8(_mm512_set1_epi32(codes), spread);
            _mm512_storeu_si512(hot + h * half + 64 * i, _mm512_maskz_mov_epi8(_mm512_cmpeq_epi8_mask(four, place), one));
        }
}

// Sums of one set on their way to the caller: rows in order, 16 or 32 outputs each.
struct Pending {
    const int32_t* sums = nullptr;  // [row][32]
    const float *scale = nullptr, *offset = nullptr;
    float* out = nullptr;
    int64_t stride = 0;
    bool two = false;
    int next = kSet;
    TARGET_AMX INLINE_MEMBER void finish(int rows) {
        const int until = next + rows < kSet ? next + rows : kSet;
        if (next >= until) return;
        const int second = two ? kSide : 0;  // without a second half the first is done twice
        const __m512 a0 = _mm512_loadu_ps(scale), a1 = _mm512_loadu_ps(scale + second);
        const __m512 b0 = _mm512_loadu_ps(offset), b1 = _mm512_loadu_ps(offset + second);
        const int32_t* from = sums + next * kSet;
        for (float* to = out + next * stride; next < until; ++next, to += stride, from += kSet) {
            const __m512 x = _mm512_cvtepi32_ps(_mm512_load_si512(from));
            const __m512 y = _mm512_cvtepi32_ps(_mm512_load_si512(from + second));
            _mm512_storeu_ps(to, _mm512_fmadd_ps(x, a0, b0));
            _mm512_storeu_ps(to + second, _mm512_fmadd_ps(y, a1, b1));
        }
    }
};

// One set: 32 rows x 32 (GROUPS 2) or 16 outputs. With `codes`, the one-hot rows are written on the way, a quad early.
template <int GROUPS>
TARGET_AMX void set_of_sums(const uint8_t* codes, uint8_t* hot, const uint8_t* tables, int quads, int32_t* sums,
                            Pending& pending) {
    const int64_t half = static_cast<int64_t>(quads) * kTile;
    const int rows = (kSet + quads - 1) / quads;
    if (codes) ones_of(codes, hot, half);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int q = 0; q < quads; ++q) {
        BARRIER;
        _tile_loadd(4, hot + q * kTile, 64);
        _tile_loadd(6, tables + q * kTile, 64);
        _tile_dpbuud(0, 4, 6);
        _tile_loadd(5, hot + half + q * kTile, 64);
        _tile_dpbuud(2, 5, 6);
        if constexpr (GROUPS == 2) {
            _tile_loadd(7, tables + half + q * kTile, 64);
            _tile_dpbuud(1, 4, 7);
            _tile_dpbuud(3, 5, 7);
        }
        if (codes && q + 1 < quads) ones_of(codes + (q + 1) * 4 * kBlock, hot + (q + 1) * kTile, half);
        pending.finish(rows);
    }
    pending.finish(kSet);
    constexpr int two_rows = 2 * kSet * sizeof(int32_t);
    _tile_stored(0, sums, two_rows);
    _tile_stored(2, sums + kSet, two_rows);
    if constexpr (GROUPS == 2) {
        _tile_stored(1, sums + kSide, two_rows);
        _tile_stored(3, sums + kSet + kSide, two_rows);
    }
    BARRIER;
}

TARGET_AMX void scan_floats(const Job& j) {
    const int count = padded(j.codebooks), quads = count / 4, groups = j.m / kSide;
    const int64_t tile_row = static_cast<int64_t>(quads) * kTile;
    uint8_t* hot = static_cast<uint8_t*>(
        tile_scratch.take(static_cast<size_t>(2 * tile_row) + 2 * kSetSums * sizeof(int32_t)));
    int32_t* sums[2] = {reinterpret_cast<int32_t*>(hot + 2 * tile_row), nullptr};
    sums[1] = sums[0] + kSetSums;
    const int64_t sets = static_cast<int64_t>((groups + 1) / 2) * (j.rows / kBlock);
    int64_t done = 0;
    Pending pending;
    const Tiles tiles;
    for (int r = 0; r < j.rows; r += kBlock)
        for (int g = 0; g < groups; g += 2) {
            const uint8_t* codes = g ? nullptr : j.codes + r / kBlock * code_bytes(j.codebooks);
            int32_t* to = sums[done % 2];
            const bool two = g + 2 <= groups;
            if (two)
                set_of_sums<2>(codes, hot, j.own + g * tile_row, quads, to, pending);
            else
                set_of_sums<1>(codes, hot, j.own + g * tile_row, quads, to, pending);
            pending.sums = to;
            pending.scale = j.scale + kSide * g;
            pending.offset = j.offset + kSide * g;
            pending.out = static_cast<float*>(j.out) + r * j.stride + kSide * g;
            pending.stride = j.stride;
            pending.two = two;
            pending.next = 0;
            ++done;
            if (j.beside) j.beside->at(static_cast<double>(done) / static_cast<double>(sets));
        }
    pending.finish(kSet);
}

// What tiles do not cover, the permutes do: other outputs than floats and the last outputs, fewer than 16.
void scan(const Job& j) {
    const auto narrow = vbmi_kernels().scan;
    if (j.kind != kFloat || !j.own || j.m < kSide) return narrow(j);
    scan_floats(j);
    const int left = j.m % kSide, outputs = left < 4 ? 4 : left, first = j.m - outputs;
    if (!left) return;
    Job rest = j;
    rest.tables += static_cast<int64_t>(first) * padded(j.codebooks) * kPrototypes;
    rest.scale += first;
    rest.offset += first;
    rest.out = static_cast<float*>(j.out) + first;
    rest.m = outputs;
    rest.beside = nullptr;
    narrow(rest);
}

}  // namespace

// The processor has tiles of bytes, the system saves them, and it lets this process use them.
bool amx_ready() {
#ifdef AMM_INTRINSICS
    return true;
#else
    static const bool ready = [] {
        unsigned a = 0, b = 0, c = 0, d = 0;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 24 & 3) != 3) return false;  // AMX-TILE, AMX-INT8
        if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;               // OSXSAVE
        unsigned low = 0, high = 0;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        if ((low >> 17 & 3) != 3) return false;  // tile configuration and data
        constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA of Linux
        return syscall(SYS_arch_prctl, request, tile_data) == 0;
    }();
    return ready;
#endif
}

const Kernels& amx_kernels() {
    static const Kernels kernels = [] {
        Kernels k = vbmi_kernels();
        k.name = "avx512amx";
        k.tables = tables;
        k.scan = scan;
        return k;
    }();
    return kernels;
}

}  // namespace amm
#elif defined(__x86_64__)
namespace amm {
bool amx_ready() { return false; }
const Kernels& amx_kernels() { return vbmi_kernels(); }
}  // namespace amm
#endif

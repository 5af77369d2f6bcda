// The AVX-512 VBMI and VNNI level. A 64-byte register holds the tables of FOUR codebooks for one output: one byte permute
// looks up 4 codebooks x 16 rows and one dot product with ones adds the four exactly in 32 bits. Two instructions for 64
// look-ups, one of them on the only port that permutes on Intel's processors: 64 look-ups a cycle is the bound. Sums stay
// in registers until they are floats in the caller's rows.
#include <cstring>

#include "walk512.h"
#if defined(__x86_64__)

namespace amm {
namespace {

constexpr int kSpare = (kMaxCodebooks + 3) / 4 * 4 * kPrototypes;

// The lower or the upper two codebooks of four: the first leave their bytes in the order of rows, the last complete them
// to indices of a permute, even rows first.
template <int TREES, bool FIRST, bool LAST, int GROUPS>
TARGET_VBMI INLINE void encode_rows(const float* const x[2][4], const Tree (&tree)[2], int64_t ahead, int64_t step, uint8_t* codes) {
    __m512i i[2][GROUPS];
    if (ahead)
        walk<TREES, GROUPS, true>(x, tree, ahead, i);
    else
        walk<TREES, GROUPS, false>(x, tree, 0, i);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1)), base = _mm512_set1_epi32(0x30201000);
#pragma GCC unroll 2
    for (int h = 0; h < GROUPS / 2; ++h, codes += step) {
        __m512i q[2];
#pragma GCC unroll 2
        for (int g = 0; g < 2; ++g) {
            q[g] = i[0][2 * h + g];
            if (TREES > 1) q[g] = _mm512_or_si512(q[g], _mm512_slli_epi32(i[1][2 * h + g], 8));
            if (!FIRST) q[g] = _mm512_or_si512(_mm512_loadu_si512(codes + 64 * g), _mm512_slli_epi32(q[g], 16));
            if (LAST) q[g] = _mm512_or_si512(q[g], base);
        }
        _mm512_storeu_si512(codes, LAST ? _mm512_permutex2var_epi32(q[0], even, q[1]) : q[0]);
        _mm512_storeu_si512(codes + 64, LAST ? _mm512_permutex2var_epi32(q[0], odd, q[1]) : q[1]);
    }
}

template <int TREES, bool FIRST, bool LAST>
TARGET_VBMI void encode_pair(Columns a, const int32_t* columns, const float* own, int64_t step, int rows, uint8_t* codes) {
    const Tree tree[2] = {Tree(own), Tree(own + (TREES > 1 ? 32 : 0))};
    const float* x[2][4];
    for (int t = 0; t < 2; ++t) columns_of(a, columns, t < TREES ? t : 0, x[t]);
    int r = 0;
    const auto forward = [&](int by) {
        r += by;
        codes += by / kBlock * step;
        for (int t = 0; t < 2; ++t)
            for (int level = 0; level < 4; ++level) x[t][level] += by;
    };
    for (; r + 2 * kBlock <= rows; forward(2 * kBlock)) encode_rows<TREES, FIRST, LAST, 4>(x, tree, a.ahead, step, codes);
    for (; r < rows; forward(kBlock)) encode_rows<TREES, FIRST, LAST, 2>(x, tree, a.ahead, step, codes);
}

TARGET_VBMI void encode(Columns a, const int32_t* columns, const float* own, int codebooks, int rows, uint8_t* codes) {
    const int64_t step = code_bytes(codebooks);
    for (int c = 0; c < codebooks; c += 4, columns += 16, own += 128, codes += 4 * kBlock) switch (codebooks - c) {
            case 1: encode_pair<1, true, true>(a, columns, own, step, rows, codes); break;
            case 2: encode_pair<2, true, true>(a, columns, own, step, rows, codes); break;
            case 3:
                encode_pair<2, true, false>(a, columns, own, step, rows, codes);
                encode_pair<1, false, true>(a, columns + 8, own + 64, step, rows, codes);
                break;
            default:
                encode_pair<2, true, false>(a, columns, own, step, rows, codes);
                encode_pair<2, false, true>(a, columns + 8, own + 64, step, rows, codes);
        }
}

// Bytes 64 p + i of two packed pairs side by side, p the pair and i the row.
TARGET_VBMI void unpack(const uint8_t* packed, int codebooks, int rows, uint8_t* codes) {
    const int pairs = (codebooks + 1) / 2;
    // Eight bytes hold two rows: both pairs' bytes of row 2 i + h, then those of row 2 i + h + 2.
    alignas(64) uint8_t pick[64];
    for (int i = 0; i < 64; ++i) pick[i] = static_cast<uint8_t>(4 * (i / 8) + (i / 2 % 2) * 2 + 32 * (i % 2));
    const __m512i first = _mm512_load_si512(pick), second = _mm512_or_si512(first, _mm512_set1_epi8(1));
    const __m512i nibbles = _mm512_set1_epi64(0x1c1814100c080400), low = _mm512_set1_epi8(15);
    const __m512i base = _mm512_set1_epi32(0x30201000);
    for (int b = 0; b < rows / kBlock; ++b, packed += pairs * kBlock)
        for (int c = 0; c < padded(codebooks); c += 4, codes += 4 * kBlock) {
            const uint8_t* from = packed + c / 2 * kBlock;
            const __m512i both = c / 2 + 1 < pairs
                                     ? _mm512_loadu_si512(from)
                                     : _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
            const __m512i x = _mm512_multishift_epi64_epi8(nibbles, _mm512_permutexvar_epi8(first, both));
            const __m512i y = _mm512_multishift_epi64_epi8(nibbles, _mm512_permutexvar_epi8(second, both));
            _mm512_storeu_si512(codes, _mm512_or_si512(_mm512_and_si512(x, low), base));
            _mm512_storeu_si512(codes + 64, _mm512_or_si512(_mm512_and_si512(y, low), base));
        }
}

TARGET_VBMI void pack(const uint8_t* codes, int codebooks, int rows, uint8_t* packed) {
    const int pairs = (codebooks + 1) / 2;
    alignas(64) uint8_t pick[64];
    for (int i = 0; i < 64; ++i) pick[i] = static_cast<uint8_t>(i % 32 / 2 * 4 + i / 32 * 2 + i % 2);
    const __m512i order = _mm512_load_si512(pick), weights = _mm512_set1_epi16(0x1001);
    const __m512i low = _mm512_set1_epi8(15), byte = _mm512_set1_epi16(255);
    for (int b = 0; b < rows / kBlock; ++b, packed += pairs * kBlock)
        for (int c = 0; c < padded(codebooks); c += 4, codes += 4 * kBlock) {
            // A word of a row's dword: the byte of two codebooks.
            const __m512i x = _mm512_maddubs_epi16(_mm512_and_si512(_mm512_loadu_si512(codes), low), weights);
            const __m512i y = _mm512_maddubs_epi16(_mm512_and_si512(_mm512_loadu_si512(codes + 64), low), weights);
            const __m512i rows2 = _mm512_or_si512(_mm512_and_si512(x, byte), _mm512_slli_epi16(y, 8));
            const __m512i both = _mm512_permutexvar_epi8(order, rows2);
            uint8_t* to = packed + c / 2 * kBlock;
            if (c / 2 + 1 < pairs)
                _mm512_storeu_si512(to, both);
            else
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(both));
        }
}

template <int NO>
struct Sums {
    __m512i v[NO][2];  // even rows and odd rows of a block
};

template <int NO>
TARGET_VBMI INLINE void look_up(const uint8_t* codes, const uint8_t* tables, int count, Sums<NO>& s) {
    const __m512i ones = _mm512_set1_epi8(1);
    const int64_t step = static_cast<int64_t>(count) * kPrototypes;
#pragma GCC unroll 8
    for (int o = 0; o < NO; ++o) s.v[o][0] = s.v[o][1] = _mm512_setzero_si512();
    int c = 0;
    do {  // count is never 0
        const __m512i even = _mm512_loadu_si512(codes + c * kBlock), odd = _mm512_loadu_si512(codes + c * kBlock + 64);
#pragma GCC unroll 8
        for (int o = 0; o < NO; ++o) {
            const __m512i t = _mm512_loadu_si512(tables + o * step + c * kPrototypes);
            s.v[o][0] = _mm512_dpbusd_epi32(s.v[o][0], _mm512_permutexvar_epi8(even, t), ones);
            s.v[o][1] = _mm512_dpbusd_epi32(s.v[o][1], _mm512_permutexvar_epi8(odd, t), ones);
            KEEP(s.v[o][0]);
            KEEP(s.v[o][1]);
        }
    } while ((c += 4) < count);
}

// Sums of two outputs side by side: none exceeds 16 bits.
TARGET_VBMI INLINE __m512i two(__m512i low, __m512i high) { return _mm512_or_si512(low, _mm512_slli_epi32(high, 16)); }

// Four registers of 16 rows: afterwards x[i] holds in lane l what all four had for row 4 l + i.
TARGET_VBMI INLINE void transpose4(__m512i x[4]) {
    const __m512i a0 = _mm512_unpacklo_epi32(x[0], x[1]), a1 = _mm512_unpackhi_epi32(x[0], x[1]);
    const __m512i b0 = _mm512_unpacklo_epi32(x[2], x[3]), b1 = _mm512_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi64(a0, b0);
    x[1] = _mm512_unpackhi_epi64(a0, b0);
    x[2] = _mm512_unpacklo_epi64(a1, b1);
    x[3] = _mm512_unpackhi_epi64(a1, b1);
}

// Where rows 8 apart go: lane l of transpose4's x[i] is row 2 (4 l + i) + h of the block.
template <class T>
struct Lines {
    T* at;
    int64_t step, far, two;  // 8, 24 and 2 rows
    TARGET_VBMI INLINE_MEMBER Lines(T* out, int64_t stride) : at(out), step(8 * stride), far(24 * stride), two(2 * stride) {}
    TARGET_VBMI INLINE_MEMBER void next() {
        at += two;
        OPAQUE(at);  // else all 32 addresses are computed beforehand and kept on the stack
    }
    // As floats whatever they are: compilers then store a quarter without the shuffle that extracts it.
    TARGET_VBMI INLINE_MEMBER void put(__m512 v) const {
        _mm_storeu_ps(reinterpret_cast<float*>(at), _mm512_castps512_ps128(v));
        _mm_storeu_ps(reinterpret_cast<float*>(at + step), _mm512_extractf32x4_ps(v, 1));
        _mm_storeu_ps(reinterpret_cast<float*>(at + 2 * step), _mm512_extractf32x4_ps(v, 2));
        _mm_storeu_ps(reinterpret_cast<float*>(at + far), _mm512_extractf32x4_ps(v, 3));
    }
    TARGET_VBMI INLINE_MEMBER void put(__m512 first_two, __m512 last_two) const {
        _mm256_storeu_ps(at, _mm512_castps512_ps256(first_two));
        _mm256_storeu_ps(at + step, _mm512_extractf32x8_ps(first_two, 1));
        _mm256_storeu_ps(at + 2 * step, _mm512_castps512_ps256(last_two));
        _mm256_storeu_ps(at + far, _mm512_extractf32x8_ps(last_two, 1));
    }
};

TARGET_VBMI INLINE void put_f32(const Sums<4>& s, const float* scale, const float* offset, float* out, int64_t stride) {
    const __m512 a = _mm512_broadcast_f32x4(_mm_loadu_ps(scale)), b = _mm512_broadcast_f32x4(_mm_loadu_ps(offset));
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        __m512i x[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) x[i] = s.v[i][h];
        transpose4(x);
        Lines<float> lines(out + h * stride, stride);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i, lines.next()) {
            lines.put(_mm512_fmadd_ps(_mm512_cvtepi32_ps(x[i]), a, b));
        }
    }
}

// Eight sums of a row are 16 bytes of two registers' lanes, then 32 bytes of floats.
TARGET_VBMI INLINE void put_f32(const Sums<8>& s, const float* scale, const float* offset, float* out, int64_t stride) {
    const __m512 a = _mm512_broadcast_f32x8(_mm256_loadu_ps(scale)), b = _mm512_broadcast_f32x8(_mm256_loadu_ps(offset));
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        __m512i x[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) x[i] = two(s.v[2 * i][h], s.v[2 * i + 1][h]);
        transpose4(x);
        Lines<float> lines(out + h * stride, stride);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i, lines.next()) {
            const __m512i near = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(x[i]));
            const __m512i far = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x[i], 1));
            lines.put(_mm512_fmadd_ps(_mm512_cvtepi32_ps(near), a, b), _mm512_fmadd_ps(_mm512_cvtepi32_ps(far), a, b));
        }
    }
}

TARGET_VBMI INLINE void put_u16(const Sums<8>& s, uint16_t* out, int64_t stride) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
        __m512i x[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) x[i] = two(s.v[2 * i][h], s.v[2 * i + 1][h]);
        transpose4(x);
        Lines<uint16_t> lines(out + h * stride, stride);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i, lines.next()) {
            lines.put(_mm512_castsi512_ps(x[i]));
        }
    }
}

TARGET_VBMI INLINE __m512i four_bytes(const Sums<8>& s, int first, int h) {
    const __m512i most = _mm512_set1_epi32(255);
    const __m512i a = _mm512_min_epu32(s.v[first][h], most), b = _mm512_min_epu32(s.v[first + 1][h], most);
    const __m512i c = _mm512_min_epu32(s.v[first + 2][h], most), d = _mm512_min_epu32(s.v[first + 3][h], most);
    const __m512i low = _mm512_or_si512(a, _mm512_slli_epi32(b, 8)), high = _mm512_or_si512(c, _mm512_slli_epi32(d, 8));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

TARGET_VBMI INLINE void put_u8(const Sums<8>& s, uint8_t* out, int64_t stride) {
    for (int h = 0; h < 2; ++h) {
        const __m512i x = four_bytes(s, 0, h), y = four_bytes(s, 4, h);
        alignas(64) uint64_t rows[2][8];  // [i / 2][2 lane + i % 2]
        _mm512_store_si512(rows[0], _mm512_unpacklo_epi32(x, y));
        _mm512_store_si512(rows[1], _mm512_unpackhi_epi32(x, y));
        for (int k = 0; k < 16; ++k) std::memcpy(out + (2 * k + h) * stride, &rows[k / 2 % 2][k / 4 * 2 + k % 2], 8);
    }
}

template <int NO>
TARGET_VBMI INLINE void put_columns(const Sums<NO>& s, uint16_t* out, int64_t stride) {
#pragma GCC unroll 8
    for (int o = 0; o < NO; ++o)
        _mm512_storeu_si512(out + o * stride, two(s.v[o][0], s.v[o][1]));
}

template <int NO, int KIND>
TARGET_VBMI void tiles(const Job& job, int from, int to, int first, double block, double& done) {
    const Job j = job;  // a copy: stores through j.out might else change it
    int64_t stride = j.stride;
    const int count = padded(j.codebooks);
    const uint8_t* tables = j.tables + static_cast<int64_t>(first) * count * kPrototypes;
    const uint8_t* codes = j.codes + static_cast<int64_t>(from) * count;
    for (int row = from; row < to; row += kBlock, codes += count * kBlock) {
        Sums<NO> s;
        look_up<NO>(codes, tables, count, s);
        OPAQUE(stride);
        const int64_t at = row * stride + first;
        if constexpr (KIND == kFloat)
            put_f32(s, j.scale + first, j.offset + first, static_cast<float*>(j.out) + at, stride);
        else if constexpr (KIND == kU16Columns)
            put_columns<NO>(s, static_cast<uint16_t*>(j.out) + first * stride + row, stride);
        else if constexpr (KIND == kU16)
            put_u16(s, static_cast<uint16_t*>(j.out) + at, stride);
        else
            put_u8(s, static_cast<uint8_t*>(j.out) + at, stride);
        done += block;
        if (j.beside && (count >= 16 || row + kBlock == to)) j.beside->at(done < 1 ? done : 1);
    }
}

// All outputs in eights; up to four that are left take a narrower tile where there is one. All tiles are whole: the last
// overlaps the one before.
template <int KIND>
TARGET_VBMI void scan_kind(const Job& j) {
    constexpr bool narrow = KIND == kFloat || KIND == kU16Columns;
    const int pass = pass_rows(j.m, j.codebooks), groups = (j.m + 7) / 8;
    const double block = 1.0 / (static_cast<double>(groups) * (j.rows / kBlock));
    double done = 0;
    for (int from = 0; from < j.rows; from += pass) {
        const int to = from + pass < j.rows ? from + pass : j.rows;
        for (int first = 0; first < j.m;) {
            const int left = j.m - first;
            if (narrow && (left <= 4 || j.m < 8)) {
                tiles<narrow ? 4 : 8, KIND>(j, from, to, left < 4 ? j.m - 4 : first, block, done);
                first += 4;
            } else {
                tiles<8, KIND>(j, from, to, left < 8 ? j.m - 8 : first, block, done);
                first += 8;
            }
        }
    }
}

TARGET_VBMI void scan(const Job& j);

// Up to three float outputs: sums of four by column, the last ones empty, then rows of those there are.
TARGET_VBMI void scan_pair(const Job& j) {
    const int count = padded(j.codebooks);
    alignas(64) uint8_t tables[4 * kSpare];
    uint16_t sums[4 * kTileRows];
    std::memset(tables, 0, static_cast<size_t>(4 * count * kPrototypes));
    std::memcpy(tables, j.tables, static_cast<size_t>(j.m * count * kPrototypes));
    for (int from = 0; from < j.rows; from += kTileRows) {
        const int rows = j.rows - from < kTileRows ? j.rows - from : kTileRows;
        scan({j.codes + from / kBlock * code_bytes(j.codebooks), tables, j.codebooks, rows, 4, kU16Columns, nullptr,
              nullptr, sums, rows, j.beside, nullptr});
        rows_of_columns(sums, rows, rows, j.m, j.scale, j.offset, static_cast<float*>(j.out) + from * j.stride, j.stride);
    }
}

// Fewer outputs than a tile: tables and results of eight, the last ones empty.
TARGET_VBMI void scan_few(const Job& j) {
    if (j.kind == kFloat) return scan_pair(j);
    const int count = padded(j.codebooks);
    alignas(64) uint8_t tables[8 * kSpare];
    alignas(64) char out[256 * 8 * sizeof(uint16_t)];
    const float none[8] = {0};
    std::memset(tables, 0, static_cast<size_t>(8 * count * kPrototypes));
    std::memcpy(tables, j.tables, static_cast<size_t>(j.m * count * kPrototypes));
    const bool columns = j.kind == kU16Columns;
    const size_t element = j.kind == kU8 ? 1 : 2;
    for (int from = 0; from < j.rows; from += 256) {
        const int rows = j.rows - from < 256 ? j.rows - from : 256;
        const int64_t stride = columns ? rows : 8;
        const Job part{j.codes + from / kBlock * code_bytes(j.codebooks), tables, j.codebooks, rows, 8, j.kind, none, none,
                       out, stride, j.beside, nullptr};
        scan(part);
        const int lines = columns ? j.m : rows;
        const size_t bytes = element * static_cast<size_t>(columns ? rows : j.m);
        char* to = static_cast<char*>(j.out) + static_cast<int64_t>(element) * (columns ? from : from * j.stride);
        for (int i = 0; i < lines; ++i)
            std::memcpy(to + static_cast<int64_t>(element) * i * j.stride, out + element * static_cast<size_t>(i * stride), bytes);
    }
}

TARGET_VBMI void scan(const Job& j) {
    if (j.m < 4 || (j.m < 8 && (j.kind == kU16 || j.kind == kU8))) return scan_few(j);
    if (j.kind == kFloat) return scan_kind<kFloat>(j);
    if (j.kind == kU16) return scan_kind<kU16>(j);
    if (j.kind == kU16Columns) return scan_kind<kU16Columns>(j);
    scan_kind<kU8>(j);
}

}  // namespace

const Kernels& vbmi_kernels() {
    static const Kernels kernels = [] {
        Kernels k = {};
        k.name = "avx512vbmi";
        k.thresholds = thresholds512;
        k.encode = encode;
        k.gather = avx2_kernels().gather;
        k.pack = pack;
        k.unpack = unpack;
        k.scan = scan;
        return k;
    }();
    return kernels;
}

}  // namespace amm
#endif

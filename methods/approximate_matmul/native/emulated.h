// The AVX-512 and AMX instructions that the kernels use, in plain loops: with -mavx2 -mfma -DAMM_INTRINSICS='"emulated.h"'
// tests run those levels on processors without them. Written from Intel's description of each intrinsic.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated {

struct alignas(64) Wide {
    uint8_t b[64];
};

template <class T>
struct As {  // a register as elements of a type
    T v[64 / sizeof(T)];
    As() = default;
    explicit As(const Wide& w) { std::memcpy(v, w.b, 64); }
    Wide wide() const {
        Wide w;
        std::memcpy(w.b, v, 64);
        return w;
    }
};

template <class T>
constexpr int count = static_cast<int>(64 / sizeof(T));

template <class T, class F>
Wide make(F f) {
    As<T> r;
    for (int i = 0; i < count<T>; ++i) r.v[i] = static_cast<T>(f(i));
    return r.wide();
}

template <class T, class F>
Wide each(const Wide& a, const Wide& b, F f) {
    const As<T> x(a), y(b);
    return make<T>([&](int i) { return f(x.v[i], y.v[i]); });
}

template <class T>
Wide all(T x) {
    return make<T>([&](int) { return x; });
}

inline Wide load(const void* p) {
    Wide w;
    std::memcpy(w.b, p, 64);
    return w;
}
inline void store(void* p, const Wide& w) { std::memcpy(p, w.b, 64); }

template <int N, class T>
T low(const Wide& w, int at = 0) {  // N bytes at piece `at` as a smaller register
    T r;
    std::memcpy(&r, w.b + N * at, N);
    return r;
}

inline __mmask16 not_less(const Wide& a, const Wide& b) {
    const As<float> x(a), y(b);
    unsigned m = 0;
    for (int i = 0; i < 16; ++i) m |= static_cast<unsigned>(x.v[i] >= y.v[i]) << i;
    return static_cast<__mmask16>(m);
}

inline Wide blend(__mmask16 m, const Wide& a, const Wide& b) {
    const As<uint32_t> x(a), y(b);
    return make<uint32_t>([&](int i) { return m >> i & 1 ? y.v[i] : x.v[i]; });
}

inline Wide either(const Wide& a, const Wide& b) {
    return each<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x | y; });
}

template <class T>
Wide permute(const Wide& index, const Wide& a) {
    const As<T> i(index), x(a);
    return make<T>([&](int k) { return x.v[i.v[k] & (count<T> - 1)]; });
}

inline Wide permute2(const Wide& a, const Wide& index, const Wide& b) {
    const As<uint32_t> i(index), x(a), y(b);
    return make<uint32_t>([&](int k) { return i.v[k] & 16 ? y.v[i.v[k] & 15] : x.v[i.v[k] & 15]; });
}

template <class T>
Wide left(const Wide& a, unsigned bits) {
    return each<T>(a, a, [&](T x, T) { return x << bits; });
}

template <class T>
Wide interleave(const Wide& a, const Wide& b, int high) {  // within lanes of 16 bytes
    constexpr int lane = static_cast<int>(16 / sizeof(T));
    const As<T> x(a), y(b);
    return make<T>([&](int i) {
        const int from = i / lane * lane + high * lane / 2 + i % lane / 2;
        return i % 2 ? y.v[from] : x.v[from];
    });
}

inline Wide multishift(const Wide& control, const Wide& a) {
    const As<uint64_t> x(a);
    return make<uint8_t>([&](int i) {
        const unsigned by = control.b[i] & 63;
        const uint64_t q = x.v[i / 8];
        return by ? q >> by | q << (64 - by) : q;
    });
}

inline int16_t saturated(int x) { return static_cast<int16_t>(x < -32768 ? -32768 : x > 32767 ? 32767 : x); }

inline Wide pair_products(const Wide& a, const Wide& b) {  // unsigned times signed bytes
    return make<int16_t>([&](int i) {
        return saturated(a.b[2 * i] * static_cast<int8_t>(b.b[2 * i]) + a.b[2 * i + 1] * static_cast<int8_t>(b.b[2 * i + 1]));
    });
}

inline Wide dot4(const Wide& sum, const Wide& a, const Wide& b) {
    const As<int32_t> s(sum);
    return make<int32_t>([&](int i) {
        int x = s.v[i];
        for (int k = 0; k < 4; ++k) x += a.b[4 * i + k] * static_cast<int8_t>(b.b[4 * i + k]);
        return x;
    });
}

inline Wide fused(const Wide& a, const Wide& b, const Wide& c) {
    const As<float> x(a), y(b), z(c);
    return make<float>([&](int i) { return std::fma(x.v[i], y.v[i], z.v[i]); });
}

inline Wide to_float(const Wide& a) {
    const As<int32_t> x(a);
    return make<float>([&](int i) { return x.v[i]; });
}

inline __m128i to_bytes(const Wide& a) {
    const As<uint32_t> x(a);
    const Wide w = make<uint8_t>([&](int i) { return i < 16 ? x.v[i] : 0; });
    return low<16, __m128i>(w);
}

template <class T>
Wide repeated(T quarter) {
    Wide w;
    for (int i = 0; i < 4; ++i) std::memcpy(w.b + 16 * i, &quarter, 16);
    return w;
}

inline Wide widened(__m256i v) {
    Wide w = all<uint8_t>(0);
    std::memcpy(w.b, &v, 32);
    return w;
}

inline __mmask64 equal_bytes(const Wide& a, const Wide& b) {
    __mmask64 m = 0;
    for (int i = 0; i < 64; ++i) m |= static_cast<__mmask64>(a.b[i] == b.b[i]) << i;
    return m;
}

inline Wide kept_bytes(__mmask64 m, const Wide& a) {
    return make<uint8_t>([&](int i) { return m >> i & 1 ? a.b[i] : 0; });
}

inline Wide shuffled(const Wide& a, const Wide& index) {  // bytes within lanes of 16
    return make<uint8_t>([&](int i) { return index.b[i] & 128 ? 0 : a.b[i / 16 * 16 + (index.b[i] & 15)]; });
}

inline Wide listed64(const int64_t (&high_first)[8]) {
    return make<int64_t>([&](int i) { return high_first[7 - i]; });
}

struct Tile {
    uint8_t b[16][64];
};
inline thread_local Tile tiles[8];
inline thread_local uint8_t configured[64];

inline Tile& tile(int i) {  // as the processor would fault: unconfigured, or of another shape than ours
    if (configured[0] != 1 || configured[16 + 2 * i] != 64 || configured[48 + i] != 16) __builtin_trap();
    return tiles[i];
}

inline void tile_load(int i, const void* from, int64_t stride) {
    for (int r = 0; r < 16; ++r) std::memcpy(tile(i).b[r], static_cast<const char*>(from) + r * stride, 64);
}

inline void tile_store(int i, void* to, int64_t stride) {
    for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(to) + r * stride, tile(i).b[r], 64);
}

inline void tile_dot(int to, int a, int b) {  // unsigned bytes: sums[m][n] += a[m][4 k + i] * b[k][4 n + i]
    for (int m = 0; m < 16; ++m)
        for (int n = 0; n < 16; ++n) {
            uint32_t sum;
            std::memcpy(&sum, tile(to).b[m] + 4 * n, 4);
            for (int k = 0; k < 16; ++k)
                for (int i = 0; i < 4; ++i) sum += uint32_t{tile(a).b[m][4 * k + i]} * tile(b).b[k][4 * n + i];
            std::memcpy(tile(to).b[m] + 4 * n, &sum, 4);
        }
}

inline Wide listed(const int (&x)[16]) { return load(x); }

inline Wide of_words(__m256i words) {  // 16 bits to 32
    uint16_t x[16];
    std::memcpy(x, &words, 32);
    return make<uint32_t>([&](int i) { return x[i]; });
}

template <class T>
Wide doubled(T half) {
    Wide w;
    for (int i = 0; i < 2; ++i) std::memcpy(w.b + 32 * i, &half, 32);
    return w;
}

}  // namespace emulated

#define __m512 emulated::Wide
#define __m512i emulated::Wide
#define _mm512_setzero_si512() emulated::all<uint8_t>(0)
#define _mm512_set1_ps(x) emulated::all<float>(x)
#define _mm512_set1_epi8(x) emulated::all<int8_t>(x)
#define _mm512_set1_epi16(x) emulated::all<int16_t>(x)
#define _mm512_set1_epi32(x) emulated::all<int32_t>(x)
#define _mm512_set1_epi64(x) emulated::all<int64_t>(x)
#undef _mm512_setr_epi32
#define _mm512_setr_epi32(...) emulated::listed({__VA_ARGS__})
#define _mm512_loadu_ps(p) emulated::load(p)
#define _mm512_loadu_si512(p) emulated::load(p)
#define _mm512_load_si512(p) emulated::load(p)
#define _mm512_storeu_si512(p, v) emulated::store(p, v)
#define _mm512_store_si512(p, v) emulated::store(p, v)
#define _mm512_storeu_ps(p, v) emulated::store(p, v)
#define _mm512_cmp_ps_mask(a, b, how) (static_assert_ge<how>(), emulated::not_less(a, b))
#define _mm512_mask_blend_ps(m, a, b) emulated::blend(m, a, b)
#define _mm512_mask_or_epi32(src, m, a, b) emulated::blend(m, src, emulated::either(a, b))
#define _mm512_or_si512(a, b) emulated::either(a, b)
#define _mm512_and_si512(a, b) emulated::each<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x & y; })
#define _mm512_xor_si512(a, b) emulated::each<uint64_t>(a, b, [](uint64_t x, uint64_t y) { return x ^ y; })
#define _mm512_min_epu8(a, b) emulated::each<uint8_t>(a, b, [](uint8_t x, uint8_t y) { return x < y ? x : y; })
#define _mm512_min_epu32(a, b) emulated::each<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x < y ? x : y; })
#define _mm512_sub_epi32(a, b) emulated::each<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x - y; })
#define _mm512_permutexvar_ps(i, a) emulated::permute<uint32_t>(i, a)
#define _mm512_permutexvar_epi8(i, a) emulated::permute<uint8_t>(i, a)
#define _mm512_permutex2var_epi32(a, i, b) emulated::permute2(a, i, b)
#define _mm512_slli_epi32(a, n) emulated::left<uint32_t>(a, n)
#define _mm512_slli_epi16(a, n) emulated::left<uint16_t>(a, n)
#define _mm512_unpacklo_epi32(a, b) emulated::interleave<uint32_t>(a, b, 0)
#define _mm512_unpackhi_epi32(a, b) emulated::interleave<uint32_t>(a, b, 1)
#define _mm512_unpacklo_epi64(a, b) emulated::interleave<uint64_t>(a, b, 0)
#define _mm512_unpackhi_epi64(a, b) emulated::interleave<uint64_t>(a, b, 1)
#define _mm512_multishift_epi64_epi8(control, a) emulated::multishift(control, a)
#define _mm512_maddubs_epi16(a, b) emulated::pair_products(a, b)
#define _mm512_dpbusd_epi32(s, a, b) emulated::dot4(s, a, b)
#define _mm512_fmadd_ps(a, b, c) emulated::fused(a, b, c)
#define _mm512_cvtepi32_ps(a) emulated::to_float(a)
#define _mm512_cvtepi32_epi8(a) emulated::to_bytes(a)
#define _mm512_zextsi256_si512(a) emulated::widened(a)
#define _mm512_castsi512_si256(a) emulated::low<32, __m256i>(a)
#define _mm512_castps512_ps128(a) emulated::low<16, __m128>(a)
#define _mm512_extractf32x4_ps(a, i) emulated::low<16, __m128>(a, i)
#define _mm512_castsi512_ps(a) (a)
#define _mm512_maskz_mov_epi32(m, a) emulated::blend(m, emulated::all<uint8_t>(0), a)
#define _mm512_cvtepu16_epi32(a) emulated::of_words(a)
#define _mm512_extracti64x4_epi64(a, i) emulated::low<32, __m256i>(a, i)
#define _mm512_castps512_ps256(a) emulated::low<32, __m256>(a)
#define _mm512_extractf32x8_ps(a, i) emulated::low<32, __m256>(a, i)
#define _mm512_broadcast_f32x8(a) emulated::doubled(a)
#define _mm512_broadcast_f32x4(a) emulated::repeated(a)
#define _mm512_broadcast_i32x4(a) emulated::repeated(a)

#define _mm512_set_epi64(...) emulated::listed64({__VA_ARGS__})
#define _mm512_shuffle_epi8(a, i) emulated::shuffled(a, i)
#define _mm512_cmpeq_epi8_mask(a, b) emulated::equal_bytes(a, b)
#define _mm512_maskz_mov_epi8(m, a) emulated::kept_bytes(m, a)
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbuud
#define _tile_loadconfig(p) std::memcpy(emulated::configured, p, 64)
#define _tile_storeconfig(p) std::memcpy(p, emulated::configured, 64)
#define _tile_release() std::memset(emulated::configured, 0, 64)
#define _tile_loadd(i, p, stride) emulated::tile_load(i, p, stride)
#define _tile_stored(i, p, stride) emulated::tile_store(i, p, stride)
#define _tile_zero(i) std::memset(emulated::tile(i).b, 0, sizeof(emulated::Tile))
#define _tile_dpbuud(to, a, b) emulated::tile_dot(to, a, b)

template <int HOW>
constexpr void static_assert_ge() {
    static_assert(HOW == _CMP_GE_OQ, "the only compare that the kernels use");
}

// A program for sanitizers: random sizes at every level of this processor, buffers of exactly the stated size, results
// compared with the scalar level, and wrong sizes that must come back as error codes. Ends with 0 when all is well.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

extern "C" {
int amm_highest_level();
void amm_set_habits(int);
int amm_encode(int, const float*, int64_t, int64_t, int64_t, int64_t, const int32_t*, const float*, int, uint8_t*,
               int64_t, int);
int amm_encode_bytes(int, const uint8_t*, int64_t, int64_t, int64_t, int64_t, const int32_t*, const uint8_t*, int,
                     uint8_t*, int64_t, int);
int amm_distances(int, const uint64_t*, int64_t, const uint64_t*, int64_t, int64_t, int, const float*, const float*,
                  const float*, void*, int64_t, int);
int amm_nearest(int, const float*, int64_t, int64_t, int64_t, int64_t, const int32_t*, const float*, int64_t, int,
                uint8_t*, int64_t, int);
int amm_scan(int, const uint8_t*, int64_t, int64_t, const uint8_t*, int64_t, int, int, const float*, const float*, int,
             int, int, void*, int64_t, int64_t, int);
int amm_matmul(int, const float*, int64_t, int64_t, int64_t, int64_t, const int32_t*, const float*, const uint8_t*,
               int64_t, int, int, const float*, const float*, int, int, int, void*, int64_t, int64_t, int);
}

namespace {

std::mt19937 random_bits(7);

int below(int n) { return static_cast<int>(random_bits() % static_cast<unsigned>(n)); }

template <class T>
struct Heap {  // exactly n elements, so that one byte too many is seen
    std::unique_ptr<T[]> data;
    int64_t n;
    explicit Heap(int64_t n_) : data(new T[static_cast<size_t>(n_)]), n(n_) {}
    T* get() { return data.get(); }
    T& operator[](int64_t i) { return data[static_cast<size_t>(i)]; }
};

int failures = 0;
void expect(bool good, const char* what) {
    if (good) return;
    std::printf("wrong: %s\n", what);
    ++failures;
}

void round_trip(int round) {
    const int sizes[] = {1, 2, 31, 32, 33, 64, 95, 257, 300};
    const bool large = round % 12 == 8;  // more than 1 MiB of float32 outputs
    const int64_t n = large ? 2850 + below(99) : round % 7 == 3 ? 600 + below(100) : sizes[below(9)], d = 1 + below(40);
    const int codebooks = large ? 1 + below(5) : round % 11 == 0 ? 257 : round % 5 == 2 ? 64 : 1 + below(20);
    const int m = large ? 92 + below(170) : round % 3 == 1 ? 28 + below(110) : 1 + below(27);
    const bool column_major = below(2);
    const int64_t pad = below(3);
    const int64_t rows = column_major ? 1 : d + pad, cols = column_major ? n + pad : 1;
    Heap<float> a(column_major ? (d - 1) * cols + n : (n - 1) * rows + d), v(15 * codebooks), scale(m), offset(m);
    for (int64_t i = 0; i < a.n; ++i) a[i] = static_cast<float>(below(7) - 3);
    for (int64_t i = 0; i < v.n; ++i) v[i] = static_cast<float>(below(7) - 3);
    for (int i = 0; i < m; ++i) scale[i] = 0.5f, offset[i] = static_cast<float>(below(9));
    Heap<int32_t> columns(4 * codebooks);
    for (int64_t i = 0; i < columns.n; ++i) columns[i] = below(static_cast<int>(d));
    Heap<uint8_t> tables(static_cast<int64_t>(m) * ((codebooks + 3) / 4 * 4) * 16);
    for (int64_t i = 0; i < tables.n; ++i) tables[i] = i / 16 % ((codebooks + 3) / 4 * 4) < codebooks ? below(256) : 0;
    const int64_t packed_bytes = (n + 31) / 32 * ((codebooks + 1) / 2) * 32;
    Heap<uint8_t> want_codes(packed_bytes), codes(packed_bytes);
    int upcast = 1;
    while (upcast < 128 && codebooks % (2 * upcast) == 0) upcast *= 2;
    for (int level = 0; level <= amm_highest_level(); ++level) {
        Heap<uint8_t>& to = level ? codes : want_codes;
        expect(amm_encode(level, a.get(), n, d, rows, cols, columns.get(), v.get(), codebooks, to.get(), packed_bytes,
                          1 + below(3)) == 0, "encode");
        expect(!level || !std::memcmp(codes.get(), want_codes.get(), static_cast<size_t>(packed_bytes)), "codes");
    }
    Heap<int32_t> starts(codebooks + 1);
    for (int i = 0; i <= codebooks; ++i) starts[i] = static_cast<int32_t>(d * i / codebooks);
    Heap<float> own(16 * (codebooks + d));
    for (int64_t i = 0; i < own.n; ++i) own[i] = static_cast<float>(below(7) - 3);
    Heap<uint8_t> want_nearest(packed_bytes), nearest(packed_bytes);
    for (int level = 0; level <= amm_highest_level(); ++level) {
        Heap<uint8_t>& to = level ? nearest : want_nearest;
        expect(amm_nearest(level, a.get(), n, d, rows, cols, starts.get(), own.get(), own.n, codebooks, to.get(),
                           packed_bytes, 1 + below(3)) == 0, "nearest");
        expect(!level || !std::memcmp(nearest.get(), want_nearest.get(), static_cast<size_t>(packed_bytes)),
               "nearest codes");
    }
    expect(amm_nearest(0, a.get(), n, d, rows, cols, starts.get(), own.get(), own.n - 1, codebooks, nearest.get(),
                       packed_bytes, 1) == 4, "short centroids");
    expect(amm_nearest(0, a.get(), n, d + 1, rows, cols, starts.get(), own.get(), own.n, codebooks, nearest.get(),
                       packed_bytes, 1) == 3, "subspaces");
    Heap<uint8_t> bytes(a.n), nodes(32 * codebooks);
    for (int64_t i = 0; i < a.n; ++i) bytes[i] = static_cast<uint8_t>(below(4) * 85);
    for (int64_t i = 0; i < nodes.n; ++i) nodes[i] = static_cast<uint8_t>(i % 32 < 16 ? below(4) * 85 : below(9) ? 255 : 0);
    for (int level = 0; level <= amm_highest_level(); ++level) {
        Heap<uint8_t>& to = level ? nearest : want_nearest;
        expect(amm_encode_bytes(level, bytes.get(), n, d, rows, cols, columns.get(), nodes.get(), codebooks, to.get(),
                                packed_bytes, 1 + below(3)) == 0, "bytes");
        expect(!level || !std::memcmp(nearest.get(), want_nearest.get(), static_cast<size_t>(packed_bytes)),
               "codes of bytes");
    }
    expect(amm_encode_bytes(0, bytes.get(), n, d, rows, cols, columns.get(), nodes.get(), codebooks, nearest.get(),
                            packed_bytes - 1, 1) == 4, "short codes of bytes");
    const int words = 1 + below(3), wide = (m + 7) / 8 * 8;
    Heap<uint64_t> signs(n * words), others(words * wide);
    for (int64_t i = 0; i < signs.n; ++i) signs[i] = static_cast<uint64_t>(random_bits()) << 32 | random_bits();
    for (int64_t i = 0; i < others.n; ++i) others[i] = static_cast<uint64_t>(random_bits()) << 32 | random_bits();
    Heap<float> cosines(64 * words + 1), lengths(n), product(n * m);
    for (int64_t i = 0; i < cosines.n; ++i) cosines[i] = static_cast<float>(i);
    for (int64_t i = 0; i < n; ++i) lengths[i] = 2.0f;
    Heap<uint16_t> want_apart(n * m), apart(n * m);
    for (int level = 0; level <= amm_highest_level(); ++level) {
        Heap<uint16_t>& to = level ? apart : want_apart;
        expect(amm_distances(level, signs.get(), n, others.get(), wide, m, words, nullptr, nullptr, nullptr, to.get(),
                             n * m, 1 + below(3)) == 0, "distances");
        expect(!level || !std::memcmp(apart.get(), want_apart.get(), static_cast<size_t>(2 * n * m)), "distances' values");
        expect(amm_distances(level, signs.get(), n, others.get(), wide, m, words, cosines.get(), lengths.get(),
                             scale.get(), product.get(), n * m, 1 + below(3)) == 0, "angles");
        expect(product[n * m - 1] == static_cast<float>(want_apart[n * m - 1]), "angles' values");  // 2 times 0.5
    }
    expect(amm_distances(0, signs.get(), n, others.get(), wide, m, words, nullptr, nullptr, nullptr, apart.get(),
                         n * m - 1, 1) == 4, "short distances");
    expect(amm_distances(0, signs.get(), n, others.get(), m + (m % 8 == 0), m, words, nullptr, nullptr, nullptr,
                         apart.get(), n * m, 1) == 2, "outputs that fill no lanes");
    const int element[] = {4, 2, 2, 1};
    for (int aggregation = 0; aggregation < 2; ++aggregation)
        for (int kind = 0; kind < 4; ++kind) {
            Heap<char> want(n * m * element[kind]), got(n * m * element[kind]);
            const int64_t stride = kind == 2 ? n : m;
            for (int level = 0; level <= amm_highest_level(); ++level) {
                Heap<char>& to = level ? got : want;
                expect(amm_scan(level, want_codes.get(), packed_bytes, n, tables.get(), tables.n, codebooks, m,
                                scale.get(), offset.get(), aggregation, upcast, kind, to.get(), stride, n * m,
                                1 + below(3)) == 0, "scan");
                expect(!level || !std::memcmp(got.get(), want.get(), static_cast<size_t>(want.n)), "scan values");
                expect(amm_matmul(level, a.get(), n, d, rows, cols, columns.get(), v.get(), tables.get(), tables.n,
                                  codebooks, m, scale.get(), offset.get(), aggregation, upcast, kind, got.get(), stride,
                                  n * m, 1 + below(3)) == 0, "matmul");
                expect(!std::memcmp(got.get(), want.get(), static_cast<size_t>(want.n)), "matmul values");
            }
        }
    // Wrong sizes.
    Heap<float> out(n * m);
    expect(amm_encode(0, a.get(), n, d, rows, cols, columns.get(), v.get(), codebooks, codes.get(), packed_bytes - 1,
                      1) == 4, "short codes");
    expect(amm_encode(99, a.get(), n, d, rows, cols, columns.get(), v.get(), codebooks, codes.get(), packed_bytes, 1) ==
               8, "level");
    expect(amm_encode(0, nullptr, n, d, rows, cols, columns.get(), v.get(), codebooks, codes.get(), packed_bytes, 1) ==
               1, "null");
    expect(amm_encode(0, a.get(), -1, d, rows, cols, columns.get(), v.get(), codebooks, codes.get(), packed_bytes, 1) ==
               2, "negative rows");
    expect(amm_matmul(0, a.get(), n, d, rows, cols, columns.get(), v.get(), tables.get(), tables.n - 1, codebooks, m,
                      scale.get(), offset.get(), 0, 1, 0, out.get(), m, out.n, 1) == 4, "short tables");
    expect(amm_matmul(0, a.get(), n, d, rows, cols, columns.get(), v.get(), tables.get(), tables.n, codebooks, m,
                      scale.get(), offset.get(), 0, 1, 0, out.get(), m, out.n - 1, 1) == 4, "short output");
    expect(amm_matmul(0, a.get(), n, d, rows, cols, columns.get(), v.get(), tables.get(), tables.n, codebooks, m,
                      scale.get(), offset.get(), 1, 3, 0, out.get(), m, out.n, 1) == 6, "upcast");
    columns[0] = static_cast<int32_t>(d);
    expect(amm_encode(0, a.get(), n, d, rows, cols, columns.get(), v.get(), codebooks, codes.get(), packed_bytes, 1) ==
               3, "column");
}

}  // namespace

int main(int count, char** words) {
    const int rounds = count > 1 ? std::atoi(words[1]) : 60;
    for (int round = 0; round < rounds; ++round) {
        amm_set_habits(round / 12 % 2 ? 2 : 3);
        round_trip(round);
    }
    std::printf("%d rounds, levels up to %d, %d failures\n", rounds, amm_highest_level(), failures);
    return failures ? 1 : 0;
}

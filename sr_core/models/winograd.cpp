// 3 x 3 convolutions of images with channels last, for processors with AVX-512: Winograd's minimal filtering.
//
// A tile of 4 x 4 outputs takes 36 products a pair of channels instead of 144 (Lavin and Gray, Fast Algorithms for
// Convolutional Neural Networks, 2016, arXiv:1509.09308). The interpolation points are 0, +-3/4, +-3/2 and infinity:
// they lose half as much to rounding as the usual 0, +-1, +-2 (on such points: Barabasz et al., Error Analysis and
// Improving the Accuracy of Winograd Convolution for Deep Neural Networks, 2020, arXiv:1803.10986). Edges, PReLU and
// the residual sum are part of the transforms, so that each activation is read and written once. The products in
// bfloat16 are those of the processor's matrix unit (AMX) where it has one.
//
// Built as an optional extension without Python and PyTorch; sr_core/models/winograd.py loads it. OpenMP's functions are
// those that PyTorch has loaded, and so are its threads. A result depends neither on the number of threads nor on the
// images beside it.

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <type_traits>

extern "C" int supports_float32() { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"); }
extern "C" int supports_bfloat16() { return supports_float32() && __builtin_cpu_supports("avx512bf16"); }

#if defined(__x86_64__) && defined(__linux__) && __GNUC__ >= 11
#define WITH_TILES
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16,fma,amx-tile,amx-bf16")
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16,fma")
#endif

namespace {

using std::int64_t;
using bfloat16 = std::uint16_t;
using Vector = __m512;

constexpr int64_t LANES = 16, TILE = 4, PATCH = 6, POSITIONS = PATCH * PATCH;
constexpr int64_t BLOCK = 32;  // tiles that are transformed and multiplied together: their transforms stay in the cache
constexpr int64_t ROWS = 4;    // of a register block of the matrix product
constexpr int64_t APART = 32;  // more between positions, so that they do not all fall on the same lines of the cache
constexpr float A = 0.75f, B = 1.5f, A2 = A * A, B2 = B * B, A3 = A2 * A, B3 = B2 * B;

struct Free {
    void operator()(void *pointer) const { std::free(pointer); }
};
template <class T> using Buffer = std::unique_ptr<T[], Free>;
template <class T> Buffer<T> buffer(int64_t count) {
    return Buffer<T>(static_cast<T *>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)));
}

inline Vector all(float x) { return _mm512_set1_ps(x); }
inline Vector zero() { return _mm512_setzero_ps(); }
inline Vector load(const float *from) { return _mm512_loadu_ps(from); }
inline Vector load(const bfloat16 *from) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void store(float *to, Vector x) { _mm512_storeu_ps(to, x); }
inline void store(bfloat16 *to, Vector x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}
inline Vector plus(Vector x, Vector y) { return _mm512_add_ps(x, y); }
inline Vector minus(Vector x, Vector y) { return _mm512_sub_ps(x, y); }
inline Vector add(Vector sum, float a, Vector x) { return _mm512_fmadd_ps(all(a), x, sum); }
inline Vector subtract(Vector sum, float a, Vector x) { return _mm512_fnmadd_ps(all(a), x, sum); }
inline Vector prelu(Vector x, float slope) {
    return add(_mm512_max_ps(x, zero()), slope, _mm512_min_ps(x, zero()));
}

// Six inputs in a row to their values at the six points.
inline void transform_input(const Vector *d, Vector *v) {
    const Vector even_a = subtract(d[4], B2, d[2]), odd_a = subtract(d[3], B2, d[1]);
    const Vector even_b = subtract(d[4], A2, d[2]), odd_b = subtract(d[3], A2, d[1]);
    v[0] = add(subtract(d[4], A2 + B2, d[2]), A2 * B2, d[0]);
    v[1] = add(even_a, A, odd_a);
    v[2] = subtract(even_a, A, odd_a);
    v[3] = add(even_b, B, odd_b);
    v[4] = subtract(even_b, B, odd_b);
    v[5] = add(subtract(d[5], A2 + B2, d[3]), A2 * B2, d[1]);
}

// Six products in a row to four outputs.
inline void transform_output(const Vector *m, Vector *y) {
    const Vector sum_a = plus(m[1], m[2]), difference_a = minus(m[1], m[2]);
    const Vector sum_b = plus(m[3], m[4]), difference_b = minus(m[3], m[4]);
    y[0] = plus(plus(m[0], sum_a), sum_b);
    y[1] = add(_mm512_mul_ps(all(B), difference_b), A, difference_a);
    y[2] = add(_mm512_mul_ps(all(B2), sum_b), A2, sum_a);
    y[3] = add(add(m[5], B3, difference_b), A3, difference_a);
}

// Three weights in a row to their values at the six points, divided by what interpolation divides by.
inline void transform_weights(const float *g, float *u) {
    constexpr float AT_ZERO = 1 / (A2 * B2), AT_A = 1 / (2 * A2 * (A2 - B2)), AT_B = 1 / (2 * B2 * (B2 - A2));
    u[0] = AT_ZERO * g[0];
    u[1] = AT_A * (g[0] + A * g[1] + A2 * g[2]);
    u[2] = AT_A * (g[0] - A * g[1] + A2 * g[2]);
    u[3] = AT_B * (g[0] + B * g[1] + B2 * g[2]);
    u[4] = AT_B * (g[0] - B * g[1] + B2 * g[2]);
    u[5] = g[2];
}

// Sums += ROWS rows of v times the columns of u, two input channels a turn in bfloat16.
template <int WIDTH>
inline void multiply_add(Vector sums[ROWS][WIDTH], const float *v, const float *u, int64_t inputs) {
    for (int64_t c = 0; c < inputs; ++c, u += LANES * WIDTH)
        for (int row = 0; row < ROWS; ++row)
            for (int k = 0; k < WIDTH; ++k)
                sums[row][k] = _mm512_fmadd_ps(all(v[row * inputs + c]), load(u + LANES * k), sums[row][k]);
}
template <int WIDTH>
inline void multiply_add(Vector sums[ROWS][WIDTH], const bfloat16 *v, const bfloat16 *u, int64_t inputs) {
    for (int64_t c = 0; c < inputs; c += 2, u += 2 * LANES * WIDTH)
        for (int row = 0; row < ROWS; ++row) {
            std::int32_t pair;
            std::memcpy(&pair, v + row * inputs + c, sizeof pair);
            const auto value = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
            for (int k = 0; k < WIDTH; ++k) {
                const auto weights = reinterpret_cast<__m512bh>(_mm512_loadu_si512(u + 2 * LANES * k));
                sums[row][k] = _mm512_dpbf16_ps(sums[row][k], value, weights);
            }
        }
}

std::atomic<bool> matrix_unit_allowed{true};

// m (count, LANES * WIDTH) = v (count, inputs) times u, ROWS rows at a time.
template <int WIDTH, class T>
void multiply_by_vectors(const T *v, const T *u, float *m, int64_t count, int64_t inputs) {
    for (int64_t t = 0; t < count; t += ROWS) {
        Vector sums[ROWS][WIDTH];
        for (auto &row : sums) std::fill_n(row, WIDTH, zero());
        multiply_add<WIDTH>(sums, v + t * inputs, u, inputs);
        for (int64_t row = 0; row < ROWS; ++row)
            for (int64_t n = 0; n < WIDTH; ++n) store(m + (t + row) * LANES * WIDTH + n * LANES, sums[row][n]);
    }
}

#ifdef WITH_TILES
// Whether this processor multiplies matrices in bfloat16; the system is asked once to keep their registers.
bool has_tiles() {
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // of arch_prctl(2): ARCH_REQ_XCOMP_PERM, XTILEDATA
    static const bool granted = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
                                syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    return granted;
}

// The tile instructions of GCC do not say what memory they read: it has to be there before them.
inline void settle_memory() { __asm__ volatile("" ::: "memory"); }

// Registers of 16 rows for the thread's matrices: 0-3 sums (16 x 16), 4-5 values (16 x depth), 6-7 weights (depth x 16).
class Tiles {
    struct alignas(64) Configuration {
        std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
        std::uint16_t bytes[16] = {};
        std::uint8_t rows[16] = {};
    };

  public:
    explicit Tiles(int64_t depth) {
        Configuration configuration;
        for (int i = 0; i < 8; ++i) {
            configuration.bytes[i] = static_cast<std::uint16_t>(i == 4 || i == 5 ? 2 * depth : 4 * LANES);
            configuration.rows[i] = static_cast<std::uint8_t>(i < 6 ? LANES : depth / 2);
        }
        settle_memory();
        _tile_loadconfig(&configuration);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles &) = delete;
    Tiles &operator=(const Tiles &) = delete;
};

// As `multiply_by_vectors`, for a count up to BLOCK and with this thread's `Tiles`.
template <int WIDTH>
void multiply_by_tiles(const bfloat16 *v, const bfloat16 *u, float *m, int64_t count, int64_t inputs, int64_t depth) {
    static_assert(BLOCK == 2 * LANES);
    constexpr int64_t GROUP = LANES * WIDTH;
    const bool both = count > LANES;  // halves of the block
    settle_memory();
    for (int64_t n = 0; n < GROUP; n += 2 * LANES) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t c = 0; c < inputs; c += depth) {
            const bfloat16 *weights = u + (c / 2 * GROUP + n) * 2, *values = v + c;
            _tile_loadd(4, values, 2 * inputs);
            _tile_loadd(6, weights, 4 * GROUP);
            _tile_dpbf16ps(0, 4, 6);
            if (both) {
                _tile_loadd(5, values + LANES * inputs, 2 * inputs);
                _tile_dpbf16ps(2, 5, 6);
            }
            if constexpr (WIDTH > 1) {
                _tile_loadd(7, weights + 2 * LANES, 4 * GROUP);
                _tile_dpbf16ps(1, 4, 7);
                if (both) _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, m + n, 4 * GROUP);
        if (both) _tile_stored(2, m + LANES * GROUP + n, 4 * GROUP);
        if constexpr (WIDTH > 1) {
            _tile_stored(1, m + n + LANES, 4 * GROUP);
            if (both) _tile_stored(3, m + LANES * GROUP + n + LANES, 4 * GROUP);
        }
    }
}
#else
bool has_tiles() { return false; }
class Tiles {
  public:
    explicit Tiles(int64_t) {}
};
template <int WIDTH> void multiply_by_tiles(const bfloat16 *, const bfloat16 *, float *, int64_t, int64_t, int64_t) {}
#endif

// Where element (input, output) of one position's weights lies: as `multiply_add` reads them.
inline int64_t packed(float, int64_t input, int64_t output, int64_t inputs, int64_t group) {
    return (output / group * inputs + input) * group + output % group;
}
inline int64_t packed(bfloat16, int64_t input, int64_t output, int64_t inputs, int64_t group) {
    return ((output / group * inputs + input) / 2 * group + output % group) * 2 + input % 2;
}
inline void put(float *to, float x) { *to = x; }
inline void put(bfloat16 *to, float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    *to = static_cast<bfloat16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

int64_t group_of(int64_t outputs) { return outputs % (4 * LANES) ? LANES : 4 * LANES; }

template <class T>
void pack(const float *weights, const int64_t *strides, T *u, int64_t inputs, int64_t outputs, bool turned) {
    const int64_t group = group_of(outputs), last = turned ? 2 : 0;
#pragma omp parallel for if (inputs * outputs > 1 << 13)
    for (int64_t k = 0; k < outputs; ++k)
        for (int64_t c = 0; c < inputs; ++c) {
            const float *from = weights + k * strides[0] + c * strides[1];
            float g[3][3], rows[PATCH][3], across[PATCH], column[3];
            for (int64_t i = 0; i < 3; ++i)
                for (int64_t j = 0; j < 3; ++j)
                    g[j][i] = from[(turned ? last - i : i) * strides[2] + (turned ? last - j : j) * strides[3]];
            for (int64_t j = 0; j < 3; ++j) {
                transform_weights(g[j], across);
                for (int64_t i = 0; i < PATCH; ++i) rows[i][j] = across[i];
            }
            for (int64_t i = 0; i < PATCH; ++i) {
                std::copy(rows[i], rows[i] + 3, column);
                transform_weights(column, across);
                for (int64_t j = 0; j < PATCH; ++j)
                    put(u + (i * PATCH + j) * inputs * outputs + packed(T(), c, k, inputs, group), across[j]);
            }
        }
}

struct Shape {
    int64_t images, height, width, inputs, outputs, border;
    bool zeros;
    // A border beyond the one that keeps height and width makes the output larger.
    int64_t rows() const { return height + 2 * (border - 1); }
    int64_t columns() const { return width + 2 * (border - 1); }
    int64_t tiles_down() const { return (rows() + TILE - 1) / TILE; }
    int64_t tiles_across() const { return (columns() + TILE - 1) / TILE; }
    int64_t tiles() const { return images * tiles_down() * tiles_across(); }
};

struct Place {
    int64_t image, row, column;
    Place(const Shape &shape, int64_t tile)
        : image(tile / (shape.tiles_down() * shape.tiles_across())),
          row(tile / shape.tiles_across() % shape.tiles_down() * TILE), column(tile % shape.tiles_across() * TILE) {}
};

// The inputs around tile `t` of a block into `v`, (POSITIONS, BLOCK * inputs + APART).
template <class T>
void gather(const Shape &shape, Place place, const T *x, const T *zeros, T *v, int64_t t) {
    const T *pixels[PATCH][PATCH];
    for (int64_t i = 0; i < PATCH; ++i)
        for (int64_t j = 0; j < PATCH; ++j) {
            const int64_t row = place.row + i - shape.border, column = place.column + j - shape.border;
            const int64_t inner_row = std::clamp<int64_t>(row, 0, shape.height - 1);
            const int64_t inner_column = std::clamp<int64_t>(column, 0, shape.width - 1);
            const bool outside = row != inner_row || column != inner_column;
            const int64_t pixel = (place.image * shape.height + inner_row) * shape.width + inner_column;
            pixels[i][j] = outside && shape.zeros ? zeros : x + pixel * shape.inputs;
        }
    for (int64_t c = 0; c < shape.inputs; c += LANES) {
        Vector rows[PATCH][PATCH], line[PATCH], values[PATCH];
        for (int64_t i = 0; i < PATCH; ++i) {
            for (int64_t j = 0; j < PATCH; ++j) line[j] = load(pixels[i][j] + c);
            transform_input(line, rows[i]);
        }
        for (int64_t j = 0; j < PATCH; ++j) {
            for (int64_t i = 0; i < PATCH; ++i) line[i] = rows[i][j];
            transform_input(line, values);
            for (int64_t i = 0; i < PATCH; ++i)
                store(v + (i * PATCH + j) * (BLOCK * shape.inputs + APART) + t * shape.inputs + c, values[i]);
        }
    }
}

template <class T> struct Finish {
    const float *bias, *slope;
    const T *skip;
    T *before, *y;
};

// Products of tile `t`, m (POSITIONS, BLOCK * LANES * WIDTH + APART), to its outputs from channel `first` on.
template <class T, int WIDTH>
void scatter(const Shape &shape, Place place, const float *m, int64_t t, const Finish<T> &finish, int64_t first) {
    for (int64_t k = 0; k < LANES * WIDTH; k += LANES) {
        Vector columns[TILE][PATCH], line[PATCH], values[TILE];
        for (int64_t j = 0; j < PATCH; ++j) {
            for (int64_t i = 0; i < PATCH; ++i)
                line[i] = load(m + (i * PATCH + j) * (BLOCK * LANES * WIDTH + APART) + t * LANES * WIDTH + k);
            transform_output(line, values);
            for (int64_t i = 0; i < TILE; ++i) columns[i][j] = values[i];
        }
        const Vector bias = finish.bias ? load(finish.bias + first + k) : zero();
        const int64_t rows = std::min(TILE, shape.rows() - place.row);
        const int64_t across = std::min(TILE, shape.columns() - place.column);
        for (int64_t i = 0; i < rows; ++i) {
            transform_output(columns[i], values);
            for (int64_t j = 0; j < across; ++j) {
                const int64_t row = place.image * shape.rows() + place.row + i;
                const int64_t at = (row * shape.columns() + place.column + j) * shape.outputs + first + k;
                Vector value = plus(values[j], bias);
                if (finish.before) store(finish.before + at, value);
                if (finish.slope) value = prelu(value, *finish.slope);
                if (finish.skip) value = plus(value, load(finish.skip + at));
                store(finish.y + at, value);
            }
        }
    }
}

template <class T, int WIDTH> void convolve(const Shape &shape, const T *x, const T *u, const Finish<T> &finish) {
    constexpr int64_t GROUP = LANES * WIDTH, PRODUCTS = BLOCK * GROUP + APART;
    const int64_t values = BLOCK * shape.inputs + APART;
    const int64_t blocks = (shape.tiles() + BLOCK - 1) / BLOCK;
    const int64_t depth = shape.inputs % (2 * LANES) ? LANES : 2 * LANES;
    constexpr bool half = std::is_same_v<T, bfloat16>;
#pragma omp parallel if (blocks > 1)
    {
        std::optional<Tiles> tiles;
        if (half && matrix_unit_allowed && has_tiles()) tiles.emplace(depth);
        const auto v = buffer<T>(POSITIONS * values);
        const auto m = buffer<float>(POSITIONS * PRODUCTS);
        const auto zeros = buffer<T>(shape.inputs);
        std::fill_n(zeros.get(), shape.inputs, T());
        std::fill_n(v.get(), POSITIONS * values, T());  // rows without a tile are multiplied as well
#pragma omp for schedule(dynamic)
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t first = block * BLOCK, count = std::min(BLOCK, shape.tiles() - first);
            for (int64_t t = 0; t < count; ++t) gather(shape, {shape, first + t}, x, zeros.get(), v.get(), t);
            for (int64_t k = 0; k < shape.outputs; k += GROUP) {
                for (int64_t position = 0; position < POSITIONS; ++position) {
                    const T *from = &v[position * values], *weights = u + (position * shape.outputs + k) * shape.inputs;
                    float *to = &m[position * PRODUCTS];
                    if constexpr (half)
                        if (tiles) {
                            multiply_by_tiles<WIDTH>(from, weights, to, count, shape.inputs, depth);
                            continue;
                        }
                    multiply_by_vectors<WIDTH>(from, weights, to, count, shape.inputs);
                }
                for (int64_t t = 0; t < count; ++t)
                    scatter<T, WIDTH>(shape, {shape, first + t}, m.get(), t, finish, k);
            }
        }
    }
}

template <class T>
void convolve(const T *x, const T *u, const Finish<T> &finish, const int64_t *sizes, bool zeros) {
    const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], zeros};
    if (group_of(shape.outputs) == LANES) convolve<T, 1>(shape, x, u, finish);
    else convolve<T, 4>(shape, x, u, finish);
}

constexpr int64_t PIECE = 1 << 14;

// The gradient before a PReLU, and the sums that make up that of its slope, one a piece.
template <class T>
void prelu_backward(const T *gradient, const T *before, float slope, T *result, float *sums, int64_t count) {
#pragma omp parallel for if (count > PIECE)
    for (int64_t piece = 0; piece < (count + PIECE - 1) / PIECE; ++piece) {
        Vector sum = zero();
        const int64_t end = std::min(count, (piece + 1) * PIECE);
        for (int64_t at = piece * PIECE; at < end; at += LANES) {
            const Vector g = load(gradient + at), z = load(before + at);
            const __mmask16 negative = _mm512_cmp_ps_mask(z, zero(), _CMP_LE_OQ);
            sum = _mm512_mask3_fmadd_ps(g, z, sum, negative);
            store(result + at, _mm512_mask_mul_ps(g, negative, g, all(slope)));
        }
        sums[piece] = _mm512_reduce_add_ps(sum);
    }
}

}  // namespace

extern "C" int has_matrix_unit() { return has_tiles(); }
extern "C" void allow_matrix_unit(int allowed) { matrix_unit_allowed = allowed; }

// weights: float32 at any strides; sizes: inputs, outputs; `turned`: by half a turn, as a gradient needs them.
extern "C" void pack_float32(const float *weights, const int64_t *strides, float *u, const int64_t *sizes, int turned) {
    pack(weights, strides, u, sizes[0], sizes[1], turned);
}
extern "C" void pack_bfloat16(const float *weights, const int64_t *strides, bfloat16 *u, const int64_t *sizes, int turned) {
    pack(weights, strides, u, sizes[0], sizes[1], turned);
}

// sizes: images, height, width, inputs, outputs, border. bias, slope, skip and before (the result before PReLU) may be
// null. Around the images there are zeros, or their edges.
extern "C" void convolve_float32(const float *x, const float *u, const float *bias, const float *slope, const float *skip,
                                 float *before, float *y, const int64_t *sizes, int zeros) {
    convolve<float>(x, u, {bias, slope, skip, before, y}, sizes, zeros);
}
extern "C" void convolve_bfloat16(const bfloat16 *x, const bfloat16 *u, const float *bias, const float *slope,
                                  const bfloat16 *skip, bfloat16 *before, bfloat16 *y, const int64_t *sizes, int zeros) {
    convolve<bfloat16>(x, u, {bias, slope, skip, before, y}, sizes, zeros);
}

extern "C" int64_t prelu_pieces(int64_t count) { return (count + PIECE - 1) / PIECE; }
extern "C" void prelu_backward_float32(const float *gradient, const float *before, const float *slope, float *result,
                                       float *sums, int64_t count) {
    prelu_backward(gradient, before, *slope, result, sums, count);
}
extern "C" void prelu_backward_bfloat16(const bfloat16 *gradient, const bfloat16 *before, const float *slope,
                                        bfloat16 *result, float *sums, int64_t count) {
    prelu_backward(gradient, before, *slope, result, sums, count);
}

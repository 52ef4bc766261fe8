// Kernels for NVIDIA GPUs, in f32, bf16 and f16. Compiled when a device is first used; they include nothing, so that
// a machine needs no headers. All sums are in f32 and in a fixed order: the same bits in every run.

struct bf16 { unsigned short bits; };
struct f16 { unsigned short bits; };

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ inline float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

__device__ inline void put(float* to, float x) { *to = x; }
__device__ inline void put(bf16* to, float x) {
    unsigned bits = __float_as_uint(x);
    // To the nearest, halves to even; what is no number stays none.
    to->bits = x == x ? (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : (unsigned short)0x7fc0;
}
__device__ inline void put(f16* to, float x) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(x));
}

// Of a warp, which every lane gets: a fixed tree.
__device__ inline float sum_of_warp(float x) {
    for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(0xffffffff, x, step);
    return x;
}
__device__ inline float greatest_of_warp(float x) {
    for (int step = 16; step > 0; step >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, step));
    return x;
}

// One warp works on one row. `blockDim` is (32, rows of a block).
__device__ inline unsigned row_of_warp() { return blockIdx.x * blockDim.y + threadIdx.y; }

// The score of what is not seen: finite, so that a row that sees nothing is uniform.
#define HIDDEN -1.7014117e38f

// Up to this many values of a row are kept in the registers of each lane.
#define KEPT 8

// Rows are queries, columns keys, of which the first `tokens` are some and the others padding, whose probability is 0.
// `seen` (or none) has a row of `tokens` for each `rows_of_sample` rows.
template <typename T>
__device__ void softmax(const T* x, const float* seen, T* y, unsigned rows, unsigned columns, unsigned tokens,
                        unsigned rows_of_sample, float scale, unsigned causal) {
    unsigned row = row_of_warp(), lane = threadIdx.x;
    if (row >= rows) return;
    const T* scores = x + (size_t)row * columns;
    T* probabilities = y + (size_t)row * columns;
    const float* keys = seen ? seen + (size_t)(row / rows_of_sample) * tokens : 0;
    unsigned last = causal ? row % columns : columns;
    auto score = [&](unsigned column) {
        bool hidden = column > last || (keys && keys[column] == 0.0f);
        return hidden ? HIDDEN : widen(scores[column]) * scale;
    };
    float greatest = HIDDEN, sum = 0.0f;
    if (columns <= 32 * KEPT) {
        float values[KEPT];
#pragma unroll
        for (unsigned i = 0; i < KEPT; i++) {
            unsigned column = lane + 32 * i;
            values[i] = column < tokens ? score(column) : HIDDEN;
            greatest = fmaxf(greatest, values[i]);
        }
        greatest = greatest_of_warp(greatest);
#pragma unroll
        for (unsigned i = 0; i < KEPT; i++) {
            values[i] = lane + 32 * i < tokens ? expf(values[i] - greatest) : 0.0f;
            sum += values[i];
        }
        sum = sum_of_warp(sum);
#pragma unroll
        for (unsigned i = 0; i < KEPT; i++)
            if (lane + 32 * i < columns) put(probabilities + lane + 32 * i, values[i] / sum);
        return;
    }
    for (unsigned column = lane; column < tokens; column += 32) greatest = fmaxf(greatest, score(column));
    greatest = greatest_of_warp(greatest);
    for (unsigned column = lane; column < tokens; column += 32) sum += expf(score(column) - greatest);
    sum = sum_of_warp(sum);
    for (unsigned column = lane; column < columns; column += 32)
        put(probabilities + column, column < tokens ? expf(score(column) - greatest) / sum : 0.0f);
}

// By the unscaled scores: scale * y * (g - sum(g * y)).
template <typename T>
__device__ void softmax_backward(const T* y, const T* gradient, T* dx, unsigned rows, unsigned columns, float scale) {
    unsigned row = row_of_warp(), lane = threadIdx.x;
    if (row >= rows) return;
    size_t start = (size_t)row * columns;
    float sum = 0.0f;
    for (unsigned column = lane; column < columns; column += 32)
        sum += widen(y[start + column]) * widen(gradient[start + column]);
    sum = sum_of_warp(sum);
    for (unsigned column = lane; column < columns; column += 32)
        put(dx + start + column, scale * widen(y[start + column]) * (widen(gradient[start + column]) - sum));
}

template <typename T>
__device__ float2 moments(const T* x, unsigned columns, float epsilon) {
    float sum = 0.0f, squares = 0.0f;
    for (unsigned column = threadIdx.x; column < columns; column += 32) sum += widen(x[column]);
    float mean = sum_of_warp(sum) / columns;
    for (unsigned column = threadIdx.x; column < columns; column += 32) {
        float centred = widen(x[column]) - mean;
        squares += centred * centred;
    }
    return make_float2(mean, 1.0f / sqrtf(sum_of_warp(squares) / columns + epsilon));
}

// Without gamma and beta: normalised only.
template <typename T>
__device__ void layer_norm(const T* x, const float* gamma, const float* beta, T* y, unsigned rows, unsigned columns,
                           float epsilon) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    size_t start = (size_t)row * columns;
    float2 of_row = moments(x + start, columns, epsilon);
    for (unsigned column = threadIdx.x; column < columns; column += 32) {
        float normalised = (widen(x[start + column]) - of_row.x) * of_row.y;
        put(y + start + column, gamma ? normalised * gamma[column] + beta[column] : normalised);
    }
}

template <typename T>
__device__ void layer_norm_backward(const T* x, const float* gamma, const T* gradient, T* dx, unsigned rows,
                                    unsigned columns, float epsilon) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    size_t start = (size_t)row * columns;
    float2 of_row = moments(x + start, columns, epsilon);
    float sum = 0.0f, along = 0.0f;
    for (unsigned column = threadIdx.x; column < columns; column += 32) {
        float g = widen(gradient[start + column]) * gamma[column];
        sum += g;
        along += g * (widen(x[start + column]) - of_row.x) * of_row.y;
    }
    float mean = sum_of_warp(sum) / columns, slope = sum_of_warp(along) / columns;
    for (unsigned column = threadIdx.x; column < columns; column += 32) {
        float normalised = (widen(x[start + column]) - of_row.x) * of_row.y;
        float g = widen(gradient[start + column]) * gamma[column];
        put(dx + start + column, of_row.y * (g - mean - normalised * slope));
    }
}

__device__ inline float normal_cdf(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }
__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// 0: max(x, 0), whose slope at 0 is 0; 1: x Phi(x); 2: x sigmoid(1.702 x).
__device__ inline float activated(float x, unsigned kind) {
    if (kind == 0) return x > 0.0f ? x : x == x ? 0.0f : x;
    return kind == 1 ? x * normal_cdf(x) : x * sigmoid(1.702f * x);
}
__device__ inline float slope(float x, unsigned kind) {
    if (kind == 0) return x > 0.0f ? 1.0f : 0.0f;
    if (kind == 1) return normal_cdf(x) + x * 0.3989423f * expf(-0.5f * x * x);
    float s = sigmoid(1.702f * x);
    return s * (1.0f + 1.702f * x * (1.0f - s));
}

template <typename T>
__device__ void activate(const T* x, T* y, size_t count, unsigned kind) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += gridDim.x * (size_t)blockDim.x)
        put(y + i, activated(widen(x[i]), kind));
}
template <typename T>
__device__ void activate_backward(const T* x, const T* gradient, T* dx, size_t count, unsigned kind) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += gridDim.x * (size_t)blockDim.x)
        put(dx + i, widen(gradient[i]) * slope(widen(x[i]), kind));
}
// `y += bias` in each row.
template <typename T>
__device__ void add_bias(T* y, const T* bias, unsigned rows, unsigned columns) {
    unsigned row = row_of_warp();
    if (row >= rows) return;
    T* values = y + (size_t)row * columns;
    for (unsigned column = threadIdx.x; column < columns; column += 32)
        put(values + column, widen(values[column]) + widen(bias[column]));
}

// Between packed `[batch, tokens, parts, heads, width]` and `[parts, batch, heads, padded, width]`, zeros behind the
// tokens; `back` says which way. Rows of `width` are copied whole.
template <typename T>
__device__ void heads(const T* x, T* y, unsigned batch, unsigned tokens, unsigned padded, unsigned parts,
                      unsigned heads, unsigned width, unsigned back) {
    unsigned row = row_of_warp();
    if (row >= batch * padded * parts * heads) return;
    unsigned token = row % padded, rest = row / padded;
    unsigned head = rest % heads; rest /= heads;
    unsigned sample = rest % batch, part = rest / batch;
    size_t apart = (size_t)row * width;
    size_t packed = ((((size_t)sample * tokens + token) * parts + part) * heads + head) * width;
    if (token >= tokens) {
        if (back) return;
        for (unsigned column = threadIdx.x; column < width; column += 32) put(y + apart + column, 0.0f);
        return;
    }
    const T* from = x + (back ? apart : packed);
    T* to = y + (back ? packed : apart);
    for (unsigned column = threadIdx.x; column < width; column += 32) to[column] = from[column];
}

// What a convolution sees: images `[batch, rows, columns, channels]` and the places of its kernel.
struct Window {
    unsigned rows, columns, channels, kernel_rows, kernel_columns, stride, padding, out_rows, out_columns;
};

// `[batch, out rows, out columns, kernel rows, kernel columns, channels]`: what each place of the kernel sees. A warp
// copies the channels of one place.
template <typename T>
__device__ void unfold(const T* x, T* y, unsigned places, Window w) {
    unsigned place = row_of_warp();
    if (place >= places) return;
    unsigned kernel_column = place % w.kernel_columns, rest = place / w.kernel_columns;
    unsigned kernel_row = rest % w.kernel_rows; rest /= w.kernel_rows;
    unsigned out_column = rest % w.out_columns; rest /= w.out_columns;
    unsigned out_row = rest % w.out_rows, image = rest / w.out_rows;
    // Above and left of the image the difference wraps to a number beyond any size.
    unsigned row = out_row * w.stride + kernel_row - w.padding;
    unsigned column = out_column * w.stride + kernel_column - w.padding;
    bool inside = row < w.rows && column < w.columns;
    const T* from = x + (((size_t)image * w.rows + row) * w.columns + column) * w.channels;
    T* to = y + (size_t)place * w.channels;
    for (unsigned channel = threadIdx.x; channel < w.channels; channel += 32) {
        if (inside) to[channel] = from[channel];
        else put(to + channel, 0.0f);
    }
}

// The gradient of `unfold`: a warp gathers for the channels of one pixel from the places that saw it, in a fixed order.
template <typename T>
__device__ void fold(const T* gradient, T* dx, unsigned pixels, Window w) {
    unsigned pixel = row_of_warp();
    if (pixel >= pixels) return;
    unsigned column = pixel % w.columns, rest = pixel / w.columns;
    unsigned row = rest % w.rows, image = rest / w.rows;
    for (unsigned channel = threadIdx.x; channel < w.channels; channel += 32) {
        float sum = 0.0f;
        for (unsigned down = (row + w.padding) % w.stride; down < w.kernel_rows; down += w.stride) {
            unsigned out_row = (row + w.padding - down) / w.stride;
            if (row + w.padding < down || out_row >= w.out_rows) continue;
            for (unsigned right = (column + w.padding) % w.stride; right < w.kernel_columns; right += w.stride) {
                unsigned out_column = (column + w.padding - right) / w.stride;
                if (column + w.padding < right || out_column >= w.out_columns) continue;
                size_t place = ((size_t)image * w.out_rows + out_row) * w.out_columns + out_column;
                place = (place * w.kernel_rows + down) * w.kernel_columns + right;
                sum += widen(gradient[place * w.channels + channel]);
            }
        }
        put(dx + (size_t)pixel * w.channels + channel, sum);
    }
}

#define WINDOW                                                                                                        \
    unsigned rows, unsigned columns, unsigned channels, unsigned kernel_rows, unsigned kernel_columns,                \
        unsigned stride, unsigned padding, unsigned out_rows, unsigned out_columns
#define PACKED                                                                                                        \
    Window { rows, columns, channels, kernel_rows, kernel_columns, stride, padding, out_rows, out_columns }

#define KERNELS(SUFFIX, T)                                                                                            \
    extern "C" __global__ void softmax_##SUFFIX(const T* x, const float* seen, T* y, unsigned rows, unsigned columns, \
                                                unsigned tokens, unsigned rows_of_sample, float scale,                \
                                                unsigned causal) {                                                    \
        softmax<T>(x, seen, y, rows, columns, tokens, rows_of_sample, scale, causal);                                 \
    }                                                                                                                 \
    extern "C" __global__ void softmax_backward_##SUFFIX(const T* y, const T* gradient, T* dx, unsigned rows,         \
                                                         unsigned columns, float scale) {                             \
        softmax_backward<T>(y, gradient, dx, rows, columns, scale);                                                   \
    }                                                                                                                 \
    extern "C" __global__ void layer_norm_##SUFFIX(const T* x, const float* gamma, const float* beta, T* y,           \
                                                   unsigned rows, unsigned columns, float epsilon) {                  \
        layer_norm<T>(x, gamma, beta, y, rows, columns, epsilon);                                                     \
    }                                                                                                                 \
    extern "C" __global__ void layer_norm_backward_##SUFFIX(const T* x, const float* gamma, const T* gradient, T* dx, \
                                                            unsigned rows, unsigned columns, float epsilon) {         \
        layer_norm_backward<T>(x, gamma, gradient, dx, rows, columns, epsilon);                                       \
    }                                                                                                                 \
    extern "C" __global__ void activate_##SUFFIX(const T* x, T* y, size_t count, unsigned kind) {                     \
        activate<T>(x, y, count, kind);                                                                               \
    }                                                                                                                 \
    extern "C" __global__ void activate_backward_##SUFFIX(const T* x, const T* gradient, T* dx, size_t count,         \
                                                          unsigned kind) {                                            \
        activate_backward<T>(x, gradient, dx, count, kind);                                                           \
    }                                                                                                                 \
    extern "C" __global__ void add_bias_##SUFFIX(T* y, const T* bias, unsigned rows, unsigned columns) {              \
        add_bias<T>(y, bias, rows, columns);                                                                          \
    }                                                                                                                 \
    extern "C" __global__ void heads_##SUFFIX(const T* x, T* y, unsigned batch, unsigned tokens, unsigned padded,     \
                                              unsigned parts, unsigned count, unsigned width, unsigned back) {        \
        heads<T>(x, y, batch, tokens, padded, parts, count, width, back);                                             \
    }                                                                                                                 \
    extern "C" __global__ void unfold_##SUFFIX(const T* x, T* y, unsigned places, WINDOW) {                           \
        unfold<T>(x, y, places, PACKED);                                                                              \
    }                                                                                                                 \
    extern "C" __global__ void fold_##SUFFIX(const T* gradient, T* dx, unsigned pixels, WINDOW) {                     \
        fold<T>(gradient, dx, pixels, PACKED);                                                                        \
    }

KERNELS(f32, float)
KERNELS(bf16, bf16)
KERNELS(f16, f16)

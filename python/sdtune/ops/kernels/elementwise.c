/* What surrounds the matrix multiplications of a UNet, in bf16 with float32 in between: gated GELU, group normalization with
   or without SiLU, and the transforms of Winograd's convolution. Each reads and writes its tensors once or twice, where
   torch's operators take one pass for each sum or product, and round after each.

   Channels are last in memory, and are processed 16 at a time; any number of them is allowed. Threads take rows as they
   come. Sums are formed of parts that depend on the shape only, so results are the same bit for bit with any number of
   threads. */

#include "common.h"

enum { LANES = 16, GELU_ROWS = 16, NORM_PARTS = 64, NORM_ROWS = 8 };
#define ALL_LANES ((__mmask16)0xffff)

static __mmask16 lanes(int64_t left) { return (__mmask16)((1u << left) - 1); }

INLINE __m512 load(const bf16 *at, __mmask16 some) {
    const __m256i x = some == ALL_LANES ? _mm256_loadu_si256((const __m256i *)at) : _mm256_maskz_loadu_epi16(some, at);
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16);
}

INLINE void store(bf16 *at, __mmask16 some, __m512 x) {
    const __m256i y = (__m256i)_mm512_cvtneps_pbh(x);
    if (some == ALL_LANES) _mm256_storeu_si256((__m256i *)at, y);
    else _mm256_mask_storeu_epi16(at, some, y);
}

/* from an array whose length is a multiple of 16 */
INLINE __m512 of_array(const float *at) { return _mm512_loadu_ps(at); }

/* e^x, for which 2^126 and 2^-200 are the limits; a NaN stays one */
INLINE __m512 bounded_exp(__m512 x) {
    const __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(LOG2E));
    return power_of_2(_mm512_min_ps(_mm512_set1_ps(126.f), _mm512_max_ps(_mm512_set1_ps(-200.f), power)));
}

/* 1 / x with a relative error of 1e-7, for 1 <= x <= 2^126 */
INLINE __m512 reciprocal(__m512 x) {
    const __m512 y = _mm512_rcp14_ps(x);
    return _mm512_mul_ps(y, _mm512_fnmadd_ps(x, y, _mm512_set1_ps(2.f)));
}

INLINE __m512 sigmoid(__m512 x) {
    return reciprocal(_mm512_add_ps(_mm512_set1_ps(1.f), bounded_exp(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

static void parallel(void (*body)(void *), void *data, int64_t threads) { GOMP_parallel(body, data, (unsigned)threads, 0); }

static int64_t take(int64_t *next) { return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED); }

/* ---- gated GELU: a * gelu(b) ---- */

typedef struct {
    const bf16 *both, *d_out; /* [rows, 2 * width]: a and b; [rows, width] */
    bf16 *out;                /* [rows, width], or of the backward pass [rows, 2 * width] */
    int64_t rows, width, next;
} gelu_call;

/* The normal distribution Phi(x), and e^(-x^2 / 2). Abramowitz and Stegun 7.1.26, with an error of 1e-7. */
INLINE __m512 normal(__m512 x, __m512 *bell) {
    const __m512 one = _mm512_set1_ps(1.f), size = _mm512_abs_ps(x);
    const __m512 t = reciprocal(_mm512_fmadd_ps(_mm512_min_ps(_mm512_set1_ps(1e6f), size), _mm512_set1_ps(0.23164190f), one));
    __m512 y = _mm512_set1_ps(0.5307027f);
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(-0.7265760f));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(0.7107069f));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(-0.1422484f));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(0.1274148f));
    *bell = bounded_exp(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f)));
    const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(y, t), *bell); /* Phi(-|x|) */
    return _mm512_mask_sub_ps(tail, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ), one, tail);
}

INLINE void gelu_forward(const gelu_call *c, int64_t row, int64_t e, __mmask16 some) {
    const __m512 a = load(c->both + row * 2 * c->width + e, some), b = load(c->both + (row * 2 + 1) * c->width + e, some);
    __m512 bell;
    store(c->out + row * c->width + e, some, _mm512_mul_ps(a, _mm512_mul_ps(b, normal(b, &bell))));
}

INLINE void gelu_backward(const gelu_call *c, int64_t row, int64_t e, __mmask16 some) {
    const __m512 a = load(c->both + row * 2 * c->width + e, some), b = load(c->both + (row * 2 + 1) * c->width + e, some);
    const __m512 d_out = load(c->d_out + row * c->width + e, some);
    __m512 bell;
    const __m512 phi = normal(b, &bell);
    const __m512 slope = _mm512_fmadd_ps(_mm512_mul_ps(b, bell), _mm512_set1_ps(0.39894228f), phi);
    store(c->out + row * 2 * c->width + e, some, _mm512_mul_ps(d_out, _mm512_mul_ps(b, phi)));
    store(c->out + (row * 2 + 1) * c->width + e, some, _mm512_mul_ps(_mm512_mul_ps(d_out, a), slope));
}

INLINE void gelu_rows(gelu_call *c, const int backward) {
    for (int64_t first; (first = take(&c->next) * GELU_ROWS) < c->rows;)
        for (int64_t row = first; row < first + GELU_ROWS && row < c->rows; row++) {
            int64_t e = 0;
            for (; e + LANES <= c->width; e += LANES)
                backward ? gelu_backward(c, row, e, ALL_LANES) : gelu_forward(c, row, e, ALL_LANES);
            if (e < c->width) backward ? gelu_backward(c, row, e, lanes(c->width - e)) : gelu_forward(c, row, e, lanes(c->width - e));
        }
}

static void gelu_rows_forward(void *data) { gelu_rows(data, 0); }
static void gelu_rows_backward(void *data) { gelu_rows(data, 1); }

void sdtune_gated_gelu_forward(const bf16 *both, int64_t rows, int64_t width, int64_t threads, bf16 *out) {
    gelu_call c = {.both = both, .out = out, .rows = rows, .width = width};
    parallel(gelu_rows_forward, &c, threads);
}

void sdtune_gated_gelu_backward(const bf16 *both, const bf16 *d_out, int64_t rows, int64_t width, int64_t threads,
                                bf16 *d_both) {
    gelu_call c = {.both = both, .d_out = d_out, .out = d_both, .rows = rows, .width = width};
    parallel(gelu_rows_backward, &c, threads);
}

/* ---- group normalization ---- */

/* Coefficients for each channel: z = x * SCALE + SHIFT is the normalized x, weighted, and x * DEVIATION + OFFSET is it
   before that. The gradient is that of z times SCALE, plus x * SLOPE + LEVEL. */
enum { SCALE, SHIFT, DEVIATION, OFFSET, SLOPE, LEVEL, COEFFICIENTS };

typedef struct {
    const bf16 *x, *d_y, *weight, *bias; /* [batch, n, c]; d_y: none in the forward pass; weight and bias: [c] */
    bf16 *out;
    float *statistics; /* [batch, groups, 2]: mean, and reciprocal of the standard deviation */
    int64_t batch, n, c, groups;
    float eps;
    int64_t silu, threads;
    /* set by norm() */
    int64_t rows, parts, padded; /* rows of a part of the sums, parts of an image, c up to a multiple of 16 */
    double *totals;              /* [2, padded], of one image */
    float *sums;                 /* [batch, parts, 2, padded] */
    float *coefficients;         /* [batch, COEFFICIENTS, padded] */
    int64_t next;
} norm_call;

INLINE const float *coefficient(const norm_call *c, int64_t image, int which) {
    return c->coefficients + (image * COEFFICIENTS + which) * c->padded;
}

/* The gradient of z = x * scale + shift. */
INLINE __m512 norm_gradient(const norm_call *c, __m512 x, __m512 d_y, __m512 scale, __m512 shift) {
    if (!c->silu) return d_y;
    const __m512 one = _mm512_set1_ps(1.f), z = _mm512_fmadd_ps(x, scale, shift), s = sigmoid(z);
    return _mm512_mul_ps(d_y, _mm512_mul_ps(s, _mm512_fmadd_ps(z, _mm512_sub_ps(one, s), one)));
}

/* of rows first to last, 16 or 32 channels from e on: of x and x^2, or of the gradient and its product with normalized x */
INLINE void norm_sums(norm_call *c, int64_t image, int64_t part, int64_t e, const int vectors, __mmask16 some,
                      const int backward) {
    const int64_t begin = part * c->rows, end = begin + c->rows < c->n ? begin + c->rows : c->n;
    __m512 first[2], second[2], by[4][2];
    for (int v = 0; v < vectors; v++) {
        first[v] = second[v] = _mm512_setzero_ps();
        for (int k = 0; backward && k < 4; k++) by[k][v] = of_array(coefficient(c, image, k) + e + v * LANES);
    }
    for (int64_t row = begin; row < end; row++)
        for (int v = 0; v < vectors; v++) {
            const int64_t at = (image * c->n + row) * c->c + e + v * LANES;
            const __m512 x = load(c->x + at, some);
            const __m512 y = backward ? norm_gradient(c, x, load(c->d_y + at, some), by[SCALE][v], by[SHIFT][v]) : x;
            first[v] = _mm512_add_ps(first[v], y);
            second[v] = _mm512_fmadd_ps(y, backward ? _mm512_fmadd_ps(x, by[DEVIATION][v], by[OFFSET][v]) : x, second[v]);
        }
    float *sums = c->sums + (image * c->parts + part) * 2 * c->padded + e;
    for (int v = 0; v < vectors; v++) {
        _mm512_storeu_ps(sums + v * LANES, first[v]);
        _mm512_storeu_ps(sums + c->padded + v * LANES, second[v]);
    }
}

INLINE void norm_part_sums(norm_call *c, const int backward) {
    for (int64_t task; (task = take(&c->next)) < c->batch * c->parts;) {
        const int64_t image = task / c->parts, part = task % c->parts;
        int64_t e = 0;
        for (; e + 2 * LANES <= c->c; e += 2 * LANES) norm_sums(c, image, part, e, 2, ALL_LANES, backward);
        for (; e + LANES <= c->c; e += LANES) norm_sums(c, image, part, e, 1, ALL_LANES, backward);
        if (e < c->c) norm_sums(c, image, part, e, 1, lanes(c->c - e), backward);
    }
}

static void norm_forward_sums(void *data) { norm_part_sums(data, 0); }
static void norm_backward_sums(void *data) { norm_part_sums(data, 1); }

/* totals [2][padded] = the sums of each channel over all parts of an image */
static void add_parts(norm_call *c, int64_t image) {
    const float *sums = c->sums + image * c->parts * 2 * c->padded;
    memset(c->totals, 0, (size_t)(2 * c->padded) * sizeof(double));
    for (int64_t part = 0; part < c->parts; part++)
        for (int64_t e = 0; e < 2 * c->padded; e++) c->totals[e] += (double)sums[part * 2 * c->padded + e];
}

static void norm_statistics(norm_call *c) {
    const int64_t width = c->c / c->groups;
    for (int64_t image = 0; image < c->batch; image++) {
        add_parts(c, image);
        for (int64_t g = 0; g < c->groups; g++) {
            double sum = 0, squares = 0;
            for (int64_t e = g * width; e < (g + 1) * width; e++) sum += c->totals[e], squares += c->totals[c->padded + e];
            const double count = (double)(c->n * width), mean = sum / count, variance = squares / count - mean * mean;
            float *statistics = c->statistics + (image * c->groups + g) * 2;
            statistics[0] = (float)mean;
            statistics[1] = (float)(1 / sqrt((variance < 0 ? 0 : variance) + (double)c->eps)); /* a NaN stays one */
        }
    }
}

static void norm_coefficients(norm_call *c) {
    const int64_t width = c->c / c->groups;
    for (int64_t image = 0; image < c->batch; image++) {
        float *to = c->coefficients + image * COEFFICIENTS * c->padded;
        for (int64_t e = 0; e < c->c; e++) {
            const float *statistics = c->statistics + (image * c->groups + e / width) * 2;
            const float mean = statistics[0], deviation = statistics[1];
            to[SCALE * c->padded + e] = of_bf16(c->weight[e]) * deviation;
            to[SHIFT * c->padded + e] = of_bf16(c->bias[e]) - mean * (of_bf16(c->weight[e]) * deviation);
            to[DEVIATION * c->padded + e] = deviation;
            to[OFFSET * c->padded + e] = -mean * deviation;
        }
    }
}

static void norm_gradient_coefficients(norm_call *c) {
    const int64_t width = c->c / c->groups;
    for (int64_t image = 0; image < c->batch; image++) {
        add_parts(c, image);
        for (int64_t g = 0; g < c->groups; g++) {
            double first = 0, second = 0;
            for (int64_t e = g * width; e < (g + 1) * width; e++) {
                first += of_bf16(c->weight[e]) * c->totals[e];
                second += of_bf16(c->weight[e]) * c->totals[c->padded + e];
            }
            const float *statistics = c->statistics + (image * c->groups + g) * 2;
            const double count = (double)(c->n * width), mean = statistics[0], deviation = statistics[1];
            const double slope = -deviation * deviation * second / count;
            float *to = c->coefficients + image * COEFFICIENTS * c->padded;
            for (int64_t e = g * width; e < (g + 1) * width; e++) {
                to[SLOPE * c->padded + e] = (float)slope;
                to[LEVEL * c->padded + e] = (float)(-deviation * first / count - mean * slope);
            }
        }
    }
}

INLINE void norm_elements(norm_call *c, int64_t image, int64_t row, int64_t e, __mmask16 some, const int backward) {
    const int64_t at = (image * c->n + row) * c->c + e;
    const __m512 x = load(c->x + at, some), scale = of_array(coefficient(c, image, SCALE) + e);
    const __m512 shift = of_array(coefficient(c, image, SHIFT) + e);
    __m512 y;
    if (backward) {
        const __m512 rest = _mm512_fmadd_ps(x, of_array(coefficient(c, image, SLOPE) + e), of_array(coefficient(c, image, LEVEL) + e));
        y = _mm512_fmadd_ps(norm_gradient(c, x, load(c->d_y + at, some), scale, shift), scale, rest);
    } else {
        y = _mm512_fmadd_ps(x, scale, shift);
        if (c->silu) y = _mm512_mul_ps(y, sigmoid(y));
    }
    store(c->out + at, some, y);
}

INLINE void norm_rows(norm_call *c, const int backward) {
    for (int64_t task; (task = take(&c->next)) < c->batch * c->parts;) {
        const int64_t image = task / c->parts, begin = task % c->parts * c->rows;
        for (int64_t row = begin; row < begin + c->rows && row < c->n; row++) {
            int64_t e = 0;
            for (; e + LANES <= c->c; e += LANES) norm_elements(c, image, row, e, ALL_LANES, backward);
            if (e < c->c) norm_elements(c, image, row, e, lanes(c->c - e), backward);
        }
    }
}

static void norm_forward_rows(void *data) { norm_rows(data, 0); }
static void norm_backward_rows(void *data) { norm_rows(data, 1); }

static int norm(norm_call *c) {
    c->rows = (c->n + NORM_PARTS - 1) / NORM_PARTS;
    if (c->rows < NORM_ROWS) c->rows = NORM_ROWS;
    c->parts = (c->n + c->rows - 1) / c->rows;
    c->padded = (c->c + LANES - 1) / LANES * LANES;
    const int64_t floats = c->batch * (2 * c->parts + COEFFICIENTS) * c->padded;
    c->totals = malloc((size_t)(2 * c->padded) * sizeof(double) + (size_t)floats * sizeof(float));
    if (c->totals == NULL) return 1;
    c->sums = (float *)(c->totals + 2 * c->padded);
    c->coefficients = c->sums + c->batch * 2 * c->parts * c->padded;
    if (c->d_y) {
        norm_coefficients(c);
        parallel(norm_backward_sums, c, c->threads);
        norm_gradient_coefficients(c);
    } else {
        parallel(norm_forward_sums, c, c->threads);
        norm_statistics(c);
        norm_coefficients(c);
    }
    c->next = 0;
    parallel(c->d_y ? norm_backward_rows : norm_forward_rows, c, c->threads);
    free(c->totals);
    return 0;
}

/* 0, or 1 when memory cannot be allocated. */
int sdtune_group_norm_forward(const bf16 *x, const bf16 *weight, const bf16 *bias, int64_t batch, int64_t n, int64_t channels,
                              int64_t groups, float eps, int64_t silu, int64_t threads, bf16 *out, float *statistics) {
    norm_call c = {.x = x, .weight = weight, .bias = bias, .batch = batch, .n = n, .c = channels, .groups = groups,
                   .eps = eps, .silu = silu, .threads = threads, .out = out, .statistics = statistics};
    return norm(&c);
}

int sdtune_group_norm_backward(const bf16 *x, const bf16 *weight, const bf16 *bias, const bf16 *d_y, float *statistics,
                               int64_t batch, int64_t n, int64_t channels, int64_t groups, int64_t silu, int64_t threads,
                               bf16 *d_x) {
    norm_call c = {.x = x, .weight = weight, .bias = bias, .d_y = d_y, .statistics = statistics, .batch = batch, .n = n,
                   .c = channels, .groups = groups, .silu = silu, .threads = threads, .out = d_x};
    return norm(&c);
}

/* ---- transforms of Winograd's convolution F(2x2, 3x3); sdtune/ops/winograd.py has the matrices ---- */

typedef struct {
    const bf16 *in, *bias, *zeros; /* an image, or 4 x 4 products; zeros: a pixel outside of the image */
    bf16 *out;
    int64_t batch, h, w, c;       /* of the image */
    int64_t first, rows;          /* rows of tiles: the first, and how many */
    int64_t slots[4], next;
} winograd_call;

/* four vectors in a row of a tile of the image, to the basis of the filters: B^T of the paper */
INLINE void to_basis(const __m512 x[4], __m512 y[4]) {
    y[0] = _mm512_sub_ps(x[0], x[2]), y[1] = _mm512_add_ps(x[1], x[2]);
    y[2] = _mm512_sub_ps(x[2], x[1]), y[3] = _mm512_sub_ps(x[1], x[3]);
}

INLINE void transform_in(const bf16 *const pixels[16], bf16 *const out[16], int64_t e, __mmask16 some) {
    __m512 by_rows[4][4]; /* [column][row in the basis] */
    for (int j = 0; j < 4; j++) {
        __m512 x[4];
        for (int i = 0; i < 4; i++) x[i] = load(pixels[4 * i + j] + e, some);
        to_basis(x, by_rows[j]);
    }
    for (int i = 0; i < 4; i++) {
        const __m512 x[4] = {by_rows[0][i], by_rows[1][i], by_rows[2][i], by_rows[3][i]};
        __m512 y[4];
        to_basis(x, y);
        for (int j = 0; j < 4; j++) store(out[4 * i + j] + e, some, y[j]);
    }
}

static void winograd_image(void *data) {
    winograd_call *c = data;
    const int64_t across = c->w / 2, tiles = c->batch * c->rows * across;
    for (int64_t task; (task = take(&c->next)) < c->batch * c->rows;) {
        const int64_t image = task / c->rows, top = 2 * (c->first + task % c->rows) - 1;
        for (int64_t t = 0; t < across; t++) {
            const bf16 *pixels[16];
            bf16 *out[16];
            for (int64_t i = 0; i < 4; i++)
                for (int64_t j = 0; j < 4; j++) {
                    const int64_t y = top + i, x = 2 * t - 1 + j;
                    const int inside = y >= 0 && y < c->h && x >= 0 && x < c->w;
                    pixels[4 * i + j] = inside ? c->in + ((image * c->h + y) * c->w + x) * c->c : c->zeros;
                    out[4 * i + j] = c->out + ((c->slots[i] * 4 + c->slots[j]) * tiles + task * across + t) * c->c;
                }
            int64_t e = 0;
            for (; e + LANES <= c->c; e += LANES) transform_in(pixels, out, e, ALL_LANES);
            if (e < c->c) transform_in(pixels, out, e, lanes(c->c - e));
        }
    }
}

INLINE void transform_out(const bf16 *const parts[16], bf16 *const pixels[4], const bf16 *bias, int64_t e, __mmask16 some) {
    __m512 by_rows[2][4];
    for (int j = 0; j < 4; j++) {
        __m512 x[4];
        for (int i = 0; i < 4; i++) x[i] = load(parts[4 * i + j] + e, some);
        by_rows[0][j] = _mm512_add_ps(_mm512_add_ps(x[0], x[1]), x[2]);
        by_rows[1][j] = _mm512_sub_ps(_mm512_sub_ps(x[1], x[2]), x[3]);
    }
    const __m512 level = bias ? load(bias + e, some) : _mm512_setzero_ps();
    for (int i = 0; i < 2; i++) {
        const __m512 *x = by_rows[i];
        store(pixels[2 * i] + e, some, _mm512_add_ps(level, _mm512_add_ps(_mm512_add_ps(x[0], x[1]), x[2])));
        store(pixels[2 * i + 1] + e, some, _mm512_add_ps(level, _mm512_sub_ps(_mm512_sub_ps(x[1], x[2]), x[3])));
    }
}

static void winograd_products(void *data) {
    winograd_call *c = data;
    const int64_t across = c->w / 2, tiles = c->batch * c->rows * across;
    for (int64_t task; (task = take(&c->next)) < c->batch * c->rows;) {
        const int64_t image = task / c->rows, top = 2 * (c->first + task % c->rows);
        for (int64_t t = 0; t < across; t++) {
            const bf16 *parts[16];
            bf16 *pixels[4];
            for (int64_t i = 0; i < 4; i++)
                for (int64_t j = 0; j < 4; j++)
                    parts[4 * i + j] = c->in + ((c->slots[i] * 4 + c->slots[j]) * tiles + task * across + t) * c->c;
            for (int64_t i = 0; i < 2; i++)
                for (int64_t j = 0; j < 2; j++)
                    pixels[2 * i + j] = c->out + ((image * c->h + top + i) * c->w + 2 * t + j) * c->c;
            int64_t e = 0;
            for (; e + LANES <= c->c; e += LANES) transform_out(parts, pixels, c->bias, e, ALL_LANES);
            if (e < c->c) transform_out(parts, pixels, c->bias, e, lanes(c->c - e));
        }
    }
}

/* rows of tiles of an image [batch, h, w, c] -> [4, 4, batch * rows * w / 2, c]; 1 when memory cannot be allocated */
int sdtune_winograd_image(const bf16 *image, int64_t batch, int64_t h, int64_t w, int64_t channels, int64_t first, int64_t rows,
                          const int64_t *slots, int64_t threads, bf16 *out) {
    winograd_call c = {.in = image, .out = out, .batch = batch, .h = h, .w = w, .c = channels, .first = first, .rows = rows};
    bf16 *zeros = calloc((size_t)channels, sizeof(bf16));
    if (zeros == NULL) return 1;
    c.zeros = zeros;
    memcpy(c.slots, slots, sizeof c.slots);
    parallel(winograd_image, &c, threads);
    free(zeros);
    return 0;
}

/* [4, 4, batch * rows * w / 2, c] -> these rows of tiles of an image [batch, h, w, c], plus bias [c], which may be NULL */
void sdtune_winograd_products(const bf16 *products, const bf16 *bias, int64_t batch, int64_t h, int64_t w, int64_t channels,
                              int64_t first, int64_t rows, const int64_t *slots, int64_t threads, bf16 *image) {
    winograd_call c = {.in = products, .bias = bias, .out = image, .batch = batch, .h = h, .w = w, .c = channels,
                       .first = first, .rows = rows};
    memcpy(c.slots, slots, sizeof c.slots);
    parallel(winograd_products, &c, threads);
}

/* Attention forward and backward in bf16 with sums in float32, with Intel's matrix unit (AMX) or with the bf16 instructions
   of AVX-512; the target of the compiler decides.

   softmax(scale * q k^T) v, as in FlashAttention (Dao et al., arXiv 2205.14135): no weights are stored. The backward pass
   recomputes them from the logarithms of their sums. The kernel computes S^T = k q^T, with one column for each query. So P^T
   and dS^T have, as they are computed, the layout of operand A of the next matrix multiplications (dV = P^T dO,
   dK = dS^T q). VNNI-packed, they have the layout of operand B (O^T = v^T P^T, dQ^T = k^T dS^T). Nothing is transposed.

   q [batch, n, heads * d], k and v [batch, m, heads * d], bf16; the results too. n, m, d: any but 0.

   A tile is 16 rows of 64 bytes: 16 x 32 bf16 of operand A, 16 pairs x 16 of operand B, 16 x 16 float32 sums. Operand B is
   VNNI-packed: two consecutive rows are interleaved, one element of each in a 32-bit word. The instruction sets differ only
   in how tiles are multiplied: amx.h, avx512.h.

   The threads are those of the OpenMP that is loaded already, torch's; so they stay on the cores where they are pinned. The
   result is the same bit for bit with any number of threads. */

#include "common.h"

enum { TILE = 16, STEP = 32, WORDS = TILE * TILE, KEYS = 128, QUERIES = 256, PARTS = 4 };

typedef struct {
    const bf16 *q, *k, *v, *out, *d_out;
    float *log_sums; /* [batch * heads, n], base 2 */
    bf16 *result, *d_q, *d_k, *d_v;
    int64_t batch, heads, n, m, d;
    float scale;
    int64_t threads;
    /* set by plan() */
    int64_t first, groups;              /* (batch, head) pairs processed at a time: the first one, and how many */
    int64_t steps, tiles;               /* along d: steps of a sum over d, tiles of a result */
    int64_t block, n_pad, m_pad, parts; /* queries at a time; parts of a group's keys */
    size_t q_rows, q_tiles, k_rows, k_tiles, group_size, thread_size, part_size;
    char *memory, *thread_memory, *part_memory;
    int64_t next, tickets; /* work counters that threads share */
} call;

static int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

/* Operands of multiply(): address and strides of their tiles, in elements (A: bf16, B: pairs of bf16). */
typedef struct {
    const bf16 *at;
    int64_t row, tile, step; /* to the next row, the next 16 rows, the next 32 terms of a sum */
} operand_a;

typedef struct {
    const uint32_t *at;
    int64_t tile, step; /* to the next 16 columns, the next 16 pairs of terms */
} operand_b;

#ifdef __AMX_BF16__
#include "amx.h"
#else
#include "avx512.h"
#endif

/* two rows of 16, interleaved: one element of each in a 32-bit word */
static inline __m512i vnni_pack(__m256i above, __m256i below) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(above), _mm512_slli_epi32(_mm512_cvtepu16_epi32(below), 16));
}

/* ---- operands of matrix multiplications, prepared once for all blocks of a group ---- */

/* [count, d] of a group -> [padded, steps * 32], padded with zeros */
static void copy_rows(const bf16 *x, int64_t stride, int64_t count, int64_t d, int64_t padded, int64_t steps, bf16 *out) {
    memset(out, 0, (size_t)(padded * steps * STEP) * sizeof *out);
    for (int64_t i = 0; i < count; i++) memcpy(out + i * steps * STEP, x + i * stride, (size_t)d * sizeof *out);
}

/* rows -> operand B of a sum over d: [padded / 16][steps] tiles */
static void pack_for_sum_over_d(const bf16 *rows, int64_t padded, int64_t steps, uint32_t *out) {
    const uint32_t *words = (const uint32_t *)rows;
    for (int64_t i = 0; i < padded; i += TILE)
        for (int64_t s = 0; s < steps; s++, out += WORDS)
            for (int64_t r = 0; r < TILE; r++)
                for (int64_t c = 0; c < TILE; c++) out[r * TILE + c] = words[((i + c) * steps + s) * TILE + r];
}

/* rows -> operand B of a sum over rows: [padded / 32][tiles] tiles */
static void pack_for_sum_over_rows(const bf16 *rows, int64_t padded, int64_t steps, int64_t tiles, uint32_t *out) {
    const int64_t width = steps * STEP;
    for (int64_t i = 0; i < padded; i += STEP)
        for (int64_t t = 0; t < tiles; t++, out += WORDS)
            for (int64_t r = 0; r < TILE; r++)
                for (int64_t c = 0; c < TILE; c++) {
                    const bf16 *at = rows + (i + 2 * r) * width + t * TILE + c;
                    out[r * TILE + c] = (uint32_t)at[0] | (uint32_t)at[width] << 16;
                }
}

/* rows minus their mean [tiles * 16] -> operand A, transposed, of a sum over rows: [padded / 32][tiles] tiles */
static void pack_transposed(const bf16 *rows, int64_t padded, int64_t steps, int64_t tiles, const float *mean, bf16 *out) {
    const int64_t width = steps * STEP;
    for (int64_t i = 0; i < padded; i += STEP)
        for (int64_t t = 0; t < tiles; t++, out += 2 * WORDS)
            for (int64_t r = 0; r < TILE; r++)
                for (int64_t c = 0; c < STEP; c++)
                    out[r * STEP + c] = to_bf16(of_bf16(rows[(i + c) * width + t * TILE + r]) - mean[t * TILE + r]);
}

static void mean_of_rows(const bf16 *rows, int64_t count, int64_t width, float *mean) {
    memset(mean, 0, (size_t)width * sizeof *mean);
    for (int64_t i = 0; i < count; i++)
        for (int64_t e = 0; e < width; e++) mean[e] += of_bf16(rows[i * width + e]);
    for (int64_t e = 0; e < width; e++) mean[e] /= (float)count;
}

/* Buffers in the memory of a group. */
typedef struct {
    uint32_t *q_over_d, *d_out_over_d, *q_over_rows, *d_out_over_rows;
    bf16 *k_rows, *v_rows, *transposed; /* k in the backward pass, v in the forward pass */
    float *mean, *log_sums, *deltas;
    bf16 *rows; /* scratch for packing */
} group;

static group group_of(const call *c, int64_t g) {
    char *at = c->memory + c->group_size * (size_t)g;
    group x;
    x.q_over_d = (uint32_t *)at, at += c->q_rows;
    x.k_rows = (bf16 *)at, at += c->k_rows;
    x.v_rows = (bf16 *)at, at += c->k_rows;
    x.transposed = (bf16 *)at, at += c->k_tiles;
    x.rows = (bf16 *)at, at += c->q_rows;
    x.mean = (float *)at, at += (size_t)(c->steps * STEP) * sizeof(float);
    x.d_out_over_d = (uint32_t *)at, at += c->q_rows;
    x.q_over_rows = (uint32_t *)at, at += c->q_tiles;
    x.d_out_over_rows = (uint32_t *)at, at += c->q_tiles;
    x.log_sums = (float *)at, at += (size_t)c->n_pad * sizeof(float);
    x.deltas = (float *)at;
    return x;
}

static const bf16 *rows_of(const call *c, const bf16 *x, int64_t count, int64_t g) {
    g += c->first;
    return x + g / c->heads * count * c->heads * c->d + g % c->heads * c->d;
}

static void prepare(void *data) {
    call *c = data;
    const int64_t stride = c->heads * c->d;
    const int backward = c->d_out != NULL;
    for (int64_t g; (g = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED)) < c->groups;) {
        const group x = group_of(c, g);
        copy_rows(rows_of(c, c->q, c->n, g), stride, c->n, c->d, c->n_pad, c->steps, x.rows);
        pack_for_sum_over_d(x.rows, c->n_pad, c->steps, x.q_over_d);
        copy_rows(rows_of(c, c->k, c->m, g), stride, c->m, c->d, c->m_pad, c->steps, x.k_rows);
        copy_rows(rows_of(c, c->v, c->m, g), stride, c->m, c->d, c->m_pad, c->steps, x.v_rows);
        if (!backward) {
            memset(x.mean, 0, (size_t)(c->steps * STEP) * sizeof *x.mean);
            pack_transposed(x.v_rows, c->m_pad, c->steps, c->tiles, x.mean, x.transposed);
            continue;
        }
        /* Each row of dS sums to 0, so subtracting the keys' mean does not change dQ = dS k. In trained networks keys are far
           from 0, and would multiply the rounding error of that sum. */
        mean_of_rows(x.k_rows, c->m, c->steps * STEP, x.mean);
        pack_transposed(x.k_rows, c->m_pad, c->steps, c->tiles, x.mean, x.transposed);
        pack_for_sum_over_rows(x.rows, c->n_pad, c->steps, c->tiles, x.q_over_rows);
        const bf16 *d_out = rows_of(c, c->d_out, c->n, g), *out = rows_of(c, c->out, c->n, g);
        copy_rows(d_out, stride, c->n, c->d, c->n_pad, c->steps, x.rows);
        pack_for_sum_over_d(x.rows, c->n_pad, c->steps, x.d_out_over_d);
        pack_for_sum_over_rows(x.rows, c->n_pad, c->steps, c->tiles, x.d_out_over_rows);
        for (int64_t i = 0; i < c->n_pad; i++) {
            x.log_sums[i] = i < c->n ? c->log_sums[(c->first + g) * c->n + i] : 1e30f; /* padded rows get weight 0 */
            x.deltas[i] = 0.f;
            for (int64_t e = 0; i < c->n && e < c->d; e++)
                x.deltas[i] += of_bf16(d_out[i * stride + e]) * of_bf16(out[i * stride + e]);
        }
    }
}

/* ---- forward pass ---- */

static void forward_blocks(void *data) {
    call *c = data;
    char *mine = c->thread_memory + c->thread_size * (size_t)__atomic_fetch_add(&c->tickets, 1, __ATOMIC_RELAXED);
    float *logits = (float *)mine;                                       /* [m_pad / 16][2] tiles */
    uint32_t *weights = (uint32_t *)(logits + c->m_pad * 2 * TILE);      /* [m_pad / 32][2] tiles */
    float *sums = (float *)(weights + c->m_pad * TILE);                  /* [tiles][2] tiles */
    const int64_t stride = c->heads * c->d, blocks = up(c->n, 2 * TILE) / (2 * TILE), width = c->steps * STEP;
    const __m512 factor = _mm512_set1_ps(c->scale * LOG2E);
    begin_multiplications();
    for (int64_t task; (task = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED)) < c->groups * blocks;) {
        const int64_t g = task / blocks, first = task % blocks * 2 * TILE;
        const group x = group_of(c, g);
        const operand_b q = {x.q_over_d + first * width / 2, TILE * width / 2, WORDS};
        __m512 row_max[2] = {_mm512_set1_ps(-INFINITY), _mm512_set1_ps(-INFINITY)};
        for (int64_t j = 0; j < c->m_pad; j += 2 * TILE) {
            float *tile = logits + j * 2 * TILE;
            multiply(OVERWRITE, tile, 2 * TILE, 2, (operand_a){x.k_rows + j * width, width, TILE * width, STEP}, q, c->d);
            for (int64_t r = 0; r < 2 * TILE && j + r < c->m; r++)
                for (int64_t y = 0; y < 2; y++)
                    row_max[y] = _mm512_max_ps(row_max[y], _mm512_load_ps(tile + (r / TILE * 2 + y) * WORDS + r % TILE * TILE));
        }
        __m512 sum[2];
        for (int64_t y = 0; y < 2; y++) {
            sum[y] = _mm512_setzero_ps();
            row_max[y] = _mm512_mul_ps(row_max[y], factor);
            for (int64_t j = 0; j < c->m_pad; j += 2) {
                __m256i pair[2];
                for (int64_t u = 0; u < 2; u++) {
                    const float *at = logits + ((j + u) / TILE * 2 + y) * WORDS + (j + u) % TILE * TILE;
                    __m512 p = power_of_2(_mm512_fmsub_ps(_mm512_load_ps(at), factor, row_max[y]));
                    if (j + u >= c->m) p = _mm512_setzero_ps();
                    sum[y] = _mm512_add_ps(sum[y], p);
                    pair[u] = (__m256i)_mm512_cvtneps_pbh(p);
                }
                _mm512_store_si512(weights + (j / STEP * 2 + y) * WORDS + j % STEP / 2 * TILE, vnni_pack(pair[0], pair[1]));
            }
        }
        float row_maxes[2 * TILE], row_sums[2 * TILE];
        for (int64_t y = 0; y < 2; y++) {
            _mm512_storeu_ps(row_maxes + y * TILE, row_max[y]);
            _mm512_storeu_ps(row_sums + y * TILE, sum[y]);
        }
        bf16 *out = c->result + (rows_of(c, c->q, c->n, g) - c->q);
        const operand_a v = {x.transposed, STEP, 2 * WORDS, c->tiles * 2 * WORDS};
        multiply(OVERWRITE, sums, c->d, 2, v, (operand_b){weights, WORDS, 2 * WORDS}, c->m_pad);
        for (int64_t i = 0; i < 2 * TILE && first + i < c->n; i++)
            for (int64_t e = 0; e < c->d; e++)
                out[(first + i) * stride + e] =
                    to_bf16(sums[(e / TILE * 2 + i / TILE) * WORDS + e % TILE * TILE + i % TILE] / row_sums[i]);
        for (int64_t i = 0; i < 2 * TILE && first + i < c->n; i++)
            c->log_sums[(c->first + g) * c->n + first + i] = row_maxes[i] + log2f(row_sums[i]);
    }
    end_multiplications();
}

/* ---- backward pass ---- */

static void write_rows(const float *sums, int64_t tiles, int64_t count, int64_t d, float scale, bf16 *out, int64_t stride) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t e = 0; e < d; e++)
            out[i * stride + e] = to_bf16(scale * sums[(i / TILE * tiles + e / TILE) * WORDS + i % TILE * TILE + e % TILE]);
}

static void backward_parts(void *data) {
    call *c = data;
    char *mine = c->thread_memory + c->thread_size * (size_t)__atomic_fetch_add(&c->tickets, 1, __ATOMIC_RELAXED);
    float *logits = (float *)mine, *d_weights = logits + 4 * WORDS;     /* S^T and (dO v^T)^T of 32 x 32 */
    uint32_t *d_logits_packed = (uint32_t *)(d_weights + 4 * WORDS);     /* [KEYS / 32][block / 16] tiles */
    bf16 *weights = (bf16 *)(d_logits_packed + KEYS / 2 * QUERIES);     /* P^T [KEYS, block] */
    bf16 *d_logits = weights + KEYS * QUERIES;                         /* dS^T [KEYS, block] */
    float *sums_v = (float *)(d_logits + KEYS * QUERIES);              /* [KEYS / 16][tiles] tiles */
    float *sums_k = sums_v + KEYS * c->tiles * TILE;
    const int64_t stride = c->heads * c->d, blocks = c->m_pad / KEYS, width = c->steps * STEP;
    const __m512 factor = _mm512_set1_ps(c->scale * LOG2E);
    begin_multiplications();
    for (int64_t task; (task = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED)) < c->groups * c->parts;) {
        const int64_t g = task / c->parts, part = task % c->parts;
        const group x = group_of(c, g);
        float *sums_q = (float *)(c->part_memory + c->part_size * (size_t)task); /* dQ^T: [n_pad / 32][tiles][2] tiles */
        memset(sums_q, 0, c->part_size);
        for (int64_t j = blocks * part / c->parts * KEYS; j < blocks * (part + 1) / c->parts * KEYS; j += KEYS) {
            memset(sums_v, 0, (size_t)(2 * KEYS * c->tiles * TILE) * sizeof(float));
            for (int64_t i = 0; i < c->n_pad; i += c->block) {
                for (int64_t r0 = 0; r0 < KEYS; r0 += 2 * TILE)
                    for (int64_t c0 = 0; c0 < c->block; c0 += 2 * TILE) {
                        const int64_t rows = (j + r0) * width, columns = (i + c0) * width / 2;
                        const operand_a k = {x.k_rows + rows, width, TILE * width, STEP};
                        const operand_a v = {x.v_rows + rows, width, TILE * width, STEP};
                        const operand_b q = {x.q_over_d + columns, TILE * width / 2, WORDS};
                        multiply(OVERWRITE, logits, 2 * TILE, 2, k, q, c->d);
                        const operand_b d_out = {x.d_out_over_d + columns, TILE * width / 2, WORDS};
                        multiply(OVERWRITE, d_weights, 2 * TILE, 2, v, d_out, c->d);
                        for (int64_t y = 0; y < 2; y++) {
                            const __m512 log_sum = _mm512_loadu_ps(x.log_sums + i + c0 + y * TILE);
                            const __m512 delta = _mm512_loadu_ps(x.deltas + i + c0 + y * TILE);
                            uint32_t *tile = d_logits_packed + (r0 / STEP * (c->block / TILE) + c0 / TILE + y) * WORDS;
                            for (int64_t r = 0; r < 2 * TILE; r += 2) {
                                __m256i pair[2];
                                for (int64_t u = 0; u < 2; u++) {
                                    const int64_t at = (r / TILE * 2 + y) * WORDS + (r + u) % TILE * TILE;
                                    const int64_t to = (r0 + r + u) * c->block + c0 + y * TILE;
                                    const __m512 s = _mm512_load_ps(logits + at), z = _mm512_load_ps(d_weights + at);
                                    /* a padded key has logit 0, which may be far above all others */
                                    const __m512 p = j + r0 + r + u < c->m ? power_of_2(_mm512_fmsub_ps(s, factor, log_sum))
                                                                           : _mm512_setzero_ps();
                                    pair[u] = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(p, _mm512_sub_ps(z, delta)));
                                    _mm256_store_si256((__m256i *)(weights + to), (__m256i)_mm512_cvtneps_pbh(p));
                                    _mm256_store_si256((__m256i *)(d_logits + to), pair[u]);
                                }
                                _mm512_store_si512(tile + r / 2 * TILE, vnni_pack(pair[0], pair[1]));
                            }
                        }
                    }
                const operand_b d_out = {x.d_out_over_rows + i / 2 * c->tiles * TILE, WORDS, c->tiles * WORDS};
                const operand_b q = {x.q_over_rows + i / 2 * c->tiles * TILE, WORDS, c->tiles * WORDS};
                const operand_a p = {weights, c->block, TILE * c->block, STEP};
                const operand_a d_s = {d_logits, c->block, TILE * c->block, STEP};
                multiply(ACCUMULATE, sums_v, KEYS, c->tiles, p, d_out, c->block);
                multiply(ACCUMULATE, sums_k, KEYS, c->tiles, d_s, q, c->block);
                const operand_a k = {x.transposed + j * c->tiles * TILE, STEP, 2 * WORDS, c->tiles * 2 * WORDS};
                for (int64_t c0 = 0; c0 < c->block; c0 += 2 * TILE)
                    multiply(ACCUMULATE, sums_q + (i + c0) * c->tiles * TILE, c->d, 2, k,
                            (operand_b){d_logits_packed + c0 * TILE, WORDS, c->block * TILE}, KEYS);
            }
            const int64_t count = c->m - j < KEYS ? c->m - j : KEYS;
            const int64_t at = rows_of(c, c->k, c->m, g) - c->k + j * stride;
            write_rows(sums_v, c->tiles, count, c->d, 1.f, c->d_v + at, stride);
            write_rows(sums_k, c->tiles, count, c->d, c->scale, c->d_k + at, stride);
        }
    }
    end_multiplications();
}

/* Add up the parts of dQ^T, and transpose them. */
static void backward_queries(void *data) {
    call *c = data;
    const int64_t pairs = c->n_pad / (2 * TILE), size = 2 * c->tiles * WORDS;
    for (int64_t task; (task = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED)) < c->groups * pairs;) {
        const int64_t g = task / pairs, pair = task % pairs;
        float *sums = (float *)(c->part_memory + c->part_size * (size_t)(g * c->parts)) + pair * size;
        for (int64_t p = 1; p < c->parts; p++) {
            const float *more = (float *)(c->part_memory + c->part_size * (size_t)(g * c->parts + p)) + pair * size;
            for (int64_t e = 0; e < size; e++) sums[e] += more[e];
        }
        bf16 *out = c->d_q + (rows_of(c, c->q, c->n, g) - c->q);
        for (int64_t i = 0; i < 2 * TILE && pair * 2 * TILE + i < c->n; i++)
            for (int64_t e = 0; e < c->d; e++)
                out[(pair * 2 * TILE + i) * c->heads * c->d + e] =
                    to_bf16(c->scale * sums[(e / TILE * 2 + i / TILE) * WORDS + e % TILE * TILE + i % TILE]);
    }
}

/* ---- entry points ---- */

static void run(call *c, void (*const *bodies)(void *)) {
    const int64_t all = c->batch * c->heads, at_a_time = c->groups;
    for (c->first = 0; c->first < all; c->first += at_a_time) {
        c->groups = all - c->first < at_a_time ? all - c->first : at_a_time;
        for (int i = 0; bodies[i]; i++) {
            c->next = c->tickets = 0;
            GOMP_parallel(bodies[i], c, (unsigned)c->threads, 0);
        }
    }
    free(c->memory);
}

static int plan(call *c) {
    const int backward = c->d_out != NULL;
    /* enough for all threads to have work, and no more: each group needs some MB */
    c->groups = c->batch * c->heads < c->threads ? c->batch * c->heads : c->threads;
    c->steps = up(c->d, STEP) / STEP, c->tiles = up(c->d, TILE) / TILE;
    c->block = up(c->n, 2 * TILE) < QUERIES ? up(c->n, 2 * TILE) : QUERIES;
    c->n_pad = up(c->n, c->block), c->m_pad = up(c->m, KEYS);
    c->q_rows = (size_t)(c->n_pad * c->steps * STEP) * sizeof(bf16);
    c->q_tiles = (size_t)(c->n_pad * c->tiles * TILE) * sizeof(bf16);
    c->k_rows = (size_t)(c->m_pad * c->steps * STEP) * sizeof(bf16);
    c->k_tiles = (size_t)(c->m_pad * c->tiles * TILE) * sizeof(bf16);
    c->group_size = 2 * c->q_rows + 2 * c->k_rows + c->k_tiles + (size_t)(c->steps * STEP) * sizeof(float);
    if (backward) {
        c->group_size += c->q_rows + 2 * c->q_tiles + (size_t)c->n_pad * 2 * sizeof(float);
        c->thread_size = 8 * WORDS * 4 + KEYS * QUERIES * 6 + (size_t)(2 * KEYS * c->tiles * TILE) * 4;
        /* the same for any number of threads, so that sums are rounded alike */
        c->parts = c->m_pad / KEYS < PARTS ? c->m_pad / KEYS : PARTS;
        c->part_size = (size_t)(c->n_pad * c->tiles * TILE) * 4;
    } else {
        c->thread_size = (size_t)(c->m_pad * 2 * TILE) * 4 + (size_t)(c->m_pad * TILE) * 4 + (size_t)(c->tiles * 2 * WORDS) * 4;
        c->parts = 0, c->part_size = 0;
    }
    c->group_size = (size_t)up((int64_t)c->group_size, 64);
    const size_t groups = c->group_size * (size_t)c->groups, threads = c->thread_size * (size_t)c->threads;
    c->memory = aligned_alloc(64, groups + threads + c->part_size * (size_t)(c->groups * c->parts));
    c->thread_memory = c->memory + groups;
    c->part_memory = c->thread_memory + threads;
    return c->memory == NULL;
}

/* 0, or 1 when the Linux kernel does not let this process use the registers of the matrix unit. */
int sdtune_attention_allow(void) { return allow_matrix_unit(); }

/* 0, or 1 when memory cannot be allocated. */
int sdtune_attention_forward(const bf16 *q, const bf16 *k, const bf16 *v, int64_t batch, int64_t heads, int64_t n,
                             int64_t m, int64_t d, float scale, int64_t threads, bf16 *out, float *log_sums) {
    call c = {.q = q, .k = k, .v = v, .result = out, .log_sums = log_sums, .batch = batch, .heads = heads, .n = n, .m = m,
              .d = d, .scale = scale, .threads = threads};
    if (plan(&c)) return 1;
    run(&c, (void (*const[])(void *)){prepare, forward_blocks, NULL});
    return 0;
}

int sdtune_attention_backward(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *out, const bf16 *d_out,
                              float *log_sums, int64_t batch, int64_t heads, int64_t n, int64_t m, int64_t d,
                              float scale, int64_t threads, bf16 *d_q, bf16 *d_k, bf16 *d_v) {
    call c = {.q = q, .k = k, .v = v, .out = out, .d_out = d_out, .log_sums = log_sums, .d_q = d_q, .d_k = d_k, .d_v = d_v,
              .batch = batch, .heads = heads, .n = n, .m = m, .d = d, .scale = scale, .threads = threads};
    if (plan(&c)) return 1;
    run(&c, (void (*const[])(void *)){prepare, backward_parts, backward_queries, NULL});
    return 0;
}

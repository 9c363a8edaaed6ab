/* A fake of the matrix unit (AMX), in plain C, and of OpenMP: with it the kernel for AMX runs on other processors.

   Compiled and run by test_kernels.py: attention and its gradients against sums in double precision, for some shapes. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint8_t tiles[8][16][64];

static void load_tile(int tile, const void *from, int64_t stride) {
    for (int r = 0; r < 16; r++) memcpy(tiles[tile][r], (const char *)from + r * stride, 64);
}

static void store_tile(int tile, void *to, int64_t stride) {
    for (int r = 0; r < 16; r++) memcpy((char *)to + r * stride, tiles[tile][r], 64);
}

static float wide(const uint8_t *at) {
    uint32_t bits = (uint32_t)(at[0] | at[1] << 8) << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static void multiply_tiles(int sums, int a, int b) {
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 16; c++) {
            float sum;
            memcpy(&sum, &tiles[sums][r][4 * c], 4);
            for (int i = 0; i < 32; i++) sum += wide(&tiles[a][r][2 * i]) * wide(&tiles[b][i / 2][4 * c + i % 2 * 2]);
            memcpy(&tiles[sums][r][4 * c], &sum, 4);
        }
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadd load_tile
#define _tile_stored store_tile
#define _tile_zero(tile) memset(tiles[tile], 0, sizeof tiles[tile])
#define _tile_dpbf16ps multiply_tiles
#define _tile_loadconfig(config) ((void)(config))
#define _tile_release() ((void)0)
#define syscall(...) 0
#define __AMX_BF16__ 1
#include "attention.c"

void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags) {
    (void)threads, (void)flags;
    body(data);
}

/* index into [batch, length, heads * d] of position i and dimension e of a head */
static int64_t at(int64_t b, int64_t h, int64_t i, int64_t e, int64_t length, int64_t heads, int64_t d) {
    return ((b * length + i) * heads + h) * d + e;
}

static double relative_error(const char *what, const bf16 *got, const double *want, int64_t count) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        difference += (of_bf16(got[i]) - want[i]) * (of_bf16(got[i]) - want[i]);
        norm += want[i] * want[i];
    }
    printf("  %s off by %.4f\n", what, sqrt(difference / norm));
    return sqrt(difference / norm);
}

static int fails(int64_t batch, int64_t heads, int64_t n, int64_t m, int64_t d) {
    const int64_t of_q = batch * n * heads * d, of_k = batch * m * heads * d;
    const float scale = 2 / sqrtf((float)d);
    bf16 *operands = calloc((size_t)(4 * of_q + 4 * of_k), sizeof *operands);
    double *exact = calloc((size_t)(2 * of_q + 2 * of_k), sizeof *exact), *p = malloc((size_t)m * sizeof *p);
    float *log_sums = malloc((size_t)(batch * heads * n) * sizeof *log_sums);
    bf16 *q = operands, *d_out = q + of_q, *k = d_out + of_q, *v = k + of_k;
    bf16 *out = v + of_k, *d_q = out + of_q, *d_k = d_q + of_q, *d_v = d_k + of_k;
    double *want = exact, *want_q = want + of_q, *want_k = want_q + of_q, *want_v = want_k + of_k;
    for (bf16 *x = operands; x < out; x++) *x = to_bf16((float)rand() / (float)RAND_MAX * 4 - 2);
    for (int64_t b = 0; b < batch; b++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t i = 0; i < n; i++) {
                double sum = 0, delta = 0;
                for (int64_t j = 0; j < m; j++) {
                    double logit = 0;
                    for (int64_t e = 0; e < d; e++)
                        logit += of_bf16(q[at(b, h, i, e, n, heads, d)]) * of_bf16(k[at(b, h, j, e, m, heads, d)]);
                    sum += p[j] = exp(scale * logit);
                }
                for (int64_t j = 0; j < m; j++) {
                    p[j] /= sum;
                    for (int64_t e = 0; e < d; e++) {
                        const double v_je = of_bf16(v[at(b, h, j, e, m, heads, d)]);
                        const double g = of_bf16(d_out[at(b, h, i, e, n, heads, d)]);
                        want[at(b, h, i, e, n, heads, d)] += p[j] * v_je;
                        want_v[at(b, h, j, e, m, heads, d)] += p[j] * g;
                        delta += p[j] * v_je * g;
                    }
                }
                for (int64_t j = 0; j < m; j++) {
                    double z = 0;
                    for (int64_t e = 0; e < d; e++)
                        z += of_bf16(v[at(b, h, j, e, m, heads, d)]) * of_bf16(d_out[at(b, h, i, e, n, heads, d)]);
                    for (int64_t e = 0; e < d; e++) {
                        const double d_s = scale * p[j] * (z - delta);
                        want_q[at(b, h, i, e, n, heads, d)] += d_s * of_bf16(k[at(b, h, j, e, m, heads, d)]);
                        want_k[at(b, h, j, e, m, heads, d)] += d_s * of_bf16(q[at(b, h, i, e, n, heads, d)]);
                    }
                }
            }
    printf("batch %ld, %ld heads, %ld x %ld, head dimension %ld\n", batch, heads, n, m, d);
    int failed = sdtune_attention_allow() || sdtune_attention_forward(q, k, v, batch, heads, n, m, d, scale, 1, out, log_sums);
    failed |= sdtune_attention_backward(q, k, v, out, d_out, log_sums, batch, heads, n, m, d, scale, 1, d_q, d_k, d_v);
    failed |= !(relative_error("result", out, want, of_q) < 5e-3);
    failed |= !(relative_error("gradient of q", d_q, want_q, of_q) < 5e-3);
    failed |= !(relative_error("gradient of k", d_k, want_k, of_k) < 5e-3);
    failed |= !(relative_error("gradient of v", d_v, want_v, of_k) < 5e-3);
    free(operands), free(exact), free(p), free(log_sums);
    return failed;
}

int main(void) {
    int failed = 0;
    failed |= fails(1, 2, 300, 300, 40); /* three tiles of a result, and half of one of them */
    failed |= fails(2, 3, 64, 77, 160);
    failed |= fails(1, 1, 33, 129, 8); /* one tile */
    failed |= fails(1, 2, 256, 130, 64);
    return failed;
}

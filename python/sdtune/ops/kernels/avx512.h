/* Multiplication of tiles with the bf16 instructions of AVX-512 (AVX512_BF16). Included by attention.c. */

enum { OVERWRITE, ACCUMULATE };

static int allow_matrix_unit(void) { return 0; }
static void begin_multiplications(void) {}
static void end_multiplications(void) {}

/* 8 rows by 1, 2 or 3 tiles: the sums fit the registers */
INLINE void multiply_few_rows(int how, float *sums, const int columns, operand_a a, operand_b b, int64_t pairs) {
    __m512 sum[8][3];
    for (int i = 0; i < 8; i++)
        for (int t = 0; t < columns; t++)
            sum[i][t] = how == OVERWRITE ? _mm512_setzero_ps() : _mm512_load_ps(sums + t * WORDS + i * TILE);
    for (; pairs > 0; pairs -= TILE, a.at += a.step, b.at += b.step)
        for (int64_t r = 0; r < TILE && r < pairs; r++) {
            __m512bh column[3];
            for (int t = 0; t < columns; t++) column[t] = (__m512bh)_mm512_load_si512(b.at + t * b.tile + r * TILE);
            for (int i = 0; i < 8; i++) {
                int32_t pair;
                memcpy(&pair, a.at + i * a.row + 2 * r, 4);
                for (int t = 0; t < columns; t++)
                    sum[i][t] = _mm512_dpbf16_ps(sum[i][t], (__m512bh)_mm512_set1_epi32(pair), column[t]);
            }
        }
    for (int i = 0; i < 8; i++)
        for (int t = 0; t < columns; t++) _mm512_store_ps(sums + t * WORDS + i * TILE, sum[i][t]);
}

/* sums [rows / 16][columns] tiles = (OVERWRITE) or += (ACCUMULATE) a times b, over `length` terms; writes half tiles */
INLINE void multiply(int how, float *sums, int64_t rows, int64_t columns, operand_a a, operand_b b, int64_t length) {
    const int64_t pairs = (length + 1) / 2;
    for (int64_t i = 0; i < rows; i += TILE / 2) {
        const operand_a some = {a.at + i / TILE * a.tile + i % TILE * a.row, a.row, a.tile, a.step};
        float *row = sums + i / TILE * columns * WORDS + i % TILE * TILE;
        operand_b rest = b;
        /* 3 at a time, or 2 where 1 would remain */
        for (int64_t t = 0, now; t < columns; t += now, rest.at += now * b.tile) {
            now = columns - t == 2 || columns - t == 4 ? 2 : columns - t < 3 ? 1 : 3;
            if (now == 3) multiply_few_rows(how, row + t * WORDS, 3, some, rest, pairs);
            else if (now == 2) multiply_few_rows(how, row + t * WORDS, 2, some, rest, pairs);
            else multiply_few_rows(how, row + t * WORDS, 1, some, rest, pairs);
        }
    }
}

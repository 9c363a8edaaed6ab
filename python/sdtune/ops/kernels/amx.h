/* Multiplication of tiles with Intel's matrix unit (AMX). Included by attention.c. */

#include <sys/syscall.h>
#include <unistd.h>

enum { OVERWRITE, ACCUMULATE };

/* 0 when the Linux kernel lets this process use the unit's registers. */
static int allow_matrix_unit(void) {
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) ? 1 : 0;
}

static void begin_multiplications(void) {
    struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } __attribute__((packed)) config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = TILE;
    _tile_loadconfig(&config);
}

static void end_multiplications(void) { _tile_release(); }

/* 1 or 2 tiles of A by 1 or 2 of B: tile registers 0 1 / 2 3 += 4 / 5 times 6 7; conditions are compile-time constants */
INLINE void multiply_few_tiles(int how, float *sums, int64_t next, int two_rows, int two_columns, operand_a a, operand_b b,
                               int64_t steps) {
    if (how == OVERWRITE) {
        _tile_zero(0), _tile_zero(1), _tile_zero(2), _tile_zero(3);
    } else {
        _tile_loadd(0, sums, 64);
        if (two_columns) _tile_loadd(1, sums + WORDS, 64);
        if (two_rows) _tile_loadd(2, sums + next, 64);
        if (two_rows && two_columns) _tile_loadd(3, sums + next + WORDS, 64);
    }
    for (int64_t s = 0; s < steps; s++, a.at += a.step, b.at += b.step) {
        _tile_loadd(4, a.at, a.row * 2);
        _tile_loadd(6, b.at, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (two_columns) {
            _tile_loadd(7, b.at + b.tile, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (two_rows) {
            _tile_loadd(5, a.at + a.tile, a.row * 2);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (two_rows && two_columns) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 64);
    if (two_columns) _tile_stored(1, sums + WORDS, 64);
    if (two_rows) _tile_stored(2, sums + next, 64);
    if (two_rows && two_columns) _tile_stored(3, sums + next + WORDS, 64);
}

/* sums [rows / 16][columns] tiles = (OVERWRITE) or += (ACCUMULATE) a times b, over `length` terms; writes whole tiles */
INLINE void multiply(int how, float *sums, int64_t rows, int64_t columns, operand_a a, operand_b b, int64_t length) {
    const int64_t next = columns * WORDS, steps = (length + STEP - 1) / STEP;
    for (; rows > 0; rows -= 2 * TILE, sums += 2 * next, a.at += 2 * a.tile) {
        const int two_rows = rows > TILE;
        operand_b some = b;
        int64_t t = 0;
        for (; t + 1 < columns; t += 2, some.at += 2 * b.tile) {
            if (two_rows) multiply_few_tiles(how, sums + t * WORDS, next, 1, 1, a, some, steps);
            else multiply_few_tiles(how, sums + t * WORDS, next, 0, 1, a, some, steps);
        }
        if (t < columns) {
            if (two_rows) multiply_few_tiles(how, sums + t * WORDS, next, 1, 0, a, some, steps);
            else multiply_few_tiles(how, sums + t * WORDS, next, 0, 0, a, some, steps);
        }
    }
}

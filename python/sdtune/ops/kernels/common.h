/* What the kernels have in common: bf16, 2^x, and the threads of the OpenMP that is loaded already, torch's. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags);

typedef uint16_t bf16;
#define INLINE static inline __attribute__((always_inline))
#define LOG2E 1.44269504f

static inline float of_bf16(bf16 x) {
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

static inline bf16 to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return 0x7fc0;
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* 2^x with a relative error of 3e-6: a polynomial between integers; x below about -150 gives 0 */
static inline __m512 power_of_2(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, 8), part = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(9.5701e-3f);
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(5.591786e-2f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(2.4024745e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(6.9312181e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(9.9999926e-1f));
    return _mm512_scalef_ps(y, whole);
}

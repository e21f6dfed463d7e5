/* SPDX-License-Identifier: BSD-3-Clause */
/* clang-format off */
/*
 * The vocabulary of the split kernels (body/split.h): tile registers, and vectors of 16 floats with
 * their bfloat16 parts. In the row that defines FC_TILES it maps to AMX instructions; elsewhere to a
 * software model of them with the same bits, one float at a time, so that the logic can be tested on
 * any machine.
 *
 *   FC_TILE_REGISTERS        declares the 8 tiles, 16 rows of 64 bytes each; their numbers are literals
 *   t_begin(), t_end()       configure this thread's tiles; release them, or every switch of context saves 8 KiB
 *   t_zero(t), t_load(t, p, pitch), t_store(t, p, pitch)   pitch: bytes from row to row
 *   t_dot(c, a, b)           c[i][j] += sum_k a[i][2k] * b[k][2j] + sum_k a[i][2k+1] * b[k][2j+1], j, k < 16;
 *                            either sum begins at zero. Denormals count as zero, and rounding is to nearest, always.
 *   F, H, U                  16 floats, 16 bfloat16, 16 words of two bfloat16
 *   f_load_n(p, n)           the first n floats, the rest zero; 0 <= n <= 16
 *   f_part(&x)               H: x rounded to bfloat16; x becomes what is left of it
 *   u_part(&even, &odd)      U: the same of two, even in the low halves
 *   h_store_n(p, h, n), u_store_n(p, u, n)
 *   L, l_all(), l_least(l, x), l_get(l)   the least |x| that is not zero, as its bits minus 1; all ones without any
 */
/* clang-format on */
#if defined(FC_TILES) /* not __AMX_BF16__: clang 15 has another name for it */
#include <immintrin.h>

#define FC_TILE_REGISTERS
#define t_zero(t) _tile_zero(t)
#define t_load(t, p, pitch) _tile_loadd(t, p, (long)(pitch))
#define t_store(t, p, pitch) _tile_stored(t, p, (long)(pitch))
#define t_dot(c, a, b) _tile_dpbf16ps(c, a, b)

static inline void t_begin(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.bytes[i] = 64;
        config.rows[i] = 16;
    }
    /* the intrinsic tells the compiler about the first bytes only */
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
}

static inline void t_end(void) { _tile_release(); }

typedef __m512 F;
typedef __m256i H;
typedef __m512i U, L;

static inline __mmask16 f_mask(ptrdiff_t n) { return (__mmask16)((1u << n) - 1); }
static inline F f_load_n(const float *p, ptrdiff_t n) {
    return _mm512_maskz_loadu_ps(f_mask(n), p);
}
static inline U h_words(H h) { return _mm512_cvtepu16_epi32(h); }
static inline H f_part(F *x) {
    const H h = (__m256i)_mm512_cvtneps_pbh(*x);
    *x = _mm512_sub_ps(*x, _mm512_castsi512_ps(_mm512_slli_epi32(h_words(h), 16)));
    return h;
}
static inline void h_store_n(uint16_t *p, H h, ptrdiff_t n) {
    _mm256_mask_storeu_epi16(p, f_mask(n), h);
}
static inline U u_part(F *even, F *odd) {
    /* words 0, 16, 1, 17, ... of those of even and then of odd */
    const __m512i order = _mm512_add_epi32(
        _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                           _mm512_set1_epi32(0x00010001)),
        _mm512_set1_epi32(0x00100000));
    const U u = _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(*odd, *even));
    *even = _mm512_sub_ps(*even, _mm512_castsi512_ps(_mm512_slli_epi32(u, 16)));
    *odd = _mm512_sub_ps(
        *odd, _mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32((int)0xffff0000))));
    return u;
}
static inline void u_store_n(uint16_t *p, U u, ptrdiff_t n) {
    _mm512_mask_storeu_epi32(p, f_mask(n), u);
}
static inline L l_all(void) { return _mm512_set1_epi32(-1); }
static inline L l_least(L l, F x) {
    const U bits = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
    return _mm512_min_epu32(l, _mm512_sub_epi32(bits, _mm512_set1_epi32(1)));
}
static inline uint32_t l_get(L l) { return _mm512_reduce_min_epu32(l); }

#else

typedef union {
    float f[16][16];
    uint16_t h[16][32];
} fc_tile_model;
#define FC_TILE_REGISTERS fc_tile_model fc_tmm[8];
#define t_zero(t) memset(&fc_tmm[t], 0, sizeof fc_tmm[t])
#define t_load(t, p, pitch) t_model_load(&fc_tmm[t], p, pitch)
#define t_store(t, p, pitch) t_model_store(&fc_tmm[t], p, pitch)
#define t_dot(c, a, b) t_model_dot(&fc_tmm[c], &fc_tmm[a], &fc_tmm[b])

static inline void t_begin(void) {}
static inline void t_end(void) {}

static inline void t_model_load(fc_tile_model *t, const void *p, ptrdiff_t pitch) {
    for (int i = 0; i < 16; i++) memcpy(t->h[i], (const char *)p + i * pitch, 64);
}
static inline void t_model_store(const fc_tile_model *t, void *p, ptrdiff_t pitch) {
    for (int i = 0; i < 16; i++) memcpy((char *)p + i * pitch, t->h[i], 64);
}

static inline uint32_t f_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
static inline float f_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
/* Denormals are zero. */
static inline float f_flush(float x) {
    const uint32_t bits = f_bits(x);
    return bits & 0x7f800000 ? x : f_of_bits(bits & 0x80000000);
}
static inline float f_of_h(uint16_t h) { return f_flush(f_of_bits((uint32_t)h << 16)); }

/* A fused multiply-add: products of bfloat16 are exact in double, and where their sum with a float
 * is not, it is too far from the middle of two floats to be rounded to the wrong one. */
static inline float t_model_fma(float a, float b, float c) {
    return f_flush((float)((double)a * b + c));
}

/* The inner loops run over j, which compilers turn into vectors. */
static inline void t_model_dot(fc_tile_model *c, const fc_tile_model *a, const fc_tile_model *b) {
    float terms[2][16][16]; /* of b: [parity of k][k / 2][j] */
    for (int k = 0; k < 16; k++)
        for (int j = 0; j < 16; j++)
            for (int odd = 0; odd < 2; odd++) terms[odd][k][j] = f_of_h(b->h[k][2 * j + odd]);
    for (int i = 0; i < 16; i++) {
        float sums[2][16] = {{0}};
        for (int k = 0; k < 16; k++)
            for (int odd = 0; odd < 2; odd++) {
                const float factor = f_of_h(a->h[i][2 * k + odd]);
                for (int j = 0; j < 16; j++)
                    sums[odd][j] = t_model_fma(factor, terms[odd][k][j], sums[odd][j]);
            }
        for (int j = 0; j < 16; j++)
            c->f[i][j] = f_flush(f_flush(c->f[i][j]) + f_flush(sums[0][j] + sums[1][j]));
    }
}

typedef struct {
    float f[16];
} F;
typedef struct {
    uint16_t h[16];
} H;
typedef struct {
    uint16_t h[32];
} U;
typedef uint32_t L;

static inline F f_load_n(const float *p, ptrdiff_t n) {
    F x = {{0}};
    memcpy(x.f, p, (size_t)n * sizeof(float));
    return x;
}
static inline H f_part(F *x) {
    H h;
    for (int i = 0; i < 16; i++) {
        const float f = f_flush(x->f[i]);
        const uint32_t bits = f_bits(f);
        h.h[i] = (uint16_t)(f != f ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
        x->f[i] -= f_of_bits((uint32_t)h.h[i] << 16);
    }
    return h;
}
static inline void h_store_n(uint16_t *p, H h, ptrdiff_t n) { memcpy(p, h.h, (size_t)n * 2); }
static inline U u_part(F *even, F *odd) {
    const H e = f_part(even), o = f_part(odd);
    U u;
    for (int i = 0; i < 16; i++) {
        u.h[2 * i] = e.h[i];
        u.h[2 * i + 1] = o.h[i];
    }
    return u;
}
static inline void u_store_n(uint16_t *p, U u, ptrdiff_t n) { memcpy(p, u.h, (size_t)n * 4); }
static inline L l_all(void) { return UINT32_MAX; }
static inline L l_least(L l, F x) {
    for (int i = 0; i < 16; i++) {
        const uint32_t bits = (f_bits(x.f[i]) & 0x7fffffff) - 1;
        l = bits < l ? bits : l;
    }
    return l;
}
static inline uint32_t l_get(L l) { return l; }
#endif

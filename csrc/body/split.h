/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Products of floats as products of their bfloat16 parts, in tile registers.
 *
 * A float is the exact sum of three bfloat16 of 8 bits, x = x0 + x1 + x2, so x*w is the sum of nine
 * products. Six of them hold all above 2^-24 of it (x0w0, x0w1, x1w0, x1w1, x0w2, x2w0), three of
 * two parts all above 2^-16, one is bfloat16. Henry, Tang, Heinecke, "Leveraging the bfloat16
 * Artificial Intelligence Datatype For Higher-Precision Computations" (arXiv 1904.06376).
 *
 * split_tile: 16*na x 16*nb sums of float in na*nb tiles; two tiles for a and two for b. Loop nest:
 * channel blocks of 32, taps, products. The products are in the order that loads the fewest tiles
 * (14 loads for 24 tile products with six, 8 for 12 with three) and adds small ones first.
 */
#include "isa/tile.h"

#ifndef FC_INLINE
#define FC_INLINE inline __attribute__((always_inline))
#endif

#define FC_LOAD_A(p) \
    do { \
        t_load(4, ak + (p) * a_part, a_row); \
        if (na == 2) t_load(5, ak + (p) * a_part + t->a_tile, a_row); \
    } while (0)
#define FC_LOAD_B(p) \
    do { \
        t_load(6, bk + (p) * b_part, b_row); \
        if (nb == 2) t_load(7, bk + (p) * b_part + t->b_tile, b_row); \
    } while (0)
#define FC_DOT() \
    do { \
        t_dot(0, 4, 6); \
        if (nb == 2) t_dot(1, 4, 7); \
        if (na == 2) t_dot(2, 5, 6); \
        if (na == 2 && nb == 2) t_dot(3, 5, 7); \
    } while (0)

static FC_INLINE void FC_SPLIT(tile)(const fc_split_tile *t, const int products, const int na,
                                     const int nb) {
    const uint16_t *a = t->a, *bk = t->b;
    const ptrdiff_t a_part = t->a_part, b_part = t->b_part, a_row = 2 * t->a_row,
                    b_row = 2 * t->b_row, pitch = 4 * t->acc_row;
    float *const acc = t->acc, *const acc2 = acc + 16 * t->acc_row;
    const char *fetch = t->fetch, *const end = t->fetch_end;
    FC_TILE_REGISTERS
    if (t->flags & FC_FIRST) {
        t_zero(0);
        if (nb == 2) t_zero(1);
        if (na == 2) t_zero(2);
        if (na == 2 && nb == 2) t_zero(3);
    } else {
        t_load(0, acc, pitch);
        if (nb == 2) t_load(1, acc + 16, pitch);
        if (na == 2) t_load(2, acc2, pitch);
        if (na == 2 && nb == 2) t_load(3, acc2 + 16, pitch);
        for (int i = 0; i < 16 * na; i++) /* the sums beside these */
            for (int j = 0; j < 2; j++) FC_PREFETCH(acc + i * t->acc_row + 16 * (nb + j));
    }
    for (ptrdiff_t c = 0; c < t->channels; c++, a += t->a_c) {
        for (ptrdiff_t k = 0; k < t->taps; k++, bk += t->b_k) {
            const uint16_t *const ak = a + t->off[k] * 32;
            for (ptrdiff_t i = 0; i < t->fetch_step && fetch < end; i += FC_CACHE_LINE) {
                FC_PREFETCH_L2(fetch);
                fetch += FC_CACHE_LINE;
            }
            if (products == 6) {
                FC_LOAD_A(2);
                FC_LOAD_B(0);
                FC_DOT();
                FC_LOAD_A(1);
                FC_DOT();
                FC_LOAD_B(1);
                FC_DOT();
                FC_LOAD_A(0);
                FC_DOT();
                FC_LOAD_B(2);
                FC_DOT();
                FC_LOAD_B(0);
                FC_DOT();
            } else if (products == 3) {
                FC_LOAD_A(0);
                FC_LOAD_B(1);
                FC_DOT();
                FC_LOAD_B(0);
                FC_DOT();
                FC_LOAD_A(1);
                FC_DOT();
            } else {
                FC_LOAD_A(0);
                FC_LOAD_B(0);
                FC_DOT();
            }
        }
    }
    t_store(0, acc, pitch);
    if (nb == 2) t_store(1, acc + 16, pitch);
    if (na == 2) t_store(2, acc2, pitch);
    if (na == 2 && nb == 2) t_store(3, acc2 + 16, pitch);
}

#define FC_SPLIT_TILE(products, na, nb) \
    static void FC_SPLIT(tile_##products##_##na##x##nb)(const fc_split_tile *t) { \
        FC_SPLIT(tile)(t, products, na, nb); \
    }
#define FC_SPLIT_TILES(products) \
    FC_SPLIT_TILE(products, 1, 1) \
    FC_SPLIT_TILE(products, 1, 2) FC_SPLIT_TILE(products, 2, 1) FC_SPLIT_TILE(products, 2, 2)
FC_SPLIT_TILES(1)
FC_SPLIT_TILES(3)
FC_SPLIT_TILES(6)

static void FC_SPLIT(begin)(void) { t_begin(); }
static void FC_SPLIT(end)(void) { t_end(); }

/* to[p*part + i] = part p of x[i] */
static FC_INLINE uint32_t FC_SPLIT(rows_of)(uint16_t *to, ptrdiff_t part, const float *x,
                                            ptrdiff_t n, const int parts) {
    L least = l_all();
    for (ptrdiff_t i = 0; i < n; i += 16) {
        const ptrdiff_t here = n - i < 16 ? n - i : 16;
        F f = f_load_n(x + i, here);
        least = l_least(least, f);
        for (int p = 0; p < parts; p++) h_store_n(to + p * part + i, f_part(&f), here);
    }
    return l_get(least);
}

/* to[p*part + i/32*panel + 2*(i%32)] and the element after it = part p of even[i], odd[i] */
static FC_INLINE uint32_t FC_SPLIT(pairs_of)(uint16_t *to, ptrdiff_t part, ptrdiff_t panel,
                                             const float *even, const float *odd, ptrdiff_t n,
                                             ptrdiff_t ahead, const int parts) {
    L least = l_all();
    for (; n > 0; n -= 32, even += 32, to += panel) {
        for (ptrdiff_t i = 0; i < 32 && i < n; i += 16) {
            const ptrdiff_t here = n - i < 16 ? n - i : 16;
            F e = f_load_n(even + i, here), o = f_load_n(odd ? odd + i : even, odd ? here : 0);
            if (ahead) {
                FC_PREFETCH_READ(even + ahead + i);
                FC_PREFETCH_READ(odd + ahead + i);
            }
            least = l_least(l_least(least, e), o);
            for (int p = 0; p < parts; p++) u_store_n(to + p * part + 2 * i, u_part(&e, &o), here);
        }
        if (odd) odd += 32;
    }
    return l_get(least);
}

/* Loops for each number of parts: nothing is taken from the last one. */
static uint32_t FC_SPLIT(rows)(void *to, ptrdiff_t part, const float *x, ptrdiff_t n, int parts) {
    return parts == 3   ? FC_SPLIT(rows_of)(to, part, x, n, 3)
           : parts == 2 ? FC_SPLIT(rows_of)(to, part, x, n, 2)
                        : FC_SPLIT(rows_of)(to, part, x, n, 1);
}

static uint32_t FC_SPLIT(pairs)(void *to, ptrdiff_t part, ptrdiff_t panel, const float *even,
                                const float *odd, ptrdiff_t n, ptrdiff_t ahead, int parts) {
    return parts == 3   ? FC_SPLIT(pairs_of)(to, part, panel, even, odd, n, ahead, 3)
           : parts == 2 ? FC_SPLIT(pairs_of)(to, part, panel, even, odd, n, ahead, 2)
                        : FC_SPLIT(pairs_of)(to, part, panel, even, odd, n, ahead, 1);
}

#define FC_ENTRY_SPLIT(products) \
    { \
        [1] = {[1] = FC_SPLIT(tile_##products##_1x1), [2] = FC_SPLIT(tile_##products##_1x2)}, \
        [2] = {[1] = FC_SPLIT(tile_##products##_2x1), [2] = FC_SPLIT(tile_##products##_2x2)}, \
    }
static const fc_split_kernels FC_SPLIT(kernels) = {
    .begin = FC_SPLIT(begin),
    .end = FC_SPLIT(end),
    .rows = FC_SPLIT(rows),
    .pairs = FC_SPLIT(pairs),
    .tile = {[1] = FC_ENTRY_SPLIT(1), [3] = FC_ENTRY_SPLIT(3), [6] = FC_ENTRY_SPLIT(6)},
};

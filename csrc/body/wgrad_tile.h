/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * wgrad_tile: weight gradient, vectorised over output channels.
 *
 *   for r < rows: for p < cols: for m < mr:
 *     sum[m][0:NR] += x[m][r*x_row + p] * dy[r*cols + p][0:NR]
 *
 * Tile: mr (channel, tap) pairs x NR = nv*VL output channels; one base pointer a pair, so mr is
 * bounded by the integer registers. The block's sum starts at zero and is added to acc at the end.
 *
 * dot_tile: the same contraction where output channels are few: vectorised along the pixels.
 *
 *   for r < rows: for p < cols: for m < mr: sum[m] += a[r*a_row + p] * b[m][r*b_row + p]
 */
static inline __attribute__((always_inline)) void FC_FN(wgrad_tile_body)(const fc_wgrad_tile *t,
                                                                         const int mr,
                                                                         const int nv) {
    V sum[FC_WGRAD_MR_MAX][FC_NV_MAX];
    const REAL *x[FC_WGRAD_MR_MAX];
    const REAL *dy = t->dy;
#pragma GCC unroll 7
    for (int m = 0; m < mr; m++) {
        x[m] = t->x[m];
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) sum[m][v] = v_zero();
    }
    for (ptrdiff_t r = 0; r < t->rows; r++) {
        const ptrdiff_t start = r * t->x_row, stop = start + t->cols;
        for (ptrdiff_t p = start; p < stop; p++) {
            V b[FC_NV_MAX];
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++) b[v] = v_load(dy + v * VL);
#pragma GCC unroll 7
            for (int m = 0; m < mr; m++) {
                const V a = v_set1(x[m][p]);
#pragma GCC unroll 2
                for (int v = 0; v < nv; v++) sum[m][v] = v_fma(a, b[v], sum[m][v]);
            }
            dy += nv * VL;
        }
    }
    REAL *const acc = t->acc;
#pragma GCC unroll 7
    for (int m = 0; m < mr; m++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) {
            REAL *const at = acc + (m * nv + v) * VL;
            v_store(at, v_add(v_load(at), sum[m][v]));
        }
}

#define FC_WGRAD_TILE(mr, nv) \
    static void FC_FN(wgrad_tile_##mr##x##nv)(const fc_wgrad_tile *t) { \
        FC_FN(wgrad_tile_body)(t, mr, nv); \
    }
FC_TILES_1(FC_WGRAD_TILE, FC_WGRAD_MR)
FC_TILES_2(FC_WGRAD_TILE, FC_WGRAD_MR)

static inline __attribute__((always_inline)) void FC_FN(dot_tile_body)(const fc_dot_tile *t,
                                                                       const int mr) {
    V sum[FC_DOT_MR][2];
#pragma GCC unroll 4
    for (int m = 0; m < mr; m++) sum[m][0] = sum[m][1] = v_zero();
    for (ptrdiff_t r = 0; r < t->rows; r++) {
        const REAL *const a = (const REAL *)t->a + r * t->a_row;
        const ptrdiff_t shift = r * t->b_row, cols = t->cols;
        ptrdiff_t p = 0;
        for (; p + 2 * VL <= cols; p += 2 * VL) {
            const V a0 = v_load(a + p), a1 = v_load(a + p + VL);
#pragma GCC unroll 4
            for (int m = 0; m < mr; m++) {
                const REAL *const b = (const REAL *)t->b[m] + shift + p;
                sum[m][0] = v_fma(a0, v_load(b), sum[m][0]);
                sum[m][1] = v_fma(a1, v_load(b + VL), sum[m][1]);
            }
        }
        for (; p < cols; p += VL) {
            const ptrdiff_t n = cols - p < VL ? cols - p : VL;
            const V a0 = v_load_n(a + p, n);
#pragma GCC unroll 4
            for (int m = 0; m < mr; m++)
                sum[m][0] = v_fma(a0, v_load_n((const REAL *)t->b[m] + shift + p, n), sum[m][0]);
        }
    }
    REAL *const acc = t->acc;
#pragma GCC unroll 4
    for (int m = 0; m < mr; m++) acc[m] += v_hsum(v_add(sum[m][0], sum[m][1]));
}

static void FC_FN(dot_tile_1)(const fc_dot_tile *t) { FC_FN(dot_tile_body)(t, 1); }
static void FC_FN(dot_tile_2)(const fc_dot_tile *t) { FC_FN(dot_tile_body)(t, 2); }
static void FC_FN(dot_tile_3)(const fc_dot_tile *t) { FC_FN(dot_tile_body)(t, 3); }
static void FC_FN(dot_tile_4)(const fc_dot_tile *t) { FC_FN(dot_tile_body)(t, 4); }

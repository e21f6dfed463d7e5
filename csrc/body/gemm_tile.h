/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * gemm_tile: vectorised over pixels (columns); each weight is a scalar broadcast.
 *
 *   for c < channels: for m < mr: acc[m][0:NR] += a[c][m] * x[c*x_c + 0:NR]
 *
 * Tile: mr output channels x NR = nv*VL pixels, stored from registers to NCHW rows. Limits: mr*nv
 * accumulators + nv vectors of x + 1 broadcast must fit the register file: FC_GEMM_MR_1/2 of the
 * row's file.
 */
/* Where the tile's pixels are not consecutive in y, or do not fill its vectors, the epilogue works
 * on a block of whole vectors; this copies one to y (`out`), or from y or the residual. */
static __attribute__((noinline)) void FC_FN(gemm_copy)(const fc_gemm_tile *t, REAL *block, REAL *y,
                                                       int mr, int nr, int out) {
    const ptrdiff_t step = t->y_px;
    for (int m = 0; m < mr; m++, block += nr, y += t->y_m) {
        ptrdiff_t left = t->left < t->pixels ? t->left : t->pixels;
        REAL *at = y;
        for (ptrdiff_t p = 0; p < t->pixels; left = t->cols) {
            if (left > t->pixels - p) left = t->pixels - p;
            for (ptrdiff_t i = 0; i < left; i++, at += step)
                if (out)
                    *at = block[p + i];
                else
                    block[p + i] = *at;
            p += left;
            at += t->y_gap;
        }
    }
}

static FC_INLINE void FC_FN(gemm_tile_body)(const fc_gemm_tile *t, const int mr, const int nv) {
    V acc[FC_MR_MAX][FC_NV_MAX];
    const REAL *x = t->x, *a = t->a;
    const ptrdiff_t x_c = t->x_c, a_c = t->a_c;
    const int nr = nv * VL;
#pragma GCC unroll 14
    for (int m = 0; m < mr; m++) {
        /* the rows of y are far apart: no hardware prefetcher follows them */
        FC_PREFETCH((REAL *)t->y + m * t->y_m);
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) acc[m][v] = v_zero();
    }
    for (ptrdiff_t c = t->channels; c > 0; c--) {
        const REAL *xs = x;
        FC_OPAQUE(xs);
        V b[FC_NV_MAX];
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) b[v] = v_load(xs + v * VL);
#pragma GCC unroll 14
        for (int m = 0; m < mr; m++) {
            const V w = v_set1(a[m]);
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++) acc[m][v] = v_fma(w, b[v], acc[m][v]);
        }
        a += a_c;
        x += x_c;
    }
    const int whole = t->pixels == nr && t->left >= nr && t->y_px == 1;
    const int last = t->flags & FC_LAST;
    REAL block[FC_MR_MAX * FC_NV_MAX * VL], added[FC_MR_MAX * FC_NV_MAX * VL];
    REAL *y = t->y;
    const REAL *residual = last ? t->residual : NULL;
    ptrdiff_t y_m = t->y_m;
    if (!whole) {
        memset(block, 0, sizeof block);
        if (!(t->flags & FC_FIRST)) FC_FN(gemm_copy)(t, block, t->y, mr, nr, 0);
        if (residual) {
            memset(added, 0, sizeof added);
            FC_FN(gemm_copy)(t, added, (REAL *)residual, mr, nr, 0);
            residual = added;
        }
        y = block;
        y_m = nr;
    }
#define FC_GEMM_EACH(statement) \
    do { \
        _Pragma("GCC unroll 14") for (int m = 0; m < mr; m++) \
            _Pragma("GCC unroll 2") for (int v = 0; v < nv; v++) statement; \
    } while (0)
    if (!(t->flags & FC_FIRST))
        FC_GEMM_EACH(acc[m][v] = v_add(acc[m][v], v_load(y + m * y_m + v * VL)));
    if (last) {
        if (t->bias_m)
            FC_GEMM_EACH(acc[m][v] = v_add(acc[m][v], v_set1(((const REAL *)t->bias_m)[m])));
        if (t->bias_n) {
            V b[FC_NV_MAX];
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++) {
                const int n = t->pixels - v * VL < VL ? t->pixels - v * VL : VL;
                b[v] = v_load_n((const REAL *)t->bias_n + v * VL, n);
            }
            FC_GEMM_EACH(acc[m][v] = v_add(acc[m][v], b[v]));
        }
        if (residual)
            FC_GEMM_EACH(acc[m][v] = v_add(acc[m][v], v_load(residual + m * y_m + v * VL)));
        if (t->flags & FC_RELU) FC_GEMM_EACH(acc[m][v] = v_max(v_zero(), acc[m][v]));
    }
    FC_GEMM_EACH(v_store(y + m * y_m + v * VL, acc[m][v]));
#undef FC_GEMM_EACH
    if (!whole) FC_FN(gemm_copy)(t, block, t->y, mr, nr, 1);
}

#define FC_GEMM_TILE(mr, nv) \
    static void FC_FN(gemm_tile_##mr##x##nv)(const fc_gemm_tile *t) { \
        FC_FN(gemm_tile_body)(t, mr, nv); \
    }
FC_TILES_1(FC_GEMM_TILE, FC_GEMM_MR_1)
FC_TILES_2(FC_GEMM_TILE, FC_GEMM_MR_2)

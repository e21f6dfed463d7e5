/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * gemm_tile: vectorised over pixels (columns); each weight is a scalar broadcast.
 *
 *   for c < channels: for m < mr: acc[m][0:NR] += a[c][m] * x[c*x_c + 0:NR]
 *
 * Tile: mr output channels x NR = nv*VL pixels, stored straight to NCHW rows. Limits: mr*nv
 * accumulators + nv vectors of x + 1 broadcast must fit the register file: FC_GEMM_MR_1/2 of the
 * row's file.
 */
static inline V FC_FN(gemm_epilogue)(const fc_gemm_tile *t, V s, const REAL *y, const REAL *res,
                                     int m, ptrdiff_t p, ptrdiff_t n) {
    if (!(t->flags & FC_FIRST)) s = v_add(s, n == VL ? v_load(y) : v_load_n(y, n));
    if (!(t->flags & FC_LAST)) return s;
    if (t->bias_m) s = v_add(s, v_set1(((const REAL *)t->bias_m)[m]));
    if (t->bias_n) {
        const REAL *const b = (const REAL *)t->bias_n + p;
        s = v_add(s, n == VL ? v_load(b) : v_load_n(b, n));
    }
    if (res) s = v_add(s, n == VL ? v_load(res) : v_load_n(res, n));
    return t->flags & FC_RELU ? v_max(v_zero(), s) : s;
}

static __attribute__((noinline)) void FC_FN(gemm_store)(const fc_gemm_tile *t, const REAL *sums,
                                                        int mr, int nv) {
    const ptrdiff_t step = t->y_px;
    for (int m = 0; m < mr; m++)
        for (ptrdiff_t p = 0; p < t->pixels; p += VL) {
            const ptrdiff_t n = t->pixels - p < VL ? t->pixels - p : VL;
            const ptrdiff_t at = m * t->y_m + p * step;
            REAL *const y = (REAL *)t->y + at;
            const REAL *res = t->residual;
            if (res) res += at;
            V s = v_load(sums + m * nv * VL + p);
            if (step == 1) {
                s = FC_FN(gemm_epilogue)(t, s, y, res, m, p, n);
                if (n == VL)
                    v_store(y, s);
                else
                    v_store_n(y, s, n);
                continue;
            }
            /* a sub-lattice of the output: the input gradient of a strided convolution */
            REAL old[VL] = {0}, add[VL];
            for (ptrdiff_t i = 0; i < n; i++) {
                if (!(t->flags & FC_FIRST)) old[i] = y[i * step];
                if (res) add[i] = res[i * step];
            }
            s = FC_FN(gemm_epilogue)(t, s, old, res ? add : NULL, m, p, n);
            v_store_n(old, s, n);
            for (ptrdiff_t i = 0; i < n; i++) y[i * step] = old[i];
        }
}

static inline __attribute__((always_inline)) void FC_FN(gemm_tile_body)(const fc_gemm_tile *t,
                                                                        const int mr,
                                                                        const int nv) {
    V acc[FC_MR_MAX][FC_NV_MAX];
    const REAL *x = t->x, *a = t->a;
    const ptrdiff_t x_c = t->x_c;
#pragma GCC unroll 14
    for (int m = 0; m < mr; m++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) acc[m][v] = v_zero();
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
        a += mr;
        x += x_c;
    }
    REAL sums[FC_MR_MAX * FC_NV_MAX * VL];
#pragma GCC unroll 14
    for (int m = 0; m < mr; m++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) v_store(sums + (m * nv + v) * VL, acc[m][v]);
    FC_FN(gemm_store)(t, sums, mr, nv);
}

#define FC_GEMM_TILE(mr, nv) \
    static void FC_FN(gemm_tile_##mr##x##nv)(const fc_gemm_tile *t) { \
        FC_FN(gemm_tile_body)(t, mr, nv); \
    }
FC_TILES_1(FC_GEMM_TILE, FC_GEMM_MR_1)
FC_TILES_2(FC_GEMM_TILE, FC_GEMM_MR_2)

/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * conv_tile: direct convolution, vectorised over output channels; each pixel is a scalar broadcast.
 *
 *   for c < channels: for t < taps: for p < mr:
 *     acc[p][0:NR] += x[c*x_c + off[t] + p] * w[c][t][0:NR]
 *
 * Tile: mr pixels x NR = nv*VL output channels. The accumulators are vectors of output channels, so
 * the NCHW store transposes VL pixels at a time. Limits: mr*nv accumulators + nv weights + 1
 * broadcast must fit the register file: FC_CONV_MR_1 and FC_CONV_MR_2 of the row's file.
 */
/* n <= VL pixels of `rows` <= VL output channels, transposed; with literals it stays in registers
 */
static FC_INLINE void FC_FN(conv_store_block)(REAL *y, const ptrdiff_t y_oc, const REAL *sums,
                                              const ptrdiff_t nr, const REAL *residual,
                                              const int relu, const int n, const int rows) {
    V r[VL];
    v_transpose(r, sums, nr, n);
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) {
        if (i >= rows) break;
        FC_OPAQUE(y); /* else gcc works all rows' addresses out first, and spills them */
        V s = r[i];
        if (residual) s = v_add(s, n == VL ? v_load(residual) : v_load_n(residual, n));
        if (relu) s = v_max(v_zero(), s);
        if (n == VL)
            v_store(y, s);
        else
            v_store_n(y, s, n);
        y += y_oc;
        if (residual) residual += y_oc;
    }
}

static __attribute__((noinline)) void FC_FN(conv_store)(const fc_conv_tile *t, const REAL *sums,
                                                        int mr, int nv) {
    const REAL *const residual = t->residual;
    REAL *const y = t->y;
    const int nr = nv * VL;
    if (t->y_px !=
        1) { /* a sub-lattice of the output: the input gradient of a strided convolution */
        for (int o = 0; o < t->oc; o++)
            for (int p = 0; p < mr; p++) {
                const ptrdiff_t at = o * t->y_oc + p * t->y_px;
                REAL s = sums[p * nr + o];
                if (residual) s += residual[at];
                if ((t->flags & FC_RELU) && s < 0) s = 0;
                y[at] = s;
            }
        return;
    }
    const ptrdiff_t y_oc = t->y_oc;
    const int relu = t->flags & FC_RELU;
    for (int o0 = 0; o0 < t->oc; o0 += VL)
        for (int p0 = 0; p0 < mr; p0 += VL) {
            const int n = mr - p0 < VL ? mr - p0 : VL, rows = t->oc - o0 < VL ? t->oc - o0 : VL;
            const ptrdiff_t at = o0 * y_oc + p0;
            const REAL *const from = sums + p0 * nr + o0;
            if (rows < VL || residual)
                FC_FN(conv_store_block)(y + at, y_oc, from, nr, residual ? residual + at : NULL,
                                        relu, n, rows);
            else if (n < VL)
                FC_FN(conv_store_block)(y + at, y_oc, from, nr, NULL, relu, n, VL);
            else if (relu)
                FC_FN(conv_store_block)(y + at, y_oc, from, nr, NULL, 1, VL, VL);
            else
                FC_FN(conv_store_block)(y + at, y_oc, from, nr, NULL, 0, VL, VL);
        }
}

static FC_INLINE void FC_FN(conv_tile_body)(const fc_conv_tile *t, const int mr, const int nv) {
    V acc[FC_MR_MAX][FC_NV_MAX];
    const REAL *x = t->x, *w = t->w;
    const ptrdiff_t *const off = t->off;
    const ptrdiff_t taps = t->taps, x_c = t->x_c;
    REAL *const partial = t->acc;
    for (ptrdiff_t i = 0; i < t->next_bytes; i += 64) FC_PREFETCH_L2((const char *)t->next + i);
#pragma GCC unroll 14
    for (int p = 0; p < mr; p++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) acc[p][v] = v_zero();
    for (ptrdiff_t c = t->channels; c > 0; c--) {
        for (ptrdiff_t k = 0; k < taps; k++) {
            const REAL *xs = x + off[k];
            FC_OPAQUE(xs);
            V b[FC_NV_MAX];
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++) b[v] = v_load(w + v * VL);
#pragma GCC unroll 14
            for (int p = 0; p < mr; p++) {
                const V a = v_set1(xs[p]);
#pragma GCC unroll 2
                for (int v = 0; v < nv; v++) acc[p][v] = v_fma(a, b[v], acc[p][v]);
            }
            w += nv * VL;
        }
        x += x_c;
    }
    if (!(t->flags & FC_FIRST)) {
#pragma GCC unroll 14
        for (int p = 0; p < mr; p++)
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++)
                acc[p][v] = v_add(acc[p][v], v_load(partial + (p * nv + v) * VL));
    }
    const int last = t->flags & FC_LAST;
    if (last && t->bias) {
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) {
            const int n = t->oc - v * VL < VL ? t->oc - v * VL : VL;
            const V b = v_load_n((const REAL *)t->bias + v * VL, n);
#pragma GCC unroll 14
            for (int p = 0; p < mr; p++) acc[p][v] = v_add(acc[p][v], b);
        }
    }
    REAL sums[FC_MR_MAX * FC_NV_MAX * VL];
    REAL *const to = last ? sums : partial;
#pragma GCC unroll 14
    for (int p = 0; p < mr; p++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) v_store(to + (p * nv + v) * VL, acc[p][v]);
    if (last) FC_FN(conv_store)(t, sums, mr, nv);
}

#define FC_CONV_TILE(mr, nv) \
    static void FC_FN(conv_tile_##mr##x##nv)(const fc_conv_tile *t) { \
        FC_FN(conv_tile_body)(t, mr, nv); \
    }
FC_TILES_1(FC_CONV_TILE, FC_CONV_MR_1)
FC_TILES_2(FC_CONV_TILE, FC_CONV_MR_2)

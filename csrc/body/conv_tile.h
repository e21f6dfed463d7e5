/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * conv_tile: direct convolution, vectorised over output channels; each pixel is a scalar broadcast.
 *
 *   for t < terms: for p < mr:
 *     acc[p][0:NR] += x[off[t] + p] * w[t][0:NR]
 *
 * A term is one tap of one channel: a single loop, as the short one of a channel's taps delays the
 * next channel's loads (avx512, 3x3: 170 -> 180 GF/s, 1x1 from L2: 130 -> 160).
 *
 * Where rows are short, the second half of a tile lies on the next row: a few accumulators alone
 * would wait for their own latency.
 *
 * Tile: mr pixels x NR = nv*VL output channels. Limits: mr*nv accumulators + nv weights + 1
 * broadcast must fit the register file: FC_CONV_MR_1 and FC_CONV_MR_2 of the row's file.
 *
 * conv_runs: the same of terms that are runs of neighbouring pixels, the taps of a row. Its
 * accumulators and the weights of a run must fit: FC_RUN_MR_1 and FC_RUN_MR_2, 0 where the row has
 * none. Loads lower the clock of AVX-512, and with 3 taps it takes half as many: 159 -> 170 GF/s.
 *
 * conv_store: the sums are vectors of output channels, so the way to the rows of y transposes VL
 * pixels at a time; bias, residual and activation.
 */
/* n <= VL pixels of m <= VL output channels; with literals it stays in registers */
static FC_INLINE void FC_FN(conv_store_block)(const fc_conv_store *t, REAL *y, const REAL *sums,
                                              const REAL *residual, const REAL *bias,
                                              const int relu, const ptrdiff_t n,
                                              const ptrdiff_t m) {
    const ptrdiff_t y_oc = t->y_oc;
    V r[VL];
    v_transpose(r, sums, t->s_px, n);
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) {
        if (i >= m) break;
        FC_OPAQUE(y); /* else gcc works all rows' addresses out first, and spills them */
        V s = r[i];
        if (bias) s = v_add(s, v_set1(bias[i]));
        if (residual) s = v_add(s, FC_LOAD(residual, n));
        if (relu) s = v_max(v_zero(), s);
        if (n == VL)
            v_store(y, s);
        else
            v_store_n(y, s, n);
        y += y_oc;
        if (residual) residual += y_oc;
    }
}

static __attribute__((noinline)) void FC_FN(conv_store)(const fc_conv_store *t) {
    const ptrdiff_t cols = t->cols;
    for (ptrdiff_t o = 0; o < t->outputs; o += VL) {
        const ptrdiff_t m = t->outputs - o < VL ? t->outputs - o : VL;
        const REAL *const bias = t->bias ? (const REAL *)t->bias + o : NULL;
        for (ptrdiff_t r = 0; r < t->rows; r++) {
            const ptrdiff_t at = o * t->y_oc + r * t->y_row;
            const REAL *const sums = (const REAL *)t->sums + r * t->s_row + o;
            const REAL *const residual = t->residual ? (const REAL *)t->residual + at : NULL;
            REAL *const y = (REAL *)t->y + at;
            for (ptrdiff_t p = 0; p < cols; p += VL) {
                if (cols >= VL && p > cols - VL) p = cols - VL; /* the last block overlaps */
                const REAL *const s = sums + p * t->s_px;
                if (residual || m < VL)
                    FC_FN(conv_store_block)(t, y + p, s, residual ? residual + p : NULL, bias,
                                            t->relu, cols < VL ? cols : VL, m);
                else if (bias || cols < VL)
                    FC_FN(conv_store_block)(t, y + p, s, NULL, bias, t->relu, cols < VL ? cols : VL,
                                            VL);
                else if (t->relu)
                    FC_FN(conv_store_block)(t, y + p, s, NULL, NULL, 1, VL, VL);
                else
                    FC_FN(conv_store_block)(t, y + p, s, NULL, NULL, 0, VL, VL);
            }
        }
    }
}

/* One term after the other. */
static FC_INLINE void FC_FN(conv_terms)(V (*acc)[FC_NV_MAX], const fc_conv_tile *t, const int mr,
                                        const int nv) {
    const REAL *const x = t->x, *const jumped = x + t->x_jump, *w = t->w;
    const ptrdiff_t *const off = t->off;
    const ptrdiff_t terms = t->terms, fetch_step = t->fetch_step;
    const char *fetch = t->fetch;
#pragma GCC unroll 2
    for (ptrdiff_t k = 0; k < terms; k++) {
        ptrdiff_t o = off[k];
        FC_OPAQUE(o);
        if (FC_LANES_BYTES == FC_CACHE_LINE) { /* shorter vectors leave no load port idle */
            FC_PREFETCH_L2(fetch); /* one at a time: bursts would fill the queue to memory */
            fetch += fetch_step;
        }
        V b[FC_NV_MAX];
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) b[v] = v_load(w + v * VL);
#pragma GCC unroll 14
        for (int p = 0; p < mr; p++) {
            const V a = v_set1((p < mr / 2 ? x : jumped)[o + p]);
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++) acc[p][v] = v_fma(a, b[v], acc[p][v]);
        }
        w += nv * VL;
    }
}

/* Terms in runs of FC_CONV_RUN neighbouring pixels, which share the broadcasts: each pixel is added
 * to all outputs that it is a term of, and an output still gets its terms in their order. */
static FC_INLINE void FC_FN(conv_runs)(V (*acc)[FC_NV_MAX], const fc_conv_tile *t, const int mr,
                                       const int nv) {
    const REAL *const x = t->x, *w = t->w;
    const ptrdiff_t *const off = t->off;
    const ptrdiff_t terms = t->terms, fetch_step = FC_CONV_RUN * t->fetch_step;
    const char *fetch = t->fetch;
    for (ptrdiff_t k = 0; k < terms; k += FC_CONV_RUN) {
        const REAL *const xs = x + off[k];
        FC_PREFETCH_L2(fetch);
        fetch += fetch_step;
        V b[FC_CONV_RUN][FC_NV_MAX];
#pragma GCC unroll 3
        for (int i = 0; i < FC_CONV_RUN; i++)
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++) {
                b[i][v] = v_load(w + (i * nv + v) * VL);
                FC_HIDE(b[i][v]); /* else gcc loads them again for every output */
            }
#pragma GCC unroll 16
        for (int q = 0; q < mr + FC_CONV_RUN - 1; q++) {
            V a = v_set1(xs[q]);
            FC_HIDE(a);
#pragma GCC unroll 3
            for (int i = 0; i < FC_CONV_RUN; i++) {
                const int p = q - i;
                if (p < 0 || p >= mr) continue;
#pragma GCC unroll 2
                for (int v = 0; v < nv; v++) acc[p][v] = v_fma(a, b[i][v], acc[p][v]);
            }
            FC_HOLD(a); /* else gcc sums into its register, and moves the sums about */
        }
        w += FC_CONV_RUN * nv * VL;
    }
}

static FC_INLINE void FC_FN(conv_tile_body)(const fc_conv_tile *t, const int mr, const int nv,
                                            const int runs) {
    V acc[FC_MR_MAX][FC_NV_MAX];
    const ptrdiff_t s_px = t->s_px, s_jump = t->s_jump;
    const int add = t->add;
    REAL *const sums = t->sums;
    for (ptrdiff_t i = 0; i < t->next_bytes; i += FC_CACHE_LINE)
        FC_PREFETCH_L2((const char *)t->next + i);
#pragma GCC unroll 14
    for (int p = 0; p < mr; p++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) acc[p][v] = v_zero();
    if (runs)
        FC_FN(conv_runs)(acc, t, mr, nv);
    else
        FC_FN(conv_terms)(acc, t, mr, nv);
#pragma GCC unroll 14
    for (int p = 0; p < mr; p++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) {
            REAL *const at = sums + p * s_px + (p < mr / 2 ? 0 : s_jump) + v * VL;
            v_store(at, add ? v_add(v_load(at), acc[p][v]) : acc[p][v]);
        }
}

#define FC_CONV_TILE(mr, nv) \
    static void FC_FN(conv_tile_##mr##x##nv)(const fc_conv_tile *t) { \
        FC_FN(conv_tile_body)(t, mr, nv, 0); \
    }
FC_TILES_1(FC_CONV_TILE, FC_CONV_MR_1)
FC_TILES_2(FC_CONV_TILE, FC_CONV_MR_2)

#define FC_CONV_RUNS(mr, nv) \
    static void FC_FN(conv_runs_##mr##x##nv)(const fc_conv_tile *t) { \
        FC_FN(conv_tile_body)(t, mr, nv, 1); \
    }
FC_TILES_1(FC_CONV_RUNS, FC_RUN_MR_1)
FC_TILES_2(FC_CONV_RUNS, FC_RUN_MR_2)

/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * gemm_tile: vectorised over pixels (columns); each weight is a scalar broadcast.
 *
 *   for each panel: for c < channels: for m < mr: acc[m][0:NR] += a[c][m] * x[c*x_c + 0:NR]
 *
 * Tile: mr output channels x NR = nv*VL pixels, stored from registers to NCHW rows. Limits: mr*nv
 * accumulators + nv vectors of x + 1 broadcast must fit the register file: FC_GEMM_MR_1/2 of the
 * row's file.
 */
#ifndef FC_GEMM_AHEAD
#define FC_GEMM_AHEAD 1536 /* bytes: 64 rows of 6 floats, some 400 cycles */
#endif
/* Lines asked for at a time: a core (Intel) waits for 10 to 16 at once, and stalls at the next. Few
 * leave room for what the tile itself reads, as long as there are some terms between them. */
#define FC_GEMM_LINES 16
#define FC_GEMM_FEW 6
#define FC_GEMM_TERMS 16

/* The end of a tile whose pixels are not consecutive in y, or do not fill its vectors: runs of
 * neighbours, of a vector at most. */
static __attribute__((noinline)) void FC_FN(gemm_scatter)(const fc_gemm_tile *t, REAL *y,
                                                          const REAL *residual, const REAL *sums,
                                                          int mr, int nr) {
    const ptrdiff_t *const at = t->y_at, y_m = t->y_m;
    const int relu = t->flags & FC_RELU;
    for (int p = 0, n; p < t->pixels; p += n) {
        const int most = t->pixels - p < VL ? t->pixels - p : VL;
        const ptrdiff_t first = at ? at[p] : p;
        for (n = at ? 1 : most; n < most && at[p + n] == first + n; n++) continue;
        const REAL *from = sums + p, *with = residual ? residual + first : NULL;
        REAL *to = y + first;
        if (n == 1) { /* with a stride all are */
            for (int m = 0; m < mr; m++, from += nr, to += y_m) {
                const REAL s = with ? *from + with[m * y_m] : *from;
                *to = relu && 0 > s ? 0 : s;
            }
            continue;
        }
        for (int m = 0; m < mr; m++, from += nr, to += y_m) {
            V s = v_load_n(from, n);
            if (with) s = v_add(s, v_load_n(with + m * y_m, n));
            if (relu) s = v_max(v_zero(), s);
            v_store_n(to, s, n);
        }
    }
}

/* Terms, and the rows of y and of those to fetch that come with them. */
typedef struct {
    ptrdiff_t terms, y_rows, rows;
} FC_FN(gemm_stretch);

static FC_INLINE void FC_FN(gemm_panel)(const fc_gemm_tile *t, const REAL *x, const ptrdiff_t x_c,
                                        REAL *keep, const REAL *a, REAL *partial, REAL *y,
                                        const REAL *residual, const REAL *bias_m, const REAL *fetch,
                                        const FC_FN(gemm_stretch) * with, const int mr,
                                        const int nv) {
    V acc[FC_MR_MAX][FC_NV_MAX];
    const ptrdiff_t a_c = t->a_c, y_m = t->y_m;
    const int nr = nv * VL;
    const int last = t->flags & FC_LAST, stream = last && t->flags & FC_STREAM;
    const REAL *const to = last ? y : partial;
    const ptrdiff_t to_m = last ? y_m : nr;
#pragma GCC unroll 14
    for (int m = 0; m < mr; m++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) acc[m][v] = v_zero();
    /* with each stretch of the terms come some rows of y, which are too far apart for the hardware
     * prefetcher, and some to fetch */
    ptrdiff_t y_rows = stream ? mr : 0, rows = 0;
    for (ptrdiff_t left = t->channels; left > 0;) {
        ptrdiff_t n = left < with->terms ? left : with->terms;
        left -= n;
        for (ptrdiff_t i = with->y_rows; i > 0 && y_rows < mr; i--, y_rows++) {
            FC_PREFETCH(to + y_rows * to_m);
            FC_PREFETCH(to + y_rows * to_m + nr - 1);
        }
        for (ptrdiff_t i = with->rows; i > 0 && rows < t->fetch.rows; i--, rows++) {
            const REAL *line = fetch + rows * t->fetch.row;
            for (ptrdiff_t l = t->fetch.lines; l > 0; l--, line += FC_CACHE_LINE / sizeof(REAL))
                FC_PREFETCH_L2(line);
        }
        for (; n > 0; n--) {
            const REAL *xs = x;
            FC_OPAQUE(xs);
            /* a comes from L2, in stretches too short for the hardware prefetcher */
            FC_PREFETCH_READ(a + FC_GEMM_AHEAD / sizeof(REAL));
            V b[FC_NV_MAX];
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++) b[v] = v_load(xs + v * VL);
            if (keep) {
#pragma GCC unroll 2
                for (int v = 0; v < nv; v++) v_store(keep + v * VL, b[v]);
                keep += nr;
            }
#pragma GCC unroll 14
            for (int m = 0; m < mr; m++) {
                const V w = v_set1(a[m]);
#pragma GCC unroll 2
                for (int v = 0; v < nv; v++) acc[m][v] = v_fma(w, b[v], acc[m][v]);
            }
            a += a_c;
            x += x_c;
        }
    }
#define FC_GEMM_EACH(statement) \
    do { \
        _Pragma("GCC unroll 14") for (int m = 0; m < mr; m++) \
            _Pragma("GCC unroll 2") for (int v = 0; v < nv; v++) statement; \
    } while (0)
    if (!(t->flags & FC_FIRST))
        FC_GEMM_EACH(acc[m][v] = v_add(acc[m][v], v_load(partial + (m * nv + v) * VL)));
    if (!last) {
        FC_GEMM_EACH(v_store(partial + (m * nv + v) * VL, acc[m][v]));
        return;
    }
    if (bias_m) FC_GEMM_EACH(acc[m][v] = v_add(acc[m][v], v_set1(bias_m[m])));
    if (t->bias_n) {
        V b[FC_NV_MAX];
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) {
            const int n = t->pixels - v * VL < VL ? t->pixels - v * VL : VL;
            b[v] = v_load_n((const REAL *)t->bias_n + v * VL, n);
        }
        FC_GEMM_EACH(acc[m][v] = v_add(acc[m][v], b[v]));
    }
    if (t->y_at || t->pixels < nr) {
        REAL sums[FC_MR_MAX * FC_NV_MAX * VL];
        FC_GEMM_EACH(v_store(sums + (m * nv + v) * VL, acc[m][v]));
        FC_FN(gemm_scatter)(t, y, residual, sums, mr, nr);
        return;
    }
    if (residual) FC_GEMM_EACH(acc[m][v] = v_add(acc[m][v], v_load(residual + m * y_m + v * VL)));
    if (t->flags & FC_RELU) FC_GEMM_EACH(acc[m][v] = v_max(v_zero(), acc[m][v]));
    if (stream)
        FC_GEMM_EACH(v_stream(y + m * y_m + v * VL, acc[m][v]));
    else
        FC_GEMM_EACH(v_store(y + m * y_m + v * VL, acc[m][v]));
#undef FC_GEMM_EACH
}

static FC_INLINE void FC_FN(gemm_tile_body)(const fc_gemm_tile *t, const int mr, const int nv) {
    const REAL *x = t->x, *a = t->a, *residual = t->residual, *bias_m = t->bias_m,
               *fetch = t->fetch.at;
    REAL *keep = nv == FC_NV_MAX ? t->keep : NULL, *partial = t->acc, *y = t->y;
    ptrdiff_t x_c = t->x_c;
    const ptrdiff_t lines = 2 * mr + t->fetch.rows * t->fetch.lines;
    const ptrdiff_t least = (lines + FC_GEMM_LINES - 1) / FC_GEMM_LINES;
    const ptrdiff_t most = (lines + FC_GEMM_FEW - 1) / FC_GEMM_FEW;
    ptrdiff_t stretches = t->channels / FC_GEMM_TERMS;
    if (stretches > most) stretches = most;
    if (stretches < least) stretches = least;
    if (stretches > t->channels) stretches = t->channels;
    FC_FN(gemm_stretch) with;
    with.terms = (t->channels + stretches - 1) / stretches;
    with.y_rows = (mr + stretches - 1) / stretches;
    with.rows = (t->fetch.rows + stretches - 1) / stretches;
    for (ptrdiff_t left = t->panels;;) {
        if (keep) { /* a loop of its own: the others have no time for a choice */
            FC_FN(gemm_panel)
            (t, x, x_c, keep, a, partial, y, residual, bias_m, fetch, &with, mr, nv);
            x = keep;
            x_c = nv * VL;
            keep = NULL;
        } else {
            FC_FN(gemm_panel)
            (t, x, x_c, NULL, a, partial, y, residual, bias_m, fetch, &with, mr, nv);
        }
        if (--left == 0) break;
        a += t->a_panel;
        fetch += t->fetch.rows * t->fetch.row;
        partial += mr * nv * VL;
        y += mr * t->y_m;
        if (residual) residual += mr * t->y_m;
        if (bias_m) bias_m += mr;
    }
    if (t->flags & FC_STREAM) v_fence();
}

#define FC_GEMM_TILE(mr, nv) \
    static void FC_FN(gemm_tile_##mr##x##nv)(const fc_gemm_tile *t) { \
        FC_FN(gemm_tile_body)(t, mr, nv); \
    }
FC_TILES_1(FC_GEMM_TILE, FC_GEMM_MR_1)
FC_TILES_2(FC_GEMM_TILE, FC_GEMM_MR_2)

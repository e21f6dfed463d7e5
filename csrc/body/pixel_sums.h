/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pixel_sums: direct convolution vectorised over pixels; each weight is a scalar broadcast.
 *
 *   for c < channels: for i < tap_rows: for t < taps: for m < mr:
 *     acc[m][0:NR] += a[c*a_c + (i*tap_row + t)*mr + m] * x[c*x_c + off[i*tap_row + t] + 0:NR]
 *
 * Tile: mr output channels x NR = nv*VL pixels, where the fewer outputs there are the more vectors
 * of pixels share a weight. Limits: mr*nv accumulators, min(mr, nv) operands held and 1 passing by
 * must fit the register file, which is FC_PIXEL_ACC + 4 of the row's file. With more than one
 * output there is time to ask for the pixels of the next channel: a band of many channels comes
 * from beyond L2, and its channels are too far apart for the hardware to see them coming (3 of 64
 * channels, 3x3: 69 -> 91 % of the peak).
 *
 * pixel_plane: one channel to one output, from x straight to the rows of y.
 *
 *   for pairs of rows: for tiles of nv vectors: for i < down: for k < across:
 *     acc[r][0:nv] += a[i*across + k] * x[(r+i)*x_row + off[k] + 0:nv]
 *
 * Tile: 2 rows x nv vectors of pixels, two weights and one vector of x passing by, which serves
 * both rows. Sums, their order and so their bits are those of pixel_sums.
 *
 * pixel_store: bias, residual and activation, to the rows of y.
 */
static FC_INLINE void FC_FN(pixel_tile)(const fc_pixel_sums *t, const REAL *x, REAL *sums,
                                        const int mr, const int nv, const int some) {
    enum { LINE = 64 / sizeof(REAL) };
    V acc[FC_MR_MAX][FC_PIXEL_NV_MAX];
    const REAL *a = t->a;
    const ptrdiff_t *const off = t->off;
    const ptrdiff_t taps = t->taps, x_c = t->x_c, s_m = t->s_m;
    /* `some` taps, or all: then they are one row, which spares a loop around those of a channel */
    const ptrdiff_t tap_row = some ? t->tap_row : taps, end = some ? t->tap_rows * tap_row : taps;
    const ptrdiff_t a_skip = (tap_row - taps) * mr, a_next = some ? t->a_c - end * mr : 0;
    const int add = t->add;
#pragma GCC unroll 14
    for (int m = 0; m < mr; m++)
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++) acc[m][v] = v_zero();
    for (ptrdiff_t c = t->channels; c > 0; c--) {
        const ptrdiff_t next = c > 1 ? x_c : 0;
        for (ptrdiff_t i = 0; i < end; i += tap_row, a += a_skip) {
            for (ptrdiff_t k = i; k < i + taps; k++) {
                const REAL *xs = x + off[k];
                if (mr > 1) {
                    const REAL *ahead = xs + next;
                    FC_OPAQUE(ahead); /* else each line has a register for its distance */
#pragma GCC unroll 8
                    for (int j = LINE; j < nv * VL; j += LINE) FC_PREFETCH_READ(ahead + j);
                    FC_PREFETCH_READ(ahead + nv * VL - 1);
                }
                FC_OPAQUE(xs);
                if (mr < nv) {
                    V w[FC_MR_MAX];
#pragma GCC unroll 14
                    for (int m = 0; m < mr; m++) w[m] = v_set1(a[m]);
#pragma GCC unroll 8
                    for (int v = 0; v < nv; v++) {
                        V b = v_load(xs + v * VL);
                        if (mr > 1)
                            FC_HIDE(b); /* else gcc loads it mr times, as an operand of each */
#pragma GCC unroll 14
                        for (int m = 0; m < mr; m++) acc[m][v] = v_fma(w[m], b, acc[m][v]);
                    }
                } else {
                    V b[FC_PIXEL_NV_MAX];
#pragma GCC unroll 8
                    for (int v = 0; v < nv; v++) b[v] = v_load(xs + v * VL);
#pragma GCC unroll 14
                    for (int m = 0; m < mr; m++) {
                        const V w = v_set1(a[m]);
#pragma GCC unroll 8
                        for (int v = 0; v < nv; v++) acc[m][v] = v_fma(w, b[v], acc[m][v]);
                    }
                }
                a += mr;
            }
            if (!some) break;
        }
        a += a_next;
        x += x_c;
    }
#pragma GCC unroll 14
    for (int m = 0; m < mr; m++)
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++) {
            REAL *const at = sums + m * s_m + v * VL;
            v_store(at, add ? v_add(v_load(at), acc[m][v]) : acc[m][v]);
        }
}

/* One output channel of two neighbouring rows: each vector of x serves the lead row at one tap and
 * the trail row at the tap `lag` before it. Both sum their taps in the same order as a row alone.
 */
static FC_INLINE void FC_FN(pixel_pair)(const fc_pixel_sums *t, const REAL *lead, const REAL *trail,
                                        REAL *lead_sums, REAL *trail_sums, const int nv) {
    V acc[FC_PIXEL_NV_MAX], late[FC_PIXEL_NV_MAX];
    const REAL *a = t->a;
    const ptrdiff_t *const off = t->off;
    const ptrdiff_t taps = t->taps, lag = t->lag;
    const int add = t->add;
#pragma GCC unroll 8
    for (int v = 0; v < nv; v++) acc[v] = late[v] = v_zero();
    for (ptrdiff_t c = t->channels; c > 0; c--, a += t->a_c, lead += t->x_c, trail += t->x_c) {
        ptrdiff_t k = 0;
        for (; k < lag; k++) {
            const REAL *xs = lead + off[k];
            FC_OPAQUE(xs);
            const V w = v_set1(a[k]);
#pragma GCC unroll 8
            for (int v = 0; v < nv; v++) acc[v] = v_fma(w, v_load(xs + v * VL), acc[v]);
        }
        for (; k < taps; k++) {
            const REAL *xs = lead + off[k];
            FC_OPAQUE(xs);
            const V w = v_set1(a[k]), before = v_set1(a[k - lag]);
#pragma GCC unroll 8
            for (int v = 0; v < nv; v++) {
                V b = v_load(xs + v * VL);
                FC_HIDE(b); /* as in pixel_tile */
                acc[v] = v_fma(w, b, acc[v]);
                late[v] = v_fma(before, b, late[v]);
            }
        }
        for (k = taps - lag; k < taps; k++) {
            const REAL *xs = trail + off[k];
            FC_OPAQUE(xs);
            const V w = v_set1(a[k]);
#pragma GCC unroll 8
            for (int v = 0; v < nv; v++) late[v] = v_fma(w, v_load(xs + v * VL), late[v]);
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < nv; v++) {
        REAL *const l = lead_sums + v * VL, *const s = trail_sums + v * VL;
        v_store(l, add ? v_add(v_load(l), acc[v]) : acc[v]);
        v_store(s, add ? v_add(v_load(s), late[v]) : late[v]);
    }
}

/* `call` with a constant n = nv <= most. */
#define FC_PIXEL_CASE(most, i, call) \
    case i: { \
        enum { n = i }; \
        if (n <= (int)(most)) call; \
        break; \
    }
#define FC_PIXEL_CASES(nv, most, call) \
    switch (nv) { \
        FC_PIXEL_CASE(most, 1, call) \
        FC_PIXEL_CASE(most, 2, call) \
        FC_PIXEL_CASE(most, 3, call) \
        FC_PIXEL_CASE(most, 4, call) \
        FC_PIXEL_CASE(most, 5, call) \
        FC_PIXEL_CASE(most, 6, call) \
        FC_PIXEL_CASE(most, 7, call) \
        FC_PIXEL_CASE(most, 8, call) \
    }

static void FC_FN(pixel_pairs)(const fc_pixel_sums *t, ptrdiff_t r) {
    enum { HALF = FC_PIXEL_ACC / 2, MOST = HALF < FC_PIXEL_NV_MAX ? HALF : FC_PIXEL_NV_MAX };
    const int down = t->off[t->lag] > t->off[0]; /* the upper row leads */
    const REAL *const x = (const REAL *)t->x + r * t->x_row;
    REAL *const sums = (REAL *)t->sums + r * t->s_row;
    const REAL *lead = down ? x : x + t->x_row, *trail = down ? x + t->x_row : x;
    REAL *l = down ? sums : sums + t->s_row, *s = down ? sums + t->s_row : sums;
    ptrdiff_t left = (t->cols + VL - 1) / VL;
    for (ptrdiff_t j = (left + MOST - 1) / MOST; j > 0; j--) {
        const int nv = (int)((left + j - 1) / j);
        FC_PIXEL_CASES(nv, MOST, FC_FN(pixel_pair)(t, lead, trail, l, s, n))
        lead += nv * VL;
        trail += nv * VL;
        l += nv * VL;
        s += nv * VL;
        left -= nv;
    }
}

/* All rows of a block, each in tiles of nearly equal width. */
static FC_INLINE void FC_FN(pixel_rows)(const fc_pixel_sums *t, const int mr, const int some) {
    const int wide = FC_PIXEL_ACC / mr < FC_PIXEL_NV_MAX ? FC_PIXEL_ACC / mr : (int)FC_PIXEL_NV_MAX;
    const int operands = (mr < wide ? mr : wide) + 1; /* held and passing */
    const int most = wide * mr + operands <= FC_PIXEL_ACC + 4 ? wide : wide - 1;
    const ptrdiff_t vectors = (t->cols + VL - 1) / VL, tiles = (vectors + most - 1) / most;
    ptrdiff_t r = 0;
    if (mr == 1 && t->lag)
        for (; r + 2 <= t->rows; r += 2) FC_FN(pixel_pairs)(t, r);
    for (; r < t->rows; r++) {
        const REAL *x = (const REAL *)t->x + r * t->x_row;
        REAL *sums = (REAL *)t->sums + r * t->s_row;
        ptrdiff_t left = vectors;
        for (ptrdiff_t j = tiles; j > 0; j--) {
            const int nv = (int)((left + j - 1) / j);
            FC_PIXEL_CASES(nv, most, FC_FN(pixel_tile)(t, x, sums, mr, n, some))
            x += nv * VL;
            sums += nv * VL;
            left -= nv;
        }
    }
}

#define FC_PIXEL_SUMS(mr, nv) \
    static void FC_FN(pixel_sums_##mr)(const fc_pixel_sums *t) { \
        if (t->tap_rows == 1 && t->a_c == t->taps * mr) \
            FC_FN(pixel_rows)(t, mr, 0); \
        else \
            FC_FN(pixel_rows)(t, mr, 1); \
    }
FC_TILES_1(FC_PIXEL_SUMS, FC_PIXEL_MR)

/* n values of one row from their sums; `at` is the first one's place in the row. */
static inline V FC_FN(pixel_act)(int relu, V s, const REAL *bias, const REAL *residual,
                                 ptrdiff_t at, ptrdiff_t n) {
    if (bias) s = v_add(s, v_set1(*bias));
    if (residual) s = v_add(s, n == VL ? v_load(residual + at) : v_load_n(residual + at, n));
    return relu ? v_max(v_zero(), s) : s;
}

/* Vectors of a tile of two rows: sums enough for the latency of a multiply-add. */
#define FC_PLANE_NV 4

/* Taps [i0, i1) of a tile of two rows, for rows lo to hi; the last vector begins at `last`. */
static FC_INLINE void FC_FN(plane_taps)(const fc_pixel_plane *t, V acc[2][FC_PLANE_NV],
                                        const REAL *x, ptrdiff_t i0, ptrdiff_t i1, const int lo,
                                        const int hi, ptrdiff_t last, const int across,
                                        const int nv) {
    const ptrdiff_t row = across ? across : t->across;
    const REAL *a = (const REAL *)t->a + i0 * row;
    x += i0 * t->band_row;
    for (ptrdiff_t i = i0; i < i1; i++, a += row, x += t->band_row) {
        FC_OPAQUE(a); /* or the weights of the row before are kept, and sums spilled */
#pragma GCC unroll 3
        for (ptrdiff_t k = 0; k < row; k++) {
            const REAL *const xs = x + t->off[k];
            V w[2];
#pragma GCC unroll 2
            for (int r = lo; r <= hi; r++) w[r] = v_set1(a[k - r * row]);
#pragma GCC unroll 8
            for (int v = 0; v < nv; v++) {
                V b = v_load(v < nv - 1 ? xs + v * VL : xs + last);
                FC_HIDE(b); /* as in pixel_tile */
#pragma GCC unroll 2
                for (int r = lo; r <= hi; r++) acc[r][v] = v_fma(w[r], b, acc[r][v]);
            }
        }
    }
}

/* nv vectors of one or two rows, from pixel p on. */
static FC_INLINE void FC_FN(plane_tile)(const fc_pixel_plane *t, ptrdiff_t r0, ptrdiff_t p,
                                        const int across, const int rows, const int nv) {
    V acc[2][FC_PLANE_NV];
    const ptrdiff_t left = t->cols - p, n = left < VL ? left : VL, down = t->down;
    const ptrdiff_t last = left < VL ? 0 : (left < nv * VL ? left - VL : (nv - 1) * VL);
    const REAL *const x = (const REAL *)t->band + r0 * t->band_row + p;
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++) acc[r][v] = v_zero();
    if (rows == 1) {
        FC_FN(plane_taps)(t, acc, x, 0, down, 0, 0, last, across, nv);
    } else {
        FC_FN(plane_taps)(t, acc, x, 0, 1, 0, 0, last, across, nv);
        FC_FN(plane_taps)(t, acc, x, 1, down, 0, 1, last, across, nv);
        FC_FN(plane_taps)(t, acc, x, down, down + 1, 1, 1, last, across, nv);
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++) {
        REAL *const y = (REAL *)t->y + (r0 + r) * t->y_row + p;
#pragma GCC unroll 4
        for (int v = 0; v < nv - 1; v++) v_store(y + v * VL, acc[r][v]);
        if (n == VL)
            v_store(y + last, acc[r][nv - 1]);
        else
            v_store_n(y, acc[r][nv - 1], n);
    }
}

/* Bias, residual and activation of the sums in rows of y. */
static void FC_FN(plane_act)(const fc_pixel_plane *t) {
    for (ptrdiff_t r = 0; r < t->rows; r++) {
        REAL *const y = (REAL *)t->y + r * t->y_row;
        const REAL *const residual = t->residual ? (const REAL *)t->residual + r * t->y_row : NULL;
        for (ptrdiff_t p = 0; p < t->cols; p += VL) {
            const ptrdiff_t n = t->cols - p < VL ? t->cols - p : VL;
            const V s = n == VL ? v_load(y + p) : v_load_n(y + p, n);
            v_store_n(y + p, FC_FN(pixel_act)(t->relu, s, t->bias, residual, p, n), n);
        }
    }
}

/* One or two rows, in tiles of nv vectors, of which the first `wider` have one more. */
static FC_INLINE void FC_FN(plane_rows)(const fc_pixel_plane *t, ptrdiff_t r, ptrdiff_t tiles,
                                        ptrdiff_t wider, ptrdiff_t nv, const int across,
                                        const int rows) {
    ptrdiff_t p = 0;
    for (ptrdiff_t j = 0; j < tiles; j++) {
        const ptrdiff_t here = nv + (j < wider);
        FC_PIXEL_CASES(here, FC_PLANE_NV, FC_FN(plane_tile)(t, r, p, across, rows, n))
        p += here * VL;
    }
}

/* `across`: as many as t has, or 0 for any number. */
static FC_INLINE void FC_FN(plane_of)(const fc_pixel_plane *given, const int across) {
    /* Rows are copied for two pairs at a time, since loads of what was just stored wait for it; and
     * asked for eight rows before, about as long as memory takes to answer. */
    enum { LINE = 64 / sizeof(REAL), COPIED = 4, AHEAD = 8 };
    ptrdiff_t off[3];
    fc_pixel_plane t = *given; /* which stores to y cannot change */
    const ptrdiff_t vectors = (t.cols + VL - 1) / VL,
                    tiles = (vectors + FC_PLANE_NV - 1) / FC_PLANE_NV;
    const ptrdiff_t nv = vectors / (tiles + !tiles), wider = vectors - nv * tiles;
    const REAL *x = t.x, *const y = t.y;
    REAL *to = (REAL *)t.band + t.first * t.band_row + t.left;
    ptrdiff_t ready = 0;
    for (int k = 0; k < across; k++) off[k] = t.off[k];
    if (across) t.off = off;
    for (ptrdiff_t r = 0; r < t.rows; r += 2) {
        const ptrdiff_t reach = r + 1 + t.down - t.first;
        if (ready < reach && ready < t.in_rows) {
            const ptrdiff_t stop = ready + COPIED > reach ? ready + COPIED : reach;
            for (; ready < stop && ready < t.in_rows; ready++, x += t.x_row, to += t.band_row) {
                for (ptrdiff_t i = 0; i < t.in_cols; i += LINE)
                    FC_PREFETCH_READ(x + AHEAD * t.x_row + i);
                FC_FN(copy)(to, x, t.in_cols, 1);
            }
        }
        for (ptrdiff_t i = 0; i < 2 * t.y_row; i += LINE) FC_PREFETCH(y + r * t.y_row + i);
        if (r + 2 <= t.rows)
            FC_FN(plane_rows)(&t, r, tiles, wider, nv, across, 2);
        else
            FC_FN(plane_rows)(&t, r, tiles, wider, nv, 0, 1);
    }
    if (t.bias || t.residual || t.relu) FC_FN(plane_act)(&t);
}

static void FC_FN(pixel_plane)(const fc_pixel_plane *t) {
    if (t->across == 3)
        FC_FN(plane_of)(t, 3);
    else
        FC_FN(plane_of)(t, 0);
}

static inline void FC_FN(pixel_scatter)(const fc_pixel_store *t, const REAL *s, REAL *y,
                                        const REAL *bias, const REAL *residual, ptrdiff_t first,
                                        ptrdiff_t cols) {
    const ptrdiff_t step = t->y_px;
    for (ptrdiff_t p = first; p < cols; p++) {
        REAL v = s[p];
        if (bias) v += *bias;
        if (residual) v += residual[p * step];
        y[p * step] = t->relu && 0 > v ? 0 : v;
    }
}

static void FC_FN(pixel_store)(const fc_pixel_store *t) {
    const ptrdiff_t cols = t->cols, step = t->y_px;
    for (int m = 0; m < t->outputs; m++) {
        const REAL *const bias = t->bias ? (const REAL *)t->bias + m : NULL;
        for (ptrdiff_t r = 0; r < t->rows; r++) {
            const REAL *const s = (const REAL *)t->sums + m * t->s_m + r * t->s_row;
            const ptrdiff_t at = m * t->y_m + r * t->y_row;
            const REAL *const residual = t->residual ? (const REAL *)t->residual + at : NULL;
            REAL *const y = (REAL *)t->y + at;
            if (t->odd) { /* both phases of a stride of 2: whole vectors, then the rest */
                const REAL *const odd = (const REAL *)t->odd + m * t->s_m + r * t->s_row;
                ptrdiff_t p = 0;
                for (; p + VL <= t->odd_cols; p += VL) {
                    V lo, hi;
                    v_zip(v_load(s + p), v_load(odd + p), &lo, &hi);
                    v_store(y + 2 * p, FC_FN(pixel_act)(t->relu, lo, bias, residual, 2 * p, VL));
                    v_store(y + 2 * p + VL,
                            FC_FN(pixel_act)(t->relu, hi, bias, residual, 2 * p + VL, VL));
                }
                FC_FN(pixel_scatter)(t, s, y, bias, residual, p, cols);
                FC_FN(pixel_scatter)(t, odd, y + 1, bias, residual ? residual + 1 : NULL, p,
                                     t->odd_cols);
            } else if (step != 1) {
                FC_FN(pixel_scatter)(t, s, y, bias, residual, 0, cols);
            } else if (cols < VL) {
                v_store_n(y, FC_FN(pixel_act)(t->relu, v_load(s), bias, residual, 0, cols), cols);
            } else {
                for (ptrdiff_t p = 0; p < cols; p += VL) {
                    if (p > cols - VL) p = cols - VL; /* the last vector overlaps its neighbour */
                    v_store(y + p, FC_FN(pixel_act)(t->relu, v_load(s + p), bias, residual, p, VL));
                }
            }
        }
    }
}

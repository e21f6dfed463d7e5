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
static inline V FC_FN(pixel_act)(const fc_pixel_store *t, V s, const REAL *bias,
                                 const REAL *residual, ptrdiff_t at, ptrdiff_t n) {
    if (bias) s = v_add(s, v_set1(*bias));
    if (residual) s = v_add(s, n == VL ? v_load(residual + at) : v_load_n(residual + at, n));
    return t->relu ? v_max(v_zero(), s) : s;
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
                    v_store(y + 2 * p, FC_FN(pixel_act)(t, lo, bias, residual, 2 * p, VL));
                    v_store(y + 2 * p + VL,
                            FC_FN(pixel_act)(t, hi, bias, residual, 2 * p + VL, VL));
                }
                FC_FN(pixel_scatter)(t, s, y, bias, residual, p, cols);
                FC_FN(pixel_scatter)(t, odd, y + 1, bias, residual ? residual + 1 : NULL, p,
                                     t->odd_cols);
            } else if (step != 1) {
                FC_FN(pixel_scatter)(t, s, y, bias, residual, 0, cols);
            } else if (cols < VL) {
                v_store_n(y, FC_FN(pixel_act)(t, v_load(s), bias, residual, 0, cols), cols);
            } else {
                for (ptrdiff_t p = 0; p < cols; p += VL) {
                    if (p > cols - VL) p = cols - VL; /* the last vector overlaps its neighbour */
                    v_store(y + p, FC_FN(pixel_act)(t, v_load(s + p), bias, residual, p, VL));
                }
            }
        }
    }
}

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
 * channels, 3x3: 69 -> 91 % of the peak). Of a small band it only takes the loads' time (avx512, 64
 * of 3 channels: 1.1 times as long).
 *
 * Complete sums go from the registers to the rows of y, in masked vectors where a row ends. Where
 * the rows of x are summed as one, what lies between them is left out (avx512, 3 channels, 149
 * columns: 0.75 of the time that it takes by way of the sums).
 *
 * pixel_planes: one channel to one output, from x straight to the rows of y.
 *
 *   for planes: for R rows: for tiles of nv vectors: for k < across: for i < R + down - 1:
 *     acc[r][0:nv] += a[i - r][k] * x[top + r0 + i][off[k] + 0:nv]   for 0 <= i - r < down
 *
 * Tile: R rows x nv vectors of pixels, so that a vector of x serves up to `down` rows. What the
 * first and the last vector of a row lack are masked lanes: x is neither copied nor padded.
 * On AVX-512 nearly each load between columns crosses a cache line, which takes longer than a
 * shuffle: where a tile has whole rows, padded by across/2, it loads each vector once, for all i
 * and then k, and slides the others out of it. So it may be with a stride of 2 as well: the even
 * and the odd columns of a row are vectors of their own, and i is 2*r + a row of weights.
 *
 * plane_dots: the weight gradient of 3x3 kernels of one channel to one output.
 *
 *   for planes: for rows h of x: for vectors: for u < 3: for k < 3:
 *     acc[u][k] += dy[h - u][0:VL] * x[top + h][off[k] + 0:VL]   where dy has a row h - u
 *
 * Tile: all 9 taps, 3 vectors of dy and 3 of x. Sums stay in the lanes.
 *
 * pixel_store: bias, residual and activation, to the rows of y.
 */
/* Where a tile's sums go: from its first pixel on, `left` pixels to the end of a row of y; 0 or
 * less where it begins between two rows. `more` rows come after that one. */
typedef struct {
    REAL *sums;
    ptrdiff_t at_y, left, more;
    REAL zero; /* 0, from memory: else gcc keeps a register of it in the loops */
} FC_FN(pixel_place);

static void FC_FN(pixel_store)(const fc_pixel_store *t);

/* The place n pixels further. */
static FC_INLINE void FC_FN(pixel_advance)(const fc_pixel_sums *t, FC_FN(pixel_place) * place,
                                           ptrdiff_t n) {
    place->sums += n;
    place->at_y += n;
    place->left -= n;
    for (; place->more && place->left + t->x_row <= t->row; place->more--) {
        place->left += t->x_row;
        place->at_y += t->y_row - t->x_row;
    }
}

static FC_INLINE void FC_FN(pixel_tile)(const fc_pixel_sums *t, const REAL *x,
                                        const FC_FN(pixel_place) * place, const int mr,
                                        const int nv, const int some, const int ahead) {
    enum { LINE = 64 / sizeof(REAL) };
    V acc[FC_MR_MAX][FC_PIXEL_NV_MAX];
    const REAL *a = t->a;
    const ptrdiff_t *const off = t->off;
    const ptrdiff_t taps = t->taps, x_c = t->x_c;
    /* `some` taps, or all: then they are one row, which spares a loop around those of a channel */
    const ptrdiff_t tap_row = some ? t->tap_row : taps, end = some ? t->tap_rows * tap_row : taps;
    const ptrdiff_t a_skip = (tap_row - taps) * mr, a_next = some ? t->a_c - end * mr : 0;
    FC_OPAQUE(place); /* else its fields take registers from the loops */
#pragma GCC unroll 14
    for (int m = 0; m < mr; m++)
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++) acc[m][v] = v_zero();
    for (ptrdiff_t c = t->channels; c > 0; c--) {
        const ptrdiff_t next = c > 1 ? x_c : 0;
        for (ptrdiff_t i = 0; i < end; i += tap_row, a += a_skip) {
            for (ptrdiff_t k = i; k < i + taps; k++) {
                const REAL *xs = x + off[k];
                if (mr > 1 && ahead) {
                    const REAL *line = xs + next;
                    FC_OPAQUE(line); /* else each has a register for its distance */
#pragma GCC unroll 8
                    for (int j = LINE; j < nv * VL; j += LINE) FC_PREFETCH_READ(line + j);
                    FC_PREFETCH_READ(line + nv * VL - 1);
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
#define FC_PIXEL_EACH(statement) \
    do { \
        _Pragma("GCC unroll 14") for (int m = 0; m < mr; m++) \
            _Pragma("GCC unroll 8") for (int v = 0; v < nv; v++) statement; \
    } while (0)
    REAL *const sums = place->sums;
    const ptrdiff_t s_m = t->s_m;
    if (t->add) FC_PIXEL_EACH(acc[m][v] = v_add(v_load(sums + m * s_m + v * VL), acc[m][v]));
    if (!t->y) {
        FC_PIXEL_EACH(v_store(sums + m * s_m + v * VL, acc[m][v]));
        return;
    }
    if (t->residual) {
        FC_PIXEL_EACH(v_store(sums + m * s_m + v * VL, acc[m][v]));
        const fc_pixel_store rest = {.sums = sums,
                                     .y = (REAL *)t->y + place->at_y,
                                     .bias = t->bias,
                                     .residual = (const REAL *)t->residual + place->at_y,
                                     .rows = 1,
                                     .cols = place->left < nv * VL ? place->left : nv * VL,
                                     .s_m = s_m,
                                     .y_m = t->y_m,
                                     .y_px = 1,
                                     .outputs = mr,
                                     .relu = t->relu};
        FC_FN(pixel_store)(&rest);
        return;
    }
    const ptrdiff_t y_m = t->y_m;
    const REAL *const bias = t->bias;
    if (bias) FC_PIXEL_EACH(acc[m][v] = v_add(acc[m][v], v_set1(bias[m])));
    if (t->relu) {
        const V zero = v_set1(place->zero);
        FC_PIXEL_EACH(acc[m][v] = v_max(zero, acc[m][v]));
    }
    REAL *y = (REAL *)t->y + place->at_y;
    ptrdiff_t left = place->left;
    if (FC_LIKELY(left >= nv * VL)) { /* avx2, rows of whole vectors: 0.98 of the time */
        if (t->stream)
            FC_PIXEL_EACH(v_stream(y + m * y_m + v * VL, acc[m][v]));
        else
            FC_PIXEL_EACH(v_store(y + m * y_m + v * VL, acc[m][v]));
        return;
    }
    const ptrdiff_t x_row = t->x_row, hole = x_row - t->row, y_next = t->y_row - x_row;
    ptrdiff_t more = place->more;
#pragma GCC unroll 8
    for (int v = 0; v < nv; v++, left -= VL) {
        const ptrdiff_t n = left < 0 ? 0 : left < VL ? left : VL, next = left + hole;
#pragma GCC unroll 14
        for (int m = 0; m < mr; m++) v_store_n(y + m * y_m + v * VL, acc[m][v], n);
        if (!more || next >= VL) continue;
        const LANES lanes = v_lanes(next, next + t->row < VL ? next + t->row : VL);
        more--;
        left += x_row;
        y += y_next;
#pragma GCC unroll 14
        for (int m = 0; m < mr; m++) v_store_lanes(y + m * y_m + v * VL, acc[m][v], lanes);
    }
#undef FC_PIXEL_EACH
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
static FC_INLINE void FC_FN(pixel_rows)(const fc_pixel_sums *t, const int mr, const int some,
                                        const int ahead) {
    const int wide = FC_PIXEL_ACC / mr < FC_PIXEL_NV_MAX ? FC_PIXEL_ACC / mr : (int)FC_PIXEL_NV_MAX;
    const int operands = (mr < wide ? mr : wide) + 1; /* held and passing */
    const int most = wide * mr + operands <= FC_PIXEL_ACC + 4 ? wide : wide - 1;
    const ptrdiff_t vectors = (t->cols + VL - 1) / VL, tiles = (vectors + most - 1) / most;
    const ptrdiff_t more = t->y ? (t->cols - t->row) / t->x_row : 0;
    ptrdiff_t r = 0;
    if (mr == 1 && t->lag)
        for (; r + 2 <= t->rows; r += 2) FC_FN(pixel_pairs)(t, r);
    for (; r < t->rows; r++) {
        const REAL *x = (const REAL *)t->x + r * t->x_row;
        FC_FN(pixel_place)
        place = {(REAL *)t->sums + r * t->s_row, r * t->y_row, t->row, more, 0};
        ptrdiff_t left = vectors;
        for (ptrdiff_t j = tiles; j > 0; j--) {
            const int nv = (int)((left + j - 1) / j);
            FC_PIXEL_CASES(nv, most, FC_FN(pixel_tile)(t, x, &place, mr, n, some, ahead))
            x += nv * VL;
            FC_FN(pixel_advance)(t, &place, nv * VL);
            left -= nv;
        }
    }
    if (t->stream) v_fence();
}

#define FC_PIXEL_SUMS(mr, nv) \
    static void FC_FN(pixel_sums_##mr)(const fc_pixel_sums *t) { \
        if (t->tap_rows > 1 || t->a_c != t->taps * mr) \
            FC_FN(pixel_rows)(t, mr, 1, 1); \
        else if (t->ahead) \
            FC_FN(pixel_rows)(t, mr, 0, 1); \
        else \
            FC_FN(pixel_rows)(t, mr, 0, 0); \
    }
FC_TILES_1(FC_PIXEL_SUMS, FC_PIXEL_MR)

/* n values of one row from their sums; `at` is the first one's place in the row. */
static inline V FC_FN(pixel_act)(int relu, V s, const REAL *bias, const REAL *residual,
                                 ptrdiff_t at, ptrdiff_t n) {
    if (bias) s = v_add(s, v_set1(*bias));
    if (residual) s = v_add(s, n == VL ? v_load(residual + at) : v_load_n(residual + at, n));
    return relu ? v_max(v_zero(), s) : s;
}

/* Rows of a tile of nv vectors: sums that cover the latency of a multiply-add and, with the weights
 * of a 3x3 kernel where there are 32 registers, stay in them. Small maps are multiples of seven
 * rows. Tiles that share their rows with others, of another width perhaps, have FC_PLANE_FEW. */
#define FC_PLANE_NV 4
#if FC_LANES_BYTES == 64
#define FC_PLANE_SLIDES 1
#define FC_PLANE_FEW 4
#define FC_PLANE_ROWS(nv) ((nv) < 3 ? 7 : FC_PLANE_FEW)
#else
#define FC_PLANE_SLIDES 0
#define FC_PLANE_FEW 2
#define FC_PLANE_ROWS(nv) ((nv) == 1 ? 7 : (nv) == 2 ? 4 : FC_PLANE_FEW)
#endif

/* Which lanes of a tile's first and last vector are columns of x, for each tap; and of the last
 * vectors of a row of x that slides. */
typedef struct {
    LANES first[FC_PLANE_TAPS], last[FC_PLANE_TAPS], ends[2];
} FC_FN(plane_lanes);

/* Which of the first n lanes at column `at` are in a row of `cols`. */
static FC_INLINE LANES FC_FN(plane_inside)(ptrdiff_t cols, ptrdiff_t at, ptrdiff_t n) {
    const ptrdiff_t first = at < 0 ? -at : 0, last = cols - at < n ? cols - at : n;
    const ptrdiff_t stop = last < VL ? (last < 0 ? 0 : last) : VL;
    return v_lanes(first < stop ? first : stop, stop);
}

/* Tap k of `across`: of a row of nv vectors b[0]; with a stride of 2, of the even columns b[0] and
 * the odd ones b[1]. There are zeros beyond. */
#if FC_PLANE_SLIDES
static FC_INLINE V FC_FN(plane_slide)(V (*b)[FC_PLANE_NV], const int v, const int nv, const int k,
                                      const int across, const int step) {
    const int at = k - across / 2 + 4 * step, n = at / step - 4;
    const V *const row = b[at % step];
    if (n < 0) return v_slide(v > 0 ? row[v - 1] : v_zero(), row[v], VL + n);
    return v_slide(row[v], v + 1 < nv ? row[v + 1] : v_zero(), n);
}

/* All sums of a tile of whole rows. The last vectors of a row of x have the lanes ends[0] and, with
 * a stride, ends[1]. */
static FC_INLINE void FC_FN(plane_slides)(const LANES *ends, const REAL *const *x, const REAL *a,
                                          V (*acc)[FC_PLANE_NV], const int down, const int rows,
                                          const int nv, const int step) {
#pragma GCC unroll 19
    for (int i = 0; i < step * (rows - 1) + down; i++) {
        V b[2][FC_PLANE_NV];
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++) {
            const REAL *const xs = x[i] + v * step * VL;
            b[0][v] = v < nv - 1 ? v_load(xs) : v_load_lanes(xs, ends[0]);
            if (step == 1) continue;
            const V high = v < nv - 1 ? v_load(xs + VL) : v_load_lanes(xs + VL, ends[1]);
            b[1][v] = v_odd(b[0][v], high);
            b[0][v] = v_even(b[0][v], high);
        }
#pragma GCC unroll 7
        for (int k = 0; k < down; k++)
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++) {
                const V s = FC_FN(plane_slide)(b, v, nv, k, down, step);
#pragma GCC unroll 7
                for (int r = 0; r < rows; r++) {
                    const int u = i - step * r;
                    if (u < 0 || u >= down) continue;
                    acc[r][v] = v_fma(v_set1(a[u * down + k]), s, acc[r][v]);
                }
            }
    }
}
#endif

static FC_INLINE void FC_FN(plane_tile)(const fc_pixel_planes *t, const FC_FN(plane_lanes) * lanes,
                                        const REAL *plane, const REAL *a, REAL *y, const REAL *bias,
                                        const REAL *residual, ptrdiff_t r0, ptrdiff_t p,
                                        const int down, const ptrdiff_t across, const int rows,
                                        const int nv, const int step) {
    V acc[7][FC_PLANE_NV];
    const REAL *x[19];
    const ptrdiff_t x_row = t->x_row, a_row = t->a_row, y_row = t->y_row, in_rows = t->in_rows;
    const ptrdiff_t *const off = t->off;
    const ptrdiff_t left = t->cols - p - (nv - 1) * VL, n = left < VL ? left : VL;
#pragma GCC unroll 7
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++) acc[r][v] = v_zero();
    const int reach = step == 2 ? 2 * (rows - 1) + down : rows + down - 1;
    const ptrdiff_t top = t->top + r0 * t->step;
    const REAL *const zeros = (const REAL *)t->zeros + p;
    plane += p;
#pragma GCC unroll 19
    for (int i = 0; i < reach; i++) {
        const ptrdiff_t h = top + i;
        x[i] = (size_t)h < (size_t)in_rows ? plane + h * x_row : zeros;
    }
#if FC_PLANE_SLIDES
    if (step) FC_FN(plane_slides)(lanes->ends, x, a, acc, down, rows, nv, step);
#endif
#pragma GCC unroll 3
    for (ptrdiff_t k = 0; !step && k < across; k++) {
        const LANES first = lanes->first[k], last = lanes->last[k];
        const ptrdiff_t at = off[k];
        V w[7];
#pragma GCC unroll 7
        for (int u = 0; u < down; u++) w[u] = v_set1(a[u * a_row + k]);
#pragma GCC unroll 13
        for (int i = 0; i < rows + down - 1; i++) {
            const REAL *const xs = x[i] + at;
            V b[FC_PLANE_NV];
            b[0] = v_load_lanes(xs, first);
#pragma GCC unroll 4
            for (int v = 1; v < nv - 1; v++) b[v] = v_load(xs + v * VL);
            if (nv > 1) b[nv - 1] = v_load_lanes(xs + (nv - 1) * VL, last);
#pragma GCC unroll 7
            for (int r = 0; r < rows; r++) {
                if (i - r < 0 || i - r >= down) continue;
#pragma GCC unroll 4
                for (int v = 0; v < nv; v++) acc[r][v] = v_fma(w[i - r], b[v], acc[r][v]);
            }
        }
    }
#define FC_PLANE_EACH \
    _Pragma("GCC unroll 7") for (int r = 0; r < rows; r++) \
        _Pragma("GCC unroll 4") for (int v = 0; v < nv; v++)
    const ptrdiff_t at = r0 * y_row + p;
    y += at;
    if (bias) {
        const V b = v_set1(*bias);
        FC_PLANE_EACH acc[r][v] = v_add(acc[r][v], b);
    }
    if (residual) {
        residual += at;
        FC_PLANE_EACH {
            const REAL *const from = residual + r * y_row + v * VL;
            acc[r][v] = v_add(acc[r][v], v < nv - 1 ? v_load(from) : v_load_n(from, n));
        }
    }
    if (t->relu) FC_PLANE_EACH acc[r][v] = v_max(v_zero(), acc[r][v]);
    FC_PLANE_EACH {
        if (v < nv - 1)
            v_store(y + r * y_row + v * VL, acc[r][v]);
        else
            v_store_n(y + r * y_row + v * VL, acc[r][v], n);
    }
#undef FC_PLANE_EACH
}

#define FC_PLANE_CASE(down, across, rows, nv, step) \
    FC_FN(plane_tile)(t, lanes, x, a, y, bias, residual, r, p, down, across, rows, nv, step)
#define FC_PLANE_TILE(down, nv) \
    static void FC_FN(plane_tile_##down##x##nv)( \
        const fc_pixel_planes *t, const FC_FN(plane_lanes) * lanes, const REAL *x, const REAL *a, \
        REAL *y, const REAL *bias, const REAL *residual, ptrdiff_t r, ptrdiff_t p, int rows) { \
        if (rows == 1) \
            FC_PLANE_CASE(down, t->across, 1, nv, 0); \
        else if (rows == FC_PLANE_FEW && nv == 2) \
            FC_PLANE_CASE(down, t->across, FC_PLANE_FEW, nv, 0); \
        else if (t->across == 3 && down == 3) \
            FC_PLANE_CASE(down, 3, FC_PLANE_ROWS(nv), nv, 0); \
        else \
            FC_PLANE_CASE(down, t->across, FC_PLANE_ROWS(nv), nv, 0); \
    } \
    FC_PLANE_SLIDE(down, nv, 1) FC_PLANE_SLIDE(down, nv, 2)
#define FC_PLANE_TILES(X, down) X(down, 1) X(down, 2) X(down, 3) X(down, 4)
#define FC_ENTRY_PLANE(down, nv) [down / 2 - 1][nv - 1] = FC_FN(plane_tile_##down##x##nv),
#if FC_PLANE_SLIDES
#define FC_PLANE_SLIDE(down, nv, step) \
    static void FC_FN(plane_slide_##down##x##nv##_##step)( \
        const fc_pixel_planes *t, const FC_FN(plane_lanes) * lanes, const REAL *x, const REAL *a, \
        REAL *y, const REAL *bias, const REAL *residual, ptrdiff_t r, ptrdiff_t p, int rows) { \
        if (rows == 1) \
            FC_PLANE_CASE(down, down, 1, nv, step); \
        else \
            FC_PLANE_CASE(down, down, FC_PLANE_ROWS(nv), nv, step); \
    }
#define FC_ENTRY_SLIDE(down, nv) \
    [down / 2 - 1][nv - 1] = {FC_FN(plane_slide_##down##x##nv##_1), \
                              FC_FN(plane_slide_##down##x##nv##_2)},
#else
#define FC_PLANE_SLIDE(down, nv, step)
#endif
FC_PLANE_TILES(FC_PLANE_TILE, 3)
FC_PLANE_TILES(FC_PLANE_TILE, 5)
FC_PLANE_TILES(FC_PLANE_TILE, 7)

typedef void (*FC_FN(plane_fn))(const fc_pixel_planes *, const FC_FN(plane_lanes) *, const REAL *,
                                const REAL *, REAL *, const REAL *, const REAL *, ptrdiff_t,
                                ptrdiff_t, int);

/* The tile of whole rows of nv vectors that slide; NULL where they do not. */
static FC_FN(plane_fn) FC_FN(plane_slider)(const fc_pixel_planes *t, ptrdiff_t nv) {
#if FC_PLANE_SLIDES
    static const FC_FN(plane_fn) tile[3][FC_PLANE_NV][2] = {FC_PLANE_TILES(
        FC_ENTRY_SLIDE, 3) FC_PLANE_TILES(FC_ENTRY_SLIDE, 5) FC_PLANE_TILES(FC_ENTRY_SLIDE, 7)};
    const ptrdiff_t reach = t->across / 2;
    const int dense = t->off[0] == -reach ? t->a_row == t->across : t->off[0] == reach;
    if (t->across == t->down && dense && t->off[0] + t->off[t->across - 1] == 0 &&
        t->in_cols <= t->cols * t->step && t->in_cols > (nv - 1) * VL * t->step)
        return tile[t->down / 2 - 1][nv - 1][t->step - 1];
#endif
    (void)t, (void)nv;
    return NULL;
}

static void FC_FN(pixel_planes)(const fc_pixel_planes *t) {
    static const FC_FN(plane_fn) tile[3][FC_PLANE_NV] = {FC_PLANE_TILES(
        FC_ENTRY_PLANE, 3) FC_PLANE_TILES(FC_ENTRY_PLANE, 5) FC_PLANE_TILES(FC_ENTRY_PLANE, 7)};
    enum { LINE = 64 / sizeof(REAL), AHEAD = 2048 / sizeof(REAL) }; /* from L3 */
#ifdef v_pick
    if (FC_FN(plane_halves)(t)) return;
#endif
    FC_FN(plane_lanes) lanes[3]; /* of the first, other and last tiles of a row */
    const ptrdiff_t vectors = (t->cols + VL - 1) / VL;
    const ptrdiff_t tiles = (vectors + FC_PLANE_NV - 1) / FC_PLANE_NV;
    const ptrdiff_t nv = vectors / tiles, wider = vectors - nv * tiles;
    const ptrdiff_t most = tiles > 1 ? FC_PLANE_FEW : FC_PLANE_ROWS(nv);
    const FC_FN(plane_fn) slider = tiles > 1 ? NULL : FC_FN(plane_slider)(t, nv);
    for (int j = 0; j < 3; j++) {
        const ptrdiff_t i = j == 0 ? 0 : j == 1 ? tiles / 2 : tiles - 1; /* such a tile */
        const ptrdiff_t p = (i * nv + (i < wider ? i : wider)) * VL;
        const ptrdiff_t last = p + (nv + (i < wider) - 1) * VL;
        for (ptrdiff_t k = 0; k < t->across; k++) {
            lanes[j].first[k] = FC_FN(plane_inside)(t->in_cols, p + t->off[k], VL);
            lanes[j].last[k] = FC_FN(plane_inside)(t->in_cols, last + t->off[k], VL);
        }
        for (int k = 0; k < 2; k++)
            lanes[j].ends[k] = FC_FN(plane_inside)(t->in_cols, last * t->step + k * VL, VL);
    }
    for (ptrdiff_t g = 0; g < t->planes; g++) {
        const REAL *const x = (const REAL *)t->x + g * t->x_plane;
        const REAL *a = (const REAL *)t->a + g * t->a_plane;
        const REAL *const bias = t->bias ? (const REAL *)t->bias + g : NULL;
        const REAL *const residual =
            t->residual ? (const REAL *)t->residual + g * t->y_plane : NULL;
        REAL *const y = (REAL *)t->y + g * t->y_plane;
        REAL turned[FC_PLANE_TAPS * FC_PLANE_TAPS];
        if (slider && t->off[0] > 0) { /* weights in the order of the columns and rows of x */
            for (ptrdiff_t i = 0; i < t->down; i++)
                for (ptrdiff_t k = 0; k < t->across; k++)
                    turned[i * t->across + k] = a[i * t->a_row + t->across - 1 - k];
            a = turned;
        }
        for (ptrdiff_t r = 0, rows; r < t->rows; r += rows) {
            ptrdiff_t p = 0;
            rows = t->rows - r;
            /* the last tile overlaps, but what is read where it is written; a row alone takes half
             * the time of a tile */
            if (rows > 1 && rows < most && most <= r && !t->residual) r -= most - rows;
            rows = t->rows - r < most ? 1 : most;
            for (ptrdiff_t i = 0; i < rows * t->step * t->x_row; i += LINE)
                FC_PREFETCH_READ(x + (t->top + r * t->step) * t->x_row + AHEAD + i);
            for (ptrdiff_t i = 0; i < rows * t->y_row; i += LINE)
                FC_PREFETCH(y + r * t->y_row + AHEAD + i);
            for (ptrdiff_t j = 0; j < tiles; j++) {
                const ptrdiff_t here = nv + (j < wider);
                const FC_FN(plane_fn) run = slider ? slider : tile[t->down / 2 - 1][here - 1];
                run(t, lanes + (j > 0) + (j > 0 && j == tiles - 1), x, a, y, bias, residual, r, p,
                    (int)rows);
                p += here * VL;
            }
        }
    }
}

#define FC_DOTS_CHAIN 256 /* multiply-adds of a sum before it goes to memory */

typedef struct {
    LANES x[3], dy;
} FC_FN(dots_lanes);

/* One vector of a row of x, with rows h - lo to h - hi of dy. */
static FC_INLINE void FC_FN(dots_step)(V *acc, const REAL *x, const REAL *dy, ptrdiff_t dy_row,
                                       const ptrdiff_t *off, const FC_FN(dots_lanes) * lanes,
                                       const int lo, const int hi) {
    V b[3];
#pragma GCC unroll 3
    for (int k = 0; k < 3; k++)
        b[k] = lanes ? v_load_lanes(x + off[k], lanes->x[k]) : v_load(x + off[k]);
#pragma GCC unroll 3
    for (int u = lo; u <= hi; u++) {
        const REAL *const from = dy - u * dy_row;
        const V g = lanes ? v_load_lanes(from, lanes->dy) : v_load(from);
#pragma GCC unroll 3
        for (int k = 0; k < 3; k++) acc[3 * u + k] = v_fma(g, b[k], acc[3 * u + k]);
    }
}

static FC_INLINE void FC_FN(dots_row)(V *acc, const fc_plane_dots *t,
                                      const FC_FN(dots_lanes) * lanes, const REAL *x,
                                      const REAL *dy, const int lo, const int hi) {
    const ptrdiff_t end = (t->cols - 1) / VL * VL;
    FC_FN(dots_step)(acc, x, dy, t->cols, t->off, lanes, lo, hi);
    for (ptrdiff_t p = VL; p < end; p += VL)
        FC_FN(dots_step)(acc, x + p, dy + p, t->cols, t->off, NULL, lo, hi);
    if (end > 0) FC_FN(dots_step)(acc, x + end, dy + end, t->cols, t->off, lanes + 1, lo, hi);
}

static void FC_FN(plane_dots)(const fc_plane_dots *given) {
    enum { LINE = 64 / sizeof(REAL), AHEAD = 2048 / sizeof(REAL) };
    const fc_plane_dots copy = *given, *const t = &copy; /* which stores cannot change */
    const ptrdiff_t rows = t->rows, cols = t->cols, end = (cols - 1) / VL * VL;
    const ptrdiff_t chain = FC_DOTS_CHAIN / (end / VL + 1);
    FC_FN(dots_lanes) lanes[2]; /* of the first vector of a row, and of the last of several */
    for (int j = 0; j < 2; j++) {
        const ptrdiff_t p = j * end, n = cols - p;
        lanes[j].dy = FC_FN(plane_inside)(cols, p, VL);
        for (int k = 0; k < 3; k++)
            lanes[j].x[k] = FC_FN(plane_inside)(t->in_cols, p + t->off[k], n);
    }
    for (ptrdiff_t g = 0; g < t->planes; g++) {
        const REAL *const plane = (const REAL *)t->x + g * t->x_plane;
        const REAL *const dy = (const REAL *)t->dy + g * t->dy_plane;
        REAL *const sums = (REAL *)t->sums + g * 9 * VL;
        for (ptrdiff_t h = 0; h < rows + 2;) {
            const ptrdiff_t stop = rows + 2 - h < chain ? rows + 2 : h + (chain > 0 ? chain : 1);
            V acc[9];
#pragma GCC unroll 9
            for (int i = 0; i < 9; i++) acc[i] = v_zero();
            for (; h < stop; h++) {
                const ptrdiff_t at = t->top + h;
                const REAL *const x = at >= 0 && at < t->in_rows ? plane + at * t->x_row : t->zeros;
                const REAL *const from = dy + h * cols;
                for (ptrdiff_t i = 0; i < cols; i += LINE) {
                    FC_PREFETCH_READ(x + AHEAD + i);
                    FC_PREFETCH_READ(from + AHEAD + i);
                }
                if (h >= 2 && h < rows)
                    FC_FN(dots_row)(acc, t, lanes, x, from, 0, 2);
                else if (h < 1 && h < rows)
                    FC_FN(dots_row)(acc, t, lanes, x, from, 0, 0);
                else if (h < 2 && h < rows)
                    FC_FN(dots_row)(acc, t, lanes, x, from, 0, 1);
                else if (h < 2 && h < rows + 1)
                    FC_FN(dots_row)(acc, t, lanes, x, from, 1, 1);
                else if (h < rows + 1)
                    FC_FN(dots_row)(acc, t, lanes, x, from, 1, 2);
                else
                    FC_FN(dots_row)(acc, t, lanes, x, from, 2, 2);
            }
#pragma GCC unroll 9
            for (int i = 0; i < 9; i++)
                v_store(sums + i * VL, v_add(v_load(sums + i * VL), acc[i]));
        }
    }
}
#undef FC_DOTS_CHAIN

static void FC_FN(sum_lanes)(void *y, const void *x, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) ((REAL *)y)[i] = v_hsum(v_load((const REAL *)x + i * VL));
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

static FC_NOINLINE void FC_FN(pixel_store)(const fc_pixel_store *t) {
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

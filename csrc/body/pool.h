/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pooling of one plane x[d][h][w] into y[od][oh][ow] (see fc_pool for the windows).
 * The rows of a window are reduced by vectors over the columns into a scratch row, then windows
 * along w are reduced by vectors over the outputs. For that the row is padded with the neutral
 * element, so that every window has all its taps. Where the windows along w form no lattice of
 * stride 1 or 2, they are reduced one by one, by their tables.
 * Maximum: the first one wins, a NaN wins over everything, the last NaN over the others (torch's
 * rule `value > max or isnan(value)`). Only zeros and NaNs show which one won: without indices the
 * cells are taken column by column, and windows that may hold several of these are searched again.
 * A window without cells (dilation can step over a short axis) is -inf, at index 0.
 */
#define POOL_MAX 0
#define POOL_SUM 1
#define POOL_SHARES 2 /* the sum of the windows' shares x/divisor, for the gradient */
#define POOL_NV 4     /* vectors of a row that go through its window's rows together */

static FC_INLINE V FC_FN(pool_fold)(int op, V acc, V v) {
    return op == POOL_MAX ? FC_FN(larger)(v, acc) : v_add(acc, v);
}

static FC_INLINE REAL FC_FN(pool_neutral)(int op) { return op == POOL_MAX ? (REAL)-INFINITY : 0; }

/* The part of the divisor that a row of windows shares. */
static FC_INLINE REAL FC_FN(pool_divisor)(const fc_pool *p, int wanted, ptrdiff_t d, ptrdiff_t h) {
    return wanted ? (REAL)(p->divisor[0][d] * p->divisor[1][h]) : 0;
}

/* v over the divisors of n windows from w on. */
static FC_INLINE V FC_FN(pool_divide)(const fc_pool *p, V v, REAL divisor, ptrdiff_t w,
                                      ptrdiff_t n) {
    const REAL *const each = (const REAL *)p->divisor_w + w;
    return v_div(v, v_mul(v_set1(divisor), n < VL ? v_load_n(each, n) : v_load(each)));
}

/* row[w..] = the rows of window (od, oh) reduced, for n <= nv*VL columns. */
static FC_INLINE void FC_FN(pool_columns)(const fc_pool *p, int op, ptrdiff_t od, ptrdiff_t oh,
                                          REAL *row, ptrdiff_t w, int nv, ptrdiff_t n) {
    V acc[POOL_NV];
#pragma GCC unroll 4
    for (int k = 0; k < nv; k++) acc[k] = v_set1(FC_FN(pool_neutral)(op));
    for (ptrdiff_t d = p->start[0][od]; d < p->stop[0][od]; d += p->step[0])
        for (ptrdiff_t h = p->start[1][oh]; h < p->stop[1][oh]; h += p->step[1]) {
            const ptrdiff_t at = (d * p->in[1] + h) * p->in[2] + w;
            const REAL divisor = FC_FN(pool_divisor)(p, op == POOL_SHARES, d, h);
#pragma GCC unroll 4
            for (int k = 0; k < nv; k++) {
                const REAL *const x = (const REAL *)p->x + at + k * VL;
                V v = n < VL ? v_load_n(x, n) : v_load(x);
                if (op == POOL_SHARES) v = FC_FN(pool_divide)(p, v, divisor, w + k * VL, n);
                acc[k] = FC_FN(pool_fold)(op, acc[k], v);
            }
        }
#pragma GCC unroll 4
    for (int k = 0; k < nv; k++) {
        if (n < VL)
            v_store_n(row + w, acc[k], n);
        else
            v_store(row + w + k * VL, acc[k]);
    }
}

/* The same for all columns of `rows` neighbours from row (d, h) on: a short loop. Its last vector
 * overlaps its neighbour; n is VL, or a row that is less. */
static FC_INLINE void FC_FN(pool_few)(const fc_pool *p, int op, ptrdiff_t d, ptrdiff_t h,
                                      const int rows, REAL *restrict row, const ptrdiff_t n) {
    const ptrdiff_t W = p->in[2];
    const REAL *const x = (const REAL *)p->x + (d * p->in[1] + h) * W;
    const ptrdiff_t apart = rows > 1 ? p->step[1] * W : 0; /* a step may lead far from the plane */
    REAL divisor[3];
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++) divisor[r] = FC_FN(pool_divisor)(p, op == POOL_SHARES, d, h + r);
    for (ptrdiff_t w = 0; w < W; w += VL) {
        if (n == VL && w > W - VL) w = W - VL;
        V acc = v_set1(FC_FN(pool_neutral)(op));
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++) {
            V v = FC_LOAD(x + r * apart + w, n);
            if (op == POOL_SHARES) v = FC_FN(pool_divide)(p, v, divisor[r], w, n);
            acc = op == POOL_MAX && r == 0 ? v : FC_FN(pool_fold)(op, acc, v);
        }
        v_store_n(row + w, acc, n);
    }
}

/* Few rows as constants; whether they are few. */
static FC_INLINE int FC_FN(pool_small)(const fc_pool *p, int op, ptrdiff_t od, ptrdiff_t oh,
                                       REAL *row, const ptrdiff_t n) {
    const ptrdiff_t d = p->start[0][od], h = p->start[1][oh], step = p->step[1];
    const ptrdiff_t reach = p->stop[1][oh] - h;
    if (p->stop[0][od] - d != 1 || reach < 1 || (reach - 1) / step > 2) return 0;
    if (reach <= step)
        FC_FN(pool_few)(p, op, d, h, 1, row, n);
    else if (reach - step <= step)
        FC_FN(pool_few)(p, op, d, h, 2, row, n);
    else
        FC_FN(pool_few)(p, op, d, h, 3, row, n);
    return 1;
}

static FC_INLINE void FC_FN(pool_rows)(const fc_pool *p, int op, ptrdiff_t od, ptrdiff_t oh,
                                       REAL *row) {
    const ptrdiff_t W = p->in[2];
    ptrdiff_t w = 0;
    if (W < VL ? FC_FN(pool_small)(p, op, od, oh, row, W)
               : FC_FN(pool_small)(p, op, od, oh, row, VL))
        return;
    for (; w + POOL_NV * VL <= W; w += POOL_NV * VL)
        FC_FN(pool_columns)(p, op, od, oh, row, w, POOL_NV, POOL_NV * VL);
    for (; w + VL <= W; w += VL) FC_FN(pool_columns)(p, op, od, oh, row, w, 1, VL);
    if (w < W) FC_FN(pool_columns)(p, op, od, oh, row, w, 1, W - w);
}

/* Fills the scratch; what no input reaches stays as it is. */
static void FC_FN(pool_fill)(const fc_pool *p, REAL value, ptrdiff_t rows) {
    FC_OVER_COLUMNS(rows * p->width, v_store_n((REAL *)p->row + c, v_set1(value), m);)
}

/* The one that wins of the cells equal to m, or of the NaNs where m is one. */
static REAL FC_FN(pool_winner)(const fc_pool *p, ptrdiff_t od, ptrdiff_t oh, ptrdiff_t o, REAL m) {
    for (ptrdiff_t d = p->start[0][od]; d < p->stop[0][od]; d += p->step[0])
        for (ptrdiff_t h = p->start[1][oh]; h < p->stop[1][oh]; h += p->step[1])
            for (ptrdiff_t w = p->start[2][o]; w < p->stop[2][o]; w += p->step[2]) {
                const REAL v = ((const REAL *)p->x)[(d * p->in[1] + h) * p->in[2] + w];
                if (v == m) return v;
                if (v != v) m = v;
            }
    return m;
}

static FC_INLINE V FC_FN(pool_load)(const REAL *p, ptrdiff_t stride) {
    return stride == 1 ? v_load(p) : v_load_even(p);
}

/* y[o] = the taps of each window (od, oh, o) of a padded row. */
static FC_INLINE void FC_FN(pool_taps)(const fc_pool *p, int op, ptrdiff_t stride,
                                       const ptrdiff_t taps, ptrdiff_t od, ptrdiff_t oh, REAL *y,
                                       REAL divisor) {
    MASK unsure = v_lt(v_zero(), v_zero());
    for (ptrdiff_t o = 0; o < p->out[2]; o += VL) {
        const REAL *const row = (const REAL *)p->row + o * stride;
        const ptrdiff_t n = p->out[2] - o < VL ? p->out[2] - o : VL;
        V acc = FC_FN(pool_load)(row, stride);
#pragma GCC unroll 2
        for (ptrdiff_t t = 1; t < taps; t++) {
            const V v = FC_FN(pool_load)(row + t * p->step[2], stride);
            acc = op == POOL_MAX ? v_max_either(acc, v) : v_add(acc, v);
        }
        if (op == POOL_MAX)
            unsure = v_or(unsure, v_or(v_isnan(acc), v_isminus0(acc)));
        else
            acc = FC_FN(pool_divide)(p, acc, divisor, o, n);
        v_store_n(y + o, acc, n);
    }
    if (op == POOL_MAX && v_any(unsure))
        for (ptrdiff_t o = 0; o < p->out[2]; o++)
            if (y[o] != y[o] || y[o] == 0) y[o] = FC_FN(pool_winner)(p, od, oh, o, y[o]);
}

/* Common numbers of taps as constants. */
static FC_INLINE void FC_FN(pool_lattice)(const fc_pool *p, int op, ptrdiff_t stride, ptrdiff_t od,
                                          ptrdiff_t oh, REAL *y, REAL divisor) {
    if (p->taps == 2)
        FC_FN(pool_taps)(p, op, stride, 2, od, oh, y, divisor);
    else if (p->taps == 3)
        FC_FN(pool_taps)(p, op, stride, 3, od, oh, y, divisor);
    else
        FC_FN(pool_taps)(p, op, stride, p->taps, od, oh, y, divisor);
}

/* The same by the tables; the row is not padded. Equal neighbours are computed once and
 * stored together: the gradient of pooling without overlap is made of them. */
static FC_INLINE void FC_FN(pool_windows)(const fc_pool *p, int op, const REAL *row, ptrdiff_t od,
                                          ptrdiff_t oh, REAL *y, REAL divisor) {
    const ptrdiff_t *const start = p->start[2], *const stop = p->stop[2];
    REAL m = 0;
    for (ptrdiff_t o = 0; o < p->out[2]; o++) {
        const ptrdiff_t n = stop[o] - start[o];
        if (o == 0 || start[o] != start[o - 1] || stop[o] != stop[o - 1]) {
            if (n >= VL && p->step[2] == 1) {
                m = op == POOL_MAX ? FC_FN(row_max)(row + start[o], n)
                                   : (REAL)FC_FN(sum)(row + start[o], n);
            } else {
                m = FC_FN(pool_neutral)(op);
                for (ptrdiff_t w = start[o]; w < stop[o]; w += p->step[2])
                    m = op != POOL_MAX ? m + row[w] : row[w] > m || row[w] != row[w] ? row[w] : m;
            }
            if (op == POOL_MAX && (m != m || m == 0)) m = FC_FN(pool_winner)(p, od, oh, o, m);
        }
        const ptrdiff_t last = o + VL - 1;
        if (op == POOL_SHARES && last < p->out[2] && start[last] == start[o] &&
            stop[last] == stop[o]) {
            v_store(y + o, v_set1(m));
            o = last;
            continue;
        }
        y[o] = op == POOL_SUM ? m / (divisor * ((const REAL *)p->divisor_w)[o]) : m;
    }
}

/* The gradient of windows that form a lattice. Cell w = stride*j + r is tap t + stride*k of window
 * o - k, where o*stride + t = w + pad and t < stride: o = j + (pad + r - t)/stride. */
static FC_INLINE void FC_FN(pool_phases)(const fc_pool *p, const int stride, const ptrdiff_t taps,
                                         REAL *restrict dx) {
    const ptrdiff_t cells = p->out[2];
    const int odd = (int)(p->pad % stride);
    const REAL *from[2];
#pragma GCC unroll 2
    for (int t = 0; t < stride; t++)
        from[t] = (const REAL *)p->row + p->left + (p->pad + (t ^ odd)) / stride;
    for (ptrdiff_t j = 0; j * stride < cells; j += VL) {
        V acc[2], cell[2];
#pragma GCC unroll 2
        for (int t = 0; t < stride; t++) {
            acc[t] = t < taps ? v_load(from[t] + j) : v_zero();
#pragma GCC unroll 2
            for (ptrdiff_t k = 1; t + stride * k < taps; k++)
                acc[t] = v_add(acc[t], v_load(from[t] + j - k));
        }
        if (stride == 1)
            cell[0] = acc[0];
        else if (odd)
            v_zip(acc[1], acc[0], &cell[0], &cell[1]);
        else
            v_zip(acc[0], acc[1], &cell[0], &cell[1]);
#pragma GCC unroll 2
        for (int r = 0; r < stride; r++) {
            const ptrdiff_t w = j * stride + r * VL, n = cells - w;
            if (n >= VL)
                v_store(dx + w, cell[r]);
            else if (n > 0)
                v_store_n(dx + w, cell[r], n);
        }
    }
}

/* Common numbers of taps as constants. */
static FC_INLINE void FC_FN(pool_lattice_grad)(const fc_pool *p, const int stride, REAL *dx) {
    if (p->taps == 2)
        FC_FN(pool_phases)(p, stride, 2, dx);
    else if (p->taps == 3)
        FC_FN(pool_phases)(p, stride, 3, dx);
    else
        FC_FN(pool_phases)(p, stride, p->taps, dx);
}

/* Whether row oh of dx is the same as the one before it. */
static inline int FC_FN(pool_repeats)(const fc_pool *p, ptrdiff_t oh) {
    const ptrdiff_t *const start = p->start[1] + oh, *const stop = p->stop[1] + oh;
    return oh > 0 && start[0] == start[-1] && stop[0] == stop[-1];
}

static inline int FC_FN(pool_one_row)(const fc_pool *p, ptrdiff_t od, ptrdiff_t oh) {
    return p->stop[0][od] - p->start[0][od] == 1 && p->stop[1][oh] - p->start[1][oh] == 1;
}

static FC_INLINE void FC_FN(pool_plane)(const fc_pool *p, int op) {
    REAL *y = p->y;
    if (p->stride) FC_FN(pool_fill)(p, FC_FN(pool_neutral)(op), 1);
    for (ptrdiff_t od = 0; od < p->out[0]; od++)
        for (ptrdiff_t oh = 0; oh < p->out[1]; oh++) {
            if (op == POOL_SHARES && FC_FN(pool_repeats)(p, oh)) {
                memcpy(y, y - p->out[2], (size_t)p->out[2] * sizeof(REAL));
                y += p->out[2];
                continue;
            }
            const REAL divisor = FC_FN(pool_divisor)(p, op == POOL_SUM, od, oh);
            const REAL *row = p->row;
            if (op != POOL_SHARES && !p->stride && FC_FN(pool_one_row)(p, od, oh))
                row =
                    (const REAL *)p->x + (p->start[0][od] * p->in[1] + p->start[1][oh]) * p->in[2];
            else
                FC_FN(pool_rows)(p, op, od, oh, (REAL *)p->row + p->left);
            if (p->stride == 0)
                FC_FN(pool_windows)(p, op, row, od, oh, y, divisor);
            else if (op == POOL_SHARES && p->stride == 1)
                FC_FN(pool_lattice_grad)(p, 1, y);
            else if (op == POOL_SHARES)
                FC_FN(pool_lattice_grad)(p, 2, y);
            else if (p->stride == 1)
                FC_FN(pool_lattice)(p, op, 1, od, oh, y, divisor);
            else
                FC_FN(pool_lattice)(p, op, 2, od, oh, y, divisor);
            y += p->out[2];
        }
}

/* Whether no element is a NaN or -0, so that v_max is all there is to a maximum in any order. It
 * also says no to infinities. */
static FC_INLINE int FC_FN(pool_plain)(const REAL *x, ptrdiff_t n) {
    V sum[FC_TOGETHER] = {v_zero(), v_zero(), v_zero(), v_zero()};
    MASK minus0 = v_lt(v_zero(), v_zero());
    FC_OVER_GROUPS(
        n, V v[FC_TOGETHER]; FC_EACH v[k] = FC_LOAD(x + c + k * VL, m);
        FC_EACH sum[k] = v_fma(v[k], v_zero(), sum[k]); /* not 0 once one is not finite */
        FC_EACH minus0 = v_or(minus0, v_isminus0(v[k]));)
    return !v_any(v_or(minus0, v_isnan(v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3])))));
}

static FC_INLINE V FC_FN(pool_fold_plain)(int op, V acc, V v) {
    return op == POOL_MAX ? v_max(v, acc) : v_add(acc, v);
}

/* Windows of planes that lie in the lanes, rows first: a row of cells is a row of vectors. Maxima
 * only of plain elements. */
static FC_INLINE void FC_FN(pool_lanes)(const fc_pool *p, int op, const REAL *x, REAL *y,
                                        REAL *scratch) {
    const ptrdiff_t width = p->in[2] * VL, cells = p->out[2] * VL, step = p->step[2] * VL;
    for (ptrdiff_t od = 0; od < p->out[0]; od++)
        for (ptrdiff_t oh = 0; oh < p->out[1]; oh++, y += cells) {
            if (op == POOL_SHARES && FC_FN(pool_repeats)(p, oh)) {
                memcpy(y, y - cells, (size_t)cells * sizeof(REAL));
                continue;
            }
            const REAL *row = NULL; /* the first row itself where it is the only one */
            for (ptrdiff_t d = p->start[0][od]; d < p->stop[0][od]; d += p->step[0])
                for (ptrdiff_t h = p->start[1][oh]; h < p->stop[1][oh]; h += p->step[1]) {
                    const REAL *const next = x + (d * p->in[1] + h) * width;
                    if (row)
                        for (ptrdiff_t c = 0; c < width; c += VL)
                            v_store(scratch + c,
                                    FC_FN(pool_fold_plain)(op, v_load(row + c), v_load(next + c)));
                    row = row ? scratch : next;
                }
            const REAL divisor = FC_FN(pool_divisor)(p, op == POOL_SUM, od, oh);
            for (ptrdiff_t o = 0; o < p->out[2]; o++) {
                V acc = v_set1(FC_FN(pool_neutral)(op));
                if (row)
                    for (ptrdiff_t c = p->start[2][o] * VL; c < p->stop[2][o] * VL; c += step)
                        acc = FC_FN(pool_fold_plain)(op, acc, v_load(row + c));
                if (op == POOL_SUM)
                    acc = v_div(acc, v_set1(divisor * ((const REAL *)p->divisor_w)[o]));
                v_store(y + o * VL, acc);
            }
        }
}

/* Maxima of planes that lie in the lanes, window by window. Beside a maximum runs the index of its
 * cell, as a REAL. */
static FC_INLINE void FC_FN(pool_lanes_max)(const fc_pool *p, int indices, int plain, const REAL *x,
                                            REAL *y, REAL *at) {
    const ptrdiff_t H = p->in[1], W = p->in[2];
    for (ptrdiff_t od = 0; od < p->out[0]; od++)
        for (ptrdiff_t oh = 0; oh < p->out[1]; oh++)
            for (ptrdiff_t o = 0; o < p->out[2]; o++, y += VL, at += VL) {
                V acc = v_set1(-INFINITY), best = v_zero();
                int first = 1;
                for (ptrdiff_t d = p->start[0][od]; d < p->stop[0][od]; d += p->step[0])
                    for (ptrdiff_t h = p->start[1][oh]; h < p->stop[1][oh]; h += p->step[1])
                        for (ptrdiff_t w = p->start[2][o]; w < p->stop[2][o]; w += p->step[2]) {
                            const ptrdiff_t i = (d * H + h) * W + w;
                            const V v = v_load(x + i * VL), here = v_set1((REAL)i);
                            const MASK more = v_lt(acc, v);
                            if (plain) {
                                best = v_select(more, here, best);
                                acc = v_max(v, acc);
                                continue;
                            }
                            best = first ? here : v_select(v_or(more, v_isnan(v)), here, best);
                            acc = FC_FN(larger)(v, acc);
                            first = 0;
                        }
                v_store(y, acc);
                if (indices) v_store(at, best);
            }
}

/* The windows of p->planes <= VL small planes by their tables; a vector is one cell of each. */
static FC_INLINE void FC_FN(pool_together)(const fc_pool *p, int op, int indices) {
    const ptrdiff_t H = p->in[1], W = p->in[2], cells = p->in[0] * H * W;
    const ptrdiff_t windows = p->out[0] * p->out[1] * p->out[2];
    REAL *const x = p->row, *const y = x + cells * VL, *const at = y + windows * VL;
    const int plain = op != POOL_MAX || FC_FN(pool_plain)(p->x, p->planes * cells);
    FC_FN(transpose)(x, VL, p->x, cells, p->planes, cells, VL);
    for (ptrdiff_t row = 0; op == POOL_SHARES && row < p->in[0] * H; row++) {
        const REAL divisor = FC_FN(pool_divisor)(p, 1, row / H, row % H);
        for (ptrdiff_t w = 0; w < W; w++) {
            REAL *const cell = x + (row * W + w) * VL;
            v_store(cell, v_div(v_load(cell), v_set1(divisor * ((const REAL *)p->divisor_w)[w])));
        }
    }
    if (plain && !indices)
        FC_FN(pool_lanes)(p, op, x, y, at);
    else if (plain)
        FC_FN(pool_lanes_max)(p, indices, 1, x, y, at);
    else
        FC_FN(pool_lanes_max)(p, indices, 0, x, y, at);
    FC_FN(transpose)(p->y, windows, y, VL, windows, p->planes, windows);
    if (indices) {
        FC_FN(transpose)(y, windows, at, VL, windows, p->planes, windows);
        FC_OVER_COLUMNS(p->planes * windows, v_store_index(p->index + c, FC_LOAD(y + c, m), 0, m);)
    }
}

/* A plane's cells are in the lanes, then VL planes are. */
static void FC_FN(pool_mean)(const fc_pool *p) {
    const ptrdiff_t cells = p->in[2];
    const V divisor = v_set1(FC_FN(pool_divisor)(p, 1, 0, 0) * ((const REAL *)p->divisor_w)[0]);
    const REAL *x = p->x;
    for (ptrdiff_t at = 0; at < p->planes; at += VL) {
        const ptrdiff_t n = p->planes - at < VL ? p->planes - at : VL;
        REAL part[VL * VL];
        V s[VL];
        for (ptrdiff_t i = 0; i < n; i++, x += cells)
            v_store(part + i * VL, FC_FN(lane_sums)(x, 1, 0, cells));
        v_transpose(s, part, VL, n);
#pragma GCC unroll 4
        for (int half = VL / 2; half > 0; half /= 2)
#pragma GCC unroll 8
            for (int i = 0; i < half; i++) s[i] = v_add(s[i], s[i + half]);
        v_store_n((REAL *)p->y + at, v_div(s[0], divisor), n);
    }
}

/* Its adjoint: every cell of a plane is its window's share. */
static void FC_FN(pool_mean_backward)(const fc_pool *p) {
    const ptrdiff_t cells = p->out[2];
    const V divisor = v_set1(FC_FN(pool_divisor)(p, 1, 0, 0) * ((const REAL *)p->divisor_w)[0]);
    REAL *y = p->y;
    for (ptrdiff_t at = 0; at < p->planes; at += VL) {
        const ptrdiff_t n = p->planes - at < VL ? p->planes - at : VL;
        REAL share[VL];
        v_store(share, v_div(FC_LOAD((const REAL *)p->x + at, n), divisor));
        for (ptrdiff_t i = 0; i < n; i++, y += cells) {
            const V v = v_set1(share[i]);
            ptrdiff_t c = 0;
            for (; c + VL <= cells; c += VL) v_store(y + c, v);
            if (c < cells && cells >= VL)
                v_store(y + cells - VL, v);
            else
                v_store_n(y + c, v, cells - c);
        }
    }
}

static void FC_FN(pool_avg)(const fc_pool *p) {
    if (p->planes)
        FC_FN(pool_together)(p, POOL_SUM, 0);
    else
        FC_FN(pool_plane)(p, POOL_SUM);
}

/* The adjoint of pool_avg is a sum of shares dy/divisor over tables that hold for each cell of dx
 * the windows it lies in. */
static void FC_FN(pool_avg_backward)(const fc_pool *p) {
    if (p->planes)
        FC_FN(pool_together)(p, POOL_SHARES, 0);
    else
        FC_FN(pool_plane)(p, POOL_SHARES);
}

/* Values and indices of a row of windows by the tables: one scan a window in the order that decides
 * ties. */
static void FC_FN(pool_windows_index)(const fc_pool *p, ptrdiff_t od, ptrdiff_t oh) {
    const ptrdiff_t H = p->in[1], W = p->in[2];
    const REAL *const x = p->x;
    const ptrdiff_t at = (od * p->out[1] + oh) * p->out[2];
    for (ptrdiff_t o = 0; o < p->out[2]; o++) {
        ptrdiff_t best = 0;
        REAL m = (REAL)-INFINITY;
        int first = 1;
        for (ptrdiff_t d = p->start[0][od]; d < p->stop[0][od]; d += p->step[0])
            for (ptrdiff_t h = p->start[1][oh]; h < p->stop[1][oh]; h += p->step[1])
                for (ptrdiff_t w = p->start[2][o]; w < p->stop[2][o]; w += p->step[2]) {
                    const ptrdiff_t i = (d * H + h) * W + w;
                    if (first || x[i] > m || x[i] != x[i]) {
                        m = x[i];
                        best = i;
                        first = 0;
                    }
                }
        ((REAL *)p->y)[at + o] = m;
        p->index[at + o] = best;
    }
}

/* Copies n elements; whether one is a NaN. */
static FC_INLINE int FC_FN(pool_copy)(REAL *y, const REAL *x, ptrdiff_t n) {
    MASK nan = v_lt(v_zero(), v_zero());
    FC_OVER_COLUMNS(n, const V v = FC_LOAD(x + c, m); nan = v_or(nan, v_isnan(v));
                    v_store_n(y + c, v, m);)
    return v_any(nan);
}

/* The same for windows that form a lattice without dilation, from padded rows: the window's first,
 * and those of the next d, `depth` apart. Beside each maximum runs its offset from the window's
 * first row and tap, as a REAL; the driver sees to it that these are exact. Where nothing wins (all
 * cells are -inf) it is the first cell in the plane. */
static FC_INLINE void FC_FN(pool_taps_index)(const fc_pool *p, const REAL *row, ptrdiff_t depth,
                                             const int stride, const ptrdiff_t taps, ptrdiff_t od,
                                             ptrdiff_t oh) {
    const ptrdiff_t H = p->in[1], W = p->in[2], d0 = p->start[0][od], h0 = p->start[1][oh];
    const ptrdiff_t at = (od * p->out[1] + oh) * p->out[2], base = (d0 * H + h0) * W - p->pad;
    REAL lane[VL];
    for (int k = 0; k < VL; k++) lane[k] = (REAL)(k * stride);
    const V ramp = v_load(lane);
    for (ptrdiff_t o = 0; o < p->out[2]; o += VL) {
        const ptrdiff_t n = p->out[2] - o < VL ? p->out[2] - o : VL;
        const V first = v_add(v_set1((REAL)(o * stride)), ramp);
        V m = v_set1(-INFINITY), best = v_max(v_sub(v_set1((REAL)p->pad), first), v_zero());
        const REAL *plane = row + o * stride;
        for (ptrdiff_t d = d0; d < p->stop[0][od]; d += p->step[0], plane += depth)
            for (ptrdiff_t h = h0; h < p->stop[1][oh]; h += p->step[1]) {
                const REAL *const from = plane + (h - h0) * p->width;
                V tap = v_set1((REAL)(((d - d0) * H + h - h0) * W));
#pragma GCC unroll 3
                for (ptrdiff_t t = 0; t < taps; t++) {
                    const V v = FC_FN(pool_load)(from + t, stride);
                    best = v_select(v_lt(m, v), tap, best);
                    m = v_max(v, m);
                    tap = v_add(tap, v_set1(1));
                }
            }
        v_store_n((REAL *)p->y + at + o, m, n);
        v_store_index(p->index + at + o, v_add(first, best), base, n);
    }
}

/* The same for rows [first, last) of windows. Those that may see a NaN are scanned. */
static FC_INLINE void FC_FN(pool_lattice_index)(const fc_pool *p, const int stride, ptrdiff_t od,
                                                ptrdiff_t first, ptrdiff_t last) {
    const ptrdiff_t h0 = p->start[1][first], rows = p->stop[1][last - 1] - h0;
    const REAL *const x = p->x;
    REAL *row = p->row;
    int nan = 0;
    for (ptrdiff_t d = p->start[0][od]; d < p->stop[0][od]; d += p->step[0])
        for (ptrdiff_t h = h0; h < h0 + rows; h++, row += p->width)
            nan |= FC_FN(pool_copy)(row + p->left, x + (d * p->in[1] + h) * p->in[2], p->in[2]);
    for (ptrdiff_t oh = first; oh < last; oh++) {
        row = (REAL *)p->row + (p->start[1][oh] - h0) * p->width;
        if (nan)
            FC_FN(pool_windows_index)(p, od, oh);
        else if (p->taps == 2)
            FC_FN(pool_taps_index)(p, row, rows * p->width, stride, 2, od, oh);
        else if (p->taps == 3)
            FC_FN(pool_taps_index)(p, row, rows * p->width, stride, 3, od, oh);
        else
            FC_FN(pool_taps_index)(p, row, rows * p->width, stride, p->taps, od, oh);
    }
}

/* The same for one window that is the whole plane, in one row. */
static void FC_FN(pool_whole_index)(const fc_pool *p) {
    const REAL *const x = p->x, m = FC_FN(row_max)(x, p->in[2]);
    ptrdiff_t best = 0;
    if (m == m) {
        while (x[best] != m) best++;
    } else {
        for (best = p->in[2] - 1; x[best] == x[best];) best--;
    }
    *(REAL *)p->y = x[best];
    *p->index = best;
}

static void FC_FN(pool_max)(const fc_pool *p) {
    if (p->planes) {
        if (p->index) /* constants: the loops are compiled for each */
            FC_FN(pool_together)(p, POOL_MAX, 1);
        else
            FC_FN(pool_together)(p, POOL_MAX, 0);
        return;
    }
    if (!p->index) {
        FC_FN(pool_plane)(p, POOL_MAX);
        return;
    }
    const ptrdiff_t windows = p->out[0] * p->out[1] * p->out[2],
                    cells = p->in[0] * p->in[1] * p->in[2];
    const ptrdiff_t n = p->stop[2][0] - p->start[2][0];
    if (windows == 1 && n == cells && p->step[2] == 1 && FC_FN(pool_one_row)(p, 0, 0)) {
        FC_FN(pool_whole_index)(p);
        return;
    }
    if (p->stride) FC_FN(pool_fill)(p, (REAL)-INFINITY, p->rows);
    for (ptrdiff_t od = 0; od < p->out[0]; od++)
        for (ptrdiff_t oh = 0; oh < p->out[1]; oh += p->block) {
            const ptrdiff_t last = p->out[1] - oh < p->block ? p->out[1] : oh + p->block;
            if (p->stride == 1)
                FC_FN(pool_lattice_index)(p, 1, od, oh, last);
            else if (p->stride == 2)
                FC_FN(pool_lattice_index)(p, 2, od, oh, last);
            else
                for (ptrdiff_t o = oh; o < last; o++) FC_FN(pool_windows_index)(p, od, o);
        }
}

#undef POOL_MAX
#undef POOL_SUM
#undef POOL_SHARES
#undef POOL_NV

/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pooling of planes x[d][h][w] into y[od][oh][ow] (see fc_pool for the windows).
 * A plane's results come in blocks of rows. First the rows of the windows of each are reduced by
 * vectors over the columns, into rows of scratch; then windows along w are, by vectors over the
 * outputs. One after the other, they would have the second loads wait for the first stores. The
 * rows of scratch are padded with the neutral element, so that every window has all its taps.
 * Where the windows along w form no lattice of stride 1 or 2, they are reduced by their tables, a
 * row in each lane, or, long ones and few rows, one by one.
 * Maximum: the first one wins, a NaN wins over everything, the last NaN over the others (torch's
 * rule `value > max or isnan(value)`). Only zeros and NaNs show which one won: in blocks that may
 * hold several of these windows are searched again.
 * A window without cells (dilation can step over a short axis) is -inf, at index 0.
 */
#define POOL_MAX 0
#define POOL_PLAIN 1  /* the maximum of cells of which none is a NaN or -0 */
#define POOL_SUM 2    /* over the divisor */
#define POOL_ADD 3    /* of the windows' shares x/divisor, for the gradient: x holds them */
#define POOL_SHARES 4 /* likewise, but they are computed each time */
#define POOL_NV 4     /* vectors of a row that go through its window's rows together */

static FC_INLINE V FC_FN(pool_fold)(int op, V acc, V v) {
    return op == POOL_MAX     ? FC_FN(larger)(v, acc)
           : op == POOL_PLAIN ? v_max(v, acc)
                              : v_add(acc, v);
}

static FC_INLINE REAL FC_FN(pool_neutral)(int op) { return op <= POOL_PLAIN ? (REAL)-INFINITY : 0; }

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

/* Stores n results, or a whole vector: what it spills is overwritten in its turn, by the results
 * that follow up to `end`. */
static FC_INLINE void FC_FN(pool_store)(REAL *y, V v, ptrdiff_t n, const REAL *end) {
    if (end - y >= VL)
        v_store(y, v);
    else
        v_store_n(y, v, n < VL ? n : VL);
}

/* ---- rows of windows. Below, x is row (d, h) of a plane, the next d is `depth` from it, and a
 * cell has `unit` REALs: one, or the VL of as many planes that lie in the lanes. */

/* row[w..] = a window's rows reduced, for n <= nv*VL columns. */
static FC_INLINE void FC_FN(pool_columns)(const fc_pool *p, int op, const REAL *x, ptrdiff_t depth,
                                          ptrdiff_t apart, ptrdiff_t od, ptrdiff_t oh, REAL *row,
                                          ptrdiff_t w, int nv, ptrdiff_t n) {
    const ptrdiff_t d0 = p->start[0][od], h0 = p->start[1][oh];
    const ptrdiff_t d1 = p->stop[0][od], h1 = p->stop[1][oh];
    const ptrdiff_t d_step = p->step[0], h_step = p->step[1];
    V acc[POOL_NV];
#pragma GCC unroll 4
    for (int k = 0; k < nv; k++) acc[k] = v_set1(FC_FN(pool_neutral)(op));
    for (ptrdiff_t d = d0; d < d1; d += d_step)
        for (ptrdiff_t h = h0; h < h1; h += h_step) {
            const REAL *const from = x + (d - d0) * depth + (h - h0) * apart + w;
            const REAL divisor = FC_FN(pool_divisor)(p, op == POOL_SHARES, d, h);
#pragma GCC unroll 4
            for (int k = 0; k < nv; k++) {
                V v = n < VL ? v_load_n(from, n) : v_load(from + k * VL);
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

/* A vector of `taps` rows, `apart` from each other, of n columns. */
static FC_INLINE V FC_FN(pool_few)(int op, const int taps, const REAL *x, ptrdiff_t apart,
                                   ptrdiff_t n) {
    V acc = FC_LOAD(x, n);
    if (op > POOL_PLAIN) acc = v_add(v_zero(), acc); /* a sum of -0 is 0 */
#pragma GCC unroll 3
    for (int r = 1; r < taps; r++) acc = FC_FN(pool_fold)(op, acc, FC_LOAD(x + r * apart, n));
    return acc;
}

/* n rows of windows that begin x_step from each other. The last vector of a row overlaps its
 * neighbour; the rest of one that is less than a vector becomes neutral. */
static FC_INLINE void FC_FN(pool_run)(int op, const int taps, const REAL *x, ptrdiff_t x_step,
                                      ptrdiff_t apart, ptrdiff_t W, ptrdiff_t n, REAL *row,
                                      ptrdiff_t width) {
    if (W < VL) {
        REAL ramp[VL];
        for (int i = 0; i < VL; i++) ramp[i] = (REAL)i;
        const MASK inside = v_lt(v_load(ramp), v_set1((REAL)W));
        const V neutral = v_set1(FC_FN(pool_neutral)(op));
        for (; n > 0; n--, x += x_step, row += width)
            v_store(row, v_select(inside, FC_FN(pool_few)(op, taps, x, apart, W), neutral));
        return;
    }
    for (; n > 0; n--, x += x_step, row += width) {
        for (ptrdiff_t w = 0; w < W - VL; w += VL)
            v_store(row + w, FC_FN(pool_few)(op, taps, x + w, apart, VL));
        v_store(row + W - VL, FC_FN(pool_few)(op, taps, x + W - VL, apart, VL));
    }
}

/* Whether row oh of dx is the same as the one before it. A copy takes less time at any length. */
static FC_INLINE int FC_FN(pool_repeats)(const fc_pool *p, ptrdiff_t oh) {
    const ptrdiff_t *const start = p->start[1] + oh, *const stop = p->stop[1] + oh;
    return start[0] == start[-1] && stop[0] == stop[-1];
}

/* Rows [first, last) of windows reduced into rows of scratch, few taps as constants. x is row h.
 * Neighbours of the same phase are often alike, and are a run; those that repeat are left out. */
static FC_INLINE void FC_FN(pool_rows)(const fc_pool *p, int op, const ptrdiff_t unit,
                                       const REAL *x, ptrdiff_t depth, ptrdiff_t h, ptrdiff_t od,
                                       ptrdiff_t first, ptrdiff_t last, REAL *rows) {
    const ptrdiff_t W = p->in[2] * unit, width = p->width * unit, step = p->step[1];
    const ptrdiff_t *const start = p->start[1], *const stop = p->stop[1];
    const ptrdiff_t phases = op >= POOL_ADD && p->stride == 2 ? 2 : 1, pitch = phases * width;
    const int flat = op != POOL_SHARES && p->stop[0][od] - p->start[0][od] == 1;
    for (ptrdiff_t i = 0; i < phases; i++)
        for (ptrdiff_t oh = first + i, n = 1; oh < last; oh += n * phases) {
            const REAL *const from = x + (start[oh] - h) * W;
            REAL *const row = rows + (oh - first) * width + p->left * unit;
            const ptrdiff_t reach = stop[oh] - start[oh];
            const ptrdiff_t apart = reach > step ? step * W : 0; /* else it may lead far away */
            n = 1;
            if (phases > 1 && oh > first && FC_FN(pool_repeats)(p, oh)) continue;
            if (flat && reach > 0 && (reach <= step || reach - step <= 2 * step)) {
                ptrdiff_t next = oh + phases, away = 0;
                if (next < last) away = start[next] - start[oh];
                for (; next < last && start[next] - start[next - phases] == away &&
                       stop[next] - start[next] == reach;
                     next += phases)
                    n++;
                if (reach <= step)
                    FC_FN(pool_run)(op, 1, from, away * W, 0, W, n, row, pitch);
                else if (reach - step <= step)
                    FC_FN(pool_run)(op, 2, from, away * W, apart, W, n, row, pitch);
                else
                    FC_FN(pool_run)(op, 3, from, away * W, apart, W, n, row, pitch);
                continue;
            }
            ptrdiff_t w = 0;
            for (; w + POOL_NV * VL <= W; w += POOL_NV * VL)
                FC_FN(pool_columns)(p, op, from, depth, W, od, oh, row, w, POOL_NV, POOL_NV * VL);
            for (; w + VL <= W; w += VL)
                FC_FN(pool_columns)(p, op, from, depth, W, od, oh, row, w, 1, VL);
            if (w < W) FC_FN(pool_columns)(p, op, from, depth, W, od, oh, row, w, 1, W - w);
        }
}

/* ---- windows of rows of scratch */

/* The one that wins of the cells equal to m, or of the NaNs where m is one. */
static REAL FC_FN(pool_winner)(const fc_pool *p, const REAL *plane, ptrdiff_t od, ptrdiff_t oh,
                               ptrdiff_t o, REAL m) {
    for (ptrdiff_t d = p->start[0][od]; d < p->stop[0][od]; d += p->step[0])
        for (ptrdiff_t h = p->start[1][oh]; h < p->stop[1][oh]; h += p->step[1])
            for (ptrdiff_t w = p->start[2][o]; w < p->stop[2][o]; w += p->step[2]) {
                const REAL v = plane[(d * p->in[1] + h) * p->in[2] + w];
                if (v == m) return v;
                if (v != v) m = v;
            }
    return m;
}

static FC_INLINE V FC_FN(pool_load)(const REAL *p, ptrdiff_t stride) {
    return stride == 1 ? v_load(p) : FC_FN(load_even)(p, 2 * VL - 1);
}

/* n rows y[o] = the taps of each window o, which lie in rows `width` from each other. Whether y may
 * hold a NaN or -0. */
static FC_INLINE int FC_FN(pool_taps)(const fc_pool *p, int op, const ptrdiff_t unit,
                                      const ptrdiff_t stride, const ptrdiff_t taps, const REAL *row,
                                      ptrdiff_t n, ptrdiff_t od, ptrdiff_t oh, REAL *y,
                                      const REAL *end) {
    const ptrdiff_t out = p->out[2] * unit, step = p->step[2] * unit, width = p->width * unit;
    const REAL *const each = p->divisor_w;
    MASK unsure = v_lt(v_zero(), v_zero());
    for (ptrdiff_t i = 0; i < n; i++, row += width, y += out) {
        const V divisor = v_set1(FC_FN(pool_divisor)(p, op == POOL_SUM, od, oh + i));
        for (ptrdiff_t o = 0; o < out; o += VL) {
            const REAL *const from = row + o * stride;
            const ptrdiff_t load = unit == 1 ? stride : 1;
            V acc = FC_FN(pool_load)(from, load);
#pragma GCC unroll 2
            for (ptrdiff_t t = 1; t < taps; t++) {
                const V v = FC_FN(pool_load)(from + t * step, load);
                acc = op == POOL_MAX ? v_max_either(acc, v) : FC_FN(pool_fold)(op, acc, v);
            }
            if (op == POOL_MAX) unsure = v_or(unsure, v_or(v_isnan(acc), v_isminus0(acc)));
            if (op == POOL_SUM && unit > 1)
                acc = v_div(acc, v_mul(divisor, v_set1(each[o / VL])));
            else if (op == POOL_SUM)
                acc = v_div(acc, v_mul(divisor, out - o < VL ? v_load_n(each + o, out - o)
                                                             : v_load(each + o)));
            FC_FN(pool_store)(y + o, acc, out - o, end);
        }
    }
    return op == POOL_MAX && v_any(unsure);
}

/* The gradient of a row of windows that form a lattice. Cell w = stride*j + r is tap t + stride*k
 * of window o - k, where o*stride + t = w + pad and t < stride: o = j + (pad + r - t)/stride. `odd`
 * is pad % stride, so r = t ^ odd. */
static FC_INLINE void FC_FN(pool_phases)(const fc_pool *p, const ptrdiff_t unit,
                                         const ptrdiff_t stride, const int odd,
                                         const ptrdiff_t taps, const REAL *row, REAL *dx,
                                         const REAL *end) {
    const ptrdiff_t cells = p->out[2] * unit;
    const REAL *from[2];
#pragma GCC unroll 2
    for (int r = 0; r < stride; r++) from[r] = row + (p->left + (p->pad + r) / stride) * unit;
    for (ptrdiff_t j = 0; j * stride < cells; j += VL) {
        V cell[2];
#pragma GCC unroll 2
        for (int r = 0; r < stride; r++) {
            const ptrdiff_t t = r ^ odd, first = (taps - 1 - t) / stride;
            cell[r] = t < taps ? v_load(from[r] + j - first * unit) : v_zero();
            for (ptrdiff_t k = first - 1; t < taps && k >= 0; k--)
                cell[r] = v_add(cell[r], v_load(from[r] + j - k * unit));
        }
        if (stride > 1 && unit == 1) v_zip(cell[0], cell[1], &cell[0], &cell[1]);
#pragma GCC unroll 2
        for (int r = 0; r < stride; r++) {
            const ptrdiff_t w = j * stride + r * VL;
            if (!end)
                v_store(dx + w, cell[r]);
            else if (w < cells)
                FC_FN(pool_store)(dx + w, cell[r], cells - w, end);
        }
    }
}

/* n rows, which lie `width` from each other. Where all that whole vectors spill is before `end`
 * they need not look. */
static FC_INLINE void FC_FN(pool_phases_rows)(const fc_pool *p, const ptrdiff_t unit,
                                              const ptrdiff_t stride, const ptrdiff_t taps,
                                              const REAL *row, ptrdiff_t n, ptrdiff_t oh, REAL *dx,
                                              const REAL *end) {
    const ptrdiff_t cells = p->out[2] * unit, width = p->width * unit;
    const int odd = (int)(p->pad % stride);
    for (ptrdiff_t i = 0; i < n; i++, row += width, dx += cells) {
        if (stride > 1 && i > 0 && FC_FN(pool_repeats)(p, oh + i)) {
            memcpy(dx, dx - cells, (size_t)cells * sizeof(REAL));
            continue;
        }
        const REAL *const near = end - dx >= cells + 2 * VL ? NULL : end;
        if (odd && near)
            FC_FN(pool_phases)(p, unit, stride, stride > 1, taps, row, dx, near);
        else if (odd)
            FC_FN(pool_phases)(p, unit, stride, stride > 1, taps, row, dx, NULL);
        else if (near)
            FC_FN(pool_phases)(p, unit, stride, 0, taps, row, dx, near);
        else
            FC_FN(pool_phases)(p, unit, stride, 0, taps, row, dx, NULL);
    }
}

/* Either one. */
static FC_INLINE int FC_FN(pool_slide)(const fc_pool *p, int op, const ptrdiff_t unit,
                                       const ptrdiff_t stride, const ptrdiff_t taps,
                                       const REAL *row, ptrdiff_t n, ptrdiff_t od, ptrdiff_t oh,
                                       REAL *y, const REAL *end) {
    if (op < POOL_ADD) return FC_FN(pool_taps)(p, op, unit, stride, taps, row, n, od, oh, y, end);
    FC_FN(pool_phases_rows)(p, unit, stride, taps, row, n, oh, y, end);
    return 0;
}

/* Common numbers of taps as constants. */
static FC_INLINE int FC_FN(pool_lattice)(const fc_pool *p, int op, const ptrdiff_t unit,
                                         const ptrdiff_t stride, const REAL *row, ptrdiff_t n,
                                         ptrdiff_t od, ptrdiff_t oh, REAL *y, const REAL *end) {
    if (p->taps == 2) return FC_FN(pool_slide)(p, op, unit, stride, 2, row, n, od, oh, y, end);
    if (p->taps == 3) return FC_FN(pool_slide)(p, op, unit, stride, 3, row, n, od, oh, y, end);
    return FC_FN(pool_slide)(p, op, unit, stride, p->taps, row, n, od, oh, y, end);
}

/* A row of windows by the tables; it is not padded. Equal neighbours are computed once and stored
 * together: the gradient of pooling without overlap is made of them. */
static FC_INLINE int FC_FN(pool_windows)(const fc_pool *p, int op, const REAL *row, REAL *y,
                                         REAL divisor) {
    const ptrdiff_t *const start = p->start[2], *const stop = p->stop[2];
    int unsure = 0;
    REAL m = 0;
    for (ptrdiff_t o = 0; o < p->out[2]; o++) {
        const ptrdiff_t n = stop[o] - start[o];
        if (o == 0 || start[o] != start[o - 1] || stop[o] != stop[o - 1]) {
            if (n >= VL && p->step[2] == 1) {
                m = op <= POOL_PLAIN ? FC_FN(row_max)(row + start[o], n)
                                     : (REAL)FC_FN(sum)(row + start[o], n);
            } else {
                m = FC_FN(pool_neutral)(op);
                for (ptrdiff_t w = start[o]; w < stop[o]; w += p->step[2])
                    m = op > POOL_PLAIN ? m + row[w] : row[w] > m || row[w] != row[w] ? row[w] : m;
            }
            unsure |= m != m || m == 0;
        }
        const ptrdiff_t last = o + VL - 1;
        if (op >= POOL_ADD && last < p->out[2] && start[last] == start[o] &&
            stop[last] == stop[o]) {
            v_store(y + o, v_set1(m));
            o = last;
            continue;
        }
        y[o] = op == POOL_SUM ? m / (divisor * ((const REAL *)p->divisor_w)[o]) : m;
    }
    return unsure;
}

/* The same for a row of vectors, each of one cell of several rows. */
static FC_INLINE void FC_FN(pool_tables)(const fc_pool *p, int op, const REAL *row, V divisor,
                                         REAL *y) {
    const ptrdiff_t *const start = p->start[2], *const stop = p->stop[2];
    const ptrdiff_t out = p->out[2], step = p->step[2] * VL;
    const REAL *const each = p->divisor_w;
    for (ptrdiff_t o = 0; o < out; o++, y += VL) {
        V acc = v_set1(FC_FN(pool_neutral)(op));
        for (ptrdiff_t c = start[o] * VL; c < stop[o] * VL; c += step)
            acc = FC_FN(pool_fold)(op, acc, v_load(row + c));
        if (op == POOL_SUM) acc = v_div(acc, v_mul(divisor, v_set1(each[o])));
        v_store(y, acc);
    }
}

/* The same for n <= VL rows, whose cells become vectors on the way. */
static FC_INLINE void FC_FN(pool_turned)(const fc_pool *p, int op, const REAL *rows, ptrdiff_t n,
                                         ptrdiff_t od, ptrdiff_t oh, REAL *y, REAL *scratch) {
    const ptrdiff_t W = p->in[2], out = p->out[2];
    REAL *const results = scratch + W * VL;
    REAL divisors[VL];
    for (ptrdiff_t i = 0; i < VL; i++)
        divisors[i] = i < n ? FC_FN(pool_divisor)(p, op == POOL_SUM, od, oh + i) : 1;
    FC_FN(transpose)(scratch, VL, rows, p->width, n, W, VL);
    FC_FN(pool_tables)(p, op, scratch, v_load(divisors), results);
    FC_FN(transpose)(y, out, results, VL, out, n, out);
}

/* ---- blocks */

static inline int FC_FN(pool_one_row)(const fc_pool *p, ptrdiff_t od, ptrdiff_t oh) {
    return p->stop[0][od] - p->start[0][od] == 1 && p->stop[1][oh] - p->start[1][oh] == 1;
}

/* Rows [first, last) of windows od. x is row h of the first d, or what replaces it. Of maxima,
 * whether they may hold a NaN or -0. Each op and unit is a function, so that its loops have all
 * registers. */
static FC_INLINE int FC_FN(pool_block)(const fc_pool *p, int op, const ptrdiff_t unit,
                                       const REAL *x, ptrdiff_t depth, ptrdiff_t h, ptrdiff_t od,
                                       ptrdiff_t first, ptrdiff_t last, REAL *y, const REAL *end) {
    const ptrdiff_t n = last - first, out = p->out[2] * unit, width = p->width * unit;
    REAL *const row = p->row;
    int unsure = 0;
    if (unit == 1 && !p->stride && op < POOL_ADD && n == 1 && FC_FN(pool_one_row)(p, od, first))
        return FC_FN(pool_windows)(p, op, x, y, FC_FN(pool_divisor)(p, op == POOL_SUM, od, first));
    for (ptrdiff_t oh = first; unit > 1 && !p->stride && oh < last; oh++, y += out) {
        const REAL *from = x + (p->start[1][oh] - h) * p->in[2] * unit;
        if (op >= POOL_ADD && oh > first && FC_FN(pool_repeats)(p, oh)) {
            memcpy(y, y - out, (size_t)out * sizeof(REAL));
            continue;
        }
        if (op < POOL_ADD || !FC_FN(pool_one_row)(p, od, oh)) {
            FC_FN(pool_rows)(p, op, unit, x, depth, h, od, oh, oh + 1, row);
            from = row;
        }
        FC_FN(pool_tables)(p, op, from, v_set1(FC_FN(pool_divisor)(p, op == POOL_SUM, od, oh)), y);
    }
    if (unit > 1 && !p->stride) return 0;
    FC_FN(pool_rows)(p, op, unit, x, depth, h, od, first, last, row);
    if (p->stride == 1) return FC_FN(pool_lattice)(p, op, unit, 1, row, n, od, first, y, end);
    if (p->stride == 2) return FC_FN(pool_lattice)(p, op, unit, 2, row, n, od, first, y, end);
    for (ptrdiff_t i = 0; i < n; i++, y += out) {
        const REAL divisor = FC_FN(pool_divisor)(p, op == POOL_SUM, od, first + i);
        if (p->lanes && op != POOL_MAX && n >= VL / 2) {
            const ptrdiff_t some = n - i < VL ? n - i : VL;
            FC_FN(pool_turned)(p, op, row + i * width, some, od, first + i, y,
                               row + n * width + VL);
            i += some - 1;
            y += (some - 1) * out;
        } else {
            unsure |= FC_FN(pool_windows)(p, op, row + i * width, y, divisor);
        }
    }
    return unsure;
}

#define FC_POOL_BLOCK(name, op, unit) \
    static FC_NOINLINE int FC_FN(name)(const fc_pool *p, const REAL *x, ptrdiff_t depth, \
                                       ptrdiff_t h, ptrdiff_t od, ptrdiff_t first, ptrdiff_t last, \
                                       REAL *y, const REAL *end) { \
        return FC_FN(pool_block)(p, op, unit, x, depth, h, od, first, last, y, end); \
    }
FC_POOL_BLOCK(pool_block_max, POOL_MAX, 1)
FC_POOL_BLOCK(pool_block_plain, POOL_PLAIN, 1)
FC_POOL_BLOCK(pool_block_sum, POOL_SUM, 1)
FC_POOL_BLOCK(pool_block_add, POOL_ADD, 1)
FC_POOL_BLOCK(pool_block_shares, POOL_SHARES, 1)
FC_POOL_BLOCK(pool_lanes_plain, POOL_PLAIN, VL)
FC_POOL_BLOCK(pool_lanes_sum, POOL_SUM, VL)
FC_POOL_BLOCK(pool_lanes_add, POOL_ADD, VL)
#undef FC_POOL_BLOCK

/* Whether no element is a NaN or -0, so that v_max is all there is to a maximum in any order. It
 * also says no to infinities. Copies them, unless `to` is NULL. */
static FC_INLINE int FC_FN(pool_plain)(const REAL *x, ptrdiff_t n, REAL *to) {
    V sum[FC_TOGETHER] = {v_zero(), v_zero(), v_zero(), v_zero()};
    MASK minus0 = v_lt(v_zero(), v_zero());
    FC_OVER_GROUPS(
        n, V v[FC_TOGETHER]; FC_EACH v[k] = FC_LOAD(x + c + k * VL, m);
        FC_EACH sum[k] = v_fma(v[k], v_zero(), sum[k]); /* not 0 once one is not finite */
        FC_EACH minus0 = v_or(minus0, v_isminus0(v[k]));
        if (to) FC_EACH v_store_n(to + c + k * VL, v[k], m);)
    return !v_any(v_or(minus0, v_isnan(v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3])))));
}

/* Shares of the rows that the windows of a block reach over. */
static FC_INLINE void FC_FN(pool_shares)(const fc_pool *p, const REAL *x, REAL *to, ptrdiff_t d,
                                         ptrdiff_t h, ptrdiff_t rows) {
    const ptrdiff_t W = p->in[2];
    for (ptrdiff_t r = 0; r < rows; r++, x += W, to += W) {
        const REAL divisor = FC_FN(pool_divisor)(p, 1, d, h + r);
        for (ptrdiff_t w = 0; w < W; w += VL) {
            const ptrdiff_t n = W - w < VL ? W - w : VL;
            v_store(to + w, FC_FN(pool_divide)(p, FC_LOAD(x + w, n), divisor, w, n));
        }
    }
}

/* Of cells that are vectors, in place. */
static FC_INLINE void FC_FN(pool_lanes_shares)(const fc_pool *p, REAL *x) {
    const ptrdiff_t D = p->in[0], H = p->in[1], W = p->in[2];
    const REAL *const each = p->divisor_w;
    for (ptrdiff_t row = 0; row < D * H; row++) {
        const V divisor = v_set1(FC_FN(pool_divisor)(p, 1, row / H, row % H));
        for (ptrdiff_t w = 0; w < W; w++, x += VL)
            v_store(x, v_div(v_load(x), v_mul(divisor, v_set1(each[w]))));
    }
}

/* The scratch begins as neutral; what no input reaches stays as it is. */
static void FC_FN(pool_fill)(const fc_pool *p, int op, ptrdiff_t rows) {
    const V neutral = v_set1(FC_FN(pool_neutral)(op));
    FC_OVER_COLUMNS(rows * p->width, v_store_n((REAL *)p->row + c, neutral, m);)
}

/* Asks for the next block while this one, which was read first, is computed. */
static FC_INLINE void FC_FN(pool_ask)(const REAL *x, const REAL *x_end, const REAL *y,
                                      const REAL *y_end) {
    const ptrdiff_t line = FC_CACHE_LINE / (ptrdiff_t)sizeof(REAL);
    for (; x < x_end; x += line) FC_PREFETCH_READ(x);
    for (; y < y_end; y += line) FC_PREFETCH(y);
}

/* One plane; op is POOL_MAX, POOL_SUM or POOL_SHARES. */
static FC_INLINE void FC_FN(pool_plane)(const fc_pool *p, int op, const REAL *plane, REAL *y,
                                        const REAL *end) {
    const ptrdiff_t H = p->in[1], W = p->in[2], D = H * W, block = p->block;
    REAL *const shares = (REAL *)p->row + block * p->width + VL;
    for (ptrdiff_t od = 0; od < p->out[0]; od++)
        for (ptrdiff_t oh = 0; oh < p->out[1]; oh += block) {
            const ptrdiff_t last = p->out[1] - oh < block ? p->out[1] : oh + block;
            const ptrdiff_t d0 = p->start[0][od], d1 = p->stop[0][od];
            const ptrdiff_t h = p->start[1][oh], n = p->stop[1][last - 1] - h;
            const REAL *const x = plane + d0 * D + h * W;
            int plain = 1;
            for (ptrdiff_t d = d0; op == POOL_MAX && plain && d < d1; d += p->step[0])
                plain = FC_FN(pool_plain)(plane + d * D + h * W, n * W, NULL);
            for (ptrdiff_t d = d0; op == POOL_SHARES && p->rows && d < d1; d++)
                FC_FN(pool_shares)(p, plane + d * D + h * W, shares + (d - d0) * n * W, d, h, n);
            const ptrdiff_t results = (last - oh) * p->out[2];
            if (n > 0 && end - y > 2 * results) /* windows in the padding alone read nothing */
                FC_FN(pool_ask)(x + n * W, x + 2 * n * W, y + results, y + 2 * results);
            if (op == POOL_SUM) {
                FC_FN(pool_block_sum)(p, x, D, h, od, oh, last, y, end);
            } else if (op == POOL_SHARES && p->rows) {
                FC_FN(pool_block_add)(p, shares, n * W, h, od, oh, last, y, end);
            } else if (op == POOL_SHARES) {
                FC_FN(pool_block_shares)(p, x, D, h, od, oh, last, y, end);
            } else if (plain) {
                FC_FN(pool_block_plain)(p, x, D, h, od, oh, last, y, end);
            } else if (FC_FN(pool_block_max)(p, x, D, h, od, oh, last, y, end)) {
                const ptrdiff_t out = p->out[2];
                for (ptrdiff_t i = 0; i < (last - oh) * out; i++)
                    if (y[i] != y[i] || y[i] == 0)
                        y[i] = FC_FN(pool_winner)(p, plane, od, oh + i / out, i % out, y[i]);
            }
            y += results;
        }
}

/* n <= VL small planes, whose cells become vectors on the way; op is POOL_PLAIN, POOL_SUM or
 * POOL_SHARES. */
static FC_INLINE void FC_FN(pool_lanes)(const fc_pool *p, int op, const REAL *planes, ptrdiff_t n,
                                        REAL *to) {
    const ptrdiff_t H = p->in[1], W = p->in[2], D = H * W * VL, cells = p->in[0] * H * W;
    const ptrdiff_t rows = p->out[1], windows = p->out[0] * rows * p->out[2];
    REAL *const x = (REAL *)p->row + p->block * p->width * VL, *y = x + cells * VL;
    const REAL *const end = y + windows * VL;
    FC_FN(transpose)(x, VL, planes, cells, n, cells, VL);
    if (op == POOL_SHARES) FC_FN(pool_lanes_shares)(p, x);
    for (ptrdiff_t od = 0; od < p->out[0]; od++)
        for (ptrdiff_t oh = 0; oh < rows; oh += p->block) {
            const ptrdiff_t last = rows - oh < p->block ? rows : oh + p->block;
            const REAL *const from = x + p->start[0][od] * D;
            if (op == POOL_PLAIN)
                FC_FN(pool_lanes_plain)(p, from, D, 0, od, oh, last, y, end);
            else if (op == POOL_SUM)
                FC_FN(pool_lanes_sum)(p, from, D, 0, od, oh, last, y, end);
            else
                FC_FN(pool_lanes_add)(p, from, D, 0, od, oh, last, y, end);
            y += (last - oh) * p->out[2] * VL;
        }
    FC_FN(transpose)(to, windows, end - windows * VL, VL, windows, n, windows);
}

/* ---- planes with a window for each cell, as one array: what a window lacks at the edges of a
 * plane lies in its neighbours, and is masked. */

/* to[i] = x[i + (t - before)*apart] over the taps t that tables have for it; i < n. */
static FC_INLINE void FC_FN(pool_masked)(int op, const REAL *x, ptrdiff_t apart,
                                         const ptrdiff_t before, const ptrdiff_t taps,
                                         const REAL *table, ptrdiff_t row, const REAL *divisor,
                                         ptrdiff_t cells, ptrdiff_t n, REAL *to, const REAL *end) {
    const V neutral = v_set1(FC_FN(pool_neutral)(op));
    for (ptrdiff_t i = 0, cell = 0; i < n; i += VL) {
        const REAL *from = x + i - before * apart, *inside = table + cell;
        V acc = neutral;
#pragma GCC unroll 5
        for (ptrdiff_t t = 0; t < taps; t++, from += apart, inside += row) {
            V v = v_load(from);
            if (t != before) v = v_select(v_lt(v_zero(), v_load(inside)), v, neutral);
            acc = op <= POOL_PLAIN && t == 0 ? v : FC_FN(pool_fold)(op, acc, v);
        }
        if (op == POOL_SUM && divisor) acc = v_div(acc, v_load(divisor + cell));
        FC_FN(pool_store)(to + i, acc, n - i, end);
        for (cell += VL; cell >= cells;) cell -= cells;
    }
}

/* Common windows as constants. */
static FC_INLINE void FC_FN(pool_masked_taps)(int op, const REAL *x, ptrdiff_t apart,
                                              const ptrdiff_t before, const ptrdiff_t taps,
                                              const REAL *table, ptrdiff_t row, const REAL *divisor,
                                              ptrdiff_t cells, ptrdiff_t n, REAL *to,
                                              const REAL *end) {
    if (taps == 3 && before == 1)
        FC_FN(pool_masked)(op, x, apart, 1, 3, table, row, divisor, cells, n, to, end);
    else if (taps == 5 && before == 2)
        FC_FN(pool_masked)(op, x, apart, 2, 5, table, row, divisor, cells, n, to, end);
    else
        FC_FN(pool_masked)(op, x, apart, before, taps, table, row, divisor, cells, n, to, end);
}

/* n cells of whole planes. Whether it could: of maxima only plain ones. */
static FC_INLINE int FC_FN(pool_flat)(const fc_pool *p, int op, const REAL *x, ptrdiff_t n, REAL *y,
                                      const REAL *end) {
    const ptrdiff_t W = p->in[2], cells = p->in[1] * W, row = cells + FC_LANES_MAX;
    const REAL *const table = p->inside, *const divisor = table;
    const REAL *const h_table = divisor + row, *const w_table = h_table + p->reach[0] * row;
    REAL *const copy = (REAL *)p->row + p->before[0] * W;
    REAL *const rows = copy + n + p->reach[0] * W + p->before[1] + VL;
    if (op == POOL_PLAIN) {
        if (!FC_FN(pool_plain)(x, n, copy)) return 0;
    } else if (op == POOL_ADD) {
        for (ptrdiff_t i = 0, cell = 0; i < n; i += VL) {
            const V v = n - i < VL ? v_load_n(x + i, n - i) : v_load(x + i);
            v_store(copy + i, v_div(v, v_load(divisor + cell)));
            for (cell += VL; cell >= cells;) cell -= cells;
        }
    } else {
        memcpy(copy, x, (size_t)n * sizeof(REAL));
    }
    FC_FN(pool_masked_taps)(op, copy, W, p->before[0], p->reach[0], h_table, row, NULL, cells, n,
                            rows, rows + n + VL);
    FC_FN(pool_masked_taps)(op, rows, 1, p->before[1], p->reach[1], w_table, row, divisor, cells, n,
                            y, end);
    return 1;
}

#define FC_POOL_FLAT(name, op) \
    static FC_NOINLINE int FC_FN(name)(const fc_pool *p, const REAL *x, ptrdiff_t n, REAL *y, \
                                       const REAL *end) { \
        return FC_FN(pool_flat)(p, op, x, n, y, end); \
    }
FC_POOL_FLAT(pool_flat_plain, POOL_PLAIN)
FC_POOL_FLAT(pool_flat_sum, POOL_SUM)
FC_POOL_FLAT(pool_flat_add, POOL_ADD)
#undef FC_POOL_FLAT

/* All planes; op is POOL_MAX, POOL_SUM or POOL_SHARES. */
static FC_INLINE void FC_FN(pool_planes)(const fc_pool *p, int op) {
    const ptrdiff_t cells = p->in[0] * p->in[1] * p->in[2];
    const ptrdiff_t windows = p->out[0] * p->out[1] * p->out[2];
    const ptrdiff_t step = p->flat ? p->flat : p->together ? VL : 1;
    const REAL *const end = (const REAL *)p->y + p->planes * windows;
    int filled = 0; /* for rows of vectors, or of single cells */
    for (ptrdiff_t i = 0; i < p->planes; i += step) {
        const ptrdiff_t n = p->planes - i < step ? p->planes - i : step;
        const REAL *const x = (const REAL *)p->x + i * cells;
        REAL *const y = (REAL *)p->y + i * windows;
        if (p->flat) {
            filled = 0;
            if (op == POOL_SUM      ? FC_FN(pool_flat_sum)(p, x, n * cells, y, end)
                : op == POOL_SHARES ? FC_FN(pool_flat_add)(p, x, n * cells, y, end)
                                    : FC_FN(pool_flat_plain)(p, x, n * cells, y, end))
                continue;
        }
        const int lanes = p->together && (op != POOL_MAX || FC_FN(pool_plain)(x, n * cells, NULL));
        if (p->stride && filled != 1 + lanes)
            FC_FN(pool_fill)(p, op, lanes ? p->block * VL : p->block);
        filled = 1 + lanes;
        if (lanes)
            FC_FN(pool_lanes)(p, op == POOL_MAX ? POOL_PLAIN : op, x, n, y);
        else
            for (ptrdiff_t k = 0; k < n; k++)
                FC_FN(pool_plane)(p, op, x + k * cells, y + k * windows, end);
    }
}

/* ---- maxima with their indices */

/* Maxima of planes that lie in the lanes, window by window. Beside a maximum runs the index of its
 * cell, as a REAL. */
static FC_INLINE void FC_FN(pool_lanes_max)(const fc_pool *p, int plain, const REAL *x, REAL *y,
                                            REAL *at) {
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
                v_store(at, best);
            }
}

/* The windows of up to VL small planes by their tables; a vector is one cell of each. */
static FC_INLINE void FC_FN(pool_together)(const fc_pool *p, const REAL *planes, ptrdiff_t n,
                                           REAL *to, int64_t *index) {
    const ptrdiff_t cells = p->in[0] * p->in[1] * p->in[2];
    const ptrdiff_t windows = p->out[0] * p->out[1] * p->out[2];
    REAL *const x = p->row, *const y = x + cells * VL, *const at = y + windows * VL;
    FC_FN(transpose)(x, VL, planes, cells, n, cells, VL);
    if (FC_FN(pool_plain)(planes, n * cells, NULL))
        FC_FN(pool_lanes_max)(p, 1, x, y, at);
    else
        FC_FN(pool_lanes_max)(p, 0, x, y, at);
    FC_FN(transpose)(to, windows, y, VL, windows, n, windows);
    FC_FN(transpose)(y, windows, at, VL, windows, n, windows);
    FC_OVER_COLUMNS(n * windows, v_store_index(index + c, FC_LOAD(y + c, m), 0, m);)
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

static void FC_FN(pool_avg)(const fc_pool *p) { FC_FN(pool_planes)(p, POOL_SUM); }

/* The adjoint of pool_avg is a sum of shares dy/divisor over tables that hold for each cell of dx
 * the windows it lies in. */
static void FC_FN(pool_avg_backward)(const fc_pool *p) { FC_FN(pool_planes)(p, POOL_SHARES); }

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

/* One plane. */
static void FC_FN(pool_index)(const fc_pool *p) {
    const ptrdiff_t windows = p->out[0] * p->out[1] * p->out[2],
                    cells = p->in[0] * p->in[1] * p->in[2];
    const ptrdiff_t n = p->stop[2][0] - p->start[2][0];
    if (windows == 1 && n == cells && p->step[2] == 1 && FC_FN(pool_one_row)(p, 0, 0)) {
        FC_FN(pool_whole_index)(p);
        return;
    }
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

/* ---- 2x2 windows with a stride of 2, straight from the planes: two rows of x are reduced by
 * vectors over the columns, whose even and odd ones then meet. A vector of results is of one row of
 * windows or, where rows of x are at most a vector, of two. */
#ifdef v_pick
#define POOL_INDEX 5 /* the maximum with its index */

/* at[i] = 2*i + odd for i < n, then VL + 2*(i - n) + odd */
static FC_INLINE PICKS FC_FN(pool_halves_at)(ptrdiff_t n, ptrdiff_t odd) {
    INT at[VL];
    for (ptrdiff_t i = 0; i < VL; i++) at[i] = (INT)(odd + (i < n ? 2 * i : VL + 2 * (i - n)));
    return v_picks(at);
}

/* The windows of n0 columns from x on and n1 from x1 on. Whether one may hold a NaN or, of maxima
 * without index, -0. */
static FC_INLINE int FC_FN(pool_halves)(const fc_pool *p, int op, const REAL *x, ptrdiff_t n0,
                                        const REAL *x1, ptrdiff_t n1, PICKS even, PICKS odd,
                                        V *result, V *index) {
    const ptrdiff_t W = p->in[2];
    const V a = v_load_n(x, n0), b = v_load_n(x1, n1);
    const V c = v_load_n(x + W, n0), d = v_load_n(x1 + W, n1);
    if (op == POOL_SUM) { /* the zero makes a sum of -0 one of 0 */
        const V s = v_add(a, c), t = v_add(b, d), each = v_set1((REAL)0.25);
        *result = v_fma(v_add(v_pick(s, t, even), v_pick(s, t, odd)), each, v_zero());
        return 0;
    }
    if (op == POOL_MAX) {
        const V s = v_max_either(a, c), t = v_max_either(b, d);
        *result = v_max_either(v_pick(s, t, even), v_pick(s, t, odd));
        return v_any(v_or(v_isnan(*result), v_isminus0(*result)));
    }
    const V v[4] = {v_pick(a, b, even), v_pick(a, b, odd), v_pick(c, d, even), v_pick(c, d, odd)};
    V m = v[0], at = v_zero();
#pragma GCC unroll 3
    for (int i = 1; i < 4; i++) {
        at = v_select(v_lt(m, v[i]), v_set1((REAL)(i / 2 * W + i % 2)), at);
        m = v_max(v[i], m);
    }
    *result = m;
    *index = at;
    return v_any(v_isnan(v_add(v_add(v[0], v[1]), v_add(v[2], v[3])))); /* or two infinities */
}

/* Of one plane, with vectors of `both` rows of windows; those of columns from 0 on begin at cells
 * `first`. */
static FC_INLINE void FC_FN(pool_halves_plane)(const fc_pool *p, int op, const ptrdiff_t both,
                                               PICKS even, PICKS odd, V first) {
    const ptrdiff_t W = p->in[2], rows = p->out[1], n = p->out[2];
    int unsure = 0;
    for (ptrdiff_t r = 0; r < rows; r += both)
        for (ptrdiff_t o = 0; o < n; o += VL) {
            if (n >= VL && o > n - VL) o = n - VL; /* the last vector overlaps */
            const ptrdiff_t cell = 2 * (r * W + o), some = n - o < VL ? n - o : VL;
            const REAL *const x = (const REAL *)p->x + cell;
            const ptrdiff_t n0 = both > 1 || some < VL / 2 ? 2 * some : VL;
            const ptrdiff_t n1 = both == 1 ? 2 * some - n0 : r + 1 < rows ? n0 : 0;
            const REAL *const x1 = both == 1 ? x + n0 : n1 ? x + 2 * W : x;
            V y, at;
            unsure |= FC_FN(pool_halves)(p, op, x, n0, x1, n1, even, odd, &y, &at);
            v_store_n((REAL *)p->y + r * n + o, y, (n0 + n1) / 2);
            if (op == POOL_INDEX)
                v_store_index(p->index + r * n + o, v_add(at, first), cell, (n0 + n1) / 2);
        }
    if (!unsure) return;
    for (ptrdiff_t r = 0; r < rows; r++) {
        REAL *const y = (REAL *)p->y + r * n;
        for (ptrdiff_t o = 0; op == POOL_MAX && o < n; o++)
            if (y[o] != y[o] || y[o] == 0) y[o] = FC_FN(pool_winner)(p, p->x, 0, r, o, y[o]);
        if (op == POOL_INDEX) FC_FN(pool_windows_index)(p, 0, r);
    }
}

/* All planes. */
static FC_INLINE void FC_FN(pool_halves_planes)(const fc_pool *p, int op) {
    const ptrdiff_t W = p->in[2], cells = p->in[1] * W, windows = p->out[1] * p->out[2];
    const ptrdiff_t split = W <= VL ? p->out[2] : VL; /* lanes of the first row */
    const PICKS even = FC_FN(pool_halves_at)(W <= VL ? split : VL / 2, 0);
    const PICKS odd = FC_FN(pool_halves_at)(W <= VL ? split : VL / 2, 1);
    REAL lane[VL];
    for (ptrdiff_t i = 0; i < VL; i++)
        lane[i] = (REAL)(i < split ? 2 * i : 2 * W + 2 * (i - split));
    const V first = v_load(lane);
    fc_pool one = *p;
    for (ptrdiff_t i = 0; i < p->planes; i++) {
        if (W <= VL)
            FC_FN(pool_halves_plane)(&one, op, 2, even, odd, first);
        else
            FC_FN(pool_halves_plane)(&one, op, 1, even, odd, first);
        one.x = (const REAL *)one.x + cells;
        one.y = (REAL *)one.y + windows;
        if (op == POOL_INDEX) one.index += windows;
    }
}

static void FC_FN(pool_halves_max)(const fc_pool *p) { FC_FN(pool_halves_planes)(p, POOL_MAX); }
static void FC_FN(pool_halves_index)(const fc_pool *p) { FC_FN(pool_halves_planes)(p, POOL_INDEX); }
static void FC_FN(pool_halves_sum)(const fc_pool *p) { FC_FN(pool_halves_planes)(p, POOL_SUM); }

/* Every cell of dx is the share of its window; those beyond the last one have none. */
static void FC_FN(pool_halves_backward)(const fc_pool *p) {
    const ptrdiff_t H = p->out[1], W = p->out[2], rows = p->in[1], n = p->in[2];
    INT twice[VL];
    for (int i = 0; i < VL; i++) twice[i] = i / 2;
    const PICKS at = v_picks(twice);
    const REAL *dy = p->x;
    REAL *dx = p->y;
    for (ptrdiff_t i = 0; i < p->planes; i++)
        for (ptrdiff_t h = 0; h < H; h += 2) {
            const ptrdiff_t windows = h / 2 < rows ? n : 0;
            for (ptrdiff_t w = 0; w < W; w += VL) {
                const ptrdiff_t left = windows - w / 2, some = W - w < VL ? W - w : VL;
                V v = v_load_n(dy + w / 2, left < 0 ? 0 : left < VL / 2 ? left : VL / 2);
                v = v_fma(v, v_set1((REAL)0.25), v_zero());
                v = v_pick(v, v, at);
                v_store_n(dx + w, v, some);
                if (h + 1 < H) v_store_n(dx + W + w, v, some);
            }
            dy += windows;
            dx += h + 1 < H ? 2 * W : W;
        }
}
#undef POOL_INDEX
#define FC_HALVES(name) FC_FN(name)
#else
#define FC_HALVES(name) NULL
#endif

static void FC_FN(pool_max)(const fc_pool *p) {
    const ptrdiff_t windows = p->out[0] * p->out[1] * p->out[2],
                    cells = p->in[0] * p->in[1] * p->in[2];
    const ptrdiff_t step = p->together ? VL : 1;
    fc_pool one = *p;
    if (!p->index) {
        FC_FN(pool_planes)(p, POOL_MAX);
        return;
    }
    if (p->stride && !p->together) FC_FN(pool_fill)(p, POOL_MAX, p->rows);
    for (ptrdiff_t i = 0; i < p->planes; i += step) {
        one.x = (const REAL *)p->x + i * cells;
        one.y = (REAL *)p->y + i * windows;
        one.index = p->index + i * windows;
        if (p->together)
            FC_FN(pool_together)(p, one.x, p->planes - i < VL ? p->planes - i : VL, one.y,
                                 one.index);
        else
            FC_FN(pool_index)(&one);
    }
}

#undef POOL_MAX
#undef POOL_PLAIN
#undef POOL_SUM
#undef POOL_ADD
#undef POOL_SHARES
#undef POOL_NV

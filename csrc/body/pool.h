/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pooling of one plane x[d][h][w] into y[od][oh][ow] (see fc_pool for the windows).
 * Values only: the rows of a window are reduced into a scratch row with full vectors, then along w
 * in scalars. With indices: one scalar scan a window, in the order that decides ties (first
 * maximum, last NaN: torch's rule `value > max or isnan(value)`). A window without cells (dilation
 * can step over a short axis) is -inf, at index 0.
 */
static void FC_FN(pool_max_row)(const fc_pool *p, ptrdiff_t od, ptrdiff_t oh) {
    const ptrdiff_t H = p->in[1], W = p->in[2];
    REAL *const row = p->row;
    int first = 1;
    for (ptrdiff_t d = p->start[0][od]; d < p->stop[0][od]; d += p->step[0])
        for (ptrdiff_t h = p->start[1][oh]; h < p->stop[1][oh]; h += p->step[1]) {
            const REAL *const x = (const REAL *)p->x + (d * H + h) * W;
            if (first) {
                memcpy(row, x, (size_t)W * sizeof(REAL));
                first = 0;
                continue;
            }
            for (ptrdiff_t w = 0; w < W; w += VL) {
                const ptrdiff_t n = W - w < VL ? W - w : VL;
                const V v = n == VL ? v_load(x + w) : v_load_n(x + w, n);
                const V acc = n == VL ? v_load(row + w) : v_load_n(row + w, n);
                const V m = v_select(v_isnan(v), v, v_max(v, acc));
                if (n == VL)
                    v_store(row + w, m);
                else
                    v_store_n(row + w, m, n);
            }
        }
    REAL *const y = (REAL *)p->y + (od * p->out[1] + oh) * p->out[2];
    for (ptrdiff_t o = 0; o < p->out[2]; o++) {
        REAL m = (REAL)-INFINITY;
        for (ptrdiff_t w = p->start[2][o]; w < p->stop[2][o] && !first; w += p->step[2])
            m = row[w] > m || row[w] != row[w] ? row[w] : m;
        y[o] = m;
    }
}

static void FC_FN(pool_max_row_index)(const fc_pool *p, ptrdiff_t od, ptrdiff_t oh) {
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

static void FC_FN(pool_max)(const fc_pool *p) {
    for (ptrdiff_t od = 0; od < p->out[0]; od++)
        for (ptrdiff_t oh = 0; oh < p->out[1]; oh++) {
            if (p->index)
                FC_FN(pool_max_row_index)(p, od, oh);
            else
                FC_FN(pool_max_row)(p, od, oh);
        }
}

static void FC_FN(pool_avg)(const fc_pool *p) {
    const ptrdiff_t H = p->in[1], W = p->in[2];
    REAL *const row = p->row;
    REAL *y = p->y;
    const double *scale = p->scale;
    for (ptrdiff_t od = 0; od < p->out[0]; od++)
        for (ptrdiff_t oh = 0; oh < p->out[1]; oh++) {
            memset(row, 0, (size_t)W * sizeof(REAL));
            for (ptrdiff_t d = p->start[0][od]; d < p->stop[0][od]; d += p->step[0])
                for (ptrdiff_t h = p->start[1][oh]; h < p->stop[1][oh]; h += p->step[1])
                    FC_FN(add)(row, (const REAL *)p->x + (d * H + h) * W, W);
            for (ptrdiff_t o = 0; o < p->out[2]; o++) {
                REAL s = 0;
                for (ptrdiff_t w = p->start[2][o]; w < p->stop[2][o]; w += p->step[2]) s += row[w];
                *y++ = s * (REAL)*scale++;
            }
        }
}

/* The adjoint of pool_avg: p->x is dy[od][oh][ow], p->y is dx[d][h][w], zeroed by the caller. */
static void FC_FN(pool_avg_backward)(const fc_pool *p) {
    const ptrdiff_t H = p->in[1], W = p->in[2];
    REAL *const row = p->row;
    const REAL *dy = p->x;
    const double *scale = p->scale;
    for (ptrdiff_t od = 0; od < p->out[0]; od++)
        for (ptrdiff_t oh = 0; oh < p->out[1]; oh++) {
            memset(row, 0, (size_t)W * sizeof(REAL));
            for (ptrdiff_t o = 0; o < p->out[2]; o++) {
                const REAL g = *dy++ * (REAL)*scale++;
                for (ptrdiff_t w = p->start[2][o]; w < p->stop[2][o]; w += p->step[2]) row[w] += g;
            }
            for (ptrdiff_t d = p->start[0][od]; d < p->stop[0][od]; d += p->step[0])
                for (ptrdiff_t h = p->start[1][oh]; h < p->stop[1][oh]; h += p->step[1])
                    FC_FN(add)((REAL *)p->y + (d * H + h) * W, row, W);
        }
}

/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Input gradients of depthwise layers with a stride of 2, from plane to plane, see fc_plane_grads.
 * Loops: planes, pairs of rows of dx, rows of dy that reach them, columns they are shifted by; the
 * taps of these. A vector is of neighbouring columns of dy. A pair of rows has four sums of it: for
 * the even and the odd columns of each row, which are zipped as they are stored. Every tap belongs
 * to one of the four, so nothing is multiplied by the zeros between the pixels of dy.
 * A row is up to FC_GRADS_NV vectors, all of them in registers: 16 sums, and the weights from
 * memory.
 */
#ifdef v_pick
#define FC_GRADS_NV 4

/* Rows 2*i and 2*i + 1 of dx: from rows i - 1 to i + 1 of dy, in `rows`, for a kernel of `taps`
 * rows. `first` and `last` are the lanes of the first and the last vector shifted by -1, 0 and 1.
 */
static FC_INLINE void FC_FN(grads_pair)(const REAL *const *rows, const LANES *first,
                                        const LANES *last, const REAL *a, REAL *const *dx,
                                        ptrdiff_t width, const int taps, const int nv) {
    const int pad = taps / 2, from = pad < 2 ? 0 : -1;
    FC_OPAQUE(a); /* else the address of every weight is kept */
    V acc[2][2][FC_GRADS_NV];
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++)
#pragma GCC unroll 2
        for (int w = 0; w < 2; w++)
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++) acc[h][w][v] = v_zero();
#pragma GCC unroll 3
    for (int r = from; r <= 1; r++)
#pragma GCC unroll 3
        for (int s = from; s <= 1; s++) {
            const REAL *const x = rows[r + 1] + s;
            V b[FC_GRADS_NV];
            b[0] = v_load_lanes(x, first[s + 1]);
#pragma GCC unroll 4
            for (int v = 1; v < nv - 1; v++) b[v] = v_load(x + v * VL);
            if (nv > 1) b[nv - 1] = v_load_lanes(x + (nv - 1) * VL, last[s + 1]);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++)
#pragma GCC unroll 2
                for (int w = 0; w < 2; w++) {
                    const int u = h + pad - 2 * r, k = w + pad - 2 * s; /* the tap that it is */
                    if (u < 0 || u >= taps || k < 0 || k >= taps) continue;
                    const V weight = v_set1(a[u * taps + k]);
#pragma GCC unroll 4
                    for (int v = 0; v < nv; v++) acc[h][w][v] = v_fma(weight, b[v], acc[h][w][v]);
                }
        }
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        REAL *const y = dx[h];
        if (!y) break;
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++) {
            const ptrdiff_t left = width - 2 * v * VL;
            V low, high;
            v_zip(acc[h][0][v], acc[h][1][v], &low, &high);
            if (v < nv - 1) {
                v_store(y + 2 * v * VL, low);
                v_store(y + (2 * v + 1) * VL, high);
            } else if (left <= VL) {
                v_store_n(y + 2 * v * VL, low, left);
            } else {
                v_store(y + 2 * v * VL, low);
                v_store_n(y + (2 * v + 1) * VL, high, left - VL);
            }
        }
    }
}

static FC_INLINE void FC_FN(grads_planes)(const fc_plane_grads *t, const int taps, const int nv) {
    enum { AHEAD = 2048 / sizeof(REAL) }; /* from L3 */
    const ptrdiff_t cols = t->cols, width = t->width, height = t->height;
    const ptrdiff_t top = t->top, pairs = t->pairs;
    const REAL *const zeros = t->zeros;
    LANES first[3], last[3];
    for (int s = 0; s < 3; s++) {
        first[s] = FC_FN(plane_inside)(cols, s - 1, VL);
        last[s] = FC_FN(plane_inside)(cols, (nv - 1) * VL + s - 1, VL);
    }
    for (ptrdiff_t g = 0; g < t->planes; g++) {
        const REAL *const dy = (const REAL *)t->dy + g * t->dy_plane;
        const REAL *const a = (const REAL *)t->a + g * t->a_plane;
        const REAL *const above = top > 0 ? dy + (top - 1) * cols : zeros;
        REAL *const plane = (REAL *)t->dx + g * t->dx_plane;
        const REAL *rows[3] = {above, dy + top * cols, NULL};
        for (ptrdiff_t i = top; i < top + pairs; i++) {
            REAL *const y = plane + 2 * i * width;
            REAL *const dx[2] = {y, 2 * i + 1 < height ? y + width : NULL};
            rows[2] = i + 1 < t->rows ? rows[1] + cols : zeros;
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++) FC_PREFETCH_READ(rows[1] + AHEAD + v * VL);
#pragma GCC unroll 16
            for (int v = 0; v < 4 * nv; v++) FC_PREFETCH(y + AHEAD + v * VL);
            FC_FN(grads_pair)(rows, first, last, a, dx, width, taps, nv);
            rows[0] = rows[1];
            rows[1] = rows[2];
        }
    }
}

#define FC_GRADS(taps, nv) \
    static void FC_FN(grads_##taps##x##nv)(const fc_plane_grads *t) { \
        FC_FN(grads_planes)(t, taps, nv); \
    }
#define FC_GRADS_EACH(taps) FC_GRADS(taps, 1) FC_GRADS(taps, 2) FC_GRADS(taps, 3) FC_GRADS(taps, 4)
FC_GRADS_EACH(3)
FC_GRADS_EACH(5)
#undef FC_GRADS
#undef FC_GRADS_EACH

static void FC_FN(plane_grads)(const fc_plane_grads *t) {
    static void (*const each[2][FC_GRADS_NV])(const fc_plane_grads *) = {
        {FC_FN(grads_3x1), FC_FN(grads_3x2), FC_FN(grads_3x3), FC_FN(grads_3x4)},
        {FC_FN(grads_5x1), FC_FN(grads_5x2), FC_FN(grads_5x3), FC_FN(grads_5x4)}};
    each[t->taps == 5][(t->cols - 1) / VL](t);
}
#define FC_PLANE_GRADS FC_FN(plane_grads)
#else
#define FC_PLANE_GRADS NULL
#endif

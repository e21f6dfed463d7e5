/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * depthwise: as many planes as a vector has lanes are convolved at once; a vector holds the same
 * pixel of each. So neither short rows nor strides leave lanes idle.
 *
 *   for c < channels: for t < taps: for r < rows: for v < cols:
 *     acc[r][v] += a[(c*taps + t)*VL] * x[c*x_c + off[t] + r*x_row + v*VL]
 *
 * Tile: rows x cols outputs of each plane, at most 14 in all: with the weights they fill 15 of 16
 * registers, pixels are operands in memory. More rows are for few columns: 8 sums cover the latency
 * of a multiply-add.
 */
#define FC_DEPTHWISE_TILES(X) FC_UP_TO_14(X, 1) FC_UP_TO_7(X, 2) FC_UP_TO_4(X, 3)

static FC_INLINE void FC_FN(depthwise_tile)(const fc_depthwise_sums *t, const REAL *x, REAL *sums,
                                            const int rows, const int cols) {
    V acc[FC_DEPTHWISE_ROWS][FC_DEPTHWISE_COLS];
    const REAL *a = t->a;
    const ptrdiff_t *const off = t->off;
    const ptrdiff_t taps = t->taps, x_c = t->x_c, x_row = t->x_row;
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 14
        for (int v = 0; v < cols; v++) acc[r][v] = v_zero();
    for (ptrdiff_t c = t->channels; c > 0; c--) {
        for (ptrdiff_t k = 0; k < taps; k++) {
            const V w = v_load(a);
            const REAL *xs = x + off[k];
#pragma GCC unroll 3
            for (int r = 0; r < rows; r++) {
                FC_OPAQUE(xs);
#pragma GCC unroll 14
                for (int v = 0; v < cols; v++) acc[r][v] = v_fma(w, v_load(xs + v * VL), acc[r][v]);
                xs += x_row;
            }
            a += VL;
        }
        x += x_c;
    }
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 14
        for (int v = 0; v < cols; v++) {
            REAL *const at = sums + r * t->s_row + v * t->s_px;
            v_store(at, t->add ? v_add(v_load(at), acc[r][v]) : acc[r][v]);
        }
}

#define FC_DEPTHWISE_TILE(cols, rows) \
    static void FC_FN(depthwise_tile_##rows##x##cols)(const fc_depthwise_sums *t, const REAL *x, \
                                                      REAL *sums) { \
        FC_FN(depthwise_tile)(t, x, sums, rows, cols); \
    }
#define FC_ENTRY_DEPTHWISE(cols, rows) [rows][cols] = FC_FN(depthwise_tile_##rows##x##cols),
FC_DEPTHWISE_TILES(FC_DEPTHWISE_TILE)

/* All rows of a block, in tiles of nearly equal size. */
static void FC_FN(depthwise_sums)(const fc_depthwise_sums *t) {
    static void (*const tile[FC_DEPTHWISE_ROWS + 1][FC_DEPTHWISE_COLS + 1])(
        const fc_depthwise_sums *, const REAL *, REAL *) = {FC_DEPTHWISE_TILES(FC_ENTRY_DEPTHWISE)};
    const int cols = (int)((t->cols + FC_DEPTHWISE_COLS - 1) / FC_DEPTHWISE_COLS);
    const int narrow = (int)(t->cols / cols),
              wide = (int)(t->cols % cols); /* wide ones are first */
    int most = FC_DEPTHWISE_ROWS;
    while (!tile[most][narrow + (wide > 0)]) most--;
    for (ptrdiff_t r = 0, rows; r < t->rows; r += rows) {
        const REAL *x = (const REAL *)t->x + r * t->x_row;
        REAL *sums = (REAL *)t->sums + r * t->s_row;
        rows = t->rows - r;
        if (rows > most) rows = rows < 2 * most ? (rows + 1) / 2 : most;
        for (int j = 0; j < cols; j++) {
            const int n = narrow + (j < wide);
            tile[rows][n](t, x, sums);
            x += n * VL;
            sums += n * t->s_px;
        }
    }
}

/* `pixels` <= VL pixels of VL planes */
static FC_INLINE void FC_FN(depthwise_load_block)(REAL *y, const int32_t *at, const REAL *x,
                                                  ptrdiff_t x_plane, ptrdiff_t pixels,
                                                  ptrdiff_t planes) {
    V r[VL];
    const REAL *next = x + VL * x_plane; /* the planes after these */
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++, next += x_plane) {
        FC_OPAQUE(next);
        FC_PREFETCH_READ(next);
    }
    FC_FN(load_columns)(r, x, x_plane, planes, pixels);
#pragma GCC unroll 16
    for (int j = 0; j < VL; j++)
        if (j < pixels) v_store(y + at[j], r[j]);
}

static void FC_FN(depthwise_load)(void *vy, const int32_t *at, const void *vx, ptrdiff_t x_plane,
                                  ptrdiff_t pixels, ptrdiff_t planes) {
    const REAL *const x = vx;
    for (ptrdiff_t p = 0; p < pixels; p += VL) {
        if (pixels >= VL && p > pixels - VL) p = pixels - VL; /* the last block overlaps */
        if (planes == VL && pixels >= VL)
            FC_FN(depthwise_load_block)(vy, at + p, x + p, x_plane, VL, VL);
        else
            FC_FN(depthwise_load_block)(vy, at + p, x + p, x_plane, pixels < VL ? pixels : VL,
                                        planes);
    }
}

/* All loads are before the stores, after which the compiler would read *t again, plane by plane. */
static FC_INLINE void FC_FN(depthwise_store_block)(const fc_depthwise_store *t, ptrdiff_t p,
                                                   ptrdiff_t pixels, ptrdiff_t planes) {
    V r[VL];
    const REAL *const sums = (const REAL *)t->sums + p * VL, *const bias = t->bias;
    const REAL *const residual = t->residual ? (const REAL *)t->residual + p : NULL;
    const ptrdiff_t y_plane = t->y_plane;
    REAL *y = (REAL *)t->y + p;
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) FC_PREFETCH(y + (i + VL) * y_plane);
    v_transpose(r, sums, VL, pixels);
    if (bias)
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++)
            if (i < planes) r[i] = v_add(r[i], v_set1(bias[i * t->bias_plane]));
    if (residual)
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++)
            if (i < planes) r[i] = v_add(r[i], FC_LOAD(residual + i * y_plane, pixels));
    if (t->relu)
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++) r[i] = v_max(v_zero(), r[i]);
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) {
        if (i >= planes) break;
        if (pixels == VL)
            v_store(y + i * y_plane, r[i]);
        else
            v_store_n(y + i * y_plane, r[i], pixels);
    }
}

static void FC_FN(depthwise_store)(const fc_depthwise_store *t) {
    const ptrdiff_t pixels = t->pixels;
    for (ptrdiff_t p = 0; p < pixels; p += VL) {
        if (pixels >= VL && p > pixels - VL) p = pixels - VL; /* the last block overlaps */
        if (t->planes == VL && pixels >= VL)
            FC_FN(depthwise_store_block)(t, p, VL, VL);
        else
            FC_FN(depthwise_store_block)(t, p, pixels < VL ? pixels : VL, t->planes);
    }
}

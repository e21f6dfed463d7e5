/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * wgrad_tile: weight gradient, vectorised over output channels.
 *
 *   for i < planes: for r < rows: for p < cols: for m < mr:
 *     sum[m][0:NR] += x[off[m] + i*x_plane + r*x_row + p] * dy[(i*rows + r)*cols + p][0:NR]
 *
 * Tile: mr (channel, tap) pairs x NR = nv*VL output channels. Limit: mr*nv accumulators + nv
 * vectors of dy + 1 broadcast must fit the register file: FC_WGRAD_MR of the row's file. The pairs'
 * addresses that the integer registers do not hold come from L1. The ends of the short inner loops
 * cost as much as some multiply-adds each, the less the taller the tile is (avx512, 7 -> 14 rows:
 * 1.15 times as fast on rows of 55 pixels). The block's sum starts at zero and is added to acc at
 * the end.
 *
 * dot_tile: the same contraction where output channels are few: vectorised along the pixels.
 *
 *   for r < rows: for p < cols: for i < na: for m < nb:
 *     sum[i][m] += a[i][r*a_row + p] * b[m][r*b_row + p]
 */
static FC_INLINE void FC_FN(wgrad_tile_body)(const fc_wgrad_tile *t, const int mr, const int nv) {
    enum { LINE = FC_CACHE_LINE / sizeof(REAL) };
    V sum[FC_WGRAD_MR_MAX][FC_NV_MAX];
    const REAL *x[FC_WGRAD_MR_MAX];
    const REAL *dy = t->dy;
    REAL *const acc = t->acc;
    /* between fetches: one cache line of each row to fetch */
    const ptrdiff_t strip = t->fetch[0].rows + t->fetch[1].rows ? LINE : t->cols;
    ptrdiff_t done = 0;
#pragma GCC unroll 14
    for (int m = 0; m < mr; m++) {
        FC_PREFETCH(acc + m * nv * VL);
        x[m] = (const REAL *)t->x + t->off[m];
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) sum[m][v] = v_zero();
    }
    for (ptrdiff_t i = 0; i < t->planes; i++)
        for (ptrdiff_t r = 0; r < t->rows; r++) {
            const ptrdiff_t start = i * t->x_plane + r * t->x_row, stop = start + t->cols;
            for (ptrdiff_t p = start; p < stop;) {
                const ptrdiff_t end = stop - p < strip ? stop : p + strip;
                for (int k = 0; k < 2; k++) {
                    const REAL *at = (const REAL *)t->fetch[k].at + done;
                    for (ptrdiff_t n = t->fetch[k].rows; n > 0; n--, at += t->fetch[k].row)
                        FC_PREFETCH_L2(at);
                }
                done += end - p;
                for (; p < end; p++) {
                    V b[FC_NV_MAX];
#pragma GCC unroll 2
                    for (int v = 0; v < nv; v++) b[v] = v_load(dy + v * VL);
#pragma GCC unroll 14
                    for (int m = 0; m < mr; m++) {
                        const V a = v_set1(x[m][p]);
#pragma GCC unroll 2
                        for (int v = 0; v < nv; v++) sum[m][v] = v_fma(a, b[v], sum[m][v]);
                    }
                    dy += nv * VL;
                }
            }
        }
#pragma GCC unroll 14
    for (int m = 0; m < mr; m++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) {
            REAL *const at = acc + (m * nv + v) * VL;
            v_store(at, t->flags & FC_FIRST ? sum[m][v] : v_add(v_load(at), sum[m][v]));
        }
}

#define FC_WGRAD_TILE(mr, nv) \
    static void FC_FN(wgrad_tile_##mr##x##nv)(const fc_wgrad_tile *t) { \
        FC_FN(wgrad_tile_body)(t, mr, nv); \
    }
FC_TILES_1(FC_WGRAD_TILE, FC_WGRAD_MR)
FC_TILES_2(FC_WGRAD_TILE, FC_WGRAD_MR)

/* the most b of a tile of na a */
#define FC_DOT_MR(na) ((na) == 1 ? 6 : (na) == 3 ? 4 : 3)

static FC_INLINE void FC_FN(dot_tile_body)(const fc_dot_tile *t, const int na, const int nb) {
    /* two sums each where the registers allow it: fewer waits, half the instructions of the loop.
     * The same for every nb, which must not show in the bits. */
    const int unroll = 2 * na * FC_DOT_MR(na) <= FC_PIXEL_ACC ? 2 : 1;
    V sum[FC_DOT_A_MAX][FC_DOT_B_MAX][2];
#pragma GCC unroll 4
    for (int i = 0; i < na; i++)
#pragma GCC unroll 6
        for (int m = 0; m < nb; m++) sum[i][m][0] = sum[i][m][1] = v_zero();
    for (ptrdiff_t r = 0; r < t->rows; r++) {
        const REAL *a[FC_DOT_A_MAX], *b[FC_DOT_B_MAX];
        const ptrdiff_t cols = t->cols;
#pragma GCC unroll 4
        for (int i = 0; i < na; i++) a[i] = (const REAL *)t->a[i] + r * t->a_row;
#pragma GCC unroll 6
        for (int m = 0; m < nb; m++) b[m] = (const REAL *)t->b[m] + r * t->b_row;
        ptrdiff_t p = 0;
/* one vector of each operand into sum[][][u]; the fewer operands stay in registers. Without FC_HIDE
 * gcc loads a vector again for every multiply-add that takes it. */
#define FC_DOT_STEP(u, load) \
    do { \
        V held[FC_DOT_A_MAX]; \
        if (na <= nb) { \
            _Pragma("GCC unroll 4") for (int i = 0; i < na; i++) { \
                held[i] = load(a[i]); \
                if (nb > 1) FC_HIDE(held[i]); \
            } \
            _Pragma("GCC unroll 6") for (int m = 0; m < nb; m++) { \
                V bm = load(b[m]); \
                if (na > 1) FC_HIDE(bm); \
                _Pragma("GCC unroll 4") for (int i = 0; i < na; i++) sum[i][m][u] = \
                    v_fma(held[i], bm, sum[i][m][u]); \
            } \
        } else { \
            _Pragma("GCC unroll 4") for (int m = 0; m < nb; m++) { \
                held[m] = load(b[m]); \
                FC_HIDE(held[m]); \
            } \
            _Pragma("GCC unroll 4") for (int i = 0; i < na; i++) { \
                V ai = load(a[i]); \
                if (nb > 1) FC_HIDE(ai); \
                _Pragma("GCC unroll 4") for (int m = 0; m < nb; m++) sum[i][m][u] = \
                    v_fma(ai, held[m], sum[i][m][u]); \
            } \
        } \
    } while (0)
#define FC_DOT_LOAD_0(q) v_load((q) + p)
#define FC_DOT_LOAD_1(q) v_load((q) + p + VL)
#define FC_DOT_LOAD_N(q) v_load_n((q) + p, cols - p)
        if (unroll == 2)
            for (; p + 2 * VL <= cols; p += 2 * VL) {
                FC_DOT_STEP(0, FC_DOT_LOAD_0);
                FC_DOT_STEP(1, FC_DOT_LOAD_1);
            }
        for (; p + VL <= cols; p += VL) FC_DOT_STEP(0, FC_DOT_LOAD_0);
        if (p < cols) FC_DOT_STEP(0, FC_DOT_LOAD_N);
#undef FC_DOT_STEP
#undef FC_DOT_LOAD_0
#undef FC_DOT_LOAD_1
#undef FC_DOT_LOAD_N
    }
#pragma GCC unroll 4
    for (int i = 0; i < na; i++)
#pragma GCC unroll 6
        for (int m = 0; m < nb; m++)
            ((REAL *)t->acc)[i * t->acc_row + m] += v_hsum(v_add(sum[i][m][0], sum[i][m][1]));
}

/* X(nb, na) for every number of b and a */
#define FC_DOT_TILES(X) \
    FC_UP_TO_6(X, 1) FC_UP_TO_2(X, 2) X(3, 2) FC_UP_TO_4(X, 3) FC_UP_TO_2(X, 4) X(3, 4)
#define FC_DOT_TILE(nb, na) \
    static void FC_FN(dot_tile_##na##x##nb)(const fc_dot_tile *t) { \
        FC_FN(dot_tile_body)(t, na, nb); \
    }
FC_DOT_TILES(FC_DOT_TILE)

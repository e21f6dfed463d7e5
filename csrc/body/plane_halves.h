/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pixel_planes of rows of at most half a vector: a vector holds row r and, in its upper half, row
 * r + FC_HALVES of the same plane.
 *
 *   for tiles of 2*FC_HALVES rows: for planes: for i < step*(FC_HALVES - 1) + taps: for k < taps:
 *     v = column off[k] + p*step of the rows i and i + step*FC_HALVES of x, 0 where there is none
 *     acc[r] += a[i - step*r][k] * v   for 0 <= i - step*r < taps
 *
 * Tile: FC_HALVES sums, of 2*FC_HALVES rows, and one shuffle for each tap and pair of rows of x. Of
 * a 7x7 map with 3x3 taps and a stride of 2 that is 36 multiply-adds and 27 shuffles, where a row
 * in each vector takes 63 and 45. Rows of x are read as whole vectors, because a mask takes the
 * time of a shuffle: those of planes that end less than a vector before the last one does, from a
 * copy. Limits: rows of x of a vector and planes of 2*VL of them, for that copy.
 */
#ifdef v_pick
#define FC_HALVES 4
#define FC_HALVES_REACH (2 * (2 * FC_HALVES - 1) + FC_PLANE_TAPS) /* most rows of x of a tile */
#define FC_HALVES_LOAD(i) v_load((const REAL *)((uintptr_t)x + at[i]))

/* One tile of one plane, of `rows` rows; rows of x are at[] bytes from it. */
static FC_INLINE void FC_FN(halves_tile)(const fc_pixel_planes *t, const REAL *x,
                                         const uintptr_t *at, const PICKS *pick,
                                         const LANES *inside, const LANES *half, const REAL *a,
                                         REAL *y, const REAL *bias, const REAL *residual,
                                         ptrdiff_t rows, const int taps, const int step) {
    V acc[FC_HALVES];
    const ptrdiff_t a_row = t->a_row, y_row = t->y_row;
#pragma GCC unroll 4
    for (int r = 0; r < FC_HALVES; r++) acc[r] = v_zero();
#pragma GCC unroll 13
    for (int i = 0; i < step * (FC_HALVES - 1) + taps; i++) {
        const V above = FC_HALVES_LOAD(i), below = FC_HALVES_LOAD(i + step * FC_HALVES);
#pragma GCC unroll 7
        for (int k = 0; k < taps; k++) {
            const V v = v_pick_lanes(above, below, pick[k], inside[k]);
#pragma GCC unroll 4
            for (int r = 0; r < FC_HALVES; r++) {
                const int u = i - step * r;
                if (u < 0 || u >= taps) continue;
                acc[r] = v_fma(v_set1(a[u * a_row + k]), v, acc[r]);
            }
        }
    }
#define FC_HALVES_EACH \
    _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++) \
        _Pragma("GCC unroll 4") for (int r = 0; r < FC_HALVES; r++) if (r + h * FC_HALVES < rows)
#define FC_HALVES_AT ((r + h * FC_HALVES) * y_row - h * (VL / 2))
    if (bias) {
        const V b = v_set1(*bias);
#pragma GCC unroll 4
        for (int r = 0; r < FC_HALVES; r++) acc[r] = v_add(acc[r], b);
    }
    if (residual)
        FC_HALVES_EACH acc[r] = v_select(
            half[h], v_add(acc[r], v_load_lanes(residual + FC_HALVES_AT, half[h])), acc[r]);
    if (t->relu) {
#pragma GCC unroll 4
        for (int r = 0; r < FC_HALVES; r++) acc[r] = v_max(v_zero(), acc[r]);
    }
    FC_HALVES_EACH v_store_lanes(y + FC_HALVES_AT, acc[r], half[h]);
#undef FC_HALVES_EACH
#undef FC_HALVES_AT
}

static FC_INLINE void FC_FN(halves_planes)(const fc_pixel_planes *given, const int taps,
                                           const int step) {
    const fc_pixel_planes local = *given, *const t = &local; /* which stores cannot change */
    const ptrdiff_t reach = step * (2 * FC_HALVES - 1) + taps;
    const LANES half[2] = {v_lanes(0, t->cols), v_lanes(VL / 2, VL / 2 + t->cols)};
    const REAL zeros[VL] = {0};
    REAL copy[2 * VL * VL + VL];
    PICKS pick[FC_PLANE_TAPS];
    LANES inside[FC_PLANE_TAPS];
    for (int k = 0; k < taps; k++) {
        /* columns off + p*step, p < VL/2: those inside are from `first` to before `last` */
        const ptrdiff_t off = t->off[k], stop = (t->in_cols - off + step - 1) / step;
        const ptrdiff_t first = off >= 0               ? 0
                                : off > -step * VL / 2 ? (step - 1 - off) / step
                                                       : VL / 2;
        const ptrdiff_t last = stop < first ? first : stop < VL / 2 ? stop : VL / 2;
        INT lane[VL];
        for (int p = 0; p < VL; p++)
            lane[p] = (INT)off + (INT)(p % (VL / 2) * step + (p < VL / 2 ? 0 : VL));
        pick[k] = v_picks(lane);
        inside[k] = (LANES)(v_lanes(first, last) | v_lanes(VL / 2 + first, VL / 2 + last));
    }
    for (ptrdiff_t r = 0; r < t->rows; r += 2 * FC_HALVES) {
        uintptr_t at[FC_HALVES_REACH];
        ptrdiff_t beyond[FC_HALVES_REACH], count = 0;
        const ptrdiff_t rows = t->rows - r < 2 * FC_HALVES ? t->rows - r : 2 * FC_HALVES;
        for (ptrdiff_t i = 0; i < reach; i++) {
            const ptrdiff_t h = t->top + r * step + i;
            at[i] = (uintptr_t)(h * t->x_row) * sizeof(REAL);
            if (h < 0 || h >= t->in_rows) beyond[count++] = i;
        }
        const REAL *x = t->x, *a = t->a, *residual = t->residual, *bias = t->bias;
        REAL *y = (REAL *)t->y + r * t->y_row;
        if (residual) residual += r * t->y_row;
        for (ptrdiff_t g = 0; g < t->planes; g++) {
            const REAL *plane = x;
            if ((t->planes - 1 - g) * t->x_plane < VL) {
                memcpy(copy, x, (size_t)((t->in_rows - 1) * t->x_row + t->in_cols) * sizeof(REAL));
                plane = copy;
            }
            for (ptrdiff_t i = 0; i < count; i++)
                at[beyond[i]] = (uintptr_t)zeros - (uintptr_t)plane;
            FC_FN(halves_tile)(t, plane, at, pick, inside, half, a, y, bias, residual, rows, taps,
                               step);
            x += t->x_plane;
            a += t->a_plane;
            y += t->y_plane;
            if (bias) bias++;
            if (residual) residual += t->y_plane;
        }
    }
}

#define FC_HALVES_CASE(taps, step) \
    static void FC_FN(halves_##taps##_##step)(const fc_pixel_planes *t) { \
        FC_FN(halves_planes)(t, taps, step); \
    }
FC_HALVES_CASE(3, 1)
FC_HALVES_CASE(3, 2)
FC_HALVES_CASE(5, 1)
FC_HALVES_CASE(5, 2)
FC_HALVES_CASE(7, 1)
FC_HALVES_CASE(7, 2)
#undef FC_HALVES_CASE

/* Whether it was one for this. */
static int FC_FN(plane_halves)(const fc_pixel_planes *t) {
    static void (*const each[3][2])(const fc_pixel_planes *) = {
        {FC_FN(halves_3_1), FC_FN(halves_3_2)},
        {FC_FN(halves_5_1), FC_FN(halves_5_2)},
        {FC_FN(halves_7_1), FC_FN(halves_7_2)}};
    if (t->across != t->down || t->cols > VL / 2 || t->in_cols > VL || t->in_rows > 2 * VL)
        return 0;
    each[t->down / 2 - 1][t->step - 1](t);
    return 1;
}
#undef FC_HALVES
#undef FC_HALVES_REACH
#undef FC_HALVES_LOAD
#endif

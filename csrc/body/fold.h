/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fold_row: columns back to the cells of a row that they come from; see fc_fold.
 *
 * A vector of y collects in a register all that its cells get, so that no sum waits for another one
 * to reach memory. Taps reach over the ends of y and of the columns: vectors there are masked, with
 * one mask for all rows and planes.
 */
static FC_INLINE void FC_FN(fold_planes)(const fc_fold *t, const REAL *x, REAL *y,
                                         const int planes) {
    const ptrdiff_t x_c = t->x_c, y_c = t->y_c, rows = t->rows;
    const ptrdiff_t *const off = t->off;
    for (ptrdiff_t i = 0; i < t->m; i += VL) {
        const ptrdiff_t here = t->m - i < VL ? t->m - i : VL;
        V acc[FC_FOLD_PLANES];
#pragma GCC unroll 8
        for (int c = 0; c < planes; c++) {
            if (!t->add)
                acc[c] = v_zero();
            else
                acc[c] = here == VL ? v_load(y + c * y_c + i) : v_load_n(y + c * y_c + i, here);
        }
        for (ptrdiff_t k = 0; k < t->taps; k++) {
            const ptrdiff_t begin = t->shift[k] - i, end = begin + t->n; /* lanes with columns */
            if (begin >= VL || end <= 0) continue;
            const REAL *const from = x + t->tap[k] - begin;
            if (begin <= 0 && end >= VL) {
                for (ptrdiff_t r = 0; r < rows; r++)
#pragma GCC unroll 8
                    for (int c = 0; c < planes; c++)
                        acc[c] = v_add(acc[c], v_load(from + off[r] + c * x_c));
            } else {
                const ptrdiff_t first = begin > 0 ? begin : 0, last = end < VL ? end : VL;
                for (ptrdiff_t r = 0; r < rows; r++)
#pragma GCC unroll 8
                    for (int c = 0; c < planes; c++)
                        acc[c] = v_add(acc[c], v_load_in(from + off[r] + c * x_c, first, last));
            }
        }
#pragma GCC unroll 8
        for (int c = 0; c < planes; c++) v_store_n(y + c * y_c + i, acc[c], here);
    }
}

static void FC_FN(fold_row)(const fc_fold *t) {
    const REAL *x = t->x;
    REAL *y = t->y;
    ptrdiff_t left = t->planes;
    for (; left >= FC_FOLD_PLANES; left -= FC_FOLD_PLANES) {
        FC_FN(fold_planes)(t, x, y, FC_FOLD_PLANES);
        x += FC_FOLD_PLANES * t->x_c;
        y += FC_FOLD_PLANES * t->y_c;
    }
#define FC_FOLD_CASE(n) \
    case n: \
        FC_FN(fold_planes)(t, x, y, n); \
        break;
    switch (left) {
        FC_FOLD_CASE(1)
        FC_FOLD_CASE(2)
        FC_FOLD_CASE(3)
        FC_FOLD_CASE(4)
        FC_FOLD_CASE(5)
        FC_FOLD_CASE(6)
        FC_FOLD_CASE(7)
    }
#undef FC_FOLD_CASE
}

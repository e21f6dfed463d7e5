/* SPDX-License-Identifier: BSD-3-Clause */
/* Data movement: strided copies, zero-padded transpose, accumulation. */

/* p[i], i < n, the rest zero; of a whole vector at most */
static FC_INLINE V FC_FN(load_up_to)(const REAL *p, const ptrdiff_t n) {
    return n >= VL ? v_load(p) : n > 0 ? v_load_n(p, n) : v_zero();
}

/* p[2*i] of the first n */
static FC_INLINE V FC_FN(load_even)(const REAL *p, const ptrdiff_t n) {
    return v_even_odd(FC_FN(load_up_to)(p, n), FC_FN(load_up_to)(p + VL - 1, n - (VL - 1)));
}

/* Which steps are copied as vectors: those of networks. */
#ifdef v_pick
#define FC_IS_COPIED(step) ((step) <= 4)
/* p[3*i] of the first n */
static FC_INLINE V FC_FN(load_third)(const REAL *p, const ptrdiff_t n) {
    INT near[VL], far[VL]; /* of the first two vectors, and of those and the last one */
    for (int i = 0; i < VL; i++) {
        near[i] = (INT)(3 * i < 2 * VL ? 3 * i : i);
        far[i] = (INT)(3 * i < 2 * VL ? i : 3 * i - VL);
    }
    const V low = v_pick(FC_FN(load_up_to)(p, n), FC_FN(load_up_to)(p + VL, n - VL), v_picks(near));
    return v_pick(low, FC_FN(load_up_to)(p + 2 * VL, n - 2 * VL), v_picks(far));
}
#else
#define FC_IS_COPIED(step) ((step) <= 2 || (step) == 4)
#endif

/* x[i*step], i < n <= VL, for these steps; 1 or more. */
static FC_INLINE V FC_FN(load_step)(const REAL *x, const ptrdiff_t n, const ptrdiff_t step) {
    const ptrdiff_t all = (n - 1) * step + 1; /* cells to read */
    if (step == 1) return FC_FN(load_up_to)(x, all);
    if (step == 2) return FC_FN(load_even)(x, all);
#ifdef v_pick
    if (step == 3) return FC_FN(load_third)(x, all);
#endif
    return v_even_odd(FC_FN(load_even)(x, all),
                      FC_FN(load_even)(x + 2 * (VL - 1), all - 2 * (VL - 1)));
}

/* y[i] = x[i*step], i < n */
static FC_INLINE void FC_FN(copy)(REAL *restrict y, const REAL *restrict x, ptrdiff_t n,
                                  const ptrdiff_t step) {
    ptrdiff_t i = 0;
    if (!FC_IS_COPIED(step))
        for (; i < n; i++) y[i] = x[i * step];
    else if (n < VL)
        v_store_n(y, FC_FN(load_step)(x, n, step), n);
    else
        for (; i < n; i += VL) {
            if (i > n - VL) i = n - VL; /* the last vector overlaps its neighbour */
            v_store(y + i, FC_FN(load_step)(x + i * step, VL, step));
        }
}
#undef FC_IS_COPIED

/* Rows of `left` zeros, `n` values x[i*step] and `right` zeros. */
static FC_INLINE void FC_FN(copy_each)(REAL *restrict y, ptrdiff_t y_row, const REAL *restrict x,
                                       ptrdiff_t x_row, ptrdiff_t rows, ptrdiff_t left, ptrdiff_t n,
                                       ptrdiff_t right, const ptrdiff_t step) {
    for (; rows > 0; rows--, y += y_row, x += x_row) {
        for (ptrdiff_t i = 0; i < left; i++) y[i] = 0;
        FC_FN(copy)(y + left, x, n, step);
        for (ptrdiff_t i = left + n; i < left + n + right; i++) y[i] = 0;
    }
}

/* The same, and fewer instructions for the shapes that are copied most. */
static void FC_FN(copy_rows)(void *vy, ptrdiff_t y_row, const void *vx, ptrdiff_t x_row,
                             ptrdiff_t rows, ptrdiff_t left, ptrdiff_t n, ptrdiff_t right,
                             ptrdiff_t step) {
    REAL *y = vy;
    const REAL *x = vx;
    ptrdiff_t r = 0;
    if (left + right == 0 && step == 1 && n == x_row && n == y_row) { /* they are one */
        n *= rows;
        rows = 1;
    }
    if (left + right == 0 && step == 1 && n == 2 * VL) { /* columns of a GEMM */
        for (; r < rows; r++, y += y_row, x += x_row) {
            const V a = v_load(x), b = v_load(x + VL);
            v_store(y, a);
            v_store(y + VL, b);
        }
    } else if (left + right == 0 && step == 1 && n < VL && y_row == n && x_row >= n) {
        /* its weights: whole vectors, as long as the rest of the rows overwrites what they spill */
        for (; (rows - r) * n >= VL; r++, y += y_row, x += x_row) v_store(y, v_load(x));
    } else if (left + right > 0 && step == 1 && left + n + right >= VL) {
        /* padded rows: whole vectors, masked where x ends in them; the last one overlaps */
        const ptrdiff_t all = left + n + right;
        for (; r < rows; r++, y += y_row, x += x_row)
            for (ptrdiff_t i = 0; i < all; i += VL) {
                if (i > all - VL) i = all - VL;
                const ptrdiff_t begin = left - i, end = begin + n; /* lanes of x */
                if (begin <= 0 && end >= VL) {
                    v_store(y + i, v_load(x - begin));
                    continue;
                }
                const ptrdiff_t first = begin < 0 ? 0 : begin < VL ? begin : VL;
                const ptrdiff_t last = end < 0 ? 0 : end < VL ? end : VL;
                v_store(y + i, v_load_in(x - begin, first, last));
            }
    }
    rows -= r;
    /* One loop for each step that is copied as vectors: where one chose among them in each row,
     * strided layers took 1.02 to 1.09 times as long. */
#define FC_COPY_EACH(step) FC_FN(copy_each)(y, y_row, x, x_row, rows, left, n, right, step)
    switch (step) {
        case 1:
            FC_COPY_EACH(1);
            break;
        case 2:
            FC_COPY_EACH(2);
            break;
        case 3:
            FC_COPY_EACH(3);
            break;
        case 4:
            FC_COPY_EACH(4);
            break;
        default:
            FC_COPY_EACH(step);
    }
#undef FC_COPY_EACH
}

/* y[j*y_ld + i] = x[i*x_ld + j]: VL x VL blocks through registers; rows in [rows, pad) come out as
 * zero. Where a row of y is less than a vector and the next one follows it, whole vectors are
 * stored, and what they spill there is overwritten in its turn. */
static void FC_FN(transpose)(void *vy, ptrdiff_t y_ld, const void *vx, ptrdiff_t x_ld,
                             ptrdiff_t rows, ptrdiff_t cols, ptrdiff_t pad) {
    REAL *const y = vy;
    const REAL *const x = vx;
    const ptrdiff_t spill = pad < VL && y_ld == pad ? cols * pad - VL : -1;
    for (ptrdiff_t i0 = 0; i0 < pad; i0 += VL) {
        if (rows == pad && rows >= VL && i0 > rows - VL)
            i0 = rows - VL; /* the last block overlaps */
        const ptrdiff_t ni = pad - i0 < VL ? pad - i0 : VL;
        const ptrdiff_t here = rows - i0 < VL ? rows - i0 : VL;
        for (ptrdiff_t j0 = 0; j0 < cols; j0 += VL) {
            if (cols >= VL && j0 > cols - VL) j0 = cols - VL; /* likewise */
            const ptrdiff_t nj = cols - j0 < VL ? cols - j0 : VL;
            REAL *to = y + j0 * y_ld + i0;
            V r[VL];
            const REAL *const from = x + i0 * x_ld + j0;
            /* whole vectors of short rows: what they read beyond them is of the rows after */
            if (here == VL && from + (VL - 1) * x_ld + VL <= x + (rows - 1) * x_ld + cols)
                v_transpose(r, from, x_ld, VL);
            else
                FC_FN(load_columns)(r, from, x_ld, here, nj);
#pragma GCC unroll 16
            for (int j = 0; j < VL; j++, to += y_ld) {
                if (j >= nj) break;
                if (ni == VL || to - y <= spill)
                    v_store(to, r[j]);
                else
                    v_store_n(to, r[j], ni);
            }
        }
    }
}

static void FC_FN(pour)(void *y, void *x, ptrdiff_t n) {
    FC_OVER_COLUMNS(n, FC_STORE((REAL *)y + c, FC_LOAD((REAL *)x + c, m), m, 1);
                    v_store_n((REAL *)x + c, v_zero(), m);)
    v_fence();
}

static void FC_FN(add)(void *vy, const void *vx, ptrdiff_t n) {
    REAL *const y = vy;
    const REAL *const x = vx;
    ptrdiff_t i = 0;
    for (; i + VL <= n; i += VL) v_store(y + i, v_add(v_load(y + i), v_load(x + i)));
    if (i < n) v_store_n(y + i, v_add(v_load_n(y + i, n - i), v_load_n(x + i, n - i)), n - i);
}

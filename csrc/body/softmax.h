/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * softmax(x)_i = exp(x_i - max)/sum, log_softmax(x)_i = x_i - max - log(sum), and their gradients
 * dx = y*(dy - sum(dy*y)) and dx = dy - exp(y)*sum(dy).
 * Sums run in the lanes for a block of terms, which is then folded into doubles. Long rows have
 * their terms in the lanes. Columns have a column in each lane, and so have short rows where there
 * are exponentials to save: these are transposed on the way in and out.
 */
#define SOFTMAX_TERMS 32   /* in a lane */
#define SOFTMAX_SHORT 64   /* rows of fewer elements are transposed, this many at a time */
#define SOFTMAX_GROUP 2048 /* elements of the longer rows that go through each pass together */

/* The first m lanes, the rest zero. */
static inline V FC_FN(lanes)(V v, ptrdiff_t m) {
    if (m == VL) return v;
    REAL lane[VL];
    v_store(lane, v);
    return v_load_n(lane, m);
}

/* ---- columns */

#define SOFTMAX_AHEAD 2 /* rows */

/* Row i + SOFTMAX_AHEAD, or the last one. */
static FC_INLINE ptrdiff_t FC_FN(row_ahead)(ptrdiff_t i, ptrdiff_t n, ptrdiff_t ld) {
    return (i + SOFTMAX_AHEAD < n ? i + SOFTMAX_AHEAD : n - 1) * ld;
}

/* y = exp(x - max)/FC_EXP_UNIT unless y is NULL; the maxima, and the sums of exp(x - max), of the
 * columns. A maximum may pass over a NaN: the sum is one then, and so are all results. */
static void FC_FN(column_exp)(REAL *y, const REAL *x, ptrdiff_t n, ptrdiff_t ld, ptrdiff_t columns,
                              REAL *max, double *sum) {
    REAL s[FC_COLUMNS];
    FC_OVER_COLUMNS(columns, v_store(max + c, FC_LOAD(x + c, m));)
    for (ptrdiff_t i = 1; i < n; i++) {
        const REAL *const ahead = x + FC_FN(row_ahead)(i, n, ld);
        FC_OVER_COLUMNS(columns, const V v = FC_LOAD(x + i * ld + c, m);
                        FC_PREFETCH_READ(ahead + c); v_store(max + c, v_max(v, v_load(max + c)));)
    }
    for (ptrdiff_t c = 0; c < columns; c++) sum[c] = 0;
    for (ptrdiff_t first = 0; first < n; first += SOFTMAX_TERMS) {
        const ptrdiff_t last = n - first < SOFTMAX_TERMS ? n : first + SOFTMAX_TERMS;
        FC_OVER_COLUMNS(columns, v_store(s + c, v_zero()); (void)m;)
        for (ptrdiff_t i = first; i < last; i++) {
            REAL *const ahead = y ? y + FC_FN(row_ahead)(i, n, ld) : NULL;
            FC_OVER_GROUPS(
                columns, V e[FC_TOGETHER]; const ptrdiff_t at = i * ld + c;
                if (y) FC_EACH FC_PREFETCH(ahead + c + k * VL);
                FC_EACH e[k] = v_sub(FC_LOAD(x + at + k * VL, m), v_load(max + c + k * VL));
                FC_FN(exp_units)(e, nv);
                FC_EACH v_store(s + c + k * VL, v_add(v_load(s + c + k * VL), e[k]));
                if (y) FC_EACH v_store_n(y + at + k * VL, e[k], m);)
        }
        for (ptrdiff_t c = 0; c < columns; c++) sum[c] += s[c];
    }
    for (ptrdiff_t c = 0; c < columns; c++) sum[c] *= FC_EXP_UNIT;
}

/* What column_exp and row_exp leave in y, times a share of the whole. */
static FC_INLINE V FC_FN(softmax_y)(V units, V share) {
    return v_mul(v_mul(units, v_set1(FC_EXP_UNIT)), share);
}

static void FC_FN(softmax_columns)(void *vy, const void *x, const void *factor, ptrdiff_t n,
                                   ptrdiff_t ld, ptrdiff_t columns) {
    REAL *const y = vy;
    REAL share[FC_COLUMNS]; /* first the maxima, then factor/sum */
    double sum[FC_COLUMNS];
    FC_FN(column_exp)(y, x, n, ld, columns, share, sum);
    for (ptrdiff_t c = 0; c < columns; c++)
        share[c] = (REAL)((factor ? (double)((const REAL *)factor)[c] : 1.0) / sum[c]);
    for (ptrdiff_t i = 0; i < n; i++)
        FC_OVER_COLUMNS(columns, REAL *const at = y + i * ld + c;
                        v_store_n(at, FC_FN(softmax_y)(FC_LOAD(at, m), v_load(share + c)), m);)
}

static void FC_FN(log_softmax_columns)(void *vy, const void *vx, const void *factor, ptrdiff_t n,
                                       ptrdiff_t ld, ptrdiff_t columns) {
    REAL *const y = vy;
    const REAL *const x = vx;
    REAL max[FC_COLUMNS], log_sum[FC_COLUMNS];
    double sum[FC_COLUMNS];
    (void)factor;
    FC_FN(column_exp)(NULL, x, n, ld, columns, max, sum);
    for (ptrdiff_t c = 0; c < columns; c++) log_sum[c] = (REAL)log(sum[c]); /* one libm call each */
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL *const ahead = y + FC_FN(row_ahead)(i, n, ld);
        FC_OVER_COLUMNS(columns, FC_PREFETCH(ahead + c);
                        const V v = v_sub(FC_LOAD(x + i * ld + c, m), v_load(max + c));
                        v_store_n(y + i * ld + c, v_sub(v, v_load(log_sum + c)), m);)
    }
}

/* The columns' sums of dy*y, or of dy where y is NULL. */
static void FC_FN(column_dots)(const REAL *dy, const REAL *y, ptrdiff_t n, ptrdiff_t ld,
                               ptrdiff_t columns, REAL *dot) {
    REAL s[FC_COLUMNS];
    double sum[FC_COLUMNS];
    for (ptrdiff_t c = 0; c < columns; c++) sum[c] = 0;
    for (ptrdiff_t first = 0; first < n; first += SOFTMAX_TERMS) {
        const ptrdiff_t last = n - first < SOFTMAX_TERMS ? n : first + SOFTMAX_TERMS;
        FC_OVER_COLUMNS(columns, v_store(s + c, v_zero()); (void)m;)
        for (ptrdiff_t i = first; i < last; i++) {
            const ptrdiff_t ahead = FC_FN(row_ahead)(i, n, ld);
            FC_OVER_COLUMNS(
                columns, const V g = FC_LOAD(dy + i * ld + c, m); const V acc = v_load(s + c);
                FC_PREFETCH_READ(dy + ahead + c); if (y) FC_PREFETCH_READ(y + ahead + c);
                v_store(s + c, y ? v_fma(g, FC_LOAD(y + i * ld + c, m), acc) : v_add(g, acc));)
        }
        for (ptrdiff_t c = 0; c < columns; c++) sum[c] += s[c];
    }
    for (ptrdiff_t c = 0; c < columns; c++) dot[c] = (REAL)sum[c];
}

/* dx in place of dy */
static FC_INLINE void FC_FN(softmax_dx)(V *dy, V *y, const V *dot, const int nv) {
    FC_EACH dy[k] = v_mul(y[k], v_sub(dy[k], dot[k]));
}
static FC_INLINE void FC_FN(log_softmax_dx)(V *dy, V *y, const V *sum, const int nv) {
    FC_EACH y[k] = v_min(v_set1(FC_EXP_MAX), y[k]); /* any number may come; a NaN passes */
    FC_FN(exp)(y, nv);
    FC_EACH dy[k] = v_fnma(y[k], sum[k], dy[k]);
}

#define FC_SOFTMAX_COLUMNS_GRAD(name, weights, map) \
    static void FC_FN(name)(void *dx, const void *dy, const void *y, ptrdiff_t n, ptrdiff_t ld, \
                            ptrdiff_t columns) { \
        REAL dot[FC_COLUMNS]; \
        FC_FN(column_dots)(dy, weights, n, ld, columns, dot); \
        for (ptrdiff_t i = 0; i < n; i++) { \
            REAL *const ahead = (REAL *)dx + FC_FN(row_ahead)(i, n, ld); \
            FC_OVER_GROUPS(columns, V g[FC_TOGETHER]; V v[FC_TOGETHER]; V d[FC_TOGETHER]; \
                           const ptrdiff_t at = i * ld + c; \
                           FC_EACH FC_PREFETCH(ahead + c + k * VL); \
                           FC_EACH g[k] = FC_LOAD((const REAL *)dy + at + k * VL, m); \
                           FC_EACH v[k] = FC_LOAD((const REAL *)y + at + k * VL, m); \
                           FC_EACH d[k] = v_load(dot + c + k * VL); FC_FN(map)(g, v, d, nv); \
                           FC_EACH v_store_n((REAL *)dx + at + k * VL, g[k], m);) \
        } \
    }
FC_SOFTMAX_COLUMNS_GRAD(softmax_columns_grad, y, softmax_dx)
FC_SOFTMAX_COLUMNS_GRAD(log_softmax_columns_grad, NULL, log_softmax_dx)
#undef FC_SOFTMAX_COLUMNS_GRAD

/* ---- rows */

/* Sum of exp(x - max); y = exp(x - max)/FC_EXP_UNIT unless it is NULL. Asks for what lies `ahead`
 * of both. */
static double FC_FN(row_exp)(REAL *y, const REAL *x, ptrdiff_t n, REAL max, ptrdiff_t ahead) {
    double sum = 0;
    for (ptrdiff_t first = 0; first < n; first += SOFTMAX_TERMS * VL) {
        const ptrdiff_t block = n - first < SOFTMAX_TERMS * VL ? n - first : SOFTMAX_TERMS * VL;
        V s = v_zero();
        FC_OVER_GROUPS(block, V e[FC_TOGETHER]; const ptrdiff_t at = first + c;
                       FC_EACH FC_PREFETCH_READ(x + ahead + at + k * VL);
                       if (y) FC_EACH FC_PREFETCH(y + ahead + at + k * VL);
                       FC_EACH e[k] = v_sub(FC_LOAD(x + at + k * VL, m), v_set1(max));
                       FC_FN(exp_units)(e, nv); FC_EACH s = v_add(s, FC_FN(lanes)(e[k], m));
                       if (y) FC_EACH v_store_n(y + at + k * VL, e[k], m);)
        sum += (double)v_hsum(s);
    }
    return sum * FC_EXP_UNIT;
}

/* The maxima of some rows, and their sums: pass by pass, so that the end of one row does not wait
 * for that of another. */
static void FC_FN(rows_exp)(REAL *y, const REAL *x, ptrdiff_t rows, ptrdiff_t n, ptrdiff_t ahead,
                            REAL *max, double *sum) {
    for (ptrdiff_t r = 0; r < rows; r++) max[r] = FC_FN(row_max)(x + r * n, n);
    for (ptrdiff_t r = 0; r < rows; r++)
        sum[r] = FC_FN(row_exp)(y ? y + r * n : NULL, x + r * n, n, max[r], ahead);
}

static void FC_FN(softmax_rows)(REAL *y, const REAL *x, const REAL *factor, ptrdiff_t rows,
                                ptrdiff_t n, ptrdiff_t ahead) {
    REAL max[SOFTMAX_GROUP / SOFTMAX_SHORT];
    double sum[SOFTMAX_GROUP / SOFTMAX_SHORT];
    FC_FN(rows_exp)(y, x, rows, n, ahead, max, sum);
    for (ptrdiff_t r = 0; r < rows; r++, y += n) {
        const V share = v_set1((REAL)((factor ? (double)factor[r] : 1.0) / sum[r]));
        FC_OVER_COLUMNS(n, v_store_n(y + c, FC_FN(softmax_y)(FC_LOAD(y + c, m), share), m);)
    }
}

static void FC_FN(log_softmax_rows)(REAL *y, const REAL *x, const REAL *factor, ptrdiff_t rows,
                                    ptrdiff_t n, ptrdiff_t ahead) {
    REAL max[SOFTMAX_GROUP / SOFTMAX_SHORT];
    double sum[SOFTMAX_GROUP / SOFTMAX_SHORT];
    (void)factor;
    FC_FN(rows_exp)(NULL, x, rows, n, ahead, max, sum);
    for (ptrdiff_t r = 0; r < rows; r++, y += n, x += n) {
        const V top = v_set1(max[r]), log_sum = v_set1((REAL)log(sum[r])); /* one libm call */
        FC_OVER_COLUMNS(n, FC_PREFETCH(y + ahead + c); const V v = v_sub(FC_LOAD(x + c, m), top);
                        v_store_n(y + c, v_sub(v, log_sum), m);)
    }
}

static double FC_FN(row_dot)(const REAL *dy, const REAL *y, ptrdiff_t n) {
    double sum = 0;
    for (ptrdiff_t first = 0; first < n; first += SOFTMAX_TERMS * VL) {
        const ptrdiff_t block = n - first < SOFTMAX_TERMS * VL ? n - first : SOFTMAX_TERMS * VL;
        V s = v_zero();
        FC_OVER_COLUMNS(block, const V g = FC_LOAD(dy + first + c, m);
                        s = y ? v_fma(g, FC_LOAD(y + first + c, m), s) : v_add(g, s);)
        sum += (double)v_hsum(s);
    }
    return sum;
}

static void FC_FN(softmax_row_grad)(REAL *dx, const REAL *dy, const REAL *y, ptrdiff_t n) {
    const V dot = v_set1((REAL)FC_FN(row_dot)(dy, y, n));
    FC_OVER_COLUMNS(n, V g = FC_LOAD(dy + c, m); V v = FC_LOAD(y + c, m);
                    FC_FN(softmax_dx)(&g, &v, &dot, 1); v_store_n(dx + c, g, m);)
}

static void FC_FN(log_softmax_row_grad)(REAL *dx, const REAL *dy, const REAL *y, ptrdiff_t n) {
    V g[FC_TOGETHER], v[FC_TOGETHER], sum[FC_TOGETHER];
    const V total = v_set1((REAL)FC_FN(row_dot)(dy, NULL, n));
    FC_OVER_GROUPS(n, FC_EACH g[k] = FC_LOAD(dy + c + k * VL, m);
                   FC_EACH v[k] = FC_LOAD(y + c + k * VL, m); FC_EACH sum[k] = total;
                   FC_FN(log_softmax_dx)(g, v, sum, nv);
                   FC_EACH v_store_n(dx + c + k * VL, g[k], m);)
}

#define FC_SOFTMAX_ROWS(name) \
    static void FC_FN(name)(void *vy, const void *vx, const void *vfactor, ptrdiff_t rows, \
                            ptrdiff_t n) { \
        REAL *const y = vy; \
        const REAL *const x = vx, *const factor = vfactor; \
        if (n >= SOFTMAX_SHORT) { \
            ptrdiff_t some = n < SOFTMAX_GROUP ? SOFTMAX_GROUP / n : 1; \
            for (ptrdiff_t r = 0; r < rows; r += some) { \
                const ptrdiff_t ahead = r + 2 * some <= rows ? some * n : 0; \
                some = rows - r < some ? rows - r : some; \
                FC_FN(name##_rows)(y + r * n, x + r * n, factor ? factor + r : NULL, some, n, \
                                   ahead); \
            } \
            return; \
        } \
        REAL t[SOFTMAX_SHORT * SOFTMAX_SHORT]; \
        for (ptrdiff_t r = 0; r < rows; r += SOFTMAX_SHORT) { \
            const ptrdiff_t some = rows - r < SOFTMAX_SHORT ? rows - r : SOFTMAX_SHORT; \
            FC_FN(transpose)(t, SOFTMAX_SHORT, x + r * n, n, some, n, some); \
            FC_FN(name##_columns)(t, t, factor ? factor + r : NULL, n, SOFTMAX_SHORT, some); \
            FC_FN(transpose)(y + r * n, n, t, SOFTMAX_SHORT, n, some, n); \
        } \
    } \
    static void FC_FN(name##_grad)(void *vdx, const void *vdy, const void *vy, ptrdiff_t rows, \
                                   ptrdiff_t n) { \
        for (ptrdiff_t at = 0; at < rows * n; at += n) FC_FN(name##_row_grad) \
        ((REAL *)vdx + at, (const REAL *)vdy + at, (const REAL *)vy + at, n); \
    }
FC_SOFTMAX_ROWS(softmax)
FC_SOFTMAX_ROWS(log_softmax)
#undef FC_SOFTMAX_ROWS
#undef FC_EXP_MAX
#undef FC_EXP_UNIT
#undef SOFTMAX_TERMS
#undef SOFTMAX_SHORT
#undef SOFTMAX_GROUP
#undef SOFTMAX_AHEAD

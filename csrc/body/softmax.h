/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * softmax(x)_i = exp(x_i - max)/sum, log_softmax(x)_i = x_i - max - log(sum), and their gradients
 * dx = y*(dy - sum(dy*y)) and dx = dy - exp(y)*sum(dy).
 * Sums run in the lanes for a block of terms, which is then folded into doubles. Long rows have
 * their terms in the lanes. Columns have a column in each lane, and so have short rows where there
 * are exponentials to save: these are transposed on the way in and out. Either way the exponentials
 * of FC_TOGETHER vectors, of as many sums, are computed together, and the next ones to come are
 * asked for meanwhile: they take about as long as their way from memory.
 */
#define SOFTMAX_TERMS 32  /* in a lane */
#define SOFTMAX_SHORT 32  /* rows of fewer elements are transposed, this many at a time */
#define SOFTMAX_LONG 512  /* rows of more, which would not stay in L1 together, go one by one */
#define SOFTMAX_SOON 1024 /* elements between what rows compute and what they ask for */

/* The first m lanes, the rest zero. */
static inline V FC_FN(lanes)(V v, ptrdiff_t m) {
    if (m == VL) return v;
    REAL lane[VL];
    v_store(lane, v);
    return v_load_n(lane, m);
}

/* ---- exponentials */

/* Asks for the lines in which whole vectors of a group end. What comes before them, where lines
 * begin inside vectors, is of the group before. */
static FC_INLINE void FC_FN(fetch_group)(const REAL *p) {
#pragma GCC unroll 16
    for (size_t end = FC_CACHE_LINE; end < FC_TOGETHER * VL * sizeof(REAL) + FC_CACHE_LINE;
         end += FC_CACHE_LINE)
        FC_PREFETCH((const char *)p + end - 1);
}

/* s += exp(x - max)/FC_EXP_UNIT, which y gets unless it is NULL: a vector of each of nv sums, which
 * are `apart` in memory. */
static FC_INLINE void FC_FN(exp_step)(REAL *y, const REAL *x, ptrdiff_t apart, const V *max, V *s,
                                      ptrdiff_t m, const int nv) {
    V e[FC_TOGETHER];
    FC_EACH e[k] = v_sub(FC_LOAD(x + k * apart, m), max[k]);
    FC_FN(exp_units)(e, nv);
    FC_EACH s[k] = v_add(s[k], FC_FN(lanes)(e[k], m));
    if (y) FC_EACH v_store_n(y + k * apart, e[k], m);
}

/* What exp_step leaves in y, times a share of the whole. */
static FC_INLINE V FC_FN(softmax_y)(V units, V share) {
    return v_mul(v_mul(units, v_set1(FC_EXP_UNIT)), share);
}

/* ---- columns */

/* t[n][nv*VL] = x, or exp(x - max)/FC_EXP_UNIT where `exp`, rows t_ld apart; the maxima of the
 * columns, and the sums of exp(x - max). A maximum may pass over a NaN: the sum is one then, and so
 * are all results. Asks for the lines of x that are `ahead` and for those of y. t may be y, but
 * then columns whose distance is a power of two share some sets of the caches. */
static FC_INLINE void FC_FN(column_exp)(REAL *t, ptrdiff_t t_ld, const REAL *x, const REAL *y,
                                        ptrdiff_t n, ptrdiff_t ld, ptrdiff_t ahead, const int exp,
                                        V *max, double *sum, ptrdiff_t m, const int nv) {
    REAL part[FC_TOGETHER * VL];
    V s[FC_TOGETHER];
    FC_EACH max[k] = FC_LOAD(x + k * VL, m);
    for (ptrdiff_t i = 0; i < n; i++) FC_EACH {
            const V v = FC_LOAD(x + i * ld + k * VL, m);
            max[k] = v_max(v, max[k]);
            v_store_n(t + i * t_ld + k * VL, v, m);
        }
    for (int i = 0; i < nv * VL; i++) sum[i] = 0;
    for (ptrdiff_t first = 0; first < n; first += SOFTMAX_TERMS) {
        const ptrdiff_t last = n - first < SOFTMAX_TERMS ? n : first + SOFTMAX_TERMS;
        FC_EACH s[k] = v_zero();
        for (ptrdiff_t i = first; i < last; i++) {
            REAL *const at = t + i * t_ld;
            FC_FN(fetch_group)(x + i * ld + ahead);
            FC_FN(fetch_group)(y + i * ld);
            FC_FN(exp_step)(exp ? at : NULL, at, VL, max, s, m, nv);
        }
        FC_EACH v_store(part + k * VL, s[k]);
        for (int i = 0; i < nv * VL; i++) sum[i] += part[i];
    }
    for (int i = 0; i < nv * VL; i++) sum[i] *= FC_EXP_UNIT;
}

/* From columns c on, of nv vectors: the distance to the next ones of this call, or 0. */
#define FC_AHEAD (c + 2 * nv * VL <= columns ? nv * VL : 0)

static void FC_FN(softmax_columns)(void *vy, const void *vx, const void *vfactor, ptrdiff_t n,
                                   ptrdiff_t ld, ptrdiff_t columns, void *scratch) {
    REAL *const y = vy;
    const REAL *const x = vx, *const factor = vfactor;
    double sum[FC_TOGETHER * VL];
    REAL share[FC_TOGETHER * VL];
    FC_OVER_GROUPS(
        columns, V max[FC_TOGETHER]; REAL *const t = scratch ? scratch : y + c;
        const ptrdiff_t t_ld = scratch ? nv * VL : ld;
        FC_FN(column_exp)(t, t_ld, x + c, y + c, n, ld, FC_AHEAD, 1, max, sum, m, nv);
        for (int i = 0; i < nv * VL; i++) {
            const double f = factor && c + i < columns ? (double)factor[c + i] : 1.0;
            share[i] = (REAL)(f / sum[i]);
        } for (ptrdiff_t i = 0; i < n; i++) FC_EACH {
            const V e = FC_LOAD(t + i * t_ld + k * VL, m);
            v_store_n(y + i * ld + c + k * VL, FC_FN(softmax_y)(e, v_load(share + k * VL)), m);
        })
}

static void FC_FN(log_softmax_columns)(void *vy, const void *vx, const void *factor, ptrdiff_t n,
                                       ptrdiff_t ld, ptrdiff_t columns, void *scratch) {
    REAL *const y = vy;
    const REAL *const x = vx;
    double sum[FC_TOGETHER * VL];
    REAL log_sum[FC_TOGETHER * VL];
    (void)factor;
    FC_OVER_GROUPS(
        columns, V max[FC_TOGETHER]; REAL *const t = scratch ? scratch : y + c;
        const ptrdiff_t t_ld = scratch ? nv * VL : ld;
        FC_FN(column_exp)(t, t_ld, x + c, y + c, n, ld, FC_AHEAD, 0, max, sum, m, nv);
        for (int i = 0; i < nv * VL; i++) log_sum[i] = (REAL)log(sum[i]); /* one libm call each */
        for (ptrdiff_t i = 0; i < n; i++) FC_EACH {
            const V v = v_sub(FC_LOAD(t + i * t_ld + k * VL, m), max[k]);
            v_store_n(y + i * ld + c + k * VL, v_sub(v, v_load(log_sum + k * VL)), m);
        })
}
#undef FC_AHEAD

/* ---- gradients of columns */

#define SOFTMAX_AHEAD 2 /* rows */

/* Row i + SOFTMAX_AHEAD, or the last one. */
static FC_INLINE ptrdiff_t FC_FN(row_ahead)(ptrdiff_t i, ptrdiff_t n, ptrdiff_t ld) {
    return (i + SOFTMAX_AHEAD < n ? i + SOFTMAX_AHEAD : n - 1) * ld;
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
                            ptrdiff_t columns, void *scratch) { \
        (void)scratch; \
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

/* The maxima of nv rows, and the sums of exp(x - max); y = exp(x - max)/FC_EXP_UNIT unless it is
 * NULL. A maximum may pass over a NaN, as above. Asks for what lies `ahead` of x and `to`. */
static FC_INLINE void FC_FN(row_exp)(REAL *y, const REAL *x, const REAL *to, ptrdiff_t n,
                                     ptrdiff_t ahead, V *max, double *sum, const int nv) {
    V s[FC_TOGETHER];
    FC_EACH max[k] = v_load(x + (k + 1) * n - VL);
    for (ptrdiff_t c = 0; c + VL < n; c += VL)
        FC_EACH max[k] = v_max(v_load(x + k * n + c), max[k]);
    FC_EACH max[k] = v_set1(v_hmax(max[k]));
    FC_EACH sum[k] = 0;
    for (ptrdiff_t first = 0; first < n; first += SOFTMAX_TERMS * VL) {
        const ptrdiff_t block = n - first < SOFTMAX_TERMS * VL ? n - first : SOFTMAX_TERMS * VL;
        FC_EACH s[k] = v_zero();
        FC_OVER_COLUMNS(block, const ptrdiff_t at = first + c;
                        FC_FN(fetch_group)(x + ahead + at * nv);
                        FC_FN(fetch_group)(to + ahead + at * nv);
                        FC_FN(exp_step)(y ? y + at : NULL, x + at, n, max, s, m, nv);)
        FC_EACH sum[k] += (double)v_hsum(s[k]);
    }
    FC_EACH sum[k] *= FC_EXP_UNIT;
}

static FC_INLINE void FC_FN(softmax_rows)(REAL *y, const REAL *x, const REAL *factor, ptrdiff_t n,
                                          ptrdiff_t ahead, const int nv) {
    V max[FC_TOGETHER];
    double sum[FC_TOGETHER];
    FC_FN(row_exp)(y, x, y, n, ahead, max, sum, nv);
    for (int k = 0; k < nv; k++, y += n) {
        const V share = v_set1((REAL)((factor ? (double)factor[k] : 1.0) / sum[k]));
        FC_OVER_COLUMNS(n, v_store_n(y + c, FC_FN(softmax_y)(FC_LOAD(y + c, m), share), m);)
    }
}

static FC_INLINE void FC_FN(log_softmax_rows)(REAL *y, const REAL *x, const REAL *factor,
                                              ptrdiff_t n, ptrdiff_t ahead, const int nv) {
    V max[FC_TOGETHER];
    double sum[FC_TOGETHER];
    (void)factor;
    FC_FN(row_exp)(NULL, x, y, n, ahead, max, sum, nv);
    for (int k = 0; k < nv; k++, y += n, x += n) {
        const V log_sum = v_set1((REAL)log(sum[k])); /* one libm call */
        FC_OVER_COLUMNS(n, v_store_n(y + c, v_sub(v_sub(FC_LOAD(x + c, m), max[k]), log_sum), m);)
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

/* Runs the body for FC_TOGETHER rows from r on, or for single ones: nv of them. */
#define FC_OVER_ROWS(body) \
    { \
        ptrdiff_t r = 0; \
        for (; n <= SOFTMAX_LONG && r + FC_TOGETHER <= rows; r += FC_TOGETHER) { \
            const int nv = FC_TOGETHER; \
            body \
        } \
        for (; r < rows; r++) { \
            const int nv = 1; \
            body \
        } \
    }
#define FC_SOFTMAX_ROWS(name) \
    static void FC_FN(name)(void *vy, const void *vx, const void *vfactor, ptrdiff_t rows, \
                            ptrdiff_t n) { \
        REAL *const y = vy; \
        const REAL *const x = vx, *const factor = vfactor; \
        if (n >= SOFTMAX_SHORT) { \
            FC_OVER_ROWS(const ptrdiff_t ahead = \
                             (r + nv) * n + SOFTMAX_SOON <= rows * n ? SOFTMAX_SOON : 0; \
                         FC_FN(name##_rows)(y + r * n, x + r * n, factor ? factor + r : NULL, n, \
                                            ahead, nv);) \
            return; \
        } \
        REAL t[SOFTMAX_SHORT * SOFTMAX_SHORT]; \
        REAL scratch[SOFTMAX_SHORT * FC_TOGETHER * VL]; \
        for (ptrdiff_t r = 0; r < rows; r += SOFTMAX_SHORT) { \
            const ptrdiff_t some = rows - r < SOFTMAX_SHORT ? rows - r : SOFTMAX_SHORT; \
            FC_FN(transpose)(t, SOFTMAX_SHORT, x + r * n, n, some, n, some); \
            FC_FN(name##_columns)(t, t, factor ? factor + r : NULL, n, SOFTMAX_SHORT, some, \
                                  scratch); \
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
#undef FC_OVER_ROWS
#undef FC_EXP_MAX
#undef FC_EXP_UNIT
#undef SOFTMAX_TERMS
#undef SOFTMAX_SHORT
#undef SOFTMAX_LONG
#undef SOFTMAX_SOON
#undef SOFTMAX_AHEAD

/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Statistics and affine maps of batch normalisation, and sums.
 * A sum runs in NORM_ACC vector accumulators over a block of at most NORM_BLOCK elements, which are
 * then folded into a double: the float part of the chain is NORM_BLOCK/(NORM_ACC*VL) additions
 * long, whatever the size. A channel is `batch` runs of `plane` elements, `stride` apart; a block
 * is several short runs or a part of a long one. Where a plane is one element, neighbours in memory
 * are channels: the column kernels keep them in the lanes.
 */
#define NORM_ACC 4
#define NORM_BLOCK 1024
#define NORM_ROWS 32 /* of a block of columns: the same chain */

/* acc[k] = term(acc[k], at, m) over `runs` runs of `n` elements: `at` is an offset, m <= VL the
 * number of elements there. */
#define FC_OVER_BLOCK(runs, stride, n, term) \
    for (ptrdiff_t r = 0; r < (runs); r++) { \
        ptrdiff_t i = 0; \
        for (; i + NORM_ACC * VL <= (n); i += NORM_ACC * VL) \
            _Pragma("GCC unroll 4") for (int k = 0; k < NORM_ACC; k++) { \
                term(k, r * (stride) + i + k * VL, VL) \
            } \
        for (; i + VL <= (n); i += VL) { \
            term(0, r * (stride) + i, VL) \
        } \
        if (i < (n)) { \
            term(0, r * (stride) + i, (n) - i) \
        } \
    }

static inline V FC_FN(fold_lanes)(const V *s) {
    return v_add(v_add(s[0], s[1]), v_add(s[2], s[3]));
}

static inline double FC_FN(fold)(const V *s) { return (double)v_hsum(FC_FN(fold_lanes)(s)); }

/* The sum of a block, whose terms are still in the lanes. */
static inline V FC_FN(lane_sums)(const REAL *x, ptrdiff_t runs, ptrdiff_t stride, ptrdiff_t n) {
    V s[NORM_ACC] = {v_zero(), v_zero(), v_zero(), v_zero()};
#define FC_TERM(k, at, m) s[k] = v_add(s[k], FC_LOAD(x + (at), m));
    FC_OVER_BLOCK(runs, stride, n, FC_TERM)
#undef FC_TERM
    return FC_FN(fold_lanes)(s);
}

static double FC_FN(sum_block)(const REAL *x, ptrdiff_t runs, ptrdiff_t stride, ptrdiff_t n) {
    return (double)v_hsum(FC_FN(lane_sums)(x, runs, stride, n));
}

static double FC_FN(sum)(const void *x, ptrdiff_t n) {
    double total = 0;
    for (ptrdiff_t i = 0; i < n; i += NORM_BLOCK)
        total +=
            FC_FN(sum_block)((const REAL *)x + i, 1, 0, n - i < NORM_BLOCK ? n - i : NORM_BLOCK);
    return total;
}

static int FC_FN(finite)(const void *vx, ptrdiff_t n) {
    const REAL *const x = vx;
    V s[NORM_ACC] = {v_zero(), v_zero(), v_zero(), v_zero()};
#define FC_TERM(k, at, m) \
    s[k] = v_fma(FC_LOAD(x + (at), m), v_zero(), s[k]); /* NaN once one is not finite */
    FC_OVER_BLOCK(1, 0, n, FC_TERM)
#undef FC_TERM
    return FC_FN(fold)(s) == 0;
}

/* Sum of d and of d^2, d = x - c. */
static void FC_FN(deviations)(const REAL *x, ptrdiff_t runs, ptrdiff_t stride, ptrdiff_t n, REAL c,
                              double *first, double *second) {
    V s[NORM_ACC] = {v_zero(), v_zero(), v_zero(), v_zero()};
    V q[NORM_ACC] = {v_zero(), v_zero(), v_zero(), v_zero()};
    const V centre = v_set1(c);
    REAL centres[VL]; /* of a tail, so that the lanes beyond it stay zero */
    v_store(centres, centre);
#define FC_TERM(k, at, m) \
    const V d = v_sub(FC_LOAD(x + (at), m), (m) == VL ? centre : v_load_n(centres, m)); \
    s[k] = v_add(s[k], d); \
    q[k] = v_fma(d, d, q[k]);
    FC_OVER_BLOCK(runs, stride, n, FC_TERM)
#undef FC_TERM
    *first = FC_FN(fold)(s);
    *second = FC_FN(fold)(q);
}

/*
 * Mean and variance come from one pass over d = x - c: mean = c + S1/n and sum (x - mean)^2 = S2 -
 * S1^2/n, which cancels nothing as long as c is near the mean. c is the mean of the first block, to
 * the nearest multiple of a power of two above its deviation: then d is exact, for integers too. If
 * that block was not like the others, a second pass takes c = mean.
 */
static double FC_FN(centre)(double mean, double variance) {
    int exponent;
    if (!(variance > 0 && variance < (double)INFINITY)) return mean;
    frexp(variance, &exponent);
    const double unit = ldexp(1, (exponent + 1) / 2);
    return unit * rint(mean / unit);
}

/* mean and m2 from their sums about c; whether c is more than two deviations off. */
static int FC_FN(finish)(double n, double c, double *mean, double *m2) {
    const double shift = *mean / n, excess = *mean * shift;
    *mean = c + shift;
    *m2 = *m2 < excess ? 0 : *m2 - excess;
    return excess > 4 * *m2;
}

static void FC_FN(moments)(const void *vx, ptrdiff_t batch, ptrdiff_t stride, ptrdiff_t plane,
                           double *mean, double *m2) {
    const ptrdiff_t together = plane < NORM_BLOCK ? NORM_BLOCK / plane : 1;
    const ptrdiff_t head_runs = batch < together ? batch : together;
    const ptrdiff_t head_n = plane < NORM_BLOCK ? plane : NORM_BLOCK;
    const double head = (double)(head_runs * head_n);
    double c = FC_FN(sum_block)(vx, head_runs, stride, head_n) / head, s, q;
    FC_FN(deviations)(vx, head_runs, stride, head_n, (REAL)c, &s, &q);
    if (head == (double)batch * (double)plane) { /* that was all */
        *mean = s;
        *m2 = q;
        FC_FN(finish)(head, (REAL)c, mean, m2);
        return;
    }
    c = (REAL)FC_FN(centre)(c, q / head);
    for (int pass = 0, off = 1; pass < 2 && off; pass++) {
        if (pass == 1) c = (REAL)*mean;
        *mean = *m2 = 0;
        for (ptrdiff_t b = 0; b < batch; b += together) {
            const ptrdiff_t runs = batch - b < together ? batch - b : together;
            for (ptrdiff_t i = 0; i < plane; i += NORM_BLOCK) {
                const ptrdiff_t n = plane - i < NORM_BLOCK ? plane - i : NORM_BLOCK;
                const REAL *const x = (const REAL *)vx + b * stride + i;
                FC_FN(deviations)(x, runs, stride, n, (REAL)c, &s, &q);
                *mean += s;
                *m2 += q;
            }
        }
        off = FC_FN(finish)((double)batch * (double)plane, c, mean, m2);
    }
}

/* sum dy and sum dy*(x - mean) */
static void FC_FN(norm_sums)(const void *vdy, const void *vx, ptrdiff_t batch, ptrdiff_t stride,
                             ptrdiff_t plane, double mean, double *sum, double *dot) {
    const ptrdiff_t together = plane < NORM_BLOCK ? NORM_BLOCK / plane : 1;
    const V centre = v_set1((REAL)mean);
    *sum = *dot = 0;
    for (ptrdiff_t b = 0; b < batch; b += together) {
        const ptrdiff_t runs = batch - b < together ? batch - b : together;
        for (ptrdiff_t i = 0; i < plane; i += NORM_BLOCK) {
            const ptrdiff_t n = plane - i < NORM_BLOCK ? plane - i : NORM_BLOCK;
            const REAL *const dy = (const REAL *)vdy + b * stride + i;
            const REAL *const x = (const REAL *)vx + b * stride + i;
            V s[NORM_ACC] = {v_zero(), v_zero(), v_zero(), v_zero()};
            V q[NORM_ACC] = {v_zero(), v_zero(), v_zero(), v_zero()};
#define FC_TERM(k, at, m) /* the lanes of dy beyond m are zero */ \
    const V g = FC_LOAD(dy + (at), m); \
    s[k] = v_add(s[k], g); \
    q[k] = v_fma(g, v_sub(FC_LOAD(x + (at), m), centre), q[k]);
            FC_OVER_BLOCK(runs, stride, n, FC_TERM)
#undef FC_TERM
            *sum += FC_FN(fold)(s);
            *dot += FC_FN(fold)(q);
        }
    }
}
#undef FC_OVER_BLOCK
#undef NORM_ACC

static inline V FC_FN(normalised)(V x, V mean, V scale, V shift) {
    return v_fma(v_sub(x, mean), scale, shift);
}

static inline V FC_FN(normalised_grad)(V dy, V x, V mean, V mean_dy, V slope, V scale) {
    return v_mul(v_fnma(v_sub(x, mean), slope, v_sub(dy, mean_dy)), scale);
}

/* Both maps take the runs in reverse: what the sums have read last is still in the cache. The last
 * vector of a run overlaps its neighbour; it is read first, as the result may take the place of x
 * or dy. */
static FC_INLINE void FC_FN(affine_to)(void *vy, const void *vx, ptrdiff_t batch, ptrdiff_t stride,
                                       ptrdiff_t plane, double mean, double scale, double shift,
                                       const int stream) {
    const V m = v_set1((REAL)mean), a = v_set1((REAL)scale), b = v_set1((REAL)shift);
    const ptrdiff_t end = plane - VL;
    for (ptrdiff_t run = batch - 1; run >= 0; run--) {
        REAL *const y = (REAL *)vy + run * stride;
        const REAL *const x = (const REAL *)vx + run * stride;
        if (end < 0) {
            v_store_n(y, FC_FN(normalised)(v_load_n(x, plane), m, a, b), plane);
            continue;
        }
        const V last = FC_FN(normalised)(v_load(x + end), m, a, b);
        for (ptrdiff_t i = 0; i < end; i += VL)
            FC_STORE(y + i, FC_FN(normalised)(v_load(x + i), m, a, b), VL, stream);
        FC_STORE(y + end, last, VL, stream);
    }
}

static void FC_FN(affine)(void *y, const void *x, ptrdiff_t batch, ptrdiff_t stride,
                          ptrdiff_t plane, double mean, double scale, double shift, int stream) {
    FC_STREAMED(stream, FC_FN(affine_to)(y, x, batch, stride, plane, mean, scale, shift, streams))
}

static FC_INLINE void FC_FN(norm_backward_to)(void *vdx, const void *vdy, const void *vx,
                                              ptrdiff_t batch, ptrdiff_t stride, ptrdiff_t plane,
                                              double mean, double mean_dy, double slope,
                                              double scale, const int stream) {
    const V m = v_set1((REAL)mean), g = v_set1((REAL)mean_dy);
    const V k = v_set1((REAL)slope), a = v_set1((REAL)scale);
    for (ptrdiff_t run = batch - 1; run >= 0; run--) {
        REAL *const dx = (REAL *)vdx + run * stride;
        const REAL *const dy = (const REAL *)vdy + run * stride;
        const REAL *const x = (const REAL *)vx + run * stride;
        ptrdiff_t i = 0;
        for (; i + VL <= plane; i += VL)
            FC_STORE(dx + i, FC_FN(normalised_grad)(v_load(dy + i), v_load(x + i), m, g, k, a), VL,
                     stream);
        if (i < plane) {
            const ptrdiff_t n = plane - i;
            v_store_n(dx + i,
                      FC_FN(normalised_grad)(v_load_n(dy + i, n), v_load_n(x + i, n), m, g, k, a),
                      n);
        }
    }
}

static void FC_FN(norm_backward)(void *dx, const void *dy, const void *x, ptrdiff_t batch,
                                 ptrdiff_t stride, ptrdiff_t plane, double mean, double mean_dy,
                                 double slope, double scale, int stream) {
    FC_STREAMED(stream, FC_FN(norm_backward_to)(dx, dy, x, batch, stride, plane, mean, mean_dy,
                                                slope, scale, streams))
}

/* ---- columns: element [row][column], `ld` apart in memory, at most FC_COLUMNS columns */

static void FC_FN(column_sum)(const REAL *x, ptrdiff_t rows, ptrdiff_t ld, ptrdiff_t columns,
                              REAL *s) {
    FC_OVER_COLUMNS(columns, v_store(s + c, v_zero()); (void)m;)
    for (ptrdiff_t r = 0; r < rows; r++, x += ld)
        FC_OVER_COLUMNS(columns, v_store(s + c, v_add(v_load(s + c), FC_LOAD(x + c, m)));)
}

static void FC_FN(column_deviations)(const REAL *x, ptrdiff_t rows, ptrdiff_t ld, ptrdiff_t columns,
                                     const REAL *centre, REAL *s, REAL *q) {
    FC_OVER_COLUMNS(columns, v_store(s + c, v_zero()); v_store(q + c, v_zero()); (void)m;)
    for (ptrdiff_t r = 0; r < rows; r++, x += ld)
        FC_OVER_COLUMNS(columns, const V d = v_sub(FC_LOAD(x + c, m), v_load(centre + c));
                        v_store(s + c, v_add(v_load(s + c), d));
                        v_store(q + c, v_fma(d, d, v_load(q + c)));)
}

static void FC_FN(column_moments)(const void *vx, ptrdiff_t rows, ptrdiff_t ld, ptrdiff_t columns,
                                  double *mean, double *m2) {
    REAL centre[FC_COLUMNS] = {0}, s[FC_COLUMNS] = {0}, q[FC_COLUMNS] = {0};
    const ptrdiff_t head = rows < NORM_ROWS ? rows : NORM_ROWS;
    FC_FN(column_sum)(vx, head, ld, columns, s);
    for (ptrdiff_t c = 0; c < columns; c++) centre[c] = s[c] / (REAL)head;
    FC_FN(column_deviations)(vx, head, ld, columns, centre, s, q);
    for (ptrdiff_t c = 0; c < columns; c++)
        centre[c] = (REAL)FC_FN(centre)(centre[c], (double)q[c] / (double)head);
    for (int pass = 0, off = 1; pass < 2 && off; pass++) {
        for (ptrdiff_t c = 0; c < columns; c++) {
            if (pass == 1) centre[c] = (REAL)mean[c];
            mean[c] = m2[c] = 0;
        }
        for (ptrdiff_t r = 0; r < rows; r += NORM_ROWS) {
            const ptrdiff_t n = rows - r < NORM_ROWS ? rows - r : NORM_ROWS;
            FC_FN(column_deviations)((const REAL *)vx + r * ld, n, ld, columns, centre, s, q);
            for (ptrdiff_t c = 0; c < columns; c++) {
                mean[c] += s[c];
                m2[c] += q[c];
            }
        }
        off = 0;
        for (ptrdiff_t c = 0; c < columns; c++)
            off |= FC_FN(finish)((double)rows, centre[c], mean + c, m2 + c);
    }
}

static void FC_FN(column_sums)(const void *vdy, const void *vx, ptrdiff_t rows, ptrdiff_t ld,
                               ptrdiff_t columns, const double *mean, double *sum, double *dot) {
    REAL centre[FC_COLUMNS] = {0}, s[FC_COLUMNS] = {0}, q[FC_COLUMNS] = {0};
    for (ptrdiff_t c = 0; c < columns; c++) {
        sum[c] = dot[c] = 0;
        centre[c] = (REAL)mean[c];
    }
    for (ptrdiff_t first = 0; first < rows; first += NORM_ROWS) {
        const ptrdiff_t last = rows - first < NORM_ROWS ? rows : first + NORM_ROWS;
        FC_OVER_COLUMNS(columns, v_store(s + c, v_zero()); v_store(q + c, v_zero()); (void)m;)
        for (ptrdiff_t r = first; r < last; r++) {
            const REAL *const dy = (const REAL *)vdy + r * ld, *const x = (const REAL *)vx + r * ld;
            FC_OVER_COLUMNS(columns, const V g = FC_LOAD(dy + c, m);
                            const V d = v_sub(FC_LOAD(x + c, m), v_load(centre + c));
                            v_store(s + c, v_add(v_load(s + c), g));
                            v_store(q + c, v_fma(g, d, v_load(q + c)));)
        }
        for (ptrdiff_t c = 0; c < columns; c++) {
            sum[c] += s[c];
            dot[c] += q[c];
        }
    }
}

static void FC_FN(column_affine)(void *vy, const void *vx, ptrdiff_t rows, ptrdiff_t ld,
                                 ptrdiff_t columns, const double *mean, const double *scale,
                                 const double *shift) {
    REAL centre[FC_COLUMNS] = {0}, a[FC_COLUMNS] = {0}, b[FC_COLUMNS] = {0};
    for (ptrdiff_t c = 0; c < columns; c++) {
        centre[c] = (REAL)mean[c];
        a[c] = (REAL)scale[c];
        b[c] = (REAL)shift[c];
    }
    for (ptrdiff_t r = rows - 1; r >= 0; r--) {
        REAL *const y = (REAL *)vy + r * ld;
        const REAL *const x = (const REAL *)vx + r * ld;
        FC_OVER_COLUMNS(columns, v_store_n(y + c,
                                           FC_FN(normalised)(FC_LOAD(x + c, m), v_load(centre + c),
                                                             v_load(a + c), v_load(b + c)),
                                           m);)
    }
}

static void FC_FN(column_backward)(void *vdx, const void *vdy, const void *vx, ptrdiff_t rows,
                                   ptrdiff_t ld, ptrdiff_t columns, const double *mean,
                                   const double *mean_dy, const double *slope,
                                   const double *scale) {
    REAL centre[FC_COLUMNS] = {0}, g[FC_COLUMNS] = {0}, k[FC_COLUMNS] = {0}, a[FC_COLUMNS] = {0};
    for (ptrdiff_t c = 0; c < columns; c++) {
        centre[c] = (REAL)mean[c];
        g[c] = (REAL)mean_dy[c];
        k[c] = (REAL)slope[c];
        a[c] = (REAL)scale[c];
    }
    for (ptrdiff_t r = rows - 1; r >= 0; r--) {
        REAL *const dx = (REAL *)vdx + r * ld;
        const REAL *const dy = (const REAL *)vdy + r * ld, *const x = (const REAL *)vx + r * ld;
        FC_OVER_COLUMNS(columns,
                        v_store_n(dx + c,
                                  FC_FN(normalised_grad)(FC_LOAD(dy + c, m), FC_LOAD(x + c, m),
                                                         v_load(centre + c), v_load(g + c),
                                                         v_load(k + c), v_load(a + c)),
                                  m);)
    }
}
#undef NORM_BLOCK
#undef NORM_ROWS

/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sums over one run of a channel, and the affine maps of batch normalisation.
 * A sum runs in NORM_ACC vector accumulators over NORM_CHUNK elements, which are then folded into a
 * double: the float part of the chain is NORM_CHUNK/(NORM_ACC*VL) additions long, whatever n is.
 */
#define NORM_ACC 4
#define NORM_CHUNK 1024

#define FC_SUM(name, args, term) \
    static double FC_FN(name) args { \
        double total = 0; \
        for (ptrdiff_t start = 0; start < n; start += NORM_CHUNK) { \
            const ptrdiff_t stop = n - start < NORM_CHUNK ? n : start + NORM_CHUNK; \
            V s[NORM_ACC]; \
            for (int k = 0; k < NORM_ACC; k++) s[k] = v_zero(); \
            ptrdiff_t i = start; \
            for (; i + NORM_ACC * VL <= stop; i += NORM_ACC * VL) \
                for (int k = 0; k < NORM_ACC; k++) { \
                    const ptrdiff_t at = i + k * VL, m = VL; \
                    s[k] = term(s[k], at, m); \
                } \
            for (; i < stop; i += VL) { \
                const ptrdiff_t at = i, m = stop - i < VL ? stop - i : VL; \
                s[0] = term(s[0], at, m); \
            } \
            total += (double)v_hsum(v_add(v_add(s[0], s[1]), v_add(s[2], s[3]))); \
        } \
        return total; \
    }

#define FC_LOAD(p, at, m) \
    ((m) == VL ? v_load((const REAL *)(p) + (at)) : v_load_n((const REAL *)(p) + (at), m))
/* (x - mean) with the lanes beyond m zero: there x is the mean itself. */
static inline V FC_FN(deviation)(const REAL *x, ptrdiff_t m, V mean) {
    if (m == VL) return v_sub(v_load(x), mean);
    REAL lane[VL];
    v_store(lane, v_sub(v_load_n(x, m), mean));
    return v_load_n(lane, m);
}

#define FC_TERM_SUM(s, at, m) v_add(s, FC_LOAD(x, at, m))
FC_SUM(sum, (const void *x, ptrdiff_t n), FC_TERM_SUM)

static inline V FC_FN(add_square)(V s, V d) { return v_fma(d, d, s); }
#define FC_TERM_SQ(s, at, m) \
    FC_FN(add_square)(s, FC_FN(deviation)((const REAL *)x + (at), m, v_set1((REAL)mean)))
FC_SUM(sum_sq_dev, (const void *x, ptrdiff_t n, double mean), FC_TERM_SQ)

#define FC_TERM_DOT(s, at, m) \
    v_fma(FC_LOAD(dy, at, m), FC_FN(deviation)((const REAL *)x + (at), m, v_set1((REAL)mean)), s)
FC_SUM(sum_dot_dev, (const void *dy, const void *x, ptrdiff_t n, double mean), FC_TERM_DOT)

#undef FC_TERM_SUM
#undef FC_TERM_SQ
#undef FC_TERM_DOT
#undef FC_SUM
#undef NORM_ACC
#undef NORM_CHUNK

static void FC_FN(affine)(void *vy, const void *vx, ptrdiff_t n, double mean, double scale,
                          double shift) {
    REAL *const y = vy;
    const REAL *const x = vx;
    const V m = v_set1((REAL)mean), a = v_set1((REAL)scale), b = v_set1((REAL)shift);
    ptrdiff_t i = 0;
    for (; i + VL <= n; i += VL) v_store(y + i, v_fma(v_sub(v_load(x + i), m), a, b));
    if (i < n) v_store_n(y + i, v_fma(v_sub(v_load_n(x + i, n - i), m), a, b), n - i);
}

static void FC_FN(norm_backward)(void *vdx, const void *vdy, const void *vx, ptrdiff_t n,
                                 double mean, double mean_dy, double slope, double scale) {
    REAL *const dx = vdx;
    const REAL *const dy = vdy, *const x = vx;
    const V m = v_set1((REAL)mean), g = v_set1((REAL)mean_dy);
    const V k = v_set1((REAL)slope), a = v_set1((REAL)scale);
    for (ptrdiff_t i = 0; i < n; i += VL) {
        const ptrdiff_t left = n - i < VL ? n - i : VL;
        const V centred = v_sub(FC_LOAD(x, i, left), m);
        const V d = v_fnma(centred, k, v_sub(FC_LOAD(dy, i, left), g));
        v_store_n(dx + i, v_mul(d, a), left);
    }
}
#undef FC_LOAD

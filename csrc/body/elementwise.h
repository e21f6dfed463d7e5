/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Activations, with exp and expm1 of our own: no libm call in a loop.
 *
 * exp(x) = 2^n * exp(r), n = round(x/ln 2), r = x - n*ln 2 in two steps (the high part of ln 2 has
 * enough trailing zeros for n*high to be exact), so |r| <= ln(2)/2 = 0.3466. exp(r) is its Taylor
 * sum up to r^d/d!; the remainder r^(d+1)/(d+1)! is 5e-9 for d = 7 (float) and 4e-18 for d = 13
 * (double), under half an ulp.
 */
#if FC_F64
#define FC_LN2_HIGH 0x1.62e42feep-1 /* 32 bits: exact times |n| < 2^20 */
#define FC_LN2_LOW 0x1.a39ef35793c76p-33
#define FC_EXP_DEGREE 13
#define FC_EXP_MIN (-745.2) /* exp is 0 below ln(2^-1075) */
#define FC_EXP_MAX 709.8    /* and infinite above ln(2^1024) */
#define FC_TANH_ONE 20.0    /* 1 - tanh(x) < 2^-54 from here on: 2*exp(-2x) */
#else
#define FC_LN2_HIGH 0x1.63p-1f /* 9 bits: exact times |n| < 2^15 */
#define FC_LN2_LOW (-0x1.bd0106p-13f)
#define FC_EXP_DEGREE 7
#define FC_EXP_MIN (-104.0f)
#define FC_EXP_MAX 88.8f
#define FC_TANH_ONE 10.0f
#endif

/* expm1(r)/r = sum_k r^(k-1)/k!, by Horner's rule. */
static inline V FC_FN(expm1_over_r)(V r) {
    static const double inverse_factorial[14] = {1.0,
                                                 1.0,
                                                 1.0 / 2,
                                                 1.0 / 6,
                                                 1.0 / 24,
                                                 1.0 / 120,
                                                 1.0 / 720,
                                                 1.0 / 5040,
                                                 1.0 / 40320,
                                                 1.0 / 362880,
                                                 1.0 / 3628800,
                                                 1.0 / 39916800,
                                                 1.0 / 479001600,
                                                 1.0 / 6227020800.0};
    V s = v_set1(inverse_factorial[FC_EXP_DEGREE]);
#pragma GCC unroll 16
    for (int k = FC_EXP_DEGREE - 1; k >= 1; k--) s = v_fma(s, r, v_set1(inverse_factorial[k]));
    return s;
}

static inline V FC_FN(exp_reduce)(V x, V *n) {
    *n = v_round(v_mul(x, v_set1(1.4426950408889634)));
    const V r = v_fnma(*n, v_set1(FC_LN2_HIGH), x);
    return v_fnma(*n, v_set1(FC_LN2_LOW), r);
}

static inline V FC_FN(exp)(V x) {
    x = v_min(v_set1(FC_EXP_MAX), v_max(v_set1(FC_EXP_MIN), x)); /* a NaN passes both */
    V n;
    const V r = FC_FN(exp_reduce)(x, &n);
    const V e = v_fma(FC_FN(expm1_over_r)(r), r, v_set1(1));
    /* 2^n in two factors: n reaches beyond the exponents of normal numbers at both ends. */
    const V half = v_floor(v_mul(n, v_set1(0.5)));
    return v_mul(v_mul(e, v_pow2(half)), v_pow2(v_sub(n, half)));
}

/* tanh(a) = E/(E + 2), E = expm1(2a) = 2^n*expm1(r) + (2^n - 1), for a = |x|; the sign is put back.
 */
static inline V FC_FN(tanh)(V x) {
    const V a = v_min(v_set1(FC_TANH_ONE), v_abs(x));
    V n;
    const V r = FC_FN(exp_reduce)(v_add(a, a), &n);
    const V scale = v_pow2(n);
    const V e = v_fma(v_mul(FC_FN(expm1_over_r)(r), r), scale, v_sub(scale, v_set1(1)));
    const V t = v_div(e, v_add(e, v_set1(2)));
    return v_select(v_lt(x, v_zero()), v_sub(v_zero(), t),
                    v_select(v_lt(v_zero(), x), t, x)); /* +-0 and NaN */
}

/* sigmoid(x) = 1/(1 + e) for x >= 0 and e/(1 + e) for x < 0, e = exp(-|x|): no overflow, no
 * cancellation. */
static inline V FC_FN(sigmoid)(V x) {
    const V e = FC_FN(exp)(v_sub(v_zero(), v_abs(x)));
    const V s = v_div(v_select(v_lt(x, v_zero()), e, v_set1(1)), v_add(e, v_set1(1)));
    return v_select(v_isnan(x), x, s);
}

static inline V FC_FN(relu)(V x) { return v_max(v_zero(), x); }

/* f'(x) for each activation, times dy. As in torch relu'(0) = 0, and where x is NaN dy passes (not
 * x <= 0). */
static inline V FC_FN(relu_grad)(V dy, V x) {
    return v_select(v_lt(v_zero(), x), dy, v_select(v_isnan(x), dy, v_zero()));
}
static inline V FC_FN(tanh_grad)(V dy, V x) {
    const V t = FC_FN(tanh)(x);
    return v_mul(dy, v_fnma(t, t, v_set1(1)));
}
static inline V FC_FN(sigmoid_grad)(V dy, V x) {
    const V s = FC_FN(sigmoid)(x);
    return v_mul(dy, v_mul(s, v_sub(v_set1(1), s)));
}

#define FC_MAP(f) \
    static void FC_FN(map_##f)(void *vy, const void *vx, ptrdiff_t n) { \
        REAL *const y = vy; \
        const REAL *const x = vx; \
        ptrdiff_t i = 0; \
        for (; i + VL <= n; i += VL) v_store(y + i, FC_FN(f)(v_load(x + i))); \
        if (i < n) v_store_n(y + i, FC_FN(f)(v_load_n(x + i, n - i)), n - i); \
    } \
    static void FC_FN(map_##f##_grad)(void *vdx, const void *vdy, const void *vx, ptrdiff_t n) { \
        REAL *const dx = vdx; \
        const REAL *const dy = vdy, *const x = vx; \
        ptrdiff_t i = 0; \
        for (; i + VL <= n; i += VL) \
            v_store(dx + i, FC_FN(f##_grad)(v_load(dy + i), v_load(x + i))); \
        if (i < n) \
            v_store_n(dx + i, FC_FN(f##_grad)(v_load_n(dy + i, n - i), v_load_n(x + i, n - i)), \
                      n - i); \
    }
FC_MAP(relu)
FC_MAP(tanh)
FC_MAP(sigmoid)
#undef FC_MAP

/* The larger one; a NaN is larger than all numbers, and v wins over acc where both are NaN. */
static inline V FC_FN(larger)(V v, V acc) { return v_select(v_isnan(v), v, v_max(v, acc)); }

/* max over a row; a NaN anywhere wins. The last vector overlaps the one before it. */
static REAL FC_FN(row_max)(const REAL *x, ptrdiff_t n) {
    if (n < VL) {
        REAL m = x[0];
        for (ptrdiff_t i = 1; i < n; i++) m = x[i] > m || x[i] != x[i] ? x[i] : m;
        return m;
    }
    V acc = v_load(x + n - VL);
    for (ptrdiff_t i = 0; i + VL < n; i += VL) acc = FC_FN(larger)(v_load(x + i), acc);
    const V nans = v_select(v_isnan(acc), v_set1(1), v_zero());
    return v_hmax(nans) > 0 ? (REAL)NAN : v_hmax(acc);
}

#undef FC_LN2_HIGH
#undef FC_LN2_LOW
#undef FC_EXP_DEGREE
#undef FC_EXP_MIN
#undef FC_EXP_MAX
#undef FC_TANH_ONE

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
#define FC_EXP_BIAS 53      /* -1075 + 53 is the exponent of a normal number */
#define FC_EXP_MAX 673.1    /* ln(2^(1024 - 53)) */
#define FC_TANH_ONE 20.0    /* 1 - tanh(x) < 2^-54 from here on: 2*exp(-2x) */
#else
#define FC_LN2_HIGH 0x1.63p-1f /* 9 bits: exact times |n| < 2^15 */
#define FC_LN2_LOW (-0x1.bd0106p-13f)
#define FC_EXP_DEGREE 7
#define FC_EXP_MIN (-104.0f)
#define FC_EXP_BIAS 25
#define FC_EXP_MAX 71.4f
#define FC_TANH_ONE 10.0f
#endif

/* s = expm1(r)/r = sum_i r^(i-1)/i!, by Horner's rule. */
static FC_INLINE void FC_FN(expm1_over_r)(V *s, const V *r, const int nv) {
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
    FC_EACH s[k] = v_set1(inverse_factorial[FC_EXP_DEGREE]);
#pragma GCC unroll 16
    for (int i = FC_EXP_DEGREE - 1; i >= 1; i--)
        FC_EACH s[k] = v_fma(s[k], r[k], v_set1(inverse_factorial[i]));
}

/* r = x - n*ln 2, in place of x */
static FC_INLINE void FC_FN(exp_reduce)(V *x, V *n, const int nv) {
    FC_EACH n[k] = v_round(v_mul(x[k], v_set1(1.4426950408889634)));
    FC_EACH x[k] = v_fnma(n[k], v_set1(FC_LN2_HIGH), x[k]);
    FC_EACH x[k] = v_fnma(n[k], v_set1(FC_LN2_LOW), x[k]);
}

/* exp(x), in place, for x <= 0 and what rounding makes of it: it is infinite above FC_EXP_MAX.
 * There 2^(n + FC_EXP_BIAS) is; below -FC_EXP_BIAS it is normal where 2^n is not. */
static FC_INLINE void FC_FN(exp)(V *x, const int nv) {
    V n[FC_TOGETHER], s[FC_TOGETHER];
    FC_EACH x[k] = v_max(v_set1(FC_EXP_MIN), x[k]); /* a NaN passes both */
    FC_EACH x[k] = v_min(v_set1(FC_EXP_MAX), x[k]);
    FC_FN(exp_reduce)(x, n, nv);
    FC_FN(expm1_over_r)(s, x, nv);
    FC_EACH x[k] = v_fma(s[k], x[k], v_set1(1));
    FC_EACH x[k] = v_mul(x[k], v_pow2(n[k], FC_EXP_BIAS));
    FC_EACH x[k] = v_mul(x[k], v_set1(1.0 / ((int64_t)1 << FC_EXP_BIAS)));
}

/* tanh(x), in place: with the sign of x tanh(a) = E/(E + 2), E = expm1(2a) = 2^n*expm1(r) + (2^n -
 * 1), for a = |x|. */
static FC_INLINE void FC_FN(tanh)(V *x, const int nv) {
    V n[FC_TOGETHER], r[FC_TOGETHER], s[FC_TOGETHER];
    FC_EACH r[k] = v_min(v_set1(FC_TANH_ONE), v_abs(x[k]));
    FC_EACH r[k] = v_add(r[k], r[k]);
    FC_FN(exp_reduce)(r, n, nv);
    FC_FN(expm1_over_r)(s, r, nv);
    FC_EACH r[k] = v_mul(s[k], r[k]);
    FC_EACH n[k] = v_pow2(n[k], 0);
    FC_EACH s[k] = v_fma(r[k], n[k], v_sub(n[k], v_set1(1)));
    FC_EACH x[k] = v_copysign(v_div(s[k], v_add(s[k], v_set1(2))), x[k]);
}

/* sigmoid(x), in place: 1/(1 + e) for x >= 0 and e/(1 + e) for x < 0, e = exp(-|x|): no overflow,
 * no cancellation. */
static FC_INLINE void FC_FN(sigmoid)(V *x, const int nv) {
    V e[FC_TOGETHER];
    FC_EACH e[k] = v_sub(v_zero(), v_abs(x[k]));
    FC_FN(exp)(e, nv);
    FC_EACH x[k] = v_select(v_lt(x[k], v_zero()), e[k], v_set1(1));
    FC_EACH x[k] = v_div(x[k], v_add(e[k], v_set1(1)));
}

static FC_INLINE void FC_FN(relu)(V *x, const int nv) { FC_EACH x[k] = v_max(v_zero(), x[k]); }

/* dy*f'(x) for each activation, in place of dy. As in torch relu'(0) = 0, and where x is NaN dy
 * passes (not x <= 0). */
static FC_INLINE void FC_FN(relu_grad)(V *dy, V *x, const int nv) {
    FC_EACH dy[k] = v_select(v_lt(v_zero(), x[k]), dy[k], v_select(v_isnan(x[k]), dy[k], v_zero()));
}
static FC_INLINE void FC_FN(tanh_grad)(V *dy, V *x, const int nv) {
    FC_FN(tanh)(x, nv);
    FC_EACH dy[k] = v_mul(dy[k], v_fnma(x[k], x[k], v_set1(1)));
}
static FC_INLINE void FC_FN(sigmoid_grad)(V *dy, V *x, const int nv) {
    FC_FN(sigmoid)(x, nv);
    FC_EACH dy[k] = v_mul(dy[k], v_mul(x[k], v_sub(v_set1(1), x[k])));
}

#define FC_MAP(f) \
    static void FC_FN(map_##f)(void *y, const void *x, ptrdiff_t n) { \
        V v[FC_TOGETHER]; \
        FC_OVER_GROUPS(n, FC_EACH v[k] = FC_LOAD((const REAL *)x + c + k * VL, m); \
                       FC_FN(f)(v, nv); FC_EACH v_store_n((REAL *)y + c + k * VL, v[k], m);) \
    } \
    static void FC_FN(map_##f##_grad)(void *dx, const void *dy, const void *x, ptrdiff_t n) { \
        V v[FC_TOGETHER], g[FC_TOGETHER]; \
        FC_OVER_GROUPS(n, FC_EACH v[k] = FC_LOAD((const REAL *)x + c + k * VL, m); \
                       FC_EACH g[k] = FC_LOAD((const REAL *)dy + c + k * VL, m); \
                       FC_FN(f##_grad)(g, v, nv); \
                       FC_EACH v_store_n((REAL *)dx + c + k * VL, g[k], m);) \
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
    return v_any(v_isnan(acc)) ? (REAL)NAN : v_hmax(acc);
}

#undef FC_LN2_HIGH
#undef FC_LN2_LOW
#undef FC_EXP_DEGREE
#undef FC_EXP_MIN
#undef FC_EXP_MAX
#undef FC_EXP_BIAS
#undef FC_TANH_ONE

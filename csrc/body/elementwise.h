/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Activations, with exp and expm1 of our own: no libm call in a loop.
 *
 * exp(x) = 2^i * exp(r), i = round(x/ln 2), r = x - i*ln 2 in two steps (the high part of ln 2 has
 * enough trailing zeros for i*high to be exact), so |r| <= ln(2)/2 = 0.3466. exp(r) = 1 + r*(1 +
 * r*q(r)), where q is the polynomial of degree FC_EXP_TERMS - 1 through (expm1(r)/r - 1)/r at the
 * Chebyshev points of that interval. With its coefficients rounded exp(r) is 0.08 eps off at most,
 * and expm1(r) 0.2 eps, in both types.
 */
#if FC_F64
#define FC_LN2_HIGH 0x1.62e42feep-1 /* 32 bits: exact times |i| < 2^20 */
#define FC_LN2_LOW 0x1.a39ef35793c76p-33
#define FC_EXP_TERMS 10
#define FC_EXP_Q \
    {0x1.0000000000001p-1,  0x1.5555555555556p-3,  0x1.5555555553d68p-5,  0x1.11111111109b5p-7, \
     0x1.6c16c17889ef1p-10, 0x1.a01a01a7c2efep-13, 0x1.a019b9149a41cp-16, 0x1.71de0db2f6b19p-19, \
     0x1.28917c89a43a7p-22, 0x1.af389ecfc4b9cp-26}
#define FC_EXP_MIN (-745.2) /* exp is 0 below ln(2^-1075) */
#define FC_EXP_BIAS 53      /* -1075 + 53 is the exponent of a normal number */
#define FC_EXP_UNIT 0x1p-53
#define FC_EXP_MAX 673.1 /* ln(2^(1024 - 53)) */
#define FC_TANH_ONE 20.0 /* 1 - tanh(x) < 2^-54 from here on: 2*exp(-2x) */
#else
#define FC_LN2_HIGH 0x1.63p-1f /* 9 bits: exact times |i| < 2^15 */
#define FC_LN2_LOW (-0x1.bd0106p-13f)
#define FC_EXP_TERMS 5
#define FC_EXP_Q {0x1p-1f, 0x1.5554dep-3f, 0x1.55551ap-5f, 0x1.120b62p-7f, 0x1.6d10fcp-10f}
#define FC_EXP_MIN (-104.0f)
#define FC_EXP_BIAS 25
#define FC_EXP_UNIT 0x1p-25f
#define FC_EXP_MAX 71.4f
#define FC_TANH_ONE 10.0f
#endif

/* s = expm1(r)/r = 1 + r*q(r), by Horner's rule. A coefficient is a register for all vectors: an
 * operand in memory for each would take more loads than there are multiply-adds. */
static FC_INLINE void FC_FN(expm1_over_r)(V *s, const V *r, const int nv) {
    static const REAL q[FC_EXP_TERMS] = FC_EXP_Q;
    FC_EACH s[k] = v_set1(q[FC_EXP_TERMS - 1]);
#pragma GCC unroll 16
    for (int i = FC_EXP_TERMS - 2; i >= -1; i--) {
        V term = v_set1(i < 0 ? 1 : q[i]);
        FC_HIDE(term);
        FC_EACH s[k] = v_fma(s[k], r[k], term);
    }
}

/* r = x - i*ln 2, in place of x, and n = FC_POW2 + i + bias */
static FC_INLINE void FC_FN(exp_reduce)(V *x, V *n, REAL bias, const int nv) {
    const V shift = v_set1(FC_POW2 + bias);
    V i[FC_TOGETHER];
    FC_EACH n[k] = v_fma(x[k], v_set1(1.4426950408889634), shift);
    FC_EACH i[k] = v_sub(n[k], shift);
    FC_EACH x[k] = v_fnma(i[k], v_set1(FC_LN2_HIGH), x[k]);
    FC_EACH x[k] = v_fnma(i[k], v_set1(FC_LN2_LOW), x[k]);
}

/* exp(x)/FC_EXP_UNIT, in place, for x <= 0: a normal number where exp(x) is none. What rounding
 * makes of x may be positive, up to FC_EXP_MAX. */
static FC_INLINE void FC_FN(exp_units)(V *x, const int nv) {
    V n[FC_TOGETHER], s[FC_TOGETHER];
    FC_EACH x[k] = v_max(v_set1(FC_EXP_MIN), x[k]); /* a NaN passes */
    FC_FN(exp_reduce)(x, n, FC_EXP_BIAS, nv);
    FC_FN(expm1_over_r)(s, x, nv);
    FC_EACH x[k] = v_fma(s[k], x[k], v_set1(1));
    FC_EACH x[k] = v_mul(x[k], v_pow2(n[k]));
}

static FC_INLINE void FC_FN(exp)(V *x, const int nv) {
    FC_FN(exp_units)(x, nv);
    FC_EACH x[k] = v_mul(x[k], v_set1(FC_EXP_UNIT));
}

/* tanh(x), in place: with the sign of x tanh(a) = E/(E + 2), E = expm1(2a) = 2^i*expm1(r) + (2^i -
 * 1), for a = |x|. */
static FC_INLINE void FC_FN(tanh)(V *x, const int nv) {
    V n[FC_TOGETHER], r[FC_TOGETHER], s[FC_TOGETHER];
    FC_EACH r[k] = v_min(v_set1(FC_TANH_ONE), v_abs(x[k]));
    FC_EACH r[k] = v_add(r[k], r[k]);
    FC_FN(exp_reduce)(r, n, 0, nv);
    FC_FN(expm1_over_r)(s, r, nv);
    FC_EACH r[k] = v_mul(s[k], r[k]);
    FC_EACH n[k] = v_pow2(n[k]);
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
    static FC_INLINE void FC_FN(map_##f##_to)(REAL * y, const REAL *x, ptrdiff_t n, \
                                              const int stream) { \
        V v[FC_TOGETHER]; \
        FC_OVER_GROUPS(n, FC_EACH v[k] = FC_LOAD(x + c + k * VL, m); FC_FN(f)(v, nv); \
                       FC_EACH FC_STORE(y + c + k * VL, v[k], m, stream);) \
    } \
    static FC_INLINE void FC_FN(map_##f##_grad_to)(REAL * dx, const REAL *dy, const REAL *x, \
                                                   ptrdiff_t n, const int stream) { \
        V v[FC_TOGETHER], g[FC_TOGETHER]; \
        FC_OVER_GROUPS(n, FC_EACH v[k] = FC_LOAD(x + c + k * VL, m); \
                       FC_EACH g[k] = FC_LOAD(dy + c + k * VL, m); FC_FN(f##_grad)(g, v, nv); \
                       FC_EACH FC_STORE(dx + c + k * VL, g[k], m, stream);) \
    } \
    static void FC_FN(map_##f)(void *y, const void *x, ptrdiff_t n, int stream) { \
        FC_STREAMED(stream, FC_FN(map_##f##_to)(y, x, n, streams)) \
    } \
    static void FC_FN(map_##f##_grad)(void *dx, const void *dy, const void *x, ptrdiff_t n, \
                                      int stream) { \
        FC_STREAMED(stream, FC_FN(map_##f##_grad_to)(dx, dy, x, n, streams)) \
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
    const V last = v_load(x + n - VL);
    V acc[FC_TOGETHER] = {last, last, last, last};
    MASK nan = v_isnan(last);
    FC_OVER_GROUPS(n - VL, V v[FC_TOGETHER]; FC_EACH v[k] = v_load(x + c + k * VL);
                   FC_EACH nan = v_or(nan, v_isnan(v[k])); FC_EACH acc[k] = v_max(v[k], acc[k]);
                   (void)m;)
    acc[0] = v_max(v_max(acc[0], acc[1]), v_max(acc[2], acc[3]));
    return v_any(nan) ? (REAL)NAN : v_hmax(acc[0]);
}

#undef FC_LN2_HIGH
#undef FC_LN2_LOW
#undef FC_EXP_TERMS
#undef FC_EXP_Q
#undef FC_EXP_MIN
#undef FC_EXP_BIAS
#undef FC_TANH_ONE
/* softmax.h has the rest */

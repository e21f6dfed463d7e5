/* SPDX-License-Identifier: BSD-3-Clause */
/* The roof: PEAK_CHAINS independent multiply-add chains in registers, enough to cover the latency
 * of two units, no memory. Returns the flops done (a multiply-add is two). */
#define PEAK_CHAINS 12
static double FC_FN(fma_peak)(ptrdiff_t n) {
    V acc[PEAK_CHAINS];
    /* acc <- acc*a + b has the fixed point b/(1 - a) = 1: no overflow, no denormals */
    V a = v_set1(0.5), b = v_set1(0.5);
#pragma GCC unroll 12
    for (int k = 0; k < PEAK_CHAINS; k++) acc[k] = v_set1(k);
    for (ptrdiff_t i = 0; i < n; i++) {
        FC_HIDE(a); /* or the compiler might solve the recurrence */
#pragma GCC unroll 12
        for (int k = 0; k < PEAK_CHAINS; k++) acc[k] = v_fma(acc[k], a, b);
    }
    V sum = v_zero();
#pragma GCC unroll 12
    for (int k = 0; k < PEAK_CHAINS; k++) sum = v_add(sum, acc[k]);
    volatile REAL sink = v_hsum(sum);
    (void)sink;
    return 2.0 * VL * PEAK_CHAINS * (double)n;
}
#undef PEAK_CHAINS

/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A software model of AVX-512, so that the avx512 row can be tested on a CPU that has only AVX2 and
 * FMA. Building with FASTCONV_MODEL_AVX512=1 compiles csrc/isa/avx512.c with "-mavx2 -mfma -include
 * csrc/model/avx512_model.h".
 *
 * A 512-bit vector is a struct of two 256-bit halves, and each intrinsic of csrc/isa/simd.h is
 * replaced by one that does what Intel's pseudo-code says: which operand max and min return for a
 * NaN, what a masked load or store may touch, integer conversions of NaN and of numbers too large,
 * fused multiply-add. An intrinsic without a model does not compile.
 *
 * What it cannot show: speed, the use of registers, what the compiler makes of the real intrinsics,
 * and exception flags. A NaN's payload, as with the real intrinsics, depends on the order the
 * compiler gives the operands of + * and fma.
 */
#ifndef FC_AVX512_MODEL_H
#define FC_AVX512_MODEL_H

#if !defined(__AVX2__) || !defined(__FMA__) || defined(__AVX512F__)
#error "the AVX-512 model is built with -mavx2 -mfma and without AVX-512"
#endif

#include <immintrin.h>

typedef struct {
    __m256 lo, hi;
} fc_m512;
typedef struct {
    __m256d lo, hi;
} fc_m512d;
typedef struct {
    __m256i lo, hi;
} fc_m512i;

#define __m512 fc_m512
#define __m512d fc_m512d
#define __m512i fc_m512i

/* simd.h's, whose FC_HIDE cannot hold 512 bits in one register here. */
#define FC_OPAQUE(p) __asm__("" : "+r"(p))
#define FC_HIDE(v) __asm__("" : "+x"((v).lo), "+x"((v).hi))
#define FC_HOLD(v) __asm__ volatile("" ::"x"((v).lo), "x"((v).hi))

#define FC_MODEL static inline __attribute__((always_inline))

/* ---- intrinsics that treat the halves alike: the 256-bit intrinsic, twice */
#define FC_MODEL_1(op, to, from, half) \
    FC_MODEL to fc_model_##op(from a) { return (to){half(a.lo), half(a.hi)}; }
#define FC_MODEL_2(op, type) \
    FC_MODEL type fc_model_##op(type a, type b) { \
        return (type){_mm256_##op(a.lo, b.lo), _mm256_##op(a.hi, b.hi)}; \
    }
#define FC_MODEL_3(op, type) \
    FC_MODEL type fc_model_##op(type a, type b, type c) { \
        return (type){_mm256_##op(a.lo, b.lo, c.lo), _mm256_##op(a.hi, b.hi, c.hi)}; \
    }
#define FC_MODEL_SET1(op, to, from, half) \
    FC_MODEL to fc_model_##op(from a) { return (to){half(a), half(a)}; }
#define FC_MODEL_SHIFT(op) \
    FC_MODEL __m512i fc_model_##op(__m512i a, unsigned imm) { \
        return (__m512i){_mm256_##op(a.lo, (int)imm), _mm256_##op(a.hi, (int)imm)}; \
    }

FC_MODEL_2(add_ps, __m512)
FC_MODEL_2(add_pd, __m512d)
FC_MODEL_2(sub_ps, __m512)
FC_MODEL_2(sub_pd, __m512d)
FC_MODEL_2(mul_ps, __m512)
FC_MODEL_2(mul_pd, __m512d)
FC_MODEL_2(div_ps, __m512)
FC_MODEL_2(div_pd, __m512d)
FC_MODEL_2(max_ps, __m512)
FC_MODEL_2(max_pd, __m512d)
FC_MODEL_2(min_ps, __m512)
FC_MODEL_2(min_pd, __m512d)
FC_MODEL_3(fmadd_ps, __m512)
FC_MODEL_3(fmadd_pd, __m512d)
FC_MODEL_3(fnmadd_ps, __m512)
FC_MODEL_3(fnmadd_pd, __m512d)
FC_MODEL_2(and_ps, __m512)
FC_MODEL_2(and_pd, __m512d)
FC_MODEL_2(or_ps, __m512)
FC_MODEL_2(or_pd, __m512d)
FC_MODEL_2(add_epi32, __m512i)
FC_MODEL_2(add_epi64, __m512i)
FC_MODEL_2(unpacklo_ps, __m512) /* within each 128-bit lane, like the 256-bit ones */
FC_MODEL_2(unpacklo_pd, __m512d)
FC_MODEL_2(unpackhi_ps, __m512)
FC_MODEL_2(unpackhi_pd, __m512d)
FC_MODEL_SET1(set1_ps, __m512, float, _mm256_set1_ps)
FC_MODEL_SET1(set1_pd, __m512d, double, _mm256_set1_pd)
FC_MODEL_SET1(set1_epi32, __m512i, int, _mm256_set1_epi32)
FC_MODEL_SET1(set1_epi64, __m512i, long long, _mm256_set1_epi64x)
FC_MODEL_SHIFT(slli_epi32)
FC_MODEL_SHIFT(slli_epi64)
FC_MODEL_1(castsi512_ps, __m512, __m512i, _mm256_castsi256_ps)
FC_MODEL_1(castsi512_pd, __m512d, __m512i, _mm256_castsi256_pd)
FC_MODEL_1(castps_si512, __m512i, __m512, _mm256_castps_si256)
FC_MODEL_1(castpd_si512, __m512i, __m512d, _mm256_castpd_si256)

#define _mm512_add_ps fc_model_add_ps
#define _mm512_add_pd fc_model_add_pd
#define _mm512_sub_ps fc_model_sub_ps
#define _mm512_sub_pd fc_model_sub_pd
#define _mm512_mul_ps fc_model_mul_ps
#define _mm512_mul_pd fc_model_mul_pd
#define _mm512_div_ps fc_model_div_ps
#define _mm512_div_pd fc_model_div_pd
#define _mm512_max_ps fc_model_max_ps
#define _mm512_max_pd fc_model_max_pd
#define _mm512_min_ps fc_model_min_ps
#define _mm512_min_pd fc_model_min_pd
#define _mm512_fmadd_ps fc_model_fmadd_ps
#define _mm512_fmadd_pd fc_model_fmadd_pd
#define _mm512_fnmadd_ps fc_model_fnmadd_ps
#define _mm512_fnmadd_pd fc_model_fnmadd_pd
#define _mm512_and_ps fc_model_and_ps
#define _mm512_and_pd fc_model_and_pd
#define _mm512_or_ps fc_model_or_ps
#define _mm512_or_pd fc_model_or_pd
#define _mm512_add_epi32 fc_model_add_epi32
#define _mm512_add_epi64 fc_model_add_epi64
#define _mm512_unpacklo_ps fc_model_unpacklo_ps
#define _mm512_unpacklo_pd fc_model_unpacklo_pd
#define _mm512_unpackhi_ps fc_model_unpackhi_ps
#define _mm512_unpackhi_pd fc_model_unpackhi_pd
#define _mm512_set1_ps fc_model_set1_ps
#define _mm512_set1_pd fc_model_set1_pd
#define _mm512_set1_epi32 fc_model_set1_epi32
#define _mm512_set1_epi64 fc_model_set1_epi64
#define _mm512_setzero_ps() fc_model_set1_ps(0)
#define _mm512_setzero_pd() fc_model_set1_pd(0)
#undef _mm512_slli_epi32 /* macros of gcc at -O0 and of clang: the names that take an immediate */
#undef _mm512_slli_epi64
#define _mm512_slli_epi32 fc_model_slli_epi32
#define _mm512_slli_epi64 fc_model_slli_epi64
#define _mm512_castsi512_ps fc_model_castsi512_ps
#define _mm512_castsi512_pd fc_model_castsi512_pd
#define _mm512_castps_si512 fc_model_castps_si512
#define _mm512_castpd_si512 fc_model_castpd_si512

/* ---- sign, halves, double to 64-bit integer */
FC_MODEL __m512 fc_model_abs_ps(__m512 a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (__m512){_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
FC_MODEL __m512d fc_model_abs_pd(__m512d a) {
    const __m256d sign = _mm256_set1_pd(-0.0);
    return (__m512d){_mm256_andnot_pd(sign, a.lo), _mm256_andnot_pd(sign, a.hi)};
}
FC_MODEL __m256i fc_model_cvtpd_epi64_half(__m256d a) {
    const __m128d lo = _mm256_castpd256_pd128(a), hi = _mm256_extractf128_pd(a, 1);
    return _mm256_setr_epi64x(_mm_cvtsd_si64(lo), _mm_cvtsd_si64(_mm_unpackhi_pd(lo, lo)),
                              _mm_cvtsd_si64(hi), _mm_cvtsd_si64(_mm_unpackhi_pd(hi, hi)));
}
FC_MODEL_1(cvtpd_epi64, __m512i, __m512d, fc_model_cvtpd_epi64_half)
FC_MODEL __m512i fc_model_cvtps_epi64(__m256 a) {
    const __m256d lo = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
    const __m256d hi = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
    return (__m512i){fc_model_cvtpd_epi64_half(lo), fc_model_cvtpd_epi64_half(hi)};
}
FC_MODEL void fc_model_storeu_si512(void *p, __m512i a) {
    _mm256_storeu_si256((__m256i *)p, a.lo);
    _mm256_storeu_si256((__m256i *)p + 1, a.hi);
}
FC_MODEL __m256 fc_model_castps512_ps256(__m512 a) { return a.lo; }
FC_MODEL __m256d fc_model_castpd512_pd256(__m512d a) { return a.lo; }
FC_MODEL __m256 fc_model_extractf32x8_ps(__m512 a, int imm) { return imm & 1 ? a.hi : a.lo; }
FC_MODEL __m256d fc_model_extractf64x4_pd(__m512d a, int imm) { return imm & 1 ? a.hi : a.lo; }

#define _mm512_abs_ps fc_model_abs_ps
#define _mm512_abs_pd fc_model_abs_pd
#define _mm512_cvtpd_epi64 fc_model_cvtpd_epi64
#define _mm512_cvtps_epi64 fc_model_cvtps_epi64
#define _mm512_storeu_si512 fc_model_storeu_si512
#define _mm512_castps512_ps256 fc_model_castps512_ps256
#define _mm512_castpd512_pd256 fc_model_castpd512_pd256
#undef _mm512_extractf32x8_ps
#undef _mm512_extractf64x4_pd
#define _mm512_extractf32x8_ps fc_model_extractf32x8_ps
#define _mm512_extractf64x4_pd fc_model_extractf64x4_pd

/* ---- elements n, n+1, ... of b and a in one row */
#define FC_MODEL_ALIGNR(op, integer, n) \
    FC_MODEL __m512i fc_model_##op(__m512i a, __m512i b, int first) { \
        union { \
            __m512i v[2]; \
            integer x[2 * n]; \
        } from = {{b, a}}, to; \
        for (int k = 0; k < n; k++) to.x[k] = from.x[k + first]; \
        return to.v[0]; \
    }
FC_MODEL_ALIGNR(alignr_epi32, unsigned, 16)
FC_MODEL_ALIGNR(alignr_epi64, unsigned long long, 8)
#undef _mm512_alignr_epi32
#undef _mm512_alignr_epi64
#define _mm512_alignr_epi32 fc_model_alignr_epi32
#define _mm512_alignr_epi64 fc_model_alignr_epi64

/* ---- elements of a (0 to n-1) and b (n to 2n-1), chosen by the low bits of an index each */
#define FC_MODEL_PERMUTEX2(ps, real, integer, type, mask, n) \
    FC_MODEL type fc_model_permutex2var_##ps(type a, __m512i index, type b) { \
        union { \
            type v; \
            real x[n]; \
        } from[2] = {{a}, {b}}, to; \
        union { \
            __m512i v; \
            integer i[n]; \
        } at = {index}; \
        for (int k = 0; k < n; k++) to.x[k] = from[at.i[k] / n & 1].x[at.i[k] & (n - 1)]; \
        return to.v; \
    } \
    FC_MODEL type fc_model_maskz_permutex2var_##ps(mask m, type a, __m512i index, type b) { \
        union { \
            type v; \
            real x[n]; \
        } to = {fc_model_permutex2var_##ps(a, index, b)}; \
        for (int k = 0; k < n; k++) to.x[k] = (unsigned)m >> k & 1 ? to.x[k] : 0; \
        return to.v; \
    }
FC_MODEL_PERMUTEX2(ps, float, unsigned, __m512, __mmask16, 16)
FC_MODEL_PERMUTEX2(pd, double, unsigned long long, __m512d, __mmask8, 8)
FC_MODEL __m512i fc_model_setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int i,
                                     int j, int k, int l, int m, int n, int o, int p) {
    return (__m512i){_mm256_setr_epi32(a, b, c, d, e, f, g, h),
                     _mm256_setr_epi32(i, j, k, l, m, n, o, p)};
}
FC_MODEL __m512i fc_model_setr_epi64(long long a, long long b, long long c, long long d,
                                     long long e, long long f, long long g, long long h) {
    return (__m512i){_mm256_setr_epi64x(a, b, c, d), _mm256_setr_epi64x(e, f, g, h)};
}

#define _mm512_permutex2var_ps fc_model_permutex2var_ps
#define _mm512_permutex2var_pd fc_model_permutex2var_pd
#define _mm512_maskz_permutex2var_ps fc_model_maskz_permutex2var_ps
#define _mm512_maskz_permutex2var_pd fc_model_maskz_permutex2var_pd
#undef _mm512_setr_epi32 /* macros of gcc and clang */
#undef _mm512_setr_epi64
#define _mm512_setr_epi32 fc_model_setr_epi32
#define _mm512_setr_epi64 fc_model_setr_epi64

/* ---- loads, stores and blends: bit i of the mask is element i */
FC_MODEL __m256i fc_model_mask_ps(unsigned k) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)k), bit), bit);
}
FC_MODEL __m256i fc_model_mask_pd(unsigned k) {
    const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
    return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(k), bit), bit);
}

#define FC_MODEL_MEMORY(ps, real, half, type, mask) \
    FC_MODEL type fc_model_loadu_##ps(const void *p) { \
        const real *const at = p; \
        return (type){_mm256_loadu_##ps(at), _mm256_loadu_##ps(at + half)}; \
    } \
    FC_MODEL void fc_model_storeu_##ps(void *p, type a) { \
        real *const at = p; \
        _mm256_storeu_##ps(at, a.lo); \
        _mm256_storeu_##ps(at + half, a.hi); \
    } \
    FC_MODEL type fc_model_maskz_loadu_##ps(mask k, const void *p) { \
        const real *const at = p; \
        return (type){_mm256_maskload_##ps(at, fc_model_mask_##ps(k)), \
                      _mm256_maskload_##ps(at + half, fc_model_mask_##ps((unsigned)k >> half))}; \
    } \
    FC_MODEL void fc_model_mask_storeu_##ps(void *p, mask k, type a) { \
        real *const at = p; \
        _mm256_maskstore_##ps(at, fc_model_mask_##ps(k), a.lo); \
        _mm256_maskstore_##ps(at + half, fc_model_mask_##ps((unsigned)k >> half), a.hi); \
    } \
    FC_MODEL type fc_model_mask_blend_##ps(mask k, type a, type b) { \
        return (type){ \
            _mm256_blendv_##ps(a.lo, b.lo, _mm256_castsi256_##ps(fc_model_mask_##ps(k))), \
            _mm256_blendv_##ps(a.hi, b.hi, \
                               _mm256_castsi256_##ps(fc_model_mask_##ps((unsigned)k >> half)))}; \
    }
FC_MODEL_MEMORY(ps, float, 8, __m512, __mmask16)
FC_MODEL_MEMORY(pd, double, 4, __m512d, __mmask8)

FC_MODEL __m512i fc_model_loadu_si512(const void *p) {
    return (__m512i){_mm256_loadu_si256(p), _mm256_loadu_si256((const __m256i *)p + 1)};
}
FC_MODEL void fc_model_mask_storeu_epi64(void *p, __mmask8 k, __m512i a) {
    _mm256_maskstore_epi64(p, fc_model_mask_pd(k), a.lo);
    _mm256_maskstore_epi64((long long *)p + 4, fc_model_mask_pd((unsigned)k >> 4), a.hi);
}

#define _mm512_loadu_si512 fc_model_loadu_si512
#define _mm512_mask_storeu_epi64 fc_model_mask_storeu_epi64
#define _mm512_loadu_ps fc_model_loadu_ps
#define _mm512_loadu_pd fc_model_loadu_pd
#define _mm512_storeu_ps fc_model_storeu_ps
#define _mm512_storeu_pd fc_model_storeu_pd
#define _mm512_stream_ps fc_model_storeu_ps
#define _mm512_stream_pd fc_model_storeu_pd
#define _mm512_maskz_loadu_ps fc_model_maskz_loadu_ps
#define _mm512_maskz_loadu_pd fc_model_maskz_loadu_pd
#define _mm512_mask_storeu_ps fc_model_mask_storeu_ps
#define _mm512_mask_storeu_pd fc_model_mask_storeu_pd
#define _mm512_mask_blend_ps fc_model_mask_blend_ps
#define _mm512_mask_blend_pd fc_model_mask_blend_pd

/* ---- intrinsics whose immediate must reach the instruction: macros, because a function's argument
 * is no constant */
#define FC_MODEL_IMM_1(type, a, lo_, hi_) \
    __extension__({ \
        const type fc_a = (a); \
        (type){lo_, hi_}; \
    })
#define FC_MODEL_IMM_2(type, a, b, ...) \
    __extension__({ \
        const type fc_a = (a), fc_b = (b); \
        __VA_ARGS__; \
    })

#undef _mm512_shuffle_ps
#undef _mm512_insertf32x4
#undef _mm512_insertf64x2
#undef _mm512_cmp_ps_mask
#undef _mm512_cmp_pd_mask
#undef _mm512_fpclass_ps_mask
#undef _mm512_fpclass_pd_mask

#define _mm512_shuffle_ps(a, b, imm) \
    FC_MODEL_IMM_2(__m512, a, b, \
                   (__m512){_mm256_shuffle_ps(fc_a.lo, fc_b.lo, imm), \
                            _mm256_shuffle_ps(fc_a.hi, fc_b.hi, imm)})

FC_MODEL __m512 fc_model_castps128_ps512(__m128 a) {
    return (__m512){_mm256_castps128_ps256(a), _mm256_setzero_ps()};
}
FC_MODEL __m512d fc_model_castpd128_pd512(__m128d a) {
    return (__m512d){_mm256_castpd128_pd256(a), _mm256_setzero_pd()};
}
#define _mm512_castps128_ps512 fc_model_castps128_ps512
#define _mm512_castpd128_pd512 fc_model_castpd128_pd512
#define _mm512_insertf32x4(a, b, imm) \
    FC_MODEL_IMM_1(__m512, a, (imm) < 2 ? _mm256_insertf128_ps(fc_a.lo, b, (imm) & 1) : fc_a.lo, \
                   (imm) < 2 ? fc_a.hi : _mm256_insertf128_ps(fc_a.hi, b, (imm) & 1))
#define _mm512_insertf64x2(a, b, imm) \
    FC_MODEL_IMM_1(__m512d, a, (imm) < 2 ? _mm256_insertf128_pd(fc_a.lo, b, (imm) & 1) : fc_a.lo, \
                   (imm) < 2 ? fc_a.hi : _mm256_insertf128_pd(fc_a.hi, b, (imm) & 1))

#define _mm512_cmp_ps_mask(a, b, imm) \
    FC_MODEL_IMM_2(__m512, a, b, \
                   (__mmask16)(_mm256_movemask_ps(_mm256_cmp_ps(fc_a.lo, fc_b.lo, imm)) | \
                               _mm256_movemask_ps(_mm256_cmp_ps(fc_a.hi, fc_b.hi, imm)) << 8))
#define _mm512_cmp_pd_mask(a, b, imm) \
    FC_MODEL_IMM_2(__m512d, a, b, \
                   (__mmask8)(_mm256_movemask_pd(_mm256_cmp_pd(fc_a.lo, fc_b.lo, imm)) | \
                              _mm256_movemask_pd(_mm256_cmp_pd(fc_a.hi, fc_b.hi, imm)) << 4))

/* Classes of numbers: only -0, imm = 4, has a model. */
#define FC_MODEL_MINUS_0(imm) (0 * sizeof(char[(imm) == 4 ? 1 : -1]))
FC_MODEL __mmask16 fc_model_isminus0_ps(__m512 a) {
    const __m256i zero = _mm256_castps_si256(_mm256_set1_ps(-0.0f));
    const __m256i lo = _mm256_cmpeq_epi32(_mm256_castps_si256(a.lo), zero);
    const __m256i hi = _mm256_cmpeq_epi32(_mm256_castps_si256(a.hi), zero);
    return (__mmask16)(_mm256_movemask_ps(_mm256_castsi256_ps(lo)) |
                       _mm256_movemask_ps(_mm256_castsi256_ps(hi)) << 8);
}
FC_MODEL __mmask8 fc_model_isminus0_pd(__m512d a) {
    const __m256i zero = _mm256_castpd_si256(_mm256_set1_pd(-0.0));
    const __m256i lo = _mm256_cmpeq_epi64(_mm256_castpd_si256(a.lo), zero);
    const __m256i hi = _mm256_cmpeq_epi64(_mm256_castpd_si256(a.hi), zero);
    return (__mmask8)(_mm256_movemask_pd(_mm256_castsi256_pd(lo)) |
                      _mm256_movemask_pd(_mm256_castsi256_pd(hi)) << 4);
}
#define _mm512_fpclass_ps_mask(a, imm) \
    ((__mmask16)(fc_model_isminus0_ps(a) + FC_MODEL_MINUS_0(imm)))
#define _mm512_fpclass_pd_mask(a, imm) ((__mmask8)(fc_model_isminus0_pd(a) + FC_MODEL_MINUS_0(imm)))

#endif

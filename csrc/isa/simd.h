/* SPDX-License-Identifier: BSD-3-Clause */
/* clang-format off */
/*
 * The vector vocabulary the bodies are written in. Included once per (row, REAL): the row's file
 * defines FC_LANES_BYTES (0 = plain C, 32 = AVX2, 64 = AVX-512), and FC_F64 selects float or
 * double.
 *
 *   V, VL            one vector, its number of REALs
 *   MASK             one bit or lane mask for each REAL
 *   v_load_n(p, n)   the first n REALs, the rest zero; reads nothing beyond p[n-1]; 0 <= n <= VL
 *   v_store_n        likewise
 *   v_store_lanes    likewise, of v_load_lanes; on AMD with AVX2 some ten times as slow as v_store
 *   v_lanes(from, to)  lanes from to to - 1, of type LANES; 0 <= from <= to <= VL
 *   v_load_lanes(p, lanes)  p[i] in these lanes, the rest zero; reads nothing else
 *   v_stream(p, a)   v_store past the caches, to an address that is a multiple of the vector's size; v_fence()
 *                    comes before others may read it
 *   v_even_odd(a, b) a[0], a[2], ..., b[1], b[3], ...: of two that overlap by one REAL, every other one
 *   v_zip(a, b, lo, hi)  a[0], b[0], a[1], b[1], ...: the first VL of them to *lo, the rest to *hi
 *   v_even(a, b), v_odd(a, b)  every other one of a and b; these, v_slide and v_pick... on AVX-512 alone
 *   v_slide(a, b, n) a[n], ..., a[VL-1], b[0], ..., for a constant n <= 3 or n >= VL - 3
 *   v_pick(a, b, at) a[at[i]], or b[at[i] - VL] from VL on; at = v_picks(p), of VL INTs
 *   v_pick_lanes(a, b, at, lanes)  likewise, in these lanes, the rest zero
 *   v_or(m, n)       of two masks
 *   v_any(m)         whether a mask has a lane
 *   v_store_index(p, a, base, n)  p[i] = base + a[i] as int64_t, for the first n; a holds whole
 *                    numbers below 2^24
 *   v_max(a, b)      a > b ? a : b, so b when either is NaN: v_max(x, acc) keeps acc's NaN
 *   v_max_either(a, b)  the same in either order: a NaN when either is NaN, -0 of +0 and -0
 *   v_isminus0(a)    -0
 *   v_fma(a, b, c)   a*b + c; fused on the vector rows, not in plain C
 *   v_fnma(a, b, c)  c - a*b; likewise
 *   v_copysign(a, b) a >= 0 with the sign of b
 *   v_pow2(n)        2^i of n = FC_POW2 + i, for a whole number i; a normal number, or infinity
 *   v_hsum, v_hmax   over the lanes, in one fixed order
 *   v_transpose(r, p, step, n)  r[j][i] = p[i*step + j], i < n, for j < VL: columns of n <= VL rows of
 *                    VL; the other lanes hold some of row 0
 */
/* clang-format on */
#undef FC_LOAD
#undef FC_STORE
#undef FC_OVER_COLUMNS
#undef FC_OVER_GROUPS
#undef REAL
#undef FC_REAL_NAME
#undef V
#undef VL
#undef MASK
#undef v_zero
#undef v_set1
#undef v_load
#undef v_store
#undef v_load_n
#undef LANES
#undef v_lanes
#undef v_load_lanes
#undef v_load_in
#undef v_store_n
#undef v_store_lanes
#undef v_stream
#undef v_fence
#undef v_even_odd
#undef v_zip
#undef v_even
#undef v_odd
#undef v_slide
#undef INT
#undef PICKS
#undef v_picks
#undef v_pick
#undef v_pick_lanes
#undef v_or
#undef v_any
#undef v_store_index
#undef v_add
#undef v_sub
#undef v_mul
#undef v_div
#undef v_fma
#undef v_fnma
#undef v_max
#undef v_max_either
#undef v_min
#undef v_abs
#undef v_copysign
#undef v_lt
#undef v_isnan
#undef v_isminus0
#undef v_select
#undef v_pow2
#undef v_hsum
#undef v_hmax
#undef v_transpose

/* FC_POW2 + x is rounded to whole numbers (half to even), and has i + the exponent's bias in its
 * low bits, where i is x rounded: shifted into place they are those of 2^i. */
#undef FC_POW2
#if FC_F64
#define REAL double
#define FC_REAL_NAME f64
#define FC_POW2 (0x1.8p52 + 1023)
#else
#define REAL float
#define FC_REAL_NAME f32
#define FC_POW2 (0x1.8p23f + 127)
#endif

/* A kernel's name is its address: fc_<op>_<real>_<isa>. */
#undef FC_CAT4
#undef FC_CAT4_
#undef FC_FN
#define FC_CAT4_(a, b, c, d) a##b##_##c##_##d
#define FC_CAT4(a, b, c, d) FC_CAT4_(a, b, c, d)
#define FC_FN(op) FC_CAT4(fc_, op, FC_REAL_NAME, FC_ISA_NAME)

/* Hides a pointer's origin from the optimiser. Without it gcc sees that the broadcasts of
 * neighbouring taps overlap, keeps them across taps and spills accumulators (measured: 196 -> 113
 * GF/s on AVX-512 with gcc 12). */
#ifndef FC_OPAQUE
#if defined(__GNUC__)
#define FC_OPAQUE(p) __asm__("" : "+r"(p))
#if defined(__x86_64__)
#define FC_HIDE(v) __asm__("" : "+v"(v))         /* the same for any vector register */
#define FC_HOLD(v) __asm__ volatile("" ::"v"(v)) /* it has v until here */
#else
#define FC_HIDE(v) ((void)0)
#define FC_HOLD(v) ((void)0)
#endif
#else
#define FC_OPAQUE(p) ((void)0)
#define FC_HIDE(v) ((void)0)
#define FC_HOLD(v) ((void)0)
#endif
#endif

#ifndef FC_INLINE
#define FC_INLINE inline __attribute__((always_inline))
#endif
#ifndef FC_NOINLINE
#define FC_NOINLINE __attribute__((noinline))
#endif

#ifndef FC_LIKELY
#if defined(__GNUC__)
#define FC_LIKELY(condition) __builtin_expect(condition, 1)
#else
#define FC_LIKELY(condition) (condition)
#endif
#endif

#ifndef FC_PREFETCH
#if defined(__GNUC__)
#define FC_PREFETCH(p) __builtin_prefetch(p, 1)
#define FC_PREFETCH_READ(p) __builtin_prefetch(p)
#define FC_PREFETCH_L2(p) __builtin_prefetch(p, 0, 2)
#else
#define FC_PREFETCH(p) ((void)0)
#define FC_PREFETCH_READ(p) ((void)0)
#define FC_PREFETCH_L2(p) ((void)0)
#endif
#endif

/* Of v_transpose. It puts 128 bits of several rows together as they are loaded, which any vector
 * port can do, and so needs half the shuffles of a transpose in registers, which one port does. */
#undef FC_ROW
#define FC_ROW(a, i, rows) \
    ((i) + (rows) < n ? (a) + (rows) * step : p) /* row i + rows from row i */

#if FC_LANES_BYTES == 0 /* plain C */
#define V REAL
#define VL 1
#define MASK int
#define v_zero() ((REAL)0)
#define v_set1(a) ((REAL)(a))
#define v_load(p) (*(p))
#define v_store(p, a) ((void)(*(p) = (a)))
#define v_load_n(p, n) ((n) ? *(p) : (REAL)0)
#define LANES int
#define v_lanes(from, to) ((from) < (to))
#define v_load_lanes(p, lanes) ((lanes) ? *(p) : (REAL)0)
#define v_store_n(p, a, n) ((void)((n) ? (*(p) = (a)) : (REAL)0))
#define v_store_lanes(p, a, lanes) v_store_n(p, a, lanes)
#define v_stream(p, a) v_store(p, a)
#define v_fence() ((void)0)
#define v_even_odd(a, b) ((void)(b), (a))
#define v_zip(a, b, lo, hi) ((void)(*(lo) = (a), *(hi) = (b)))
#define v_or(m, n) ((m) | (n))
#define v_any(m) (m)
#define v_store_index(p, a, base, n) ((void)(*(p) = (base) + (int64_t)(a), (void)(n)))
#define v_add(a, b) ((a) + (b))
#define v_sub(a, b) ((a) - (b))
#define v_mul(a, b) ((a) * (b))
#define v_div(a, b) ((a) / (b))
#define v_fma(a, b, c) ((a) * (b) + (c))
#define v_fnma(a, b, c) ((c) - (a) * (b))
#define v_max(a, b) FC_FN(scalar_max)(a, b)
#define v_max_either(a, b) FC_FN(scalar_max_either)(a, b)
#define v_min(a, b) FC_FN(scalar_min)(a, b)
#define v_abs(a) FC_FN(scalar_abs)(a)
#define v_copysign(a, b) FC_FN(scalar_copysign)(a, b)
#define v_lt(a, b) ((a) < (b))
#define v_isnan(a) ((a) != (a))
#define v_isminus0(a) ((a) == 0 && signbit(a))
#define v_select(m, a, b) ((m) ? (a) : (b))
#define v_pow2(n) FC_FN(scalar_pow2)(n)
#define v_hsum(a) (a)
#define v_hmax(a) (a)
#define v_transpose(r, p, step, n) ((void)(*(r) = *(p), (void)(step), (void)(n)))

static inline REAL FC_FN(scalar_max)(REAL a, REAL b) { return a > b ? a : b; }
static inline REAL FC_FN(scalar_max_either)(REAL a, REAL b) {
    return a > b || a != a || (a == b && signbit(a)) ? a : b;
}
static inline REAL FC_FN(scalar_min)(REAL a, REAL b) { return a < b ? a : b; }
static inline REAL FC_FN(scalar_abs)(REAL a) { return a < 0 ? -a : a == 0 ? 0 : a; }
static inline REAL FC_FN(scalar_copysign)(REAL a, REAL b) { return signbit(b) ? -a : a; }
static inline REAL FC_FN(scalar_pow2)(REAL n) {
    union {
        REAL value;
#if FC_F64
        uint64_t bits;
#else
        uint32_t bits;
#endif
    } u = {n};
    u.bits <<= FC_F64 ? 52 : 23;
    return u.value;
}

#elif FC_LANES_BYTES == 32 && !FC_F64 /* AVX2, float */
#define V __m256
#define VL 8
#define MASK __m256
#define v_zero() _mm256_setzero_ps()
#define v_set1(a) _mm256_set1_ps((float)(a))
#define v_load(p) _mm256_loadu_ps(p)
#define v_store(p, a) _mm256_storeu_ps(p, a)
#define v_load_n(p, n) _mm256_maskload_ps(p, FC_FN(first)(n))
#define LANES __m256i
#define v_lanes(from, to) _mm256_andnot_si256(FC_FN(first)(from), FC_FN(first)(to))
#define v_load_lanes(p, lanes) _mm256_maskload_ps(p, lanes)
#define v_store_n(p, a, n) FC_FN(store_first)(p, a, n)
#define v_store_lanes(p, a, lanes) _mm256_maskstore_ps(p, lanes, a)
#define v_stream(p, a) _mm256_stream_ps(p, a)
#define v_fence() _mm_sfence()
#define v_even_odd(a, b) FC_FN(even_odd)(a, b)
#define v_zip(a, b, lo, hi) FC_FN(zip)(a, b, lo, hi)
#define v_or(m, n) _mm256_or_ps(m, n)
#define v_any(m) (_mm256_movemask_ps(m) != 0)
#define v_store_index(p, a, base, n) FC_FN(store_index)(p, a, base, n)
#define v_add(a, b) _mm256_add_ps(a, b)
#define v_sub(a, b) _mm256_sub_ps(a, b)
#define v_mul(a, b) _mm256_mul_ps(a, b)
#define v_div(a, b) _mm256_div_ps(a, b)
#define v_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define v_fnma(a, b, c) _mm256_fnmadd_ps(a, b, c)
#define v_max(a, b) _mm256_max_ps(a, b)
#define v_max_either(a, b) _mm256_or_ps(_mm256_max_ps(a, b), _mm256_max_ps(b, a))
#define v_min(a, b) _mm256_min_ps(a, b)
#define v_abs(a) _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a)
#define v_copysign(a, b) _mm256_or_ps(a, _mm256_and_ps(b, _mm256_set1_ps(-0.0f)))
#define v_lt(a, b) _mm256_cmp_ps(a, b, _CMP_LT_OQ)
#define v_isnan(a) _mm256_cmp_ps(a, a, _CMP_UNORD_Q)
#define v_isminus0(a) \
    _mm256_castsi256_ps( \
        _mm256_cmpeq_epi32(_mm256_castps_si256(a), _mm256_castps_si256(_mm256_set1_ps(-0.0f))))
#define v_select(m, a, b) _mm256_blendv_ps(b, a, m)
#define v_pow2(n) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(n), 23))
#define v_hsum(a) FC_FN(hsum)(a)
#define v_hmax(a) FC_FN(hmax)(a)
#define v_transpose(r, p, step, n) FC_FN(transpose_v)(r, p, step, n)

static inline __m256i FC_FN(first)(ptrdiff_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
/* Not vmaskmovps: a masked store is dozens of micro-operations on AMD. With a constant n this folds
 * to 1-3 stores. */
static inline void FC_FN(store_first)(float *p, __m256 a, ptrdiff_t n) {
    __m128 part = _mm256_castps256_ps128(a);
    if (n >= 8) {
        _mm256_storeu_ps(p, a);
        return;
    }
    if (n & 4) {
        _mm_storeu_ps(p, part);
        part = _mm256_extractf128_ps(a, 1);
        p += 4;
    }
    if (n & 2) {
        _mm_storel_pi((__m64 *)p, part);
        part = _mm_movehl_ps(part, part);
        p += 2;
    }
    if (n & 1) _mm_store_ss(p, part);
}
static inline __m256 FC_FN(even_odd)(__m256 a, __m256 b) {
    const __m256 even = _mm256_shuffle_ps(a, b, 0xd8);
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(even), 0xd8));
}
static inline void FC_FN(zip)(__m256 a, __m256 b, __m256 *lo, __m256 *hi) {
    const __m256 even = _mm256_unpacklo_ps(a, b), odd = _mm256_unpackhi_ps(a, b);
    *lo = _mm256_permute2f128_ps(even, odd, 0x20);
    *hi = _mm256_permute2f128_ps(even, odd, 0x31);
}
static inline void FC_FN(store_index)(int64_t *p, __m256 a, int64_t base, ptrdiff_t n) {
    int64_t lane[8];
    int64_t *const to = n < 8 ? lane : p;
    const __m256i i = _mm256_cvtps_epi32(a), b = _mm256_set1_epi64x(base);
    const __m256i low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(i));
    const __m256i high = _mm256_cvtepi32_epi64(_mm256_extracti128_si256(i, 1));
    _mm256_storeu_si256((__m256i *)to, _mm256_add_epi64(low, b));
    _mm256_storeu_si256((__m256i *)(to + 4), _mm256_add_epi64(high, b));
    if (n < 8) memcpy(p, lane, (size_t)n * sizeof *p);
}
static inline float FC_FN(hsum)(__m256 a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float FC_FN(hmax)(__m256 a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
static FC_INLINE void FC_FN(transpose_v)(__m256 *r, const float *p, ptrdiff_t step, ptrdiff_t n) {
    __m256 t[8]; /* t[4*c + k]: columns 4*c to 4*c + 3 of rows k and k + 4 */
    const float *a = p;
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        const float *b = FC_ROW(a, k, 4);
        FC_OPAQUE(b);
#pragma GCC unroll 2
        for (int c = 0; c < 8; c += 4)
            t[c + k] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a + c)),
                                            _mm_loadu_ps(b + c), 1);
        a = FC_ROW(a, k, 1);
        FC_OPAQUE(a);
    }
#pragma GCC unroll 2
    for (int c = 0; c < 8; c += 4) { /* 4x4 in each 128 bits */
        const __m256 a = _mm256_unpacklo_ps(t[c], t[c + 1]);
        const __m256 b = _mm256_unpackhi_ps(t[c], t[c + 1]);
        const __m256 d = _mm256_unpacklo_ps(t[c + 2], t[c + 3]);
        const __m256 e = _mm256_unpackhi_ps(t[c + 2], t[c + 3]);
        r[c] = _mm256_shuffle_ps(a, d, 0x44);
        r[c + 1] = _mm256_shuffle_ps(a, d, 0xee);
        r[c + 2] = _mm256_shuffle_ps(b, e, 0x44);
        r[c + 3] = _mm256_shuffle_ps(b, e, 0xee);
    }
}

#elif FC_LANES_BYTES == 32 /* AVX2, double */
#define V __m256d
#define VL 4
#define MASK __m256d
#define v_zero() _mm256_setzero_pd()
#define v_set1(a) _mm256_set1_pd(a)
#define v_load(p) _mm256_loadu_pd(p)
#define v_store(p, a) _mm256_storeu_pd(p, a)
#define v_load_n(p, n) _mm256_maskload_pd(p, FC_FN(first)(n))
#define LANES __m256i
#define v_lanes(from, to) _mm256_andnot_si256(FC_FN(first)(from), FC_FN(first)(to))
#define v_load_lanes(p, lanes) _mm256_maskload_pd(p, lanes)
#define v_store_n(p, a, n) FC_FN(store_first)(p, a, n)
#define v_store_lanes(p, a, lanes) _mm256_maskstore_pd(p, lanes, a)
#define v_stream(p, a) _mm256_stream_pd(p, a)
#define v_fence() _mm_sfence()
#define v_even_odd(a, b) FC_FN(even_odd)(a, b)
#define v_zip(a, b, lo, hi) FC_FN(zip)(a, b, lo, hi)
#define v_or(m, n) _mm256_or_pd(m, n)
#define v_any(m) (_mm256_movemask_pd(m) != 0)
#define v_store_index(p, a, base, n) FC_FN(store_index)(p, a, base, n)
#define v_add(a, b) _mm256_add_pd(a, b)
#define v_sub(a, b) _mm256_sub_pd(a, b)
#define v_mul(a, b) _mm256_mul_pd(a, b)
#define v_div(a, b) _mm256_div_pd(a, b)
#define v_fma(a, b, c) _mm256_fmadd_pd(a, b, c)
#define v_fnma(a, b, c) _mm256_fnmadd_pd(a, b, c)
#define v_max(a, b) _mm256_max_pd(a, b)
#define v_max_either(a, b) _mm256_or_pd(_mm256_max_pd(a, b), _mm256_max_pd(b, a))
#define v_min(a, b) _mm256_min_pd(a, b)
#define v_abs(a) _mm256_andnot_pd(_mm256_set1_pd(-0.0), a)
#define v_copysign(a, b) _mm256_or_pd(a, _mm256_and_pd(b, _mm256_set1_pd(-0.0)))
#define v_lt(a, b) _mm256_cmp_pd(a, b, _CMP_LT_OQ)
#define v_isnan(a) _mm256_cmp_pd(a, a, _CMP_UNORD_Q)
#define v_isminus0(a) \
    _mm256_castsi256_pd( \
        _mm256_cmpeq_epi64(_mm256_castpd_si256(a), _mm256_castpd_si256(_mm256_set1_pd(-0.0))))
#define v_select(m, a, b) _mm256_blendv_pd(b, a, m)
#define v_pow2(n) _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(n), 52))
#define v_hsum(a) FC_FN(hsum)(a)
#define v_hmax(a) FC_FN(hmax)(a)
#define v_transpose(r, p, step, n) FC_FN(transpose_v)(r, p, step, n)

static inline __m256i FC_FN(first)(ptrdiff_t n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
static inline __m256d FC_FN(even_odd)(__m256d a, __m256d b) {
    return _mm256_permute4x64_pd(_mm256_shuffle_pd(a, b, 0xa), 0xd8);
}
static inline void FC_FN(store_first)(double *p, __m256d a, ptrdiff_t n) {
    __m128d part = _mm256_castpd256_pd128(a);
    if (n >= 4) {
        _mm256_storeu_pd(p, a);
        return;
    }
    if (n & 2) {
        _mm_storeu_pd(p, part);
        part = _mm256_extractf128_pd(a, 1);
        p += 2;
    }
    if (n & 1) _mm_store_sd(p, part);
}
static inline void FC_FN(zip)(__m256d a, __m256d b, __m256d *lo, __m256d *hi) {
    const __m256d even = _mm256_unpacklo_pd(a, b), odd = _mm256_unpackhi_pd(a, b);
    *lo = _mm256_permute2f128_pd(even, odd, 0x20);
    *hi = _mm256_permute2f128_pd(even, odd, 0x31);
}
static inline void FC_FN(store_index)(int64_t *p, __m256d a, int64_t base, ptrdiff_t n) {
    int64_t lane[4];
    const __m256i i = _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(a));
    _mm256_storeu_si256((__m256i *)(n < 4 ? lane : p),
                        _mm256_add_epi64(i, _mm256_set1_epi64x(base)));
    if (n < 4) memcpy(p, lane, (size_t)n * sizeof *p);
}
static inline double FC_FN(hsum)(__m256d a) {
    const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}
static inline double FC_FN(hmax)(__m256d a) {
    const __m128d s = _mm_max_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_max_sd(s, _mm_unpackhi_pd(s, s)));
}
static FC_INLINE void FC_FN(transpose_v)(__m256d *r, const double *p, ptrdiff_t step, ptrdiff_t n) {
    __m256d t[4]; /* t[2*c + k]: columns 2*c and 2*c + 1 of rows k and k + 2 */
    const double *a = p;
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
        const double *b = FC_ROW(a, k, 2);
        FC_OPAQUE(b);
#pragma GCC unroll 2
        for (int c = 0; c < 4; c += 2)
            t[c + k] = _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(a + c)),
                                            _mm_loadu_pd(b + c), 1);
        a = FC_ROW(a, k, 1);
        FC_OPAQUE(a);
    }
#pragma GCC unroll 2
    for (int c = 0; c < 4; c += 2) { /* 2x2 in each 128 bits */
        r[c] = _mm256_unpacklo_pd(t[c], t[c + 1]);
        r[c + 1] = _mm256_unpackhi_pd(t[c], t[c + 1]);
    }
}

#elif FC_LANES_BYTES == 64 && !FC_F64 /* AVX-512, float */
#define V __m512
#define VL 16
#define MASK __mmask16
#define v_zero() _mm512_setzero_ps()
#define v_set1(a) _mm512_set1_ps((float)(a))
#define v_load(p) _mm512_loadu_ps(p)
#define v_store(p, a) _mm512_storeu_ps(p, a)
#define v_load_n(p, n) _mm512_maskz_loadu_ps((__mmask16)((1u << (n)) - 1u), p)
#define LANES __mmask16
#define v_lanes(from, to) ((LANES)((1u << (to)) - (1u << (from))))
#define v_load_lanes(p, lanes) _mm512_maskz_loadu_ps(lanes, p)
#define v_store_n(p, a, n) _mm512_mask_storeu_ps(p, (__mmask16)((1u << (n)) - 1u), a)
#define v_store_lanes(p, a, lanes) _mm512_mask_storeu_ps(p, lanes, a)
#define v_stream(p, a) _mm512_stream_ps(p, a)
#define v_fence() _mm_sfence()
#define v_even_odd(a, b) FC_FN(even_odd)(a, b)
#define v_zip(a, b, lo, hi) FC_FN(zip)(a, b, lo, hi)
#define v_even(a, b) FC_FN(every_other)(a, b, 0)
#define v_odd(a, b) FC_FN(every_other)(a, b, 1)
#define v_slide(a, b, n) FC_FN(slide)(a, b, n)
#define INT int32_t
#define PICKS __m512i
#define v_picks(p) _mm512_loadu_si512(p)
#define v_pick(a, b, at) _mm512_permutex2var_ps(a, at, b)
#define v_pick_lanes(a, b, at, lanes) _mm512_maskz_permutex2var_ps(lanes, a, at, b)
#define v_or(m, n) ((MASK)((m) | (n)))
#define v_any(m) ((m) != 0)
#define v_store_index(p, a, base, n) FC_FN(store_index)(p, a, base, n)
#define v_add(a, b) _mm512_add_ps(a, b)
#define v_sub(a, b) _mm512_sub_ps(a, b)
#define v_mul(a, b) _mm512_mul_ps(a, b)
#define v_div(a, b) _mm512_div_ps(a, b)
#define v_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define v_fnma(a, b, c) _mm512_fnmadd_ps(a, b, c)
#define v_max(a, b) _mm512_max_ps(a, b)
#define v_max_either(a, b) _mm512_or_ps(_mm512_max_ps(a, b), _mm512_max_ps(b, a))
#define v_min(a, b) _mm512_min_ps(a, b)
#define v_abs(a) _mm512_abs_ps(a)
#define v_copysign(a, b) _mm512_or_ps(a, _mm512_and_ps(b, _mm512_set1_ps(-0.0f)))
#define v_lt(a, b) _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ)
#define v_isnan(a) _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q)
#define v_isminus0(a) _mm512_fpclass_ps_mask(a, 4)
#define v_select(m, a, b) _mm512_mask_blend_ps(m, b, a)
#define v_pow2(n) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(n), 23))
#define v_hsum(a) FC_FN(hsum)(a)
#define v_hmax(a) FC_FN(hmax)(a)
#define v_transpose(r, p, step, n) FC_FN(transpose_v)(r, p, step, n)

static inline __m512 FC_FN(even_odd)(__m512 a, __m512 b) {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_permutex2var_ps(a, even, b);
}
static inline __m512 FC_FN(every_other)(__m512 a, __m512 b, int first) {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(first)), b);
}
#define FC_SLIDE(n) \
    case n: \
        return _mm512_castsi512_ps( \
            _mm512_alignr_epi32(_mm512_castps_si512(b), _mm512_castps_si512(a), n));
static FC_INLINE __m512 FC_FN(slide)(__m512 a, __m512 b, const int n) {
    switch (n) { FC_SLIDE(1) FC_SLIDE(2) FC_SLIDE(3) FC_SLIDE(13) FC_SLIDE(14) FC_SLIDE(15) }
    return n ? b : a;
}
#undef FC_SLIDE
static inline void FC_FN(zip)(__m512 a, __m512 b, __m512 *lo, __m512 *hi) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *lo = _mm512_permutex2var_ps(a, first, b);
    *hi = _mm512_permutex2var_ps(a, _mm512_add_epi32(first, _mm512_set1_epi32(8)), b);
}
static inline void FC_FN(store_index)(int64_t *p, __m512 a, int64_t base, ptrdiff_t n) {
    const unsigned lanes = (1u << n) - 1u;
    const __m512i b = _mm512_set1_epi64(base);
    const __m512i low = _mm512_cvtps_epi64(_mm512_castps512_ps256(a));
    const __m512i high = _mm512_cvtps_epi64(_mm512_extractf32x8_ps(a, 1));
    _mm512_mask_storeu_epi64(p, (__mmask8)lanes, _mm512_add_epi64(low, b));
    if (n > 8) _mm512_mask_storeu_epi64(p + 8, (__mmask8)(lanes >> 8), _mm512_add_epi64(high, b));
}
static inline float FC_FN(hsum)(__m512 a) {
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float FC_FN(hmax)(__m512 a) {
    const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
static FC_INLINE void FC_FN(transpose_v)(__m512 *r, const float *p, ptrdiff_t step, ptrdiff_t n) {
    __m512 t[16]; /* t[4*c + k]: columns 4*c to 4*c + 3 of rows k, k + 4, k + 8 and k + 12 */
    const float *a = p;
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        const float *b = FC_ROW(a, k, 4);
        FC_OPAQUE(b);
        const float *d = FC_ROW(b, k + 4, 4);
        FC_OPAQUE(d);
        const float *e = FC_ROW(d, k + 8, 4);
        FC_OPAQUE(e);
#pragma GCC unroll 4
        for (int c = 0; c < 16; c += 4) {
            __m512 lanes = _mm512_castps128_ps512(_mm_loadu_ps(a + c));
            lanes = _mm512_insertf32x4(lanes, _mm_loadu_ps(b + c), 1);
            lanes = _mm512_insertf32x4(lanes, _mm_loadu_ps(d + c), 2);
            t[c + k] = _mm512_insertf32x4(lanes, _mm_loadu_ps(e + c), 3);
        }
        a = FC_ROW(a, k, 1);
        FC_OPAQUE(a);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 16; c += 4) { /* 4x4 in each 128 bits */
        const __m512 a = _mm512_unpacklo_ps(t[c], t[c + 1]);
        const __m512 b = _mm512_unpackhi_ps(t[c], t[c + 1]);
        const __m512 d = _mm512_unpacklo_ps(t[c + 2], t[c + 3]);
        const __m512 e = _mm512_unpackhi_ps(t[c + 2], t[c + 3]);
        r[c] = _mm512_shuffle_ps(a, d, 0x44);
        r[c + 1] = _mm512_shuffle_ps(a, d, 0xee);
        r[c + 2] = _mm512_shuffle_ps(b, e, 0x44);
        r[c + 3] = _mm512_shuffle_ps(b, e, 0xee);
    }
}

#else /* AVX-512, double */
#define V __m512d
#define VL 8
#define MASK __mmask8
#define v_zero() _mm512_setzero_pd()
#define v_set1(a) _mm512_set1_pd(a)
#define v_load(p) _mm512_loadu_pd(p)
#define v_store(p, a) _mm512_storeu_pd(p, a)
#define v_load_n(p, n) _mm512_maskz_loadu_pd((__mmask8)((1u << (n)) - 1u), p)
#define LANES __mmask8
#define v_lanes(from, to) ((LANES)((1u << (to)) - (1u << (from))))
#define v_load_lanes(p, lanes) _mm512_maskz_loadu_pd(lanes, p)
#define v_store_n(p, a, n) _mm512_mask_storeu_pd(p, (__mmask8)((1u << (n)) - 1u), a)
#define v_store_lanes(p, a, lanes) _mm512_mask_storeu_pd(p, lanes, a)
#define v_stream(p, a) _mm512_stream_pd(p, a)
#define v_fence() _mm_sfence()
#define v_even_odd(a, b) FC_FN(even_odd)(a, b)
#define v_zip(a, b, lo, hi) FC_FN(zip)(a, b, lo, hi)
#define v_even(a, b) FC_FN(every_other)(a, b, 0)
#define v_odd(a, b) FC_FN(every_other)(a, b, 1)
#define v_slide(a, b, n) FC_FN(slide)(a, b, n)
#define INT int64_t
#define PICKS __m512i
#define v_picks(p) _mm512_loadu_si512(p)
#define v_pick(a, b, at) _mm512_permutex2var_pd(a, at, b)
#define v_pick_lanes(a, b, at, lanes) _mm512_maskz_permutex2var_pd(lanes, a, at, b)
#define v_or(m, n) ((MASK)((m) | (n)))
#define v_any(m) ((m) != 0)
#define v_store_index(p, a, base, n) FC_FN(store_index)(p, a, base, n)
#define v_add(a, b) _mm512_add_pd(a, b)
#define v_sub(a, b) _mm512_sub_pd(a, b)
#define v_mul(a, b) _mm512_mul_pd(a, b)
#define v_div(a, b) _mm512_div_pd(a, b)
#define v_fma(a, b, c) _mm512_fmadd_pd(a, b, c)
#define v_fnma(a, b, c) _mm512_fnmadd_pd(a, b, c)
#define v_max(a, b) _mm512_max_pd(a, b)
#define v_max_either(a, b) _mm512_or_pd(_mm512_max_pd(a, b), _mm512_max_pd(b, a))
#define v_min(a, b) _mm512_min_pd(a, b)
#define v_abs(a) _mm512_abs_pd(a)
#define v_copysign(a, b) _mm512_or_pd(a, _mm512_and_pd(b, _mm512_set1_pd(-0.0)))
#define v_lt(a, b) _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ)
#define v_isnan(a) _mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q)
#define v_isminus0(a) _mm512_fpclass_pd_mask(a, 4)
#define v_select(m, a, b) _mm512_mask_blend_pd(m, b, a)
#define v_pow2(n) _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(n), 52))
#define v_hsum(a) FC_FN(hsum)(a)
#define v_hmax(a) FC_FN(hmax)(a)
#define v_transpose(r, p, step, n) FC_FN(transpose_v)(r, p, step, n)

static inline __m512d FC_FN(even_odd)(__m512d a, __m512d b) {
    const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 9, 11, 13, 15);
    return _mm512_permutex2var_pd(a, even, b);
}
static inline __m512d FC_FN(every_other)(__m512d a, __m512d b, int first) {
    const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    return _mm512_permutex2var_pd(a, _mm512_add_epi64(even, _mm512_set1_epi64(first)), b);
}
#define FC_SLIDE(n) \
    case n: \
        return _mm512_castsi512_pd( \
            _mm512_alignr_epi64(_mm512_castpd_si512(b), _mm512_castpd_si512(a), n));
static FC_INLINE __m512d FC_FN(slide)(__m512d a, __m512d b, const int n) {
    switch (n) { FC_SLIDE(1) FC_SLIDE(2) FC_SLIDE(3) FC_SLIDE(5) FC_SLIDE(6) FC_SLIDE(7) }
    return n ? b : a;
}
#undef FC_SLIDE
static inline void FC_FN(zip)(__m512d a, __m512d b, __m512d *lo, __m512d *hi) {
    const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    *lo = _mm512_permutex2var_pd(a, first, b);
    *hi = _mm512_permutex2var_pd(a, _mm512_add_epi64(first, _mm512_set1_epi64(4)), b);
}
static inline void FC_FN(store_index)(int64_t *p, __m512d a, int64_t base, ptrdiff_t n) {
    _mm512_mask_storeu_epi64(p, (__mmask8)((1u << n) - 1u),
                             _mm512_add_epi64(_mm512_cvtpd_epi64(a), _mm512_set1_epi64(base)));
}
static inline double FC_FN(hsum)(__m512d a) {
    const __m256d h = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}
static inline double FC_FN(hmax)(__m512d a) {
    const __m256d h = _mm256_max_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    const __m128d s = _mm_max_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
    return _mm_cvtsd_f64(_mm_max_sd(s, _mm_unpackhi_pd(s, s)));
}
static FC_INLINE void FC_FN(transpose_v)(__m512d *r, const double *p, ptrdiff_t step, ptrdiff_t n) {
    __m512d t[8]; /* t[2*c + k]: columns 2*c and 2*c + 1 of rows k, k + 2, k + 4 and k + 6 */
    const double *a = p;
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
        const double *b = FC_ROW(a, k, 2);
        FC_OPAQUE(b);
        const double *d = FC_ROW(b, k + 2, 2);
        FC_OPAQUE(d);
        const double *e = FC_ROW(d, k + 4, 2);
        FC_OPAQUE(e);
#pragma GCC unroll 4
        for (int c = 0; c < 8; c += 2) {
            __m512d lanes = _mm512_castpd128_pd512(_mm_loadu_pd(a + c));
            lanes = _mm512_insertf64x2(lanes, _mm_loadu_pd(b + c), 1);
            lanes = _mm512_insertf64x2(lanes, _mm_loadu_pd(d + c), 2);
            t[c + k] = _mm512_insertf64x2(lanes, _mm_loadu_pd(e + c), 3);
        }
        a = FC_ROW(a, k, 1);
        FC_OPAQUE(a);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 8; c += 2) { /* 2x2 in each 128 bits */
        r[c] = _mm512_unpacklo_pd(t[c], t[c + 1]);
        r[c + 1] = _mm512_unpackhi_pd(t[c], t[c + 1]);
    }
}
#endif

#define v_load_in(p, from, to) v_load_lanes(p, v_lanes(from, to))
/* The first m <= VL of a vector; a full one where m says so, past the caches where `stream`. */
#define FC_LOAD(p, m) ((m) == VL ? v_load(p) : v_load_n(p, m))
#define FC_STORE(p, a, m, stream) \
    ((m) < VL ? v_store_n(p, a, m) : (stream) ? v_stream(p, a) : v_store(p, a))
/* `call` with a constant `streams`. */
#ifndef FC_STREAMED
#define FC_STREAMED(stream, call) \
    if (stream) { \
        enum { streams = 1 }; \
        call; \
        v_fence(); \
    } else { \
        enum { streams = 0 }; \
        call; \
    }
#endif
/* v_transpose of a block of which only `rows` x `cols` exist; the rest is zero, and is not read. */
static FC_INLINE void FC_FN(load_columns)(V *r, const REAL *p, ptrdiff_t step, ptrdiff_t rows,
                                          ptrdiff_t cols) {
    _Alignas(64) REAL part[VL * VL];
    if (rows < VL || cols < VL) {
        for (ptrdiff_t i = 0; i < VL; i++)
            v_store(part + i * VL, i < rows ? v_load_n(p + i * step, cols) : v_zero());
        p = part;
        step = VL;
    }
    v_transpose(r, p, step, VL);
}
/* Runs the body for the vectors of a row: m elements are in memory from c on. It is compiled twice,
 * for the whole vectors with a constant m. */
#define FC_OVER_COLUMNS(columns, body) \
    { \
        ptrdiff_t c = 0; \
        for (; c + VL <= (columns); c += VL) { \
            const ptrdiff_t m = VL; \
            body \
        } \
        if (c < (columns)) { \
            const ptrdiff_t m = (columns) - c; \
            body \
        } \
    }
/* The same for FC_TOGETHER vectors from c on, and for single ones where fewer are left: nv of them,
 * all full where nv > 1. Functions that compute many steps in a row take several vectors step by
 * step, by FC_EACH, so that the steps of one do not wait for each other. */
#ifndef FC_EACH
#define FC_EACH _Pragma("GCC unroll 4") for (int k = 0; k < nv; k++)
#endif
#define FC_OVER_GROUPS(columns, body) \
    { \
        ptrdiff_t c = 0; \
        for (; c + FC_TOGETHER * VL <= (columns); c += FC_TOGETHER * VL) { \
            const ptrdiff_t m = VL; \
            const int nv = FC_TOGETHER; \
            body \
        } \
        for (; c < (columns); c += VL) { \
            const ptrdiff_t m = (columns) - c < VL ? (columns) - c : VL; \
            const int nv = 1; \
            body \
        } \
    }

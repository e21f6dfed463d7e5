/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Winograd's minimal filtering F(m x m, r x r): the transforms of a tile of alpha x alpha pixels
 * (alpha = m + r - 1), and the products between them. All of it is vectorised over channels: a
 * pixel is a vector of VL channels, so maps of any size fill the vectors.
 *
 *   winograd_input    V = B^T d B   for each tile of a row
 *   winograd_tile     M += V U      for each of the alpha^2 positions: mr tiles x NR channels
 *   winograd_output   Y = A^T M A   for each tile of a row, with epilogue, stored as NCHW
 *   winograd_weight   U = G g G^T
 *
 * The weight gradient correlates x with dy: it is F(r x r, m x m), and the pixels of a tile of dy
 * are its taps:
 *
 *   winograd_dy       W = G dy G^T  for each tile of a row
 *   winograd_sum      M += V W      for each position: mr channels of x by NR of dy, over the tiles
 *   winograd_dw       dw = A^T M A  of M, the sums of V W over all tiles
 *
 * The 1-D transforms are written for points 0, +-p_k, infinity: each +- pair shares its even and
 * its odd part. winograd_points.py derives the tables. Limits: alpha <= FC_ALPHA_MAX.
 */
#ifndef FC_WINOGRAD_TABLES
#define FC_WINOGRAD_TABLES
enum { FC_ALPHA_MAX = 6, FC_PAIRS_MAX = 2, FC_R_MAX = 5, FC_M_MAX = 5 };
/* Tiles transformed at a time: the columns between the two passes, alpha * (8*m + r - 1) vectors of
 * 32 bytes, are 6.5 KiB and stay in L1. */
enum { FC_TILE_RUN = 8 };
typedef struct {
    int m, r, pairs;
    double point[FC_PAIRS_MAX];
    double q[FC_PAIRS_MAX], q_k[FC_PAIRS_MAX][FC_PAIRS_MAX - 1]; /* without the leading 1 */
    double g_0[1], g_k[FC_PAIRS_MAX][FC_R_MAX];
    double power[FC_PAIRS_MAX][FC_M_MAX];
} fc_winograd;
#include "body/winograd_points.h"
#endif

/* sum_{j < n} c[j] * x[2j] + x[2n] */
static FC_INLINE V FC_FN(winograd_poly)(const double *c, const V *x, const int n) {
    V s = x[2 * n];
#pragma GCC unroll 2
    for (int j = n - 1; j >= 0; j--) s = v_fma(v_set1(c[j]), x[2 * j], s);
    return s;
}

static FC_INLINE void FC_FN(winograd_bt)(V *y, const V *x, const fc_winograd *k) {
    const int pairs = k->pairs;
    y[0] = FC_FN(winograd_poly)(k->q, x, pairs);
    y[2 * pairs + 1] = FC_FN(winograd_poly)(k->q, x + 1, pairs);
#pragma GCC unroll 2
    for (int i = 0; i < pairs; i++) {
        const V even = FC_FN(winograd_poly)(k->q_k[i], x + 2, pairs - 1);
        const V odd = FC_FN(winograd_poly)(k->q_k[i], x + 1, pairs - 1);
        y[2 * i + 1] = v_fma(v_set1(k->point[i]), odd, even);
        y[2 * i + 2] = v_fnma(v_set1(k->point[i]), odd, even);
    }
}

static FC_INLINE void FC_FN(winograd_at)(V *y, const V *s, const fc_winograd *k) {
    const int pairs = k->pairs, m = k->m;
    V even[FC_PAIRS_MAX], odd[FC_PAIRS_MAX];
#pragma GCC unroll 2
    for (int i = 0; i < pairs; i++) {
        even[i] = v_add(s[2 * i + 1], s[2 * i + 2]);
        odd[i] = v_sub(s[2 * i + 1], s[2 * i + 2]);
    }
#pragma GCC unroll 5
    for (int j = 0; j < m; j++) {
        V sum =
            j == 0 ? v_add(s[0], even[0]) : v_mul(v_set1(k->power[0][j]), j % 2 ? odd[0] : even[0]);
#pragma GCC unroll 2
        for (int i = 1; i < pairs; i++)
            sum = v_fma(v_set1(k->power[i][j]), j % 2 ? odd[i] : even[i], sum);
        y[j] = j == m - 1 ? v_add(sum, s[2 * pairs + 1]) : sum;
    }
}

static FC_INLINE void FC_FN(winograd_g)(V *y, const V *g, const fc_winograd *k) {
    const int pairs = k->pairs, r = k->r;
    y[0] = v_mul(v_set1(k->g_0[0]), g[0]);
    y[2 * pairs + 1] = g[r - 1];
#pragma GCC unroll 2
    for (int i = 0; i < pairs; i++) {
        V even = v_mul(v_set1(k->g_k[i][0]), g[0]), odd = v_mul(v_set1(k->g_k[i][1]), g[1]);
#pragma GCC unroll 5
        for (int j = 2; j < r; j++) {
            if (j % 2)
                odd = v_fma(v_set1(k->g_k[i][j]), g[j], odd);
            else
                even = v_fma(v_set1(k->g_k[i][j]), g[j], even);
        }
        y[2 * i + 1] = v_add(even, odd);
        y[2 * i + 2] = v_sub(even, odd);
    }
}

/* The columns of FC_TILE_RUN tiles first (neighbouring tiles share alpha - m of them), then rows.
 */
static FC_INLINE void FC_FN(winograd_input_body)(const fc_winograd_input *t, const fc_winograd *k,
                                                 const ptrdiff_t x_px) {
    const int m = k->m, r = k->r, alpha = m + r - 1;
    /* or each store reads them again */
    const ptrdiff_t x_row = t->x_row, v_p = t->v_p, v_t = t->v_t;
    _Alignas(64) REAL columns[FC_ALPHA_MAX][(FC_TILE_RUN * FC_M_MAX + FC_R_MAX - 1) * VL];
    for (ptrdiff_t first = 0; first < t->tiles; first += FC_TILE_RUN) {
        const ptrdiff_t n = t->tiles - first < FC_TILE_RUN ? t->tiles - first : FC_TILE_RUN;
        const REAL *const x = (const REAL *)t->x + first * m * x_px;
        REAL *const v = (REAL *)t->v + first * v_t;
        for (ptrdiff_t j = 0; j < n * m + r - 1; j++) {
            V in[FC_ALPHA_MAX], out[FC_ALPHA_MAX];
#pragma GCC unroll 6
            for (int i = 0; i < alpha; i++) in[i] = v_load(x + i * x_row + j * x_px);
            FC_FN(winograd_bt)(out, in, k);
#pragma GCC unroll 6
            for (int i = 0; i < alpha; i++) v_store(columns[i] + j * VL, out[i]);
        }
        for (int i = 0; i < alpha; i++)
            for (ptrdiff_t p = 0; p < n; p++) {
                V in[FC_ALPHA_MAX], out[FC_ALPHA_MAX];
#pragma GCC unroll 6
                for (int j = 0; j < alpha; j++) in[j] = v_load(columns[i] + (p * m + j) * VL);
                FC_FN(winograd_bt)(out, in, k);
#pragma GCC unroll 6
                for (int j = 0; j < alpha; j++)
                    v_store(v + (i * alpha + j) * v_p + p * v_t, out[j]);
            }
    }
}

/* The first half of A^T M A: the rows of M. */
static FC_INLINE void FC_FN(winograd_rows)(V (*rows)[FC_M_MAX], const REAL *sums, ptrdiff_t s_p,
                                           const fc_winograd *k) {
    const int alpha = k->m + k->r - 1;
#pragma GCC unroll 6
    for (int i = 0; i < alpha; i++) {
        V in[FC_ALPHA_MAX];
#pragma GCC unroll 6
        for (int j = 0; j < alpha; j++) in[j] = v_load(sums + (i * alpha + j) * s_p);
        FC_FN(winograd_at)(rows[i], in, k);
    }
}

/* conv_store of pixels that lie y_px apart: those of one phase of a dilated convolution. */
static __attribute__((noinline)) void FC_FN(winograd_scatter)(const fc_conv_store *t,
                                                              ptrdiff_t y_px) {
    for (ptrdiff_t o = 0; o < t->outputs; o++)
        for (ptrdiff_t r = 0; r < t->rows; r++) {
            const REAL *const sums = (const REAL *)t->sums + r * t->s_row + o;
            const ptrdiff_t at = o * t->y_oc + r * t->y_row;
            for (ptrdiff_t p = 0; p < t->cols; p++) {
                REAL s = sums[p * t->s_px];
                if (t->residual) s += ((const REAL *)t->residual)[at + p * y_px];
                ((REAL *)t->y)[at + p * y_px] = t->relu && 0 > s ? 0 : s;
            }
        }
}

/* Rows of sums first, then columns; a row of finished pixels is transposed to NCHW by conv_store.
 */
static FC_INLINE void FC_FN(winograd_output_body)(const fc_winograd_output *t,
                                                  const fc_winograd *k) {
    const int m = k->m, alpha = m + k->r - 1;
    _Alignas(64) REAL pixels[FC_M_MAX][FC_TILE_RUN * FC_M_MAX * VL];
    const V bias = t->bias ? v_load_n((const REAL *)t->bias, t->oc) : v_zero();
    V check[FC_M_MAX];
#pragma GCC unroll 4
    for (int i = 0; i < m; i++) check[i] = v_zero();
    for (ptrdiff_t first = 0; first < t->tiles; first += FC_TILE_RUN) {
        const ptrdiff_t n = t->tiles - first < FC_TILE_RUN ? t->tiles - first : FC_TILE_RUN;
        const ptrdiff_t cols = t->cols - first * m < n * m ? t->cols - first * m : n * m;
        for (ptrdiff_t p = 0; p < n; p++) {
            V rows[FC_ALPHA_MAX][FC_M_MAX];
            FC_FN(winograd_rows)(rows, (const REAL *)t->sums + (first + p) * t->s_t, t->s_p, k);
#pragma GCC unroll 4
            for (int j = 0; j < m; j++) {
                V in[FC_ALPHA_MAX], out[FC_M_MAX];
#pragma GCC unroll 6
                for (int i = 0; i < alpha; i++) in[i] = rows[i][j];
                FC_FN(winograd_at)(out, in, k);
#pragma GCC unroll 4
                for (int i = 0; i < m; i++) {
                    check[i] = v_fma(out[i], v_zero(), check[i]); /* NaN once a sum is not finite */
                    v_store(pixels[i] + (p * m + j) * VL, v_add(out[i], bias));
                }
            }
        }
        const REAL *const residual = t->residual;
        const fc_conv_store store = {
            .sums = pixels,
            .y = (REAL *)t->y + first * m * t->y_px,
            .residual = residual ? residual + first * m * t->y_px : NULL,
            .rows = t->rows,
            .cols = cols,
            .s_row = FC_TILE_RUN * FC_M_MAX * VL,
            .s_px = VL,
            .y_oc = t->y_oc,
            .y_row = t->y_row,
            .outputs = t->oc,
            .relu = t->flags & FC_RELU,
        };
        if (t->y_px == 1)
            FC_FN(conv_store)(&store);
        else
            FC_FN(winograd_scatter)(&store, t->y_px);
    }
#pragma GCC unroll 4
    for (int i = 1; i < m; i++) check[0] = v_add(check[0], check[i]);
    if (v_hsum(check[0]) != 0) *t->nonfinite = 1;
}

/* U = G g G^T of g[i*g_row + j*g_col] */
static FC_INLINE void FC_FN(winograd_taps)(REAL *u, ptrdiff_t u_p, const REAL *g, ptrdiff_t g_row,
                                           ptrdiff_t g_col, const fc_winograd *k) {
    const int r = k->r, alpha = k->m + r - 1;
    V columns[FC_ALPHA_MAX][FC_R_MAX];
#pragma GCC unroll 5
    for (int j = 0; j < r; j++) {
        V in[FC_R_MAX], out[FC_ALPHA_MAX];
#pragma GCC unroll 5
        for (int i = 0; i < r; i++) in[i] = v_load(g + i * g_row + j * g_col);
        FC_FN(winograd_g)(out, in, k);
#pragma GCC unroll 6
        for (int i = 0; i < alpha; i++) columns[i][j] = out[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < alpha; i++) {
        V out[FC_ALPHA_MAX];
        FC_FN(winograd_g)(out, columns[i], k);
#pragma GCC unroll 6
        for (int j = 0; j < alpha; j++) v_store(u + (i * alpha + j) * u_p, out[j]);
    }
}

static FC_INLINE void FC_FN(winograd_dy_body)(const fc_winograd_input *t, const fc_winograd *k) {
    for (ptrdiff_t p = 0; p < t->tiles; p++)
        FC_FN(winograd_taps)((REAL *)t->v + p * t->v_t, t->v_p,
                             (const REAL *)t->x + p * k->r * t->x_px, t->x_row, t->x_px, k);
}

static FC_INLINE void FC_FN(winograd_dw_body)(const fc_winograd_dw *t, const fc_winograd *k) {
    const int m = k->m, alpha = m + k->r - 1;
    V check = v_zero();
    for (ptrdiff_t c = 0; c < t->channels; c++) {
        REAL *const dw = (REAL *)t->dw + c * m * m * t->dw_t;
        V rows[FC_ALPHA_MAX][FC_M_MAX];
        FC_FN(winograd_rows)(rows, (const REAL *)t->sums + c * t->s_c, t->s_p, k);
#pragma GCC unroll 5
        for (int j = 0; j < m; j++) {
            V in[FC_ALPHA_MAX], out[FC_M_MAX];
#pragma GCC unroll 6
            for (int i = 0; i < alpha; i++) in[i] = rows[i][j];
            FC_FN(winograd_at)(out, in, k);
#pragma GCC unroll 5
            for (int i = 0; i < m; i++) {
                check = v_fma(out[i], v_zero(), check); /* NaN once a sum is not finite */
                v_store(dw + (i * m + j) * t->dw_t, out[i]);
            }
        }
    }
    if (v_hsum(check) != 0) *t->nonfinite = 1;
}

#define FC_WINOGRAD(m, r) \
    static void FC_FN(winograd_input_##m##_##r)(const fc_winograd_input *t) { \
        if (t->x_px == VL) /* a literal saves 1 to 3 % of calls */ \
            FC_FN(winograd_input_body)(t, &fc_winograd_##m##_##r, VL); \
        else \
            FC_FN(winograd_input_body)(t, &fc_winograd_##m##_##r, t->x_px); \
    } \
    static void FC_FN(winograd_output_##m##_##r)(const fc_winograd_output *t) { \
        FC_FN(winograd_output_body)(t, &fc_winograd_##m##_##r); \
    } \
    static void FC_FN(winograd_weight_##m##_##r)(void *u, ptrdiff_t u_p, const void *g, \
                                                 ptrdiff_t g_t) { \
        FC_FN(winograd_taps)(u, u_p, g, r * g_t, g_t, &fc_winograd_##m##_##r); \
    } \
    static void FC_FN(winograd_dy_##m##_##r)(const fc_winograd_input *t) { \
        FC_FN(winograd_dy_body)(t, &fc_winograd_##r##_##m); \
    } \
    static void FC_FN(winograd_dw_##m##_##r)(const fc_winograd_dw *t) { \
        FC_FN(winograd_dw_body)(t, &fc_winograd_##r##_##m); \
    }
FC_WINOGRAD(4, 3)
FC_WINOGRAD(2, 3)
FC_WINOGRAD(2, 5)

/* fetched: vectors of the next weights for each channel. The next tiles are fetched as well: a
 * load of a line from L2 for each of the tiles begins every block of channels (avx512: 0.92 to
 * 0.95 of the time). Where vectors are half a line, that gained nothing. And so are rows
 * of y, which come from memory, see conv_winograd.pyx. */
static FC_INLINE void FC_FN(winograd_tile_body)(const fc_winograd_tile *t, const int mr,
                                                const int nv, const int fetched) {
    V acc[FC_MR_MAX][FC_NV_MAX];
    const REAL *x = t->x, *x_next = t->x_next, *w = t->w, *w_next = t->w_next;
    const char *fetch = t->fetch;
    REAL *const y = t->y;
    const ptrdiff_t fetch_step = t->fetch_step;
    const int first = t->flags & FC_FIRST;
#pragma GCC unroll 14
    for (int p = 0; p < mr; p++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) acc[p][v] = v_zero();
    for (ptrdiff_t b = t->blocks; b > 0; b--) {
#pragma GCC unroll 2 /* more, and gcc 12 spills */
        for (int c = 0; c < VL; c++) {
            V u[FC_NV_MAX];
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++) u[v] = v_load(w + (c * nv + v) * VL);
#pragma GCC unroll 2
            for (int v = 0; v < fetched; v++) FC_PREFETCH_READ(w_next + (c * fetched + v) * VL);
            if (VL * sizeof(REAL) == FC_CACHE_LINE) {
                FC_PREFETCH_READ(x_next + c * VL);
                FC_PREFETCH_L2(fetch);
                fetch += fetch_step;
            }
#pragma GCC unroll 14
            for (int p = 0; p < mr; p++) {
                const V a = v_set1(x[p * VL + c]);
#pragma GCC unroll 2
                for (int v = 0; v < nv; v++) acc[p][v] = v_fma(a, u[v], acc[p][v]);
            }
        }
        x += t->x_b;
        x_next += t->x_b;
        w += nv * VL * VL;
        w_next += fetched * VL * VL;
    }
#pragma GCC unroll 14
    for (int p = 0; p < mr; p++)
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++) {
            REAL *const to = y + (p * nv + v) * VL;
            v_store(to, first ? acc[p][v] : v_add(acc[p][v], v_load(to)));
        }
}

#define FC_WINOGRAD_TILE(mr, nv) \
    static void FC_FN(winograd_tile_##mr##x##nv)(const fc_winograd_tile *t) { \
        if (t->flags & FC_SHARE) \
            FC_FN(winograd_tile_body)(t, mr, nv, 1); \
        else \
            FC_FN(winograd_tile_body)(t, mr, nv, nv); \
    }
FC_TILES_1(FC_WINOGRAD_TILE, FC_CONV_MR_1)
FC_TILES_2(FC_WINOGRAD_TILE, FC_CONV_MR_2)

static FC_INLINE void FC_FN(winograd_sum_body)(const fc_winograd_sum *t, const int mr,
                                               const int nv) {
    const REAL *v = t->v, *w = t->w;
    REAL *const y = t->y;
    const ptrdiff_t v_t = t->v_t;
    int first = t->flags & FC_FIRST;
    for (ptrdiff_t c = 0; c < t->chains; c++) {
        V acc[FC_MR_MAX][FC_NV_MAX];
#pragma GCC unroll 14
        for (int m = 0; m < mr; m++)
#pragma GCC unroll 2
            for (int n = 0; n < nv; n++) acc[m][n] = v_zero();
        for (ptrdiff_t i = t->chain + (c < t->longer); i > 0; i--) {
            V b[FC_NV_MAX];
#pragma GCC unroll 2
            for (int n = 0; n < nv; n++) b[n] = v_load(w + n * VL);
#pragma GCC unroll 14
            for (int m = 0; m < mr; m++) {
                const V a = v_set1(v[m]);
#pragma GCC unroll 2
                for (int n = 0; n < nv; n++) acc[m][n] = v_fma(a, b[n], acc[m][n]);
            }
            v += v_t;
            w += nv * VL;
        }
#pragma GCC unroll 14
        for (int m = 0; m < mr; m++)
#pragma GCC unroll 2
            for (int n = 0; n < nv; n++) {
                REAL *const to = y + (m * nv + n) * VL;
                v_store(to, first ? acc[m][n] : v_add(acc[m][n], v_load(to)));
            }
        first = 0;
    }
}

#define FC_WINOGRAD_SUM(mr, nv) \
    static void FC_FN(winograd_sum_##mr##x##nv)(const fc_winograd_sum *t) { \
        FC_FN(winograd_sum_body)(t, mr, nv); \
    }
FC_TILES_1(FC_WINOGRAD_SUM, FC_SUM_MR_1)
FC_TILES_2(FC_WINOGRAD_SUM, FC_SUM_MR_2)

/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The contract between the drivers (Cython: memory and threads) and the micro-kernels (C: one
 * instruction set). A row of isa/isa.def is one fc_table; a table holds the same kernels twice, for
 * float ("f32") and double ("f64"). Below, REAL is that element type, V one vector of `lanes`
 * REALs, and every `void *` points at REALs. All strides and offsets are in elements, never in
 * bytes. Kernels are serial, allocate nothing, read no globals and accept any alignment.
 */
#ifndef FASTCONV_H
#define FASTCONV_H

#include <stddef.h>
#include <stdint.h>

/* Upper limits of the tile tables, over all rows of isa.def. */
enum {
    FC_MR_MAX = 14,
    FC_NV_MAX = 2,
    FC_PIXEL_NV_MAX = 8,
    FC_DEPTHWISE_ROWS = 3,
    FC_DEPTHWISE_COLS = 14,
    FC_WGRAD_MR_MAX = 14,
    FC_DOT_A_MAX = 4,
    FC_DOT_B_MAX = 6,
    FC_FOLD_PLANES = 8
};
/* Products of a split product: 1, 3 or 6. */
enum { FC_SPLIT_MAX = 6 };
/* Most columns of a column kernel: whole vectors of any row. */
enum { FC_COLUMNS = 512 };
/* Neighbouring pixels in a run of terms of conv_runs. */
enum { FC_CONV_RUN = 3 };
/* Of the widest vector. */
enum { FC_LANES_MAX = 16 };
/* Vectors that long chains of steps, such as exponentials, take step by step together. */
enum { FC_TOGETHER = 4 };

/* Bytes. */
enum { FC_CACHE_LINE = 64 };

/* What a tile does with its sums. Without FC_FIRST it adds to the partial sums of an earlier
 * channel block; with FC_LAST it applies the epilogue. With FC_STREAM it then stores whole vectors
 * past the caches, to multiples of their size. */
enum { FC_FIRST = 1, FC_LAST = 2, FC_RELU = 4, FC_STREAM = 8, FC_SHARE = 16 };

/* Rows of memory, `row` elements apart, that later tiles will read: of each `lines` cache lines. */
typedef struct {
    const void *at;
    ptrdiff_t row, rows, lines;
} fc_fetch;

/*
 * conv_tile[nv][mr]: oc-vectorised direct convolution of mr neighbouring pixels.
 *   sums[p*s_px + o] (+)= sum_t x[off[t] + p] * w[t*NR + o]
 * NR = nv*lanes; with `add` the sums are added to, else they are written. The pixels p >= mr/2 are
 * x_jump and s_jump further on: on the next row, or 0.
 *
 * conv_runs[nv][mr]: the same of runs of FC_CONV_RUN terms, in which off[t + 1] = off[t] + 1;
 * x_jump and s_jump are 0.
 *
 * conv_store: y[o*y_oc + r*y_row + p] = act(sums[r*s_row + p*s_px + o] + bias[o] + residual)
 */
typedef struct {
    const void *x;        /* the tile's first pixel inside a packed band */
    const ptrdiff_t *off; /* off[terms]: the taps of each channel */
    const void *w;        /* w[terms][NR], 64-byte aligned */
    void *sums;
    const void *next; /* next_bytes of weights that later tiles will read: to be fetched */
    ptrdiff_t next_bytes;
    const void *fetch; /* likewise, by rows whose vectors are cache lines: fetch_step bytes a term,
                          one line at each term (conv_runs: at each run) */
    ptrdiff_t fetch_step;
    ptrdiff_t terms, s_px, x_jump, s_jump;
    int add;
} fc_conv_tile;

typedef struct {
    const void *sums; /* readable for whole vectors of outputs */
    void *y;
    const void *bias;     /* bias[outputs] or NULL */
    const void *residual; /* same strides as y, or NULL */
    ptrdiff_t rows, cols, s_row, s_px, y_oc, y_row;
    int outputs, relu;
} fc_conv_store;

/*
 * gemm_tile[nv][mr]: pixel-vectorised product of some panels of mr rows, i < panels, m < mr;
 * at least one channel.
 *   acc[i*mr + m][p] = sum_c a[i*a_panel + c*a_c + m] * x[c*x_c + p]     p < nv*lanes
 *   y[(i*mr + m)*y_m + y_at[p]] = act(acc[...] + bias_m[i*mr + m] + bias_n[p] + residual[...])
 * x must be readable for nv*lanes pixels; `pixels` of them are stored.
 * Meanwhile the lines of the rows to fetch come to the cache, `fetch.rows` rows a panel.
 */
typedef struct {
    const void *x;
    void *keep;    /* NULL, or with FC_NV_MAX vectors where the first panel copies the rows of x to,
                      nv*lanes apart, for the others */
    const void *a; /* a[panels][channels][mr], panels a_panel and rows a_c apart */
    void *acc; /* partial sums [panels][mr][nv*lanes]; used only when the channels are blocked */
    void *y;
    const void *bias_m;   /* bias_m[panels*mr] or NULL */
    const void *bias_n;   /* bias_n[pixels] or NULL */
    const void *residual; /* same strides as y, or NULL */
    ptrdiff_t x_c, a_c, a_panel, channels, panels;
    ptrdiff_t y_m;
    const ptrdiff_t *y_at; /* y_at[pixels], or NULL: y_at[p] = p */
    fc_fetch fetch;
    int pixels; /* 1..nv*lanes */
    int flags;
} fc_gemm_tile;

/*
 * pixel_sums[mr]: pixel-vectorised direct convolution of rows of a packed band.
 *   sums[m*s_m + r*s_row + p] (+)= sum_c sum_i sum_t
 *       a[c*a_c + (i*tap_row + t)*mr + m] * x[c*x_c + off[i*tap_row + t] + r*x_row + p]
 * for i < tap_rows, t < taps and p < cols rounded up to whole vectors; x and sums must have room
 * for those. With `add` the sums are added to, else they are written. With a y they are complete,
 * and go there instead:
 *   y[m*y_m + r*y_row + p] = act(sum + bias[m] + residual)   p < cols
 * where `row` is cols. Less says that the one row of sums is several of x, x_row >= lanes apart, of
 * which the first `row` pixels are rows of y, without a residual.
 * A `lag` other than 0 says that tap_rows is 1 and that off[t] - off[t - lag] is x_row for all t,
 * or -x_row for all t: tiles of two rows (mr == 1, no y) then read x once for both.
 */
typedef struct {
    const void *x;
    const ptrdiff_t *off; /* off[tap_rows][tap_row] */
    const void *a;        /* a[channels][tap_rows][tap_row][mr], channels a_c apart */
    void *sums;
    void *y;              /* or NULL */
    const void *bias;     /* bias[mr] or NULL */
    const void *residual; /* same strides as y, or NULL */
    ptrdiff_t x_c, x_row, a_c, channels, tap_rows, tap_row, taps, lag;
    ptrdiff_t rows, cols, row, s_m, s_row, y_m, y_row;
    int ahead;             /* ask for the pixels of the next channel */
    int add, relu, stream; /* stream: as FC_STREAM; rows of y are then whole vectors */
} fc_pixel_sums;

/*
 * pixel_planes: one channel to one output, from x straight to y.
 *   y[r*y_row + p] = act(sum_i sum_k a[i*a_row + k] * x[(top + r*step + i)*x_row + off[k] + p*step]
 *   + bias + residual[r*y_row + p])
 * for r < rows, p < cols, i < down (3, 5 or 7), k < across <= FC_PLANE_TAPS, and `planes` planes.
 * Cells of x beyond in_rows x in_cols are zero: of their rows `zeros` takes the place, in their
 * columns are only lanes of the first and the last vector of a row. A step of 2 is for square
 * kernels, off[k] = k - across/2, at most plane_strided columns, and cols = (in_cols + 1)/2.
 */
enum { FC_PLANE_TAPS = 7 };
typedef struct {
    const void *x, *zeros;
    const ptrdiff_t *off; /* off[across] */
    const void *a;
    void *y;
    const void *bias;     /* bias[planes] or NULL */
    const void *residual; /* same strides as y, or NULL */
    ptrdiff_t planes, x_plane, a_plane, y_plane;
    ptrdiff_t x_row, in_rows, in_cols, top, a_row, down, across, rows, cols, y_row;
    ptrdiff_t step; /* 1 or 2 */
    int relu;
} fc_pixel_planes;

/*
 * plane_dots: the weight gradient of 3x3 kernels of one channel to one output, in the lanes.
 *   sum over lanes of sums[(u*3 + k)*lanes] += sum_r sum_p dy[r*cols + p] *
 *                                              x[(top + r + u)*x_row + off[k] + p]
 * for r < rows, p < cols, and for `planes` planes, which have 9 vectors of sums each. x beyond
 * in_rows x in_cols as of pixel_planes.
 */
typedef struct {
    const void *x, *zeros, *dy;
    const ptrdiff_t *off; /* off[3] */
    void *sums;
    ptrdiff_t planes, x_plane, dy_plane;
    ptrdiff_t x_row, in_rows, in_cols, top, rows, cols;
} fc_plane_dots;

/*
 * plane_grads: the input gradient of a kernel of `taps` x `taps` (3 or 5), one channel to one
 * output, with a stride of 2 and taps/2 cells of padding, from dy straight to dx:
 *   dx[h*width + w] = sum of a[u*taps + k] * dy[i*cols + j]   where h = 2*i + u - taps/2,
 *                                                             w = 2*j + k - taps/2
 * for i < rows = (height + 1)/2 and j < cols = (width + 1)/2 of dy, 2*top <= h < 2*(top + pairs)
 * and h < height, w < width of dx, in `planes` planes. cols is at most plane_strided. `zeros` are
 * `cols` of them.
 */
typedef struct {
    const void *dy, *zeros, *a;
    void *dx;
    ptrdiff_t planes, dy_plane, a_plane, dx_plane;
    ptrdiff_t rows, cols, height, width, top, pairs, taps;
} fc_plane_grads;

/*
 * pixel_store: y[m*y_m + r*y_row + p*y_px] = act(sums[m*s_m + r*s_row + p] + bias[m] + residual)
 * With `odd`, the sums of the odd places of rows whose y_px is 2; odd_cols is cols or cols - 1.
 */
typedef struct {
    const void *sums; /* readable to the end of the last whole vector of a row */
    const void *odd;  /* same strides as sums, or NULL */
    void *y;
    const void *bias;     /* bias[outputs] or NULL */
    const void *residual; /* same strides as y, or NULL */
    ptrdiff_t rows, cols, odd_cols, s_m, s_row, y_m, y_row, y_px;
    int outputs, relu;
} fc_pixel_store;

/*
 * Depthwise convolution. A vector holds one pixel of as many planes as it has lanes; x, a and sums
 * are arrays of vectors, strides and offsets still in elements.
 *
 * depthwise_load: y[at[p] + plane] = x[plane*x_plane + p] for p < pixels; the lanes of planes
 * beyond `planes` become zero.
 *
 * depthwise_sums: sums[r*s_row + p*s_px] (+)=
 *   sum_c sum_t a[(c*taps + t)*lanes] * x[c*x_c + off[t] + r*x_row + p*lanes]   r < rows, p < cols
 * With `add` the sums are added to, else they are written.
 *
 * depthwise_store: y[plane*y_plane + p] = act(sums[p*lanes + plane] + bias[plane*bias_plane] +
 *   residual[plane*y_plane + p])   p < pixels, plane < planes
 */
typedef struct {
    const void *x;
    const ptrdiff_t *off; /* off[taps] */
    const void *a;        /* a[channels][taps][lanes] */
    void *sums;
    ptrdiff_t x_c, x_row, channels, taps;
    ptrdiff_t rows, cols, s_row, s_px;
    int add;
} fc_depthwise_sums;

typedef struct {
    const void *sums;
    void *y;
    const void *bias;     /* or NULL */
    const void *residual; /* same strides as y, or NULL */
    ptrdiff_t pixels, planes, y_plane, bias_plane;
    int relu;
} fc_depthwise_store;

/*
 * wgrad_tile[nv][mr]: acc[m][o] += sum over planes i, rows r, columns p of
 *   x[off[m] + i*x_plane + r*x_row + p] * dy[((i*rows + r)*cols + p)*NR + o]
 * The sum over the block starts at zero and is then added to acc, or with FC_FIRST stored: blocked
 * summation. Of the rows to fetch it fetches as many elements as it has pixels, to the L2 cache.
 */
typedef struct {
    const void *x;        /* a packed band, or x itself */
    const ptrdiff_t *off; /* off[mr], of each (channel, tap) */
    const void *dy;       /* dy[planes*rows*cols][NR], pixel-major */
    void *acc;            /* acc[mr][NR] */
    ptrdiff_t x_plane, x_row, planes, rows, cols;
    fc_fetch fetch[2];
    int flags;
} fc_wgrad_tile;

/* Winograd convolution, F(m x m, r x r); body/winograd.h has the matrices. Pixels and tiles are
 * vectors of `lanes` channels. */
typedef enum {
    FC_WINOGRAD_4_3,
    FC_WINOGRAD_2_3,
    FC_WINOGRAD_2_5,
    FC_WINOGRAD_COUNT
} fc_winograd_kind;

/* winograd_input: v[i*alpha + j][tile] = (B^T d B)[i][j] of a row of tiles that are m pixels apart
 * winograd_dy: v[i*alpha + j][tile] = (G d G^T)[i][j] of a row of tiles of m x m pixels */
typedef struct {
    const void *x; /* winograd_input: x[alpha][(tiles - 1)*m + alpha][lanes], rows x_row and pixels
                      x_px apart; winograd_dy: x[m][tiles*m][lanes] */
    void *v;       /* v[alpha*alpha][tiles][lanes], positions v_p and tiles v_t apart */
    ptrdiff_t x_row, x_px, v_p, v_t, tiles;
} fc_winograd_input;

/* winograd_tile[nv][mr]: y[m][o] (+)= sum_b sum_c x[b*x_b + m*lanes + c] * w[(b*lanes + c)*NR + o],
 * c < lanes; it adds to y without FC_FIRST. From w_next on it prefetches as many bytes as w has,
 * or with FC_SHARE one in nv of them. Where vectors are cache lines it also does lanes vectors of
 * each block from x_next on, and to the L2 cache a line at each c from `fetch` on, which are
 * fetch_step bytes apart. */
typedef struct {
    const void *x, *x_next, *w, *w_next, *fetch;
    void *y; /* y[mr][NR] */
    ptrdiff_t x_b, blocks, fetch_step;
    int flags;
} fc_winograd_tile;

/* winograd_output: y = act(A^T sums A + bias + residual) of a row of tiles, `lanes` output channels
 */
typedef struct {
    const void *sums;     /* sums[alpha*alpha][tiles][...], s_p and s_t apart */
    void *y;              /* NCHW: channels y_oc apart, rows y_row apart, pixels y_px apart */
    const void *bias;     /* bias[oc] or NULL */
    const void *residual; /* same strides as y, or NULL */
    ptrdiff_t s_p, s_t, tiles, y_oc, y_row, y_px;
    ptrdiff_t rows, cols; /* pixels of y to store: at most m and tiles*m */
    int oc;               /* valid output channels, 1..lanes */
    int flags;
    int *nonfinite; /* set to 1 when some A^T sums A is not finite */
} fc_winograd_output;

/*
 * Split kernels: products of floats as products of their bfloat16 parts in tile registers (see
 * body/split.h). tile[products][na][nb], products = 1, 3, 6:
 *   acc[i][j] (+)= sum_c sum_t a[i][k] * b[k][j]    i < 16*na, j < 16*nb, k = 32 terms of (c, t)
 * a[p*a_part + i*a_row + (off[t]*32 + c*a_c) + k], rows of tile 2 from a_tile on; b in pairs of
 * terms, b[p*b_part + (k/2)*b_row + 2*j + k%2 + (c*taps + t)*b_k], its tile 2 from b_tile on;
 * strides in bfloat16. Adds to acc without FC_FIRST. Runs between begin() and end() of the same
 * thread.
 */
typedef struct {
    const void *a, *b;
    const ptrdiff_t *off; /* off[taps], in blocks of 32 terms */
    void *acc;            /* float acc[16*na][16*nb], rows acc_row apart */
    ptrdiff_t a_part, a_tile, a_row, a_c, b_part, b_tile, b_row, b_k, acc_row, channels, taps;
    const void *fetch, *fetch_end; /* what lies between is to be fetched to the L2 cache, fetch_step
                                      bytes (whole lines) a step; or both NULL */
    ptrdiff_t fetch_step;
    int flags;
} fc_split_tile;

typedef struct {
    void (*begin)(void); /* configures the thread's tile registers */
    void (*end)(void);
    /* to[p*part + i] = part p of x[i], i < n. Returns the least |x| but zero, as its bits minus 1.
     */
    uint32_t (*rows)(void *to, ptrdiff_t part, const float *x, ptrdiff_t n, int parts);
    /* to[p*part + i/32*panel + 2*(i%32)] and the element after it = part p of even[i], odd[i]; odd
     * NULL: zero. Likewise. Elements `ahead` come to the cache, but for 0 (needs odd). */
    uint32_t (*pairs)(void *to, ptrdiff_t part, ptrdiff_t panel, const float *even,
                      const float *odd, ptrdiff_t n, ptrdiff_t ahead, int parts);
    void (*tile[FC_SPLIT_MAX + 1][3][3])(const fc_split_tile *);
} fc_split_kernels;

/* winograd_sum[nv][mr]: y[m][o] (+)= sum_t v[t*v_t + m] * w[t*NR + o] over the tiles of some
 * chains, each summed in registers before it is added; `chain` tiles each, the first `longer` of
 * them one more. Without FC_FIRST it adds to y. */
typedef struct {
    const void *v, *w;
    void *y; /* y[mr][NR] */
    ptrdiff_t v_t, chains, chain, longer;
    int flags;
} fc_winograd_sum;

/* winograd_dw: dw[channel][i*r + j] = (A^T sums A)[i][j], `lanes` output channels */
typedef struct {
    const void *sums; /* sums[alpha*alpha][channels][...], s_p and s_c apart */
    void *dw;         /* dw[channels][r*r][...], taps dw_t apart */
    ptrdiff_t s_p, s_c, dw_t, channels;
    int *nonfinite; /* set to 1 when some A^T sums A is not finite */
} fc_winograd_dw;

/* dot_tile[na][nb]: acc[i*acc_row + m] += sum_r sum_p a[i][r*a_row + p] * b[m][r*b_row + p] */
typedef struct {
    const void *a[FC_DOT_A_MAX];
    const void *b[FC_DOT_B_MAX];
    void *acc;
    ptrdiff_t acc_row, a_row, b_row, rows, cols;
} fc_dot_tile;

/*
 * fold_row: y[c*y_c + i] (+)= sum_k sum_r x[c*x_c + tap[k] + off[r] + i - shift[k]]   c < planes, i
 * < m over the taps k for which 0 <= i - shift[k] < n, and all rows r. With `add` y is added to,
 * else it is written. Of x nothing else is read.
 */
typedef struct {
    const void *x;
    const ptrdiff_t *tap, *shift; /* tap[taps], shift[taps] */
    const ptrdiff_t *off;         /* off[rows] */
    void *y;
    ptrdiff_t x_c, y_c, planes, taps, rows, n, m;
    int add;
} fc_fold;

/* pool_max / pool_avg: planes x[d][h][w] -> y[od][oh][ow]. Axis k (0 = d, 1 = h, 2 = w) of
 * window o holds the cells start[k][o], start[k][o] + step[k], ... < stop[k][o], all inside the
 * plane. pool_avg_backward: x is dy, y is dx, and the tables hold the windows each cell lies in. */
typedef struct {
    const void *x;
    void *y;
    int64_t *index; /* flat index d*h*w of each maximum, or NULL */
    /* Averages: window (od, oh, ow) is divided by divisor[0][od]*divisor[1][oh]*divisor_w[ow]. */
    const double *divisor[2];
    const void *divisor_w;
    const ptrdiff_t *start[3], *stop[3];
    ptrdiff_t step[3], in[3], out[3];
    /* Along w, window o of the forward pass has `taps` taps from o*stride - pad on, inside the
     * plane or not; stride is 1 or 2, and no window is empty. Or stride is 0: only the tables
     * count. */
    ptrdiff_t stride, pad, taps;
    /* A row of scratch has `width` REALs; an input row begins at `left`. `block` rows of windows
     * are computed together, which reach over `rows` input rows (of all d); 0: too many for the
     * scratch. That has room for so many rows of each, and for 4 vectors. */
    void *row;
    ptrdiff_t width, left, rows, block;
    ptrdiff_t planes; /* one after the other in memory */
    /* Where windows along w are no lattice: whether rows of them lie in the lanes on the way. Then
     * the scratch has room for a vector for each cell of a row and of a row of results, too. */
    int lanes;
    /* Whether small planes do. Then the scratch has room for a vector for each cell of a block of
     * rows, of a plane and of its results. With an index it is twice the results and no rows. */
    int together;
    /* Or, where each cell has a window that holds it, planes of one d are an array, so many of them
     * at a time; else 0. The window of a cell reaches from the before[k]-th cell before it over
     * reach[k] of them, k = 0 along h and 1 along w, or over less. `inside` has a row of cells +
     * FC_LANES_MAX REALs for the divisors, which begin again behind the last cell, and one for
     * each of the reach[0] and then reach[1] cells: whether the window of a cell has it, 1 or 0.
     * Then the scratch has room for two such arrays, reach[0] rows and reach[1] cells beside each,
     * and 4 vectors. */
    ptrdiff_t flat;
    ptrdiff_t before[2], reach[2];
    const void *inside;
} fc_pool;

typedef void (*fc_conv_tile_fn)(const fc_conv_tile *);
typedef void (*fc_conv_store_fn)(const fc_conv_store *);
typedef void (*fc_gemm_tile_fn)(const fc_gemm_tile *);
typedef void (*fc_pixel_sums_fn)(const fc_pixel_sums *);
typedef void (*fc_pixel_planes_fn)(const fc_pixel_planes *);
typedef void (*fc_plane_dots_fn)(const fc_plane_dots *);
typedef void (*fc_plane_grads_fn)(const fc_plane_grads *);
typedef void (*fc_pixel_store_fn)(const fc_pixel_store *);
typedef void (*fc_depthwise_load_fn)(void *y, const int32_t *at, const void *x, ptrdiff_t x_plane,
                                     ptrdiff_t pixels, ptrdiff_t planes);
typedef void (*fc_depthwise_sums_fn)(const fc_depthwise_sums *);
typedef void (*fc_depthwise_store_fn)(const fc_depthwise_store *);
typedef void (*fc_wgrad_tile_fn)(const fc_wgrad_tile *);
typedef void (*fc_dot_tile_fn)(const fc_dot_tile *);
typedef void (*fc_winograd_input_fn)(const fc_winograd_input *);
typedef void (*fc_winograd_tile_fn)(const fc_winograd_tile *);
typedef void (*fc_winograd_output_fn)(const fc_winograd_output *);
/* u[i*alpha + j] = (G g G^T)[i][j] for `lanes` output channels: positions u_p, taps g_t apart */
typedef void (*fc_winograd_weight_fn)(void *u, ptrdiff_t u_p, const void *g, ptrdiff_t g_t);
typedef void (*fc_winograd_sum_fn)(const fc_winograd_sum *);
typedef void (*fc_winograd_dw_fn)(const fc_winograd_dw *);
typedef void (*fc_fold_fn)(const fc_fold *);
typedef void (*fc_pool_fn)(const fc_pool *);
/* `stream` here and below: results go past the caches. They begin at cache lines, and so does each
 * of several runs. */
typedef void (*fc_map_fn)(void *y, const void *x, ptrdiff_t n, int stream);
typedef void (*fc_map2_fn)(void *dx, const void *dy, const void *x, ptrdiff_t n, int stream);

/* (y, x, factor, rows, n) forward, (dx, dy, y, rows, n) backward */
typedef void (*fc_softmax_fn)(void *, const void *, const void *, ptrdiff_t rows, ptrdiff_t n);
typedef void (*fc_softmax_columns_fn)(void *, const void *, const void *, ptrdiff_t n, ptrdiff_t ld,
                                      ptrdiff_t columns, void *scratch);

/* Elementwise functions; fc_map tables are indexed by this. */
typedef enum { FC_ACT_RELU, FC_ACT_TANH, FC_ACT_SIGMOID, FC_ACT_COUNT } fc_activation;

typedef struct {
    int lanes;
    int conv_mr[FC_NV_MAX + 1]; /* most pixels of conv_tile[nv] */
    int run_mr[FC_NV_MAX + 1];  /* most pixels of conv_runs[nv]; 0: there are none */
    int gemm_mr[FC_NV_MAX + 1]; /* most rows of gemm_tile[nv] */
    int sum_mr[FC_NV_MAX + 1];  /* most rows of winograd_sum[nv] */
    int pixel_mr;               /* most outputs of pixel_sums */
    int wgrad_mr;
    fc_conv_tile_fn conv_tile[FC_NV_MAX + 1][FC_MR_MAX + 1];
    fc_conv_tile_fn conv_runs[FC_NV_MAX + 1][FC_MR_MAX + 1];
    fc_conv_store_fn conv_store;
    fc_gemm_tile_fn gemm_tile[FC_NV_MAX + 1][FC_MR_MAX + 1];
    fc_pixel_sums_fn pixel_sums[FC_MR_MAX + 1];
    fc_pixel_planes_fn pixel_planes;
    int plane_strided; /* most columns of rows with a step of 2 */
    fc_plane_dots_fn plane_dots;
    fc_plane_grads_fn plane_grads;                          /* or NULL */
    void (*sum_lanes)(void *y, const void *x, ptrdiff_t n); /* y[i] of vector x[i], i < n */
    fc_pixel_store_fn pixel_store;
    fc_depthwise_load_fn depthwise_load;
    fc_depthwise_sums_fn depthwise_sums;
    fc_depthwise_store_fn depthwise_store;
    fc_wgrad_tile_fn wgrad_tile[FC_NV_MAX + 1][FC_WGRAD_MR_MAX + 1];
    int dot_mr[FC_DOT_A_MAX + 1]; /* most b of dot_tile[na] */
    fc_dot_tile_fn dot_tile[FC_DOT_A_MAX + 1][FC_DOT_B_MAX + 1];

    fc_winograd_input_fn winograd_input[FC_WINOGRAD_COUNT];
    fc_winograd_tile_fn winograd_tile[FC_NV_MAX + 1][FC_MR_MAX + 1]; /* up to conv_mr[nv] */
    fc_winograd_output_fn winograd_output[FC_WINOGRAD_COUNT];
    fc_winograd_weight_fn winograd_weight[FC_WINOGRAD_COUNT];
    /* The weight gradient of F(m x m, r x r) is F(r x r, m x m), with the same points:
     * winograd_input serves both. */
    fc_winograd_input_fn winograd_dy[FC_WINOGRAD_COUNT];
    fc_winograd_sum_fn winograd_sum[FC_NV_MAX + 1][FC_MR_MAX + 1]; /* up to sum_mr[nv] */
    fc_winograd_dw_fn winograd_dw[FC_WINOGRAD_COUNT];

    /* y[r*y_row + i] = x[r*x_row + (i - left)*step], r < rows, left <= i < left + n; zero for i <
     * left and in the `right` elements after */
    void (*copy_rows)(void *y, ptrdiff_t y_row, const void *x, ptrdiff_t x_row, ptrdiff_t rows,
                      ptrdiff_t left, ptrdiff_t n, ptrdiff_t right, ptrdiff_t step);
    /* y[j*y_ld + i] = x[i*x_ld + j], i < rows, j < cols; rows up to `pad` are written as zero.
     * With a negative y_ld the columns come in reverse order. */
    void (*transpose)(void *y, ptrdiff_t y_ld, const void *x, ptrdiff_t x_ld, ptrdiff_t rows,
                      ptrdiff_t cols, ptrdiff_t pad);
    void (*add)(void *y, const void *x, ptrdiff_t n); /* y[i] += x[i] */
    /* y[i] = x[i], past the caches, where y begins at a cache line; x[i] = 0 */
    void (*pour)(void *y, void *x, ptrdiff_t n);
    fc_fold_fn fold_row;

    fc_map_fn act[FC_ACT_COUNT];           /* y = f(x) */
    fc_map2_fn act_backward[FC_ACT_COUNT]; /* dx = dy * f'(x) */
    /* Softmax of contiguous rows of n: y = softmax(x), times factor[row] if there are factors, or
     * y = log_softmax(x). The gradient takes dy and y. y and dx may be x and dy. */
    fc_softmax_fn softmax, log_softmax, softmax_backward, log_softmax_backward;
    /* The same along columns: element [i][column] is at i*ld + column; at most FC_COLUMNS. The
     * scratch of the forward functions has n*FC_TOGETHER vectors, or is NULL: then they use y. */
    fc_softmax_columns_fn softmax_columns, log_softmax_columns;
    fc_softmax_columns_fn softmax_columns_backward, log_softmax_columns_backward;

    fc_pool_fn pool_max, pool_avg, pool_avg_backward;
    /* The same averages of p->planes planes, any number, of which each is one row and one window;
     * without scratch. */
    fc_pool_fn pool_mean, pool_mean_backward;
    /* The same of planes of one d with 2x2 windows and a stride of 2, all inside from the first
     * cell on and each divided by 4; without scratch. NULL where the row has none. */
    fc_pool_fn pool_halves_max, pool_halves_index, pool_halves_sum, pool_halves_backward;

    double (*sum)(const void *x, ptrdiff_t n);
    int (*finite)(const void *x, ptrdiff_t n); /* whether all are; their sum may not be */
    /* Batch normalisation. A channel is `batch` runs of `plane` elements, `stride` apart. */
    void (*moments)(const void *x, ptrdiff_t batch, ptrdiff_t stride, ptrdiff_t plane, double *mean,
                    double *m2); /* m2 = sum (x - mean)^2 */
    /* sum = sum dy, dot = sum dy*(x - mean) */
    void (*norm_sums)(const void *dy, const void *x, ptrdiff_t batch, ptrdiff_t stride,
                      ptrdiff_t plane, double mean, double *sum, double *dot);
    /* y = (x - mean)*scale + shift */
    void (*affine)(void *y, const void *x, ptrdiff_t batch, ptrdiff_t stride, ptrdiff_t plane,
                   double mean, double scale, double shift, int stream);
    /* dx = (dy - mean_dy - (x - mean)*slope)*scale */
    void (*norm_backward)(void *dx, const void *dy, const void *x, ptrdiff_t batch,
                          ptrdiff_t stride, ptrdiff_t plane, double mean, double mean_dy,
                          double slope, double scale, int stream);
    /* The same for up to FC_COLUMNS channels of planes of one element: x[row*ld + channel]. */
    void (*column_moments)(const void *x, ptrdiff_t rows, ptrdiff_t ld, ptrdiff_t columns,
                           double *mean, double *m2);
    void (*column_sums)(const void *dy, const void *x, ptrdiff_t rows, ptrdiff_t ld,
                        ptrdiff_t columns, const double *mean, double *sum, double *dot);
    void (*column_affine)(void *y, const void *x, ptrdiff_t rows, ptrdiff_t ld, ptrdiff_t columns,
                          const double *mean, const double *scale, const double *shift);
    void (*column_backward)(void *dx, const void *dy, const void *x, ptrdiff_t rows, ptrdiff_t ld,
                            ptrdiff_t columns, const double *mean, const double *mean_dy,
                            const double *slope, const double *scale);

    double (*fma_peak)(
        ptrdiff_t n); /* n rounds of register-only multiply-adds; returns the flops */
} fc_kernels;

typedef struct {
    const char *name;  /* the row's name in isa.def */
    const char *flags; /* the compiler flags it was built with */
    const fc_kernels *f32, *f64;
    const fc_split_kernels *split; /* NULL in rows without tile registers */
} fc_table;

/* cpu.c */
int fc_isa_count(void); /* rows built in, slowest first */
const fc_table *fc_isa_table(int row);
/* NULL, or what this machine lacks; `ask` the OS, once in a process, for what it grants on request
 */
const char *fc_isa_missing(int row, int ask);
const char *fc_compiler(void);
const char *fc_cpu_name(void);
/* bytes of the data or unified cache of `level` (1..3), 0 when unknown */
size_t fc_cache_bytes(int level);

#endif

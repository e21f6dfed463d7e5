# SPDX-License-Identifier: BSD-3-Clause
"""csrc/fastconv.h for Cython: the comments are there."""

from libc.stdint cimport int32_t, int64_t, uint32_t

cdef extern from "fastconv.h" nogil:
    enum:
        FC_MR_MAX, FC_NV_MAX, FC_PIXEL_NV_MAX, FC_WGRAD_MR_MAX, FC_DOT_A_MAX, FC_DOT_B_MAX
        FC_COLUMNS, FC_CONV_RUN, FC_LANES_MAX, FC_TOGETHER, FC_CACHE_LINE
        FC_FIRST, FC_LAST, FC_RELU, FC_STREAM, FC_SHARE
        FC_ACT_RELU, FC_ACT_TANH, FC_ACT_SIGMOID, FC_ACT_COUNT

    ctypedef struct fc_fetch:
        const void *at
        Py_ssize_t row, rows, lines

    ctypedef struct fc_conv_tile:
        const void *x
        const Py_ssize_t *off
        const void *w
        void *sums
        const void *next
        Py_ssize_t next_bytes
        const void *fetch
        Py_ssize_t fetch_step
        Py_ssize_t terms, s_px, x_jump, s_jump
        int add

    ctypedef struct fc_conv_store:
        const void *sums
        void *y
        const void *bias
        const void *residual
        Py_ssize_t rows, cols, s_row, s_px, y_oc, y_row
        int outputs, relu

    ctypedef struct fc_gemm_tile:
        const void *x
        void *keep
        const void *a
        void *acc
        void *y
        const void *bias_m
        const void *bias_n
        const void *residual
        Py_ssize_t x_c, a_c, a_panel, channels, panels
        Py_ssize_t y_m
        const Py_ssize_t *y_at
        fc_fetch fetch
        int pixels, flags

    ctypedef struct fc_pixel_sums:
        const void *x
        const Py_ssize_t *off
        const void *a
        void *sums
        void *y
        const void *bias
        const void *residual
        Py_ssize_t x_c, x_row, a_c, channels, tap_rows, tap_row, taps, lag
        Py_ssize_t rows, cols, row, s_m, s_row, y_m, y_row
        int ahead, add, relu, stream

    enum: FC_PLANE_TAPS
    ctypedef struct fc_pixel_planes:
        const void *x
        const void *zeros
        const Py_ssize_t *off
        const void *a
        void *y
        const void *bias
        const void *residual
        Py_ssize_t planes, x_plane, a_plane, y_plane
        Py_ssize_t x_row, in_rows, in_cols, top, a_row, down, across, rows, cols, y_row, step
        int relu

    ctypedef struct fc_plane_dots:
        const void *x
        const void *zeros
        const void *dy
        const Py_ssize_t *off
        void *sums
        Py_ssize_t planes, x_plane, dy_plane
        Py_ssize_t x_row, in_rows, in_cols, top, rows, cols

    ctypedef struct fc_plane_grads:
        const void *dy
        const void *zeros
        const void *a
        void *dx
        Py_ssize_t planes, dy_plane, a_plane, dx_plane
        Py_ssize_t rows, cols, height, width, top, pairs, taps

    ctypedef struct fc_pixel_store:
        const void *sums
        const void *odd
        void *y
        const void *bias
        const void *residual
        Py_ssize_t rows, cols, odd_cols, s_m, s_row, y_m, y_row, y_px
        int outputs, relu

    ctypedef struct fc_depthwise_sums:
        const void *x
        const Py_ssize_t *off
        const void *a
        void *sums
        Py_ssize_t x_c, x_row, channels, taps
        Py_ssize_t rows, cols, s_row, s_px
        int add

    ctypedef struct fc_depthwise_store:
        const void *sums
        void *y
        const void *bias
        const void *residual
        Py_ssize_t pixels, planes, y_plane, bias_plane
        int relu

    ctypedef struct fc_wgrad_tile:
        const void *x
        const Py_ssize_t *off
        const void *dy
        void *acc
        Py_ssize_t x_plane, x_row, planes, rows, cols
        fc_fetch fetch[2]
        int flags

    ctypedef enum fc_winograd_kind:
        FC_WINOGRAD_4_3, FC_WINOGRAD_2_3, FC_WINOGRAD_2_5, FC_WINOGRAD_COUNT

    ctypedef struct fc_winograd_input:
        const void *x
        void *v
        Py_ssize_t x_row, x_px, v_p, v_t, tiles

    ctypedef struct fc_winograd_tile:
        const void *x
        const void *x_next
        const void *w
        const void *w_next
        const void *fetch
        void *y
        Py_ssize_t x_b, blocks, fetch_step
        int flags

    ctypedef struct fc_winograd_output:
        const void *sums
        void *y
        const void *bias
        const void *residual
        Py_ssize_t s_p, s_t, tiles, y_oc, y_row, y_px
        Py_ssize_t rows, cols
        int oc, flags
        int *nonfinite

    ctypedef struct fc_winograd_sum:
        const void *v
        const void *w
        void *y
        Py_ssize_t v_t, chains, chain, longer
        int flags

    ctypedef struct fc_winograd_dw:
        const void *sums
        void *dw
        Py_ssize_t s_p, s_c, dw_t, channels
        int *nonfinite

    ctypedef struct fc_dot_tile:
        const void *a[4]
        const void *b[6]
        void *acc
        Py_ssize_t acc_row, a_row, b_row, rows, cols

    ctypedef struct fc_fold:
        const void *x
        const Py_ssize_t *tap
        const Py_ssize_t *shift
        const Py_ssize_t *off
        void *y
        Py_ssize_t x_c, y_c, planes, taps, rows, n, m
        int add

    ctypedef struct fc_pool:
        const void *x
        void *y
        int64_t *index
        const double *divisor[2]
        const void *divisor_w
        const Py_ssize_t *start[3]
        const Py_ssize_t *stop[3]
        Py_ssize_t step[3]
        Py_ssize_t inp "in"[3]
        Py_ssize_t out[3]
        Py_ssize_t stride, pad, taps
        void *row
        Py_ssize_t width, left, rows, block, planes
        bint lanes, together
        Py_ssize_t flat
        Py_ssize_t before[2]
        Py_ssize_t reach[2]
        const void *inside

    ctypedef void (*fc_conv_tile_fn)(const fc_conv_tile *) noexcept nogil
    ctypedef void (*fc_conv_store_fn)(const fc_conv_store *) noexcept nogil
    ctypedef void (*fc_gemm_tile_fn)(const fc_gemm_tile *) noexcept nogil
    ctypedef void (*fc_pixel_sums_fn)(const fc_pixel_sums *) noexcept nogil
    ctypedef void (*fc_pixel_planes_fn)(const fc_pixel_planes *) noexcept nogil
    ctypedef void (*fc_plane_dots_fn)(const fc_plane_dots *) noexcept nogil
    ctypedef void (*fc_plane_grads_fn)(const fc_plane_grads *) noexcept nogil
    ctypedef void (*fc_pixel_store_fn)(const fc_pixel_store *) noexcept nogil
    ctypedef void (*fc_depthwise_load_fn)(void *, const int32_t *, const void *, Py_ssize_t, Py_ssize_t,
                                          Py_ssize_t) noexcept nogil
    ctypedef void (*fc_depthwise_sums_fn)(const fc_depthwise_sums *) noexcept nogil
    ctypedef void (*fc_depthwise_store_fn)(const fc_depthwise_store *) noexcept nogil
    ctypedef void (*fc_wgrad_tile_fn)(const fc_wgrad_tile *) noexcept nogil
    ctypedef void (*fc_dot_tile_fn)(const fc_dot_tile *) noexcept nogil
    ctypedef void (*fc_add_fn)(void *, const void *, Py_ssize_t) noexcept nogil
    ctypedef void (*fc_pour_fn)(void *, void *, Py_ssize_t) noexcept nogil
    ctypedef void (*fc_map_fn)(void *, const void *, Py_ssize_t, bint) noexcept nogil
    ctypedef void (*fc_map2_fn)(void *, const void *, const void *, Py_ssize_t, bint) noexcept nogil
    ctypedef void (*fc_softmax_fn)(void *, const void *, const void *, Py_ssize_t,
                                   Py_ssize_t) noexcept nogil
    ctypedef void (*fc_softmax_columns_fn)(void *, const void *, const void *, Py_ssize_t, Py_ssize_t,
                                           Py_ssize_t, void *) noexcept nogil
    ctypedef void (*fc_copy_rows_fn)(void *, Py_ssize_t, const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                                     Py_ssize_t, Py_ssize_t, Py_ssize_t) noexcept nogil
    ctypedef void (*fc_transpose_fn)(void *, Py_ssize_t, const void *, Py_ssize_t, Py_ssize_t,
                                     Py_ssize_t, Py_ssize_t) noexcept nogil
    ctypedef void (*fc_winograd_input_fn)(const fc_winograd_input *) noexcept nogil
    ctypedef void (*fc_winograd_tile_fn)(const fc_winograd_tile *) noexcept nogil
    ctypedef void (*fc_winograd_output_fn)(const fc_winograd_output *) noexcept nogil
    ctypedef void (*fc_winograd_weight_fn)(void *, Py_ssize_t, const void *, Py_ssize_t) noexcept nogil
    ctypedef void (*fc_winograd_sum_fn)(const fc_winograd_sum *) noexcept nogil
    ctypedef void (*fc_winograd_dw_fn)(const fc_winograd_dw *) noexcept nogil
    ctypedef void (*fc_fold_fn)(const fc_fold *) noexcept nogil
    ctypedef void (*fc_pool_fn)(const fc_pool *) noexcept nogil
    ctypedef double (*fc_sum_fn)(const void *, Py_ssize_t) noexcept nogil
    ctypedef bint (*fc_finite_fn)(const void *, Py_ssize_t) noexcept nogil
    ctypedef void (*fc_moments_fn)(const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, double *,
                                   double *) noexcept nogil
    ctypedef void (*fc_norm_sums_fn)(const void *, const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                                     double, double *, double *) noexcept nogil
    ctypedef void (*fc_affine_fn)(void *, const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, double,
                                  double, double, bint) noexcept nogil
    ctypedef void (*fc_norm_backward_fn)(void *, const void *, const void *, Py_ssize_t, Py_ssize_t,
                                         Py_ssize_t, double, double, double, double, bint) noexcept nogil
    ctypedef void (*fc_column_sums_fn)(const void *, const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                                       const double *, double *, double *) noexcept nogil
    ctypedef void (*fc_column_affine_fn)(void *, const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                                         const double *, const double *, const double *) noexcept nogil
    ctypedef void (*fc_column_backward_fn)(void *, const void *, const void *, Py_ssize_t, Py_ssize_t,
                                           Py_ssize_t, const double *, const double *, const double *,
                                           const double *) noexcept nogil

    ctypedef double (*fc_peak_fn)(Py_ssize_t) noexcept nogil

    ctypedef struct fc_kernels:
        int lanes
        int conv_mr[3]
        int run_mr[3]
        int gemm_mr[3]
        int sum_mr[3]
        int pixel_mr
        int wgrad_mr
        fc_conv_tile_fn conv_tile[3][15]
        fc_conv_tile_fn conv_runs[3][15]
        fc_conv_store_fn conv_store
        fc_gemm_tile_fn gemm_tile[3][15]
        fc_pixel_sums_fn pixel_sums[15]
        fc_pixel_planes_fn pixel_planes
        int plane_strided
        fc_plane_dots_fn plane_dots
        fc_plane_grads_fn plane_grads
        fc_add_fn sum_lanes
        fc_pixel_store_fn pixel_store
        fc_depthwise_load_fn depthwise_load
        fc_depthwise_sums_fn depthwise_sums
        fc_depthwise_store_fn depthwise_store
        fc_wgrad_tile_fn wgrad_tile[3][15]
        fc_winograd_input_fn winograd_input[3]
        fc_winograd_tile_fn winograd_tile[3][15]
        fc_winograd_output_fn winograd_output[3]
        fc_winograd_weight_fn winograd_weight[3]
        fc_winograd_input_fn winograd_dy[3]
        fc_winograd_sum_fn winograd_sum[3][15]
        fc_winograd_dw_fn winograd_dw[3]
        int dot_mr[5]
        fc_dot_tile_fn dot_tile[5][7]
        fc_copy_rows_fn copy_rows
        fc_transpose_fn transpose
        fc_add_fn add
        fc_pour_fn pour
        fc_fold_fn fold_row
        fc_map_fn act[3]
        fc_map2_fn act_backward[3]
        fc_softmax_fn softmax
        fc_softmax_fn log_softmax
        fc_softmax_fn softmax_backward
        fc_softmax_fn log_softmax_backward
        fc_softmax_columns_fn softmax_columns
        fc_softmax_columns_fn log_softmax_columns
        fc_softmax_columns_fn softmax_columns_backward
        fc_softmax_columns_fn log_softmax_columns_backward
        fc_pool_fn pool_max
        fc_pool_fn pool_avg
        fc_pool_fn pool_avg_backward
        fc_pool_fn pool_mean
        fc_pool_fn pool_mean_backward
        fc_pool_fn pool_halves_max
        fc_pool_fn pool_halves_index
        fc_pool_fn pool_halves_sum
        fc_pool_fn pool_halves_backward
        fc_sum_fn sum
        fc_finite_fn finite
        fc_moments_fn moments
        fc_norm_sums_fn norm_sums
        fc_affine_fn affine
        fc_norm_backward_fn norm_backward
        fc_moments_fn column_moments
        fc_column_sums_fn column_sums
        fc_column_affine_fn column_affine
        fc_column_backward_fn column_backward
        fc_peak_fn fma_peak

    ctypedef struct fc_split_tile:
        const void *a
        const void *b
        const Py_ssize_t *off
        void *acc
        Py_ssize_t a_part, a_tile, a_row, a_c, b_part, b_tile, b_row, b_k, acc_row, channels, taps
        const void *fetch
        const void *fetch_end
        Py_ssize_t fetch_step
        int flags

    ctypedef void (*fc_split_tile_fn)(const fc_split_tile *) noexcept
    ctypedef void (*fc_split_state_fn)() noexcept
    ctypedef uint32_t (*fc_split_rows_fn)(void *to, Py_ssize_t part, const float *x, Py_ssize_t n, int parts) noexcept
    ctypedef uint32_t (*fc_split_pairs_fn)(void *to, Py_ssize_t part, Py_ssize_t panel, const float *even, const float *odd,
                                           Py_ssize_t n, Py_ssize_t ahead, int parts) noexcept

    ctypedef struct fc_split_kernels:
        fc_split_state_fn begin
        fc_split_state_fn end
        fc_split_rows_fn rows
        fc_split_pairs_fn pairs
        fc_split_tile_fn tile[7][3][3]

    ctypedef struct fc_table:
        const char *name
        const char *flags
        const fc_kernels *f32
        const fc_kernels *f64
        const fc_split_kernels *split

    int fc_isa_count()
    const fc_table *fc_isa_table(int row)
    const char *fc_isa_missing(int row, int ask)
    const char *fc_compiler()
    const char *fc_cpu_name()
    size_t fc_cache_bytes(int level)

/* SPDX-License-Identifier: BSD-3-Clause */
/* All bodies for one REAL, and the fc_kernels that lists them. Included twice by table.h. */
#include "isa/simd.h"

#include "body/conv_tile.h"
#include "body/gemm_tile.h"
#include "body/plane_halves.h"
#include "body/pixel_sums.h"
#include "body/plane_grads.h"
#include "body/depthwise.h"
#include "body/wgrad_tile.h"
#include "body/winograd.h"
#include "body/pack.h"
#include "body/fold.h"
#include "body/elementwise.h"
#include "body/softmax.h"
#include "body/norm.h"
#include "body/pool.h"
#include "body/peak.h"

#define FC_ENTRY_CONV(mr, nv) [mr] = FC_FN(conv_tile_##mr##x##nv),
#define FC_ENTRY_RUNS(mr, nv) [mr] = FC_FN(conv_runs_##mr##x##nv),
#define FC_ENTRY_PIXEL(mr, nv) [mr] = FC_FN(pixel_sums_##mr),
#define FC_ENTRY_GEMM(mr, nv) [mr] = FC_FN(gemm_tile_##mr##x##nv),
#define FC_ENTRY_WINOGRAD(mr, nv) [mr] = FC_FN(winograd_tile_##mr##x##nv),
#define FC_ENTRY_WINOGRAD_SUM(mr, nv) [mr] = FC_FN(winograd_sum_##mr##x##nv),
#define FC_EACH_WINOGRAD(op) \
    {[FC_WINOGRAD_4_3] = FC_FN(op##_4_3), \
     [FC_WINOGRAD_2_3] = FC_FN(op##_2_3), \
     [FC_WINOGRAD_2_5] = FC_FN(op##_2_5)}
#define FC_ENTRY_DOT(nb, na) [na][nb] = FC_FN(dot_tile_##na##x##nb),
#define FC_ENTRY_WGRAD(mr, nv) [mr] = FC_FN(wgrad_tile_##mr##x##nv),

const fc_kernels FC_FN(kernels) = {
    .lanes = VL,
    .conv_mr = {0, FC_CONV_MR_1, FC_CONV_MR_2},
    .run_mr = {0, FC_RUN_MR_1, FC_RUN_MR_2},
    .gemm_mr = {0, FC_GEMM_MR_1, FC_GEMM_MR_2},
    .sum_mr = {0, FC_SUM_MR_1, FC_SUM_MR_2},
    .pixel_mr = FC_PIXEL_MR,
    .wgrad_mr = FC_WGRAD_MR,
    .conv_tile = {[1] = {FC_TILES_1(FC_ENTRY_CONV, FC_CONV_MR_1)},
                  [2] = {FC_TILES_2(FC_ENTRY_CONV, FC_CONV_MR_2)}},
    .conv_runs = {[1] = {NULL, FC_TILES_1(FC_ENTRY_RUNS, FC_RUN_MR_1)},
                  [2] = {NULL, FC_TILES_2(FC_ENTRY_RUNS, FC_RUN_MR_2)}},
    .conv_store = FC_FN(conv_store),
    .gemm_tile = {[1] = {FC_TILES_1(FC_ENTRY_GEMM, FC_GEMM_MR_1)},
                  [2] = {FC_TILES_2(FC_ENTRY_GEMM, FC_GEMM_MR_2)}},
    .pixel_sums = {FC_TILES_1(FC_ENTRY_PIXEL, FC_PIXEL_MR)},
    .pixel_planes = FC_FN(pixel_planes),
    .plane_strided = FC_PLANE_SLIDES ? FC_PLANE_NV * VL : 0,
    .plane_dots = FC_FN(plane_dots),
    .plane_grads = FC_PLANE_GRADS,
    .sum_lanes = FC_FN(sum_lanes),
    .pixel_store = FC_FN(pixel_store),
    .depthwise_load = FC_FN(depthwise_load),
    .depthwise_sums = FC_FN(depthwise_sums),
    .depthwise_store = FC_FN(depthwise_store),
    .wgrad_tile = {[1] = {FC_TILES_1(FC_ENTRY_WGRAD, FC_WGRAD_MR)},
                   [2] = {FC_TILES_2(FC_ENTRY_WGRAD, FC_WGRAD_MR)}},
    .winograd_input = FC_EACH_WINOGRAD(winograd_input),
    .winograd_tile = {[1] = {FC_TILES_1(FC_ENTRY_WINOGRAD, FC_CONV_MR_1)},
                      [2] = {FC_TILES_2(FC_ENTRY_WINOGRAD, FC_CONV_MR_2)}},
    .winograd_output = FC_EACH_WINOGRAD(winograd_output),
    .winograd_weight = FC_EACH_WINOGRAD(winograd_weight),
    .winograd_dy = FC_EACH_WINOGRAD(winograd_dy),
    .winograd_sum = {[1] = {FC_TILES_1(FC_ENTRY_WINOGRAD_SUM, FC_SUM_MR_1)},
                     [2] = {FC_TILES_2(FC_ENTRY_WINOGRAD_SUM, FC_SUM_MR_2)}},
    .winograd_dw = FC_EACH_WINOGRAD(winograd_dw),
    .dot_mr = {0, FC_DOT_MR(1), FC_DOT_MR(2), FC_DOT_MR(3), FC_DOT_MR(4)},
    .dot_tile = {FC_DOT_TILES(FC_ENTRY_DOT)},
    .copy_rows = FC_FN(copy_rows),
    .transpose = FC_FN(transpose),
    .add = FC_FN(add),
    .pour = FC_FN(pour),
    .fold_row = FC_FN(fold_row),
    .act = {FC_FN(map_relu), FC_FN(map_tanh), FC_FN(map_sigmoid)},
    .act_backward = {FC_FN(map_relu_grad), FC_FN(map_tanh_grad), FC_FN(map_sigmoid_grad)},
    .softmax = FC_FN(softmax),
    .log_softmax = FC_FN(log_softmax),
    .softmax_backward = FC_FN(softmax_grad),
    .log_softmax_backward = FC_FN(log_softmax_grad),
    .softmax_columns = FC_FN(softmax_columns),
    .log_softmax_columns = FC_FN(log_softmax_columns),
    .softmax_columns_backward = FC_FN(softmax_columns_grad),
    .log_softmax_columns_backward = FC_FN(log_softmax_columns_grad),
    .pool_max = FC_FN(pool_max),
    .pool_avg = FC_FN(pool_avg),
    .pool_avg_backward = FC_FN(pool_avg_backward),
    .pool_mean = FC_FN(pool_mean),
    .pool_mean_backward = FC_FN(pool_mean_backward),
    .pool_halves_max = FC_HALVES(pool_halves_max),
    .pool_halves_index = FC_HALVES(pool_halves_index),
    .pool_halves_sum = FC_HALVES(pool_halves_sum),
    .pool_halves_backward = FC_HALVES(pool_halves_backward),
    .sum = FC_FN(sum),
    .finite = FC_FN(finite),
    .moments = FC_FN(moments),
    .norm_sums = FC_FN(norm_sums),
    .affine = FC_FN(affine),
    .norm_backward = FC_FN(norm_backward),
    .column_moments = FC_FN(column_moments),
    .column_sums = FC_FN(column_sums),
    .column_affine = FC_FN(column_affine),
    .column_backward = FC_FN(column_backward),
    .fma_peak = FC_FN(fma_peak),
};

#undef FC_HALVES
#undef FC_PLANE_GRADS
#undef FC_GRADS_NV
#undef FC_CONV_TILE
#undef FC_CONV_RUNS
#undef FC_GEMM_TILE
#undef FC_PIXEL_SUMS
#undef FC_PIXEL_CASE
#undef FC_PIXEL_CASES
#undef FC_PLANE_NV
#undef FC_PLANE_FEW
#undef FC_PLANE_ROWS
#undef FC_PLANE_CASE
#undef FC_PLANE_TILE
#undef FC_PLANE_SLIDES
#undef FC_PLANE_SLIDE
#undef FC_ENTRY_SLIDE
#undef FC_PLANE_TILES
#undef FC_ENTRY_PLANE
#undef FC_DEPTHWISE_TILES
#undef FC_DEPTHWISE_TILE
#undef FC_ENTRY_DEPTHWISE
#undef FC_WGRAD_TILE
#undef FC_ENTRY_CONV
#undef FC_ENTRY_RUNS
#undef FC_ENTRY_PIXEL
#undef FC_ENTRY_GEMM
#undef FC_ENTRY_WGRAD
#undef FC_ENTRY_WINOGRAD
#undef FC_ENTRY_WINOGRAD_SUM
#undef FC_EACH_WINOGRAD
#undef FC_WINOGRAD
#undef FC_WINOGRAD_TILE
#undef FC_WINOGRAD_SUM
#undef FC_ENTRY_DOT
#undef FC_DOT_TILE
#undef FC_DOT_TILES
#undef FC_DOT_MR

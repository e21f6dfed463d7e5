/* SPDX-License-Identifier: BSD-3-Clause */
/* Plain C11, no SIMD: correct everywhere. The tiles are odd on purpose, to break drivers that
 * assume powers of two. */
#define FC_ISA_NAME scalar
#define FC_LANES_BYTES 0
#define FC_CONV_MR_1 7
#define FC_CONV_MR_2 5
#define FC_RUN_MR_1 0
#define FC_RUN_MR_2 0
#define FC_GEMM_MR_1 7
#define FC_GEMM_MR_2 5
#define FC_SUM_MR_1 7
#define FC_SUM_MR_2 5
#define FC_PIXEL_MR 5
#define FC_PIXEL_ACC 12
#define FC_WGRAD_MR 5
/* The split kernels, on a software model of tile registers. */
#define FC_SPLIT(op) FC_CAT4(fc_split_, op, f32, FC_ISA_NAME)
#include "isa/table.h"

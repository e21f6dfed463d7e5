/* SPDX-License-Identifier: BSD-3-Clause */
/* AVX-512 F, VL, BW, DQ: 32 registers. 14 x 2 accumulators + 2 vectors + 1 broadcast = 31, and 14
 * divides the maps of networks (56, 28, 14, 112, 224). In the weight gradient some of the rows'
 * addresses come from L1: there are load ports to spare. */
#include <immintrin.h>
#define FC_ISA_NAME avx512
#define FC_LANES_BYTES 64
#define FC_CONV_MR_1 14
#define FC_CONV_MR_2 14
#define FC_RUN_MR_1 14
#define FC_RUN_MR_2 12
#define FC_GEMM_MR_1 14
#define FC_GEMM_MR_2 14
#define FC_SUM_MR_1 14
#define FC_SUM_MR_2 14
#define FC_PIXEL_MR 14
#define FC_PIXEL_ACC 28
#define FC_WGRAD_MR 14
#include "isa/table.h"

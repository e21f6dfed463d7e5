/* SPDX-License-Identifier: BSD-3-Clause */
/* AVX2 + FMA: 16 registers. 6 x 2 accumulators + 2 vectors + 1 broadcast = 15; 12 x 1 + 1 + 1 = 14.
 * At least 8 to 10 accumulators cover the 4 to 5 cycles of two FMA units. Short chains have no more
 * than 8: each round of stores delays what 12 have under way (Zen 3, chains of 16 in L1: 1.3 cycles
 * for two multiply-adds with 10 or 12, 1.05 with 8; without the stores all take 1.0). */
#include <immintrin.h>
#define FC_ISA_NAME avx2
#define FC_LANES_BYTES 32
#define FC_CONV_MR_1 12
#define FC_CONV_MR_2 6
#define FC_RUN_MR_1 0
#define FC_RUN_MR_2 0
#define FC_GEMM_MR_1 12
#define FC_GEMM_MR_2 6
#define FC_SUM_MR_1 8
#define FC_SUM_MR_2 4
#define FC_PIXEL_MR 6
#define FC_PIXEL_ACC 12
#define FC_WGRAD_MR 6
#include "isa/table.h"

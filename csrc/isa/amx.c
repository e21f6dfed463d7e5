/* SPDX-License-Identifier: BSD-3-Clause */
/* Tile registers (AMX) and the conversion to bfloat16: the split kernels. All others are those of
 * avx512, which every processor with AMX has. */
#include <immintrin.h>
#include <math.h>
#include <string.h>
#define FC_ISA_NAME amx
#define FC_LANES_BYTES 64
#define FC_F64 0
#define FC_TILES
#include "fastconv.h"
#include "isa/simd.h"

#define FC_SPLIT(op) FC_CAT4(fc_split_, op, f32, FC_ISA_NAME)
#include "body/split.h"

extern const fc_kernels fc_kernels_f32_avx512, fc_kernels_f64_avx512;

const fc_table fc_table_amx = {
    .name = "amx",
    .flags = FC_ISA_FLAGS,
    .f32 = &fc_kernels_f32_avx512,
    .f64 = &fc_kernels_f64_avx512,
    .split = &FC_SPLIT(kernels),
};

/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Builds the fc_table of one row. The row's file defines FC_ISA_NAME, FC_LANES_BYTES and its tile
 * limits, then includes this file, which includes every body once per REAL. FC_ISA_FLAGS comes from
 * setup.py.
 */
#include <math.h>
#include <string.h>

#include "fastconv.h"

/* X(mr, nv) for mr = 1..limit; the limits in use are 0, 2, 4, 5, 6, 7, 8, 12 and 14. */
#define FC_UP_TO_0(X, nv)
#define FC_UP_TO_2(X, nv) X(1, nv) X(2, nv)
#define FC_UP_TO_4(X, nv) FC_UP_TO_2(X, nv) X(3, nv) X(4, nv)
#define FC_UP_TO_5(X, nv) FC_UP_TO_4(X, nv) X(5, nv)
#define FC_UP_TO_6(X, nv) FC_UP_TO_5(X, nv) X(6, nv)
#define FC_UP_TO_7(X, nv) FC_UP_TO_6(X, nv) X(7, nv)
#define FC_UP_TO_8(X, nv) FC_UP_TO_7(X, nv) X(8, nv)
#define FC_UP_TO_12(X, nv) FC_UP_TO_8(X, nv) X(9, nv) X(10, nv) X(11, nv) X(12, nv)
#define FC_UP_TO_14(X, nv) FC_UP_TO_12(X, nv) X(13, nv) X(14, nv)
#define FC_TILES_(X, limit, nv) FC_UP_TO_##limit(X, nv)
#define FC_TILES_1(X, limit) FC_TILES_(X, limit, 1)
#define FC_TILES_2(X, limit) FC_TILES_(X, limit, 2)

#define FC_F64 0
#include "isa/kernels.h"
#undef FC_F64
#define FC_F64 1
#include "isa/kernels.h"
#undef FC_F64

#if defined(FC_SPLIT)
#include "body/split.h"
#endif

#define FC_TABLE_(name) fc_table_##name
#define FC_TABLE(name) FC_TABLE_(name)
#define FC_STRING_(s) #s
#define FC_STRING(s) FC_STRING_(s)

const fc_table FC_TABLE(FC_ISA_NAME) = {
    .name = FC_STRING(FC_ISA_NAME),
    .flags = FC_ISA_FLAGS,
    .f32 = &FC_CAT4(fc_, kernels, f32, FC_ISA_NAME),
    .f64 = &FC_CAT4(fc_, kernels, f64, FC_ISA_NAME),
#if defined(FC_SPLIT)
    .split = &FC_SPLIT(kernels),
#endif
};

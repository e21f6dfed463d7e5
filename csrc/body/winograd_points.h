/* SPDX-License-Identifier: BSD-3-Clause */
/* Written by winograd_points.py, which explains the tables. */
/* clang-format off */
static const fc_winograd fc_winograd_4_3 = {
    .m = 4, .r = 3, .pairs = 2,
    .point = {5.0 / 8, 3.0 / 2},
    .q = {225.0 / 256, -169.0 / 64},
    .q_k = {{-9.0 / 4}, {-25.0 / 64}},
    .g_0 = {256.0 / 225},
    .g_k = {{-2048.0 / 2975, -256.0 / 595, -32.0 / 119}, {128.0 / 1071, 64.0 / 357, 32.0 / 119}},
    .power = {{1, 5.0 / 8, 25.0 / 64, 125.0 / 512}, {1, 3.0 / 2, 9.0 / 4, 27.0 / 8}},
};
static const fc_winograd fc_winograd_2_3 = {
    .m = 2, .r = 3, .pairs = 1,
    .point = {1},
    .q = {-1},
    .q_k = {{0}},
    .g_0 = {-1},
    .g_k = {{1.0 / 2, 1.0 / 2, 1.0 / 2}},
    .power = {{1, 1}},
};
static const fc_winograd fc_winograd_2_5 = {
    .m = 2, .r = 5, .pairs = 2,
    .point = {5.0 / 8, 3.0 / 2},
    .q = {225.0 / 256, -169.0 / 64},
    .q_k = {{-9.0 / 4}, {-25.0 / 64}},
    .g_0 = {256.0 / 225},
    .g_k = {{-2048.0 / 2975, -256.0 / 595, -32.0 / 119, -20.0 / 119, -25.0 / 238}, {128.0 / 1071, 64.0 / 357, 32.0 / 119, 48.0 / 119, 72.0 / 119}},
    .power = {{1, 5.0 / 8}, {1, 3.0 / 2}},
};
/* clang-format on */

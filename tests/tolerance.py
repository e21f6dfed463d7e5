# SPDX-License-Identifier: BSD-3-Clause
"""The one tolerance policy: |y - reference| <= c * eps * sum |x||w|, element by element.

The sum is that of the reference (abs_conv for convolutions). A constant leaves room above what was measured, so that
a broken kernel fails and a different machine does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# error class -> c: more than twice (winograd_4_3_dw: 1.3 times) the largest ratio that this test suite finds, over both types
# and the rows scalar, avx2 and avx512; it and its place stand beside each. Rows of up to some hundred terms: those of float64
# softmax have larger errors, for their sums are not blocked (docs/numerics.md).
BOUND = {
    "direct": 6.0,  # 2.96: linear, float32, 263 terms; convolutions of benchmarks/problems.py 2.30
    "elementwise": 6.0,  # 2.64: batch_norm_train, float32; poolings 2.05
    "transcendental": 8.0,  # 3.79: softmax of 37 terms, float64; sigmoid 2.60, tanh 1.88
    # Winograd's error is that of its tile's largest terms, not of each output's own (docs/numerics.md); the scale in
    # tests/test_winograd.py is at least its mean
    "winograd_4_3": 40.0,  # 18.0
    "winograd_2_3": 6.0,  # 2.5
    "winograd_2_5": 40.0,  # 17.2
    # the worst of the weight gradients are of one output pixel: every tap is a sum of one term
    "winograd_4_3_dw": 40.0,  # 30.1
    "winograd_2_3_dw": 10.0,  # 4.3
    "winograd_2_5_dw": 100.0,  # 49.6
    # Split products leave out at most 2^-24, 2^-15 and 2^-7 of each term (docs/numerics.md): 0.5, 256 and 65,792 eps. The rest is
    # rounding, of which split_6 shows most: 5.41 in sums of 54 wide-range terms
    "split_6": 12.0,
    "split_3": 256 + 12.0,  # 252.5
    "split_1": 65792 + 12.0,  # 65,154
}


def ratio(y: Array, reference: Array, scale: Array) -> float:
    """The largest |y - reference| in units of eps * scale; scale is the size of what was summed."""
    eps = np.finfo(y.dtype).eps
    error = np.abs(np.asarray(y, dtype=np.float64) - reference)
    unit = eps * np.maximum(np.abs(scale), np.finfo(y.dtype).tiny)
    return float(np.max(error / unit, initial=0.0))


def assert_close(
    y: Array, reference: Array, scale: Array | float, error_class: str = "direct"
) -> None:
    assert y.shape == np.shape(reference), f"shape {y.shape}, expected {np.shape(reference)}"
    assert np.isfinite(y).all(), "the result is not finite"
    found = ratio(
        y, np.asarray(reference), np.broadcast_to(np.asarray(scale, dtype=np.float64), y.shape)
    )
    assert found <= BOUND[error_class], (
        f"error is {found:.2f} eps * scale, at most {BOUND[error_class]} allowed"
    )

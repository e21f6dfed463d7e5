# SPDX-License-Identifier: BSD-3-Clause
"""The one tolerance policy: |y - reference| <= c * eps * sum |x||w|, element by element.

The sum is that of the reference (abs_conv for convolutions). A constant leaves room above what was measured, so that
a broken kernel fails and a different machine does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# error class -> c. "direct": 2.3 was the largest ratio, forward and backward, float32, over the reduced layers of
# benchmarks/problems.py, the general algorithms and the scalar and avx2 rows. The other two are chosen, not measured.
BOUND = {
    "direct": 6.0,
    # Winograd's error is that of its tile's largest terms, not of each output's own (docs/numerics.md). Largest ratios over
    # tests/test_winograd.py, where the scale is at least its mean: 18.0, 2.5 and 17.2.
    "winograd_4_3": 40.0,
    "winograd_2_3": 6.0,
    "winograd_2_5": 40.0,
    # a pooling or normalisation of a few roundings an element
    "elementwise": 16.0,
    # exp, tanh and sigmoid: a few units in the last place of the result or of its largest intermediate
    "transcendental": 16.0,
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

# SPDX-License-Identifier: BSD-3-Clause
"""Networks from the literature, made of :mod:`fastconv.nn`."""

from fastconv.models.lenet import LeNet5

__all__ = ["LeNet5"]

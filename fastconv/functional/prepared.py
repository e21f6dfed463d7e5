# SPDX-License-Identifier: BSD-3-Clause
"""Convolutions and linear layers whose weights are packed once and used in many calls: inference."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import algorithms, runtime
from fastconv.functional._arrays import Array, as_array, common_dtypes, public
from fastconv.functional._calls import again
from fastconv.functional.conv import Padding, Spatial, convolve
from fastconv.functional.dense import multiply_add
from fastconv.kernels.correlate import Weights
from fastconv.kernels.memory import is_plain
from fastconv.problem import ACTIVATIONS, LAYOUTS, PRECISIONS, choice, conv_problem, integer

# An axis that every kernel fits in; with no images it serves to check the options before there is an input.
_SIZE = 1 << 48


class PreparedConv:
    """A convolution with fixed weights and options: ``y = prepared(x)``.

    It keeps a copy of the weights, and their packed form for each algorithm and instruction set that a call has taken. Made by
    :func:`fastconv.prepare_conv2d` and its like.
    """

    def __init__(self, rank: int, w: Any, b: Any, **options: Any) -> None:
        given = as_array("w", w)
        dtype = common_dtypes(w=given)[0]
        self._rank, self._options = rank, options
        last = choice("layout", options["layout"], LAYOUTS) == "NHWC"
        if given.ndim != rank + 2:
            raise ValueError(f"w: expected {rank + 2} axes, got shape {given.shape}")
        oihw = np.moveaxis(given, (-1, -2), (0, 1)) if last else given
        self._weights = Weights(np.array(oihw, dtype, order="C"))
        groups = integer("groups", options["groups"], 1)
        conv_problem(
            dtype.name,
            (0, oihw.shape[1] * groups, *(_SIZE,) * rank),
            oihw.shape,
            *(
                options[name]
                for name in ("stride", "padding", "dilation", "groups", "padding_mode")
            ),
            rank,
        )
        if options["activation"] is not None:
            choice("activation", options["activation"], ACTIVATIONS)
        choice("algo", options["algo"], ("auto", *algorithms.NAMES))
        if options["precision"] is not None:
            choice("precision", options["precision"], PRECISIONS)
        self._bias = None if b is None else np.array(as_array("b", b), dtype, order="C")
        if self._bias is not None and self._bias.shape != (len(oihw),):
            raise ValueError(
                f"b: expected shape ({len(oihw)},) for weights of shape {given.shape}, "
                f"got {self._bias.shape}"
            )

    def __call__(self, x: Any, residual: Any = None, out: Array | None = None) -> Array:
        """The convolution of `x`; arguments, result and errors as in conv2d."""
        o = self._options
        options = (
            self._rank, o["stride"], o["padding"], o["dilation"], o["groups"], o["padding_mode"],
            o["layout"], o["activation"], o["algo"], runtime.resolve_precision(o["precision"]), None,
        )  # fmt: skip
        arrays = (x, self._weights, self._bias, residual)
        y = again(options, arrays, out)
        return convolve(options, *arrays, out) if y is None else y

    @property
    def nbytes(self) -> int:
        """Bytes of the copy of the weights and of their packed forms so far."""
        return int(self._weights.array.nbytes) + self._weights.nbytes

    def __repr__(self) -> str:
        shape = self._weights.array.shape
        return f"<prepared conv{self._rank}d, OIHW {shape}, {self._weights.array.dtype}>"


class PreparedLinear:
    """A linear layer with fixed weights: ``y = prepared(x)``. Made by :func:`fastconv.prepare_linear`."""

    def __init__(self, w: Any, b: Any, precision: str | None) -> None:
        given = as_array("w", w)
        dtype = common_dtypes(w=given)[0]
        if given.ndim != 2:
            raise ValueError(f"w: expected a matrix (outputs, inputs), got shape {given.shape}")
        self._precision = None if precision is None else choice("precision", precision, PRECISIONS)
        self._weights = Weights(np.array(given, dtype, order="C"))
        self._bias = None if b is None else np.array(as_array("b", b), dtype, order="C")
        if self._bias is not None and self._bias.shape != given.shape[:1]:
            raise ValueError(f"b: expected shape {given.shape[:1]}, got {self._bias.shape}")

    def __call__(self, x: Any, out: Array | None = None) -> Array:
        """The layer's outputs for `x`; arguments, result and errors as in linear."""
        options = ("linear", runtime.resolve_precision(self._precision))
        arrays = (x, self._weights, self._bias)
        y = again(options, arrays, out)
        return multiply_add(options, *arrays, out) if y is None else y

    @property
    def nbytes(self) -> int:
        """Bytes of the copy of the weights and of their packed forms so far."""
        return int(self._weights.array.nbytes) + self._weights.nbytes

    def __repr__(self) -> str:
        shape = self._weights.array.shape
        return f"<prepared linear, {shape}, {self._weights.array.dtype}>"


def prepare_linear(w: Any, b: Any = None, *, precision: str | None = None) -> PreparedLinear:
    """Pack the weights of a linear layer once, for many calls with them: inference.

    ``fastconv.prepare_linear(w, b)(x)`` has the bits of ``fastconv.linear(x, w, b)`` with a `b` of the type of `w`. Without tile
    registers up to four rows of x read the weights as they are; else a packed form is made in the first such call.

    Parameters
    ----------
    w, b, precision
        As in :func:`fastconv.linear`. `w` and `b` are copied, in float32 or float64: later changes do not show.

    Returns
    -------
    PreparedLinear
        Call it with ``(x, out=None)``.

    Raises
    ------
    ValueError, TypeError
        Naming the argument.
    """
    return PreparedLinear(w, b, precision)


def kept(found: Weights | None, w: Array) -> Weights | None:
    """For layers: the weights' packed forms, forgotten when `w` has changed since. None when no kernel takes `w` as it is."""
    if w.dtype not in (np.float32, np.float64) or not is_plain(w, w.dtype):
        return None
    if found is None:
        return Weights(w)
    found.refresh(w)
    return found


_DOC = """Pack the weights of a convolution once, for many calls of ``conv{rank}d`` with them: inference.

    ``fastconv.prepare_conv{rank}d(w, b, ...)(x)`` has the values of ``fastconv.conv{rank}d(x, w, b, ...)``. With packed weights
    another algorithm may be the fastest: with the same one the bits are the same too.

    Parameters
    ----------
    w, b, stride, padding, dilation, groups, padding_mode, layout, activation, algo, precision
        As in :func:`fastconv.conv{rank}d`. `w` and `b` are copied, in float32 or float64: later changes do not show.

    Returns
    -------
    PreparedConv
        Call it with ``(x, residual=None, out=None)``.

    Raises
    ------
    ValueError, TypeError
        Naming the argument.
    """


def _prepare_of(rank: int):  # type: ignore[no-untyped-def]
    """prepare_conv1d, prepare_conv2d or prepare_conv3d."""

    def prepare(
        w: Any,
        b: Any = None,
        stride: Spatial = 1,
        padding: Padding = 0,
        dilation: Spatial = 1,
        groups: int = 1,
        *,
        padding_mode: str = "zeros",
        layout: str = "NCHW",
        activation: str | None = None,
        algo: str = "auto",
        precision: str | None = None,
    ) -> PreparedConv:
        return PreparedConv(
            rank, w, b, stride=stride, padding=padding, dilation=dilation, groups=groups,
            padding_mode=padding_mode, layout=layout, activation=activation, algo=algo,
            precision=precision,
        )  # fmt: skip

    return public(prepare, f"prepare_conv{rank}d", _DOC.format(rank=rank))


prepare_conv1d, prepare_conv2d, prepare_conv3d = map(_prepare_of, (1, 2, 3))

# SPDX-License-Identifier: BSD-3-Clause
"""What each peer is asked to do for a problem, as its own users would write it.

A `*_call` takes a problem, a pass and the problem's arrays, and gives a function without arguments
that returns a fresh result: this is what is timed. A `*_precision` is a context in which they run
with one of fastconv's words for precision. Packages are imported when they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from benchmarks.problems import (
    Array,
    AvgPool,
    BatchNorm,
    BatchNormEval,
    Block,
    Conv,
    MaxPool,
    Problem,
    Relu,
    Softmax,
    Unfold,
)

Call = Callable[[], Any]
Arrays = dict[str, Array]
# SciPy's loops run on as many images and outputs as this many flops allow, and on one at least.
PART_FLOPS = 1e7


class Unsupported(Exception):
    """The peer has no such operation; the text says why."""


@contextmanager
def float32_only(word: str) -> Iterator[None]:
    """The precision of peers that know no other: it is compared with "highest" and "high"."""
    if word == "medium":
        raise Unsupported("it does not multiply floats as bfloat16")
    yield


# ------------------------------------------------------------------------------------ fastconv


def fastconv_call(p: Problem, what: str, a: Arrays, algo: str = "auto") -> Call:
    """What fastconv's user would write. `a` holds the problem's arrays. "prepared": weights packed beforehand."""
    import fastconv as fc
    from fastconv.algorithms import WEIGHT_GRADIENTS

    if isinstance(p, Block):
        return _block(p, a, algo)
    if algo == "prepared":
        return _prepared(p, what, a)
    if algo != "auto" and not isinstance(p, Conv):
        raise Unsupported("there is one algorithm")
    if what == "dw" and algo not in ("auto", *(row.name for row in WEIGHT_GRADIENTS)):
        raise Unsupported("its weight gradient is that of direct")
    x, dy = a["x"], a["dy"]
    forward = what == "forward"
    if isinstance(p, Conv):
        w, b, options = a["w"], a["b"], p.options
        if forward:
            return lambda: fc.conv2d(x, w, b, **options, algo=algo)
        place = ("dx", "dw").index(what)
        needs = tuple(i == place for i in range(3))
        return lambda: fc.conv2d_backward(dy, x, w, **options, needs=needs, algo=algo)[place]
    if isinstance(p, MaxPool):
        window = (p.kernel, p.stride, p.padding)
        if forward:
            return lambda: fc.max_pool2d(x, *window)
        _, index = fc.max_pool2d(x, *window, return_indices=True)
        return lambda: fc.max_pool2d_backward(dy, index, x.shape, *window)
    if isinstance(p, AvgPool):
        window = (p.kernel, p.stride, p.padding)
        if forward:
            return lambda: fc.avg_pool2d(x, *window)
        return lambda: fc.avg_pool2d_backward(dy, x.shape, *window)
    if isinstance(p, Unfold):
        columns = (p.kernel, 1, p.padding, p.stride)
        if forward:
            return lambda: fc.unfold(x, *columns)
        return lambda: fc.unfold_backward(dy, x.shape, *columns)
    if isinstance(p, BatchNorm):
        weight, bias = a["weight"], a["bias"]
        mean, var = np.zeros_like(weight), np.ones_like(weight)
        if isinstance(p, BatchNormEval):
            return lambda: fc.batch_norm(x, mean, var, weight, bias)
        if forward:
            return lambda: fc.batch_norm_train(x, weight, bias, mean, var)[0]
        _, saved = fc.batch_norm_train(x, weight, bias, mean, var)
        return lambda: fc.batch_norm_backward(dy, x, weight, saved)[0]
    function, backward = getattr(fc, p.op), getattr(fc, f"{p.op}_backward")
    if isinstance(p, Softmax):
        y = fc.softmax(x, p.axis)
        return (lambda: function(x, p.axis)) if forward else (lambda: backward(dy, y, p.axis))
    return (lambda: function(x)) if forward else (lambda: backward(dy, x))


def _prepared(p: Problem, what: str, a: Arrays) -> Call:
    import fastconv as fc

    if not isinstance(p, Conv) or what != "forward":
        raise Unsupported("only the forward of convolutions is prepared")
    x, run = a["x"], fc.prepare_conv2d(a["w"], a["b"], **p.options)
    return lambda: run(x)


def _block(p: Block, a: Arrays, variant: str) -> Call:
    """The prepared model; or, as variant "layers", its layers one after another."""
    from fastconv import nn

    conv = nn.Conv2d(p.channels, p.outputs, p.kernel, **p.options, dtype=a["w"].dtype)
    norm = nn.BatchNorm2d(p.outputs, dtype=a["w"].dtype)
    model, x = nn.Sequential(conv, norm, nn.ReLU()).eval(), a["x"]
    model.load_state_dict(_state(p, a), strict=False)
    if variant == "auto":
        prepared = model.prepare(x.shape)
        return lambda: prepared(x)
    if variant != "layers":
        raise Unsupported("there are the prepared model and its layers")

    def layers() -> Array:
        with nn.no_grad():
            return model(x)

    return layers


def _state(p: Block, a: Arrays) -> Arrays:
    """The parameters by the names that both libraries give those of a Sequential."""
    return {"0.weight": a["w"], "0.bias": a["b"], **{f"1.{name}": a[name] for name in p.norm}}


def fastconv_precision(word: str) -> AbstractContextManager[None]:
    import fastconv

    return fastconv.precision(word)


def start_fastconv(threads: int) -> str:
    import fastconv

    fastconv.set_num_threads(threads)
    return str(fastconv.__version__)


# --------------------------------------------------------------------------------------- torch


def torch_call(p: Problem, what: str, a: Arrays, form: str = "contiguous") -> Call:
    """PyTorch's functions; a backward pass computes one gradient, as ours does."""
    import torch
    from torch.nn import functional as F

    aten = torch.ops.aten
    memory = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[form]
    t = {
        name: torch.from_numpy(v).to(memory_format=memory) if v.ndim == 4 else torch.from_numpy(v)
        for name, v in a.items()
    }
    x, dy = t["x"], t["dy"]
    forward = what == "forward"
    if isinstance(p, Block):
        conv = torch.nn.Conv2d(p.channels, p.outputs, p.kernel, **p.options)
        model = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(p.outputs), torch.nn.ReLU()).eval()
        state = {name: torch.from_numpy(v) for name, v in _state(p, a).items()}
        model.to(x.dtype).load_state_dict(state, strict=False)
        model.to(memory_format=memory)
        return lambda: model(x)
    if isinstance(p, Conv):
        w, b, options = t["w"], t["b"], p.options
        if forward:
            return lambda: F.conv2d(x, w, b, **options)
        place = ("dx", "dw").index(what)
        pairs = [(v, v) for v in (p.stride, p.padding, p.dilation)]
        needs = [i == place for i in range(3)]
        rest = (*pairs, False, (0, 0), p.groups, needs)
        return lambda: aten.convolution_backward(dy, x, w, [p.outputs], *rest)[place]
    if isinstance(p, MaxPool):
        window = ([p.kernel] * 2, [p.stride] * 2, [p.padding] * 2)
        if forward:
            return lambda: F.max_pool2d(x, *window)
        _, index = aten.max_pool2d_with_indices(x, *window)
        rest = (*window, [1, 1], False, index)
        return lambda: aten.max_pool2d_with_indices_backward(dy, x, *rest)
    if isinstance(p, AvgPool):
        window = ([p.kernel] * 2, [p.stride] * 2, [p.padding] * 2)
        if forward:
            return lambda: F.avg_pool2d(x, *window)
        return lambda: aten.avg_pool2d_backward(dy, x, *window, False, True, None)
    if isinstance(p, Unfold):
        columns = (p.kernel, 1, p.padding, p.stride)
        if forward:
            return lambda: F.unfold(x, *columns)
        return lambda: F.fold(dy, x.shape[2:], *columns)
    if isinstance(p, BatchNorm):
        weight, bias = t["weight"], t["bias"]
        running = (torch.zeros_like(weight), torch.ones_like(weight))
        if isinstance(p, BatchNormEval):
            return lambda: F.batch_norm(x, *running, weight, bias, False, 0.1, 1e-5)
        _, *saved = torch.native_batch_norm(x, weight, bias, *running, True, 0.1, 1e-5)
        if forward:
            return lambda: F.batch_norm(x, *running, weight, bias, True, 0.1, 1e-5)
        rest = (*running, *saved, True, 1e-5, [True] * 3)
        return lambda: aten.native_batch_norm_backward(dy, x, weight, *rest)[0]
    if isinstance(p, Softmax):
        y = torch.softmax(x, p.axis)
        softmax_backward = aten._softmax_backward_data
        if forward:
            return lambda: torch.softmax(x, p.axis)
        return lambda: softmax_backward(dy, y, p.axis, x.dtype)
    function = getattr(torch, p.op)
    if forward:
        return lambda: function(x)
    if isinstance(p, Relu):
        return lambda: aten.threshold_backward(dy, x, 0)
    y, backward = function(x), getattr(aten, f"{p.op}_backward")  # PyTorch keeps the result
    return lambda: backward(dy, y)


@contextmanager
def torch_precision(word: str) -> Iterator[None]:
    """Floats convolved as bfloat16 within "medium"."""
    import torch

    if word != "medium":
        yield
        return
    if not _torch_has_bf16():
        raise Unsupported("here PyTorch multiplies floats as floats in any case")
    settings = torch.backends.mkldnn.conv
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    yield
    settings.fp32_precision = before


@lru_cache(maxsize=1)
def _torch_has_bf16() -> bool:
    """Whether the setting changes anything: every processor accepts it, and PyTorch has it since 2.9."""
    import torch

    settings = getattr(torch.backends.mkldnn, "conv", None)
    if settings is None:
        return False
    # several images: smaller convolutions do not go to oneDNN
    x, w, before = torch.randn(16, 64, 28, 28), torch.randn(64, 64, 3, 3), settings.fp32_precision
    results = []
    for each in ("ieee", "bf16"):
        settings.fp32_precision = each
        results.append(torch.conv2d(x, w))
    settings.fp32_precision = before
    return not torch.equal(*results)


def torch_autocast_call(p: Problem, what: str, a: Arrays, variant: str = "") -> Call:
    """Tensors turned to bfloat16 in the call, as under autocast; the result is float again."""
    import torch

    aten, half = torch.ops.aten, torch.bfloat16
    p = _only_conv(p)
    x, w, b, dy = (torch.from_numpy(a[name]) for name in ("x", "w", "b", "dy"))
    if what == "forward":
        return lambda: torch.conv2d(x.to(half), w.to(half), b.to(half), **p.options).float()
    place = ("dx", "dw").index(what)
    pairs = [(v, v) for v in (p.stride, p.padding, p.dilation)]
    rest = (None, *pairs, False, (0, 0), p.groups, [i == place for i in range(3)])
    return lambda: aten.convolution_backward(dy.to(half), x.to(half), w.to(half), *rest)[
        place
    ].float()


@contextmanager
def bfloat16_only(word: str) -> Iterator[None]:
    if word != "medium":
        raise Unsupported("it multiplies bfloat16")
    yield


def start_torch(threads: int) -> str:
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return str(torch.__version__)


# -------------------------------------------------------------------------------- ONNX Runtime


def onnxruntime_call(p: Problem, what: str, a: Arrays, variant: str = "") -> Call:
    """A model of one node. Weights are its constants: the session packs them beforehand."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    if what != "forward":
        raise Unsupported("ONNX Runtime computes no gradients")
    if isinstance(p, (BatchNorm, Block)):
        raise Unsupported("ONNX Runtime is not asked for batch normalisation")
    if isinstance(p, Unfold):
        raise Unsupported("ONNX Runtime has no unfold")
    kind = {"max_pool": "MaxPool", "avg_pool": "AveragePool"}.get(p.op, p.op.capitalize())
    names = ["w", "b"] if isinstance(p, Conv) else []
    node = helper.make_node(kind, ["x", *names], ["y"], **_onnx_attributes(p))
    real = TensorProto.FLOAT if a["x"].dtype == np.float32 else TensorProto.DOUBLE
    graph = helper.make_graph(
        [node],
        p.name,
        [helper.make_tensor_value_info("x", real, p.x_shape)],
        [helper.make_tensor_value_info("y", real, p.y_shape)],
        [numpy_helper.from_array(a[name], name) for name in names],
    )
    model = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    ).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as reason:
        raise Unsupported(str(reason)) from None
    return lambda: session.run(None, {"x": a["x"]})[0]


def _onnx_attributes(p: Problem) -> dict[str, Any]:
    if isinstance(p, Softmax):
        return {"axis": p.axis}
    if not isinstance(p, (Conv, MaxPool, AvgPool)):
        return {}
    window = {
        "kernel_shape": [p.kernel] * 2,
        "strides": [p.stride] * 2,
        "pads": [p.padding] * 4,
    }
    if isinstance(p, Conv):
        return {**window, "dilations": [p.dilation] * 2, "group": p.groups}
    return {**window, "count_include_pad": 1} if isinstance(p, AvgPool) else window


def start_onnxruntime(threads: int) -> str:
    import onnx
    import onnxruntime

    return f"{onnxruntime.__version__} (onnx {onnx.__version__})"


# ------------------------------------------------------------------------------- NumPy, SciPy


def _only_conv(p: Problem) -> Conv:
    if not isinstance(p, Conv):
        raise Unsupported("convolutions only")
    return p


def _padded(p: Conv, x: Array) -> Array:
    return np.pad(x, ((0, 0), (0, 0), (p.padding,) * 2, (p.padding,) * 2))


def windows(p: Conv, x: Array) -> Array:
    """A view of the padded images: [n][c][ky][kx][oy][ox]."""
    span = p.dilation * (p.kernel - 1) + 1
    found = np.lib.stride_tricks.sliding_window_view(_padded(p, x), (span, span), axis=(2, 3))
    steps = (slice(None, None, p.stride),) * 2 + (slice(None, None, p.dilation),) * 2
    return found[:, :, *steps].transpose(0, 1, 4, 5, 2, 3)


def numpy_call(problem: Problem, what: str, a: Arrays, variant: str = "") -> Call:
    """im2col and `@`, image by image: what a NumPy user writes."""
    p = _only_conv(problem)
    x, dy = a["x"], a["dy"]
    w = a["w"].reshape(p.groups, p.outputs // p.groups, -1)
    cells = p.out**2

    def columns(image: Array) -> Array:
        return image.reshape(p.groups, w.shape[2], cells)

    def forward() -> Array:
        y = np.stack([(w @ columns(image)).reshape(p.y_shape[1:]) for image in windows(p, x)])
        y += a["b"][:, np.newaxis, np.newaxis]
        return y

    def dx() -> Array:
        result = _padded(p, np.zeros_like(x))
        parts = np.empty((p.channels, p.kernel, p.kernel, p.out, p.out), x.dtype)
        for image, dy_image in zip(result, dy, strict=True):
            np.matmul(w.mT, dy_image.reshape(p.groups, -1, cells), out=columns(parts))
            for ky, kx in np.ndindex(p.kernel, p.kernel):
                rows, cols = (
                    slice(k * p.dilation, k * p.dilation + (p.out - 1) * p.stride + 1, p.stride)
                    for k in (ky, kx)
                )
                image[:, rows, cols] += parts[:, ky, kx]
        inner = slice(p.padding, p.padding + p.size)
        return result[:, :, inner, inner]

    def dw() -> Array:
        images = zip(dy, windows(p, x), strict=True)
        parts = (d.reshape(p.groups, -1, cells) @ columns(image).mT for d, image in images)
        return sum(parts, np.zeros((), x.dtype)).reshape(p.w_shape)

    return {"forward": forward, "dx": dx, "dw": dw}[what]


def _scipy_loops(p: Conv, a: Arrays, plane: Callable[[Array, Array], Array]) -> Call:
    """y[n][o] = plane(channels of the group, w[o]) thinned by the stride, plus bias."""
    size = p.dilation * (p.kernel - 1) + 1
    w = np.zeros((*p.w_shape[:2], size, size), a["w"].dtype)
    w[:, :, :: p.dilation, :: p.dilation] = a["w"]
    channels, outputs = p.w_shape[1], p.outputs // p.groups

    def run() -> Array:
        y = np.empty(p.y_shape, w.dtype)
        for image, planes in zip(y, _padded(p, a["x"]), strict=True):
            for o, bias in enumerate(a["b"]):
                first = o // outputs * channels
                full = plane(planes[first : first + channels], w[o])
                image[o] = full[:: p.stride, :: p.stride] + bias
        return y

    return run


def _forward_only(problem: Problem, what: str) -> Conv:
    if what != "forward":
        raise Unsupported("forward only")
    return _only_conv(problem)


def correlate2d_call(problem: Problem, what: str, a: Arrays, variant: str = "") -> Call:
    from scipy.signal import correlate2d

    def plane(x: Array, w: Array) -> Array:
        return sum(correlate2d(xc, wc, mode="valid") for xc, wc in zip(x, w, strict=True))

    return _scipy_loops(_forward_only(problem, what), a, plane)


def fftconvolve_call(problem: Problem, what: str, a: Arrays, variant: str = "") -> Call:
    from scipy.signal import fftconvolve

    def plane(x: Array, w: Array) -> Array:
        return fftconvolve(x, w[:, ::-1, ::-1], mode="valid", axes=(1, 2)).sum(axis=0)

    return _scipy_loops(_forward_only(problem, what), a, plane)


def part(p: Problem, what: str) -> Problem:
    """As many images and outputs of a convolution as PART_FLOPS allow."""
    if not isinstance(p, Conv) or what != "forward":
        return p
    images = max(1, min(p.batch, int(PART_FLOPS * p.batch // p.flops)))
    if p.groups > 1:
        return replace(p, batch=images)
    one = p.flops // (p.batch * p.outputs)
    return replace(p, batch=images, outputs=max(1, min(p.outputs, int(PART_FLOPS // one))))


def start_numpy(threads: int) -> str:
    return np.__version__


def start_scipy(threads: int) -> str:
    import scipy

    return str(scipy.__version__)

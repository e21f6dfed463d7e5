# SPDX-License-Identifier: BSD-3-Clause
"""The named problems that tests and benchmarks share: layers of well-known networks.

PROBLEMS lists the convolutions; OVERHEAD one that costs the call alone; POOLS, NORMS and
ELEMENTWISE the operations that memory bounds; BLOCKS convolutions with what follows them; SETS the
lists that have a name. A problem is a small frozen value: it knows shapes, flops, the bytes it
cannot avoid, its operands (the same in every process) and a `reduced()` variant for tests. This
file imports NumPy only, so that a peer's interpreter can read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from typing import Any, ClassVar, Self

import numpy as np

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

# Reduced sizes keep a problem's remainder by these: vectors and tiles end as in the problem itself.
VECTOR = 32
TILE = 14
GROUPS = 4
CHANNELS = 8


def _shrink(size: int, unit: int) -> int:
    """A small size with the same remainder by `unit`; sizes below two units stay."""
    return size if size < 2 * unit else unit + size % unit


def _output_size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@dataclass(frozen=True)
class Problem:
    """What every problem has; square images of `size` cells a side."""

    name: str
    network: str
    batch: int
    channels: int
    size: int

    op: ClassVar[str]
    passes: ClassVar[tuple[str, ...]] = ("forward", "dx")

    @property
    def x_shape(self) -> Shape:
        return (self.batch, self.channels, self.size, self.size)

    @property
    def y_shape(self) -> Shape:
        return self.x_shape

    @property
    def operands(self) -> dict[str, Shape]:
        """Shapes of the arrays that the operation and its gradients take."""
        return {"x": self.x_shape, "dy": self.y_shape}

    @property
    def flops(self) -> int:
        """Floating-point operations of the forward pass."""
        raise NotImplementedError

    def floor(self, what: str, itemsize: int) -> int:
        """Bytes that pass `what` cannot avoid: operands read once, results written once."""
        raise NotImplementedError

    def result_shape(self, what: str) -> Shape:
        return self.y_shape if what == "forward" else self.x_shape

    def arrays(self, dtype: str) -> dict[str, Array]:
        """The operands: normal random numbers, equal in every process."""
        rng = np.random.default_rng(2024)
        return {
            name: self._operand(name, shape, dtype, rng) for name, shape in self.operands.items()
        }

    def _operand(self, name: str, shape: Shape, dtype: str, rng: np.random.Generator) -> Array:
        return rng.standard_normal(shape, dtype=np.dtype(dtype).type)

    def with_batch(self, batch: int) -> Self:
        return replace(self, batch=batch)

    def reduced(self) -> Self:
        """A variant that the float64 reference computes in milliseconds."""
        return replace(
            self,
            batch=min(self.batch, 2),
            channels=_shrink(self.channels, CHANNELS),
            size=_shrink(self.size, TILE),
        )

    def as_dict(self) -> dict[str, Any]:
        return {"op": self.op, **asdict(self)}

    @property
    def label(self) -> str:
        """The sizes, for a reader."""
        return f"{self.batch}x{self.channels}x{self.size}x{self.size}"


@dataclass(frozen=True)
class _Convolving(Problem):
    """With a convolution. `channels` and `outputs` count all groups, as PyTorch does."""

    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    dilation: int = 1

    @property
    def out(self) -> int:
        return _output_size(self.size, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def y_shape(self) -> Shape:
        return (self.batch, self.outputs, self.out, self.out)

    @property
    def w_shape(self) -> Shape:
        return (self.outputs, self.channels // self.groups, self.kernel, self.kernel)

    @property
    def operands(self) -> dict[str, Shape]:
        return {**super().operands, "w": self.w_shape, "b": (self.outputs,)}

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of conv2d, in fastconv's and PyTorch's words."""
        return {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups")}

    @property
    def flops(self) -> int:
        return 2 * math.prod(self.y_shape) * math.prod(self.w_shape[1:])

    def floor(self, what: str, itemsize: int) -> int:
        return itemsize * sum(map(math.prod, (self.x_shape, self.w_shape, self.y_shape)))

    def result_shape(self, what: str) -> Shape:
        return self.w_shape if what == "dw" else super().result_shape(what)

    def _operand(self, name: str, shape: Shape, dtype: str, rng: np.random.Generator) -> Array:
        array = super()._operand(name, shape, dtype, rng)
        return array / array.dtype.type(math.sqrt(math.prod(shape[1:]))) if name == "w" else array

    def reduced(self) -> Self:
        """Few channels, small maps; kernel, stride, padding, dilation and the remainders stay."""
        groups = _shrink(self.groups, GROUPS)
        channels, outputs = self.channels // self.groups, self.outputs // self.groups
        return replace(
            self,
            batch=min(self.batch, 2),
            channels=groups * _shrink(channels, CHANNELS),
            outputs=groups * _shrink(outputs, VECTOR),
            groups=groups,
            size=self.size - self.stride * (self.out - _shrink(self.out, TILE)),
        )

    @property
    def label(self) -> str:
        extras = {"s": self.stride, "g": self.groups, "d": self.dilation}
        tail = "".join(f" {letter}{value}" for letter, value in extras.items() if value > 1)
        return f"{super().label} → {self.outputs}, {self.kernel}x{self.kernel}{tail}"


@dataclass(frozen=True)
class Conv(_Convolving):
    """A convolution with a bias."""

    op: ClassVar[str] = "conv"
    passes: ClassVar[tuple[str, ...]] = ("forward", "dx", "dw")


@dataclass(frozen=True)
class Block(_Convolving):
    """A convolution, batch normalisation with given statistics and ReLU: layers of a network in use."""

    op: ClassVar[str] = "block"
    passes: ClassVar[tuple[str, ...]] = ("forward",)
    norm: ClassVar[tuple[str, ...]] = ("running_mean", "running_var", "weight", "bias")

    @property
    def operands(self) -> dict[str, Shape]:
        return {**super().operands, **dict.fromkeys(self.norm, (self.outputs,))}

    def _operand(self, name: str, shape: Shape, dtype: str, rng: np.random.Generator) -> Array:
        array = super()._operand(name, shape, dtype, rng)
        return array * array + array.dtype.type(0.1) if name == "running_var" else array


@dataclass(frozen=True)
class _Window(Problem):
    """A window that moves over maps."""

    kernel: int
    stride: int
    padding: int = 0

    @property
    def out(self) -> int:
        return _output_size(self.size, self.kernel, self.stride, self.padding)

    @property
    def y_shape(self) -> Shape:
        return (self.batch, self.channels, self.out, self.out)

    @property
    def flops(self) -> int:
        return math.prod(self.y_shape) * self.kernel**2

    def floor(self, what: str, itemsize: int) -> int:
        return itemsize * (math.prod(self.x_shape) + math.prod(self.y_shape))

    def reduced(self) -> Self:
        small = super().reduced()
        return replace(small, size=self.size - self.stride * (self.out - _shrink(self.out, TILE)))

    @property
    def label(self) -> str:
        return f"{super().label}, {self.kernel}x{self.kernel} s{self.stride}"


@dataclass(frozen=True)
class MaxPool(_Window):
    op: ClassVar[str] = "max_pool"

    def floor(self, what: str, itemsize: int) -> int:
        """The backward pass also reads an int64 index for each window."""
        indices = 8 * math.prod(self.y_shape) if what == "dx" else 0
        return super().floor(what, itemsize) + indices


@dataclass(frozen=True)
class AvgPool(_Window):
    op: ClassVar[str] = "avg_pool"


@dataclass(frozen=True)
class Unfold(_Window):
    """im2col, and its gradient: fold."""

    op: ClassVar[str] = "unfold"

    @property
    def y_shape(self) -> Shape:
        return (self.batch, self.channels * self.kernel**2, self.out**2)

    @property
    def flops(self) -> int:
        """The gradient adds every entry once."""
        return math.prod(self.y_shape)


@dataclass(frozen=True)
class BatchNorm(Problem):
    """Batch normalisation in training: statistics of the batch, gradients of x, weight and bias."""

    op: ClassVar[str] = "batch_norm"

    @property
    def operands(self) -> dict[str, Shape]:
        return {**super().operands, "weight": (self.channels,), "bias": (self.channels,)}

    @property
    def flops(self) -> int:
        """An element takes part in the mean (1), the variance (3) and the result (2)."""
        return 6 * math.prod(self.x_shape)

    def floor(self, what: str, itemsize: int) -> int:
        return itemsize * math.prod(self.x_shape) * (2 if what == "forward" else 3)


@dataclass(frozen=True)
class BatchNormEval(BatchNorm):
    """Batch normalisation with given statistics."""

    op: ClassVar[str] = "batch_norm_eval"
    passes: ClassVar[tuple[str, ...]] = ("forward",)

    @property
    def flops(self) -> int:
        return 2 * math.prod(self.x_shape)


@dataclass(frozen=True)
class Elementwise(Problem):
    """A function of each element, and its gradient."""

    @property
    def flops(self) -> int:
        return math.prod(self.x_shape)

    def floor(self, what: str, itemsize: int) -> int:
        return itemsize * math.prod(self.x_shape) * (2 if what == "forward" else 3)


@dataclass(frozen=True)
class Relu(Elementwise):
    op: ClassVar[str] = "relu"


@dataclass(frozen=True)
class Tanh(Elementwise):
    op: ClassVar[str] = "tanh"


@dataclass(frozen=True)
class Sigmoid(Elementwise):
    op: ClassVar[str] = "sigmoid"


@dataclass(frozen=True)
class Softmax(Elementwise):
    """Softmax along the channels or, with axis 3, along the rows of a map."""

    axis: int = 1

    op: ClassVar[str] = "softmax"

    @property
    def label(self) -> str:
        return f"{super().label}, axis {self.axis}"


KINDS = {
    kind.op: kind
    for kind in (
        Conv,
        Block,
        MaxPool,
        AvgPool,
        Unfold,
        BatchNorm,
        BatchNormEval,
        Relu,
        Tanh,
        Sigmoid,
        Softmax,
    )
}


def from_dict(fields: Mapping[str, Any]) -> Problem:
    """The reverse of Problem.as_dict()."""
    rest = {name: value for name, value in fields.items() if name != "op"}
    return KINDS[fields["op"]](**rest)


def _conv(network: str, batch: int, *rows: tuple[Any, ...]) -> list[Conv]:
    """Rows of (name, channels, outputs, size, kernel, stride, padding[, groups[, dilation]])."""
    return [
        Conv(name, network, batch, channels, size, outputs, *rest)
        for name, channels, outputs, size, *rest in rows
    ]


PROBLEMS: tuple[Conv, ...] = (
    *_conv(
        "LeNet-5",
        64,
        ("lenet1", 1, 6, 28, 5, 1, 2),
        ("lenet2", 6, 16, 14, 5, 1, 0),
    ),
    *_conv(
        "AlexNet",
        16,
        ("alexnet_conv1", 3, 64, 224, 11, 4, 2),
        ("alexnet_conv2", 64, 192, 27, 5, 1, 2),
        ("alexnet_conv2_grouped", 96, 256, 27, 5, 1, 2, 2),  # the two towers of the first paper
        ("alexnet_conv3", 192, 384, 13, 3, 1, 1),
        ("alexnet_conv5", 256, 256, 13, 3, 1, 1),
    ),
    *_conv(
        "VGG-16",
        4,
        ("vgg1_1", 3, 64, 224, 3, 1, 1),
        ("vgg1_2", 64, 64, 224, 3, 1, 1),
        ("vgg2_1", 64, 128, 112, 3, 1, 1),
        ("vgg2_2", 128, 128, 112, 3, 1, 1),
    ),
    *_conv(
        "VGG-16",
        16,
        ("vgg3_2", 256, 256, 56, 3, 1, 1),
        ("vgg4_2", 512, 512, 28, 3, 1, 1),
        ("vgg5", 512, 512, 14, 3, 1, 1),
    ),
    *_conv(
        "GoogLeNet",
        16,
        ("googlenet_3x3_56", 64, 192, 56, 3, 1, 1),
        ("googlenet_1x1_28", 192, 64, 28, 1, 1, 0),
        ("googlenet_3x3_28", 96, 128, 28, 3, 1, 1),
        ("googlenet_5x5_28_thin", 16, 32, 28, 5, 1, 2),
        ("googlenet_5x5_28", 32, 96, 28, 5, 1, 2),
        ("googlenet_3x3_14", 96, 208, 14, 3, 1, 1),
        ("googlenet_5x5_7", 48, 128, 7, 5, 1, 2),
    ),
    *_conv(
        "ResNet-50",
        16,
        ("resnet_7x7s2_224", 3, 64, 224, 7, 2, 3),
        ("resnet_1x1_64_64_56", 64, 64, 56, 1, 1, 0),
        ("resnet_3x3_56", 64, 64, 56, 3, 1, 1),
        ("resnet_1x1_64_256_56", 64, 256, 56, 1, 1, 0),
        ("resnet_1x1_256_64_56", 256, 64, 56, 1, 1, 0),
        ("resnet_3x3s2_56", 128, 128, 56, 3, 2, 1),
        ("resnet_3x3_28", 128, 128, 28, 3, 1, 1),
        ("resnet_1x1_512_128_28", 512, 128, 28, 1, 1, 0),
        ("resnet_3x3_14", 256, 256, 14, 3, 1, 1),
        ("resnet_1x1_256_1024_14", 256, 1024, 14, 1, 1, 0),
        ("resnet_1x1_1024_256_14", 1024, 256, 14, 1, 1, 0),
        ("resnet_1x1s2_1024_2048_14", 1024, 2048, 14, 1, 2, 0),
        ("resnet_3x3_7", 512, 512, 7, 3, 1, 1),
        ("resnet_1x1_512_2048_7", 512, 2048, 7, 1, 1, 0),
    ),
    *_conv("MobileNet", 16, ("depthwise_3x3_56", 128, 128, 56, 3, 1, 1, 128)),
    *_conv("MobileNet", 16, ("depthwise_3x3s2_56", 128, 128, 56, 3, 2, 1, 128)),
    *_conv(
        "MobileNetV2",
        8,
        ("mobilenet_3x3_112", 32, 32, 112, 3, 1, 1, 32),
        ("mobilenet_3x3_28", 192, 192, 28, 3, 1, 1, 192),
        ("mobilenet_3x3_14", 384, 384, 14, 3, 1, 1, 384),
        ("mobilenet_3x3s2_14", 576, 576, 14, 3, 2, 1, 576),
        ("mobilenet_3x3_7", 960, 960, 7, 3, 1, 1, 960),
    ),
    *_conv(
        "EfficientNet",
        8,
        ("efficientnet_5x5_28", 240, 240, 28, 5, 1, 2, 240),
        ("efficientnet_5x5s2_28", 240, 240, 28, 5, 2, 2, 240),
        ("efficientnet_5x5_14", 672, 672, 14, 5, 1, 2, 672),
        ("efficientnet_5x5s2_14", 672, 672, 14, 5, 2, 2, 672),
        ("efficientnet_5x5_7", 1152, 1152, 7, 5, 1, 2, 1152),
    ),
    *_conv(
        "ConvNeXt",
        8,
        ("convnext_7x7_56", 96, 96, 56, 7, 1, 3, 96),
        ("convnext_7x7_14", 384, 384, 14, 7, 1, 3, 384),
        ("convnext_7x7_7", 768, 768, 7, 7, 1, 3, 768),
        ("convnext_4x4s4_224", 3, 96, 224, 4, 4, 0),
        ("convnext_2x2s2_56", 96, 192, 56, 2, 2, 0),
    ),
    *_conv(
        "ViT",
        8,
        ("vit_32x32s32_224", 3, 768, 224, 32, 32, 0),
        ("vit_16x16s16_224", 3, 768, 224, 16, 16, 0),
        ("vit_14x14s14_224", 3, 1024, 224, 14, 14, 0),
    ),
    *_conv("ResNeXt-50", 16, ("grouped_3x3_56", 128, 128, 56, 3, 1, 1, 32)),
    *_conv("DeepLab", 16, ("dilated_3x3_28", 128, 128, 28, 3, 1, 2, 1, 2)),
    *_conv(
        "DeepLab",
        4,
        ("dilated2_3x3_33", 256, 256, 33, 3, 1, 2, 1, 2),
        ("dilated4_3x3_33", 512, 512, 33, 3, 1, 4, 1, 4),
        ("dilated6_3x3_33", 2048, 256, 33, 3, 1, 6, 1, 6),
        ("dilated12_3x3_33", 2048, 256, 33, 3, 1, 12, 1, 12),
    ),
    *_conv("DRN", 4, ("dilated2_3x3_128", 64, 64, 128, 3, 1, 2, 1, 2)),
)

# Next to no work: what a call costs by itself.
OVERHEAD = tuple(_conv("one small call", 1, ("overhead_3x3_8", 1, 1, 8, 3, 1, 0)))

POOLS: tuple[Problem, ...] = (
    MaxPool("lenet_max_2x2", "LeNet-5", 64, 6, 28, 2, 2),
    MaxPool("vgg_max_2x2", "VGG-16", 4, 64, 224, 2, 2),
    MaxPool("alexnet_max_3x3s2", "AlexNet", 16, 64, 55, 3, 2),
    MaxPool("resnet_max_3x3s2", "ResNet-50", 16, 64, 112, 3, 2, 1),
    MaxPool("max_2x2_112", "VGG-16", 16, 64, 112, 2, 2),
    MaxPool("googlenet_max_3x3s1", "GoogLeNet", 16, 192, 28, 3, 1, 1),
    MaxPool("googlenet_max_3x3s2_14", "GoogLeNet", 16, 832, 14, 3, 2),
    MaxPool("googlenet_max_3x3s1_7", "GoogLeNet", 16, 832, 7, 3, 1, 1),
    AvgPool("avg_3x3s2_112", "ResNet-50 (D)", 16, 64, 112, 3, 2, 1),
    AvgPool("avg_2x2_112", "DenseNet", 16, 64, 112, 2, 2),
    AvgPool("densenet_avg_2x2_14", "DenseNet", 16, 1024, 14, 2, 2),
    AvgPool("resnet_global_avg_7x7", "ResNet-50", 16, 2048, 7, 7, 1),
    Unfold("unfold_3x3_56", "ResNet-50", 4, 64, 56, 3, 1, 1),
    Unfold("unfold_7x7s2_224", "ResNet-50", 4, 3, 224, 7, 2, 3),
)
NORMS: tuple[Problem, ...] = (
    BatchNorm("batch_norm_112", "ResNet-50", 16, 64, 112),
    BatchNorm("batch_norm_14", "ResNet-50", 16, 1024, 14),
    BatchNorm("batch_norm_7", "ResNet-50", 16, 2048, 7),
    BatchNorm("batch_norm_rows", "MLP", 4096, 1024, 1),
    BatchNormEval("batch_norm_eval_112", "ResNet-50", 16, 64, 112),
)
ELEMENTWISE: tuple[Problem, ...] = (
    Relu("relu_112", "ResNet-50", 16, 64, 112),
    Tanh("tanh_112", "LeNet-5", 16, 64, 112),
    Sigmoid("sigmoid_112", "LeNet-5", 16, 64, 112),
    Softmax("softmax_channels_56", "FCN", 16, 64, 56),
    Softmax("softmax_rows_112", "attention", 16, 64, 112, 3),
)
MEMORY_BOUND = POOLS + NORMS + ELEMENTWISE
# Of ResNet-50 and MobileNet.
BLOCKS = tuple(
    Block(**{**vars(p), "name": f"{p.name}_bn_relu"})
    for p in PROBLEMS
    if p.name
    in (
        *("resnet_7x7s2_224", "resnet_3x3_56", "resnet_1x1_64_256_56", "resnet_3x3s2_56"),
        *("resnet_1x1_1024_256_14", "resnet_3x3_14", "resnet_3x3_7", "depthwise_3x3_56"),
    )
)
ALL: tuple[Problem, ...] = PROBLEMS + OVERHEAD + MEMORY_BOUND + BLOCKS


def find(pattern: str) -> list[Problem]:
    """Problems whose names match a shell pattern; several patterns are separated by commas."""
    patterns = pattern.split(",")
    return [p for p in ALL if any(fnmatch(p.name, each) for each in patterns)]


def _set(names: str, **batches: int) -> tuple[Problem, ...]:
    """The problems of these names, some with other numbers of images."""
    known = {p.name: p for p in ALL}
    return tuple(known[n].with_batch(batches.get(n, known[n].batch)) for n in names.split())


# The layers, of every kind that common networks have, by which one library is compared with another; six of them; the
# depthwise layers of common networks on small maps; patches, whose stride is the kernel's size; dilated layers; operations
# that memory bounds, at 16x64x112x112 and of small maps; and inference.
SETS = {
    "layers": _set(
        "lenet1 lenet2 alexnet_conv1 alexnet_conv2 alexnet_conv3 vgg1_1 vgg1_2 vgg2_2 vgg3_2 vgg4_2 vgg5 "
        "resnet_7x7s2_224 resnet_3x3_56 resnet_1x1_64_256_56 resnet_3x3s2_56 resnet_3x3_28 "
        "resnet_1x1_1024_256_14 resnet_3x3_7 resnet_1x1s2_1024_2048_14 googlenet_5x5_28 depthwise_3x3_56 "
        "resnet_3x3_14",
        vgg2_2=16,
    ),
    "six": _set(
        "lenet2 resnet_7x7s2_224 resnet_3x3_28 resnet_1x1_64_256_56 resnet_3x3s2_56 depthwise_3x3_56"
    ),
    "depthwise": _set(
        "mobilenet_3x3_112 mobilenet_3x3_28 mobilenet_3x3_14 mobilenet_3x3s2_14 mobilenet_3x3_7 efficientnet_5x5_28 "
        "efficientnet_5x5s2_28 efficientnet_5x5_14 efficientnet_5x5s2_14 efficientnet_5x5_7 "
        "convnext_7x7_56 convnext_7x7_14 convnext_7x7_7"
    ),
    "patches": _set(
        "vit_32x32s32_224 vit_16x16s16_224 vit_14x14s14_224 convnext_4x4s4_224 convnext_2x2s2_56"
    ),
    "dilated": _set(
        "dilated_3x3_28 dilated2_3x3_33 dilated4_3x3_33 dilated6_3x3_33 dilated12_3x3_33 dilated2_3x3_128"
    ),
    "memory": _set(
        "resnet_max_3x3s2 max_2x2_112 avg_3x3s2_112 avg_2x2_112 batch_norm_112 batch_norm_eval_112 relu_112 "
        "tanh_112 sigmoid_112 softmax_channels_56 softmax_rows_112 googlenet_max_3x3s2_14 googlenet_max_3x3s1_7 "
        "densenet_avg_2x2_14 resnet_global_avg_7x7 batch_norm_14 batch_norm_7"
    ),
    "blocks": BLOCKS,
}

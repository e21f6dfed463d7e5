# SPDX-License-Identifier: BSD-3-Clause
"""What a convolution is expected to cost with each algorithm, on one thread: the model behind the choice.

time = max(flops / (efficiency * peak), bytes / bandwidth) + packing + transforms + calls. COSTS has the constants, a table for
each ISA row. They come from `python -m benchmarks.costs`. The model counts in vectors, so float64 is the same table with half the
lanes. It looks at the problem and the row alone, never at the number of threads or the machine: the choice shows in the bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from fastconv.kernels import conv_wgrad, conv_winograd, isa
from fastconv.problem import Conv, Sizes

# Multiply-adds that must be under way at once: 4 cycles, two a cycle. A smaller tile takes as long as one of these.
LATENCY = 8
# Blocks of the drivers, see the enums of conv_*.pyx; WGRAD_TILES is a typical one, for its driver counts bytes.
CHAIN = 256
DIRECT_PIXELS, PIXEL_PIXELS, PIXEL_PIXELS_MIN, PIXEL_BLOCKS = 784, 4096, 512, 8
# Bytes of a block's band, and of one that is read several times, on the machine that the table comes from.
BAND_BYTES, REREAD_BYTES = 1 << 20, 1 << 18
DEPTHWISE_PIXELS = 14
HALVES = 4  # rows in either half of the vectors of a tile, see csrc/body/plane_halves.h
# Of that machine: pages that the first-level table knows, and their bytes.
DTLB, PAGE = 64, 4096
# Channels, taps and the share of them on pixels with which im2col leaves out those on padding.
IM2COL_DEEP, IM2COL_TAPS, IM2COL_REAL = 128, 63, 0.8
COL2IM_BYTES, COL2IM_LIMIT, COL2IM_PIXELS = 256 << 10, 512 << 10, 128
WINOGRAD_TILES = 32
WGRAD_PIXELS, WGRAD_OUTPUTS, WGRAD_TERMS, WGRAD_TILES = 256, 512, 288, 512
WGRAD_DOT_CELLS = 1 << 16
# BLOCK and DOT_ROWS of gemm.pyx.
GEMM_BLOCK, GEMM_DOT_ROWS = 192, 4
# Tile registers, see csrc/isa/tile.h: multiply-adds of a product of two tiles, and what a tile holds.
TILE_PRODUCTS, TILE_SIDE, TILE_TERMS = 16 * 16 * 32, 16, 32
# Up to so many channels the taps share the terms of a tile, see conv_split.pyx.
TILE_FEW = 15
# Blocks of the split driver; SHALLOW and DEEP of conv_split.pyx.
SPLIT_PIXELS = 784
SPLIT_DEPTH = 4, 16
# Split products in conv_wgrad.pyx: slices, terms and outputs of a task, bytes of a block, and its pixels, at least and at most.
WGRAD_SLICES, WGRAD_SPLIT_TERMS, WGRAD_SPLIT_OUTPUTS, WGRAD_SPLIT_BYTES = 16, 576, 256, 1 << 20
WGRAD_SPLIT_PIXELS = 128, 1024
# Of so many bytes half is taken to leave the caches before it is used.
FAR = 8 << 20


Pass = Literal["forward", "dx", "dw"]
PASSES: tuple[Pass, ...] = get_args(Pass)


@dataclass(frozen=True)
class Shape:
    """What the choice looks at: the convolution that will run (for the input gradient the transposed one).

    An input gradient with a stride is several `runs`, one a phase; `size`, `halo` and `taps` are then those of one of them.
    """

    itemsize: int
    groups: int
    channels: int  # of a group
    outputs: int  # of a group
    images: int  # times the planes of each
    size: Sizes  # output pixels of a plane
    kernel: Sizes
    step: Sizes  # input pixels from output to output
    spread: Sizes  # output pixels of the result from output to output
    halo: Sizes  # input pixels that the kernel reaches beyond its first
    batch: int
    cells: int  # pixels of one padded input and one result
    source: Sizes  # input pixels of an image
    phases: Sizes  # remainders by `step` of the input pixels it reads
    runs: int
    what: Pass
    dilation: Sizes
    sides: Sizes  # pixels along each axis of the input or of the output, whichever has fewer: the same of all passes
    is_linear: bool
    bytes: int  # each operand once
    centred: bool  # taps along h and w are neighbours, of the first output the middle one is on the first pixel
    prepared: bool = False  # weights are packed beforehand

    @property
    def has_stride(self) -> bool:
        return max(*self.step, *self.spread) > 1

    @property
    def pixels(self) -> int:
        return self.images * math.prod(self.size)

    @property
    def reach(self) -> int:
        """Bytes of the band of one output: all channels of the pixels from the first to the last that it needs."""
        axes = zip(self.phases, self.halo, self.step, strict=True)
        return self.itemsize * self.channels * math.prod(p * (1 + h // s) for p, h, s in axes)

    @property
    def columns(self) -> int:
        """Bytes of the columns of one channel and image of an input gradient."""
        return self.itemsize * math.prod((*self.kernel, *self.source))

    @property
    def taps(self) -> float:
        return math.prod(self.kernel) / self.runs

    @property
    def terms(self) -> float:
        return self.channels * self.taps

    @property
    def chains(self) -> int:
        return max(1, math.ceil(self.terms / CHAIN))


def shape_of(problem: Conv, what: Pass = "forward", prepared: bool = False) -> Shape:
    """The shape of a convolution, or of one of its gradients."""
    stride, kernel, dilation = problem.stride, problem.kernel, problem.dilation
    channels, outputs, plane = problem.channels, problem.outputs, problem.out
    ones: Sizes = (1, 1, 1)
    step, spread = stride, ones
    halo: tuple[int, ...] = tuple((k - 1) * d for k, d in zip(kernel, dilation, strict=True))
    phases = tuple(
        min(k, s // math.gcd(s, d)) for k, s, d in zip(kernel, stride, dilation, strict=True)
    )
    cells = math.prod(n + sum(pads) for n, pads in zip(problem.sizes, problem.pads, strict=True))
    cells += math.prod(plane)
    runs = 1
    if what == "dx":
        channels, outputs, step, spread = outputs, channels, ones, stride
        plane = tuple(-(-n // s) for n, s in zip(problem.sizes, stride, strict=True))
        halo = tuple(n // s for n, s in zip(halo, stride, strict=True))
        runs, phases = math.prod(phases), ones
    source = problem.out if what == "dx" else problem.sizes
    return Shape(
        problem.itemsize,
        problem.groups,
        channels,
        outputs,
        problem.batch * plane[0],
        (1, *plane[1:]),
        kernel,
        step,
        spread,
        halo,
        problem.batch,
        cells,
        source,
        phases,
        runs,
        what,
        dilation,
        tuple(map(min, problem.sizes, problem.out)),
        problem.is_linear,
        problem.bytes,
        all(
            d == 1 and pads[0] == k // 2
            for d, k, pads in zip(
                problem.dilation[1:], problem.kernel[1:], problem.pads[1:], strict=True
            )
        ),
        prepared,
    )


# Names and numbers of what is counted.
Counts = Mapping[str, float]


def _vectors(shape: Shape, count: float) -> int:
    return math.ceil(count / isa.lanes(shape.itemsize))


def _far(size: float) -> float:
    """The share of `size` bytes that leaves the caches before it is used."""
    return size**2 / (size**2 + FAR**2)


def _packing(
    shape: Shape, outputs: float, transforms: int = 0, *, joined: bool = False
) -> dict[str, float]:
    """Vectors of weights to pack, those that leave the caches, and the transposes that an input gradient needs."""
    if shape.prepared:
        return {}
    vectors = shape.groups * outputs * (transforms * shape.channels or shape.runs * shape.terms)
    size = vectors * isa.lanes(shape.itemsize) * shape.itemsize
    turned = shape.groups * (1 if joined else shape.runs) * shape.channels * outputs
    return {
        "pack": vectors,
        "pack far": vectors * _far(size),
        "turn": turned if shape.what == "dx" or transforms else 0,
    }


def _equal(count: int, most: int, unit: int = 1) -> int:
    """The size of parts of about equal size and at most `most`, in whole units."""
    parts = max(1, math.ceil(count / most))
    return max(1, min(count, math.ceil(math.ceil(count / parts) / unit) * unit))


def _block(shape: Shape, pixels: int, pixel: int, budget: int) -> tuple[int, int, int, int]:
    """Rows and columns of blocks of `pixels`, and of their bands, of which a pixel takes so many bytes.

    As lattice.choose_block: a band that reaches far has room for few outputs in its `budget` of bytes, and is copied often.
    """
    height, width = shape.size[1:]
    down, across = (h // s for h, s in zip(shape.halo[1:], shape.step[1:], strict=True))
    deep = math.prod(shape.phases) * (1 + shape.halo[0] // shape.step[0])
    cells = budget // max(1, pixel * deep)
    cols = max(1, min(width, pixels))
    while cols > 1 and (1 + down) * (cols + across) > cells:
        cols = (cols + 1) // 2
    rows = 1
    if cols == width:
        rows = max(1, min(height, pixels // cols, cells // (cols + across) - down))
    rows, cols = _equal(height, rows), _equal(width, cols)
    return rows, cols, rows + down, cols + across


def _band(shape: Shape, pixels: int, channels: int, budget: int = BAND_BYTES) -> dict[str, float]:
    """Vectors and rows that are copied to the bands of blocks of `pixels`, all channels and images; so many `channels` at a
    time."""
    height, width = shape.size[1:]
    rows, cols, tall, wide = _block(shape, pixels, shape.itemsize * channels, budget)
    blocks = math.ceil(height / rows) * math.ceil(width / cols)
    planes = shape.groups * shape.channels * shape.images
    lines = shape.phases[1] * blocks * tall * planes * shape.phases[2]
    vectors = lines * _vectors(shape, wide)
    pages = min(1, math.prod(shape.source) * shape.itemsize / PAGE) * (channels > DTLB)
    return {
        "lines": lines,
        "leaps": blocks * planes * pages,
        **_copies(shape, vectors),
        **_reads(shape),
    }


def _reads(shape: Shape) -> dict[str, float]:
    """Vectors of input that come from beyond the caches."""
    elements = shape.images * shape.groups * shape.channels * math.prod(shape.source)
    return {"reads far": _vectors(shape, elements) * _far(elements * shape.itemsize)}


def _copies(shape: Shape, vectors: float) -> dict[str, float]:
    """Vectors of input, by whether neighbours are neighbours there."""
    return {"gathers": vectors} if shape.step[2] > 1 else {"copies": vectors}


def _stores(shape: Shape, vectors: float) -> dict[str, float]:
    """Vectors of the result, by whether neighbours are neighbours there."""
    return {"scatters": vectors} if shape.spread[2] > 1 else {"stores": vectors}


def _rows(shape: Shape, merged: bool) -> tuple[int, int]:
    """Rows of all images and their length; whole planes are one where the driver can."""
    planes, (height, width) = shape.images * shape.size[0], shape.size[1:]
    return (planes, height * width) if merged else (planes * height, width)


def _row_tiles(height: int, cols: int, most: int) -> Iterator[tuple[int, float]]:
    """The tiles of the rows of a plane: how many of how many pixels. As conv_direct.sum_phase: two rows share a tile where
    that saves one."""
    half, tiles = min(cols, most // 2), max(1, math.ceil(cols / most))
    rest = math.ceil((cols - half) / most)
    pairs = height // 2 if 2 * rest + 1 < 2 * tiles else 0
    yield pairs, 2 * half
    yield 2 * pairs * rest, (cols - half) / max(1, rest)
    yield (height - 2 * pairs) * tiles, cols / tiles


def _direct(shape: Shape) -> Counts:
    lanes, most = isa.lanes(shape.itemsize), isa.tiles(shape.itemsize)["conv"]
    planes = shape.images * shape.size[0]
    rows, cols = _rows(shape, shape.halo == (0, 0, 0))
    vectors = math.ceil(shape.outputs / lanes)
    slots, calls = 0.0, 0
    for nv, panels in ((2, vectors // 2), (1, vectors % 2)):
        for tiles, pixels in _row_tiles(rows // max(1, planes), cols, most[nv]):
            slots += panels * planes * tiles * max(LATENCY, nv * pixels)
            calls += panels * planes * tiles
    lines, width = _rows(shape, math.prod(shape.spread) == 1)
    lines *= min(shape.kernel[1], shape.spread[1])
    runs = shape.groups * shape.runs
    band = _band(shape, max(1, DIRECT_PIXELS // shape.spread[2]), shape.channels)
    if shape.step[2] > 1 and shape.size[2] + shape.halo[2] // shape.step[2] >= lanes:
        # of whole vectors; measured when the pixels of shorter ones were copied one by one
        band["strided"] = band.pop("lines")
    weights = runs * vectors * shape.terms
    tasks = shape.images * math.ceil(math.prod(shape.size) / DIRECT_PIXELS)
    return {
        "fma": runs * slots * shape.terms,
        "weights far": weights * tasks * _far(weights * lanes * shape.itemsize),
        "tiles": runs * calls * shape.chains,
        "stores": shape.groups * shape.outputs * lines * _vectors(shape, width * shape.spread[2]),
        **band,
        **_packing(shape, vectors, joined=True),
        "calls": 1,
    }


def _left(shape: Shape) -> float:
    """The share of its products that im2col does where it leaves out taps on padding, see set_strips of conv_im2col.

    Of what could be left out it is about half: tiles at the edges of strips have taps of both sides, and strips are narrow.
    """
    real = math.prod(_real_taps(shape, axis) / max(1, shape.kernel[axis]) for axis in (1, 2))
    deep = shape.channels >= IM2COL_DEEP and shape.runs == 1 < shape.taps <= IM2COL_TAPS
    return (1 + real) / 2 if deep and real <= IM2COL_REAL else 1.0


def _im2col(shape: Shape) -> Counts:
    lanes, most = isa.lanes(shape.itemsize), isa.tiles(shape.itemsize)["gemm"][2]
    step = math.prod(shape.step)
    rows, _ = _rows(shape, math.prod((*shape.kernel, *shape.spread)) * step == 1)
    panels = max(1, math.ceil(shape.outputs / most))
    width = shape.outputs / panels
    tiles, rest = divmod(shape.pixels, 2 * lanes)
    slots = tiles * max(LATENCY, 2 * width)
    if rest:
        tiles += 1
        slots += max(LATENCY, width * math.ceil(rest / lanes))
    # a tile's columns are whole vectors where they come from one row, else pieces of rows
    whole, pieces, kind = max(0, tiles - rows), min(2 * rows, rows + tiles), "lines"
    if step > 1:
        whole, pieces, kind = 0, rows + tiles, "gathers"
        if shape.step[2] > 2 and shape.kernel[2] >= lanes:  # see lattice.apart
            kind = "transposes"
    runs = shape.groups * shape.runs
    # vectors of the result in which neighbours lie apart, and those that a row's end cuts
    apart, cut = 2 * runs * shape.outputs * tiles, 2 * runs * shape.outputs * min(tiles, rows)
    ends = {"scatters": apart} if shape.spread[2] > 1 else {"ends": cut}
    terms, chains = _left(shape) * runs * shape.terms, _left(shape) * runs * shape.chains
    return {
        "fma": terms * panels * slots,
        "tiles": panels * tiles * chains,
        "fills": tiles * chains,
        **ends,
        "copies": terms * 2 * whole,
        kind: terms * pieces,
        **_reads(shape),
        **_packing(shape, shape.outputs / lanes),
        "calls": shape.runs,
    }


def _col2im(shape: Shape) -> Counts:
    lanes, most = isa.lanes(shape.itemsize), isa.tiles(shape.itemsize)["gemm"][2]
    deep, height, width = (max(1, n) for n in shape.source)
    rows, entries = deep * height, max(1, shape.outputs * math.prod(shape.kernel))
    row = shape.itemsize * entries * width
    block = min(rows, max(COL2IM_BYTES // row, math.ceil(COL2IM_PIXELS / width)))
    images, blocks = shape.groups * shape.batch, rows / block
    panels = max(1, math.ceil(entries / most))
    tiles, rest = divmod(block * width, 2 * lanes)
    slots: float = tiles * max(LATENCY, 2 * entries / panels)
    if rest:
        tiles += 1
        slots += max(LATENCY, entries / panels * math.ceil(rest / lanes))
    copies = images * blocks * shape.channels * 2 * tiles
    # rows of the result that the rows of a block reach, in all channels
    reached: float = min(height, block) * shape.spread[1] + max(
        0, shape.kernel[1] - shape.spread[1]
    )
    reached *= images * blocks * shape.outputs * max(1, block // height) * shape.kernel[0]
    turned = {}
    if shape.spread[2] > 1:
        turned["transposes"] = reached * _vectors(shape, width * shape.spread[2])
    packed = shape.groups * shape.channels * entries / lanes
    return {
        "fma": images * blocks * shape.channels * panels * slots,
        "tiles": images * blocks * panels * tiles * math.ceil(shape.channels / CHAIN),
        "copies": copies,
        "copies far": copies * _far(shape.itemsize * images * shape.channels * rows * width),
        "adds": images * entries * rows * (1 + (width - 1) / lanes),
        "lines": reached,
        **turned,
        "pack": packed,
        "pack far": packed * _far(packed * lanes * shape.itemsize),
        "calls": math.ceil(row * block / COL2IM_LIMIT),
    }


def are_planes(shape: Shape) -> bool:
    """Whether tiles of rows are summed from the planes themselves, see are_planes of conv_pixel and conv_depthwise."""
    one = shape.channels == shape.outputs == shape.kernel[0] == shape.dilation[1] == 1
    down, across = shape.kernel[1:]
    if shape.what == "dw":
        wide = shape.size[2] > isa.lanes(shape.itemsize)
        return one and not shape.has_stride and down == across == 3 and wide
    if not one or down not in (3, 5, 7) or across > 7:
        return False
    return not shape.has_stride or _are_strided(shape) or _are_gradients(shape)


def _are_strided(shape: Shape) -> bool:
    """Whether the rows of such a convolution have a stride of 2 that pixel_planes knows, see are_strided of conv_pixel."""
    down, across = shape.kernel[1:]
    width = (shape.source[2] + 1) // 2
    return (
        max(shape.spread) == 1
        and shape.step == (1, 2, 2)
        and down == across
        and shape.centred
        and shape.size[2] == width <= isa.plane_strided(shape.itemsize)
    )


def _are_gradients(shape: Shape) -> bool:
    """Whether it is an input gradient that plane_grads knows, see are_gradients of conv_pixel."""
    return (
        shape.spread == (1, 2, 2)
        and shape.size == shape.source
        and shape.kernel[1] == shape.kernel[2] <= 5
        and shape.centred
        and shape.source[2] <= isa.plane_strided(shape.itemsize)
    )


def _plane_rows(shape: Shape) -> int:
    """Rows of a plane in whole tiles of pixel_planes, whose last one overlaps: FC_PLANE_ROWS."""
    wide = isa.lanes(shape.itemsize) * shape.itemsize == 64
    most = ((7, 7, 4, 4) if wide else (7, 4, 2, 2))[min(4, _vectors(shape, shape.size[2])) - 1]
    return math.ceil(shape.size[1] / most) * most


def _are_halves(shape: Shape) -> bool:
    """Whether two rows share a vector, see plane_halves of csrc/body/plane_halves.h.

    Not of 7x7 taps without a stride, for which `depthwise` is as fast and the model of it too high.
    """
    lanes, (height, width) = isa.lanes(shape.itemsize), shape.source[1:]
    if shape.kernel[1] == 7 and not shape.has_stride:
        return False
    square = shape.kernel[1] == shape.kernel[2] and lanes * shape.itemsize == 64
    return square and 2 * shape.size[2] <= lanes and width <= lanes and height <= 2 * lanes


def _halves(shape: Shape) -> Counts:
    """There is a shuffle for each tap and pair of rows that a tile reads."""
    maps, taps = shape.groups * shape.images, shape.kernel[1]
    tiles = maps * math.ceil(shape.size[1] / (2 * HALVES))
    pairs = max(shape.step) * (HALVES - 1) + taps
    return {
        "fma": tiles * (HALVES * shape.terms + taps * pairs),
        "swept": tiles * HALVES * shape.terms,
        "vectors": tiles * HALVES / 2,
        "calls": 1,
    }


def _planes(shape: Shape) -> Counts:
    """What a multiply-add takes beyond the peak is for its masked and unaligned loads."""
    maps = shape.groups * shape.images
    if shape.what != "dw" and _are_halves(shape):
        return _halves(shape)
    rows = shape.size[1] if shape.what == "dw" else _plane_rows(shape)
    vectors = maps * rows * _vectors(shape, shape.size[2])
    return {
        "fma": vectors * shape.terms,
        "swept": vectors * shape.terms,
        "vectors": vectors,
        "maps": maps,
        "calls": 1,
    }


def _gradients(shape: Shape) -> Counts:
    maps, (height, width) = shape.groups * shape.images, shape.size[1:]
    terms = maps * height * _vectors(shape, width) * math.prod(shape.kernel)
    rows = maps * height * shape.spread[1]
    return {
        "fma": terms,
        "swept": terms,
        "vectors": rows * _vectors(shape, width * shape.spread[2]),
        "calls": 1,
    }


def _pixel(shape: Shape) -> Counts:
    if max(shape.spread) > 1 and are_planes(shape):
        return _gradients(shape)
    if are_planes(shape):
        return _planes(shape)
    panels = max(1, math.ceil(shape.outputs / isa.tiles(shape.itemsize)["pixel"]))
    width = shape.outputs / panels
    height, row = shape.size[1], _vectors(shape, shape.size[2])
    reach = shape.halo[2] // shape.step[2]
    joined = _vectors(shape, (height - 1) * (shape.size[2] + reach) + shape.size[2])
    planes = shape.images * shape.size[0]
    complete = shape.spread[2] == 1 and width > 1  # the tiles write the rows of y
    if width * joined <= height * max(LATENCY, width * row):
        complete = complete and (reach == 0 or shape.size[2] + reach >= isa.lanes(shape.itemsize))
        slots, loads = max(LATENCY, width * joined), joined
    else:
        slots, loads = height * max(LATENCY, width * row), height * row
    runs = shape.groups * shape.runs
    stored = shape.outputs * planes * height * row
    pixels = max(PIXEL_PIXELS_MIN, shape.groups * shape.pixels // PIXEL_BLOCKS)
    return {
        "fma": runs * shape.terms * panels * planes * slots,
        "loads": runs * shape.terms * panels * planes * loads,
        **({"rows": runs * stored} if complete else _stores(shape, runs * stored)),
        "unpaired": runs * stored * (shape.spread[2] > 2),
        "chains": runs * stored * (shape.chains - 1),
        **_band(
            shape,
            min(PIXEL_PIXELS, pixels),
            shape.channels,
            REREAD_BYTES if panels * shape.runs > 1 else BAND_BYTES,
        ),
        "planes": runs * panels * planes,
        "phased": runs * shape.terms * (shape.runs > 1),
        **_packing(shape, shape.outputs / isa.lanes(shape.itemsize), joined=True),
        "calls": 1,
    }


def _depthwise(shape: Shape) -> Counts:
    height, width = shape.size[1], max(1, shape.size[2])
    across = math.ceil(width / DEPTHWISE_PIXELS)
    down = max(1, min(3, int(DEPTHWISE_PIXELS * across / width)))
    vectors = _vectors(shape, shape.groups)
    planes = vectors * shape.outputs * shape.images * shape.size[0]
    tiles = height / down * across
    return {
        "fma": planes * shape.runs * shape.terms * tiles * max(LATENCY, down * width / across),
        "tiles": planes * shape.runs * shape.chains * tiles,
        "input": planes * shape.channels * height * width * math.prod(shape.step[1:]),
        "output": planes * height * width * math.prod(shape.spread[1:]),
        "planes": planes,
        **_packing(shape, vectors, joined=True),
        "calls": 1,
    }


def _real_taps(shape: Shape, axis: int, unit: int = 1) -> float:
    """Taps along an axis that are not padding for some of `unit` neighbouring outputs, on average.

    As much padding as there is before the input is after it.
    """
    out, step, inside = shape.size[axis], shape.step[axis], shape.source[axis]
    taps, reach = shape.kernel[axis], shape.halo[axis]
    low = max(0, (out - 1) * step + reach + 1 - inside) // 2
    pairs = 0
    for k in range(taps):
        q = low - k * (reach // max(1, taps - 1))  # of the first cell, from the tap's own
        first, stop = max(0, -(-q // step)), min(out, -(-(q + inside) // step))
        pairs += max(0, -(-stop // unit) - first // unit)
    return pairs / max(1, -(-out // unit))


def _images(shape: Shape) -> Counts:
    panels = max(1, math.ceil(shape.outputs / isa.tiles(shape.itemsize)["pixel"]))
    height, width = shape.size[1:]
    planes = math.prod(shape.size[:1]) * shape.images // max(1, shape.batch)
    vectors = shape.groups * _vectors(shape, shape.batch) * planes
    outputs = shape.outputs / panels
    unit = max(2, math.ceil(LATENCY / max(1, outputs)))  # as conv_images.sum_panel
    taps = shape.kernel[0] * _real_taps(shape, 1) * _real_taps(shape, 2, unit)
    slots = height * max(LATENCY, width * outputs)
    pixel = shape.channels * isa.lanes(shape.itemsize) * shape.itemsize
    rows, cols, tall, wide = _block(
        shape, DIRECT_PIXELS, pixel, REREAD_BYTES if panels > 1 else BAND_BYTES
    )
    # of the source; more than once what several blocks read
    loaded = math.prod(shape.source[1:]) * tall * wide / (rows * cols)
    for size, reach, step in zip(shape.size[1:], shape.halo[1:], shape.step[1:], strict=True):
        loaded *= size / max(1, size + reach // step)
    return {
        "fma": vectors * panels * slots * shape.channels * taps,
        "tiles": vectors * panels * height * shape.chains,
        "input": vectors * shape.channels * loaded,
        "output": vectors * shape.outputs * height * width,
        **_reads(shape),
        **_packing(shape, shape.outputs / isa.lanes(shape.itemsize), joined=True),
        "calls": 1,
    }


def _winograd_tiles(m: int, shape: Shape) -> int:
    """Those of each phase of a dilated map."""
    axes = zip(shape.size[1:], shape.dilation[1:], strict=True)
    return shape.images * shape.size[0] * math.prod(d * math.ceil(n / (d * m)) for n, d in axes)


def _winograd(m: int, r: int, shape: Shape) -> Counts:
    positions = (m + r - 1) ** 2
    tiles = _winograd_tiles(m, shape)
    channels, outputs = _vectors(shape, shape.channels), _vectors(shape, shape.outputs)
    weights = shape.groups * positions * shape.channels * outputs
    size = weights * isa.lanes(shape.itemsize) * shape.itemsize
    vectors: float = shape.groups * shape.outputs * _vectors(shape, m * m * tiles)
    fetched, wide = 0.0, isa.lanes(shape.itemsize) * shape.itemsize == 64
    if shape.dilation[2] > 1:
        # neighbours of a phase lie apart: each is stored by itself, in half the time of a vector
        vectors = shape.groups * shape.outputs * shape.pixels / 2
    elif wide and shape.size[0] == max(shape.dilation) == 1 and tiles > WINOGRAD_TILES:
        fetched = vectors * _far(shape.groups * shape.outputs * shape.pixels * shape.itemsize)
    return {
        "fma": weights * tiles,
        "input": shape.groups * positions * tiles * channels,
        "output": shape.groups * positions * tiles * outputs,
        "band": shape.groups * m * m * tiles * channels,
        "stores": vectors - fetched,
        "stores fetched": fetched,
        "weights far": weights * math.ceil(tiles / WINOGRAD_TILES) * _far(size),
        **_packing(shape, outputs, positions),
        "calls": 1,
    }


def _tiles(count: float, size: int = TILE_SIDE) -> int:
    return math.ceil(count / size)


def _parts(products: int) -> int:
    """bfloat16 parts of a float."""
    return {6: 3, 3: 2, 1: 1}[products]


def _split_gemm(products: int, m: int, n: int, k: int) -> Counts:
    """c[m][n] = a[m][k] b[k][n] on tile registers."""
    read = _tiles(k, TILE_TERMS) * TILE_TERMS * (m + n)
    return {
        "fma": products
        * _tiles(m)
        * _tiles(n)
        * _tiles(k, TILE_TERMS)
        * TILE_PRODUCTS
        / isa.lanes(4),
        "elements": read + m * n,
        "elements far": read * _far(4 * read),
        "parts": _parts(products) * read,
        "calls": 1,
    }


def _split(products: int, shape: Shape) -> Counts:
    if shape.is_linear:
        m, n, k = _product(shape)
        turned = n * k if shape.what == "dx" else 0
        return {**_split_gemm(products, m, n, k), "turned far": turned * _far(4 * turned)}
    planes = shape.images * shape.size[0]
    side, parts = _tiles(shape.outputs), _parts(products)
    runs = shape.groups * shape.runs
    stored = runs * shape.outputs * shape.pixels
    step = parts * runs * side * TILE_SIDE * TILE_TERMS  # parts of the weights of one
    one_tap = math.prod(shape.kernel) == 1
    pointwise = one_tap and not shape.has_stride
    if one_tap or shape.channels <= TILE_FEW:
        # columns of pixels; not transposed
        steps: float = _tiles(shape.terms, TILE_TERMS)
        weights = step * steps
        depth = round(steps)
        if one_tap:
            depth = min(depth, SPLIT_DEPTH[4 * shape.outputs * SPLIT_PIXELS > BAND_BYTES])
        pixels = BAND_BYTES // max(1, 2 * parts * TILE_TERMS * depth)
        pixels = max(TILE_SIDE, min(SPLIT_PIXELS, pixels))
        tasks: float = max(1, shape.pixels / pixels)
        tiles = _tiles(shape.pixels)
        read = runs * shape.terms * shape.pixels
        # pieces of rows, cut where a panel of pixels ends
        count, width = _rows(shape, pointwise)
        pieces = runs * shape.terms * count * (1 + width / (2 * TILE_SIDE))
        band = {"pieces": pieces}
        if not pointwise:
            band |= _band(shape, pixels, shape.channels)
    else:
        blocks = _tiles(shape.channels, TILE_TERMS)
        steps = blocks * shape.taps
        weights = step * steps
        pixel = 2 * TILE_TERMS * blocks * parts
        rows, cols, tall, wide = _block(shape, SPLIT_PIXELS, pixel, BAND_BYTES)
        tasks = planes * math.ceil(shape.size[1] / rows) * math.ceil(shape.size[2] / cols)
        tiles = round(tasks) * min(rows * _tiles(cols), _tiles((rows - 1) * wide + cols))
        lines = tasks * tall * math.prod(shape.phases)
        read = shape.groups * lines * wide * blocks * TILE_TERMS
        lines *= shape.groups * shape.channels
        copied = _copies(shape, lines * _vectors(shape, wide))
        band = {"lines": lines, **copied}
        if tasks == planes and 2 * weights > BAND_BYTES * shape.groups:
            # small images share a task where the weights do not stay in L2
            pixels = math.prod(shape.size[1:])
            room = BAND_BYTES // max(1, pixel * tall * wide * math.prod(shape.phases))
            tasks = math.ceil(planes / max(1, min(SPLIT_PIXELS // max(1, pixels), room)))
    return {
        "fma": products * runs * tiles * steps * side * TILE_PRODUCTS / isa.lanes(4),
        **band,
        "parts": parts * read,
        **({"scatters": stored} if max(shape.spread) > 1 else {"stores": stored}),
        "rows": 0 if pointwise else stored / max(1, shape.size[2]),
        "weights far": weights * tasks * _far(2 * weights),
        "pack": 0 if shape.prepared else weights / parts,
        "pack parts": 0 if shape.prepared else weights,
        "calls": 1,
    }


def _product(shape: Shape) -> tuple[int, int, int]:
    """Rows, columns and terms of the matrix product that a linear layer is."""
    inputs = math.prod(shape.kernel)
    if shape.what == "dx":
        return shape.batch, shape.outputs * inputs, shape.channels
    if shape.what == "dw":
        return shape.outputs, shape.channels * inputs, shape.batch
    return shape.batch, shape.outputs, shape.channels * inputs


def _gemm(m: int, n: int, k: int, lanes: int, b_transposed: bool, prepared: bool = False) -> Counts:
    """c[m][n] = a[m][k] b[k][n], b stored [n][k] where it is transposed."""
    if b_transposed and m <= GEMM_DOT_ROWS:
        return {"fma": m * n * math.ceil(k / lanes), "dots": m * n, "calls": 1}
    columns = math.ceil(n / lanes)
    packed = 0 if prepared else math.ceil(m / GEMM_BLOCK) * columns * k
    return {
        "fma": m * columns * k,
        "input": math.ceil(n / GEMM_BLOCK) * m * k / lanes,
        "pack": packed,
        "pack far": packed * _far(4 * isa.lanes(4) * packed),
        "calls": 1,
    }


def _linear(shape: Shape) -> Counts:
    lanes = isa.lanes(shape.itemsize)
    return _gemm(*_product(shape), lanes, shape.what == "forward", shape.prepared)


MODELS: dict[str, Callable[[Shape], Counts]] = {
    "linear": _linear,
    "pixel": _pixel,
    "depthwise": _depthwise,
    "images": _images,
    **{f"winograd_{m}_{r}": partial(_winograd, m, r) for m, r in conv_winograd.KINDS},
    **{f"split_{products}": partial(_split, products) for products in (6, 3, 1)},
    "direct": _direct,
    "im2col": _im2col,
    "col2im": _col2im,
}


def _dw_direct(shape: Shape) -> Counts:
    outputs, pixels = _vectors(shape, shape.outputs), shape.size[1] * shape.size[2]
    panels = math.ceil(shape.outputs / WGRAD_OUTPUTS)
    channels = min(shape.channels, max(1, WGRAD_TERMS // math.prod(shape.kernel)))  # of a task
    parts = math.ceil(shape.channels / max(1, channels))
    block, images = WGRAD_PIXELS, max(1, WGRAD_PIXELS // max(1, pixels))  # of a block
    along_pixels = conv_wgrad.along_pixels(shape.outputs, shape.size[2], shape.itemsize)
    if along_pixels:
        most = WGRAD_DOT_CELLS // max(1, channels)
        block, images = max(block, min(block * isa.lanes(shape.itemsize), most)), 1
    blocks = math.ceil(shape.images / images) * math.ceil(pixels / block) * shape.groups
    copied = panels if math.prod((*shape.kernel, *shape.step)) > 1 else 0
    band = {name: copied * n for name, n in _band(shape, block, channels).items()}
    if along_pixels:
        rows = shape.images * shape.size[1] * _vectors(shape, shape.size[2])
        products = {"dots": shape.groups * shape.outputs * shape.terms * rows}
        return {
            "fma": 0,
            **products,
            "chains": blocks * shape.outputs * shape.terms,
            **band,
            "calls": 1,
        }
    return {
        "fma": shape.groups * outputs * shape.terms * shape.pixels,
        "tiles": blocks * shape.terms * outputs,
        "transposes": shape.groups * parts * outputs * shape.pixels,
        "stores": shape.groups * shape.terms * outputs,
        **band,
        "calls": 1,
    }


def _dw_depthwise(shape: Shape) -> Counts:
    if are_planes(shape):
        return _planes(shape)
    vectors = _vectors(shape, shape.groups)
    return {
        "fma": vectors * shape.pixels * max(LATENCY, math.prod(shape.kernel)),
        "input": vectors * shape.batch * shape.cells,
        "calls": 1,
    }


def _dw_winograd(m: int, r: int, shape: Shape) -> Counts:
    positions = (m + r - 1) ** 2
    tiles = _winograd_tiles(m, shape)
    channels, outputs = _vectors(shape, shape.channels), _vectors(shape, shape.outputs)
    slots = sum(
        panels * max(LATENCY, nv * shape.channels)
        for nv, panels in ((2, outputs // 2), (1, outputs % 2))
    )
    return {
        "fma": shape.groups * positions * tiles * slots,
        "input": shape.groups * positions * tiles * (channels + outputs),
        "band": shape.groups * m * m * tiles * (channels + outputs),
        "sums": shape.groups
        * positions
        * shape.channels
        * outputs
        * math.ceil(tiles / WGRAD_TILES),
        "calls": 1,
    }


def _dw_split(products: int, shape: Shape) -> Counts:
    if shape.is_linear:
        return _split_gemm(products, *_product(shape))
    taps, parts = round(shape.taps), _parts(products)
    chunk = _equal(
        shape.channels,
        max(TILE_TERMS, WGRAD_SPLIT_TERMS // taps // TILE_TERMS * TILE_TERMS),
        TILE_TERMS,
    )
    room = WGRAD_SPLIT_BYTES // (2 * parts * (chunk + min(shape.outputs, WGRAD_SPLIT_OUTPUTS)))
    low, high = WGRAD_SPLIT_PIXELS
    room = max(low, min(room, high))  # pixels
    rows, cols, tall, wide = _block(shape, room, shape.itemsize * chunk, BAND_BYTES)
    blocks = shape.images * math.ceil(shape.size[1] / rows) * math.ceil(shape.size[2] / cols)
    pixels, band = (rows - 1) * wide + cols, tall * wide * math.prod(shape.phases)
    if blocks == shape.images > 1 and (products < 6 or band == pixels):
        images = max(1, min(room // pixels, BAND_BYTES // (chunk * band * shape.itemsize)))
        images = _equal(shape.images, images)
        blocks = math.ceil(blocks / images)
        pixels, band = pixels + (images - 1) * band, images * band
    terms = _tiles(pixels, TILE_TERMS) * TILE_TERMS
    panels, chunks = (
        math.ceil(n / most)
        for n, most in ((shape.outputs, WGRAD_SPLIT_OUTPUTS), (shape.channels, chunk))
    )
    channels = _tiles(shape.channels) * TILE_SIDE
    outputs = _tiles(shape.outputs) * TILE_SIDE
    slices = max(1, min(blocks, WGRAD_SLICES // max(1, shape.groups * panels * chunks)))
    elements = shape.groups * panels * blocks * channels * band
    turned = shape.groups * chunks * blocks * outputs * terms
    sides = shape.groups * _tiles(shape.channels) * _tiles(shape.outputs) * taps
    return {
        "fma": products * blocks * terms / TILE_TERMS * sides * TILE_PRODUCTS / isa.lanes(4),
        "lines": elements / wide,
        "elements": elements,
        "parts": parts * elements,
        "transposes": turned,
        "pairs": parts * turned,
        # sums of slices are cleared, and added from beyond the caches
        "slices": slices * shape.groups * channels * taps * outputs if slices > 1 else 0,
        "stores": shape.groups * shape.outputs * shape.terms,
        "calls": 1,
    }


DW_MODELS: dict[str, Callable[[Shape], Counts]] = {
    "linear": _linear,
    "depthwise": _dw_depthwise,
    **{f"winograd_{m}_{r}": partial(_dw_winograd, m, r) for m, r in conv_winograd.KINDS},
    **{f"split_{products}": partial(_dw_split, products) for products in (6, 3, 1)},
    "direct": _dw_direct,
}


def family(name: str, what: Pass = "forward") -> str:
    """The key of COSTS: one kernel serves every F(m, r); weight gradients have kernels of their own."""
    kind = name.partition("_")[0]
    return f"dw {kind}" if what == "dw" else kind


def count(name: str, shape: Shape) -> Counts:
    """How often what the algorithm does is done."""
    return (DW_MODELS if shape.what == "dw" else MODELS)[name](shape)


@dataclass(frozen=True)
class Costs:
    """An ISA row: GFLOP/s of multiply-adds (float32, one core), GB/s of memory, and for each kind of algorithm the share of the
    peak it reaches and the nanoseconds of what else is done."""

    peak: float
    bandwidth: float
    ns: Mapping[str, Mapping[str, float]]


# One core of an AMD EPYC (Zen 3), gcc 12.2, a virtual machine: printed by `python -m benchmarks.costs`. Of the forward and input
# gradients that each was fitted to, the model is within 10 % for 54 % of 361 (pixel), 50 % of 149 (depthwise), 63 % of 293
# (direct), 56 % of 212 (im2col), 78 % of 128 (winograd). The weight gradients were fitted later, at a peak of 112, which
# "efficiency" allows for: within 10 % for 88 % of 32 (depthwise), 81 % of 89 (winograd) and 67 % of 279 (direct), of which 60 are
# 3x3 and 5x5 kernels with 2 to 7 outputs. "copies" of direct was held at what suits those; groups of one output, which are never
# chosen, would triple it. "col2im" was fitted by itself, to 96 input gradients: within 10 % for 53 % of them. Of its constants
# "adds" was held, "calls" and "pack" were lowered when packing became faster ("pack" to what a later fit to 151 gradients gives)
# and "transposes", which the fits put at 6.25 and 7.7, after the first layer of AlexNet. "linear" and "dw linear" are a fit to 83
# and 43 linear layers on avx2 of an Intel Xeon, within 25 % for 90 and 86 %; "calls" of the latter, 4800 in the fit, was lowered
# for the choice. Those of "images" were set by hand: on 33 batches of small maps, in both types, the model is between 0.91 and
# 1.19 of the time, and a fit to 96 gives much the same; "reads far" is after 198 on avx2 of an Intel Xeon. What `_planes` counts
# was set by hand too, after ten depthwise layers on avx512 and avx2 of an Intel Xeon: between 0.83 and 1.25 of the time. Added by
# hand, and less certain: "fills" of im2col, what a tile of columns costs besides its elements, 0 to 100 ns in twelve 1x1 layers
# of small groups; its transposes; "phased" of pixel, the weights of a tap and channel of a gradient with a stride, 8 to 16 ns for
# four layers of patches; and its "leaps", what it takes to go on to the next of many channels of a band where that is on another
# page, 50 to 170 ns in seven layers of 256 and 512 channels.
_AVX2 = Costs(
    peak=107,
    bandwidth=21,
    ns={
        "linear": {
            "calls": 2110,
            "dots": 1.39,
            "efficiency": 0.995,
            "input": 2.62,
            "pack": 1.67,
            "pack far": 2.21,
        },
        "pixel": {
            "calls": 4220,
            "chains": 1.27,
            "copies": 0.871,
            "efficiency": 0.975,
            "gathers": 1.0,
            "lines": 6.71,
            "leaps": 80.0,
            "loads": 0.0533,
            "maps": 45.0,
            "pack": 2.2,
            "pack far": 2.28,
            "phased": 10.0,
            "planes": 115,
            "rows": 1.64,
            "scatters": 2.48,
            "stores": 1.64,
            "swept": 0.145,
            "turn": 11.5,
            "unpaired": 9.64,
            "vectors": 1.7,
        },
        "depthwise": {
            "calls": 5050,
            "efficiency": 0.79,
            "input": 1.97,
            "output": 2.01,
            "planes": 2.07,
            "tiles": 4.4,
            "turn": 0.102,
        },
        "direct": {
            "calls": 4760,
            "copies": 0.758,
            "efficiency": 0.952,
            "gathers": 1.82,
            "lines": 5.96,
            "pack": 1.74,
            "pack far": 2.32,
            "stores": 0.184,
            "strided": 5.96,
            "tiles": 24.0,
            "turn": 5.14,
        },
        "im2col": {
            "calls": 4120,
            "copies": 0.955,
            "efficiency": 1.02,
            "ends": 1.98,
            "fills": 50.0,
            "gathers": 5.0,
            "lines": 4.94,
            "pack": 2.38,
            "pack far": 1.67,
            "scatters": 1.98,
            "tiles": 27.2,
            "transposes": 2.5,
            "turn": 6.23,
        },
        "col2im": {
            "adds": 0.5,
            "calls": 4500,
            "copies": 0.83,
            "copies far": 2.48,
            "efficiency": 0.968,
            "lines": 6.43,
            "pack": 4.0,
            "tiles": 14.8,
            "transposes": 4.0,
        },
        "images": {
            "calls": 5050,
            "efficiency": 0.92,
            "input": 2.2,
            "output": 1.9,
            "pack": 2.2,
            "pack far": 2.28,
            "reads far": 2.0,
            "tiles": 20.0,
            "turn": 11.5,
        },
        "winograd": {
            "band": 1.64,
            "calls": 11200,
            "efficiency": 0.851,
            "input": 1.42,
            "output": 1.09,
            "pack": 2.53,
            "pack far": 1.37,
            "stores": 2.76,
            "turn": 0.188,
            "weights far": 0.355,
        },
        "dw linear": {
            "calls": 3500,
            "efficiency": 0.88,
            "input": 2.7,
            "pack": 0.984,
            "pack far": 2.65,
        },
        "dw depthwise": {
            "calls": 7010,
            "efficiency": 0.831,
            "input": 1.43,
            "maps": 40.0,
            "swept": 0.15,
        },
        "dw direct": {
            "calls": 6540,
            "chains": 1.66,
            "copies": 0.7,
            "dots": 0.169,
            "efficiency": 1.02,
            "gathers": 0.187,
            "leaps": 31.0,
            "lines": 9.68,
            "stores": 0.361,
            "tiles": 2.8,
            "transposes": 1.35,
        },
        "dw winograd": {
            "band": 2.99,
            "calls": 7600,
            "efficiency": 0.859,
            "input": 1.25,
            "sums": 1.98,
        },
    },
)
# The software model of tile registers in the row `scalar` only has to be never the fastest.
_SPLIT_SLOW = {"calls": 5000, "efficiency": 0.1, "parts": 50}
_SPLIT_MODEL = {"split": _SPLIT_SLOW, "dw split": _SPLIT_SLOW}
# Vectors of one lane gain nothing from having a group in each: as fast as "pixel" at best, and 4 to 17 times as long as "linear".
_DEPTHWISE_SCALAR = {**_AVX2.ns["depthwise"], "efficiency": 0.2}
# One core of an Intel Xeon with AMX (L2 2 MiB), gcc 12.2, a virtual machine, after 1101 passes of layers of known networks, of
# one image and of 2 to 128, with two threads (times count twice), and 405 of them with one: fitted as `python -m
# benchmarks.costs` does, then moved one at a time as long as the choice gained more than the times lost: within 25 % of 91 to 96
# % of the times of each algorithm that were less than twice the best, 81 to 94 % of those of weight gradients, 88 % of those of
# split. With two threads every algorithm takes 0.53 to 0.55 of the time of one. Then "calls" of pixel, depthwise, direct, col2im,
# images and the weight gradients of depthwise and winograd, "copies", "gathers", "phased" and "stores" of pixel, "lines",
# "gathers" and "pack" of direct and "pack" of images were moved the same way for the choice alone, after 3042 passes: 1953 of
# random shapes and of layers of known networks with one image, 597 of them in float64, 750 of 200 to 600,000 flops, which had not
# been looked at before, 168 of linear layers, and 171 of the layers of known networks with two threads. The chosen algorithm
# takes 1.015 times as long as the best on average, 2.9 at worst; for the layers with two threads 1.0003 and 1.06. "linear" and
# "dw linear" are a fit to 83 and 44 linear layers, within 25 % for 92 and 100 %, but for their "calls", moved too. Set by hand:
# "elements far" and "turned far" of split, after linear layers whose weights do not stay in the caches, 0.5 to 0.85 and 0.8 to
# 1.7 in five of them; "slices" of the split weight gradient, 0.4 in the fit; "efficiency" and "stores fetched" of winograd, which
# became faster, after eight layers; "pack" and "pack far" of col2im, 19.3 in the fit, after one layer whose weights leave the
# caches and two whose weights do not.
_AVX512 = Costs(
    peak=214,
    bandwidth=14,
    ns={
        "linear": {
            "calls": 600,
            "dots": 2.04,
            "efficiency": 0.908,
            "input": 5.23,
            "pack": 3.51,
        },
        "pixel": {
            "calls": 1630,
            "chains": 1.76,
            "copies": 1.9,
            "efficiency": 0.824,
            "gathers": 4.0,
            "leaps": 38.6,
            "lines": 2.82,
            "loads": 0.187,
            "maps": 16.2,
            "pack": 7.7,
            "phased": 30,
            "planes": 31.1,
            "reads far": 0.371,
            "rows": 0.828,
            "scatters": 11.2,
            "stores": 4.2,
            "swept": 0.0502,
            "turn": 8.59,
            "unpaired": 11,
            "vectors": 1.6,
        },
        "depthwise": {
            "calls": 2020,
            "efficiency": 0.542,
            "input": 3.94,
            "output": 3.8,
        },
        "direct": {
            "calls": 1600,
            "copies": 1.82,
            "efficiency": 0.79,
            "gathers": 2.9,
            "leaps": 166,
            "lines": 4.5,
            "pack": 5.6,
            "stores": 2.19,
            "strided": 2.07,
            "tiles": 34.3,
            "turn": 1.3,
            "weights far": 3.46,
        },
        "im2col": {
            "calls": 1510,
            "copies": 1.58,
            "efficiency": 0.828,
            "ends": 1.83,
            "fills": 37.2,
            "gathers": 6.97,
            "lines": 4.91,
            "pack": 5.89,
            "pack far": 5.82,
            "scatters": 42.7,
            "tiles": 32.3,
            "transposes": 6.07,
            "turn": 1.3,
        },
        "col2im": {
            "calls": 1950,
            "copies": 2.22,
            "efficiency": 0.775,
            "lines": 3.63,
            "pack": 6,
            "pack far": 26,
            "tiles": 53.2,
            "transposes": 20,
        },
        "images": {
            "calls": 1620,
            "efficiency": 0.706,
            "input": 5.09,
            "output": 3.61,
            "pack": 10.7,
            "reads far": 4.58,
            "turn": 7.07,
        },
        "winograd": {
            "band": 12,
            "calls": 8980,
            "efficiency": 0.66,
            "input": 0.675,
            "output": 0.23,
            "pack": 3.54,
            "stores": 3.28,
            "stores fetched": 0.8,
            "turn": 11.7,
            "weights far": 0.777,
        },
        "dw linear": {
            "calls": 3000,
            "efficiency": 0.85,
            "input": 3.54,
            "pack": 3.06,
        },
        "dw depthwise": {
            "calls": 4500,
            "efficiency": 0.417,
            "input": 2.43,
            "swept": 0.203,
        },
        "dw direct": {
            "calls": 5250,
            "chains": 2.63,
            "copies": 2.25,
            "dots": 0.392,
            "efficiency": 0.735,
            "gathers": 3.42,
            "lines": 5.75,
            "stores": 5.14,
            "transposes": 3.64,
        },
        "dw winograd": {
            "band": 6.23,
            "calls": 6300,
            "efficiency": 0.511,
            "input": 0.844,
            "sums": 3.5,
        },
    },
)
_SPLIT_AMX = {
    "split": {
        "calls": 5780,
        "copies": 8.77,
        "efficiency": 9.59,
        "elements": 0.201,
        "elements far": 0.7,
        "gathers": 7.61,
        "lines": 3.18,
        "pack": 0.326,
        "pack parts": 0.158,
        "parts": 0.0388,
        "pieces": 6.89,
        "reads far": 4.88,
        "rows": 3.93,
        "scatters": 0.567,
        "stores": 0.416,
        "turned far": 1,
        "weights far": 0.107,
    },
    "dw split": {
        "calls": 8940,
        "efficiency": 7.25,
        "elements": 0.2,
        "lines": 8.01,
        "pairs": 0.113,
        "parts": 0.143,
        "slices": 0.5,
        "stores": 0.536,
        "transposes": 0.188,
    },
}
# `scalar` was not fitted: the model counts vectors, and its vectors have one lane where AVX2 has eight.
COSTS = {
    "scalar": replace(
        _AVX2,
        peak=_AVX2.peak / 8,
        ns={**_AVX2.ns, "depthwise": _DEPTHWISE_SCALAR, **_SPLIT_MODEL},
    ),
    "avx2": _AVX2,
    "avx512": _AVX512,
    "amx": replace(_AVX512, ns={**_AVX512.ns, **_SPLIT_AMX}),
}


def peak(itemsize: int) -> float:
    """Multiply-add flops a second of one core of the machine that the table of the active row comes from."""
    return 4e9 / itemsize * COSTS[isa.current()].peak


def seconds(name: str, shape: Shape) -> float:
    """Expected time on one core of the machine that the table of the active row comes from."""
    memory = shape.bytes * _far(shape.bytes) / COSTS[isa.current()].bandwidth
    return _seconds(family(name, shape.what), count(name, shape), memory)


def _seconds(of: str, counts: Counts, memory: float = 0.0) -> float:
    """What was counted, with the constants of a family of algorithms; at least the nanoseconds that memory takes."""
    table = COSTS[isa.current()]
    constants = table.ns[of]
    products = counts["fma"] * 2 * isa.lanes(4) / (constants["efficiency"] * table.peak)
    rest = sum(n * constants.get(what, 0.0) for what, n in counts.items())
    return 1e-9 * (max(products, memory) + rest)


def gemm_seconds(products: int, m: int, n: int, k: int, b_transposed: bool) -> float:
    """The same for a matrix product in float32, on tile registers or not; see `_gemm`."""
    if products:
        return _seconds("split", _split_gemm(products, m, n, k))
    return _seconds("linear", _gemm(m, n, k, isa.lanes(4), b_transposed))

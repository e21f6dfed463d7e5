# SPDX-License-Identifier: BSD-3-Clause
"""LeNet-5 learns to read scikit-learn's handwritten digits; run with ``python -m fastconv demo``.

The demo trains on four fifths of the 1,797 digits, reports the accuracy on the others, and compares
the time of one training step with plain NumPy (:class:`NumpyConv2d` and its like) and with
scipy.signal. Pictures go to a folder. The same seed gives the same numbers at any thread count.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from fastconv import filters, nn, optim, runtime
from fastconv.models import LeNet5

Array = npt.NDArray[Any]

EPOCHS = 24
BATCH = 32
LEARNING_RATE = 0.05
MOMENTUM = 0.9
# Each training picture is moved by up to this many of its 32 pixels, anew in every epoch.
SHIFT = 2
# Relative to the largest component; float32 gives 1e-7, and 1e-5 once the loss is near 0, where
# softmax - target cancels.
GRADIENT_TOLERANCE = 1e-3
# The held-out fifth is the same for every --seed.
SPLIT_SEED = 1797


def _need(module: str) -> Any:
    """A module of the demo's extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f'the demo needs {module.split(".")[0]}: pip install "fastconv[demo]"'
        raise ImportError(message) from error


# ------------------------------------------------------------------------------------- digits


@dataclass(frozen=True)
class Digits:
    """x (N, 1, 32, 32) float32 with mean 0 and variance 1, and its classes t (N,)."""

    x_train: Array
    t_train: Array
    x_test: Array
    t_test: Array


def enlarge(images: Array, size: int = 28, border: int = 2) -> Array:
    """(N, H, H) -> (N, size + 2*border, ...): bilinear, between pixel centres, then zeros around.

    Scikit-learn's digits have 8x8 pixels; the paper centred 28x28 digits in a field of 32x32.
    """
    cells = images.shape[-1]
    at = ((np.arange(size) + 0.5) * cells / size - 0.5).clip(0, cells - 1)
    weights = np.maximum(0, 1 - np.abs(at[:, np.newaxis] - np.arange(cells)))
    enlarged = weights @ images @ weights.T
    return np.pad(enlarged, [(0, 0), (border, border), (border, border)])


def load_digits(images: int | None = None) -> Digits:
    """The split digits; `images` takes only so many of the training part."""
    data = _need("sklearn.datasets").load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(data.target))
    test, train = np.split(order, [len(order) // 5])
    train = train[:images]
    x = enlarge(data.images)[:, np.newaxis]
    x = ((x - x[train].mean()) / x[train].std()).astype(np.float32)
    return Digits(x[train], data.target[train], x[test], data.target[test])


def shifted(x: Array, rng: np.random.Generator) -> Array:
    """Every picture moved by up to SHIFT pixels along both axes; its edge comes in on the side."""
    size = x.shape[-1]
    offsets = rng.integers(0, 2 * SHIFT + 1, (2, len(x), 1)) + np.arange(size)
    padded = np.pad(x[:, 0], [(0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)], mode="edge")
    picture = np.arange(len(x))[:, np.newaxis, np.newaxis]
    return padded[picture, offsets[0][:, :, np.newaxis], offsets[1][:, np.newaxis]][:, np.newaxis]


# ----------------------------------------------------------------------------------- training


@dataclass
class History:
    """One entry an epoch: mean loss, held-out accuracy, seconds of training."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def train_step(
    model: nn.Module,
    loss: nn.CrossEntropyLoss,
    optimiser: optim.Optimizer,
    x: Array,
    target: Array,
) -> float:
    """Forward, loss, backward, update; returns the loss."""
    optimiser.zero_grad()
    value = loss(model(x), target)
    model.backward(loss.backward(), needs_dx=False)
    optimiser.step()
    return float(value)


def accuracy(model: nn.Module, x: Array, target: Array) -> float:
    model.eval()
    with nn.no_grad():
        hits = model(x).argmax(axis=1) == target
    model.train()
    return float(hits.mean())


def train(
    model: nn.Module, digits: Digits, epochs: int, rng: np.random.Generator, quiet: bool
) -> History:
    """SGD with momentum, and a learning rate that falls along half a cosine."""
    optimiser = optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)
    loss, history = nn.CrossEntropyLoss(), History()
    steps = epochs * len(range(0, len(digits.x_train), BATCH))
    rates = iter(0.5 * LEARNING_RATE * (1 + np.cos(np.pi * np.arange(steps) / steps)))
    bar = _need("tqdm").tqdm(total=steps, disable=quiet or not sys.stderr.isatty(), unit="step")
    with bar:
        for _ in range(epochs):
            start, losses = time.perf_counter(), []
            for x, target in batches(digits, rng):
                optimiser.lr = float(next(rates))
                losses.append(train_step(model, loss, optimiser, x, target))
                bar.update()
            history.seconds.append(time.perf_counter() - start)
            history.losses.append(float(np.mean(losses)))
            history.accuracies.append(accuracy(model, digits.x_test, digits.t_test))
            bar.set_postfix(loss=history.losses[-1], held_out=history.accuracies[-1])
    return history


def batches(digits: Digits, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """The training digits in random order, each moved a little."""
    order = rng.permutation(len(digits.x_train))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        yield shifted(digits.x_train[chosen], rng), digits.t_train[chosen]


# ------------------------------------------------------------------- the same network elsewhere


class NumpyConv2d(nn.Module):
    """im2col and one matrix product for the whole batch; stride 1 and no padding, as in LeNet.

    Shares the parameters of the layer it stands for, like all twins here.
    """

    def __init__(self, layer: Any) -> None:
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Array) -> Array:
        outputs, _, *kernel = self.weight.shape
        windows = sliding_window_view(x, kernel, axis=(2, 3))
        n, _, height, width = windows.shape[:4]
        columns = windows.transpose(1, 4, 5, 0, 2, 3).reshape(-1, n * height * width)
        self._keep(x.shape, columns)
        y = self.weight.data.reshape(outputs, -1) @ columns + self.bias.data[:, np.newaxis]
        return y.reshape(outputs, n, height, width).transpose(1, 0, 2, 3)

    def backward(self, dy: Array, needs_dx: bool = True) -> Array | None:
        x_shape, columns = self._take()
        outputs, channels, *kernel = self.weight.shape
        n, _, height, width = dy.shape
        rows = dy.transpose(1, 0, 2, 3).reshape(outputs, -1)
        self.weight.grad = (rows @ columns.T).reshape(self.weight.shape)
        self.bias.grad = rows.sum(axis=1)
        if not needs_dx:
            return None
        cells = self.weight.data.reshape(outputs, -1).T @ rows
        cells = cells.reshape(channels, *kernel, n, height, width)
        dx = np.zeros((channels, n, *x_shape[2:]), dy.dtype)
        for i, j in np.ndindex(*kernel):
            dx[:, :, i : i + height, j : j + width] += cells[:, i, j]
        return dx.transpose(1, 0, 2, 3)


class ScipyConv2d(NumpyConv2d):
    """Loops over pictures and channels around scipy.signal's correlate2d and convolve2d."""

    def forward(self, x: Array) -> Array:
        correlate2d = _need("scipy.signal").correlate2d
        self._keep(x)
        w = self.weight.data
        y = [[sum(map(_valid(correlate2d), xn, wo)) for wo in w] for xn in x]
        return np.stack([np.stack(maps) for maps in y]) + self.bias.data[:, np.newaxis, np.newaxis]

    def backward(self, dy: Array, needs_dx: bool = True) -> Array | None:
        signal = _need("scipy.signal")
        (x,) = self._take()
        correlate = _valid(signal.correlate2d)
        w = self.weight.data
        by_output, by_channel = dy.swapaxes(0, 1), x.swapaxes(0, 1)
        dw = [[sum(map(correlate, xc, do)) for xc in by_channel] for do in by_output]
        self.weight.grad = np.array(dw, w.dtype).reshape(w.shape)
        self.bias.grad = dy.sum(axis=(0, 2, 3))
        if not needs_dx:
            return None
        to_inputs = w.swapaxes(0, 1)
        return np.array([[sum(map(signal.convolve2d, d, wc)) for wc in to_inputs] for d in dy])


def _valid(correlate2d: Callable[..., Array]) -> Callable[[Array, Array], Array]:
    return lambda a, b: correlate2d(a, b, mode="valid")


class NumpyTanh(nn.Module):
    def __init__(self, layer: Any) -> None:
        pass

    def forward(self, x: Array) -> Array:
        y = np.tanh(x)
        self._keep(y)
        return y

    def backward(self, dy: Array, needs_dx: bool = True) -> Array | None:
        (y,) = self._take()
        return np.asarray(dy * (1 - y * y))


class NumpyAvgPool2d(nn.Module):
    """2x2 windows side by side, as in LeNet."""

    def __init__(self, layer: Any) -> None:
        pass

    def forward(self, x: Array) -> Array:
        rows = x[:, :, ::2] + x[:, :, 1::2]
        return np.asarray((rows[..., ::2] + rows[..., 1::2]) * x.dtype.type(0.25))

    def backward(self, dy: Array, needs_dx: bool = True) -> Array | None:
        share = dy * dy.dtype.type(0.25)
        return share.repeat(2, axis=2).repeat(2, axis=3)


class NumpyFlatten(nn.Module):
    def __init__(self, layer: Any) -> None:
        pass

    def forward(self, x: Array) -> Array:
        self._keep(x.shape)
        return x.reshape(len(x), -1)

    def backward(self, dy: Array, needs_dx: bool = True) -> Array | None:
        (shape,) = self._take()
        return dy.reshape(shape)


class NumpyLinear(nn.Module):
    def __init__(self, layer: Any) -> None:
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Array) -> Array:
        self._keep(x)
        return np.asarray(x @ self.weight.data.T + self.bias.data)

    def backward(self, dy: Array, needs_dx: bool = True) -> Array | None:
        (x,) = self._take()
        self.weight.grad = dy.T @ x
        self.bias.grad = dy.sum(axis=0)
        return np.asarray(dy @ self.weight.data)


class NumpyCrossEntropy(nn.CrossEntropyLoss):
    def forward(self, logits: Array, target: Array) -> float:  # type: ignore[override]
        shifted_logits = logits - logits.max(axis=1, keepdims=True)
        logp = shifted_logits - np.log(np.exp(shifted_logits).sum(axis=1, keepdims=True))
        self._keep(logp, target)
        return float(-logp[np.arange(len(target)), target].mean())

    def backward(self, dloss: Any = 1.0, needs_dx: bool = True) -> Array | None:
        logp, target = self._take()
        p = np.exp(logp)
        p[np.arange(len(target)), target] -= 1
        return np.asarray(p * p.dtype.type(dloss / len(target)))


NUMPY = {
    nn.Conv2d: NumpyConv2d,
    nn.Tanh: NumpyTanh,
    nn.AvgPool2d: NumpyAvgPool2d,
    nn.Flatten: NumpyFlatten,
    nn.Linear: NumpyLinear,
}
SCIPY = {**NUMPY, nn.Conv2d: ScipyConv2d}


def twin(model: nn.Sequential, layers: dict[Any, Any]) -> nn.Sequential:
    """The same network, with the same parameters, of other layers."""
    return nn.Sequential(*(layers[type(layer)](layer) for layer in model))


# ---------------------------------------------------------------------------------- comparison


def gradient(model: nn.Module, loss: nn.CrossEntropyLoss, x: Array, target: Array) -> Array:
    """The gradient of all parameters in one vector."""
    model.zero_grad()
    loss(model(x), target)
    model.backward(loss.backward(), needs_dx=False)
    return np.concatenate([np.asarray(p.grad).ravel() for p in model.parameters()])


def fastest(run: Callable[[], Any], seconds: float, least: int = 3) -> float:
    """The shortest of at least `least` runs, which take `seconds` together if that allows more."""
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def compare_steps(model: nn.Sequential, x: Array, target: Array) -> dict[str, float]:
    """Seconds of one training step on the batch (x, target), here and elsewhere, and ratios.

    All three take the same code around the layers, with the same optimiser, and their gradients
    are compared first: ArithmeticError when they differ.
    """
    mine = copy.deepcopy(model)
    others = {"numpy": twin(mine, NUMPY), "scipy": twin(mine, SCIPY)}
    expected = gradient(mine, nn.CrossEntropyLoss(), x, target)
    result = {"batch": float(len(x))}
    for name, other in others.items():
        found = gradient(other, NumpyCrossEntropy(), x, target)
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        if not error < GRADIENT_TOLERANCE:
            raise ArithmeticError(f"the gradient differs from that of {name} by {error:.1e}")
        result[f"{name}_gradient_difference"] = error
    runs: dict[str, tuple[nn.Module, nn.CrossEntropyLoss]]
    runs = {"fastconv": (mine, nn.CrossEntropyLoss())}
    runs |= {name: (other, NumpyCrossEntropy()) for name, other in others.items()}
    for name, (network, loss) in runs.items():
        optimiser = optim.SGD(network.parameters(), 1e-6, MOMENTUM)

        def step(network: Any = network, loss: Any = loss, optimiser: Any = optimiser) -> None:
            train_step(network, loss, optimiser, x, target)

        result[f"{name}_seconds"] = fastest(step, 2.0)
    for name in others:
        result[f"{name}_ratio"] = result[f"{name}_seconds"] / result["fastconv_seconds"]
    return result


# ------------------------------------------------------------------------------------ pictures


def _figure(rows: int, columns: int, title: str, cell: float = 1.6) -> tuple[Any, Any]:
    """A figure with a title and (rows, columns) axes without ticks."""
    figure = _need("matplotlib.figure").Figure((cell * columns, cell * rows + 0.6), dpi=120)
    figure.set_layout_engine("constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def _show(axis: Any, image: Array, title: str, limit: float | None = None) -> Any:
    """Draw grey values; or signed ones between -limit (blue) and limit (red)."""
    axis.set_title(title, fontsize=8)
    if limit is None:
        return axis.imshow(image, cmap="gray")
    return axis.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)


def draw_kernels(model: Any) -> Any:
    kernels = model.c1.weight.data[:, 0]
    title = "The 5x5 kernels of the first convolution, learnt"
    figure, axes = _figure(1, len(kernels), title, 1.5)
    limit = float(np.abs(kernels).max())
    for i, (axis, kernel) in enumerate(zip(axes.flat, kernels, strict=True)):
        drawn = _show(axis, kernel, f"kernel {i + 1}", limit)
    figure.colorbar(drawn, ax=axes, shrink=0.8)
    return figure


def draw_feature_maps(model: Any, digits: Digits) -> Any:
    x, target = digits.x_test[:1], int(digits.t_test[0])
    with nn.no_grad():
        maps1 = model[:2](x)
        maps3 = model[2:5](maps1)
        read = int(model[5:](maps3).argmax())
    title = f"Feature maps of a held-out {target}, read as {read} (tanh: blue -1, red +1)"
    figure, axes = _figure(3, 8, title, 1.4)
    _show(axes[0, 0], x[0, 0], "input, 32x32")
    for i, image in enumerate(maps1[0]):
        _show(axes[0, i + 1], image, f"C1 map {i + 1}, 28x28", 1.0)
    for i, image in enumerate(maps3[0]):
        _show(axes[1 + i // 8, i % 8], image, f"C3 map {i + 1}, 10x10", 1.0)
    return figure


def draw_training(history: History) -> Any:
    figure, axes = _figure(1, 2, "LeNet-5 on scikit-learn's digits", 4.0)
    epochs = np.arange(1, len(history.losses) + 1)
    curves = (
        ("training loss (cross entropy)", history.losses, "log"),
        ("accuracy on the held-out fifth, %", 100 * np.array(history.accuracies), "linear"),
    )
    for axis, (title, values, scale) in zip(axes.flat, curves, strict=True):
        axis.set_axis_on()
        axis.plot(epochs, values, marker=".")
        axis.set(xlabel="epoch", title=title, yscale=scale)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    return figure


def draw_filters() -> Any:
    photo = _need("sklearn.datasets").load_sample_image("china.jpg")[20:300, 40:320]
    grey = photo.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    title = "A photo through the classical filters (signed results: blue negative, red positive)"
    figure, axes = _figure(3, 5, title, 2.6)
    for axis, (name, kernel) in zip(axes.flat, filters.KERNELS.items(), strict=False):
        image = filters.apply(grey, kernel, padding_mode="replicate")
        smooths = kernel.sum() > 0.5
        limit = None if smooths else float(np.percentile(np.abs(image), 99))
        drawn = _show(axis, image, name.replace("_", " "), limit)
        if smooths:
            drawn.set_clim(0, 255)
    return figure


def draw(model: Any, digits: Digits, history: History, output: Path) -> list[str]:
    """Write the pictures; returns their paths."""
    output.mkdir(parents=True, exist_ok=True)
    figures = {
        "kernels.png": draw_kernels(model),
        "feature-maps.png": draw_feature_maps(model, digits),
        "training.png": draw_training(history),
        "filters.png": draw_filters(),
    }
    for name, figure in figures.items():
        figure.savefig(output / name)
    return [str(output / name) for name in figures]


# ----------------------------------------------------------------------------------------- run


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train, compare, draw; returns the facts that ``--json`` prints."""
    start = time.perf_counter()
    digits = load_digits(options.images)
    rng = np.random.default_rng(options.seed)
    model = LeNet5(rng=rng)
    history = train(model, digits, options.epochs, rng, options.json or options.quiet)
    step = compare_steps(model, digits.x_train[:BATCH], digits.t_train[:BATCH])
    return {
        "accuracy": history.accuracies[-1],
        "held_out": len(digits.t_test),
        "trained_on": len(digits.t_train),
        "seed": options.seed,
        "epochs": options.epochs,
        "seconds_per_epoch": float(np.median(history.seconds)),
        "losses": history.losses,
        "accuracies": history.accuracies,
        "step": step,
        "threads": runtime.get_num_threads(),
        "isa": runtime.isa(),
        "files": draw(model, digits, history, options.output),
        "seconds": time.perf_counter() - start,
    }


def report(facts: dict[str, Any]) -> str:
    """The facts as text."""
    step = facts["step"]
    wrong = round((1 - facts["accuracy"]) * facts["held_out"])
    lines = [
        f"accuracy   {100 * facts['accuracy']:.2f} % of {facts['held_out']} held-out digits "
        f"({wrong} wrong), after {facts['epochs']} epochs on {facts['trained_on']}",
        f"epoch      {facts['seconds_per_epoch']:.3f} s with {facts['threads']} threads, "
        f"{facts['isa']}",
        f"one step   forward, backward and update of {step['batch']:.0f} digits:",
        f"  fastconv {1e3 * step['fastconv_seconds']:10.2f} ms",
    ]
    for name, how in (("numpy", "im2col and @"), ("scipy", "scipy.signal in loops")):
        lines.append(
            f"  {name:8} {1e3 * step[f'{name}_seconds']:10.2f} ms, {step[f'{name}_ratio']:.1f} times "
            f"as long ({how})"
        )
    return "\n".join([*lines, *(f"wrote      {file}" for file in facts["files"])])


def _count(text: str, least: int = 1) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"expected an integer >= {least}, got {text}")
    return value


def _seed(text: str) -> int:
    return _count(text, 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=_seed, default=0, help="of weights, order and shifts (0)")
    parser.add_argument("--epochs", type=_count, default=EPOCHS, help=f"default {EPOCHS}")
    parser.add_argument("--images", type=_count, help="train on the first so many digits only")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo-output"),
        metavar="DIR",
        help="folder for the pictures (demo-output)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def main(options: argparse.Namespace) -> int:
    try:
        options.output.mkdir(parents=True, exist_ok=True)  # or an error, before the training
        facts = run(options)
    except (ImportError, ArithmeticError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(facts, indent=2) if options.json else report(facts))
    return 0

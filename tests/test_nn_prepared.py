# SPDX-License-Identifier: BSD-3-Clause
"""Models frozen for inference: the values of ``model.eval()(x)``, in fewer calls."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastconv
from fastconv import nn
from fastconv import reference as ref
from fastconv.models import LeNet5
from tests.checks import named
from tests.conftest import THREADS
from tests.data import Array, reals, rng
from tests.tolerance import assert_close

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SHAPES = {1: (2, 3, 13), 2: (2, 3, 9, 10), 3: (2, 3, 5, 6, 7)}
ACTIVATIONS = {nn.ReLU: ref.relu, nn.Tanh: ref.tanh, nn.Sigmoid: ref.sigmoid}


def conv(rank: int = 2, channels: int = 3, outputs: int = 5, **options: Any) -> Any:
    options = {"dtype": "f8", **options}
    return CONVS[rank](channels, outputs, 3, padding=1, rng=rank, **options)


def norm(rank: int = 2, channels: int = 5, **options: Any) -> Any:
    """A batch normalisation whose parameters and statistics are not 0 and 1."""
    layer, made = NORMS[rank](channels, **{"dtype": "f8", **options}), rng(31)
    for array in (layer.running_mean, layer.weight.data, layer.bias.data):
        array[...] = made.standard_normal(channels)
    layer.running_var[...] = made.uniform(0.01, 4, channels)
    return layer


def same_values(model: nn.Module, x: Array) -> nn.prepared.PreparedModule:
    """The runner, whose values are the model's up to rounding."""
    prepared = model.prepare(x.shape)
    assert_allclose(prepared(x), model.eval()(x), rtol=1e-12, atol=1e-12)
    return prepared


# ------------------------------------------------------------------------------------- fusion


@pytest.mark.parametrize("layer", ACTIVATIONS)
@pytest.mark.parametrize("rank", NORMS)
def test_convolution_norm_and_activation_are_one_call(
    rank: int, layer: Any, dtype: str, isa_row: str, capfd: Any
) -> None:
    c, b = conv(rank, algo="direct", dtype=dtype), norm(rank, eps=1e-3, dtype=dtype)
    x = reals(rng(32), SHAPES[rank], dtype)
    y = nn.Sequential(c, b, layer()).prepare(x.shape)(x)
    w, bias = c.weight.data, c.bias.data
    weights = ref.fold_batch_norm(
        w, bias, b.running_mean, b.running_var, b.weight.data, b.bias.data, b.eps
    )
    invstd = 1 / np.sqrt(b.running_var.astype("f8") + b.eps)
    size = np.abs(b.weight.data) * invstd
    terms = (np.abs(bias) + np.abs(b.running_mean)) * size + np.abs(b.bias.data)
    scale = ref.abs_conv(x, weights[0], terms, padding=1)
    wanted = ACTIVATIONS[layer](ref.conv(x, *weights, padding=1))
    # the slopes of all three are at most 1; what tanh and sigmoid round is as large as their result
    assert_close(y, wanted, scale + np.abs(wanted))


@pytest.mark.parametrize("rank", CONVS)
@pytest.mark.parametrize("layer", ACTIVATIONS)
def test_the_same_bits_where_nothing_is_folded(rank: int, layer: Any, dtype: str) -> None:
    model = nn.Sequential(
        conv(rank, dtype=dtype), layer(), nn.Dropout(), conv(rank, 5, dtype=dtype)
    )
    x = reals(rng(33), SHAPES[rank], dtype)
    prepared = model.prepare(x.shape)
    assert layer.__name__ not in repr(prepared)
    assert_array_equal(prepared(x), model.eval()(x))


def test_lenet_has_the_bits_of_its_layers(dtype: str) -> None:
    model, x = LeNet5(dtype=dtype, rng=0), reals(rng(34), (3, 1, 32, 32), dtype)
    prepared = model.prepare(x.shape)
    y = model.eval()(x)
    for threads in THREADS:
        with fastconv.threads(threads):
            assert_array_equal(prepared(x), y)


# name: (layers, what is gone from the runner, what is not)
CHAINS: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {
    "all three": (lambda: [conv(), norm(), nn.ReLU()], ("BatchNorm", "ReLU"), ()),
    "no bias": (lambda: [conv(bias=False), norm()], ("BatchNorm",), ()),
    "no parameters": (lambda: [conv(), nn.BatchNorm2d(5, affine=False)], ("BatchNorm",), ()),
    "dropout between": (
        lambda: [nn.Dropout(), conv(), nn.Dropout2d(), norm(), nn.Dropout(), nn.Tanh()],
        ("Dropout", "BatchNorm", "Tanh"),
        (),
    ),
    "twice": (
        lambda: [conv(), norm(), nn.ReLU(), conv(2, 5), norm(), nn.Sigmoid()],
        ("BatchNorm", "ReLU", "Sigmoid"),
        (),
    ),
    "activation first": (lambda: [conv(), nn.ReLU(), norm()], ("ReLU",), ("BatchNorm",)),
    "norm first": (lambda: [norm(2, 3), nn.ReLU(), conv()], (), ("BatchNorm", "ReLU")),
    "second activation": (lambda: [conv(), nn.ReLU(), nn.Tanh()], ("ReLU",), ("Tanh",)),
    "nested": (
        lambda: [nn.Sequential(conv(), norm()), nn.Sequential(conv(2, 5), nn.ReLU(), nn.Dropout())],
        ("BatchNorm", "ReLU", "Dropout"),
        (),
    ),
    "statistics of the batch": (
        lambda: [conv(), nn.BatchNorm2d(5, track_running_stats=False), nn.ReLU()],
        (),
        ("BatchNorm", "ReLU"),
    ),
    "a whole network": (
        lambda: [
            *(conv(), norm(), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2), nn.Flatten()),
            *(nn.Dropout(), nn.Linear(20, 4, rng=0), nn.BatchNorm1d(4), nn.LogSoftmax()),
        ],
        ("BatchNorm2d", "ReLU", "Dropout"),
        ("MaxPool2d", "Linear", "BatchNorm1d", "LogSoftmax"),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_is_fused(name: str) -> None:
    layers, gone, left = CHAINS[name]
    text = repr(same_values(nn.Sequential(*layers()), reals(rng(35), SHAPES[2], "f8")))
    assert not [word for word in gone if word in text]
    assert not [word for word in left if word not in text]


def test_linear_layers_are_packed(dtype: str, isa_row: str) -> None:
    """In a Sequential and in a module with a forward of its own: the bits of the layers, and the weights packed at once."""
    inner = Own(nn.Linear(70, 90, dtype=dtype, rng=1))
    model = nn.Sequential(nn.Linear(300, 70, dtype=dtype, rng=0), nn.ReLU(), inner)
    x = reals(rng(41), (8, 300), dtype)
    prepared = model.prepare(x.shape)
    assert_array_equal(prepared(x), model.eval()(x))
    layers = [m for m in prepared._model.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == 2
    for layer in layers:
        made: Any = layer.forward
        assert made.nbytes >= 2 * layer.weight.data.nbytes
    assert "forward" not in vars(inner.inner)


def test_a_single_layer_can_be_prepared() -> None:
    x = reals(rng(36), SHAPES[2], "f8")
    for layer in (conv(), norm(2, 3), nn.Dropout(), nn.Linear(10, 3)):
        prepared = same_values(layer, x)
        assert repr(prepared).startswith("<prepared for x of shape (2, 3, 9, 10): Sequential(")


def test_a_norm_for_another_rank_is_left_alone() -> None:
    """BatchNorm1d takes the result for an unbatched image as (N, C, L): other channels, and in the order of the calls."""
    model = nn.Sequential(conv(outputs=9), norm(1, 9))
    x = reals(rng(37), (3, 9, 10), "f8")
    same_values(model, x)
    with named("x"):
        model.prepare((2, 3, 9, 10))


def test_a_folded_norm_still_wants_a_batch() -> None:
    for model, shape in (
        (nn.Sequential(conv(1), norm(1)), (3, 13)),
        (nn.Sequential(conv(2), norm(2)), (3, 9, 10)),
    ):
        with named("x"):
            model.prepare(shape)


def test_a_norm_of_other_channels_is_named() -> None:
    with named("running_mean"):
        nn.Sequential(conv(), nn.BatchNorm2d(4)).prepare(SHAPES[2])


# ----------------------------------------------------------------------------- users' modules


class Residual(nn.Module):
    def __init__(self) -> None:
        self.body = nn.Sequential(conv(2, 3, 3), norm(2, 3), nn.ReLU())
        self.last = conv(2, 3, 3)
        self.norm = norm(2, 3)
        self.drop = nn.Dropout(0.9)

    def forward(self, x: Any) -> Any:
        y = self.norm(self.last(self.body(x)))
        y += self.last.weight.data.mean() + self.last.out_channels
        kept = self.drop(x)
        kept *= 2  # dropout gives a copy
        return y + x + kept


def test_a_forward_of_its_own_runs_with_prepared_layers() -> None:
    model, x = nn.Sequential(Residual(), nn.Sequential(Residual())), reals(rng(38), SHAPES[2], "f8")
    before = x.copy()
    prepared = same_values(model, x)
    assert_array_equal(x, before)
    inner = prepared._model[0][1][0]
    for layer in (inner.body[0], inner.last):
        assert isinstance(layer, nn.Conv2d)
        assert isinstance(layer.forward.conv, fastconv.functional.prepared.PreparedConv)
    assert repr(prepared).count("ReLU") == 0


def test_layers_with_a_forward_of_their_own_are_run_as_they_are() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Any) -> Any:
            return 2 * super().forward(x)

    class Biased(nn.BatchNorm2d):
        def forward(self, x: Any) -> Any:
            return super().forward(x) + 1

    class Negative(nn.ReLU):
        def forward(self, x: Any) -> Any:
            return -super().forward(x)

    class Always(nn.Dropout):
        def forward(self, x: Any) -> Any:
            return 3 * x

    class Backwards(nn.Sequential):
        def forward(self, x: Any) -> Any:
            for layer in reversed(list(self)):
                x = layer(x)
            return x

    class Wide(nn.Conv2d):
        """Another constructor alone."""

        def __init__(self) -> None:
            super().__init__(3, 5, 3, padding=1, rng=0)

    x = reals(rng(39), SHAPES[2], "f8")
    for layers in (
        (Doubled(3, 5, 3, rng=0), nn.ReLU()),
        (conv(), Biased(5), nn.ReLU()),
        (conv(), Negative()),
        (conv(), Always(), nn.ReLU()),
        (Backwards(nn.ReLU(), conv()),),
    ):
        same_values(nn.Sequential(*layers), x)
    prepared = same_values(nn.Sequential(Wide(), nn.ReLU()), x)
    assert "ReLU" not in repr(prepared)


def test_a_layer_in_two_places_keeps_its_own_meaning_in_each() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            self.body = nn.Sequential(conv(), norm(), nn.ReLU())
            self.head = self.body[:1]
            self.first = self.body[0]

        def forward(self, x: Any) -> Any:
            return self.body(x) + 10 * self.head(x) + 100 * self.first(x)

    same_values(Shared(), reals(rng(40), SHAPES[2], "f8"))


# ------------------------------------------------------------------------------------- frozen


class Own(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return self.inner(x) * 2

    def backward(self, dy: Any, needs_dx: bool = True) -> Any:
        return self.inner.backward(2 * dy, needs_dx)


def test_later_changes_do_not_show() -> None:
    model = nn.Sequential(
        conv(), norm(), nn.ReLU(), nn.Sequential(norm()), Own(nn.Linear(10, 3, rng=0))
    )
    x = reals(rng(41), SHAPES[2], "f4")
    prepared = model.prepare(x.shape)
    y = prepared(x)
    for array in (*(p.data for p in model.parameters()), *model.buffers()):
        array[...] = 1
    model[3].extra = nn.Tanh()
    model.train()
    assert_array_equal(prepared(x), y)


def test_the_model_stays_as_it_was() -> None:
    model = nn.Sequential(conv(), norm(), nn.ReLU(), nn.Dropout(rng=1), Own(conv(2, 5)))
    x = reals(rng(42), SHAPES[2], "f8")
    twin = copy.deepcopy(model)
    dy = np.ones_like(model(x))
    twin(x)
    model.backward(dy)
    twin.backward(dy)
    model(x)
    twin(x)
    model.prepare(x.shape)(x)  # between forward and backward, with gradients there
    assert all(module.training for module in model.modules())
    assert repr(model) == repr(twin)
    assert_array_equal(model.backward(dy), twin.backward(dy))
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert_array_equal(one.grad, other.grad)
    for name, array in model.state_dict().items():
        assert_array_equal(array, twin.state_dict()[name])


def test_nothing_is_kept_of_a_call() -> None:
    model = nn.Sequential(nn.Tanh(), conv(), norm(), nn.ReLU(), Own(conv(2, 5)), nn.LogSoftmax())
    model.backward(model(reals(rng(43), SHAPES[2], "f8")))
    prepared = model.prepare(SHAPES[2])
    x = reals(rng(44), SHAPES[2], "f8")
    y = prepared(x)
    seen = [weakref.ref(x), weakref.ref(y)]
    del x, y
    gc.collect()
    assert all(dead() is None for dead in seen)
    assert all(parameter.grad is None for parameter in prepared._model.parameters())


def test_weights_are_packed_at_once() -> None:
    x = reals(rng(44), (2, 16, 12, 12), "f4")
    prepared = nn.Sequential(conv(2, 16, 32, dtype="f4"), nn.ReLU()).prepare(x.shape)
    packed = prepared._model[0][0].forward.conv
    size = packed.nbytes
    assert size > 32 * 16 * 9 * 4, "a copy and a packed form"
    prepared(x)
    assert packed.nbytes == size


@pytest.mark.parametrize("again", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_and_pickles(again: Any) -> None:
    model, x = nn.Sequential(conv(), norm(), nn.ReLU()), reals(rng(45), SHAPES[2], "f8")
    prepared = model.prepare(x.shape)
    twin = again(prepared)
    assert_array_equal(twin(x), prepared(x))
    assert repr(twin) == repr(prepared)


def test_several_threads_at_once() -> None:
    model = nn.Sequential(
        conv(), norm(), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(100, 7)
    )
    prepared, g = model.prepare(SHAPES[2]), rng(46)
    inputs = [reals(g, SHAPES[2], "f4") for _ in range(4)]
    wanted, found = [prepared(x) for x in inputs], {}

    def run(i: int) -> None:
        found[i] = [prepared(inputs[i]) for _ in range(20)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, y in enumerate(wanted):
        for again in found[i]:
            assert_array_equal(again, y)


# ---------------------------------------------------------------------------------- arguments


def test_another_batch_and_other_types() -> None:
    layers = (conv(dtype="f4"), norm(dtype="f4"), nn.Flatten(), nn.Linear(450, 2))
    x = reals(rng(47), SHAPES[2], "f4")
    prepared = nn.Sequential(*layers).prepare(x.shape)
    y = prepared(x)
    assert_allclose(prepared(x[:1]), y[:1], rtol=1e-5, atol=1e-6)
    assert prepared(x[:0]).shape == (0, 2)
    wide = prepared(x.astype("f8"))
    assert wide.dtype == np.float64
    assert_allclose(wide, y, rtol=1e-4, atol=1e-5)
    assert_array_equal(prepared(x.astype("f8").tolist()), wide)


@pytest.mark.parametrize("shape", [(3, 9, 10), (2, 4, 9, 10), (2, 3, 9, 11), (2, 3, 9, 10, 1), ()])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    prepared = nn.Sequential(conv()).prepare(SHAPES[2])
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 3, 9, 10\), got \("):
        prepared(np.zeros(shape))


def test_bad_arguments_are_named() -> None:
    model = nn.Sequential(conv())
    for bad in ((), 3, (2, -3, 9, 9), (2, 3.0, 9, 9), "2399", (2**40, 2**40)):
        with named("input_shape"):
            model.prepare(bad)
    with named("precision"):
        model.prepare(SHAPES[2], "low")
    with pytest.raises(ValueError, match="channels"):
        model.prepare((2, 4, 9, 9))
    for wrong in (np.zeros(SHAPES[2], complex), np.ma.zeros(SHAPES[2])):
        with named("x"):
            model.prepare(SHAPES[2])(wrong)
    with named("x"):
        nn.Tanh().prepare((3,))(1.0)


def test_precision_is_for_layers_that_have_none() -> None:
    model = nn.Sequential(conv(), conv(2, 5, precision="medium"))
    text = repr(model.prepare(SHAPES[2], precision="high"))
    assert text.count("precision=high") == 1
    assert text.count("precision=medium") == 1
    assert "precision=high" not in repr(model)
    assert "precision=high" not in repr(model.prepare(SHAPES[2]))

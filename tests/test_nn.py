# SPDX-License-Identifier: BSD-3-Clause
"""Layers against the reference, gradients against finite differences, state by PyTorch's names."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastconv import functional as F
from fastconv import nn, optim
from fastconv import reference as ref
from fastconv.models import LeNet5

F64 = np.float64


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def conv(rank, *arguments, **options):
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    return layer(*arguments, dtype=F64, rng=rank, **options)


def random_norm(layer, rng):
    """A batch norm layer with statistics and parameters that are not 0 and 1."""
    for array in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
        array[...] = rng.uniform(0.5, 1.5, array.shape)
    return layer


# name: (layer of a generator, input shape, the reference of (layer, x))
LAYERS = {
    "conv1d": (
        lambda rng: conv(1, 3, 4, 3, 2, 1),
        (2, 3, 9),
        lambda m, x: ref.conv(x, m.weight.data, m.bias.data, 2, 1),
    ),
    "conv2d": (
        lambda rng: conv(2, 4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, bias=False),
        (2, 4, 7, 6),
        lambda m, x: ref.conv(x, m.weight.data, None, (2, 1), (1, 2), (1, 2), 2),
    ),
    "conv2d same, reflect, unbatched": (
        lambda rng: conv(2, 2, 3, 4, padding="same", padding_mode="reflect"),
        (2, 7, 6),
        lambda m, x: ref.conv(
            x, m.weight.data, m.bias.data, padding="same", padding_mode="reflect"
        ),
    ),
    "conv3d": (
        lambda rng: conv(3, 2, 3, 2, algo="im2col", precision="high"),
        (1, 2, 3, 4, 5),
        lambda m, x: ref.conv(x, m.weight.data, m.bias.data),
    ),
    "linear": (
        lambda rng: nn.Linear(5, 3, dtype=F64, rng=0),
        (2, 4, 5),
        lambda m, x: ref.linear(x, m.weight.data, m.bias.data),
    ),
    "linear without bias": (
        lambda rng: nn.Linear(5, 3, False, dtype=F64, rng=0),
        (4, 5),
        lambda m, x: ref.linear(x, m.weight.data),
    ),
    "max pool": (
        lambda rng: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        (2, 3, 8, 7),
        lambda m, x: ref.max_pool2d(x, 3, 2, 1, 1, True),
    ),
    "avg pool": (
        lambda rng: nn.AvgPool2d((3, 2), padding=1, count_include_pad=False),
        (2, 3, 8, 7),
        lambda m, x: ref.avg_pool2d(x, (3, 2), None, 1, False, False),
    ),
    "adaptive max pool": (
        lambda rng: nn.AdaptiveMaxPool2d((3, None)),
        (2, 3, 8, 4),
        lambda m, x: ref.adaptive_max_pool2d(x, (3, None)),
    ),
    "global average": (
        lambda rng: nn.AdaptiveAvgPool2d(1),
        (2, 3, 5, 4),
        lambda m, x: ref.adaptive_avg_pool2d(x, 1),
    ),
    "max pool 1d": (
        lambda rng: nn.MaxPool1d(3, 2, 1, dilation=2),
        (2, 3, 9),
        lambda m, x: ref.max_pool1d(x, 3, 2, 1, 2),
    ),
    "max pool 3d": (
        lambda rng: nn.MaxPool3d((1, 2, 3), 2),
        (2, 3, 4, 5, 7),
        lambda m, x: ref.max_pool3d(x, (1, 2, 3), 2),
    ),
    "avg pool 1d": (
        lambda rng: nn.AvgPool1d(3, 2, ceil_mode=True),
        (2, 3, 8),
        lambda m, x: ref.avg_pool1d(x, 3, 2, 0, True),
    ),
    "avg pool 3d": (
        lambda rng: nn.AvgPool3d(2, 1, 1, divisor_override=3),
        (2, 3, 2, 3, 4),
        lambda m, x: ref.avg_pool3d(x, 2, 1, 1, divisor_override=3),
    ),
    "adaptive max pool 1d": (
        lambda rng: nn.AdaptiveMaxPool1d(4),
        (2, 3, 9),
        lambda m, x: ref.adaptive_max_pool1d(x, 4),
    ),
    "adaptive max pool 3d": (
        lambda rng: nn.AdaptiveMaxPool3d((2, None, 3)),
        (2, 3, 3, 2, 4),
        lambda m, x: ref.adaptive_max_pool3d(x, (2, None, 3)),
    ),
    "adaptive avg pool 1d": (
        lambda rng: nn.AdaptiveAvgPool1d(4),
        (2, 3, 9),
        lambda m, x: ref.adaptive_avg_pool1d(x, 4),
    ),
    "adaptive avg pool 3d": (
        lambda rng: nn.AdaptiveAvgPool3d(2),
        (2, 3, 3, 4, 5),
        lambda m, x: ref.adaptive_avg_pool3d(x, 2),
    ),
    "batch norm 1d": (
        lambda rng: random_norm(nn.BatchNorm1d(3, dtype=F64), rng),
        (5, 3),
        lambda m, x: ref.batch_norm_train(x, m.weight.data, m.bias.data)[0],
    ),
    "batch norm 1d of sequences": (
        lambda rng: nn.BatchNorm1d(3, affine=False, dtype=F64),
        (2, 3, 4),
        lambda m, x: ref.batch_norm_train(x, None, None)[0],
    ),
    "batch norm 2d": (
        lambda rng: random_norm(nn.BatchNorm2d(3, eps=1e-3, dtype=F64), rng),
        (2, 3, 4, 5),
        lambda m, x: ref.batch_norm_train(x, m.weight.data, m.bias.data, eps=1e-3)[0],
    ),
    "batch norm 3d": (
        lambda rng: random_norm(nn.BatchNorm3d(3, dtype=F64), rng),
        (2, 3, 2, 3, 4),
        lambda m, x: ref.batch_norm_train(x, m.weight.data, m.bias.data)[0],
    ),
    "batch norm 2d, evaluated": (
        lambda rng: random_norm(nn.BatchNorm2d(3, dtype=F64), rng).eval(),
        (2, 3, 4, 5),
        lambda m, x: ref.batch_norm(
            x, m.running_mean, m.running_var, m.weight.data, m.bias.data
        ),
    ),
    "relu": (lambda rng: nn.ReLU(), (3, 4), lambda m, x: ref.relu(x)),
    "tanh": (lambda rng: nn.Tanh(), (3, 4), lambda m, x: ref.tanh(x)),
    "sigmoid": (lambda rng: nn.Sigmoid(), (3, 4), lambda m, x: ref.sigmoid(x)),
    "softmax": (lambda rng: nn.Softmax(1), (3, 4, 2), lambda m, x: ref.softmax(x, 1)),
    "log softmax": (lambda rng: nn.LogSoftmax(), (3, 4), lambda m, x: ref.log_softmax(x)),
    "flatten": (lambda rng: nn.Flatten(), (2, 3, 4, 5), lambda m, x: ref.flatten(x)),
    "dropout, evaluated": (lambda rng: nn.Dropout().eval(), (3, 4), lambda m, x: x),
    "network": (
        lambda rng: nn.Sequential(conv(2, 2, 3, 3), nn.Tanh(), nn.Sequential(conv(2, 3, 2, 2))),
        (2, 2, 5, 6),
        lambda m, x: ref.conv(
            ref.tanh(ref.conv(x, m[0].weight.data, m[0].bias.data)),
            m[2][0].weight.data,
            m[2][0].bias.data,
        ),
    ),
}  # fmt: skip


def slope(f, array, direction, step=1e-6):
    """The central difference of the scalar f() when `array` moves along `direction`."""
    start = array.copy()
    values = []
    for sign in (1, -1):
        array[...] = start + sign * step * direction
        values.append(f())
    array[...] = start
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, rng):
    make, shape, expected = LAYERS[name]
    layer, x = make(rng), rng.standard_normal(shape)
    y = layer(x)
    assert y.dtype == F64
    assert_allclose(y, expected(layer, x), rtol=1e-12, atol=1e-12)
    dy = rng.standard_normal(y.shape)
    dx = layer.backward(dy)
    assert dx.shape == x.shape
    moved = {"x": (x, dx), **{n: (p.data, p.grad) for n, p in layer.named_parameters()}}
    for array, gradient in moved.values():
        direction = rng.standard_normal(array.shape)
        difference = slope(lambda: float((layer(x) * dy).sum()), array, direction)
        assert_allclose((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_add_up_and_dx_can_be_left_out(name, rng):
    make, shape, _ = LAYERS[name]
    layer, x = make(rng), rng.standard_normal(shape)
    dy = rng.standard_normal(layer(x).shape)
    layer.backward(dy, needs_dx=False)
    once = {n: p.grad.copy() for n, p in layer.named_parameters()}
    layer(x)
    layer.backward(dy)
    for n, parameter in layer.named_parameters():
        assert_allclose(parameter.grad, 2 * once[n], rtol=1e-12)
    layer.zero_grad()
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_backward_needs_a_forward(name, rng):
    make, shape, _ = LAYERS[name]
    layer, x = make(rng), rng.standard_normal(shape)
    with pytest.raises(RuntimeError, match=r"backward: there is no forward call"):
        layer.backward(np.zeros(3))
    with nn.no_grad():
        y = layer(x)
    with pytest.raises(RuntimeError, match="no_grad"):
        layer.backward(np.ones_like(y))
    assert_array_equal(layer(x), y)
    layer.backward(np.ones_like(y))
    with pytest.raises(RuntimeError, match="once"):
        layer.backward(np.ones_like(y))


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_pickles_are_independent(name, rng):
    make, shape, _ = LAYERS[name]
    layer, x = make(rng).eval(), rng.standard_normal(shape)
    y = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_array_equal(twin(x), y)
        assert repr(twin) == repr(layer)
        for parameter in twin.parameters():
            parameter.data += 1
    assert_array_equal(layer(x), y)


# ------------------------------------------------------------------------------------ dropout


@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout2d])
def test_dropout(layer):
    x = np.ones((50, 40, 3, 2), np.float32)
    drop = layer(0.25, rng=3)
    y = drop(x)
    dx = drop.backward(x)
    assert_array_equal(y, dx)
    assert set(np.unique(y)) == {np.float32(0), np.float32(4 / 3)}
    assert 0.7 < (y != 0).mean() < 0.8
    assert_array_equal(layer(0.25, rng=3)(x), y)
    assert not np.array_equal(drop(x), y)
    if layer is nn.Dropout2d:
        assert_array_equal(y, np.broadcast_to(y[:, :, :1, :1], y.shape))
    with pytest.raises(ValueError, match=r"p: expected a number in \[0, 1\]"):
        layer(1.5)


# --------------------------------------------------------------------------------- batch norm


def test_running_statistics(rng):
    x = rng.standard_normal((4, 3, 5, 2))
    layer = nn.BatchNorm2d(3, momentum=0.3, dtype=F64)
    layer(x)
    assert_allclose(layer.running_mean, 0.3 * x.mean(axis=(0, 2, 3)))
    assert_allclose(layer.running_var, 0.7 + 0.3 * x.var(axis=(0, 2, 3), ddof=1))
    assert layer.num_batches_tracked == 1
    layer.eval()(x)
    assert layer.num_batches_tracked == 1


def test_momentum_none_averages_batches(rng):
    x = rng.standard_normal((3, 6, 2))
    layer = nn.BatchNorm1d(2, momentum=None, dtype=F64)
    for batch in x:
        layer(batch)
    assert_allclose(layer.running_mean, x.mean(axis=(0, 1)))


def test_batch_norm_without_running_statistics(rng):
    x = rng.standard_normal((6, 2))
    layer = nn.BatchNorm1d(2, track_running_stats=False, dtype=F64)
    assert_array_equal(layer(x), layer.eval()(x))
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_evaluation_does_not_see_later_statistics(rng):
    x = rng.standard_normal((4, 2))
    layer = nn.BatchNorm1d(2, dtype=F64).eval()
    layer(x)
    expected = layer.backward(x)
    layer(x)
    layer.running_mean += 1
    layer.running_var += 1
    assert_array_equal(layer.backward(x), expected)


@pytest.mark.parametrize(
    ("layer", "shape", "text"),
    [
        (nn.BatchNorm1d(3), (1, 3), "more than one value"),
        (nn.BatchNorm2d(3), (1, 3, 1, 1), "more than one value"),
        (nn.BatchNorm1d(3), (2, 3, 4, 5), r"takes \(N, C\) or \(N, C, L\)"),
        (nn.BatchNorm2d(3), (2, 3), r"takes \(N, C, H, W\), got shape \(2, 3\)"),
        (nn.BatchNorm2d(3), (2, 4, 2, 2), "expected shape"),
    ],
)
def test_batch_norm_errors(layer, shape, text):
    with pytest.raises(ValueError, match=text):
        layer(np.zeros(shape, np.float32))
    assert layer.num_batches_tracked == 0


# --------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "sum", "label_smoothing": 0.2},
        {"weight": np.array([1.0, 2.0, 0.5, 0.0]), "ignore_index": 1},
    ],
)
def test_cross_entropy(options, rng):
    logits, target = rng.standard_normal((6, 4)), np.array([0, 1, 2, 3, 1, 2])
    loss = nn.CrossEntropyLoss(**options)
    assert_allclose(loss(logits, target), ref.cross_entropy(logits, target, **options), rtol=1e-12)
    assert_allclose(
        loss.backward(), ref.cross_entropy_backward(logits, target, **options), atol=1e-14
    )
    with pytest.raises(RuntimeError, match="no forward call"):
        loss.backward()
    assert list(loss.state_dict()) == (["weight"] if "weight" in options else [])


def test_cross_entropy_of_each_sample(rng):
    logits, target = rng.standard_normal((3, 4)), np.array([0, 1, 2])
    loss, dloss = nn.CrossEntropyLoss(reduction="none"), np.array([1.0, 0.0, 2.0])
    assert loss(logits, target).shape == (3,)
    expected = ref.cross_entropy_backward(logits, target, reduction="none", dloss=dloss)
    assert_allclose(loss.backward(dloss), expected, atol=1e-14)


# -------------------------------------------------------------------------------------- state


def network(seed):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, rng=seed),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False, rng=seed)),
    )


def test_state_has_pytorchs_names_shapes_and_order():
    shapes = {name: array.shape for name, array in network(0).state_dict().items()}
    assert list(shapes.items()) == [
        ("0.weight", (4, 1, 3, 3)),
        ("0.bias", (4,)),
        ("1.weight", (4,)),
        ("1.bias", (4,)),
        ("1.running_mean", (4,)),
        ("1.running_var", (4,)),
        ("1.num_batches_tracked", ()),
        ("3.1.weight", (3, 16)),
    ]
    assert network(0).state_dict()["1.num_batches_tracked"].dtype == np.int64
    assert [name for name, _ in network(0).named_buffers()] == [*list(shapes)[4:7]]
    assert [name for name, _ in network(0).named_modules()] == ["", *"0123", "3.0", "3.1"]


def test_state_round_trip_through_a_file(rng):
    x = rng.standard_normal((5, 2, 4, 4)).astype(np.float32)
    one, two = network(0), network(1)
    one(x)
    file = io.BytesIO()
    np.savez(file, **one.state_dict())
    file.seek(0)
    with np.load(file) as state:
        assert two.load_state_dict(state) == ([], [])
    assert_array_equal(two.eval()(x), one.eval()(x))
    assert two[1].num_batches_tracked == 1


def test_state_is_a_copy():
    layer = nn.Linear(2, 2, rng=0)
    state = layer.state_dict()
    layer.weight.data += 1
    assert not np.array_equal(state["weight"], layer.weight.data)
    layer.load_state_dict(state)
    layer.weight.data += 1
    assert not np.array_equal(state["weight"], layer.weight.data)


def test_state_that_does_not_fit():
    model = network(0)
    before, state = model.state_dict(), network(1).state_dict()
    state["extra"] = state.pop("0.bias")
    assert model.load_state_dict(state, strict=False) == (["0.bias"], ["extra"])
    model.load_state_dict(before)
    with pytest.raises(ValueError, match=r"Sequential; missing: 0.bias; unexpected: extra"):
        model.load_state_dict(state)
    state["3.1.weight"] = np.zeros((3, 15))
    with pytest.raises(ValueError, match=r"3.1.weight: expected shape \(3, 16\), got \(3, 15\)"):
        model.load_state_dict(state, strict=False)
    with pytest.raises(ValueError, match=r"0\.weight: expected dtype float32, got complex64"):
        model.load_state_dict({**before, "0.weight": before["0.weight"] + 0j})
    for name, array in model.state_dict().items():
        assert_array_equal(array, before[name])


def test_shared_parameters_count_once():
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    two.weight = one.weight
    model = nn.Sequential(one, two)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    assert len(model.state_dict()) == 4


def test_own_modules_need_no_ceremony(rng):
    class Residual(nn.Module):
        def __init__(self):
            self.inner = nn.Linear(3, 3, dtype=F64, rng=0)

        def forward(self, x):
            return x + self.inner(x)

        def backward(self, dy, needs_dx=True):
            return dy + self.inner.backward(dy)

    model, x = Residual(), rng.standard_normal((2, 3))
    y = model(x)
    assert_allclose(y, x + x @ model.inner.weight.data.T + model.inner.bias.data)
    assert_allclose(model.backward(y), y + y @ model.inner.weight.data)
    assert list(model.state_dict()) == ["inner.weight", "inner.bias"]
    assert not model.eval().inner.training
    with pytest.raises(NotImplementedError):
        nn.Module()(x)
    with pytest.raises(NotImplementedError):
        nn.Module().backward(x)


def test_sequential():
    layers = [nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers)
    assert len(model) == 3
    assert list(model) == layers
    assert model[-1] is layers[2]
    assert list(model[:2]) == layers[:2]
    named = nn.Sequential({"a": layers[0], "b": layers[1]})
    assert named.a is named[0] is layers[0]
    assert list(named[1:].named_children()) == [("b", layers[1])]
    x = np.ones((1, 2), np.float32)
    assert nn.Sequential()(x) is x
    with pytest.raises(TypeError, match="expected modules"):
        nn.Sequential(np.tanh)
    with pytest.raises(ValueError, match="two places"):
        nn.Sequential(layers[1], layers[1])
    with pytest.raises(ValueError, match="'forward' cannot be the name"):
        nn.Sequential({"forward": layers[0]})


def test_sequential_stops_at_the_first_layer_that_learns(rng):
    class Refusing(nn.Flatten):
        def backward(self, dy, needs_dx=True):
            raise AssertionError("not needed")

    model = nn.Sequential(Refusing(), nn.Linear(4, 2, rng=0), nn.Tanh())
    y = model(rng.standard_normal((3, 2, 2)))
    assert model.backward(y, needs_dx=False) is None
    assert model[1].weight.grad is not None


def test_repr_is_pytorchs():
    assert repr(network(0)) == (
        "Sequential(\n"
        "  (0): Conv2d(2, 4, kernel_size=(3, 3), stride=(1, 1), groups=2)\n"
        "  (1): BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)\n"
        "  (2): ReLU()\n"
        "  (3): Sequential(\n"
        "    (0): Flatten(start_dim=1, end_dim=-1)\n"
        "    (1): Linear(in_features=16, out_features=3, bias=False)\n"
        "  )\n"
        ")"
    )
    assert repr(nn.Parameter(np.zeros(2))) == "Parameter(shape=(2,), dtype=float64)"


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "groups: 3 channels"),
        (lambda: nn.Conv2d(0, 4, 3), ValueError, "in_channels"),
        (lambda: nn.Conv2d(3, 4, 2.5), TypeError, "kernel_size"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), ValueError, "kernel_size"),
        (lambda: nn.Conv2d(3, 4, 3, padding_mode="mirror"), ValueError, "padding_mode"),
        (lambda: nn.Conv2d(3, 4, 3, dtype=np.int32), TypeError, "dtype: expected float"),
        (lambda: nn.Linear(3, -1), ValueError, "out_features"),
        (lambda: nn.Parameter([1, 2]), TypeError, "floats"),
        (lambda: nn.Conv2d(3, 4, 3)(np.zeros((1, 2, 5, 5))), ValueError, "expected 3 channels"),
    ],
)
def test_errors(make, error, text):
    with pytest.raises(error, match=text):
        make()


CONV = {"in_channels": 4, "out_channels": 6, "kernel_size": 3}
POOL = {"kernel_size": 3}
LINEAR = {"in_features": 4, "out_features": 6}
WINDOWS = {"kernel_size": (0, "3", (3, 3, 3), None), "stride": (0, 1.5, "1")}


@pytest.mark.parametrize(
    ("layer", "good", "bad"),
    [
        (
            nn.Conv2d,
            CONV,
            WINDOWS
            | {"in_channels": (0, 1.5), "out_channels": (0, "6"), "dilation": (0, None)}
            | {"padding": (-1, "some", ((1, 2),), ((1, -1), (0, 0)), None)}
            | {"groups": (0, 3), "bias": ("no", None, 2), "padding_mode": ("mirror", None)}
            | {"precision": ("low", 3), "algo": ("fft", None), "rng": ("seed", -1)}
            | {"dtype": ("f2", "nonsense", np.int32, None)},
        ),
        (
            nn.MaxPool2d,
            POOL,
            WINDOWS
            | {"padding": (-1, 2, "same", ((1, 0), (1, 0)), None), "dilation": (0,)}
            | {"ceil_mode": ("no", None, 3)},
        ),
        (
            nn.AvgPool2d,
            POOL,
            WINDOWS
            | {"padding": (-1, 2, "same", ((1, 0), (1, 0)), None), "ceil_mode": ("no", 3)}
            | {"count_include_pad": ("no", None, 3), "divisor_override": (0, 1.5, "2")},
        ),
        (nn.AdaptiveAvgPool2d, {}, {"output_size": (0, -1, "1", (1, 2, 3), (1.5, 1))}),
        (nn.AdaptiveMaxPool2d, {}, {"output_size": (0, -1, "1", (1, 2, 3), (1.5, 1))}),
        *(
            (
                norm,
                {"num_features": 3},
                {"num_features": (0, 2.5), "eps": (-1, "1", np.nan, np.inf, None)}
                | {"momentum": ("0.1", np.nan, np.inf), "affine": ("no", None)}
                | {"track_running_stats": ("no", 3), "dtype": ("i4", "f2", None)},
            )
            for norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        ),
        *(
            (drop, {}, {"p": (-0.1, 1.5, "0.5", np.nan, None), "rng": ("seed", -1)})
            for drop in (nn.Dropout, nn.Dropout2d)
        ),
        (
            nn.Linear,
            LINEAR,
            {"in_features": (0, 1.5), "out_features": (0, "6"), "bias": ("no", None)}
            | {"precision": ("low", 3), "dtype": ("i4", None), "rng": ("seed",)},
        ),
        (
            nn.CrossEntropyLoss,
            {},
            {"weight": ("heavy", [1j]), "ignore_index": (1.5, None), "reduction": ("all", None)}
            | {"label_smoothing": (-0.1, 2, "0")},
        ),
        (nn.Flatten, {}, {"start_dim": (1.5, None), "end_dim": ("2",)}),
        (nn.Softmax, {}, {"dim": (1.5, None)}),
    ],
)
def test_layers_check_their_arguments_when_made(layer, good, bad):
    for name, values in bad.items():
        for value in values:
            with pytest.raises((TypeError, ValueError), match=rf"^{name}: "):
                layer(**{**good, name: value})


@pytest.mark.parametrize("kind", ["MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool"])
def test_a_pooling_takes_as_many_sizes_as_it_has_axes(kind):
    for rank in (1, 2, 3):
        layer = getattr(nn, f"{kind}{rank}d")
        assert layer((2,) * rank)(np.ones((1, 1, *(4,) * rank))).shape == (1, 1, *(2,) * rank)
        assert f"tuple of {rank}" in layer.__doc__
        with pytest.raises(ValueError, match=r"^(kernel|output)_size: "):
            layer((2,) * (rank + 1))


def test_max_pooling_takes_no_fifth_argument_by_place():
    with pytest.raises(TypeError, match="positional"):  # PyTorch's is return_indices
        nn.MaxPool2d(2, 2, 0, 1, True)  # type: ignore[misc]


def test_layers_take_every_padding_that_conv2d_takes(rng):
    x = rng.standard_normal((1, 2, 6, 6))
    for padding in (1, (1, 2), ((1, 2), (0, 1)), ((1, 1), (2, 2)), "same", "valid", np.array([1])):
        layer = nn.Conv2d(2, 3, 3, padding=padding, dtype=F64, rng=1)
        wanted = F.conv2d(x, layer.weight.data, layer.bias.data, padding=padding)
        assert_array_equal(layer(x), wanted)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda m: m.train("yes"), "mode"),
        (lambda m: m.load_state_dict(3), "state"),
        (lambda m: m.load_state_dict({}, strict="no"), "strict"),
        (lambda m: m.load_state_dict({"weight": np.ma.ones((2, 3))}, strict=False), "state"),
        (lambda m: nn.Parameter(np.ma.ones(3)), "data"),
        (lambda m: optim.SGD(3), "params"),
        (lambda m: optim.SGD(m.parameters()).load_state_dict(3), "state_dict"),
        (lambda m: optim.SGD(m.parameters()).load_state_dict({}), "state_dict"),
        (lambda m: nn.Linear(2**40, 2**40), "weight"),
        (lambda m: nn.BatchNorm1d(2**60), "num_features"),
        (lambda m: LeNet5(classes=0), "classes"),
        (lambda m: optim.SGD(m.parameters(), nesterov="no"), "nesterov"),
        (lambda m: optim.Adam(m.parameters(), betas=3), "betas"),
    ],
)
def test_the_other_errors_name_the_argument(call, name):
    with pytest.raises((TypeError, ValueError), match=f"^{name}"):
        call(nn.Linear(3, 2))


# ----------------------------------------------------------------------------- initial weights


def test_initial_weights():
    layer = nn.Conv2d(16, 32, 3, groups=2, rng=0)
    bound = 1 / np.sqrt(8 * 9)
    for parameter in layer.parameters():
        assert parameter.dtype == np.float32
        assert 0.9 * bound < np.abs(parameter.data).max() <= bound
    assert_array_equal(nn.Conv2d(16, 32, 3, groups=2, rng=0).weight.data, layer.weight.data)
    assert nn.init.fans((32, 8, 3, 3)) == (72, 288)
    assert np.abs(nn.init.xavier_uniform((50, 70), rng=0)).max() <= np.sqrt(6 / 120)
    assert np.abs(nn.init.kaiming_uniform((50, 70), rng=0)).max() <= np.sqrt(6 / 70)


def test_lenet_learns(rng):
    x = rng.standard_normal((8, 1, 32, 32)).astype(np.float32)
    target = np.arange(8)
    model, loss = LeNet5(rng=0), nn.CrossEntropyLoss()
    optimiser = optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        losses.append(loss(model(x), target))
        model.backward(loss.backward(), needs_dx=False)
        optimiser.step()
    assert model(x).shape == (8, 10)
    assert losses[-1] < 0.2 * losses[0]

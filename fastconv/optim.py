# SPDX-License-Identifier: BSD-3-Clause
"""Optimisers: ``zero_grad()``, forward, backward, ``step()``. The update formulas are PyTorch's."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastconv.nn.module import Parameter
from fastconv.problem import flag, is_sequence, number

Array = npt.NDArray[Any]
State = dict[str, Any]


def _setting(name: str, value: Any, below: float = np.inf) -> float:
    """`value` as a float in [0, below)."""
    return number(name, value, 0.0, math.nextafter(below, 0.0))


class Optimizer:
    """What optimisers share: the parameters, one state for each, and the loop over them.

    A subclass names its settings (attributes that may be changed between steps, such as `lr`) and
    writes ``_update``.
    """

    settings: ClassVar[tuple[str, ...]] = ()
    lr: float

    def __init__(self, params: Iterable[Parameter]) -> None:
        try:
            self.params = list(params)
        except TypeError:
            raise TypeError(f"params: expected Parameters, got {params!r}") from None
        if not self.params:
            raise ValueError("params: expected at least one parameter, got none")
        for parameter in self.params:
            if not isinstance(parameter, Parameter):
                raise TypeError(f"params: expected Parameters, got {type(parameter).__name__}")
        self.state: list[State] = [{} for _ in self.params]

    def zero_grad(self) -> None:
        """Forget the gradients: every ``.grad`` becomes None."""
        for parameter in self.params:
            parameter.zero_grad()

    def step(self) -> None:
        """Update, in place, every parameter that has a gradient."""
        for parameter, state in zip(self.params, self.state, strict=True):
            if parameter.grad is not None:
                self._update(parameter.data, parameter.grad, state)

    def _update(self, data: Array, gradient: Array, state: State) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Copies of the settings, and of the state of each parameter in their order."""
        return {
            "settings": {name: getattr(self, name) for name in self.settings},
            "state": copy.deepcopy(self.state),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` of an optimiser of the same kind gave.

        Raises
        ------
        ValueError
            When the settings, the number of parameters or the shapes differ.
        """
        if not isinstance(state_dict, Mapping) or not {"settings", "state"} <= set(state_dict):
            raise TypeError(f"state_dict: expected what state_dict() gave, got {state_dict!r}")
        settings, state = dict(state_dict["settings"]), list(state_dict["state"])
        if set(settings) != set(self.settings):
            raise ValueError(
                f"state_dict: expected the settings {sorted(self.settings)}, got {sorted(settings)}"
            )
        if len(state) != len(self.params):
            raise ValueError(
                f"state_dict: expected {len(self.params)} parameters, got {len(state)}"
            )
        for i, (parameter, entries) in enumerate(zip(self.params, state, strict=True)):
            for name, value in entries.items():
                if isinstance(value, np.ndarray) and value.shape != parameter.shape:
                    raise ValueError(
                        f"state_dict: {name} of parameter {i}: expected shape {parameter.shape}, "
                        f"got {value.shape}"
                    )
        vars(self).update(settings)
        self.state = copy.deepcopy(state)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={getattr(self, name)}" for name in self.settings)
        return f"{type(self).__name__}({settings})"


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and weight decay.

    | ``g = grad + weight_decay * p``
    | ``v = g`` at the first step, then ``v = momentum * v + (1 - dampening) * g``
    | ``p = p - lr * v``, with Nesterov ``p = p - lr * (g + momentum * v)``

    Raises
    ------
    ValueError
        For numbers out of range, and for `nesterov` without momentum or with dampening.
    """

    settings = ("lr", "momentum", "dampening", "weight_decay", "nesterov")

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params)
        self.lr = _setting("lr", lr)
        self.momentum = _setting("momentum", momentum)
        self.dampening = _setting("dampening", dampening)
        self.weight_decay = _setting("weight_decay", weight_decay)
        self.nesterov = flag("nesterov", nesterov)
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov: expected a momentum > 0 and dampening = 0")

    def _update(self, data: Array, gradient: Array, state: State) -> None:
        if self.weight_decay:
            gradient = gradient + self.weight_decay * data
        data -= self.lr * (self._with_momentum(gradient, state) if self.momentum else gradient)

    def _with_momentum(self, gradient: Array, state: State) -> Array:
        velocity = state.get("momentum_buffer")
        if velocity is None:
            velocity = state["momentum_buffer"] = gradient.copy()
        else:
            velocity *= self.momentum
            velocity += (1 - self.dampening) * gradient
        return gradient + self.momentum * velocity if self.nesterov else velocity


class Adam(Optimizer):
    """Adam (Kingma & Ba, 2015).

    | ``g = grad + weight_decay * p``
    | ``m = beta1 * m + (1 - beta1) * g``, ``v = beta2 * v + (1 - beta2) * g^2``
    | ``p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)``

    with t the number of the step, from 1.

    Raises
    ------
    ValueError
        For numbers out of range.
    """

    settings = ("lr", "betas", "eps", "weight_decay")

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params)
        if not is_sequence(betas) or len(betas) != 2:
            raise ValueError(f"betas: expected two numbers, got {betas!r}")
        self.lr = _setting("lr", lr)
        self.betas = (_setting("betas", betas[0], 1.0), _setting("betas", betas[1], 1.0))
        self.eps = _setting("eps", eps)
        self.weight_decay = _setting("weight_decay", weight_decay)

    def _update(self, data: Array, gradient: Array, state: State) -> None:
        if not state:
            state.update(step=0, exp_avg=np.zeros_like(data), exp_avg_sq=np.zeros_like(data))
        if self.weight_decay:
            gradient = gradient + self.weight_decay * data
        state["step"] += 1
        beta1, beta2 = self.betas
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean += (1 - beta1) * (gradient - mean)
        square *= beta2
        square += (1 - beta2) * gradient * gradient
        unbias1, unbias2 = (1 - beta ** state["step"] for beta in self.betas)
        data -= self.lr / unbias1 * mean / (np.sqrt(square) / unbias2**0.5 + self.eps)

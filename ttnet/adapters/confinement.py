"""What `train_only` does: while one place of a run-time axis is trained, nothing else moves by a bit.

Gradients of the other slices are zeroed where they arise. That is not enough: weight decay and moments from
earlier steps move entries whose gradient is zero. So around every step of an optimizer the other slices, and
what it keeps of them in tensors of the core's shape, are put aside and put back.
"""

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class Confinement:
    """Cores of which some slices alone are trained.

    Args:
        trained: For each parameter, of shape (r, n, s) or (r, n), the slices of its mode that are trained.
    """

    def __init__(self, trained: Mapping[nn.Parameter, Tensor]) -> None:
        self._others = {
            parameter: (~torch.isin(torch.arange(parameter.shape[1]), own.cpu()))
            .nonzero()[:, 0]
            .to(parameter.device)
            for parameter, own in trained.items()
        }
        self._aside: dict[nn.Parameter, list[tuple[Tensor, Tensor]]] = {}
        self._handles = [
            parameter.register_hook(
                lambda gradient, others=others: gradient.index_fill(1, others.to(gradient.device), 0.0)
            )
            for parameter, others in self._others.items()
        ]
        for parameter, others in self._others.items():
            if parameter.grad is not None:
                parameter.grad.index_fill_(1, others, 0.0)
        _active.add(self)

    def end(self) -> None:
        """Train all slices again."""
        for handle in self._handles:
            handle.remove()
        _active.discard(self)

    def put_aside(self, optimizer: Optimizer) -> None:
        """Keep what an optimizer that is about to step could move."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for parameter, others in self._others.items():
            if id(parameter) in held:
                tensors = [parameter, *_like(optimizer.state.get(parameter, {}), parameter)]
                self._aside[parameter] = [
                    (t, t.detach().index_select(1, others.to(t.device))) for t in tensors
                ]

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore it after the step."""
        for parameter, kept in self._aside.items():
            for tensor, value in kept:
                tensor.index_copy_(1, self._others[parameter].to(tensor.device), value)
        self._aside.clear()


def _like(state: Mapping[str, Any], parameter: nn.Parameter) -> list[Tensor]:
    return [v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape]


_active: WeakSet[Confinement] = WeakSet()


def _before(optimizer: Optimizer, *_: object) -> None:
    for confinement in _active:
        confinement.put_aside(optimizer)


def _after(*_: object) -> None:
    for confinement in _active:
        confinement.put_back()


register_optimizer_step_pre_hook(_before)
register_optimizer_step_post_hook(_after)

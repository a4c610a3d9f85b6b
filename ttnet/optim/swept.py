"""One train under a `DMRGScheduler`: its ranks in use, whether it is ready, and how it takes new cores."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ttnet._typing import Cores, CoresLike
from ttnet.errors import ConfigError, NonFiniteError, RankError, StateError
from ttnet.gauge import GaugeMaps
from ttnet.optim.distributed import broadcast
from ttnet.optim.ranks import AdaptiveRanks, RankSchedule
from ttnet.optim.transport import StateRule, carry_state, state_tensors, unwrap
from ttnet.parameter import TTParameter

_DRIFT = 1e-3


class SweptTrain:
    """A train, the rule for its ranks, and what the optimizer has done with its gradients.

    Args:
        name: What messages call it.
        parameter: The train.
        ranks: Its rule, perhaps that of other trains as well.
        optimizer: The optimizer that trains it.
        keep_shapes: Whether removed directions stay as zeros.

    Raises:
        ConfigError: The cores are sharded.
    """

    def __init__(
        self,
        name: str,
        parameter: TTParameter,
        ranks: RankSchedule | AdaptiveRanks,
        optimizer: Optimizer,
        *,
        keep_shapes: bool,
    ) -> None:
        if any(hasattr(core, "full_tensor") for core in parameter.core_parameters()):
            raise ConfigError(
                "parameter: expected whole cores, got sharded ones (DTensor), whose ranks cannot change; "
                "leave them out by fully_shard(..., ignored_params=set(parameter.parameters()))"
            )
        self.name = name
        self.parameter = parameter
        self.ranks = ranks
        self.keep_shapes = keep_shapes
        self.last_cut: int | None = None
        self._optimizer = optimizer
        self._active = parameter.ranks[1:-1]
        self._used_gradients: dict[int, tuple[Tensor, int]] = {}
        # A gradient that the optimizer has already stepped on may stay until the next zero_grad.
        unwrap(optimizer).register_step_post_hook(self._note_used_gradients)

    @property
    def active_ranks(self) -> tuple[int, ...]:
        """Ranks in use: those of the cores, or less where shapes are kept."""
        return self._active if self.keep_shapes else self.parameter.ranks[1:-1]

    @property
    def capacity(self) -> tuple[int, ...] | None:
        """Largest possible ranks where shapes are kept."""
        return self.parameter.ranks[1:-1] if self.keep_shapes else None

    def cores(self) -> Cores:
        """A copy of the cores at the ranks in use."""
        active = _slice(self.parameter.core_parameters(), self.active_ranks)
        return tuple(core.detach().clone() for core in active)

    def assign(self, cores: Cores, maps: GaugeMaps, rule: StateRule) -> None:
        """Take new cores, and let the optimizer's state follow.

        Args:
            cores: At the new ranks.
            maps: How its interfaces changed.
            rule: What becomes of the optimizer's state.
        """
        capacity = self.capacity
        self.parameter.assign(cores if capacity is None else _pad_cores(cores, capacity))
        self._active = tuple(core.shape[2] for core in cores[:-1])
        carry_state(self._optimizer, self.parameter, maps, rule)
        broadcast(self.parameter.core_parameters())
        broadcast(state_tensors(self._optimizer, self.parameter))
        self._used_gradients.clear()

    def compact(self) -> None:
        """Drop the directions that `keep_shapes` emptied; the optimizer forgets the cores."""
        self.parameter.assign(self.cores())
        for core in self.parameter.core_parameters():
            unwrap(self._optimizer).state.pop(core, None)

    def shapes(self, *, state: bool = False) -> list[tuple[int, ...]]:
        """Shapes of the cores, and of what the optimizer keeps of them: the same in all processes."""
        tensors = [*self.parameter.core_parameters()]
        tensors += [*state_tensors(self._optimizer, self.parameter)] if state else []
        return [tuple(tensor.shape) for tensor in tensors]

    def is_apart(self) -> bool:
        """Whether the cores differ from those of process 0 by more than different hardware explains."""
        own = [core.detach() for core in self.parameter.core_parameters()]
        first = [core.clone() for core in own]
        broadcast(first)
        size = torch.linalg.vector_norm
        return any(bool(size(a - b) > _DRIFT * size(b)) for a, b in zip(own, first, strict=True))

    def check_capacity(self, targets: tuple[int, ...]) -> None:
        """Refuse ranks that shapes which are kept have no room for.

        Raises:
            RankError: A target is above the rank at construction.
        """
        capacity = self.capacity
        if capacity is not None and any(a > b for a, b in zip(targets, capacity, strict=True)):
            raise RankError(
                f"ranks: expected at most {capacity}, the ranks at construction, since shapes are kept "
                f"(keep_shapes=True, as in a distributed job), got {targets}; construct larger ranks"
            )

    def check_ready(self) -> None:
        """Refuse a sweep that would drop a gradient, or of cores that are not finite.

        Raises:
            NonFiniteError: A core holds a NaN or an infinity.
            StateError: A core holds a gradient that the optimizer has not used, or the train refuses sweeps.
        """
        self.parameter.check_sweep("scheduler.step")
        for k, core in enumerate(self.parameter.core_parameters()):
            if not bool(torch.isfinite(core.detach()).all()):
                raise NonFiniteError(
                    f"parameter: core {k} holds NaN or infinity, nothing was swept; go back to the last "
                    f"checkpoint and lower the learning rate"
                )
            if self._is_pending(k, core.grad) and not self._has_overflowed():
                raise StateError(
                    f"scheduler.step: core {k} holds a gradient that the optimizer has not used, and a "
                    f"change of rank would drop it; call optimizer.step() or optimizer.zero_grad() first"
                )

    def _is_pending(self, k: int, gradient: Tensor | None) -> bool:
        if gradient is None or not bool(gradient.any()):
            return False
        used, version = self._used_gradients.get(k, (None, 0))
        return gradient is not used or gradient._version != version

    def _has_overflowed(self) -> bool:
        """Whether GradScaler skips a step with these gradients: then they wait for nothing."""
        gradients = (p.grad for group in self._optimizer.param_groups for p in group["params"])
        return any(not bool(torch.isfinite(g).all()) for g in gradients if g is not None)

    def _note_used_gradients(self, *_: object) -> None:
        # The gradients themselves, not their ids: an id is given again once its tensor is freed.
        cores = self.parameter.core_parameters()
        self._used_gradients = {
            k: (c.grad, c.grad._version) for k, c in enumerate(cores) if c.grad is not None
        }

    def state_dict(self) -> dict[str, Any]:
        """The last sweep and the ranks in use."""
        return {"last_cut": self.last_cut, "active_ranks": list(self.active_ranks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.last_cut = state["last_cut"]
        self._active = tuple(state["active_ranks"])


def _slice(cores: CoresLike, ranks: tuple[int, ...]) -> Cores:
    bounds = (1, *ranks, 1)
    return tuple(core[: bounds[k], :, : bounds[k + 1]] for k, core in enumerate(cores))


def _pad_cores(cores: CoresLike, ranks: tuple[int, ...]) -> Cores:
    bounds = (1, *ranks, 1)
    padded = [core.new_zeros(bounds[k], core.shape[1], bounds[k + 1]) for k, core in enumerate(cores)]
    for whole, core in zip(padded, cores, strict=True):
        whole[: core.shape[0], :, : core.shape[2]] = core
    return tuple(padded)

"""What lives during one forward pass: the factors of all matrices, and the product x A of the last x seen.

Under grad the factors are built at every forward pass of the model, since their graph can be back-propagated
once; otherwise they are kept until a core changes.
"""

import warnings
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ttnet.adapters.factors import Factors, Mixture, Pair, build_factors, module_factors, site_mixture
from ttnet.adapters.selection import Selection, select
from ttnet.adapters.structure import Layout
from ttnet.errors import DeviceError, StateError
from ttnet.parameter import TTParameter

_top_hooks = getattr(
    getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None
)  # torch >= 2.8


_functorch_level = getattr(getattr(torch._C, "_functorch", None), "maybe_current_level", lambda: None)


def is_traced() -> bool:
    """Whether torch.compile or a transform of torch.func looks on: then nothing is kept between layers."""
    return torch.compiler.is_compiling() or _functorch_level() is not None


def _warn_of_uncalled(modules: Sequence[str], called: Collection[int]) -> None:
    """Warn of an adapted module that is passed over while others of the same parent are called."""
    parents = {modules[k].rpartition(".")[0] for k in called}
    missed = []
    for k, name in enumerate(modules):
        parent, _, own = name.rpartition(".")
        if k not in called and parent in parents and not own.isdigit():  # of a list, a batch may skip items
            missed.append(name)
    if missed:
        warnings.warn(
            f"model: {missed[0]!r} is adapted, but the model does not call it; it reads the weight past the "
            "adapter, which has no effect there. Leave it out with "
            f"exclude_modules={sorted({name.rpartition('.')[2] for name in missed})}",
            stacklevel=2,
        )


class Workspace:
    """The transient state of one adapter.

    Args:
        parameter: The cores.
        layout: What each matrix reads of them.
        scale: The factor of dW.
    """

    def __init__(self, parameter: TTParameter, layout: Layout, scale: float) -> None:
        self.parameter = parameter
        self.layout = layout
        layout.prepare()
        self.scale = scale
        self.chosen: dict[str, Any] = {}  # places on run-time axes, as the user gave them
        self._selection: Selection | None = None
        self.choose({})  # now: a trace inside a checkpoint may not set what it finds unset
        self._forget()

    def choose(self, chosen: Mapping[str, Any]) -> None:
        """Select places on the run-time axes, see `selection.select`; None takes a choice back."""
        merged = {name: value for name, value in {**self.chosen, **chosen}.items() if value is not None}
        partial = {axis.name: 0 for axis in self.layout.runtime if axis.name not in merged}
        firsts = {name: torch.tensor(place) for name, place in partial.items()}
        select(self.layout, {**merged, **firsts})  # checks what was chosen, also where other axes wait
        self.chosen = merged
        self._selection = None if partial else select(self.layout, merged)

    @property
    def selection(self) -> Selection:
        """What is selected on the run-time axes.

        Raises:
            StateError: Nothing, on one of them.
        """
        if self._selection is None:
            self._selection = select(self.layout, self.chosen)
        return self._selection

    def adopt(self, layout: Layout) -> None:
        """Go on with a layout whose run-time axes have more places."""
        self.layout = layout
        layout.prepare()
        self.choose({})
        self._forget()

    def _forget(self) -> None:
        self.inside = False  # whether the model's own forward pass is going on
        self.tracked = False  # whether it differentiates into the cores
        self._current: _Cast | None = None  # its factors
        self._replayed: _Cast | None = None  # the same, kept for checkpoints that recompute during backward
        self._checkpointed = False
        self._cached: tuple[Hashable, _Cast] | None = None
        self._held: tuple[Tensor, int, Tensor, object, tuple[bool, float], Tensor, Tensor] | None = None
        self._draining = -1
        self._called: set[int] | None = set()  # the modules seen in the first forward pass with grad

    def __getstate__(self) -> dict[str, object]:
        # A copy of the model shares neither graphs nor activations with it.
        kept = ("parameter", "layout", "scale", "chosen", "_selection")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def begin(self) -> None:
        """A forward pass of the model begins."""
        self._held = None
        self.tracked = torch.is_grad_enabled() and self._requires_grad()
        if self.tracked:
            self._checkpointed = False
            self._current = self._replayed = self._build()
        else:
            self._current = self._cache()
        self.inside = True

    def end(self, *, completed: bool = True) -> None:
        """It has ended, well or badly.

        Args:
            completed: Whether well.
        """
        self.inside = False
        if self.tracked and completed and self._called:
            _warn_of_uncalled(list(self.layout.modules), self._called)
            self._called = None
        self._held = self._current = None
        if not self._checkpointed:
            self._replayed = None

    def pair(self, module: int, dtype: torch.dtype) -> Pair:
        """The factors of one module in the dtype it computes in.

        Raises:
            StateError: The matrix runs without grad inside a forward pass that has it.
        """
        grad = torch.is_grad_enabled()
        if self._called is not None:
            self._called.add(module)
        if self.inside and self._current is not None:
            if self.tracked and not grad:
                raise StateError(
                    "an adapted layer runs without grad inside a forward pass with grad: reentrant gradient "
                    "checkpointing gives wrong gradients for shared cores; use "
                    "gradient_checkpointing_kwargs={'use_reentrant': False}, or no_grad for the whole model"
                )
            if self.tracked or not grad or not self._requires_grad():
                return self._current.pairs(dtype)[module]
        elif grad and self._replayed is not None and torch._C._current_graph_task_id() != -1:
            return self._replayed.pairs(dtype)[module]
        if grad and self._requires_grad():
            if not self.inside:
                self._replayed = (
                    None  # a later recomputation must do what this call does: build the pair itself
                )
            with torch.autocast(self.parameter.cores[0].device.type, enabled=False):
                left, right = self.live_pair(self._members[module], self.selection)
            return left.to(dtype), right.to(dtype)
        return self._cache().pairs(dtype)[module]

    def live_module(self, module: int) -> Pair:
        """The factors of one module for a trace, computed from the live cores; its selection is data."""
        selection = self.selection
        if selection.places is not None:
            selection = Selection(self.layout.combos, (), selection.places)
        return self.live_pair(self._members[module], selection)

    def live_pair(self, members: Sequence[int], selection: Selection) -> Pair:
        """The factors of the sites that make one module, computed from the live cores now.

        Args:
            members: Indices of the sites.
            selection: Places on the run-time axes.
        """
        cores, layout = self.parameter.cores, self.layout
        groups = layout.sites[members[0]].groups
        if selection.rows is None:
            return module_factors(cores, layout, self.scale, members, selection.combos[0])
        parts = tuple(site_mixture(cores, layout, self.scale, k, selection.combos) for k in members)
        left, _ = module_factors(cores, layout, self.scale, members, selection.combos[0])
        rows = selection.places if not selection.rows else torch.tensor(selection.rows)
        return left, Mixture(parts, groups, rows.to(cores[0].device))  # pyright: ignore[reportOptionalMemberAccess]

    def project(self, x: Tensor, left: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Flatten x to a matrix and multiply it by A, once for all matrices that read the same x.

        Args:
            x: Shape (..., in).
            left: A, shape (in, r).
            dropout: Probability with which an entry of x is left out of x A.

        Returns:
            x as a matrix (n, in) in the dtype of A, and x A, shape (n, r).

        Raises:
            DeviceError: The cores live on another device than `x`.
        """
        grad = torch.is_grad_enabled()
        hooks = _top_hooks(False) if _top_hooks is not None else None
        frame = hooks[0] if hooks is not None else None
        task = torch._C._current_graph_task_id()
        shared = (self.inside or task != -1) and not x.is_inference()
        held = self._held
        if (
            shared
            and held is not None
            and held[0] is x
            and held[1] == x._version
            and held[2] is left
            and held[3] == (frame, task)
            and held[4] == (grad, dropout)
        ):
            return held[5], held[6]
        if x.device != left.device:
            raise DeviceError(
                f"an adapted layer got an input on {x.device}, the adapter's cores are on {left.device}; "
                "move the whole model with model.to(...); for several devices use torchrun, not DataParallel"
            )
        flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        if flat.dtype != left.dtype:
            flat = flat.to(left.dtype)
        hidden = torch.mm(F.dropout(flat, dropout) if dropout else flat, left)
        if frame is not None and self.inside:
            self._checkpointed = True
        if shared:
            self._held = (x, x._version, left, (frame, task), (grad, dropout), flat, hidden)
            if task not in (-1, self._draining):
                self._draining = task
                torch.autograd.Variable._execution_engine.queue_callback(self._drain)  # pyright: ignore[reportAttributeAccessIssue]
        return flat, hidden

    def _drain(self) -> None:
        self._held = None
        self._draining = -1

    def _requires_grad(self) -> bool:
        return any(core.requires_grad for core in self.parameter.cores)

    @property
    def _members(self) -> tuple[tuple[int, ...], ...]:
        return tuple(self.layout.modules.values())

    def _build(self) -> "_Cast":
        cores, selection = self.parameter.cores, self.selection
        mixed = selection.rows is not None
        with torch.autocast(cores[0].device.type, enabled=False):
            factors = build_factors(cores, self.layout, self.scale, selection.combos, mixed=mixed)
        rows = torch.tensor(selection.rows, device=cores[0].device) if mixed else None
        return _Cast(factors, self.layout, rows)

    def _cache(self) -> "_Cast":
        signature = (self.parameter.signature(), self.selection.key)
        if self._cached is None or self._cached[0] != signature:
            with torch.inference_mode(False), torch.no_grad():
                self._cached = (signature, self._build())
        return self._cached[1]


class _Cast:
    """Factors, cast once to each dtype that is asked for."""

    def __init__(self, factors: Factors, layout: Layout, rows: Tensor | None) -> None:
        self.factors = factors
        self._layout = layout
        self._rows = rows
        self._pairs: dict[torch.dtype, list[Pair]] = {}

    def pairs(self, dtype: torch.dtype) -> list[Pair]:
        """The factors of each module."""
        if dtype not in self._pairs:
            if torch.is_inference_mode_enabled():  # what is kept must serve a backward pass too
                with torch.inference_mode(False), torch.no_grad():
                    return self.pairs(dtype)
            self._pairs[dtype] = self.factors.to(dtype).pairs(self._layout, self._rows)
        return self._pairs[dtype]

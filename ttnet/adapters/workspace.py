"""What lives during one forward pass: the factors of all matrices, and the product x A of the last x seen.

Under grad the factors are built at every forward pass of the model, since their graph can be back-propagated
once; otherwise they are kept until a core changes.
"""

import warnings
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from ttnet.adapters.factors import Factors, Mixture, Pair, build_factors, module_factors, site_mixture
from ttnet.adapters.selection import Selection, check_batch, is_routed, select
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


def _checkpoint() -> object | None:
    """The checkpoint of torch.utils that saves or recomputes at the moment: the same object in both.

    Torch tells the hooks that are on, and those of a checkpoint hold its frame.
    """
    hooks = _top_hooks(False) if _top_hooks is not None else None
    return None if hooks is None else next(_frames(hooks[0]), None)


def _frames(hook: object, depth: int = 2) -> Iterator[object]:
    while hasattr(hook, "__wrapped__"):
        hook = hook.__wrapped__  # pyright: ignore[reportAttributeAccessIssue]
    for cell in getattr(hook, "__closure__", None) or ():
        value = cell.cell_contents
        if isinstance(value, ReferenceType):
            value = value()
        if type(value).__name__ == "_CheckpointFrame":
            yield value
        elif isinstance(value, FunctionType) and depth:
            yield from _frames(value, depth - 1)


def _warn_of_uncalled(modules: Sequence[str], called: Collection[int]) -> None:
    """Warn of adapted modules that are passed over: all, or one while others of its parent are called."""
    if not called:
        warnings.warn(
            f"model: no adapted module was called, {modules[0]!r} and the others are read past the adapter "
            "or not at all; it has no effect so far. Name others in target_modules",
            stacklevel=2,
        )
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
        merged = {name: _own(v) for name, v in {**self.chosen, **chosen}.items() if v is not None}
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
        # What each checkpoint read: its selection, and the factors where they were built outside it.
        self._passes: WeakKeyDictionary[Any, tuple[Selection, _Cast | None]] = WeakKeyDictionary()
        self._outer: object | None = None  # the checkpoint around the model's forward pass
        self._ran: Selection | None = None  # what the last forward pass with grad read
        self._routed = {k for k, name in enumerate(self.layout.modules) if is_routed(name)}
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

    def refresh(self) -> None:
        """Forget the factors that are kept without grad, after cores were changed through `.data`."""
        self._cached = None

    def check_batch(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse a batch of the model that is not the one selected for, see `selection.check_batch`."""
        places = self._selection.places if self._selection is not None else None
        if places is not None:
            check_batch(len(places), args, kwargs)

    def begin(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        """A forward pass of the model begins.

        Args:
            args: What the model is called with.
            kwargs: The same, by name.

        Raises:
            StateError: Nothing is selected on a run-time axis, or a checkpoint around the model recomputes
                and it is not known for which selection.
            ShapeError: The batch is not the one that places were selected for.
        """
        self._held, self.inside = None, False
        replays = torch._C._current_graph_task_id() != -1
        selection = self._recomputed() if replays else self.selection
        if not replays:
            self.check_batch(args, kwargs or {})
        self.tracked = torch.is_grad_enabled() and self._requires_grad()
        if self.tracked:
            self._checkpointed = False
            self._cached = None  # an edit through `.data` between training steps leaves no trace
            self._outer, self._ran = _checkpoint(), selection
            self._current = self._replayed = self._build(selection)
        else:
            self._current = self._cache()
        self.inside = True

    def _recomputed(self) -> Selection:
        """The selection of the forward pass that a checkpoint around the whole model recomputes."""
        frame = _checkpoint()
        if frame is not None and frame in self._passes:
            return self._passes[frame][0]
        reentrant = frame is None and _top_hooks is not None
        if len(self.layout.combos) > 1 and (reentrant or self._is_doubtful(self.selection)):
            raise _unknown_pass()
        return self.selection

    def _is_doubtful(self, selection: Selection) -> bool:
        """Whether a recomputation may belong to a forward pass that read another selection."""
        known = [own for own, _ in self._passes.values()] + ([self._ran] if self._ran is not None else [])
        return any(own.key != selection.key for own in known)

    def end(self, *, completed: bool = True) -> None:
        """It has ended, well or badly.

        Args:
            completed: Whether well.
        """
        began, self.inside = self.inside, False
        if began and self.tracked and completed and self._called is not None:
            _warn_of_uncalled(list(self.layout.modules), self._called)
            self._called = None
        self._held = self._current = self._outer = None
        if not self._checkpointed and _top_hooks is not None:  # else nothing tells
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
                    f"{list(self.layout.modules)[module]!r} runs without grad inside a forward pass with "
                    "grad: reentrant gradient checkpointing gives wrong gradients for shared cores; use "
                    "gradient_checkpointing_kwargs={'use_reentrant': False}, or no_grad for the whole model; "
                    "where the model runs a part of itself without grad, leave that part out with "
                    "exclude_modules=..."
                )
            if self.tracked or not grad or not self._requires_grad():
                return self._current.pairs(dtype)[module]
        elif grad and torch._C._current_graph_task_id() != -1:
            return self._recomputed_pair(module, dtype)
        if grad and self._requires_grad():
            if not self.inside:
                self._replayed = (
                    None  # a later recomputation must do what this call does: build the pair itself
                )
            return self._live(module, dtype, self.selection)
        return self._cache().pairs(dtype)[module]

    def _recomputed_pair(self, module: int, dtype: torch.dtype) -> Pair:
        """The factors of one module as the forward pass that a checkpoint recomputes had them."""
        frame, cast = _checkpoint(), self._replayed
        selection = self.selection if cast is None else cast.selection
        if frame is not None and frame in self._passes:
            selection, cast = self._passes[frame]
        elif self._is_doubtful(selection):
            raise _unknown_pass()
        if cast is not None:
            return cast.pairs(dtype)[module]
        return self._live(module, dtype, selection)

    def _live(self, module: int, dtype: torch.dtype, selection: Selection) -> Pair:
        with torch.autocast(self.parameter.cores[0].device.type, enabled=False):
            left, right = self.live_pair(self._members[module], selection)
        return left.to(dtype), right.to(dtype)

    def is_in_order(self, module: int, rows: int, selected: int) -> bool:
        """Whether the rows of an x that is a matrix are all tokens of the batch, sample by sample.

        Args:
            module: Index of the module that reads x.
            rows: Number of rows.
            selected: Number of samples.
        """
        if module in self._routed:
            return False
        whole = self.inside or is_traced() or torch._C._current_graph_task_id() != -1
        return rows == selected or (whole and rows > 0 and rows % selected == 0)

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
        if frame is not None and task == -1:
            self._remember_checkpoint()
        if shared:
            self._held = (x, x._version, left, (frame, task), (grad, dropout), flat, hidden)
            if task not in (-1, self._draining):
                self._draining = task
                torch.autograd.Variable._execution_engine.queue_callback(self._drain)  # pyright: ignore[reportAttributeAccessIssue]
        return flat, hidden

    def _remember_checkpoint(self) -> None:
        """Note what the checkpoint that is going on reads: its recomputation must read the same."""
        if self.inside:
            self._checkpointed = True
        frame = _checkpoint()
        if frame is not None:
            cast = self._current if self.inside else None
            own = self.selection if cast is None else cast.selection
            self._passes[frame] = (own, None if frame is self._outer else cast)

    def _drain(self) -> None:
        self._held = None
        self._draining = -1

    def _requires_grad(self) -> bool:
        return any(core.requires_grad for core in self.parameter.cores)

    @property
    def _members(self) -> tuple[tuple[int, ...], ...]:
        return tuple(self.layout.modules.values())

    def _build(self, selection: Selection | None = None) -> "_Cast":
        cores, selection = self.parameter.cores, selection or self.selection
        mixed = selection.rows is not None
        with torch.autocast(cores[0].device.type, enabled=False):
            factors = build_factors(cores, self.layout, self.scale, selection.combos, mixed=mixed)
        rows = torch.tensor(selection.rows, device=cores[0].device) if mixed else None
        return _Cast(factors, self.layout, rows, selection)

    def _cache(self) -> "_Cast":
        signature = (self.parameter.signature(), self.selection.key)
        if self._cached is None or self._cached[0] != signature:
            with torch.inference_mode(False), torch.no_grad():
                self._cached = (signature, self._build())
        return self._cached[1]


def _own(value: Any) -> Any:
    """A copy that whoever made the value cannot change."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _unknown_pass() -> StateError:
    return StateError(
        "a checkpoint recomputes a forward pass, and it is not known for which selection it ran; call "
        "backward before the next select(), and use checkpoints with use_reentrant=False"
    )


class _Cast:
    """Factors, cast once to each dtype that is asked for."""

    def __init__(self, factors: Factors, layout: Layout, rows: Tensor | None, selection: Selection) -> None:
        self.factors = factors
        self.selection = selection
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

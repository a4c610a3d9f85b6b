"""What an adapter does with its run-time axes: select a place, add one, train one alone."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ttnet.adapters import tasks
from ttnet.adapters.axes import Label
from ttnet.adapters.config import TTAdapterConfig
from ttnet.adapters.confinement import Confinement
from ttnet.adapters.cores import AdapterCores
from ttnet.adapters.heads import PlaceHeads
from ttnet.adapters.linear import replace_modules
from ttnet.adapters.selection import check_axes
from ttnet.adapters.structure import Layout
from ttnet.adapters.workspace import Workspace
from ttnet.errors import ConfigError, StateError


class RunTimeAxes(nn.Module):
    """The part of `TTAdapter` that deals with places on run-time axes, and with what is trained."""

    cores: AdapterCores
    config: TTAdapterConfig
    layout: Layout
    workspace: Workspace
    trained_only: dict[str, Label] | None
    saved_modules: tuple[str, ...]
    _confinement: Confinement | None
    _aside: bool
    _weights: dict[str, Any]
    _tied: bool
    _selecting: int
    _merges_again: bool

    @property
    def merged(self) -> bool:
        """Whether dW is added to the model's weights."""
        return bool(self._weights)

    def select(self, **places: Any) -> None:
        """Say which place on each run-time axis the batches that follow read.

        Args:
            places: By name of the axis, such as `task="rte"`: a label for the whole batch; a sequence of
                labels or a tensor of indices (batch,) for each sample; None takes the choice back. Other axes
                keep their choice.

        Raises:
            ConfigError: An axis that is not selected at run time, or a label that it does not have.
            ShapeError: Another number of samples than on another axis.
            StateError: The adapter is merged.
        """
        check_axes(self.layout, places)
        if self.merged or self._merges_again:
            raise StateError("select: the adapter is merged for other places; call unmerge() first")
        self.workspace.choose(places)

    @contextmanager
    def selected(self, **places: Any) -> Iterator[None]:
        """`select` for as long as the context lasts."""
        before = dict(self.workspace.chosen)
        self.select(**places)
        self._selecting += 1
        try:
            yield
        finally:
            self._selecting -= 1
            self.workspace.choose({**dict.fromkeys(places), **before})

    def selected_places(self, axis: str) -> int | list[int]:
        """The index of the place selected on a run-time axis, or one for each sample.

        Raises:
            StateError: Nothing is selected.
        """
        k = [each.name for each in self.layout.runtime].index(axis)
        selection = self.workspace.selection
        if selection.rows is None:
            return selection.combos[0][k]
        return [selection.combos[row][k] for row in selection.rows]

    def add_task(
        self,
        name: Label,
        *,
        like: Label | None = None,
        axis: str | None = None,
        init: str | None = None,
        optimizer: Optimizer | None = None,
    ) -> None:
        """Add a place to a run-time axis; what the other places compute keeps every bit.

        Args:
            name: Its label.
            like: A place whose slice (and head) is copied.
            axis: The axis; None where there is one only.
            init: "zero", "identity" or "normal" for the new slice; None for what the core started as.
            optimizer: An optimizer that trains the cores already: its moments grow by zeros, and a new head
                joins the group of the others. Without it, make a new one.

        Raises:
            ConfigError: A label that exists, or an axis that is not selected at run time.
            StateError: The adapter is merged, or `train_only` is on.
        """
        found = tasks.run_time_axis(self.layout, axis)
        tasks.add_place(self, found, name, like, init, optimizer)
        if self.config.heads_by == found.name:
            model, originals = self.__dict__["model"], self.__dict__["_originals"]
            for module, heads in self._heads().items():
                if like is not None:
                    source = heads.places[(found.labels or ()).index(like)]
                else:
                    source = model.get_submodule(module) if self._aside else originals[module]
                heads.grow(source)
                if optimizer is not None:
                    tasks.join_group(optimizer, heads.places[0], heads.places[-1])

    def train_only(self, place: Label | None = None, /, **places: Label) -> None:
        """Train one place of a run-time axis from now on, and nothing that is shared; select it as well.

        Shared cores and modules are frozen. The other slices keep every bit under any optimizer of torch,
        weight
        decay and moments included, and so do its moments of them. Sweeps are refused until `train_all`.

        Args:
            place: The label, where there is one run-time axis.
            places: Labels by axis, such as `task="rte"`.

        Raises:
            ConfigError: A label or an axis that does not exist.
            StateError: A shared core is zero or the core of the places is frozen, so that nothing could be
                trained, or the adapter is merged; nothing is changed then.
        """
        if place is not None:
            places = {tasks.run_time_axis(self.layout, None).name: place, **places}
        if not places:
            raise ConfigError("train_only: name a place, such as train_only(task='rte')")
        for name, label in places.items():
            tasks.check_label(tasks.run_time_axis(self.layout, name), label, "train_only")
        if self.merged or self._merges_again:
            raise StateError("train_only: the adapter is merged; call unmerge() first")
        tasks.check_confinable(self, places)
        self.train_all()
        self.select(**places)
        self._confinement = tasks.confine(self, places)
        self.trained_only = dict(places)
        by = self.config.heads_by
        heads_place = None if by not in places else tasks.place_of(self.layout, by, places[by])
        for module in self._saved_modules().values():
            own = module.places if isinstance(module, PlaceHeads) and module.axis in places else None
            for k, part in enumerate(own if own is not None else [module]):
                trained = own is not None and k == heads_place
                for parameter in part.parameters():
                    parameter.requires_grad_(trained)
                    parameter.grad = parameter.grad if trained else None
        self._update_refusal()

    def train_all(self) -> None:
        """Train what is shared and all places again; frozen cores stay frozen."""
        if self._confinement is not None:
            self._confinement.end()
        self._confinement = self.trained_only = None
        self._set_trainable()

    def refresh(self) -> None:
        """Forget the factors kept for inference, after cores were changed through `.data`.

        Every other change is noticed: those by optimizers, `copy_`, `load_state_dict` and the like. A
        training step, `train()` and `eval()` do the same.
        """
        self.workspace.refresh()

    def train(self, mode: bool = True) -> "RunTimeAxes":
        """Set the mode of training; see also `refresh`."""
        self.workspace.refresh()
        return super().train(mode)

    def _saved_modules(self) -> dict[str, nn.Module]:
        """The modules trained whole, also while they stand aside."""
        if self._aside:
            return self.__dict__["_trained"]
        model: nn.Module = self.__dict__["model"]
        return {name: model.get_submodule(name) for name in self.saved_modules}

    def _heads(self) -> dict[str, PlaceHeads]:
        return {name: m for name, m in self._saved_modules().items() if isinstance(m, PlaceHeads)}

    def _set_trainable(self) -> None:
        frozen = self.config.modes_of(self.config.frozen)
        for k, parameter in enumerate(self.cores.core_parameters()):
            parameter.requires_grad_(k not in frozen)
        for module in self._saved_modules().values():
            module.requires_grad_(True)
        self._update_refusal()

    def _update_refusal(self) -> None:
        reasons = []
        if self.trained_only is not None:
            own = ", ".join(f"{axis}={label!r}" for axis, label in self.trained_only.items())
            reasons.append(
                f"train_only({own}) is on and a sweep moves what is shared; call adapter.train_all() first"
            )
        if self.config.frozen:
            reasons.append(f"the cores of {list(self.config.frozen)} are frozen, a sweep would change them")
        if self.config.diagonal:
            reasons.append(f"the cores of {list(self.config.diagonal)} are diagonal, a sweep would fill them")
        if self.merged:
            reasons.append("the adapter is merged and the weights would keep what was; call unmerge() first")
        self.cores.refusal = "; ".join(reasons) or None

    def adopt(self, layout: Layout, config: TTAdapterConfig) -> None:
        """Go on with a layout, and options, whose run-time axes have more places than before."""
        self.layout, self.config = layout, config
        self.workspace.adopt(layout)

    def __getstate__(self) -> dict[str, Any]:
        """A copy confines its own cores, not these."""
        return {**self.__dict__, "_confinement": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a copy's state."""
        super().__setstate__(state)
        if self.trained_only is not None:
            self._confinement = tasks.confine(self, self.trained_only)

    def _exchange_saved_modules(self) -> None:
        model: nn.Module = self.__dict__["model"]
        originals: dict[str, nn.Module] = self.__dict__["_originals"]
        if self._aside:
            new = self.__dict__["_trained"]
        else:
            self.__dict__["_trained"] = self._saved_modules()
            new = {name: self._like_trained(name, module) for name, module in originals.items()}
        for name, module in new.items():
            module.train(model.get_submodule(name).training)
        replace_modules(model, new)
        self._aside = not self._aside

    def _like_trained(self, name: str, original: nn.Module) -> nn.Module:
        """An original on the device and in the dtype of what was trained; in another dtype it is a copy."""
        like = next(self.__dict__["_trained"][name].parameters(), None)
        if like is None or self._tied:
            return original
        if any(p.is_floating_point() and p.dtype != like.dtype for p in original.parameters()):
            original = copy.deepcopy(original)  # narrowing must not cost the original its bits
        return original.to(device=like.device, dtype=like.dtype)

    def _saved_state(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, module in self._saved_modules().items()
            for key, value in module.state_dict().items()
        }

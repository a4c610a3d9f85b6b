"""What an adapter does to its model as a whole: merge into the weights, stand aside, be taken off."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ttnet.adapters.linear import AdaptedLinear, replace_modules
from ttnet.adapters.merging import merged_weights
from ttnet.adapters.run_time import RunTimeAxes
from ttnet.errors import StateError

NAME = "tt_adapter"
"""Name under which the adapter is registered at the model's root."""


class ModelStates(RunTimeAxes):
    """The part of `TTAdapter` that merges dW, takes it out again, disables it and detaches it."""

    bypassed: bool
    _weights: dict[str, Tensor]
    _disabled: int
    _trainable: dict[str, bool]
    _handles: list[Any]
    _nested: list[str]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The model as it was before `attach`, to the bit, for as long as the context lasts.

        Weights that are merged are unmerged meanwhile, and modules trained whole give way to their originals.

        Raises:
            StateError: The adapter is detached.
        """
        self._check_attached("disabled")
        merged = self.merged
        if merged:
            self.unmerge()
            self._merges_again = True
        self._disabled += 1
        self._update()
        if self._disabled == 1:
            self._exchange_saved_modules()
        try:
            yield
        finally:
            if self._disabled == 1:
                self._exchange_saved_modules()
            self._disabled -= 1
            self._update()
            if merged:
                self._merges_again = False
                self._merge()

    @torch.no_grad()
    def merge(self) -> None:
        """Add every dW to its weight, so that the model runs at its own speed. The old weights are kept.

        Raises:
            StateError: It is merged already, disabled or detached, the context of `selected` would leave it
                merged for other places, or a weight is shared by several modules.
            DTypeError: A weight that is quantized or sharded.
            NonFiniteError: A dW, or a sum in the weight's dtype, that is not finite; no weight is changed.
        """
        if self._selecting:
            raise StateError(
                "merge: inside `with adapter.selected(...)`, whose end selects other places; call "
                "select(...) instead of it, then merge()"
            )
        self._merge()

    def _merge(self) -> None:
        self._check_attached("merge")
        if self.merged:
            raise StateError("merge: the adapter is merged already; call unmerge() first")
        if self._disabled:
            raise StateError("merge: the adapter is disabled; leave `with adapter.disabled()` first")
        with torch.no_grad():
            new = merged_weights(self)  # pyright: ignore[reportArgumentType]
            for name, value in new.items():
                weight = self.adapted(name).weight
                self._weights[name] = weight.detach().clone()
                weight.copy_(value)
        self._update()

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore the weights as they were before `merge`, to the bit.

        Raises:
            StateError: It is not merged, or a module was replaced.
        """
        if not self.merged:
            raise StateError("unmerge: the adapter is not merged; call merge() first")
        modules = {name: self.adapted(name) for name in self._weights}
        for name, weight in self._weights.items():
            modules[name].weight.copy_(weight)
        self._weights = {}
        self._update()

    def detach(self, *, merge: bool = False) -> nn.Module:
        """Take the adapter off the model; it keeps its cores, the model knows nothing of it any more.

        Args:
            merge: Whether the model keeps what was learned: dW in its weights, and the modules trained whole.
                Otherwise it is the model that was given to `attach`, weights and `requires_grad` alike.

        Returns:
            The model.

        Raises:
            StateError: It is detached already, disabled at the moment, or an adapted module was replaced;
                nothing is changed then.
        """
        self._check_attached("detach")
        if self._disabled:
            raise StateError("detach: the adapter is disabled; leave `with adapter.disabled()` first")
        model: nn.Module = self.__dict__["model"]
        new: dict[str, nn.Module] = {name: self.adapted(name).base for name in self.layout.modules}
        if merge:
            for name, heads in self._heads().items():
                place = self.selected_places(heads.axis)
                if not isinstance(place, int):
                    raise StateError(f"detach: select one {heads.axis} first, the model keeps its head")
                new[name] = heads.places[place]
            if not self.merged:
                self._merge()
            # The heads of all places are the adapter's own from now on.
            self.__dict__["_trained"], self._aside = self._saved_modules(), True
        else:
            if self.merged:
                self.unmerge()
            self._exchange_saved_modules()
        replace_modules(model, new)
        for handle in self._handles:
            handle.remove()
        for name in self._nested:
            cast(nn.TransformerEncoder, model.get_submodule(name)).use_nested_tensor = True
        delattr(model, NAME)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._trainable.get(name, parameter.requires_grad))
        self._handles, self._weights = [], {}
        return model

    def adapted(self, name: str) -> AdaptedLinear:
        """The module that stands in the place of an adapted one.

        Raises:
            StateError: Somebody has replaced it.
        """
        module = self.__dict__["model"].get_submodule(name)
        if not isinstance(module, AdaptedLinear):
            raise StateError(
                f"{name!r} was replaced after attach, it is {type(module).__name__}; attach again"
            )
        return module

    def _check_attached(self, action: str) -> None:
        if getattr(self.__dict__["model"], NAME, None) is not self:
            raise StateError(
                f"{action}: the adapter is not attached; attach(model, config) makes a new one, "
                "load(model, directory) takes a saved one"
            )

    def _update(self) -> None:
        self.bypassed = self.merged or self._disabled > 0
        self._update_refusal()

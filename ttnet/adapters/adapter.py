"""`TTAdapter`: one train behind the chosen matrices of a frozen model."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttnet.adapters import files
from ttnet.adapters.axes import Label
from ttnet.adapters.config import TTAdapterConfig
from ttnet.adapters.confinement import Confinement
from ttnet.adapters.cores import AdapterCores
from ttnet.adapters.factors import Mixture, relative_errors
from ttnet.adapters.groups import parameter_groups
from ttnet.adapters.heads import PlaceHeads
from ttnet.adapters.linear import AdaptedLinear, replace_module
from ttnet.adapters.merging import check_trainable, merged_weights, refuse_sharded
from ttnet.adapters.run_time import RunTimeAxes
from ttnet.adapters.selection import check_axes, select
from ttnet.adapters.structure import Layout
from ttnet.adapters.workspace import Workspace, is_traced
from ttnet.errors import StateError
from ttnet.tensor_train import TensorTrain

NAME = "tt_adapter"
"""Name under which the adapter is registered at the model's root."""


class TTAdapter(RunTimeAxes):
    """The adapter of a model; `attach` and `load` make one.

        y = base(x) + x dW,    dW = alpha [in]--[layer]--[matrix]--[out]

    It is a submodule of the model, so that `model.parameters()`, `model.to(...)` and `model.state_dict()` see
    its cores, once.

    Args:
        model: The model whose matrices are adapted.
        config: The options.
        layout: What each matrix reads of the cores.
        train: Initial value of the cores.
        scale: The factor of dW: alpha, perhaps over the initial rank.
        saved_modules: Full names of the modules that are trained whole.
        base: What is known of the model: class, name, widths and a few of its weights.

    Attributes:
        cores: The `TTParameter` that is trained.
        trained_only: The places that `train_only` trains alone, None in joint training.
        config: The options.
        layout: What each matrix reads of the cores; its `sites` and `presence` list the adapted matrices.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TTAdapterConfig,
        layout: Layout,
        train: TensorTrain,
        *,
        scale: float,
        saved_modules: tuple[str, ...] = (),
        base: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.cores = AdapterCores(train, config.modes_of(config.diagonal))
        self.config = config
        self.layout = layout
        self.scale = scale
        self.saved_modules = saved_modules
        self.base = base or {}
        self.bypassed = False
        self.workspace = Workspace(self.cores, layout, scale)
        # Neither the model nor the originals are submodules: that would be a cycle, and save them twice.
        self.__dict__["model"] = model
        self.__dict__["_originals"] = {
            name: _frozen_copy(model.get_submodule(name)) for name in saved_modules
        }
        self._weights: dict[str, Tensor] = {}
        self._disabled = 0
        self._aside = False  # whether the modules trained whole stand aside for their originals
        self._trainable: dict[str, bool] = {}
        self._handles: list[Any] = []
        self.trained_only: dict[str, Label] | None = None
        self._confinement: Confinement | None = None
        self._install()
        self.train(model.training)

    # Reading -----------------------------------------------------------------------------------------------

    @property
    def num_parameters(self) -> int:
        """Number of entries of the cores; modules trained whole are not counted."""
        return sum(core.numel() for core in self.cores.parameters())

    def tensor_train(self) -> TensorTrain:
        """A detached copy of the train."""
        return self.cores.tensor_train()

    def factors(self, name: str, **labels: Label) -> tuple[Tensor, Tensor]:
        """The factors of one adapted matrix, dW = A B; they differentiate into the cores under grad.

        Args:
            name: Name of its module, such as "encoder.layer.3.attention.self.query", or of one part of a
                split module.
            labels: Places on run-time axes, such as `task="rte"`, instead of those selected.

        Returns:
            A (in, r) and B (r, out), alpha folded into B, in float32 or better.

        Raises:
            ShapeError: No adapted matrix has this name.
            StateError: Nothing, or one place for each sample, is selected on a run-time axis.
            ConfigError: An axis that is not selected at run time, or a label that it does not have.
        """
        check_axes(self.layout, labels)
        selection = select(self.layout, {**self.workspace.chosen, **labels})
        left, right = self.workspace.live_pair(self.layout.members(name), selection)
        if isinstance(right, Mixture):
            raise StateError(
                f"factors: the samples of the batch read different places, {name!r} has no "
                f"single dW; name them, as "
                f"{self.layout.runtime[0].name}=..."
            )
        return left, right

    def delta(self, name: str, **labels: Label) -> Tensor:
        """The dense dW (in, out) of one adapted matrix: y = x (W + dW) + bias.

        Args:
            name: As in `factors`.
            labels: As in `factors`.

        Raises:
            ShapeError: No adapted matrix has this name.
        """
        left, right = self.factors(name, **labels)
        return left @ right

    def matrix_errors(self, before: TensorTrain, after: TensorTrain) -> dict[str, float]:
        """How far replacing one train by another moves each adapted matrix, relative to its norm.

        Where widths differ, much of the train is read by no matrix, and the train's own error can mislead.

        Args:
            before: The train that is the truth.
            after: A train of the same mode sizes, of any ranks.

        Returns:
            For each adapted matrix |dW_before - dW_after| / |dW_before| in the Frobenius norm; with run-time
            axes for each place on them too, as "name [task=rte]".
        """
        return relative_errors(before.cores, after.cores, self.layout)

    # Training ----------------------------------------------------------------------------------------------

    def parameter_groups(
        self,
        lr: float,
        core_lr: Mapping[str, float] | None = None,
        *,
        head_lr: float | None = None,
        weight_decay: float = 0.0,
    ) -> list[dict[str, Any]]:
        """Groups of parameters for an optimizer, with a learning rate for each core.

        Args:
            lr: Learning rate of the cores.
            core_lr: Learning rates by axis, such as ``{"in": 1e-3, "out": 5e-3}``.
            head_lr: Learning rate of the modules trained whole; None for `lr`.
            weight_decay: Weight decay of all groups.

        Returns:
            Groups with the entries params, lr, weight_decay and name; frozen cores are left out.

        Raises:
            PatternError: The pattern has no such axis.
            ConfigError: A rate that is negative or not finite, a frozen core, or two rates for one core.
        """
        heads = [parameter for module in self._saved_modules().values() for parameter in module.parameters()]
        return parameter_groups(
            self.cores.core_parameters(), self.config, heads, lr, core_lr or {}, head_lr, weight_decay
        )

    # States ------------------------------------------------------------------------------------------------

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The model as it was before `attach`, to the bit, for as long as the context lasts.

        Weights that are merged are unmerged meanwhile, and modules trained whole give way to their originals.
        """
        merged = self.merged
        if merged:
            self.unmerge()
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
                self.merge()

    @torch.no_grad()
    def merge(self) -> None:
        """Add every dW to its weight, so that the model runs at its own speed. The old weights are kept.

        Raises:
            StateError: It is merged already, or disabled.
            DTypeError: A weight that is quantized or sharded.
            NonFiniteError: A dW that is not finite; no weight is changed.
        """
        if self.merged:
            raise StateError("merge: the adapter is merged already; call unmerge() first")
        if self._disabled:
            raise StateError("merge: the adapter is disabled; leave `with adapter.disabled()` first")
        new = merged_weights(self)
        for name, value in new.items():
            weight = self.adapted(name).weight
            self._weights[name] = weight.detach().clone()
            weight.copy_(value)
        self._update()

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore the weights as they were before `merge`, to the bit.

        Raises:
            StateError: It is not merged.
        """
        if not self.merged:
            raise StateError("unmerge: the adapter is not merged; call merge() first")
        for name, weight in self._weights.items():
            self.adapted(name).weight.copy_(weight)
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
            StateError: It is detached already, or disabled at the moment.
        """
        model: nn.Module = self.__dict__["model"]
        if getattr(model, NAME, None) is not self:
            raise StateError("detach: the adapter is not attached; attach(model, config) makes a new one")
        if self._disabled:
            raise StateError("detach: the adapter is disabled; leave `with adapter.disabled()` first")
        if merge and not self.merged:
            self.merge()
        if not merge:
            if self.merged:
                self.unmerge()
            self._exchange_saved_modules()
        for name, heads in self._heads().items():
            if model.get_submodule(name) is heads:
                place = self.selected_places(heads.axis)
                if not isinstance(place, int):
                    raise StateError(f"detach: select one {heads.axis} first, the model keeps its head")
                replace_module(model, name, heads.places[place])
        for name in self.layout.modules:
            replace_module(model, name, self.adapted(name).base)
        for handle in self._handles:
            handle.remove()
        delattr(model, NAME)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._trainable.get(name, parameter.requires_grad))
        self._handles, self._weights = [], {}
        return model

    # Files -------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`, the modules trained whole included.

        Args:
            directory: Created where it is missing; other files in it stay.

        Raises:
            StateError: What is saved is sharded.
        """
        refuse_sharded(self, "save")
        files.write(
            directory,
            config=self.config,
            layout=self.layout,
            train=self.tensor_train(),
            scale=self.scale,
            base=self.base,
            modules=self._saved_state(),
            module_names=self.saved_modules,
        )

    @torch.no_grad()
    def load_weights(self, directory: str | Path) -> None:
        """Take cores, of whatever ranks, and modules trained whole from a saved adapter of this layout.

        Args:
            directory: Where `save` wrote.

        Raises:
            FormatError: The files are damaged, foreign, or made for other matrices.
            ShapeError: A shape that does not fit.
        """
        saved = files.read(directory)
        files.check_layout(saved, self.layout)
        state = files.check_modules(saved, self._saved_state())
        self.cores.assign(saved.train)
        self.load_modules(state)

    @torch.no_grad()
    def load_modules(self, state: Mapping[str, Tensor]) -> None:
        """Take values of the modules trained whole, by their names in a file."""
        for name, tensor in self._saved_state().items():
            tensor.copy_(state[name])

    def forward(self, x: Tensor) -> Tensor:
        """The input itself: an `nn.Sequential` calls every module registered in it, this one too."""
        return x

    def extra_repr(self) -> str:
        """Pattern and number of matrices."""
        return (
            f"pattern={self.config.pattern!r}, matrices={len(self.layout.sites)}, alpha={self.config.alpha}"
        )

    # Inside ------------------------------------------------------------------------------------------------

    def _install(self) -> None:
        model: nn.Module = self.__dict__["model"]
        for name, parameter in model.named_parameters():
            self._trainable[name] = parameter.requires_grad
            parameter.requires_grad_(False)
        axis = self.config.heads_by
        for name in self.saved_modules if axis is not None else ():
            size = self.layout.sizes[axis or ""]
            replace_module(model, name, PlaceHeads(model.get_submodule(name), self, axis or "", size))
        self._set_trainable()
        for k, name in enumerate(self.layout.modules):
            replace_module(model, name, AdaptedLinear(model.get_submodule(name), self, k))
        setattr(model, NAME, self)
        # Bound methods: a copy of the model is hooked to its own copy of the adapter.
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end, always_call=True),
        ]
        for module in model.modules():
            # In inference a TransformerEncoderLayer reads weights and calls no module, unless it has a hook.
            if isinstance(module, nn.TransformerEncoderLayer):
                self._handles.append(module.register_forward_pre_hook(self._stay_on_slow_path))

    def _begin(self, module: nn.Module, args: Any) -> None:  # noqa: ARG002
        if self.bypassed:
            check_trainable(self)
        elif not is_traced():
            self.workspace.begin()

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        if not is_traced():
            self.workspace.end(completed=output is not None)

    def _stay_on_slow_path(self, module: nn.Module, args: Any) -> None: ...

    def _update(self) -> None:
        self.bypassed = self.merged or self._disabled > 0

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


def _frozen_copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False)

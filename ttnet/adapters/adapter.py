"""`TTAdapter`: one train behind the chosen matrices of a frozen model."""

from collections.abc import Mapping
from dataclasses import replace
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
from ttnet.adapters.linear import AdaptedLinear, replace_modules
from ttnet.adapters.merging import check_trainable, refuse_sharded
from ttnet.adapters.selection import check_axes, select
from ttnet.adapters.states import NAME, ModelStates
from ttnet.adapters.structure import Layout
from ttnet.adapters.ties import are_tied_outside, copy_together
from ttnet.adapters.workspace import Workspace, is_traced
from ttnet.errors import StateError
from ttnet.tensor_train import TensorTrain


class TTAdapter(ModelStates):
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
        present = {name: model.get_submodule(name) for name in saved_modules}
        copies = copy_together(present)
        self._tied = are_tied_outside(model, present.values())
        if self._tied:  # what is trained gets weights of its own, the rest of the model keeps what it shares
            replace_modules(model, copies)
        self.__dict__["_originals"] = present if self._tied else copies
        self.__dict__["_trained"] = {}
        self._weights: dict[str, Tensor] = {}
        self._disabled = self._selecting = 0
        self._merges_again = False
        self._aside = False  # whether the modules trained whole stand aside for their originals
        self._trainable: dict[str, bool] = {}
        self._handles: list[Any] = []
        self._nested: list[str] = []  # encoders that made nested tensors before
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
        heads = tuple(dict.fromkeys(p for m in self._saved_modules().values() for p in m.parameters()))
        return parameter_groups(
            self.cores.core_parameters(), self.config, heads, lr, core_lr or {}, head_lr, weight_decay
        )

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

        The factor of dW is taken too, `alpha` and `alpha_scaling` as they were when it was saved.

        Args:
            directory: Where `save` wrote.

        Raises:
            FormatError: The files are damaged, foreign, or made for other matrices or labels.
            ShapeError: A shape that does not fit.
            StateError: The adapter is merged.
        """
        if self.merged or self._merges_again:
            raise StateError("load_weights: the adapter is merged; call unmerge() first")
        saved = files.read(directory)
        files.check_layout(saved, self.layout)
        state = files.check_modules(saved, self._saved_state())
        self.cores.assign(saved.train)
        self.scale = self.workspace.scale = saved.scale
        old = saved.config
        self.config = replace(self.config, alpha=old.alpha, alpha_scaling=old.alpha_scaling)
        self.workspace.adopt(self.layout)
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
        for module in self.__dict__["_originals"].values():
            module.requires_grad_(False)
        axis, new = self.config.heads_by, {}
        for name in self.saved_modules if axis is not None else ():
            size = self.layout.sizes[axis or ""]
            new[name] = PlaceHeads(model.get_submodule(name), self, axis or "", size)
        for k, name in enumerate(self.layout.modules):
            new[name] = AdaptedLinear(model.get_submodule(name), self, k)
        replace_modules(model, new)
        self._set_trainable()
        setattr(model, NAME, self)
        # Bound methods: a copy of the model is hooked to its own copy of the adapter.
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, always_call=True),
        ]
        for module in model.modules():
            # In inference a TransformerEncoderLayer reads weights and calls no module, unless it has a hook.
            if isinstance(module, nn.TransformerEncoderLayer):
                self._handles.append(module.register_forward_pre_hook(self._stay_on_slow_path))
        for name, module in model.named_modules():
            # The fast path alone takes nested tensors.
            if isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor:
                self._nested.append(name)
                module.use_nested_tensor = False

    def _apply(self, fn: Any, recurse: bool = True) -> "TTAdapter":
        core = next(self.cores.parameters())
        if core.is_meta and not fn(core).is_meta:
            raise StateError(
                "to_empty: the adapter was attached on the meta device and its cores have no values; attach "
                "it to the model that holds its weights"
            )
        return super()._apply(fn, recurse)

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        if self.bypassed:
            check_trainable(self)
        elif is_traced():
            self.workspace.check_batch(args, kwargs)
        else:
            self.workspace.begin(args, kwargs)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        if not is_traced():
            self.workspace.end(completed=output is not None)

    def _stay_on_slow_path(self, module: nn.Module, args: Any) -> None: ...

"""`TTAdapter`: one train behind the chosen matrices of a frozen model."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttnet.adapters import files
from ttnet.adapters.config import TTAdapterConfig
from ttnet.adapters.factors import relative_errors
from ttnet.adapters.layout import Layout
from ttnet.adapters.linear import AdaptedLinear, is_conv1d
from ttnet.adapters.workspace import Workspace, is_traced
from ttnet.errors import DTypeError, NonFiniteError, StateError
from ttnet.parameter import TTParameter
from ttnet.tensor_train import TensorTrain

NAME = "tt_adapter"
"""Name under which the adapter is registered at the model's root."""


class TTAdapter(nn.Module):
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
        self.cores = TTParameter(train)
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
        self._install()
        self.train(model.training)

    # Reading -----------------------------------------------------------------------------------------------

    @property
    def num_parameters(self) -> int:
        """Number of entries of the cores; modules trained whole are not counted."""
        return sum(core.numel() for core in self.cores.parameters())

    @property
    def merged(self) -> bool:
        """Whether dW is added to the model's weights."""
        return bool(self._weights)

    def tensor_train(self) -> TensorTrain:
        """A detached copy of the train."""
        return self.cores.tensor_train()

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """The factors of one adapted matrix, dW = A B; they differentiate into the cores under grad.

        Args:
            name: Name of its module, such as "encoder.layer.3.attention.self.query".

        Returns:
            A (in, r) and B (r, out), alpha folded into B, in float32 or better.

        Raises:
            ShapeError: No adapted matrix has this name.
        """
        return self.workspace.live_pair(self.layout.index(name))

    def delta(self, name: str) -> Tensor:
        """The dense dW (in, out) of one adapted matrix: y = x (W + dW) + bias.

        Raises:
            ShapeError: No adapted matrix has this name.
        """
        left, right = self.factors(name)
        return left @ right

    def matrix_errors(self, before: TensorTrain, after: TensorTrain) -> dict[str, float]:
        """How far replacing one train by another moves each adapted matrix, relative to its norm.

        Where widths differ, much of the train is read by no matrix, and the train's own error can mislead.

        Args:
            before: The train that is the truth.
            after: A train of the same mode sizes, of any ranks.

        Returns:
            For each adapted matrix |dW_before - dW_after| / |dW_before| in the Frobenius norm.
        """
        return relative_errors(before.cores, after.cores, self.layout)

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
            DTypeError: A weight that is quantized.
            NonFiniteError: A dW that is not finite; no weight is changed.
        """
        if self.merged:
            raise StateError("merge: the adapter is merged already; call unmerge() first")
        if self._disabled:
            raise StateError("merge: the adapter is disabled; leave `with adapter.disabled()` first")
        new: dict[str, Tensor] = {}
        for site in self.layout.sites:
            base = self._adapted(site.name).base
            weight = base.weight
            if (
                not isinstance(weight, Tensor)
                or not weight.is_floating_point()
                or type(weight) is not nn.Parameter
            ):
                raise DTypeError(
                    f"merge: the weight of {site.name!r} is quantized or sharded ({type(weight).__name__}, "
                    f"{getattr(weight, 'dtype', None)}); dequantize the model first"
                )
            delta = self.delta(site.name)
            if not bool(delta.isfinite().all()):
                raise NonFiniteError(
                    f"merge: dW of {site.name!r} is not finite; train with a lower learning rate"
                )
            wide = torch.promote_types(weight.dtype, delta.dtype)
            new[site.name] = weight.to(wide).add(delta if is_conv1d(base) else delta.T).to(weight.dtype)
        for name, value in new.items():
            weight = self._adapted(name).weight
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
            self._adapted(name).weight.copy_(weight)
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
        for site in self.layout.sites:
            replace_module(model, site.name, self._adapted(site.name).base)
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
        """
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
        for name in self.saved_modules:
            model.get_submodule(name).requires_grad_(True)
        for k, site in enumerate(self.layout.sites):
            replace_module(model, site.name, AdaptedLinear(model.get_submodule(site.name), self, k))
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
            if self.merged and self.training and torch.is_grad_enabled():
                raise StateError(
                    "the adapter is merged, training would leave its cores as they are; call unmerge() first"
                )
        elif not is_traced():
            self.workspace.begin()

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        if not is_traced():
            self.workspace.end()

    def _stay_on_slow_path(self, module: nn.Module, args: Any) -> None: ...

    def _update(self) -> None:
        self.bypassed = self.merged or self._disabled > 0

    def _adapted(self, name: str) -> AdaptedLinear:
        module = self.__dict__["model"].get_submodule(name)
        if not isinstance(module, AdaptedLinear):
            raise StateError(
                f"{name!r} was replaced after attach, it is {type(module).__name__}; attach again"
            )
        return module

    def _exchange_saved_modules(self) -> None:
        model: nn.Module = self.__dict__["model"]
        originals: dict[str, nn.Module] = self.__dict__["_originals"]
        for name, other in originals.items():
            present = model.get_submodule(name)
            like = next(present.parameters(), None)
            if like is not None:
                other.to(device=like.device, dtype=like.dtype)
            other.train(present.training)
            replace_module(model, name, other)
            originals[name] = present
        self._aside = not self._aside

    def _saved_state(self) -> dict[str, Tensor]:
        model: nn.Module = self.__dict__["model"]
        modules: dict[str, nn.Module] = self.__dict__["_originals"]
        if not self._aside:
            modules = {name: model.get_submodule(name) for name in self.saved_modules}
        return {
            f"{name}.{key}": value
            for name, module in modules.items()
            for key, value in module.state_dict().items()
        }


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _frozen_copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False)

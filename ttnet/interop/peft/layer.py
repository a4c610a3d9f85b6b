"""`MetaTTLinear`: a linear module with the shares of any number of adapters, as peft wants a layer to be."""

import warnings
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from ttnet.adapters.factors import Mixture
from ttnet.adapters.linear import AdaptedLinear, is_conv1d, linear_widths
from ttnet.adapters.quantized import device_of, is_dense, refusal, run_base
from ttnet.errors import ShapeError, StateError
from ttnet.interop.peft.cores import PeftCores


class MetaTTLinear(nn.Module, BaseTunerLayer):
    """A linear module and its places in the trains of the tuner.

    Args:
        base_layer: The module that is replaced, frozen.
        trains: The tuner's trains by name of the adapter, registered there and referred to here.
    """

    adapter_layer_names = ("metatt_cores",)
    other_param_names = ("metatt_modules",)

    trains: nn.ModuleDict
    """The trains of all adapters of the tuner."""

    chain: nn.Module
    """The base with one `AdaptedLinear` around it for each active adapter."""

    def __init__(self, base_layer: nn.Module, trains: nn.ModuleDict) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = linear_widths(base_layer) or (0, 0)
        self.metatt_modules: dict[str, int] = {}
        self.merged_adapters: list[str] = []
        self._active_adapter = []
        self._kept: Tensor | None = None
        # Past nn.Module: registering them here as well would save the cores once for each layer.
        object.__setattr__(self, "trains", trains)
        object.__setattr__(self, "chain", base_layer)

    @property
    def metatt_cores(self) -> nn.ModuleDict:
        """The same, under a name that peft finds."""
        return self.trains

    def add(self, adapter_name: str, module: int) -> None:
        """Take a place in one more train.

        Args:
            adapter_name: Name of the adapter.
            module: Index of this module in its layout.
        """
        self.metatt_modules[adapter_name] = module

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """Base output plus x dW of each active adapter, or for each sample of the adapter it names.

        Args:
            x: Shape (..., in_features).
            args: For the base.
            adapter_names: The adapter of each sample, "__base__" for none; None for the active ones.
            kwargs: For the base.

        Returns:
            Shape (..., out_features).

        Raises:
            ShapeError: A batch whose size is no multiple of the number of names.
            StateError: The adapter of a sample has nothing, or several places, selected on a run-time axis.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            return self._forward_mixed(x, adapter_names)
        return self.chain(x, *args, **kwargs)

    def _forward_mixed(self, x: Tensor, adapter_names: list[str]) -> Tensor:
        repeats, rest = divmod(len(x), len(adapter_names))
        if rest:
            raise ShapeError(
                f"adapter_names: got {len(adapter_names)} names for a batch of {len(x)}; name "
                "one for each sample"
            )
        y = run_base(self.base_layer, x)
        names = [name for name in adapter_names for _ in range(repeats)]  # beams of a sample lie together
        for adapter in dict.fromkeys(names):
            if adapter not in self.metatt_modules:
                continue
            cores = cast(PeftCores, self.metatt_cores[adapter])
            rows = torch.tensor([k for k, name in enumerate(names) if name == adapter], device=x.device)
            left, right = cores.workspace.pair(
                self.metatt_modules[adapter], torch.promote_types(x.dtype, torch.float32)
            )
            if isinstance(right, Mixture):
                raise StateError(
                    f"adapter_names: {adapter!r} has one {cores.layout.runtime[0].name} selected for each "
                    "sample; select one for all, or name no adapters"
                )
            change = x.index_select(0, rows).to(left.dtype) @ left @ right
            y = y.index_add(0, rows, change.to(y.dtype))
        return y

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Set the active adapters, see peft's `BaseTunerLayer`."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        chain = self.base_layer
        for name in self.active_adapters:
            if name in self.metatt_modules:
                chain = AdaptedLinear(chain, cast(Any, self.metatt_cores[name]), self.metatt_modules[name])
        object.__setattr__(self, "chain", chain.train(self.training))

    def train(self, mode: bool = True) -> "MetaTTLinear":
        """Set the mode of training, for the chain as well."""
        self.chain.train(mode)
        return super().train(mode)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The change of the weight by one adapter, in the weight's layout, float32 or better.

        Args:
            adapter: Its name.

        Raises:
            KeyError: It has no share here.
            StateError: No single place is selected on a run-time axis.
        """
        cores = cast(PeftCores, self.metatt_cores[adapter])
        delta = cores.delta(self.metatt_modules[adapter])
        return delta if is_conv1d(self.get_base_layer()) else delta.T

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add dW to the weight; the old one is kept, so that `unmerge` restores its bits.

        Args:
            safe_merge: Whether a dW that is not finite is refused.
            adapter_names: The adapters; None for the active ones.

        Raises:
            DTypeError: The weight is quantized or sharded.
            ValueError: `safe_merge`, and the result is not finite.
            StateError: No single place is selected on a run-time axis.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.metatt_modules:
                continue
            weight = getattr(self.get_base_layer(), "weight", None)
            if not is_dense(weight):
                raise refusal(name, weight)
            delta = self.get_delta_weight(name)
            new = weight.to(torch.promote_types(weight.dtype, delta.dtype)) + delta.to(weight.device)
            if safe_merge and not bool(new.isfinite().all()):
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
                )
            if not self.merged:
                self._kept = weight.detach().clone()
            weight.copy_(new)
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore the weight as it was before `merge`."""
        if not self.merged:
            if any(name in self.metatt_modules for name in self.active_adapters):
                warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        cast(Tensor, self.get_base_layer().weight).copy_(cast(Tensor, self._kept))
        self._kept = None
        self.merged_adapters.clear()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:  # noqa: ARG002
        """Whether peft can turn the adapter into a LoRA: it is additive, so yes."""
        return True

    def _get_available_adapters(self) -> set[str]:
        return set(self.metatt_modules)

    def _freeze_non_trainable_peft_weights(self, adapter_names: Any = None) -> None:  # noqa: ARG002
        for cores in self.metatt_cores.values():
            cast(PeftCores, cores).freeze()

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # The cores keep their own dtype: peft would cast them to that of the weight.
        cores = self.metatt_cores[adapter_name]
        place = device or device_of(self.get_base_layer())
        if place.type != "meta" and not any(core.is_meta for core in cores.parameters()):
            cores.to(place)

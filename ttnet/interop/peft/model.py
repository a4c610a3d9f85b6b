"""`MetaTTModel`: the tuner that peft wraps around a model for this method."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from peft import mapping
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from ttnet.adapters.head_dim import head_dim_of
from ttnet.adapters.layout import make_layout
from ttnet.adapters.selection import check_axes
from ttnet.adapters.structure import Layout
from ttnet.adapters.targets import find_saved_modules, find_sites
from ttnet.adapters.workspace import is_traced
from ttnet.errors import ConfigError, StateError
from ttnet.interop.peft.config import METHOD, MetaTTConfig
from ttnet.interop.peft.cores import PeftCores
from ttnet.interop.peft.layer import MetaTTLinear

_HALVES = (torch.float16, torch.bfloat16)
_BASE = "__base__"  # peft's name for no adapter
_FIXED = (
    "places on an axis are added and trained alone with ttnet.adapters.attach; in peft declare all of them "
    "at the start, or add one adapter for each"
)


class MetaTTModel(BaseTuner):
    """One tensor train behind the chosen matrices of a model, for each adapter.

    `peft.get_peft_model` makes one. The cores are registered here, once:
    ``model.base_model.metatt_cores["default"]`` is the `TTParameter` of an adapter.
    """

    uses_shared_state = True
    prefix = "metatt_"
    tuner_layer_cls = MetaTTLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 peft reads it as this

    metatt_cores: nn.ModuleDict

    def select(self, adapter_name: str | None = None, **places: Any) -> None:
        """Say which place on each run-time axis the batches that follow read.

        Args:
            adapter_name: The adapter; None for the active ones.
            places: By name of the axis, such as ``task="rte"``: a label for the whole batch, one for each
                sample, or None to take the choice back.

        Raises:
            ConfigError: An axis that is not selected at run time, or a label that it does not have.
            StateError: The adapter is merged.
        """
        for name in self.active_adapters if adapter_name is None else [adapter_name]:
            cores = self._cores(name)
            check_axes(cores.layout, places)
            if any(name in layer.merged_adapters for layer in self._layers()):
                raise StateError(f"select: adapter {name!r} is merged; call unmerge_adapter() first")
            cores.workspace.choose(places)

    def add_task(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Refused: peft keeps the config of an adapter as it was made.

        Args:
            args: Of `TTAdapter.add_task`.
            kwargs: Of `TTAdapter.add_task`.

        Raises:
            StateError: Always.
        """
        raise StateError(f"add_task: {_FIXED}")

    def train_only(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Refused: peft switches the training of whole adapters.

        Args:
            args: Of `TTAdapter.train_only`.
            kwargs: Of `TTAdapter.train_only`.

        Raises:
            StateError: Always.
        """
        raise StateError(f"train_only: {_FIXED}")

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,  # noqa: ARG002 keys of a train name no modules
    ) -> None:
        """Make the train of an adapter and put it behind its modules, see peft's `BaseTuner`.

        Args:
            model: The model.
            adapter_name: Name of the adapter, whose config is known already.
            autocast_adapter_dtype: For peft.
            low_cpu_mem_usage: Whether the cores are made without values, to be loaded next.
            state_dict: Not used.

        Raises:
            ConfigError: A target that matches nothing, or another option that does not fit the model.
            PatternError: An axis on which a module has no label.
        """
        config = cast(MetaTTConfig, self.peft_config[adapter_name])
        trained = {core: core.requires_grad for core in self.metatt_cores.parameters()}
        layout = _make_layout(model, config)
        options, scale = config.resolved(layout)
        with init_empty_weights() if low_cpu_mem_usage else nullcontext():
            cores = PeftCores(layout, options, scale)
        self.metatt_cores[adapter_name] = cores
        try:
            if config.target_modules is None or config.target_modules == "all-linear":
                config.target_modules = list(layout.modules)
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage)
        except Exception:
            del self.metatt_cores[adapter_name]
            raise
        first = cast(MetaTTLinear, model.get_submodule(next(iter(layout.modules))))
        first._move_adapter_to_device_of_base_layer(adapter_name)
        for core, value in trained.items():  # peft keeps what is trained of the model's own parameters only
            core.requires_grad_(value)

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:  # noqa: ARG002
        self.metatt_cores = nn.ModuleDict()
        self.enabled = True
        self.named: tuple[str, ...] | None = None
        self.handles: list[Any] = []

    def _post_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:  # noqa: ARG002
        # PeftModel.forward calls the inner model. Bound methods: a copy is hooked to its own copy of this.
        self.handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, always_call=True),
        ]

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:  # noqa: ARG002
        return peft_config

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        name = next(name for name, config in self.peft_config.items() if config is peft_config)
        if key in self._cores(name).layout.modules:
            return True
        # Where it is left out on purpose, peft's own check says so by an object that is false.
        found = check_target_module_exists(peft_config, key)
        return False if found else found

    def _create_and_replace(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        peft_config: PeftConfig,  # noqa: ARG002
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,  # noqa: ARG002
    ) -> None:
        module = list(self._cores(adapter_name).layout.modules).index(current_key)
        if isinstance(target, MetaTTLinear):
            target.add(adapter_name, module)
            return
        layer = MetaTTLinear(target, self.metatt_cores).train(target.training)
        layer.add(adapter_name, module)
        self._replace_module(parent, target_name, layer, target)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        super()._enable_adapter_layers(enabled)
        self.enabled = enabled

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        cores = self._cores(adapter_name)
        if autocast_adapter_dtype and next(cores.parameters()).dtype in _HALVES:
            cores.float()

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        for handle in self.handles:
            handle.remove()
        self.handles = []
        return model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        found = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        # The config is written right after this: it says which ranks the cores have now.
        shapes = {key.rpartition("core_")[2]: value.shape for key, value in found.items() if "core_" in key}
        cast(MetaTTConfig, config).bond_ranks = [int(shapes[str(k)][0]) for k in range(1, len(shapes))]
        return found

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:  # noqa: ARG002
        """A forward pass, or a generation, in which each sample names its adapter by `adapter_names`."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        self._check_names(names)
        self.named = tuple(name for name in dict.fromkeys(names) if name != _BASE)
        give = partial(_give_names, list(names))
        handles = [
            module.register_forward_pre_hook(give, with_kwargs=True)
            for module in self.modules()
            if isinstance(module, MetaTTLinear | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            self.named = None
            for handle in handles:
                handle.remove()

    def _check_names(self, names: Sequence[str]) -> None:
        if self.training:
            raise StateError("adapter_names: mixed batches are for inference; call model.eval() first")
        known = {*self.metatt_cores, _BASE}
        unknown = sorted(set(names) - known)
        if unknown or not len(names):
            raise ConfigError(
                f"adapter_names: expected one of {sorted(known)} for each sample, got {unknown}"
            )
        merged = next((layer.merged_adapters for layer in self._layers() if layer.merged), None)
        if merged:
            raise StateError(f"adapter_names: {merged} is merged; call unmerge_adapter() first")

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        if not self.enabled:
            return
        for name in self.active_adapters if self.named is None else self.named:
            if name in self.metatt_cores and is_traced():
                self._cores(name).workspace.check_batch(args, kwargs)
            elif name in self.metatt_cores:
                self._cores(name).workspace.begin(args, kwargs)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002
        if not is_traced():
            for cores in self.metatt_cores.values():
                cast(PeftCores, cores).workspace.end(completed=output is not None)

    def _cores(self, name: str) -> PeftCores:
        return cast(PeftCores, self.metatt_cores[name])

    def _layers(self) -> Iterator[MetaTTLinear]:
        return (module for module in self.model.modules() if isinstance(module, MetaTTLinear))


def _give_names(
    names: list[str],
    module: nn.Module,  # noqa: ARG001
    args: Any,
    kwargs: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


def register() -> None:
    """Make peft know the method; importing `ttnet.interop.peft` does it."""
    # `register_peft_method` takes members of peft's closed enum only.
    cast(Any, mapping.PEFT_TYPE_TO_CONFIG_MAPPING)[METHOD] = MetaTTConfig
    cast(Any, mapping.PEFT_TYPE_TO_TUNER_MAPPING)[METHOD] = MetaTTModel
    cast(Any, mapping.PEFT_TYPE_TO_PREFIX_MAPPING)[METHOD] = MetaTTModel.prefix


class _Originals(nn.Module):
    """A model with adapters on it, its modules under the names and of the kinds they had before."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.config = getattr(model, "config", None)
        self.__dict__["_found"] = dict(_original_modules(model))

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Names and modules."""
        return iter(self.__dict__["_found"].items())


def _original_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside = (*inside, f"{name}.")
            yield name, module.get_base_layer()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            inside = (*inside, f"{name}.")
            yield name, cast(nn.Module, module.original_module)
        else:
            yield name, module


def _make_layout(model: nn.Module, config: MetaTTConfig) -> Layout:
    options = config.options
    options.parsed.check_order()
    view = _Originals(model) if any(isinstance(m, BaseTunerLayer) for m in model.modules()) else model
    names = [f".{name}" for name, _ in view.named_modules()]
    wanted = options.modules_to_save or ()
    present = [suffix for suffix in wanted if any(name.endswith(f".{suffix}") for name in names)]
    sites = find_sites(view, options, find_saved_modules(view, present))
    head_dim = (options.head_dim or head_dim_of(view, sites)) if options.parsed.has_head else None
    factors: Any = options.factors
    return make_layout(
        options.parsed, sites, declared=tuple(options.axes), head_dim=head_dim, factors=factors
    )

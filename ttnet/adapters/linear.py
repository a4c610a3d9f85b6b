"""`AdaptedLinear`: a frozen linear module and its share of the train, y = base(x) + (x A) B."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttnet.adapters.factors import Mixture
from ttnet.adapters.quantized import is_packed, run_base
from ttnet.adapters.workspace import is_traced
from ttnet.errors import ConfigError, ShapeError, StateError

if TYPE_CHECKING:
    from ttnet.adapters.adapter import TTAdapter


def linear_widths(module: nn.Module) -> tuple[int, int] | None:
    """Input and output width of a module that an adapter can adapt, None for every other.

    Those are `nn.Linear`, its subclasses, the `Conv1D` of GPT-2, whose weight is (in, out), and every module
    with `in_features` and `out_features` that holds its weight quantized, under whatever name.

    Args:
        module: Any module.
    """
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return None  # nn.MultiheadAttention reads its weight and never calls it
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if is_conv1d(module):
        rows, columns = module.weight.shape  # pyright: ignore[reportGeneralTypeIssues]
        return int(rows), int(columns)  # pyright: ignore[reportArgumentType]
    widths = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if all(isinstance(width, int) and width > 0 for width in widths) and is_packed(module):
        # What wraps such a module is not adapted, the module inside is.
        return None if any(map(linear_widths, module.children())) else widths  # pyright: ignore[reportReturnType]
    return None


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is GPT-2's `Conv1D`, a linear module whose weight is stored as (in, out)."""
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and weight.dim() == 2


def is_router(module: nn.Module) -> bool:
    """Whether a linear module routes tokens to experts, and so returns more than its product."""
    own = type(module)
    return isinstance(module, nn.Linear) and own.forward is not nn.Linear.forward and "Router" in own.__name__


def replace_modules(model: nn.Module, new: Mapping[str, nn.Module]) -> None:
    """Put other modules in the places of some; one that has several places is replaced in all of them.

    Args:
        model: The model.
        new: The modules that come, by a name of the one that goes.
    """
    coming = {model.get_submodule(name): module for name, module in new.items()}
    places = [
        (parent, child, coming[module])
        for parent in model.modules()
        for child, module in parent._modules.items()
        if module in coming
    ]
    for parent, child, module in places:
        setattr(parent, child, module)


class AdaptedLinear(nn.Module):
    """A linear module that adds its share of the train to the output of the module it replaces.

    Args:
        base: The module that is replaced, frozen.
        adapter: The adapter, registered once at the model's root and referred to here.
        module: Index of this module in the adapter's layout.
    """

    def __init__(self, base: nn.Module, adapter: "TTAdapter", module: int) -> None:
        super().__init__()
        self.base = base
        own = [adapter.layout.sites[k] for k in tuple(adapter.layout.modules.values())[module]]
        self.in_features, self.out_features = own[0].in_features, sum(site.out_features for site in own)
        self.module = module
        self.dropout = adapter.config.dropout
        self.transposed = is_conv1d(base)
        # Registering the adapter here as well would save it once for each matrix.
        self.__dict__["adapter"] = adapter
        self.train(base.training)

    @property
    def weight(self) -> Tensor:
        """The weight of the replaced module."""
        return self.base.weight  # pyright: ignore[reportReturnType]

    @property
    def bias(self) -> Tensor | None:
        """The bias of the replaced module."""
        return self.base.bias  # pyright: ignore[reportReturnType]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Take the weight that is there already, as tying weights again gives it, and no other.

        Raises:
            StateError: Another weight, as resizing or tying embeddings sets it.
        """
        if param is None or param is not getattr(self.base, name, None):
            raise StateError(
                f"{name}: the matrix is adapted, and its {name} cannot be exchanged; detach the adapter, "
                "resize or tie the embeddings, and attach again"
            )

    def forward(self, input: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """Base output plus (x A) B.

        Args:
            input: x, shape (..., in_features); under another name, the first tensor among `kwargs`.
            args: For the base, whatever it takes beside x.
            kwargs: For the base.

        Returns:
            Shape (..., out_features).

        Raises:
            ConfigError: The base returns something else than a tensor.
            ShapeError: A place is selected for each sample, and x is not the batch of these samples.
        """
        adapter: TTAdapter = self.__dict__["adapter"]
        x = kwargs.pop(_first_tensor(kwargs)) if input is None else input
        if adapter.bypassed:
            return self.base(x, *args, **kwargs)
        dtype = _compute_dtype(x)
        if is_traced():
            return self._forward_traced(x, dtype, adapter, *args, **kwargs)
        left, right = adapter.workspace.pair(self.module, dtype)
        flat, hidden = adapter.workspace.project(x, left, self.dropout if self.training else 0.0)
        base = self.base
        mixed = isinstance(right, Mixture)
        if mixed or args or kwargs or not self._is_plain(base):
            y = self._run_base(x, *args, **kwargs)
            change = self._mix(right, hidden, x) if mixed else torch.mm(hidden, right)
            return y + change.view(y.shape).to(y.dtype)
        parameters = base._parameters
        weight: Tensor = parameters["weight"]  # pyright: ignore[reportAssignmentType]
        y = F.linear(flat, weight.t() if self.transposed else weight, parameters["bias"])
        y.addmm_(
            hidden, right
        )  # the product saves its operands and not its output: adding in place is allowed
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.out_features)

    def _forward_traced(
        self, x: Tensor, dtype: torch.dtype, adapter: "TTAdapter", *args: Any, **kwargs: Any
    ) -> Tensor:
        """The same without caches and without changes in place, for torch.compile and torch.func."""
        with torch.autocast(x.device.type, enabled=False):
            left, right = adapter.workspace.live_module(self.module)
        y = self._run_base(x, *args, **kwargs)
        read = F.dropout(x, self.dropout, self.training) if self.dropout else x
        hidden, right = read.to(dtype) @ left.to(dtype), right.to(dtype)
        if isinstance(right, Mixture):
            change = self._mix(right, hidden.reshape(-1, hidden.shape[-1]), x).view(y.shape)
        else:
            change = hidden @ right
        return y + change.to(y.dtype)

    def _run_base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = run_base(self.base, x, *args, **kwargs)
        if not isinstance(y, Tensor):
            raise ConfigError(
                f"target_modules: {self._name!r} is {type(self.base).__name__} and returns "
                f"{type(y).__name__}, not a tensor; leave it out with exclude_modules=[{self._name!r}]"
            )
        return y

    def _mix(self, right: Mixture, hidden: Tensor, x: Tensor) -> Tensor:
        """Each row's own change, where it is known which sample the row belongs to."""
        workspace, selected = self.__dict__["adapter"].workspace, len(right.rows)
        # A model that flattens (batch, tokens) keeps the tokens of one sample together.
        known = len(x) == selected
        if x.dim() <= 2:
            known = workspace.is_in_order(self.module, len(hidden), selected)
        if not known:
            raise ShapeError(
                f"select: places were given for {selected} samples, {self._name!r} got a batch of {len(x)}"
                f"{' tokens' if x.dim() == 2 else ''} whose samples are not known; give one for each row "
                "(for beams: index.repeat_interleave(num_beams)), leave out experts that read some tokens "
                "with exclude_modules=..., or select one place for the whole batch"
            )
        return right.apply(hidden)

    @property
    def _name(self) -> str:
        return list(self.__dict__["adapter"].layout.modules)[self.module]

    def _is_plain(self, base: nn.Module) -> bool:
        """Whether the base does nothing but its product: no hooks, no subclass, no parametrized weight."""
        return (
            (type(base) is nn.Linear or self.transposed)
            and not (base._forward_hooks or base._forward_pre_hooks)
            and not (base._backward_hooks or base._backward_pre_hooks)
            and "forward" not in base.__dict__
            and type(base._parameters.get("weight")) is nn.Parameter
        )

    def extra_repr(self) -> str:
        """Widths."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _first_tensor(kwargs: dict[str, Any]) -> str:
    found = next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)
    if found is None:
        raise TypeError("forward: expected a tensor, an adapted layer was called with none")
    return found


def _compute_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype

"""`PlaceHeads`: a module trained whole, with a copy of its own for each place of a run-time axis."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ttnet.errors import ConfigError

if TYPE_CHECKING:
    from ttnet.adapters.adapter import TTAdapter


class PlaceHeads(nn.Module):
    """One copy of a module for each place of an axis, such as a classifier for each task.

    Args:
        module: What is copied.
        adapter: The adapter whose selection decides which copy a sample sees; referred to, not registered.
        axis: Name of the axis.
        size: Number of places.
    """

    def __init__(self, module: nn.Module, adapter: "TTAdapter", axis: str, size: int) -> None:
        super().__init__()
        self.places = nn.ModuleList(copy.deepcopy(module) for _ in range(size))
        self.axis = axis
        self.__dict__["adapter"] = adapter
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the copy of the selected place returns; in a mixed batch, each sample's row of its own copy.

        Raises:
            ConfigError: The batch is mixed and the module returns something else than one tensor.
        """
        places = self.__dict__["adapter"].selected_places(self.axis)
        if isinstance(places, int):
            return self.places[places](*args, **kwargs)
        used = sorted(set(places))
        outputs = [self.places[place](*args, **kwargs) for place in used]
        if any(not isinstance(out, Tensor) or len(out) != len(places) for out in outputs):
            raise ConfigError(
                "heads_by: in a batch of mixed samples a module must return one tensor with a row for each "
                f"sample, {type(self.places[0]).__name__} does not; select one place for the whole batch"
            )
        index = torch.tensor([used.index(place) for place in places], device=outputs[0].device)
        return torch.stack(outputs)[index, torch.arange(len(places), device=outputs[0].device)]

    def grow(self, module: nn.Module) -> None:
        """Give the axis one more place, with a copy of `module` where the others are, in their dtype."""
        added = copy.deepcopy(module)
        for own, other in zip(added.parameters(), self.places[0].parameters(), strict=True):
            own.data = own.data.to(other)
        for own, other in zip(added.buffers(), self.places[0].buffers(), strict=True):
            own.data = own.data.to(other)
        added.train(self.training)
        self.places.append(added.requires_grad_(True))

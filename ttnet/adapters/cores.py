"""`AdapterCores`: the trained cores of an adapter, some perhaps diagonal, which grow by a place."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ttnet._typing import Cores, CoresLike
from ttnet.errors import RankError, StateError
from ttnet.parameter import TTParameter
from ttnet.tensor_train import TensorTrain


class AdapterCores(TTParameter):
    """The cores of an adapter.

    A diagonal core is stored as its diagonals, a parameter of shape (r, n), and stands in the train as
    (r, n, r). Such a train is a CP decomposition along these modes; sweeps would mix what must keep apart.

    Args:
        train: Initial value.
        diagonal: Indices of the cores whose slices are diagonal.

    Raises:
        RankError: A core that is to be diagonal has different ranks on its sides.
    """

    def __init__(self, train: TensorTrain, diagonal: Sequence[int] = ()) -> None:
        super().__init__(train)
        self.diagonal = tuple(diagonal)
        for k in self.diagonal:
            core = getattr(self, f"core_{k}")
            if core.shape[0] != core.shape[2]:
                raise RankError(
                    f"rank: core {k} is diagonal and needs one rank on both sides, got {core.shape[0]} and "
                    f"{core.shape[2]}; give both bonds the same rank"
                )
            self.register_parameter(f"core_{k}", nn.Parameter(diagonals(core.detach())))

    @property
    def cores(self) -> Cores:
        """The live cores, core k of shape (r_k, n_k, r_{k+1})."""
        if self._substitute is not None:
            return self._substitute()
        parameters = self.core_parameters()
        return self._expand(parameters) if self.diagonal else parameters

    @property
    def ranks(self) -> tuple[int, ...]:
        """All d + 1 ranks; the first and the last are 1."""
        parameters = self.core_parameters()
        return (1, *(parameter.shape[0] for parameter in parameters[1:]), 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Mode sizes."""
        return tuple(parameter.shape[1] for parameter in self.core_parameters())

    def assign(self, train: TensorTrain | CoresLike) -> None:
        """Take new values, see `TTParameter.assign`.

        Raises:
            StateError: A core that must be diagonal is not, or inside `merged` or `substituted`.
        """
        if not self.diagonal:
            super().assign(train)
            return
        self._refuse_substitute("assign")
        cores = self._check_like(train)
        for k in self.diagonal:
            core = cores[k].detach()
            if core.shape[0] != core.shape[2] or not torch.equal(core, expand_diagonals(diagonals(core))):
                raise StateError(f"assign: core {k} of this adapter has diagonal slices, the new one has not")
        for k, core in enumerate(cores):
            self.replace(k, diagonals(core.detach()) if k in self.diagonal else core.detach())

    @torch.no_grad()
    def replace(self, k: int, value: Tensor) -> None:
        """Give the parameter of core k another value, of whatever shape; it stays the same object.

        Args:
            k: Index of the core.
            value: Shape (r, n, s), or (r, n) for a diagonal core.
        """
        parameter = self.core_parameters()[k]
        parameter.grad = None
        new = value.to(dtype=parameter.dtype, device=parameter.device, copy=True).contiguous()
        if new.shape == parameter.shape:
            parameter.copy_(new)
        else:
            parameter.set_(new)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def _expand(self, parameters: Sequence[Tensor]) -> Cores:
        return tuple(expand_diagonals(p) if k in self.diagonal else p for k, p in enumerate(parameters))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        if not self.diagonal:
            super()._load_from_state_dict(state_dict, prefix, *args)
        else:
            self._refuse_substitute("load_state_dict")
            nn.Module._load_from_state_dict(self, state_dict, prefix, *args)


def diagonals(core: Tensor) -> Tensor:
    """The diagonals (r, n) of the slices of a core (r, n, r)."""
    return core.diagonal(dim1=0, dim2=2).T.contiguous()


def expand_diagonals(values: Tensor) -> Tensor:
    """The core (r, n, r) whose slices have the diagonals `values` (r, n)."""
    return torch.diag_embed(values.T, dim1=0, dim2=2)

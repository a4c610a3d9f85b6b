"""`CoreChain`: what a train and a TT-matrix have in common as immutable chains of cores."""

from collections.abc import Iterable
from typing import Self

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor
from torch.utils import _pytree as pytree

from ttnet import linalg
from ttnet._typing import Cores
from ttnet.errors import DTypeError


class CoreChain:
    """Cores in a row, and the center of their gauge where it is known.

    The base of `TensorTrain` and `TTMatrix`, which check the cores and say what tensor they are.
    """

    __slots__ = ("_center", "_cores")
    _cores: Cores
    _center: int | None

    # numpy's scalars leave `number * train` to the train.
    __array_priority__ = 1000

    def __init__(self, cores: Iterable[Tensor], center: int | None = None) -> None:
        self._cores = tuple(cores)
        self._center = center

    @property
    def cores(self) -> Cores:
        """The cores, core k of shape (r_k, ..., r_{k+1})."""
        return self._cores

    @property
    def center(self) -> int | None:
        """The canonical center, or None where it is not known."""
        return self._center

    @property
    def ndim(self) -> int:
        """Number of modes d, one for each core."""
        return len(self._cores)

    @property
    def ranks(self) -> tuple[int, ...]:
        """All d + 1 ranks; the first and the last are 1."""
        return (*(core.shape[0] for core in self._cores), self._cores[-1].shape[-1])

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the cores."""
        return self._cores[0].dtype

    @property
    def device(self) -> torch.device:
        """Device of the cores."""
        return self._cores[0].device

    @property
    def num_parameters(self) -> int:
        """Number of entries of all cores."""
        return sum(core.numel() for core in self._cores)

    @property
    def requires_grad(self) -> bool:
        """Whether autograd follows any of the cores."""
        return any(core.requires_grad for core in self._cores)

    def full(self) -> Tensor:
        """The dense tensor."""
        raise TypeError(f"{type(self).__name__}: expected a train or a TT-matrix, which know their tensor")

    def numpy(self) -> np.ndarray:
        """The dense tensor as a numpy array, in memory of its own; half precision becomes float32."""
        dense = self.full().detach().resolve_conj()
        return dense.to(device="cpu", dtype=linalg.working_dtype(dense.dtype)).numpy()

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """The dense tensor for numpy."""
        dense = self.numpy()
        return dense if dtype is None else dense.astype(dtype, copy=False)

    def to(self, *args: object, **kwargs: object) -> Self:
        """Another dtype or device, with the arguments of `torch.Tensor.to`.

        Raises:
            DTypeError: An integer dtype, or a real one for complex cores.
        """
        target = self._cores[0].new_empty(0).to(*args, **kwargs).dtype  # pyright: ignore[reportCallIssue, reportArgumentType]
        linalg.working_dtype(target)
        if self.dtype.is_complex and not target.is_complex:
            raise DTypeError(
                f"dtype: expected a complex one for cores of {self.dtype}, got {target}; the real part "
                f"of a train is not the train of the real parts: take `.real`"
            )
        cores = tuple(core.to(*args, **kwargs) for core in self._cores)  # pyright: ignore[reportCallIssue, reportArgumentType]
        if all(new is old for new, old in zip(cores, self._cores, strict=True)):
            return self
        return type(self)(cores, self._center)

    def conj(self) -> Self:
        """The complex conjugate."""
        return type(self)([core.conj().resolve_conj() for core in self._cores], self._center)

    def detach(self) -> Self:
        """The same tensor, cut off from autograd."""
        return type(self)([core.detach() for core in self._cores], self._center)

    def clone(self) -> Self:
        """The same tensor in memory of its own."""
        return type(self)([core.clone() for core in self._cores], self._center)


def register_pytree(chain: type[CoreChain]) -> None:
    """Make a class of chains a pytree of torch, whose leaves are the cores.

    The center is not handed on: whatever is mapped over the cores may spoil the gauge.
    """

    def unflatten(leaves: Iterable[Tensor], _: object) -> CoreChain:
        # A pytree may hold anything while it is mapped (vmap's placeholders, None): no checks here.
        made = object.__new__(chain)
        made._cores = tuple(leaves)
        made._center = None
        return made

    pytree.register_pytree_node(
        chain,
        lambda train: (list(train.cores), None),
        unflatten,
        serialized_type_name=f"ttnet.{chain.__name__}",
    )

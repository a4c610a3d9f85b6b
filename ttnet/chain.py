"""`CoreChain`: what trains and TT-matrices have in common, immutable cores in a row and arithmetic."""

from collections.abc import Iterable
from typing import NoReturn, Self

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor
from torch.utils import _pytree as pytree

from ttnet import algebra, elementwise, linalg
from ttnet._typing import Cores, CoresLike
from ttnet.errors import DeviceError, DTypeError


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

    # Arithmetic, entry by entry ----------------------------------------------------------------------------

    def _promoted(self, other: object) -> tuple[Cores, Cores]:
        """The cores of both in one dtype."""
        if not isinstance(other, CoreChain) or other._cores[0].ndim != self._cores[0].ndim:
            raise DTypeError(f"other: expected a {type(self).__name__}, got {type(other).__name__}")
        if other.device != self.device:
            raise DeviceError(
                f"other: expected a {type(self).__name__} on {self.device}, got one on {other.device}; "
                f"use .to(...)"
            )
        dtype = torch.promote_types(self.dtype, other.dtype)
        return self.to(dtype).cores, other.to(dtype).cores

    def _operands(self, other: object) -> tuple[Cores, Cores]:
        """The cores of both in one dtype and one shape; a number stands for the constant chain."""
        if isinstance(other, CoreChain):
            return algebra.broadcast(*self._promoted(other))
        number = algebra.check_number(other)
        dtype = torch.result_type(self._cores[0], number)
        return self.to(dtype).cores, algebra.constant_like(self._cores, number, dtype)

    def __add__(self, other: "Self | complex | Tensor") -> Self:
        """Sum with another one, whose ranks add, or with a number, of rank 1; broadcasts as numpy does."""
        if isinstance(other, int) and other == 0:  # where the builtin `sum` begins
            return self
        return type(self)(algebra.add(*self._operands(other)))

    __radd__ = __add__

    def __sub__(self, other: "Self | complex | Tensor") -> Self:
        """Difference; the ranks add. Broadcasts as numpy does."""
        return type(self)(algebra.subtract(*self._operands(other)))

    def __rsub__(self, other: complex | Tensor) -> Self:
        """A number minus the entries."""
        return -self + other

    def __mul__(self, other: "Self | complex | Tensor") -> Self:
        """Entrywise product with another one, whose ranks multiply, or with a number; broadcasts as numpy."""
        if isinstance(other, CoreChain):
            return type(self)(algebra.hadamard(*self._operands(other)))
        factor = algebra.check_number(other)
        dtype = torch.result_type(self._cores[0], factor)
        return type(self)(algebra.scale(self.to(dtype).cores, factor, at=self._center or 0), self._center)

    __rmul__ = __mul__

    def __truediv__(self, other: "Self | complex | Tensor") -> Self:
        """Over a number exactly; entrywise over another one by cross approximation, as `ttnet.divide`."""
        if isinstance(other, CoreChain):
            return type(self)(_quotient(*self._operands(other)))
        number = algebra.check_number(other)
        return self * (number.reciprocal() if isinstance(number, Tensor) else 1 / number)

    def __rtruediv__(self, other: complex | Tensor) -> Self:
        """A number over the entries, by cross approximation, see `ttnet.divide`."""
        return type(self)(_quotient(*reversed(self._operands(other))))

    def __neg__(self) -> Self:
        """The negative."""
        return self * -1

    def __pow__(self, exponent: int) -> Self:
        """Entries to an integer power of at least 0; the ranks are raised to it, too.

        Raises:
            DTypeError: Another exponent.
        """
        return type(self)(algebra.power(self._cores, exponent))

    def __rpow__(self, base: object) -> NoReturn:
        """Refused, as it has no exact cores."""
        raise DTypeError(
            f"exponent: expected an integer of at least 0, got a {type(self).__name__}; for entries as "
            f"exponents use ttnet.apply_elementwise"
        )

    def __abs__(self) -> NoReturn:
        """Refused, as it has no exact cores."""
        raise DTypeError(
            f"abs: magnitudes of the entries of a {type(self).__name__} have no exact cores; use "
            f"ttnet.apply_elementwise(torch.abs, train), or train.norm()"
        )

    @property
    def real(self) -> Self:
        """The real part, of a real dtype; twice the ranks where the dtype is complex."""
        return type(self)(algebra.real_part(self._cores)) if self.dtype.is_complex else self

    @property
    def imag(self) -> Self:
        """The imaginary part, of a real dtype; twice the ranks where the dtype is complex, zero where not."""
        return type(self)(algebra.imaginary_part(self._cores)) if self.dtype.is_complex else self * 0

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


def _quotient(a: CoresLike, b: CoresLike) -> Cores:
    modes = algebra.modes_of(a)
    cores, report = elementwise.divide(*([core.flatten(1, -2) for core in cores] for cores in (a, b)))
    report.warn(stacklevel=4)
    return tuple(core.unflatten(1, sizes) for core, sizes in zip(cores, modes, strict=True))

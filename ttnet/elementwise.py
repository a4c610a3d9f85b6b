"""Functions of the entries of trains, by cross approximation: quotients, roots, anything vectorized."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.algebra import check_same_shape
from ttnet.cores import shape_of
from ttnet.cross import CrossOptions, CrossReport, cross
from ttnet.errors import ShapeError
from ttnet.gather import gather


def apply_elementwise(
    function: Callable[..., Tensor],
    trains: Sequence[CoresLike],
    *,
    options: CrossOptions | None = None,
    pivots: Tensor | None = None,
) -> tuple[Cores, CrossReport]:
    """A train of function(x, y, ...), entry by entry, of trains x, y, ...

    Args:
        function: From as many vectors (batch,) as there are trains to values (batch,).
        trains: Cores of tensors of one shape.
        options: Tolerance, caps and seed of the cross approximation; by default a tolerance of 1e-8, or what
            the dtype resolves, and a fixed seed.
        pivots: Indices (count, d) that are known to matter.

    Returns:
        The cores and the report, with the error on held-out entries: nothing is differentiated through it.

    Raises:
        ShapeError: No train, or different shapes.
        NonFiniteError: The function returned a NaN or an infinity; the message tells the index.
    """
    if not len(trains):
        raise ShapeError("trains: expected at least one train, got none")
    for cores in trains[1:]:
        check_same_shape(trains[0], cores)
    storage = trains[0][0].dtype
    working = linalg.working_dtype(storage)
    detached = [[core.detach().to(working) for core in cores] for cores in trains]
    cores, report = cross(
        lambda indices: function(*(gather(cores, indices) for cores in detached)),
        shape_of(trains[0]),
        options=options or CrossOptions(rtol=max(1e-8, 200 * torch.finfo(working).eps), seed=0),
        pivots=pivots,
        device=trains[0][0].device,
    )
    is_half = storage != working == cores[0].dtype
    return (tuple(core.to(storage) for core in cores) if is_half else cores), report


def divide(a: CoresLike, b: CoresLike, *, options: CrossOptions | None = None) -> tuple[Cores, CrossReport]:
    """The quotient a / b, entry by entry.

    Args:
        a: Cores of a tensor.
        b: Cores of a tensor of the same shape, without zeros.
        options: Tolerance, caps and seed, see `apply_elementwise`.

    Returns:
        The cores and the report, with the error on held-out entries.

    Raises:
        ShapeError: The shapes differ.
        NonFiniteError: A zero of `b` was met.
    """
    return apply_elementwise(lambda x, y: x / y, (a, b), options=options)

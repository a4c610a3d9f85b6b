"""The tangent space of the trains of fixed ranks: projection onto it, and Riemannian gradients.

At a train x with left-orthogonal cores U_k and right-orthogonal cores V_k the tangent vectors are the sums
over k of U_0 ... U_{k-1} D_k V_{k+1} ... V_{d-1}, with D_k orthogonal to U_k for k < d - 1. Such a sum is a
train of twice the ranks:

    [D_0 U_0]   [V_1  0 ]         [V_{d-1}]
                [D_1 U_1]   ...   [D_{d-1}]
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ttnet._typing import Cores, CoresLike
from ttnet.algebra import check_same_shape
from ttnet.cores import absorb_left, absorb_right, extend_left, extend_right, left_unfold
from ttnet.gauge import orthogonalize
from ttnet.tensor_train import TensorTrain


def tangent_projection(vector: TensorTrain, at: TensorTrain) -> TensorTrain:
    """Orthogonal projection of a train onto the tangent space at another, as for a gradient.

    Args:
        vector: What is projected.
        at: The train whose tangent space is meant, of the same shape. Its ranks should be minimal: along
            redundant directions the tangent space is not defined.

    Returns:
        A train of twice the ranks of `at`.

    Raises:
        ShapeError: The shapes differ.

    References:
        Holtz, Rohwedder and Schneider, Numer. Math. 120, 701 (2012); Steinlechner, SIAM J. Sci. Comput. 38,
        S461 (2016).

    Examples:
        >>> import torch, ttnet
        >>> x = ttnet.random_train((4, 5, 6), rank=2, seed=0, dtype=torch.float64)
        >>> tangent = ttnet.tangent_projection(x, at=x)
        >>> tangent.ranks, bool(ttnet.distance(tangent, x) < 1e-12 * x.norm())
        ((1, 4, 4, 1), True)
    """
    check_same_shape(vector.cores, at.cores)
    dtype = torch.promote_types(vector.dtype, at.dtype)
    cores, base = vector.to(dtype).cores, at.to(dtype).cores
    last = len(cores) - 1
    lefts, rights = orthogonalize(base, last), orthogonalize(base, 0)
    one = cores[0].new_ones(1, 1)
    behind = [one]
    for k in range(last, 0, -1):
        behind.append(extend_right(behind[-1], rights[k], cores[k]))
    before, changes = one, []
    for k, (left, core) in enumerate(zip(lefts, cores, strict=True)):
        changes.append(absorb_right(absorb_left(before, core), behind[last - k].mT))
        before = extend_left(before, left, core)
    return TensorTrain(_tangent_cores(_horizontal(changes, lefts), lefts, rights))


def riemannian_gradient(function: Callable[[TensorTrain], Tensor], at: TensorTrain) -> TensorTrain:
    """Gradient of a function of trains, projected onto the tangent space; the dense one is never formed.

    Args:
        function: Maps a train to a real scalar tensor, differentiably.
        at: Where the gradient is taken.

    Returns:
        A train of twice the ranks of `at`: the tangent vector along which the function rises fastest.

    Raises:
        ShapeError: `function` returns no scalar.

    References:
        Novikov, Rakhuba and Oseledets, SIAM J. Sci. Comput. 44, A843 (2022).
    """
    base = [core.detach() for core in at.cores]
    lefts, rights = orthogonalize(base, -1), orthogonalize(base, 0)
    with torch.enable_grad():
        # At these changes the tangent vector is `at` itself.
        changes = [torch.zeros_like(core).requires_grad_() for core in lefts[:-1]]
        changes.append(lefts[-1].clone().requires_grad_())
        value = function(TensorTrain(_tangent_cores(changes, lefts, rights)))
        slopes = torch.autograd.grad(value, changes)
    return TensorTrain(_tangent_cores(_horizontal(slopes, lefts), lefts, rights))


def _horizontal(changes: Sequence[Tensor], lefts: CoresLike) -> list[Tensor]:
    """Changes without the part along the left-orthogonal cores, which only changes the gauge."""
    result = []
    for change, left in zip(changes[:-1], lefts[:-1], strict=True):
        unfolded, basis = left_unfold(change), left_unfold(left)
        result.append((unfolded - basis @ (basis.mH @ unfolded)).reshape(change.shape))
    return [*result, changes[-1]]


def _tangent_cores(changes: Sequence[Tensor], lefts: CoresLike, rights: CoresLike) -> Cores:
    """Cores [[V, 0], [D, U]], the last row alone at the left end, the first column alone at the right end."""
    result, last = [], len(changes) - 1
    for k, (change, left, right) in enumerate(zip(changes, lefts, rights, strict=True)):
        column = change if k == 0 else torch.cat([right, change], 0)
        if k == last:
            result.append(column)
            continue
        zero = left.new_zeros(0 if k == 0 else right.shape[0], *left.shape[1:])
        result.append(torch.cat([column, torch.cat([zero, left], 0)], 2))
    return tuple(result)

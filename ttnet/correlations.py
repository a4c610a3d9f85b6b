"""Two-point functions of a train read as a state, all pairs of sites in one sweep."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ttnet import cores as _cores
from ttnet.matrix_cores import tensordot
from ttnet.measure import SiteMatrices, matrices_by_site, normalized_cores, site_densities, trace_with
from ttnet.tensor_train import TensorTrain


def correlations(
    first: SiteMatrices, second: SiteMatrices, train: TensorTrain, *, connected: bool = False
) -> Tensor:
    """Two-point function <A_i B_j> of all pairs of sites, in one sweep.

    Args:
        first: A, one matrix (n, n) for all sites, or one for each.
        second: B, likewise.
        train: The state, of any norm but 0.
        connected: Whether <A_i> <B_j> is subtracted.

    Returns:
        Shape (d, d); the diagonal holds <A_i B_i>, the matrix product on one site.

    Raises:
        ShapeError: A matrix does not fit its site.
        NonFiniteError: The train is zero.
    """
    a, b = matrices_by_site(first, train, "first"), matrices_by_site(second, train, "second")
    cores = normalized_cores(train)
    dtype = torch.promote_types(cores[0].dtype, torch.promote_types(a[0].dtype, b[0].dtype))
    upper = _upper_correlations(a, b, [core.to(dtype) for core in cores])
    # Matrices of different sites commute, so that the lower triangle is B_j A_i with j on the left.
    lower = upper if first is second else _upper_correlations(b, a, [core.to(dtype) for core in cores])
    densities = site_densities(train)
    same = [
        trace_with(x @ y, rho.to(dtype))
        for x, y, rho in zip(_as(a, dtype), _as(b, dtype), densities, strict=True)
    ]
    result = upper + lower.mT + torch.diag(torch.stack(same))
    if connected:
        means = [
            torch.stack([trace_with(o, rho) for o, rho in zip(by, densities, strict=True)]) for by in (a, b)
        ]
        result = result - means[0].to(dtype)[:, None] * means[1].to(dtype)
    return result


def _upper_correlations(a: list[Tensor], b: list[Tensor], cores: Sequence[Tensor]) -> Tensor:
    """<A_i B_j> for i < j, zeros elsewhere; for right-orthogonal cores of norm 1."""
    count, dtype = len(cores), cores[0].dtype
    a, b = _as(a, dtype), _as(b, dtype)
    environment = cores[0].new_ones(1, 1)
    opened = cores[0].new_zeros(0, 1, 1)  # (i, r, r): the environment with A_i in it
    columns = []
    for core, left, right in zip(cores, a, b, strict=True):
        rank = core.shape[2]
        closing = tensordot(core.conj(), _act(right, core), [1, 2], [1, 2])
        values = opened.flatten(1) @ closing.flatten()
        columns.append(torch.cat([values, values.new_zeros(count - len(values))]))
        half = (opened.reshape(-1, core.shape[0]) @ core.flatten(1)).reshape(
            len(opened), core.shape[0] * core.shape[1], rank
        )
        opened = _cores.left_unfold(core).mH @ half
        half = _cores.absorb_left(environment, core)
        bra = _cores.left_unfold(core).mH
        opened = torch.cat([opened, (bra @ _cores.left_unfold(_act(left, half)))[None]])
        environment = bra @ _cores.left_unfold(half)
    return torch.stack(columns, 1)


def _act(matrix: Tensor, core: Tensor) -> Tensor:
    """Matrix (m, n) on the mode of core (l, n, r): (l, m, r)."""
    return tensordot(core, matrix, [1], [1]).transpose(1, 2)


def _as(matrices: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [matrix.to(dtype) for matrix in matrices]

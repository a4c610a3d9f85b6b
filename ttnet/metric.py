"""A metric of the modes: errors measured in the norm sqrt(vec(x)^H (C_0 x ... x C_{d-1}) vec(x)).

With C_k = L_k^H L_k, the norm is the Frobenius norm of the train whose mode k has been multiplied by L_k.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.errors import ConfigError, ShapeError


@dataclass(frozen=True, kw_only=True)
class Root:
    """A factor L (m, n) of a matrix L^H L (n, n), m <= n, and its pseudo-inverse (n, m)."""

    factor: Tensor
    inverse: Tensor

    @property
    def condition(self) -> float:
        """An upper bound of the condition number."""
        return float(torch.linalg.vector_norm(self.factor.detach())) * float(
            torch.linalg.vector_norm(self.inverse.detach())
        )


def factor_metric(metric: Sequence[Tensor | None], cores: CoresLike) -> list[Root | None]:
    """Factor each matrix of a metric.

    By Cholesky; where that fails, by eigenvalues. Those below 4 n eps times the largest count as zero, and
    the pseudo-inverse drops what they do not see: errors are those of the metric so understood.

    Args:
        metric: One Hermitian positive semidefinite matrix (n_k, n_k) or None for each mode.
        cores: Core k of shape (r_k, n_k, r_{k+1}).

    Returns:
        One `Root` or None for each mode.

    Raises:
        ShapeError: Another number of matrices than modes, or a matrix that does not fit its mode.
        ConfigError: A matrix is not Hermitian, has a negative eigenvalue, vanishes, or is complex while the
            train is real.
    """
    if len(metric) != len(cores):
        raise ShapeError(
            f"metric: expected one matrix or None for each of {len(cores)} modes, got {len(metric)}"
        )
    return [
        None if c is None else _factor(c, core, k)
        for k, (c, core) in enumerate(zip(metric, cores, strict=True))
    ]


def _factor(matrix: Tensor, core: Tensor, k: int) -> Root:
    size = core.shape[1]
    if matrix.shape != (size, size):
        raise ShapeError(f"metric: expected shape ({size}, {size}) for mode {k}, got {tuple(matrix.shape)}")
    if matrix.is_complex() and not core.is_complex():
        raise ConfigError(f"metric: expected a real matrix for mode {k} of a real train, got {matrix.dtype}")
    matrix = matrix.to(core.device, linalg.working_dtype(core.dtype))
    largest = float(matrix.detach().abs().amax())
    tolerance = size * torch.finfo(matrix.dtype).eps
    if not 0 < largest < math.inf:
        raise ConfigError(
            f"metric: expected a finite matrix other than zero for mode {k}; None is the identity"
        )
    if float((matrix - matrix.mH).detach().abs().amax()) > 8 * tolerance * largest:
        raise ConfigError(f"metric: expected a Hermitian matrix for mode {k}; take (C + C.mH) / 2")
    lower, info = torch.linalg.cholesky_ex(matrix)
    # A tiny pivot is one that roundoff may have made.
    if int(info) == 0 and float(lower.detach().diagonal().abs().amin()) ** 2 > 4 * tolerance * largest:
        eye = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        return Root(factor=lower.mH, inverse=torch.linalg.solve_triangular(lower.mH, eye, upper=True))
    values, vectors = torch.linalg.eigh(matrix)
    limit = 4 * tolerance * float(values[-1])
    if float(values[0]) < -8 * tolerance * largest:
        raise ConfigError(
            f"metric: expected no negative eigenvalue for mode {k}, got {float(values[0]):.3g} beside "
            f"{float(values[-1]):.3g}"
        )
    seen = values > limit
    roots, vectors = values[seen].sqrt(), vectors[:, seen]
    return Root(factor=roots.unsqueeze(1) * vectors.mH, inverse=vectors / roots)


def apply_modes(matrices: Sequence[Tensor | None], cores: CoresLike) -> Cores:
    """Multiply each mode by a matrix.

    Args:
        matrices: One (m_k, n_k) or None for each mode.
        cores: Core k of shape (r_k, n_k, r_{k+1}).

    Returns:
        Cores (r_k, m_k, r_{k+1}) in float32 or better.
    """
    dtype = linalg.working_dtype(cores[0].dtype)
    return tuple(
        core.to(dtype) if matrix is None else matrix @ core.to(dtype)
        for matrix, core in zip(matrices, cores, strict=True)
    )

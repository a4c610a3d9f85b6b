"""Lanczos: the lowest eigenvector of a block's operator in a small Krylov space.

A loose solve is enough: the environments change at the next block anyway.
"""

import torch
from torch import Tensor

from ttnet.errors import ConfigError
from ttnet.optim.local.problem import HasOperator, LocalProblem, LocalResult, Start


def lanczos(local: LocalProblem, start: Start, *, steps: int = 4, damping: float = 0.0) -> LocalResult:
    """The lowest Ritz pair of a Krylov space of `steps` vectors, fully reorthogonalized.

    Args:
        local: A Rayleigh quotient, `local.apply` its Hermitian operator.
        start: Where to begin; its gradient spares the first product.
        steps: Dimension of the Krylov space.
        damping: Not used; every solver has the same call.

    Returns:
        The result, of norm 1.

    Raises:
        ConfigError: `local` is no Rayleigh quotient.

    References:
        Golub and Van Loan, Matrix Computations, section 10.1.
    """
    del damping
    if not isinstance(local, HasOperator):
        raise ConfigError("solver: 'lanczos' needs a Rayleigh quotient; use 'newton-cg' for any other loss")
    shape = start.block.shape
    norm = torch.linalg.vector_norm(start.block)
    vector = (start.block / norm).reshape(-1)
    # The gradient of a Rayleigh quotient is 2 (H x - E x) / |x|^2.
    residual = start.gradient.reshape(-1) * (norm / 2)
    basis, diagonal, off_diagonal = [vector], [start.loss], []
    used = 0
    for step in range(1, min(steps, vector.numel())):
        residual = _orthogonalize(residual, basis)
        size = float(torch.linalg.vector_norm(residual))
        if size <= 1e-14 * (1.0 + abs(start.loss)):
            break
        off_diagonal.append(size)
        vector = residual / size
        basis.append(vector)
        image = local.apply(vector.reshape(shape)).reshape(-1)
        used += 1
        diagonal.append(float(torch.vdot(vector, image).real))
        if step + 1 < steps:
            residual = image - diagonal[-1] * vector - size * basis[-2]
    if len(basis) == 1:
        return LocalResult(block=vector.reshape(shape), loss=start.loss, evaluations=used)
    band = torch.diag(torch.tensor(off_diagonal, dtype=torch.float64), -1)
    values, vectors = torch.linalg.eigh(torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + band)
    weights = vectors[:, 0].to(basis[0].dtype).to(basis[0].device)
    block = torch.stack(basis, 1) @ weights
    return LocalResult(
        block=(block / torch.linalg.vector_norm(block)).reshape(shape),
        loss=float(values[0]),
        evaluations=used,
    )


def _orthogonalize(vector: Tensor, basis: list[Tensor]) -> Tensor:
    for known in basis:
        vector = vector - torch.vdot(known, vector) * known
    return vector

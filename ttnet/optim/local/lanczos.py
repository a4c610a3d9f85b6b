"""Lanczos: the lowest eigenvector of a block's operator in a small Krylov space.

A loose solve is enough: the environments change at the next block anyway.
"""

import numpy as np
import torch

from ttnet.errors import ConfigError
from ttnet.optim.local.problem import HasOperator, LocalProblem, LocalResult, Start


def lanczos(
    local: LocalProblem, start: Start, *, steps: int = 8, damping: float = 0.0, reduction: float = 0.1
) -> LocalResult:
    """The lowest Ritz pair of a Krylov space of at most `steps` vectors, fully reorthogonalized.

    Args:
        local: A Rayleigh quotient, `local.apply` its Hermitian operator.
        start: Where to begin; its gradient spares the first product.
        steps: Largest dimension of the Krylov space.
        damping: Not used; every solver has the same call.
        reduction: It ends when the residual has fallen by this factor.

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
    size = start.block.numel()
    basis = start.block.new_empty(min(steps, size), size)
    torch.div(start.block.reshape(-1), norm, out=basis[0])
    # The gradient of a Rayleigh quotient is 2 (H x - E x) / |x|^2.
    residual = start.gradient.reshape(-1) * (norm / 2)
    diagonal, off_diagonal = [start.loss], []
    lowest, weights = start.loss, np.ones(1)
    scale = abs(start.loss)
    for step in range(1, len(basis)):
        known = basis[:step]
        residual = residual - torch.mv(known.mT, torch.mv(known.conj(), residual))
        length = float(torch.linalg.vector_norm(residual))
        enough = reduction * off_diagonal[0] if off_diagonal else 0.0
        scale = max(scale, length, abs(diagonal[-1]))
        if length * abs(weights[-1]) <= max(enough, 1e-14 * scale):
            break
        off_diagonal.append(length)
        vector = torch.div(residual, length, out=basis[step])
        image = local.apply(vector.reshape(shape)).reshape(-1)
        diagonal.append(float(torch.vdot(vector, image).real))
        # What the full reorthogonalization then removes is roundoff.
        residual = image - diagonal[-1] * vector - length * basis[step - 1]
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off_diagonal, -1))
        lowest, weights = float(values[0]), vectors[:, 0]
    used = len(diagonal) - 1
    coefficients = torch.as_tensor(weights, dtype=basis.dtype, device=basis.device)
    block = torch.mv(basis[: used + 1].mT, coefficients)
    block = (block / torch.linalg.vector_norm(block)).reshape(shape)
    return LocalResult(block=block, loss=lowest, evaluations=used)

"""The exact minimum of a small quadratic block by a dense factorization.

Local systems inherit the condition number of the whole one, which for a discretized differential operator is
beyond conjugate gradients or GMRES with a few vectors. A few hundred unknowns are solved for at once instead.
"""

import torch

from ttnet.optim.local.problem import HasMatrix, LocalProblem, LocalResult, Start

LARGEST_BLOCK = 800
"""Most entries of a block for which the local matrix is formed."""


def direct(local: LocalProblem, start: Start) -> LocalResult | None:
    """Solve matrix x = vector for the block, where the problem shows its matrix and is small enough.

    Args:
        local: A quadratic form, or a projected system.
        start: Where the sweep has come.

    Returns:
        The result; None where an iteration is to be used, also where the matrix is singular.
    """
    size = start.block.numel()
    if size > LARGEST_BLOCK or not isinstance(local, HasMatrix) or local.vector is None:
        return None
    matrix, vector = local.as_matrix(), local.vector.reshape(size, 1)
    factors, pivots, failed = torch.linalg.lu_factor_ex(matrix)
    if bool(failed):
        return None
    solution = torch.linalg.lu_solve(factors, pivots, vector)
    residual = vector - matrix @ solution
    solution = solution + torch.linalg.lu_solve(factors, pivots, residual)  # one step of refinement
    if not bool(torch.isfinite(solution).all()):
        return None
    block = solution.reshape(start.block.shape)
    return LocalResult(block=block, loss=local.value(block), evaluations=2)

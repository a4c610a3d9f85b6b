"""GMRES on a block, for systems that are not symmetric."""

import torch
from torch import Tensor

from ttnet.errors import ConfigError
from ttnet.optim.local.direct import direct
from ttnet.optim.local.problem import HasSystem, LocalProblem, LocalResult, Start


def gmres(local: LocalProblem, start: Start, *, steps: int = 30, damping: float = 1e-10) -> LocalResult:
    """The block of least projected residual in a Krylov space; the solution where it is small.

    Args:
        local: A projected system, `local.multiply` its operator and `local.vector` its right-hand side.
        start: Where to begin.
        steps: Dimension of the Krylov space.
        damping: Relative residual at which to stop.

    Returns:
        The result; its loss is the relative projected residual.

    Raises:
        ConfigError: `local` is no projected system.

    References:
        Saad and Schultz, SIAM J. Sci. Stat. Comput. 7, 856 (1986).
    """
    if not isinstance(local, HasSystem):
        raise ConfigError("solver: 'gmres' needs a LinearSystem(kind='galerkin'); use 'newton-cg' for a loss")
    exact = direct(local, start)
    if exact is not None:
        return exact
    shape = start.block.shape
    residual = (local.vector - local.multiply(start.block)).reshape(-1)
    size = float(torch.linalg.vector_norm(residual))
    target = damping * float(torch.linalg.vector_norm(local.vector))
    if size <= target:
        return LocalResult(block=start.block, loss=start.loss, evaluations=1)
    count = min(steps, residual.numel())
    hessenberg = torch.zeros(count + 1, count, dtype=residual.dtype)
    basis = [residual / size]
    used, weights = 0, None
    for step in range(count):
        image = local.multiply(basis[-1].reshape(shape)).reshape(-1)
        for _ in range(2):  # twice is enough
            for k, known in enumerate(basis):
                overlap = torch.vdot(known, image)
                hessenberg[k, step] += overlap.cpu()
                image = image - overlap * known
        length = float(torch.linalg.vector_norm(image))
        hessenberg[step + 1, step] = length
        used = step + 1
        weights, rest = _least_squares(hessenberg[: used + 1, :used], size)
        if rest <= target or length <= 1e-14 * size:
            break
        basis.append(image / length)
    if weights is None:
        return LocalResult(block=start.block, loss=start.loss, evaluations=1)
    change = torch.stack(basis[:used], 1) @ weights.to(residual.device)
    block = start.block + change.reshape(shape)
    return LocalResult(block=block, loss=local.value(block), evaluations=used + 2)


def _least_squares(hessenberg: Tensor, size: float) -> tuple[Tensor, float]:
    right = torch.zeros(len(hessenberg), 1, dtype=hessenberg.dtype)
    right[0] = size
    weights = torch.linalg.lstsq(hessenberg, right).solution
    return weights[:, 0], float(torch.linalg.vector_norm(hessenberg @ weights - right))

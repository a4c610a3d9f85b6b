"""Random trains with chosen singular values at every bond."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores
from ttnet.cores import possible_ranks
from ttnet.errors import ConfigError, RankError, ShapeError
from ttnet.random import check_shape

_MAX_ITERATIONS = 2000


def random_with_spectra(
    shape: Sequence[int],
    spectra: Tensor | Sequence[Tensor | Sequence[float]],
    *,
    norm: float = 1.0,
    seed: int | torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> Cores:
    """A random train whose bonds have the given singular values, up to one scale that makes its norm `norm`.

    A core between bonds with singular values L and R must have row norms L and column norms R at once. Such a
    core is found from a random one by scaling rows and columns in turn, which converges if and only if one
    exists. It need not: next to a mode of size n, the n largest squares of one bond together cannot be below
    the largest square of the other, for instance.

    Args:
        shape: Mode sizes (n_0, ..., n_{d-1}).
        spectra: Singular values of each of the d - 1 bonds, positive, at most as many as the bond allows; or
            one vector for all bonds, cut to what each allows.
        norm: Frobenius norm of the train.
        seed: An integer, a generator, or None for torch's global generator.
        dtype: Default: torch's default dtype.

    Returns:
        Cores in the canonical gauge with center 0. The squares of the singular values are right to 1e-12 of
        the largest in float64, and to the precision of the dtype otherwise.

    Raises:
        ShapeError: A mode below 1, or not one spectrum for each bond.
        RankError: More singular values than a bond allows.
        ConfigError: Singular values that are not positive, or that no train has.
    """
    sizes = check_shape(shape)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    linalg.working_dtype(dtype)
    values = [torch.ones(1, dtype=torch.float64), *_read(spectra, sizes), torch.ones(1, dtype=torch.float64)]
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    work = torch.complex128 if dtype.is_complex else torch.float64
    cores = []
    for k, n in enumerate(sizes):
        start = torch.randn(len(values[k]), n, len(values[k + 1]), generator=generator, dtype=work)
        core = _balance(start, values[k], values[k + 1], k)
        # Without the singular values of the left bond the rows are orthonormal.
        cores.append(core / values[k][:, None, None])
    cores[0] = cores[0] * norm
    return tuple(core.to(dtype) for core in cores)


def _balance(core: Tensor, left: Tensor, right: Tensor, k: int) -> Tensor:
    """Scale a core (l, n, r) until its row Gram matrix is diag(left^2) and its column one diag(right^2)."""
    shape = core.shape
    for _ in range(_MAX_ITERATIONS):
        columns = _polar(core.reshape(-1, shape[2])) * right
        rows = columns.reshape(shape[0], -1)
        core = (left[:, None] * _polar(rows)).reshape(shape)
        gram = core.reshape(-1, shape[2])
        gram = gram.mH @ gram
        if float((gram - torch.diag(right.square())).abs().max()) < 1e-13:
            return core
    raise ConfigError(
        f"spectra: expected singular values that a core can join, got none for mode {k} of size {shape[1]} "
        f"between {_show(left)} and {_show(right)}; make the two more alike"
    )


def _polar(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal rows or columns."""
    u, _, vh = linalg.svd(matrix)
    return u @ vh


def _read(spectra: Tensor | Sequence[Tensor | Sequence[float]], sizes: tuple[int, ...]) -> list[Tensor]:
    possible = possible_ranks(sizes)
    if isinstance(spectra, Tensor) and spectra.ndim == 1:
        given: list[Tensor] = [spectra[:limit] for limit in possible]
    else:
        given = [
            values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
            for values in spectra
        ]
    if len(given) != len(possible):
        raise ShapeError(
            f"spectra: expected one vector for each of the {len(possible)} bonds, got {len(given)}"
        )
    found = []
    for k, (values, limit) in enumerate(zip(given, possible, strict=True)):
        if values.ndim != 1 or not values.numel() or values.is_complex() or not bool((values > 0).all()):
            raise ConfigError(f"spectra: expected positive numbers at bond {k}, got {values.tolist()}")
        if values.numel() > limit:
            raise RankError(f"spectra: expected at most {limit} values at bond {k}, got {values.numel()}")
        values = values.detach().to("cpu", torch.float64).sort(descending=True)[0]
        found.append(values / linalg.frobenius_norm(values))
    return found


def _show(values: Tensor) -> str:
    return (
        "["
        + ", ".join(f"{value:.3g}" for value in values.tolist()[:6])
        + (", ...]" if len(values) > 6 else "]")
    )

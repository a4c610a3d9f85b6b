"""The rows of the benchmark of trains: data, check of the results, and the floor of bare LAPACK and GEMM.

A row says which method of the rivals does its work. Its problem is made in one of two sizes: "full", which is
measured, and "tiny", with which every rival is called once before (compilers, thread pools, lazy imports).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from train_checks import dense, direct_sum, distance, entries, prefix_vectors, random_train, relative, rounded


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Data of a row, as torch tensors, and what the results are held against.

    Attributes:
        data: What the rivals are given.
        error_of: Relative error of a result, in double precision.
        allowed: Largest error that counts as a solution.
        floors: Bare matrix work of this size, by name.
    """

    data: SimpleNamespace
    error_of: Callable[[Any], float]
    allowed: float
    floors: dict[str, Callable[[], Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One piece of work: what it is called, which method does it, how its problem is made."""

    title: str
    method: str
    make: Callable[[torch.dtype, torch.Generator], Problem]
    make_tiny: Callable[[torch.dtype, torch.Generator], Problem]
    has_memory: bool = False


def is_double(dtype: torch.dtype) -> bool:
    """Whether the tolerances are those of double precision."""
    return dtype == torch.float64


def tt_svd(dtype: torch.dtype, generator: torch.Generator, shape: Sequence[int], rank: int) -> Problem:
    """A train of one rank and noise well below the tolerance."""
    rtol, noise = (1e-6, 1e-8) if is_double(dtype) else (1e-2, 1e-4)
    cores = random_train(shape, rank, torch.float64, generator)
    exact = dense(cores)
    exact /= torch.linalg.vector_norm(exact)
    exact += (
        noise / math.sqrt(exact.numel()) * torch.randn(exact.shape, generator=generator, dtype=torch.float64)
    )
    tensor = exact.to(dtype)
    ranks = [1, *(core.shape[2] for core in cores)]
    unfoldings, rest = [], tensor
    for k in range(len(shape) - 1):
        unfoldings.append(rest.reshape(ranks[k] * shape[k], -1).contiguous())
        u = torch.linalg.eigh((unfoldings[k] @ unfoldings[k].T).double())[1][:, -ranks[k + 1] :].to(dtype)
        rest = u.T @ unfoldings[k]

    def qr_first() -> None:
        for matrix, kept in zip(unfoldings, ranks[1:], strict=False):
            if matrix.shape[1] > matrix.shape[0]:
                triangle = torch.linalg.qr(matrix.T, mode="r")[1]
                torch.linalg.svd(triangle)[2][:kept] @ matrix
            else:
                torch.linalg.svd(matrix, full_matrices=False)

    def gram() -> None:
        for matrix, kept in zip(unfoldings, ranks[1:], strict=False):
            torch.linalg.eigh(matrix @ matrix.T)[1][:, -kept:].T @ matrix

    return Problem(
        data=SimpleNamespace(tensor=tensor, rtol=rtol, ranks=ranks),
        error_of=lambda found: relative(dense(found), exact),
        allowed=rtol,
        floors={
            "SVDs": lambda: [torch.linalg.svd(matrix, full_matrices=False) for matrix in unfoldings],
            "QR first": qr_first,
            "Gram": gram,
        },
    )


def rounding(
    dtype: torch.dtype,
    generator: torch.Generator,
    modes: int,
    rank: int,
    *,
    collapses: bool,
    by_rank: bool = True,
) -> Problem:
    """Four trains of one rank: multiples of one, or unrelated ones of falling weight."""
    shape = [10] * modes
    first = random_train(shape, rank, torch.float64, generator)
    weights = [1.0, -0.5, 0.25, 2.0] if collapses else [1.0, 0.1, 0.01, 0.001]
    parts = [first if collapses else random_train(shape, rank, torch.float64, generator) for _ in weights]
    parts = [[weight * part[0], *part[1:]] for weight, part in zip(weights, parts, strict=True)]
    cores = [core.to(dtype) for core in direct_sum(parts)]
    rtol = 1e-6 if is_double(dtype) else 1e-3
    allowed = rtol if collapses else 1.02 * distance(rounded(cores, rank), cores)
    whole = torch.randn(10 * 4 * rank, 4 * rank, generator=generator, dtype=torch.float64).to(dtype)
    cut = torch.randn(10 * rank, 4 * rank, generator=generator, dtype=torch.float64).to(dtype)

    def lapack() -> None:
        for _ in range(modes - 1):
            torch.linalg.qr(whole)
            torch.linalg.svd(cut, full_matrices=False)

    def gram() -> None:
        square = whole[: 4 * rank]
        for _ in range(modes - 1):
            whole @ square
            small = whole.T @ whole
            torch.linalg.eigh(small)
            cut @ square

    return Problem(
        data=SimpleNamespace(cores=cores, max_rank=rank if by_rank else None, rtol=None if by_rank else rtol),
        error_of=lambda found: distance(found, cores),
        allowed=allowed,
        floors={"QRs and SVDs": lapack, "Gram": gram},
    )


def dot(dtype: torch.dtype, generator: torch.Generator, modes: int, rank: int) -> Problem:
    """A train and a neighbor of it, so that the product is no roundoff."""
    shape = [10] * modes
    a = random_train(shape, rank, dtype, generator)
    b = [0.9 * x + 0.3 * y for x, y in zip(a, random_train(shape, rank, dtype, generator), strict=True)]
    # In another order, from the right, where one core of each product is summed first.
    environment = torch.ones(1, 1, dtype=torch.float64)
    for x, y in zip(reversed(a), reversed(b), strict=True):
        environment = torch.einsum(
            "anb,cnb->ac", torch.einsum("anb,bd->and", x.double(), environment), y.double()
        )
    wanted = float(environment)
    square = torch.randn(rank, rank, generator=generator, dtype=torch.float64).to(dtype)
    wide, tall = a[modes // 2].flatten(1).contiguous(), a[modes // 2].flatten(0, 1).contiguous()

    def gemm() -> None:
        for _ in range(modes):
            square @ wide
            tall.T @ tall

    return Problem(
        data=SimpleNamespace(a=a, b=b),
        error_of=lambda found: abs(found - wanted) / abs(wanted),
        allowed=1e-11 if is_double(dtype) else 1e-4,
        floors={"GEMMs": gemm},
    )


def apply(dtype: torch.dtype, generator: torch.Generator, modes: int, matrix_rank: int, rank: int) -> Problem:
    """The identity and a perturbation of a hundredth, so that a product of the old rank makes sense."""
    n = 4
    train = random_train([n] * modes, rank, torch.float64, generator)
    flat = random_train([n * n] * modes, matrix_rank - 1, torch.float64, generator)
    identity = [torch.eye(n, dtype=torch.float64).reshape(1, n * n, 1)] * modes
    # sqrt(n) a mode: entries as those of a matrix of norm about 1.
    scaled = [math.sqrt(n) * core for core in flat]
    scaled[0] = 0.01 * scaled[0]
    merged = direct_sum([identity, scaled])
    matrix = [core.reshape(core.shape[0], n, n, core.shape[2]).to(dtype) for core in merged]
    cores = [core.to(dtype) for core in train]
    exact = [
        torch.einsum("amnb,cnd->acmbd", a.double(), x.double()).flatten(3, 4).flatten(0, 1)
        for a, x in zip(matrix, cores, strict=True)
    ]
    product = matrix_rank * rank
    whole = torch.randn(product, n, product, generator=generator, dtype=torch.float64).to(dtype)
    grown = torch.randn(rank * n, product, generator=generator, dtype=torch.float64).to(dtype)

    def direct() -> None:
        tall = whole.flatten(0, 1)
        for _ in range(modes - 1):
            torch.linalg.qr(tall)
            torch.linalg.svd(grown, full_matrices=False)

    environment = whole[:, 0]
    site, operator = cores[modes // 2], matrix[modes // 2]

    def density() -> None:
        for _ in range(modes - 1):
            step = environment.reshape(-1, rank) @ site.flatten(1)
            step.reshape(-1, n * matrix_rank) @ operator.permute(0, 2, 1, 3).reshape(n * matrix_rank, -1)
            environment @ grown.T
            torch.linalg.eigh(grown @ grown.T)

    return Problem(
        data=SimpleNamespace(matrix=matrix, cores=cores, max_rank=rank),
        error_of=lambda found: distance(found, exact),
        allowed=1.1 * distance(rounded(exact, rank), exact),
        floors={"QRs and SVDs of the product": direct, "density matrices, in part": density},
    )


def _indices(shape: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    return torch.stack([torch.randint(n, (count,), generator=generator) for n in shape], 1)


def gather(
    dtype: torch.dtype,
    generator: torch.Generator,
    modes: int,
    rank: int,
    count: int,
    *,
    gradient: bool = False,
) -> Problem:
    """Random entries of a random train; for the gradient, a squared loss against random values."""
    shape = [10] * modes
    cores = [math.sqrt(10) * core for core in random_train(shape, rank, dtype, generator)]
    indices = _indices(shape, count, generator)
    wanted = entries(cores, indices)
    group = torch.randn(count // 10, rank, generator=generator, dtype=torch.float64).to(dtype)
    square = group[:rank].clone()

    def gemm() -> None:
        for _ in range(10 * modes):
            group @ square
            if gradient:
                group @ square.T
                group.T @ group

    floors = {"GEMMs": gemm}
    if not gradient:
        return Problem(
            data=SimpleNamespace(cores=cores, indices=indices),
            error_of=lambda found: relative(found, wanted),
            allowed=1e-12 if is_double(dtype) else 1e-4,
            floors=floors,
        )
    values = torch.randn(count, generator=generator, dtype=torch.float64).to(dtype)
    weights = 2 * (wanted - values.double())
    backwards = [core.permute(2, 1, 0) for core in reversed(cores)]
    lefts = list(prefix_vectors(cores, indices))
    rights = list(prefix_vectors(backwards, indices.flip(1)))[::-1]
    expected = []
    for k, core in enumerate(cores):
        slices = torch.zeros_like(core, dtype=torch.float64)
        for i in range(core.shape[1]):
            rows = indices[:, k] == i
            slices[:, i] = lefts[k][rows].T @ (weights[rows, None] * rights[k + 1][rows])
        expected.append(slices)
    return Problem(
        data=SimpleNamespace(cores=cores, indices=indices, values=values),
        error_of=lambda found: max(relative(g, e) for g, e in zip(found, expected, strict=True)),
        allowed=1e-11 if is_double(dtype) else 1e-4,
        floors=floors,
    )


def full(dtype: torch.dtype, generator: torch.Generator, modes: int, rank: int) -> Problem:
    """A dense tensor of 10^modes entries."""
    cores = random_train([10] * modes, rank, dtype, generator)
    wanted = dense(cores)
    tall, wide = torch.randn(2, 10 ** (modes // 2), rank, generator=generator, dtype=torch.float64).to(dtype)
    return Problem(
        data=SimpleNamespace(cores=cores),
        error_of=lambda found: relative(found, wanted),
        allowed=1e-12 if is_double(dtype) else 1e-5,
        floors={"the last GEMM": lambda: tall @ wide.T},
    )


def cross(dtype: torch.dtype, generator: torch.Generator, modes: int, n: int) -> Problem:
    """1 / (1 + sum x), x on n points of [0, 1] a mode; the error on entries that nobody was given."""

    def function(indices: Tensor) -> Tensor:
        return 1 / (1 + indices.to(dtype).sum(1) / (n - 1))

    points = _indices([n] * modes, 20_000, generator)
    wanted = 1 / (1 + points.double().sum(1) / (n - 1))
    rtol = 1e-8 if is_double(dtype) else 1e-4
    return Problem(
        data=SimpleNamespace(function=function, shape=[n] * modes, rtol=rtol, dtype=dtype),
        error_of=lambda found: relative(entries(found, points), wanted),
        allowed=rtol,
    )


def _row(title: str, make: Callable[..., Problem], full_size: Any, tiny_size: Any, **options: Any) -> Row:
    method = options.pop("method", make.__name__)
    has_memory = options.pop("has_memory", False)
    names = options.pop("names")

    def sized(size: tuple[Any, ...]) -> Callable[[torch.dtype, torch.Generator], Problem]:
        return partial(make, **dict(zip(names, size, strict=True)), **options)

    return Row(
        title=title, method=method, make=sized(full_size), make_tiny=sized(tiny_size), has_memory=has_memory
    )


_SVD = {"names": ("shape", "rank"), "has_memory": True}
_ROUND = {"names": ("modes", "rank"), "method": "round"}
_GATHER = {"names": ("modes", "rank", "count"), "has_memory": True}

ROWS: dict[str, Row] = {
    "tt-svd-20": _row("TT-SVD of 20^5, rank 10 and noise", tt_svd, ([20] * 5, 10), ([4] * 5, 2), **_SVD),
    "tt-svd-4": _row("TT-SVD of 4^11, rank 10 and noise", tt_svd, ([4] * 11, 10), ([4] * 5, 2), **_SVD),
    "round-collapsing-rank": _row(
        "Rounding a sum of four multiples of one train, d = 40, n = 10, rank 64 to rank 16",
        rounding,
        (40, 16),
        (5, 2),
        **_ROUND,
        collapses=True,
    ),
    "round-collapsing-rtol": _row(
        "Rounding the same sum by tolerance (1e-6; 1e-3 in float32)",
        rounding,
        (40, 16),
        (5, 2),
        **_ROUND,
        collapses=True,
        by_rank=False,
    ),
    "round-unrelated": _row(
        "Rounding a sum of four unrelated trains, d = 40, n = 10, rank 64 to rank 16",
        rounding,
        (40, 16),
        (5, 2),
        **_ROUND,
        collapses=False,
    ),
    "dot": _row("Inner product, d = 40, n = 10, rank 64", dot, (40, 64), (5, 4), names=("modes", "rank")),
    "apply": _row(
        "TT-matrix of rank 8 times train of rank 16, d = 20, n = 4, rounded to rank 16",
        apply,
        (20, 8, 16),
        (5, 2, 3),
        names=("modes", "matrix_rank", "rank"),
    ),
    "gather": _row(
        "100,000 entries, d = 20, n = 10, rank 32", gather, (20, 32, 100_000), (5, 4, 200), **_GATHER
    ),
    "gradient": _row(
        "Gradient of a squared loss of 20,000 entries in all cores, d = 20, n = 10, rank 32",
        gather,
        (20, 32, 20_000),
        (5, 4, 200),
        **_GATHER,
        method="gradient",
        gradient=True,
    ),
    "full": _row("Dense tensor of 10^6, rank 10", full, (6, 10), (4, 2), names=("modes", "rank")),
    "cross": _row(
        "Cross approximation of 1 / (1 + sum x), d = 8, n = 20 (rtol 1e-8; 1e-4 in float32)",
        cross,
        (8, 20),
        (3, 5),
        names=("modes", "n"),
    ),
}

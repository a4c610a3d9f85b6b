"""Trains and their errors for the benchmark, in double precision and the plainest of ways.

Nothing here comes from a rival, so that all of them are held against the same.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Cores = list[Tensor]


def random_train(shape: Sequence[int], rank: int, dtype: torch.dtype, generator: torch.Generator) -> Cores:
    """Independent normal cores, such that the norm of the tensor is about 1."""
    ranks = [1]
    for k in range(len(shape) - 1):
        ranks.append(min(rank, ranks[-1] * shape[k], math.prod(shape[k + 1 :])))
    ranks.append(1)
    cores = []
    for left, n, right in zip(ranks, shape, ranks[1:], strict=False):
        core = torch.randn(left, n, right, generator=generator, dtype=torch.float64)
        cores.append((core / math.sqrt(left * n)).to(dtype))
    return cores


def dense(cores: Sequence[Tensor]) -> Tensor:
    """The dense tensor, core by core."""
    whole = torch.ones(1, 1, dtype=torch.float64)
    for core in cores:
        whole = (whole @ core.double().flatten(1)).reshape(-1, core.shape[2])
    return whole.reshape([core.shape[1] for core in cores])


def direct_sum(trains: Sequence[Sequence[Tensor]]) -> Cores:
    """The sum of trains, with the sums of their ranks."""
    cores = []
    for k, parts in enumerate(zip(*trains, strict=True)):
        if k == 0:
            cores.append(torch.cat(parts, 2))
        elif k == len(trains[0]) - 1:
            cores.append(torch.cat(parts, 0))
        else:
            blocks = [
                torch.block_diag(*matrices) for matrices in zip(*(p.unbind(1) for p in parts), strict=True)
            ]
            cores.append(torch.stack(blocks, 1))
    return cores


def norm_of(cores: Sequence[Tensor]) -> float:
    """Norm by QR factorizations: of a difference it is as exact as its entries are."""
    triangle = torch.ones(1, 1, dtype=torch.float64)
    for core in cores:
        grown = (triangle @ core.double().flatten(1)).reshape(-1, core.shape[2])
        triangle = torch.linalg.qr(grown, mode="r")[1]
    return float(triangle.abs().squeeze())


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Relative distance of two trains."""
    negative = [-found[0].double(), *(core.double() for core in found[1:])]
    reference = [core.double() for core in wanted]
    return norm_of(direct_sum([negative, reference])) / norm_of(reference)


def rounded(cores: Sequence[Tensor], rank: int) -> Cores:
    """Rounding to a rank as it is in the textbooks: QRs from the right, SVDs from the left."""
    out = [core.double() for core in cores]
    for k in range(len(out) - 1, 0, -1):
        q, r = torch.linalg.qr(out[k].flatten(1).T)
        out[k] = q.T.reshape(-1, *out[k].shape[1:])
        out[k - 1] = out[k - 1] @ r.T
    for k in range(len(out) - 1):
        u, s, vh = torch.linalg.svd(out[k].flatten(0, 1), full_matrices=False)
        out[k] = u[:, :rank].reshape(*out[k].shape[:2], -1)
        out[k + 1] = torch.einsum("ab,bnc->anc", s[:rank, None] * vh[:rank], out[k + 1])
    return out


def relative(found: Tensor, wanted: Tensor) -> float:
    """Relative distance of two tensors."""
    return float(torch.linalg.vector_norm(found.double() - wanted) / torch.linalg.vector_norm(wanted))


def prefix_vectors(cores: Sequence[Tensor], indices: Tensor) -> Iterator[Tensor]:
    """Products of the first 0, 1, ..., d matrices of each entry, (batch, r_k), one index at a time."""
    vectors = torch.ones(len(indices), 1, dtype=torch.float64)
    yield vectors
    for k, core in enumerate(cores):
        grown = vectors.new_empty(len(indices), core.shape[2])
        for i in range(core.shape[1]):
            rows = indices[:, k] == i
            grown[rows] = vectors[rows] @ core[:, i].double()
        vectors = grown
        yield vectors


def entries(cores: Sequence[Tensor], indices: Tensor) -> Tensor:
    """Entries of a train, (batch,)."""
    return deque(prefix_vectors(cores, indices), maxlen=1).pop().squeeze(1)

"""From a dense tensor to a train: TT-SVD."""

import math

from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores
from ttnet.errors import ShapeError
from ttnet.rounding import check_caps
from ttnet.truncation import Truncation, TruncationReport, select_rank, tail_weights


def tt_svd(tensor: Tensor, truncation: Truncation) -> tuple[Cores, TruncationReport]:
    """Decompose a dense tensor by a sweep of SVDs; its error is within sqrt(d - 1) of the best.

    Args:
        tensor: Shape (n_0, ..., n_{d-1}), float or complex.
        truncation: Which singular values are kept.

    Returns:
        Cores in the canonical gauge with center d - 1, and the report.

    Raises:
        ShapeError: `tensor` has no mode or an empty one.
        DTypeError: `tensor` is of an integer dtype.
        RankError: `truncation.max_rank` is a list that the bonds cannot have.

    References:
        Oseledets, SIAM J. Sci. Comput. 33, 2295 (2011), algorithm 1.
    """
    if tensor.ndim == 0 or tensor.numel() == 0:
        raise ShapeError(
            f"tensor: expected at least one mode and no empty one, got shape {tuple(tensor.shape)}"
        )
    shape = tuple(tensor.shape)
    check_caps(truncation, shape)
    rest = tensor.to(linalg.working_dtype(tensor.dtype))
    norm = float(linalg.frobenius_norm(rest.detach()))
    bonds = len(shape) - 1
    remaining = truncation.weight_budget(norm)
    cores, ranks_before, weights = [], [], []
    rank = 1
    for k in range(bonds):
        u, s, vh = linalg.svd(rest.reshape(rank * shape[k], -1))
        kept = select_rank(s, truncation.at_bond(k, bonds), max_weight=remaining / (bonds - k))
        weights.append(float(tail_weights(s)[kept]))
        if math.isfinite(remaining):
            remaining = max(remaining - weights[-1], 0.0)
        ranks_before.append(s.numel())
        cores.append(u[:, :kept].reshape(rank, shape[k], kept).to(tensor.dtype))
        rest = s[:kept].unsqueeze(1) * vh[:kept]
        rank = kept
    # A single core would share its memory with `tensor`.
    cores.append(rest.reshape(rank, shape[-1], 1).to(tensor.dtype, copy=not bonds))
    ranks_after = [core.shape[0] for core in cores[1:]]
    report = TruncationReport.from_weights(ranks_before, ranks_after, weights, norm=norm, dtype=tensor.dtype)
    return tuple(cores), report

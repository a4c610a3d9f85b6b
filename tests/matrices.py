"""TT-matrices that hypothesis draws, and their dense twins in extended precision."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests import dense
from tests.strategies import KINDS, cores_of, dtypes
from ttnet import TensorTrain
from ttnet.tt_matrix import TTMatrix


def full(cores: Sequence[Tensor]) -> np.ndarray:
    """The dense matrix, entry by entry of the definition: rows of all cores against columns of all cores."""
    result = np.ones((1, 1, 1), dtype=np.longdouble)
    for core in cores:
        result = np.einsum("xya,amnb->xmynb", result, dense.array(core))
        result = result.reshape(result.shape[0] * result.shape[1], -1, result.shape[4])
    return result[:, :, 0]


def matrix_of(
    kind: str, rows: Sequence[int], columns: Sequence[int], ranks: list[int], dtype: torch.dtype, seed: int
) -> TTMatrix:
    """A TT-matrix whose train of merged modes is one of the `KINDS` of `tests.strategies`."""
    modes = tuple(m * n for m, n in zip(rows, columns, strict=True))
    return TTMatrix.from_train(TensorTrain(cores_of(kind, modes, ranks, dtype, seed)), rows, columns)


@st.composite
def matrices(
    draw: st.DrawFn,
    *,
    kinds: tuple[str, ...] = KINDS,
    dtype: torch.dtype | None = None,
    storage: bool = False,
    square: bool = False,
    rows: tuple[int, ...] | None = None,
) -> TTMatrix:
    """A TT-matrix of any kind, far from scale 1 now and then, with a center or without."""
    dtype = dtype or draw(dtypes(storage=storage))
    rows = rows or draw(st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple))
    columns = rows if square else tuple(draw(st.integers(1, 3)) for _ in rows)
    ranks = [draw(st.integers(1, 3)) for _ in rows[1:]]
    matrix = matrix_of(draw(st.sampled_from(kinds)), rows, columns, ranks, dtype, draw(st.integers(0, 999)))
    matrix = matrix * 10.0 ** draw(st.sampled_from([0, 0, -9, 9]))
    center = draw(st.none() | st.integers(0, len(rows) - 1))
    return matrix if center is None else matrix.orthogonalize(center)


@st.composite
def products(draw: st.DrawFn, *, kinds: tuple[str, ...] = KINDS, storage: bool = False):
    """A TT-matrix and a train, or a second TT-matrix, that it can be applied to."""
    left = draw(matrices(kinds=kinds, storage=storage))
    right = draw(matrices(kinds=kinds, dtype=left.dtype, rows=left.columns))
    if draw(st.booleans()):
        return left, right
    ranks = [draw(st.integers(1, 3)) for _ in left.columns[1:]]
    kind, seed = draw(st.sampled_from(kinds)), draw(st.integers(0, 999))
    train = TensorTrain(cores_of(kind, left.columns, ranks, left.dtype, seed))
    center = draw(st.none() | st.integers(0, train.ndim - 1))
    return left, train if center is None else train.orthogonalize(center)


def dense_product(left: TTMatrix, right: TensorTrain | TTMatrix) -> np.ndarray:
    """The dense product, flattened like the trains of its merged modes."""
    if isinstance(right, TensorTrain):
        return full(left.cores) @ dense.full(right.cores).ravel()
    return full(left.cores) @ full(right.cores)


def dense_of(value: TensorTrain | TTMatrix) -> np.ndarray:
    """The dense twin in the layout of `dense_product`."""
    return dense.full(value.cores).ravel() if isinstance(value, TensorTrain) else full(value.cores)


def scale_of(*factors: TensorTrain | TTMatrix) -> float:
    """What roundoff is relative to: the product of the norms of all cores."""
    logs = 0.0
    for factor in factors:
        for core in factor.cores:
            size = float(np.sqrt((np.abs(dense.array(core)) ** 2).sum()))
            if size == 0:
                return 0.0
            logs += math.log(size)
    return math.exp(min(logs, 700.0))

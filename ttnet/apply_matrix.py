"""`apply`: the product of a TT-matrix with a train or a TT-matrix, rounded on the way."""

from typing import Literal, TypeVar, overload

from ttnet import products
from ttnet.errors import DTypeError
from ttnet.tensor_train import TensorTrain
from ttnet.truncation import Truncation, TruncationReport
from ttnet.tt_matrix import TTMatrix, pair

Factor = TypeVar("Factor", TensorTrain, TTMatrix)


@overload
def apply(
    matrix: TTMatrix,
    other: Factor,
    truncation: Truncation,
    *,
    method: str = "auto",
    return_report: Literal[False] = False,
) -> Factor: ...


@overload
def apply(
    matrix: TTMatrix,
    other: Factor,
    truncation: Truncation,
    *,
    method: str = "auto",
    return_report: Literal[True],
) -> tuple[Factor, TruncationReport]: ...


def apply(
    matrix: TTMatrix,
    other: TensorTrain | TTMatrix,
    truncation: Truncation,
    *,
    method: str = "auto",
    return_report: bool = False,
) -> TensorTrain | TTMatrix | tuple[TensorTrain | TTMatrix, TruncationReport]:
    """Product with a train or a TT-matrix, rounded without forming the ranks of the exact product.

    Args:
        matrix: The left factor.
        other: The right factor.
        truncation: Which singular values of the product are kept.
        method: "auto", "density", "qr", "zip-up" or "direct", see `ttnet.products.apply`.
        return_report: Whether the `TruncationReport` is returned as well.

    Returns:
        The product, canonical with center 0, or the pair (product, report). Its error is at most
        `report.error_bound`, also where `max_rank` allowed less than the tolerance needs.

    Raises:
        ShapeError: The modes of `other` are not the columns of `matrix`.
        DTypeError: `other` is neither a train nor a TT-matrix.
        DeviceError: The devices differ.
        ConfigError: `method` is unknown, or runs without autograd while a gradient is needed.
        RankError: `truncation.max_rank` is a list that the bonds cannot have.
        NonFiniteError: A factor holds a NaN or an infinity.

    Examples:
        >>> import torch, ttnet
        >>> from ttnet.tt_matrix import TTMatrix
        >>> matrix = TTMatrix.random([3] * 6, [3] * 6, rank=4, seed=0, dtype=torch.float64)
        >>> train = ttnet.random_train([3] * 6, rank=5, seed=1, dtype=torch.float64)
        >>> product, report = apply(matrix, train, ttnet.Truncation(max_rank=12), return_report=True)
        >>> max(report.ranks_before), max(product.ranks)
        (20, 12)
        >>> error = (matrix @ train - product).norm()
        >>> bool(0.99 * report.error_estimate <= error <= report.error_bound)
        True
    """
    if not isinstance(matrix, TTMatrix):
        raise DTypeError(f"matrix: expected a TTMatrix, got {type(matrix).__name__}")
    if not isinstance(other, TensorTrain | TTMatrix):
        raise DTypeError(
            f"other: expected a TensorTrain or a TTMatrix, got {type(other).__name__}; use @ for tensors"
        )
    left, right = pair(matrix, other)  # pyright: ignore[reportArgumentType]
    is_train = isinstance(right, TensorTrain)
    cores = tuple(core.unsqueeze(2) for core in right.cores) if is_train else right.cores
    merged, report = products.apply(left.cores, cores, truncation, method=method)
    product = TensorTrain(merged, 0)
    result = (
        product
        if is_train
        else TTMatrix.from_train(product, left.rows, tuple(core.shape[2] for core in cores))
    )
    return (result, report) if return_report else result

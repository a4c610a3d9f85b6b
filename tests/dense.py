"""Naive dense twins of everything that is done to trains, in extended precision and without `ttnet`."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def array(tensor: Tensor) -> np.ndarray:
    """Any tensor in extended precision: float32, float64 and bfloat16 go into it without loss."""
    tensor = tensor.detach().cpu().resolve_conj()
    if tensor.is_complex():
        return tensor.to(torch.complex128).numpy().astype(np.clongdouble)
    return tensor.to(torch.float64).numpy().astype(np.longdouble)


def entry(cores: Sequence[Tensor], position: Sequence[int]) -> complex:
    """One entry: the product of the matrices that the position selects."""
    product = np.ones((1, 1))
    for core, i in zip(cores, position, strict=True):
        product = product @ array(core)[:, i, :]
    return product.item()


def full(cores: Sequence[Tensor]) -> np.ndarray:
    """The dense tensor, shape (n_0, ..., n_{d-1})."""
    dense = np.ones((1,), dtype=np.longdouble)
    for core in cores:
        dense = np.tensordot(dense, array(core), 1)
    return dense[..., 0]


def norm(dense: np.ndarray) -> float:
    """Frobenius norm."""
    return float(np.sqrt((np.abs(dense) ** 2).sum()))


def distance(a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> float:
    """Frobenius norm of the difference."""
    a, b = (array(x) if isinstance(x, Tensor) else x for x in (a, b))
    assert a.shape == b.shape
    return norm(a - b)


def inner(a: np.ndarray, b: np.ndarray) -> complex:
    """<a, b>, `a` conjugated."""
    return (a.conj() * b).sum().item()


def index(dense: np.ndarray, key: Sequence[object]) -> np.ndarray:
    """Index each mode on its own; the last mode goes first, so that the positions of the others stay."""
    for mode in reversed(range(len(key))):
        dense = dense[(slice(None),) * mode + (key[mode],)]
    return dense


def unfolding(dense: np.ndarray, bond: int) -> np.ndarray:
    """Modes up to `bond` against the others, in double precision, which is what LAPACK takes."""
    matrix = dense.reshape(math.prod(dense.shape[: bond + 1]), -1)
    return matrix.astype(np.complex128 if np.iscomplexobj(matrix) else np.float64)


def spectrum(dense: np.ndarray, bond: int) -> np.ndarray:
    """Singular values of an unfolding, descending."""
    return np.linalg.svd(unfolding(dense, bond), compute_uv=False)


def entropy(dense: np.ndarray, bond: int) -> float:
    """-sum p ln p of a bond."""
    weights = spectrum(dense, bond) ** 2
    weights = weights[weights > 0] / weights.sum()
    return float(-(weights * np.log(weights)).sum())


def tail(dense: np.ndarray, bond: int, rank: int) -> float:
    """Error of the best approximation of one unfolding by a matrix of rank `rank`: no train can have less."""
    return norm(spectrum(dense, bond)[rank:])


def left_interface(cores: Sequence[Tensor]) -> np.ndarray:
    """The cores as a matrix (n_0 ... n_k, r)."""
    dense = np.ones((1, 1), dtype=np.longdouble)
    for core in cores:
        dense = np.tensordot(dense, array(core), 1).reshape(-1, core.shape[2])
    return dense


def right_interface(cores: Sequence[Tensor]) -> np.ndarray:
    """The cores as a matrix (r, n_{k+1} ... n_{d-1})."""
    return left_interface([core.transpose(0, 2) for core in reversed(cores)]).T if cores else np.ones((1, 1))


def left_defect(core: Tensor) -> float:
    """How far the columns of the left unfolding are from orthonormal."""
    matrix = array(core).reshape(-1, core.shape[2])
    return norm(matrix.conj().T @ matrix - np.eye(core.shape[2]))


def right_defect(core: Tensor) -> float:
    """How far the rows of the right unfolding are from orthonormal."""
    return left_defect(core.transpose(0, 2))


def is_canonical(cores: Sequence[Tensor], center: int) -> bool:
    """Whether all cores left of the center are left-orthogonal and all right of it right-orthogonal."""
    defects = [left_defect(core) for core in cores[:center]] + [
        right_defect(core) for core in cores[center + 1 :]
    ]
    return max(defects, default=0.0) < 50 * torch.finfo(cores[0].dtype).eps


def gradient(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a real function, for real `at` in double precision."""
    slopes = torch.zeros_like(at)
    for position in np.ndindex(*at.shape):
        shift = torch.zeros_like(at)
        shift[position] = step
        slopes[position] = (function(at + shift) - function(at - shift)) / (2 * step)
    return slopes

"""Operators that are needed again and again: spin chains, Laplacians, shifts.

Chains are open, sites are numbered from 0, and spin operators are S (eigenvalues -s, ..., s), except in
`ising`, which has Pauli matrices as is usual there. The basis of a site runs from the highest S_z down: for
spin 1/2, index 0 is up. All Hamiltonians here are real matrices; ranks are the smallest possible.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ttnet.errors import ConfigError
from ttnet.mpo import Term
from ttnet.random import check_shape
from ttnet.tt_matrix import TTMatrix

BOUNDARIES = ("dirichlet", "neumann", "periodic")
"""What a Laplacian can have at the ends of a grid, see `laplace`."""

_Dtype = torch.dtype | None
_Device = torch.device | str | None


def spin_matrices(spin: float = 0.5, *, dtype: _Dtype = None, device: _Device = None) -> dict[str, Tensor]:
    """Matrices of one spin, in the basis of S_z from the highest value down.

    Args:
        spin: 1/2, 1, 3/2, ...
        dtype: Default: torch's default dtype. "y" is left out of a real one.
        device: Default: the CPU.

    Returns:
        Matrices of shape (2 spin + 1, 2 spin + 1): "x", "y", "z", "+", "-" and the identity "1".

    Raises:
        ConfigError: `spin` is not a positive multiple of 1/2.
    """
    size = round(2 * spin) + 1
    if size < 2 or abs(2 * spin + 1 - size) > 1e-12:
        raise ConfigError(f"spin: expected 1/2, 1, 3/2, ..., got {spin!r}")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    heights = torch.arange(size, dtype=torch.float64).neg() + spin
    raising = torch.diag((spin * (spin + 1) - heights[1:] * (heights[1:] + 1)).sqrt(), 1)
    matrices = {"x": (raising + raising.T) / 2, "z": torch.diag(heights), "+": raising, "-": raising.T}
    matrices["1"] = torch.eye(size, dtype=torch.float64)
    if dtype.is_complex:
        matrices["y"] = (raising - raising.T) / 2j
    return {name: matrix.to(dtype=dtype, device=device) for name, matrix in matrices.items()}


def heisenberg(
    length: int,
    *,
    spin: float = 0.5,
    coupling: float = 1.0,
    anisotropy: float = 1.0,
    field: float | Sequence[float] = 0.0,
    dtype: _Dtype = None,
    device: _Device = None,
) -> TTMatrix:
    """Open Heisenberg (XXZ) chain, sum_k J (Sx Sx + Sy Sy + delta Sz Sz)_{k,k+1} - sum_k h_k Sz_k; rank 5.

    Positive J is antiferromagnetic: length 4 with the defaults has the ground energy -1.616025403784438.

    Args:
        length: Number of sites.
        spin: 1/2, 1, 3/2, ...
        coupling: J.
        anisotropy: delta.
        field: h, one number or one for each site.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Returns:
        A TT-matrix with modes 2 spin + 1.

    Raises:
        ConfigError: `length` is below 1, `spin` is no spin, or `field` has another length.
    """
    chain = _Chain(length, spin)
    terms = [
        term for k in range(length - 1) for term in chain.exchange(k, k + 1, coupling, coupling * anisotropy)
    ]
    terms += [(-h, {k: chain.z}) for k, h in enumerate(_by_site(field, length, "field"))]
    return chain.build(terms, dtype, device)


def xx(length: int, *, coupling: float = 1.0, dtype: _Dtype = None, device: _Device = None) -> TTMatrix:
    """Open XX chain of spins 1/2, sum_k J (Sx Sx + Sy Sy)_{k,k+1}; rank 4.

    It is a chain of free fermions: for even length the ground energy is J (1 - 1 / sin(pi / (2 (N + 1)))) /
    2.

    Args:
        length: Number of sites N.
        coupling: J.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Returns:
        A TT-matrix with modes 2.

    Raises:
        ConfigError: `length` is below 1.
    """
    return heisenberg(length, coupling=coupling, anisotropy=0.0, dtype=dtype, device=device)


def ising(
    length: int,
    *,
    coupling: float = 1.0,
    field: float | Sequence[float] = 1.0,
    dtype: _Dtype = None,
    device: _Device = None,
) -> TTMatrix:
    """Open Ising chain in a transverse field, -J sum_k Z_k Z_{k+1} - sum_k h_k X_k in Pauli matrices; rank 3.

    The defaults are critical: the ground energy is 1 - 1 / sin(pi / (4 N + 2)).

    Args:
        length: Number of sites N.
        coupling: J; positive is ferromagnetic.
        field: h, one number or one for each site.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Returns:
        A TT-matrix with modes 2.

    Raises:
        ConfigError: `length` is below 1, or `field` has another length.
    """
    chain = _Chain(length, 0.5)
    x, z = chain.plus + chain.minus, 2 * chain.z
    terms: list[Term] = [(-coupling, {k: z, k + 1: z}) for k in range(length - 1)]
    terms += [(-h, {k: x}) for k, h in enumerate(_by_site(field, length, "field"))]
    return chain.build(terms, dtype, device)


def aklt(length: int, *, dtype: _Dtype = None, device: _Device = None) -> TTMatrix:
    """Open AKLT chain of spins 1, sum_k S_k.S_{k+1} + (S_k.S_{k+1})^2 / 3; rank 10.

    The ground energy is -2 (N - 1) / 3, four-fold degenerate, with ground states of rank 2.

    Args:
        length: Number of sites N.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Returns:
        A TT-matrix with modes 3.

    Raises:
        ConfigError: `length` is below 1.

    References:
        Affleck, Kennedy, Lieb and Tasaki, Phys. Rev. Lett. 59, 799 (1987).
    """
    chain = _Chain(length, 1.0)
    terms: list[Term] = []
    for k in range(length - 1):
        once = chain.exchange(k, k + 1)
        terms += once
        terms += [
            (a * b / 3, {site: left[site] @ right[site] for site in left})
            for a, left in once
            for b, right in once
        ]
    return chain.build(terms, dtype, device)


def majumdar_ghosh(
    length: int, *, coupling: float = 1.0, ratio: float = 0.5, dtype: _Dtype = None, device: _Device = None
) -> TTMatrix:
    """Open chain of spins 1/2 with next neighbors, J sum_k S_k.S_{k+1} + ratio J sum_k S_k.S_{k+2}; rank 8.

    At ratio 1/2 and even length the ground state is a product of singlets, of energy -3 J N / 8 and rank 2.

    Args:
        length: Number of sites N.
        coupling: J.
        ratio: Coupling of next neighbors over J.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Returns:
        A TT-matrix with modes 2.

    Raises:
        ConfigError: `length` is below 1.

    References:
        Majumdar and Ghosh, J. Math. Phys. 10, 1388 (1969).
    """
    chain = _Chain(length, 0.5)
    terms: list[Term] = [term for k in range(length - 1) for term in chain.exchange(k, k + 1, coupling)]
    terms += [term for k in range(length - 2) for term in chain.exchange(k, k + 2, ratio * coupling)]
    return chain.build(terms, dtype, device)


class _Chain:
    """Spin matrices and the terms made of them."""

    def __init__(self, length: int, spin: float) -> None:
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ConfigError(f"length: expected an integer of at least 1, got {length!r}")
        matrices = spin_matrices(spin, dtype=torch.float64)
        self.length, self.size = length, matrices["z"].shape[0]
        self.z, self.plus, self.minus = matrices["z"], matrices["+"], matrices["-"]

    def exchange(
        self, i: int, j: int, coupling: float = 1.0, axial: float | None = None
    ) -> list[tuple[float, dict[int, Tensor]]]:
        """Terms of J (Sx Sx + Sy Sy) + J_z Sz Sz between sites i and j; `axial` is J_z, by default J."""
        return [
            (coupling if axial is None else axial, {i: self.z, j: self.z}),
            (coupling / 2, {i: self.plus, j: self.minus}),
            (coupling / 2, {i: self.minus, j: self.plus}),
        ]

    def build(self, terms: Sequence[Term], dtype: _Dtype, device: _Device) -> TTMatrix:
        return TTMatrix.from_terms(terms, [self.size] * self.length, dtype=dtype, device=device)


def _by_site(value: float | Sequence[float], length: int, name: str) -> list[float]:
    values = [float(v) for v in value] if isinstance(value, Sequence | Tensor) else [float(value)] * length
    if len(values) != length:
        raise ConfigError(f"{name}: expected one number or {length}, one for each site, got {len(values)}")
    return values


# Grids -----------------------------------------------------------------------------------------------------


def laplace(
    shape: int | Sequence[int],
    *,
    boundary: str | Sequence[str] = "dirichlet",
    spacing: float | Sequence[float] = 1.0,
    dtype: _Dtype = None,
    device: _Device = None,
) -> TTMatrix:
    """Minus the Laplacian on a grid, by second differences: positive semidefinite; rank 2 in any dimension.

    In one dimension the matrix is tridiagonal, (-1, 2, -1) / spacing^2. Boundaries: "dirichlet", the function
    vanishes one step outside the grid; "neumann", it continues constantly (corners 1); "periodic".

    Args:
        shape: Grid points of each dimension.
        boundary: One of `BOUNDARIES`, or one for each dimension.
        spacing: Distance of neighbors, or one for each dimension.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Returns:
        A TT-matrix with one core for each dimension.

    Raises:
        ShapeError: No dimension, or a size below 1.
        ConfigError: A boundary that is unknown, a spacing that is not positive, or lists of another length.
    """
    sizes = check_shape([shape] if isinstance(shape, int) else shape)
    kinds, weights = _by_dimension(boundary, spacing, len(sizes))
    terms: list[Term] = [
        (weight, {k: _second_difference(n, kind)})
        for k, (n, kind, weight) in enumerate(zip(sizes, kinds, weights, strict=True))
    ]
    return TTMatrix.from_terms(terms, sizes, dtype=dtype, device=device)


def _second_difference(size: int, kind: str) -> Tensor:
    off = torch.diag(torch.ones(size - 1, dtype=torch.float64), 1)
    matrix = 2 * torch.eye(size, dtype=torch.float64) - off - off.T
    if kind == "periodic":
        matrix[0, -1] -= 1
        matrix[-1, 0] -= 1
    elif kind == "neumann":
        matrix[0, 0] -= 1
        matrix[-1, -1] -= 1
    return matrix


def _by_dimension(
    boundary: str | Sequence[str], spacing: float | Sequence[float], count: int
) -> tuple[list[str], list[float]]:
    kinds = [boundary] * count if isinstance(boundary, str) else list(boundary)
    if len(kinds) != count or any(kind not in BOUNDARIES for kind in kinds):
        raise ConfigError(f"boundary: expected one of {BOUNDARIES}, or {count} of them, got {boundary!r}")
    steps = list(spacing) if isinstance(spacing, Sequence) else [spacing] * count
    if len(steps) != count or not all(0 < step < float("inf") for step in steps):
        raise ConfigError(f"spacing: expected a positive number, or {count} of them, got {spacing!r}")
    return kinds, [1.0 / step**2 for step in steps]


def qtt_laplace(
    levels: int | Sequence[int],
    *,
    boundary: str | Sequence[str] = "dirichlet",
    spacing: float | Sequence[float] = 1.0,
    dtype: _Dtype = None,
    device: _Device = None,
) -> TTMatrix:
    """The matrix of `laplace` on 2^levels points a dimension, in quantics form, of the smallest ranks.

    They are 3 in one dimension and 4 in more, one more with Neumann boundaries.

    An index is written in binary, most significant digit first, each digit a mode, one dimension after the
    other: the modes that `tensor.reshape(2, 2, ..., 2)` gives.

    Args:
        levels: Digits of each dimension.
        boundary: One of `BOUNDARIES`, or one for each dimension.
        spacing: Distance of neighbors, or one for each dimension.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Returns:
        A TT-matrix with sum(levels) cores of modes 2.

    Raises:
        ShapeError: No dimension, or fewer than 1 level.
        ConfigError: A boundary that is unknown, a spacing that is not positive, or lists of another length.

    References:
        Kazeev and Khoromskij, SIAM J. Matrix Anal. Appl. 33, 742 (2012).
    """
    digits = check_shape([levels] if isinstance(levels, int) else levels)
    kinds, weights = _by_dimension(boundary, spacing, len(digits))
    terms: list[Term] = []
    start = 0
    for count, kind, weight in zip(digits, kinds, weights, strict=True):
        terms.append((2 * weight, {}))
        for string in _increments(start, count, periodic=kind == "periodic"):
            terms += [(-weight, string), (-weight, {site: matrix.T for site, matrix in string.items()})]
        if kind == "neumann":
            sites = range(start, start + count)
            terms += [(-weight, dict.fromkeys(sites, _DIGITS[corner, corner])) for corner in (0, 1)]
        start += count
    return TTMatrix.from_terms(terms, [2] * start, dtype=dtype, device=device)


def qtt_shift(
    levels: int, *, periodic: bool = False, dtype: _Dtype = None, device: _Device = None
) -> TTMatrix:
    """The matrix S of (S x)[i] = x[i + 1] on 2^levels points, in quantics form; rank 2.

    Its transpose shifts the other way; (S - 1) / spacing is the forward difference.

    Args:
        levels: Binary digits, most significant first.
        periodic: Whether the last point takes the first one's value rather than 0.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Returns:
        A TT-matrix with `levels` cores of modes 2.

    Raises:
        ShapeError: Fewer than 1 level.
    """
    (count,) = check_shape([levels])
    terms: list[Term] = [(1.0, string) for string in _increments(0, count, periodic=periodic)]
    return TTMatrix.from_terms(terms, [2] * count, dtype=dtype, device=device)


_DIGITS = {
    (i, j): torch.eye(2, dtype=torch.float64)[:, [i]] @ torch.eye(2, dtype=torch.float64)[[j]]
    for i in (0, 1)
    for j in (0, 1)
}
"""Matrices of one binary digit with a single 1 at (i, j)."""


def _increments(start: int, count: int, *, periodic: bool) -> list[dict[int, Tensor]]:
    """Products of digit matrices whose sum is the shift: ...0111 to ...1000, for any number of trailing 1."""
    strings = []
    for k in range(start, start + count):
        string = dict.fromkeys(range(k + 1, start + count), _DIGITS[1, 0])
        strings.append({k: _DIGITS[0, 1], **string})
    if periodic:
        strings.append(dict.fromkeys(range(start, start + count), _DIGITS[1, 0]))
    return strings

"""Sums of products of local matrices as a TT-matrix of the smallest ranks, built without a dense matrix.

A Hamiltonian is a sum of terms, each a coefficient and a few local matrices on some sites. At every bond the
terms form a coefficient matrix, products left of the bond against products right of it, and its rank is the
rank the bond needs. One sweep from the left factorizes these matrices, bond by bond, into a chosen set of
independent rows and the combinations that give the others: entries stay sparse, and small integers stay
exact.

    terms right of the bond:   Z_3 Z_4     X_2 Z_5     1
    left  1                       J           .        .        rank = dimension of the bond
          Y_1                     .           K        .
          (all done)              .           .        1
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from ttnet._typing import Cores
from ttnet.errors import DTypeError, NonFiniteError, ShapeError
from ttnet.random import check_shape

LocalMatrix = Tensor | np.ndarray | Sequence
"""A matrix of one site, in any form that numpy reads."""

Term = tuple[complex, Mapping[int, LocalMatrix]]
"""A coefficient and the local matrices it multiplies, by site; other sites carry the identity."""

_String = tuple[tuple[int, int], ...]
"""Pairs (site, index in its alphabet), by site; sites that are not named carry the identity."""

_Rows = list[dict[_String, complex]]
"""Rows of a sparse coefficient matrix, its columns named by strings."""

# Relative size below which a number is taken for the roundoff of the sums and products before it.
_ROUNDOFF = 1e-13


def from_terms(
    terms: Sequence[Term],
    shape: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Cores:
    """Cores of a sum of products of local matrices, with the smallest ranks it can have.

    Args:
        terms: Pairs (coefficient, {site: matrix}), matrices of shape (n_site, n_site); an empty dict is a
            multiple of the identity. Terms may repeat, and local matrices may depend on each other linearly.
        shape: Modes (n_0, ..., n_{d-1}), the same for rows and columns.
        dtype: Default: torch's default dtype, or the complex one of its precision where a term is complex.
        device: Default: the CPU.

    Returns:
        Core k of shape (r_k, n_k, n_k, r_{k+1}).

    Raises:
        ShapeError: A site that does not exist, or a matrix that does not fit its site.
        DTypeError: A coefficient or a matrix that holds no numbers, or a complex term for a real `dtype`.
        NonFiniteError: A coefficient or a matrix is NaN or infinite.

    References:
        Hubig, McCulloch and Schollwoeck, Phys. Rev. B 95, 035129 (2017).

    Examples:
        >>> z = [[1.0, 0.0], [0.0, -1.0]]
        >>> x = [[0.0, 1.0], [1.0, 0.0]]
        >>> chain = [(1.0, {k: z, k + 1: z}) for k in range(7)] + [(0.5, {k: x}) for k in range(8)]
        >>> [core.shape[3] for core in from_terms(chain, [2] * 8)]
        [3, 3, 3, 3, 3, 3, 3, 1]
    """
    sizes = check_shape(shape)
    read = [_read_term(term, sizes, at) for at, term in enumerate(terms)]
    alphabets = [_Alphabet(k, n, read) for k, n in enumerate(sizes)]
    total = _collect(read, alphabets)
    rows: _Rows = [total]
    cores = []
    for k, alphabet in enumerate(alphabets):
        combinations, rows = _factorize(_advance(rows, k, alphabet))
        if not rows:
            return _to_torch([np.zeros((1, n, n, 1)) for n in sizes], dtype, device)
        cores.append(combinations.reshape(-1, len(alphabet.basis), len(rows)))
    cores[-1] = cores[-1] * rows[0][()]
    if not all(alphabet.is_independent for alphabet in alphabets):
        cores = _compress_from_right(cores)
    dense = [
        np.einsum("aob,omn->amnb", core, alphabet.basis)
        for core, alphabet in zip(cores, alphabets, strict=True)
    ]
    return _to_torch(dense, dtype, device)


def pair_terms(matrix: LocalMatrix, first: int, second: int, *, coefficient: complex = 1.0) -> list[Term]:
    """Terms of a matrix that acts on two sites, by its operator Schmidt decomposition.

    Args:
        matrix: Shape (n m, n m), or (n, m, n, m): rows of the first and the second site, then columns.
        first: Site of mode n; a matrix that is not 4-dimensional needs n = m.
        second: Site of mode m.
        coefficient: Factor of the whole.

    Returns:
        As many terms for `from_terms` as the matrix needs products.

    Raises:
        ShapeError: `matrix` is none of two sites.
        DTypeError: `matrix` holds no numbers.
    """
    array = _read_array(matrix, f"matrix of sites {first} and {second}")
    size = round(array.shape[0] ** 0.5) if array.ndim == 2 else 0
    if array.ndim == 2 and array.shape == (size * size, size * size):
        array = array.reshape(size, size, size, size)
    if array.ndim != 4 or array.shape[:2] != array.shape[2:]:
        raise ShapeError(f"matrix: expected shape (n n, n n) or (n, m, n, m), got {array.shape}")
    n, m = array.shape[:2]
    u, s, vh = np.linalg.svd(array.transpose(0, 2, 1, 3).reshape(n * n, m * m), full_matrices=False)
    kept = int((s > _ROUNDOFF * max(s[0], np.finfo(float).tiny)).sum())
    return [
        (coefficient * float(s[i]), {first: u[:, i].reshape(n, n), second: vh[i].reshape(m, m)})
        for i in range(kept)
    ]


# Reading ---------------------------------------------------------------------------------------------------


def _read_array(value: LocalMatrix, what: str) -> np.ndarray:
    try:
        array = np.asarray(value.detach().cpu().resolve_conj() if isinstance(value, Tensor) else value)
        array = array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
    except (TypeError, ValueError) as error:
        raise DTypeError(
            f"terms: expected numbers in the {what}, got {type(value).__name__}: {error}"
        ) from None
    if not np.isfinite(array).all():
        raise NonFiniteError(f"terms: expected finite entries in the {what}, got NaN or infinity")
    return array


def _read_term(term: Term, sizes: tuple[int, ...], at: int) -> tuple[complex, dict[int, np.ndarray]]:
    try:
        coefficient, factors = term
        items = list(factors.items())
    except (TypeError, ValueError, AttributeError):
        raise ShapeError(
            f"terms: expected pairs (coefficient, {{site: matrix}}), got {term!r} as term {at}"
        ) from None
    try:
        coefficient = complex(coefficient)
    except (TypeError, ValueError, RuntimeError):
        raise DTypeError(
            f"terms: expected a number as coefficient of term {at}, got {coefficient!r}"
        ) from None
    if not np.isfinite(coefficient):
        raise NonFiniteError(f"terms: expected a finite coefficient of term {at}, got {coefficient}")
    read = {}
    for site, matrix in items:
        if not isinstance(site, Integral) or not 0 <= site < len(sizes):
            raise ShapeError(f"terms: expected sites from 0 to {len(sizes) - 1}, got {site!r} in term {at}")
        array = _read_array(matrix, f"matrix of site {site} in term {at}")
        n = sizes[int(site)]
        if array.shape != (n, n):
            raise ShapeError(
                f"terms: expected a matrix of shape {(n, n)} at site {site}, got {array.shape} in term {at}"
            )
        read[int(site)] = array
    return (coefficient if coefficient.imag else coefficient.real), read


# Local matrices --------------------------------------------------------------------------------------------


class _Alphabet:
    """The matrices that occur at one site, the identity first, each a combination of independent ones."""

    def __init__(self, site: int, size: int, terms: Sequence[tuple[complex, dict[int, np.ndarray]]]) -> None:
        found = {_key(np.eye(size)): np.eye(size)}
        for _, factors in terms:
            if site in factors:
                found.setdefault(_key(factors[site]), factors[site])
        self.index = {key: i for i, key in enumerate(found)}
        basis: list[np.ndarray] = []
        combinations: list[np.ndarray] = []
        for matrix in found.values():
            solution = _combination(basis, matrix)
            if solution is None:
                solution = np.eye(1, len(basis) + 1, len(basis))[0]
                basis.append(matrix)
            combinations.append(solution)
        self.basis = np.stack(basis)
        self.is_independent = len(basis) == len(found)
        # For each matrix, the (index in the basis, coefficient) that make it up.
        self.combinations = [[(int(i), _plain(row[i])) for i in np.flatnonzero(row)] for row in combinations]


def _combination(basis: list[np.ndarray], matrix: np.ndarray) -> np.ndarray | None:
    """Coefficients of `matrix` in `basis`, or None where it is independent of it."""
    if not basis:
        return None
    stack = np.stack([element.ravel() for element in basis], 1)
    solution = np.linalg.lstsq(stack, matrix.ravel(), rcond=None)[0]
    if np.abs(stack @ solution - matrix.ravel()).max() > _ROUNDOFF * np.abs(matrix).max():
        return None
    return np.where(np.abs(solution) > _ROUNDOFF * np.abs(solution).max(), solution, 0.0)


def _key(matrix: np.ndarray) -> bytes:
    return matrix.dtype.char.encode() + (matrix + 0.0).tobytes()  # + 0.0 makes one zero of the two


def _plain(value: complex) -> complex:
    """A number as Python has it, an integer where it is one but for roundoff."""
    number = complex(value)
    near = complex(round(number.real), round(number.imag))
    number = near if abs(number - near) < _ROUNDOFF * abs(near) else number
    return number if number.imag else number.real


def _collect(
    terms: Sequence[tuple[complex, dict[int, np.ndarray]]], alphabets: Sequence[_Alphabet]
) -> dict[_String, complex]:
    """Coefficients by string, like terms added up."""
    found: dict[_String, list[complex]] = {}
    for coefficient, factors in terms:
        letters = [(site, alphabets[site].index[_key(factors[site])]) for site in sorted(factors)]
        found.setdefault(tuple((site, letter) for site, letter in letters if letter), []).append(coefficient)
    return _add_up(found)


def _add_up(found: dict[_String, list[complex]]) -> dict[_String, complex]:
    """Sums by string; what cancels is left out."""
    sums = {string: (values[0] if len(values) == 1 else sum(values)) for string, values in found.items()}
    return {s: value for s, value in sums.items() if abs(value) > _ROUNDOFF * sum(map(abs, found[s]))}


# The sweep -------------------------------------------------------------------------------------------------


def _advance(rows: _Rows, site: int, alphabet: _Alphabet) -> _Rows:
    """Take one more site to the left: rows (bond, basis of the site) against strings of later sites."""
    count = len(alphabet.basis)
    found: list[dict[_String, list[complex]]] = [{} for _ in range(len(rows) * count)]
    advanced: _Rows = [{} for _ in found]
    for a, row in enumerate(rows):
        for string, value in row.items():
            letter = string[0][1] if string and string[0][0] == site else 0
            rest = string[1:] if letter else string
            if alphabet.is_independent:
                advanced[a * count + letter][rest] = value
                continue
            for i, factor in alphabet.combinations[letter]:
                found[a * count + i].setdefault(rest, []).append(value * factor)
    return advanced if alphabet.is_independent else [_add_up(row) for row in found]


def _factorize(rows: _Rows) -> tuple[np.ndarray, _Rows]:
    """Independent rows, and the matrix whose product with them gives all rows."""
    leaders, places, factors = _merge_parallel(rows)
    chosen, solution = _independent(leaders)
    combinations = np.zeros((len(rows), len(chosen)), dtype=solution.dtype)
    for i, (place, factor) in enumerate(zip(places, factors, strict=True)):
        if place is not None:
            combinations = combinations.astype(np.result_type(combinations, factor), copy=False)
            combinations[i] = factor * solution[place]
    return combinations, [leaders[i] for i in chosen]


def _merge_parallel(rows: _Rows) -> tuple[_Rows, list[int | None], list[complex]]:
    """One leader for each set of parallel rows; the place of its leader and the factor for each row."""
    leaders: _Rows = []
    peaks: list[_String] = []
    by_pattern: dict[frozenset[_String], list[int]] = {}
    places: list[int | None] = []
    factors: list[complex] = []
    for row in rows:
        place, factor = None, 0.0
        if row:
            same = by_pattern.setdefault(frozenset(row), [])
            place = next((at for at in same if _is_multiple(row, leaders[at], peaks[at])), None)
            if place is None:
                place = len(leaders)
                same.append(place)
                peaks.append(max(row, key=lambda string: abs(row[string])))
                scale = row[peaks[-1]] if len(row) == 1 else _power_of_two(abs(row[peaks[-1]]))
                leaders.append({string: value / scale for string, value in row.items()})
            factor = row[peaks[place]] / leaders[place][peaks[place]]
        places.append(place)
        factors.append(factor)
    return leaders, places, factors


def _power_of_two(size: float) -> float:
    """What a row is divided by so that rows of all scales compare; exact, and 1 for ordinary sizes."""
    return 1.0 if 1e-3 < size < 1e3 else 2.0 ** round(math.log2(size))


def _is_multiple(row: dict[_String, complex], leader: dict[_String, complex], peak: _String) -> bool:
    factor = row[peak] / leader[peak]
    slack = _ROUNDOFF * abs(row[peak])
    return all(abs(value - factor * leader[string]) <= slack for string, value in row.items())


def _independent(leaders: _Rows) -> tuple[list[int], np.ndarray]:
    """Indices of independent rows and the combinations of them that give every row."""
    owners: dict[_String, int] = {}
    for i, row in enumerate(leaders):
        for string in row:
            owners[string] = -1 if string in owners else i
    # A row with a column of its own depends on no others, nor they on it.
    alone = {i for i in owners.values() if i >= 0}
    tangled = [i for i in range(len(leaders)) if i not in alone]
    columns = {string: j for j, string in enumerate({s: None for i in tangled for s in leaders[i]})}
    kept, solution = _skeleton(tangled, leaders, columns)
    chosen = sorted([*alone, *kept])
    position = {row: j for j, row in enumerate(chosen)}
    combinations = np.zeros((len(leaders), len(chosen)), dtype=solution.dtype)
    for i in alone:
        combinations[i, position[i]] = 1.0
    for i, coefficients in zip(tangled, solution, strict=True):
        for row, value in zip(kept, coefficients, strict=True):
            combinations[i, position[row]] = value
    return chosen, combinations


def _skeleton(
    tangled: list[int], leaders: _Rows, columns: dict[_String, int]
) -> tuple[list[int], np.ndarray]:
    """Rows that span the tangled ones, by a pivoted QR, and the coefficients of all tangled rows in them."""
    if not tangled:
        return [], np.zeros((0, 0))
    is_complex = any(isinstance(value, complex) for i in tangled for value in leaders[i].values())
    dense = np.zeros((len(tangled), len(columns)), dtype=np.complex128 if is_complex else np.float64)
    for i, row in enumerate(tangled):
        for string, value in leaders[row].items():
            dense[i, columns[string]] = value
    kept, solution = _spanning_rows(dense)
    return [tangled[i] for i in kept], solution


def _spanning_rows(matrix: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Rows that span all rows of a matrix, by a pivoted QR, and the coefficients of every row in them."""
    count = len(matrix)
    r, pivots = scipy.linalg.qr(matrix.T, mode="r", pivoting=True)  # pyright: ignore[reportAssignmentType]
    r = np.asarray(r)
    diagonal = np.abs(np.diagonal(r))
    rank = int((diagonal > _ROUNDOFF * count * diagonal[0]).sum())
    if rank == count:
        return list(range(count)), np.eye(count)
    solution = np.zeros((count, rank), dtype=matrix.dtype)
    solution[pivots[:rank]] = np.eye(rank)
    solution[pivots[rank:]] = scipy.linalg.solve_triangular(r[:rank, :rank], r[:rank, rank:]).T
    return [int(i) for i in pivots[:rank]], solution


def _compress_from_right(cores: list[np.ndarray]) -> list[np.ndarray]:
    """Drop what depends linearly on the right of a bond, where different strings make dependent products."""
    work = list(cores)
    for k in range(len(work) - 1, 0, -1):
        unfolded = work[k].reshape(len(work[k]), -1)
        scales = np.abs(unfolded).max(1)
        scales[scales == 0] = 1.0
        kept, solution = _spanning_rows(unfolded / scales[:, None])
        work[k] = (unfolded / scales[:, None])[kept].reshape(len(kept), *work[k].shape[1:])
        work[k - 1] = np.tensordot(work[k - 1], scales[:, None] * solution, 1)
    return work


def _to_torch(
    cores: list[np.ndarray], dtype: torch.dtype | None, device: torch.device | str | None
) -> tuple[Tensor, ...]:
    is_complex = any(np.iscomplexobj(core) and np.any(np.imag(core)) for core in cores)
    if dtype is None:
        default = torch.get_default_dtype()
        dtype = default.to_complex() if is_complex else default
    if is_complex and not dtype.is_complex:
        raise DTypeError(f"dtype: expected a complex one for complex terms, got {dtype}")
    plain = [core if dtype.is_complex else np.real(core) for core in cores]
    return tuple(torch.tensor(core, device=device).to(dtype) for core in plain)

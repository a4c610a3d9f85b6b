"""From a dense tensor to a train: TT-SVD, by the cheapest factorization that resolves what is asked."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ttnet import linalg, unfoldings
from ttnet._typing import Cores
from ttnet.cores import left_unfold
from ttnet.errors import ConfigError, ShapeError
from ttnet.projection import over_power, times_report
from ttnet.rounding import check_caps
from ttnet.scaling import times_power_of_two
from ttnet.truncation import Truncation, TruncationReport, select_rank, tail_weights

METHODS = ("auto", "svd", "qr", "gram")
"""How the bonds are cut, see `tt_svd`."""

_GROUP_ROWS = 64  # leading modes are factorized together up to here: the tensor is read fewer times
_SMALL = 1 << 10  # below this many entries nothing is faster than one SVD


def tt_svd(tensor: Tensor, truncation: Truncation, *, method: str = "auto") -> tuple[Cores, TruncationReport]:
    """Decompose a dense tensor by a sweep of SVDs; its error is within sqrt(d - 1) of the best.

    Methods:
        "svd": An SVD of every unfolding. The plain way, and the slowest.
        "qr": A QR of the unfolding's long side, and the SVD of its small triangle: as accurate.
        "gram": Eigenvectors of the unfolding's Gram matrix, the fastest. It resolves singular values down to
            sqrt(eps) of the norm: where a tolerance comes near that, or its roundoff could change a rank,
            the bond is cut by "qr". What it leaves out is measured on the tensor itself.
        "auto": The cheapest of these that is safe, bond by bond.

    The gradient is finite for every tensor, and right for functions of the train wherever the spectrum has a
    gap at the cut (equal singular values on one side of it do no harm). Where null directions are kept, they
    are one choice of many, and the gradient is projected on them. Where a gradient is wanted, and under
    `torch.func.vmap`, all methods are the plain one, and bonds that keep every direction are not rotated.

    Args:
        tensor: Shape (n_0, ..., n_{d-1}), float or complex.
        truncation: Which singular values are kept. Under vmap: `max_rank` alone.
        method: One of `METHODS`.

    Returns:
        Cores in the canonical gauge with center d - 1, and the report. Under vmap its numbers are NaN.

    Raises:
        ShapeError: `tensor` has no mode or an empty one.
        DTypeError: `tensor` is of an integer dtype.
        RankError: `truncation.max_rank` is a list that the bonds cannot have.
        ConfigError: `method` is unknown, or a tolerance is set under vmap.
        NonFiniteError: `tensor` holds a NaN or an infinity.

    References:
        Oseledets, SIAM J. Sci. Comput. 33, 2295 (2011), algorithm 1.

    Examples:
        >>> import torch
        >>> grid = torch.linspace(0, 1, 6, dtype=torch.float64)
        >>> tensor = (1 + grid.view(6, 1, 1) + grid.view(6, 1) + grid).reciprocal()
        >>> cores, report = tt_svd(tensor, Truncation(rtol=1e-4))
        >>> report.ranks_after, report.relative_error < 1e-4
        ((3, 3), True)
    """
    if tensor.ndim == 0 or tensor.numel() == 0:
        raise ShapeError(
            f"tensor: expected at least one mode and no empty one, got shape {tuple(tensor.shape)}"
        )
    if method not in METHODS:
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    shape = tuple(tensor.shape)
    check_caps(truncation, shape)
    rest = tensor.to(linalg.working_dtype(tensor.dtype))
    hidden = linalg.is_batched(tensor)
    if hidden and not truncation.is_fixed:
        raise ConfigError(
            "truncation: expected max_rank alone under vmap, got a tolerance (cutoff, rtol, atol, svd_min or "
            "degeneracy_tol), by which ranks would differ from sample to sample; fix the ranks"
        )
    norm, exponent = (math.nan, 0) if hidden else _norm_and_exponent(rest.detach())
    if exponent:
        rest = times_power_of_two(rest, -exponent)
    plain = hidden or linalg.needs_gradient(rest)
    sweep = _Sweep(shape, over_power(truncation, exponent), norm, plain=plain, method=method)
    rest = sweep.run(rest)
    if exponent:
        rest = times_power_of_two(rest, exponent)
    # A single core would share its memory with `tensor`, and so may a train whose bonds keep everything.
    last = rest.reshape(-1, shape[-1], 1).to(tensor.dtype, copy=not sweep.rotated)
    cores = (*(core.to(tensor.dtype) for core in sweep.cores), last)
    ranks_after = [core.shape[0] for core in cores[1:]]
    report = TruncationReport.from_weights(
        sweep.ranks_before, ranks_after, sweep.weights, norm=norm, dtype=tensor.dtype
    )
    return cores, times_report(report, exponent)


def _norm_and_exponent(tensor: Tensor) -> tuple[float, int]:
    """Norm of `tensor` times 2^-exponent; the exponent is 0 unless squares would leave the range."""
    limit = torch.finfo(tensor.dtype).max ** 0.25
    norm = math.sqrt(unfoldings.squared_norm(tensor))
    if 1 / limit <= norm <= limit:
        return norm, 0
    largest = float(tensor.abs().amax())
    if not math.isfinite(largest):
        linalg.check_finite(tensor)
    if largest == 0:
        return 0.0, 0
    exponent = math.frexp(largest)[1]
    return math.sqrt(unfoldings.squared_norm(times_power_of_two(tensor, -exponent))), exponent


class _Sweep:
    """The cuts from left to right: what was made so far, and what the tolerances still allow."""

    def __init__(
        self,
        shape: tuple[int, ...],
        truncation: Truncation,
        norm: float,
        *,
        plain: bool,
        method: str,
    ) -> None:
        self.shape, self.bonds, self.plain, self.method = shape, len(shape) - 1, plain, method
        self.truncation, self.total = truncation, norm * norm
        self.remaining = truncation.weight_budget(norm)
        self.cores: list[Tensor] = []
        self.weights: list[float] = []
        self.ranks_before: list[int] = []
        self.rotated = False

    def run(self, rest: Tensor) -> Tensor:
        """Cut all bonds; returns the last core as a matrix (rank, n)."""
        rank = 1
        while len(self.cores) < self.bonds:
            rest = rest.reshape(rank * self.shape[len(self.cores)], -1)
            if (self.plain or self.method != "svd") and self._keeps_all(rest):
                rest = self._unrotated(rest, rank)
            elif self.plain or self.method == "svd":
                rest = self._by_svd(rest, rank)
            else:
                rest = self._fast(rest, rank)
            rank = rest.shape[0]
        return rest

    def _bond(self, offset: int = 0) -> tuple[Truncation, float]:
        """Truncation and largest weight of the bond that is cut next, or of one that follows it."""
        bond = len(self.cores) + offset
        return self.truncation.at_bond(bond, self.bonds), self.remaining / (self.bonds - bond)

    def _select(self, values: Tensor) -> int:
        truncation, allowed = self._bond()
        return select_rank(values, truncation, max_weight=allowed)

    def _append(self, basis: Tensor, rank: int, count: int, weight: float) -> None:
        # Columns of a larger basis would keep its memory alive.
        self.cores.append(basis.reshape(rank, -1, basis.shape[-1]).contiguous())
        self.ranks_before.append(count)
        self.weights.append(weight)
        if math.isfinite(self.remaining):
            self.remaining = max(self.remaining - weight, 0.0)

    def _by_svd(self, matrix: Tensor, rank: int) -> Tensor:
        """With U^H M in place of S V^H: its gradient knows null directions, its error is that of U alone."""
        self.rotated = True
        u, s, _ = linalg.svd(matrix)
        kept = self._select(s)
        hidden = linalg.is_batched(s)
        self._append(u[:, :kept], rank, s.numel(), math.nan if hidden else float(tail_weights(s)[kept]))
        return u[:, :kept].mH @ matrix

    def _keeps_all(self, matrix: Tensor) -> bool:
        cap = self._bond()[0].max_rank
        return self.truncation.is_fixed and (not isinstance(cap, int) or cap >= min(matrix.shape))

    def _unrotated(self, matrix: Tensor, rank: int) -> Tensor:
        """A bond that keeps every direction: any orthonormal basis will do."""
        rows, columns = matrix.shape
        if rows <= columns:
            self._append(torch.eye(rows, dtype=matrix.dtype, device=matrix.device), rank, rows, 0.0)
            return matrix
        self.rotated = True
        q, r = linalg.positive_qr(matrix)
        self._append(q, rank, columns, 0.0)
        return r

    def _fast(self, matrix: Tensor, rank: int) -> Tensor:
        rows, columns = matrix.shape
        if self.method == "auto" and matrix.numel() <= _SMALL:
            return self._by_svd(matrix, rank)
        if rows > columns:
            return self._from_the_right(matrix, rank)
        rest = self._by_gram(matrix, rank) if self.method != "qr" else None
        if rest is not None:
            return rest
        if self.method == "auto" and 2 * columns < 3 * rows:
            return self._by_svd(matrix, rank)
        return self._by_triangle(matrix, rank)

    def _group(self, rows: int, columns: int) -> int:
        """How many bonds are cut from one factor: while that stays small and wide."""
        count, last = 1, len(self.cores)
        while last + count < self.bonds:
            rows *= (mode := self.shape[last + count])
            columns //= mode
            if rows > min(_GROUP_ROWS, columns):
                break
            count += 1
        return count

    def _by_triangle(self, matrix: Tensor, rank: int) -> Tensor:
        count = self._group(*matrix.shape)
        matrix = matrix.reshape(rank * math.prod(self.shape[len(self.cores) :][:count]), -1)
        carry, first = unfoldings.triangular_factor(matrix), len(self.cores)
        for _ in range(count):
            u, s, vh = linalg.svd(carry.reshape(rank * self.shape[len(self.cores)], -1))
            kept = self._select(s)
            self._append(u[:, :kept], rank, s.numel(), float(tail_weights(s)[kept]))
            carry, rank = s[:kept].unsqueeze(1) * vh[:kept], kept
        return self._project(matrix, self.cores[first:])

    def _project(self, matrix: Tensor, cores: Sequence[Tensor]) -> Tensor:
        self.rotated = True
        return _chain(cores).mH @ matrix

    def _may_take_gram(self, columns: int, count: int, dtype: torch.dtype) -> bool:
        """Whether the tolerances of the next `count` bonds are worth a Gram matrix."""
        noise = unfoldings.gram_noise(columns, dtype) * self.total
        wishes = [self._bond(offset) for offset in range(count)]
        return all(
            unfoldings.may_resolve(truncation, total=self.total, max_weight=allowed, noise=noise)
            for truncation, allowed in wishes
        )

    def _by_gram(self, matrix: Tensor, rank: int) -> Tensor | None:
        """The same cuts from a Gram matrix; None, and nothing done, where its roundoff is in the way."""
        count = self._group(*matrix.shape)
        matrix = matrix.reshape(rank * math.prod(self.shape[len(self.cores) :][:count]), -1)
        if not self._may_take_gram(matrix.shape[1], count, matrix.dtype):
            return None
        trial = _GramTrial(self, unfoldings.gram_noise(matrix.shape[1], matrix.dtype) * self.total)
        u, s = unfoldings.gram_vectors(matrix)
        carry = u * s
        for k in range(count):
            carry = carry.reshape(rank * self.shape[len(self.cores) + k], -1)
            vh = None
            if count > 1:
                u, s, vh = linalg.svd(carry)
            kept = trial.cut(s)
            if kept is None:
                return None
            trial.cores.append(u[:, :kept].reshape(rank, -1, kept))
            carry = carry if vh is None else s[:kept].unsqueeze(1) * vh[:kept]
            rank = kept
        basis = _chain(trial.cores)
        rest = basis.mH @ matrix
        if not trial.holds(unfoldings.left_out(matrix, basis, rest), torch.finfo(matrix.dtype).eps):
            return None
        self.rotated = True
        for core, (size, weight) in zip(trial.cores, trial.measured(), strict=True):
            self._append(left_unfold(core), core.shape[0], size, weight)
        return rest

    def _from_the_right(self, matrix: Tensor, rank: int) -> Tensor:
        """A tall unfolding: its few right singular vectors V, then the QR of M V."""
        wide = matrix.mH
        v = None
        count, weight = wide.shape[0], 0.0
        if self.method != "qr" and self._may_take_gram(wide.shape[1], 1, wide.dtype):
            trial = _GramTrial(self, unfoldings.gram_noise(wide.shape[1], wide.dtype) * self.total)
            vectors, s = unfoldings.gram_vectors(wide)
            kept = trial.cut(s)
            if kept is not None:
                v = vectors[:, :kept]
                eps = torch.finfo(matrix.dtype).eps
                if trial.holds(unfoldings.left_out(matrix, matrix @ v, v.mH), eps):
                    weight = trial.measured()[0][1]
                else:
                    v = None
        if v is None:
            v, s, _ = linalg.svd(unfoldings.triangular_factor(wide))
            kept = self._select(s)
            v, weight = v[:, :kept], float(tail_weights(s)[kept])
        self.rotated = True
        q, r = linalg.positive_qr(matrix @ v)
        self._append(q, rank, count, weight)
        return r @ v.mH


class _GramTrial:
    """Cuts by a Gram matrix that count only if its roundoff proves harmless."""

    def __init__(self, sweep: _Sweep, noise: float) -> None:
        self.sweep, self.noise = sweep, noise
        self.cores: list[Tensor] = []
        self.tails: list[float] = []
        self.sizes: list[int] = []
        self.excess = 0.0
        self.weight = 0.0

    def cut(self, values: Tensor) -> int | None:
        """Rank of the next bond; None where it is not certain."""
        done = len(self.tails)
        sweep = self.sweep
        truncation = sweep._bond(done)[0]
        spent = math.fsum(self.tails)
        allowed = max(sweep.remaining - spent, 0.0) / (sweep.bonds - len(sweep.cores) - done)
        kept = select_rank(values, truncation, max_weight=allowed)
        if not unfoldings.resolves(values, kept, truncation, max_weight=allowed, noise=self.noise):
            return None
        if kept == truncation.max_rank:
            self.excess += unfoldings.excess(values, kept, self.noise)
        self.tails.append(float(tail_weights(values)[kept]))
        self.sizes.append(values.numel())
        return kept

    def holds(self, weight: float, eps: float) -> bool:
        """Whether the measured weight of all cuts is what the Gram matrix told, and near the least."""
        self.weight = weight
        if weight > math.fsum(self.tails) + 2 * self.noise * len(self.tails):
            return False
        return self.excess <= 1e-2 * weight or weight <= (64 * eps) ** 2 * self.sweep.total

    def measured(self) -> list[tuple[int, float]]:
        """Rank before and weight of each cut; the weights sum up to what was measured."""
        told = math.fsum(self.tails)
        shares = [tail / told for tail in self.tails] if told else [0.0] * (len(self.tails) - 1) + [1.0]
        return list(zip(self.sizes, [share * self.weight for share in shares], strict=True))


def _chain(cores: Sequence[Tensor]) -> Tensor:
    """Cores with an open left rank as a matrix (l n ... n, r)."""
    product = left_unfold(cores[0])
    for core in cores[1:]:
        product = (product @ core.reshape(core.shape[0], -1)).reshape(-1, core.shape[2])
    return product

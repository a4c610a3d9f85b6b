"""Cross approximation: a train of a function, from few of its entries.

At each bond k the train interpolates the function at prefixes I_k and suffixes J_k. A sweep evaluates, core
by core, the entries I_{k-1} x mode k x J_k and chooses new sets by maximal volume, nested from one end. After
each half the function is compared with the train: at random points, at random neighbors of the chosen ones,
and where a search along the coordinates leads. The points that differ most enter the sets of all bonds.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.black_box import BlackBox, VectorizedFunction
from ttnet.cores import ranks_of
from ttnet.errors import ConfigError, ShapeError
from ttnet.gather import gather
from ttnet.log_scale import log_norm
from ttnet.maxvol import maxvol

CrossStatus = Literal["converged", "max_rank", "max_sweeps", "max_evaluations", "stagnated", "unverified"]

# What is aimed at, relative to rtol, since few points see the largest differences.
_MARGIN = 0.1  # of the root mean square
_MARGIN_OF_LARGEST = 0.5

# Held-out points tell of the error where at least this share of the new ones is not exactly 0.
_TELLING = 0.01

_MESSAGES: dict[CrossStatus, str] = {
    "converged": "the error on held-out points is within rtol",
    "max_rank": "the ranks reached max_rank before the error reached rtol; raise max_rank or rtol",
    "max_sweeps": "max_sweeps sweeps were not enough; raise max_sweeps",
    "max_evaluations": "the function was called for max_evaluations entries; raise max_evaluations or rtol",
    "stagnated": "the error stopped falling: rtol is below the noise of the function or of its dtype",
    "unverified": "the train agrees on held-out points, but nearly all of these that are new are exactly 0 "
    "and tell nothing of the entries that are not; give pivots at those, or make the train directly",
}
_ALL_ZERO = "every entry that was seen is 0, and so is the train; pivots tell of entries that are not"


@dataclass(frozen=True, kw_only=True)
class CrossOptions:
    """How `cross` works.

    Args:
        rtol: Relative error that is asked for.
        max_rank: Largest rank of a bond.
        max_sweeps: Largest number of sweeps, each there and back.
        max_evaluations: Entries after which no further sweep is begun.
        starts: Random points from which the search for large entries starts, and later that for large errors.
        probes: Random points, and as many neighbors of the chosen ones, at which function and train are
            compared after each half of a sweep.
        held_out: Fresh ones of both kinds for the errors of the report.
        batch_size: Most entries in one call of the function.
        seed: An integer, a generator on the CPU, or None for torch's global generator.

    Raises:
        ConfigError: A number that is out of range.
    """

    rtol: float = 1e-8
    max_rank: int = 100
    max_sweeps: int = 30
    max_evaluations: int | None = None
    starts: int = 4
    probes: int = 200
    held_out: int = 500
    batch_size: int | None = None
    seed: int | torch.Generator | None = None

    def __post_init__(self) -> None:
        """Check every field where it enters."""
        if not isinstance(self.rtol, int | float) or not 0 < self.rtol < 1:
            raise ConfigError(f"rtol: expected a number between 0 and 1, got {self.rtol!r}")
        for name in ("max_rank", "max_sweeps", "max_evaluations", "starts", "probes", "held_out"):
            value = getattr(self, name)
            if value is None and name == "max_evaluations":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: expected an integer of at least 1, got {value!r}")

    def generator(self) -> torch.Generator:
        """The source of random points."""
        if isinstance(self.seed, torch.Generator):
            return self.seed
        seed = torch.randint(2**62, ()).item() if self.seed is None else self.seed
        return torch.Generator().manual_seed(int(seed))


@dataclass(frozen=True, kw_only=True)
class CrossReport:
    """What a cross approximation found and what it cost.

    Attributes:
        status: Why it stopped; see `message`.
        evaluations: Distinct entries for which the function was called, those of the checks included.
        nonzero: How many of them are not exactly 0.
        ranks: Ranks of the d - 1 bonds.
        held_out_error: Relative error, root of the mean square, on random points that the train has not seen.
        held_out_max: Largest difference that was found on those points and by a search along the coordinates
            from random points, relative to the largest entry that was seen.
        sweeps: Number of sweeps.
    """

    status: CrossStatus
    evaluations: int
    nonzero: int
    ranks: tuple[int, ...]
    held_out_error: float
    held_out_max: float
    sweeps: int

    @property
    def converged(self) -> bool:
        """Whether the error on held-out points is within `rtol`, and these points are not nearly all 0."""
        return self.status == "converged"

    @property
    def message(self) -> str:
        """The status in words."""
        return _ALL_ZERO if self.converged and not self.nonzero else _MESSAGES[self.status]

    def warn(self, *, stacklevel: int = 3) -> None:
        """Warn if the tolerance was not met: for callers that hand no report on.

        Args:
            stacklevel: Frames from here to the line that the warning names; 3 is the caller's caller.

        Warns:
            RuntimeWarning: The message and the error.
        """
        if not self.converged:
            warnings.warn(
                f"cross approximation: {self.message} (error {self.held_out_error:.1e})",
                RuntimeWarning,
                stacklevel=stacklevel,
            )


def cross(
    function: VectorizedFunction,
    domain: Sequence[int] | Sequence[Tensor],
    *,
    options: CrossOptions | None = None,
    pivots: Tensor | None = None,
    device: torch.device | str | None = None,
) -> tuple[Cores, CrossReport]:
    """Approximate a function of indices, or of grid points, by a train.

    Args:
        function: From indices (batch, d), int64, to values (batch,); called with grid points (batch, d) where
            `domain` holds grids.
        domain: Mode sizes (n_0, ..., n_{d-1}), or one grid of points (n_k,) for each mode.
        options: Tolerance, caps and seed.
        pivots: Points (count, d), integers, known to matter: where the function is large, or has features
            that random points would miss.
        device: Where the function is called and where the cores will be; default: the CPU.

    Returns:
        Cores in the dtype of the function's values, and the report. Not reaching `rtol` is no error: read
        `report.status`. The ranks may be a little above the smallest ones: round the train.

    Raises:
        ShapeError: A mode below 1, values or pivots of a wrong shape.
        NonFiniteError: The function returned a NaN or an infinity; the message tells the index.
        ConfigError: An option is out of range.

    References:
        Oseledets and Tyrtyshnikov, Linear Algebra Appl. 432, 70 (2010).
        Nunez Fernandez et al., SciPost Phys. 18, 104 (2025), section 4.3 on global pivots.
    """
    options = options or CrossOptions()
    box = BlackBox(function, domain, device=device, batch_size=options.batch_size)
    generator = options.generator()
    nothing = [torch.zeros(1, size, 1, dtype=torch.float64) for size in box.shape]
    points, _ = _climb(box, _starting_points(box.shape, options.starts, generator), nothing)
    if pivots is not None:
        points = torch.cat([points, _check_pivots(pivots, box.shape)])
    sets = _PivotSets(box, options)
    sets.add(points)
    history: list[float] = []
    half = 0
    while True:
        cores = sets.sweep_right() if half % 2 == 0 else sets.sweep_left()
        half += 1
        rank = max(ranks_of(cores))
        found = _compare(sets, cores, options.probes, max(options.starts, rank // 2), generator)
        history.append(found.error)
        status = _reason_to_stop(options, found, history, half=half, rank=rank, evaluations=box.evaluations)
        if status is not None:
            # Held-out points are drawn anew at each attempt: none of them has been used before.
            found = _compare(sets, cores, options.held_out, 2 * options.starts, generator)
            if status != "converged" or found.error <= options.rtol:
                break
        sets.add(found.points)
    if status != "converged" and found.error <= options.rtol:
        status = "converged"
    if status == "converged" and not found.is_telling:
        status = "unverified"
    report = CrossReport(
        status=status,
        evaluations=box.evaluations,
        nonzero=box.nonzero,
        ranks=ranks_of(cores)[1:-1],
        held_out_error=found.mean,
        held_out_max=found.largest,
        sweeps=-(-half // 2),
    )
    dtype = box.dtype or torch.get_default_dtype()
    return tuple(core.to(dtype=dtype, device=box.device) for core in cores), report


def _reason_to_stop(
    options: CrossOptions,
    found: "_Difference",
    history: list[float],
    *,
    half: int,
    rank: int,
    evaluations: int,
) -> CrossStatus | None:
    if options.max_evaluations is not None and evaluations >= options.max_evaluations:
        return "max_evaluations"
    if half >= 2 * options.max_sweeps:
        return "max_sweeps"
    if found.mean <= _MARGIN * options.rtol and found.largest <= _MARGIN_OF_LARGEST * options.rtol:
        return "converged"
    at_cap = rank >= options.max_rank
    is_close = found.error <= options.rtol
    patience = 2 if is_close else 3 if at_cap else 6
    if len(history) > patience and min(history[-patience:]) > 0.5 * min(history[:-patience]):
        return "converged" if is_close else "max_rank" if at_cap else "stagnated"
    return None


class _PivotSets:
    """Prefixes and suffixes at each bond, and the train that interpolates through them."""

    def __init__(self, box: BlackBox, options: CrossOptions) -> None:
        self.box, self.options = box, options
        bonds = len(box.shape) - 1
        self.prefixes = [torch.empty(0, k + 1, dtype=torch.int64) for k in range(bonds)]
        self.suffixes = [torch.empty(0, bonds - k, dtype=torch.int64) for k in range(bonds)]

    def add(self, points: Tensor) -> None:
        """Take the parts of points (count, d) into the sets of all bonds."""
        for k in range(len(self.prefixes)):
            self.prefixes[k] = torch.cat([self.prefixes[k], points[:, : k + 1]]).unique(dim=0)
            self.suffixes[k] = torch.cat([self.suffixes[k], points[:, k + 1 :]]).unique(dim=0)

    def neighbors(self, count: int, generator: torch.Generator) -> Tensor:
        """Random points of the sets I_{k-1} x mode k x mode k+1 x J_{k+1}, at least `count` in all."""
        shape, bonds = self.box.shape, len(self.prefixes)
        each = -(-count // max(bonds, 1))
        points = [torch.empty(0, len(shape), dtype=torch.int64)]
        for k in range(bonds):
            parts = [_random_points(shape[k : k + 2], each, generator)]
            if k > 0:
                parts.insert(0, _draw(self.prefixes[k - 1], each, generator))
            if k < bonds - 1:
                parts.append(_draw(self.suffixes[k + 1], each, generator))
            points.append(torch.cat(parts, 1))
        return torch.cat(points)

    def sweep_right(self) -> Cores:
        """Choose the prefixes anew, from the first bond to the last."""
        cores, prefixes = [], torch.empty(1, 0, dtype=torch.int64)
        for k, suffixes in enumerate(self.suffixes):
            entries, left, _ = self._entries(prefixes, k, suffixes)
            rows, coefficients = self._choose(entries.flatten(0, 1))
            cores.append(coefficients.reshape(len(prefixes), self.box.shape[k], -1))
            prefixes = self.prefixes[k] = left[rows]
        last, _, _ = self._entries(prefixes, len(self.suffixes), torch.empty(1, 0, dtype=torch.int64))
        return (*cores, last)

    def sweep_left(self) -> Cores:
        """Choose the suffixes anew, from the last bond to the first."""
        cores, suffixes = [], torch.empty(1, 0, dtype=torch.int64)
        for k in range(len(self.prefixes), 0, -1):
            entries, _, right = self._entries(self.prefixes[k - 1], k, suffixes)
            rows, coefficients = self._choose(entries.flatten(1, 2).T)
            cores.append(coefficients.T.reshape(-1, self.box.shape[k], len(suffixes)))
            suffixes = self.suffixes[k - 1] = right[rows]
        first, _, _ = self._entries(torch.empty(1, 0, dtype=torch.int64), 0, suffixes)
        return (first, *reversed(cores))

    def _entries(self, prefixes: Tensor, mode: int, suffixes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Entries (prefixes, mode, suffixes), and the prefixes and the suffixes that include the mode."""
        size = self.box.shape[mode]
        index = torch.arange(size)
        left = torch.cat([prefixes.repeat_interleave(size, 0), index.repeat(len(prefixes)).unsqueeze(1)], 1)
        right = torch.cat([index.repeat_interleave(len(suffixes)).unsqueeze(1), suffixes.repeat(size, 1)], 1)
        points = torch.cat([left.repeat_interleave(len(suffixes), 0), suffixes.repeat(len(left), 1)], 1)
        return self.box(points).reshape(len(prefixes), size, len(suffixes)), left, right

    def _choose(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that represent the matrix of entries to the tolerance, and the coefficients of all rows."""
        u, s, _ = linalg.svd(entries)
        # A margin once more: the errors of the bonds add, and interpolation enlarges them.
        tolerance = max(_MARGIN**2 * self.options.rtol, 2 * torch.finfo(self.box.dtype or entries.dtype).eps)
        rank = int((s > tolerance * s[0]).sum())
        return maxvol(u[:, : min(max(rank, 1), self.options.max_rank)])


@dataclass(frozen=True, kw_only=True)
class _Difference:
    """Function against train: root mean square and maximum, both relative, and where they differ most."""

    mean: float
    largest: float
    points: Tensor
    is_telling: bool

    @property
    def error(self) -> float:
        """The larger of the two."""
        return max(self.mean, self.largest)


def _compare(
    sets: _PivotSets, cores: Cores, count: int, starts: int, generator: torch.Generator
) -> _Difference:
    """Compare at `count` random points, as many neighbors of the sets, and along lines from the worst."""
    box = sets.box
    evaluations, nonzero = box.evaluations, box.nonzero
    points = _random_points(box.shape, count, generator)
    values = box(points)
    differences = (gather(cores, points) - values).abs()
    near = sets.neighbors(count, generator)
    everywhere, all_differences = torch.cat([points, near]), differences
    if len(near):
        all_differences = torch.cat([differences, (gather(cores, near) - box(near)).abs()])
    new, new_nonzero = box.evaluations - evaluations, box.nonzero - nonzero
    worst = everywhere[all_differences.argsort(descending=True)[: -(-starts // 2)]]
    others = _starting_points(box.shape, max(starts // 2, 1), generator)
    found, climbed = _climb(box, torch.cat([worst, others]), cores)
    # Random points may all miss what makes up the norm; the train knows what it has found of it.
    size = max(
        _root_mean_square(values, box.largest),
        math.exp(float(log_norm(cores)) - 0.5 * sum(map(math.log, box.shape)) - math.log(box.largest or 1.0)),
    )
    mean = _root_mean_square(differences, box.largest)
    largest = max(climbed, float(all_differences.max()))
    # Where few points are new, nearly everything is known; where all are 0, so is the train.
    is_telling = new < 0.1 * count or not box.nonzero or new_nonzero >= _TELLING * new
    return _Difference(
        mean=_ratio(mean, size),
        largest=_ratio(largest, box.largest),
        points=found,
        is_telling=is_telling,
    )


def _root_mean_square(values: Tensor, scale: float) -> float:
    """Over `scale`, so that no square is out of range."""
    return math.sqrt(float((values / (scale or 1.0)).abs().square().mean()))


def _climb(box: BlackBox, points: Tensor, cores: CoresLike) -> tuple[Tensor, float]:
    """Move points (count, d) along one coordinate after another to where function and train differ most."""
    points, rows, largest = points.clone(), torch.arange(len(points)), 0.0
    left, rights = cores[0].new_ones(len(points), 1), [cores[0].new_ones(len(points), 1)]
    for k in range(len(cores) - 1, 0, -1):
        rights.append(torch.einsum("anb,pb->pan", cores[k], rights[-1])[rows, :, points[:, k]])
    for k, size in enumerate(box.shape):
        candidates = points.unsqueeze(1).repeat(1, size, 1)
        candidates[:, :, k] = torch.arange(size)
        values = box(candidates.flatten(0, 1)).reshape(len(points), size)
        grown = torch.einsum("pa,anb->pnb", left, cores[k])
        line = torch.einsum("pnb,pb->pn", grown, rights[len(cores) - 1 - k])
        best, points[:, k] = (values - line).abs().max(1)
        largest = float(best.max())
        left = grown[rows, points[:, k]]
    return points, largest


def _ratio(error: float, size: float) -> float:
    return error / size if size > 0 else math.inf if error > 0 else 0.0


def _random_points(shape: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    return torch.stack([torch.randint(n, (count,), generator=generator) for n in shape], 1)


def _draw(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return points[torch.randint(len(points), (count,), generator=generator)]


def _starting_points(shape: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    """Random points, and the first and the last corner, which random points miss."""
    last = torch.tensor(shape) - 1
    return torch.cat([_random_points(shape, count, generator), torch.stack([last * 0, last])])


def _check_pivots(pivots: Tensor, shape: tuple[int, ...]) -> Tensor:
    points = torch.as_tensor(pivots).cpu()
    if points.is_floating_point() or points.ndim != 2 or points.shape[1] != len(shape):
        raise ShapeError(
            f"pivots: expected integers of shape (count, {len(shape)}), got {points.dtype} of shape "
            f"{tuple(points.shape)}"
        )
    sizes = torch.tensor(shape)
    if bool(((points < 0) | (points >= sizes)).any()):
        raise ShapeError(f"pivots: expected indices within the shape {shape}, got {points.tolist()}")
    return points.long()

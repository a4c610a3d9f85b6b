"""What sweeps report and what a minimization returns."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from ttnet.optim.norms import NormName
from ttnet.tensor_train import TensorTrain


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """What one sweep did: a `DMRGScheduler`'s cut, or a `TwoSiteDMRG`'s there and back over all bonds.

    Attributes:
        ranks_before: Ranks of the d - 1 bonds before.
        ranks_after: Ranks of the d - 1 bonds after.
        discarded_weight: Sum of the discarded squares, by bond.
        seconds: Wall-clock time of the sweep.
        epoch: Completed epochs at the sweep of a scheduler.
        spectra: Singular values of each bond before a scheduler's cut, in descending order.
        relative_error: Error of a cut over the norm before, measured on the new cores; 0 for a sweep that
            optimizes, whose train is meant to move.
        matrix_errors: Where the scheduler was given a `measure`: relative error by name.
        norm: The norm of `discarded_weight`, `spectra`, `relative_error` and `matrix_errors`: "frobenius", or
            "metric" where the scheduler cuts in a metric.
        loss_before: Loss before the sweep, where a problem was given.
        loss_after: Loss after it, all truncations included.
        loss_untruncated: Lowest loss that a local update reached before its block was split.
        entropies: Von Neumann entropy of each bond in nats, as last seen by an optimizing sweep.
        gradient_norm: Largest norm of a block's gradient before its update.
        evaluations: Gradients, values and curvature products that the local updates took.
        undone: Updates whose split would have raised the loss and was taken back, wholly or in part.
        phases: Seconds by phase ("environments", "solve", "split").
    """

    ranks_before: tuple[int, ...]
    ranks_after: tuple[int, ...]
    discarded_weight: tuple[float, ...]
    seconds: float
    epoch: int | None = None
    spectra: tuple[tuple[float, ...], ...] = ()
    relative_error: float = 0.0
    matrix_errors: Mapping[str, float] = field(default_factory=dict)
    norm: NormName = "frobenius"
    loss_before: float | None = None
    loss_after: float | None = None
    loss_untruncated: float | None = None
    entropies: tuple[float, ...] = ()
    gradient_norm: float | None = None
    evaluations: int = 0
    undone: int = 0
    phases: Mapping[str, float] = field(default_factory=dict)

    @property
    def max_error(self) -> float:
        """Largest of `matrix_errors` where there are any, else `relative_error`."""
        return max(self.matrix_errors.values(), default=self.relative_error)

    @property
    def max_rank(self) -> int:
        """Largest rank after the sweep."""
        return max(self.ranks_after, default=1)

    def as_dict(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return asdict(self) | {"matrix_errors": dict(self.matrix_errors), "phases": dict(self.phases)}


class Status(Enum):
    """Why a minimization ended; the value is its message."""

    CONVERGED = "the loss and, where asked for, the entropies have settled"
    MAX_SWEEPS = "the sweeps asked for are done and the loss has not settled yet; go on with more sweeps"
    STALLED = "what was to fall does so no more, above the tolerance; raise the rank or change the method"
    NOT_ORTHOGONAL = (
        "the state overlaps with those it should be orthogonal to; raise `penalty` above the gap or leave it "
        "out, or raise `max_rank`"
    )
    STOPPED = "the observer stopped the minimization"
    NON_FINITE = "the loss became NaN or infinite; the last good train is returned"


@dataclass(frozen=True, kw_only=True)
class DMRGResult:
    """What a minimization returns.

    Attributes:
        tensor_train: The best train seen.
        loss: Its loss.
        trajectory: One report a sweep.
        status: Why it ended.
        certificate: What tells how good the train is, independently of the loss: the energy variance of
            `dmrg`, the relative residual of `solve`, the relative error of `fit` on entries it was not
            shown.
    """

    tensor_train: TensorTrain
    loss: float
    trajectory: Sequence[SweepReport]
    status: Status
    certificate: float | None = None

    @property
    def message(self) -> str:
        """The status in words."""
        return self.status.value

    @property
    def converged(self) -> bool:
        """Whether the minimization converged."""
        return self.status is Status.CONVERGED

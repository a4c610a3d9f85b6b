"""What a sweep has seen so far, from which its report is made, and its last update, not judged yet."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ttnet._typing import Cores
from ttnet.gauge import entropy
from ttnet.optim.geometry import Visit
from ttnet.optim.local.problem import LocalResult, Start
from ttnet.optim.result import SweepReport
from ttnet.optim.split import Split


@dataclass(frozen=True, kw_only=True)
class Update:
    """The last local update, as long as nobody has looked at the loss after its split.

    Attributes:
        visit: Where it was.
        sweep: How many sweeps were done before: it is judged by the settings of its own sweep.
        cores: The train before it.
        start: The block before it.
        loss: The loss before it.
        block: The block after it, before its split.
        forced: Whether the truncation forced the rank below that of before.
        shrunk: By how much the rank fell.
    """

    visit: Visit
    sweep: int
    cores: Cores
    start: Tensor
    loss: float
    block: Tensor
    forced: bool
    shrunk: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values and tensors, from which `from_dict` makes it again."""
        tensors = {name: getattr(self, name).clone() for name in ("start", "block")}
        cores = [core.clone() for core in self.cores]
        return vars(self) | tensors | {"cores": cores, "visit": asdict(self.visit)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "Update":
        """Take back what `as_dict` gave."""
        cores = tuple(core.clone() for core in state["cores"])
        return cls(**(dict(state) | {"cores": cores, "visit": Visit(**state["visit"])}))


class SweepRecord:
    """Losses, weights and counts of one sweep.

    Args:
        ranks: Ranks of the d - 1 bonds when the sweep began; the others resume it in its middle.
    """

    def __init__(
        self,
        ranks: tuple[int, ...] = (),
        losses: list[float] | None = None,
        lowest_untruncated: float = math.inf,
        gradient_norm: float = 0.0,
        evaluations: int = 0,
        undone: int = 0,
        weights: dict[int, float] | None = None,
        entropies: dict[int, float] | None = None,
        since: int = 0,
    ) -> None:
        self.ranks = tuple(ranks)
        self.losses = list(losses or [])
        self.lowest_untruncated = lowest_untruncated
        self.gradient_norm = gradient_norm
        self.evaluations = evaluations
        self.undone = undone
        self.weights = dict(weights or {})
        self.entropies = dict(entropies or {})
        self.since = since
        self.phases = {"environments": 0.0, "solve": 0.0, "split": 0.0}

    @property
    def lowest(self) -> float:
        """Lowest loss of a train (not of a block before its split) since the last rise that was allowed."""
        return min(self.losses[self.since :], default=math.inf)

    def ceiling(self, update: Update) -> float:
        """Highest acceptable loss after an update: the one before it, never far above the sweep's lowest."""
        eps = torch.finfo(update.block.dtype).eps
        slack = 1000 * eps if eps < 1e-10 else 16 * eps
        return min(update.loss, self.lowest) + slack * abs(update.loss)

    def forget(self) -> None:
        """What was seen is no measure any more: a rise was allowed, or the problem is another one."""
        self.since = len(self.losses)

    def saw(self, start: Start) -> None:
        """A block is about to be improved."""
        self.losses.append(start.loss)
        self.gradient_norm = max(self.gradient_norm, float(torch.linalg.vector_norm(start.gradient)))

    def solved(self, result: LocalResult, seconds: float) -> None:
        """A local solver has ended."""
        self.lowest_untruncated = min(self.lowest_untruncated, result.loss)
        self.evaluations += result.evaluations
        self.phases["solve"] += seconds

    def cut(self, bond: int, parts: Split) -> None:
        """A block was split."""
        self.weights[bond] = parts.discarded_weight
        self.entropies[bond] = entropy(parts.singular_values)

    def as_dict(self) -> dict[str, Any]:
        """The arguments that make this record again."""
        copies = {"losses": [*self.losses], "weights": {**self.weights}, "entropies": {**self.entropies}}
        return {name: value for name, value in vars(self).items() if name != "phases"} | copies

    def report(self, ranks: tuple[int, ...], loss: float, seconds: float) -> SweepReport:
        """The report of the finished sweep, with the ranks and the loss it ended at."""
        bonds = range(len(ranks))
        return SweepReport(
            ranks_before=self.ranks,
            ranks_after=ranks,
            discarded_weight=tuple(self.weights.get(k, 0.0) for k in bonds),
            entropies=tuple(self.entropies.get(k, 0.0) for k in bonds),
            loss_before=self.losses[0] if self.losses else None,
            loss_after=loss,
            loss_untruncated=self.lowest_untruncated,
            gradient_norm=self.gradient_norm,
            evaluations=self.evaluations,
            undone=self.undone,
            seconds=seconds,
            phases=dict(self.phases),
        )

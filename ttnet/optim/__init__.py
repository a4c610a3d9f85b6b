"""DMRG on gradients: sweeps that minimize any torch loss, and a scheduler that alternates them with Adam."""

from ttnet.optim.dmrg import TwoSiteDMRG
from ttnet.optim.fit import fit
from ttnet.optim.ground_state import dmrg
from ttnet.optim.linear import solve
from ttnet.optim.problems import (
    Closure,
    Composite,
    GatherLoss,
    LeastSquares,
    LinearSystem,
    Problem,
    QuadraticForm,
    RayleighQuotient,
)
from ttnet.optim.ranks import AdaptiveRanks, RankSchedule
from ttnet.optim.result import DMRGResult, Status, SweepReport
from ttnet.optim.scheduler import DMRGScheduler

__all__ = [
    "AdaptiveRanks",
    "Closure",
    "Composite",
    "DMRGResult",
    "DMRGScheduler",
    "GatherLoss",
    "LeastSquares",
    "LinearSystem",
    "Problem",
    "QuadraticForm",
    "RankSchedule",
    "RayleighQuotient",
    "Status",
    "SweepReport",
    "TwoSiteDMRG",
    "dmrg",
    "fit",
    "solve",
]

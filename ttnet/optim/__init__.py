"""DMRG on gradients: sweeps that minimize any torch loss, and a scheduler that alternates them with Adam."""

from ttnet.optim.batches import BatchLoss
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
from ttnet.optim.two_site import TwoSiteOptions

__all__ = [
    "AdaptiveRanks",
    "BatchLoss",
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
    "TwoSiteOptions",
    "dmrg",
    "fit",
    "solve",
]

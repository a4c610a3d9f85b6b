"""DMRG sweeps over trained trains."""

from ttnet.optim.ranks import AdaptiveRanks, RankSchedule
from ttnet.optim.result import SweepReport
from ttnet.optim.scheduler import DMRGScheduler

__all__ = ["AdaptiveRanks", "DMRGScheduler", "RankSchedule", "SweepReport"]

"""What a sweep minimizes: any closure, or objects whose environments are cached."""

from ttnet.optim.problems.closure import Closure, Composite
from ttnet.optim.problems.energy import QuadraticForm, RayleighQuotient
from ttnet.optim.problems.gather import GatherLoss, LeastSquares
from ttnet.optim.problems.problem import Problem
from ttnet.optim.problems.system import LinearSystem

__all__ = [
    "Closure",
    "Composite",
    "GatherLoss",
    "LeastSquares",
    "LinearSystem",
    "Problem",
    "QuadraticForm",
    "RayleighQuotient",
]

"""Local solvers: each takes a problem of one block and where it begins, and returns a better block."""

from collections.abc import Callable

from ttnet.optim.local.first_order import adam, conjugate_gradient, gradient
from ttnet.optim.local.gmres import gmres
from ttnet.optim.local.lanczos import lanczos
from ttnet.optim.local.lbfgs import lbfgs
from ttnet.optim.local.newton_cg import newton_cg
from ttnet.optim.local.problem import LocalProblem, LocalResult, Start

SOLVERS: dict[str, Callable[..., LocalResult]] = {
    "newton-cg": newton_cg,
    "lbfgs": lbfgs,
    "cg": conjugate_gradient,
    "adam": adam,
    "gradient": gradient,
    "lanczos": lanczos,
    "gmres": gmres,
}
"""Solvers by the name that `TwoSiteDMRG(solver=)` takes."""

__all__ = ["SOLVERS", "LocalProblem", "LocalResult", "Start"]

"""Linear systems and completion: `ttnet.optim.solve` and `fit` beside torchTT, teneva and scipy.

    python benchmarks/solvers.py --threads 1

writes `benchmarks/results/solvers.json`. Systems: the Laplace operator on 64 x 64 and 32 x 32 x 32 points in
quantized form with a constant right-hand side, to a relative residual of 1e-6 and 1e-8; the residual is that
of the exact product. Completion: 1 / (1 + sum x) on 10 points of [0, 1] in each of 6 modes from 8,000 random
entries at rank 4, relative error on 5,000 other entries, five seeds.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from harness import Attempt, describe, fix_environment, moment, race

import ttnet
from ttnet.optim import fit, solve

MODES, POINTS, RANK, SHOWN, OTHERS, SEEDS = 6, 10, 4, 8000, 5000, 5


def systems(rounds: int) -> list[dict[str, Any]]:
    """One race for each operator and tolerance."""
    import scipy.sparse.linalg as sparse
    import torchtt

    rows = []
    for levels in ((6, 6), (5, 5, 5)):
        operator = ttnet.operators.qtt_laplace(levels, dtype=torch.float64)
        right = ttnet.ones((2,) * sum(levels), dtype=torch.float64)
        theirs = torchtt.TT([core.clone() for core in operator.cores])
        their_right = torchtt.TT([core.clone() for core in right.cores])
        matrix = laplace(levels)
        flat = right.numpy().reshape(-1)

        def residual(train: ttnet.TensorTrain, operator: Any = operator, right: Any = right) -> float:
            return float((operator @ train - right).norm() / right.norm())

        for tol in (1e-6, 1e-8):
            attempts = {
                "ttnet": Attempt(
                    run=lambda a=operator, b=right, tol=tol: solve(a, b, tol=tol),
                    read=lambda result: result.tensor_train,
                    facts=lambda result: {"rank": max(result.tensor_train.ranks)},
                ),
                "torchTT AMEn": Attempt(
                    run=lambda a=theirs, b=their_right, tol=tol: torchtt.solvers.amen_solve(a, b, eps=tol),
                    read=lambda found: ttnet.TensorTrain(found.cores),
                    facts=lambda found: {"rank": max(found.R)},
                ),
                "scipy CG on the grid": Attempt(
                    run=lambda a=matrix, b=flat, tol=tol: sparse.cg(a, b, rtol=tol)[0],
                    read=lambda found, shape=right.shape: ttnet.tt_svd(torch.as_tensor(found).reshape(shape)),
                ),
            }
            found = race(attempts, residual, rounds=rounds)
            rows.append({"operator": f"QTT Laplace, levels {levels}", "tolerance": tol, "rivals": found})
            show(rows[-1]["operator"] + f", {tol:g}", found)
    return rows


def laplace(levels: tuple[int, ...]) -> Any:
    """The same operator as a sparse matrix."""
    import scipy.sparse as sp

    total: Any = 0
    for k in range(len(levels)):
        parts = [
            sp.diags([-1, 2, -1], [-1, 0, 1], shape=(2**n, 2**n)) if j == k else sp.identity(2**n)  # pyright: ignore[reportArgumentType]
            for j, n in enumerate(levels)
        ]
        term = parts[0]
        for part in parts[1:]:
            term = sp.kron(term, part)
        total = total + term
    return sp.csr_matrix(total)


def completion() -> dict[str, Any]:
    """Five data sets; each rival once a seed, in turn."""
    import teneva

    runs: dict[str, list[dict[str, float]]] = {
        name: [] for name in ("ttnet", "ttnet, 3 starts", "teneva ALS")
    }
    for seed in range(-1, SEEDS):  # the first warms up
        generator = torch.Generator().manual_seed(max(seed, 0))
        indices = torch.randint(POINTS, (SHOWN + OTHERS, MODES), generator=generator)
        values = 1 / (1 + (indices.double() / (POINTS - 1)).sum(1))
        shown, other = (indices[:SHOWN], values[:SHOWN]), (indices[SHOWN:], values[SHOWN:])

        def ours(starts: int, seed: int = seed, shown: Any = shown) -> ttnet.TensorTrain:
            options = {"shape": (POINTS,) * MODES, "max_rank": RANK, "seed": max(seed, 0)}
            return fit(*shown, starts=starts, target=3e-5 if starts > 1 else 0.0, **options).tensor_train

        def theirs(shown: Any = shown, seed: int = seed) -> ttnet.TensorTrain:
            start = teneva.rand([POINTS] * MODES, RANK, seed=max(seed, 0))
            cores = teneva.als(shown[0].numpy(), shown[1].numpy(), start, nswp=50)
            return ttnet.TensorTrain([torch.as_tensor(core) for core in cores])  # pyright: ignore[reportOptionalIterable]

        for name, run in (
            ("ttnet", lambda: ours(1)),
            ("ttnet, 3 starts", lambda: ours(3)),
            ("teneva ALS", theirs),
        ):
            began = time.process_time()
            train = run()
            seconds = time.process_time() - began
            error = float((train.gather(other[0]) - other[1]).norm() / other[1].norm())
            if seed >= 0:
                runs[name].append({"cpu_seconds": seconds, "relative_error": error})
                print(f"  seed {seed} {name:16s} {seconds:6.2f} s, error {error:.1e}", file=sys.stderr)
    return {
        name: {
            "cpu_seconds": statistics.median(run["cpu_seconds"] for run in each),
            "relative_error": statistics.median(run["relative_error"] for run in each),
            "below 1e-4": sum(run["relative_error"] < 1e-4 for run in each),
            "runs": each,
        }
        for name, each in runs.items()
    }


def show(title: str, rivals: dict[str, dict[str, Any]]) -> None:
    """One line for each rival."""
    print(title, file=sys.stderr)
    for name, found in rivals.items():
        what = found.get("skipped") or f"{found['cpu_seconds']['median']:.3f} s, error {found['error']:.1e}"
        print(f"  {name:22s} {what}", file=sys.stderr)


def main() -> None:
    """Run everything and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "solvers.json")
    options = parser.parse_args()
    fix_environment(options.threads)
    torch.set_num_threads(options.threads)
    record = {
        "dtype": "float64",
        "threads": options.threads,
        **describe(["ttnet", "torch", "numpy", "scipy", "torchTT", "teneva"]),
        **moment(),
        "systems": systems(options.rounds),
        "completion": completion(),
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Ground states of the Heisenberg chain: ttnet, quimb and TeNPy (with and without conserved Sz).

Every rival starts from the Neel state, sweeps with ranks of its own schedule below, and stops at the first
sweep whose energy is within the target of the Bethe ansatz. One process, rivals in turn, threads fixed:

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 python benchmarks/dmrg.py --threads 1

writes `benchmarks/results/dmrg.json`: times, energies and, for the share of Python, the time of one sweep
of a loop written out by hand with two products of matrices for each application of the Hamiltonian.
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

import ttnet
from ttnet.gauge import shift_left, shift_right
from ttnet.matrix_cores import tensordot
from ttnet.optim import Closure, RayleighQuotient, TwoSiteDMRG
from ttnet.optim.geometry import there_and_back

EXACT = {50: -21.97211028125050, 100: -44.12773989329623}
"""Bethe equations (Alcaraz et al., J. Phys. A 20, 6397 (1987)), solved to all digits."""

TARGETS = {(50, 64): 1e-8, (50, 128): 1e-8, (100, 64): 2e-8, (100, 128): 1e-8}
"""Relative error of the energy at which a rival has arrived; N = 100 at rank 64 cannot get below 1.5e-8."""

START = 8
"""Rank of the random state that the sweeps begin with; TeNPy begins with the Neel state, as it is used."""

CUTOFF = 1e-14
"""Relative discarded weight that every rival may cut besides its cap, far below what the cap cuts."""

MAX_SWEEPS = 12

Stop = Callable[[float], bool]
"""Called with the energy after each sweep; true when it is time to stop."""


def ranks_by_sweep(rank: int) -> list[int]:
    """Caps of sweeps there and back; the last repeats."""
    return [cap for cap in (32, 64) if cap < rank] + [rank]


def ours(n: int, rank: int, stop: Stop, local_steps: int | None = None) -> None:
    """`TwoSiteDMRG` with Lanczos on a `RayleighQuotient`, which `ttnet.optim.dmrg` runs as well."""
    problem = RayleighQuotient(ttnet.operators.heisenberg(n, dtype=torch.float64))
    optimizer = TwoSiteDMRG(
        ttnet.TTParameter(start(n)),
        truncation=[ttnet.Truncation(max_rank=cap, cutoff=CUTOFF) for cap in ranks_by_sweep(rank)],
        solver="lanczos",
        local_steps=local_steps,
    )
    while not stop(float(optimizer.sweep(problem).loss_after or 0.0)):
        pass


def start(n: int) -> ttnet.TensorTrain:
    """A random state."""
    return ttnet.random_train((2,) * n, START, seed=0, dtype=torch.float64)


def by_hand(n: int, rank: int, stop: Stop) -> None:
    """The textbook in torch: dense environments (w, bra, ket), two products a matvec, 4 Lanczos vectors."""
    operator = list(ttnet.operators.heisenberg(n, dtype=torch.float64).cores)  # (w, m, m', w')
    mirrored = [core.permute(3, 1, 2, 0) for core in operator]
    cores = list((train := start(n).orthogonalize(0)).cores)
    cores[0] = cores[0] / train.norm()
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    left, right = [one] * n, [one] * n
    for k in range(n - 1, 0, -1):
        right[k - 1] = grown(right[k], mirrored[k], cores[k].transpose(0, 2))
    caps = ranks_by_sweep(rank)
    energy, arrived = 0.0, False
    while not arrived:
        cap = caps.pop(0) if len(caps) > 1 else caps[0]
        for visit in there_and_back(n, 2):
            k = visit.site
            first = torch.einsum("abc,amnw->wbmcn", left[k], operator[k]).flatten(3).flatten(0, 2)
            second = torch.einsum("wmna,abc->wncmb", operator[k + 1], right[k + 1]).flatten(3).flatten(0, 2)
            block = torch.tensordot(cores[k], cores[k + 1], 1)
            rows, columns = block.shape[:2], block.shape[2:]
            matrix = block.reshape(rows.numel(), columns.numel())
            energy, matrix = lowest(matrix, first.contiguous(), second.contiguous())
            u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
            kept = min(cap, int((s > math.sqrt(CUTOFF) * s[0]).sum()))
            weight = s[:kept] / torch.linalg.vector_norm(s[:kept])
            u, vh = u[:, :kept], vh[:kept]
            u, vh = (u, weight[:, None] * vh) if visit.forward else (u * weight, vh)
            cores[k], cores[k + 1] = u.reshape(*rows, kept), vh.reshape(kept, *columns)
            if visit.forward:
                left[k + 1] = grown(left[k], operator[k], cores[k])
            else:
                right[k] = grown(right[k + 1], mirrored[k + 1], cores[k + 1].transpose(0, 2))
        arrived = stop(energy)


def grown(environment: Tensor, operator: Tensor, core: Tensor) -> Tensor:
    """An environment (w, bra, ket) with one more site."""
    half = tensordot(environment, core, [2], [0])
    half = tensordot(half, operator, [0, 2], [0, 2])
    return tensordot(core, half, [0, 1], [0, 2]).permute(2, 0, 1).contiguous()


def lowest(matrix: Tensor, first: Tensor, second: Tensor, steps: int = 4) -> tuple[float, Tensor]:
    """Lanczos for sum_w first_w X second_w^T."""
    rows, columns = matrix.shape

    def apply(x: Tensor) -> Tensor:
        half = (first @ x.reshape(rows, columns)).reshape(-1, rows, columns)
        return (half.transpose(0, 1).reshape(rows, -1) @ second).reshape(-1)

    vectors = [matrix.reshape(-1) / torch.linalg.vector_norm(matrix)]
    alphas, betas = [], []
    for step in range(min(steps, matrix.numel())):
        image = apply(vectors[-1])
        alphas.append(float(torch.dot(image, vectors[-1])))
        if step + 1 == steps:
            break
        for known in vectors:
            image = image - torch.dot(known, image) * known
        betas.append(float(torch.linalg.vector_norm(image)))
        if betas[-1] < 1e-13:
            betas.pop()
            break
        vectors.append(image / betas[-1])
    band = torch.diag(torch.tensor(betas[: len(alphas) - 1], dtype=torch.float64), -1)
    values, found = torch.linalg.eigh(torch.diag(torch.tensor(alphas, dtype=torch.float64)) + band)
    return float(values[0]), (torch.stack(vectors, 1) @ found[:, 0]).reshape(rows, columns)


def by_quimb(n: int, rank: int, stop: Stop) -> None:
    """The DMRG2 of quimb with its loose local solver; a sweep there is one direction."""
    import quimb.tensor as qtn

    class Engine(qtn.DMRG2):
        def _check_convergence(self, tol: float) -> bool:  # noqa: ARG002
            return stop(float(self.energy.real))

    engine = Engine(
        qtn.MPO_ham_heis(n),
        bond_dims=[cap for cap in ranks_by_sweep(rank) for _ in range(2)],
        cutoffs=CUTOFF,
        p0=qtn.MPS_rand_state(n, START, seed=0),
    )
    engine.solve(max_sweeps=2 * MAX_SWEEPS, sweep_sequence="RL")


def by_tenpy(n: int, rank: int, stop: Stop, conserve: str | None) -> None:
    """TeNPy's two-site engine; its sweeps go there and back."""
    from tenpy.algorithms.dmrg import TwoSiteDMRGEngine
    from tenpy.models.spins import SpinChain
    from tenpy.networks.mps import MPS

    model = SpinChain({"L": n, "S": 0.5, "conserve": conserve, "bc_MPS": "finite", "sort_charge": True})
    state = MPS.from_product_state(model.lat.mps_sites(), ["up", "down"] * (n // 2), bc="finite")
    options = {
        "trunc_params": {"chi_max": rank, "svd_min": math.sqrt(CUTOFF)},
        "chi_list": dict(enumerate(ranks_by_sweep(rank))),
        "mixer": None,
        "lanczos_params": {"N_min": 2, "N_max": 4},
    }
    engine = TwoSiteDMRGEngine(state, model, options)
    for _ in range(MAX_SWEEPS):
        engine.sweep()
        if stop(
            float(
                engine.sweep_stats["E"][-1] if engine.sweep_stats["E"] else engine.update_stats["E_total"][-1]
            )
        ):
            return


RIVALS: dict[str, Callable[[int, int, Stop], None]] = {
    "ttnet": ours,
    "by hand": by_hand,
    "quimb": by_quimb,
    "TeNPy": lambda n, rank, stop: by_tenpy(n, rank, stop, None),
    "TeNPy, Sz": lambda n, rank, stop: by_tenpy(n, rank, stop, "Sz"),
}


def run_once(rival: str, n: int, rank: int, target: float) -> dict[str, Any]:
    """Times and relative errors after each sweep, up to the first within the target."""
    trace: list[tuple[float, float, float]] = []
    cpu, wall = time.process_time(), time.perf_counter()

    def stop(energy: float) -> bool:
        error = energy / EXACT[n] - 1
        trace.append((time.process_time() - cpu, time.perf_counter() - wall, -error))
        return abs(error) <= target or len(trace) >= 2 * MAX_SWEEPS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        RIVALS[rival](n, rank, stop)
    seconds, elapsed, error = trace[-1]
    return {"cpu_seconds": seconds, "wall_seconds": elapsed, "relative_error": error, "trace": trace}


def compare(n: int, rank: int, rounds: int, rivals: list[str]) -> dict[str, Any]:
    """Every rival once in each round, in rotated order."""
    target = TARGETS[n, rank]
    runs: dict[str, list[dict[str, Any]]] = {rival: [] for rival in rivals}
    for index in range(-1, rounds):
        turn = max(index, 0) % len(rivals)
        for rival in rivals[turn:] + rivals[:turn]:
            run = run_once(rival, n, rank, target) if index >= 0 else run_once(rival, n, 8, 1e-2)
            if index >= 0:  # the first round warms up
                runs[rival].append(run)
                print(
                    f"  {rival:12s} {run['cpu_seconds']:7.2f} s cpu {run['relative_error']:9.1e}",
                    file=sys.stderr,
                )
    found = {}
    for rival, each in runs.items():
        seconds = [run["cpu_seconds"] for run in each]
        found[rival] = {
            "cpu_seconds": statistics.median(seconds),
            "cpu_seconds_range": [min(seconds), max(seconds)],
            "wall_seconds": statistics.median(run["wall_seconds"] for run in each),
            "relative_error": each[-1]["relative_error"],
            "arrived": abs(each[-1]["relative_error"]) <= target,
            "sweeps": len(each[-1]["trace"]),
            "trace_cpu_wall_error": each[-1]["trace"],
        }
    ratios = {
        rival: statistics.median(
            run["cpu_seconds"] / base["cpu_seconds"] for run, base in zip(each, runs["ttnet"], strict=True)
        )
        for rival, each in runs.items()
    }
    return {
        "sites": n,
        "rank": rank,
        "target_relative_error": target,
        "rivals": found,
        "time_over_ttnet": ratios,
    }


def sweep_cost(n: int, rank: int, rounds: int) -> dict[str, Any]:
    """CPU seconds of one sweep at full rank with four Lanczos vectors a block, beside the one by hand."""
    seconds: dict[str, list[float]] = {"ttnet": [], "by hand": []}

    def after(sweeps: int, found: list[float]) -> Stop:
        def stop(_: float) -> bool:
            found.append(time.process_time())
            return len(found) == sweeps

        return stop

    runs: dict[str, Callable[[Stop], None]] = {
        "ttnet": lambda stop: ours(n, rank, stop, local_steps=4),
        "by hand": lambda stop: by_hand(n, rank, stop),
    }
    for _ in range(rounds):
        for name, run in runs.items():
            found: list[float] = []
            run(after(5, found))
            seconds[name].append(found[-1] - found[-2])
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {"sites": n, "rank": rank, "cpu_seconds": medians, "ratio": medians["ttnet"] / medians["by hand"]}


def closure_cost(n: int, rank: int) -> dict[str, Any]:
    """CPU seconds of the local gradients of a sweep: with cached environments, and through a closure."""
    operator = ttnet.operators.heisenberg(n, dtype=torch.float64)
    parameter = ttnet.TTParameter(ttnet.random_train((2,) * n, rank, seed=0, dtype=torch.float64))
    problems = {
        "environments": RayleighQuotient(operator),
        "closure": Closure(lambda: ttnet.expectation(operator, parameter()), parameter),
    }
    seconds = {}
    for name, problem in problems.items():
        cores = list(parameter.tensor_train().orthogonalize(0).cores)
        began = time.process_time()
        for visit in there_and_back(n, 2):
            k = visit.site
            local = problem.local(tuple(cores), visit)
            local.value_and_gradient(torch.tensordot(cores[k], cores[k + 1], 1))
            shift = shift_right if visit.forward else shift_left
            cores[k], cores[k + 1] = shift(cores[k], cores[k + 1])
        seconds[name] = time.process_time() - began
    return {
        "sites": n,
        "rank": rank,
        "cpu_seconds": seconds,
        "ratio": seconds["closure"] / seconds["environments"],
    }


def references() -> list[dict[str, Any]]:
    """Energies of chains whose ground state is known, each once, as `ttnet.optim.dmrg` finds it."""
    chains = ttnet.operators
    ising = 1 - 1 / math.sin(math.pi / (4 * 100 + 2))
    xx = (1 - 1 / math.sin(math.pi / (2 * 101))) / 2
    float64 = torch.float64
    cases = [
        ("Heisenberg, N = 20", chains.heisenberg(20, dtype=float64), -8.682473334398966, 64),
        ("Heisenberg, N = 50", chains.heisenberg(50, dtype=float64), EXACT[50], 128),
        ("Heisenberg, N = 100", chains.heisenberg(100, dtype=float64), EXACT[100], 200),
        ("Heisenberg, spin 1, N = 100", chains.heisenberg(100, spin=1, dtype=float64), -138.94008614, 200),
        ("critical Ising, N = 100", chains.ising(100, dtype=float64), ising, 64),
        ("XX, N = 100", chains.xx(100, dtype=float64), xx, 128),
        ("AKLT, N = 50", chains.aklt(50, dtype=float64), -2 * 49 / 3, 4),
        ("Majumdar-Ghosh, N = 50", chains.majumdar_ghosh(50, dtype=float64), -3 * 50 / 8, 8),
    ]
    rows = []
    for name, operator, exact, rank in cases:
        began = time.process_time()
        start = ttnet.random_train(operator.rows, 8, seed=1, dtype=float64)
        caps = [cap for cap in (16, 32, 64, 128) if cap < rank] + [rank]
        result = ttnet.optim.dmrg(
            operator, start, max_rank=caps, cutoff=1e-13, sweeps=20, noise=[1e-4, 1e-6, 0.0]
        )
        rows.append(
            {
                "chain": name,
                "exact": exact,
                "max_rank": rank,
                "energy": result.loss,
                "relative_error": result.loss / exact - 1,
                "variance": result.certificate,
                "ranks": max(result.tensor_train.ranks),
                "cpu_seconds": time.process_time() - began,
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


def main() -> None:
    """Run the rows asked for and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, nargs="+", default=[50, 100], choices=sorted(EXACT))
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 128], choices=[64, 128])
    parser.add_argument("--rivals", nargs="+", default=list(RIVALS), choices=list(RIVALS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dmrg.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    with threadpool_limits(options.threads):
        for n in options.sites:
            for rank in options.ranks:
                print(f"N = {n}, rank {rank}", file=sys.stderr)
                rows.append(compare(n, rank, options.rounds, options.rivals))
        sweeps = [sweep_cost(50, rank, options.rounds) for rank in options.ranks]
        closures = [closure_cost(n, 16) for n in (20, 50)]
        known = references()
    record = {
        "what": "seconds until the energy of the open Heisenberg chain is within the target of the exact one",
        "threads": options.threads,
        "dtype": "float64",
        "rounds": options.rounds,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "processor": processor(),
        "versions": {
            name: found_version(name) for name in ("torch", "numpy", "scipy", "quimb", "physics-tenpy")
        },
        "rows": rows,
        "one_sweep_beside_a_loop_by_hand": sweeps,
        "local_gradients_of_a_sweep": closures,
        "reference_energies": known,
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        print(row["sites"], row["rank"], {k: round(v, 2) for k, v in row["time_over_ttnet"].items()})
    for row in (*sweeps, *closures):
        print(row)


def processor() -> str:
    """Model name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor()


def found_version(name: str) -> str | None:
    """Version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()

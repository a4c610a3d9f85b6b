"""One truncating sweep of an adapter for all seven matrices of Llama-3-8B: 32 layers, rank 64 cut to 48.

    python benchmarks/llama_sweep.py

writes `benchmarks/results/llama_sweep.json`. The input mode is the union of the widths 4096 and 14336, the
output mode that of 4096, 1024 and 14336; AdamW's moments are carried along.
"""

import json
import statistics
import time
from pathlib import Path

import torch
from harness import describe, fix_environment, moment

import ttnet
from ttnet.optim import DMRGScheduler, RankSchedule

SHAPE, RANK, TARGET, ROUNDS = (4096 + 14336, 32, 7, 4096 + 1024 + 14336), 64, 48, 5


def sweep() -> float:
    """CPU seconds of the sweep."""
    parameter = ttnet.TTParameter(ttnet.random_train(SHAPE, RANK, seed=0))
    optimizer = torch.optim.AdamW(parameter.parameters(), lr=1e-3)
    for core in parameter.parameters():
        core.grad = torch.randn_like(core)
    optimizer.step()
    optimizer.zero_grad()
    scheduler = DMRGScheduler(optimizer, parameter, ranks=RankSchedule({0: RANK, 1: TARGET}))
    began = time.process_time()
    scheduler.step()
    return time.process_time() - began


def main() -> None:
    """Five sweeps, one thread, float32."""
    fix_environment(1)
    torch.set_num_threads(1)
    seconds = [sweep() for _ in range(ROUNDS)]
    record = {
        "shape": SHAPE,
        "ranks": [RANK, TARGET],
        "dtype": "float32",
        "threads": 1,
        **describe(["ttnet", "torch"]),
        **moment(),
        "cpu_seconds": {"median": statistics.median(seconds), "low": min(seconds), "high": max(seconds)},
    }
    out = Path(__file__).parent / "results" / "llama_sweep.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(record["cpu_seconds"])


if __name__ == "__main__":
    main()

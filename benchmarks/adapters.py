"""Time of a training step: the frozen base, peft's LoRA and a MetaTT-4D adapter of the same rank and targets.

All three models live in one process and take their steps in turn, so that the machine's moods hit them
alike. A step is a forward and a backward pass. Reported are medians over the rounds, ratios to the base, and
the extra time over the base relative to LoRA's. Both wall-clock time and CPU time of the process are kept:
on a shared machine the second is the steadier one.

    python benchmarks/adapters.py --results benchmarks/results/adapters_step.json
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn

import ttnet
from ttnet.adapters import MetaTT, attach

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert q+v": ("bert", {"target_modules": ["query", "value"]}),
    "bert all": (
        "bert",
        {"target_modules": r"encoder\.layer\.\d+\..*(query|key|value|dense)"},
    ),
    "llama all": (
        "llama",
        {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    ),
}


def make_model(kind: str) -> nn.Module:
    """A small random encoder (BERT 6 x 384) or decoder (Llama 8 x 512, grouped queries)."""
    torch.manual_seed(0)
    if kind == "bert":
        config = transformers.BertConfig(
            vocab_size=1000,
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return transformers.BertModel(config, add_pooling_layer=False)
    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=1408,
        use_cache=False,
    )
    return transformers.LlamaModel(config)


def contestants(kind: str, targets: dict[str, Any], rank: int) -> dict[str, nn.Module]:
    """The base, with gradients down to its embeddings as the adapted ones have them, LoRA and ours."""
    base = make_model(kind)
    plain = copy.deepcopy(base).requires_grad_(False)
    lora = peft.get_peft_model(
        copy.deepcopy(base), peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, **targets)
    )
    ours = copy.deepcopy(base)
    attach(ours, MetaTT("4d", rank=rank, init="normal", modules_to_save=(), **targets))
    return {"base": plain, "lora": lora, "metatt-4d": ours}


def step(model: nn.Module, inputs: Tensor) -> None:
    """One forward and backward pass from embedded inputs that ask for a gradient."""
    model.zero_grad(set_to_none=True)
    embedded = model.get_input_embeddings()(inputs).detach().requires_grad_()  # pyright: ignore[reportCallIssue]
    model(inputs_embeds=embedded).last_hidden_state.square().mean().backward()


def race(models: dict[str, nn.Module], rounds: int, inputs: Tensor) -> dict[str, dict[str, list[float]]]:
    """Steps in turn; seconds of each by the two clocks."""
    clocks: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in clocks} for name in models}
    for index in range(rounds + 2):
        for name, model in models.items():
            started = {clock: read() for clock, read in clocks.items()}
            step(model, inputs)
            for clock, read in clocks.items():
                if index >= 2:  # two rounds to warm up
                    seconds[name][clock].append(read() - started[clock])
    return seconds


def main() -> None:
    """Run the cases, write the JSON and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/adapters_step.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    inputs = torch.randint(0, 1000, (8, 128), generator=torch.Generator().manual_seed(0))
    rows = []
    for case, (kind, targets) in CASES.items():
        for rank in args.ranks:
            seconds = race(contestants(kind, targets, rank), args.rounds, inputs)
            row: dict[str, Any] = {"case": case, "rank": rank}
            for clock in ("wall", "cpu"):
                medians = {name: statistics.median(times[clock]) for name, times in seconds.items()}
                ratios = {name: medians[name] / medians["base"] for name in ("lora", "metatt-4d")}
                extra = (ratios["metatt-4d"] - 1) / (ratios["lora"] - 1)
                row[clock] = {
                    "median_seconds": medians,
                    "ratio_to_base": ratios,
                    "extra_time_over_lora": extra,
                }
            rows.append(row)
            cpu = row["cpu"]
            print(
                f"{case:10} r {rank:3}  LoRA {cpu['ratio_to_base']['lora']:.3f}  "
                f"MetaTT-4D {cpu['ratio_to_base']['metatt-4d']:.3f}  extra {cpu['extra_time_over_lora']:.2f}",
                flush=True,
            )
    record = {
        "dtype": "float32",
        "batch": [8, 128],
        "threads": args.threads,
        "rounds": args.rounds,
        "seed": 0,
        "device": "cpu",
        "machine": platform.machine(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "ttnet": ttnet.__version__,
        },
        "rows": rows,
    }
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

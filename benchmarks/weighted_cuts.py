"""What a cut weighted by the inputs' second moments is worth beside a plain one: MiniLM, Reuters R8.

For each seed an adapter (4D, query and value, rank 12) and the classifier are trained for an epoch on a few
hundred documents. Then the same train is cut to lower ranks twice: plainly, and in the norm of x dW, with the
moments of some training documents. Loss and accuracy are those of held documents right after the cut, without
further training. The error of x dW is relative, over all adapted matrices, with the inputs that the uncut
model has on the held documents.

    python benchmarks/weighted_cuts.py --results benchmarks/results/weighted_cuts.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import DataCollatorWithPadding

from ttnet import Truncation
from ttnet.adapters import TTAdapter, input_moments
from ttnet.cli.data import tokenize
from ttnet.cli.methods import adapt
from ttnet.cli.models import load_model
from ttnet.cli.options import FinetuneOptions
from ttnet.cli.report import surroundings
from ttnet.cli.tasks import load_task

RANK, CUTS = 12, (8, 6, 4, 2)
SCORES = ("loss", "accuracy", "error_of_x_dw", "error_of_dw")
Batch = dict[str, Tensor]


def batches(rows: Sequence[Any], collate: Any, size: int) -> list[Batch]:
    """Padded batches in the order given."""
    return [dict(collate(list(rows[k : k + size]))) for k in range(0, len(rows), size)]


@torch.no_grad()
def held_scores(model: nn.Module, held: list[Batch]) -> dict[str, float]:
    """Mean loss and accuracy."""
    model.eval()
    loss, right, count = 0.0, 0, 0
    for batch in held:
        out = model(**batch)
        loss += float(out.loss) * len(batch["labels"])
        right += int((out.logits.argmax(-1) == batch["labels"]).sum())
        count += len(batch["labels"])
    return {"loss": loss / count, "accuracy": right / count}


@torch.no_grad()
def own_moments(model: nn.Module, adapter: TTAdapter, held: list[Batch]) -> dict[str, Tensor]:
    """Sum of x^T x of every adapted matrix by itself, over the tokens that are no padding."""
    sums: dict[str, Tensor] = {}
    mask = torch.ones(())

    def collect(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            x = args[0][mask]
            sums[name] = sums.get(name, torch.zeros(())) + (x.T @ x).double()

        return hook

    hooks = [adapter.adapted(n).register_forward_pre_hook(collect(n)) for n in adapter.layout.modules]
    for batch in held:
        mask = batch["attention_mask"].bool()
        model(**batch)
    for hook in hooks:
        hook.remove()
    return sums


@torch.no_grad()
def deltas(adapter: TTAdapter) -> dict[str, Tensor]:
    """The dW of every matrix, (in, out)."""
    return {name: adapter.delta(name).double() for name in adapter.layout.modules}


def total(change: dict[str, Tensor], moments: dict[str, Tensor] | None) -> float:
    """Sum over matrices of |x dW|^2, or of |dW|^2."""
    if moments is None:
        return sum(float(d.square().sum()) for d in change.values())
    return sum(float((d * (moments[name] @ d)).sum()) for name, d in change.items())


def run(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train once, cut the same train in all ways."""
    options = FinetuneOptions(
        model="minilm",
        output="unused",
        task="reuters-r8",
        train_samples=args.documents,
        data_seed=seed,
        rank=RANK,
        dropout=0.0,
        max_length=args.tokens,
        seed=seed,
    )
    started = time.perf_counter()
    task = load_task(options)
    transformers.set_seed(seed)
    model, tokenizer = load_model(options, task.space)
    adapter = adapt(model, options).adapter
    if adapter is None or task.test is None:
        raise SystemExit("the task has no test split")
    order = torch.Generator().manual_seed(seed)
    collate = DataCollatorWithPadding(tokenizer)
    chosen = torch.randperm(len(task.test), generator=order)[: args.held].tolist()
    held = sorted(tokenize(task.test.take(chosen), tokenizer, args.tokens), key=lambda r: len(r["input_ids"]))
    held = batches(held, collate, 16)
    rows = tokenize(task.train, tokenizer, args.tokens)
    rows = [rows[k] for k in torch.randperm(len(rows), generator=order).tolist()]
    training = batches(rows, collate, args.batch)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=options.learning_rate, weight_decay=0.0
    )
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=len(training))
    model.train()
    for batch in training:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
    whole, before = adapter.tensor_train(), deltas(adapter)
    uncut = held_scores(model, held)
    seen = own_moments(model, adapter, held)
    metric = input_moments(adapter, training[: args.moment_batches], lambda batch: model(**batch))
    cuts: dict[str, dict[str, dict[str, float]]] = {}
    for rank in CUTS:
        for name, own in (("plain", None), ("weighted", metric)):
            adapter.cores.assign(whole.truncate(Truncation(max_rank=rank), metric=own))
            after = deltas(adapter)
            change = {module: after[module] - before[module] for module in before}
            errors = {
                "error_of_x_dw": (total(change, seen) / total(before, seen)) ** 0.5,
                "error_of_dw": (total(change, None) / total(before, None)) ** 0.5,
            }
            cuts.setdefault(str(rank), {})[name] = held_scores(model, held) | errors
    return {"seed": seed, "uncut": uncut, "cuts": cuts, "seconds": time.perf_counter() - started}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds, and how often the weighted cut was the better one."""

    def spread(values: list[float]) -> dict[str, float]:
        return {"mean": statistics.mean(values), "stdev": statistics.stdev(values)}

    found: dict[str, Any] = {
        "uncut": {s: spread([row["uncut"][s] for row in rows]) for s in ("loss", "accuracy")}
    }
    for rank in map(str, CUTS):
        pairs = [row["cuts"][rank] for row in rows]
        found[rank] = {
            kind: {score: spread([pair[kind][score] for pair in pairs]) for score in SCORES}
            for kind in ("plain", "weighted")
        }
        found[rank]["seeds_with_lower_loss_when_weighted"] = sum(
            pair["weighted"]["loss"] < pair["plain"]["loss"] for pair in pairs
        )
    return found


def main() -> None:
    """Train, cut, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/weighted_cuts.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--documents", type=int, default=240)
    parser.add_argument("--held", type=int, default=120)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--moment-batches", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = []
    for seed in args.seeds:
        rows.append(run(seed, args))
        print(json.dumps(rows[-1]), flush=True)
    settings = {name: value for name, value in vars(args).items() if name != "results"}
    record = {
        "settings": settings | {"rank": RANK, "pattern": "in layer matrix out", "dtype": "float32"},
        "surroundings": surroundings(),
        "summary": summary(rows),
        "runs": rows,
    }
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What torchrun starts in each of two processes; `test_torchrun.py` compares what they write."""

import copy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments

from ttnet.adapters import MetaTT, TTAdapter, attach, load
from ttnet.interop.transformers import DMRGCallback, DMRGTrainer
from ttnet.optim import DMRGScheduler, TwoSiteOptions

RANKS = {0: 6, 1: 3, 2: 5}
SAMPLES, BATCH, EPOCHS = 24, 4, 3  # 3 steps an epoch in two processes
RESUMED = "checkpoint-4"  # in the middle of the second epoch, after the first sweep


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
        initializer_range=0.2,
        num_labels=2,
    )
    return transformers.BertForSequenceClassification(config)


def adapted() -> tuple[nn.Module, TTAdapter]:
    model = bert()
    return model, attach(model, MetaTT("4d", rank=6, alpha=4.0, target_modules=["query", "value"]))


def samples() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 40, (SAMPLES, 8), generator=generator)
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": (row[0] > row[1]).long()}
        for row in tokens
    ]


def logits(model: nn.Module) -> Tensor:
    """Outputs of the bare model on fixed inputs."""
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.stack([each["input_ids"] for each in samples()[:4]])).logits.clone()


def plain(process: int, directory: Path) -> dict[str, Any]:
    """The loop of the documentation under DistributedDataParallel; then its second half from a checkpoint."""
    results = {}
    for name, start in (("whole", 0), ("resumed", 2)):
        model, adapter = adapted()
        model.train()
        wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(adapter.parameter_groups(lr=5e-3))
        scheduler = DMRGScheduler(optimizer, adapter.cores, ranks={0: 6, 1: 3, 2: 5, 3: 2})
        if start:
            adapter.load_weights(directory / "half")
            states = torch.load(directory / "half.pt", weights_only=True)
            optimizer.load_state_dict(states["optimizer"])
            scheduler.load_state_dict(states["scheduler"])
        ranks = []
        for epoch in range(start, 4):
            torch.manual_seed(10 * epoch + process)
            for k in range(3):
                own = samples()[2 * BATCH * k + process :: 2][:BATCH]
                batch = {key: torch.stack([each[key] for each in own]) for key in own[0]}
                optimizer.zero_grad()
                F.cross_entropy(wrapped(**batch).logits, batch["labels"]).backward()
                optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            ranks.append(scheduler.active_ranks)
            if epoch == 1 and not start:
                if process == 0:
                    adapter.save(directory / "half")
                    states = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
                    torch.save(states, directory / "half.pt")
                dist.barrier()
        result = {"ranks": ranks, "capacity": adapter.cores.ranks, "outputs": logits(model)}
        result["states"] = copy.deepcopy(optimizer.state_dict()["state"])
        result["parameters"] = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        scheduler.compact()
        result["compact"], result["compact outputs"] = adapter.cores.ranks, logits(model)
        results[name] = result
    return results


def trainer(directory: Path, arguments: dict[str, Any] | None = None, **sweeps: Any) -> DMRGTrainer:
    model, adapter = adapted()
    options: dict[str, Any] = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 5e-3,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "seed": 0,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    callback = DMRGCallback(adapter, RANKS, **sweeps)
    return DMRGTrainer(
        model,
        TrainingArguments(str(directory), **options | (arguments or {})),
        train_dataset=samples(),
        callbacks=[callback],
    )


def trained(job: DMRGTrainer, resume: Path | None, process: int) -> dict[str, Any]:
    job.train(resume_from_checkpoint=None if resume is None else str(resume))
    callback = next(c for c in job.callback_handler.callbacks if isinstance(c, DMRGCallback))
    directory = Path(job.args.output_dir or "")
    job.save_model(str(directory / "final"))
    result = {
        "ranks": [report.ranks_after for report in callback.reports],
        "keep_shapes": callback.scheduler is not None and callback.scheduler.keep_shapes,
        "states": copy.deepcopy(job.optimizer.state_dict()["state"]),
        "parameters": [p.detach().clone() for p in job.model.parameters() if p.requires_grad],
        "outputs": logits(job.model),
        "shards": sorted({type(p.data).__name__ for p in job.model.bert.encoder.parameters()}),
        "files": sorted(path.name for path in (directory / "checkpoint-6").iterdir()),
    }
    if process == 0:
        model = bert()
        result["saved ranks"] = load(model, directory / "final").cores.ranks
        result["saved outputs"] = logits(model)
    return result


def interrupted(
    process: int, directory: Path, arguments: dict[str, Any] | None = None, **sweeps: Any
) -> dict[str, Any]:
    """A training, and the same taken up from a checkpoint in its middle."""
    whole = trained(trainer(directory / "whole", arguments, **sweeps), None, process)
    again = trainer(directory / "again", arguments, **sweeps)
    return {"whole": whole, "resumed": trained(again, directory / "whole" / RESUMED, process)}


def pretend_gpus() -> None:
    """Accelerate shards on accelerators only, though gloo does it on the CPU as well."""
    build = PartialState.__init__

    def pretending(self: PartialState, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = pretending
    AcceleratorState._reset_state(reset_partial_state=True)


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    process = dist.get_rank()
    two_site = TwoSiteOptions(solver="lbfgs", local_steps=1)
    results: dict[str, Any] = {
        "plain": plain(process, directory),
        "truncate": interrupted(process, directory / "truncate"),
        "two-site": interrupted(
            process, directory / "two-site", mode="two-site", two_site=two_site, held_batches=1
        ),
    }
    pretend_gpus()
    layers = {"transformer_layer_cls_to_wrap": ["BertLayer"]}
    fsdp: dict[str, Any] = {"fsdp": True, "fsdp_config": {"version": 2, **layers}}
    results["sharded"] = interrupted(process, directory / "sharded", fsdp)
    results["bf16"] = interrupted(process, directory / "bf16", fsdp | {"bf16": True})
    torch.save(results, directory / f"{process}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

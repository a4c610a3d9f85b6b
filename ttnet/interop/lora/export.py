"""`to_lora`: an adapter as the files of a LoRA.

An adapter is exactly a LoRA on each of its matrices: the chain is cut right of `in`, and the scale goes in B.

    lora_A = A^T (r, in)      lora_B = B^T (out, r)      lora_alpha = r, so that peft's factor is 1
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttnet.adapters import SavedAdapter, TTAdapter, read
from ttnet.adapters.axes import Label
from ttnet.adapters.factors import module_factors
from ttnet.adapters.linear import AdaptedLinear
from ttnet.adapters.selection import check_axes
from ttnet.adapters.selection import select as read_selection
from ttnet.adapters.structure import Combo, Layout
from ttnet.errors import ConfigError, NonFiniteError, RankError, StateError
from ttnet.interop.lora.low_rank import balanced_product, product_error, round_product
from ttnet.interop.lora.peft_files import LoraFiles, write_lora

_CONV1D_MODELS = re.compile(r"GPT2|OpenAIGPT|ImageGPT|DecisionTransformer")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class LoraReport:
    """What `to_lora` wrote.

    Attributes:
        directory: Where.
        ranks: The rank of each adapted matrix.
        errors: The relative Frobenius error of each matrix, measured on what was written: roundoff of the
            stored dtype where nothing was cut.
        num_parameters: Entries of all lora_A and lora_B.
        modules: The modules that are saved whole beside them.
    """

    directory: Path
    ranks: Mapping[str, int]
    errors: Mapping[str, float]
    num_parameters: int
    modules: tuple[str, ...]

    @property
    def worst(self) -> tuple[str, float]:
        """The matrix with the largest error, and that error."""
        name = max(self.errors, key=lambda name: self.errors[name])
        return name, self.errors[name]


@torch.no_grad()
def to_lora(
    adapter: TTAdapter | SavedAdapter | str | Path,
    directory: str | Path,
    *,
    max_lora_rank: int | None = None,
    rtol: float = 0.0,
    select: Mapping[str, Label] | None = None,
    modules_to_save: bool = True,
    dtype: str = "float32",
    task_type: str | None = None,
    base_model: str | None = None,
    overwrite: bool = False,
) -> LoraReport:
    """Write an adapter as the files of a LoRA, as peft reads them.

    The rank is that of the first bond right of `in`; a `head` axis is folded into B and costs no rank.
    Without a cap nothing is lost. A matrix whose rank is above `max_lora_rank` is replaced by its best
    approximation of that rank, by an SVD between the triangles of its two factors; where a bond further right
    is that narrow, this loses roundoff alone.

    Args:
        adapter: An attached adapter, one that `ttnet.adapters.read` read, or the directory of a saved one.
        directory: Where to write, created where it is missing.
        max_lora_rank: Largest rank, such as the `max_lora_rank` of a server.
        rtol: Each matrix takes the smallest rank with at most this relative error, and then the cap.
        select: A label on each axis that is chosen when the model runs, such as {"task": "rte"}; by
            default what the adapter has selected.
        modules_to_save: Whether the modules trained whole, such as the classifier, are written too. Some
            servers take none.
        dtype: "float32", "bfloat16" or "float16", of the factors.
        task_type: peft's, such as "CAUSAL_LM".
        base_model: Name or directory of the base model; by default what the adapter knows of it.
        overwrite: Whether a LoRA that is in the directory is replaced.

    Returns:
        Ranks, and the measured error of every matrix.

    Raises:
        RankError: `max_lora_rank` is below 1.
        ConfigError: Another option, or a label in `select`, has a value it cannot have; `directory` holds an
            adapter, whose files have the same names; a factor does not fit in `dtype`; or peft would take
            another module for one that is trained whole.
        StateError: Nothing is selected on an axis that is chosen when the model runs.
        NonFiniteError: A core holds a NaN or an infinity; nothing is written.
        FormatError: `adapter` is a directory without a saved adapter.

    Examples:
        >>> import tempfile
        >>> from ttnet.adapters import MetaTT, attach
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
        >>> adapter = attach(model, MetaTT("4d", rank=2, target_modules="all-linear"))
        >>> to_lora(adapter, tempfile.mkdtemp()).ranks
        {'0': 2, '1': 2}
    """
    if isinstance(max_lora_rank, bool) or not isinstance(max_lora_rank, int | None):
        raise RankError(f"max_lora_rank: expected an integer or None, got {max_lora_rank!r}")
    if max_lora_rank is not None and max_lora_rank < 1:
        raise RankError(f"max_lora_rank: expected at least 1, got {max_lora_rank}")
    if not isinstance(rtol, int | float) or not 0 <= rtol < 1:
        raise ConfigError(f"rtol: expected a number from 0 to below 1, got {rtol!r}")
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype: expected one of {', '.join(_DTYPES)}, got {dtype!r}")
    model = adapter.__dict__["model"] if isinstance(adapter, TTAdapter) else None
    saved = _saved(adapter)
    combo = _combo(saved.layout, {**_chosen(adapter), **(select or {})})
    tensors, ranks, errors = {}, {}, {}
    for name, members in saved.layout.modules.items():
        pair = module_factors(saved.train.cores, saved.layout, saved.scale, members, combo)
        if not all(bool(factor.isfinite().all()) for factor in pair):
            raise NonFiniteError(f"adapter: dW of {name!r} is not finite; train with a lower learning rate")
        cut = round_product(*pair, max_rank=max_lora_rank, rtol=float(rtol))
        if dtype == "float16":
            cut = balanced_product(*cut)
        written = cut[0].to(_DTYPES[dtype]), cut[1].to(_DTYPES[dtype])
        if not all(bool(factor.isfinite().all()) for factor in written):
            raise ConfigError(
                f"dtype: a factor of {name!r} is too large for {dtype}; take bfloat16 or float32"
            )
        tensors[name] = (written[0].T, written[1].T)
        ranks[name] = written[0].shape[1]
        errors[name] = product_error(pair, written)
    _warn_of_experts(list(tensors), model)
    names = saved.module_names if modules_to_save else ()
    modules = _modules(saved, combo) if modules_to_save else {}
    _check_saved_modules(names, saved.layout, model)
    path = Path(directory)
    write_lora(
        path,
        LoraFiles(
            factors=tensors,
            scales=dict.fromkeys(tensors, 1.0),
            modules=modules,
            module_names=names,
            base_model=base_model or saved.base.get("name"),
        ),
        targets=_targets(list(tensors), model),
        fan_in_fan_out=_has_conv1d(saved, model),
        task_type=task_type,
        overwrite=overwrite,
    )
    return LoraReport(
        directory=path,
        ranks=ranks,
        errors=errors,
        num_parameters=sum(a.numel() + b.numel() for a, b in tensors.values()),
        modules=names,
    )


def _saved(adapter: TTAdapter | SavedAdapter | str | Path) -> SavedAdapter:
    if isinstance(adapter, str | Path):
        return read(adapter)
    if isinstance(adapter, SavedAdapter):
        return adapter
    if not isinstance(adapter, TTAdapter):
        raise ConfigError(
            f"adapter: expected a TTAdapter or the directory of a saved one, got {type(adapter).__name__}"
        )
    return SavedAdapter(
        config=adapter.config,
        layout=adapter.layout,
        train=adapter.tensor_train(),
        scale=adapter.scale,
        base=adapter.base,
        modules=adapter._saved_state(),
        module_names=adapter.saved_modules,
    )


def _chosen(adapter: TTAdapter | SavedAdapter | str | Path) -> Mapping[str, Any]:
    return adapter.workspace.chosen if isinstance(adapter, TTAdapter) else {}


def _combo(layout: Layout, chosen: Mapping[str, Any]) -> Combo:
    check_axes(layout, chosen)
    for axis in layout.runtime:
        labels = axis.labels or ()
        if chosen.get(axis.name) is None and len(labels) > 1:
            raise StateError(
                f"select: nothing is selected on {axis.name!r}; give select={{{axis.name!r}: {labels[0]!r}}} "
                f"or another of {labels}"
            )
    selection = read_selection(layout, chosen)
    if selection.rows is not None:
        raise ConfigError("select: expected one label on each axis, got one for each sample; name one")
    return selection.combos[0]


def _modules(saved: SavedAdapter, combo: Combo) -> dict[str, Tensor]:
    """The tensors of the modules trained whole: of copies for each place, the one that is meant."""
    axis = saved.config.heads_by
    if axis is None:
        return dict(saved.modules)
    place = combo[[each.name for each in saved.layout.runtime].index(axis)]
    mark = f".places.{place}."
    own = [key for key in saved.modules if mark in key]
    return {key.replace(mark, "."): saved.modules[key] for key in own}


def _check_saved_modules(names: Sequence[str], layout: Layout, model: nn.Module | None) -> None:
    """Refuse what peft reads otherwise: it takes every module whose name ends like that of a saved one."""
    if model is None:
        parts = [name.split(".") for name in layout.modules]
        present = list(dict.fromkeys(".".join(own[: k + 1]) for own in parts for k in range(len(own))))
    else:
        present = _own_modules(model)
    for name in names:
        taken = [each for each in present if each.endswith(name) and each not in names]
        if taken:
            raise ConfigError(
                f"modules_to_save: peft takes {taken[0]!r} for {name!r}, whose name ends alike, and would "
                "not load the files; give modules_to_save=False and keep the module apart"
            )


def _targets(names: Sequence[str], model: nn.Module | None) -> list[str] | str:
    """What peft shall adapt: last parts of names where these mean no other module, else whole names."""
    if model is None:
        return list(names)
    present = [name for name in _own_modules(model) if name]
    endings = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    for candidates in (endings, list(names)):
        ends = tuple(f".{ending}" for ending in candidates)
        meant = {name for name in present if name in candidates or name.endswith(ends)}
        if meant == set(names):
            return candidates
    return "|".join(re.escape(name) for name in names)


def _warn_of_experts(names: Sequence[str], model: nn.Module | None) -> None:
    """Warn where peft takes a module for the experts, whose parts had its name in older models."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if model is None or kind is None or not any(p.dim() == 3 for p in model.parameters()):
        return
    try:
        from peft.utils import transformers_weight_conversion as conversion
    except ImportError:
        return
    family = getattr(conversion, "_MODEL_TO_CONVERSION_PATTERN", {}).get(kind)
    parts = getattr(conversion, "_MOE_TARGET_MODULE_MAPPING", {}).get(family, ())
    taken = [name for name in names if name.rpartition(".")[2] in parts]
    if taken:
        warnings.warn(
            f"adapter: in a model of type {kind!r} peft takes {taken[0]!r} for a part of the experts, and "
            "loads it otherwise or not at all; for a LoRA that peft must load, attach with exclude_modules="
            f"{sorted({name.rpartition('.')[2] for name in taken})}",
            stacklevel=4,
        )


def _own_modules(model: nn.Module) -> list[str]:
    """Names of the modules of the model without its adapter."""
    return [
        name
        for name in dict(model.named_modules())
        if name.split(".")[0] != "tt_adapter"
        and not (name.endswith(".base") and isinstance(model.get_submodule(name[:-5]), AdaptedLinear))
    ]


def _has_conv1d(saved: SavedAdapter, model: nn.Module | None) -> bool:
    if model is None:
        return bool(_CONV1D_MODELS.match(str(saved.base.get("class"))))
    modules: list[Any] = [model.get_submodule(name) for name in saved.layout.modules]
    return all(getattr(module, "transposed", False) for module in modules)

"""Models in peft with an adapter, and how to run and train them."""

from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from tests.adapters.models import FAMILIES, TOKENS, logits
from ttnet.interop.peft import MetaTTConfig

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-4d": ("bert", {}),
    "bert-5d": ("bert", {"pattern": "5d"}),
    "bert-all": ("bert", {"target_modules": "all-linear"}),
    "bert-factorized": (
        "bert",
        {"pattern": "in1 in2 layer matrix out1 out2", "factors": {"in": (4, 8), "out": (8, 4)}},
    ),
    "bert-diagonal": ("bert", {"diagonal": ["layer"], "init": "normal"}),
    "llama-gqa": ("llama", {"target_modules": ["q_proj", "v_proj", "down_proj"], "alpha_scaling": True}),
    "llama-merged-axes": ("llama", {"pattern": "in (layer matrix) out", "layers_to_transform": [1]}),
    "gpt2-conv1d": ("gpt2", {}),
    "gpt2-split": ("gpt2", {"split": "auto", "dtype": "float64"}),
}


def build(name: str) -> tuple[nn.Module, MetaTTConfig]:
    family, options = CASES[name]
    targets = list(FAMILIES[family].query_value)
    return FAMILIES[family].build(), config(**{"target_modules": targets} | options)


def config(**options: Any) -> MetaTTConfig:
    return MetaTTConfig(**{"rank": 3, "alpha": 2.0, "target_modules": ["query", "value"]} | options)


def wrapped(base: nn.Module, options: MetaTTConfig, *, seed: int | None = 5) -> PeftModel:
    """The model in peft, its cores random unless `seed` is None."""
    model = get_peft_model(base, options)
    if seed is not None:
        randomize(model, "default", seed)
    return model.eval()


def randomize(model: PeftModel, adapter: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for core in cores(model, adapter).parameters():
            core.copy_(torch.randn(core.shape, generator=generator, dtype=torch.float64) * 0.6)


def cores(model: nn.Module, adapter: str = "default") -> Any:
    return model.base_model.metatt_cores[adapter]


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return logits(model)


def loss_of(model: nn.Module, rows: slice = slice(None)) -> Tensor:
    tokens = TOKENS[rows]
    return nn.functional.cross_entropy(
        model(input_ids=tokens).logits[..., :3].reshape(len(tokens), -1, 3)[:, -1], tokens[:, 0] % 3
    )

"""The contestants of `benchmarks/adapters.py`: random BERT- and Llama-shaped models, frozen, and adapted."""

from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn

from ttnet.adapters import MetaTT, attach

VOCABULARY = 1000

TARGETS: dict[str, dict[str, list[str] | str]] = {
    "bert": {
        "q+v": ["query", "value"],
        "qkvo": ["query", "key", "value", "attention.output.dense"],
        "all": r"encoder\.layer\.\d+\..*(query|key|value|dense)",
    },
    "llama": {
        "q+v": ["q_proj", "v_proj"],
        "qkvo": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    },
}

ADAPTERS = ("lora", "vera", "metatt-4d", "metatt-5d")
VERA_RANK = 256


def make_base(kind: str, device: torch.device, layers: int | None = None, *, head: bool = False) -> nn.Module:
    """A frozen encoder (BERT 6 x 384) or decoder (Llama 8 x 512, grouped queries) of random weights.

    Args:
        kind: "bert" or "llama".
        device: Where it lives.
        layers: Number of layers, if another.
        head: Whether the decoder gets its language head, to generate.
    """
    torch.manual_seed(0)
    if kind == "bert":
        config = transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=384,
            num_hidden_layers=layers or 6,
            num_attention_heads=12,
            intermediate_size=1536,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model: nn.Module = transformers.BertModel(config, add_pooling_layer=False)
    else:
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=512,
            num_hidden_layers=layers or 8,
            num_attention_heads=8,
            num_key_value_heads=4,
            intermediate_size=1408,
            use_cache=head,
            eos_token_id=None,
            pad_token_id=0,
        )
        model = (transformers.LlamaForCausalLM if head else transformers.LlamaModel)(config)
    return model.requires_grad_(False).to(device)


def adapted(name: str, model: nn.Module, targets: list[str] | str, rank: int) -> nn.Module:
    """The model with the adapter called `name`, or the base itself.

    Args:
        name: "base" or one of `ADAPTERS`.
        model: A model of `make_base`; it is changed.
        targets: What both libraries call `target_modules`.
        rank: Rank of the adapter; VeRA has `VERA_RANK`.
    """
    if name == "lora":
        options: dict[str, Any] = {"r": rank, "lora_alpha": rank, "lora_dropout": 0.0}
        return peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, **options))  # pyright: ignore[reportArgumentType]
    if name == "vera":
        config = peft.VeraConfig(r=VERA_RANK, target_modules=targets, vera_dropout=0.0)
        return peft.get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    if name.startswith("metatt-"):
        preset = name.removeprefix("metatt-")
        attach(model, MetaTT(preset, rank=rank, init="normal", modules_to_save=(), target_modules=targets))
    return model


def num_trained(model: nn.Module) -> int:
    """Number of trained entries."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def step(model: nn.Module, embedded: Tensor) -> float:
    """A forward and a backward pass from embedded inputs, which get a gradient as inner activations do."""
    model.zero_grad(set_to_none=True)
    x = embedded.detach().requires_grad_()
    loss = model(inputs_embeds=x).last_hidden_state.sin().mean()  # a square would be constant after LayerNorm
    loss.backward()
    if embedded.is_cuda:
        torch.cuda.synchronize()
    return float(loss.detach())

"""Small random transformers of every family adapters are tested on, and a naive twin of the arithmetic."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn

from ttnet.adapters import MetaTT, TTAdapter, attach

WIDTH, HEADS, LAYERS, VOCABULARY = 32, 4, 2, 40


@dataclass(frozen=True)
class Family:
    """How to build one model, and which of its modules are adapted."""

    build: Callable[[], nn.Module]
    query_value: tuple[str, ...]
    query: str
    heads: tuple[str, ...] = ("classifier",)


def bert(**options) -> nn.Module:
    values = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS} | options
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        initializer_range=0.2,
        intermediate_size=48,
        max_position_embeddings=16,
        num_labels=3,
        **values,
    )
    return transformers.BertForSequenceClassification(config).eval()


def roberta() -> nn.Module:
    config = transformers.RobertaConfig(
        vocab_size=VOCABULARY,
        initializer_range=0.2,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        intermediate_size=48,
        max_position_embeddings=18,
        num_labels=3,
    )
    return transformers.RobertaForSequenceClassification(config).eval()


def mpnet() -> nn.Module:
    config = transformers.MPNetConfig(
        vocab_size=VOCABULARY,
        initializer_range=0.2,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        intermediate_size=48,
        max_position_embeddings=18,
        num_labels=3,
    )
    return transformers.MPNetForSequenceClassification(config).eval()


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        initializer_range=0.2,
        n_embd=WIDTH,
        n_head=HEADS,
        n_layer=LAYERS,
        n_positions=16,
        num_labels=3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.GPT2ForSequenceClassification(config).eval()


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        initializer_range=0.2,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        num_hidden_layers=LAYERS,
        intermediate_size=48,
        max_position_embeddings=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config).eval()


FAMILIES = {
    "bert": Family(bert, ("query", "value"), "bert.encoder.layer.1.attention.self.query"),
    "roberta": Family(roberta, ("query", "value"), "roberta.encoder.layer.1.attention.self.query"),
    "mpnet": Family(mpnet, ("attn.q", "attn.v"), "mpnet.encoder.layer.1.attention.attn.q"),
    "gpt2": Family(gpt2, ("c_attn",), "transformer.h.1.attn.c_attn", ("score",)),
    "llama": Family(llama, ("q_proj", "v_proj"), "model.layers.1.self_attn.q_proj", ()),
}

TOKENS = torch.arange(24).reshape(3, 8) % (VOCABULARY - 3) + 3


def logits(model: nn.Module) -> Tensor:
    return model(input_ids=TOKENS).logits


def randomize(adapter: TTAdapter, scale: float = 0.6) -> TTAdapter:
    """Give all cores random values, so that no product vanishes."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for core in adapter.cores.core_parameters():
            core.copy_(torch.randn(core.shape, generator=generator, dtype=torch.float64) * scale)
    return adapter


def adapted(name: str, variant: str = "4d", targets=None, *, random: bool = True, **options):
    """A model of a family with an adapter on it."""
    family = FAMILIES[name]
    model = family.build()
    config = MetaTT(
        variant, **{"rank": 3, "alpha": 2.0, "target_modules": targets or family.query_value} | options
    )
    adapter = attach(model, config)
    return model, randomize(adapter) if random else adapter


def naive_delta(adapter: TTAdapter, name: str) -> Tensor:
    """dW of one matrix from the dense tensor of the whole train: alpha T[rows, slices..., columns]."""
    layout = adapter.layout
    site = layout.sites[layout.index(name)]
    full = adapter.tensor_train().to(torch.float64).full()
    if layout.head_dim is not None:
        full = full.flatten(-2)
    start, end = layout.in_blocks[site.in_features]
    full = full[start:end]
    labels = {axis.name: axis.labels.index(site.coordinates[axis.name]) for axis in layout.axes}
    sizes = {axis.name: axis.size for axis in layout.axes}
    for mode in layout.pattern.structural_modes:
        index = 0
        for axis in mode:
            index = index * sizes[axis] + labels[axis]
        full = full[:, index]
    start, end = layout.out_blocks[site.out_features]
    return adapter.scale * full[:, start:end]


def dense_model(model: nn.Module, adapter: TTAdapter) -> nn.Module:
    """The naive twin: a copy whose weights hold W + dW, without adapter."""
    twin = copy.deepcopy(model)
    deltas = {site.name: naive_delta(adapter, site.name) for site in adapter.layout.sites}
    twin.tt_adapter.detach()
    with torch.no_grad():
        for name, delta in deltas.items():
            module = twin.get_submodule(name)
            module.weight += delta if type(module).__name__ == "Conv1D" else delta.T
    return twin

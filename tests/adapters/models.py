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


def naive_delta(adapter: TTAdapter, name: str, **labels) -> Tensor:
    """DW of one matrix from the dense tensor of the whole train: alpha T[rows, slices..., columns]."""
    layout = adapter.layout
    site = layout.sites[layout.index(name)]
    full = adapter.tensor_train().to(torch.float64).full()
    full = full.reshape([layout.sizes[axis] for axis in layout.pattern.axes])
    index, kept = [], []
    for axis in layout.pattern.axes:
        side = "in" if axis.startswith("in") else "out" if axis.startswith(("out", "head")) else None
        if side is None:
            own = next(a for a in layout.axes if a.name == axis)
            index.append(own.labels.index({**site.coordinates, **labels}[axis]))
            continue
        width = site.in_features if side == "in" else site.out_features
        index.append(slice(*layout.feature_blocks[side][width][axis]))
        kept.append(axis)
    full = full[tuple(index)]
    order = [axis for side in ("in", "out") for axis in layout.pattern.feature_axes(side)]
    full = full.permute([kept.index(axis) for axis in order])
    return adapter.scale * full.reshape(site.in_features, site.out_features)


def dense_model(model: nn.Module, adapter: TTAdapter, **labels) -> nn.Module:
    """The naive twin: a copy whose weights hold W + dW, without adapter."""
    twin = copy.deepcopy(model)
    deltas = {name: naive_module_delta(adapter, name, **labels) for name in adapter.layout.modules}
    if twin.tt_adapter.layout.runtime:
        twin.tt_adapter.select(**labels)
    twin.tt_adapter.detach()
    with torch.no_grad():
        for name, delta in deltas.items():
            module = twin.get_submodule(name)
            module.weight += delta if type(module).__name__ == "Conv1D" else delta.T
    return twin


def naive_module_delta(adapter: TTAdapter, name: str, **labels) -> Tensor:
    """DW of one module: those of its parts, put where the module has their columns."""
    layout = adapter.layout
    members = [layout.sites[k] for k in layout.modules[name]]
    whole = torch.zeros(members[0].in_features, sum(s.out_features for s in members), dtype=torch.float64)
    groups, start = members[0].groups, 0
    unit = whole.shape[1] // groups
    for site in members:
        delta = naive_delta(adapter, site.name, **labels)
        width = site.out_features // groups
        for group in range(groups):
            first = group * unit + start
            whole[:, first : first + width] = delta[:, group * width : (group + 1) * width]
        start += width
    return whole

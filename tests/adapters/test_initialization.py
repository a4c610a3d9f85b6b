"""Parameter counts, as published, and initial values."""

import pytest
import torch
import transformers

from tests.adapters.models import adapted
from ttnet.adapters import MetaTT, attach

TABLE = {  # rank: RoBERTa-base 4D, 5D, RoBERTa-large 4D, Llama-2-7B 4D, RoBERTa-base LoRA
    4: (6_368, 3_744, 8_608, 33_312, 147_456),
    8: (13_184, 8_320, 18_048, 67_712, 294_912),
    16: (28_160, 19_968, 39_424, 139_776, 589_824),
    64: (155_648, 159_744, 237_568, 663_552, 2_359_296),
}


def roberta(width, layers, heads):
    config = transformers.RobertaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads
    )
    with torch.device("meta"):
        return transformers.RobertaModel(config)


def llama(**options):
    with torch.device("meta"):
        return transformers.LlamaModel(transformers.LlamaConfig(**options))


@pytest.mark.parametrize("rank", TABLE)
def test_parameter_counts_are_those_of_the_paper(rank):
    models = (
        (roberta(768, 12, 12), "4d"),
        (roberta(768, 12, 12), "5d"),
        (roberta(1024, 24, 16), "4d"),
        (llama(), "4d"),
    )
    adapters = [attach(model, MetaTT(variant, rank=rank)) for model, variant in models]
    assert [adapter.num_parameters for adapter in adapters] == list(TABLE[rank][:4])
    assert adapters[0].layout.lora_parameters(rank) == TABLE[rank][4]


def test_parameters_of_a_union_of_widths():
    model = llama(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=8,
    )
    adapter = attach(model, MetaTT(rank=8, target_modules="all-linear"))
    assert adapter.num_parameters == 305_600
    assert adapter.layout.lora_parameters(8) == 20_971_520


def test_every_width_and_every_slice_has_an_identity():
    _, adapter = adapted("llama", "4d", "all-linear", random=False, rank=(3, 4, 5), init="identity")
    first, layers, matrices, last = adapter.cores.cores
    for start, end in adapter.layout.in_blocks.values():
        assert torch.equal(first[0, start:end], torch.eye(end - start, 3))
    for start, end in adapter.layout.out_blocks.values():
        assert torch.equal(last[:, start:end, 0], torch.eye(5, end - start))
    assert all(torch.equal(layers[:, k], torch.eye(3, 4)) for k in range(2))
    assert all(torch.equal(matrices[:, k], torch.eye(4, 5)) for k in range(7))


def test_identities_of_the_head_axis():
    _, adapter = adapted("llama", "5d", "all-linear", random=False, init="identity")
    head, last = adapter.cores.cores[-2:]
    assert all(torch.equal(head[:, k], torch.eye(3)) for k in range(head.shape[1]))
    assert torch.equal(last[:, :, 0], torch.eye(3, 8))


def test_the_first_core_is_zero_by_default():
    for variant in ("4d", "5d", "in (layer matrix) out"):
        _, adapter = adapted("bert", variant, random=False)
        first, *others = adapter.cores.cores
        assert torch.count_nonzero(first) == 0
        assert all(set(core.unique().tolist()) == {0.0, 1.0} for core in others)


def test_another_core_may_be_zero():
    _, adapter = adapted("bert", random=False, init="no-id-id-ze")
    assert torch.count_nonzero(adapter.cores.core_3) == 0
    assert torch.count_nonzero(adapter.cores.core_0) > 0
    assert all(torch.count_nonzero(adapter.delta(site.name)) == 0 for site in adapter.layout.sites)


def test_normal_is_seeded_and_keeps_the_scale_of_an_identity():
    one, two, other = (
        adapted("llama", targets="all-linear", random=False, rank=4, init="normal", seed=seed)[1].cores.cores
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], other[0])
    norms = one[0][0, :32].norm(dim=0)
    assert ((norms > 0.5) & (norms < 1.5)).all()
    spread = adapted("bert", random=False, init="normal", init_std=0.01)[1].cores.core_1.std()
    assert 0.003 < spread < 0.03


def test_alpha_is_divided_by_the_initial_rank_when_asked():
    assert adapted("bert", rank=4, alpha=2.0)[1].scale == 2.0
    model, adapter = adapted("bert", rank=4, alpha=2.0, alpha_scaling=True)
    assert adapter.scale == 0.5
    adapter.cores.assign(adapter.tensor_train()[..., :] * 1.0)
    assert adapter.scale == 0.5
    assert model.tt_adapter is adapter

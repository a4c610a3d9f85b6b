"""A cut weighted by the second moments of the inputs."""

import pytest
import torch
import transformers
from torch import nn

from tests.adapters.models import adapted, logits
from ttnet import Truncation
from ttnet.adapters import MetaTT, attach, input_moments
from ttnet.errors import ConfigError


class Stack(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x):
        return [layer(x) for layer in self.layers]


@pytest.mark.parametrize("pattern", ["in layer out", "layer in out"])
def test_the_weighted_cut_changes_outputs_less_and_weights_more(pattern, device):
    model = Stack(24, 4).to(device)
    adapter = attach(model, MetaTT(pattern, rank=12, target_modules="all-linear", init="normal"))
    x = torch.randn(512, 24, device=device) * torch.logspace(0, -3, 24, device=device)
    before = adapter.tensor_train()
    with torch.no_grad():
        whole = torch.stack(model(x))
        deltas = torch.stack([adapter.delta(f"layers.{k}") for k in range(4)])
    metric = input_moments(adapter, [x[:256], x[256:]], model)
    k = adapter.layout.pattern.find("in")
    assert [matrix is None for matrix in metric] == [j != k for j in range(3)]
    torch.testing.assert_close(metric[k], x.T @ x / 512, rtol=1e-3, atol=1e-3)
    output_errors, weight_errors = [], []
    for own in (None, metric):
        adapter.cores.assign(before.truncate(Truncation(max_rank=4), metric=own))
        with torch.no_grad():
            output_errors.append(float((torch.stack(model(x)) - whole).norm()))
            now = torch.stack([adapter.delta(f"layers.{j}") for j in range(4)])
            weight_errors.append(float((now - deltas).norm()))
    assert output_errors[1] < 0.85 * output_errors[0]
    assert weight_errors[1] > weight_errors[0]


def test_moments_of_a_union_of_widths():
    model, adapter = adapted("llama", targets="all-linear")
    out = logits(model)
    metric = input_moments(adapter, [0, 1], lambda batch: logits(model), ridge=0.0)  # noqa: ARG005
    assert metric[0].shape == (80, 80)
    assert torch.count_nonzero(metric[0][:32, 32:]) == 0
    assert metric[0][40:, 40:].diagonal().min() > 0
    assert not any(module._forward_pre_hooks for module in model.modules() if module is not model)
    assert torch.equal(logits(model), out)
    train = adapter.tensor_train().truncate(Truncation(max_rank=2), metric=metric)
    adapter.cores.assign(train)


def test_padding_does_not_count():
    model = Stack(6, 2)
    adapter = attach(model, MetaTT("in layer out", rank=2, target_modules="all-linear"))
    x, mask = torch.randn(4, 5, 6), torch.ones(4, 5, dtype=torch.long)
    mask[:, 3:] = 0
    batch = {"x": x, "attention_mask": mask}
    metric = input_moments(adapter, [batch], lambda rows: model(rows["x"]), ridge=0.0)
    real = x[:, :3].reshape(-1, 6)
    torch.testing.assert_close(metric[0], real.T @ real / 12)
    # A mask of another shape is none of these inputs'.
    other = batch | {"attention_mask": mask[:, :3]}
    metric = input_moments(adapter, [other], lambda rows: model(rows["x"]), ridge=0.0)
    torch.testing.assert_close(metric[0], x.reshape(-1, 6).T @ x.reshape(-1, 6) / 20)


def test_what_has_no_moments_is_refused():
    model, adapter = adapted("bert", "in1 in2 layer matrix out", factors={"in": (4, 8)})
    with pytest.raises(ConfigError, match="factorizes 'in'"):
        input_moments(adapter, [0], lambda batch: logits(model))  # noqa: ARG005
    model, adapter = adapted("bert")
    with pytest.raises(ConfigError, match="no adapted matrix has run"):
        input_moments(adapter, [], print)
    with pytest.raises(ConfigError, match="ridge"):
        input_moments(adapter, [0], print, ridge=-1.0)


@pytest.mark.parametrize("targets", [["q_proj"], ["encoder_attn.k_proj"]])
def test_the_padding_of_the_encoder_is_not_that_of_the_decoder(targets):
    config = transformers.BartConfig(
        vocab_size=40,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=16,
        decoder_start_token_id=2,
    )
    torch.manual_seed(3)
    model = transformers.BartForConditionalGeneration(config).eval()
    adapter = attach(model, MetaTT("in stack matrix out", rank=2, target_modules=targets))
    tokens, mask, other = torch.arange(10).view(2, 5) + 3, torch.ones(2, 5).long(), torch.ones(2, 5).long()
    mask[0, 2:], other[1, 1:] = 0, 0
    seen = {}

    def keep(name):
        return lambda _, args: seen.update({name: args[0].detach()})

    names = list(adapter.layout.modules)
    handles = [adapter.adapted(name).register_forward_pre_hook(keep(name)) for name in names]
    batch = {"input_ids": tokens, "attention_mask": mask, "decoder_input_ids": tokens}
    for extra in ({}, {"decoder_attention_mask": other}):
        metric = input_moments(adapter, [batch | extra], lambda rows: model(**rows), ridge=0.0)
        wanted = []
        for name in names:
            own = mask if "decoder" not in name or "k_proj" in name else extra.get("decoder_attention_mask")
            x = seen[name][own.bool()] if own is not None else seen[name].flatten(0, 1)
            wanted.append(x.T @ x / len(x))
        torch.testing.assert_close(metric[0], torch.stack(wanted).mean(0), rtol=1e-4, atol=1e-5)
    for handle in handles:
        handle.remove()

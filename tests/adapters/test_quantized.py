"""Adapters over frozen bases whose weights are quantized: stand-ins and, where present, the libraries."""

import copy
import warnings

import peft
import pytest
import torch
import transformers
from torch import nn

from tests.adapters.models import TOKENS, VOCABULARY, logits, randomize
from tests.adapters.quantized_models import STAND_INS, Packed, Subclass, quantized_by_library, quantized_pair
from ttnet.adapters import MetaTT, attach, load
from ttnet.adapters.gradients import initialize_from_gradients
from ttnet.errors import ConfigError, DTypeError
from ttnet.interop.lora import from_delta, to_lora
from ttnet.interop.peft import MetaTTPeftConfig
from ttnet.interop.transformers import DMRGTrainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]
ALL = {"rank": 3, "alpha": 2.0, "target_modules": "all-linear"}


@pytest.fixture(params=STAND_INS)
def pair(request):
    """A quantized model and its float32 twin."""
    return quantized_pair(request.param)


def gradients(model, adapter):
    return torch.autograd.grad(logits(model).square().mean(), adapter.cores.core_parameters())


def test_all_linear_finds_the_same_modules(pair):
    quantized, full = (attach(model, MetaTT(**ALL)) for model in pair)
    assert quantized.layout == full.layout
    assert len(quantized.layout.sites) == 14
    trainable = [name for name, p in pair[0].named_parameters() if p.requires_grad]
    assert trainable == [f"tt_adapter.cores.core_{k}" for k in range(4)]


@pytest.mark.parametrize("variant", ["4d", "5d", "4+1d"])
def test_outputs_and_gradients_are_those_of_the_dequantized_model(pair, variant):
    tasks = {"tasks": ["a", "b"]} if variant == "4+1d" else {}
    adapters = [randomize(attach(model, MetaTT(variant, **ALL, **tasks))) for model in pair]
    for adapter in adapters:
        if tasks:
            adapter.select(task=["b", "a", "b"])
    torch.testing.assert_close(logits(pair[0]), logits(pair[1]), rtol=1e-4, atol=1e-4)
    found, wanted = (gradients(model, adapter) for model, adapter in zip(pair, adapters, strict=True))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert other.norm() > 0


def test_bfloat16_autocast_and_checkpoints(pair):
    model, _ = pair
    adapter = randomize(attach(model, MetaTT(**ALL)), 0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = gradients(model, adapter)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        found = gradients(model, adapter)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_merge_is_refused_with_the_remedy(pair):
    model, _ = pair
    with torch.no_grad():
        base = logits(model)
    adapter = randomize(attach(model, MetaTT(**ALL)))
    with torch.no_grad():
        out = logits(model)
    for attempt in (adapter.merge, lambda: adapter.detach(merge=True)):
        with pytest.raises(DTypeError, match=r"keep the adapter unmerged, .* or dequantize the model first"):
            attempt()
        assert not adapter.merged
    with torch.no_grad():
        assert torch.equal(logits(model), out)
        with adapter.disabled():
            assert torch.equal(logits(model), base)
        adapter.detach()
        assert torch.equal(logits(model), base)


def test_files_and_an_export_to_lora(pair, tmp_path):
    model, full = pair
    adapter = randomize(attach(model, MetaTT(**ALL)), 0.3)
    adapter.save(tmp_path / "own")
    to_lora(adapter, tmp_path / "lora")
    with torch.no_grad():
        out = logits(model)
        adapter.detach()
        again = load(model, tmp_path / "own")
        assert torch.equal(logits(model), out)
        again.detach()
        load(full, tmp_path / "own").detach()  # the model before it was quantized takes it too
        lora = peft.PeftModel.from_pretrained(full, tmp_path / "lora")
        torch.testing.assert_close(logits(lora), out, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_the_float_model_is_taken_over(pair, tmp_path):
    model, full = pair
    adapter = randomize(attach(full, MetaTT(**ALL)), 0.3)
    adapter.save(tmp_path)
    load(model, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(logits(model), logits(full), rtol=1e-4, atol=1e-4)


def test_a_copy_and_the_state_dict(pair):
    model, _ = pair
    if isinstance(getattr(model.model.layers[0].self_attn.q_proj, "weight", None), Subclass):
        pytest.skip("the stand-in's tensors know nothing of copies")
    adapter = randomize(attach(model, MetaTT(**ALL)))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(logits(twin), logits(model))
        adapter.cores.core_0.mul_(2.0)
        twin.load_state_dict(model.state_dict())
        assert torch.equal(logits(twin), logits(model))


def test_the_bridge_to_peft(pair):
    model, full = pair
    outs = []
    for each in (model, full):
        wrapped = peft.get_peft_model(each, MetaTTPeftConfig(rank=3, target_modules="all-linear"))
        with torch.no_grad():
            for k, core in enumerate(p for p in wrapped.parameters() if p.requires_grad):
                core.copy_(torch.linspace(-0.3, 0.3 + k, core.numel()).view(core.shape).sin() * 0.3)
            outs.append(logits(wrapped))
        loss = logits(wrapped).square().mean()
        outs.append(torch.autograd.grad(loss, [p for p in wrapped.parameters() if p.requires_grad])[0])
        if each is model:
            with pytest.raises(DTypeError, match="dequantize"):
                wrapped.merge_adapter()
    torch.testing.assert_close(outs[0], outs[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outs[1], outs[3], rtol=1e-3, atol=1e-4)


def test_what_needs_the_weight_itself_says_so():
    model, full = quantized_pair("gptq")
    with pytest.raises(DTypeError, match="quantized; dequantize"):
        from_delta(full, model, target_modules="all-linear")
    adapter = attach(model, MetaTT(**ALL))
    with pytest.raises(ConfigError, match="quantized and has no gradient; dequantize"):
        initialize_from_gradients(adapter, [TOKENS], lambda batch: model(input_ids=batch).logits.sum())


def test_a_module_around_a_quantized_one_is_left_alone():
    class Around(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.in_features, self.out_features = inner, 4, 8
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

        def forward(self, x):
            return self.inner(x)

    class Other(nn.Module):
        in_features, out_features = 8, 8

        def forward(self, x):
            return x

    model = nn.Sequential(Around(Packed(nn.Linear(4, 8))), Other())
    adapter = attach(model, MetaTT(rank=2, target_modules="all-linear"))
    assert list(adapter.layout.modules) == ["0.inner"]


def test_a_trainer_takes_a_quantized_model(tmp_path):
    model, _ = quantized_pair("4bit")
    model.is_quantized = True  # as from_pretrained(quantization_config=...) says
    adapter = attach(model, MetaTT(**ALL))
    options = {"max_steps": 2, "use_cpu": True, "report_to": [], "disable_tqdm": True, "learning_rate": 0.1}
    args = transformers.TrainingArguments(str(tmp_path), logging_strategy="no", **options)
    rows = [{"input_ids": row, "labels": row} for row in TOKENS]
    with pytest.raises(ValueError, match="purely quantized"):
        transformers.Trainer(model, args, train_dataset=rows)
    trainer = DMRGTrainer(model, args, train_dataset=rows)
    assert not model._hf_peft_config_loaded
    trainer.train()
    assert all(bool(core.any()) for core in adapter.cores.core_parameters())
    assert load(quantized_pair("4bit")[0], tmp_path / "checkpoint-2").cores.ranks == adapter.cores.ranks


@pytest.mark.parametrize(
    "kind", ["torchao-int8", "torchao-int4", "bitsandbytes-8bit", "bitsandbytes-4bit", "torch.ao"]
)
def test_libraries(kind, tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        initializer_range=0.2,
        hidden_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        intermediate_size=128,
    )
    model = quantized_by_library(kind, transformers.LlamaForCausalLM(config).eval())
    with torch.no_grad():
        base = logits(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "MatMul8bitLt", UserWarning)
        adapter = randomize(attach(model, MetaTT(**ALL)), 0.2)
        assert len(adapter.layout.sites) == 14
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
        losses = []
        for _ in range(6):
            loss = model(input_ids=TOKENS, labels=TOKENS).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]
        assert all(float(core.grad.norm()) > 0 for core in adapter.cores.core_parameters())
        with pytest.raises(DTypeError, match="dequantize"):
            adapter.merge()
        adapter.save(tmp_path / "own")
        to_lora(adapter, tmp_path / "lora")
        with torch.no_grad():
            with adapter.disabled():
                assert torch.equal(logits(model), base)
            out = logits(model)
            adapter.detach()
            load(model, tmp_path / "own")
            assert torch.equal(logits(model), out)
        if kind.startswith("torchao"):  # peft runs bitsandbytes in another dtype, and knows no torch.ao
            model.tt_adapter.detach()
            lora = peft.PeftModel.from_pretrained(model, tmp_path / "lora")
            with torch.no_grad():
                torch.testing.assert_close(logits(lora), out, rtol=1e-4, atol=1e-4)

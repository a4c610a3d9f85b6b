"""What one train that many layers share must not break in peft."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

from tests.adapters.models import TOKENS, bert, llama
from tests.interop.peft_models import config, cores, loss_of, randomize, run, wrapped
from ttnet.adapters import MetaTT
from ttnet.errors import ConfigError, PatternError, StateError
from ttnet.interop.peft import MetaTTConfig
from ttnet.optim import DMRGScheduler

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_accumulated_gradients_are_those_of_the_whole_batch(checkpointing: bool) -> None:
    model = wrapped(llama(), config(target_modules="all-linear"))
    loss_of(model).backward()
    expected = [core.grad.clone() for core in cores(model).parameters()]
    model.zero_grad()
    if checkpointing:
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    for k in range(3):
        (loss_of(model, slice(k, k + 1)) / 3).backward()
    for core, gradient in zip(cores(model).parameters(), expected, strict=True):
        torch.testing.assert_close(core.grad, gradient, atol=1e-5, rtol=1e-4)


def test_reentrant_checkpointing_is_refused() -> None:
    model = wrapped(llama(), config(target_modules="all-linear")).train()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": True})
    model.get_base_model().enable_input_require_grads()
    with pytest.raises(StateError, match="use_reentrant"):
        loss_of(model).backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_cast_of_the_model_is_seen_by_all_layers(device: torch.device, dtype: torch.dtype) -> None:
    model = wrapped(bert(), config())
    expected = run(model)
    old = list(cores(model).parameters())
    model.to(device=device, dtype=dtype)
    tokens = TOKENS.to(device)
    with torch.no_grad():
        cast = model(input_ids=tokens).logits
        tolerance = 1e-4 if dtype == torch.float64 else 0.2
        torch.testing.assert_close(cast.cpu().float(), expected, atol=tolerance, rtol=tolerance)
    assert all(a is b for a, b in zip(old, cores(model).parameters(), strict=True))
    assert all(core.dtype == dtype and core.device.type == device.type for core in old)
    randomize(model, "default", 9)
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=tokens).logits, cast, atol=1e-2)


def test_half_precision_cores_are_raised_unless_that_is_switched_off() -> None:
    assert cores(get_peft_model(bert(), config(dtype="bfloat16"))).core_0.dtype == torch.float32
    kept = get_peft_model(bert(), config(dtype="bfloat16"), autocast_adapter_dtype=False)
    assert cores(kept).core_0.dtype == torch.bfloat16
    half = get_peft_model(bert().to(torch.bfloat16), config(), low_cpu_mem_usage=False)
    assert cores(half).core_0.dtype == torch.float32


def test_ranks_that_a_sweep_changed_are_saved_and_loaded(tmp_path: Path) -> None:
    base = bert()
    twin = copy.deepcopy(base)
    model = wrapped(base, config(rank=4, alpha_scaling=True)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    scheduler = DMRGScheduler(optimizer, cores(model), ranks={0: 4, 1: 2})
    for _ in range(2):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    assert max(cores(model).ranks) == 2
    loss_of(model).backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    expected = run(model.eval())
    for low in (False, True):
        loaded = PeftModel.from_pretrained(copy.deepcopy(twin), tmp_path, low_cpu_mem_usage=low)
        assert loaded.peft_config["default"].bond_ranks == [2, 2, 2]
        assert loaded.peft_config["default"].rank == 4  # the scale is alpha over the rank at the start
        assert torch.equal(run(loaded), expected)
    older = wrapped(twin, config(rank=4, alpha_scaling=True))
    older.load_adapter(tmp_path, "default")  # as a Trainer does when it resumes
    assert torch.equal(run(older), expected)


def test_frozen_cores_stay_frozen_whatever_peft_switches_on() -> None:
    model = wrapped(bert(), config(frozen=["in", "out"], init={"layer": "zero"}))
    trained = [False, True, True, False]
    with model.disable_adapter():
        pass
    assert [core.requires_grad for core in cores(model).parameters()] == trained
    model.set_requires_grad("default", False)
    model.set_requires_grad("default", True)
    model.set_adapter("default")
    assert [core.requires_grad for core in cores(model).parameters()] == trained
    with pytest.raises(StateError, match="frozen"):
        DMRGScheduler(torch.optim.Adam(cores(model).parameters()), cores(model), ranks={0: 2}).step()


def test_generation_is_the_same_merged_and_unmerged() -> None:
    model = wrapped(llama(), config(target_modules="all-linear", task_type="CAUSAL_LM"))
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(TOKENS)}
    tokens = model.generate(input_ids=TOKENS, **options)
    with model.disable_adapter():
        assert not torch.equal(model.generate(input_ids=TOKENS, **options), tokens)
    assert torch.equal(model.merge_and_unload().generate(input_ids=TOKENS, **options), tokens)


def test_dropout_acts_in_training_alone() -> None:
    model = wrapped(bert(), config(dropout=0.5))
    layer = model.get_base_model().get_submodule("bert.encoder.layer.1.attention.self.query")
    x = torch.randn(4, 32)
    assert torch.equal(layer(x), layer(x))
    model.train()
    assert not torch.equal(layer(x), layer(x))
    model.eval()
    assert torch.equal(layer(x), layer(x))


def test_tasks_are_selected_through_peft(tmp_path: Path) -> None:
    base = bert()
    twin = copy.deepcopy(base)
    options = MetaTT("4+1d", rank=3, tasks=["rte", "mrpc"], target_modules=["query", "value"])
    model = wrapped(base, MetaTTConfig.from_options(options))
    with pytest.raises(StateError, match="nothing is selected"):
        run(model)
    with model.disable_adapter():
        assert torch.equal(run(model), run(twin))
    both = []
    for task in ("rte", "mrpc"):
        model.select(task=task)
        both.append(run(model))
    model.select(task=["rte", "mrpc", "rte"])
    mixed = run(model)
    torch.testing.assert_close(mixed, torch.stack([both[0][0], both[1][1], both[0][2]]), atol=1e-5, rtol=1e-4)
    with pytest.raises(StateError, match="different places"):
        model.merge_adapter()
    model.select("default", task="rte")
    model.merge_adapter()
    torch.testing.assert_close(run(model), both[0], atol=1e-4, rtol=1e-4)
    with pytest.raises(StateError, match="merged"):
        model.select(task="mrpc")
    model.unmerge_adapter()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(twin, tmp_path)
    loaded.select(task="mrpc")
    assert torch.equal(run(loaded), both[1])


def test_tasks_are_declared_by_name(tmp_path: Path) -> None:
    made = MetaTTConfig(pattern="4+1d", rank=3, tasks=["rte", "mrpc"], target_modules=["query", "value"])
    assert made.options.axes[0].labels == ("rte", "mrpc")
    model = wrapped(bert(), made)
    model.select(task="mrpc")
    model.save_pretrained(str(tmp_path))
    PeftModel.from_pretrained(bert(), str(tmp_path)).select(task="rte")
    with pytest.raises(ConfigError, match=r"tasks=\['rte'\]"):
        MetaTTConfig(pattern="4+1d", tasks="rte")
    with pytest.raises((ConfigError, PatternError), match="task"):
        MetaTTConfig(pattern="4d", tasks=["rte"])


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(PatternError, match=r"4d, 5d, 4\+1d or a pattern, got '6d'"):
        MetaTTConfig(pattern="6d")

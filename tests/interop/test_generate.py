"""`generate` with a cache: the same tokens from an adapter attached, merged, unmerged, and exported."""

import copy

import peft
import pytest
import torch
import transformers

from tests.adapters.models import FAMILIES, HEADS, LAYERS, VOCABULARY, WIDTH, randomize
from ttnet.adapters import MetaTT, attach
from ttnet.errors import ConfigError, ShapeError, StateError
from ttnet.interop.lora import to_lora

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

GREEDY = {"max_new_tokens": 6, "do_sample": False}
BEAMS = {**GREEDY, "num_beams": 3}
TOKENS = torch.arange(10).reshape(2, 5) % (VOCABULARY - 3) + 3


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        initializer_range=0.2,
        n_embd=WIDTH,
        n_head=HEADS,
        n_layer=LAYERS,
        n_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.GPT2LMHeadModel(config).eval()


MODELS = {"llama": (FAMILIES["llama"].build, "all-linear"), "gpt2": (gpt2, ("c_attn", "c_proj", "c_fc"))}


def generated(model, **options):
    """Tokens, and the scores of every step: tiny models repeat themselves, and scores tell more."""
    found = model.generate(
        input_ids=TOKENS,
        attention_mask=torch.ones_like(TOKENS),
        return_dict_in_generate=True,
        output_logits=True,
        **(GREEDY | options),
    )
    return found.sequences, torch.stack(found.logits)


def assert_same(found, wanted):
    assert torch.equal(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-3, atol=1e-3)


@pytest.fixture(params=MODELS)
def kind(request):
    """A family."""
    return request.param


def adapted(kind, variant="5d", **options):
    build, targets = MODELS[kind]
    model = build()
    adapter = attach(model, MetaTT(variant, rank=3, alpha=2.0, target_modules=targets, **options))
    return model, randomize(adapter, 0.4)


@pytest.mark.parametrize("options", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_merged_unmerged_and_exported_give_the_same_tokens(kind, options, tmp_path):
    build, _ = MODELS[kind]
    torch.manual_seed(0)
    model, adapter = adapted(kind)
    with adapter.disabled():
        base = generated(model, **options)
    wanted = generated(model, **options)
    assert not torch.equal(wanted[0], base[0])
    assert_same(generated(model, **options, use_cache=False), wanted)
    adapter.merge()
    assert_same(generated(model, **options), wanted)
    adapter.unmerge()
    again = generated(model, **options)
    assert all(torch.equal(one, other) for one, other in zip(again, wanted, strict=True))
    to_lora(adapter, tmp_path)
    torch.manual_seed(0)
    lora = peft.PeftModel.from_pretrained(build(), tmp_path)
    assert_same(generated(lora, **options), wanted)
    assert_same(generated(adapter.detach(), **options), base)


def test_tokens_do_not_depend_on_what_ran_before(kind):
    model, adapter = adapted(kind)
    wanted = generated(model)
    model.train()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    model.eval()
    assert torch.equal(generated(model)[0], wanted[0])
    with torch.no_grad():
        adapter.cores.core_0.neg_()
    assert not torch.equal(generated(model)[1], wanted[1])


@pytest.mark.parametrize("options", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_a_task_for_the_whole_batch(kind, options):
    model, adapter = adapted(kind, "4+1d", tasks=["a", "b"])
    found = {}
    for task in ("a", "b"):
        adapter.select(task=task)
        found[task] = generated(model, **options)
        twin = copy.deepcopy(model)
        twin.tt_adapter.merge()
        assert_same(generated(twin, **options), found[task])
    assert not torch.equal(found["a"][0], found["b"][0])


def test_a_task_for_each_sample(kind):
    model, adapter = adapted(kind, "4+1d", tasks=["a", "b"])
    single = {}
    for task in ("a", "b"):
        adapter.select(task=task)
        single[task] = generated(model)
    adapter.select(task=["b", "a"])
    tokens, scores = generated(model)
    for row, task in enumerate(("b", "a")):
        assert torch.equal(tokens[row], single[task][0][row])
        torch.testing.assert_close(scores[:, row], single[task][1][:, row], rtol=1e-3, atol=1e-3)
    with pytest.raises(StateError, match="samples of the batch read different"):
        adapter.merge()


def test_beams_take_a_task_for_each_row(kind):
    model, adapter = adapted(kind, "4+1d", tasks=["a", "b"])
    single = {}
    for task in ("a", "b"):
        adapter.select(task=task)
        single[task] = generated(model, **BEAMS)[0]
    index = torch.tensor([1, 0])
    adapter.select(task=index)
    with pytest.raises(ShapeError, match=r"repeat_interleave\(num_beams\)"):
        generated(model, **BEAMS)
    adapter.select(task=index.repeat_interleave(3))
    tokens, _ = generated(model, **BEAMS)
    for row, task in enumerate(("b", "a")):
        width = min(tokens.shape[1], single[task].shape[1])
        assert torch.equal(tokens[row, :width], single[task][row, :width])
    with pytest.raises(ConfigError, match="expected one of"):
        adapter.select(task="c")

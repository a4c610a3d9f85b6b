"""LoRA both ways where adapters differ, vanish, are huge, or have awkward names."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.interop.loras import build, fitted, peft_adapter
from ttnet import Truncation
from ttnet.adapters import MetaTT, attach
from ttnet.errors import ConfigError, FormatError, PatternError, RankError, StateError
from ttnet.interop.lora import LoraFiles, from_delta, from_lora, read_lora, to_lora
from ttnet.interop.lora.peft_files import write_lora

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

EXACT = Truncation(rtol=1e-6)


def lora(directory, names, *, zero=(), rank=2, widths=(12, 12)):
    """Files of a random LoRA."""
    torch.manual_seed(len(names))
    factors = {name: (torch.randn(rank, widths[0]), torch.randn(widths[1], rank)) for name in names}
    factors |= {name: (factors[name][0], torch.zeros(widths[1], rank)) for name in zero}
    files = LoraFiles(factors=factors, scales=dict.fromkeys(factors, 1.0))
    write_lora(directory, files, targets=names, fan_in_fan_out=False)
    return directory


def tuned(*names):
    model = build("bert")
    with torch.no_grad():
        for name in names:
            weight = model.get_submodule(f"bert.encoder.layer.{name}").weight
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return model


QUERY = [f"layers.{k}.q" for k in range(3)]
VALUE = [f"layers.{k}.v" for k in range(3)]


# Several adapters that differ -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"), [(QUERY, VALUE), (QUERY[:1], QUERY), (QUERY, QUERY[:2] + VALUE)]
)
@pytest.mark.parametrize("widths", [(12, 12), (12, 8)])
def test_what_a_task_lacks_is_zero(first, second, widths, tmp_path):
    paths = [lora(tmp_path / name, own, widths=widths) for name, own in (("a", first), ("b", second))]
    found = from_lora(paths, truncation=EXACT)
    names = {*first, *second}
    assert found.errors.keys() == {f"{task}/{name}" for task in "ab" for name in names}
    assert found.worst[1] < 1e-4
    assert found.source_parameters == 2 * sum(widths) * (len(first) + len(second))
    model = nn.Module()
    model.layers = nn.ModuleList(nn.ModuleDict({n: nn.Linear(*widths) for n in "qv"}) for _ in range(3))
    adapter = found.attach(model)
    for task, own in (("a", first), ("b", second)):
        adapter.select(task=task)
        for name in names:
            size = float(adapter.delta(name).detach().norm())
            assert size > 1 if name in own else size < 1e-3


def test_what_a_task_lacks_counts_in_the_errors(tmp_path):
    found = from_lora(
        [lora(tmp_path / "a", QUERY), lora(tmp_path / "b", VALUE)], truncation=Truncation(max_rank=2)
    )
    read = [read_lora(tmp_path / task) for task in "ab"]
    norms = [float((b @ a).norm()) for own in read for a, b in own.factors.values()]
    typical = torch.tensor(norms).square().mean().sqrt()
    middle = found.saved.train
    site = next(site for site in found.saved.layout.sites if site.name == QUERY[0])
    place = [found.saved.layout.place(mode, site, (1,)) for mode in found.saved.layout.pattern.middle_modes]
    delta = middle.cores[0][0]
    for core, k in zip(middle.cores[1:-1], place, strict=True):
        delta = delta @ core[:, k]
    error = float((delta @ middle.cores[-1][:, :, 0]).norm() / typical)
    assert found.errors[f"b/{QUERY[0]}"] == pytest.approx(error, rel=1e-4)


# Zeros ------------------------------------------------------------------------------------------------------


def test_a_zero_matrix_leaves_max_error_in_reach(tmp_path):
    lora(tmp_path, [*QUERY, *VALUE], zero=VALUE[:1])
    found = from_lora(tmp_path, truncation=Truncation(), max_error=0.2)
    assert found.worst[1] <= 0.2


def test_the_remedy_for_max_error_fits(tmp_path):
    lora(tmp_path, QUERY)
    with pytest.raises(RankError, match="dtype='float64'"):
        from_lora(tmp_path, truncation=Truncation(), max_error=1e-9)


# Options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"exclude_modules": "value"},
            ConfigError,
            r"no module; for an ending give a list, \['value'\]",
        ),
        ({"exclude_modules": "va(lue"}, ConfigError, "regular expression"),
        ({"exclude_modules": ["key"]}, ConfigError, "'key' matches no module"),
        ({"pattern": "in out"}, PatternError, "an axis between 'in' and 'out'"),
        ({"truncation": 4}, ConfigError, r"truncation=Truncation\(max_rank=4\)"),
    ],
)
def test_bad_options(options, error, message, tmp_path):
    peft_adapter("bert", tmp_path)
    with pytest.raises(error, match=message):
        from_lora(tmp_path, **options)


def test_exclude_modules_takes_a_regular_expression(tmp_path):
    peft_adapter("bert", tmp_path)
    found = from_lora(tmp_path, exclude_modules=r".*\.value")
    assert {name.rpartition(".")[2] for name in found.errors} == {"query"}


@pytest.mark.parametrize("option", [{"diagonal": ["layer"]}, {"rank": 4}, {"alpha": 2.0}, {"frozen": ["in"]}])
def test_from_delta_does_not_take_options_of_a_new_adapter(option):
    (name,) = option
    with pytest.raises(ConfigError, match=f"{name}: from_delta does not take it"):
        from_delta(build("bert"), tuned("0.attention.self.query"), **option)
    with pytest.raises(PatternError, match="between 'in' and 'out'"):
        from_delta(build("bert"), tuned(), target_modules=["query"], pattern="in out")


def test_from_delta_of_another_number_of_labels():
    other = build("bert")
    other.classifier = nn.Linear(other.classifier.in_features, 5)
    with pytest.raises(ConfigError, match=r"modules_to_save: 'classifier\.weight' has the shape"):
        from_delta(build("bert"), other)


# Files of peft ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*save_embedding_layers:UserWarning")
def test_the_copy_of_an_output_layer_is_left_out(tmp_path):
    peft_adapter("llama", tmp_path, target_modules=["q_proj", "lm_head"])
    assert "base_model.model.lm_head.base_layer.weight" in load_file(tmp_path / "adapter_model.safetensors")
    found = from_lora(tmp_path, truncation=EXACT, exclude_modules=["lm_head"])
    assert found.worst[1] < 1e-5
    assert "lm_head.weight" in found.left_out
    found.attach(build("llama"))


def test_a_named_adapter_is_found_by_the_message(tmp_path):
    model = peft.get_peft_model(build("bert"), peft.LoraConfig(target_modules=["query"]), adapter_name="mine")
    model.save_pretrained(str(tmp_path))
    with pytest.raises(FormatError, match="subdirectories: mine"):
        from_lora(tmp_path)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.multihead = nn.ModuleDict({"q": nn.Linear(8, 8), "v": nn.Linear(8, 8)})

    def forward(self, x):
        return x + self.multihead["q"](x) + self.multihead["v"](x).tanh()


class WithHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_a_module_that_peft_would_mistake_is_refused(tmp_path):
    adapter = attach(WithHead(), MetaTT(rank=2, modules_to_save=["head"]))
    adapter.save(tmp_path / "tt")
    for given in (adapter, tmp_path / "tt"):
        with pytest.raises(ConfigError, match=r"multihead' for 'head'.*modules_to_save=False"):
            to_lora(given, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    to_lora(adapter, tmp_path / "lora", modules_to_save=False)
    peft.PeftModel.from_pretrained(WithHead(), str(tmp_path / "lora"))


# Half precision ---------------------------------------------------------------------------------------------


def test_half_precision_holds_unequal_factors(tmp_path):
    _, adapter = fitted("bert")
    with torch.no_grad():
        adapter.cores.core_0 *= 1e-6
        adapter.cores.core_1 *= 1e6
    assert to_lora(adapter, tmp_path, dtype="float16").worst[1] < 1e-2
    with torch.no_grad():
        adapter.cores.core_0 *= 1e16
    with pytest.raises(ConfigError, match=r"dtype.*too large for float16"):
        to_lora(adapter, tmp_path / "new", dtype="float16")
    assert not (tmp_path / "new").exists()


# Directories in use -----------------------------------------------------------------------------------------


def test_a_compressed_lora_is_not_replaced_by_its_train(tmp_path):
    lora(tmp_path, QUERY)
    before = (tmp_path / "adapter_model.safetensors").read_bytes()
    found = from_lora(tmp_path)
    with pytest.raises(ConfigError, match="peft adapter of type LORA"):
        found.save(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == before
    found.save(tmp_path / "new")
    found.save(tmp_path / "new")


@pytest.mark.parametrize(
    ("config", "replaceable"), [({"peft_type": "LORA"}, True), ({"peft_type": "IA3"}, False), ("{", True)]
)
def test_an_export_replaces_a_lora_only_when_told(config, replaceable, tmp_path):
    _, adapter = fitted("bert")
    path = tmp_path / "adapter_config.json"
    text = config if isinstance(config, str) else json.dumps(config)
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"directory: .* holds"):
        to_lora(adapter, tmp_path)
    assert path.read_text() == text
    if replaceable:
        to_lora(adapter, tmp_path, overwrite=True)
        read_lora(tmp_path)
    else:
        with pytest.raises(ConfigError, match="type IA3"):
            to_lora(adapter, tmp_path, overwrite=True)


def test_an_export_without_a_selection_names_it(tmp_path):
    model = WithHead()
    adapter = attach(model, MetaTT("4+1d", rank=2, modules_to_save=[], tasks=["rte", "mrpc"]))
    adapter.save(tmp_path / "tt")
    with pytest.raises(StateError, match=r"select=\{'task': 'rte'\}"):
        to_lora(tmp_path / "tt", tmp_path / "lora")

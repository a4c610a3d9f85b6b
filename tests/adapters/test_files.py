"""Saving and loading: the same bits, or one clear refusal."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.adapters.models import FAMILIES, adapted, bert, logits, randomize
from ttnet.adapters import load, read
from ttnet.errors import DeviceError, FormatError, ShapeError, StateError


@pytest.fixture
def saved(tmp_path):
    """A directory with the adapter of `bert()` under the fixed seed."""
    _, adapter = adapted("bert")
    adapter.save(tmp_path / "adapter")
    return tmp_path / "adapter"


def rewrite(directory, change):
    path = directory / "adapter_config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("variant", ["4d", "5d", "in (layer matrix) out"])
def test_saved_and_loaded_are_the_same_bits(name, variant, tmp_path):
    torch.manual_seed(3)
    model, adapter = adapted(name, variant, "all-linear", alpha_scaling=True, rank=4)
    with torch.no_grad():
        for module in adapter.saved_modules:
            for parameter in model.get_submodule(module).parameters():
                parameter.add_(1.0)
    adapter.cores.assign(adapter.tensor_train()[..., :] * 1.0)
    adapter.save(tmp_path)
    torch.manual_seed(3)
    fresh = FAMILIES[name].build()
    other = load(fresh, tmp_path)
    assert other.config == adapter.config
    assert other.layout == adapter.layout
    assert other.scale == adapter.scale
    for one, two in zip(adapter.cores.cores, other.cores.cores, strict=True):
        assert torch.equal(one, two)
    with torch.no_grad():
        assert torch.equal(logits(fresh), logits(model))
    wanted = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert {key for key, parameter in fresh.named_parameters() if parameter.requires_grad} == wanted


def test_the_files_hold_the_cores_and_the_classifier_and_nothing_else(saved):
    assert sorted(path.name for path in saved.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    tensors = safetensors.torch.load_file(saved / "adapter_model.safetensors")
    assert sorted(tensors) == [
        *[f"core_{k}" for k in range(4)],
        "modules_to_save.classifier.bias",
        "modules_to_save.classifier.weight",
    ]
    values = json.loads((saved / "adapter_config.json").read_text())
    assert values["format_version"] == 1
    assert values["ranks"] == [1, 3, 3, 3, 1]
    assert values["layout"]["axes"][0] == {"name": "layer", "size": 2, "labels": [0, 1]}
    assert values["base_model"]["class"] == "BertForSequenceClassification"


def test_an_adapter_is_read_without_a_model(saved):
    found = read(str(saved))
    assert found.train.shape == found.layout.shape == (32, 2, 2, 32)
    assert found.config.rank == 3
    assert found.module_names == ("classifier",)
    assert len(found.layout.presence) == 4


def test_ranks_that_changed_are_saved(tmp_path):
    torch.manual_seed(0)
    model, adapter = adapted("bert", rank=6)
    cores = [
        core[: (k and 2), :, : (2 if k < 3 else 1)].contiguous() for k, core in enumerate(adapter.cores.cores)
    ]
    cores[0] = adapter.cores.core_0.detach()[:, :, :2]
    adapter.cores.assign(cores)
    adapter.save(tmp_path)
    torch.manual_seed(0)
    fresh = bert()
    other = load(fresh, tmp_path)
    assert other.cores.ranks == (1, 2, 2, 2, 1)
    assert other.config.rank == 6
    with torch.no_grad():
        assert torch.equal(logits(fresh), logits(model))
    again, third = adapted("bert", rank=5)
    parameter = third.cores.core_0
    third.load_weights(tmp_path)
    assert third.cores.core_0 is parameter
    assert third.cores.ranks == (1, 2, 2, 2, 1)
    assert torch.equal(again.classifier.weight, model.classifier.weight)


def test_saving_again_replaces_and_leaves_other_files_alone(saved):
    (saved / "trainer_state.json").write_text("{}")
    _, adapter = adapted("bert", rank=2)
    adapter.save(saved)
    assert read(saved).train.ranks == (1, 2, 2, 2, 1)
    assert len(list(saved.iterdir())) == 3


def test_a_save_that_fails_leaves_the_old_one(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    _, adapter = adapted("bert", rank=2)

    def fail(descriptor):  # noqa: ARG001
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        adapter.save(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_saving_does_not_depend_on_the_state(saved, tmp_path):
    model, adapter = adapted("bert")
    randomize(adapter)
    adapter.save(tmp_path / "one")
    adapter.merge()
    adapter.save(tmp_path / "two")
    adapter.unmerge()
    with adapter.disabled():
        adapter.save(tmp_path / "three")
    adapter.detach()
    adapter.save(tmp_path / "four")
    first = (tmp_path / "one" / "adapter_model.safetensors").read_bytes()
    for name in ("two", "three", "four"):
        assert (tmp_path / name / "adapter_model.safetensors").read_bytes() == first
    assert not hasattr(model, "tt_adapter")
    assert saved.exists()


def delete_config(directory):
    (directory / "adapter_config.json").unlink()


def delete_weights(directory):
    (directory / "adapter_model.safetensors").unlink()


def cut_weights(directory):
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(directory):
    path = directory / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def cut_config(directory):
    path = directory / "adapter_config.json"
    path.write_text(path.read_text()[:40])


def foreign_config(directory):
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')


def list_config(directory):
    (directory / "adapter_config.json").write_text("[1]")


def next_version(directory):
    rewrite(directory, lambda values: values.update(format_version=99))


def no_layout(directory):
    rewrite(directory, lambda values: values.pop("layout"))


def unknown_option(directory):
    rewrite(directory, lambda values: values["config"].update(flavor="sweet"))


def unknown_label(directory):
    rewrite(directory, lambda values: values["layout"]["matrices"][0]["coordinates"].update(layer=17))


def entry(path, value):
    """The damage that puts a value at a path of the config, such as "layout/matrices/0/in"."""

    def damage(directory):
        def change(values):
            *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
            for part in parents:
                values = values[part]
            values[last] = value

        rewrite(directory, change)

    return damage


def no_core(directory):
    path = directory / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors.pop("core_2")
    safetensors.torch.save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (delete_config, "adapter_config.json: cannot be read"),
        (delete_weights, "adapter_model.safetensors: cannot be read"),
        (cut_weights, "not a safetensors file"),
        (flip_a_bit, "is not the one adapter_config.json was written with"),
        (cut_config, "not a JSON file"),
        (foreign_config, "found a peft adapter of type LORA"),
        (list_config, "found another program's file"),
        (next_version, "expected format version 1, found 99"),
        (no_layout, "damaged .*layout"),
        (entry("layout/matrices", []), "damaged"),
        (entry("layout/axes", []), "damaged"),
        (entry("layout/matrices/0/in", "8"), "damaged"),
        (entry("layout/matrices/0/groups", 0), "damaged"),
        (entry("layout/matrices/0/coordinates", {}), "damaged"),
        (entry("layout/head_dim", 0), "damaged .*head_dim is 0"),
        (entry("layout/factors", {"in": [[32, [4, 8]]]}), "damaged .*factors of 'in'"),
        (entry("layout/factors", [3]), "damaged"),
        (entry("base_model/sample", [1.0]), "damaged .*sample"),
        (entry("base_model/sample", {"nothing": [1.0]}), "damaged .*sample"),
        (entry("scale", float("nan")), "damaged .*scale"),
        (entry("modules_to_save", "classifier"), "damaged .*modules_to_save"),
        (unknown_option, "damaged .*flavor"),
        (unknown_label, "damaged .*label"),
        (no_core, "core_2 is missing"),
    ],
)
def test_a_bad_file_is_refused_and_the_model_stays_as_it_is(saved, damage, message):
    damage(saved)
    model = bert()
    with pytest.raises(FormatError, match=message):
        load(model, saved)
    assert not hasattr(model, "tt_adapter")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(FormatError, match="cannot be read"):
        load(bert(), tmp_path / "nowhere")


def test_a_core_of_another_shape_is_named(saved):
    path = saved / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["core_1"] = torch.zeros(3, 5, 3)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ShapeError, match=r"core_1: expected shape \(3, 2, 3\).*found \(3, 5, 3\)"):
        load(bert(), saved)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: FAMILIES["roberta"].build(),
            FormatError,
            "made on a BertForSequenceClassification .* no linear",
        ),
        (
            lambda: bert(hidden_size=16),
            ShapeError,
            r"core_0: expected shape \(1, 16, 3\).*found \(1, 32, 3\)",
        ),
        (lambda: bert(num_hidden_layers=1), FormatError, "has no linear module 'bert.encoder.layer.1"),
        (lambda: bert(num_hidden_layers=3), FormatError, "whose layers have the linear modules"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), FormatError, "has no linear module"),
    ],
)
def test_another_model_is_refused(saved, build, error, message):
    model = build()
    with pytest.raises(error, match=message):
        load(model, saved)
    assert not hasattr(model, "tt_adapter")


def test_another_number_of_labels_is_refused(saved):
    model = bert()
    model.classifier = nn.Linear(32, 5)
    with pytest.raises(ShapeError, match=r"classifier\.weight: expected shape \(5, 32\).*found \(3, 32\)"):
        load(model, saved)
    model.classifier = nn.Identity()
    with pytest.raises(FormatError, match="modules_to_save"):
        load(model, saved)


def test_other_weights_are_told(saved):
    torch.manual_seed(8)
    with pytest.warns(UserWarning, match="with other weights in"):
        load(bert(), saved)


def test_loading_onto_an_adapter_or_another_layout_is_refused(saved):
    model, adapter = adapted("bert", targets=("query", "key"))
    with pytest.raises(StateError, match="has an adapter already"):
        load(model, saved)
    with pytest.raises(FormatError, match="for other matrices"):
        adapter.load_weights(saved)
    _, adapter = adapted("bert", "in (layer matrix) out")
    with pytest.raises(FormatError, match="attach one of the same pattern"):
        adapter.load_weights(saved)


def test_a_half_precision_copy_is_the_same_base(saved, tmp_path):
    torch.manual_seed(0)
    model = bert().to(torch.bfloat16)
    load(model, saved)
    shutil.copytree(saved, tmp_path / "copy")
    assert read(tmp_path / "copy").train.dtype == torch.float32


def with_tasks(tasks, **options):
    model, adapter = adapted("bert", "4+1d", tasks=tasks, **options)
    adapter.select(task=tasks[0])
    return model, adapter


def test_labels_in_another_order_are_refused(tmp_path):
    with_tasks(["a", "b"])[1].save(tmp_path)
    _, other = with_tasks(["b", "a"])
    before = other.tensor_train()
    with pytest.raises(FormatError, match=r"axis 'task': .*\('a', 'b'\).*\('b', 'a'\)"):
        other.load_weights(tmp_path)
    assert all(torch.equal(*cores) for cores in zip(before.cores, other.cores.cores, strict=True))


def test_weights_bring_their_factor(tmp_path):
    _, adapter = adapted("bert", rank=3, alpha=6.0, alpha_scaling=True)
    adapter.save(tmp_path)
    model, other = adapted("bert", rank=2, alpha=5.0, alpha_scaling=True)
    with torch.no_grad():
        logits(model)
        other.load_weights(tmp_path)
        name = FAMILIES["bert"].query
        assert torch.equal(other.delta(name), adapter.delta(name))
        out = logits(model)
        other.save(tmp_path / "again")
        other.merge()
        torch.testing.assert_close(logits(model), out, rtol=1e-4, atol=1e-5)
        with pytest.raises(StateError, match=r"load_weights: .*merged"):
            other.load_weights(tmp_path)
    assert read(tmp_path / "again").scale == adapter.scale == other.scale


def test_heads_are_saved_after_the_adapter_was_taken_off(tmp_path):
    torch.manual_seed(4)
    model, adapter = with_tasks(["a", "b"], heads_by="task")
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.normal_()
    adapter.save(tmp_path / "one")
    adapter.detach(merge=True)
    adapter.save(tmp_path / "two")
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    torch.manual_seed(4)
    load(bert(), tmp_path / "two")


def test_a_model_without_values_is_refused(saved):
    model = bert().to("meta")
    with pytest.raises(DeviceError, match="meta device"):
        load(model, saved)


def test_matrices_that_share_a_slice_are_saved_and_loaded(tmp_path):
    torch.manual_seed(3)
    model, adapter = adapted("bert", "in layer out", ["query", "value"])
    adapter.save(tmp_path)
    torch.manual_seed(3)
    other = bert()
    load(other, tmp_path)
    assert torch.equal(logits(other), logits(model))

"""Files of trains: the same bits come back, and nothing that was not saved is taken for a train."""

import json
import os
import pickle
import stat
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings

from tests.strategies import STORAGE_DTYPES, trains
from ttnet import TensorTrain, TTMatrix, TTParameter, io, random_train
from ttnet.errors import ConfigError, DTypeError, FormatError

DTYPES = (*STORAGE_DTYPES, torch.float16)


def bits(core):
    """The bytes of a core: NaN and -0.0 count as what they are."""
    core = torch.view_as_real(core.resolve_conj()) if core.is_complex() else core
    return core.contiguous().flatten().view(torch.uint8).tolist()


def assert_same(one, two):
    assert type(one) is type(two)
    assert one.center == two.center
    assert one.dtype == two.dtype
    assert [core.shape for core in one.cores] == [core.shape for core in two.cores]
    assert [bits(core.cpu()) for core in one.cores] == [bits(core.cpu()) for core in two.cores]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "train.safetensors"


@pytest.fixture
def saved(path):
    """The file of a train of three cores."""
    io.save(random_train((4, 5, 6), rank=3, seed=0).orthogonalize(1), path, metadata={"epoch": 3})
    return path


def parts(path):
    """Metadata and tensors of a file."""
    with safetensors.safe_open(path, framework="pt") as file:
        return dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}


def sign(header, tensors):
    """A valid checksum for changed parts, as a program that writes this format by itself would make."""
    header["sha256"] = io._digest(header["description"], tensors.values())


@given(train=trains(storage=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_train_comes_back_to_the_bit(train, path):
    io.save(train, path)
    assert_same(io.load(path), train)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["train", "matrix"])
def test_every_dtype_comes_back_to_the_bit(name, dtype, path, device):
    working = torch.float32 if dtype.itemsize == 2 else dtype
    if name == "train":
        one = random_train((3, 1, 4), rank=2, seed=0, dtype=working, device=device).orthogonalize(2)
    else:
        one = TTMatrix.random((2, 3), (3, 4), rank=2, seed=0, dtype=working, device=device).orthogonalize(0)
    one = one.to(dtype)
    io.save(one, path)
    two = io.load(path, device=device)
    assert_same(one, two)
    assert two.device.type == device.type


def test_signs_of_zero_nan_and_lazy_conjugates_are_kept(path):
    core = torch.tensor([0.0, -0.0, torch.nan, torch.inf], dtype=torch.float64).reshape(1, 4, 1)
    io.save(TensorTrain([core]), path)
    assert_same(io.load(path), TensorTrain([core]))
    lazy = torch.randn(2, 3, 1, dtype=torch.complex64).transpose(0, 2).conj()
    imaginary = lazy.imag.unsqueeze(0).reshape(1, 6, 1)  # carries torch's lazy minus sign
    io.save({"conj": TensorTrain([lazy.reshape(1, 6, 1)]), "imag": TensorTrain([imaginary])}, path)
    loaded = io.load(path)
    assert torch.equal(loaded["conj"].full(), lazy.flatten())
    assert torch.equal(loaded["imag"].full(), lazy.imag.flatten())


def test_cores_that_share_memory_or_have_gaps(path):
    core = torch.randn(4, 3, 4)[::2, :, ::2]
    first, last = torch.randn(1, 3, 2), torch.randn(2, 3, 1)
    train = TensorTrain([first, core, core, last])
    io.save(train, path)
    assert_same(io.load(path), train)
    one = io.load(path)
    assert all(core.is_contiguous() for core in one.cores)
    one.cores[0].zero_()
    assert_same(io.load(path), train)  # what is loaded is no window on the file


def test_gradients_stay_behind(path):
    parameter = TTParameter(random_train((3, 4), rank=2, seed=0))
    io.save(TensorTrain(parameter.cores), path)
    assert not any(core.requires_grad for core in io.load(path).cores)


def test_several_under_their_names_in_their_order(path):
    both = {
        "z": random_train((3, 4), rank=2, seed=0),
        "a/core_0": TTMatrix.identity((2, 2), dtype=torch.complex64),
        "a": random_train((2,), rank=1, seed=1),
        "": random_train((2, 2), rank=1, seed=1, dtype=torch.float64),
    }
    io.save(both, path)
    loaded = io.load(path)
    assert list(loaded) == list(both)
    for name, one in both.items():
        assert_same(loaded[name], one)


def test_metadata_comes_back(path):
    train = random_train((3, 4), rank=2, seed=0)
    values = {"epoch": 3, "loss": 0.1, "names": ["é", None], "nested": {"a": True}, "\u2028": "\n"}
    io.save(train, path, metadata=values)
    assert io.load(path, return_metadata=True)[1] == values
    io.save(train, path)
    assert io.load(path, return_metadata=True)[1] == {}


@pytest.mark.parametrize("kind", [str, Path])
def test_path_of_either_kind_with_any_name(kind, tmp_path):
    train = random_train((3, 4), rank=2, seed=0)
    for name in ("no_suffix", "with space é.bin", "x" * 250):
        io.save(train, kind(tmp_path / name))
        assert_same(io.load(kind(tmp_path / name)), train)


def test_relative_paths_and_links(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("target")
    train = random_train((3, 4), rank=2, seed=0)
    io.save(train, "link")
    assert Path("link").is_symlink()
    assert_same(io.load("target"), train)


def test_the_file_is_readable_by_others_as_any_new_file(saved, tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


# What is refused when writing -------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [torch.zeros(3), [torch.zeros(1, 3, 1)], {"a": torch.zeros(3)}, None])
def test_what_is_no_train_is_refused(wrong, path):
    with pytest.raises(DTypeError, match="expected a TensorTrain"):
        io.save(wrong, path)
    assert not path.exists()


@pytest.mark.parametrize("metadata", [{"a": torch.zeros(2)}, {1: "a"}, {"a": object()}])
def test_metadata_that_json_does_not_hold_is_refused(metadata, path):
    with pytest.raises(ConfigError, match="metadata"):
        io.save(random_train((3,), rank=1), path, metadata=metadata)
    assert not path.exists()


def test_names_are_strings_and_there_is_one(path):
    with pytest.raises(ConfigError, match="names"):
        io.save({1: random_train((3,), rank=1)}, path)
    with pytest.raises(ConfigError, match="at least one"):
        io.save({}, path)


def test_folders_are_refused(tmp_path):
    train = random_train((3,), rank=1)
    with pytest.raises(IsADirectoryError, match="give the name of a file"):
        io.save(train, tmp_path)
    with pytest.raises(IsADirectoryError):
        io.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="create it first"):
        io.save(train, tmp_path / "none" / "train")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(step, saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="no space left"):
        io.save(random_train((7, 7), rank=3), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_an_existing_file_is_replaced_not_written_into(saved):
    with saved.open("rb") as reader:
        before = saved.read_bytes()
        io.save(random_train((7, 7), rank=3), saved)
        assert reader.read() == before
    assert io.load(saved).shape == (7, 7)
    assert list(saved.parent.iterdir()) == [saved]


# What is refused when reading -------------------------------------------------------------------------------


def test_a_missing_file_is_pythons_own_error(path):
    with pytest.raises(FileNotFoundError):
        io.load(path)


def test_every_truncation_is_refused(saved, tmp_path):
    raw = saved.read_bytes()
    for length in [*range(0, len(raw), 7), len(raw) - 1]:
        (tmp_path / "short").write_bytes(raw[:length])
        with pytest.raises(FormatError, match=r"short.*save the train again"):
            io.load(tmp_path / "short")
    (tmp_path / "long").write_bytes(raw + b"\0")
    with pytest.raises(FormatError, match="long"):
        io.load(tmp_path / "long")


def test_no_flipped_bit_goes_unnoticed(saved, tmp_path):
    """Each byte of the file, one bit of it flipped: refused, or (white space in the header) no change."""
    raw = saved.read_bytes()
    train = io.load(saved)
    damaged = tmp_path / "damaged"
    refused = 0
    for at in range(len(raw)):
        flipped = bytearray(raw)
        flipped[at] ^= 1 << (at % 7)
        damaged.write_bytes(flipped)
        try:
            assert_same(io.load(damaged), train)
        except FormatError:
            refused += 1
    assert refused > len(raw) - 20


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a zip",
        pickle.dumps({"core_0": 1}),
        b"{}",
        b"\xff" * 64,
        (2).to_bytes(8, "little") + b"[]",
        (1 << 62).to_bytes(8, "little"),
    ],
    ids=["empty", "zip", "pickle", "json", "ones", "list", "huge header"],
)
def test_other_formats_are_refused(content, path):
    path.write_bytes(content)
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        io.load(path)


def test_other_programs_safetensors_are_refused(path):
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(FormatError, match=r"another program's.*weight"):
        io.load(path)
    safetensors.torch.save_file({"core_0": torch.zeros(1, 2, 1)}, path, {"format": "ttnet-adapter"})
    with pytest.raises(FormatError, match=r"ttnet\.adapters\.load"):
        io.load(path)


@pytest.mark.parametrize(
    ("version", "remedy"), [("2", "update ttnet"), ("10", "update ttnet"), ("0", "again"), ("x", "again")]
)
def test_other_versions_are_refused(version, remedy, saved):
    header, tensors = parts(saved)
    safetensors.torch.save_file(tensors, saved, header | {"format_version": version})
    with pytest.raises(FormatError, match=f"version 1, found {version}.*{remedy}"):
        io.load(saved)


def test_a_core_of_another_shape_is_named(saved):
    header, tensors = parts(saved)
    tensors["core_1"] = torch.zeros(3, 7, 3)
    sign(header, tensors)
    safetensors.torch.save_file(tensors, saved, header)
    with pytest.raises(FormatError, match=r"core_1: expected shape \(3, 5, 3\).*found \(3, 7, 3\)"):
        io.load(saved)


def test_a_core_of_another_dtype_that_is_missing_or_too_many(saved):
    header, tensors = parts(saved)
    safetensors.torch.save_file(tensors | {"core_2": tensors["core_2"].double()}, saved, header)
    with pytest.raises(FormatError, match=r"core_2: expected .*float32.*float64"):
        io.load(saved)
    safetensors.torch.save_file(tensors | {"core_3": torch.zeros(1)}, saved, header)
    with pytest.raises(FormatError, match="unexpected tensors"):
        io.load(saved)
    del tensors["core_1"]
    safetensors.torch.save_file(tensors, saved, header)
    with pytest.raises(FormatError, match="core_1 is missing"):
        io.load(saved)


def test_cores_of_another_save_are_refused(saved):
    header, tensors = parts(saved)
    tensors["core_0"] = tensors["core_0"] + 1
    safetensors.torch.save_file(tensors, saved, header)
    with pytest.raises(FormatError, match="checksum"):
        io.load(saved)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "tucker"}, "kind 'tucker'"),
        ({"dtype": "int64"}, "dtype 'int64'"),
        ({"center": 9}, "center"),
        ({"center": "1"}, "center"),
        ({"name": ["a"]}, "name"),
        ({"kind": "tt_matrix"}, "no tt_matrix"),
        ({"shapes": [[4, 5], "x"]}, "damaged"),
        ({"shapes": []}, "unexpected tensors"),
    ],
    ids=str,
)
def test_a_description_that_makes_no_train_is_refused(change, reason, saved):
    header, tensors = parts(saved)
    description = json.loads(header["description"])
    description["objects"][0] |= change
    header["description"] = json.dumps(description)
    sign(header, tensors)
    safetensors.torch.save_file(tensors, saved, header)
    with pytest.raises(FormatError, match=reason):
        io.load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"objects": []}', '{"objects": [], "metadata": {}}'])
def test_a_description_that_is_damaged_is_refused(text, saved):
    header, tensors = parts(saved)
    header["description"] = text
    sign(header, tensors)
    safetensors.torch.save_file(tensors, saved, header)
    with pytest.raises(FormatError, match="description is damaged"):
        io.load(saved)

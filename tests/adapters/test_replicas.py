"""Two processes, one adapter, a base that is whole or sharded: same bits, changing ranks."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ttnet.adapters import MetaTT, attach, replicate
from ttnet.errors import ConfigError, StateError

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("replicas_worker.py")
JOBS = ("plain", "sharded", "resumed", "two-site", "adaptive")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("torch was built without gloo")
    directory = tmp_path_factory.mktemp("replicas")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(process), str(directory)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    return [torch.load(directory / f"{process}.pt", weights_only=True) for process in range(2)]


def same_bits(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return a == b


@pytest.mark.parametrize("job", JOBS)
def test_all_processes_hold_the_same_bits(results, job):
    first, second = (result[job] for result in results)
    for entry in ("parameters", "states", "outputs", "gradients", "ranks"):
        assert same_bits(first[entry], second[entry]), entry


@pytest.mark.parametrize("job", ["plain", "sharded"])
def test_two_processes_train_what_one_process_trains_on_all_their_data(results, job):
    found, alone = results[0][job], results[0]["alone"]
    for entry in ("gradients", "parameters"):
        assert len(found[entry]) == len(alone[entry])
        for a, b in zip(found[entry], alone[entry], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["outputs"], alone["outputs"], rtol=1e-4, atol=1e-5)


def test_the_base_is_sharded_and_the_adapter_is_not(results):
    for result in results:
        assert set(result["shards"]) == {"DTensor"}
        assert not any(hasattr(p, "full_tensor") for p in result["sharded"]["parameters"])


@pytest.mark.parametrize("job", ["plain", "sharded"])
def test_shapes_follow_the_schedule(results, job):
    for result in results:
        assert not result[job]["keep_shapes"]
        assert result[job]["ranks"] == [(3, 3, 3), (2, 1, 2), (4, 4, 4), None]
        assert [p.shape[2] for p in result[job]["parameters"] if p.ndim == 3] == [4, 4, 4, 1]


def test_a_resumed_training_has_the_bits_of_one_that_was_not_interrupted(results):
    for result in results:
        assert result["resumed"]["ranks"] == [(4, 4, 4), None]
        for entry in ("parameters", "states", "outputs"):
            assert same_bits(result["resumed"][entry], result["sharded"][entry]), entry


def test_process_0_saves_and_a_whole_model_loads(results):
    loaded = results[0]["loaded"]
    assert loaded["ranks"] == (1, 4, 4, 4, 1)
    torch.testing.assert_close(loaded["outputs"], results[0]["sharded"]["outputs"], rtol=1e-5, atol=1e-5)


def test_an_optimizing_sweep_runs_on_a_sharded_base(results):
    job = results[0]["two-site"]
    assert job["ranks"] == [(3, 3, 3)]
    assert job["after"][0] < job["before"][0]


def test_a_collective_loss_may_decide_about_ranks(results):
    # Process 0 likes every cut and process 1 none; both evaluate the same trials, and process 0 decides.
    for result in results:
        assert result["adaptive"]["ranks"] == [(2, 2, 2), (1, 1, 1)]


def test_a_parameter_without_gradient_in_one_process_counts_as_zero_there(results):
    first, second = (result["partly used"] for result in results)
    assert same_bits(first["averaged"], second["averaged"])
    for name, mean in first["averaged"].items():
        expected = (first["own"][name] + second["own"][name]) / 2
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)
    assert first["averaged"]["classifier.weight"].any()
    assert first["averaged"]["other.weight"].any()


def test_removed_replicas_keep_their_own_gradients(results):
    first, second = (result["partly used"] for result in results)
    assert not torch.equal(first["alone"], second["alone"])
    assert not first["replicated"]


def test_thawed_parameters_of_the_base_are_averaged_too(results):
    first, second = (result["thawed"] for result in results)
    assert same_bits(first["averaged"], second["averaged"])
    torch.testing.assert_close(first["averaged"], (first["own"] + second["own"]) / 2, rtol=1e-5, atol=1e-6)


def test_an_evaluation_after_replication_sees_the_cores_that_were_sent(results):
    first, second = (result["thawed"] for result in results)
    assert same_bits(first["outputs"], second["outputs"])


def test_a_base_in_half_precision_has_heads_in_single(results):
    first, second = (result["half"]["parameters"] for result in results)
    assert same_bits(first, second)
    assert {p.dtype for p in first} == {torch.float32}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("merge", "DTypeError: merge: the model's weights are sharded"),
        ("group", "ConfigError: process_group: expected one of all 2 processes"),
        ("removed", "StateError: scheduler.step: the trains are not replicated any more"),
        ("twice", "StateError: replicate: the adapter is replicated already"),
        ("differ", "ShapeError: adapter: expected the same cores"),
        ("replicate", "StateError: replicate: the adapter's own parameters are sharded"),
        ("save", "StateError: save: the adapter's own parameters are sharded"),
        ("sweep", "ConfigError: parameter: expected whole cores, got sharded ones"),
    ],
)
def test_what_cannot_work_is_refused(results, call, message):
    for result in results:
        assert result["refusals"][call].startswith(message)


def test_one_process_without_a_group_is_told_so():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    adapter = attach(model, MetaTT("4d", rank=2, target_modules="all-linear"))
    with pytest.raises(StateError, match="start the script with torchrun"):
        replicate(adapter)
    with pytest.raises(ConfigError, match="got Sequential"):
        replicate(model)

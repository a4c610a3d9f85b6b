"""Two processes, one train: they hold the same bits after every sweep, and shapes stay as they are."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ttnet.optim.distributed import agree, broadcast, gather, is_distributed, mean, together

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("distributed_worker.py")
JOBS = ("scheduled", "sgd", "nudged", "adaptive", "two-site", "tested")


def test_one_process_asks_nobody():
    assert not is_distributed()
    value = object()
    assert agree(value) is value
    tensor = torch.ones(2)
    broadcast([tensor])
    assert torch.equal(tensor, torch.ones(2))
    assert gather(value) == together("nothing", lambda: value) == [value]
    assert mean([None]) is None
    assert mean([1.0, None, 2.0]) == 1.5


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("torch was built without gloo")
    directory = tmp_path_factory.mktemp("processes")
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
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return a == b


def test_process_0_decides(results):
    for result in results:
        assert result["is_distributed"]
        assert result["agree"] == (0, "from process 0")
        assert torch.equal(result["broadcast"], torch.arange(3.0))
        # Caches of what is computed from a tensor know by its version that it was written.
        assert result["version"] > 0


@pytest.mark.parametrize("job", JOBS)
def test_all_processes_hold_the_same_bits(results, job):
    first, second = (result[job] for result in results)
    assert same_bits(first["parameters"], second["parameters"])
    assert same_bits(first["states"], second["states"])
    assert first["ranks"] == second["ranks"]
    assert any(ranks is not None for ranks in first["ranks"])
    assert first["before"] == second["before"]
    assert first["after"] == second["after"]


@pytest.mark.parametrize("job", JOBS)
def test_shapes_stay_and_removed_directions_are_zero(results, job):
    for result in results:
        assert result[job]["keep_shapes"]
        assert result[job]["shapes"] == [(1, 5, 4), (4, 4, 4), (4, 6, 1)]
        assert all(result[job]["zeros"])


def test_the_loss_of_process_0_counts(results):
    for result in results:
        assert result["adaptive"]["ranks"] == [(3, 3), (2, 2), (1, 1), None]


def test_an_optimizing_sweep_minimizes_the_mean_loss_of_all_processes(results):
    for result in results:
        assert result["two-site"]["ranks"] == [(3, 3), (1, 2), (4, 4), None]
        assert len(result["tested"]["means"]) == 1
        for job in ("two-site", "tested"):
            assert result[job]["after"] == pytest.approx(result[job]["means"], rel=1e-9)
        before, after = result["two-site"]["before"], result["two-site"]["after"]
        assert all(b < a for a, b in zip(before, after, strict=True))


def test_a_failure_in_one_process_ends_the_sweep_in_all(results):
    first, second = (result["failing"] for result in results)
    assert first["message"].startswith("StateError: problem: failed in 1 of 2 processes")
    assert second["message"] == "ValueError: no more data"
    assert first["unchanged"]
    assert second["unchanged"]
    assert first["epoch"] == second["epoch"] == 0


def test_the_schedule_is_followed_and_compaction_keeps_the_train(results):
    for result in results:
        assert result["scheduled"]["ranks"] == [(3, 3), (1, 2), (4, 4), None]
        assert result["sgd"]["ranks"] == [None, (2, 2), None, None]
        assert result["sgd"]["compact"] == (2, 2)
        assert all(result[job]["drift"] < 1e-12 for job in JOBS)


@pytest.mark.parametrize("metric", ["strided", "whole numbers"])
def test_the_mean_of_the_metrics_counts_whatever_their_memory_is(results, metric):
    for result in results:
        assert result["metrics"][metric] == pytest.approx(result["metrics"][metric + " expected"], rel=1e-6)


def test_a_loss_that_fails_in_one_process_ends_a_cut_in_all(results):
    for ranks in ("schedule", "adaptive"):
        first, second = (result["refusals"][f"loss, {ranks}"] for result in results)
        assert first == "StateError: problem: failed in 1 of 2 processes; their own messages say why, " + (
            "and no train was changed"
        )
        assert second == "ValueError: no more data"


def test_one_process_may_have_the_only_loss(results):
    first, second = (result["only loss"] for result in results)
    assert first == second
    assert all(isinstance(value, float) for value in first)


@pytest.mark.parametrize(
    ("call", "messages"),
    [
        ("gradient", ("StateError: scheduler.step: failed in 1 of 2", "StateError: scheduler.step: core 0")),
        ("epoch", ("StateError: scheduler.step: expected the same epoch and the same shapes",) * 2),
        ("ranks", ("StateError: scheduler.step: expected the same epoch and the same shapes",) * 2),
        ("state", ("StateError: scheduler.step: expected the same epoch and the same shapes",) * 2),
        ("values", ("StateError: scheduler.step: desynchronized, the processes hold different cores",) * 2),
        ("torn", ("StateError: scheduler.step: the trains are not replicated any more",) * 2),
        ("shapes", ("ConfigError: keep_shapes: expected True or None in several processes",) * 2),
    ],
)
def test_processes_that_have_come_apart_are_refused_and_keep_their_trains(results, call, messages):
    for result, message in zip(results, messages, strict=True):
        assert result["refusals"][call].startswith(message)
        assert result["unchanged"][call]

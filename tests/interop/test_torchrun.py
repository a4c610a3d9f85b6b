"""`torchrun` with two processes on a tiny BERT: sweeps in the middle, resuming, saving, a sharded base."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ttnet.adapters import MetaTT, attach
from ttnet.errors import ConfigError
from ttnet.interop.fsdp import leave_unsharded

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("torchrun_worker.py")
JOBS = ("plain", "truncate", "two-site", "sharded", "bf16")
CHECKPOINT = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "rng_state_0.pth",
    "rng_state_1.pth",
    "scheduler.pt",
    "trainer_state.json",
    "training_args.bin",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("torch was built without gloo")
    directory = tmp_path_factory.mktemp("torchrun")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with subprocess.Popen(
        [*torchrun, str(WORKER), str(directory)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as launcher:
        try:
            output = launcher.communicate(timeout=240)[0]
        except subprocess.TimeoutExpired:
            launcher.terminate()  # it ends its processes; a kill would leave them
            output = launcher.communicate()[0]
    assert launcher.returncode == 0, output
    return [torch.load(directory / f"{process}.pt", weights_only=True) for process in range(2)]


def same_bits(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return a == b


@pytest.mark.parametrize("run", ["whole", "resumed"])
@pytest.mark.parametrize("job", JOBS)
def test_all_processes_end_with_the_same_bits(results, job, run):
    first, second = (result[job][run] for result in results)
    for entry in ("parameters", "states", "outputs", "ranks"):
        assert same_bits(first[entry], second[entry]), entry


@pytest.mark.parametrize("job", JOBS)
def test_resuming_after_a_sweep_gives_the_bits_of_the_whole_run(results, job):
    for result in results:
        whole, resumed = result[job]["whole"], result[job]["resumed"]
        for entry in ("parameters", "states", "outputs"):
            assert same_bits(whole[entry], resumed[entry]), entry
        assert resumed["ranks"] == whole["ranks"][-len(resumed["ranks"]) :]
        assert len(resumed["ranks"]) < len(whole["ranks"])


def test_a_plain_loop_cuts_grows_and_compacts(results):
    for result in results:
        job = result["plain"]["whole"]
        assert job["ranks"] == [(3, 3, 3), (5, 5, 5), (2, 2, 2), (2, 2, 2)]
        assert job["capacity"] == (1, 6, 6, 6, 1)
        assert job["compact"] == (1, 2, 2, 2, 1)
        torch.testing.assert_close(job["compact outputs"], job["outputs"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("job", ["truncate", "two-site", "sharded", "bf16"])
def test_the_trainer_follows_the_schedule_and_saves_compact_cores(results, job):
    for result in results:
        assert result[job]["whole"]["ranks"] == [(3, 3, 3), (5, 5, 5)]
    for run in ("whole", "resumed"):
        saved = results[0][job][run]
        assert saved["saved ranks"] == (1, 5, 5, 5, 1)
        rtol = 0.05 if job == "bf16" else 1e-5
        torch.testing.assert_close(saved["saved outputs"], saved["outputs"].float(), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("job", ["truncate", "sharded"])
def test_checkpoints_hold_the_adapter_and_not_the_base(results, job):
    assert set(results[0][job]["whole"]["files"]) == CHECKPOINT


def test_ranks_change_shapes_where_only_the_base_is_sharded(results):
    for result in results:
        assert result["truncate"]["whole"]["keep_shapes"]
        assert not result["sharded"]["whole"]["keep_shapes"]
        assert result["sharded"]["whole"]["shards"] == ["DTensor"]


def test_a_sharded_base_trains_what_a_whole_one_does(results):
    # One trains at capacity 6 with zeros, the other at the ranks themselves.
    sharded, whole = results[0]["sharded"]["whole"], results[0]["truncate"]["whole"]
    torch.testing.assert_close(sharded["outputs"], whole["outputs"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fsdp_version": 1}, "expected version 2, got 1"),
        ({"cpu_ram_efficient_loading": True}, "cpu_ram_efficient_loading=True is not possible"),
        ({"ignored_modules": "bert.*"}, "as a list, got the pattern"),
    ],
)
def test_what_would_shard_the_adapter_is_refused(options, message):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    adapter = attach(model, MetaTT("4d", rank=2, target_modules="all-linear"))
    plugin = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "ignored_modules": None} | options
    accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace(**plugin)))
    with pytest.raises(ConfigError, match=message):
        leave_unsharded(adapter, accelerator, torch.device("cpu"))

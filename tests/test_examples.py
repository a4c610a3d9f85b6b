"""The examples run at a quick size and reach the numbers that they claim."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    """The module of a script, which is no package's."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_all_examples_are_known():
    known = {"heisenberg", "digits", "completion", "teacher", "robust_network", "born_machine"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == known


def test_heisenberg(tmp_path):
    script = load("heisenberg")
    found = script.main(length=12, max_rank=64)
    assert found.energy == pytest.approx(script.EXACT[12], rel=1e-11)
    assert found.variance < 1e-8
    assert found.entropies[0] == pytest.approx(math.log(2), abs=1e-9)
    odd, even = found.entropies[2:9:2], found.entropies[1:10:2]
    assert min(odd) > max(even) + 0.05
    pytest.importorskip("matplotlib")
    script.plot(found, tmp_path / "entropy.png")
    assert (tmp_path / "entropy.png").stat().st_size > 1000


@pytest.mark.slow
def test_heisenberg_of_twenty_sites():
    found = load("heisenberg").main()
    assert found.energy == pytest.approx(-8.682473334398966, rel=1e-11)


def test_digits():
    pytest.importorskip("sklearn")
    scores = load("digits").main(500, slice(900, 1347), max_rank=11, sweeps=1, shifts=False)
    assert scores.test < 0.6 * scores.linear
    assert scores.test < 0.06
    assert scores.training < 0.01
    assert scores.max_rank == 11


def test_shifted_digits_keep_their_pixels():
    pytest.importorskip("sklearn")
    images = torch.zeros(1, 8, 8)
    images[0, 3, 4] = 1.0
    places = [tuple(int(i) for i in image.nonzero()[0]) for image in load("digits").shifted(images)]
    assert sorted(places) == [(2, 4), (3, 3), (3, 4), (3, 5), (4, 4)]


def test_completion():
    found = load("completion").main(dimensions=6, samples=3000, max_rank=4)
    assert found.error < 1e-4
    assert found.certificate < 1e-4
    assert found.rank <= 4


@pytest.mark.parametrize("seed", [0, 3])
def test_teacher(seed):
    student = load("teacher").main(seed=seed)
    assert student.ranks == (3, 4, 4, 4, 4, 4, 3)
    assert 0.9 * student.floor < student.loss < student.floor
    assert student.error < 5e-3


def test_robust_network():
    found = load("robust_network").main(seed=1)
    assert found.robust < 0.1
    assert found.robust < 0.3 * found.squared


@pytest.mark.parametrize("seed", [0, 1])
def test_born_machine(seed):
    machine = load("born_machine").main(samples=500, seed=seed)
    assert machine.loss == pytest.approx(math.log(30), abs=1e-6)
    assert machine.loss >= machine.floor - 1e-12
    assert machine.hits > 0.999
    assert machine.found == 30

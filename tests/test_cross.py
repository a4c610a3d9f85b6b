"""Cross approximation: errors against the function itself, evaluations, status, rare features."""

import math

import pytest
import torch

from tests.strategies import DTYPES
from ttnet.black_box import BlackBox
from ttnet.cores import check, contract, ranks_of
from ttnet.cross import CrossOptions, _PivotSets, cross
from ttnet.errors import ConfigError, NonFiniteError, ShapeError
from ttnet.gather import gather
from ttnet.random import random_cores

GRID = torch.linspace(0, 1, 20, dtype=torch.float64)


def hilbert(x):
    return 1 / (1 + x.sum(1))


def bump(x, center=0.7, width=0.05):
    return torch.exp(-((x - center) ** 2).sum(1) / (2 * width**2))


def relative_error(cores, function, grids, count=4000):
    generator = torch.Generator().manual_seed(1234)
    indices = torch.stack([torch.randint(len(g), (count,), generator=generator) for g in grids], 1)
    exact = function(torch.stack([g[i] for g, i in zip(grids, indices.T, strict=True)], 1))
    return float((gather(cores, indices) - exact).norm() / exact.norm())


@pytest.mark.parametrize(("rtol", "evaluations"), [(1e-4, 40_000), (1e-8, 100_000), (1e-12, 150_000)])
def test_hilbert_tensor(rtol, evaluations) -> None:
    cores, report = cross(hilbert, [GRID] * 8, options=CrossOptions(rtol=rtol, seed=0))
    assert report.converged
    assert report.evaluations <= evaluations
    assert report.held_out_error <= rtol
    # The error lies well below the tolerance: little is seen of the largest differences.
    assert relative_error(check(cores), hilbert, [GRID] * 8) <= rtol / 10
    assert report.ranks == ranks_of(cores)[1:-1]
    assert max(report.ranks) <= 14


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_of_known_ranks_is_found_exactly(dtype) -> None:
    target = random_cores((6, 5, 1, 7, 4), 3, seed=0, dtype=dtype)
    rtol = 1e-4 if torch.finfo(dtype).bits == 32 else 1e-10
    cores, report = cross(
        lambda i: gather(target, i), (6, 5, 1, 7, 4), options=CrossOptions(rtol=rtol, seed=1)
    )
    assert cores[0].dtype == dtype
    assert report.converged
    assert report.ranks == (3, 3, 3, 3)
    assert float((contract(cores) - contract(target)).norm() / contract(target).norm()) <= rtol


@pytest.mark.parametrize(
    ("function", "ranks"),
    [
        (lambda i: torch.zeros(len(i)), (1, 1, 1)),
        (lambda i: torch.ones(len(i)) * 3, (1, 1, 1)),
        (lambda i: i.double().sum(1), (2, 2, 2)),
        (lambda i: i.double().prod(1), (1, 1, 1)),
    ],
)
def test_simple_functions(function, ranks) -> None:
    cores, report = cross(function, (5, 4, 6, 3), options=CrossOptions(seed=0, rtol=1e-5))
    assert report.converged
    assert report.ranks == ranks
    indices = torch.cartesian_prod(*[torch.arange(n) for n in (5, 4, 6, 3)])
    exact = function(indices)
    assert torch.allclose(contract(cores).flatten(), exact, atol=1e-5 * float(exact.abs().max() + 1e-9))


@pytest.mark.parametrize("shape", [(7,), (1,), (1, 1), (1, 5, 1, 6)])
def test_small_shapes(shape) -> None:
    cores, report = cross(lambda i: i.double().sum(1).cos(), shape, options=CrossOptions(seed=0))
    indices = torch.cartesian_prod(*[torch.arange(n) for n in shape]).reshape(-1, len(shape))
    assert report.converged
    assert report.evaluations <= math.prod(shape)
    assert torch.allclose(contract(cores).flatten(), indices.double().sum(1).cos())


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_a_narrow_bump_is_found(smooth) -> None:
    def function(x):
        return smooth * hilbert(x) + bump(x)

    cores, report = cross(function, [GRID] * 6, options=CrossOptions(rtol=1e-6, seed=0))
    assert report.converged
    top = torch.full((1, 6), 13)
    exact = float(function(GRID[top]))
    assert float(gather(cores, top)) == pytest.approx(exact, rel=1e-5)
    assert exact > 0.7


def test_pivots_tell_what_no_search_can_find() -> None:
    def needle(indices):
        return (indices == torch.tensor([3, 1, 4, 1, 5, 9])).all(1).double()

    options = CrossOptions(seed=0)
    lost, report = cross(needle, (10,) * 6, options=options)
    assert report.message.startswith("every entry that was seen is 0")
    assert float(gather(lost, [[3, 1, 4, 1, 5, 9]])) == 0
    cores, report = cross(needle, (10,) * 6, options=options, pivots=torch.tensor([[3, 1, 4, 1, 5, 9]]))
    assert report.ranks == (1,) * 5
    assert float(gather(cores, [[3, 1, 4, 1, 5, 9]])) == 1
    assert (report.status, report.nonzero) == ("unverified", 1)


@pytest.mark.parametrize("seed", range(3))
def test_zeros_on_held_out_points_verify_nothing(seed) -> None:
    def diagonal(indices):
        return (indices == indices[:, :1]).all(1).double()

    cores, report = cross(diagonal, (4,) * 8, options=CrossOptions(seed=seed))
    missed = float(
        (contract(cores).flatten() - diagonal(torch.cartesian_prod(*[torch.arange(4)] * 8))).norm()
    )
    assert missed >= 1  # of four entries that are 1
    assert report.held_out_error == 0
    assert report.status == "unverified"
    assert not report.converged
    assert "exactly 0" in report.message


def test_a_small_support_that_neighbors_see_is_verified() -> None:
    def box(indices):
        return ((indices >= 3) & (indices < 6)).all(1).double() * (1 + indices.sum(1))

    _, report = cross(box, (10,) * 6, options=CrossOptions(seed=0), pivots=torch.full((1, 6), 3))
    assert report.converged
    assert report.ranks == (2,) * 5


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e160, 1e300])
def test_the_scale_of_the_function_does_not_matter(scale) -> None:
    options = CrossOptions(rtol=1e-6, seed=0)
    _, plain = cross(hilbert, [GRID] * 4, options=options)
    cores, report = cross(lambda x: hilbert(x) * scale, [GRID] * 4, options=options)
    assert report.converged
    assert report.ranks == plain.ranks
    assert plain.held_out_error / 5 < report.held_out_error < 5 * plain.held_out_error
    corner = torch.zeros(1, 4, dtype=torch.int64)
    assert float(gather(cores, corner)) == pytest.approx(scale, rel=1e-6)


def test_quantics_of_a_sharp_peak() -> None:
    weights = 2.0 ** -torch.arange(1, 21, dtype=torch.float64)

    def peak(indices):
        return 1 / (((indices * weights).sum(1) - 0.3) ** 2 + 1e-8)

    cores, report = cross(peak, (2,) * 20, options=CrossOptions(rtol=1e-8, seed=0))
    assert report.converged
    assert report.evaluations < 30_000
    near = (torch.tensor(int(0.3 * 2**20)) + torch.arange(-50, 50)).unsqueeze(1)
    indices = (near >> torch.arange(19, -1, -1)) & 1
    assert torch.allclose(gather(cores, indices), peak(indices), rtol=1e-5)


def test_what_does_not_converge_says_so() -> None:
    def rough(indices):
        return torch.sin(1e4 * (indices * torch.tensor([0.1, 0.7, 0.3, 0.77, 0.123])).sum(1) ** 2)

    _, report = cross(rough, (12,) * 5, options=CrossOptions(rtol=1e-6, seed=0, max_rank=8))
    assert report.status == "max_rank"
    assert not report.converged
    assert max(report.ranks) == 8
    assert report.held_out_error > 0.5
    assert "max_rank" in report.message
    _, report = cross(hilbert, [GRID] * 8, options=CrossOptions(rtol=1e-10, seed=0, max_evaluations=3000))
    assert report.status == "max_evaluations"
    _, report = cross(hilbert, [GRID] * 8, options=CrossOptions(rtol=1e-10, seed=0, max_sweeps=1))
    assert (report.status, report.sweeps) == ("max_sweeps", 1)
    _, report = cross(lambda x: hilbert(x.float()), [GRID] * 4, options=CrossOptions(rtol=1e-11, seed=0))
    assert report.status == "stagnated"
    assert report.held_out_error < 1e-5


def test_neighbors_differ_from_the_pivots_in_two_modes_at_most() -> None:
    sets = _PivotSets(BlackBox(torch.sum, (9,) * 6), CrossOptions())
    pivot = torch.tensor([[3, 1, 4, 1, 5, 8]])
    sets.add(pivot)
    near = sets.neighbors(50, torch.Generator().manual_seed(0))
    assert len(near) >= 50
    assert int((near != pivot).sum(1).max()) == 2
    assert bool((near != pivot).any(0).all())


def test_it_is_seeded() -> None:
    runs = [cross(hilbert, [GRID] * 4, options=CrossOptions(rtol=1e-6, seed=s)) for s in (5, 5, 6)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][0], runs[1][0], strict=True))
    assert runs[0][1] == runs[1][1]
    assert runs[0][1] != runs[2][1]
    generator = torch.Generator().manual_seed(5)
    cores, _ = cross(hilbert, [GRID] * 4, options=CrossOptions(rtol=1e-6, seed=generator))
    assert torch.equal(cores[0], runs[0][0][0])


def test_bad_input_is_named() -> None:
    with pytest.raises(NonFiniteError, match=r"function: expected finite values, got nan at index"):
        cross(lambda x: (x.sum(1) - 1.0).sqrt(), [GRID] * 3)
    with pytest.raises(ShapeError, match=r"pivots: expected integers of shape \(count, 3\), got torch.int64"):
        cross(hilbert, [GRID] * 3, pivots=torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(
        ShapeError, match=r"pivots: expected indices within the shape \(20, 20\), got \[\[0, 20\]\]"
    ):
        cross(hilbert, [GRID] * 2, pivots=torch.tensor([[0, 20]]))
    for bad, message in (
        ({"rtol": 0.0}, r"rtol: expected a number between 0 and 1, got 0.0"),
        ({"max_rank": 0}, r"max_rank: expected an integer of at least 1, got 0"),
        ({"starts": 1.5}, r"starts: expected an integer of at least 1, got 1.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            CrossOptions(**bad)

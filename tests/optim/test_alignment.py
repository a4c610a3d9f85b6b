"""Maps between the interfaces of two trains, and the gauge of one near the other."""

import pytest
import torch

from ttnet.cores import contract
from ttnet.gauge import GaugeMaps, orthogonalize
from ttnet.optim.alignment import aligned, interface_maps
from ttnet.random import random_cores

SHAPE = (4, 3, 5, 4)


def cores_of(rank: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    return random_cores(SHAPE, rank, seed=seed, dtype=dtype)


def in_another_gauge(cores: tuple[torch.Tensor, ...]) -> tuple[tuple[torch.Tensor, ...], GaugeMaps]:
    generator = torch.Generator().manual_seed(3)
    left = tuple(torch.randn(c.shape[2], c.shape[2], generator=generator, dtype=c.dtype) for c in cores[:-1])
    maps = GaugeMaps(left=left, right=tuple(torch.linalg.inv(x) for x in left))
    return maps.apply(cores), maps


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_maps_of_a_change_of_gauge_are_exact(dtype):
    old = cores_of(3, 0, dtype)
    new, expected = in_another_gauge(old)
    found = interface_maps(old, new)
    for a, b in zip((*found.left, *found.right), (*expected.left, *expected.right), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_a_direction_that_is_new_has_no_map():
    old = cores_of(2, 0)
    left, right = old[0], old[1]
    fresh = torch.linalg.svd(left.reshape(4, 2))[0][:, 2:3].reshape(1, 4, 1)
    new = (torch.cat([left, fresh], 2), torch.cat([right, right[:1]], 0), *old[2:])
    maps = interface_maps(old, new)
    torch.testing.assert_close(maps.left[0], torch.eye(2, 3, dtype=torch.float64))
    torch.testing.assert_close(maps.right[1], torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_reference_in_another_gauge_becomes_the_reference(dtype):
    reference = cores_of(3, 1, dtype)
    for start in (in_another_gauge(reference)[0], orthogonalize(reference, 2)):
        for a, b in zip(aligned(start, reference).cores, reference, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("ranks", [2, 4, (4, 2, 3)])
def test_other_trains_keep_their_tensor_and_take_the_scales(ranks):
    reference = list(cores_of(3, 1))
    reference[1], reference[2] = 50 * reference[1], reference[2] / 50
    train = random_cores(SHAPE, ranks, seed=2, dtype=torch.float64)
    cut = aligned(train, reference)
    torch.testing.assert_close(contract(cut.cores), contract(train))
    sizes = [float(core.norm()) for core in cut.cores]
    assert sizes[1] > 50 * max(sizes[0], sizes[2])
    assert [core.shape for core in cut.cores] == [core.shape for core in train]
    assert all(a.shape == (3, c.shape[2]) for a, c in zip(cut.maps.left, cut.cores, strict=False))


def test_a_zero_reference_has_no_scales():
    reference = list(cores_of(3, 1))
    reference[0] = torch.zeros_like(reference[0])
    train = cores_of(3, 2)
    cut = aligned(train, reference)
    torch.testing.assert_close(contract(cut.cores), contract(train))
    zero = aligned([torch.zeros_like(core) for core in train], cores_of(3, 1))
    assert all(bool(torch.isfinite(core).all()) for core in zero.cores)
    assert not bool(contract(zero.cores).any())
    single = torch.arange(4.0).reshape(1, 4, 1)
    assert torch.equal(aligned([single], [torch.ones(1, 4, 1)]).cores[0], single)

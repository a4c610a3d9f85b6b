"""A function that is asked once for each entry."""

import numpy as np
import pytest
import torch

from ttnet.black_box import BlackBox
from ttnet.errors import ConfigError, DTypeError, NonFiniteError, ShapeError


def test_entries_are_computed_once() -> None:
    seen = []

    def function(indices):
        seen.extend(map(tuple, indices.tolist()))
        return indices.double().sum(1)

    box = BlackBox(function, (4, 5, 6))
    for _ in range(5):
        indices = torch.stack([torch.randint(n, (60,)) for n in (4, 5, 6)], 1)
        assert torch.equal(box(indices), indices.double().sum(1))
    assert len(seen) == len(set(seen)) == box.evaluations
    assert box.nonzero == sum(any(index) for index in set(seen))


def test_entries_that_share_a_label_are_told_apart() -> None:
    box = BlackBox(lambda indices: (indices * torch.tensor([100, 1])).sum(1).double(), (50, 50))
    box._multipliers[:] = 0
    indices = torch.cartesian_prod(torch.arange(50), torch.arange(50))
    for _ in range(2):
        assert torch.equal(box(indices), (indices * torch.tensor([100, 1])).sum(1).double())


@pytest.mark.parametrize("make", [torch.as_tensor, list, np.asarray])
def test_grids(make) -> None:
    grids = [make([0.0, 0.5, 1.0]), make([2.0, 3.0])]
    box = BlackBox(lambda x: x[:, 0] * x[:, 1], grids, batch_size=2)
    assert box.shape == (3, 2)
    assert box(torch.tensor([[1, 1], [2, 0], [0, 1]])).tolist() == [1.5, 2.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.int64, torch.bool])
def test_dtypes(dtype) -> None:
    box = BlackBox(lambda indices: indices[:, 0].to(dtype), (4,))
    box(torch.arange(4).unsqueeze(1))
    assert box.dtype == (dtype if dtype.is_floating_point or dtype.is_complex else torch.float32)


def test_numpy_values_and_late_complex_ones() -> None:
    box = BlackBox(lambda indices: np.sqrt(indices.numpy().sum(1)), (4, 4))
    assert torch.equal(box(torch.tensor([[1, 3]])), torch.tensor([2.0], dtype=torch.float64))
    late = BlackBox(lambda i: i.sum(1) * (1j if int(i.max()) > 2 else 1.0), (5,))
    assert late(torch.tensor([[1]])).tolist() == [1.0]
    assert late(torch.tensor([[1], [4]])).tolist() == [1.0, 4j]


def test_bad_functions_are_named() -> None:
    index = torch.tensor([[0, 1], [2, 3]])
    with pytest.raises(NonFiniteError, match=r"function: expected finite values, got nan at index \(2, 3\)"):
        BlackBox(lambda i: torch.where(i[:, 0] == 2, torch.nan, 0.0), (4, 4))(index)
    with pytest.raises(NonFiniteError, match=r"got inf at index \(0, 1\) \(grid point \(0.0, 0.0\)\)"):
        BlackBox(lambda x: 1 / x[:, 0], [torch.tensor([0.0]), torch.tensor([1.0, 0.0])])(index[:1])
    with pytest.raises(ShapeError, match=r"function: expected values of shape \(2,\) .* got \(2, 1\)"):
        BlackBox(lambda i: i[:, :1].float(), (4, 4))(index)
    with pytest.raises(ConfigError, match=r"function: expected something to call, got int"):
        BlackBox(3, (4, 4))  # pyright: ignore[reportArgumentType]


def test_bad_domains_are_named() -> None:
    with pytest.raises(ShapeError, match=r"shape: expected at least one mode"):
        BlackBox(torch.sum, (4, 0))
    with pytest.raises(
        ShapeError, match=r"domain: expected a grid of shape \(n,\) for mode 1, got shape \(2, 2\)"
    ):
        BlackBox(torch.sum, [torch.ones(3), torch.ones(2, 2)])
    with pytest.raises(
        DTypeError, match=r"domain: expected a grid of real floats for mode 0, got torch.int64"
    ):
        BlackBox(torch.sum, [torch.arange(3)])
    with pytest.raises(ConfigError, match=r"batch_size: .* got 0"):
        BlackBox(torch.sum, (4,), batch_size=0)

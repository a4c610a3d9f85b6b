import itertools
import math

import pytest
import torch

from ttnet import random_train
from ttnet.errors import ConfigError, DTypeError, NonFiniteError, ShapeError
from ttnet.optim import fit

F64, C128 = torch.float64, torch.complex128


def exact_entries(dtype, *, rank=2, device=None):
    """Entries of size 1 of a train of modes 4, and the train."""
    train = random_train((4,) * 4, rank, seed=0, dtype=dtype)
    train = train * (16 / float(train.norm()))
    indices = torch.randint(4, (800, 4), generator=torch.Generator().manual_seed(0))
    return indices.to(device), train.full()[tuple(indices.T)].to(device), train


@pytest.mark.parametrize("dtype", [torch.float32, F64, C128])
def test_exact_entries_end_at_roundoff(dtype, device):
    indices, values, train = exact_entries(dtype, device=device)
    result = fit(indices, values, shape=(4,) * 4, max_rank=3)
    assert result.converged
    assert len(result.trajectory) <= 30
    assert result.certificate <= 100 * torch.finfo(dtype).eps
    assert result.tensor_train.dtype == dtype
    assert max(result.tensor_train.ranks) == 2
    torch.testing.assert_close(result.tensor_train.full().cpu(), train.full(), rtol=1e-4, atol=1e-3)


def test_a_loss_of_roundoff_does_not_count_as_falling():
    # More unknowns than entries: all shown ones are met, and nothing is learned about those held out.
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(3, (18, 3), generator=generator).unique(dim=0)
    values = torch.randn(len(indices), generator=generator, dtype=F64)
    result = fit(indices, values, shape=(3,) * 3, max_rank=3)
    assert result.converged
    met = [report.loss_after is not None and report.loss_after < 1e-29 for report in result.trajectory]
    runs = [len(list(group)) for is_met, group in itertools.groupby(met) if is_met]
    assert runs
    assert max(runs) <= 6  # one sweep that arrives and two that stay, at each of two ranks


def test_zeros_are_fitted():
    indices, values, _ = exact_entries(F64)
    result = fit(indices, values * 0.0, shape=(4,) * 4)
    assert result.converged
    assert result.certificate == 0.0


def test_several_starts_end_at_the_first_exact_one():
    indices, values, _ = exact_entries(F64, rank=1)
    one, three = (fit(indices, values, shape=(4,) * 4, max_rank=2, starts=starts) for starts in (1, 3))
    assert three.certificate == one.certificate


@pytest.mark.parametrize("name", ["sweeps", "max_rank", "starts"])
def test_numbers_below_one_are_named(name):
    indices, values, _ = exact_entries(F64)
    with pytest.raises(ConfigError, match=f"{name}: expected at least 1, got 0"):
        fit(indices, values, **{name: 0})


def test_bad_entries_are_named():
    indices, values, _ = exact_entries(F64)
    with pytest.raises(NonFiniteError, match="values: expected finite numbers, got 1"):
        fit(indices, torch.where(torch.arange(800) == 3, math.nan, values))
    with pytest.raises(DTypeError, match=r"values: expected real or complex numbers, got torch.int64; use"):
        fit(indices, values.long())
    with pytest.raises(ShapeError, match="values: expected one for each row"):
        fit(indices[:0], values[:0])
    with pytest.raises(ShapeError, match="values: expected one for each row"):
        fit(indices[:, 0], values)
    with pytest.raises(ShapeError, match="indices from 0 in mode 0, got -1"):
        fit(indices - 1, values)
    with pytest.raises(ShapeError, match="expected -3 to 2 in column 0, got 3"):
        fit(indices, values, shape=(3,) * 4)
    with pytest.raises(DTypeError, match="booleans"):
        fit(indices.bool(), values)

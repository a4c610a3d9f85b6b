"""Powers of 2: exact at every scale, and nothing leaves the range of a dtype unseen."""

import math

import pytest
import torch

from tests.strategies import DTYPES
from ttnet import scaling
from ttnet.errors import NonFiniteError


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_power_is_split_off_and_restored_exactly(dtype):
    tensor = torch.randn(3, 4, dtype=dtype)
    info = torch.finfo(dtype)
    for scale in (info.tiny * 1e3, 1e-20, 1.0, 1e20, info.max / 1e3):
        scaled = tensor * scale
        found, exponent = scaling.split_power(scaled)
        assert 1e-2 < float(found.abs().amax()) < 1e2
        assert torch.equal(scaling.times_power_of_two(found, exponent), scaled)


def test_numbers_of_every_size():
    for tensor in (torch.zeros(3), torch.ones(3)):
        assert scaling.split_power(tensor) == (tensor, 0.0)
    # The magnitude of this one overflows.
    found, exponent = scaling.split_power(torch.full((1,), 3e38 + 3e38j, dtype=torch.complex64))
    assert exponent > 120
    assert bool(torch.isfinite(found.abs()).all())
    subnormal = torch.full((2,), 5e-324, dtype=torch.float64)
    found, exponent = scaling.split_power(subnormal)
    assert torch.equal(scaling.times_power_of_two(found, exponent), subnormal)
    assert not scaling.times_power_of_two(torch.ones(2), -1e5).any()
    assert bool(scaling.times_power_of_two(torch.ones(2), 1e5).isinf().all())
    assert scaling.exponential(-1e9) == 0
    assert math.isfinite(scaling.exponential(1e9))
    with pytest.raises(NonFiniteError, match="matrix: expected finite entries"):
        scaling.split_power(torch.full((2,), math.nan))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.bfloat16])
def test_a_norm_out_of_range_is_refused(dtype):
    info = torch.finfo(dtype)
    scaling.check_norm(0.0, -1e6, dtype)
    scaling.check_norm(1.0, math.log2(info.tiny), dtype)
    scaling.check_norm(1.0, math.floor(math.log2(info.max)) - 1, dtype)
    for exponent in (math.log2(info.tiny) - 1, math.log2(info.max) + 1, -1e5, 1e5):
        with pytest.raises(NonFiniteError, match=rf"train: .* range of {dtype} .*train\.normalized\(\)"):
            scaling.check_norm(1.0, exponent, dtype)

import pytest
import torch

from tests import dense, matrices
from ttnet.nn import paths
from ttnet.nn.paths import bucket, chunk_for, plan_for, run
from ttnet.tt_matrix import TTMatrix

SHAPES = {
    "one core": ((6,), (4,), ()),
    "two cores": ((3, 2), (2, 4), (3,)),
    "three cores": ((2, 3, 2), (3, 2, 4), (4, 3)),
    "modes and ranks of 1": ((1, 3, 2, 1), (2, 1, 3, 1), (1, 3, 1)),
    "four cores": ((2, 3, 2, 2), (3, 1, 2, 2), (2, 4, 3)),
}


def weight(shape, device, dtype=torch.float64):
    rows, columns, ranks = SHAPES[shape]
    return TTMatrix.random(rows, columns, ranks or 1, seed=0, dtype=dtype, device=device)


def every_plan(matrix, batch):
    """All trees that are considered, in both layouts, and not only the cheapest."""
    rows, columns, ranks = matrix.rows, matrix.columns, matrix.ranks
    return {
        paths._compile(path, rows, columns, ranks, batch, batch_last)
        for path in paths._candidates(rows, columns, ranks[1:-1], batch)
        for batch_last in ((False, True) if batch > 1 else (False,))
    }


@pytest.mark.parametrize("batch", [0, 1, 2, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_plan_is_the_product(shape, batch, device):
    matrix = weight(shape, device)
    x = torch.randn(batch, matrix.shape[1], dtype=torch.float64, device=device)
    bias = torch.randn(matrix.shape[0], dtype=torch.float64, device=device)
    expected = dense.array(x) @ matrices.full(matrix.cores).T + dense.array(bias)
    plans = {plan for size in (1, 64, 4096) for plan in every_plan(matrix, size) if size >= batch}
    assert len(plans) >= 2
    cores = matrix.as_train().cores
    for plan in plans:
        assert dense.distance(dense.array(run(plan, cores, x, bias)), expected) <= 1e-13 * (
            1 + dense.norm(expected)
        )
        assert run(plan, cores, x).is_contiguous()


def test_many_cores_are_contracted_too(device):
    matrix = TTMatrix.random((2,) * 12, (1, 2) * 6, 3, seed=0, dtype=torch.float64, device=device)
    x = torch.randn(5, matrix.shape[1], dtype=torch.float64, device=device)
    plan = plan_for(matrix.rows, matrix.columns, matrix.ranks[1:-1], bucket(5))
    torch.testing.assert_close(run(plan, matrix.as_train().cores, x), x @ matrix.full().T)


def test_the_order_follows_the_batch():
    modes = (8, 8, 16), (16, 8, 8)
    single = plan_for(*modes, (8, 8), 1)
    assert len(single.input_steps) == 3
    assert not single.weight_steps
    large = plan_for(*modes, (64, 64), 4096)
    assert large.is_dense
    assert not plan_for(*modes, (1, 1), 4096).is_dense


def test_a_plan_is_found_once(monkeypatch):
    searches = []
    original = paths._candidates
    monkeypatch.setattr(paths, "_candidates", lambda *args: searches.append(args) or original(*args))
    for _ in range(3):
        plan_for((2, 3, 5), (7, 2, 3), (3, 2), bucket(50))
    assert len(searches) == 1


@pytest.mark.parametrize(("batch", "size"), [(0, 1), (1, 1), (2, 4), (4, 4), (1000, 1024), (10**9, 4**8)])
def test_batches_are_put_in_buckets(batch, size):
    assert bucket(batch) == size


def test_the_cheapest_plan_counts_fewer_operations_than_dense():
    """Where ranks are small, the count of multiplications per input is below that of the dense matrix."""
    rows, columns, ranks = (16, 16), (16, 16), (2,)
    plan = plan_for(rows, columns, ranks, 64)
    assert not plan.is_dense
    assert sum(step.new * step.contracted * 16 for step in plan.input_steps) < 256 * 256


def test_large_intermediates_are_computed_in_chunks():
    modes, ranks = ((64, 64), (64, 64)), (16,)
    assert chunk_for(*modes, ranks, 1024) < 1024
    assert not plan_for(*modes, ranks, chunk_for(*modes, ranks, 1024)).is_dense
    assert chunk_for((4, 4), (4, 4), (2,), 64) == 64
    assert chunk_for(*modes, (500,), 4096) == 4096

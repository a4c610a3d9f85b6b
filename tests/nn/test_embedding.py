import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests import dense, matrices
from ttnet import Truncation, TTMatrix
from ttnet.errors import ConfigError, DTypeError, RankError, ShapeError
from ttnet.nn import TTEmbedding
from ttnet.optim import DMRGScheduler

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.complex128: 1e-13}
SIZES = {
    "one core": ((7,), (3,)),
    "two": ((3, 4), (2, 2)),
    "three": ((2, 3, 4), (3, 2, 2)),
    "five": ((2,) * 5, (1, 2) * 2 + (1,)),
}


def embedding(device="cpu", dtype=torch.float64, count=22, **options):
    return TTEmbedding(count, (3, 2, 2), 4, seed=0, dtype=dtype, device=device, **options)


def table(ours):
    """All rows from the cores, the padded ones included, without the library."""
    cores = [
        core.reshape(core.shape[0], m, n, core.shape[2])
        for core, m, n in zip(ours.cores.core_parameters(), ours.row_modes, ours.column_modes, strict=True)
    ]
    return matrices.full(cores)


# Values and gradients


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", SIZES)
def test_vectors_are_the_rows_of_the_table(sizes, dtype, device):
    ours = TTEmbedding(*SIZES[sizes], rank=3, seed=0, dtype=dtype, device=device)
    rows = table(ours)
    for shape in [(), (0,), (1,), (200,), (4, 5)]:
        indices = torch.randint(ours.num_embeddings, shape, device=device)
        y = ours(indices)
        assert y.shape == (*shape, ours.embedding_dim)
        assert y.dtype == dtype
        expected = rows[indices.cpu().numpy()]
        assert dense.distance(dense.array(y), expected) <= TOLERANCE[dtype] * (1 + dense.norm(expected))
        assert torch.equal(ours(indices.int()), y)


def test_numbers_that_are_no_product_are_padded(device):
    ours = TTEmbedding(997, 10, 3, seed=0, device=device)
    assert ours.row_modes == (10, 10, 10)
    assert ours.weight.shape == (997, 10)
    indices = torch.arange(997, device=device)
    torch.testing.assert_close(ours(indices), ours.weight)
    assert ours.tt_matrix().shape == (1000, 10)
    with pytest.raises(IndexError, match=r"^indices: expected values from 0 to 996, got 997"):
        ours(torch.tensor([3, 997], device=device))
    with pytest.raises(IndexError, match=r"got -1"):
        ours(torch.tensor([3, -1], device=device))


def test_gradients_are_those_of_the_table(device):
    ours = embedding(device, padding_idx=5)
    indices = torch.randint(22, (6, 7), device=device)
    indices[0, :2] = 5
    wanted = ours.cores.core_parameters()
    gradients = torch.autograd.grad((ours(indices) ** 3).sum(), wanted)
    expected = torch.autograd.grad((F.embedding(indices, ours.weight) ** 3).sum(), wanted)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_gradcheck(device):
    ours = TTEmbedding((2, 3), (2, 1), 2, seed=0, dtype=torch.float64, device=device)
    names = list(dict(ours.named_parameters()))
    indices = torch.tensor([0, 5, 5, 2], device=device)

    def function(*values):
        return torch.func.functional_call(ours, dict(zip(names, values, strict=True)), (indices,))

    values = [p.detach().clone().requires_grad_() for p in ours.parameters()]
    assert torch.autograd.gradcheck(function, values)
    assert torch.autograd.gradgradcheck(function, values)


def test_the_padding_vector_is_zero_and_without_gradient(device):
    ours = embedding(device, padding_idx=-1)
    assert ours.padding_idx == 21
    y = ours(torch.tensor([21, 3, 21], device=device))
    assert not y[[0, 2]].any()
    assert y[1].any()
    assert not ours.weight[21].any()
    y[[0, 2]].sum().backward()
    assert not any(core.grad.any() for core in ours.cores.core_parameters())


def test_each_distinct_part_is_contracted_once(monkeypatch):
    ours = embedding()
    sizes = []
    original = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: sizes.append(len(a)) or original(a, b))
    ours(torch.randint(22, (5000,)))
    assert sizes
    assert max(sizes) <= 22


def test_initial_entries_have_variance_1():
    rows = torch.stack([TTEmbedding(90, 32, 4, seed=seed).weight.detach() for seed in range(200)])
    assert rows.var().item() == pytest.approx(1, rel=0.1)
    ours = TTEmbedding(90, 32, 4, seed=1)
    other = TTEmbedding(90, 32, 4, seed=2)
    assert not torch.equal(ours.weight, other.weight)
    other.reset_parameters(seed=1)
    assert torch.equal(ours.weight, other.weight)


# Compressing


@pytest.mark.parametrize("rtol", [0.5, 0.1, 1e-12])
def test_error_of_a_compressed_table_is_within_its_bound(rtol, device):
    given = nn.Embedding(23, 12, padding_idx=2, dtype=torch.float64, device=device)
    ours, report = TTEmbedding.from_embedding(given, Truncation(rtol=rtol), return_report=True)
    assert ours.num_embeddings == 23
    error = float((ours.weight - given.weight).detach().norm())
    assert error <= rtol * float(given.weight.detach().norm()) * (1 + 1e-9) + 1e-12
    assert error <= report.error_bound
    indices = torch.tensor([[0, 2, 22]], device=device)
    torch.testing.assert_close(ours(indices), ours.weight[indices])
    assert not ours(indices)[0, 1].any()


def test_modes_may_be_given_where_a_table_is_compressed():
    given = nn.Embedding(10, 6)
    ours = TTEmbedding.from_embedding(given, Truncation(max_rank=2), row_modes=(3, 4), column_modes=(2, 3))
    assert (ours.row_modes, ours.column_modes, ours.cores.ranks) == ((3, 4), (2, 3), (1, 2, 1))


# Errors


def test_what_does_not_fit_is_refused():
    ours = embedding()
    with pytest.raises(DTypeError, match=r"^indices: expected int64 or int32, got torch.float32"):
        ours(torch.ones(3))
    with pytest.raises(ConfigError, match=r"^padding_idx: expected an index from -22 to 21, got 22"):
        embedding(padding_idx=22)
    with pytest.raises(ShapeError, match=r"^num_embeddings, embedding_dim: expected as many"):
        TTEmbedding((2, 3), (2, 3, 4), 2)
    with pytest.raises(RankError, match=r"^rank: "):
        TTEmbedding(4, 4, 0)
    with pytest.raises(DTypeError, match=r"^embedding: expected a torch.nn.Embedding, got Linear"):
        TTEmbedding.from_embedding(nn.Linear(2, 2), Truncation())
    with pytest.raises(ConfigError, match=r"^embedding: expected max_norm=None, got 1.0"):
        TTEmbedding.from_embedding(nn.Embedding(4, 4, max_norm=1.0), Truncation())
    with pytest.raises(ShapeError, match=r"^row_modes: expected modes whose product is at least 10"):
        TTEmbedding.from_embedding(nn.Embedding(10, 4), Truncation(), row_modes=(3, 3))
    with pytest.raises(ShapeError, match=r"^column_modes: expected modes whose product is 4, got \(3, 2\)"):
        TTEmbedding.from_embedding(nn.Embedding(10, 4), Truncation(), column_modes=(3, 2))


# Ways to run


def test_a_sweep_cuts_the_ranks(device):
    model = nn.Sequential(TTEmbedding(30, 8, 4, seed=0, device=device), nn.Linear(8, 3, device=device))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = DMRGScheduler(optimizer, model[0].cores, ranks={1: 2})
    indices = torch.arange(30, device=device)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(indices), indices % 3).backward()
        optimizer.step()
        scheduler.step()
    assert model[0].cores.ranks == (1, 2, 2, 1)
    torch.testing.assert_close(model[0](indices), model[0].weight)


def test_a_merged_bond_gives_the_same_vectors(device):
    ours = embedding(device, torch.bfloat16)
    indices = torch.arange(22, device=device)
    y = ours(indices)
    with ours.cores.merged(1) as block:
        other = ours(indices)
        assert other.dtype == torch.bfloat16
        torch.testing.assert_close(other, y, rtol=0.05, atol=0.05)
        other.float().sum().backward()
        assert block.grad.any()


def test_other_ranks_are_loaded_and_copies_are_independent(device):
    ours, other = embedding(device), TTEmbedding(22, (3, 2, 2), 2, seed=1, dtype=torch.float64, device=device)
    ours.load_state_dict(other.state_dict())
    assert torch.equal(ours.weight, other.weight)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(copied.weight, ours.weight)
    assert isinstance(ours.tt_matrix(), TTMatrix)
    assert repr(ours).startswith(
        "TTEmbedding(\n  22, 12, row_modes=(3, 3, 3), column_modes=(3, 2, 2), rank=2"
    )


def test_autocast_leaves_the_rows_alone(device):
    ours = embedding(device, torch.float32)
    indices = torch.arange(22, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(ours(indices), ours(indices.clone()))
        torch.testing.assert_close(ours(indices), ours.weight.detach())


def test_torch_compile_and_func(device):
    torch.compiler.reset()
    ours = embedding(device, padding_idx=1)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    for count in (3, 8, 9):
        indices = torch.randint(22, (count, 2), device=device)
        torch.testing.assert_close(compiled(indices), ours(indices))
    torch.testing.assert_close(torch.vmap(ours)(indices), ours(indices))
    compiled(indices).sum().backward()
    assert all(core.grad is not None for core in ours.cores.core_parameters())

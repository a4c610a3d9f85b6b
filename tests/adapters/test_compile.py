"""torch.compile of adapted models: no graph break, the numbers of eager mode, and nothing stale."""

import contextlib
import itertools

import pytest
import torch
from torch import nn

from tests.adapters.models import FAMILIES, TOKENS, randomize
from ttnet.adapters import Axis, MetaTT, TTAdapterConfig, attach
from ttnet.optim import DMRGScheduler
from ttnet.truncation import Truncation

pytestmark = pytest.mark.filterwarnings("default")  # of torch's own tracing


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    """Two layers of two matrices each."""

    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(width, 12), "down": nn.Linear(12, width)}) for _ in range(2)
        )

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["down"](layer["up"](x).tanh())
        return x


def block(variant="4d", *, random=True, **options):
    model = Block()
    adapter = attach(model, MetaTT(variant, rank=3, target_modules="all-linear", **options))
    return model, randomize(adapter) if random else adapter


def loss_and_gradients(model, adapter, *inputs, **kwargs):
    out = model(*inputs, **kwargs)
    loss = (out if isinstance(out, torch.Tensor) else out.logits).square().mean()
    return loss, torch.autograd.grad(loss, adapter.cores.core_parameters())


def assert_same(compiled, model, adapter, *inputs, **kwargs):
    for mode in (contextlib.nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with mode:
            loss, gradients = loss_and_gradients(compiled, adapter, *inputs, **kwargs)
            expected, wanted = loss_and_gradients(model, adapter, *inputs, **kwargs)
        half = isinstance(mode, torch.autocast)
        torch.testing.assert_close(loss, expected, rtol=0.02 if half else 1e-5, atol=1e-5)
        for one, other in zip(gradients, wanted, strict=True):
            error = (one - other).norm() / other.norm()
            assert error < (0.05 if half else 1e-4), error


@pytest.mark.parametrize(("name", "variant"), [("bert", "4d"), ("gpt2", "5d"), ("llama", "4d")])
def test_a_transformer_is_one_graph(name, variant):
    model = FAMILIES[name].build()
    adapter = randomize(attach(model, MetaTT(variant, rank=3, target_modules="all-linear")), 0.3)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss, gradients = loss_and_gradients(compiled, adapter, input_ids=TOKENS)
    expected, wanted = loss_and_gradients(model, adapter, input_ids=TOKENS)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_adapted_layer_breaks_no_graph():
    model, _ = block("5d", head_dim=4)
    explained = torch._dynamo.explain(model)(torch.randn(2, 5, 8))
    assert explained.graph_count == 1
    assert explained.graph_break_count == 0
    assert not explained.break_reasons


@pytest.mark.parametrize("variant", ["4d", "in matrix layer out"])
def test_numbers_are_those_of_eager_mode(variant):
    model, adapter = block(variant)
    x = torch.randn(2, 5, 8)
    assert_same(torch.compile(model, backend="aot_eager", fullgraph=True), model, adapter, x)


def test_a_whole_training_follows_that_of_eager_mode():
    losses = []
    for compile_it in (False, True):
        torch.manual_seed(3)
        model, adapter = block()
        optimizer = torch.optim.Adam(adapter.cores.core_parameters(), 1e-2)
        x, y = torch.randn(16, 8), torch.randn(16, 8)

        def loss_of(x, y, model=model):
            return nn.functional.mse_loss(model(x), y)

        if compile_it:
            loss_of = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
        found = []
        for _ in range(8):
            loss = loss_of(x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        losses.append(found)
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_step_with_its_backward_and_its_optimizer():
    torch.manual_seed(3)
    model, adapter = block()
    optimizer = torch.optim.SGD(adapter.cores.core_parameters(), 0.1)
    x = torch.randn(4, 8)

    @torch.compile(backend="aot_eager")
    def step(x):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    twin, other = block()
    twin.load_state_dict(model.state_dict())
    reference = torch.optim.SGD(other.cores.core_parameters(), 0.1)
    for _ in range(3):
        found = step(x)
        reference.zero_grad()
        wanted = twin(x).square().mean()
        wanted.backward()
        reference.step()
        torch.testing.assert_close(found, wanted.detach())
    for one, two in zip(adapter.cores.core_parameters(), other.cores.core_parameters(), strict=True):
        torch.testing.assert_close(one, two)


@torch._dynamo.config.patch(recompile_limit=32)
def test_nothing_is_stale_after_a_step_a_sweep_and_a_load(tmp_path):
    model, adapter = block()
    x = torch.randn(3, 8)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.Adam(adapter.cores.core_parameters(), 1e-2)
    scheduler = DMRGScheduler(optimizer, adapter.cores, ranks={1: 2})
    adapter.save(tmp_path)

    def agree():
        found = loss_and_gradients(compiled, adapter, x)
        torch.testing.assert_close(found, loss_and_gradients(model, adapter, x), rtol=1e-4, atol=1e-5)
        return found[0].item()

    def train():
        compiled(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    seen = [agree()]
    train()
    seen.append(agree())
    scheduler.step()
    assert adapter.cores.ranks == (1, 2, 2, 2, 1)
    seen.append(agree())
    train()
    seen.append(agree())
    adapter.load_weights(tmp_path)
    assert agree() == pytest.approx(seen[0])
    assert all(one != pytest.approx(other, rel=1e-6) for one, other in itertools.pairwise(seen))


@torch._dynamo.config.patch(recompile_limit=32)
def test_nothing_is_stale_in_inference():
    model, adapter = block()
    model.eval()
    x = torch.randn(3, 8)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        first = compiled(x)
        torch.testing.assert_close(first, model(x))
        with adapter.disabled():
            base = compiled(x)
            torch.testing.assert_close(base, model(x))
        assert not torch.allclose(base, first)
        adapter.merge()
        torch.testing.assert_close(compiled(x), first, rtol=1e-4, atol=1e-5)
        adapter.unmerge()
        torch.testing.assert_close(compiled(x), first, rtol=1e-4, atol=1e-5)
        adapter.cores.core_3.mul_(2.0)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
        adapter.cores.assign(adapter.tensor_train().truncate(Truncation(max_rank=1)))
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_dropout_draws_in_training_alone():
    # One reader for each x: then eager and compiled mode draw the same masks in the same order.
    model, adapter = block(dropout=0.5)
    x = torch.randn(4, 8)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    results = []
    for each in (compiled, model):
        torch.manual_seed(7)
        results.append(loss_and_gradients(each, adapter, x))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(compiled(x), compiled(x))
    model.eval()
    assert torch.equal(compiled(x), compiled(x))
    torch.testing.assert_close(compiled(x), model(x))


def test_selected_tasks_and_mixed_batches():
    model = Block()
    config = TTAdapterConfig(
        pattern="in layer task matrix out", rank=3, axes=[Axis("task", size=3)], target_modules="all-linear"
    )
    adapter = randomize(attach(model, config))
    x = torch.randn(3, 5, 8)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for task in (0, 2, torch.tensor([2, 0, 1]), torch.tensor([1, 1, 0]), 1):
        adapter.select(task=task)
        loss, gradients = loss_and_gradients(compiled, adapter, x)
        expected, wanted = loss_and_gradients(model, adapter, x)
        torch.testing.assert_close((loss, gradients), (expected, wanted), rtol=1e-4, atol=1e-5)
    adapter.add_task(3, like=1)
    adapter.select(task=3)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_checkpoints_inside_a_compiled_model():
    model, adapter = block()
    x = torch.randn(2, 8)

    def run(x):
        return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).square().mean()

    cores = adapter.cores.core_parameters()
    found = torch.autograd.grad(torch.compile(run, backend="aot_eager", fullgraph=True)(x), cores)
    torch.testing.assert_close(found, torch.autograd.grad(run(x), cores), rtol=1e-4, atol=1e-6)

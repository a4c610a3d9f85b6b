"""Gradients in reduced precision, accumulated and checkpointed, against plain float32; moves of dtype."""

import copy
import itertools

import pytest
import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.adapters.models import FAMILIES, TOKENS, logits, naive_delta, randomize
from ttnet.adapters import MetaTT, TTAdapterConfig, attach, workspace
from ttnet.errors import StateError
from ttnet.optim import DMRGScheduler

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

KINDS = ("4d", "5d", "mixed", "split", "factorized")


def build(kind, dropout=0.0):
    """A model of each way to read the train: its axes, a place for each sample, parts of a fused weight."""
    options = {"rank": 3, "alpha": 2.0, "dropout": dropout, "target_modules": "all-linear"}
    if kind == "split":
        model = FAMILIES["gpt2"].build()
        config = MetaTT("5d", **{**options, "target_modules": ("c_attn", "c_proj"), "split": "auto"})
    else:
        model = FAMILIES["llama"].build()
        if kind == "factorized":
            options |= {"target_modules": ("q_proj", "o_proj"), "factors": {"in": (4, 8), "out": (8, 4)}}
            config = TTAdapterConfig(pattern="in1 in2 layer matrix out1 out2", **options)
        else:
            tasks = {"tasks": ["a", "b"]} if kind == "mixed" else {}
            config = MetaTT("4+1d" if kind == "mixed" else kind, **options, **tasks)
    adapter = randomize(attach(model, config), 0.4)
    if kind == "mixed":
        adapter.select(task=["b", "a", "b"])
    quiet(model)
    return model, adapter


def quiet(model):
    """No dropout but the adapter's."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def loss_of(model, rows=slice(None)):
    return model(input_ids=TOKENS[rows]).logits.float().square().mean()


def gradients(model, adapter, loss=None):
    loss = loss_of(model) if loss is None else loss
    return torch.autograd.grad(loss, adapter.cores.core_parameters())


def assert_close(found, wanted, tolerance):
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_and_checkpoints_give_the_gradients_of_float32(kind):
    model, adapter = build(kind)
    plain, halves = gradients(model, adapter), {}
    for dtype, tolerance in ((torch.bfloat16, 0.4), (torch.float16, 0.1)):
        with torch.autocast("cpu", dtype=dtype):
            loss = loss_of(model)
        halves[dtype] = gradients(model, adapter, loss)
        assert_close(halves[dtype], plain, tolerance)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    quiet(model)
    assert_close(gradients(model, adapter), plain, 1e-5)
    for dtype, half in halves.items():
        with torch.autocast("cpu", dtype=dtype):
            loss = loss_of(model)
        assert_close(gradients(model, adapter, loss), half, 1e-5)  # recomputed in the same precision


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_replay_the_mask_of_dropout(kind):
    model, adapter = build(kind, dropout=0.3)
    model.train()
    results = []
    for checkpointed, half in itertools.product((False, True), repeat=2):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        torch.manual_seed(11)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = loss_of(model)
        torch.manual_seed(99)  # what the recomputation draws must not depend on it
        results.append((loss.detach(), gradients(model, adapter, loss)))
    for plain, replayed in ((0, 2), (1, 3)):
        assert torch.equal(results[plain][0], results[replayed][0])
        assert_close(results[replayed][1], results[plain][1], 1e-5)
    torch.manual_seed(12)
    assert not torch.equal(loss_of(model), results[0][0])


@pytest.mark.parametrize("kind", ["4d", "split"])
def test_dropout_is_a_mask_of_x(kind):
    model, adapter = build(kind, dropout=0.5)
    name = next(iter(adapter.layout.modules))
    module = model.get_submodule(name).train()
    x = torch.ones(7, module.in_features)
    torch.manual_seed(1)
    out = module(x)
    torch.manual_seed(1)
    masked = nn.functional.dropout(x, 0.5)
    with torch.no_grad():
        torch.testing.assert_close(out, module.base(x) + masked @ adapter.delta(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_gradients_are_those_of_the_whole_batch(kind):
    model, adapter = build(kind)
    plain = gradients(model, adapter)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    quiet(model)
    for row in range(3):
        if kind == "mixed":
            adapter.select(task=[["b", "a", "b"][row]])
        (loss_of(model, slice(row, row + 1)) / 3).backward()
    assert_close([core.grad for core in adapter.cores.core_parameters()], plain, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_scaler_skips_what_overflows_and_goes_on_after_a_sweep(dtype):
    model, adapter = build("4d")
    cores = adapter.cores.core_parameters()
    optimizer = torch.optim.AdamW(cores, 1e-2)
    scheduler = DMRGScheduler(optimizer, adapter.cores, ranks={1: 2})
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(factor=1.0):
        optimizer.zero_grad()
        for row in range(2):  # accumulates two batches
            with torch.autocast("cpu", dtype=dtype):
                loss = loss_of(model, slice(row, row + 1)) * factor / 2
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        found = [core.grad.clone() for core in cores]
        scaler.step(optimizer)
        scaler.update()
        return found

    model.zero_grad()
    for row in range(2):
        (loss_of(model, slice(row, row + 1)) / 2).backward()
    plain = [core.grad.clone() for core in cores]
    assert_close(step(), plain, 0.4 if dtype == torch.bfloat16 else 0.05)
    before, scale = [core.detach().clone() for core in cores], scaler.get_scale()
    assert not all(bool(gradient.isfinite().all()) for gradient in step(float("inf")))
    assert all(torch.equal(one, other) for one, other in zip(before, cores, strict=True))
    assert scaler.get_scale() < scale
    first = float(loss_of(model).detach())
    scheduler.step()
    assert adapter.cores.ranks == (1, 2, 2, 2, 1)
    for _ in range(5):
        step()
    assert float(loss_of(model).detach()) < first


def test_reentrant_checkpoints_are_refused_wherever_they_are_switched_on(tmp_path):
    remedy = r"gradient_checkpointing_kwargs=\{'use_reentrant': False\}"
    model, _ = build("4d")
    args = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
    )
    rows = [{"input_ids": row, "labels": row} for row in TOKENS]
    with pytest.raises(StateError, match=remedy):
        transformers.Trainer(model, args, train_dataset=rows).train()

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

        def forward(self, x, *, reentrant):
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=reentrant)
            return x

    bare = Bare()
    adapter = randomize(attach(bare, MetaTT(rank=2, target_modules="all-linear")))
    x = torch.randn(3, 6, requires_grad=True)
    with pytest.raises(StateError, match=remedy):
        bare(x, reentrant=True)
    bare(x, reentrant=False).sum().backward()
    assert all(bool(core.grad.any()) for core in adapter.cores.core_parameters())


def test_a_reentrant_checkpoint_around_the_whole_model_is_right():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    adapter = randomize(attach(model, MetaTT(rank=2, target_modules="all-linear")))
    x = torch.randn(3, 6, requires_grad=True)
    wanted = torch.autograd.grad(model(x).square().sum(), adapter.cores.core_parameters())
    checkpoint(model, x, use_reentrant=True).square().sum().backward()
    assert_close([core.grad for core in adapter.cores.core_parameters()], wanted, 1e-5)


MOVES = {
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
}


@pytest.mark.parametrize("move", MOVES)
def test_moves_after_attach(move):
    model, adapter = build("4d")
    model.eval()
    cores, name = adapter.cores.core_parameters(), adapter.layout.sites[-1].name
    optimizer = torch.optim.SGD(cores, 1e-3)
    with torch.no_grad():
        before = logits(model)  # fills the cache
    MOVES[move](model)
    dtype = model.dtype
    assert all(one is other for one, other in zip(cores, adapter.cores.core_parameters(), strict=True))
    assert all(core.dtype == dtype for core in adapter.cores.cores)
    assert model.get_submodule(name).weight.dtype == dtype
    assert model.get_submodule(name).adapter is adapter
    with torch.no_grad():
        out = logits(model)
        assert out.dtype == dtype
        assert (out.float() - before).norm() < 0.1 * before.norm()
        torch.testing.assert_close(
            adapter.delta(name).double(), naive_delta(adapter, name), rtol=1e-4, atol=1e-5
        )
        twin = copy.deepcopy(model)
        assert torch.equal(logits(twin), out)
    model(input_ids=TOKENS).logits.float().square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(logits(model), out)
        model.float()
        back = logits(model)
        assert back.dtype == torch.float32
        assert (back - before).norm() < 0.2 * before.norm()
        adapter.merge()
        torch.testing.assert_close(logits(model), back, rtol=1e-3, atol=1e-3)
        model.to(torch.bfloat16)
        adapter.unmerge()
        assert model.get_submodule(name).weight.dtype == torch.bfloat16
        assert (logits(model).float() - back).norm() < 0.1 * back.norm()


def test_cores_of_a_dtype_of_their_own():
    model = FAMILIES["llama"].build().to(torch.bfloat16)
    adapter = randomize(attach(model, MetaTT(rank=3, target_modules="all-linear")), 0.4)
    logits(model).float().square().mean().backward()
    assert {core.grad.dtype for core in adapter.cores.core_parameters()} == {torch.float32}
    adapter.cores.double()
    with torch.no_grad():
        assert logits(model).dtype == torch.bfloat16
    model.zero_grad()
    logits(model).float().square().mean().backward()
    assert {core.grad.dtype for core in adapter.cores.core_parameters()} == {torch.float64}


class Checkpointed(nn.Module):
    """Layers that are checkpointed one by one, or not."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.inside else layer(x)
            x = torch.tanh(x)
        return x


@pytest.mark.parametrize("where", ["layers", "model", "submodule"])
def test_pending_passes_are_recomputed_for_the_tasks_of_their_forward(where):
    model = Checkpointed(inside=False)
    config = MetaTT("in layer task out", rank=2, tasks=["a", "b"], target_modules="all-linear")
    adapter = randomize(attach(model, config))
    x, cores = torch.randn(3, 6), adapter.cores.core_parameters()

    def total(run):
        parts = []
        for power, task in enumerate(("a", "b", ["b", "a", "a"]), start=1):
            adapter.select(task=task)
            parts.append(run(x).square().sum() * power)
        adapter.select(task="b")
        return sum(parts)

    runs = {
        "layers": model,
        "model": lambda x: checkpoint(model, x, use_reentrant=False),
        "submodule": lambda x: checkpoint(model.layers[1], x, use_reentrant=False),
    }
    plain = torch.autograd.grad(total(model.layers[1] if where == "submodule" else model), cores)
    model.inside = where == "layers"
    assert_close(torch.autograd.grad(total(runs[where]), cores), plain, 1e-5)
    assert not adapter.workspace._passes  # nothing of a pass outlives its graph


def test_a_recomputation_of_an_unknown_selection_is_refused(monkeypatch):
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 6)])

        def forward(self, x):
            def inner(x):
                return checkpoint(self.layers[0], x, use_reentrant=False)

            return checkpoint(inner, x, use_reentrant=False)

    model = Nested()
    config = MetaTT("in task out", rank=2, tasks=["a", "b"], target_modules="all-linear")
    adapter = randomize(attach(model, config))
    x, cores = torch.randn(3, 6, requires_grad=True), adapter.cores.core_parameters()
    adapter.select(task="a")
    wanted = torch.autograd.grad(model.layers[0](x).square().sum(), cores)
    loss = model(x).square().sum()
    adapter.select(task="b")
    other = torch.autograd.grad(model.layers[0](x).sum(), cores)
    both = [one + two for one, two in zip(wanted, other, strict=True)]
    assert_close(torch.autograd.grad(loss + model(x).sum(), cores), both, 1e-5)
    with pytest.raises(StateError, match="not known for which selection"):
        checkpoint(model, x, use_reentrant=True).sum().backward()
    adapter.select(task="a")
    monkeypatch.setattr(workspace, "_top_hooks", None)  # as torch < 2.8
    loss = model(x).square().sum()
    adapter.select(task="b")
    assert_close(torch.autograd.grad(loss, cores), wanted, 1e-5)
    adapter.select(task="a")
    loss = model(x).square().sum()
    model.layers[0](x)
    adapter.select(task="b")
    with pytest.raises(StateError, match="call backward before the next select"):
        loss.backward()

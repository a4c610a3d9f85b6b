"""The ways a model is run: gradient checkpointing, autocast, half precision, torch.compile, torch.func."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from tests.adapters.models import FAMILIES, TOKENS, adapted, logits, randomize
from ttnet.adapters import MetaTT, attach
from ttnet.errors import StateError

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")


def gradients(model, adapter):
    adapter.cores.zero_grad()
    logits(model).square().sum().backward()
    return [core.grad.clone() for core in adapter.cores.core_parameters()]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mpnet"])  # MPNet has no checkpointing
@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_checkpointing_gives_the_same_gradients(name, targets):
    model, adapter = adapted(name, targets=targets)
    expected = gradients(model, adapter)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    for _ in range(2):
        for found, wanted in zip(gradients(model, adapter), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert adapter.workspace._held is None
    loss = logits(model).square().sum()
    copy.deepcopy(model)  # what a later recomputation needs has a graph, which cannot be copied
    with torch.no_grad():
        logits(model)
    adapter.cores.zero_grad()
    loss.backward()
    torch.testing.assert_close(adapter.cores.core_3.grad, expected[3], rtol=1e-4, atol=1e-5)
    total = logits(model).square().sum() + logits(model).square().sum()
    adapter.cores.zero_grad()
    total.backward()
    torch.testing.assert_close(adapter.cores.core_3.grad, 2 * expected[3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_reentrant_checkpointing_is_refused(name):
    model, adapter = adapted(name)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    model.train()
    with pytest.raises(StateError, match="use_reentrant"):
        logits(model)
    assert not adapter.workspace.inside
    model.eval()
    logits(model).sum().backward()


class Parallel(nn.Module):
    """Two blocks that read the same x, each checkpointed on its own."""

    def __init__(self, checkpointed):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)}) for _ in range(2)]
        )
        self.checkpointed = checkpointed

    def forward(self, x):
        for layer in self.layers:
            blocks = [lambda x, part=layer[key]: part(x).sin() * part(x) for key in ("a", "b")]
            if self.checkpointed:
                x = sum(checkpoint(block, x, use_reentrant=False) for block in blocks)
            else:
                x = sum(block(x) for block in blocks)
        return x


def test_x_a_is_not_shared_across_checkpoints():
    x = torch.randn(5, 6)
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        model = Parallel(checkpointed)
        adapter = randomize(attach(model, MetaTT(rank=2, target_modules="all-linear")))
        model(x).square().sum().backward()
        results.append([core.grad for core in adapter.cores.core_parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_autocast(name):
    model, adapter = adapted(name, targets="all-linear")
    with torch.no_grad():
        full = logits(model)
    seen = []
    handle = model.get_submodule(FAMILIES[name].query).register_forward_hook(
        lambda *a: seen.append(a[2].dtype)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = logits(model)
        with torch.no_grad():
            inner = logits(model)
    handle.remove()
    assert seen == [torch.bfloat16, torch.bfloat16]
    torch.testing.assert_close(out.float(), inner.float())
    assert (out.float() - full).abs().max() < 0.1 * full.abs().max() + 0.05
    out.float().square().sum().backward()
    found = [core.grad.clone() for core in adapter.cores.core_parameters()]
    for one, other in zip(found, gradients(model, adapter), strict=True):
        assert one.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.8


def test_factors_are_cast_once_a_step():
    model, _ = adapted("bert", rank=5)
    casts = []

    class Casts(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and args[0].shape in ((32, 5), (4, 5, 32)):
                casts.append(args[0].shape)
            return function(*args, **(kwargs or {}))

    with torch.autocast("cpu", dtype=torch.bfloat16), Casts(), torch.no_grad():
        logits(model)
        logits(model)
    assert casts == [(32, 5), (4, 5, 32)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_dtype(dtype):
    model = FAMILIES["bert"].build().to(dtype)
    adapter = randomize(attach(model, MetaTT(rank=3, target_modules=["query", "value"])))
    assert adapter.cores.core_0.dtype == torch.float32
    out = logits(model)
    assert out.dtype == dtype
    out.sum().backward()
    assert adapter.cores.core_0.grad.dtype == torch.float32
    with torch.no_grad():
        out = logits(model)
        adapter.merge()
        torch.testing.assert_close(
            logits(model), out, rtol=0.1, atol=0.1 if dtype == torch.bfloat16 else 1e-6
        )


def test_converting_an_adapted_model():
    model, adapter = adapted("bert")
    with torch.no_grad():
        before = logits(model)
        model.to(torch.bfloat16)
        assert adapter.cores.core_0.dtype == torch.bfloat16
        assert (logits(model).float() - before).abs().max() < 0.1 * before.abs().max()
    logits(model).sum().backward()
    assert adapter.cores.core_1.grad is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_jvp_through_the_cores():
    model, adapter = adapted("bert")
    model.double().set_attn_implementation("eager")
    cores = {f"tt_adapter.cores.core_{k}": core.detach() for k, core in enumerate(adapter.cores.cores)}
    tangents = {name: torch.randn_like(core) for name, core in cores.items()}

    def run(values):
        return torch.func.functional_call(model, values, kwargs={"input_ids": TOKENS}).logits

    _, tangent = torch.func.jvp(run, (cores,), (tangents,))
    step = 1e-6
    moved = [{n: c + sign * step * tangents[n] for n, c in cores.items()} for sign in (1, -1)]
    with torch.no_grad():
        difference = (run(moved[0]) - run(moved[1])) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-5, atol=1e-7)


def test_second_derivatives():
    model, adapter = adapted("bert")
    model.double()
    core = adapter.cores.core_2
    direction = torch.randn_like(core)
    with sdpa_kernel(SDPBackend.MATH):
        (gradient,) = torch.autograd.grad(logits(model).square().sum(), core, create_graph=True)
        (product,) = torch.autograd.grad((gradient * direction).sum(), core)
    step = 1e-6
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            core.add_(direction, alpha=sign * step)
        found.append(torch.autograd.grad(logits(model).square().sum(), core)[0])
        with torch.no_grad():
            core.sub_(direction, alpha=sign * step)
    torch.testing.assert_close(product, (found[0] - found[1]) / (2 * step), rtol=1e-4, atol=1e-6)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(8, 8) for name in ("query", "key", "value")}) for _ in range(2)
        )

    def forward(self, x):
        for layer in self.layers:
            query, key, value = (layer[name](x) for name in ("query", "key", "value"))
            x = x + (query @ key.mT).softmax(-1) @ value
        return x


@pytest.mark.filterwarnings("default")
def test_compiled_model_computes_the_same():
    model = Attention().double()
    adapter = randomize(attach(model, MetaTT(rank=3, target_modules="all-linear")))
    model.double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    cores = adapter.cores.core_parameters()
    expected = torch.autograd.grad(model(x).square().sum(), cores)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for found, wanted in zip(torch.autograd.grad(compiled(x).square().sum(), cores), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
        adapter.cores.core_0.mul_(2.0)
        torch.testing.assert_close(compiled(x), model(x))
        adapter.merge()
        torch.testing.assert_close(compiled(x), model(x))

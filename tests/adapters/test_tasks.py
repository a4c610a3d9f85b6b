"""Axes that are selected when the model runs: selecting, adding, training one alone, heads, files."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.adapters.models import FAMILIES, TOKENS, bert, dense_model, logits, naive_module_delta, randomize
from ttnet.adapters import Axis, MetaTT, TTAdapterConfig, attach, load, read
from ttnet.errors import ConfigError, PatternError, ShapeError, StateError
from ttnet.optim import DMRGScheduler, TwoSiteDMRG

TASKS = ["cola", "rte", "mrpc"]


def with_tasks(name="bert", variant="4+1d", *, random=True, tasks=TASKS, **options):
    model = FAMILIES[name].build()
    targets = options.pop("target_modules", FAMILIES[name].query_value)
    config = MetaTT(variant, rank=3, alpha=2.0, tasks=tasks, target_modules=targets, **options)
    adapter = attach(model, config)
    return model, randomize(adapter) if random else adapter


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "variant",
    ["4+1d", "in (layer task) matrix out", "in task layer matrix head out", "in layer (task matrix) out"],
)
def test_each_task_equals_the_dense_twin(name, variant):
    model, adapter = with_tasks(name, variant, target_modules="all-linear")
    model.double()
    for task in TASKS:
        adapter.select(task=task)
        with torch.no_grad():
            torch.testing.assert_close(logits(model), logits(dense_model(model, adapter, task=task)))


@pytest.mark.parametrize("variant", ["4+1d", "in (layer task) matrix head out"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_each_sample_reads_its_own_task(name, variant):
    model, adapter = with_tasks(name, variant, target_modules="all-linear")
    model.double()
    adapter.select(task=["mrpc", "cola", "mrpc"])
    out = logits(model)
    gradients = torch.autograd.grad(out.square().sum(), adapter.cores.core_parameters())
    total = [torch.zeros_like(core) for core in adapter.cores.core_parameters()]
    for row, task in enumerate(["mrpc", "cola", "mrpc"]):
        adapter.select(task=task)
        own = model(input_ids=TOKENS[row : row + 1]).logits
        torch.testing.assert_close(out[row : row + 1], own)
        for sum_, each in zip(
            total, torch.autograd.grad(own.square().sum(), adapter.cores.core_parameters()), strict=True
        ):
            sum_ += each
    for one, other in zip(gradients, total, strict=True):
        torch.testing.assert_close(one, other)
    adapter.select(task=torch.tensor([2, 0, 2]))
    with torch.no_grad():
        torch.testing.assert_close(logits(model), out)


def test_tokens_may_be_flattened_and_beams_are_told():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x, flatten):
            return self.inner(x.flatten(0, 1)).unflatten(0, x.shape[:2]) if flatten else self.inner(x)

    model = Flat()
    config = TTAdapterConfig(
        pattern="in task out", rank=2, axes=[Axis("task", size=2)], target_modules="all-linear"
    )
    adapter = randomize(attach(model, config))
    x = torch.randn(3, 5, 4)
    adapter.select(task=torch.tensor([1, 0, 1]))
    torch.testing.assert_close(model(x, True), model(x, False))
    with pytest.raises(ShapeError, match=r"3 samples.*batch of 6.*repeat_interleave"):
        model(torch.randn(6, 5, 4), False)


class Routed(nn.Module):
    """Each token of (batch, tokens, width) is sent to one of two experts."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x):
        flat = x.reshape(-1, 4)
        picked, out = (flat[:, 0] > 0).long(), torch.zeros_like(flat)
        for k, expert in enumerate(self.experts):
            out[picked == k] = expert(flat[picked == k])
        return out.view_as(x)


@pytest.mark.parametrize("grad", [True, False])
def test_a_batch_whose_samples_are_not_known_is_refused(grad):
    model = nn.Sequential(nn.Linear(4, 4))
    config = TTAdapterConfig(
        pattern="in task out", rank=2, axes=[Axis("task", size=2)], target_modules="all-linear"
    )
    adapter = randomize(attach(model, config))
    adapter.select(task=torch.tensor([1, 0]))
    with torch.set_grad_enabled(grad):
        model(torch.randn(2, 4))
        for size in (4, 0, 1):
            with pytest.raises(ShapeError, match=rf"2 samples, the model got a batch of {size}"):
                model(torch.randn(size, 4))
        with pytest.raises(ShapeError, match="'0' got a batch of 4 tokens"):
            model[0](torch.randn(4, 4))
        with pytest.raises(ShapeError, match="the model got a batch of 4"):
            model(input=torch.randn(4, 4))
        model = nn.Sequential(Routed())
        adapter = randomize(attach(model, config))
        x = torch.randn(2, 4, 4)
        x[:, :2, 0], x[:, 2:, 0] = -1.0, 1.0  # each expert gets as many tokens as samples, or a multiple
        adapter.select(task=[1, 0])
        with pytest.raises(ShapeError, match=r"experts\.0' got a batch of 4 tokens.*exclude_modules"):
            model(x)
        with pytest.raises(ShapeError, match="got a batch of 2 tokens"):
            model(x[:, 1:3])
        adapter.select(task=1)
        model(x)


@pytest.mark.filterwarnings("default")
def test_compiled_batches_of_mixed_tasks():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    config = TTAdapterConfig(
        pattern="in layer task out", rank=2, axes=[Axis("task", size=3)], target_modules="all-linear"
    )
    adapter = randomize(attach(model, config))
    x = torch.randn(3, 5, 4)
    torch._dynamo.reset()
    graphs = []

    def backend(module, inputs):  # noqa: ARG001
        graphs.append(module)
        return module

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for selected in ([1, 0, 1], [2, 2, 0], [0, 1, 2]):
        adapter.select(task=torch.tensor(selected))
        out = compiled(x)
        torch.testing.assert_close(out, model(x))
    assert len(graphs) == 1  # the places are data
    adapter.select(task=2)
    torch.testing.assert_close(compiled(x), model(x))


def test_checkpoints_recompute_with_the_tasks_of_their_forward():
    model, adapter = with_tasks("bert")
    adapter.select(task=["mrpc", "cola", "rte"])
    cores = adapter.cores.core_parameters()
    expected = torch.autograd.grad(logits(model).square().sum(), cores)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for module in model.modules():
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    loss = logits(model).square().sum()
    adapter.select(task="rte")
    for one, other in zip(torch.autograd.grad(loss, cores), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_users_own_axes_and_more_than_one():
    model = bert()
    config = TTAdapterConfig(
        pattern="in layer expert task matrix out",
        axes=[Axis("expert", size=4), Axis("task", labels=["a", "b"])],
        rank=3,
        target_modules=["query", "value"],
    )
    adapter = randomize(attach(model, config))
    model.double()
    assert adapter.layout.shape == (32, 2, 4, 2, 2, 32)
    adapter.select(expert=3)
    with pytest.raises(StateError, match=r"task: nothing is selected; call adapter\.select\(task="):
        logits(model)
    adapter.select(task="b")
    with torch.no_grad():
        torch.testing.assert_close(logits(model), logits(dense_model(model, adapter, expert=3, task="b")))
        adapter.select(expert=torch.tensor([3, 1, 0]))
        mixed = logits(model)
        for row, expert in enumerate([3, 1, 0]):
            with adapter.selected(expert=expert):
                torch.testing.assert_close(logits(model)[row], mixed[row])
    torch.testing.assert_close(logits(model), mixed)
    name = FAMILIES["bert"].query
    torch.testing.assert_close(
        adapter.delta(name, expert=1), naive_module_delta(adapter, name, expert=1, task="b")
    )
    assert len(adapter.matrix_errors(adapter.tensor_train(), adapter.tensor_train())) == 4 * 8


@pytest.mark.parametrize(
    ("places", "error", "message"),
    [
        ({"task": "sst2"}, ConfigError, "task: expected one of .*'sst2'"),
        ({"expert": 1}, ConfigError, "'expert' is no axis of pattern .*it has task"),
        ({"layer": 1}, ConfigError, "'layer' is no axis"),
        ({"task": torch.tensor([0, 3])}, ConfigError, r"indices from 0 to 2, got \[3\]"),
        ({"task": torch.tensor([0.5])}, ShapeError, "integer indices"),
        ({"task": []}, ShapeError, "a label for each sample"),
    ],
)
def test_a_bad_selection_is_refused_and_the_old_one_stays(places, error, message):
    model, adapter = with_tasks()
    adapter.select(task="rte")
    with torch.no_grad():
        before = logits(model)
        with pytest.raises(error, match=message):
            adapter.select(**places)
        assert torch.equal(logits(model), before)


def test_nothing_selected_is_refused_and_one_place_needs_no_choice():
    model, adapter = with_tasks()
    with pytest.raises(StateError, match=r"nothing is selected"):
        logits(model)
    with pytest.raises(StateError, match=r"nothing is selected"):
        adapter.factors(FAMILIES["bert"].query)
    with torch.no_grad(), adapter.disabled():
        logits(model)
    model, _ = with_tasks(tasks=["only"])
    logits(model)


@pytest.mark.parametrize("pattern", ["task in layer matrix out", "in layer matrix out task"])
def test_a_run_time_axis_outside_the_middle_is_refused(pattern):
    with pytest.raises(PatternError, match=r"'task'.*between the last 'in' axis"):
        attach(bert(), MetaTT(pattern, tasks=TASKS))


def test_merging_takes_the_selected_task():
    model, adapter = with_tasks()
    adapter.select(task=["rte", "cola", "rte"])
    with pytest.raises(StateError, match=r"single dW"):
        adapter.merge()
    adapter.select(task="rte")
    with torch.no_grad():
        before = logits(model)
        adapter.merge()
        torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-4)
        with pytest.raises(StateError, match="unmerge"):
            adapter.select(task="cola")
        adapter.unmerge()
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("variant", ["4+1d", "in (layer task) matrix out", "in (task matrix) layer head out"])
@pytest.mark.parametrize("like", [None, "rte"])
def test_a_new_task_leaves_the_others_bits(variant, like):
    model, adapter = with_tasks("bert", variant)
    parameters = adapter.cores.core_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    with torch.no_grad():
        adapter.select(task="rte")
        old = {task: select_and_run(model, adapter, task) for task in TASKS}
    logits(model).sum().backward()
    optimizer.step()
    with torch.no_grad():
        old = {task: select_and_run(model, adapter, task) for task in TASKS}
    adapter.add_task("qnli", like=like, optimizer=optimizer)
    assert adapter.cores.core_parameters() == parameters
    with torch.no_grad():
        for task, out in old.items():
            assert torch.equal(select_and_run(model, adapter, task), out)
        new = select_and_run(model, adapter, "qnli")
    if like is not None:
        assert torch.equal(new, old["rte"])
    adapter.cores.zero_grad()
    logits(model).sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert not torch.equal(select_and_run(model, adapter, "qnli"), new)
    with pytest.raises(ConfigError, match="new label"):
        adapter.add_task("qnli")


def select_and_run(model, adapter, task):
    adapter.select(task=task)
    return logits(model)


def test_initial_slices_of_a_new_task():
    _, adapter = with_tasks()
    adapter.add_task("one")
    adapter.add_task("two", init="zero")
    adapter.add_task("three", init="normal")
    core = adapter.cores.core_2
    assert torch.equal(core[:, 3], torch.eye(3))
    assert torch.count_nonzero(core[:, 4]) == 0
    assert 0.1 < core[:, 5].std() < 2
    with pytest.raises(ConfigError, match="like copies"):
        adapter.add_task("four", like="rte", init="zero")
    with pytest.raises(ConfigError, match="like: expected one of"):
        adapter.add_task("four", like="none")
    with pytest.raises(ConfigError, match="no axis"):
        adapter.add_task("four", axis="layer")


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.3),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.3, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.3, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.3, nesterov=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05, weight_decay=0.3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.9),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("variant", ["4+1d", "in (layer task) matrix out"])
def test_training_one_task_moves_nothing_else(kind, variant):
    model, adapter = with_tasks("bert", variant, random=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[kind](parameters)

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=False)
            logits(model).square().mean().backward()
            optimizer.step()

    for task in TASKS:
        adapter.select(task=task)
        train(2)
    with torch.no_grad():
        old = {task: select_and_run(model, adapter, task) for task in TASKS}
    core = adapter.cores.core_parameters()[adapter.layout.pattern.find("task")]
    moments = {k: v.clone() for k, v in optimizer.state[core].items() if isinstance(v, torch.Tensor)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits(model).square().mean().backward()  # a gradient of everything is pending
    adapter.train_only("rte")
    train(4)
    after = model.state_dict()
    names = [name for name in before if not torch.equal(before[name], after[name])]
    assert names == [f"tt_adapter.cores.core_{adapter.layout.pattern.find('task')}"]
    others = [k for k in range(core.shape[1]) if k % 3 != 1]
    assert torch.equal(core[:, others], before[names[0]][:, others])
    for key, value in moments.items():
        if value.shape == core.shape:
            assert torch.equal(optimizer.state[core][key][:, others], value[:, others])
    with torch.no_grad():
        assert torch.equal(select_and_run(model, adapter, "cola"), old["cola"])
        assert torch.equal(select_and_run(model, adapter, "mrpc"), old["mrpc"])
        assert not torch.equal(select_and_run(model, adapter, "rte"), old["rte"])
    adapter.train_all()
    adapter.select(task="cola")
    train(1)
    moved = [name for name in before if not torch.equal(after[name], before[name])]
    assert len(moved) > 1


def test_sweeps_are_refused_while_one_task_is_trained():
    model, adapter = with_tasks()
    optimizer = torch.optim.AdamW(adapter.cores.parameters(), lr=0.01)
    scheduler = DMRGScheduler(optimizer, adapter.cores, ranks={0: 3, 1: 2})
    adapter.train_only(task="rte")
    with pytest.raises(StateError, match=r"train_only\(task='rte'\) is on.*train_all"):
        scheduler.step()
    with pytest.raises(StateError, match="train_all"):
        TwoSiteDMRG(adapter.cores).sweep(lambda: logits(model).square().sum())
    with pytest.raises(StateError, match="train_all"), adapter.cores.merged(0):
        pass
    with pytest.raises(StateError, match="train_all"):
        adapter.add_task("new")
    adapter.train_all()
    assert scheduler.step().ranks_after == (2, 2, 2, 2)


def test_a_copy_confines_its_own_cores():
    model, adapter = with_tasks()
    adapter.train_only("rte")
    twin = copy.deepcopy(model)
    core = twin.tt_adapter.cores.core_2
    before, mine = core.detach().clone(), adapter.cores.core_2.detach().clone()
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    logits(twin).square().sum().backward()
    optimizer.step()
    assert torch.equal(core[:, [0, 2]], before[:, [0, 2]])
    assert not torch.equal(core[:, 1], before[:, 1])
    assert torch.equal(adapter.cores.core_2, mine)


def test_training_one_task_of_a_zero_adapter_is_refused():
    _, adapter = with_tasks(random=False)
    with pytest.raises(StateError, match=r"core 0 \(axis 'in'\) is shared and still zero"):
        adapter.train_only("rte")
    assert adapter.trained_only is None
    with pytest.raises(ConfigError, match="train_only: expected one of"):
        adapter.train_only("sst2")
    with pytest.raises(ConfigError, match="name a place"):
        adapter.train_only()


def test_each_task_has_its_head():
    torch.manual_seed(1)
    model, adapter = with_tasks(heads_by="task")
    base = copy.deepcopy(model)
    base.tt_adapter.select(task="rte")
    base.tt_adapter.detach()
    assert isinstance(base.classifier, nn.Linear)
    with torch.no_grad():
        for place in model.classifier.places:
            place.weight.normal_()
        alone = {task: select_and_run(model, adapter, task) for task in TASKS}
        adapter.select(task=["mrpc", "rte", "cola"])
        mixed = logits(model)
        for row, task in enumerate(["mrpc", "rte", "cola"]):
            torch.testing.assert_close(mixed[row], alone[task][row])
        with adapter.disabled():
            assert isinstance(model.classifier, nn.Linear)
            assert torch.equal(logits(model), logits(base))
    adapter.train_only("rte")
    assert [p.requires_grad for p in model.classifier.parameters()] == [False] * 2 + [True] * 2 + [False] * 2
    adapter.train_all()
    assert all(p.requires_grad for p in model.classifier.parameters())
    adapter.add_task("new", like="mrpc")
    with torch.no_grad():
        assert torch.equal(select_and_run(model, adapter, "new"), alone["mrpc"])
    head = model.classifier.places[3]
    adapter.detach(merge=True)
    assert model.classifier is head


@pytest.mark.parametrize("heads_by", [None, "task"])
def test_one_file_holds_all_tasks(tmp_path, heads_by):
    torch.manual_seed(2)
    model, adapter = with_tasks(heads_by=heads_by)
    adapter.add_task("new")
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.normal_()
        randomize(adapter)
        tasks = [*TASKS, "new"]
        outs = {task: select_and_run(model, adapter, task) for task in tasks}
    adapter.save(tmp_path)
    assert read(tmp_path).layout.runtime[0].labels == tuple(tasks)
    torch.manual_seed(2)
    fresh = bert()
    other = load(fresh, tmp_path)
    with torch.no_grad():
        for task in tasks:
            assert torch.equal(select_and_run(fresh, other, task), outs[task])
    other.load_weights(tmp_path)
    other.add_task("another", like="new")
    with pytest.raises(ShapeError, match=r"core_2: expected shape \(3, 5, 3\)"):
        other.load_weights(tmp_path)


def test_heads_need_an_axis_that_is_selected():
    with pytest.raises(ConfigError, match="heads_by"):
        MetaTT("4d", heads_by="task")
    with pytest.raises(ConfigError, match="'layer' is no axis"):
        attach(bert(), MetaTT("4+1d", tasks=TASKS, heads_by="layer"))
    with pytest.raises(ConfigError, match=r"write tasks=\['rte'\]"):
        MetaTT("4+1d", tasks="rte")


def test_a_new_head_is_trained_by_the_optimizer_of_the_others():
    model, adapter = with_tasks(heads_by="task")
    optimizer = torch.optim.AdamW(adapter.parameter_groups(1e-2, head_lr=3e-2))
    adapter.select(task="rte")
    logits(model).sum().backward()
    optimizer.step()
    adapter.add_task("new", optimizer=optimizer)
    adapter.select(task="new")
    head = model.classifier.places[3]
    before = head.weight.detach().clone()
    optimizer.zero_grad()
    logits(model).sum().backward()
    optimizer.step()
    assert not torch.equal(head.weight, before)
    (group,) = [g for g in optimizer.param_groups if any(p is head.weight for p in g["params"])]
    assert group["lr"] == 3e-2


def test_a_new_head_is_where_the_others_are_and_starts_as_the_original():
    model, adapter = with_tasks(heads_by="task")
    original = model.classifier.places[0].weight.detach().clone()
    with torch.no_grad():
        model.classifier.places[0].weight.add_(1.0)
    with adapter.disabled():
        adapter.add_task("new")
    assert torch.equal(model.classifier.places[3].weight, original)
    model.double()
    adapter.add_task("another")
    adapter.select(task="another")
    assert logits(model).dtype == torch.float64


def test_a_selection_is_a_copy_and_arrays_are_refused():
    model, adapter = with_tasks()
    places, labels = torch.tensor([1, 0, 2]), ["rte", "cola", "mrpc"]
    for value in (places, labels):
        adapter.select(task=value)
        with torch.no_grad():
            out = logits(model)
        value[0] = value[2]
        with adapter.selected(task="cola"):
            pass
        with torch.no_grad():
            assert torch.equal(logits(model), out)
    with pytest.raises(ConfigError, match=r"got ndarray; write torch\.as_tensor"):
        adapter.select(task=np.array([0, 1]))
    with pytest.raises(ConfigError, match="got ndarray"):
        adapter.select(task=np.array(["rte", "cola"]))
    adapter.select(task=np.str_("rte"))


def test_one_task_is_trained_where_the_model_was_moved(device):
    model, adapter = with_tasks()
    adapter.train_only("rte")
    model.to(device)
    model(input_ids=TOKENS.to(device)).logits.sum().backward()
    gradient = adapter.cores.core_2.grad
    assert torch.count_nonzero(gradient[:, [0, 2]]) == 0
    assert torch.count_nonzero(gradient[:, 1]) > 0


def test_a_merge_is_for_one_selection():
    model, adapter = with_tasks(heads_by="task")
    with adapter.selected(task="rte"), pytest.raises(StateError, match="inside `with adapter"):
        adapter.merge()
    adapter.select(task="rte")
    adapter.merge()
    with torch.no_grad():
        merged = logits(model)
        with adapter.disabled():
            with pytest.raises(StateError, match="merged for other places"):
                adapter.select(task="cola")
            with pytest.raises(StateError, match="merged for other places"), adapter.selected(task="cola"):
                pass
        assert torch.equal(logits(model), merged)
    adapter.unmerge()
    with adapter.selected(task="cola"):
        adapter.detach(merge=True)


def test_training_one_task_is_refused_before_anything_changes():
    _, adapter = with_tasks(frozen=("task",))
    with pytest.raises(StateError, match=r"core 2 \(axis 'task'\) is frozen"):
        adapter.train_only("rte")
    model, adapter = with_tasks(random=False, heads_by="task")
    adapter.select(task="cola")
    with pytest.raises(StateError, match="still zero"):
        adapter.train_only("rte")
    assert adapter.selected_places("task") == 0
    assert all(p.requires_grad for p in (*adapter.cores.parameters(), *model.classifier.parameters()))


def test_one_task_is_trained_while_another_axis_waits():
    model, adapter = with_tasks(
        variant="in layer task expert matrix out", heads_by="task", axes=[Axis("expert", size=2)]
    )
    adapter.train_only(task="rte")
    assert adapter.trained_only == {"task": "rte"}
    assert [p.requires_grad for p in model.classifier.parameters()] == [False] * 2 + [True] * 2 + [False] * 2

"""How a dense batch is multiplied with a TT-matrix: the order of contraction, found once and run many times.

A step takes an interval of sites: the contracted labels are neighbors in memory, because ranks are kept
between their sites, so that a step is one (batched) matrix product and no activation is ever permuted.

    b    n_0  n_1  n_2
    |     |    |    |
    +----[ x ]------+
         |    |    |
        [0]--[1]--[2]
         |    |    |
        m_0  m_1  m_2

What is chosen is the tree (which cores are multiplied with each other before the input comes: none, some, or
all, which is the dense matrix) and whether the batch is the first or the last mode of the activations.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from opt_einsum import get_symbol
from opt_einsum.paths import DynamicProgramming, auto
from torch import Tensor
from torch.nn import functional as F

from ttnet._typing import Cores

_Modes = tuple[int, ...]
_Path = tuple[tuple[int, ...], ...]

# Costs in units of one multiply-add of a large product, measured on one core of a CPU (0.02 ns there).
_NEAR, _FAR = (
    12.0,
    70.0,
)  # to read or write an entry of a tensor that fits in the cache, and of one that does not
_CACHE = 2**19  # entries
_COPY = 130.0  # to permute an entry of the cores
_TURN = 60.0  # to transpose an entry of the input or the output
_CALL = 180_000.0  # one call into torch
_ITEM = 10_000.0  # one matrix of a batched product

_DOUBT = 1.3  # so much better the costs of chunks must be than those of the whole batch

_EXHAUSTIVE = 10  # above so many cores the search by dynamic programming takes too long
_LARGEST_BUCKET = 4**8


class WeightStep(NamedTuple):
    """Product of two neighboring intervals of cores over their bond."""

    left: int
    right: int
    rank: int


class InputStep(NamedTuple):
    """Product of the activations (before, contracted, after) with an interval of cores (new, contracted).

    `split` and `order` bring the cores to that form. A size that the batch belongs to is -1. `side` is
    "right" where there is no `after` and "left" where there is no `before`: one matrix product does it then.
    """

    slot: int
    split: _Modes
    order: _Modes | None
    new: int
    contracted: int
    before: int
    after: int
    side: Literal["left", "right", "middle"]


class Plan(NamedTuple):
    """A contraction order, ready to run."""

    weight_steps: tuple[WeightStep, ...]
    input_steps: tuple[InputStep, ...]
    batch_last: bool
    outputs: int
    cost: float

    @property
    def is_dense(self) -> bool:
        """Whether the cores are multiplied to the dense matrix first."""
        return len(self.input_steps) == 1 and not self.batch_last


def bucket(batch: int) -> int:
    """The power of 4 that stands for a batch size when the order is chosen."""
    size = 1
    while size < batch and size < _LARGEST_BUCKET:
        size *= 4
    return size


@torch.compiler.assume_constant_result
def plan_for(rows: _Modes, columns: _Modes, ranks: _Modes, batch: int) -> Plan:
    """The cheapest contraction order for a shape; found once and kept.

    Candidates are the trees that opt_einsum finds when it minimizes operations, the largest intermediate, and
    weighted sums of operations and entries written. They are compared by operations, entries touched, calls,
    and what the backward pass keeps.

    Args:
        rows: Output modes (m_0, ..., m_{d-1}).
        columns: Input modes (n_0, ..., n_{d-1}).
        ranks: The d - 1 inner ranks.
        batch: Number of inputs, see `bucket`.

    Returns:
        The plan, for `run`.
    """
    return _plan_for(rows, columns, ranks, batch)


@lru_cache(maxsize=4096)
def _plan_for(rows: _Modes, columns: _Modes, ranks: _Modes, batch: int) -> Plan:
    paths = dict.fromkeys(_candidates(rows, columns, ranks, batch))
    plans = [
        _compile(path, rows, columns, (1, *ranks, 1), batch, batch_last)
        for path in paths
        for batch_last in ((False, True) if batch > 1 else (False,))
    ]
    return min(plans, key=lambda plan: plan.cost)


@lru_cache(maxsize=4096)
def chunk_for(rows: _Modes, columns: _Modes, ranks: _Modes, batch: int) -> int:
    """How many inputs to take at a time where no graph is kept.

    Where intermediates fit in the cache, the product by cores can be faster than the dense one although that
    of the whole batch is not; and it takes less memory.

    Args:
        rows: Output modes (m_0, ..., m_{d-1}).
        columns: Input modes (n_0, ..., n_{d-1}).
        ranks: The d - 1 inner ranks.
        batch: Number of inputs, see `bucket`.

    Returns:
        A bucket, `batch` itself where chunks do not pay.
    """
    sizes = [4**power for power in range(1, 9) if 4**power < batch]
    costs = {batch: _plan_for(rows, columns, ranks, batch).cost}
    join = 2 * _touch(batch * math.prod(rows)) + _CALL
    for size in sizes:
        costs[size] = (join + batch / size * _plan_for(rows, columns, ranks, size).cost) * _DOUBT
    return min(costs, key=lambda size: costs[size])


def _candidates(rows: _Modes, columns: _Modes, ranks: _Modes, batch: int) -> list[_Path]:
    count = len(rows)
    name_m, name_n, name_r = ([get_symbol(1 + i * count + k) for k in range(count)] for i in range(3))
    name_b = get_symbol(0)
    inputs = [frozenset([name_b, *name_n])]
    for k in range(count):
        bonds = [name_r[bond] for bond in (k, k + 1) if 0 < bond < count]
        inputs.append(frozenset([name_m[k], name_n[k], *bonds]))
    output = frozenset([name_b, *name_m])
    sizes = {name_b: batch, **dict(zip(name_m, rows, strict=True)), **dict(zip(name_n, columns, strict=True))}
    sizes |= dict(zip(name_r[1:], ranks, strict=True))
    dense: _Path = (
        *(((1, 2),) if count > 1 else ()),
        *((1, left) for left in range(count - 1, 1, -1)),
        (0, 1),
    )
    if count > _EXHAUSTIVE:
        return [_pairs(auto(inputs, output, sizes, None)), dense]  # pyright: ignore[reportArgumentType]
    objectives = ("flops", "size", "combo-16", "combo-64", "combo-256")
    found = [DynamicProgramming(minimize=name)(inputs, output, sizes) for name in objectives]  # pyright: ignore[reportArgumentType]
    return [*map(_pairs, found), dense]


def _pairs(path: Iterable[Iterable[int]]) -> _Path:
    return tuple(tuple(sorted(step)) for step in path)


class _Interval(NamedTuple):
    """Sites from `start` to `stop`, and where their product is found at run time."""

    slot: int
    start: int
    stop: int


def _compile(path: _Path, rows: _Modes, columns: _Modes, ranks: _Modes, batch: int, batch_last: bool) -> Plan:
    count = len(rows)
    terms: list[_Interval | None] = [None, *(_Interval(k, k, k + 1) for k in range(count))]
    weight_steps: list[WeightStep] = []
    order: list[_Interval] = []
    cost = 0.0
    if batch_last:
        sizes = (batch * math.prod(rows), batch * math.prod(columns))
        cost = sum(max(_TURN * size, 2 * _touch(size)) + _CALL for size in sizes)
    for step in path:
        first, second = (terms[i] for i in sorted(step))
        terms = [term for i, term in enumerate(terms) if i not in step]
        if first is None or second is None:
            order.extend(interval for interval in (first, second) if interval is not None)
            terms.append(None)
            continue
        left, right = sorted((first, second), key=lambda interval: interval.start)
        rank = ranks[right.start]
        new = _Interval(count + len(weight_steps), left.start, right.stop)
        sizes = [_size(part, rows, columns, ranks) for part in (left, right, new)]
        cost += sizes[2] * rank + sum(map(_touch, sizes)) + _CALL
        weight_steps.append(WeightStep(left.slot, right.slot, rank))
        terms.append(new)
    done = [False] * count
    input_steps = []
    for interval in order:
        input_step, step_cost = _input_step(interval, done, rows, columns, ranks, batch, batch_last)
        input_steps.append(input_step)
        cost += step_cost
    return Plan(tuple(weight_steps), tuple(input_steps), batch_last, math.prod(rows), cost)


def _touch(entries: int) -> float:
    return entries * (_NEAR if entries <= _CACHE else _FAR)


def _size(interval: _Interval, rows: _Modes, columns: _Modes, ranks: _Modes) -> int:
    inside = slice(interval.start, interval.stop)
    return ranks[interval.start] * math.prod(rows[inside]) * math.prod(columns[inside]) * ranks[interval.stop]


def _input_step(
    interval: _Interval,
    done: list[bool],
    rows: _Modes,
    columns: _Modes,
    ranks: _Modes,
    batch: int,
    batch_last: bool,
) -> tuple[InputStep, float]:
    """The step that takes an interval, and its cost; its sites are marked as done."""
    _, start, stop = interval
    count = len(rows)
    before, after = (
        _open_size(sites, done, rows, columns, ranks) for sites in (range(start), range(stop, count))
    )
    # The ranks at the ends of the interval are open in the activations where the neighbor has been taken.
    open_left, open_right = start > 0 and done[start - 1], stop < count and done[stop]
    before //= ranks[start] if open_left else 1
    after //= ranks[stop] if open_right else 1
    split = [ranks[start]]
    for k in range(start, stop):
        split += [rows[k], columns[k]]
        done[k] = True
    split.append(ranks[stop])
    last = len(split) - 1
    m, n = list(range(1, last, 2)), list(range(2, last, 2))
    contracted = [*([0] if open_left else []), *n, *([last] if open_right else [])]
    new = [*([] if open_left else [0]), *m, *([] if open_right else [last])]
    permutation = (*new, *contracted)
    is_copy = _moves(permutation, split)
    new_size, contracted_size = (math.prod(split[i] for i in group) for group in (new, contracted))
    pre, post = (before, after * batch) if batch_last else (before * batch, after)
    cost = float(pre * post * new_size * contracted_size)
    entries = (pre * post * new_size, pre * post * contracted_size, new_size * contracted_size)
    cost += sum(map(_touch, entries)) + _CALL
    if is_copy:
        cost += _COPY * new_size * contracted_size + _CALL
    if pre > 1 and post > 1:  # the gradient of the cores is summed after it was formed for each matrix
        cost += pre * _ITEM + 2 * _touch(pre * new_size * contracted_size)
    if pre == 1 or (batch_last and before == 1):
        side = "left"
    else:
        side = "right" if post == 1 and not batch_last else "middle"
    step = InputStep(
        interval.slot,
        tuple(split),
        permutation if is_copy else None,
        new_size,
        contracted_size,
        before if batch_last else -1,
        -1 if batch_last else after,
        side,
    )
    return step, cost


def _open_size(sites: range, done: list[bool], rows: _Modes, columns: _Modes, ranks: _Modes) -> int:
    """Size of the activations' part that belongs to some sites, the open ranks at their ends included."""
    size = 1
    for k in sites:
        size *= rows[k] if done[k] else columns[k]
        if done[k]:
            size *= ranks[k] if k > 0 and not done[k - 1] else 1
            size *= ranks[k + 1] if k + 1 < len(done) and not done[k + 1] else 1
    return size


def _moves(permutation: _Modes, shape: list[int]) -> bool:
    """Whether a permutation changes the order in memory."""
    real = [axis for axis in permutation if shape[axis] > 1]
    return real != sorted(real)


def run(plan: Plan, cores: Cores, x: Tensor, bias: Tensor | None = None, *, autocast: bool = False) -> Tensor:
    """Multiply a batch with a TT-matrix by a plan.

    Args:
        plan: A plan for the shapes of the cores.
        cores: Core k of shape (r_k, m_k n_k, r_{k+1}).
        x: Shape (batch, n_0 ... n_{d-1}).
        bias: Shape (m_0 ... m_{d-1},).
        autocast: Whether autocast is on: products of cores are left out of it.

    Returns:
        Shape (batch, m_0 ... m_{d-1}).
    """
    if plan.weight_steps and autocast:
        with torch.autocast(x.device.type, enabled=False):
            parts = _merge(plan, cores)
    else:
        parts = _merge(plan, cores)
    batch = x.shape[0]
    work = x.t() if plan.batch_last else x
    dense = plan.is_dense
    for slot, split, order, new, contracted, before, after, side in plan.input_steps:
        core = parts[slot]
        if order is not None:
            core = core.reshape(split).permute(order)
        core = core.reshape(new, contracted)
        if dense:
            return F.linear(x, core, bias)
        if side == "right":
            work = torch.mm(work.reshape(-1, contracted), core.t())
        elif side == "left":
            work = torch.mm(core, work.reshape(contracted, -1))
        else:
            work = work.reshape(before, contracted, after)
            work = torch.bmm(core.expand(work.shape[0], -1, -1), work)
    if plan.batch_last:
        work = work.reshape(plan.outputs, batch).t().contiguous()
    else:
        work = work.reshape(batch, plan.outputs)
    return work if bias is None else work + bias.to(work.dtype)


def _merge(plan: Plan, cores: Cores) -> list[Tensor]:
    parts = list(cores)
    for left, right, rank in plan.weight_steps:
        parts.append(torch.mm(parts[left].reshape(-1, rank), parts[right].reshape(rank, -1)))
    return parts

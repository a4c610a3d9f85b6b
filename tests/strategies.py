"""Trains that hypothesis draws: the ordinary ones and those at which libraries break."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from ttnet import TensorTrain, Truncation

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
STORAGE_DTYPES = (*DTYPES, torch.bfloat16)

KINDS = ("random", "deficient", "repeated", "zero core", "zero", "cancelling", "graded")
"""What `cores_of` builds: see there."""


def eps(dtype: torch.dtype) -> float:
    """Distance from 1 to the next number."""
    return torch.finfo(dtype).eps


def shapes(min_modes: int = 1, max_modes: int = 5, max_size: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    """Mode sizes, 1 among them."""
    return st.lists(st.integers(1, max_size), min_size=min_modes, max_size=max_modes).map(tuple)


def dtypes(*, storage: bool = False) -> st.SearchStrategy[torch.dtype]:
    """The dtypes that are computed with; with `storage` also bfloat16."""
    return st.sampled_from(STORAGE_DTYPES if storage else DTYPES)


def normal(*shape: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Independent normal entries."""
    working = torch.float32 if dtype == torch.bfloat16 else dtype
    return torch.randn(*shape, dtype=working, generator=generator).to(dtype)


def ghz(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Cores of the sum of e_i x e_i x ... x e_i: every bond has equal singular values."""
    levels = min(shape)
    copy = torch.zeros(levels, levels, levels, dtype=dtype)
    copy[range(levels), range(levels), range(levels)] = 1
    cores = [torch.nn.functional.pad(copy, (0, 0, 0, n - levels)) for n in shape]
    if len(shape) == 1:
        return [cores[0].sum((0, 2), keepdim=True)]
    cores[0], cores[-1] = cores[0].sum(0, keepdim=True), cores[-1].sum(2, keepdim=True)
    return cores


def cores_of(
    kind: str, shape: tuple[int, ...], ranks: list[int], dtype: torch.dtype, seed: int
) -> list[Tensor]:
    """Cores of one of `KINDS`.

    "random": normal entries, with ranks that may be above what the bonds can use. "deficient": every bond
    repeats its directions. "repeated": equal singular values. "zero core", "zero": one or all cores vanish.
    "cancelling": a small difference of large trains. "graded": singular values that fall steeply.
    """
    generator = torch.Generator().manual_seed(seed)
    edges = [1, *ranks, 1]
    cores = [normal(edges[k], n, edges[k + 1], dtype=dtype, generator=generator) for k, n in enumerate(shape)]
    last = len(cores) - 1
    if kind == "repeated":
        return ghz(shape, dtype)
    if kind == "zero":
        return [torch.zeros_like(core) for core in cores]
    if kind == "zero core":
        at = seed % len(cores)
        return [torch.zeros_like(core) if k == at else core for k, core in enumerate(cores)]
    if kind == "graded":
        decay = [0.05 ** torch.arange(core.shape[2], dtype=torch.float32) for core in cores]
        return [(core * d).to(dtype) for core, d in zip(cores, decay, strict=True)]
    if kind in ("deficient", "cancelling"):
        factor = 1 if kind == "deficient" else -1 + 1 / 64
        doubled = []
        for k, core in enumerate(cores):
            wide = core if k == last else torch.cat([core, core * (factor if k == 0 else 1)], 2)
            if last == 0:
                wide = core + core * factor
            elif k == last:
                wide = torch.cat([core, core], 0)
            elif k > 0:
                zero = torch.zeros_like(core)
                wide = torch.cat([torch.cat([core, zero], 2), torch.cat([zero, core], 2)], 0)
            doubled.append(wide)
        return doubled
    return cores


@st.composite
def trains(
    draw: st.DrawFn,
    *,
    kinds: tuple[str, ...] = KINDS,
    dtype: torch.dtype | None = None,
    storage: bool = False,
    min_modes: int = 1,
    scales: bool = True,
) -> TensorTrain:
    """A train of any kind, with a center or without; with `scales` also far from 1, never out of range."""
    dtype = dtype or draw(dtypes(storage=storage))
    shape = draw(shapes(min_modes))
    ranks = draw(st.lists(st.integers(1, 4), min_size=len(shape) - 1, max_size=len(shape) - 1))
    cores = cores_of(draw(st.sampled_from(kinds)), shape, ranks, dtype, draw(st.integers(0, 999)))
    if scales:
        exponent = draw(st.sampled_from([0, 0, 0, -25, 25, -3, 3]))
        cores[draw(st.integers(0, len(cores) - 1))] *= 10.0**exponent
    train = TensorTrain(cores)
    center = draw(st.none() | st.integers(0, len(shape) - 1))
    return train if center is None else train.orthogonalize(center)


def spectra() -> st.SearchStrategy[Tensor]:
    """Descending singular values: generic, repeated and zero ones."""
    values = st.lists(
        st.sampled_from([0.0, 1e-12, 1e-3, 0.5, 0.5, 1.0, 1.0, 1.0 + 1e-9, 2.0, 7.0]), min_size=1, max_size=7
    )
    return values.map(lambda drawn: torch.tensor(sorted(drawn, reverse=True), dtype=torch.float64))


def truncations() -> st.SearchStrategy[Truncation]:
    """Fixed ranks, tolerances of every kind, and both."""
    return st.builds(
        Truncation,
        max_rank=st.none() | st.integers(1, 4),
        rtol=st.none() | st.sampled_from([1e-9, 1e-3, 0.3, 0.8]),
        atol=st.none() | st.sampled_from([1e-12, 1e-2, 1.0, 1e3]),
        cutoff=st.sampled_from([0.0, 1e-12, 1e-3, 0.3]),
        svd_min=st.sampled_from([0.0, 0.0, 1e-3]),
        degeneracy_tol=st.sampled_from([None, 1e-6]),
    )


def scale_of(train: TensorTrain) -> float:
    """What roundoff is relative to: the largest product of the norms of the two interfaces of a bond."""
    logs = 0.0
    for core in train.cores:
        size = float(core.detach().abs().to(torch.float64).square().sum().sqrt())
        if size == 0:
            return 0.0
        logs += math.log(size)
    return math.exp(min(logs, 700.0))

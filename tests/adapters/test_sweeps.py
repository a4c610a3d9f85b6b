"""Sweeps over the cores of an adapter in a plain loop."""

import pytest
import torch

from tests.adapters.models import TOKENS, bert, randomize
from ttnet.adapters import MetaTT, attach
from ttnet.errors import StateError
from ttnet.optim import AdaptiveRanks, DMRGScheduler


def adapted():
    model = bert()
    adapter = randomize(attach(model, MetaTT(rank=6, target_modules=["query", "value"])))
    return model, adapter, torch.optim.AdamW(adapter.parameter_groups(lr=1e-3))


@pytest.mark.parametrize("ranks", [{0: 6, 1: 3}, AdaptiveRanks(max_error=0.5, warmup=0, max_cut=6)])
def test_a_cut_is_measured_by_matrix(ranks):
    _, adapter, optimizer = adapted()
    before = adapter.tensor_train()
    report = DMRGScheduler(optimizer, adapter.cores, ranks=ranks, measure=adapter.matrix_errors).step()
    expected = adapter.matrix_errors(before, adapter.tensor_train())
    assert report.ranks_after != report.ranks_before
    assert set(expected) == {site.name for site in adapter.layout.sites}
    assert dict(report.matrix_errors) == pytest.approx(expected, rel=1e-4)


def test_a_sweep_while_merged_is_refused():
    model, adapter, optimizer = adapted()
    scheduler = DMRGScheduler(optimizer, adapter.cores, ranks={0: 6, 1: 3})
    adapter.merge()
    before = model(TOKENS).logits
    with pytest.raises(StateError, match=r"merged.*unmerge"):
        scheduler.step()
    assert torch.equal(model(TOKENS).logits, before)
    adapter.unmerge()
    assert scheduler.step() is not None

"""The order of documents: every one once, like lengths together, a function of seed and epoch."""

import torch

from ttnet.cli.data import POOL, LengthGroupedSampler


def order(count=103, batch_size=4, seed=0, epoch=0):
    lengths = torch.randint(1, 100, (count,), generator=torch.Generator().manual_seed(1)).tolist()
    sampler = LengthGroupedSampler(lengths, batch_size, seed)
    sampler.set_epoch(epoch)
    return lengths, list(sampler)


def test_every_document_comes_once():
    lengths, found = order()
    assert sorted(found) == list(range(len(lengths)))


def test_the_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(5)
    first = order(epoch=2)[1]
    torch.manual_seed(6)
    assert order(epoch=2)[1] == first
    assert order(epoch=3)[1] != first
    assert order(seed=1, epoch=2)[1] != first


def test_batches_hold_like_lengths():
    lengths, found = order(count=POOL * 4 * 3)
    spread = [
        max(b) - min(b) for b in ([lengths[p] for p in found[k : k + 4]] for k in range(0, len(found), 4))
    ]
    assert sum(spread) / len(spread) < 25


def test_fewer_documents_than_a_batch():
    assert sorted(order(count=3, batch_size=8)[1]) == [0, 1, 2]

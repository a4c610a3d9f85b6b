import torch
from torch.func import grad, vmap

from ttnet.transforms import is_batched, needs_gradient


def seen_by(test, transform, x):
    """What `test` says of the tensor that a function sees inside `transform`."""
    answers = []

    def function(tensor):
        answers.append(test(tensor))
        return tensor.square().sum()

    transform(function)(x)
    return answers[0]


def sum_of_vmap(function):
    return grad(lambda x: vmap(function)(x).sum())


def test_a_batch_is_seen_through_any_transform():
    x = torch.randn(3, 2)
    assert not is_batched(x)
    assert not seen_by(is_batched, grad, x)
    assert seen_by(is_batched, vmap, x)
    assert seen_by(is_batched, lambda f: vmap(grad(f)), x)
    assert seen_by(is_batched, lambda f: vmap(vmap(f)), x)
    assert seen_by(is_batched, sum_of_vmap, x)


def test_a_tensor_that_is_not_mapped_over_is_no_batch():
    constant = torch.ones(2)
    assert not seen_by(lambda _: is_batched(constant), vmap, torch.randn(3, 2))


def test_a_wanted_gradient_is_seen_through_any_transform():
    x = torch.randn(3, 2)
    leaf = x.clone().requires_grad_()
    assert not needs_gradient(x)
    assert not seen_by(needs_gradient, vmap, x)
    assert needs_gradient(leaf)
    assert needs_gradient(leaf * 2)
    assert seen_by(needs_gradient, vmap, leaf)
    assert seen_by(needs_gradient, grad, x)
    assert seen_by(needs_gradient, lambda f: vmap(grad(f)), x)
    assert seen_by(needs_gradient, sum_of_vmap, x)
    with torch.no_grad():
        assert not needs_gradient(leaf)

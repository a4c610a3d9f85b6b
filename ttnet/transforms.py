"""What `torch.func` transforms hide in a tensor: a batch, or a gradient that is wanted."""

import torch
from torch import Tensor
from torch._C import _functorch as functorch  # pyright: ignore[reportAttributeAccessIssue]


def is_batched(tensor: Tensor) -> bool:
    """Whether `torch.func.vmap` hides a batch in `tensor`: its values cannot steer Python.

    Args:
        tensor: Any shape.

    Returns:
        True inside vmap for a tensor that is mapped over, also under `torch.func.grad`; False while
        `torch.compile` traces, which breaks its graph where a value is asked for.
    """
    if torch.compiler.is_compiling():
        return False
    while not functorch.is_batchedtensor(tensor):
        if not functorch.is_gradtrackingtensor(tensor):
            return False
        tensor = functorch.get_unwrapped(tensor)
    return True


def needs_gradient(tensor: Tensor) -> bool:
    """Whether what is computed from `tensor` now is differentiated later, also through transforms.

    Args:
        tensor: Any shape.

    Returns:
        False under `torch.no_grad()` and where nothing that `tensor` comes from requires a gradient.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.is_grad_enabled() and tensor.requires_grad
    while not tensor.requires_grad:
        if not (functorch.is_batchedtensor(tensor) or functorch.is_gradtrackingtensor(tensor)):
            return False
        tensor = functorch.get_unwrapped(tensor)
    return True

"""`input_moments`: the second moments of what adapted matrices read, as a metric for cuts.

A plain cut keeps dW in the Frobenius norm. What a model computes is x dW, with E |x dW|^2 = tr(dW^T C dW) and
C = E[x^T x]: errors in directions that no input has cost nothing. The metric of a train is one matrix for
each mode; here the `in` mode gets the mean of C over the matrices of each width, and the others none.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ttnet.adapters.adapter import TTAdapter
from ttnet.adapters.axes import Pattern
from ttnet.errors import ConfigError, NonFiniteError


def check_pattern(pattern: Pattern) -> None:
    """Refuse a pattern whose inputs have no metric.

    Args:
        pattern: The pattern of an adapter.

    Raises:
        ConfigError: It factorizes `in`.
    """
    if "in" not in pattern.axes:
        raise ConfigError(
            f"input_moments: pattern {pattern.text!r} factorizes 'in', and second moments are no product "
            "over its factors; cut it plainly"
        )


@torch.no_grad()
def input_moments(
    adapter: TTAdapter, batches: Iterable[Any], run: Callable[[Any], Any], *, ridge: float = 1e-4
) -> tuple[Tensor | None, ...]:
    """Collect E[x^T x] of the inputs of all adapted matrices while a model runs over some batches.

    Args:
        adapter: An attached adapter whose pattern has one `in` axis.
        batches: What `run` is called with. Where a batch is a mapping with an `attention_mask` of the shape
            (samples, tokens) of the inputs, padding does not count. In an encoder-decoder model that is the
            padding of what the encoder reads and returns; `decoder_attention_mask` is that of the rest.
        run: A function of a batch that runs the model; its result is not used.
        ridge: Added to the diagonal, relative to its mean, so that directions which the batches do not have
            still count a little.

    Returns:
        For each mode of the train a matrix (n, n) or None: the `metric` of `TensorTrain.truncate`.

    Raises:
        ConfigError: The pattern factorizes `in`, `ridge` is negative, or no adapted matrix has run.
        NonFiniteError: An input that is not finite.

    Examples:
        ::

            metric = input_moments(adapter, batches, lambda batch: model(**batch))
            adapter.cores.assign(adapter.tensor_train().truncate(Truncation(max_rank=4), metric=metric))

        In a training, `DMRGScheduler(metric=)` cuts by it, and `DMRGCallback(metric="inputs")` collects it.
    """
    layout = adapter.layout
    check_pattern(layout.pattern)
    if not isinstance(ridge, int | float) or not ridge >= 0:
        raise ConfigError(f"ridge: expected a number of at least 0, got {ridge!r}")
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    masks: dict[str, Tensor | None] = {}
    encoder = _encoder_of(adapter.__dict__["model"])
    encoding = set() if encoder is None else set(encoder.modules())
    encoded: list[Tensor] = []  # what the encoder has returned: cross-attention reads it

    def collect(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            decodes = encoder is not None and module not in encoding and all(given is not e for e in encoded)
            x, counted = given.detach(), masks["decoder_attention_mask" if decodes else "attention_mask"]
            if counted is not None and counted.shape == x.shape[:-1]:
                x = x[counted.to(x.device).bool()]
            x = x.reshape(-1, x.shape[-1]).float()
            own = (x.T @ x).double()
            sums[name] = sums[name] + own if name in sums else own
            rows[name] = rows.get(name, 0) + len(x)

        return hook

    def keep(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
        encoded[:] = [value for value in (output, output[0]) if isinstance(value, Tensor)]

    handles = [
        adapter.adapted(name).register_forward_pre_hook(collect(name), with_kwargs=True)
        for name in layout.modules
    ]
    handles += [] if encoder is None else [encoder.register_forward_hook(keep)]
    try:
        for batch in batches:
            for name in ("attention_mask", "decoder_attention_mask"):
                masks[name] = batch.get(name) if hasattr(batch, "get") else None
            run(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise ConfigError("batches: no adapted matrix has run; give at least one batch")
    first = adapter.cores.core_parameters()[0]
    size = layout.sizes["in"]
    whole = torch.zeros(size, size, dtype=torch.float64, device=first.device)
    for width, (start, end) in layout.in_blocks.items():
        own = [
            sums[s.module] / rows[s.module]
            for s in layout.sites
            if s.in_features == width and s.module in sums
        ]
        if own:
            whole[start:end, start:end] = torch.stack(own).mean(0)
    if not bool(whole.isfinite().all()):
        raise NonFiniteError(
            "input_moments: an adapted matrix has read NaN or infinity; lower the learning rate"
        )
    whole += ridge * whole.diagonal().mean() * torch.eye(size, dtype=whole.dtype, device=whole.device)
    whole = whole.to(torch.promote_types(first.dtype, torch.float32))
    return tuple((whole + whole.T) / 2 if "in" in mode else None for mode in layout.pattern.modes)


def _encoder_of(model: nn.Module) -> nn.Module | None:
    """The encoder of an encoder-decoder model of transformers."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    found = model.get_encoder() if hasattr(model, "get_encoder") else None  # pyright: ignore[reportCallIssue]
    return found if isinstance(found, nn.Module) and found is not model else None

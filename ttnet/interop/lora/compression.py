"""Many matrices into one train that can be saved and attached, with the error of each."""

import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ttnet.adapters import SavedAdapter, TTAdapter, TTAdapterConfig, files, load
from ttnet.adapters.axes import Pattern
from ttnet.adapters.factors import fuse
from ttnet.adapters.structure import Combo, Layout, Site
from ttnet.errors import ConfigError, RankError
from ttnet.interop.lora.fit import fit_train
from ttnet.interop.lora.low_rank import relative
from ttnet.interop.lora.peft_files import check_no_peft_adapter
from ttnet.interop.lora.shared_train import SharedTrain, Term
from ttnet.tensor_train import TensorTrain
from ttnet.truncation import Truncation

TASK = "task"
RANK_8 = Truncation(max_rank=8)

_LARGE = 2**28  # entries above which the terms stay in float32
_TRIALS = 12


@dataclass(frozen=True, kw_only=True)
class Compression:
    """A train that stands for many matrices, and how well.

    Attributes:
        saved: The adapter, as `ttnet.adapters.read` would read it.
        errors: For each matrix |dW - its part of the train| / |dW|, measured on the train as it is saved;
            with several LoRA adapters the names begin with "task/". Where dW is zero, as for a task whose
            LoRA has no such matrix, it is relative to the root mean square of the other norms.
        relative_error: The same for all matrices together.
        source_parameters: Entries of what was compressed: the factors of LoRA, or the adapted matrices.
        left_out: What differs between two models and is not in the adapter: relative change by name,
            infinity where it is not known.
    """

    saved: SavedAdapter
    errors: Mapping[str, float]
    relative_error: float
    source_parameters: int
    left_out: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        """Entries of the cores."""
        return sum(core.numel() for core in self.saved.train.cores)

    @property
    def worst(self) -> tuple[str, float]:
        """The matrix with the largest error, and that error."""
        name = max(self.errors, key=lambda name: self.errors[name])
        return name, self.errors[name]

    def save(self, directory: str | Path) -> None:
        """Write the two files of an adapter, which `ttnet.adapters.load` puts on a model.

        Args:
            directory: Where to write, created where it is missing.

        Raises:
            ConfigError: The directory holds an adapter of peft, whose files have the same names.
        """
        check_no_peft_adapter(directory)
        saved = self.saved
        files.write(
            directory,
            config=saved.config,
            layout=saved.layout,
            train=saved.train,
            scale=saved.scale,
            base=saved.base,
            modules=saved.modules,
            module_names=saved.module_names,
        )

    def attach(self, model: nn.Module) -> TTAdapter:
        """Put the adapter on a model, to use it or to train it on.

        Args:
            model: The base model, without an adapter; changed in place.

        Returns:
            The adapter.

        Raises:
            FormatError: The model has no such matrices.
            ShapeError: A matrix of another shape.
            StateError: The model has an adapter already.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            return load(model, folder)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One matrix dW = left right to compress.

    Attributes:
        key: Its name in reports.
        site: Name of the matrix in the layout.
        left: Shape (in, r), None where `right` is dense.
        right: Shape (r, out), or dW (in, out).
        combo: Its places on the axes that are selected when the model runs.
        absent: Whether nobody gave it: a zero that the train shall hold in its place.
    """

    key: str
    site: str
    left: Tensor | None
    right: Tensor
    combo: Combo = ()
    absent: bool = False


def check_pattern(pattern: Pattern) -> None:
    """Check that a train of this pattern can be fitted: `in`, structural modes, perhaps `head`, then `out`.

    Raises:
        PatternError: It cannot.
    """
    pattern.check_order()
    if not pattern.middle_modes:
        raise pattern.error(
            "out",
            "a train is fitted to patterns with an axis between 'in' and 'out', such as 'in matrix out'",
        )
    if pattern.left_modes != (("in",),) or pattern.right_modes not in ((("out",),), (("head",), ("out",))):
        axis = "in" if pattern.left_modes != (("in",),) else "out"
        raise pattern.error(
            pattern.feature_axes(axis)[0],
            "a train is fitted to patterns with 'in' first and 'out' (or 'head out') last, not factorized",
        )


def split_columns(matrix: Tensor, sites: Sequence[Site]) -> list[Tensor]:
    """The columns of each part of a fused module.

    Args:
        matrix: Shape (..., out) of the whole module.
        sites: Its parts in order; one for a module that is not fused.
    """
    if len(sites) == 1:
        return [matrix]
    widths = [site.out_features for site in sites]
    order = fuse(list(torch.arange(sum(widths)).split(widths)), sites[0].groups)
    return list(matrix[:, order.argsort().to(matrix.device)].split(widths, 1))


def compress(
    sources: Sequence[Source],
    layout: Layout,
    config: TTAdapterConfig,
    truncation: Truncation,
    max_error: float | None,
    sweeps: int,
) -> Compression:
    """Fit one train to all matrices, measure it, and go on until no error is too large.

    Args:
        sources: The matrices.
        layout: What each reads of the train.
        config: The options that are saved; pattern and dtype count.
        truncation: Ranks and accuracy.
        max_error: Largest relative error of any matrix.
        sweeps: Most sweeps of least squares.

    Returns:
        The adapter, of no model yet.

    Raises:
        ConfigError: `truncation`, `max_error` or `sweeps` has a value it cannot have.
        RankError: A list of ranks that does not fit, or `max_error` is out of reach of `max_rank`.
    """
    if not isinstance(truncation, Truncation):
        remedy = f"Truncation(max_rank={truncation})" if isinstance(truncation, int) else "Truncation(...)"
        raise ConfigError(
            f"truncation: expected a Truncation, got {truncation!r}; give truncation={remedy}, of ttnet"
        )
    if max_error is not None and not 0 < max_error < 1:
        raise ConfigError(f"max_error: expected a number between 0 and 1, got {max_error!r}")
    if isinstance(sweeps, bool) or not isinstance(sweeps, int) or sweeps < 0:
        raise ConfigError(f"sweeps: expected an integer of at least 0, got {sweeps!r}")
    terms = _terms(sources, layout)
    norms = [term.norm for term in terms]
    total = math.hypot(*norms)
    if not total:
        warnings.warn(
            "every matrix to compress is zero: the adapter will change nothing; was the right one given?",
            stacklevel=4,
        )
        truncation = Truncation(max_rank=1)
    typical = total / math.sqrt(max(sum(norm > 0 for norm in norms), 1))
    sizes = layout.shape[1 : 1 + len(layout.pattern.middle_modes)]
    wish = truncation
    if max_error is not None:
        wish = replace(truncation, rtol=min(max_error, truncation.rtol or 1.0))
    errors, worst = dict.fromkeys((source.key for source in sources), math.inf), sources[0].key
    for _ in range(_TRIALS):
        shared = _rounded(fit_train(terms, sizes, wish, head_dim=layout.head_dim, sweeps=sweeps), config)
        absolute = shared.errors(terms)
        errors = {
            source.key: relative(error, norm or typical)
            for source, error, norm in zip(sources, absolute, norms, strict=True)
        }
        worst = max(errors, key=lambda key: errors[key])
        if max_error is None or errors[worst] <= max_error:
            return _compression(
                sources, layout, config, shared, errors, relative(math.hypot(*absolute), total)
            )
        factor = 0.9 * max_error / errors[worst]
        wish = replace(wish, rtol=(wish.rtol or max_error) * min(max(factor, 0.1), 0.7))
    cap = truncation.max_rank
    remedy = "take dtype='float64'" if cap is None else f"raise max_rank, which is {cap}"
    raise RankError(
        f"max_error: {worst!r} has the relative error {errors[worst]:.2e} where {max_error:g} is allowed; "
        f"{remedy}, or allow a larger error"
    )


def _compression(
    sources: Sequence[Source],
    layout: Layout,
    config: TTAdapterConfig,
    shared: SharedTrain,
    errors: Mapping[str, float],
    relative_error: float,
) -> Compression:
    cores = [core.to("cpu", config.torch_dtype) for core in shared.cores()]
    train = TensorTrain(cores)
    return Compression(
        saved=SavedAdapter(
            config=replace(config, rank=train.ranks[1:-1], alpha=1.0, alpha_scaling=False),
            layout=layout,
            train=train,
            scale=1.0,
            base={},
        ),
        errors=errors,
        relative_error=relative_error,
        source_parameters=sum(
            source.right.numel() + (0 if source.left is None else source.left.numel())
            for source in sources
            if not source.absent
        ),
    )


def _terms(sources: Sequence[Source], layout: Layout) -> list[Term]:
    sites = {site.name: site for site in layout.sites}
    count = sum(source.right.numel() for source in sources)
    dtype = torch.float64 if count < _LARGE else torch.float32
    terms = []
    for source in sources:
        site = sites[source.site]
        own = [layout.place(mode, site, source.combo) for mode in layout.pattern.middle_modes]
        terms.append(
            Term(
                None if source.left is None else source.left.to(dtype),
                source.right.to(dtype),
                rows=layout.in_blocks[site.in_features],
                columns=layout.out_blocks[site.out_features],
                places=own,
            )
        )
    return terms


def _rounded(shared: SharedTrain, config: TTAdapterConfig) -> SharedTrain:
    """The train with the entries that are saved, so that errors are those of the files."""
    like = next(iter(shared.left.values())).dtype
    balanced = shared.balanced()
    return balanced.map(lambda core: core.to(config.torch_dtype).to(like))

"""`TTLinear`: a linear layer whose weight is a TT-matrix."""

import math
from collections.abc import Hashable, Sequence
from typing import Literal, Self, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttnet import matrix_cores as _matrix
from ttnet._typing import Cores, PerBond
from ttnet.errors import DeviceError, DTypeError, ShapeError
from ttnet.nn.features import Features, paired_modes, scaled, share_norm
from ttnet.nn.paths import bucket, chunk_for, plan_for, run
from ttnet.parameter import TTParameter
from ttnet.random import random_cores, resolve_ranks
from ttnet.truncation import Truncation, TruncationReport
from ttnet.tt_matrix import TTMatrix


class TTLinear(nn.Module):
    """y = x W^T + bias, where W of shape (out_features, in_features) is a TT-matrix; stands for `nn.Linear`.

             out_0    out_1    out_2
               |        |        |
            1-[0]--r1--[1]--r2--[2]-1
               |        |        |
             in_0     in_1     in_2

    The matrix is not formed where that is dearer than contracting the input with the cores; the order is
    chosen for each shape of the batch, see `ttnet.nn.paths`. The cores are a `TTParameter`, whose ranks may
    change at any time: give `layer.cores` to a `DMRGScheduler` or a `TwoSiteDMRG`.

    Args:
        in_features: Number of input features, or its modes such as (8, 8, 16).
        out_features: Number of output features, or its modes, as many.
        rank: One rank for all bonds (clipped to what each allows), or one for each bond.
        bias: Whether a bias is added.
        num_cores: How many cores, where no modes are given; 3 by default.
        cache: Whether calls without grad form the dense matrix and keep it until a core changes: as fast as
            `nn.Linear` then, and as large.
        seed: Seed of the initial weights; by default torch's global generator draws them.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Attributes:
        cores: The `TTParameter`; core k is (r_k, out_k in_k, r_{k+1}), its two modes merged into one.
        bias: Shape (out_features,), or None.

    Raises:
        ShapeError: Features below 1, or numbers of modes that differ.
        RankError: A rank that a bond cannot have.
        DTypeError: An integer dtype.

    Examples:
        >>> import torch
        >>> from ttnet.nn import TTLinear
        >>> layer = TTLinear(768, 3072, rank=8)
        >>> layer
        TTLinear(
          in_features=768, out_features=3072, in_modes=(12, 8, 8), out_modes=(12, 16, 16), rank=8, bias=True
          (cores): TTParameter(shape=(144, 128, 128), ranks=(1, 8, 8, 1))
        )
        >>> layer(torch.randn(2, 5, 768)).shape
        torch.Size([2, 5, 3072])
    """

    def __init__(
        self,
        in_features: Features,
        out_features: Features,
        rank: PerBond,
        bias: bool = True,
        *,
        num_cores: int | None = None,
        cache: bool = False,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.out_modes, self.in_modes = paired_modes(
            out_features, in_features, num_cores, names=("out_features", "in_features")
        )
        self.in_features, self.out_features = math.prod(self.in_modes), math.prod(self.out_modes)
        self.cache = cache
        self._cached: tuple[Hashable, Tensor] | None = None
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        merged = [m * n for m, n in zip(self.out_modes, self.in_modes, strict=True)]
        cores = self._initial_cores(resolve_ranks(merged, rank), generator, dtype)
        self.cores = TTParameter([core.to(device) for core in cores])
        self.register_parameter("bias", None)
        if bias:
            self.bias = nn.Parameter(self._initial_bias(generator, cores[0].dtype).to(device))

    @overload
    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        truncation: Truncation,
        *,
        in_modes: Sequence[int] | None = None,
        out_modes: Sequence[int] | None = None,
        num_cores: int | None = None,
        cache: bool = False,
        return_report: Literal[False] = False,
    ) -> Self: ...

    @overload
    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        truncation: Truncation,
        *,
        in_modes: Sequence[int] | None = None,
        out_modes: Sequence[int] | None = None,
        num_cores: int | None = None,
        cache: bool = False,
        return_report: Literal[True],
    ) -> tuple[Self, TruncationReport]: ...

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        truncation: Truncation,
        *,
        in_modes: Sequence[int] | None = None,
        out_modes: Sequence[int] | None = None,
        num_cores: int | None = None,
        cache: bool = False,
        return_report: bool = False,
    ) -> Self | tuple[Self, TruncationReport]:
        """Compress a linear layer by a TT-SVD of its weight; bias, dtype, device and mode are kept.

        Args:
            linear: The layer, which is not changed.
            truncation: Which singular values are kept; `Truncation(rtol=0.1)` bounds the relative error of
                the weight, |W - W_TT| <= 0.1 |W| in the Frobenius norm.
            in_modes: Modes of the input features; balanced ones by default.
            out_modes: Modes of the output features; balanced ones by default.
            num_cores: How many cores, where no modes are given; 3 by default.
            cache: See the class.
            return_report: Whether the `TruncationReport` is returned as well; its `relative_error` is that of
                the weight.

        Returns:
            The layer, or the pair (layer, report).

        Raises:
            DTypeError: `linear` is no `nn.Linear`, or its weight is quantized.
            ShapeError: Modes whose product is not the number of features.
            RankError: `truncation.max_rank` is a list that the bonds cannot have.
            NonFiniteError: The weight holds a NaN or an infinity.
        """
        if not isinstance(linear, nn.Linear):
            raise DTypeError(
                f"linear: expected a torch.nn.Linear, got {type(linear).__name__}; make one of its weight "
                "(out, in) and its bias first"
            )
        weight = linear.weight.detach()
        if not (weight.is_floating_point() or weight.is_complex()):
            raise DTypeError(f"linear: expected a float weight, got {weight.dtype}; dequantize it first")
        rows, columns = paired_modes(
            _checked(out_modes, linear.out_features, "out_modes"),
            _checked(in_modes, linear.in_features, "in_modes"),
            num_cores,
            names=("out_modes", "in_modes"),
        )
        matrix, report = TTMatrix.from_dense(weight, rows, columns, truncation, return_report=True)
        layer = cls.from_tt_matrix(matrix, linear.bias, cache=cache).train(linear.training)
        return (layer, report) if return_report else layer

    @classmethod
    def from_tt_matrix(cls, matrix: TTMatrix, bias: Tensor | None = None, *, cache: bool = False) -> Self:
        """The layer whose weight is a TT-matrix of shape (out_features, in_features).

        Args:
            matrix: The weight; its norm is shared among the cores.
            bias: Shape (out_features,), or None; copied.
            cache: See the class.

        Raises:
            ShapeError: `bias` has another shape.
        """
        if bias is not None and tuple(bias.shape) != (matrix.shape[0],):
            raise ShapeError(f"bias: expected shape ({matrix.shape[0]},), got {tuple(bias.shape)}")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_modes, layer.out_modes = matrix.columns, matrix.rows
        layer.out_features, layer.in_features = matrix.shape
        layer.cache, layer._cached = cache, None
        layer.cores = TTParameter(share_norm(matrix.as_train().cores))
        layer.register_parameter("bias", None)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone())
        return layer

    @torch.no_grad()
    def reset_parameters(self, seed: int | torch.Generator | None = None) -> None:
        """Draw new weights of the present ranks, with the variance that `nn.Linear` gives to its own.

        Args:
            seed: An integer, a generator, or None for torch's global generator.
        """
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        core = self.cores.core_parameters()[0]
        self.cores.assign(self._initial_cores(self.cores.ranks[1:-1], generator, core.dtype))
        if self.bias is not None:
            self.bias.copy_(self._initial_bias(generator, self.bias.dtype))

    def _initial_cores(
        self, ranks: Sequence[int], generator: torch.Generator | None, dtype: torch.dtype | None
    ) -> Cores:
        merged = [m * n for m, n in zip(self.out_modes, self.in_modes, strict=True)]
        factor = (3 * self.in_features) ** (-0.5 / len(merged))
        cores = random_cores(merged, ranks, seed=generator, dtype=dtype)
        return share_norm([scaled(core, factor) for core in cores])

    def _initial_bias(self, generator: torch.Generator | None, dtype: torch.dtype) -> Tensor:
        device = "cpu" if generator is None else generator.device
        bias = torch.empty(self.out_features, dtype=dtype, device=device)
        bound = (bias[:1].abs().element_size() / bias.element_size() / self.in_features) ** 0.5
        (torch.view_as_real(bias) if bias.is_complex() else bias).uniform_(-bound, bound, generator=generator)
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: Shape (..., in_features), in the dtype of the cores or under autocast.

        Returns:
            Shape (..., out_features).

        Raises:
            ShapeError: The last mode of `x` is not `in_features`.
            DTypeError: Another dtype than that of the cores, outside of autocast.
            DeviceError: Another device than that of the cores.
        """
        if not x.dim() or x.shape[-1] != self.in_features:
            raise ShapeError(f"x: expected shape (..., {self.in_features}), got {tuple(x.shape)}")
        if self.cache and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return F.linear(x, self._cached_weight(), self.bias)
        autocast = torch.is_autocast_enabled(x.device.type)
        cores = self.cores.cores
        if (cores[0].dtype != x.dtype and not autocast) or cores[0].device != x.device:
            cores = self._like(x, cores)
        flat = x if x.dim() == 2 else x.reshape(-1, self.in_features)
        ranks = tuple([core.shape[0] for core in cores[1:]])
        batch = bucket(flat.shape[0])
        size = batch
        if batch > 4 and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            size = chunk_for(self.out_modes, self.in_modes, ranks, batch)
        plan = plan_for(self.out_modes, self.in_modes, ranks, size)
        if size < batch:
            parts = flat.split(size)
            y = torch.cat([run(plan, cores, part, self.bias, autocast=autocast) for part in parts])
        else:
            y = run(plan, cores, flat, self.bias, autocast=autocast)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def _like(self, x: Tensor, cores: Cores) -> Cores:
        """Stand-ins of a merged bond in the dtype of the parameters; everything else is an error."""
        core = self.cores.core_parameters()[0]
        if core.device != x.device:
            raise DeviceError(
                f"x: expected {core.device}, where the cores are, got {x.device}; move one of "
                "them with .to(...)"
            )
        if core.dtype != x.dtype:
            raise DTypeError(
                f"x: expected {core.dtype}, the dtype of the cores, got {x.dtype}; convert it with .to(...) "
                "or use torch.autocast"
            )
        return tuple(core.to(x.dtype) for core in cores)

    def _cached_weight(self) -> Tensor:
        signature = self.cores.signature()
        if self._cached is None or self._cached[0] != signature:
            with torch.inference_mode(False), torch.no_grad():
                self._cached = (signature, self.weight)
        return self._cached[1]

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles leave the kept matrix behind."""
        return {**self.__dict__, "_cached": None}

    @property
    def weight(self) -> Tensor:
        """The dense weight, shape (out_features, in_features), formed anew; differentiable."""
        cores = self.cores.cores
        with torch.autocast(cores[0].device.type, enabled=False):
            dense = _matrix.contract(_matrix.split_modes(cores, self.out_modes, self.in_modes))
        return dense.to(self.cores.core_parameters()[0].dtype)

    def tt_matrix(self) -> TTMatrix:
        """A detached copy of the weight as a `TTMatrix` of shape (out_features, in_features)."""
        return TTMatrix.from_train(self.cores.tensor_train(), self.out_modes, self.in_modes)

    @property
    def num_parameters(self) -> int:
        """Number of entries of the cores and the bias."""
        return sum(parameter.numel() for parameter in self.parameters())

    def extra_repr(self) -> str:
        """Features, modes and the largest rank."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, in_modes={self.in_modes}, "
            f"out_modes={self.out_modes}, rank={max(self.cores.ranks)}, bias={self.bias is not None}"
        )


def _checked(modes: Sequence[int] | None, features: int, name: str) -> Features:
    if modes is not None and math.prod(modes) != features:
        raise ShapeError(f"{name}: expected modes whose product is {features}, got {tuple(modes)}")
    return features if modes is None else modes

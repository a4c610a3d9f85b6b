"""`TTEmbedding`: a table of vectors as a TT-matrix, whose rows are contracted when they are looked up."""

import math
from collections.abc import Sequence
from typing import Literal, Self, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttnet import matrix_cores as _matrix
from ttnet._typing import Cores, PerBond
from ttnet.errors import ConfigError, DeviceError, DTypeError, ShapeError
from ttnet.nn.features import Features, paired_modes, share_norm
from ttnet.parameter import TTParameter
from ttnet.random import random_cores, resolve_ranks
from ttnet.truncation import Truncation, TruncationReport
from ttnet.tt_matrix import TTMatrix


class TTEmbedding(nn.Module):
    """Vectors that are looked up by index as rows of a TT-matrix; stands for `nn.Embedding`.

        index = ((i_0) v_1 + i_1) v_2 + i_2          i_0      i_1      i_2
                                                      |        |        |
        Equal indices, and equal first or last     1-[0]--r1--[1]--r2--[2]-1
        digits of different ones, are contracted      |        |        |
        once for a batch.                            e_0      e_1      e_2

    Args:
        num_embeddings: Number of vectors, or the modes of the table's rows, whose product is that number. A
            number is covered by balanced modes of a slightly larger product; rows beyond it are never read.
        embedding_dim: Length of a vector, or its modes, as many.
        rank: One rank for all bonds (clipped to what each allows), or one for each bond.
        padding_idx: Index whose vector is zero and has no gradient; negative ones count from the end.
        num_cores: How many cores, where no modes are given; 3 by default.
        seed: Seed of the initial values; by default torch's global generator draws them.
        dtype: Default: torch's default dtype.
        device: Default: the CPU.

    Attributes:
        cores: The `TTParameter`; core k is (r_k, v_k e_k, r_{k+1}), its two modes merged into one.

    Raises:
        ShapeError: Sizes below 1, or numbers of modes that differ.
        RankError: A rank that a bond cannot have.
        ConfigError: `padding_idx` is no index of the table.
        DTypeError: An integer dtype.

    Examples:
        >>> import torch
        >>> from ttnet.nn import TTEmbedding
        >>> embedding = TTEmbedding(30522, 768, rank=16)
        >>> embedding.row_modes, embedding.column_modes
        ((31, 31, 32), (12, 8, 8))
        >>> embedding(torch.tensor([[101, 7592, 102]])).shape
        torch.Size([1, 3, 768])
    """

    def __init__(
        self,
        num_embeddings: Features,
        embedding_dim: Features,
        rank: PerBond,
        padding_idx: int | None = None,
        *,
        num_cores: int | None = None,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.row_modes, self.column_modes = paired_modes(
            num_embeddings,
            embedding_dim,
            num_cores,
            names=("num_embeddings", "embedding_dim"),
            padded=True,
        )
        self.num_embeddings = (
            math.prod(self.row_modes) if isinstance(num_embeddings, Sequence) else int(num_embeddings)
        )
        self.embedding_dim = math.prod(self.column_modes)
        self.padding_idx = _read_padding(padding_idx, self.num_embeddings)
        merged = [m * n for m, n in zip(self.row_modes, self.column_modes, strict=True)]
        cores = random_cores(merged, resolve_ranks(merged, rank), seed=seed, dtype=dtype)
        self.cores = TTParameter([core.to(device) for core in share_norm(cores)])

    @overload
    @classmethod
    def from_embedding(
        cls,
        embedding: nn.Embedding,
        truncation: Truncation,
        *,
        row_modes: Sequence[int] | None = None,
        column_modes: Sequence[int] | None = None,
        num_cores: int | None = None,
        return_report: Literal[False] = False,
    ) -> Self: ...

    @overload
    @classmethod
    def from_embedding(
        cls,
        embedding: nn.Embedding,
        truncation: Truncation,
        *,
        row_modes: Sequence[int] | None = None,
        column_modes: Sequence[int] | None = None,
        num_cores: int | None = None,
        return_report: Literal[True],
    ) -> tuple[Self, TruncationReport]: ...

    @classmethod
    def from_embedding(
        cls,
        embedding: nn.Embedding,
        truncation: Truncation,
        *,
        row_modes: Sequence[int] | None = None,
        column_modes: Sequence[int] | None = None,
        num_cores: int | None = None,
        return_report: bool = False,
    ) -> Self | tuple[Self, TruncationReport]:
        """Compress an embedding by a TT-SVD of its table, padded with rows of zeros.

        Args:
            embedding: The embedding, which is not changed; its padding row counts as zero.
            truncation: Which singular values are kept; `Truncation(rtol=0.1)` bounds the relative error of
                the table in the Frobenius norm.
            row_modes: Modes of the index, whose product is at least the number of embeddings.
            column_modes: Modes of the vectors.
            num_cores: How many cores, where no modes are given; 3 by default.
            return_report: Whether the `TruncationReport` is returned as well.

        Returns:
            The layer, or the pair (layer, report).

        Raises:
            DTypeError: `embedding` is no `nn.Embedding`.
            ConfigError: It renormalizes its vectors (`max_norm`).
            ShapeError: Modes that do not fit.
            RankError: `truncation.max_rank` is a list that the bonds cannot have.
            NonFiniteError: The table holds a NaN or an infinity.
        """
        if not isinstance(embedding, nn.Embedding):
            raise DTypeError(f"embedding: expected a torch.nn.Embedding, got {type(embedding).__name__}")
        if embedding.max_norm is not None:
            raise ConfigError(
                f"embedding: expected max_norm=None, got {embedding.max_norm}; a tensor train cannot "
                "renormalize single rows: renormalize the weight once and set it to None"
            )
        count, dim = embedding.num_embeddings, embedding.embedding_dim
        if row_modes is not None and math.prod(row_modes) < count:
            raise ShapeError(
                f"row_modes: expected modes whose product is at least {count}, got {tuple(row_modes)}"
            )
        if column_modes is not None and math.prod(column_modes) != dim:
            raise ShapeError(
                f"column_modes: expected modes whose product is {dim}, got {tuple(column_modes)}"
            )
        rows, columns = paired_modes(
            count if row_modes is None else row_modes,
            dim if column_modes is None else column_modes,
            num_cores,
            names=("row_modes", "column_modes"),
            padded=True,
        )
        table = embedding.weight.detach().clone()
        if embedding.padding_idx is not None:
            table[embedding.padding_idx] = 0
        table = F.pad(table, (0, 0, 0, math.prod(rows) - count))
        matrix, report = TTMatrix.from_dense(table, rows, columns, truncation, return_report=True)
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.row_modes, layer.column_modes = matrix.rows, matrix.columns
        layer.num_embeddings, layer.embedding_dim = count, dim
        layer.padding_idx = embedding.padding_idx
        layer.cores = TTParameter(share_norm(matrix.as_train().cores))
        layer.train(embedding.training)
        return (layer, report) if return_report else layer

    @torch.no_grad()
    def reset_parameters(self, seed: int | torch.Generator | None = None) -> None:
        """Draw new values of the present ranks; the entries of the table have mean 0 and variance 1.

        Args:
            seed: An integer, a generator, or None for torch's global generator.
        """
        parameter = self.cores.core_parameters()[0]
        cores = random_cores(self.cores.shape, self.cores.ranks[1:-1], seed=seed, dtype=parameter.dtype)
        self.cores.assign(share_norm(cores))

    def forward(self, indices: Tensor) -> Tensor:
        """Look up vectors.

        Args:
            indices: Integers from 0 to num_embeddings - 1, any shape. Under torch.compile and the transforms
                of torch.func they are not checked.

        Returns:
            Shape ``(*indices.shape, embedding_dim)``.

        Raises:
            DTypeError: `indices` is not of an integer dtype.
            DeviceError: Another device than that of the cores.
            IndexError: An index that the table does not have.
        """
        if indices.dtype not in (torch.int64, torch.int32):
            raise DTypeError(f"indices: expected int64 or int32, got {indices.dtype}; convert with .long()")
        cores = self.cores.cores
        if cores[0].device != indices.device:
            raise DeviceError(
                f"indices: expected {cores[0].device}, where the cores are, got {indices.device}; move them "
                "with .to(...)"
            )
        flat = indices.reshape(-1)
        if _is_traced():
            rows = self._rows(cores, flat, shared=False)
        else:
            unique, inverse = torch.unique(flat, return_inverse=True)
            self._check(unique)
            rows = self._rows(cores, unique, shared=True)[inverse]
        rows = rows.to(self.cores.core_parameters()[0].dtype)
        if self.padding_idx is not None:
            rows = rows.masked_fill((flat == self.padding_idx).unsqueeze(1), 0)
        return rows.reshape(*indices.shape, self.embedding_dim)

    def _check(self, unique: Tensor) -> None:
        if unique.numel() and not (0 <= int(unique[0]) and int(unique[-1]) < self.num_embeddings):
            bad = int(unique[0]) if int(unique[0]) < 0 else int(unique[-1])
            raise IndexError(f"indices: expected values from 0 to {self.num_embeddings - 1}, got {bad}")

    def _rows(self, cores: Cores, indices: Tensor, *, shared: bool) -> Tensor:
        split = _matrix.split_modes(cores, self.row_modes, self.column_modes)
        with torch.autocast(indices.device.type, enabled=False):
            return _select(split, self.row_modes, indices, shared=shared).reshape(
                indices.shape[0], self.embedding_dim
            )

    @property
    def weight(self) -> Tensor:
        """The dense table, shape (num_embeddings, embedding_dim), formed anew; differentiable."""
        cores = self.cores.cores
        with torch.autocast(cores[0].device.type, enabled=False):
            dense = _matrix.contract(_matrix.split_modes(cores, self.row_modes, self.column_modes))
        dense = dense[: self.num_embeddings].to(self.cores.core_parameters()[0].dtype)
        if self.padding_idx is None:
            return dense
        is_padding = torch.arange(self.num_embeddings, device=dense.device) == self.padding_idx
        return dense.masked_fill(is_padding.unsqueeze(1), 0)

    def tt_matrix(self) -> TTMatrix:
        """A detached copy of the table with its padded rows, shape (prod(row_modes), embedding_dim)."""
        return TTMatrix.from_train(self.cores.tensor_train(), self.row_modes, self.column_modes)

    @property
    def num_parameters(self) -> int:
        """Number of entries of the cores."""
        return sum(parameter.numel() for parameter in self.parameters())

    def extra_repr(self) -> str:
        """Sizes, modes and the largest rank."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, row_modes={self.row_modes}, "
            f"column_modes={self.column_modes}, rank={max(self.cores.ranks)}{padding}"
        )


def _select(cores: Cores, modes: tuple[int, ...], indices: Tensor, *, shared: bool) -> Tensor:
    """Rows of an interval of cores, contracted as a tree.

    Args:
        cores: Core k of shape (r_k, v_k, e_k, r_{k+1}).
        modes: Row modes (v_0, ...).
        indices: Shape (n,); distinct and ascending where `shared`.
        shared: Whether parts that several indices have in common are contracted once.

    Returns:
        Shape (n, left rank, e_0 e_1 ..., right rank).
    """
    if len(cores) == 1:
        return cores[0].transpose(0, 1).index_select(0, indices)
    middle = len(cores) // 2
    stride = math.prod(modes[middle:])
    halves = []
    for part, digits in (
        (slice(None, middle), indices // stride),
        (slice(middle, None), indices % stride),
    ):
        if shared:
            unique, inverse = torch.unique(digits, return_inverse=True)
            halves.append(_select(cores[part], modes[part], unique, shared=True).index_select(0, inverse))
        else:
            halves.append(_select(cores[part], modes[part], digits, shared=False))
    left, right = halves
    product = torch.bmm(left.flatten(1, 2), right.flatten(2))
    return product.reshape(-1, left.shape[1], left.shape[2] * right.shape[2], right.shape[3])


def _is_traced() -> bool:
    """Whether torch.compile or a transform of torch.func looks on, which take no data-dependent shapes."""
    level = getattr(getattr(torch._C, "_functorch", None), "maybe_current_level", lambda: None)
    return torch.compiler.is_compiling() or level() is not None


def _read_padding(padding_idx: int | None, count: int) -> int | None:
    if padding_idx is None:
        return None
    if isinstance(padding_idx, bool) or not isinstance(padding_idx, int) or not -count <= padding_idx < count:
        raise ConfigError(f"padding_idx: expected an index from {-count} to {count - 1}, got {padding_idx!r}")
    return padding_idx % count

"""A function of indices that is asked once for each entry, checked, counted and remembered."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ttnet import linalg
from ttnet.errors import ConfigError, DTypeError, NonFiniteError, ShapeError
from ttnet.random import check_shape

VectorizedFunction = Callable[[Tensor], Tensor]
"""From indices, or points, of shape (batch, d) to values of shape (batch,)."""


class BlackBox:
    """Entries of a tensor that is given as a function, with a memory of those that were computed.

    Args:
        function: Called with indices (batch, d), int64, or with grid points (batch, d) where there are grids.
        domain: Mode sizes (n_0, ..., n_{d-1}), or one grid of points (n_k,) for each mode.
        device: Where the function is called.
        batch_size: Most entries in one call; None for no limit.

    Raises:
        ShapeError: A mode below 1, or a grid that is not one-dimensional.
        DTypeError: A grid of integers or complex numbers.
        ConfigError: `function` cannot be called, or `batch_size` is below 1.
    """

    def __init__(
        self,
        function: VectorizedFunction,
        domain: Sequence[int] | Sequence[Tensor],
        *,
        device: torch.device | str | None = None,
        batch_size: int | None = None,
    ) -> None:
        if not callable(function):
            raise ConfigError(f"function: expected something to call, got {type(function).__name__}")
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise ConfigError(f"batch_size: expected an integer of at least 1 or None, got {batch_size!r}")
        self.function = function
        self.device = torch.device("cpu" if device is None else device)
        self.batch_size = batch_size
        self.grids = _read_grids(domain)
        sizes: Any = [grid.numel() for grid in self.grids] or domain
        self.shape = check_shape(sizes)
        self.dtype: torch.dtype | None = None  # of the values, once there are some
        self.evaluations = 0
        self.nonzero = 0  # evaluated entries that are not 0
        self.largest = 0.0
        generator = np.random.default_rng(0)
        self._multipliers = generator.integers(1, 2**62, len(self.shape), dtype=np.int64) * 2 + 1
        # Labels of what is remembered, sorted, and of each the row of its index and value.
        self._labels = np.empty(0, dtype=np.int64)
        self._places = np.empty(0, dtype=np.int64)
        self._indices = np.empty((0, len(self.shape)), dtype=np.int64)
        self._values = torch.empty(0, dtype=torch.float64)
        self._filled = 0

    def __call__(self, indices: Tensor) -> Tensor:
        """Values at indices (batch, d), on the CPU in double precision; known ones are not computed again."""
        rows = indices.numpy()
        labels = rows @ self._multipliers
        found, is_known = self._find(rows, labels)
        values = torch.empty(len(labels), dtype=self._values.dtype)
        if not is_known.all():
            new = np.flatnonzero(~is_known)
            first, inverse = _distinct(rows[new], labels[new])
            computed = self._compute(torch.from_numpy(rows[new][first]))
            if computed.is_complex() and not self._values.is_complex():
                self._values, values = self._values.to(computed.dtype), values.to(computed.dtype)
            self._remember(rows[new][first], labels[new][first], computed)
            values[torch.from_numpy(new)] = computed.to(values.dtype)[torch.from_numpy(inverse)]
        values[torch.from_numpy(is_known)] = self._values[torch.from_numpy(found[is_known])]
        return values

    def _find(self, rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each index the place where its value would be remembered, and whether it is."""
        if not self._filled:
            return np.zeros(len(labels), np.int64), np.zeros(len(labels), bool)
        found = self._places[np.searchsorted(self._labels, labels).clip(max=self._filled - 1)]
        # Two entries may share a label: what is remembered counts only where the indices agree.
        return found, (self._indices[found] == rows).all(1)

    def _remember(self, rows: np.ndarray, labels: np.ndarray, values: Tensor) -> None:
        first, end = self._filled, self._filled + len(rows)
        if end > len(self._indices):
            room = max(2 * len(self._indices), end)
            self._indices = np.concatenate(
                [self._indices[:first], np.empty((room - first, rows.shape[1]), np.int64)]
            )
            self._values = torch.cat([self._values[:first], self._values.new_empty(room - first)])
        self._indices[first:end], self._values[first:end] = rows, values
        order = np.argsort(labels)
        at = np.searchsorted(self._labels, labels[order])
        self._labels = np.insert(self._labels, at, labels[order])
        self._places = np.insert(self._places, at, first + order)
        self._filled = end

    def _compute(self, indices: Tensor) -> Tensor:
        step = self.batch_size or len(indices)
        values = torch.cat([self._call(indices[k : k + step]) for k in range(0, len(indices), step)])
        self.evaluations += len(indices)
        self.nonzero += int(values.count_nonzero())
        self.largest = max(self.largest, float(values.abs().max()))
        return values

    def _call(self, indices: Tensor) -> Tensor:
        arguments = indices.to(self.device)
        if self.grids:
            columns = [grid.to(self.device)[i] for grid, i in zip(self.grids, arguments.T, strict=True)]
            arguments = torch.stack(columns, 1)
        with torch.no_grad():
            values = torch.as_tensor(self.function(arguments))
        if values.shape != indices.shape[:1]:
            raise ShapeError(
                f"function: expected values of shape {tuple(indices.shape[:1])} for an argument of shape "
                f"{tuple(indices.shape)}, got {tuple(values.shape)}; it is called with many entries at a time"
            )
        if not values.is_floating_point() and not values.is_complex():
            values = values.to(torch.get_default_dtype())
        linalg.working_dtype(values.dtype)
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            at = int((~finite).nonzero()[0])
            index = tuple(indices[at].tolist())
            where = f" (grid point {tuple(arguments[at].tolist())})" if self.grids else ""
            raise NonFiniteError(
                f"function: expected finite values, got {values[at].item()} at index {index}{where}"
            )
        self.dtype = values.dtype if self.dtype is None else torch.promote_types(self.dtype, values.dtype)
        return values.to("cpu", torch.complex128 if values.is_complex() else torch.float64)


def _distinct(rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of distinct rows, and of each row its place among them."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    if not (rows[first][inverse] == rows).all():  # two rows share a label
        _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1)


def _read_grids(domain: Sequence[int] | Sequence[Tensor]) -> list[Tensor]:
    """The grids, or an empty list where `domain` holds mode sizes."""
    entries = list(domain)
    if not any(isinstance(entry, Tensor | np.ndarray | list | tuple) for entry in entries):
        return []
    grids = [torch.as_tensor(entry) for entry in entries]
    for k, grid in enumerate(grids):
        if grid.ndim != 1 or grid.numel() == 0:
            raise ShapeError(
                f"domain: expected a grid of shape (n,) for mode {k}, got shape {tuple(grid.shape)}"
            )
        if not grid.is_floating_point():
            raise DTypeError(f"domain: expected a grid of real floats for mode {k}, got {grid.dtype}")
    return grids

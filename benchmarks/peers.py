"""The rivals: thin wrappers that give each library its data in its own form and call it as its users do.

A method is named after the work, takes the problem's data and returns attempts by variant; "" is the usual
way. A library without the operation has no such method. torch libraries get torch tensors, numpy ones arrays.
"""

import contextlib
import importlib
import io
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from harness import Attempt
from torch import Tensor

Attempts = dict[str, Attempt]
Data = SimpleNamespace


def load(module: str) -> Any:
    """Import without the chatter of the library."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def arrays(cores: list[Tensor]) -> list[np.ndarray]:
    """Cores as numpy arrays of their own."""
    return [core.numpy().copy() for core in cores]


def tensors(cores: Any) -> list[Tensor]:
    """Cores of any array type as torch tensors."""
    return [
        torch.as_tensor(np.ascontiguousarray(core)) if not isinstance(core, Tensor) else core
        for core in cores
    ]


class Counted:
    """A function of indices that counts the entries it was asked for."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.evaluations = 0

    def __call__(self, indices: Any) -> Any:
        """Values at indices (batch, d)."""
        self.evaluations += len(indices)
        return self.function(indices)


def counting(run: Callable[[Counted], Any], function: Callable[[Any], Any], read: Any) -> Attempt:
    """An attempt at a cross approximation, with a new counter for each run."""

    def counted() -> tuple[Any, int]:
        box = Counted(function)
        return run(box), box.evaluations

    return Attempt(run=counted, read=lambda pair: read(pair[0]), facts=lambda pair: {"evaluations": pair[1]})


class TTNet:
    """This library."""

    def __init__(self) -> None:
        self.ttnet = load("ttnet")
        self.apply_matrix, self.crosses = load("ttnet.apply_matrix"), load("ttnet.cross")
        self.gathers = load("ttnet.gather")

    def tt_svd(self, data: Data) -> Attempts:
        """TT-SVD by tolerance."""
        truncation = self.ttnet.Truncation(rtol=data.rtol)
        return {"": Attempt(run=lambda: self.ttnet.tt_svd(data.tensor, truncation), read=_cores)}

    def round(self, data: Data) -> Attempts:
        """Rounding by rank or tolerance."""
        train = self.ttnet.TensorTrain(data.cores)
        truncation = self.ttnet.Truncation(max_rank=data.max_rank, rtol=data.rtol)
        return {"": Attempt(run=lambda: train.truncate(truncation), read=_cores)}

    def dot(self, data: Data) -> Attempts:
        """Inner product."""
        a, b = self.ttnet.TensorTrain(data.a), self.ttnet.TensorTrain(data.b)
        return {"": Attempt(run=lambda: a.dot(b), read=float)}

    def apply(self, data: Data) -> Attempts:
        """TT-matrix times train, rounded."""
        matrix, train = self.ttnet.TTMatrix(data.matrix), self.ttnet.TensorTrain(data.cores)
        truncation = self.ttnet.Truncation(max_rank=data.max_rank)
        return {
            "": Attempt(run=lambda: self.apply_matrix.apply(matrix, train, truncation), read=_cores),
            "zip-up": Attempt(
                run=lambda: self.apply_matrix.apply(matrix, train, truncation, method="zip-up"), read=_cores
            ),
        }

    def _gather(self, train: Any, indices: Tensor) -> Tensor:
        if hasattr(train, "gather"):
            return train.gather(indices)
        return self.gathers.gather(train.cores, indices)

    def gather(self, data: Data) -> Attempts:
        """Many entries."""
        train = self.ttnet.TensorTrain(data.cores)
        return {"": Attempt(run=lambda: self._gather(train, data.indices))}

    def gradient(self, data: Data) -> Attempts:
        """Gradient of a squared loss of many entries."""

        def run() -> Any:
            leaves = [core.detach().requires_grad_() for core in data.cores]
            values = self._gather(self.ttnet.TensorTrain(leaves), data.indices)
            return torch.autograd.grad((values - data.values).square().sum(), leaves)

        return {"": Attempt(run=run)}

    def full(self, data: Data) -> Attempts:
        """The dense tensor."""
        train = self.ttnet.TensorTrain(data.cores)
        return {"": Attempt(run=train.full)}

    def cross(self, data: Data) -> Attempts:
        """Cross approximation at the tolerance, and at a tighter one to compare small errors."""

        def read(result: Any) -> list[Tensor]:
            found = result[0]
            return list(getattr(found, "cores", found))

        def attempt(rtol: float) -> Attempt:
            options = self.crosses.CrossOptions(rtol=rtol, seed=0)
            return counting(lambda f: self.crosses.cross(f, data.shape, options=options), data.function, read)

        return {"": attempt(data.rtol), "rtol / 1000": attempt(data.rtol / 1000)}


class TorchTT:
    """torchTT."""

    def __init__(self) -> None:
        self.library = load("torchtt")
        self.interpolate, self.fast = load("torchtt.interpolate"), load("torchtt._fast_mult")

    def tt_svd(self, data: Data) -> Attempts:
        """`TT(tensor, eps=...)`."""
        return {"": Attempt(run=lambda: self.library.TT(data.tensor, eps=data.rtol), read=_cores)}

    def round(self, data: Data) -> Attempts:
        """`round`."""
        train, rank = self.library.TT(list(data.cores)), data.max_rank
        options = {"eps": data.rtol or 1e-12} | ({"rmax": rank} if rank else {})
        return {"": Attempt(run=lambda: train.round(**options), read=_cores)}

    def dot(self, data: Data) -> Attempts:
        """`dot`."""
        a, b = self.library.TT(list(data.a)), self.library.TT(list(data.b))
        return {"": Attempt(run=lambda: self.library.dot(a, b), read=float)}

    def apply(self, data: Data) -> Attempts:
        """The product and its rounding, and `fast_mv`."""
        matrix, train = self.library.TT(list(data.matrix)), self.library.TT(list(data.cores))
        rank = data.max_rank
        return {
            "": Attempt(run=lambda: (matrix @ train).round(1e-12, rank), read=_cores),
            "fast_mv": Attempt(run=lambda: self.fast.fast_mv(matrix, train, 1e-12, rank), read=_cores),
        }

    def gather(self, data: Data) -> Attempts:
        """`apply_mask`."""
        train = self.library.TT(list(data.cores))
        return {"": Attempt(run=lambda: train.apply_mask(data.indices))}

    def gradient(self, data: Data) -> Attempts:
        """`apply_mask` and autograd."""

        def run() -> Any:
            leaves = [core.detach().requires_grad_() for core in data.cores]
            values = self.library.TT(leaves).apply_mask(data.indices)
            return torch.autograd.grad((values - data.values).square().sum(), leaves)

        return {"": Attempt(run=run)}

    def full(self, data: Data) -> Attempts:
        """`full`."""
        train = self.library.TT(list(data.cores))
        return {"": Attempt(run=train.full)}

    def cross(self, data: Data) -> Attempts:
        """`interpolate.dmrg_cross`."""

        def run(function: Any) -> Any:
            torch.manual_seed(0)
            return self.interpolate.dmrg_cross(function, data.shape, eps=data.rtol, dtype=data.dtype)

        return {"": counting(run, data.function, _cores)}


class TNTorch:
    """tntorch, with its two algorithms: SVDs, and eigenvectors of Gram matrices."""

    def __init__(self) -> None:
        self.library = load("tntorch")

    @staticmethod
    def _read(train: Any) -> list[Tensor]:
        # Its rounding also makes a Tucker factor of each mode.
        return _cores(train.decompress_tucker_factors())

    def tt_svd(self, data: Data) -> Attempts:
        """`Tensor(tensor, eps=...)`."""

        def attempt(algorithm: str) -> Attempt:
            return Attempt(
                run=lambda: self.library.Tensor(data.tensor, eps=data.rtol, algorithm=algorithm),
                read=self._read,
            )

        return {"": attempt("svd"), "eig": attempt("eig")}

    def round(self, data: Data) -> Attempts:
        """`round_tt`."""
        train, eps = self.library.Tensor(list(data.cores)), data.rtol or 1e-14

        def attempt(algorithm: str) -> Attempt:
            return Attempt(
                run=lambda: self.library.round_tt(train, eps=eps, rmax=data.max_rank, algorithm=algorithm),
                read=_cores,
            )

        return {"": attempt("svd"), "eig": attempt("eig")}

    def dot(self, data: Data) -> Attempts:
        """`dot`. Its first environment has the default dtype."""
        a, b = self.library.Tensor(list(data.a)), self.library.Tensor(list(data.b))
        return {"": Attempt(run=_with_default(data.a[0].dtype, lambda: self.library.dot(a, b)), read=float)}

    def gather(self, data: Data) -> Attempts:
        """Indexing by arrays."""
        train = self.library.Tensor(list(data.cores))
        return {"": Attempt(run=lambda: train[data.indices].torch())}

    def gradient(self, data: Data) -> Attempts:
        """Indexing by arrays, and autograd."""

        def run() -> Any:
            leaves = [core.detach().requires_grad_() for core in data.cores]
            values = self.library.Tensor(leaves)[data.indices].torch()
            return torch.autograd.grad((values - data.values).square().sum(), leaves)

        return {"": Attempt(run=run)}

    def full(self, data: Data) -> Attempts:
        """`torch`."""
        train = self.library.Tensor(list(data.cores))
        return {"": Attempt(run=train.torch)}

    def cross(self, data: Data) -> Attempts:
        """`cross` with the indices as the domain."""
        domain = [torch.arange(n, dtype=data.dtype) for n in data.shape]

        def run(function: Any) -> Any:
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002 what the library draws from
            with contextlib.redirect_stdout(io.StringIO()):
                return self.library.cross(
                    function,
                    domain,
                    function_arg="matrix",
                    eps=data.rtol,
                    verbose=False,
                    suppress_warnings=True,
                )

        return {"": counting(_with_default(data.dtype, run), data.function, _cores)}


class TensorLy:
    """tensorly, on its torch backend; it takes ranks, so it gets those of the solution."""

    def __init__(self) -> None:
        self.library = load("tensorly")
        load("tensorly.decomposition")

    def tt_svd(self, data: Data) -> Attempts:
        """`tensor_train`, the ranks given."""

        def attempt(svd: str) -> Attempt:
            def run() -> Any:
                with self.library.backend_context("pytorch", local_threadsafe=True):
                    return self.library.decomposition.tensor_train(
                        data.tensor, rank=list(data.ranks), svd=svd, random_state=0
                    )

            return Attempt(run=run, read=lambda found: list(found.factors))

        return {"rank given": attempt("truncated_svd"), "randomized, rank given": attempt("randomized_svd")}

    def full(self, data: Data) -> Attempts:
        """`tt_to_tensor`."""

        def run() -> Any:
            with self.library.backend_context("pytorch", local_threadsafe=True):
                return self.library.tt_to_tensor(list(data.cores))

        return {"": Attempt(run=run)}


class Teneva:
    """teneva."""

    def __init__(self) -> None:
        self.library = load("teneva")

    def tt_svd(self, data: Data) -> Attempts:
        """`svd`; its tolerance is an absolute one."""
        tensor = data.tensor.numpy().copy()
        accuracy = data.rtol * float(np.linalg.norm(tensor)) / math.sqrt(tensor.ndim - 1)
        return {"": Attempt(run=lambda: self.library.svd(tensor, e=accuracy), read=tensors)}

    def round(self, data: Data) -> Attempts:
        """`truncate` by Gram matrices, its default, and by SVDs."""
        train, options = arrays(data.cores), {"e": data.rtol or 1e-10, "r": data.max_rank or 1e12}
        return {
            "": Attempt(run=lambda: self.library.truncate(train, **options), read=tensors),
            "svd": Attempt(run=lambda: self.library.truncate(train, **options, is_eigh=False), read=tensors),
        }

    def dot(self, data: Data) -> Attempts:
        """`mul_scalar`."""
        a, b = arrays(data.a), arrays(data.b)
        return {"": Attempt(run=lambda: self.library.mul_scalar(a, b), read=float)}

    def gather(self, data: Data) -> Attempts:
        """`get_many`."""
        train, indices = arrays(data.cores), data.indices.numpy()
        return {"": Attempt(run=lambda: self.library.get_many(train, indices), read=torch.as_tensor)}

    def full(self, data: Data) -> Attempts:
        """`full`."""
        train = arrays(data.cores)
        return {"": Attempt(run=lambda: self.library.full(train), read=torch.as_tensor)}

    def cross(self, data: Data) -> Attempts:
        """`cross` with a cache."""
        start = self.library.rand(data.shape, 1, seed=0)

        def run(function: Any) -> Any:
            return self.library.cross(
                lambda indices: function(torch.as_tensor(indices)).numpy(), start, e=data.rtol, cache={}
            )

        return {"": counting(run, data.function, tensors)}


class Quimb:
    """quimb, on numpy arrays."""

    def __init__(self) -> None:
        self.library = load("quimb.tensor")

    def _state(self, cores: list[Tensor]) -> Any:
        first, *middle, last = arrays(cores)
        return self.library.MatrixProductState([first[0], *middle, last[:, :, 0]], shape="lpr")

    @staticmethod
    def _read(state: Any) -> list[Tensor]:
        state.permute_arrays("lpr")
        first, *middle, last = [state[k].data for k in range(state.L)]
        return tensors([first[None], *middle, last[:, :, None]])

    @staticmethod
    def _cutoff(rtol: float | None, bonds: int) -> dict[str, Any]:
        # The sum of squares that is cut at a bond, relative to the whole.
        return {"cutoff": rtol**2 / bonds if rtol else 0.0, "cutoff_mode": "rsum2"}

    def tt_svd(self, data: Data) -> Attempts:
        """`MatrixProductState.from_dense`."""
        tensor, dims = data.tensor.numpy().copy(), tuple(data.tensor.shape)
        cutoff = self._cutoff(data.rtol, len(dims) - 1)
        build = self.library.MatrixProductState.from_dense
        return {"": Attempt(run=lambda: build(tensor, dims, **cutoff), read=self._read)}

    def round(self, data: Data) -> Attempts:
        """`compress`."""
        state = self._state(data.cores)
        options = {"max_bond": data.max_rank, **self._cutoff(data.rtol, len(data.cores) - 1)}

        def run() -> Any:
            copy = state.copy()
            copy.compress(**options)
            return copy

        return {"": Attempt(run=run, read=self._read)}

    def dot(self, data: Data) -> Attempts:
        """`overlap`."""
        a, b = self._state(data.a), self._state(data.b)
        return {"": Attempt(run=lambda: a.overlap(b), read=float)}

    def apply(self, data: Data) -> Attempts:
        """`gate_with_mpo` in three of its methods."""
        first, *middle, last = arrays(data.matrix)
        operator = self.library.MatrixProductOperator([first[0], *middle, last[..., 0]], shape="ludr")
        state = self._state(data.cores)

        def attempt(method: str) -> Attempt:
            return Attempt(
                run=lambda: state.gate_with_mpo(operator, method=method, max_bond=data.max_rank, cutoff=0.0),
                read=self._read,
            )

        return {"direct": attempt("direct"), "zip-up": attempt("zipup"), "density": attempt("dm")}

    def full(self, data: Data) -> Attempts:
        """`to_dense`."""
        state, shape = self._state(data.cores), [core.shape[1] for core in data.cores]
        return {"": Attempt(run=state.to_dense, read=lambda vector: torch.as_tensor(vector).reshape(shape))}


class TTML:
    """ttml, whose gather loops over the indices of each mode."""

    def __init__(self) -> None:
        sys.path.append(str(Path(sys.prefix) / "ttml"))  # `make bench` puts it there
        self.library = load("ttml.tensor_train")

    def gather(self, data: Data) -> Attempts:
        """`gather`."""
        train, indices = self.library.TensorTrain(arrays(data.cores), mode=None), data.indices.numpy()
        return {"": Attempt(run=lambda: train.gather(indices), read=torch.as_tensor)}


RIVALS: dict[str, type] = {
    "ttnet": TTNet,
    "torchTT": TorchTT,
    "tntorch": TNTorch,
    "tensorly": TensorLy,
    "teneva": Teneva,
    "quimb": Quimb,
    "ttml": TTML,
}
PACKAGES = ["ttnet", "torch", "numpy", "scipy", "torchTT", "tntorch", "tensorly", "teneva", "quimb", "ttml"]


def _cores(train: Any) -> list[Tensor]:
    return [core.detach() for core in train.cores]


def _with_default(dtype: torch.dtype, function: Callable[..., Any]) -> Callable[..., Any]:
    """Run under another default dtype of torch."""

    def run(*args: Any) -> Any:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return function(*args)
        finally:
            torch.set_default_dtype(before)

    return run

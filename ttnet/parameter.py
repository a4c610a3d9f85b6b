"""`TTParameter`: a module that owns the cores that are trained and hands out trains.

Its `nn.Parameter`s keep their identity when their ranks change, so that optimizers, hooks and references
stay valid. While a bond is merged, two cores are stand-ins computed from one leaf block, so that everything
that is computed from the train works unchanged and differentiates into the block; another train can stand in
likewise.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ttnet import cores as _cores
from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.errors import DTypeError, ShapeError, StateError
from ttnet.tensor_train import TensorTrain


class TTParameter(nn.Module):
    """The trained cores of one train, parameters `core_0`, `core_1`, ...

    Args:
        train: Initial value, a `TensorTrain` or its cores; copied.

    Raises:
        ShapeError: Cores that do not fit together.

    Examples:
        >>> import ttnet
        >>> parameter = ttnet.TTParameter(ttnet.random_train((4, 5, 6), rank=3, seed=0))
        >>> [name for name, _ in parameter.named_parameters()]
        ['core_0', 'core_1', 'core_2']
    """

    refusal: str | None = None
    """Why sweeps and merged bonds are refused at the moment; None lets them."""

    replicated: bool = False
    """Whether gradients are averaged over processes whatever the shapes are, so that these may change."""

    def __init__(self, train: TensorTrain | CoresLike) -> None:
        super().__init__()
        cores = _cores.check(train.cores if isinstance(train, TensorTrain) else train)
        _live.add(self)
        self.num_cores = len(cores)
        self._substitute: Callable[[], Cores] | None = None
        self._substitutions = 0
        self._sources: Cores = ()
        for k, core in enumerate(cores):
            self.register_parameter(f"core_{k}", nn.Parameter(core.detach().clone().contiguous()))

    def core_parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters themselves, also while a bond is merged."""
        return tuple(getattr(self, f"core_{k}") for k in range(self.num_cores))

    @property
    def cores(self) -> Cores:
        """The live cores, core k of shape (r_k, n_k, r_{k+1}): read them anew at each use, keep no reference.

        They are the parameters, or, inside `merged` and `substituted`, what stands in for them.
        """
        return self.core_parameters() if self._substitute is None else self._substitute()

    @property
    def ranks(self) -> tuple[int, ...]:
        """All d + 1 ranks; the first and the last are 1."""
        return _cores.ranks_of(self.core_parameters())

    @property
    def shape(self) -> tuple[int, ...]:
        """Mode sizes."""
        return _cores.shape_of(self.core_parameters())

    def tensor_train(self) -> TensorTrain:
        """A detached copy of the present value."""
        return TensorTrain([core.detach().clone() for core in self.cores])

    def forward(self) -> TensorTrain:
        """The live train: what is computed from it differentiates into the parameters or the merged block."""
        return TensorTrain(self.cores)

    def signature(self) -> Hashable:
        """A key that changes whenever a core may have changed, for caches of what is computed from them.

        It holds the tensors themselves, so that memory which is freed and used again is not taken for them.
        Changes through `.data`, which torch does not count, leave it as it is.
        """
        tensors = (*self.core_parameters(), *self._sources)
        # A stand-in may lie where an earlier one lay, whose memory was freed: the count tells them apart.
        count = self._substitutions if self._substitute else 0
        keys = ((_Same(t), t.data_ptr(), t._version, tuple(t.shape), t.dtype, t.device) for t in tensors)
        return (count, *keys)

    @torch.no_grad()
    def assign(self, train: TensorTrain | CoresLike) -> None:
        """Take new values, possibly of other ranks, in place: every parameter stays the same object.

        Gradients are dropped. A graph that was built from the old values cannot be back-propagated any more;
        torch says so when one tries.

        Args:
            train: A train of the same mode sizes; dtype and device are those of the parameters.

        Raises:
            ShapeError: The mode sizes differ.
            DTypeError: The train is complex, the parameters are real.
            StateError: Inside `merged` or `substituted`.
        """
        self._refuse_substitute("assign")
        for parameter, core in zip(self.core_parameters(), self._check_like(train), strict=True):
            _replace(parameter, core)

    @contextmanager
    def merged(self, bond: int) -> Iterator[Tensor]:
        """Put one leaf block in the place of two cores.

            l--[k]--r--[k+1]--s   ->   l--[block]--s
                |       |                  |   |

        Args:
            bond: Bond k between cores k and k + 1.

        Yields:
            The block (l, m, n, s), a leaf that requires a gradient, float32 or better. Change it in place or
            differentiate with respect to it. Leaving the context restores the two cores as they were; keep a
            result with `assign`.

        Raises:
            ShapeError: There is no such bond.
            StateError: Inside another `merged` or `substituted`, or `refusal` is set.
        """
        self._refuse_substitute("merged")
        self.check_sweep("merged")
        if not 0 <= bond < self.num_cores - 1:
            raise ShapeError(f"bond: expected an index from 0 to {self.num_cores - 2}, got {bond}")
        left, right = (p.detach() for p in self.core_parameters()[bond : bond + 2])
        dtype = linalg.working_dtype(left.dtype)
        block = _cores.merge_bond(left.to(dtype), right.to(dtype)).requires_grad_()
        inside = stand_ins(block)

        def cores() -> Cores:
            parameters = [p.to(dtype) for p in self.core_parameters()]
            return (*parameters[:bond], *inside(), *parameters[bond + 2 :])

        with self._standing_in(cores, (block,)):
            yield block

    @contextmanager
    def substituted(self, train: TensorTrain | CoresLike) -> Iterator[None]:
        """Let another train, of any ranks, stand in for the cores: to evaluate a loss there without a change.

        Args:
            train: A train of the same mode sizes.

        Raises:
            ShapeError: The mode sizes differ.
            DTypeError: The train is complex, the parameters are real.
            StateError: Inside another `merged` or `substituted`.
        """
        self._refuse_substitute("substituted")
        cores = self._check_like(train)
        with self._standing_in(lambda: cores, cores):
            yield

    @contextmanager
    def _standing_in(self, substitute: Callable[[], Cores], sources: Cores) -> Iterator[None]:
        self._substitute, self._sources = substitute, sources
        self._substitutions += 1
        try:
            yield
        finally:
            self._substitute, self._sources = None, ()

    def check_sweep(self, name: str) -> None:
        """Refuse what mixes neighboring cores where they must keep apart, see `refusal`.

        Args:
            name: What is refused, for the message.

        Raises:
            StateError: `refusal` is set.
        """
        if self.refusal is not None:
            raise StateError(f"{name}: {self.refusal}")

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles hold the parameters, whatever stands in for them."""
        return {**self.__dict__, "_substitute": None, "_sources": (), "replicated": False}

    def __setstate__(self, state: dict[str, object]) -> None:
        """A copy is a parameter like any other."""
        super().__setstate__(state)
        _live.add(self)

    def _refuse_substitute(self, name: str) -> None:
        if self._substitute is not None:
            raise StateError(
                f"{name}: not allowed inside `with parameter.merged(...)` or `.substituted(...)`; leave it"
            )

    def _check_like(self, train: TensorTrain | CoresLike) -> Cores:
        cores = _cores.check(train.cores if isinstance(train, TensorTrain) else train)
        if _cores.shape_of(cores) != self.shape:
            raise ShapeError(f"train: expected mode sizes {self.shape}, got {_cores.shape_of(cores)}")
        if cores[0].is_complex() and not self.core_parameters()[0].is_complex():
            raise DTypeError(f"train: expected real cores, as the parameters are, got {cores[0].dtype}")
        return cores

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Tensor], prefix: str, *args: object
    ) -> None:
        self._refuse_substitute("load_state_dict")
        names = [f"{prefix}core_{k}" for k in range(self.num_cores)]
        if all(name in state_dict for name in names):
            incoming = _cores.check([state_dict[name] for name in names])
            if _cores.shape_of(incoming) == self.shape:
                for parameter, core in zip(self.core_parameters(), incoming, strict=True):
                    if parameter.shape != core.shape:
                        with torch.no_grad():
                            _replace(parameter, core)
        super()._load_from_state_dict(state_dict, prefix, *args)  # pyright: ignore[reportArgumentType]

    def extra_repr(self) -> str:
        """Mode sizes and ranks."""
        return f"shape={self.shape}, ranks={self.ranks}"


class _Same:
    """A tensor that is equal to itself only."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.tensor is self.tensor

    def __hash__(self) -> int:
        return id(self.tensor)


def stand_ins(block: Tensor) -> Callable[[], Cores]:
    """A maker of two cores whose product is the block, one of them an identity; made anew for each graph."""
    left, m, n, right = block.shape
    rank = min(left * m, n * right)
    identity = torch.eye(rank, dtype=block.dtype, device=block.device)
    if left * m <= n * right:
        return lambda: (identity.reshape(left, m, rank), block.reshape(rank, n, right))
    return lambda: (block.reshape(left, m, rank), identity.reshape(rank, n, right))


def _replace(parameter: nn.Parameter, value: Tensor) -> None:
    # `set_` raises the version counter, which assigning `.data` would not: a live graph then notices.
    parameter.grad = None
    new = value.detach().to(dtype=parameter.dtype, device=parameter.device, copy=True).contiguous()
    if new.shape == parameter.shape:
        parameter.copy_(new)
    else:
        parameter.set_(new)  # pyright: ignore[reportArgumentType, reportCallIssue]


_live: WeakSet[TTParameter] = WeakSet()


def _raise_versions(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Raise the version counter of each core that an optimizer has stepped: fused kernels do not."""
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
    for parameter in _live:
        for core in parameter.core_parameters():
            if id(core) in stepped:
                torch.autograd.graph.increment_version(core)


register_optimizer_step_post_hook(_raise_versions)

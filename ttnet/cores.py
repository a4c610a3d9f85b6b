"""Cores and what can be said of them without a gauge: check, contract, inner products, merge and split.

A train of d cores, bond k between cores k and k + 1:

    1--[0]--r1--[1]--r2-- ... --[d-1]--1
        |        |                |
"""

from itertools import accumulate, pairwise

from torch import Tensor

from ttnet import linalg
from ttnet._typing import Cores, CoresLike
from ttnet.arrays import to_tensors
from ttnet.errors import ConfigError, DeviceError, DTypeError, ShapeError
from ttnet.truncation import Truncation, select_rank, tail_weights


def check(cores: CoresLike) -> Cores:
    """Read `cores` as the cores of a train, or say why they are none.

    Args:
        cores: Tensors, or arrays of numpy, of shape (left_rank, mode, right_rank).

    Returns:
        The same tensors as a tuple.

    Raises:
        ShapeError: No core, a core that is not 3-dimensional, neighboring ranks that differ, or a boundary
            rank that is not 1.
        DTypeError: An integer core, or two dtypes.
        DeviceError: Two devices.
    """
    cores = tuple(to_tensors(cores, "cores"))
    if not cores:
        raise ShapeError("cores: expected at least one core, got none")
    first = cores[0]
    for k, core in enumerate(cores):
        if not isinstance(core, Tensor):
            raise ShapeError(f"cores: expected tensors, got {type(core).__name__} as core {k}")
        if core.ndim != 3:
            raise ShapeError(
                f"cores: expected core {k} as (left_rank, mode, right_rank), got {tuple(core.shape)}"
            )
        if min(core.shape) < 1:
            raise ShapeError(f"cores: expected sizes of at least 1 in core {k}, got {tuple(core.shape)}")
        linalg.working_dtype(core.dtype)
        if core.dtype != first.dtype:
            raise DTypeError(
                f"cores: expected one dtype, got {first.dtype} in core 0 and {core.dtype} in core {k}"
            )
        if core.device != first.device:
            raise DeviceError(f"cores: expected one device, got {first.device} and {core.device} (core {k})")
    for k, (left, right) in enumerate(pairwise(cores)):
        if left.shape[2] != right.shape[0]:
            raise ShapeError(
                f"cores: expected equal ranks at bond {k}, got {left.shape[2]} in core {k} and "
                f"{right.shape[0]} in core {k + 1}"
            )
    if first.shape[0] != 1 or cores[-1].shape[2] != 1:
        raise ShapeError(
            f"cores: expected boundary ranks of 1, got {first.shape[0]} and {cores[-1].shape[2]}"
        )
    return cores


def shape_of(cores: CoresLike) -> tuple[int, ...]:
    """Mode sizes, one for each core."""
    return tuple(core.shape[1] for core in cores)


def ranks_of(cores: CoresLike) -> tuple[int, ...]:
    """All d + 1 ranks, the two boundary ones (1) included."""
    return (*(core.shape[0] for core in cores), cores[-1].shape[2])


def possible_ranks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Largest rank that each of the d - 1 bonds of a train of this shape can use, 2^62 where it is more."""
    left = accumulate(shape[:-1], _capped_product)
    right = accumulate(reversed(shape[1:]), _capped_product)
    return tuple(map(min, left, reversed(tuple(right))))


def _capped_product(a: int, b: int) -> int:
    # Products of thousands of modes are integers of thousands of digits.
    return min(a * b, 2**62)


def left_unfold(core: Tensor) -> Tensor:
    """Core (l, n, r) as the matrix (l n, r)."""
    return core.reshape(-1, core.shape[2])


def right_unfold(core: Tensor) -> Tensor:
    """Core (l, n, r) as the matrix (l, n r)."""
    return core.reshape(core.shape[0], -1)


def absorb_left(matrix: Tensor, core: Tensor) -> Tensor:
    """Matrix (k, l) times core (l, n, r) over its left rank: (k, n, r)."""
    return (matrix @ right_unfold(core)).reshape(matrix.shape[0], core.shape[1], core.shape[2])


def absorb_right(core: Tensor, matrix: Tensor) -> Tensor:
    """Core (l, n, r) times matrix (r, k) over its right rank: (l, n, k)."""
    return (left_unfold(core) @ matrix).reshape(core.shape[0], core.shape[1], matrix.shape[1])


def contract(cores: CoresLike) -> Tensor:
    """The dense tensor of a train.

    Contracted as a tree of neighbors, so that no intermediate is larger than it has to be; modes of size 1 go
    into their neighbors first.

    Args:
        cores: Core k of shape (r_k, n_k, r_{k+1}).

    Returns:
        Shape (n_0, ..., n_{d-1}), in memory of its own.
    """
    if len(cores) == 1:
        return cores[0].flatten().clone()
    blocks = [cores[0]]
    for core in cores[1:]:
        if 1 in (core.shape[1], blocks[-1].shape[1]):
            blocks[-1] = merge_bond(blocks[-1], core).flatten(1, 2)
        else:
            blocks.append(core)
    while len(blocks) > 1:
        pairs = [merge_bond(a, b).flatten(1, 2) for a, b in zip(blocks[::2], blocks[1::2], strict=False)]
        blocks = pairs + blocks[len(pairs) * 2 :]
    return blocks[0].reshape(shape_of(cores))


def inner(bra: CoresLike, ket: CoresLike) -> Tensor:
    """Inner product <bra, ket> of two trains of one shape; `bra` is conjugated.

    Args:
        bra: Cores of shape (r_k, n_k, r_{k+1}).
        ket: Cores of shape (s_k, n_k, s_{k+1}).

    Returns:
        A scalar tensor.
    """
    environment = bra[0].new_ones(1, 1)
    for a, b in zip(bra, ket, strict=True):
        environment = extend_left(environment, a, b)
    return environment.reshape(())


def extend_left(environment: Tensor, bra: Tensor, ket: Tensor) -> Tensor:
    """Take one more core pair into a left overlap environment.

    +--bra*--          environment (r, s), bra (r, n, r'), ket (s, n, s')  ->  (r', s')
    |    |
    +---ket--
    """
    return left_unfold(bra).mH @ left_unfold(absorb_left(environment, ket))


def extend_right(environment: Tensor, bra: Tensor, ket: Tensor) -> Tensor:
    """Take one more core pair into a right overlap environment: (r', s') -> (r, s)."""
    return right_unfold(bra).conj() @ right_unfold(absorb_right(ket, environment.mT)).mT


def merge_bond(left: Tensor, right: Tensor) -> Tensor:
    """Contract two neighboring cores over their bond.

    l--[A]--k--[B]--r   ->   l--[block]--r
        |       |                |   |

    Args:
        left: Shape (left, m, k).
        right: Shape (k, n, right).

    Returns:
        Shape (left, m, n, right).
    """
    block = left_unfold(left) @ right_unfold(right)
    return block.reshape(left.shape[0], left.shape[1], right.shape[1], right.shape[2])


def split_bond(block: Tensor, truncation: Truncation, absorb: str = "right") -> tuple[Tensor, Tensor, float]:
    """Split a two-site block over its bond.

    l--[block]--r   ->   l--[A]--k--[B]--r
        |   |                |       |

    Args:
        block: Shape (left, m, n, right).
        truncation: Which singular values are kept.
        absorb: Side that carries the singular values, "left" or "right".

    Returns:
        A (left, m, k), B (k, n, right) and the discarded weight, the sum of the squares of what was cut.

    Raises:
        ShapeError: `block` is not 4-dimensional.
        ConfigError: `absorb` is neither "left" nor "right".

    References:
        Schollwoeck, Ann. Phys. 326, 96 (2011), section 4.
    """
    if block.ndim != 4:
        raise ShapeError(f"block: expected shape (left, m, n, right), got {tuple(block.shape)}")
    if absorb not in ("left", "right"):
        raise ConfigError(f"absorb: expected 'left' or 'right', got {absorb!r}")
    left, m, n, right = block.shape
    matrix = block.reshape(left * m, n * right).to(linalg.working_dtype(block.dtype))
    if absorb == "right":
        u, s, vh = linalg.svd(matrix)
    else:
        # A gradient is right for a function of the left factor, see `ttnet.factor_gradients`.
        v, s, uh = linalg.svd(matrix.mH)
        u, vh = uh.mH.resolve_conj(), v.mH.resolve_conj()
    budget = truncation.weight_budget(float(linalg.frobenius_norm(s.detach())))
    rank = select_rank(s, truncation.at_bond(0, 1), max_weight=budget)
    weight = float(tail_weights(s)[rank])
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    if linalg.needs_gradient(matrix):
        # The same matrices, whose gradient also reaches the null directions.
        a, b = (u, u.mH @ matrix) if absorb == "right" else (matrix @ vh.mH, vh)
    else:
        a, b = (u, s.unsqueeze(1) * vh) if absorb == "right" else (u * s, vh)
    return a.to(block.dtype).reshape(left, m, rank), b.to(block.dtype).reshape(rank, n, right), weight

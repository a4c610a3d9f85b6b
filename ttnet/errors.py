"""The errors that ttnet raises where a user's value enters.

Every class is also the builtin that a user would think of (`ValueError`, `TypeError`, ...), so that both
``except ttnet.errors.RankError`` and ``except ValueError`` catch it. `TTNetError` catches them all.
"""


class TTNetError(Exception):
    """Base of all errors that ttnet raises on purpose."""


class ShapeError(TTNetError, ValueError):
    """A tensor or a core has a shape that does not fit."""


class RankError(TTNetError, ValueError):
    """A rank is below 1, or above what its bond allows."""


class DTypeError(TTNetError, TypeError):
    """A dtype is not one that a train can have, or two dtypes do not go together."""


class DeviceError(TTNetError, ValueError):
    """Two tensors of one operation live on different devices."""


class PatternError(TTNetError, ValueError):
    """An axis pattern cannot be read or is not supported."""


class ConfigError(TTNetError, ValueError):
    """An option has a value it cannot have."""


class FormatError(TTNetError, ValueError):
    """A file is damaged, foreign, or of another version."""


class NonFiniteError(TTNetError, ArithmeticError):
    """A NaN or an infinity appeared where a finite value is needed."""


class StateError(TTNetError, RuntimeError):
    """An operation came at a moment when it is not allowed."""

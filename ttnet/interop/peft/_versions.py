"""Which versions of peft this bridge was tested with; others are refused when it is imported."""

import importlib.metadata

SUPPORTED = ((0, 21), (0, 22))
"""The first version that works, and the first that is refused."""


def check_version(version: str | None) -> None:
    """Refuse a version of peft whose inner parts may differ from those this bridge builds on.

    Args:
        version: Such as "0.21.2"; None where peft is not installed.

    Raises:
        ImportError: peft is missing, or outside the range.

    Examples:
        >>> check_version("0.21.2")
        >>> check_version("0.20.0")
        Traceback (most recent call last):
        ImportError: ttnet.interop.peft works with peft>=0.21,<0.22, found 0.20.0; ...
    """
    first, last = (".".join(map(str, limit)) for limit in SUPPORTED)
    needed = f"peft>={first},<{last}"
    if version is None:
        raise ImportError(
            f"ttnet.interop.peft needs {needed}, which is not installed; pip install '{needed}'"
        )
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if not SUPPORTED[0] <= numbers < SUPPORTED[1]:
        raise ImportError(
            f"ttnet.interop.peft works with {needed}, found {version}; pip install '{needed}', or use "
            "ttnet.adapters.attach, which needs no peft"
        )


def installed_version() -> str | None:
    """The version of peft that is installed, None without one."""
    try:
        return importlib.metadata.version("peft")
    except importlib.metadata.PackageNotFoundError:
        return None


check_version(installed_version())

"""The order in which a sweep visits a train, as data.

There and back is ONE sweep. A two-site visit works on cores `site` and `site + 1`, a one-site visit on `site`
alone; after it the center is handed to the right (`forward`) or to the left.
"""

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Visit:
    """One local update.

    Attributes:
        site: First core of the block.
        sites: Number of cores in the block, 1 or 2.
        forward: Whether the sweep goes right after it.
    """

    site: int
    sites: int
    forward: bool

    @property
    def last(self) -> int:
        """Last core of the block."""
        return self.site + self.sites - 1


@cache
def there_and_back(count: int, sites: int) -> tuple[Visit, ...]:
    """One sweep over a train of `count` cores, starting and ending with the center on core 0.

    The block at the right end is visited once, and so is every other one on each of the two ways.

    Args:
        count: Number of cores.
        sites: 1 or 2; a train with a single core has only one-site visits.

    Returns:
        The visits in order.
    """
    sites = min(sites, count)
    end = count - sites
    there = [Visit(site, sites, forward=True) for site in range(end)]
    back = [Visit(site, sites, forward=False) for site in range(end, -1, -1)]
    return (*there, *back)

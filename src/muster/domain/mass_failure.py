"""When so many agents are silent together that the network is rather to blame than they are.

The leader (which then gives none of them up) and the monitor (which then tells one finding instead
of many) judge by this; who counts as silent is their own knowledge.
"""

from __future__ import annotations

from typing import Final

# Of all agents; Kubernetes' share. Of a zone it takes all.
MASS_SHARE: Final = 0.55
# At this share of silent ones, or below, it is over; lower, so that it does not come and go.
OVER_SHARE: Final = 0.40
# Fewer agents than this may well die by themselves.
LEAST_SILENT: Final = 3


def is_mass_failure(silent: int, total: int, *, of_zone: bool, standing: bool) -> bool:
    """Whether `silent` of `total` agents, of one zone or of the whole cluster, are a mass failure.

    `standing`: it was one until now, and goes on until most of them are heard again.
    """
    if standing:
        return silent > OVER_SHARE * total
    share = 1.0 if of_zone else MASS_SHARE
    return silent >= LEAST_SILENT and silent >= share * total

"""What a failed call means: the same again later, and perhaps elsewhere."""

from __future__ import annotations

from muster.domain.errors import DeadlineExceeded, MusterError, Overloaded, Unavailable


class StoreChanged(MusterError):
    """The store went back behind what this leader had written: all of it is to be read again."""

    code = "store_changed"


def passes(error: MusterError) -> bool:
    """True for a peer that is away, slow or full, and for one that failed in a way it has no
    word for (a broken connection may look like that); False when it has refused the request."""
    transient = isinstance(error, Unavailable | DeadlineExceeded | Overloaded)
    return transient or type(error) is MusterError

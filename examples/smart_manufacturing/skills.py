"""Visual inspection: reads the digit stamped on a part from its 8 × 8 camera image.

`muster up --agents 4 --skills examples.smart_manufacturing.skills`
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from sklearn.svm import SVC

from examples.smart_manufacturing.images import PIXEL_MAX, SIDE, load_parts
from muster.skill import InputRejected, skill


@dataclass(frozen=True, slots=True)
class Reading:
    """What the station reports. `margin` is how far the best digit leads the next, in votes."""

    digit: int
    margin: float


@cache
def classifier() -> SVC:
    """The model; every agent trains the same one, since data, split and method are fixed."""
    parts = load_parts()
    return SVC(gamma=0.001).fit(parts.images[parts.trained], parts.labels[parts.trained])


@skill
def inspect_digit(image: list[list[float]]) -> Reading:
    """Reads one image: 8 rows of 8 grey values, 0 (paper) to 16 (ink)."""
    pixels = np.asarray(image, dtype=np.float64)
    if pixels.shape != (SIDE, SIDE):
        raise InputRejected("image", pixels.shape, f"{SIDE} rows of {SIDE} values")
    # Written so that NaN, which compares as false, is refused too.
    if not ((pixels >= 0) & (pixels <= PIXEL_MAX)).all():
        raise InputRejected("image", image, f"every value lies between 0 and {PIXEL_MAX}")
    votes = classifier().decision_function(pixels.reshape(1, -1))[0]
    best = int(np.argmax(votes))
    return Reading(best, margin=float(votes[best] - np.delete(votes, best).max()))


# Runners are forked from a process that has imported this module: trained once, shared by all.
classifier()

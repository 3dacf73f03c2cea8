"""Visual inspection: reads the digit stamped on a part from its 8 × 8 camera image.

`muster up --agents 4 --skills examples.smart_manufacturing.skills`
"""

from __future__ import annotations

from functools import cache
from typing import TypedDict

import numpy as np
from muster.skill import skill
from sklearn.svm import SVC

from examples.smart_manufacturing.images import PIXEL_MAX, SIDE, load_parts


class Reading(TypedDict):
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
        raise ValueError(f"image: {pixels.shape} is not accepted; {SIDE} rows of {SIDE} values")
    if not (np.isfinite(pixels).all() and (pixels >= 0).all() and (pixels <= PIXEL_MAX).all()):
        raise ValueError(f"image: every value lies between 0 and {PIXEL_MAX}")
    votes = classifier().decision_function(pixels.reshape(1, -1))[0]
    best = int(np.argmax(votes))
    return {"digit": best, "margin": float(votes[best] - np.delete(votes, best).max())}


# Runners are forked from a process that has imported this module: trained once, shared by all.
classifier()

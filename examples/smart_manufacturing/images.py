"""The real images: 1,797 handwritten digits (UCI, shipped with scikit-learn), and their split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIDE = 8
PIXEL_MAX = 16
# Fixes which half is trained on, so that agents and the report mean the same images.
SPLIT_SEED = 7


@dataclass(frozen=True, slots=True)
class Parts:
    """`images` (n, 64), grey values 0 to 16; `labels` (n,); both halves as sorted indices."""

    images: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    trained: npt.NDArray[np.int64]
    unseen: npt.NDArray[np.int64]

    def as_input(self, index: int) -> dict[str, list[list[float]]]:
        """What the skill takes for one image."""
        return {"image": self.images[index].reshape(SIDE, SIDE).tolist()}


def load_parts() -> Parts:
    """Every image, half of each digit for training."""
    digits = load_digits()
    trained, unseen = train_test_split(
        np.arange(len(digits.target)),
        train_size=0.5,
        random_state=SPLIT_SEED,
        stratify=digits.target,
    )
    return Parts(digits.data, digits.target, np.sort(trained), np.sort(unseen))

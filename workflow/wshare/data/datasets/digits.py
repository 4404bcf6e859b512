"""The digits of scikit-learn."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from wshare.data.dataset import Dataset, _from_arrays


def _open_digits(settings: Mapping[str, Any]) -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    return _from_arrays(pixels, digits.target, "digits", classes=10)

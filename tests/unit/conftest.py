"""What several unit tests share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from wshare.data.images import ImageFile
from wshare.data.stored import write_images

# The first call of a compiled function takes seconds; and the same examples every time make a failure repeatable.
settings.register_profile("wshare", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("wshare")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")


@pytest.fixture
def random_images(tmp_path: Path) -> Callable[..., ImageFile]:
    """Factory of files of random images [count, *shape] with random labels."""

    def make(count: int, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10, seed: int = 0) -> ImageFile:
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        labels = rng.integers(classes, size=count)
        path = tmp_path / f"images-{count}-{seed}.h5"
        preprocessing = {"mean": [0.5] * shape[0], "std": [0.25] * shape[0]}
        write_images(path, pixels, labels, [str(i) for i in range(count)], preprocessing, {}, count)
        return ImageFile(path)

    return make

"""Outputs of a network on many images."""

import numpy as np
import pytest
import torch

from wshare.evaluation.predict import predict
from wshare.models.forward import forward
from wshare.models.fusion import fused
from wshare.models.zoo import NETWORKS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet5", "resnet_ds"])
def test_predict_gives_the_same_bits_on_any_number_of_threads(name, random_images):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    images = random_images(323, (1, 28, 28))
    assert len(images.starts()) > 5
    logits = predict(model, images, threads=1)
    assert logits.dtype == np.float32
    assert logits.shape == (len(images), 10)
    for threads in (2, 5, 16):
        assert predict(model, images, threads).tobytes() == logits.tobytes()
    second = images.batch_size
    network = fused(model, images.batch(0)[:2])
    assert forward(network, images.batch(second)).tobytes() == logits[second : 2 * second].tobytes()

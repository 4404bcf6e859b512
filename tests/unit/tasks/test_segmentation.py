"""Segmentation: images as wholes, of pixels."""

import numpy as np
import pytest
import torch
from torch import nn

import wshare
from wshare.errors import UserError
from wshare.tasks import classification, segmentation
from wshare.tasks.segmentation import IGNORED


def logits(count: int = 12, classes: int = 3, side: int = 4, seed: int = 0) -> np.ndarray:
    return (2 * np.random.default_rng(seed).normal(size=(count, classes, side, side))).astype(np.float32)


def flat(maps: np.ndarray) -> np.ndarray:
    """Logits [pixels, classes] of all images."""
    return maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])


def test_an_image_is_a_mean_over_its_pixels():
    reference = logits()
    outputs = reference + logits(seed=1) / 2
    masks = np.random.default_rng(2).integers(3, size=(12, 4, 4))
    found = segmentation.score(outputs, reference, masks, 1.5)
    pixels = classification.score(flat(outputs), flat(reference), masks.reshape(-1), 1.5)
    assert found.kl == pytest.approx(pixels.kl, rel=1e-4)
    assert found.expected == pytest.approx(pixels.expected, rel=1e-5)
    np.testing.assert_allclose(found.scores, (outputs.argmax(1) == masks).mean((1, 2)))
    assert found.figures["pixel_accuracy"] == found.quality == pytest.approx(pixels.quality)
    assert found.figures["agreement"] == pytest.approx(pixels.figures["agreement"])
    assert {figure.key for figure in segmentation.FIGURES} <= found.figures.keys()
    assert segmentation.score(reference, reference, None).quality == 1


def test_ignored_pixels_count_for_nothing():
    reference, masks = logits(), logits().argmax(1)
    spoilt = masks.copy()
    spoilt[:, 0] = IGNORED
    wrong = reference.copy()
    wrong[:, :, 0] = wrong[:, ::-1, 0]
    assert segmentation.score(wrong, reference, spoilt).quality == 1
    assert segmentation.score(wrong, reference, masks).quality < 1


def test_mean_iou_is_over_all_pixels_of_a_class():
    masks = np.array([[[0, 0], [0, 1]]])
    predicted = np.array([[[0, 0], [1, 1]]])
    outputs = np.eye(3, dtype=np.float32)[predicted].transpose(0, 3, 1, 2)
    # Of the third class there is nothing in either.
    assert segmentation.score(outputs, outputs, masks).figures["mean_iou"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_one_channel_is_a_yes_or_no():
    single = logits(classes=1)
    double = np.concatenate([np.zeros_like(single), single], 1)
    other = double + logits(classes=2, seed=1)
    first, second = (other[:, 1:] - other[:, :1], single), (other - other[:, :1], double)
    one, two = segmentation.score(*first, None), segmentation.score(*second, None)
    assert one.kl == pytest.approx(two.kl)
    np.testing.assert_array_equal(one.scores, two.scores)
    assert segmentation.constant(single, None).kl == pytest.approx(segmentation.constant(double, None).kl)
    description = segmentation.describe(single[:2], {"sigmoid": True}, "net")
    assert description == {"classes": 2, "categories": None, "mask": [4, 4], "outputs": "sigmoid"}


def test_the_best_constant_is_a_map():
    """Each pixel always has one class: a map tells it, and there is nothing to be told."""
    masks = np.broadcast_to(np.arange(16).reshape(4, 4) % 3, (12, 4, 4))
    reference = 4 * np.eye(3, dtype=np.float32)[masks].transpose(0, 3, 1, 2)
    found = segmentation.constant(reference, masks)
    assert (found.quality, found.kl) == (1, pytest.approx(0, abs=1e-6))
    assert segmentation.constant(logits(200), None).quality < 0.5


@pytest.mark.slow
def test_fisher_information_is_that_of_the_divergence():
    output, generator = torch.tensor(logits(1)).requires_grad_(), torch.Generator().manual_seed(0)
    squares = torch.zeros(output.shape, dtype=torch.float64)
    for _ in range(1500):
        (gradient,) = torch.autograd.grad(segmentation.log_likelihood(output, generator), output)
        squares += gradient.double() ** 2 / 1500
    step = np.zeros((1, 3, 4, 4), np.float32)
    step[:, 1] = 0.05
    divergence = segmentation.score(output.detach().numpy() + step, output.detach().numpy(), None).kl
    assert float((squares.numpy() * step**2).sum()) / 2 == pytest.approx(divergence, rel=0.1)


def test_a_temperature_that_masks_tell():
    sure, rng = logits(200, 2, 6), np.random.default_rng(5)
    likely = 1 / (1 + np.exp(-(sure[:, 1] - sure[:, 0]) / 2))
    masks = (rng.random(likely.shape) < likely).astype(int)
    masks[:, 0] = IGNORED
    assert segmentation.temperature(sure, masks) == pytest.approx(2, rel=0.15)
    assert segmentation.temperature(sure, None) == 1


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.zeros((2, 5, 5), int), r"^masks: masks \[5, 5\], but the network gives \[4, 4\]; give masks of that size"),
        (np.full((2, 4, 4), 7), r"^masks: class index 7 in a mask, but the network has classes 0 to 2"),
        (np.full((2, 4, 4), IGNORED), r"^masks: no pixel of mask 0 counts"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message):
    description = segmentation.describe(logits()[:2], {}, "net")
    segmentation.check_labels(np.zeros((2, 4, 4), int), description, "masks")
    with pytest.raises(UserError, match=message):
        segmentation.check_labels(masks, description, "masks")
    with pytest.raises(UserError, match=r"^net: gives \[2, 3\] for 2 images, not a tensor \[2, classes, height, wid"):
        segmentation.describe(np.zeros((2, 3)), {}, "net")


def test_predictions_tell_the_share_of_pixels_that_changed():
    reference = logits()
    outputs = reference.copy()
    outputs[3, :, 0] = outputs[3, [1, 2, 0], 0]
    _, rows = segmentation.predictions(outputs, reference, None, [str(i) for i in range(12)])
    assert rows[3] == {"image": "3", "changed": 0.25, "float32": "", "compressed": ""}
    told, shown = segmentation.changes(rows, {}, None)
    assert "25.00% on the one that changed most" in told
    assert shown == [(3, ("25.00% of the pixels changed",))]
    _, known = segmentation.predictions(outputs, reference, reference.argmax(1), [""] * 12)
    assert (known[3]["float32"], known[3]["compressed"]) == (1, 0.75)
    assert not segmentation.same_predictions(outputs, reference)


@pytest.mark.parametrize("last", [nn.Identity(), nn.Softmax(1)])
def test_a_network_is_compressed(last):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), last).eval()
    with torch.no_grad():
        model[2].weight *= 5
    images = torch.randn(120, 1, 6, 6)
    options = {"evaluations": 3, "probe_images": 0}
    result = wshare.compress(model, images, quality=0.9, confidence=None, task="segmentation", options=options)
    assert result.metrics["compressed"]["pixel_accuracy"] == pytest.approx(result.metrics["relative_quality"])
    same = float((result.model(images).argmax(1) == model(images).argmax(1)).float().mean())
    assert same == pytest.approx(result.metrics["relative_quality"], abs=0.05)

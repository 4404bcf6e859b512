"""Images as a network sees them, against torchvision."""

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.pictures import noise
from wshare.data.prepare import prepare


def preprocessing(resize=None, crop=None, interpolation="bilinear", channels=3) -> dict:
    return {
        "channels": channels,
        "resize": resize,
        "crop": crop,
        "interpolation": interpolation,
        "mean": [0.5] * channels,
        "std": [0.5] * channels,
    }


def by_torchvision(image: PIL.Image.Image, options: dict) -> np.ndarray:
    from torchvision.transforms import InterpolationMode, v2

    steps = [v2.Grayscale()] if options["channels"] == 1 else [v2.RGB()]
    if options["resize"] is not None:
        steps.append(v2.Resize(options["resize"], InterpolationMode(options["interpolation"])))
    if options["crop"] is not None:
        steps.append(v2.CenterCrop(options["crop"]))
    return v2.functional.pil_to_tensor(v2.Compose(steps)(image)).numpy()


@pytest.mark.parametrize("size", [(31, 47), (60, 33), (40, 40), (5, 64)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("resize", [None, 17, 40, 50, [20, 31]])
@pytest.mark.parametrize("crop", [None, 16, 25, 52])
def test_prepare_equals_torchvision(size, interpolation, resize, crop):
    height, width = size
    for pixels, channels in ((noise(height, width, 3), 3), (noise(height, width), 1)):
        image = PIL.Image.fromarray(pixels)
        options = preprocessing(resize, crop, interpolation, channels)
        found = prepare(image, options)
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
        assert found.flags.writeable
        np.testing.assert_array_equal(found, by_torchvision(image, options))


@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    resize=st.one_of(st.none(), st.integers(1, 45)),
    crop=st.one_of(st.none(), st.integers(1, 45)),
)
@settings(max_examples=80, deadline=None)
def test_prepare_equals_torchvision_for_any_size(width, height, resize, crop):
    image = PIL.Image.fromarray(noise(height, width))
    options = preprocessing(resize, crop, channels=1)
    np.testing.assert_array_equal(prepare(image, options), by_torchvision(image, options))


def test_prepare_converts_to_the_network_channels():
    grey, colour = PIL.Image.fromarray(noise(4, 5)), PIL.Image.fromarray(noise(4, 5, 3))
    np.testing.assert_array_equal(prepare(grey, preprocessing()), np.stack([noise(4, 5)] * 3))
    np.testing.assert_array_equal(prepare(colour, preprocessing()), noise(4, 5, 3).transpose(2, 0, 1))
    np.testing.assert_array_equal(
        prepare(colour, preprocessing(channels=1)), np.asarray(colour.convert("L"))[np.newaxis]
    )


@pytest.mark.parametrize("size", [(20, 40), (40, 20), (29, 30)])
@pytest.mark.parametrize("resize", [30, [30, 30]])
def test_small_image_is_only_cropped_without_enlarge(size, resize):
    image = PIL.Image.fromarray(noise(*size, 3))
    found = prepare(image, preprocessing(resize=resize, crop=24), enlarge=False)
    np.testing.assert_array_equal(found, by_torchvision(image, preprocessing(crop=24)))


@pytest.mark.parametrize("size", [(30, 40), (90, 60)])
def test_large_image_is_resized_without_enlarge(size):
    image, options = PIL.Image.fromarray(noise(*size, 3)), preprocessing(resize=30, crop=24)
    np.testing.assert_array_equal(prepare(image, options, enlarge=False), by_torchvision(image, options))


@pytest.mark.parametrize("size", [(31, 47), (60, 33), (5, 64)])
@pytest.mark.parametrize("resize", [None, 52, [40, 61]])
@pytest.mark.parametrize("crop", [[16, 25], [52, 20]])
def test_inputs_need_not_be_square(size, resize, crop):
    image = PIL.Image.fromarray(noise(*size, 3))
    options = preprocessing(resize, crop)
    np.testing.assert_array_equal(prepare(image, options), by_torchvision(image, options))


def test_channels_may_be_in_the_order_of_opencv():
    image = PIL.Image.fromarray(noise(4, 5, 3))
    found = prepare(image, preprocessing() | {"order": "bgr"})
    np.testing.assert_array_equal(found, noise(4, 5, 3).transpose(2, 0, 1)[::-1])
    assert found.flags.c_contiguous


@pytest.mark.parametrize(("size", "inside"), [((20, 40), (16, 32)), ((40, 20), (24, 12)), ((48, 64), (24, 32))])
def test_a_letterbox_keeps_the_proportions_and_is_filled_around(size, inside):
    image = PIL.Image.fromarray(noise(*size, 3))
    found = prepare(image, preprocessing(crop=[24, 32]) | {"letterbox": 114})
    assert found.shape == (3, 24, 32)
    top, left = ((whole - part) // 2 for whole, part in zip((24, 32), inside, strict=True))
    middle = (slice(None), slice(top, top + inside[0]), slice(left, left + inside[1]))
    expected = image.resize(inside[::-1], PIL.Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found[middle], np.asarray(expected).transpose(2, 0, 1))
    outside = np.ones(found.shape, bool)
    outside[middle] = False
    assert (found[outside] == 114).all()

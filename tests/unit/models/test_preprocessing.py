"""What happens to an image before the network sees it."""

import pytest

from wshare.errors import UserError
from wshare.models import preprocessing


def test_preprocessing_given_over_found():
    found = {"resize": 256, "crop": 224, "interpolation": "bicubic", "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}
    assert preprocessing.complete_preprocessing(found, {"resize": None, "crop": 200, "std": [4, 5, 6]}) == {
        "channels": 3,
        "order": "rgb",
        "resize": None,
        "crop": 200,
        "letterbox": None,
        "interpolation": "bicubic",
        "mean": [0.1, 0.2, 0.3],
        "std": [4.0, 5.0, 6.0],
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"corp": 3}, "preprocessing: 'corp': no such key. Did you mean 'crop'"),
        ({"channels": 0}, "preprocessing.channels: 0"),
        ({"crop": 0}, "preprocessing.crop: 0"),
        ({"resize": 200}, r"preprocessing.resize: 200: must be null, the shorter side, or .height, width., at least"),
        ({"resize": [300, 200]}, r"preprocessing.resize: .300, 200.: .* at least preprocessing.crop \(224 x 224\)"),
        ({"crop": [2, 2, 2, 2]}, r"preprocessing.crop: \[2, 2, 2, 2\]: must be the side .* or \[height, width\]"),
        ({"crop": [224], "resize": 256}, "preprocessing.resize: 256: must be null"),
        ({"crop": [224, True]}, "preprocessing.crop: "),
        ({"order": "rbg"}, "preprocessing.order: 'rbg': must be one of rgb, bgr"),
        ({"letterbox": 256}, "preprocessing.letterbox: 256: must be null or a pixel value from 0 to 255"),
        ({"letterbox": 114, "resize": 256}, "preprocessing.resize: not read with letterbox"),
        ({"interpolation": "cubic"}, "preprocessing.interpolation: 'cubic'"),
        ({"mean": [0.5]}, r"preprocessing.mean: \[0.5\]: must be 3 values"),
        ({"mean": 0.5}, "preprocessing.mean: 0.5: must be 3 values"),
        ({"mean": [0.5, "0.5", 0.5]}, "preprocessing.mean: .*'0.5'.*: must be 3 values"),
        ({"mean": [0.5, float("nan"), 0.5]}, "preprocessing.mean: .*nan.*: must be 3 values"),
        ({"std": [1, 0, 1]}, "preprocessing.std: .* above 0"),
    ],
)
def test_wrong_preprocessing(given, expected):
    with pytest.raises(UserError, match=expected):
        preprocessing.complete_preprocessing({"crop": 224}, given)


def test_a_letterbox_takes_the_place_of_the_resize_that_a_source_knows():
    found = preprocessing.complete_preprocessing({"crop": 224, "resize": 256}, {"letterbox": 0, "crop": [320, 480]})
    assert (found["resize"], found["letterbox"], found["crop"]) == (None, 0, [320, 480])

"""What a network gives: tensors in any structure."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wshare.data.images import ImageArray
from wshare.errors import UserError
from wshare.evaluation.predict import predict
from wshare.models.outputs import chosen_outputs, outputs_of, structure, tensors_in, with_logits

Pair = namedtuple("Pair", ["first", "second"])
IMAGES = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@dataclass
class Found:
    logits: Tensor
    loss: Tensor | None = None


class Giving(nn.Module):
    """A convolution, whose output a function puts into a structure."""

    def __init__(self, put):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.put = nn.Conv2d(1, 2, 3), put

    def forward(self, images):
        return self.put(self.conv(images))


@pytest.mark.parametrize(
    ("put", "paths"),
    [
        (lambda x: x, [""]),
        (lambda x: (x,), ["0"]),
        (lambda x: [x, {"b": (x, None), "c": x}], ["0", "1.b.0", "1.c"]),
        (lambda x: Pair(x, x), ["first", "second"]),
        (lambda x: Found(x), ["logits"]),
        (lambda x: OrderedDict(out=x, aux=x), ["out", "aux"]),
        (lambda x: SimpleNamespace(hidden=x, logits=x), ["hidden", "logits"]),
        # Of integers nothing is compared.
        (lambda x: {"scores": x, "indices": x.argmax(1)}, ["scores"]),
    ],
)
def test_tensors_are_found_in_any_structure(put, paths):
    found = outputs_of(Giving(put), IMAGES[:2], "net")
    assert list(found) == paths
    assert all(torch.equal(tensor, found[paths[0]]) for tensor in found.values())


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (lambda x: x.sum(), r"^net: gives \[\] for 2 images, not a tensor with an output for each$"),
        (lambda x: (x.flatten(), x), r"^net: output '0' is \[64\] for 2 and \[32\] for 1 images, not .* suppression"),
        (lambda x: [{"boxes": y} for y in x], r"^net: output '0.boxes' is \[2, 4, 4\] for 2 and"),
        (lambda x: {"a": x[:1]}, r"^net: output 'a' is \[1, 2, 4, 4\] for 2"),
        (lambda x: {"a": x, "b": "text"}, r"^net: output 'b' is a str, not a tensor"),
        (lambda x: {"a": x.argmax(1)}, r"^net: gives no tensor of floats, but a dict"),
    ],
)
def test_what_has_no_entry_for_each_image_is_one_line(put, message):
    with pytest.raises(UserError, match=message):
        outputs_of(Giving(put), IMAGES[:2], "net")


def test_one_of_several_is_taken_by_its_name_or_all_of_them():
    found = {"hidden": IMAGES, "logits": IMAGES[:, 0]}
    assert [output.path for output in chosen_outputs(found, True, "net")] == ["hidden", "logits"]
    (taken,) = chosen_outputs(found, False, "net")
    assert (taken.path, taken.shape) == ("logits", (6, 6))
    assert structure([taken]) == {"structure": [{"path": "logits", "shape": [6, 6]}]}
    assert structure(chosen_outputs({"": IMAGES}, False, "net")) == {}
    with pytest.raises(UserError, match=r"^net: gives 2 tensors: a \[5, 1, 6, 6\], b \[5, 1, 6, 6\]; the task regr"):
        chosen_outputs({"a": IMAGES, "b": IMAGES}, False, "net")


def test_taken_outputs_are_side_by_side_and_the_networks_weights_stay_as_they_are():
    model = Giving(lambda x: {"a": x, "b": [x.mean((2, 3))]})
    found = outputs_of(model, IMAGES[:2], "net")
    names = list(model.state_dict())
    given = with_logits(model, structure(chosen_outputs(found, True, "net")))
    # Hooks are added once, and taken along by what computes faster.
    with_logits(given, structure(chosen_outputs(found, True, "net")))
    outputs = predict(given.eval(), ImageArray(IMAGES, None))
    whole = model.conv(IMAGES).detach()
    np.testing.assert_allclose(outputs, torch.cat([whole.flatten(1), whole.mean((2, 3))], 1).numpy(), atol=1e-5)
    assert list(given.state_dict()) == names


def test_an_output_that_changes_its_shape_later_is_told():
    model = Giving(lambda x: {"a": x[:, : 1 + (x.sum() > 1e6)], "b": x})
    given = with_logits(model, structure(chosen_outputs(outputs_of(model, IMAGES[:2], "net"), True, "net")))
    with torch.no_grad():
        model.conv.bias += 1e7
    with pytest.raises(
        UserError, match=r"output 'a' is \[5, 2, 4, 4\] for 5 images, but was \[1, 4, 4\] for each; give"
    ):
        given(IMAGES)


def test_paths_are_in_order():
    assert [path for path, _ in tensors_in({"z": IMAGES, "a": (IMAGES, IMAGES)})] == ["z", "a.0", "a.1"]

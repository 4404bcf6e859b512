"""What each kind says a layer's outputs are sums of: its weight as a matrix times these gives the layer's outputs."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from wshare.calibration.statistics import input_statistics
from wshare.models.kinds.table import layer_of
from wshare.models.state import fast

from .kinds import CONVOLUTIONS, SIZES, TRANSPOSED, inputs, layer


def check(module: nn.Module, batch: Tensor, every: int = 1) -> None:
    """Matrix times inputs, plus bias, equals what the module gives at every n-th position."""
    kind, layout = layer_of(module, "weight").kind, layer_of(module, "weight").layout
    module = module.double()
    with torch.no_grad():
        batch = batch.double()
        output = module(batch)
        count = kind.positions(module, output)
        places = torch.arange(0, count, every)
        found = kind.inputs(module, batch, output, places).numpy()
        weight = module.weight.numpy()
    # [groups, rows, samples], outputs counted group by group.
    sums = (layout.to_matrix(weight).transpose(0, 2, 1) @ found).reshape(layout.outputs(weight.shape), -1)
    bias = 0 if module.bias is None else module.bias.detach().numpy()[:, None]
    flat = expected(module, output)[:, places].reshape(-1, len(sums)).numpy()
    np.testing.assert_allclose((sums + bias).T, flat, rtol=1e-9, atol=1e-9)


def expected(module: nn.Module, output: Tensor) -> Tensor:
    """Outputs as [N, positions, outputs]."""
    if isinstance(module, nn.Linear):
        return output.reshape(1 if output.ndim == 1 else len(output), -1, output.shape[-1])
    output = output[None] if output.ndim == len(module.kernel_size) + 1 else output
    return output.flatten(2).mT


WAYS = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": 2},
    "same": {"padding": "same"},
    "same, even and dilated": {"kernel_size": 2, "padding": "same", "dilation": 3},
    "valid": {"padding": "valid", "stride": 3},
    "more stride than kernel": {"kernel_size": 1, "padding": 2, "stride": 4},
    "reflect": {"padding": 2, "padding_mode": "reflect"},
    "replicate": {"padding": 3, "padding_mode": "replicate", "stride": 2},
    "circular": {"padding": 2, "padding_mode": "circular", "dilation": 2},
    "reflect, same": {"kernel_size": 4, "padding": "same", "padding_mode": "reflect"},
}


@pytest.mark.parametrize("rank", CONVOLUTIONS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("channels", "outputs", "groups"), [(3, 4, 1), (4, 6, 2), (3, 3, 3)])
def test_a_convolution_is_its_weight_times_its_inputs(rank, way, channels, outputs, groups):
    options = {"kernel_size": 3} | WAYS[way]
    check(layer(CONVOLUTIONS[rank], channels, outputs, groups=groups, **options), inputs(rank, channels), every=2)


TURNED = {
    "plain": {},
    "strided": {"stride": 2},
    "padded": {"stride": 2, "padding": 1, "output_padding": 1},
    "dilated": {"stride": 3, "dilation": 2, "padding": 2, "output_padding": 2},
    "more padding than kernel": {"padding": 3},
    "gaps": {"kernel_size": 1, "stride": 3, "output_padding": 1},
}


@pytest.mark.parametrize("rank", TRANSPOSED)
@pytest.mark.parametrize("way", TURNED)
@pytest.mark.parametrize(("channels", "outputs", "groups"), [(3, 4, 1), (4, 6, 2), (3, 3, 3)])
def test_a_transposed_convolution_is_its_weight_times_its_inputs(rank, way, channels, outputs, groups):
    options = {"kernel_size": 3} | TURNED[way]
    check(layer(TRANSPOSED[rank], channels, outputs, groups=groups, **options), inputs(rank, channels), every=3)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_geometry_sees_the_right_pixels(data):
    rank, turned = data.draw(st.integers(1, 3)), data.draw(st.booleans())

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(rank))

    kernel, stride, dilation, padding = each(1, 3), each(1, 3), each(1, 2), each(0, 2)
    groups = data.draw(st.sampled_from((1, 2)))
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    reach = [gap * (size - 1) + 1 for size, gap in zip(kernel, dilation, strict=True)]
    if turned:
        extra = tuple(min(low, max(pair) - 1) for low, *pair in zip(each(0, 2), stride, dilation, strict=True))
        sizes = [
            (n - 1) * step - 2 * p + r + e
            for n, step, p, r, e in zip(SIZES, stride, padding, reach, extra, strict=False)
        ]
        options["output_padding"] = extra
    else:
        sizes = [n + 2 * p - r + 1 for n, p, r in zip(SIZES, padding, reach, strict=False)]
    assume(min(sizes) > 0)
    module = layer((TRANSPOSED if turned else CONVOLUTIONS)[rank], 2, 4, kernel, **options)
    check(module, inputs(rank, 2), every=2)


@pytest.mark.parametrize(
    ("module", "batch"),
    [
        (layer(nn.Linear, 5, 3), torch.randn(4, 5)),
        (layer(nn.Linear, 5, 3, bias=False), torch.randn(4, 2, 6, 5)),
        (layer(nn.Linear, 5, 3), torch.randn(5)),
        (layer(nn.Conv1d, 2, 3, 2), torch.randn(2, 9)),
        (layer(nn.ConvTranspose2d, 2, 3, 2, stride=2), torch.randn(2, 4, 3)),
    ],
    ids=["vectors", "many positions", "one vector", "one sequence", "one image"],
)
def test_inputs_of_any_rank_are_taken(module, batch):
    check(module, batch)


def test_an_output_size_that_is_asked_for_and_an_input_by_name_are_seen():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = layer(nn.ConvTranspose2d, 3, 4, 3, stride=2, bias=False)
            self.narrow = layer(nn.Conv2d, 4, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.narrow(input=self.up(images, output_size=(16, 14)))

    model, batch = Sized().eval(), inputs(2, 3)
    found = input_statistics(model, [batch], ["up", "narrow"], 0)
    assert {name: part.images for name, part in found.items()} == {"up": 4, "narrow": 4}
    # All inputs count once in a mean over positions, which 64 of 224 estimate.
    made = model.up(torch.cat([batch, batch.flip(3)]), output_size=(16, 14)).detach()
    np.testing.assert_allclose(found["narrow"].energy.sum(), float((made**2).mean((0, 2, 3)).sum()), rtol=0.3)


@pytest.mark.parametrize(
    ("shape", "mirrored"),
    [((2, 6), False), ((2, 3, 9), False), ((2, 3, 4, 5), True), ((2, 3, 4, 5, 6), True)],
    ids=["vectors", "sound", "images", "volumes"],
)
def test_pictures_alone_are_mirrored(shape, mirrored):
    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(shape[-1], 2)
            self.batches = []

        def forward(self, batch: Tensor) -> Tensor:
            self.batches.append(batch)
            return self.fc(batch)

    model, batch = Seen().eval(), torch.randn(shape)
    found = input_statistics(model, [batch], ["fc"], 0)["fc"]
    assert found.images == len(batch) * (1 + mirrored)
    expected = [batch, batch.flip(-1)] if mirrored else [batch]
    assert all(torch.equal(one, other) for one, other in zip(model.batches, expected, strict=True))


def test_a_volume_beside_images_is_put_in_no_order_that_it_does_not_have():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat, self.deep = nn.Conv2d(3, 4, 3), nn.Conv3d(1, 2, 3)
            self.register_buffer("grid", torch.zeros(1, 2, 3, 4, 5))

    model = fast(Both())
    assert model.flat.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.flat.weight.is_contiguous()
    assert model.deep.weight.is_contiguous()
    assert model.grid.is_contiguous()


def test_weights_of_other_padding_than_the_layers_own_are_found_from_the_sizes():
    class Causal(nn.Conv1d):
        """Pads inside its own forward, on both sides."""

        def forward(self, batch: Tensor) -> Tensor:
            return super().forward(functional.pad(batch, (1, 1)))

    check(layer(Causal, 3, 4, 3), inputs(1, 3))

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from wshare.artifacts.clusters import Clusters
from wshare.artifacts.sensitivity import columns
from wshare.calibration.sensitivity import Probe, chain_before, profile, resumed, row
from wshare.data.images import ImageFile
from wshare.evaluation.predict import predict
from wshare.models.forward import forward
from wshare.models.kinds.table import shareable
from wshare.models.state import fast
from wshare.models.zoo import NETWORKS, chain
from wshare.quantize.codebooks import nearest_indices, shared_weight
from wshare.quantize.kmeans import sweep
from wshare.tasks import classification
from wshare.tasks.classification import score


class Skip(nn.Module):
    """A chain of convolutions whose first output is used again at the end, by `join`."""

    def __init__(self, join):
        super().__init__()
        self.stem, self.middle, self.last = (nn.Conv2d(1, 1, 3, padding=1) for _ in range(3))
        self.norm = nn.BatchNorm1d(64)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        return self.join(self, self.last(self.middle(stem)), stem).flatten(1)


SKIPS = {
    "sum": lambda model, last, stem: last + stem,
    "product": lambda model, last, stem: last * stem.sigmoid(),
    "concatenation": lambda model, last, stem: torch.cat([last, stem], 1),
    # It adds zero to every output that the random images give, but not to every output.
    "threshold": lambda model, last, stem: last + (stem - 1e6).relu(),
}


class Flat(nn.Module):
    """A skip connection into a module that refuses images with another error than RuntimeError."""

    def __init__(self):
        super().__init__()
        self.flatten, self.first, self.second = nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64)
        self.norm = nn.BatchNorm1d(64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.flatten(x))
        return self.second(x) + self.norm(x)


def built(make, seed: int = 0) -> nn.Module:
    """The network in evaluation mode, with batch norms that do something."""
    torch.manual_seed(seed)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return fast(model)


def layer_names(model: nn.Module) -> list[str]:
    return shareable(model)


def clusters_of(model: nn.Module, names: list[str], candidates: tuple[int, ...] = (2, 5)) -> list[Clusters]:
    found = []
    for name in names:
        weight = model.get_submodule(name).weight.detach().numpy()
        result = sweep(weight, np.square(weight), k_max=8)
        ks = tuple(sorted({min(k, len(result.inertia)) for k in candidates}))
        found.append(Clusters(name, weight.shape, ks, "none", result))
    return found


def same_to_the_bit(first: Probe, second: Probe) -> bool:
    one, two = ({**vars(probe), **vars(probe.score), "score": None} for probe in (first, second))
    return all(np.array_equal(one[key], two[key]) for key in one)


def chain_names(model: nn.Module, layer: str, images: ImageFile) -> list[str]:
    names = {module: name for name, module in model.named_modules()}
    return [names[module] for module in chain_before(model, layer, images.batch(0)[:1])]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["tiny", "lenet5", pytest.param("resnet_ds", marks=pytest.mark.slow)])
def test_prefix_changes_no_bit_of_the_embedded_networks(name, order, random_images):
    model = built(NETWORKS[name]).to(memory_format=order)
    images = random_images(70, (1, 8, 8) if name == "tiny" else (1, 28, 28))
    reference = predict(model, images)
    names = layer_names(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    chained = 0
    for first in range(0, len(names), 3):
        layers = clusters_of(model, names[first : first + 3], (3,))
        with_prefix, without = (
            profile(classification, model, layers, images, reference, prefix) for prefix in (True, False)
        )
        assert all(map(same_to_the_bit, with_prefix, without))
        assert any(probe.score.kl > 0 for probe in with_prefix)
        chained += bool(chain_before(model, names[first], images.batch(0)[:1]))
    # All groups but the first have something before them to skip.
    assert chained == -(-len(names) // 3) - 1
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (lambda: torchvision.models.mobilenet_v2(width_mult=0.1, num_classes=10), "features.9.conv.1.0"),
        (lambda: torchvision.models.resnet18(num_classes=10), "layer4.1.conv1"),
        (lambda: torchvision.models.squeezenet1_1(num_classes=10), "features.12.expand1x1"),
    ],
    ids=["mobilenet_v2", "resnet18", "squeezenet1_1"],
)
def test_prefix_changes_no_bit_of_torchvision_networks(make, layer, random_images):
    model = built(make)
    images = random_images(66, (3, 33, 33))
    reference = predict(model, images)
    assert len(chain_before(model, layer, images.batch(0)[:1])) > 4
    layers = clusters_of(model, [layer])
    with_prefix, without = (
        profile(classification, model, layers, images, reference, prefix) for prefix in (True, False)
    )
    assert all(map(same_to_the_bit, with_prefix, without))


@pytest.mark.parametrize("join", SKIPS.values(), ids=SKIPS)
def test_a_connection_around_the_chain_is_found(join, random_images):
    model, images = built(lambda: Skip(join)), random_images(3)
    assert chain_names(model, "last", images) == []
    # Up to the connection's start there is a chain, but of nothing to skip.
    assert chain_names(model, "middle", images) == []
    reference = predict(model, images)
    layers = clusters_of(model, ["last"])
    with_prefix, without = (
        profile(classification, model, layers, images, reference, prefix) for prefix in (True, False)
    )
    assert all(map(same_to_the_bit, with_prefix, without))


def test_a_connection_around_the_chain_is_found_whatever_error_it_ends_in(random_images):
    model, images = built(Flat), random_images(3)
    with (
        pytest.raises(ValueError, match="expected 2D or 3D"),
        resumed(model, [model.flatten, model.first, model.second], images.batch(0)),
    ):
        forward(model, images.batch(0))
    assert chain_names(model, "second", images) == []


def test_the_chain_holds_each_module_up_to_the_one_with_the_layer(random_images):
    tiny, images = built(NETWORKS["tiny"]), random_images(2)
    assert chain_names(tiny, "conv", images) == []
    assert chain_names(tiny, "pointwise", images) == [
        "conv",
        "bn1",
        "relu1",
        "depthwise",
        "bn2",
        "relu2",
        "pointwise",
    ]
    nested = built(
        lambda: chain(stem=nn.Conv2d(1, 2, 3), body=chain(first=nn.Conv2d(2, 2, 3), second=nn.Conv2d(2, 2, 3)))
    )
    assert chain_names(nested, "body.second", images) == ["stem", "body.first", "body.second"]


def test_a_module_that_is_called_twice_cannot_be_passed_over(random_images):
    conv = nn.Conv2d(1, 1, 3, padding=1)
    model = built(lambda: nn.Sequential(conv, nn.ReLU(), conv, nn.Flatten(), nn.Linear(64, 10)))
    assert chain_names(model, "4", random_images(2)) == []


def in_place() -> nn.Module:
    """A block that overwrites what it is given, twice, and a ReLU that does."""
    return chain(
        conv1=nn.Conv2d(1, 4, 3, padding=1),
        block=chain_of_block(),
        relu=nn.ReLU(inplace=True),
        flatten=nn.Flatten(),
        fc=nn.Linear(256, 10),
    )


def chain_of_block() -> nn.Module:
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.conv = nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.relu(x.add_(0.25)))

    return Block()


@pytest.mark.parametrize(("layer", "length"), [("block.conv", 2), ("fc", 5)])
def test_modules_that_write_into_their_input_do_no_harm(layer, length, random_images):
    """Each probe gets its own copy of the kept input, or the second would see what the first left."""
    model, images = built(in_place), random_images(70)
    assert len(chain_names(model, layer, images)) == length
    reference = predict(model, images)
    layers = clusters_of(model, [layer], (2, 3, 4))
    with_prefix, without = (
        profile(classification, model, layers, images, reference, prefix) for prefix in (True, False)
    )
    assert all(map(same_to_the_bit, with_prefix, without))


@pytest.mark.parametrize("prefix", [True, False])
def test_a_probe_scores_the_network_with_that_layer_alone_replaced(prefix, random_images):
    model, images = built(NETWORKS["tiny"]), random_images(70)
    reference = predict(model, images)
    layers = clusters_of(model, ["pointwise", "fc"])
    probes = profile(classification, model, layers, images, reference, prefix)
    assert [(probe.layer, probe.k) for probe in probes] == [("pointwise", 2), ("pointwise", 5), ("fc", 2), ("fc", 5)]
    copy = built(NETWORKS["tiny"])
    codebook = layers[1].sweep.codebook(5)
    weight = copy.fc.weight.detach().clone()
    copy.fc.weight.data = torch.from_numpy(codebook[nearest_indices(weight.numpy(), codebook)])
    # A probe runs the parts of the network as they are.
    expected = score(np.concatenate([forward(copy, batch) for batch in images.batches()]), reference, images.labels)
    assert probes[3].score.kl == expected.kl
    assert np.array_equal(probes[3].score.scores, expected.scores)
    assert probes[3].inertia == layers[1].sweep.inertia[4]
    assert probes[3].weighted_inertia == layers[1].sweep.weighted_inertia[4]
    assert probes[3].inertia == pytest.approx(
        float((copy.fc.weight.detach() - weight).double().square().sum()), rel=1e-5
    )


@pytest.mark.parametrize("where", ["network", "images"])
def test_weights_and_modules_come_back_also_after_an_error(where, random_images, monkeypatch):
    model, images = built(NETWORKS["tiny"]), random_images(70)
    reference = predict(model, images)
    before = {name: (value.clone(), value.data_ptr()) for name, value in model.state_dict().items()}
    layers = clusters_of(model, ["pointwise"])
    calls = []

    def fail(*arguments: object) -> Tensor:
        calls.append(arguments)
        if len(calls) > 5:
            raise RuntimeError("stop")
        return original(*arguments)

    target = (ImageFile, "batch") if where == "images" else (nn.Linear, "forward")
    original = getattr(*target)
    monkeypatch.setattr(*target, fail)
    if where == "images":
        calls.extend(range(4))
    with pytest.raises(RuntimeError, match="stop"):
        profile(classification, model, layers, images, reference)
    monkeypatch.undo()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) and after[name].data_ptr() == at for name, (value, at) in before.items())
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in model.modules())
    assert predict(model, images).tobytes() == reference.tobytes()


def test_shared_weight_has_the_weights_shape_and_the_codebooks_values():
    weight = np.random.default_rng(0).normal(size=(3, 4, 1, 2)).astype(np.float32)
    codebook = np.array([-1, 0, 1], dtype=np.float32)
    shared = shared_weight(weight, codebook)
    assert shared.shape == weight.shape
    assert shared.dtype == np.float32
    assert np.array_equal(shared, codebook[np.abs(weight[..., None] - codebook).argmin(-1)])


def test_a_row_has_every_column_and_survives_a_network_that_is_always_wrong(random_images):
    model, images = built(NETWORKS["tiny"]), random_images(10)
    reference = predict(model, images)
    (probe,) = profile(classification, model, clusters_of(model, ["fc"], (2,)), images, reference)
    right = score(reference, reference, reference.argmax(1))
    wrong = score(reference, reference, reference.argmin(1))
    assert list(row(classification, probe, right)) == columns(classification.PROFILED)
    assert row(classification, probe, right)["relative_quality"] == probe.score.quality
    assert row(classification, probe, wrong)["relative_quality"] == 0.0
    assert row(classification, probe, right)["images"] == 10


def test_relative_quality_of_a_probe_is_its_own_over_the_float32_networks(random_images):
    """Float32 right on eight of ten, the probe on four of them: half, and not four tenths."""
    model, images = built(NETWORKS["tiny"]), random_images(10)
    reference = predict(model, images)
    labels = reference.argmax(1)
    labels[8:] = reference.argmin(1)[8:]
    outputs = reference.copy()
    outputs[:4] *= -1
    before, after = (score(logits, reference, labels) for logits in (reference, outputs))
    assert (before.quality, after.quality) == (0.8, 0.4)
    found = row(classification, Probe("fc", 2, 1.5, 0.75, after), before)
    assert found["relative_quality"] == 0.5
    assert (found["inertia"], found["weighted_inertia"], found["kl"]) == (1.5, 0.75, after.kl)


def test_a_layer_that_no_forward_pass_comes_by_loses_nothing(random_images):
    model, images = built(lambda: Skip(SKIPS["sum"])), random_images(3)
    model.spare = nn.Conv2d(1, 1, 3)
    assert chain_names(model, "spare", images) == []
    probes = profile(classification, model, clusters_of(model, ["spare"], (2,)), images, predict(model, images))
    assert [probe.score.kl for probe in probes] == [0.0]

"""`wshare.compress` and `wshare.load`: the same results as the workflow's, from images in memory."""

import copy
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import wshare
from wshare import api
from wshare.artifacts.model import write_model
from wshare.config.validation import complete_search
from wshare.data.images import normalised
from wshare.data.splits import split_indices
from wshare.data.stored import write_images
from wshare.errors import FormatError, UserError
from wshare.files.sealed import read_json
from wshare.files.tables import read_sealed
from wshare.models import zoo as networks
from wshare.models.description import Fetched
from wshare.packed.format import load_packed
from wshare.search.artifacts import Files
from wshare.stages.arguments import Machine, ModelFiles, PackedFiles, Samples, SearchedFiles
from wshare.stages.evaluate_dense import evaluate_dense
from wshare.stages.extract_weights import extract_weights
from wshare.stages.inspect_model import inspect_model
from wshare.stages.measure_inputs import measure_inputs
from wshare.stages.pack_model import pack_model
from wshare.stages.search import search as search_stage
from wshare.tasks.classification import measure, score

ROOT = Path(__file__).parents[2]
COUNT, HELD_OUT = 90, 40
FEW = {"evaluations": 3, "probe_images": 4}
MEAN, STD = [0.4], [0.3]


def network(seed: int = 0) -> nn.Module:
    """The smallest network, with weights and statistics that make its outputs differ from image to image."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = networks.tiny()
        model.train()(torch.randn(64, 1, 8, 8))
    return model.eval()


def pixels(count: int = COUNT, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)


IMAGES = normalised(pixels(), MEAN, STD)
with torch.no_grad():
    LABELS = network()(IMAGES).argmax(1).numpy()
# The network is right on most images.
LABELS[::4] = np.random.default_rng(1).integers(0, 10, len(LABELS[::4]))


def compressed(model: nn.Module | None = None, images: object = IMAGES, labels: object = None, **given: object):
    settings = {"quality": 0.5, "confidence": None, "held_out": HELD_OUT, "options": FEW}
    return wshare.compress(model or network(), images, labels, **settings | given)


@pytest.fixture(scope="module")
def result() -> wshare.Result:
    return compressed(labels=LABELS)


@pytest.mark.slow
def test_the_five_lines_of_the_docstring_run(tmp_path, monkeypatch, capsys):
    lines = re.findall(r"^    (.*)$", api.__doc__, flags=re.MULTILINE)
    assert len([line for line in lines if line]) <= 5
    monkeypatch.chdir(tmp_path)
    model = network()
    images = normalised(pixels(1100), MEAN, STD)
    names = {"model": model, "images": images, "labels": model(images).argmax(1)}
    exec("\n".join(lines), names)
    assert str(names["result"]) in capsys.readouterr().out
    loaded = wshare.load("net.wshare.safetensors", network(3))
    assert torch.equal(loaded(images), names["result"].model(images))
    assert names["result"].metrics["quality_target"] == 0.99
    assert names["result"].recipe["settings"]["confidence"] == 0.9


@pytest.mark.slow
def test_compress_prints_nothing(capfd, monkeypatch):
    # Those that the command line has set, if it ran in this process.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    compressed()
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.slow
def test_images_for_calibration_alone_change_the_file_and_not_what_is_measured_on():
    random = np.random.default_rng(9)
    further = torch.from_numpy(random.normal(size=(20, *IMAGES.shape[1:])).astype(np.float32))
    found, alone = compressed(calibration=further), compressed()
    assert found.recipe["artifacts"]["calibration"]["further_images"] == 20
    assert "further_images" not in alone.recipe["artifacts"]["calibration"]
    assert found.packed != alone.packed
    for split in ("search", "held_out"):
        assert found.metrics["sha256"][f"{split}_images"] == alone.metrics["sha256"][f"{split}_images"]


@pytest.mark.parametrize("place", [0, -1])
def test_images_for_calibration_that_are_searched_with_or_held_out_are_refused(place):
    with pytest.raises(UserError, match=r"calibration: 1 of 1 are (search|held-out) images too; give others"):
        compressed(calibration=IMAGES[place][None])


def test_images_for_calibration_are_refused_by_a_method_that_has_none():
    further = torch.zeros(3, *IMAGES.shape[1:])
    with pytest.raises(UserError, match="calibration: method 'uniform' goes by no calibration statistics"):
        compressed(calibration=further, method="uniform", options={})


# The same as the workflow's.


def staged(folder: Path, settings: dict, labels: np.ndarray | None, task: str) -> Path:
    """All files of the workflow's stages, for the same network and images."""
    spec = {
        "name": "tiny",
        "task": task,
        "classes": 10,
        "builder": {"kind": "embedded", "name": "tiny", "arguments": {}},
        "dropped": [],
        "input": [1, 8, 8],
    }
    preprocessing = {"mean": MEAN, "std": STD}
    files = {
        name: folder / name
        for name in ("model.json", "weights.safetensors", "layers.json", "weights.h5", "calibration.h5", "search.h5")
    }
    model, weights = files["model.json"], files["weights.safetensors"]
    write_model(Fetched(network(), spec | {"published": None, "preprocessing": preprocessing}), weights, model)
    splits = split_indices(COUNT, labels, {"search": COUNT - HELD_OUT, "held_out": HELD_OUT}, 0)
    for name in ("search", "held_out"):
        chosen = np.random.default_rng(0).permutation(splits[name])
        keys = [str(i) for i in chosen]
        given = None if labels is None else labels[chosen]
        write_images(folder / f"{name}.h5", pixels()[chosen], given, keys, preprocessing, {}, len(splits["held_out"]))
    images, baseline = files["search.h5"], folder / "baseline.h5"
    evaluate_dense(
        model, weights, images, folder / "held_out.h5", baseline, folder / "other.h5", folder / "dense.json", 1, 0
    )
    inspect_model({"include": [], "exclude": []}, "m", model, weights, files["layers.json"])
    listed = files["layers.json"]
    extract_weights({"images": 128, "seed": 0}, model, weights, listed, images, files["weights.h5"], Machine(1, 0))
    measure_inputs(
        *({"images": 512, "seed": 0}, model, weights, files["layers.json"]),
        *(Samples(images), files["calibration.h5"], Machine(1, 0)),
    )
    described, needed = (ModelFiles(model, weights), listed), Files(files["weights.h5"], files["calibration.h5"])
    searched = SearchedFiles(*(folder / name for name in ("front.csv", "losses.csv", "recipe.json")))
    packing = {"packing": {"format": settings["options"]["format"], "batch_norm": "auto"}}
    journal, packed = folder / "journal.jsonl", folder / "packed.safetensors"
    given = Samples(images), baseline, needed
    search_stage(settings | packing, *described, *given, "code", journal, searched, Machine(1, 0))
    written = PackedFiles(packed, folder / "dense.safetensors", folder / "sizes.json")
    pack_model(*described, images, baseline, needed, searched.recipe, written, threads=1)
    return packed


@pytest.mark.slow
@pytest.mark.parametrize("options", [FEW, {"compression_rate": 8, "format": "fixed", "fold_batch_norm": False}])
@pytest.mark.parametrize(
    ("task", "labels"), [("classification", None), ("classification", LABELS), ("regression", None)]
)
def test_workflow_and_api_give_the_same_bytes(tmp_path, options, task, labels):
    search = {"method": "rate_distortion", "quality_target": 0.5, "confidence": None, "options": options}
    packed = staged(tmp_path, complete_search(search) | {"seed": 0}, labels, task)
    result = compressed(labels=labels, options=options, threads=2, task=task)
    assert result.packed == packed.read_bytes()
    recipe = read_json(tmp_path / "recipe.json")
    # The API has no files that a recipe could be made from.
    assert recipe.pop("made_from").keys() == {"weights.h5", "calibration.h5"}
    # The fingerprint of decoded pixels is another than that of floats.
    changed = {"model": recipe["model"] | {"name": "Sequential"}, "search_images": result.recipe["search_images"]}
    assert result.recipe == recipe | changed | {"made_from": {}}
    columns = list(result.front[0])
    table, _ = read_sealed(tmp_path / "front.csv")
    assert [[float(row[name]) for name in columns] for row in table] == [list(row.values()) for row in result.front]
    assert result.metrics["bytes"] == read_json(tmp_path / "sizes.json")["bytes"]
    assert result.metrics["measure"] == measure(labels)
    assert result.recipe["task"] == task


# The verdict.


@pytest.mark.slow
def test_the_verdict_is_that_of_the_saved_file_on_the_held_out_images(result, tmp_path):
    result.save(tmp_path / "net")
    model, loaded = network(), wshare.load(tmp_path / "net", network(1))
    held_out = split_indices(COUNT, LABELS, {"search": COUNT - HELD_OUT, "held_out": HELD_OUT}, 0)["held_out"]
    images, labels = IMAGES[held_out], LABELS[held_out]
    with torch.inference_mode():
        found = score(loaded(images).numpy(), model(images).numpy(), labels)
    assert result.metrics["compressed"]["images"] == HELD_OUT
    assert result.metrics["compressed"]["top1"] == found.figures["top1"]
    assert result.metrics["compressed"]["kl"] == pytest.approx(found.kl, rel=1e-4)
    assert result.metrics["bytes"]["packed"] == (tmp_path / "net").stat().st_size
    text = str(result)
    assert f"{result.metrics['bytes']['packed']:,} bytes" in text
    assert result.metrics["verdict"] in text


@pytest.mark.slow
def test_no_choice_looks_at_held_out_images():
    others = [(normalised(pixels(20, seed), MEAN, STD), LABELS[:20]) for seed in (5, 6)]
    first, second = (compressed(labels=LABELS, held_out=other) for other in others)
    assert first.packed == second.packed
    assert first.front == second.front
    assert first.metrics["sha256"]["held_out_images"] != second.metrics["sha256"]["held_out_images"]
    assert first.metrics["compressed"]["kl"] != second.metrics["compressed"]["kl"]


@pytest.mark.slow
def test_another_seed_deals_other_images(result):
    other = compressed(labels=LABELS, seed=1)
    assert other.metrics["sha256"]["held_out_images"] != result.metrics["sha256"]["held_out_images"]


# What goes in.


@pytest.mark.slow
def test_batches_are_as_good_as_a_tensor(result):
    loader = DataLoader(TensorDataset(IMAGES, torch.from_numpy(LABELS)), batch_size=32)
    halves = (IMAGES[:50], IMAGES[50:].to(torch.float64))
    for images, labels in ((loader, None), (halves, LABELS.tolist()), (IMAGES.numpy(), torch.from_numpy(LABELS))):
        found = compressed(images=images, labels=labels)
        assert found.packed == result.packed
        assert found.metrics["sha256"] == result.metrics["sha256"]


def strides(model: nn.Module) -> list:
    return [
        (name, tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr())
        for name, tensor in model.state_dict().items()
    ]


@pytest.mark.slow
def test_the_model_and_the_callers_settings_stay_as_they_are(result):
    model = network().to(memory_format=torch.channels_last)
    model.fc.train()
    model.conv.weight.requires_grad_(False)
    calls = []
    model.fc.register_forward_hook(lambda *_: calls.append(None))
    before, layout = copy.deepcopy(model.state_dict()), strides(model)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    flags = [module.training for module in model.modules()]
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            found = compressed(model, labels=LABELS)
            assert torch.is_inference_mode_enabled()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert found.packed == result.packed
    assert strides(model) == layout
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert not model.conv.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in found.model.modules())
    assert not any(tensor.is_inference() for tensor in found.model.state_dict().values())


@pytest.mark.slow
def test_layers_are_chosen_by_name(result):
    found = compressed(labels=LABELS, exclude=["fc"], include=["re:.*(c|wise).*"])
    assert list(found.recipe["layers"]) == ["conv", "depthwise", "pointwise"]
    assert torch.equal(found.state_dict()["fc.weight"], network().fc.weight)
    assert list(result.recipe["layers"]) == ["conv", "depthwise", "pointwise", "fc"]


def with_nan() -> nn.Module:
    model = network()
    model.fc.weight.data[3, 4] = torch.nan
    return model


def with_nan_statistics() -> nn.Module:
    model = network()
    model.bn1.running_mean[0] = torch.nan
    return model


class Unused(nn.Sequential):
    def __init__(self):
        super().__init__(OrderedDict(net=network()))
        self.spare = nn.Linear(3, 3)

    def forward(self, images):
        return self.net(images)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": nn.Sequential(nn.Flatten())}, "model: the network has no layer that can be shared"),
        ({"model": with_nan()}, "model: fc.weight holds 1 NaN or infinite values of"),
        ({"model": with_nan_statistics()}, "NaN or infinite values of"),
        ({"model": "net"}, "model: a str, not an nn.Module"),
        (
            {"model": nn.Sequential(nn.Conv2d(1, 4, 3))},
            r"model: gives \[2, 4, 6, 6\] for 2 images, which does not tell its task; say which: segm",
        ),
        (
            {"model": nn.Sequential(nn.Conv2d(3, 4, 3))},
            r"model: fails on images \[1, 8, 8\] .*; give images as the model takes them",
        ),
        (
            {"exclude": ["cnov"]},
            "^exclude.'cnov': no such layer. Did you mean 'conv'.* `model.named_modules..` has them",
        ),
        ({"exclude": ["re:.*"]}, "share of the 4 that can be: named in exclude; change include or exclude$"),
        ({"images": IMAGES[:0]}, "images: .* holds no image"),
        ({"images": []}, "images: no image"),
        ({"images": IMAGES[0, 0, 0]}, r"images: \[8\]; give a tensor \[N, C, H, W\] or batches"),
        ({"images": torch.from_numpy(pixels())}, "images: torch.uint8; give float images as the model takes them"),
        ({"images": IMAGES.where(IMAGES < 1, torch.nan)}, "images: holds NaN or infinite values"),
        ({"images": 3}, "images: a int; give a tensor"),
        ({"images": [{"pixels": IMAGES}]}, "images: a batch is a mapping of 'pixels'; set input= to the"),
        ({"images": [IMAGES, IMAGES[:, :, 1:]]}, r"fails on images \[1, [78], 8\] .* takes them, of one size"),
        ({"images": [(IMAGES, torch.from_numpy(LABELS))], "labels": LABELS}, "labels are given too"),
        ({"images": [(IMAGES[:50], torch.zeros(50).long()), IMAGES[50:]]}, "some batches bring labels and some do not"),
        ({"images": IMAGES.to("meta")}, r"images: on meta, but the model is on cpu; pass them with .to\('cpu'\)"),
        ({"labels": LABELS[:-1]}, r"images: 90 images, but labels are int64 \[89\]; give one an image"),
        ({"labels": LABELS / 2}, r"labels are float32 \[50\]; give one class index, an integer, an image"),
        ({"labels": LABELS + 1}, "labels: class index 10, but the network has classes 0 to 9"),
        ({"labels": LABELS - 1}, "labels: class index -1, but the network has classes 0 to 9"),
        (
            {"quality": 0.99, "confidence": 0.95},
            "50 search images and 40 held-out ones cannot confirm",
        ),
        ({"quality": 1.5}, "quality_target: 1.5 is greater than the maximum of 1"),
        ({"quality": 1.0}, r"set options\.max_kl"),
        ({"options": {"evaluation": 3}}, "options.evaluation: unknown key. Did you mean 'evaluations'"),
        ({"options": {"max_kl": 0.1, "compression_rate": 8}}, "options.max_kl: not read with compression_rate"),
        ({"exclude": ["conv9"]}, "^exclude.'conv9': no such layer. Did you mean 'conv'.* `model.named_modules"),
        ({"held_out": 89}, "held_out: 89 of 90 images; it takes one held-out image and two search images"),
        ({"held_out": 0.001}, "held_out: 0.001 of 90 images"),
        ({"held_out": IMAGES[:9], "labels": LABELS}, "held_out: give labels with both"),
        ({"held_out": IMAGES[:9, :, 1:]}, r"held_out: images \[1, 7, 8\], but images are \[1, 8, 8\]"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(given, message):
    with pytest.raises(UserError, match=message) as raised:
        compressed(**given)
    assert "\n" not in str(raised.value)


# What comes out.


def test_a_saved_file_is_whole_or_absent(result, tmp_path):
    result.save(tmp_path / "new" / "net")
    assert (tmp_path / "new" / "net").read_bytes() == result.packed
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net"]
    state = result.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_packed(tmp_path / "new" / "net").items())
    assert all(torch.equal(tensor, state[name]) for name, tensor in result.model.state_dict().items())


class Wider(nn.Sequential):
    def __init__(self):
        super().__init__(OrderedDict(network()._modules))
        self.fc = nn.Linear(512, 11)
        self.extra = nn.Linear(2, 2)


def test_a_file_of_another_architecture_changes_nothing(result, tmp_path):
    path = tmp_path / "net"
    result.save(path)
    model = Wider()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        UserError, match=r"net: made for another architecture: fc.weight \(\[10, 512\] in the file, \[11"
    ):
        wshare.load(path, model)
    missing = r"net: made for another architecture: conv1.weight \(missing in the file, \[6, 1, 5, 5\] in the model\)"
    with pytest.raises(UserError, match=missing):
        wshare.load(path, networks.lenet5())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    path.write_bytes(result.packed[:-1])
    with pytest.raises(FormatError, match="net: not a whole safetensors file"):
        wshare.load(path, network())


def test_a_plot_shows_every_price(result, monkeypatch):
    chart = result.plot().to_dict()
    values = chart["data"]["values"]
    assert len(values) == len(result.front)
    assert [row["state"] for row in values].count("chosen") == 1
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(UserError, match="plot: altair is not installed"):
        result.plot()


@pytest.mark.slow
def test_what_the_package_offers_is_there_and_imported_late():
    assert set(wshare.__all__) == {name for name in wshare.__all__ if hasattr(wshare, name)}
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        _ = wshare.compres
    program = "import sys, wshare; print('torch' in sys.modules); wshare.load; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment())
    assert run.stdout.split() == ["False", "True"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "workflow")}


# The wheel.

EXAMPLE = """
import sys
import torch
import wshare
from wshare.models import zoo as networks

model = networks.tiny().eval()
images = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
result = wshare.compress(model, images, quality=0.5, confidence=None, options={"evaluations": 1, "probe_images": 0})
result.save("net.wshare.safetensors")
wshare.load("net.wshare.safetensors", model)
print(wshare.__file__)
"""


@pytest.mark.slow
def test_the_wheel_is_whole(tmp_path):
    """Installed where nothing but the dependencies is on the path, it runs the example and its console script."""
    source, wheels, place = tmp_path / "source", tmp_path / "wheels", tmp_path / "venv"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "workflow", source / "workflow", symlinks=True, ignore=ignored)
    bare = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(*command: object) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=bare, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", wheels)
    (wheel,) = wheels.iterdir()
    run(sys.executable, "-m", "venv", "--without-pip", place)
    run(*pip, "--python", place / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    (packages,) = place.glob("lib/python*/site-packages")
    # A line of a path file adds a folder, but does not read the path files in it: no editable install comes along.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    files = {str(path.relative_to(ROOT / "workflow")) for path in (ROOT / "workflow" / "wshare").rglob("*.py")}
    installed = {str(path.relative_to(packages)) for path in (packages / "wshare").rglob("*.py")}
    assert installed == files
    found = run(place / "bin" / "python", "-c", EXAMPLE).strip()
    assert Path(found) == packages / "wshare" / "__init__.py"
    text = run(place / "bin" / "wshare", "inspect", "net.wshare.safetensors")
    assert re.search(r"^depthwise +16x1x3x3 +144 ", text, flags=re.MULTILINE)

"""The commands of a user, from a checkpoint and a folder of images to a packed file and what is told of it."""

import functools
import importlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

import wshare
from wshare.cli import main
from wshare.commands import compress as compressing
from wshare.commands import export as exporting
from wshare.data.images import normalised
from wshare.files.sealed import read_json, sha256_file, write_json
from wshare.models import zoo as networks
from wshare.models.state import CPU, load_state, state_of
from wshare.packed.contents import contents
from wshare.packed.format import load_packed, write_packed
from wshare.quantize.codebooks import Shared, nearest_indices
from wshare.quantize.kmeans import sweep
from wshare.search.methods import METHODS

COUNT, CLASSES = 60, 10
MODULE = """from wshare.models import zoo as networks

def build(width=1):
    return networks.lenet5() if width == 2 else networks.tiny()
"""
GRAY = json.dumps({"channels": 1, "crop": 8, "mean": [0.4], "std": [0.3]})
SAME = ["--recipe", "recipe.json", "--images", "images", "--output", "other.safetensors"]
LAYERS = ["conv", "depthwise", "pointwise", "fc"]
# Of a layer, as a recipe of a method by k records it.
CLUSTERING = {
    "method": "exact",
    "k_max": 16,
    "bins": 16384,
    "weighting": "none",
    "candidates": [2],
    "keep_zeros": False,
    "seed": 0,
}


def state(seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = networks.tiny()
        model.train()(torch.randn(64, 1, 8, 8))
    return state_of(model)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, two checkpoints, a module that builds the network, and what `compress` leaves."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "ournet.py").write_text(MODULE)
    for seed in (0, 1):
        save_file(state(seed), folder / f"weights{seed}.safetensors")
    for i, (image, label) in enumerate(zip(pixels(), labels(), strict=True)):
        path = folder / f"images/c{label}/{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image[0]).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        importlib.invalidate_caches()
        assert main(compress("net.safetensors", "--recipe", "recipe.json", "--metrics", "metrics.json")) == 0
    return folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 1, 8, 8), dtype=np.uint8)


def labels() -> list[int]:
    """Of every second image the class that the network gives it: one that guesses is refused."""
    model = networks.tiny().eval()
    load_state(model, state(0), "weights")
    with torch.inference_mode():
        predicted = model(normalised(pixels(), [0.4], [0.3])).argmax(1).tolist()
    return [predicted[i] if i % 2 else i // 2 % CLASSES for i in range(COUNT)]


def net(seed: int = 0) -> list[str]:
    weights = f"weights{seed}.safetensors"
    return ["--architecture", "python:ournet:build", "--weights", weights, "--preprocessing", GRAY]


def compress(output: str, *flags: str) -> list[str]:
    target = ["--quality", "0.5", "--confidence", "none", "--options", '{"evaluations": 2, "probe_images": 0}']
    return ["compress", *net(), "--images", "images", "--class-map", "sorted", "--output", output, *target, *flags]


def error(capsys: pytest.CaptureFixture, command: list[str]) -> str:
    """The one line that a command ends with; nothing is written."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}
    assert main(command) == 1
    text = capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()} == before
    *_, line = [part for part in text.split("\n") if part]
    assert "Traceback" not in text
    assert line.startswith(f"wshare {command[0]}: error: ")
    return line


@pytest.mark.slow
def test_the_command_gives_what_the_function_gives():
    # Keys are in the order of the folders.
    classes = np.array(labels())
    order = np.argsort([f"c{classes[i]}/{i:03}" for i in range(COUNT)])
    model = networks.tiny()
    model.load_state_dict(state(0))
    result = wshare.compress(
        model,
        normalised(pixels()[order], [0.4], [0.3]),
        classes[order],
        quality=0.5,
        confidence=None,
        options={"evaluations": 2, "probe_images": 0},
    )
    assert Path("net.safetensors").read_bytes() == result.packed
    assert read_json("recipe.json")["layers"] == result.recipe["layers"]
    assert read_json("metrics.json")["relative_quality"] == result.metrics["relative_quality"]


@pytest.mark.slow
def test_a_rate_is_reached(capsys, monkeypatch):
    used = {}
    original = compressing.compress_images
    monkeypatch.setattr(
        compressing, "compress_images", lambda *given, **named: used.update(named) or original(*given, **named)
    )
    more = ["--keep-zeros", "--device", "cpu", "--recipe", "small.json"]
    assert main(compress("small.safetensors", "--rate", "12", "--limit", "40", *more)) == 0
    assert (used["keep_zeros"], used["device"]) == (True, CPU)
    assert read_json("small.json")["settings"]["options"]["keep_zeros"] is True
    text = capsys.readouterr().out
    assert "small.safetensors: written" in text
    assert "20 held-out images" in text


def test_inspect_lists_every_layer_and_adds_up(capsys):
    assert main(["inspect", "net.safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "shape", "weights", "k", "bits/weight", "bytes"]
    assert [line.split()[0] for line in lines[1:5]] == LAYERS
    assert len({len(line) for line in lines[:5]}) == 1
    assert main(["inspect", "net.safetensors", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    recipe, sizes = read_json("recipe.json")["layers"], read_json("metrics.json")["bytes"]
    assert list(found["layers"]) == LAYERS
    for name, layer in found["layers"].items():
        assert layer["shape"] == recipe[name]["shape"]
        assert layer["bits_per_weight"] == 8 * layer["bytes"] / np.prod(layer["shape"])
    assert found["bytes"] == Path("net.safetensors").stat().st_size == sizes["packed"]
    layers = sum(layer["bytes"] for layer in found["layers"].values())
    assert found["other_bytes"] == found["bytes"] - layers
    # Lengths and checksums of a section count for the layer here, and for the header there.
    parts = sizes["indices"] + sizes["codebooks"] + sizes["scales"]
    assert parts < layers < parts + 16 * len(LAYERS)
    # What is neither a layer's weight nor of a batch norm: the bias of the last layer.
    weights = sum(np.prod(layer["shape"]) for layer in found["layers"].values())
    assert found["shared_share"] == weights / (weights + 10)
    assert lines[-1] == f"{found['shared_share']:.1%} of the weights are shared"
    assert found["dense_bytes"] == sum(tensor.nbytes for tensor in load_packed("net.safetensors").values())


def test_inspect_reads_the_first_version(capsys):
    path = Path(__file__).parents[2] / "data" / "golden_v1.safetensors"
    found = contents(path)
    assert (found.version, found.format) == (1, "fixed")
    assert all(tensor.k >= 1 and tensor.bytes >= 4 * tensor.k for tensor in found.shared)
    assert main(["inspect", str(path)]) == 0
    assert found.shared[0].name.removesuffix(".weight") in capsys.readouterr().out


def apply(recipe: str, *flags: str, seed: int = 1) -> list[str]:
    return ["apply", "--recipe", recipe, *net(seed), "--images", "images", "--output", "other.safetensors", *flags]


@pytest.mark.slow
def test_a_recipe_goes_on_another_checkpoint(capsys):
    # At a low slope, weights hardly change.
    recipe = read_json("recipe.json")
    fine = {name: layer | {"slope": 1e-11} for name, layer in recipe["layers"].items()}
    write_json("fine.json", recipe | {"layers": fine})
    assert main(apply("fine.json")) == 0
    Path("fine.json").unlink()
    assert re.search(r"^26,\d+ bytes -> [\d,]+ bytes, .*, 4 layers shared$", capsys.readouterr().out, re.MULTILINE)
    found, first = load_packed("other.safetensors"), load_packed("net.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in first.items()}
    other = state(1)
    for name in ("conv", "fc"):
        weight = other[f"{name}.weight"]
        if name == "conv":
            # Its batch norm is folded into it.
            scale = other["bn1.weight"] / torch.sqrt(other["bn1.running_var"] + 1e-5)
            weight = weight * scale.view(-1, 1, 1, 1)
        share = (found[f"{name}.weight"] - weight).norm() / weight.norm()
        assert share < 0.1
        assert (first[f"{name}.weight"] - weight).norm() / weight.norm() > 1
    assert main(["evaluate", "--packed", "other.safetensors", *net(1), "--images", "images", "--no-labels"]) == 0
    quality = json.loads(capsys.readouterr().out)
    assert quality["measure"] == "agreement"
    assert quality["relative_quality"] > 0.9
    Path("other.safetensors").unlink()


def test_a_recipe_of_another_method_goes_on_another_checkpoint():
    ks = dict(zip(LAYERS, (None, 4, 7, 16), strict=True))
    shapes = {name: list(tensor.shape) for name, tensor in state(0).items()}
    changed = {
        "versions": {"recipe": 2, "method": METHODS["slope"].load().version},
        "settings": {"method": "slope", "seed": 0, "options": {"evaluations": 1}},
        "packing": {"format": "fixed", "batch_norm": "auto"},
        "artifacts": {"clustering": dict.fromkeys(LAYERS, CLUSTERING)},
        "layers": {name: {"shape": shapes[f"{name}.weight"], "k": k} for name, k in ks.items()},
    }
    write_json("slope.json", read_json("recipe.json") | changed)
    assert main(apply("slope.json")) == 0
    found = load_packed("other.safetensors")
    for name, k in ks.items():
        weight = state(1)[f"{name}.weight"].numpy()
        codebook = None if k is None else sweep(weight, k_max=16).codebook(k)
        expected = weight if k is None else codebook[nearest_indices(weight, codebook)]
        np.testing.assert_array_equal(found[f"{name}.weight"].numpy(), expected)
    Path("other.safetensors").unlink()
    Path("slope.json").unlink()


def test_compare_holds_two_files_side_by_side(capsys):
    own = {name: tensor.numpy() for name, tensor in state(0).items()}
    codebook = np.linspace(-0.3, 0.3, 7, dtype=np.float32)
    shared = {"fc.weight": Shared(codebook, nearest_indices(own["fc.weight"], codebook))}
    folder = Path("search")
    write_packed(folder / "packed.safetensors", own, shared, {}, {}, {}, "fixed")
    metrics = read_json("metrics.json")
    metrics["sha256"]["packed"] = sha256_file(folder / "packed.safetensors")
    write_json(folder / "metrics.json", metrics)
    assert main(["compare", "net.safetensors", "search"]) == 0
    text = capsys.readouterr().out
    k = contents("net.safetensors").shared[-1].k
    assert re.search(rf"^fc +{k} +7 ", text, re.MULTILINE)
    assert re.search(r"^conv +\d+ +- ", text, re.MULTILINE)
    assert re.search(r"^verdict +- +(met|missed|undecided)$", text, re.MULTILINE)
    assert main(["compare", "net.safetensors", "search", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["search"]["quality"] == metrics
    assert found["net.safetensors"]["bytes"] == Path("net.safetensors").stat().st_size


def test_compare_refuses_the_quality_of_another_file(capsys):
    folder = Path("mixed")
    folder.mkdir()
    shutil.copy("net.safetensors", folder / "packed.safetensors")
    metrics = read_json("metrics.json")
    write_json(folder / "metrics.json", metrics | {"sha256": metrics["sha256"] | {"packed": "0" * 64}})
    assert main(["compare", "net.safetensors", "mixed"]) == 1
    assert "mixed/metrics.json: made from other packed than are there now" in capsys.readouterr().err
    shutil.rmtree(folder)


class Plain:
    """A format as `wshare.exports` has them."""

    description = "plain tensors"

    def __init__(self, needs_model: bool):
        self.needs_model = needs_model

    def write(
        self,
        packed: Path,
        output: Path,
        model: torch.nn.Module | None,
        example: torch.Tensor | None,
        description: dict | None = None,
    ) -> None:
        assert (model is None) == (example is None) == (description is None) == (not self.needs_model)
        if model is not None:
            # The architecture comes with the compressed weights.
            np.testing.assert_array_equal(state_of(model)["fc.weight"], load_packed(packed)["fc.weight"])
            assert example.shape == (1, 1, 8, 8)
            assert description["preprocessing"]["channels"] == 1
        save_file(load_packed(packed), output)


@pytest.fixture
def _formats(monkeypatch):
    monkeypatch.setattr(exporting, "FORMATS", {"dense": Plain(False), "graph": Plain(True)})


@pytest.mark.usefixtures("_formats")
@pytest.mark.parametrize("flags", [["--to", "dense"], ["--to", "graph", *net()[:2], *net()[4:]]])
def test_export_writes_a_format(flags, capsys):
    assert main(["export", "net.safetensors", *flags, "--output", "out.bin"]) == 0
    assert capsys.readouterr().out == "out.bin: written, plain tensors\n"
    assert load_file("out.bin").keys() == load_packed("net.safetensors").keys()
    Path("out.bin").unlink()


@pytest.mark.usefixtures("_formats")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["net.safetensors", "--to", "denes"], "--to denes: no such format. Did you mean 'dense'?"),
        (["absent", "--to", "dense"], "absent: no such file"),
        (["net.safetensors", "--to", "graph"], "--to graph: this format holds the network's graph; give --arch"),
        (["recipe.json", "--to", "graph", *net()[:2], *net()[4:]], "recipe.json: not a whole safetensors file"),
    ],
)
def test_export_refuses_in_one_line(flags, message, capsys):
    assert message in error(capsys, ["export", *flags, "--output", "out.bin"])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (lambda: compress("new", "--images", "absent"), "--images absent: no such folder"),
        (lambda: compress("new", "--weights", "absent"), "absent: no such file"),
        (lambda: compress("new", "--architecture", "mobilenet_v9"), "torchvision has no such classification network"),
        (
            lambda: compress("new", "--confidence", "0.9", "--quality", "0.9"),
            "30 search images and 30 held-out ones cannot confirm",
        ),
        (lambda: compress("new", "--held-out", "1"), "--held-out 1: must be a share of the images"),
        (lambda: compress("new", "--held-out", "0.01"), "--held-out: 0.01 of 60 images; it takes one held-out image"),
        (lambda: compress("new", "--limit", "2"), "--held-out: 0.5 of 2 images; it takes one held-out image and two"),
        (lambda: compress("new", "--limit", "0"), "--limit 0: must be 1 or more"),
        (lambda: compress("new", "--seed", str(1 << 64)), "must be below 2^63"),
        (lambda: compress("new", "--device", "tpu"), "device 'tpu': must be cpu, cuda"),
        (lambda: compress("new", "--quality", "nan"), "quality_target: nan is neither"),
        (lambda: compress("new", "--rate", "inf"), "options.compression_rate: inf is neither"),
        (
            lambda: compress("new", "--preprocessing", '{"crop": 8, "mean": 1}'),
            "preprocessing.mean: 1: must be",
        ),
        (lambda: compress("recipe.json/new"), "--output recipe.json/new: lies below a file"),
        (lambda: compress("images"), "--output images: a folder"),
        (lambda: compress("new", "--options", '{"rate": 8}'), "options.rate: unknown key"),
        (lambda: compress("new", "--preprocessing", "{}"), "preprocessing.crop"),
        (lambda: compress("new", "--arguments", '{"width": 2}'), "weights0.safetensors: weights"),
        (lambda: ["inspect", "recipe.json"], "recipe.json: not a whole safetensors file"),
        (lambda: ["inspect", "weights0.safetensors"], "weights0.safetensors: not a packed file of wshare"),
        (lambda: ["compare", "net.safetensors", "absent"], "absent: no such file or folder"),
        (lambda: ["compare", "net.safetensors", "images"], "images/packed.safetensors: no such file"),
        (lambda: apply("absent.json"), "absent.json: no such file"),
        (lambda: apply("metrics.json"), "metrics.json: not a recipe of wshare"),
        (
            lambda: ["apply", *SAME, "--spec", "recipe.json", "--weights", "weights0.safetensors"],
            "recipe.json: not a model.json of this wshare (sha256 missing)",
        ),
        (lambda: ["evaluate", "--packed", "net.safetensors", "--images", "images"], "or give --architecture"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(command, message, capsys):
    assert message in error(capsys, command())


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        (("versions",), [2, 1], "not a whole recipe (versions is missing, or not what a search writes)"),
        (("settings",), None, "not a whole recipe (settings is missing"),
        (("settings", "seed"), -1, "not a whole recipe (settings.seed is missing"),
        (("settings", "options", "evaluations"), "many", "settings.options.evaluations: 'many' is not of type"),
        (("settings", "options"), {}, "settings.options.assignment_descent is missing; search again"),
        (("packing", "format"), "zip", "not a whole recipe (packing.format is missing"),
        (("artifacts", "calibration"), [], "not a whole recipe (artifacts.calibration is missing"),
        (("artifacts", "importance", "images"), 0, "not a whole recipe (artifacts.importance.images is missing"),
        (("on_search_images", "kl_high"), "0.1", "not a whole recipe (on_search_images.kl_high is missing"),
        (("layers",), [], "not a recipe of wshare"),
        (("layers", "conv"), 3, "not a whole recipe (layers.conv is missing"),
        (("layers", "conv", "shape"), [16, "1"], "not a whole recipe (layers.conv.shape is missing"),
        (("layers", "conv", "slope"), "low", "layer 'conv': slope 'low': must be a number above 0; search again"),
        (("layers", "conv", "sensitivity_scale"), 0, "layer 'conv': sensitivity_scale 0: must be a number above 0"),
        (("layers", "conv", "batch_norm"), "bn9", "layer 'conv': batch_norm 'bn9': must be the name of a batch norm"),
    ],
)
def test_a_recipe_of_another_form_is_refused(entry, value, message, capsys):
    recipe = read_json("recipe.json")
    *outer, key = entry
    functools.reduce(lambda entries, name: entries[name], outer, recipe)[key] = value
    write_json("wrong.json", recipe)
    line = error(capsys, apply("wrong.json", "--limit", "4"))
    Path("wrong.json").unlink()
    assert line.startswith(f"wshare apply: error: wrong.json: {message}")
    assert not Path("other.safetensors").exists()


@pytest.mark.parametrize("k", [-1, 0, 2.0, True, "4"])
def test_a_recipe_with_an_impossible_k_is_refused(k, capsys):
    recipe = read_json("recipe.json")
    recipe["versions"]["method"] = METHODS["slope"].load().version
    recipe["settings"] = {"method": "slope", "seed": 0, "options": {"evaluations": 1}}
    recipe["artifacts"] = {"clustering": dict.fromkeys(LAYERS, CLUSTERING)}
    recipe["layers"] = {name: {"shape": layer["shape"], "k": k} for name, layer in recipe["layers"].items()}
    write_json("wrong.json", recipe)
    line = error(capsys, apply("wrong.json"))
    Path("wrong.json").unlink()
    assert line.startswith(f"wshare apply: error: wrong.json: layer 'conv': k {k!r}: must be 1 or more, or null")


@pytest.mark.parametrize("change", ["name", "shape"])
def test_a_recipe_of_another_architecture_is_refused(change, capsys):
    recipe = read_json("recipe.json")
    layer = recipe["layers"].pop("fc")
    recipe["layers"]["head" if change == "name" else "fc"] = layer | {"shape": [10, 7]}
    write_json("wrong.json", recipe)
    message = "layer 'head' is not that of the network ([10, 7] in the recipe, missing in the network); it was made for"
    line = error(capsys, apply("wrong.json"))
    Path("wrong.json").unlink()
    assert line.startswith("wshare apply: error: wrong.json: layer")
    assert message in line or (change == "shape" and "[10, 7] in the recipe, [10, 512] in the network" in line)

"""`python -m wshare evaluate`: a packed file on a folder of images, from a shell."""

import itertools
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from wshare.artifacts.model import read_model, write_model
from wshare.cli import main
from wshare.evaluation.verdict import compare
from wshare.models import zoo as networks
from wshare.models.description import finish
from wshare.models.forward import forward
from wshare.models.preprocessing import complete_preprocessing
from wshare.models.state import state_of
from wshare.packed.format import load_packed, write_packed
from wshare.packed.hashes import weights_hash
from wshare.quantize.codebooks import Shared, nearest_indices
from wshare.tasks.description import described
from wshare.tasks.table import task

CLASSES, IMAGES = 10, 120


def write_network(folder: Path, name: str, side: int, seed: int) -> dict[str, torch.Tensor]:
    """Files of a network with random weights, as `train_model` leaves them; returns its state."""
    torch.manual_seed(seed)
    module = networks.build(name, {"classes": CLASSES})
    preprocessing = complete_preprocessing({"channels": 1, "resize": side, "crop": side})
    builder = {"kind": "embedded", "name": name, "arguments": {"classes": CLASSES}}
    fetched = finish(module, {"architecture": name}, builder=builder, preprocessing=preprocessing, origin="a test")
    folder.mkdir(parents=True)
    write_model(described(fetched, {}), folder / "weights.safetensors", folder / "model.json")
    return state_of(fetched.module)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model's results with one packed file, beside another model's and a folder of images."""
    root = tmp_path_factory.mktemp("evaluate")
    state = {name: tensor.numpy() for name, tensor in write_network(root / "tiny/model", "tiny", 8, 0).items()}
    codebook = np.linspace(-0.3, 0.3, 7, dtype=np.float32)
    shared = {
        name: Shared(codebook, nearest_indices(state[name], codebook))
        for name in ("conv.weight", "pointwise.weight", "fc.weight")
    }
    packed = root / "tiny/search/s/packed.safetensors"
    packed.parent.mkdir(parents=True)
    write_packed(packed, state, shared, {}, {}, {}, "fixed", weights_hash(state, shared))
    write_network(root / "other/model", "lenet5", 28, 1)
    rng = np.random.default_rng(0)
    network = read_model(root / "tiny/model/model.json", root / "tiny/model/weights.safetensors")
    for i in range(IMAGES):
        # Half of them are smaller than the network's input.
        side = 6 + 4 * (i % 2)
        image = PIL.Image.fromarray(rng.integers(0, 256, (side, side), dtype=np.uint8))
        pixels = np.asarray(image.resize((8, 8), PIL.Image.Resampling.BILINEAR), dtype=np.float32)[None, None] / 255
        # The network is right on most of them.
        label = i // 4 % CLASSES if i % 4 == 0 else int(forward(network, torch.from_numpy(pixels)).argmax())
        path = root / f"images/c{label}/{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return root


def called(results: Path, *flags: str, images: str = "images", packed: str = "tiny/search/s/packed.safetensors"):
    return main(["evaluate", "--packed", str(results / packed), "--images", str(results / images), *flags])


def numbers(capsys: pytest.CaptureFixture, *arguments, **keywords) -> dict:
    assert called(*arguments, **keywords) == 0
    return json.loads(capsys.readouterr().out)


def by_hand(results: Path, enlarge: bool, labels: bool) -> dict:
    """The same numbers from Pillow and the two networks alone."""
    files = sorted((results / "images").rglob("*.png"))
    pixels = []
    for file in files:
        image = PIL.Image.open(file)
        if enlarge or image.width > 8:
            image = image.resize((8, 8), PIL.Image.Resampling.BILINEAR)
        else:
            image = image.crop((-1, -1, 7, 7))
        pixels.append(np.asarray(image, dtype=np.float32)[None] / 255)
    model = results / "tiny/model"
    network = read_model(model / "model.json", model / "weights.safetensors")
    images = torch.from_numpy(np.stack(pixels))
    with torch.inference_mode():
        reference = network(images).numpy()
        network.load_state_dict(load_packed(results / "tiny/search/s/packed.safetensors"))
        logits = network(images).numpy()
    classes = np.array([int(file.parent.name[1:]) for file in files]) if labels else None
    return compare(task("classification"), logits, reference, classes)


def assert_close(found: dict, expected: dict):
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_close(found[key], value)
        elif isinstance(value, list) and isinstance(value[0], dict):
            assert found[key] == value, key
        else:
            assert found[key] == (
                value if isinstance(value, str | None) else pytest.approx(value, rel=1e-4, abs=1e-6)
            ), key


@pytest.mark.slow
@pytest.mark.parametrize("enlarge", [True, False])
@pytest.mark.parametrize("labels", [True, False])
def test_the_numbers_are_those_of_an_evaluation_by_hand(results, capsys, enlarge, labels):
    flags = [*(["--class-map", "sorted"] if labels else ["--no-labels"]), *([] if enlarge else ["--no-enlarge"])]
    found, expected = numbers(capsys, results, *flags), by_hand(results, enlarge, labels)
    assert found.keys() == {"packed", "folder", *expected}
    assert_close(found, expected)
    assert found["measure"] == ("accuracy" if labels else "agreement")
    assert found["compressed"]["images"] == IMAGES
    assert 0 < found["compressed"]["agreement"] < 1


def test_another_network_of_the_same_shapes_is_refused_as_reference(results, capsys, tmp_path):
    write_network(tmp_path / "model", "tiny", 8, 5)
    other = str(tmp_path / "model/weights.safetensors")
    spec = str(tmp_path / "model/model.json")
    assert called(results, "--class-map", "sorted", "--weights", other, "--spec", spec) == 1
    printed = capsys.readouterr()
    assert "packed.safetensors: made from other float32 weights than it is to be compared with" in printed.err
    assert not printed.out


def test_a_file_that_does_not_tell_its_network_is_compared_with_any(results, capsys, tmp_path):
    state = {name: tensor.numpy() for name, tensor in write_network(tmp_path / "model", "tiny", 8, 5).items()}
    codebook = np.linspace(-0.3, 0.3, 7, dtype=np.float32)
    shared = {"fc.weight": Shared(codebook, nearest_indices(state["fc.weight"], codebook))}
    write_packed(tmp_path / "old.safetensors", state, shared, {}, {}, {}, "fixed")
    model = results / "tiny/model"
    flags = (
        "--class-map",
        "sorted",
        "--weights",
        str(model / "weights.safetensors"),
        "--spec",
        str(model / "model.json"),
    )
    assert numbers(capsys, results, *flags, packed=str(tmp_path / "old.safetensors"))["compressed"]["images"] == IMAGES


def test_neither_threads_nor_the_way_to_the_model_change_a_number(results, capsys, tmp_path):
    moved = tmp_path / "moved"
    moved.write_bytes((results / "tiny/search/s/packed.safetensors").read_bytes())
    model = results / "tiny/model"
    files = ["--spec", str(model / "model.json"), "--weights", str(model / "weights.safetensors")]
    first = numbers(capsys, results, "--no-labels", "--threads", "1")
    second = numbers(capsys, results, "--no-labels", "--threads", "3", "--device", "cpu", *files, packed=str(moved))
    assert first | {"packed": str(moved)} == second


@pytest.mark.slow
def test_a_class_map_may_be_a_file(results, capsys, tmp_path):
    path = tmp_path / "map.json"
    found = []
    for index in range(CLASSES):
        path.write_text(json.dumps({f"c{i}": index for i in range(CLASSES)}))
        found.append(numbers(capsys, results, "--class-map", str(path))["compressed"])
    # Each image has one first answer, and five first answers.
    assert sum(part["top1"] for part in found) == pytest.approx(1)
    assert sum(part["top5"] for part in found) == pytest.approx(5)


@pytest.mark.slow
def test_a_limit_draws_the_same_images_each_time(results, capsys):
    first, again, all_images = (
        numbers(capsys, results, "--class-map", "sorted", *limit)
        for limit in (["--limit", "50"], ["--limit", "50"], [])
    )
    assert first == again
    assert (first["compressed"]["images"], all_images["compressed"]["images"]) == (50, IMAGES)
    assert first["compressed"]["kl"] != all_images["compressed"]["kl"]


@pytest.mark.parametrize(
    ("flags", "keywords", "message"),
    [
        ([], {"images": "absent"}, "absent: no such folder"),
        ([], {"images": "tiny/model/model.json"}, "model.json: must be a list of objects"),
        (
            [],
            {"images": "tiny/model/weights.safetensors"},
            "weights.safetensors: not a folder, nor a table (.csv, .json",
        ),
        ([], {}, "images/c0: no ImageNet wnid"),
        (["--no-labels"], {"images": "tiny/model"}, "tiny/model: holds no image"),
        (["--class-map", "absent.json"], {}, "class_map absent.json: No such file or directory"),
        (["--class-map", "sorted", "--no-labels"], {}, "--class-map and --no-labels: give one of the two"),
        (["--class-map", "MAP"], {}, "--class-map: class index 12, but the network has classes 0 to 9"),
        (["--limit", "0"], {}, "--limit 0: must be 1 or more"),
        (["--threads", "-1"], {}, "--threads -1: must be 1 or more"),
        (["--device", "tpu"], {}, "device 'tpu': must be cpu, cuda"),
        (["--no-labels"], {"packed": "absent"}, "absent: no such file"),
        (["--no-labels"], {"packed": "tiny/model/model.json"}, "model.json: not a whole safetensors file"),
        (["--no-labels"], {"packed": "tiny/model/weights.safetensors"}, "not a packed file of wshare"),
        (["--no-labels", "--spec", "absent"], {}, "absent: no such file; --spec gives"),
        (["--no-labels", "--spec", "OTHER", "--weights", "OTHER"], {}, "packed.safetensors: weights do not fit"),
        (["--no-labels", "--weights", "OTHER"], {}, "weights.safetensors: not the file that"),
        (["--no-labels"], {"images": "broken"}, "broken/a.png: unreadable image"),
    ],
)
def test_bad_input_ends_in_one_line_and_code_1(results, capsys, tmp_path, flags, keywords, message):
    (results / "broken").mkdir(exist_ok=True)
    (results / "broken/a.png").write_bytes(b"no image")
    class_map = tmp_path / "map.json"
    class_map.write_text(json.dumps({f"c{i}": 3 + i for i in range(CLASSES)}))
    other = {"--spec": "model.json", "--weights": "weights.safetensors"}
    for place, (flag, value) in enumerate(itertools.pairwise(flags), start=1):
        if value == "OTHER":
            flags = [*flags[:place], str(results / "other/model" / other[flag]), *flags[place + 1 :]]
    assert called(results, *(str(class_map) if flag == "MAP" else flag for flag in flags), **keywords) == 1
    output = capsys.readouterr()
    assert output.out == ""
    last = output.err.splitlines()[-1]
    assert last.startswith("wshare evaluate: error: ")
    assert message in last
    assert "Traceback" not in output.err


def test_help_tells_what_it_does_and_its_flags(capsys):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for flag in ("packed", "images", "spec", "weights", "class-map", "no-labels", "enlarge", "no-enlarge", "limit"):
        assert f"--{flag}" in text
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "--images", "a"])
    assert end.value.code == 2
    assert "required: --packed" in capsys.readouterr().err

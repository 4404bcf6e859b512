"""From a network and a folder, as people have them, to the float32 baseline: the right numbers, or one line."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from wshare.artifacts.model import read_model
from wshare.config.validation import complete_search
from wshare.data.images import ImageFile
from wshare.errors import UserError
from wshare.files.sealed import read_json, write_json
from wshare.search.artifacts import Files
from wshare.stages.arguments import (
    CompressedFiles,
    Machine,
    ModelFiles,
    Names,
    PackedFiles,
    Samples,
    SearchedFiles,
    Verdict,
)
from wshare.stages.evaluate_dense import evaluate_dense
from wshare.stages.evaluate_packed import evaluate_packed
from wshare.stages.extract_weights import extract_weights
from wshare.stages.fetch_model import fetch_model
from wshare.stages.inspect_model import inspect_model
from wshare.stages.measure_inputs import measure_inputs
from wshare.stages.pack_model import pack_model
from wshare.stages.prepare_images import prepare_images
from wshare.stages.search import search as search_stage
from wshare.stages.train_model import train_model

from ..classifier import CLASSES, FOLDERS, PREPROCESSING, network, write_folders

COUNT = 240
SETTINGS = {"source": "imagefolder", "path": "images", "class_map": "sorted", "seed": 0}
SETTINGS |= {"split": {"search": 160, "held_out": 80}, "on_bad_image": "stop", "enlarge": True}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fetch(function: str = "network", **more: object) -> None:
    settings = {"source": "python", "architecture": f"tests.unit.classifier:{function}"}
    fetch_model(settings | {"preprocessing": PREPROCESSING}, Path("cache"), Path("weights"), Path("model.json"))
    write_json("model.json", read_json("model.json") | more)


def prepare(**changes: object) -> None:
    prepare_images(SETTINGS | changes, Path("model.json"), Path("search.h5"), Path("held_out.h5"))


def evaluate() -> dict:
    files = ("model.json", "weights", "search.h5", "held_out.h5", "search_outputs.h5", "outputs.h5", "metrics.json")
    evaluate_dense(*map(Path, files), threads=1, gpus=0)
    return read_json("metrics.json")


def message(call: object, *given: object, **more: object) -> str:
    with pytest.raises(UserError) as error:
        call(*given, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def outputs() -> np.ndarray:
    with h5py.File("search_outputs.h5") as file:
        return file["outputs"][:]


def test_a_network_that_knows_its_classes_passes():
    write_folders(Path("images"), COUNT)
    fetch()
    prepare()
    found = evaluate()
    assert found["search"]["top1"] > 0.7
    assert read_json("model.json")["outputs"] == "logits"


@pytest.mark.slow
def test_a_network_that_ends_in_softmax_has_the_baseline_of_its_logits():
    write_folders(Path("images"), COUNT)
    fetch()
    prepare()
    expected = evaluate()
    logits = outputs()
    fetch("probable")
    assert read_json("model.json")["outputs"] == "probabilities"
    found = evaluate()
    for split in ("search", "held_out"):
        assert found[split] == pytest.approx(expected[split], rel=1e-4)
    log_probabilities = torch.from_numpy(logits).log_softmax(1).numpy()
    np.testing.assert_allclose(outputs(), log_probabilities, rtol=1e-4, atol=1e-4)
    # Its weights are those that it came with, without a trace of the logarithm.
    state = read_model(Path("model.json"), Path("weights")).state_dict()
    assert all(torch.equal(state[f"0.{name}"], value) for name, value in network().state_dict().items())


def searched(function: str) -> dict:
    """metrics.json of a search with the network, from the images that lie there."""
    fetch(function)
    evaluate()
    inspect_model({"include": [], "exclude": []}, "m", Path("model.json"), Path("weights"), Path("layers.json"))
    own = Path("model.json"), Path("weights"), Path("layers.json"), Path("search.h5")
    extract_weights({"images": 32, "seed": 0}, *own, Path("weights.h5"), Machine(1, 0))
    measure_inputs({"images": 64, "seed": 0}, *own[:3], Samples(own[3]), Path("calibration.h5"), Machine(1, 0))
    options = {"evaluations": 3, "probe_images": 4}
    search = {"method": "rate_distortion", "quality_target": 0.9, "confidence": None, "options": options}
    settings = complete_search(search) | {"seed": 0, "packing": {"format": "entropy", "batch_norm": "auto"}}
    files = Files(Path("weights.h5"), Path("calibration.h5"))
    network, needed = (ModelFiles(*own[:2]), own[2]), (Path("search_outputs.h5"), files)
    made = SearchedFiles(*map(Path, ("front.csv", "losses.csv", "recipe.json")))
    Path("journal").unlink(missing_ok=True)
    search_stage(settings, *network, Samples(own[3]), *needed, "code", Path("journal"), made, Machine(1, 0))
    written = PackedFiles(*map(Path, ("packed", "dense", "sizes.json")))
    pack_model(*network, own[3], *needed, made.recipe, written, threads=1)
    evaluate_packed(
        settings,
        Names("m", "s", "d"),
        own[0],
        CompressedFiles(*map(Path, ("packed", "recipe.json", "sizes.json"))),
        *map(Path, ("held_out.h5", "outputs.h5")),
        [],
        Verdict(*map(Path, ("verdict.json", "predictions.csv", "timings.json"))),
        Machine(1, 0),
    )
    return read_json("verdict.json")


@pytest.mark.slow
def test_the_verdict_on_a_network_that_ends_in_softmax_is_that_on_its_logits():
    write_folders(Path("images"), COUNT)
    fetch()
    prepare()
    expected, found = searched("network"), searched("probable")
    assert found["compressed"] == pytest.approx(expected["compressed"], rel=1e-3)
    assert found["compressed"]["kl"] > 0.001
    assert found["verdict"] == expected["verdict"]


def test_parameters_over_one_memory_are_kept_once():
    fetch("over_one_memory")
    state = read_model(Path("model.json"), Path("weights")).state_dict(keep_vars=True)
    assert state["encoder.weight"] is state["decoder.weight"]
    assert "decoder.weight" not in load_file("weights")


def test_what_a_network_that_writes_into_its_input_never_uses_is_dropped():
    fetch("Spare")
    assert read_json("model.json")["dropped"] == ["spare"]


def test_a_network_that_is_trained_here_keeps_the_names_of_its_folders():
    write_folders(Path("images"), COUNT)
    training = {"epochs": 1, "learning_rate": 0.01, "batch_size": 32, "shift": 0, "floor": 0}
    settings = {"architecture": "tiny", "arguments": {}, "seed": 0, "training": training}
    settings["preprocessing"] = {"channels": 1}
    data = SETTINGS | {"split": {"train": 100, "search": 100}}
    train_model(settings | {"dataset": data}, Path("weights"), Path("model.json"))
    assert read_json("model.json")["categories"] == list(FOLDERS)


def test_a_network_with_dropout_that_is_always_on_stops():
    write_folders(Path("images"), COUNT)
    fetch("Dropping")
    prepare()
    assert message(evaluate).startswith(
        "tests.unit.classifier:Dropping: gives other outputs for the same images from pass to pass (by up to "
    )


def test_a_forward_that_writes_into_its_input_has_the_same_baseline_twice():
    write_folders(Path("images"), COUNT)
    fetch("in_place")
    prepare()
    evaluate()
    first = outputs()
    evaluate()
    assert np.array_equal(outputs(), first)


def test_a_network_with_one_output_is_told_before_images_are_read():
    assert message(fetch, "yes_or_no").startswith(
        "tests.unit.classifier:yes_or_no: gives one output an image, [2, 1] for 2 images"
    )


def test_a_class_map_that_is_off_by_one_stops():
    write_folders(Path("images"), COUNT)
    Path("map.json").write_text(json.dumps({name: (i + 1) % CLASSES for i, name in enumerate(FOLDERS)}))
    fetch()
    prepare(class_map="map.json")
    assert message(evaluate).endswith("so labels may be off by one")


def test_a_class_map_beyond_the_networks_classes_stops():
    write_folders(Path("images"), COUNT)
    Path("map.json").write_text(json.dumps({name: i + 1 for i, name in enumerate(FOLDERS)}))
    fetch()
    prepare(class_map="map.json")
    assert message(evaluate).startswith("search images: class index 6, but the network has classes 0 to 5")


@pytest.mark.slow
def test_a_folder_that_lacks_a_class_is_matched_by_name_or_told():
    write_folders(Path("images"), 2 * COUNT)
    fetch()
    prepare()
    whole = evaluate()["search"]["top1"]
    shutil.rmtree(Path("images", FOLDERS[1]))
    told = "source 'imagefolder': 5 class folders, but the network has 6 classes, "
    assert message(prepare).startswith(told)
    # The names may be spelled in other ways.
    fetch(categories=[name.replace(" ", "_").upper() for name in FOLDERS])
    prepare()
    keys, labels = ImageFile("search.h5").keys, ImageFile("search.h5").labels
    assert [FOLDERS[label] for label in labels] == [key.split("/")[0] for key in keys]
    assert set(labels.tolist()) == {0, 2, 3, 4, 5}
    assert evaluate()["search"]["top1"] == pytest.approx(whole, abs=0.08)


def test_more_folders_than_classes_are_told():
    write_folders(Path("images"), COUNT)
    PIL.Image.new("L", (8, 8), 3).save(Path("images/class 0/other.png"))
    Path("images/new").mkdir()
    Path("images/class 0/other.png").rename("images/new/a.png")
    fetch()
    assert message(prepare).startswith("source 'imagefolder': 7 class folders, but the network has 6 classes, ")
    fetch(categories=list(FOLDERS))
    assert message(prepare).startswith(
        "source 'imagefolder': 6 of 7 folders are named like classes of the network, but not 'new'. "
    )


@pytest.mark.slow
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("way", ["copy", "link", "folder", "other format"])
def test_an_image_that_is_there_twice_is_in_one_split(way: str, labels: bool):
    write_folders(Path("images"), COUNT)
    fetch()
    folder = Path("images", FOLDERS[0])
    for path in sorted(folder.iterdir()):
        again = path.with_name(f"again-{path.name}")
        if way == "copy":
            shutil.copy(path, again)
        elif way == "link":
            again.symlink_to(path.name)
        elif way == "folder":
            (folder / "again").mkdir(exist_ok=True)
            (folder / "again" / path.name).hardlink_to(path)
        else:
            PIL.Image.open(path).save(again.with_suffix(".bmp"))
    found = message(prepare, labels=labels)
    count, rest = found.split(" ", 1)
    assert int(count) > 1
    assert rest.startswith("images of split 'held_out' are in split 'search' too: class 0/")
    first, second = (
        rest.removesuffix("; remove copies and links, so that each image is there once")
        .split(": ")[1]
        .split(" is the same as ")
    )
    assert Path(first).stem.removeprefix("again-") == Path(second).stem.removeprefix("again-")
    assert not Path("held_out.h5").exists()


def test_an_image_that_the_network_was_trained_on_is_not_searched_with_or_held_out():
    write_folders(Path("images"), COUNT)
    fetch()
    prepare(split={"train": 60, "search": 120, "held_out": 60})
    for path in sorted(Path("images").rglob("*.png")):
        shutil.copy(path, path.with_name(f"again-{path.name}"))
    found = message(prepare, split={"train": 360, "search": 40, "held_out": 0.1})
    assert " images of split 'search' are in split 'train' too: class " in found


def test_equal_images_of_a_collection_are_told_in_the_log(caplog: pytest.LogCaptureFixture):
    fetch()
    settings = {"source": "python", "function": "tests.unit.classifier:grey", "class_map": None, "path": None}
    with caplog.at_level("INFO", "wshare"):
        prepare(**settings, split={"search": 40, "held_out": 40})
    (told,) = [record.message for record in caplog.records if "are in split" in record.message]
    assert " of split 'held_out' are in split 'search' too: " in told

"""Networks and folders as people give them to the commands: the right numbers, or one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from wshare.cli import main
from wshare.data.images import normalised
from wshare.evaluation.verdict import compare
from wshare.packed.format import load_packed
from wshare.tasks.table import task

from ..classifier import CLASSES, FOLDERS, PREPROCESSING, InPlace, probable, write_folders

COUNT = 240


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_folders(Path("images"), COUNT)


def flags(function: str) -> list[str]:
    return [
        *("--architecture", f"python:tests.unit.classifier:{function}", "--preprocessing", json.dumps(PREPROCESSING)),
        *("--images", "images"),
    ]


def compress(function: str = "network", *more: str) -> int:
    options = ["--quality", "0.9", "--confidence", "none", "--options", '{"evaluations": 3, "probe_images": 0}']
    return main(["compress", *flags(function), "--output", "net", *options, *(more or ("--class-map", "sorted"))])


def evaluate(function: str = "network", *more: str) -> int:
    return main(["evaluate", *flags(function), "--packed", "net", *(more or ("--class-map", "sorted"))])


def line(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def pixels() -> tuple[torch.Tensor, np.ndarray]:
    """All images as the network takes them, and their classes."""
    files = sorted(Path("images").rglob("*.png"))
    grey = np.stack([np.asarray(PIL.Image.open(file))[None] for file in files])
    labels = np.array([FOLDERS.index(file.parent.name) for file in files])
    return normalised(grey, PREPROCESSING["mean"], PREPROCESSING["std"]), labels


def check_by_hand(capsys: pytest.CaptureFixture, function: str, model: torch.nn.Module, logarithm: bool) -> None:
    assert compress(function) == 0
    capsys.readouterr()
    assert evaluate(function) == 0
    found = json.loads(capsys.readouterr().out)
    images, labels = pixels()
    with torch.inference_mode():
        before = model(images)
        model.load_state_dict(load_packed("net"))
        after = model(images)
    before, after = ((out.log() if logarithm else out).numpy() for out in (before, after))
    expected = compare(task("classification"), after, before, labels, 0)
    assert found["compressed"] == pytest.approx(expected["compressed"], rel=1e-3)
    assert found["compressed"]["kl"] > 0.001


@pytest.mark.slow
def test_probabilities_are_evaluated_as_their_logits(capsys):
    check_by_hand(capsys, "probable", probable(), True)


@pytest.mark.slow
def test_a_forward_that_writes_into_its_input_is_evaluated_on_the_images_themselves(capsys):
    check_by_hand(capsys, "in_place", InPlace(False), False)


@pytest.mark.slow
@pytest.mark.parametrize("command", [compress, evaluate])
@pytest.mark.parametrize("function", ["Dropping", "yes_or_no"])
def test_networks_that_cannot_be_compared_end_in_one_line(capsys, command, function):
    # Of the same layers as the one with dropout.
    assert compress("probable") == 0
    assert command(function) == 1
    told = {"Dropping": "gives other outputs for the same images", "yes_or_no": "gives one output an image"}
    assert told[function] in line(capsys)


@pytest.mark.slow
@pytest.mark.parametrize("command", [compress, evaluate])
def test_class_maps_that_are_off_by_one_end_in_one_line(capsys, command):
    assert compress() == 0
    Path("map.json").write_text(json.dumps({name: (i + 1) % CLASSES for i, name in enumerate(FOLDERS)}))
    assert command("network", "--class-map", "map.json") == 1
    assert line(capsys).endswith("so labels may be off by one")


@pytest.mark.slow
@pytest.mark.parametrize("command", [compress, evaluate])
def test_a_folder_that_lacks_a_class_ends_in_one_line(capsys, command):
    assert compress() == 0
    shutil.rmtree(Path("images", FOLDERS[2]))
    assert command() == 1
    assert "--images: 5 class folders, but the network has 6 classes, " in line(capsys)


@pytest.mark.slow
def test_images_may_be_held_out_from_a_folder_of_their_own(capsys):
    for path in sorted(Path("images").rglob("*.png"))[::2]:
        (Path("others") / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(Path("others") / path.parent.name / path.name)
    together = ("--class-map", "sorted", "--held-out", "others", "--metrics", "metrics.json")
    assert compress("network", *together) == 0
    found = json.loads(Path("metrics.json").read_text())
    capsys.readouterr()
    # The verdict is what the packed file gives on that folder alone.
    assert main(["evaluate", *flags("network")[:4], "--images", "others", "--packed", "net", *together[:2]]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert found["compressed"]["images"] == COUNT // 2
    assert found["compressed"]["top1"] == alone["compressed"]["top1"]
    assert compress("network", *together, "--limit", "50") == 0
    assert "50 held-out images" in capsys.readouterr().out
    copied = next(Path("images").rglob("*.png"))
    shutil.copy(copied, Path("others", FOLDERS[0], "copy.png"))
    assert compress("network", *together) == 1
    assert "1 images of split 'held_out' are in split 'search' too: " in line(capsys)
    assert compress("network", "--held-out", "nowhere", "--class-map", "sorted") == 1
    assert "--held-out nowhere: no such folder" in line(capsys)


@pytest.mark.slow
def test_images_that_are_there_twice_end_in_one_line(capsys):
    for path in sorted(Path("images").rglob("*.png")):
        path.with_name(f"again-{path.name}").symlink_to(path.name)
    assert compress() == 1
    assert " images of split 'held_out' are in split 'search' too: class " in line(capsys)
    assert compress("network", "--no-labels") == 1

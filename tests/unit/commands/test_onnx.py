"""An ONNX file compressed from the command line, and written as an ONNX file again."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import PIL.Image
import pytest

from tests.unit.models.onnx_files import classifier, save
from wshare.cli import main

IMAGES = 16


@pytest.mark.slow
def test_from_an_onnx_file_to_a_smaller_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(classifier(), "net.onnx")
    pixels = np.random.default_rng(0).integers(256, size=(IMAGES, 12, 12, 3)).astype(np.uint8)
    Path("images").mkdir()
    for place, image in enumerate(pixels):
        PIL.Image.fromarray(image).save(f"images/{place:02}.png")
    common = ["--architecture", "onnx:net.onnx", "--images", "images", "--no-labels"]
    assert main(["compress", *common, "--confidence", "none", "--output", "small.safetensors"]) == 0
    capsys.readouterr()
    assert main(["evaluate", *common, "--packed", "small.safetensors"]) == 0
    agreement = json.loads(capsys.readouterr().out)["compressed"]["agreement"]
    assert main(["export", "small.safetensors", "--to", "onnx", *common[:2], "--output", "small.onnx"]) == 0
    for to, output in (("onnx-external", "graph.onnx"), ("onnx-data", "graph.onnx.data")):
        assert main(["export", "small.safetensors", "--to", to, *common[:2], "--output", output]) == 0
    answers = [
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        .run(None, {"input": pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255})[0]
        .argmax(1)
        for path in ("net.onnx", "small.onnx", "graph.onnx")
    ]
    assert np.mean(answers[0] == answers[1]) == pytest.approx(agreement)
    assert (answers[1] == answers[2]).all()


def test_weights_beside_an_onnx_file_and_a_missing_package_end_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(classifier(), "net.onnx")
    Path("images").mkdir()
    PIL.Image.new("RGB", (12, 12)).save("images/0.png")
    given = ["compress", "--architecture", "onnx:net.onnx", "--images", "images", "--no-labels", "--output", "out"]
    assert main([*given, "--weights", "w.safetensors"]) == 1
    assert "--weights w.safetensors: the file net.onnx holds its weights; leave the flag out" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(given) == 1
    assert (
        "net.onnx: onnxruntime is not installed; it is an optional extra: pip install onnx" in capsys.readouterr().err
    )

# ruff: noqa: F811
"""Weights that arrive damaged, or not at all, through the stage that fetches them."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from wshare.cli import main
from wshare.models.sources import torchvision as source

from ..unit.files.test_downloads import PAGE, server  # noqa: F401

NAME = "squeezenet1_1"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> bytes:
    """A state dict as torchvision publishes them."""
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(source.build(NAME, {"num_classes": 1000}).state_dict(), path)
    return path.read_bytes()


def fetch(url: str, sha256: str) -> int:
    settings = {"source": "torchvision", "architecture": NAME, "weights": "DEFAULT", "url": url, "sha256": sha256}
    settings |= {"preprocessing": {"resize": None, "crop": 64}}
    files = ["--weights", "model/weights.safetensors", "--spec", "model/model.json"]
    return main(["fetch_model", "--settings", json.dumps(settings), "--cache", "cache", *files])


@pytest.mark.parametrize("fault_name", ["wrong hash", "HTML page", "half a file", "no network"])
def test_a_broken_download_is_told_and_leaves_no_file(
    server,
    weights,
    tmp_path,
    monkeypatch,
    capsys,
    fault,
    fault_name,
):
    row = fault(7, f"download: {fault_name}", where="fetch_model", data="three tries, one line; no file in the cache")
    monkeypatch.chdir(tmp_path)
    sha256 = hashlib.sha256(weights).hexdigest()
    other = weights[:-1] + b"x"
    answer = {"wrong hash": (200, other, len(other)), "HTML page": (200, PAGE, len(PAGE))}
    answer |= {"half a file": (200, weights[: len(weights) // 2], len(weights)), "no network": None}
    base = server.url.rpartition("/")[0]
    if answer[fault_name]:
        server.script = [answer[fault_name]]
    else:
        server.shutdown()
        server.server_close()
    assert fetch(base, sha256) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert error.startswith(f"wshare fetch_model: error: {base}/squeezenet1_1-")
    if fault_name in ("wrong hash", "HTML page"):
        got = hashlib.sha256(answer[fault_name][1]).hexdigest()
        assert f"expected sha256 {sha256}, got {got}" in error
    assert server.requests == (3 if answer[fault_name] else 0)
    assert not [path for path in Path("cache").rglob("*") if path.is_file()]
    assert not os.path.exists("model")
    row.round(True)


def test_a_file_in_the_cache_needs_no_network(server, weights, tmp_path, monkeypatch, fault):
    row = fault(7, "no network, file in the cache", where="fetch_model", data="the file there is used")
    monkeypatch.chdir(tmp_path)
    base, sha256 = server.url.rpartition("/")[0], hashlib.sha256(weights).hexdigest()
    server.script = [(500, b"", 0), (200, weights, len(weights))]
    assert fetch(base, sha256) == 0
    assert server.requests == 2
    model = Path("model/weights.safetensors").read_bytes()
    server.script = [(404, b"", 0)]
    assert fetch(base, sha256) == 0
    assert server.requests == 2
    assert Path("model/weights.safetensors").read_bytes() == model
    row.round(True)

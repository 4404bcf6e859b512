"""Tables of images with masks or sets of labels, as people give them to the commands."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from wshare.cli import main
from wshare.packed.format import load_packed

COUNT = 160
PREPROCESSING = {"channels": 3, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3}


def segments() -> nn.Module:
    """Three classes, each of which a channel shows."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1))
    with torch.no_grad():
        network[0].weight.mul_(0.02)
        network[0].weight[:3, :, 1, 1] += torch.eye(3)
        network[2].weight.mul_(0.02)
        network[2].weight[:, :3, 0, 0] += 4 * torch.eye(3)
    return network.eval()


class Tags(nn.Module):
    """Which of the three classes there are, by their share of the pixels."""

    def __init__(self):
        super().__init__()
        self.features = segments()
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(3))
            self.head.bias.fill_(-1.0)

    def forward(self, images):
        return self.head(self.features(images).mean((2, 3)))


def tags() -> nn.Module:
    return Tags().eval()


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs").mkdir()
    random = np.random.default_rng(0)
    rows, model = ["image,mask,tags"], tags()
    for place in range(COUNT):
        mask = random.choice(3, (8, 8), p=random.dirichlet([1, 1, 1])).astype(np.uint8)
        pixels = np.clip(60 + 130 * np.eye(3)[mask] + random.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(f"pairs/{place}.png")
        PIL.Image.fromarray(np.where(random.random((8, 8)) < 0.1, 255, mask * 50)).save(f"pairs/{place}_mask.png")
        inputs = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.25
        found = (model(inputs)[0] > 0).tolist()
        rows.append(f"{place}.png,{place}_mask.png,{'|'.join(str(i) for i in range(3) if found[i])}")
    Path("pairs/list.csv").write_text("\n".join(rows))
    Path("map.json").write_text(json.dumps({"0": 0, "50": 1, "100": 2, "255": 255}))


def network(function: str, task: str) -> list[str]:
    name = f"python:tests.unit.commands.test_tables:{function}"
    return ["--architecture", name, "--preprocessing", json.dumps(PREPROCESSING), "--task", task]


SEARCH = ["--quality", "0.9", "--confidence", "none", "--options", '{"evaluations": 3, "probe_images": 0}']


@pytest.mark.slow
def test_masks_of_a_table_are_what_the_quality_goes_by(capsys):
    given = [*network("segments", "segmentation"), "--images", "pairs/list.csv", "--class-map", "map.json"]
    assert main(["compress", *given, *SEARCH, "--output", "net"]) == 0
    capsys.readouterr()
    assert main(["evaluate", *given, "--packed", "net"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measure"] == "pixel accuracy"
    model, scores = segments(), []
    model.load_state_dict(load_packed("net"))
    for place in range(COUNT):
        image, mask = (np.asarray(PIL.Image.open(f"pairs/{place}{end}.png")) for end in ("", "_mask"))
        inputs = (torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.25
        predicted = model(inputs)[0].argmax(0).numpy()
        scores.append((predicted == mask // 50)[mask != 255].mean())
    assert found["compressed"]["pixel_accuracy"] == pytest.approx(np.mean(scores), rel=1e-6)
    assert 0.5 < np.mean(scores) < 1


@pytest.mark.slow
def test_labels_of_a_table_are_what_the_quality_goes_by(capsys):
    path = Path("pairs/list.csv")
    path.write_text(path.read_text().replace("image,mask,tags", "image,other,labels"))
    given = [*network("tags", "multilabel"), "--images", "pairs/list.csv"]
    assert main(["compress", *given, *SEARCH, "--output", "net"]) == 0
    assert "overlap of labels" in capsys.readouterr().out
    assert main(["evaluate", *given, "--packed", "net"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["float32"]["overlap"] == 1
    assert found["float32"]["images"] == COUNT

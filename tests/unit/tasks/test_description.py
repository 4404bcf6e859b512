"""Which task a network has, and what model.json says of its outputs."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

import wshare
from wshare.errors import UserError
from wshare.tasks.description import description_of

IMAGES = torch.randn(160, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def network(outputs: int, *last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, outputs), *last).eval()


class Several(nn.Module):
    """A map and a vector."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(64, 3)

    def forward(self, images):
        maps = self.conv(images)
        return {"maps": maps, "logits": self.head(maps.relu().flatten(1))}


def recognised(model: nn.Module, labels: np.ndarray | None = None, task: str | None = None) -> str:
    return description_of(model, IMAGES[:2], {"task": task}, "net", labels)["task"]


@pytest.mark.parametrize(
    ("model", "labels", "task"),
    [
        (network(3), None, "classification"),
        (network(3), np.array([0, 2]), "classification"),
        (network(2), np.array([[0, 1], [1, 1]]), "multilabel"),
        (network(1, nn.Sigmoid()), None, "binary"),
        (network(1), np.array([0, 1]), "binary"),
        (network(1, nn.Flatten(0)), np.array([[0], [1]]), "binary"),
        (Several(), None, "classification"),
        # As SqueezeNet's.
        (network(64, nn.ReLU()), None, "classification"),
        (network(64, nn.Softmax(1)), None, "classification"),
        (network(4, nn.Sigmoid()), np.array([3, 0]), "classification"),
    ],
)
def test_outputs_that_leave_no_doubt_tell_their_task(model, labels, task, caplog):
    with caplog.at_level(logging.INFO, "wshare"):
        assert recognised(model, labels) == task
    assert f"taken for the task {task}" in caplog.text


@pytest.mark.parametrize(
    ("model", "labels", "which"),
    [
        (network(1), None, "binary or regression"),
        (network(1), np.array([0, 3]), "binary or regression"),
        (network(8, nn.Unflatten(1, (2, 2, 2))), None, "segmentation or regression"),
        (network(8, nn.Unflatten(1, (2, 4))), None, "regression"),
        (network(4, nn.Sigmoid()), None, "multilabel or classification or regression"),
    ],
)
def test_outputs_of_several_tasks_are_asked_for(model, labels, which):
    with pytest.raises(UserError, match=rf"^net: gives .* which does not tell its task; say which: {which} \(task="):
        recognised(model, labels)


def test_a_task_that_is_named_is_taken():
    assert recognised(network(3), task="regression") == "regression"
    assert "structure" not in description_of(network(3), IMAGES[:2], {"task": "regression"}, "net")
    found = description_of(Several(), IMAGES[:2], {"task": "regression"}, "net")
    assert found["structure"] == [{"path": "maps", "shape": [4, 4, 4]}, {"path": "logits", "shape": [3]}]
    assert found["shape"] == [67]


@pytest.mark.slow
@pytest.mark.parametrize("task", [None, "regression"])
def test_a_network_with_several_outputs_is_compressed_and_gives_them_still(task):
    model, options = Several().eval(), {"evaluations": 3, "probe_images": 0}
    result = wshare.compress(model, IMAGES, quality=0.8, confidence=None, task=task, options=options)
    given = result.model(IMAGES)
    assert list(given) == ["maps", "logits"]
    assert not result.model._forward_hooks
    errors = {
        name: float((given[name] - was).square().mean() / (was - was.mean(0)).square().mean())
        for name, was in model(IMAGES).items()
    }
    if task:
        # Each output weighs the same.
        assert result.metrics["compressed"]["error"] ** 2 == pytest.approx(sum(errors.values()) / 2, abs=0.05)
    assert result.metrics["task"] == (task or "classification")

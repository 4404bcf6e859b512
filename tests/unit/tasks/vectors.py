"""A task for tests: a network gives a vector for each image, and is right where that lies near the wanted one."""

import numpy as np
import torch

from wshare.errors import UserError
from wshare.tasks.task import AGREEMENT, Figure, Score

TOLERANCE = 0.5
FIGURES = (Figure("near", "near vectors"), Figure("distance", "mean distance", ".3g", compares=True))
COLUMNS = ("near", "distance")
PROFILED = ("near", "relative_quality", "kl", "distance")
PREDICTED = "vectors"


def describe(outputs: np.ndarray, settings: dict, name: str) -> dict:
    if outputs.ndim != 2:
        raise UserError(f"{name}: gives {list(outputs.shape)} for 2 images, not a vector for each")
    return {"dimensions": outputs.shape[1]}


def check_labels(labels: np.ndarray | None, description: dict, where: str) -> None:
    if labels is not None:
        raise UserError(f"{where}: vectors cannot be given as labels; leave them out")


def log_likelihood(output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Of a vector drawn from the normal distribution around the output, with a variance of one."""
    label = output.detach().cpu() + torch.randn(output.shape, generator=generator)
    return -0.5 * (label.to(output.device) - output).square().sum()


def divergence(outputs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return (outputs - reference).square().sum(1).mean() / 2


def score(outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0) -> Score:
    """The divergence of two normal distributions of variance one is half the squared distance of their means."""
    squares = np.square(outputs.astype(np.float64) - reference).sum(1)
    near = np.sqrt(squares) < TOLERANCE
    error = near.std() / np.sqrt(len(near))
    return Score(
        kl=float(squares.mean() / 2),
        kl_error=float(squares.std() / 2 / np.sqrt(len(squares))),
        expected=float(near.mean()),
        expected_error=float(error),
        scores=near,
        figures={"near": float(near.mean()), "distance": float(np.sqrt(squares).mean())},
    )


def constant(reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0) -> Score:
    return score(np.tile(reference.mean(0), (len(reference), 1)), reference, labels)


def temperature(outputs: np.ndarray, labels: np.ndarray | None) -> float:
    return 1.0


def classes(outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None) -> list[dict[str, int]]:
    return []


def top_classes(outputs: np.ndarray) -> None:
    return None


def same_predictions(first: np.ndarray, second: np.ndarray) -> bool:
    return bool((np.abs(first - second) < 1e-3).all())


def measure(labels: np.ndarray | None) -> str:
    return AGREEMENT


def predictions(
    outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, keys: list[str]
) -> tuple[list[str], list[dict]]:
    distances = np.linalg.norm(outputs - reference, axis=1)
    return ["image", "moved"], [{"image": key, "moved": by} for key, by in zip(keys, distances, strict=True)]


def changes(
    rows: list[dict[str, str]], description: dict, source: str | None
) -> tuple[str, list[tuple[int, tuple[str, ...]]]]:
    far = [(place, float(row["moved"])) for place, row in enumerate(rows) if float(row["moved"]) >= TOLERANCE]
    return f"{len(far)} vectors moved far.", [(place, (f"moved by {by:.2f}",)) for place, by in far]

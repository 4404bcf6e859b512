"""Measure the moments of each layer's inputs, for searches that feed errors back."""

from pathlib import Path

from wshare.devices import device_of, placed
from wshare.errors import UserError
from wshare.images import ImageFile
from wshare.modelfile import read_model
from wshare.moments import fold_moments, write_moments
from wshare.storage import check_origin, read_json


def measure_inputs(
    settings: dict, spec: Path, weights: Path, layers: Path, images: Path, moments: Path, gpus: int
) -> None:
    """Write inputs.h5: two folds of search images, each with their mirror images.

    UserError for fewer than two images.
    """
    description, table = read_json(spec), read_json(layers)
    check_origin(layers, table, {"model": description["sha256"]})
    names = [layer["name"] for layer in table["layers"]]
    sample = ImageFile(images, limit=settings["images"], preprocessing=description["preprocessing"])
    if len(sample) < 2:
        raise UserError(f"{images}: {len(sample)} search image; searches by rate_distortion need at least two")
    device = device_of(gpus)
    model = read_model(spec, weights, device)
    folds = fold_moments(model, placed(sample, device), names, settings["seed"])
    write_moments(moments, folds, settings, {"model": description["sha256"], "images": sample.fingerprint})

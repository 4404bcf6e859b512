"""Measure the mean and second moment of each layer's inputs, for searches that feed errors back."""

from pathlib import Path

from wshare.artifacts.calibration import write_calibration
from wshare.artifacts.model import read_model
from wshare.calibration.statistics import calibrate
from wshare.data.devices import device_of, placed
from wshare.data.images import ImageFile
from wshare.errors import UserError
from wshare.files.sealed import check_origin, read_json
from wshare.stages.arguments import Machine


def measure_inputs(
    settings: dict,
    spec: Path,
    weights: Path,
    layers: Path,
    search_images: Path,
    calibration: Path,
    machine: Machine,
) -> None:
    """Write calibration.h5: two halves of the search images, each with their mirror images.

    UserError for fewer than two images.
    """
    description, table = read_json(spec), read_json(layers)
    check_origin(layers, table, {"model": description["sha256"]})
    names = [layer["name"] for layer in table["layers"]]
    sample = ImageFile(search_images, limit=settings["images"], preprocessing=description["preprocessing"])
    if len(sample) < 2:
        raise UserError(f"{search_images}: {len(sample)} search image; calibration needs at least two")
    device = device_of(machine.gpus)
    model = read_model(spec, weights, device)
    found = calibrate(model, placed(sample, device), names, settings["seed"], machine.threads)
    write_calibration(calibration, found, settings, {"model": description["sha256"], "images": sample.fingerprint})

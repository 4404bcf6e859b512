"""Measure the mean and second moment of each layer's inputs, for searches that feed errors back."""

from pathlib import Path

from wshare.artifacts.calibration import further_origin, write_calibration
from wshare.artifacts.model import read_model
from wshare.calibration.statistics import calibrate, further_images
from wshare.data.devices import device_of, placed
from wshare.data.images import ImageFile
from wshare.errors import UserError
from wshare.files.sealed import check_origin, read_json
from wshare.stages.arguments import Machine, Samples


def measure_inputs(
    settings: dict,
    spec: Path,
    weights: Path,
    layers: Path,
    samples: Samples,
    calibration: Path,
    machine: Machine,
) -> None:
    """Write calibration.h5: two halves of the search images, and two of further ones, each with their mirror images.

    Its settings tell how many further images there were. UserError for fewer than two images of either.
    """
    description, table = read_json(spec), read_json(layers)
    check_origin(layers, table, {"model": description["sha256"]})
    names = [layer["name"] for layer in table["layers"]]
    path, preprocessing = samples.search_images, description["preprocessing"]
    sample = ImageFile(path, limit=settings["images"], preprocessing=preprocessing)
    if len(sample) < 2:
        raise UserError(f"{path}: {len(sample)} search image; calibration needs at least two")
    device, further = device_of(machine.gpus), None
    if samples.calibration_images:
        further = placed(ImageFile(samples.calibration_images, preprocessing=preprocessing), device)
    model = read_model(spec, weights, device)
    found = calibrate(model, placed(sample, device), names, settings["seed"], machine.threads, further)
    settings = settings | further_images(further)
    made_from = {"model": description["sha256"], "images": sample.fingerprint} | further_origin(further)
    write_calibration(calibration, found, settings, made_from)

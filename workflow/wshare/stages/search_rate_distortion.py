"""Search the highest price of a bit that meets the quality target, one price for all layers."""

from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from wshare.artifacts.model import read_model
from wshare.artifacts.outputs import read_outputs
from wshare.data.devices import device_of, placed
from wshare.data.images import ImageFile
from wshare.files.journal import Journal
from wshare.files.sealed import read_json, sha256_file, write_json
from wshare.files.tables import write_sealed
from wshare.progress import PROGRESS
from wshare.quantize.layer import Options
from wshare.search.rate_distortion.files import network_hashes, read_folds
from wshare.search.rate_distortion.find import FRONT, LOSSES, Scale, find, measurements


def search_rate_distortion(
    settings: dict,
    spec: Path,
    weights: Path,
    images: Path,
    baseline: Path,
    extracted: Path,
    moments: Path,
    code: str,
    journal: Path,
    front: Path,
    losses: Path,
    recipe: Path,
    threads: int,
    gpus: int,
) -> None:
    """Write front.csv, every price measured; losses.csv, each layer's predicted and measured loss; recipe.json.

    The journal holds each measurement as soon as it is made, as for the other methods.
    """
    choices = settings["options"]
    device = device_of(gpus)
    sample = placed(ImageFile(images), device)
    model = read_model(spec, weights, device)
    made_from = {"model": read_json(spec)["sha256"], "images": sample.fingerprint}
    folds = read_folds(model, extracted, moments, made_from, sample.batch(0)[:2], choices["fold_batch_norm"])
    reference = read_outputs(baseline, sample, made_from["model"])
    # A size that is asked for takes one measurement, in float32.
    half = device.type == "cuda" and not choices["compression_rate"]
    scale = Scale(model, folds, sample, reference, Options.of(choices), threads, half=half)
    total = measurements(scale, settings)
    inputs = [spec, weights, images, baseline, extracted, moments]
    header = {"settings": settings, "code": code, "inputs": [sha256_file(path) for path in inputs]}
    with Journal(journal, header) as log, tqdm(total=total, initial=len(log), desc="search", **PROGRESS) as progress:

        def remembered(key: tuple, measure: Callable[[], dict]) -> dict:
            if key not in log:
                log.append(key, measure())
                progress.update()
            return log[key]

        description = read_json(spec)
        found = find(scale, settings, {key: description[key] for key in ("name", "sha256")}, remembered)
    write_sealed(front, FRONT + list(scale.layers), found.front, made_from)
    write_sealed(losses, LOSSES, found.losses, made_from)
    write_json(recipe, found.recipe | {"made_from": network_hashes(extracted, moments)})

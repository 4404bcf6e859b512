"""Search the smallest compressed network that meets the quality target, by the method that the settings name."""

from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from wshare.artifacts.calibration import check_further
from wshare.artifacts.model import read_model
from wshare.artifacts.outputs import read_outputs
from wshare.data.devices import device_of, placed
from wshare.data.images import ImageFile
from wshare.files.journal import Journal
from wshare.files.sealed import check_origin, read_json, sha256_file, write_json
from wshare.files.tables import write_sealed
from wshare.progress import PROGRESS
from wshare.search.artifacts import Files, read_artifacts
from wshare.search.evaluator import Evaluator, Further, Key, check_target
from wshare.search.method import Artifacts
from wshare.search.methods import METHODS
from wshare.search.run import LOSSES, run
from wshare.stages.arguments import Machine, ModelFiles, Samples, SearchedFiles
from wshare.tasks.table import task_of


def search(
    settings: dict,
    files: ModelFiles,
    layers: Path,
    samples: Samples,
    search_outputs: Path,
    needs: Files,
    code: str,
    journal: Path,
    found: SearchedFiles,
    machine: Machine,
) -> None:
    """Write front.csv, all that was measured; losses.csv, each layer's predicted and measured loss; and recipe.json.

    The journal holds each measurement as soon as it is made; a killed search goes on from there. It is void when the
    settings, an input or `code`, a hash of the program, differ.
    """
    device = device_of(machine.gpus)
    model = read_model(files.spec, files.weights, device)
    description, listed = read_json(files.spec), read_json(layers)
    check_origin(layers, listed, {"model": description["sha256"]})
    stored = ImageFile(samples.search_images)
    sample = placed(stored, device)
    made_from = {"model": description["sha256"], "images": sample.fingerprint}
    row, packing = METHODS[settings["method"]], settings["packing"]
    # How the file is written changes nothing of what is measured.
    settings = {key: value for key, value in settings.items() if key != "packing"}
    names = [layer["name"] for layer in listed["layers"]]
    kind, method = task_of(description), row.load()
    reference = read_outputs(search_outputs, sample, description["sha256"])
    check_target(kind, reference, sample.labels, stored.held_out, settings)
    artifacts = read_artifacts(row.needs, needs, kind, model, sample, names, made_from)
    space = method.prepare(artifacts, settings["options"], machine.threads)
    further = _further(samples.calibration_images, needs, artifacts, device, machine.threads)
    inputs = [files.spec, files.weights, layers, samples.search_images, search_outputs, *needs.present()]
    header = {"settings": settings, "code": code, "inputs": [sha256_file(path) for path in inputs]}
    total = method.budget(space, settings["options"])
    with Journal(journal, header) as log, tqdm(total=total, initial=len(log), desc="search", **PROGRESS) as progress:
        print(f"{len(log)} measurements are in the journal, of {total} at most")

        def remembered(key: Key, measure: Callable[[], dict]) -> dict:
            if key not in log:
                log.append(key, measure())
                progress.update()
                print(f"measurement {len(log)}, of {total} at most: {log[key]['kl']:.4g} nats")
            return log[key]

        evaluator = Evaluator(
            *(kind, model, sample, reference, stored.held_out, settings, machine.threads, remembered),
            float16=device.type == "cuda",
            further=further,
        )
        searched = run(method, space, artifacts, evaluator, settings, packing, description)
    write_sealed(found.front, searched.columns, searched.front, made_from)
    write_sealed(found.losses, LOSSES, searched.losses, made_from)
    write_json(found.recipe, searched.recipe)


def _further(
    path: Path | None, needs: Files, artifacts: Artifacts, device: torch.device, threads: int
) -> Further | None:
    """The images that calibration statistics were measured on beside the search images, if there are any."""
    if artifacts.calibration is None:
        return None
    images = ImageFile(path) if path else None
    check_further(needs.calibration, images)
    return images and Further.of(artifacts.model, placed(images, device), artifacts.calibration, threads)

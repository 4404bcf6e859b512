"""Evaluate the float32 network: the reference of every comparison."""

from pathlib import Path

from wshare.artifacts.model import read_model
from wshare.artifacts.outputs import write_outputs
from wshare.data.devices import device_of, placed
from wshare.data.images import ImageFile
from wshare.evaluation.baseline import check_accuracy, check_repeats
from wshare.evaluation.predict import predict
from wshare.files.sealed import read_json, write_json
from wshare.models.forward import forward
from wshare.tasks.table import task_of
from wshare.tasks.task import own_figures


def evaluate_dense(
    spec: Path,
    weights: Path,
    search_images: Path,
    held_out_images: Path,
    search_outputs: Path,
    held_out_outputs: Path,
    baseline: Path,
    threads: int,
    gpus: int,
) -> None:
    """Write the float32 network's outputs on both splits and its quality on them.

    UserError if the outputs do not repeat, or tell nothing of the labels: nothing that follows would mean anything.
    """
    device = device_of(gpus)
    model = read_model(spec, weights, device)
    description = read_json(spec)
    kind = task_of(description)
    quality, compared = own_figures(kind)[0], {figure.key for figure in kind.FIGURES if figure.compares}
    hashes = {"model": description["sha256"]}
    result: dict = {"published": description["published"]}
    splits = (("search", search_images, search_outputs), ("held_out", held_out_images, held_out_outputs))
    for name, path, target in splits:
        images = ImageFile(path, preprocessing=description["preprocessing"])
        kind.check_labels(images.labels, description, f"{name} images")
        sample = placed(images, device)
        first = sample.batch(0)
        check_repeats(forward(model, first), forward(model, first), description["name"])
        outputs = predict(model, sample, threads)
        check_accuracy(kind, outputs, images.labels, description.get("categories"), f"{name} images")
        write_outputs(target, outputs, images, description["sha256"])
        hashes[f"{name}_images"] = images.fingerprint
        figures = kind.score(outputs, outputs, images.labels).figures
        result["measure"] = kind.measure(images.labels)
        counts = {"images": len(images), "skipped": images.skipped}
        result[name] = counts | {key: figure for key, figure in figures.items() if key not in compared}
        if images.labels is None:
            print(f"{name}: {len(images)} images without labels; this network's own {kind.PREDICTED} stand for them")
        else:
            print(f"{name}: {quality.label} {quality.text(figures[quality.key])} on {len(images)} images")
    write_json(baseline, result | {"sha256": hashes})

"""Evaluate the float32 network: the reference of every comparison."""

from pathlib import Path

from wshare.artifacts.model import read_model
from wshare.artifacts.outputs import write_outputs
from wshare.data.devices import device_of, placed
from wshare.data.images import ImageFile
from wshare.evaluation.predict import predict
from wshare.files.sealed import read_json, write_json
from wshare.tasks.classification import measure_of, score


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
    """Write the float32 network's logits on both splits and its accuracy on them."""
    device = device_of(gpus)
    model = read_model(spec, weights, device)
    description = read_json(spec)
    hashes = {"model": description["sha256"]}
    result: dict = {"published": description["published"]}
    splits = (("search", search_images, search_outputs), ("held_out", held_out_images, held_out_outputs))
    for name, path, target in splits:
        images = ImageFile(path, preprocessing=description["preprocessing"])
        logits = predict(model, placed(images, device), threads)
        write_outputs(target, logits, images, description["sha256"])
        hashes[f"{name}_images"] = images.fingerprint
        quality = score(logits, logits, images.labels)
        result["measure"] = measure_of(images.labels)
        counts = {"images": len(images), "skipped": images.skipped}
        result[name] = counts | {"top1": quality.top1, "top5": quality.top5, "loss": quality.loss}
        if images.labels is None:
            print(f"{name}: {len(images)} images without labels; this network's own classes stand for them")
        else:
            print(f"{name}: top-1 {quality.top1:.2%} on {len(images)} images")
    write_json(baseline, result | {"sha256": hashes})

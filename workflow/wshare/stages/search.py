"""Search the combination of per-layer k that meets the quality target with the fewest bits."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from wshare.artifacts.clusters import Clusters, cluster_hashes, read_clusters
from wshare.artifacts.model import read_model
from wshare.artifacts.outputs import read_outputs
from wshare.calibration.sensitivity import COLUMNS
from wshare.data.devices import device_of, placed
from wshare.data.images import ImageFile
from wshare.evaluation.intervals import check_images, predicted_low
from wshare.evaluation.predict import predict
from wshare.files.journal import Journal
from wshare.files.sealed import check_origin, read_json, sha256_file, write_json
from wshare.files.tables import read_sealed, write_sealed
from wshare.models.layers import substituted
from wshare.progress import PROGRESS
from wshare.quantize.codebooks import shared_weight
from wshare.search import method
from wshare.search.by_k.problem import Combination, Layer, Measurement, Problem, Profiled
from wshare.search.rate_distortion.find import LOSSES
from wshare.stages.arguments import Machine, ModelFiles, Needs
from wshare.stages.search_rate_distortion import search_rate_distortion
from wshare.tasks.classification import measure_of, score

FRONT = ["bits", "compression_rate_analytic", "top1", "relative_quality", "low", "kl", "agreement", "pareto", "chosen"]


def _by_k(
    settings: dict,
    spec: Path,
    weights: Path,
    images: Path,
    baseline: Path,
    clusters: list[Path],
    sensitivity: Path,
    code: str,
    journal: Path,
    front: Path,
    recipe: Path,
    threads: int,
    gpus: int,
) -> None:
    """Write front.csv, every combination measured, and recipe.json, the chosen one.

    The journal holds each measurement as soon as it is made; a killed search goes on from there. It is
    void when the settings, an input or `code`, a hash of the program, differ.
    """
    device = device_of(gpus)
    model = read_model(spec, weights, device)
    sample = placed(ImageFile(images), device)
    made_from = {"model": read_json(spec)["sha256"], "images": sample.fingerprint}
    reference = read_outputs(baseline, sample, made_from["model"])
    layers = [read_clusters(path, made_from) for path in clusters]
    shared_from = cluster_hashes(clusters, layers)
    arrays = {layer.layer: model.get_submodule(layer.layer).weight.numpy(force=True) for layer in layers}
    original = score(reference, reference, sample.labels)
    finder = method(settings["method"])
    check_images(len(sample), original.top1, settings["quality_target"], settings["confidence"])

    def measure(combination: Combination) -> dict:
        shared = {
            layer.layer: shared_weight(arrays[layer.layer], layer.sweep.codebook(k))
            for layer, k in zip(layers, combination, strict=True)
            if k is not None
        }
        with substituted(model, shared):
            quality = score(predict(model, sample, threads), reference, sample.labels)
        share, low = predicted_low(quality.correct, original.correct, settings["confidence"])
        return {
            "top1": quality.top1,
            "relative_quality": share,
            "low": low,
            "kl": quality.kl,
            "agreement": quality.agreement,
        }

    inputs = [spec, weights, images, baseline, sensitivity, *clusters]
    header = {"settings": settings, "code": code, "inputs": [sha256_file(path) for path in inputs]}
    total = finder.budget(settings["options"])
    with Journal(journal, header) as log, tqdm(total=total, initial=len(log), desc="search", **PROGRESS) as progress:

        def remembered(combination: Combination) -> Measurement:
            if combination not in log:
                log.append(combination, measure(combination))
                progress.update()
            return Measurement(**log[combination])

        profile = _read_profile(sensitivity, layers, made_from | shared_from)
        problem = Problem(
            tuple(_layer(layer, profile) for layer in layers), settings["quality_target"], settings["seed"], remembered
        )
        chosen = finder.run(problem, settings["options"])
        measured = log.entries()
    columns = FRONT + [layer.layer for layer in layers]
    write_sealed(front, columns, _front_rows(problem, measured, chosen), made_from)
    description = read_json(spec)
    write_json(
        recipe,
        {
            "model": {"name": description["name"], "sha256": description["sha256"]},
            "search_images": sample.fingerprint,
            "made_from": shared_from,
            "settings": settings,
            "layers": {
                layer.layer: {"shape": list(layer.shape), "k": k} for layer, k in zip(layers, chosen, strict=True)
            },
            "on_search_images": measured[chosen]
            | {"measure": measure_of(sample.labels), "meets_target": problem.meets(chosen)},
            "evaluations": len(measured),
            "images_forwarded": {
                "search": len(measured) * len(sample),
                "profile": sum(row.images for rows in profile.values() for row in rows) if finder.USES_PROFILE else 0,
            },
        },
    )


def _read_profile(path: Path, layers: list[Clusters], made_from: dict[str, str]) -> dict[str, list[Profiled]]:
    """Rows by layer, each with the inertia that its clustering minimised."""
    rows, found = read_sealed(path, COLUMNS)
    check_origin(path, found, made_from)
    columns = {layer.layer: "inertia" if layer.weighting == "none" else "weighted_inertia" for layer in layers}
    profile: dict[str, list[Profiled]] = {}
    for row in rows:
        profile.setdefault(row["layer"], []).append(
            Profiled(
                k=int(row["k"]),
                inertia=float(row[columns[row["layer"]]]),
                relative_quality=float(row["relative_quality"]),
                kl=float(row["kl"]),
                images=int(row["images"]),
            )
        )
    return profile


def _layer(clusters: Clusters, profile: dict[str, list[Profiled]]) -> Layer:
    return Layer(clusters.layer, clusters.weights, clusters.objective, tuple(profile[clusters.layer]))


def _front_rows(problem: Problem, measured: dict[Combination, dict], chosen: Combination) -> list[dict]:
    """All measured combinations by ascending bits; `pareto` marks those that no smaller one equals."""
    rows = []
    best = -np.inf
    dense = problem.bits((None,) * len(problem.layers))
    order = sorted(measured, key=lambda c: (problem.bits(c), -measured[c]["relative_quality"]))
    for combination in order:
        quality = measured[combination]
        bits = problem.bits(combination)
        rows.append(
            {"bits": bits, "compression_rate_analytic": dense / bits}
            | quality
            | {"pareto": int(quality["relative_quality"] > best), "chosen": int(combination == chosen)}
            | {layer.name: "dense" if k is None else k for layer, k in zip(problem.layers, combination, strict=True)}
        )
        best = max(best, quality["relative_quality"])
    return rows


def search(
    settings: dict,
    model: str,
    files: ModelFiles,
    layers: Path,
    search_images: Path,
    search_outputs: Path,
    needs: Needs,
    code: str,
    journal: Path,
    front: Path,
    losses: Path,
    recipe: Path,
    machine: Machine,
) -> None:
    """Write front.csv, losses.csv and recipe.json."""
    own = {key: value for key, value in settings.items() if key != "packing"}
    common = (own, files.spec, files.weights, search_images, search_outputs)
    if needs.calibration:
        found = (code, journal, front, losses, recipe, machine.threads, machine.gpus)
        search_rate_distortion(*common, needs.layer_weights, needs.calibration, *found)
    else:
        found = (code, journal, front, recipe, machine.threads, machine.gpus)
        _by_k(*common, needs.clusters, needs.sensitivity, *found)
        made_from = {"model": read_json(files.spec)["sha256"], "images": ImageFile(search_images).fingerprint}
        write_sealed(losses, LOSSES, [], made_from)
    write_json(recipe, read_json(recipe) | {"settings": settings})

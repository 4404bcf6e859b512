"""Compression from Python, without Snakemake: images in memory, a packed file as the result.

The five lines are

    import wshare

    result = wshare.compress(model, images, labels, quality=0.99)
    print(result)
    result.save("net.wshare.safetensors")

and, where the network is used, `wshare.load("net.wshare.safetensors", model)`.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from tqdm import tqdm

from wshare.config.validation import complete_search, defaults
from wshare.data.devices import device_named, exact, placed
from wshare.data.images import ImageArray, Images
from wshare.data.loading import Batches, gathered
from wshare.data.splits import held_out_count, kinds_of, split_indices
from wshare.data.stored import image_hash
from wshare.errors import UserError, one_line
from wshare.evaluation.baseline import check_accuracy, check_repeats
from wshare.evaluation.predict import predict
from wshare.evaluation.verdict import compare, describe
from wshare.files.atomic import write_bytes
from wshare.models.coverage import told as told_coverage
from wshare.models.forward import forward
from wshare.models.layers import Choice, inspect
from wshare.models.outputs import with_logits
from wshare.models.plain import (
    check_network,
    check_values,
    fold_weights,
    is_plain,
    plain_copy,
    unwrapped,
    without_wrappers,
)
from wshare.models.state import CPU, check_finite, fast, load_state, state_of
from wshare.packed.format import load_packed
from wshare.packed.write import pack_network
from wshare.progress import PROGRESS
from wshare.report.quality import kept_share, reasons
from wshare.search.evaluator import Evaluator, Further, Key, check_target
from wshare.search.measured import measured_artifacts
from wshare.search.method import Artifacts
from wshare.search.methods import DEFAULT, METHODS, Method, packing_of
from wshare.search.recipe import check_layers, check_promise, method_of, realised
from wshare.search.run import Searched, run
from wshare.tasks import table as tasks
from wshare.tasks.description import description_of
from wshare.tasks.own_quality import Function, name_of
from wshare.tasks.task import Figure, Task, own_figures

if TYPE_CHECKING:
    import altair

# Of the configuration's schema.
CONFIDENCE = complete_search({"method": DEFAULT})["confidence"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A compressed network.

    `model` is the compressed network: a copy of the one that was passed, in evaluation mode. `recipe` holds the
    settings of all layers, as recipe.json does, and `metrics` sizes, quality on the held-out images and the verdict,
    as metrics.json does; `seconds` is what the search and the evaluation took. `front` has a row for each combination
    that was measured on the search images, as front.csv does, and `losses` one for each layer that was probed.
    `parameters` lists every parameter once, as layers.json does: whether it is shared, and why if it is not.
    """

    model: nn.Module
    recipe: dict
    metrics: dict
    seconds: dict[str, float]
    front: list[dict]
    losses: list[dict]
    parameters: list[dict] = field(repr=False)
    packed: bytes = field(repr=False)

    def __str__(self) -> str:
        nbytes, after, quality = self.metrics["bytes"], self.metrics["compressed"], self._quality()
        share, *ends = (
            kept_share(value, self.metrics)
            for value in (self.metrics["relative_quality"], *self.metrics["relative_quality_ci95"])
        )
        told = "".join(f"\n{reason}" for reason in reasons(self.metrics))
        return (
            f"{nbytes['float32']:,} bytes -> {nbytes['packed']:,} bytes, "
            f"{self.metrics['compression_rate']['on_disk']:.2f}x on disk, "
            f"{self.metrics['bits_per_weight']:.2f} bits a weight\n"
            f"{told_coverage(self.parameters)}\n"
            f"{self.metrics['measure']} {quality.text(after[quality.key])} on {after['images']:,} held-out images, "
            f"{share} of float32 (95 % interval {' to '.join(ends)}): "
            f"{self.metrics['verdict']} at {self.metrics['quality_target']:.4g}{told}"
        )

    def _quality(self) -> Figure:
        return own_figures(tasks.task_of(self.metrics))[0]

    def save(self, path: str | Path) -> None:
        """Write the packed file, whole or not at all; `load` reads it."""
        write_bytes(path, self.packed)

    def state_dict(self) -> dict[str, Tensor]:
        """State dict of the compressed network, in float32, as a reader of the packed file gets it."""
        return load_packed(self.packed)

    def plot(self) -> "altair.LayerChart":
        """Chart of the searched front: divergence on the search images against the compression rate of the layers.

        Needs altair; UserError if it is missing. `.save("front.html")` writes it; notebooks show it.
        """
        try:
            import altair
        except ModuleNotFoundError as error:
            if error.name != "altair":
                raise
            raise UserError("plot: altair is not installed; it is an optional extra: pip install altair") from None
        quality = self._quality()
        rows = [
            {
                "rate": row["compression_rate_analytic"],
                "kl": row["kl"],
                quality.key: row[quality.key],
                "state": "chosen" if row["chosen"] else "measured",
            }
            for row in self.front
        ]
        base = altair.Chart(altair.Data(values=rows)).encode(
            x=altair.X("rate:Q", title="compression rate of the layers (analytic)", scale=altair.Scale(zero=False)),
            y=altair.Y("kl:Q", title="divergence from float32 on search images, nats"),
        )
        points = base.mark_point(filled=True, size=80).encode(
            color=altair.Color("state:N", title=None), tooltip=["rate:Q", "kl:Q", f"{quality.key}:Q"]
        )
        return base.mark_line(color="lightgrey") + points


def compress(
    model: nn.Module,
    images: Batches,
    labels: Tensor | np.ndarray | Sequence | None = None,
    quality: float = 0.99,
    confidence: float | None = CONFIDENCE,
    *,
    method: str = DEFAULT,
    task: str | None = None,
    quality_function: Function | str | None = None,
    held_out: "float | Batches | tuple[Batches, Sequence]" = 0.5,
    input: str | Callable | None = None,
    preprocess: Callable | None = None,
    options: Mapping[str, object] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep_zeros: bool = False,
    calibration: Batches | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str | torch.device | None = None,
) -> Result:
    """The smallest network found that keeps `quality`, a share of the float32 quality.

    `model` takes images [N, C, H, W] and gives outputs of its `task`, in any structure: logits, or probabilities,
    [N, classes] for classification; docs/tasks.md has all of them. Without a name the task is recognised where outputs
    and labels leave no doubt. It is used in evaluation mode and float32. `images` are float [N, C, H, W] as it takes
    them, or an iterable of batches, images or (images, labels), such as a DataLoader, or a dataset of such items. Of a
    batch that is a mapping or another object `input` is the key of the images, or a function that gives images or
    (images, labels); pictures of PIL go through `preprocess`, one by one. All are read once; what takes more than 2 GiB
    lies in a temporary file. Images of different sizes, a list, a dataset or batches of one, are forwarded one by one;
    the outputs must all have one shape. `labels` are those of the task, class indices [N] for classification; without
    labels the model's own predictions stand for them, and quality is agreement with it.

    Images are dealt out, at random by `seed`, to search images and held-out ones, of each label as many to both as
    their shares are. No choice looks at held-out images, and the verdict in `Result.metrics` looks at them alone.
    `held_out` is the share (below 1) or number of images held out, or other images to hold out: as `images`, or a tuple
    (images, labels). `calibration` are further images, two or more, without labels: calibration statistics and
    divergence are measured on them, too, and quality is not. `quality_function` is a quality of your own: a function,
    or its name `python:module:function`, of outputs and labels as numpy arrays, which gives a number for all images, or
    one for each; `quality` is then a share of its value.

    `confidence` is the probability with which the verdict shall be "met", as far as the search images can tell; None
    goes by the quality measured on them. `method` is the search method, `options` are its own as in a configuration,
    such as {"compression_rate": 8} for the default one. `include` and `exclude` choose layers by exact name, or by
    `re:` and a regular expression. With `keep_zeros` weights of exactly 0, as of a pruned network, stay exactly 0.

    Networks run on `device`: the CPU, wherever the model lies, or "cuda". All else takes `threads` threads, by default
    one a core; the result does not depend on their number. UserError tells what cannot be used: no layer to share,
    weights or images that are not finite, outputs that differ from pass to pass, labels of other classes than the
    model's, images both searched with and held out, too few images for the confidence, a GPU that is not there.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model: a {type(model).__name__}, not an nn.Module")
    device = device_named(device)
    settings = search_settings(method, quality, confidence, dict(options or {}), seed, keep_zeros)
    *both, others = _given(model, images, labels, held_out, calibration, seed, input, preprocess)
    return compress_images(
        *(model, *both, settings, task, include, exclude, threads, None, quality_function, keep_zeros, device, others)
    )


def search_settings(
    method: str, quality: float, confidence: float | None, options: dict, seed: int, keep_zeros: bool
) -> dict:
    """A search of the configuration, complete, and the seed; UserError if it is none.

    Methods that read clusters keep zeros by these; others have an option for it, or are refused.
    """
    clustered = method in METHODS and "clusters" in METHODS[method].needs
    options = options | ({"keep_zeros": True} if keep_zeros and not clustered else {})
    search = {"method": method, "quality_target": quality, "confidence": confidence, "options": options}
    return complete_search(search) | {"seed": seed}


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """The model, filled with the weights of a packed file and in evaluation mode.

    Names and shapes must be those of the model; if not, UserError names the first that differ, and the model is left
    as it was. FormatError if the file is damaged. A model in a wrapper, such as DataParallel, or with parts in one, is
    filled inside it; weights that are computed from others, as by weight_norm, become parameters. The compressed
    weights are for evaluation: batch norms hold a scale and a shift, and no statistics to go on training with.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model: a {type(model).__name__}, not an nn.Module; give the packed file, then the model")
    state, module = load_packed(path), unwrapped(model)
    check_values(module, "model")
    own = (module if is_plain(module) else plain_copy(module, "model", told=False)).state_dict()
    wrong = [
        f"{name} ({_shape(state, name)} in the file, {_shape(own, name)} in the model)"
        for name in [*own, *(name for name in state if name not in own)]
        if name not in state or name not in own or state[name].shape != own[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{path}: made for another architecture: {', '.join(wrong[:3])}{more}; build the same model")
    model.eval()
    fold_weights(module, "model")
    with without_wrappers(module):
        load_state(module, state, str(path))
    return model


def compress_images(
    model: nn.Module,
    search: Images,
    held_out: Images,
    settings: dict,
    task: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    threads: int | None = None,
    categories: Sequence[str] | None = None,
    quality_function: Function | str | None = None,
    keep_zeros: bool = False,
    device: torch.device = CPU,
    calibration: Images | None = None,
) -> Result:
    """`compress` on images that are dealt out already, each split in random order.

    `settings` are those of `search_settings`. `categories` are names of classes, if known.
    """
    started = time.perf_counter()
    threads = threads or os.cpu_count() or 1
    with _reproducible(), exact(device):
        work = _working_copy(model)
        known, kind = _described(work, (search, held_out), task, quality_function)
        table = inspect(work, [], Choice(include, exclude), search.batch(0)[:2])
        names = [layer["name"] for layer in table["layers"]]
        float32 = save(state_of(work))
        description = {"name": type(work).__name__, "task": known["task"]}
        description["sha256"] = hashlib.sha256(float32).hexdigest()
        sample, held = placed(search, device), placed(held_out, device)
        further = calibration and placed(calibration, device)
        reference, held_out_reference = (predict(fast(work, device), both, threads) for both in (sample, held))
        check_accuracy(kind, reference, search.labels, categories, "search images")
        check_accuracy(kind, held_out_reference, held_out.labels, categories, "held-out images")
        check_target(kind, reference, search.labels, len(held_out), settings)
        row = METHODS[settings["method"]]
        _check_read(calibration, row)
        made_with = _default_settings(names, settings["seed"], keep_zeros)
        artifacts = measured_artifacts(row.needs, kind, work, sample, names, made_with, reference, threads, further)
        searched = _searched(artifacts, reference, len(held_out), kind, settings, description, threads, further)
        # Packed on the CPU, as the workflow does.
        on_cpu = replace(artifacts, model=fast(work), images=search)
        packed, sizes = _packed(kind, searched.recipe, on_cpu, reference, threads, len(float32))
        done = time.perf_counter()
        fresh, temperature = with_logits(_working_copy(model, told=False), known), searched.recipe["temperature"]
        quality = _quality(kind, fast(fresh, device), packed, held, held_out_reference, temperature, threads)
        compressed = _compressed(model, packed)
    hashes = {
        "model": description["sha256"],
        "held_out_images": held_out.fingerprint,
        "search_images": search.fingerprint,
        "packed": hashlib.sha256(packed).hexdigest(),
    }
    metrics = {"model": description["name"]} | describe(
        quality, settings["quality_target"], sizes, searched.recipe, settings["seed"], hashes
    )
    seconds = {"search": done - started, "evaluate_packed": time.perf_counter() - done}
    return Result(
        compressed, searched.recipe, metrics, seconds, searched.front, searched.losses, table["parameters"], packed
    )


def apply_recipe(
    model: nn.Module,
    recipe: dict,
    where: str,
    images: Images,
    threads: int | None = None,
    calibration: Images | None = None,
) -> tuple[bytes, dict]:
    """The packed file of `model`, with its layers as `recipe` says, and the content of sizes.json.

    What the recipe's method goes by, such as calibration statistics, depends on the weights: `images` tell it anew,
    with the settings that the recipe records, and so do the further images for `calibration`, if there were any.
    The model and the images that the recipe was made with give the very bytes of the file that was packed then.
    `where` names the recipe in messages. UserError if its layers are not those of the model, or its method has
    other options now.
    """
    _check_options(recipe["settings"], where)
    _check_further(recipe["artifacts"].get("calibration", {}), where, calibration)
    threads = threads or os.cpu_count() or 1
    with _reproducible():
        work = _working_copy(model)
        _, kind = _described(work, [images], recipe["task"])
        # Layers that the recipe leaves out stay as they are.
        found = {layer["name"]: tuple(layer["shape"]) for layer in inspect(work, [], Choice())["layers"]}
        shapes = {name: shape for name, shape in found.items() if name in recipe["layers"]}
        check_layers(recipe, where, shapes, "it was made for another architecture")
        float32 = save(state_of(work))
        names, needed = list(recipe["layers"]), method_of(recipe, where).realised_from
        made_with = recipe["artifacts"]
        artifacts = measured_artifacts(needed, kind, work, images, names, made_with, None, threads, calibration)
        reference = predict(work, images, threads)
        searched = (recipe["model"]["sha256"], recipe["search_images"])
        same = searched == (hashlib.sha256(float32).hexdigest(), images.fingerprint)
        if recipe.get("gradient_epochs") and not same:
            raise UserError(
                f"{where}: gradient calibration taught its values for other weights, or by other images; search again, "
                "or without gradient_calibration"
            )
        return _packed(kind, recipe, artifacts, reference, threads, len(float32), where, same)


def _check_options(settings: dict, where: str) -> None:
    """UserError unless the method's options in a recipe are such as a configuration may hold, none left out."""
    given = settings["options"]
    try:
        known = complete_search({"method": settings["method"], "options": given})["options"]
    except UserError as error:
        raise UserError(f"{where}: settings.{error}") from None
    if missing := known.keys() - given.keys():
        raise UserError(f"{where}: settings.options.{min(missing)} is missing; search again")


def _check_read(calibration: Images | None, row: Method) -> None:
    """UserError if there are images for calibration and a method that does not look at them."""
    if calibration and "calibration" not in row.needs:
        raise UserError(f"calibration: method {row.name!r} goes by no calibration statistics; leave the images out")


def _check_further(settings: dict, where: str, calibration: Images | None) -> None:
    """UserError unless there are further images for calibration exactly where the recipe was made with some."""
    count = settings.get("further_images", 0)
    if bool(count) != bool(calibration):
        told = f"{count} further images for calibration, and none are" if count else "no further images for calibration"
        raise UserError(f"{where}: was made with {told} given; {'give' if count else 'leave out'} --calibration-images")


def _default_settings(layers: Sequence[str], seed: int, keep_zeros: bool) -> dict[str, dict]:
    """What artifacts are made with where no configuration says otherwise."""
    sections = {name: defaults(name) | {"seed": seed} for name in ("importance", "calibration", "clustering")}
    clustering = dict.fromkeys(layers, sections["clustering"] | {"keep_zeros": keep_zeros})
    return sections | {"clustering": clustering, "sensitivity": defaults("sensitivity")}


def _searched(
    artifacts: Artifacts,
    reference: np.ndarray,
    held_out: int,
    kind: Task,
    settings: dict,
    description: dict,
    threads: int,
    further: Images | None,
) -> Searched:
    method = METHODS[settings["method"]].load()
    space = method.prepare(artifacts, settings["options"], threads)
    total = method.budget(space, settings["options"])
    with tqdm(total=total, desc="search", **PROGRESS) as progress:

        def measured(key: Key, measure: Callable[[], dict]) -> dict:
            found = measure()
            progress.update()
            return found

        evaluator = Evaluator(
            *(kind, artifacts.model, artifacts.images, reference, held_out, settings, threads, measured),
            float16=next(artifacts.model.parameters()).is_cuda,
            further=further and Further.of(artifacts.model, further, artifacts.calibration, threads),
        )
        packing = defaults("packing") | packing_of(settings["options"])
        return run(method, space, artifacts, evaluator, settings, packing, description)


def _packed(
    kind: Task,
    recipe: dict,
    artifacts: Artifacts,
    reference: np.ndarray,
    threads: int,
    float32: int,
    where: str = "the recipe",
    promised: bool = True,
) -> tuple[bytes, dict]:
    """Content of the packed file, and of sizes.json; the model changes.

    The divergence is held against what the search `promised`, unless network or images are others than were searched.
    `where` names the recipe in messages.
    """
    compressed = realised(recipe, artifacts, where, threads)
    content, sizes, kl = pack_network(
        kind, artifacts.model, compressed, recipe["packing"], artifacts.images, reference, threads, float32
    )
    _log.info("divergence of the packed network on the search images: %.4g nats", kl)
    if promised:
        check_promise(recipe, where, kl)
    return content, sizes


def _quality(
    kind: Task, model: nn.Module, packed: bytes, images: Images, reference: np.ndarray, temperature: float, threads: int
) -> dict:
    """Quality of the packed file, loaded anew into `model`, against the float32 outputs, `reference`."""
    load_state(model, load_packed(packed), "the packed file")
    return compare(kind, predict(model, images, threads), reference, images.labels, temperature)


@contextmanager
def _reproducible() -> Iterator[None]:
    """Sums on one thread, in one order, as in the workflow's jobs; tensors that may have gradients."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def _working_copy(model: nn.Module, told: bool = True) -> nn.Module:
    """Copy of the model as the workflow's stages have it: CPU, float32, evaluation mode, without wrappers; checked.

    The log says what was taken off, if `told`.
    """
    check_network(model, "model")
    copied = plain_copy(model, "model", told)
    check_finite(copied, "model")
    return fast(copied.cpu().float().eval())


def _described(
    model: nn.Module, samples: Sequence[Images], task: str | None, quality_function: Function | str | None = None
) -> tuple[dict, Task]:
    """What model.json would say of the model's outputs, and its task, whose name may not be known yet.

    From now on the model gives what the task takes. UserError unless outputs are finite and repeat on the first images
    of each sample, and labels fit them.
    """
    # The task looks at the outputs of two images, and there may be one.
    firsts = [torch.cat([first, first])[:2] for first in (images.batch(0)[:2] for images in samples)]
    quality = name_of(quality_function) if quality_function else None
    description = _outputs(model, firsts[0], samples[0], {"task": task, "quality": quality})
    with_logits(model, description)
    kind = tasks.task_of(description, quality_function if callable(quality_function) else None)
    for first, images in zip(firsts, samples, strict=True):
        outputs = forward(model, first)
        if not np.isfinite(outputs).all():
            raise UserError(
                "model: gives NaN or infinite outputs on the first images; check its buffers and the images"
            )
        check_repeats(outputs, forward(model, first), "model")
        kind.check_labels(images.labels, description, "labels")
    return description, kind


def _outputs(model: nn.Module, first: Tensor, images: Images, settings: dict) -> dict:
    try:
        return description_of(model, first, settings, "model", images.labels)
    except UserError:
        raise
    except Exception as error:
        # A network may run any code, which fails in any way.
        # Images of different sizes come one by one.
        size = ", of one size" if images.batch_size == 1 else ""
        raise UserError(
            f"model: fails on images {list(images.shape)} ({one_line(error)}); give images as the model takes "
            f"them{size}"
        ) from error


def _compressed(model: nn.Module, packed: bytes) -> nn.Module:
    """A copy of the model, without wrappers, on its device and in its types, with the compressed weights."""
    compressed = plain_copy(model, "model", told=False).eval()
    load_state(compressed, load_packed(packed), "the packed file")
    return compressed


def _given(
    model: nn.Module,
    images: Batches,
    labels: Sequence | None,
    held_out: object,
    calibration: Batches | None,
    seed: int,
    take: str | Callable | None,
    preprocess: Callable | None,
) -> tuple[ImageArray, ImageArray, ImageArray | None]:
    """Search images, held-out images and those for calibration alone, if there are any, each in random order."""
    with _reproducible():
        both = _splits(model, images, labels, held_out, seed, take, preprocess)
        return *both, None if calibration is None else _others(model, calibration, both, seed, take, preprocess)


def _splits(
    model: nn.Module,
    images: Batches,
    labels: Sequence | None,
    held_out: object,
    seed: int,
    take: str | Callable | None,
    preprocess: Callable | None,
) -> tuple[ImageArray, ImageArray]:
    """Search images and held-out images, each in random order."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    pixels, known = gathered(images, labels, "images", device, take, preprocess)
    if isinstance(held_out, int | float) and not isinstance(held_out, bool):
        count = held_out_count(held_out, len(pixels), "held_out")
        sizes = {"search": len(pixels) - count, "held_out": count}
        chosen = split_indices(len(pixels), kinds_of(known), sizes, seed)
        return tuple(_dealt(pixels, known, chosen[name], seed) for name in ("search", "held_out"))
    others = held_out if isinstance(held_out, tuple) else (held_out, None)
    other_pixels, other_known = gathered(*others, "held_out", device, take, preprocess)
    if (known is None) != (other_known is None):
        raise UserError("held_out: give labels with both the search images and the held-out images, or with neither")
    # Of different sizes there is nothing to compare.
    both_tensors = isinstance(pixels, Tensor) and isinstance(other_pixels, Tensor)
    if both_tensors and other_pixels.shape[1:] != pixels.shape[1:]:
        raise UserError(f"held_out: images {list(other_pixels.shape[1:])}, but images are {list(pixels.shape[1:])}")
    _check_apart(pixels, other_pixels)
    return (
        _dealt(pixels, known, np.arange(len(pixels)), seed),
        _dealt(other_pixels, other_known, np.arange(len(other_pixels)), seed),
    )


def _others(
    model: nn.Module,
    images: Batches,
    both: Sequence[Images],
    seed: int,
    take: str | Callable | None,
    preprocess: Callable | None,
) -> ImageArray:
    """Further images for calibration, in random order; UserError if one is among `both`, search and held-out images."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    pixels, _ = gathered(images, None, "calibration", device, take, preprocess)
    others = _dealt(pixels, None, np.arange(len(pixels)), seed)
    splits = dict(zip(("search", "held-out"), both, strict=True))
    known = {found: name for name, split in splits.items() for found in split.hashes()}
    alike = [known[own] for own in others.hashes() if own in known]
    if alike:
        raise UserError(f"calibration: {len(alike)} of {len(others)} are {alike[0]} images too; give others")
    return others


def _check_apart(search: Tensor | list[Tensor], held_out: Tensor | list[Tensor]) -> None:
    """UserError if an image is among both: the verdict is for images that no choice has looked at."""
    place = {image_hash(image.numpy()): i for i, image in enumerate(search)}
    both = [(place.get(image_hash(image.numpy())), i) for i, image in enumerate(held_out)]
    both = [(i, j) for i, j in both if i is not None]
    if both:
        i, j = both[0]
        raise UserError(
            f"held_out: {len(both)} of {len(held_out)} images are search images too, among them held-out image {j}, "
            f"which is image {i}; hold out others"
        )


def _dealt(pixels: Tensor | list[Tensor], labels: np.ndarray | None, chosen: np.ndarray, seed: int) -> ImageArray:
    # In random order, so that the first images are a fair sample: the workflow does the same.
    order = np.random.default_rng(seed).permutation(chosen)
    return ImageArray(pixels, None if labels is None else labels[order], order)


def _shape(state: Mapping[str, Tensor], name: str) -> object:
    return list(state[name].shape) if name in state else "missing"

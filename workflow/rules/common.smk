"""Configuration and helpers that the rules share; no rules here, and nothing that a job's environment has to bring."""

import hashlib
import os
import re
import sys
from functools import lru_cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

if not isinstance(workflow.current_basedir, os.PathLike):
    raise WorkflowError(
        f"{workflow.current_basedir.get_path_or_uri(secret_free=True)}: the rules run the Python package beside them; "
        "clone the repository, and give the path of workflow/Snakefile in the clone"
    )
WORKFLOW = Path(workflow.current_basedir).parent
sys.path.insert(0, str(WORKFLOW))
from wshare.config.code_hash import code_hash
from wshare.config.environment import prepare_for_jobs
from wshare.config.plan import chances, plan
from wshare.config.slices import (
    calibration_source,
    image_source,
    layer_overrides,
    method_of,
    model_names,
    packing_options,
    slice_of,
    studies,
    study_of_model,
    text_of,
    with_image_folders,
)
from wshare.config.validation import complete
from wshare.errors import UserError
from wshare.files.sealed import read_json
from wshare.names import check_patterns, layer_name

prepare_for_jobs(WORKFLOW, sys.argv if workflow.is_main_process else [])

for path in workflow.configfiles:
    if Path(path).is_relative_to(Path("results").resolve()):
        raise WorkflowError(
            f"{path}: read as a configuration; --configfile takes all that follows, so put targets first"
        )

try:
    config = with_image_folders(complete(config))
except UserError as error:
    raise WorkflowError(str(error))


def one_of(names):
    """Regular expression that matches these names alone; of none, nothing."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    model=one_of(config["models"]),
    search=one_of(config["searches"]),
    layer=r"[^/]+",
    group=r"\d+",


# What a rule's result depends on beside its files: part of the configuration, and code.


def settings_of(*parts, **entries):
    """Function of wildcards: the slice of the configuration that a rule names, as one JSON text.

    `wshare.config.slices.slice_of` tells how a slice is written.
    """

    def settings(wildcards):
        names = dict(wildcards)
        if "layer" in names:
            names["layer"] = layer_name(names["layer"])
        return text_of(slice_of(config, names, *parts, **entries))

    return settings


def code_hash_of(stage, images=image_source):
    """Function of wildcards: SHA-256 over the source files that the stage runs for a model and search.

    `images` gives the source of the images that the stage reads, of a dataset.
    """

    def hashed(wildcards):
        return code_hash(stage, **choices_of(wildcards, images))

    return hashed


def choices_of(wildcards, images):
    """What a job chooses among sources, methods and tasks: those of its model, and of its search if it has one."""
    name, search = wildcards.get("model"), wildcards.get("search")
    if not name:
        return {}
    model = config["models"][name]
    return {
        "source": model["source"],
        "dataset": images(config["datasets"][model["dataset"]]),
        "task": model["task"],
        "method": config["searches"][search]["method"] if search else None,
    }


def gpus_of(wildcards, resources):
    """GPUs that a profile gives a job; like threads, no reason to run it again."""
    return resources.get("gpu", 0)


# Bytes of weights below which a network is small: its jobs take about as long as the start of Python and torch.
SMALL = 1 << 22


def threads_up_to(most):
    """Function of a job's inputs: threads for its batches of images; like GPUs, no reason to run it again.

    A small network takes one. Where a run on this machine is for several models, the others take half of the cores at
    most: Snakemake holds no core back for a job that waits for a second one, and so would start the longest jobs last.
    """

    def threads(wildcards, input):
        weights = Path(input.spec).with_name("weights.safetensors")
        if weights.exists() and weights.stat().st_size < SMALL:
            return 1
        cores = workflow.resource_settings.cores
        # A job of a cluster has cores of its own; its Snakemake asks here, too.
        shared = workflow.is_main_process and workflow.local_exec and len(config["models"]) > 1
        return min(most, max(1, cores // 2)) if shared and cores else most

    return threads


def growing(first):
    """Function of a job's attempt: it asks for as much again each time that it is tried again."""

    def asked(wildcards, attempt):
        return first * attempt

    return asked


# Layers of a model, known once `inspect_model` has run.


def layers_of(model):
    """Entries of the model's layers.json."""
    path = checkpoints.inspect_model.get(model=model).output.layers
    layers = read_layers(path, os.stat(path).st_mtime_ns)
    overrides = config["models"][model]["layers"]["overrides"]
    try:
        check_patterns(overrides, [layer["name"] for layer in layers], f"models.{model}.layers.overrides")
    except UserError as error:
        raise WorkflowError(str(error))
    return layers


@lru_cache
def read_layers(path, mtime_ns):
    """Entries of a layers.json, read once per version of the file."""
    try:
        return read_json(path)["layers"]
    except UserError as error:
        raise WorkflowError(str(error))


def cluster_files(wildcards):
    """clusters.h5 of all layers of a model, in the network's order."""
    return [
        f"results/{wildcards.model}/layers/{layer['folder']}/clusters.h5"
        for layer in layers_of(wildcards.model)
    ]


def group_cluster_files(wildcards):
    """clusters.h5 of one group of neighbouring layers."""
    size = config["sensitivity"]["layers_per_job"]
    first = int(wildcards.group) * size
    return cluster_files(wildcards)[first : first + size]


def groups_of(model):
    """Names of the groups of neighbouring layers of a model."""
    return range(-(-len(layers_of(model)) // config["sensitivity"]["layers_per_job"]))


def group_tables(wildcards):
    """Sensitivity tables of all groups of a model, in the network's order."""
    return [f"results/{wildcards.model}/sensitivity/{group}.csv" for group in groups_of(wildcards.model)]


# Files that a search goes by, as its method's row in `wshare.search.methods` tells.


def if_needed(artifact, file):
    """Function of wildcards: the file, or files, if the search's method needs this artifact to search."""

    def needed(wildcards):
        return found(file, wildcards) if artifact in method_of(config, wildcards.search).needs else []

    return needed


def if_realised_from(artifact, file):
    """Function of wildcards: the file, or files, if the method makes compressed weights from this artifact."""

    def needed(wildcards):
        return found(file, wildcards) if artifact in method_of(config, wildcards.search).realised_from else []

    return needed


def found(file, wildcards):
    return file(wildcards) if callable(file) else file.format(**wildcards)


# Rules whose jobs make an artifact, and those of theirs that other artifacts are made by.
MAKERS = {
    "layer_weights": ("extract_weights",),
    "calibration": ("measure_inputs",),
    "clusters": ("extract_weights", "cluster_layer"),
    "sensitivity": ("extract_weights", "cluster_layer", "profile_layers", "gather_sensitivity"),
}


def benchmark_files(model, searches):
    """Names of benchmark files of all jobs that these searches of a model go by, but for verdicts and reports."""
    made = "train_model" if model in model_names(config, trained=True) else "fetch_model"
    rules = [made, "inspect_model", "prepare_images", "evaluate_dense"]
    for search in searches:
        rules += [maker for artifact in method_of(config, search).needs for maker in MAKERS[artifact]]
    if "measure_inputs" in rules and calibrated_apart(model):
        rules.append("prepare_calibration")
    jobs = {
        "cluster_layer": lambda: [layer["folder"] for layer in layers_of(model)],
        "profile_layers": lambda: groups_of(model),
    }
    files = []
    for name in dict.fromkeys(rules):
        files += [f"{name}/{job}" for job in jobs[name]()] if name in jobs else [name]
    return files + [f"search/{search}/{name}" for search in searches for name in ("search", "pack_model")]


def benchmarks_of_search(wildcards, input):
    """Benchmark files of the jobs that a search's result goes by, in the folder of the model."""
    return in_folder(input.spec, benchmark_files(wildcards.model, [wildcards.search]))


def benchmarks_of_model(wildcards, input):
    """Benchmark files of the jobs that all results of a model go by, verdicts included."""
    searches = searches_of(wildcards.model)
    verdicts = [f"search/{search}/evaluate_packed" for search in searches]
    return in_folder(input.spec, benchmark_files(wildcards.model, searches) + verdicts)


def in_folder(spec, names):
    # Beside a file that Snakemake names: a workflow that imports this one may set a prefix.
    return [str(Path(spec).parents[1] / "benchmarks" / f"{name}.tsv") for name in names]


def beside(made, name):
    """Function of outputs: path of a file of this name beside the output `made`."""

    def path(wildcards, output):
        return str(Path(getattr(output, made)).with_name(name))

    return path


# Images for calibration alone, where a dataset names some.


def if_more_images(file):
    """Function of wildcards: the file, if the model's dataset names images for calibration beside its own."""

    def needed(wildcards):
        return file.format(**wildcards) if calibrated_apart(wildcards.model) else []

    return needed


def calibrated_apart(model):
    """Whether the model's dataset names images for calibration beside its own."""
    return bool(config["datasets"][config["models"][model]["dataset"]]["calibration"])


# What is read of all searches.


def searches_of(model):
    """Names of the searches of a model."""
    return [search for own, search in studies(config) if own == model]


def of_each_search(name):
    """Function of wildcards: the file of this name of each of a model's searches."""

    def files(wildcards):
        return [
            f"results/{wildcards.model}/search/{search}/{name}" for search in searches_of(wildcards.model)
        ]

    return files


def of_each_study(name):
    """The file of this name of each search of each model."""
    return [f"results/{model}/search/{search}/{name}" for model, search in studies(config)]


def if_any_needs(artifact, file):
    """Function of wildcards: the file, if one of the model's searches needs this artifact."""

    def needed(wildcards):
        methods = (method_of(config, search) for search in searches_of(wildcards.model))
        return file.format(**wildcards) if any(artifact in method.needs for method in methods) else []

    return needed


# The weights file where the user names one.


def weights_path(wildcards):
    """The file that a model's weights are read from, empty where it names none."""
    return os.path.expanduser(config["models"][wildcards.model]["path"] or "")


def local_weights(wildcards):
    """That file, so that replacing it counts as a change."""
    path = weights_path(wildcards)
    return [path] if path else []


def local_hash(wildcards):
    """SHA-256 of that file, if there is one: one that takes its place may be older than what was made of the last."""
    path = weights_path(wildcards)
    return hash_of(path, os.stat(path).st_mtime_ns) if path and os.path.isfile(path) else ""


@lru_cache
def hash_of(path, mtime_ns):
    """SHA-256 of a file, read once per version."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# What a run prints.


@lru_cache
def reported(dry_run):
    """Reports of all models. A dry run tells here which verdicts to expect: no handler of events runs in it."""
    if dry_run:
        print(chances(config), file=sys.stderr)
    return expand("results/{model}/report/index.html", model=config["models"])


def print_plan():
    """What the run is about to do, before it starts."""
    jobs = [(job.rule.name, job.benchmark) for job in workflow.dag.needrun_jobs()]
    print(plan(config, Path("results"), jobs))


def start_jobs_without_delay():
    """Let this machine start as many jobs a second as it can.

    Snakemake limits them to 100, and to that end looks once a second at all jobs that wait, once more for each job that
    has ended: a tenth of the demo's processor time.
    """
    if workflow.local_exec:
        workflow.scheduler.job_rate_limiter = None


def print_summary():
    """The block that a run ends with, unless this run made something newer than it."""
    path = Path("results/summary.txt")
    made = max((file.stat().st_mtime for file in Path("results").glob("*/search/*/metrics.json")), default=0)
    if path.exists() and path.stat().st_mtime >= made:
        print(path.read_text(), end="")

"""Configuration and helpers that the rules share; no rules here, and nothing that imports torch."""

import hashlib
import json
import os
import re
import sys
from functools import lru_cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

WORKFLOW = Path(workflow.current_basedir).parent
sys.path.insert(0, str(WORKFLOW))
from wshare.config.environment import prepare_for_jobs
from wshare.errors import UserError
from wshare.names import check_patterns, layer_name
from wshare.config.plan import plan
from wshare.config.code_hash import code_hash
from wshare.config.validation import complete
from wshare.config.slices import model_names, search_names, stage_settings, studies

prepare_for_jobs(WORKFLOW, sys.argv if workflow.is_main_process else [])

try:
    config = complete(config)
except UserError as error:
    raise WorkflowError(str(error))


wildcard_constraints:
    model="|".join(map(re.escape, config["models"])),
    search="|".join(map(re.escape, config["searches"])),
    layer=r"[^/]+",
    group=r"\d+",


def code_hash_of(stage):
    """Function of wildcards: SHA-256 over the source files that the stage runs for a model and search."""

    def hashed(wildcards):
        return code_hash(stage, **parts_of(wildcards))

    return hashed


def parts_of(wildcards):
    """What a job chooses among sources, methods and tasks: those of its model, and of its search if it has one."""
    name, search = wildcards.get("model"), wildcards.get("search")
    if not name:
        return {}
    model = config["models"][name]
    return {
        "source": model["source"],
        "dataset": config["datasets"][model["dataset"]]["source"],
        "task": model["task"],
        "method": config["searches"][search]["method"] if search else None,
    }


def settings_of(stage):
    """Function of wildcards: what of the configuration the stage's result depends on, as one JSON text."""

    def settings(wildcards):
        item = layer_name(wildcards.layer) if stage == "cluster_layer" else wildcards.get("search", "")
        return stage_settings(config, stage, wildcards.model, item)

    return settings


def gpus_of(wildcards, resources):
    """GPUs that a profile gives a job; like threads, no reason to run it again."""
    return resources.get("gpu", 0)


def layers_of(model):
    """Entries of the model's layers.json; available once `inspect_model` has run."""
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
    # Not at the top: only a DAG behind the checkpoint needs numpy and HDF5.
    from wshare.files.sealed import read_json

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


def group_tables(wildcards):
    """Sensitivity tables of all groups of a model, in the network's order."""
    groups = -(-len(layers_of(wildcards.model)) // config["sensitivity"]["layers_per_job"])
    return [f"results/{wildcards.model}/sensitivity/{group}.csv" for group in range(groups)]


def local_weights(wildcards):
    """The model's weights file where the user names one, so that replacing it counts as a change."""
    path = config["models"][wildcards.model]["path"]
    return [path] if path else []


def local_hash(wildcards):
    """SHA-256 of that file, if there is one: one that takes its place may be older than what was made of the last."""
    path = config["models"][wildcards.model]["path"]
    return hash_of(path, os.stat(path).st_mtime_ns) if path and os.path.isfile(path) else ""


@lru_cache
def hash_of(path, mtime_ns):
    """SHA-256 of a file, read once per version."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def layers_per_job(wildcards):
    """Layers of each profiling job that a search goes by; 0 for one that needs no profile."""
    method = config["searches"][wildcards.search]["method"]
    return 0 if method == "rate_distortion" else config["sensitivity"]["layers_per_job"]


def search_files(model, names):
    """Files of these names of all of a model's searches."""
    return [
        f"results/{model}/search/{search}/{name}"
        for own, search in studies(config)
        if own == model
        for name in names
    ]


def metrics_files(wildcards):
    """metrics.json of each of a model's searches."""
    return search_files(wildcards.model, ["metrics.json"])


def searched_files(wildcards):
    """What each of a model's searches leaves beside its verdict, as its report shows it."""
    common = ["predictions.csv", "front.csv", "packed.safetensors", "recipe.json", "sizes.json"]
    prices = set(search_names(config, rate_distortion=True))
    losses = [
        f"results/{model}/search/{search}/losses.csv"
        for model, search in studies(config)
        if model == wildcards.model and search in prices
    ]
    return search_files(wildcards.model, common) + losses


def sensitivity_table(wildcards):
    """The model's sensitivity.csv, if one of its searches profiles layers."""
    others = set(search_names(config, rate_distortion=False))
    profiled = any(model == wildcards.model and search in others for model, search in studies(config))
    return [f"results/{wildcards.model}/sensitivity.csv"] if profiled else []


def print_plan():
    """What the run is about to do, before it starts."""
    jobs = [(job.rule.name, job.benchmark) for job in workflow.dag.needrun_jobs()]
    print(plan(config, Path("results"), jobs))


def print_summary():
    """The block that a run ends with, unless this run made something newer than it."""
    path = Path("results/summary.txt")
    made = max((file.stat().st_mtime for file in Path("results").glob("*/search/*/metrics.json")), default=0)
    if path.exists() and path.stat().st_mtime >= made:
        print(path.read_text(), end="")

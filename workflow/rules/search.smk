"""Search, compressed model and verdict: one chain of jobs for each model and search.

A search and its packing read what the row of the search's method names in `wshare.search.methods`. The verdict alone
reads held-out images.

REQUIRED INPUTS:

    results/{model}/model/model.json
    results/{model}/model/weights.safetensors
    results/{model}/model/layers.json
    results/{model}/images/search.h5
    results/{model}/images/held_out.h5
    results/{model}/baseline/search.h5
    results/{model}/baseline/held_out.h5

    those that the method needs of
    results/{model}/weights.h5
    results/{model}/calibration.h5
    results/{model}/layers/{layer}/clusters.h5
    results/{model}/sensitivity.csv

OUTPUTS:

    results/{model}/search/{search}/front.csv
    results/{model}/search/{search}/losses.csv
    results/{model}/search/{search}/recipe.json
    results/{model}/search/{search}/journal.jsonl, which outlives a killed search
    results/{model}/search/{search}/packed.safetensors
    results/{model}/search/{search}/dense.safetensors
    results/{model}/search/{search}/sizes.json
    results/{model}/search/{search}/metrics.json
    results/{model}/search/{search}/predictions.csv
    results/{model}/search/{search}/timings.json

"""


rule search:
    """Search the smallest network that meets the quality target."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        layers="results/{model}/model/layers.json",
        search_images="results/{model}/images/search.h5",
        search_outputs="results/{model}/baseline/search.h5",
        layer_weights=if_needed("layer_weights", "results/{model}/weights.h5"),
        calibration=if_needed("calibration", "results/{model}/calibration.h5"),
        calibration_images=if_needed("calibration", if_more_images("results/{model}/images/calibration.h5")),
        clusters=if_needed("clusters", cluster_files),
        sensitivity=if_needed("sensitivity", "results/{model}/sensitivity.csv"),
    output:
        front="results/{model}/search/{search}/front.csv",
        losses="results/{model}/search/{search}/losses.csv",
        recipe="results/{model}/search/{search}/recipe.json",
    log:
        "results/{model}/logs/search/{search}/search.log",
    benchmark:
        "results/{model}/benchmarks/search/{search}/search.tsv"
    priority: 1
    conda:
        "../../envs/torch.yaml"
    threads: threads_up_to(4)
    resources:
        mem_mb=growing(6000),
        runtime=growing(480),
    params:
        code=code_hash_of("search"),
        # The recipe tells how to pack.
        settings=settings_of(
            "seed",
            "searches.{search}.*",
            packing=["packing.*", packing_options],
        ),
        # No output: Snakemake would delete it before a job starts.
        journal=beside("recipe", "journal.jsonl"),
        gpus=gpus_of,
    shell:
        "python -m wshare search"
        " --settings {params.settings:q}"
        " --spec {input.spec:q}"
        " --weights {input.weights:q}"
        " --layers {input.layers:q}"
        " --search-images {input.search_images:q}"
        " --calibration-images {input.calibration_images:q}"
        " --search-outputs {input.search_outputs:q}"
        " --layer-weights {input.layer_weights:q}"
        " --calibration {input.calibration:q}"
        " --clusters {input.clusters:q}"
        " --sensitivity {input.sensitivity:q}"
        " --code {params.code}"
        " --journal {params.journal:q}"
        " --front {output.front:q}"
        " --losses {output.losses:q}"
        " --recipe {output.recipe:q}"
        " --threads {threads}"
        " --gpus {params.gpus}"
        " > {log:q} 2>&1"


rule pack_model:
    """Write the compressed network as a packed and as a dense file."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        layers="results/{model}/model/layers.json",
        search_images="results/{model}/images/search.h5",
        search_outputs="results/{model}/baseline/search.h5",
        recipe="results/{model}/search/{search}/recipe.json",
        layer_weights=if_realised_from("layer_weights", "results/{model}/weights.h5"),
        calibration=if_realised_from("calibration", "results/{model}/calibration.h5"),
        clusters=if_realised_from("clusters", cluster_files),
        sensitivity=if_realised_from("sensitivity", "results/{model}/sensitivity.csv"),
    output:
        packed="results/{model}/search/{search}/packed.safetensors",
        dense="results/{model}/search/{search}/dense.safetensors",
        sizes="results/{model}/search/{search}/sizes.json",
    log:
        "results/{model}/logs/search/{search}/pack_model.log",
    benchmark:
        "results/{model}/benchmarks/search/{search}/pack_model.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: threads_up_to(4)
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        code=code_hash_of("pack_model"),
    shell:
        "python -m wshare pack_model"
        " --spec {input.spec:q}"
        " --weights {input.weights:q}"
        " --layers {input.layers:q}"
        " --search-images {input.search_images:q}"
        " --search-outputs {input.search_outputs:q}"
        " --layer-weights {input.layer_weights:q}"
        " --calibration {input.calibration:q}"
        " --clusters {input.clusters:q}"
        " --sensitivity {input.sensitivity:q}"
        " --recipe {input.recipe:q}"
        " --packed {output.packed:q}"
        " --dense {output.dense:q}"
        " --sizes {output.sizes:q}"
        " --threads {threads}"
        " > {log:q} 2>&1"


rule evaluate_packed:
    """Evaluate the packed file, loaded anew, on held-out images."""
    input:
        spec="results/{model}/model/model.json",
        # Names the jobs of which the seconds are read.
        layers="results/{model}/model/layers.json",
        held_out_images="results/{model}/images/held_out.h5",
        held_out_outputs="results/{model}/baseline/held_out.h5",
        packed="results/{model}/search/{search}/packed.safetensors",
        recipe="results/{model}/search/{search}/recipe.json",
        sizes="results/{model}/search/{search}/sizes.json",
    output:
        metrics="results/{model}/search/{search}/metrics.json",
        predictions="results/{model}/search/{search}/predictions.csv",
        timings="results/{model}/search/{search}/timings.json",
    log:
        "results/{model}/logs/search/{search}/evaluate_packed.log",
    benchmark:
        "results/{model}/benchmarks/search/{search}/evaluate_packed.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: threads_up_to(4)
    resources:
        mem_mb=growing(4000),
        runtime=growing(120),
    params:
        code=code_hash_of("evaluate_packed"),
        settings=settings_of("seed", "searches.{search}.quality_target"),
        dataset=lambda wildcards: config["models"][wildcards.model]["dataset"],
        benchmarks=benchmarks_of_search,
        gpus=gpus_of,
    shell:
        "python -m wshare evaluate_packed"
        " --settings {params.settings:q}"
        " --model {wildcards.model:q}"
        " --search {wildcards.search:q}"
        " --dataset {params.dataset:q}"
        " --spec {input.spec:q}"
        " --packed {input.packed:q}"
        " --held-out-images {input.held_out_images:q}"
        " --held-out-outputs {input.held_out_outputs:q}"
        " --recipe {input.recipe:q}"
        " --sizes {input.sizes:q}"
        " --benchmarks {params.benchmarks:q}"
        " --metrics {output.metrics:q}"
        " --predictions {output.predictions:q}"
        " --timings {output.timings:q}"
        " --threads {threads}"
        " --gpus {params.gpus}"
        " > {log:q} 2>&1"

"""The network: fetched or trained, inspected, evaluated, its weights extracted, its inputs measured.

REQUIRED INPUTS:

    a model of the configuration, and its weights file if its source is one
    results/{model}/images/search.h5
    results/{model}/images/held_out.h5

OUTPUTS:

    results/{model}/model/weights.safetensors
    results/{model}/model/model.json
    results/{model}/model/layers.json
    results/{model}/baseline/search.h5
    results/{model}/baseline/held_out.h5
    results/{model}/baseline/metrics.json
    results/{model}/weights.h5
    results/{model}/calibration.h5

"""


rule fetch_model:
    """Fetch a trained network from its source."""
    input:
        local=ancient(local_weights),
    output:
        weights="results/{model}/model/weights.safetensors",
        spec="results/{model}/model/model.json",
    log:
        "results/{model}/logs/fetch_model.log",
    benchmark:
        "results/{model}/benchmarks/fetch_model.tsv"
    wildcard_constraints:
        model=one_of(model_names(config, trained=False)),
    priority: 2
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
    params:
        code=code_hash_of("fetch_model"),
        local=local_hash,
        settings=settings_of(
            "models.{model}.task",
            "models.{model}.quality",
            "models.{model}.source",
            "models.{model}.architecture",
            "models.{model}.weights",
            "models.{model}.url",
            "models.{model}.path",
            "models.{model}.sha256",
            "models.{model}.key",
            "models.{model}.classes",
            "models.{model}.arguments",
            "models.{model}.preprocessing",
        ),
        cache=".cache/wshare",
    shell:
        "python -m wshare fetch_model"
        " --settings {params.settings:q}"
        " --cache {params.cache:q}"
        " --weights {output.weights:q}"
        " --spec {output.spec:q}"
        " > {log:q} 2>&1"


rule train_model:
    """Train an embedded network on the train split."""
    output:
        weights="results/{model}/model/weights.safetensors",
        spec="results/{model}/model/model.json",
    log:
        "results/{model}/logs/train_model.log",
    benchmark:
        "results/{model}/benchmarks/train_model.tsv"
    wildcard_constraints:
        model=one_of(model_names(config, trained=True)),
    priority: 1
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
    params:
        code=code_hash_of("train_model"),
        settings=settings_of(
            "seed",
            "models.{model}.task",
            "models.{model}.quality",
            "models.{model}.architecture",
            "models.{model}.arguments",
            "models.{model}.training",
            "models.{model}.preprocessing",
            # Train and search images are dealt first: how many are held out changes neither.
            dataset=["datasets.{dataset}.*", "!split.held_out", "!held_out", "!calibration"],
        ),
    shell:
        "python -m wshare train_model"
        " --settings {params.settings:q}"
        " --weights {output.weights:q}"
        " --spec {output.spec:q}"
        " > {log:q} 2>&1"


checkpoint inspect_model:
    """List every parameter once: shared or kept, and why."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
    output:
        layers="results/{model}/model/layers.json",
    log:
        "results/{model}/logs/inspect_model.log",
    benchmark:
        "results/{model}/benchmarks/inspect_model.tsv"
    priority: 2
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        code=code_hash_of("inspect_model"),
        settings=settings_of(
            "models.{model}.layers.include",
            "models.{model}.layers.exclude",
        ),
    shell:
        "python -m wshare inspect_model"
        " --settings {params.settings:q}"
        " --model {wildcards.model:q}"
        " --spec {input.spec:q}"
        " --weights {input.weights:q}"
        " --layers {output.layers:q}"
        " > {log:q} 2>&1"


rule evaluate_dense:
    """Evaluate the float32 network on both splits: the reference of every comparison."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        search_images="results/{model}/images/search.h5",
        held_out_images="results/{model}/images/held_out.h5",
    output:
        search_outputs="results/{model}/baseline/search.h5",
        held_out_outputs="results/{model}/baseline/held_out.h5",
        baseline="results/{model}/baseline/metrics.json",
    log:
        "results/{model}/logs/evaluate_dense.log",
    benchmark:
        "results/{model}/benchmarks/evaluate_dense.tsv"
    priority: 1
    conda:
        "../../envs/torch.yaml"
    threads: threads_up_to(4)
    resources:
        mem_mb=growing(4000),
        runtime=growing(120),
    params:
        code=code_hash_of("evaluate_dense"),
        gpus=gpus_of,
    shell:
        "python -m wshare evaluate_dense"
        " --spec {input.spec:q}"
        " --weights {input.weights:q}"
        " --search-images {input.search_images:q}"
        " --held-out-images {input.held_out_images:q}"
        " --search-outputs {output.search_outputs:q}"
        " --held-out-outputs {output.held_out_outputs:q}"
        " --baseline {output.baseline:q}"
        " --threads {threads}"
        " --gpus {params.gpus}"
        " > {log:q} 2>&1"


rule extract_weights:
    """Write each layer's weight and importance into one file that all clustering jobs read."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        layers="results/{model}/model/layers.json",
        search_images="results/{model}/images/search.h5",
    output:
        layer_weights="results/{model}/weights.h5",
    log:
        "results/{model}/logs/extract_weights.log",
    benchmark:
        "results/{model}/benchmarks/extract_weights.tsv"
    priority: 1
    conda:
        "../../envs/torch.yaml"
    threads: threads_up_to(4)
    resources:
        mem_mb=growing(3000),
        runtime=growing(60),
    params:
        code=code_hash_of("extract_weights"),
        settings=settings_of("seed", "importance.*"),
        gpus=gpus_of,
    shell:
        "python -m wshare extract_weights"
        " --settings {params.settings:q}"
        " --spec {input.spec:q}"
        " --weights {input.weights:q}"
        " --layers {input.layers:q}"
        " --search-images {input.search_images:q}"
        " --layer-weights {output.layer_weights:q}"
        " --gpus {params.gpus}"
        " --threads {threads}"
        " > {log:q} 2>&1"


rule measure_inputs:
    """Measure calibration statistics: means and second moments of each layer's inputs."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        layers="results/{model}/model/layers.json",
        search_images="results/{model}/images/search.h5",
        calibration_images=if_more_images("results/{model}/images/calibration.h5"),
    output:
        calibration="results/{model}/calibration.h5",
    log:
        "results/{model}/logs/measure_inputs.log",
    benchmark:
        "results/{model}/benchmarks/measure_inputs.tsv"
    priority: 1
    conda:
        "../../envs/torch.yaml"
    # A half of the images each.
    threads: threads_up_to(2)
    resources:
        mem_mb=growing(3000),
        runtime=growing(120),
    params:
        code=code_hash_of("measure_inputs"),
        settings=settings_of("seed", "calibration.*"),
        gpus=gpus_of,
    shell:
        "python -m wshare measure_inputs"
        " --settings {params.settings:q}"
        " --spec {input.spec:q}"
        " --weights {input.weights:q}"
        " --layers {input.layers:q}"
        " --search-images {input.search_images:q}"
        " --calibration-images {input.calibration_images:q}"
        " --calibration {output.calibration:q}"
        " --gpus {params.gpus}"
        " --threads {threads}"
        " > {log:q} 2>&1"

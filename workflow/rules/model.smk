"""The network: fetched or trained, inspected, evaluated, its weights extracted.

Needs a model of the configuration, and for training, baseline and importance its dataset. Leaves
`model/`, `baseline/` and `weights.h5`, in the form that all later stages read.
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
        model="|".join(map(re.escape, model_names(config, trained=False))) or "(?!)",
    conda:
        "../../envs/torch.yaml"
    params:
        code=code_hash_of("fetch_model"),
        local=local_hash,
        settings=settings_of("fetch_model"),
        cache=".cache/wshare",
    shell:
        "python -m wshare fetch_model --settings {params.settings:q} --cache {params.cache:q}"
        " --weights {output.weights:q} --spec {output.spec:q} > {log:q} 2>&1"


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
        model="|".join(map(re.escape, model_names(config, trained=True))) or "(?!)",
    conda:
        "../../envs/torch.yaml"
    params:
        code=code_hash_of("train_model"),
        settings=settings_of("train_model"),
    shell:
        "python -m wshare train_model --settings {params.settings:q}"
        " --weights {output.weights:q} --spec {output.spec:q} > {log:q} 2>&1"


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
    conda:
        "../../envs/torch.yaml"
    params:
        code=code_hash_of("inspect_model"),
        settings=settings_of("inspect_model"),
    shell:
        "python -m wshare inspect_model --settings {params.settings:q} --name {wildcards.model:q}"
        " --spec {input.spec:q} --weights {input.weights:q} --layers {output.layers:q} > {log:q} 2>&1"


rule evaluate_dense:
    """Evaluate the float32 network on both splits: the reference of every comparison."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        search="results/{model}/images/search.h5",
        held_out="results/{model}/images/held_out.h5",
    output:
        search="results/{model}/baseline/search.h5",
        held_out="results/{model}/baseline/held_out.h5",
        metrics="results/{model}/baseline/metrics.json",
    log:
        "results/{model}/logs/evaluate_dense.log",
    benchmark:
        "results/{model}/benchmarks/evaluate_dense.tsv"
    conda:
        "../../envs/torch.yaml"
    params:
        code=code_hash_of("evaluate_dense"),
        gpus=gpus_of,
    shell:
        "python -m wshare evaluate_dense --spec {input.spec:q} --weights {input.weights:q}"
        " --search {input.search:q} --held-out {input.held_out:q}"
        " --search-logits {output.search:q} --held-out-logits {output.held_out:q}"
        " --metrics {output.metrics:q} --threads {threads} --gpus {params.gpus} > {log:q} 2>&1"


rule extract_weights:
    """Write each layer's weight and importance into one file that all clustering jobs read."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        images="results/{model}/images/search.h5",
    output:
        extracted="results/{model}/weights.h5",
    log:
        "results/{model}/logs/extract_weights.log",
    benchmark:
        "results/{model}/benchmarks/extract_weights.tsv"
    conda:
        "../../envs/torch.yaml"
    params:
        code=code_hash_of("extract_weights"),
        settings=settings_of("extract_weights"),
        gpus=gpus_of,
    shell:
        "python -m wshare extract_weights --settings {params.settings:q} --name {wildcards.model:q}"
        " --spec {input.spec:q} --weights {input.weights:q} --images {input.images:q}"
        " --extracted {output.extracted:q} --gpus {params.gpus} > {log:q} 2>&1"


rule measure_inputs:
    """Measure the moments of each layer's inputs, from which the error of its outputs follows."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        layers="results/{model}/model/layers.json",
        images="results/{model}/images/search.h5",
    output:
        moments="results/{model}/calibration.h5",
    log:
        "results/{model}/logs/measure_inputs.log",
    benchmark:
        "results/{model}/benchmarks/measure_inputs.tsv"
    conda:
        "../../envs/torch.yaml"
    params:
        code=code_hash_of("measure_inputs"),
        settings=settings_of("measure_inputs"),
        gpus=gpus_of,
    shell:
        "python -m wshare measure_inputs --settings {params.settings:q}"
        " --spec {input.spec:q} --weights {input.weights:q} --layers {input.layers:q} --images {input.images:q}"
        " --moments {output.moments:q} --gpus {params.gpus} > {log:q} 2>&1"

"""Search, compressed model and verdict: one chain of jobs for each model and search.

Needs sensitivity, clusters, model and search images; the verdict alone reads held-out images. Leaves
the measured front, the recipe, the packed and the dense file, and metrics.json.
"""


rule search:
    """Search the smallest combination that meets the quality target."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        images="results/{model}/images/search.h5",
        baseline="results/{model}/baseline/search.h5",
        clusters=cluster_files,
        sensitivity="results/{model}/sensitivity.csv",
    output:
        front="results/{model}/search/{search}/front.csv",
        recipe="results/{model}/search/{search}/recipe.json",
    log:
        "results/{model}/logs/search/{search}/search.log",
    benchmark:
        "results/{model}/benchmarks/search/{search}/search.tsv"
    wildcard_constraints:
        search="|".join(map(re.escape, search_names(config, rate_distortion=False))) or "(?!)",
    conda:
        "../../envs/torch.yaml"
    params:
        code=code_hash_of("search"),
        settings=settings_of("search"),
        journal="results/{model}/search/{search}/journal.jsonl",
        gpus=gpus_of,
    shell:
        "python -m wshare search --settings {params.settings:q}"
        " --spec {input.spec:q} --weights {input.weights:q} --images {input.images:q}"
        " --baseline {input.baseline:q} --clusters {input.clusters:q} --sensitivity {input.sensitivity:q}"
        " --code {params.code} --journal {params.journal:q}"
        " --front {output.front:q} --recipe {output.recipe:q}"
        " --threads {threads} --gpus {params.gpus} > {log:q} 2>&1"


rule search_rate_distortion:
    """Search the highest price of a bit that meets the quality target."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        images="results/{model}/images/search.h5",
        baseline="results/{model}/baseline/search.h5",
        extracted="results/{model}/weights.h5",
        moments="results/{model}/calibration.h5",
    output:
        front="results/{model}/search/{search}/front.csv",
        losses="results/{model}/search/{search}/losses.csv",
        recipe="results/{model}/search/{search}/recipe.json",
    log:
        "results/{model}/logs/search/{search}/search_rate_distortion.log",
    benchmark:
        "results/{model}/benchmarks/search/{search}/search_rate_distortion.tsv"
    wildcard_constraints:
        search="|".join(map(re.escape, search_names(config, rate_distortion=True))) or "(?!)",
    conda:
        "../../envs/torch.yaml"
    params:
        code=code_hash_of("search_rate_distortion"),
        settings=settings_of("search_rate_distortion"),
        journal="results/{model}/search/{search}/journal.jsonl",
        gpus=gpus_of,
    shell:
        "python -m wshare search_rate_distortion --settings {params.settings:q}"
        " --spec {input.spec:q} --weights {input.weights:q} --images {input.images:q}"
        " --baseline {input.baseline:q} --extracted {input.extracted:q} --moments {input.moments:q}"
        " --code {params.code} --journal {params.journal:q} --front {output.front:q}"
        " --losses {output.losses:q} --recipe {output.recipe:q}"
        " --threads {threads} --gpus {params.gpus} > {log:q} 2>&1"


rule pack_model:
    """Write the compressed network as a packed and as a dense file."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        images="results/{model}/images/search.h5",
        clusters=cluster_files,
        recipe="results/{model}/search/{search}/recipe.json",
    output:
        packed="results/{model}/search/{search}/packed.safetensors",
        dense="results/{model}/search/{search}/dense.safetensors",
        sizes="results/{model}/search/{search}/sizes.json",
    log:
        "results/{model}/logs/search/{search}/pack_model.log",
    benchmark:
        "results/{model}/benchmarks/search/{search}/pack_model.tsv"
    wildcard_constraints:
        search="|".join(map(re.escape, search_names(config, rate_distortion=False))) or "(?!)",
    conda:
        "../../envs/torch.yaml"
    params:
        code=code_hash_of("pack_model"),
        settings=settings_of("pack_model"),
    shell:
        "python -m wshare pack_model --settings {params.settings:q}"
        " --spec {input.spec:q} --weights {input.weights:q} --images {input.images:q}"
        " --clusters {input.clusters:q} --recipe {input.recipe:q}"
        " --packed {output.packed:q} --dense {output.dense:q} --sizes {output.sizes:q}"
        " --threads {threads} > {log:q} 2>&1"


rule pack_rate_distortion:
    """Write the network shared at one price of a bit as a packed and as a dense file."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        images="results/{model}/images/search.h5",
        extracted="results/{model}/weights.h5",
        moments="results/{model}/calibration.h5",
        recipe="results/{model}/search/{search}/recipe.json",
    output:
        packed="results/{model}/search/{search}/packed.safetensors",
        dense="results/{model}/search/{search}/dense.safetensors",
        sizes="results/{model}/search/{search}/sizes.json",
    log:
        "results/{model}/logs/search/{search}/pack_rate_distortion.log",
    benchmark:
        "results/{model}/benchmarks/search/{search}/pack_rate_distortion.tsv"
    wildcard_constraints:
        search="|".join(map(re.escape, search_names(config, rate_distortion=True))) or "(?!)",
    conda:
        "../../envs/torch.yaml"
    params:
        code=code_hash_of("pack_rate_distortion"),
        settings=settings_of("pack_rate_distortion"),
    shell:
        "python -m wshare pack_rate_distortion --settings {params.settings:q}"
        " --spec {input.spec:q} --weights {input.weights:q} --images {input.images:q}"
        " --extracted {input.extracted:q} --moments {input.moments:q} --recipe {input.recipe:q}"
        " --packed {output.packed:q} --dense {output.dense:q} --sizes {output.sizes:q}"
        " --threads {threads} > {log:q} 2>&1"


rule evaluate_packed:
    """Evaluate the packed file, loaded anew, on held-out images."""
    input:
        spec="results/{model}/model/model.json",
        packed="results/{model}/search/{search}/packed.safetensors",
        images="results/{model}/images/held_out.h5",
        baseline="results/{model}/baseline/held_out.h5",
        recipe="results/{model}/search/{search}/recipe.json",
        sizes="results/{model}/search/{search}/sizes.json",
    output:
        metrics="results/{model}/search/{search}/metrics.json",
        predictions="results/{model}/search/{search}/predictions.csv",
    log:
        "results/{model}/logs/search/{search}/evaluate_packed.log",
    benchmark:
        "results/{model}/benchmarks/search/{search}/evaluate_packed.tsv"
    conda:
        "../../envs/torch.yaml"
    params:
        code=code_hash_of("evaluate_packed"),
        settings=settings_of("evaluate_packed"),
        benchmarks="results/{model}/benchmarks",
        layers_per_job=layers_per_job,
        dataset=lambda wildcards: config["models"][wildcards.model]["dataset"],
        gpus=gpus_of,
    shell:
        "python -m wshare evaluate_packed --settings {params.settings:q}"
        " --model {wildcards.model:q} --search {wildcards.search:q} --dataset {params.dataset:q}"
        " --spec {input.spec:q} --packed {input.packed:q} --images {input.images:q}"
        " --baseline {input.baseline:q} --recipe {input.recipe:q} --sizes {input.sizes:q}"
        " --benchmarks {params.benchmarks:q} --layers-per-job {params.layers_per_job} --metrics {output.metrics:q}"
        " --predictions {output.predictions:q} --threads {threads} --gpus {params.gpus} > {log:q} 2>&1"

"""Sensitivity: what sharing one layer alone costs, at each candidate k.

Needs the model, search images, the float32 logits and the layers' clusters. Leaves one table a group of
neighbouring layers, and all of them in sensitivity.csv.
"""


rule profile_layers:
    """Profile a group of neighbouring layers, each alone."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        images="results/{model}/images/search.h5",
        baseline="results/{model}/baseline/search.h5",
        clusters=group_cluster_files,
    output:
        table="results/{model}/sensitivity/{group}.csv",
    log:
        "results/{model}/logs/profile_layers/{group}.log",
    benchmark:
        "results/{model}/benchmarks/profile_layers/{group}.tsv"
    conda:
        "../../envs/torch.yaml"
    params:
        code=code_hash_of("profile_layers"),
        settings=settings_of("profile_layers"),
        gpus=gpus_of,
    shell:
        "python -m wshare profile_layers --settings {params.settings:q}"
        " --spec {input.spec:q} --weights {input.weights:q} --images {input.images:q}"
        " --baseline {input.baseline:q} --clusters {input.clusters:q} --table {output.table:q}"
        " --gpus {params.gpus} > {log:q} 2>&1"


rule gather_sensitivity:
    """Gather the groups' tables into one."""
    input:
        tables=group_tables,
    output:
        sensitivity="results/{model}/sensitivity.csv",
    log:
        "results/{model}/logs/gather_sensitivity.log",
    benchmark:
        "results/{model}/benchmarks/gather_sensitivity.tsv"
    conda:
        "../../envs/numpy.yaml"
    params:
        code=code_hash_of("gather_sensitivity"),
    shell:
        "python -m wshare gather_sensitivity --tables {input.tables:q}"
        " --sensitivity {output.sensitivity:q} > {log:q} 2>&1"

"""Sensitivity: what sharing one layer alone costs, at each candidate k.

REQUIRED INPUTS:

    results/{model}/model/model.json
    results/{model}/model/weights.safetensors
    results/{model}/images/search.h5
    results/{model}/baseline/search.h5
    results/{model}/layers/{layer}/clusters.h5

OUTPUTS:

    results/{model}/sensitivity/{group}.csv, a table for each group of neighbouring layers
    results/{model}/sensitivity.csv, all of them

"""


rule profile_layers:
    """Profile a group of neighbouring layers, each alone."""
    input:
        spec="results/{model}/model/model.json",
        weights="results/{model}/model/weights.safetensors",
        search_images="results/{model}/images/search.h5",
        search_outputs="results/{model}/baseline/search.h5",
        clusters=group_cluster_files,
    output:
        table="results/{model}/sensitivity/{group}.csv",
    log:
        "results/{model}/logs/profile_layers/{group}.log",
    benchmark:
        "results/{model}/benchmarks/profile_layers/{group}.tsv"
    priority: 1
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=growing(3000),
        runtime=growing(240),
    params:
        code=code_hash_of("profile_layers"),
        settings=settings_of("sensitivity.images"),
        gpus=gpus_of,
    shell:
        "python -m wshare profile_layers"
        " --settings {params.settings:q}"
        " --spec {input.spec:q}"
        " --weights {input.weights:q}"
        " --search-images {input.search_images:q}"
        " --search-outputs {input.search_outputs:q}"
        " --clusters {input.clusters:q}"
        " --table {output.table:q}"
        " --gpus {params.gpus}"
        " > {log:q} 2>&1"


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
    priority: 1
    localrule: True
    conda:
        "../../envs/numpy.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(30),
    params:
        code=code_hash_of("gather_sensitivity"),
    shell:
        "python -m wshare gather_sensitivity"
        " --tables {input.tables:q}"
        " --sensitivity {output.sensitivity:q}"
        " > {log:q} 2>&1"

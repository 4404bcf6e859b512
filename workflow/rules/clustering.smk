"""Clustering: one job a layer, every k in one sweep.

Jobs depend on the layer's own settings alone, so a change for one layer reruns one job.

REQUIRED INPUTS:

    results/{model}/weights.h5

OUTPUTS:

    results/{model}/layers/{layer}/clusters.h5

"""


rule cluster_layer:
    """Cluster one layer's weights for every k."""
    input:
        layer_weights="results/{model}/weights.h5",
    output:
        clusters="results/{model}/layers/{layer}/clusters.h5",
    log:
        "results/{model}/logs/cluster_layer/{layer}.log",
    benchmark:
        "results/{model}/benchmarks/cluster_layer/{layer}.tsv"
    priority: 1
    conda:
        "../../envs/numpy.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(30),
    params:
        code=code_hash_of("cluster_layer"),
        settings=settings_of("seed", "clustering.*", layer_overrides),
        layer=lambda wildcards: layer_name(wildcards.layer),
    shell:
        "python -m wshare cluster_layer"
        " --settings {params.settings:q}"
        " --layer {params.layer:q}"
        " --layer-weights {input.layer_weights:q}"
        " --clusters {output.clusters:q}"
        " > {log:q} 2>&1"

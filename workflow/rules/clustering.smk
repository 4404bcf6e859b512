"""Clustering: one job a layer, every k in one sweep.

Needs weights.h5. Leaves the inertia of every k and what gives the codebook of any k without another
sweep. Jobs read the layer's own settings alone, so a change for one layer reruns one job.
"""


rule cluster_layer:
    """Cluster one layer's weights for every k."""
    input:
        weights="results/{model}/weights.h5",
    output:
        clusters="results/{model}/layers/{layer}/clusters.h5",
    log:
        "results/{model}/logs/cluster_layer/{layer}.log",
    benchmark:
        "results/{model}/benchmarks/cluster_layer/{layer}.tsv"
    conda:
        "../../envs/numpy.yaml"
    params:
        code=code_hash_of("cluster_layer"),
        settings=settings_of("cluster_layer"),
        layer=lambda wildcards: layer_name(wildcards.layer),
    shell:
        "python -m wshare cluster_layer --settings {params.settings:q} --layer {params.layer:q}"
        " --weights {input.weights:q} --clusters {output.clusters:q} > {log:q} 2>&1"

"""Images: decoded once in the network's geometry, split into search and held-out.

Needs the dataset of the configuration and the model's preprocessing. Leaves two files, so that a rule
that chooses something has no way to look at held-out images.
"""


rule prepare_images:
    """Decode, split and store the images."""
    input:
        spec="results/{model}/model/model.json",
    output:
        search="results/{model}/images/search.h5",
        held_out="results/{model}/images/held_out.h5",
    log:
        "results/{model}/logs/prepare_images.log",
    benchmark:
        "results/{model}/benchmarks/prepare_images.tsv"
    conda:
        "../../envs/torch.yaml"
    params:
        code=code_hash_of("prepare_images"),
        settings=settings_of("prepare_images"),
    shell:
        "python -m wshare prepare_images --settings {params.settings:q} --spec {input.spec:q}"
        " --search {output.search:q} --held-out {output.held_out:q} > {log:q} 2>&1"

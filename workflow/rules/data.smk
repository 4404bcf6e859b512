"""Images: decoded once in the network's geometry, split into search and held-out.

Two files, so that a rule that chooses something has no way to look at held-out images.

REQUIRED INPUTS:

    the dataset of the configuration
    results/{model}/model/model.json

OUTPUTS:

    results/{model}/images/search.h5
    results/{model}/images/held_out.h5

"""


rule prepare_images:
    """Decode, split and store the images."""
    input:
        spec="results/{model}/model/model.json",
    output:
        search_images="results/{model}/images/search.h5",
        held_out_images="results/{model}/images/held_out.h5",
    log:
        "results/{model}/logs/prepare_images.log",
    benchmark:
        "results/{model}/benchmarks/prepare_images.tsv"
    priority: 1
    conda:
        "../../envs/torch.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(120),
    params:
        code=code_hash_of("prepare_images"),
        settings=settings_of("seed", "datasets.{dataset}.*"),
    shell:
        "python -m wshare prepare_images"
        " --settings {params.settings:q}"
        " --spec {input.spec:q}"
        " --search-images {output.search_images:q}"
        " --held-out-images {output.held_out_images:q}"
        " > {log:q} 2>&1"

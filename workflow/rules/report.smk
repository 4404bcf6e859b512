"""Report: what a run has won, for all models and searches together.

Needs every metrics.json. Leaves a text for the terminal and a table.
"""


rule summarise:
    """Write the block that a run ends with, and the same as a table."""
    input:
        metrics=[f"results/{model}/search/{search}/metrics.json" for model, search in studies(config)],
        code=code_of("summarise"),
    output:
        summary="results/summary.txt",
        table="results/summary.csv",
    log:
        "results/logs/summarise.log",
    benchmark:
        "results/benchmarks/summarise.tsv"
    conda:
        "../../envs/numpy.yaml"
    params:
        code=code_hash_of("summarise"),
    shell:
        "python -m wshare summarise --metrics {input.metrics:q}"
        " --summary {output.summary:q} --table {output.table:q} > {log:q} 2>&1"

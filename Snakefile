include: "workflow/Snakefile"


# Snakemake takes its default target from this file alone.
rule compress:
    """Compress every model with every search, and summarise."""
    input:
        rules.all.input,

"""The columns of front.csv that hold layers."""

# No layer can be named like another column: its own has this in front of its name.
LAYER = "k:"


def layer_columns(row: dict) -> dict:
    """Number of shared values, or "dense", of each layer in a row of front.csv, by the layer's name."""
    return {column.removeprefix(LAYER): value for column, value in row.items() if column.startswith(LAYER)}

"""Stands for vl_convert in runs whose figures nobody looks at: drawing takes longer than all else that they do."""


def javascript_bundle() -> str:
    """As long as the program that draws a page's charts, so that a page takes as many writes."""
    return "// Nothing is drawn.\n" * 40_000


def vegalite_to_svg(spec: dict) -> str:
    return f"<svg><!-- {spec['width']} wide --></svg>\n"


def svg_to_png(svg: str, *, scale: float) -> bytes:
    return svg.encode() * int(scale)

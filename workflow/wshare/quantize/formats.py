"""The formats that codebooks of `rate_distortion` suit: what each allows a layer, and what it costs in bits."""

from wshare.quantize.cost import index_bits

# How the packed file codes the indices of each format. Those of other runtimes lie in the exports alone.
CODINGS = {"entropy": "entropy", "fixed": "fixed", "coreml": "entropy", "int8": "entropy", "int4": "entropy"}
# Widths of indices, in bits, by format; Core ML's palettes have no others.
COREML_WIDTHS = (1, 2, 3, 4, 6, 8)
WIDTHS = {"fixed": tuple(range(1, 9)), "coreml": COREML_WIDTHS}
# Widths of the integers that a layer may have.
INTEGER_WIDTHS = {"int8": (8,), "int4": (4, 8)}
# What runtimes keep a shared value, a scale or a shift in.
FLOAT_BITS = 32


def palette_sizes(format: str, most: int) -> list[int]:
    """Numbers of shared values that a codebook of fixed width may have, `most` at most.

    Each fills its width as far as there are values, and an index takes ceil(log2 k) bits; of one value alone, 1.
    """
    sizes = dict.fromkeys(min(2**bits, most) for bits in WIDTHS[format])
    return [k for k in sizes if k == 1 or index_bits(k) in WIDTHS[format]]


def coreml_width(k: int) -> int:
    """Bits of an index that Core ML takes for k shared values, at most 256."""
    return next(width for width in COREML_WIDTHS if width >= index_bits(k))


def coreml_bits(k: int, weights: int, scales: int = 0, shifts: int = 0) -> int:
    """Bits of a layer in a Core ML package: indices, a whole palette, scales of rows, and a folded batch norm's shifts.

    Scales, means and variances of folded batch norms are the same numbers in all of one size: packages hold them once.
    """
    width = coreml_width(k)
    return width * weights + FLOAT_BITS * (2**width + scales + shifts)


def largest_integer(width: int) -> int:
    """Largest integer of so many bits; its negative is the least, so that 0 needs no zero point."""
    return 2 ** (width - 1) - 1


def integer_width(format: str, largest: float) -> int:
    """Bits of a layer's integers, the largest in magnitude of which is this."""
    return next(width for width in INTEGER_WIDTHS[format] if largest_integer(width) >= round(largest))


def integer_bits(width: int, weights: int, scales: int, shifts: int = 0) -> int:
    """Bits of a layer of integers: these, and float32 scales and, of a folded batch norm, shifts."""
    return width * weights + FLOAT_BITS * (scales + shifts)

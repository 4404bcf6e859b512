"""A flat binary for microcontrollers, and the C99 header that decodes it.

All numbers are little-endian; nothing but the start of an entry is aligned, and the decoder reads bytes, so that the
file may lie at any address. Offsets count from the start of the file:

    u32 "WSHR", u32 bytes of the file, u32 entries
    an entry of 44 bytes for every tensor:
        u32        CRC-32 of the rest of the entry and of the tensor's data
        u32 [4]    shape, filled up with 1
        u32        k, shared values; 0 if the data are plain float32
        u32        bits of an index
        u32        1 if rows are scaled, else 0
        u32        where the data start
        u32        bytes of the data
        u32        values of the tensor
    the data of each tensor:
        shared     codebook, f32 [k]; u16 [shape[0]], if rows are scaled: the exponent in eighths of an octave, + 1008;
                   indices of fixed width, lowest bit first, without gaps, the last byte filled with zeros
        plain      f32 [values]

A tensor of one value throughout is one shared value with indices of no bits. A shared tensor whose scales go by another
axis than the first is written as plain float32.
"""

import re
import struct
import zlib
from pathlib import Path

import numpy as np

from wshare.errors import UserError
from wshare.files.atomic import atomic, write_text
from wshare.packed.entropy import pack_indices
from wshare.packed.format import read_shared
from wshare.quantize.codebooks import EIGHTHS, REACH, Shared
from wshare.quantize.cost import index_bits

MAGIC = b"WSHR"
ENTRY = struct.Struct("<10I")
# Read in training only.
COUNTER = ".num_batches_tracked"

DECODER = r"""
enum { WSHARE_OK, WSHARE_NO_FILE, WSHARE_NO_LAYER, WSHARE_NO_ROOM, WSHARE_DAMAGED };

static inline uint32_t wshare_u32(const uint8_t *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline float wshare_f32(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t wshare_crc32(uint32_t crc, const uint8_t *p, uint32_t size) {
    static const uint32_t table[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    for (crc = ~crc; size--; crc = crc >> 4 ^ table[crc & 15]) {
        crc ^= *p++;
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

/* Writes the values of a layer to out, which has room for so many, in C order. Returns WSHARE_OK or what is wrong. */
static inline int wshare_decode(const uint8_t *file, size_t size, uint32_t layer, float *out, size_t room) {
    static const float eighths[8] = {@EIGHTHS@};
    if (size < 12 || wshare_u32(file) != 0x52485357 || wshare_u32(file + 4) != size) return WSHARE_NO_FILE;
    if (wshare_u32(file + 8) > (size - 12) / 44) return WSHARE_NO_FILE;
    if (layer >= wshare_u32(file + 8)) return WSHARE_NO_LAYER;
    const uint8_t *entry = file + 12 + (size_t)44 * layer;
    const uint32_t rows = wshare_u32(entry + 4), k = wshare_u32(entry + 20), bits = wshare_u32(entry + 24);
    const uint32_t scaled = wshare_u32(entry + 28), start = wshare_u32(entry + 32), bytes = wshare_u32(entry + 36);
    const uint32_t count = wshare_u32(entry + 40), row = rows ? count / rows : 0;
    if (start > size || bytes > size - start) return WSHARE_DAMAGED;
    const uint8_t *const p = file + start;
    if (wshare_crc32(wshare_crc32(0, entry + 4, 40), p, bytes) != wshare_u32(entry)) return WSHARE_DAMAGED;
    if (k > 65536 || bits > (k ? 16 : 0) || scaled > (k ? 1 : 0) || row * rows != count) return WSHARE_DAMAGED;
    const uint64_t coded = 4 * k + (uint64_t)2 * rows * scaled + ((uint64_t)count * bits + 7) / 8;
    if (bytes != (k ? coded : (uint64_t)4 * count)) return WSHARE_DAMAGED;
    if (count > room) return WSHARE_NO_ROOM;
    const uint8_t *exponent = p + 4 * k, *index = exponent + (size_t)2 * rows * scaled;
    uint32_t held = 0, have = 0;
    for (uint32_t r = 0; r < (row ? rows : 0); r++) {
        const uint32_t e = scaled ? exponent[2 * r] | (uint32_t)exponent[2 * r + 1] << 8 : 1008;
        if (e > 2016) return WSHARE_DAMAGED;
        const float scale = eighths[e % 8] * wshare_f32((e / 8 + 1) << 23);
        for (uint32_t i = 0; i < row; i++) {
            for (; have < bits; have += 8) held |= (uint32_t)*index++ << have;
            const uint32_t at = k ? held & (((uint32_t)1 << bits) - 1) : r * row + i;
            if (k && at >= k) return WSHARE_DAMAGED;
            *out++ = wshare_f32(wshare_u32(p + (size_t)4 * at)) * scale;
            held >>= bits, have -= bits;
        }
    }
    return WSHARE_OK;
}
"""


def write_c(packed: Path, output: Path) -> None:
    """Write the binary to `output`, and the header beside it, `output` with the suffix .h.

    Names in the header begin with the name of the file. UserError for a tensor other than float32, a counter of batch
    norm excepted, which is left out, and for one of more than 4 axes or 2^32 bytes.
    """
    if output.suffix == ".h":
        raise UserError(f"export c: {output}: give the binary's name; the header takes it with the suffix .h")
    shared, others = read_shared(packed)
    tensors = {name: array for name, array in others.items() if not name.endswith(COUNTER)}
    plain = {id(tensor): _decodable(tensor) for tensor in shared.values()}
    tensors |= {name: plain[id(tensor)] for name, tensor in shared.items()}
    places: dict[int, int] = {}
    parts: list[tuple[bytes, bytes]] = []
    comments: list[tuple[str, int, str]] = []
    for name, tensor in sorted(tensors.items()):
        if id(tensor) not in places:
            places[id(tensor)] = len(parts)
            parts.append(_part(name, tensor))
        comments.append((name, places[id(tensor)], _comment(tensor)))
    size = _write_binary(output, parts)
    largest = max((_shape(tensor)[1] for tensor in tensors.values()), default=0)
    write_text(output.with_suffix(".h"), _header(output.stem, size, largest, comments))


def _decodable(tensor: Shared) -> Shared | np.ndarray:
    """The tensor, or its values where the decoder does not know how they are scaled."""
    return tensor.weight() if tensor.exponents is not None and tensor.layout.axis else tensor


def _part(name: str, tensor: Shared | np.ndarray) -> tuple[bytes, bytes]:
    """Entry from the shape on, with 0 for where the data start, and the data."""
    shape, count = _shape(tensor)
    if len(shape) > 4:
        raise UserError(f"export c: {name!r} has {len(shape)} axes; at most 4 can be written")
    dims = (*shape, *[1] * (4 - len(shape)))
    if isinstance(tensor, np.ndarray):
        if tensor.dtype != np.float32:
            raise UserError(f"export c: {name!r} is {tensor.dtype}; only float32 can be written")
        values = np.ravel(tensor)
        if not count or (values.view(np.uint32) != values[:1].view(np.uint32)).any():
            data = values.astype("<f4").tobytes()
            return ENTRY.pack(*dims, 0, 0, 0, 0, len(data), count), data
        tensor = Shared(values[:1], np.zeros(count, np.uint16))
    bits = index_bits(len(tensor.codebook))
    scales = b"" if tensor.exponents is None else (tensor.exponents.astype(np.int32) + REACH).astype("<u2").tobytes()
    data = tensor.codebook.astype("<f4").tobytes() + scales + pack_indices(tensor.indices, bits).tobytes()
    scaled = int(tensor.exponents is not None)
    return ENTRY.pack(*dims, len(tensor.codebook), bits, scaled, 0, len(data), count), data


def _write_binary(output: Path, parts: list[tuple[bytes, bytes]]) -> int:
    """Returns the bytes of the file."""
    start = 12 + len(parts) * (4 + ENTRY.size)
    size = start + sum(len(data) for _, data in parts)
    if size >= 1 << 32:
        raise UserError(f"export c: {size} bytes are too many for offsets of 32 bits")
    entries = []
    for entry, data in parts:
        *head, _, nbytes, count = ENTRY.unpack(entry)
        placed = ENTRY.pack(*head, start, nbytes, count)
        entries.append(struct.pack("<I", zlib.crc32(data, zlib.crc32(placed))) + placed)
        start += len(data)
    with atomic(output) as temporary:
        content = [MAGIC, struct.pack("<2I", size, len(parts)), *entries, *(data for _, data in parts)]
        temporary.write_bytes(b"".join(content))
    return size


def _header(stem: str, size: int, largest: int, comments: list[tuple[str, int, str]]) -> str:
    prefix = _identifier(stem)
    lines, taken = [], set()
    for name, place, comment in comments:
        identifier = f"{prefix}_{_identifier(name)}"
        while identifier in taken:
            identifier += "_"
        taken.add(identifier)
        lines.append(f"    {identifier} = {place}, /* {comment} */")
    eighths = ", ".join(f"{float(value).hex()}f" for value in EIGHTHS)
    return f"""/* Made by wshare for a file of {size} bytes, at any address in memory; float has to be IEEE 754 single.

   wshare_decode(file, {prefix}_BYTES, layer, out, room) expands one tensor; layers stand at the end of this header. */
#ifndef WSHARE_{prefix}_H
#define WSHARE_{prefix}_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef WSHARE_DECODER
#define WSHARE_DECODER
{DECODER.replace("@EIGHTHS@", eighths)}
#endif

/* Bytes of the file, and values of the largest tensor. */
#define {prefix}_BYTES {size}u
#define {prefix}_LARGEST {largest}u

enum {{
{chr(10).join(lines)}
    {prefix}_END = {1 + max((place for _, place, _ in comments), default=-1)}
}};

#endif
"""


def _comment(tensor: Shared | np.ndarray) -> str:
    kind = "plain"
    if isinstance(tensor, Shared):
        kind = f"k {len(tensor.codebook)}, {index_bits(len(tensor.codebook))} bits"
        kind += "" if tensor.exponents is None else ", rows scaled"
    return f"{list(_shape(tensor)[0])}, {kind}"


def _shape(tensor: Shared | np.ndarray) -> tuple[tuple[int, ...], int]:
    """Shape and number of values."""
    array = tensor.indices if isinstance(tensor, Shared) else tensor
    return array.shape, array.size


def _identifier(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", name).upper()

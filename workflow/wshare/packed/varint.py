"""Integers of any size as bytes: seven bits in each, the lowest first; bit 7 says that another byte follows."""

# Bytes of one integer at most: 63 bits.
LONGEST = 9


def varint(number: int) -> bytes:
    """Bytes of an integer of 0 to 2^63 - 1."""
    if not 0 <= number < 1 << 7 * LONGEST:
        raise ValueError(f"{number} is not in [0, 2^{7 * LONGEST})")
    octets = bytearray()
    while number >= 0x80:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def read_varint(data: memoryview) -> tuple[int, memoryview]:
    """Integer and what follows it; ValueError if it is cut short, or longer than it need be."""
    number = 0
    for place in range(min(LONGEST, len(data))):
        number |= (data[place] & 0x7F) << 7 * place
        if data[place] < 0x80:
            if place and not data[place]:
                raise ValueError("an integer is longer than it need be")
            return number, data[place + 1 :]
    raise ValueError("an integer is cut short")


def zigzag(number: int) -> int:
    """0, -1, 1, -2, ... as 0, 1, 2, 3, ..."""
    return 2 * number if number >= 0 else -2 * number - 1


def unzigzag(number: int) -> int:
    """What `zigzag` was given."""
    return number >> 1 ^ -(number & 1)

"""Reading blocks of bytes whose lengths are not to be trusted."""

import math

from plywise.compressors.errors import FileFormatError

_LONGEST_NUMBER = 5


class ByteReader:
    """Walks through bytes; never hands out more than there are."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def __len__(self) -> int:
        return len(self._data)

    def take(self, size: int) -> bytes:
        """Returns the next `size` bytes; raises FileFormatError where there are fewer."""
        if size > len(self):
            raise FileFormatError(f"{size} bytes are needed, {len(self)} are left: the file is truncated or damaged")
        taken = bytes(self._data[:size])
        self._data = self._data[size:]
        return taken

    def number(self) -> int:
        """Returns the next number; raises FileFormatError where it does not end or is above `2**35`."""
        value = 0
        for place in range(_LONGEST_NUMBER):
            digit = self.take(1)[0]
            value += digit % 128 << 7 * place
            if digit < 128:
                return value
        raise FileFormatError("a length is too large: the file is damaged")

    def block(self) -> bytes:
        """Returns the next bytes that were written by `with_length`."""
        return self.take(self.number())

    def rest(self) -> bytes:
        """Returns all that is left."""
        return self.take(len(self))


def number_bytes(value: int) -> bytes:
    """Returns a whole number in digits of base 128, the lowest first; all but the last have the top bit set."""
    digits = bytearray()
    while value >= 128:
        digits.append(value % 128 + 128)
        value //= 128
    return bytes((*digits, value))


def with_length(data: bytes) -> bytes:
    """Returns the bytes behind their length."""
    return number_bytes(len(data)) + data


def length_size(length: int) -> int:
    """Returns the bytes that a length itself takes."""
    return max(1, math.ceil(length.bit_length() / 7))

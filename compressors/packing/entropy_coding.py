"""Zeroth-order entropy coding of small symbols: a compact table of frequencies, then asymmetric numeral systems.

A table holds the logarithm of a symbol's frequency at every `stride`-th symbol and is linear in between, so that
a smooth histogram of 256 symbols costs some 30 bytes. The most frequent symbol, often the zero of a pruned
tensor, has an entry of its own. Frequencies are derived with integers only: every machine decodes alike.

Source: J. Duda, "Asymmetric numeral systems", 2013 (the coder is the one of the `constriction` package).
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import constriction
import numpy as np
from numpy.typing import NDArray

from plywise.compressors.errors import FileFormatError

Counts = NDArray[np.int64]
Symbols = NDArray[np.int32]

STRIDES = (1, 2, 4, 8, 16, 32)
STEPS = 16
"""Entries are in sixteenths of a bit: entry `e` stands for the frequency `2**(-e / 16)`."""
_MANTISSA = np.array([round(2.0 ** (24 + step / STEPS)) for step in range(STEPS)], dtype=np.int64)
CODER_BYTES = 2
"""What the coder's final state adds to the information content, on average."""


@dataclass(frozen=True, eq=False)
class FrequencyTable:
    """Frequencies of the symbols `low` to `high`.

    Attributes:
        low, high: the first and the last symbol that occurs, `0 <= low < high <= 255`.
        stride: distance of the symbols that have an entry; one of STRIDES.
        peak: the symbol with an entry of its own, `low <= peak <= high`.
        peak_entry: its entry.
        entries: `(ceil((high - low) / stride) + 1,)` uint8.
    """

    low: int
    high: int
    stride: int
    peak: int
    peak_entry: int
    entries: NDArray[np.uint8]

    @classmethod
    def fitted(cls, counts: Counts, stride: int) -> "FrequencyTable":
        """Fits a table to a histogram `(symbols,)` in which at least two symbols occur."""
        present = np.flatnonzero(counts)
        low, high, peak = int(present[0]), int(present[-1]), int(counts.argmax())
        share = counts[low : high + 1] / counts.sum()
        peak_entry = int(_entries(share[peak - low]))
        if stride == 1:
            return cls(low, high, stride, peak, peak_entry, _entries(share))
        others = np.ones_like(share)
        others[peak - low] = 0
        hat = stride - np.abs(np.arange(1 - stride, stride))
        near, weight = (np.convolve(values, hat)[stride - 1 :: stride] for values in (share * others, others))
        return cls(low, high, stride, peak, peak_entry, _entries(near / np.maximum(weight, 1)))

    @cached_property
    def frequencies(self) -> NDArray[np.float64]:
        """Relative frequencies `(high - low + 1,)`, positive whole numbers."""
        offset = np.arange(self.high - self.low + 1)
        left, part = np.divmod(offset, self.stride)
        entries = self.entries.astype(np.int64)
        right = np.minimum(left + 1, len(entries) - 1)
        code = (entries[left] * (self.stride - part) + entries[right] * part + self.stride // 2) // self.stride
        code[self.peak - self.low] = self.peak_entry
        halvings, rest = np.divmod(-code, STEPS)
        frequencies: NDArray[np.float64] = (_MANTISSA[rest] >> -halvings).astype(np.float64)
        return frequencies

    def coded_bytes(self, counts: Counts) -> int:
        """Estimates the bytes of table and stream together for a histogram `(symbols,)`."""
        frequencies = self.frequencies
        bits = -(counts[self.low : self.high + 1] * np.log2(frequencies / frequencies.sum())).sum()
        return len(self.to_bytes()) + int(np.ceil(bits / 8)) + CODER_BYTES

    def to_bytes(self) -> bytes:
        """Returns the table as it is stored."""
        head = (self.low, self.high, STRIDES.index(self.stride), self.peak, self.peak_entry)
        return bytes(head) + self.entries.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> tuple["FrequencyTable", bytes]:
        """Reads a table and returns it with the bytes behind it; raises FileFormatError on nonsense."""
        if len(data) < 5:
            raise FileFormatError("an entropy-coded tensor ends inside its table; the file is damaged")
        low, high, stride, peak, peak_entry = data[:5]
        if not low <= peak <= high or low == high or stride >= len(STRIDES):
            raise FileFormatError("the frequency table of an entropy-coded tensor is not valid; the file is damaged")
        end = 5 + _entry_count(low, high, STRIDES[stride])
        entries = np.frombuffer(data[5:end], dtype=np.uint8)
        if len(data) < end:
            raise FileFormatError("an entropy-coded tensor ends inside its table; the file is damaged")
        return cls(low, high, STRIDES[stride], peak, peak_entry, entries), data[end:]


def best_table(counts: Counts) -> tuple[FrequencyTable, int]:
    """Returns the cheapest table for a histogram `(symbols,)` and the bytes of table and stream together."""
    return _best_table(counts.tobytes())


@lru_cache(maxsize=1024)
def _best_table(histogram: bytes) -> tuple[FrequencyTable, int]:
    """Remembers, for what is priced is then stored."""
    counts = np.frombuffer(histogram, np.int64)
    span = int(np.ptp(np.flatnonzero(counts)))
    tables = [FrequencyTable.fitted(counts, stride) for stride in STRIDES if stride == 1 or stride * 4 <= span]
    sizes = [table.coded_bytes(counts) for table in tables]
    best = int(np.argmin(sizes))
    return tables[best], sizes[best]


def encode_stream(symbols: Symbols, table: FrequencyTable) -> bytes:
    """Codes the symbols `(n,)` with the table's frequencies."""
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols - np.int32(table.low), _model(table))
    words: bytes = coder.get_compressed().astype("<u4").tobytes()
    return words.rstrip(b"\0")


def decode_stream(data: bytes, table: FrequencyTable, count: int) -> Symbols:
    """Returns `count` symbols `(count,)`; raises FileFormatError where the stream does not hold exactly these."""
    words = np.frombuffer(data + b"\0" * (-len(data) % 4), dtype="<u4").astype(np.uint32)
    if len(words) and words[-1] == 0:
        raise FileFormatError("an entropy-coded tensor has surplus bytes; the file is damaged")
    coder = constriction.stream.stack.AnsCoder(words)
    symbols: Symbols = coder.decode(_model(table), count)
    if not coder.is_empty():
        raise FileFormatError("an entropy-coded tensor does not end where it should; the file is damaged")
    return symbols + np.int32(table.low)


def _model(table: FrequencyTable) -> "constriction.stream.model.Categorical":
    return constriction.stream.model.Categorical(table.frequencies, perfect=False)


def _entry_count(low: int, high: int, stride: int) -> int:
    return -(-(high - low) // stride) + 1


def _entries(share: NDArray[np.float64]) -> NDArray[np.uint8]:
    bits = -np.log2(np.maximum(share, 1e-9))
    entries: NDArray[np.uint8] = np.minimum(np.rint(STEPS * bits), 255).astype(np.uint8)
    return entries

"""Tensors as bytes: the cheapest of a few codes, told apart by a leading tag."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plywise.compressors.errors import FileFormatError
from plywise.compressors.packing.byte_reader import ByteReader, length_size, number_bytes, with_length
from plywise.compressors.packing.entropy_coding import FrequencyTable, best_table, decode_stream, encode_stream

PLAIN, CONSTANT, CODED = 0, 1, 2
"""Tags of symbols: fixed bits for each, all of them equal, entropy coded."""

RAW, WHOLE, MASK, GAPS, SHORT = 0, 1, 2, 3, 4
"""Tags of floats: as they are, whole numbers of a byte, two ways to say which are zero, and values of bfloat16."""

_GAP_BITS = 8
_LONG_GAP = 255


def pack_symbols(symbols: Tensor, bits: int) -> bytes:
    """Packs whole numbers into at most `bits` bits each, plus a byte; into fewer where their histogram allows.

    The upper and the lower byte of wider symbols are packed one after the other: of floats, the upper one holds the
    exponent, which takes few values.

    Args:
        symbols: of any shape, int64, in `[0, 2**bits)`.
        bits: 1 to 16.
    """
    if 8 < bits <= 16:
        return with_length(pack_symbols(symbols >> 8, bits - 8)) + pack_symbols(symbols & 255, 8)
    flat, counts = _histogram(symbols, bits)
    if not len(flat):
        return b""
    if counts.max() == len(flat):
        return bytes((CONSTANT, int(flat[0])))
    table, size = best_table(counts)
    plain_size = math.ceil(len(flat) * bits / 8)
    if size < plain_size:
        coded = table.to_bytes() + encode_stream(flat, table)
        if len(coded) < plain_size:
            return bytes((CODED,)) + coded
    return bytes((PLAIN,)) + _pack_bits(flat, bits)


def symbols_size(symbols: Tensor, bits: int) -> int:
    """Estimates `len(pack_symbols(symbols, bits))` to a few bytes, without coding."""
    if 8 < bits <= 16:
        upper = symbols_size(symbols >> 8, bits - 8)
        return upper + length_size(upper) + symbols_size(symbols & 255, 8)
    flat, counts = _histogram(symbols, bits)
    if not len(flat) or counts.max() == len(flat):
        return 2 * min(1, len(flat))
    return 1 + min(best_table(counts)[1], math.ceil(len(flat) * bits / 8))


def unpack_symbols(data: bytes, shape: Sequence[int], bits: int) -> Tensor:
    """Returns the symbols that `pack_symbols` was given: int64, `shape`.

    Raises:
        FileFormatError: where the bytes do not hold exactly these symbols.
    """
    if bits > 8:
        reader = ByteReader(data)
        upper = unpack_symbols(reader.block(), shape, bits - 8)
        return (upper << 8) + unpack_symbols(reader.rest(), shape, 8)
    count = math.prod(shape)
    if not count and not data:
        return torch.zeros(tuple(shape), dtype=torch.int64)
    flat = _unpacked(data[:1], data[1:], count, bits)
    if int(flat.max(initial=0)) >> bits:
        raise FileFormatError(f"a tensor of {bits}-bit symbols holds larger ones; the file is damaged")
    return torch.from_numpy(flat.astype(np.int64)).reshape(tuple(shape))


def pack_floats(values: Tensor) -> bytes:
    """Packs float32 values of any shape; zeros cost little, whole numbers of `[0, 255]` a byte at most.

    Exact bit for bit but for the sign of a zero, which may be lost: masks leave half of the zeros negative, and to
    keep those would cost a pruned layer most of what it saves.
    """
    flat = values.detach().contiguous().view(-1)
    if _are_bytes(flat):
        return bytes((WHOLE,)) + pack_symbols(flat.long(), 8)
    if _are_short(flat):
        return bytes((SHORT,)) + pack_symbols(_upper_half(flat), 16)
    used = flat != 0
    candidates = [bytes((RAW,)) + flat.numpy().tobytes()]
    if not bool(used.all()):
        kept = flat[used].numpy().tobytes()
        mask, gaps = pack_symbols(used.long(), 1), _gaps(used)
        candidates.append(bytes((MASK,)) + with_length(mask) + kept)
        candidates.append(bytes((GAPS,)) + number_bytes(len(gaps)) + with_length(pack_symbols(gaps, _GAP_BITS)) + kept)
    return min(candidates, key=len)


def floats_size(values: Tensor) -> int:
    """Estimates `len(pack_floats(values))` to a few bytes, without coding."""
    flat = values.detach().contiguous().view(-1)
    if _are_bytes(flat):
        return 1 + symbols_size(flat.long(), 8)
    if _are_short(flat):
        return 1 + symbols_size(_upper_half(flat), 16)
    used = flat != 0
    kept = int(used.sum())
    if kept == len(flat):
        return 1 + 4 * kept
    gaps = _gaps(used)
    mask_size, gaps_size = symbols_size(used.long(), 1), symbols_size(gaps, _GAP_BITS)
    by_gaps = gaps_size + length_size(gaps_size) + length_size(len(gaps))
    return 1 + min(4 * len(flat), 4 * kept + min(mask_size + length_size(mask_size), by_gaps))


def unpack_floats(data: bytes, shape: Sequence[int]) -> Tensor:
    """Returns the values that `pack_floats` was given: float32, `shape`.

    Raises:
        FileFormatError: where the bytes do not hold exactly these values.
    """
    reader, count = ByteReader(data), math.prod(shape)
    tag = reader.take(1)[0]
    if tag == WHOLE:
        return unpack_symbols(reader.rest(), shape, 8).float()
    if tag == SHORT:
        upper = unpack_symbols(reader.rest(), shape, 16).numpy()
        return torch.from_numpy((upper.astype(np.uint32) << 16).view(np.float32))
    if tag == RAW:
        return _raw_floats(reader.rest(), shape)
    flat = torch.zeros(count)
    if tag == MASK:
        used = unpack_symbols(reader.block(), (count,), 1).bool()
        flat[used] = _raw_floats(reader.rest(), (int(used.sum()),))
    elif tag == GAPS:
        gap_count = reader.number()
        positions = _positions(reader.block(), gap_count, count)
        flat[positions] = _raw_floats(reader.rest(), (len(positions),))
    else:
        raise FileFormatError("a tensor of floats has an unknown code; the file is damaged or newer than this version")
    return flat.reshape(tuple(shape))


def _raw_floats(data: bytes, shape: Sequence[int]) -> Tensor:
    """Returns float32 values `shape` from their little-endian bytes; raises FileFormatError on another length."""
    if len(data) != 4 * math.prod(shape):
        raise FileFormatError(f"a float tensor of shape {tuple(shape)} has {len(data)} bytes; the file is damaged")
    # Into memory of torch's own: where in it weights lie decides about the last bits of products on some machines.
    return torch.tensor(np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)).reshape(tuple(shape))


def _histogram(symbols: Tensor, bits: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    if not 1 <= bits <= 8:
        raise ValueError(f"{bits} bits: symbols of 1 to 16 bits can be packed")
    flat = symbols.detach().reshape(-1).to(torch.int32).numpy()
    if len(flat) and (flat.min() < 0 or flat.max() >> bits):
        raise ValueError(f"symbols from {flat.min()} to {flat.max()} do not fit into {bits} bits")
    return flat, np.bincount(flat, minlength=1)


def _pack_bits(flat: NDArray[np.int32], bits: int) -> bytes:
    places = np.unpackbits(flat.astype(np.uint8)[:, None], axis=1, bitorder="little", count=bits)  # (n, bits)
    return np.packbits(places.reshape(-1), bitorder="little").tobytes()


def _unpacked(tag: bytes, data: bytes, count: int, bits: int) -> NDArray[np.int32]:
    if tag == bytes((PLAIN,)) and len(data) == math.ceil(count * bits / 8):
        places = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count * bits, bitorder="little")
        symbols = np.packbits(places.reshape(count, bits), axis=1, bitorder="little")
        return symbols.reshape(-1).astype(np.int32)
    if tag == bytes((CONSTANT,)) and len(data) == 1:
        return np.full(count, data[0], dtype=np.int32)
    if tag == bytes((CODED,)):
        table, stream = FrequencyTable.from_bytes(data)
        return decode_stream(stream, table, count)
    raise FileFormatError(f"{len(data)} bytes do not hold {count} symbols of {bits} bits; the file is damaged")


def _are_bytes(flat: Tensor) -> bool:
    # The first value decides for nearly every tensor.
    if not len(flat) or flat[0] != flat[0].round():
        return False
    return torch.equal(flat.clamp(0, 255).to(torch.uint8).float(), flat)


def _are_short(flat: Tensor) -> bool:
    return not bool((flat.view(torch.int32) & 0xFFFF).any())


def _upper_half(flat: Tensor) -> Tensor:
    return (flat.view(torch.int32) >> 16 & 0xFFFF).long()


def _gaps(used: Tensor) -> Tensor:
    """Returns the number of zeros ahead of each used place, in digits: a long gap is 255 times n, then the rest."""
    positions = np.flatnonzero(used.numpy())
    gaps = np.diff(positions, prepend=-1) - 1
    digits = np.full(len(gaps) + int((gaps // _LONG_GAP).sum()), _LONG_GAP, dtype=np.int64)
    digits[np.cumsum(gaps // _LONG_GAP + 1) - 1] = gaps % _LONG_GAP
    return torch.from_numpy(digits)


def _positions(data: bytes, gap_count: int, count: int) -> Tensor:
    if gap_count > count:
        raise FileFormatError(f"{gap_count} gaps in a tensor of {count} values; the file is damaged")
    gaps = unpack_symbols(data, (gap_count,), _GAP_BITS)
    last = gaps < _LONG_GAP
    positions = (torch.cumsum(gaps + last, 0) - 1)[last]
    if len(positions) and int(positions[-1]) >= count:
        raise FileFormatError(f"a value lies behind the end of a tensor of {count} values; the file is damaged")
    return positions

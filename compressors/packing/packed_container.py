"""The packed file from outside: a valid safetensors file with a single tensor of bytes, metadata and a checksum."""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import ConfigurationError, FileFormatError

FORMAT_VERSION = "1"
_VERSION_KEY, _CHECKSUM_KEY = "plywise_format", "sha256"
_TENSOR = "payload"
_MAX_HEADER = 2**20


def container_header(metadata: Mapping[str, str], payload: bytes) -> bytes:
    """Returns the bytes ahead of the payload: a safetensors header with the metadata and a checksum of all.

    Raises:
        ConfigurationError: where `metadata` holds anything but texts, or one of the file's own keys.
    """
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str) or key in (_VERSION_KEY, _CHECKSUM_KEY):
            raise ConfigurationError(
                f"metadata {key!r}: {value!r} cannot be stored: keys and values are texts, "
                f"and {_VERSION_KEY!r} and {_CHECKSUM_KEY!r} are the file's own"
            )
    stored = {**metadata, _VERSION_KEY: FORMAT_VERSION}
    digest = _digest(stored)
    digest.update(payload)
    stored[_CHECKSUM_KEY] = digest.hexdigest()
    size = len(payload)
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    text = json.dumps({"__metadata__": stored, _TENSOR: tensor}, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_container(path: Path, metadata: Mapping[str, str], payload: bytes) -> int:
    """Writes the file atomically and returns its bytes."""
    content = container_header(metadata, payload) + payload
    write_atomically(path, content)
    return len(content)


def read_container(path: Path, limit: int) -> tuple[dict[str, str], bytes]:
    """Returns the metadata and, where `limit` is not 0, the payload; both are checked against the checksum.

    Raises:
        FileFormatError: where the file is missing or damaged, or its payload has more than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            metadata, size = _read_header(path, file)
            start = file.tell()
            checksum = metadata.pop(_CHECKSUM_KEY)
            if hashlib.file_digest(file, lambda: _digest(metadata)).hexdigest() != checksum:
                raise FileFormatError(f"{path} is damaged: its checksum does not fit; fetch or make it again")
            file.seek(start)
            if 0 < limit < size:
                raise FileFormatError(f"{path} holds {size} bytes, more than this network could need: wrong network?")
            metadata.pop(_VERSION_KEY)
            return metadata, file.read(limit)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from error


def _digest(metadata: Mapping[str, str]) -> "hashlib._Hash":
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())


def _read_header(path: Path, file: BinaryIO) -> tuple[dict[str, str], int]:
    total = os.fstat(file.fileno()).st_size
    head = file.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 0 < length <= min(_MAX_HEADER, total - 8):
        raise FileFormatError(f"{path} is no packed file: {total} bytes without a valid header; is it truncated?")
    try:
        header = json.loads(file.read(length))
        metadata = header["__metadata__"]
        version, checksum = metadata[_VERSION_KEY], metadata[_CHECKSUM_KEY]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FileFormatError(f"{path} is no packed file: its header cannot be read") from error
    if version != FORMAT_VERSION:
        raise FileFormatError(f"{path} has the format version {version!r:.20}; this version reads {FORMAT_VERSION!r}")
    size = total - 8 - length
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    if header != {"__metadata__": metadata, _TENSOR: tensor} or not isinstance(checksum, str):
        raise FileFormatError(f"{path} does not hold the one block of {size} bytes it should: is it truncated?")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise FileFormatError(f"{path} has metadata that are not texts: the file is damaged")
    return metadata, size

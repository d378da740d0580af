import math

import numpy as np
import pytest
import torch

from plywise.compressors.errors import FileFormatError
from plywise.compressors.packing.packing import (
    CODED,
    CONSTANT,
    GAPS,
    MASK,
    PLAIN,
    RAW,
    SHORT,
    WHOLE,
    floats_size,
    pack_floats,
    pack_symbols,
    symbols_size,
    unpack_floats,
    unpack_symbols,
)

SHAPES = [(), (0,), (1,), (3, 0, 2), (7,), (5, 3, 3, 3), (64, 64, 3, 3)]


def bell(shape, bits, spread=0.2, zeros=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * 2**bits * spread
    values[torch.rand(shape, generator=generator) < zeros] = 0
    return (values + 2 ** (bits - 1)).round().clamp(0, 2**bits - 1).long()


def entropy_bytes(symbols):
    share = np.bincount(symbols.flatten().numpy()) / symbols.numel()
    share = share[share > 0]
    return -(share * np.log2(share)).sum() * symbols.numel() / 8


def bits_of(values):
    return values.view(torch.int32)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zeros", [0.0, 0.9, 1.0])
def test_symbols_round_trip_and_never_exceed_plain_packing(shape, bits, zeros):
    symbols = bell(shape, bits, zeros=zeros)
    data = pack_symbols(symbols, bits)
    restored = unpack_symbols(data, shape, bits)
    assert restored.dtype == torch.int64
    assert torch.equal(restored, symbols)
    assert len(data) <= math.ceil(symbols.numel() * bits / 8) + 1
    assert abs(symbols_size(symbols, bits) - len(data)) <= 4


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("spread", [0.03, 0.1, 0.2])
@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_size_is_close_to_the_entropy(bits, spread, zeros):
    symbols = bell((32, 32, 3, 3), bits, spread, zeros)
    assert len(pack_symbols(symbols, bits)) <= 1.03 * entropy_bytes(symbols) + 12


def test_a_jagged_histogram_is_coded_as_well_as_a_smooth_one():
    weights = torch.rand(16, generator=torch.Generator().manual_seed(1)) ** 6
    symbols = torch.multinomial(weights, 5000, replacement=True, generator=torch.Generator().manual_seed(2))
    assert len(pack_symbols(symbols, 4)) <= 1.01 * entropy_bytes(symbols) + 28


def test_symbols_take_the_cheapest_code():
    uniform = torch.arange(4096) % 16
    assert pack_symbols(uniform, 4)[0] == PLAIN
    assert pack_symbols(torch.full((100_000,), 5), 4) == bytes((CONSTANT, 5))
    assert pack_symbols(bell((4096,), 4, 0.1), 4)[0] == CODED


@pytest.mark.parametrize(("symbols", "bits"), [([0, 4], 2), ([-1], 4), ([1], 0), ([1], 17), ([512], 9)])
def test_symbols_that_do_not_fit_are_refused(symbols, bits):
    with pytest.raises(ValueError, match="bits"):
        pack_symbols(torch.tensor(symbols), bits)


def sparse(kind):
    generator = torch.Generator().manual_seed(3)
    values = torch.randn((64, 32, 3, 3), generator=generator)
    if kind == "scattered":
        values[torch.rand(values.shape, generator=generator) < 0.8] = 0
    if kind == "rows":
        values[torch.rand(64, generator=generator) < 0.8] = 0
    if kind == "rare":
        values[torch.rand(values.shape, generator=generator) < 0.9999] = 0
    return values


@pytest.mark.parametrize("shape", SHAPES)
def test_floats_round_trip_in_any_shape(shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for tensor in (values, values.relu(), (values * 40).clamp(0, 255).round(), values * 0 + 0.0):
        assert torch.equal(bits_of(unpack_floats(pack_floats(tensor), shape)), bits_of(tensor))


@pytest.mark.parametrize(
    ("kind", "tag", "limit"),
    [("dense", RAW, 4.001), ("scattered", MASK, 0.2 * 4 + 0.095), ("rows", GAPS, 0.8), ("rare", MASK, 0.003)],
)
def test_floats_take_the_cheapest_code(kind, tag, limit):
    values = sparse(kind)
    data = pack_floats(values)
    assert torch.equal(bits_of(unpack_floats(data, values.shape)), bits_of(values))
    assert len(data) <= limit * values.numel()
    assert abs(floats_size(values) - len(data)) <= 6
    assert data[0] == tag


def test_odd_floats_survive_bit_for_bit():
    values = torch.tensor([0.0, math.nan, math.inf, -math.inf, 1e-45, 0.0, 255.0])
    assert torch.equal(bits_of(unpack_floats(pack_floats(values), (7,))), bits_of(values))


def test_the_negative_zeros_of_a_mask_cost_no_more_than_others():
    values = sparse("scattered")
    negative = torch.where(values == 0, -values, values)
    assert len(pack_floats(negative)) == len(pack_floats(values))
    assert torch.equal(unpack_floats(pack_floats(negative), values.shape), values)


def test_whole_numbers_of_a_byte_cost_a_byte_at_most():
    zero_points = torch.arange(64).float()
    assert pack_floats(zero_points)[0] == WHOLE
    assert len(pack_floats(zero_points)) <= 66


def test_damaged_bytes_raise_only_format_errors():
    rng = np.random.default_rng(0)
    symbols = bell((16, 16, 3, 3), 4, 0.1)
    originals = [(pack_symbols(symbols, 4), True), (pack_floats(sparse("scattered")[:8]), False)]
    originals.append((pack_floats(sparse("rows")), False))
    refused = 0
    for trial in range(600):
        data, is_symbols = originals[trial % 3]
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            damaged[min(len(damaged) - 1, int(rng.exponential(20)))] = rng.integers(256)
        hostile = bytes(damaged[: rng.integers(len(damaged) + 1)] if trial % 5 == 0 else damaged)
        try:
            if is_symbols:
                assert int(unpack_symbols(hostile, symbols.shape, 4).max()) < 16
            else:
                unpack_floats(hostile, (64, 32, 3, 3) if trial % 3 == 2 else (8, 32, 3, 3))
        except FileFormatError:
            refused += 1
    assert refused > 200


def test_values_of_bfloat16_take_half_the_bytes_of_floats_or_less():
    values = torch.randn(300, generator=torch.Generator().manual_seed(1))
    rounded = values.bfloat16().float()
    data = pack_floats(rounded)
    assert data[0] == SHORT
    assert len(data) <= 2 * 300 + 8
    assert abs(floats_size(rounded) - len(data)) <= 6
    assert torch.equal(bits_of(unpack_floats(data, (300,))), bits_of(rounded))
    assert pack_floats(values)[0] == RAW

import dataclasses

import pytest
from torch import nn

from plywise.env.costs.energy import energy_mj, held_bytes, read_bytes
from plywise.env.network.operation import operations

LINEAR = operations(nn.Linear(1000, 500), (1000,))
INTEGER = tuple(dataclasses.replace(operation, integer=True) for operation in LINEAR)


def test_energy_is_the_sum_of_macs_and_bytes() -> None:
    # 500k macs at 4.6 pJ, 1,500 numbers of 4 bytes at 12.5 pJ, 2,002,000 bytes from DRAM at 162.5 pJ.
    expected = (500_000 * 4.6 + 1_500 * 4 * 12.5 + 2_002_000 * 162.5) / 1e9
    assert energy_mj(LINEAR) == pytest.approx(expected)


def test_integers_cost_less() -> None:
    # Weights of a byte, biases of 32 bits.
    assert energy_mj(INTEGER) == pytest.approx((500_000 * 0.3 + 1_500 * 12.5 + 502_000 * 162.5) / 1e9)


def test_a_chain_is_the_sum_of_its_parts() -> None:
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1, bias=False)
    chain = operations(nn.Sequential(first, second), (3, 8, 8))
    assert energy_mj(chain) == pytest.approx(sum(energy_mj((operation,)) for operation in chain))
    assert [held_bytes(operation) for operation in chain] == [4 * (3 * 4 * 9 + 4), 4 * 4 * 8]
    assert energy_mj(()) == 0


def test_an_embedding_holds_its_table_and_reads_a_row_for_each_index() -> None:
    table = nn.Embedding(1000, 16)
    few, many, most = (operations(table, (count,))[0] for count in (1, 10, 5000))
    assert {held_bytes(each) for each in (few, many, most)} == {64_000}
    assert [read_bytes(each) for each in (few, many, most)] == [64, 640, 64_000]

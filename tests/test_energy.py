import dataclasses

import pytest
from torch import nn

from plywise.env.costs.energy import energy_mj, plain_weight_bytes
from plywise.env.network.operation import operations

LINEAR = operations(nn.Linear(1000, 500), (1000,))


def test_energy_is_the_sum_of_macs_and_bytes() -> None:
    # 500k macs at 4.6 pJ, 1,500 numbers of 4 bytes at 12.5 pJ, 2,002,000 bytes from DRAM at 162.5 pJ.
    expected = (500_000 * 4.6 + 1_500 * 4 * 12.5 + 2_002_000 * 162.5) / 1e9
    assert plain_weight_bytes(LINEAR) == 2_002_000
    assert energy_mj(LINEAR, 2_002_000) == pytest.approx(expected)


def test_integers_cost_less() -> None:
    integer = tuple(dataclasses.replace(operation, integer=True) for operation in LINEAR)
    assert energy_mj(integer, 1000) == pytest.approx((500_000 * 0.3 + 1_500 * 12.5 + 1000 * 162.5) / 1e9)


def test_a_chain_is_the_sum_of_its_parts() -> None:
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1, bias=False)
    chain = operations(nn.Sequential(first, second), (3, 8, 8))
    parts = [energy_mj((operation,), 100) for operation in chain]
    assert energy_mj(chain, 200) == pytest.approx(sum(parts))
    assert plain_weight_bytes(chain, bits=4) == (3 * 4 * 9 + 4 * 8) / 2 + 4 * 4
    assert energy_mj((), 0) == 0

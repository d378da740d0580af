import dataclasses
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from plywise.compressors.errors import ConfigurationError, UnsupportedLayerError
from plywise.compressors.modules.static_quantized import ActivationRange, StaticQuantized
from plywise.env.costs import latency
from plywise.env.costs.device import Device
from plywise.env.costs.latency import REFERENCE, Chain, LatencyTable
from plywise.env.execution import progress
from plywise.env.network.operation import Operation, operations
from plywise.env.runtime import target_program
from plywise.env.runtime.target_program import Execution
from plywise.env.storage.cache import CacheDamageWarning

LAYERS = [
    (nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=2), (6, 11, 9)),
    (nn.Conv2d(6, 12, (3, 5), padding="same", groups=6, bias=False), (6, 8, 8)),
    (nn.Conv2d(6, 4, (2, 4), padding="same"), (6, 8, 8)),
    (nn.Conv1d(4, 8, 5, padding="valid", groups=2), (4, 20)),
    (nn.Linear(7, 3), (7,)),
    (nn.Linear(7, 3, bias=False), (5, 7)),
    (nn.Sequential(nn.Conv2d(6, 3, 1), nn.Identity(), nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 1)), (6, 8, 8)),
]
SMALL: Chain = operations(nn.Linear(4, 4), (4,))
LARGE: Chain = operations(nn.Conv2d(32, 64, 3, padding=1), (32, 32, 32))


def spanned(layer: nn.Module) -> StaticQuantized:
    return StaticQuantized(layer, ActivationRange(0.1, 0), ActivationRange(0.1, 0))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_shapes_and_macs_are_those_of_torch(layer: nn.Module, shape: tuple[int, ...]) -> None:
    chain = operations(layer, shape)
    assert chain[-1].output_shape == tuple(layer(torch.zeros(1, *shape)).shape[1:])
    parts = [part for part in layer.modules() if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear)]
    assert [operation.weight_shape for operation in chain] == [tuple(part.weight.shape) for part in parts]
    for operation, part in zip(chain, parts, strict=True):
        # With ones for weights and inputs and no padding, each output element counts its multiply-adds.
        twin = dataclasses.replace(operation, padding=(0,) * len(operation.padding))
        ones = nn.utils.skip_init(type(part), *(_settings(part)))
        nn.init.ones_(ones.weight)
        assert twin.macs == int(ones(torch.ones(1, *operation.input_shape)).sum())


def _settings(part: nn.Module) -> tuple[object, ...]:
    if isinstance(part, nn.Linear):
        return part.in_features, part.out_features, False
    return part.in_channels, part.out_channels, part.kernel_size, part.stride, 0, part.dilation, part.groups, False


def test_integers_are_marked_where_the_export_has_them() -> None:
    convolution, linear = nn.Conv2d(6, 6, 1), nn.Linear(4, 4)
    assert [o.integer for o in operations(spanned(linear), (4,))] == [True]
    assert [o.integer for o in operations(nn.Sequential(spanned(convolution), convolution), (6, 2, 2))] == [True, False]
    # Between its leaves the tensor has no range, so they run on floats.
    assert [o.integer for o in operations(spanned(nn.Sequential(linear, linear)), (4,))] == [False, False]
    assert [o.integer for o in operations(nn.Sequential(linear, linear), (4,), integer=True)] == [True, True]


def test_resizing_gives_the_operation_of_the_resized_layer() -> None:
    (plain,) = operations(nn.Conv2d(6, 8, 3, padding=1), (6, 8, 8))
    assert (plain.resized(3, 5),) == operations(nn.Conv2d(3, 5, 3, padding=1), (3, 8, 8))
    (depthwise,) = operations(nn.Conv2d(6, 12, 3, groups=6), (6, 8, 8))
    assert (depthwise.resized(in_channels=4),) == operations(nn.Conv2d(4, 8, 3, groups=4), (4, 8, 8))
    (linear,) = operations(nn.Linear(6, 8), (5, 6))
    assert (linear.resized(in_channels=2),) == operations(nn.Linear(2, 8), (5, 2))
    (grouped,) = operations(nn.Conv2d(6, 12, 3, groups=2), (6, 8, 8))
    for wrong in (3, 0):
        with pytest.raises(ConfigurationError, match="multiples of the groups"):
            grouped.resized(in_channels=wrong)


def test_operations_are_hashable_and_plain_json() -> None:
    (operation,) = operations(LAYERS[0][0], LAYERS[0][1])
    assert hash(operation) == hash(dataclasses.replace(operation))
    read = json.loads(json.dumps(dataclasses.asdict(operation)))
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in read.items()}
    assert Operation(**values) == operation


def test_other_layers_have_no_operation() -> None:
    with pytest.raises(UnsupportedLayerError, match="GRU"):
        operations(nn.Sequential(nn.GRU(4, 4)), (4,))


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_every_chain_is_measured_in_both_formats(layer, shape, tmp_path: Path) -> None:
    chains = [operations(layer, shape, integer) for integer in (False, True)]
    table = LatencyTable(tmp_path / "table.sqlite")
    assert (table.milliseconds(chains) > 0).all()
    assert not table.reasons


def test_a_second_table_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.sqlite"
    first = LatencyTable(path).milliseconds([SMALL, LARGE, (), SMALL])
    assert first[0] == first[3] < first[1]
    assert first[2] == 0.0
    monkeypatch.setattr(latency, "relative_times", None)
    np.testing.assert_array_equal(LatencyTable(path).milliseconds([LARGE, SMALL]), first[[1, 0]])


def test_another_device_measures_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.sqlite"
    monkeypatch.setattr(latency, "_time_chain", lambda chain, device, _: (float(device.threads * len(chain)), 0.0))
    assert LatencyTable(path, Device.here()).milliseconds([SMALL])[0] == 1.0
    assert LatencyTable(path, Device.here(threads=2)).milliseconds([SMALL])[0] == 2.0
    assert Device.here() == Device.here() != Device.here(threads=2)


def test_a_batch_is_timed_as_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    monkeypatch.setattr(latency, "loaded_run", lambda graph, shape, execution: shapes.append(shape) or (lambda: None))
    LatencyTable(tmp_path / "table.sqlite", Device.here(batch=8)).milliseconds([LARGE])
    assert shapes == [(8, 16, 16, 16), (8, 1), (8, 32, 32, 32)]
    assert Device.here(batch=8) != Device.here(batch=4)


def test_a_kill_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, measured = tmp_path / "table.sqlite", []

    def time_or_die(chain: Chain, device: Device, reference: float | None) -> tuple[float, float]:
        if chain == LARGE and LARGE not in measured:
            measured.append(chain)
            raise KeyboardInterrupt
        measured.append(chain)
        return 1.0 + len(chain), 0.0

    monkeypatch.setattr(latency, "_time_chain", time_or_die)
    with pytest.raises(KeyboardInterrupt):
        LatencyTable(path).milliseconds([SMALL, LARGE])
    assert LatencyTable(path).milliseconds([SMALL, LARGE]).tolist() == [1.0, 1.0]
    assert measured == [REFERENCE, (), SMALL, LARGE, LARGE]


def test_a_chain_that_the_runtime_refuses_is_nan_with_a_reason(tmp_path: Path, monkeypatch) -> None:
    wrong = (dataclasses.replace(LARGE[0], groups=5),)
    for _ in range(2):
        table = LatencyTable(tmp_path / "table.sqlite")
        found = table.milliseconds([wrong, SMALL])
        assert np.isnan(found).tolist() == [True, False]
        assert list(table.reasons) == [wrong]
        assert "ONNX Runtime cannot run" in table.reasons[wrong]
        monkeypatch.setattr(latency, "relative_times", None)


def test_a_table_of_another_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "table.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE latency_0 (key TEXT)")
    with pytest.warns(UserWarning, match="another version"):
        table = LatencyTable(path)
    assert table.milliseconds([SMALL])[0] > 0
    LatencyTable(path)  # does not warn again


def test_a_file_that_is_no_database_is_kept_and_begun_anew(tmp_path: Path) -> None:
    content = b"no database at all, but longer than a header of one" * 10
    (tmp_path / "table.sqlite").write_bytes(content)
    with pytest.warns(CacheDamageWarning, match=r"table\.sqlite .*file is not a database; kept as"):
        LatencyTable(tmp_path / "table.sqlite")
    assert (tmp_path / "table.sqlite.damaged").read_bytes() == content


def _measure(path: Path) -> list[float]:
    return LatencyTable(path).milliseconds([SMALL, LARGE], progress=False).tolist()


def test_two_users_share_a_table(tmp_path: Path) -> None:
    path = tmp_path / "table.sqlite"
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(_measure, [path, path]))
    assert np.isfinite(results).all()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM latency_4").fetchone() == (4,)


def test_who_measures_second_goes_by_the_reference_of_the_first(tmp_path: Path, monkeypatch) -> None:
    path, turns = tmp_path / "table.sqlite", []

    def measured(chain, device, reference):
        if chain == REFERENCE and not turns:
            turns.append(chain)
            LatencyTable(path).milliseconds([SMALL], progress=False)  # another process is faster
            return 2.0, 0.0
        return (1.0 if chain == REFERENCE else 0.5 * reference), 0.0

    monkeypatch.setattr(latency, "_time_chain", measured)
    found = LatencyTable(path).milliseconds([SMALL, LARGE], progress=False)
    assert (found == LatencyTable(path).milliseconds([SMALL, LARGE], progress=False)).all()
    with sqlite3.connect(path) as connection:
        kept = [row for (row,) in connection.execute("SELECT milliseconds FROM latency_4")]
    assert sorted(kept) == [0.5, 0.5, 0.5, 1.0]


def test_a_long_measurement_shows_the_time_left(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(latency, "_time_chain", lambda chain, device, reference: (1.0, 0.0))
    LatencyTable(tmp_path / "a.sqlite").milliseconds([SMALL, LARGE], progress=False)
    assert capsys.readouterr() == ("", "")
    LatencyTable(tmp_path / "b.sqlite").milliseconds([SMALL, LARGE])
    assert "measuring latencies" in capsys.readouterr().err


def test_a_clock_that_stands_still_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_program, "clock", lambda execution: lambda: 1.0)
    assert target_program.relative_times(lambda: None, lambda: None, Execution(), budget=0.0) == [1.0] * 5


def test_a_busy_machine_is_measured_longer_and_then_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(10**6))
    times = iter([1.0, 2.0] * 10**6)
    monkeypatch.setattr(target_program.time, "perf_counter", lambda: 0.001 * next(seconds))
    even = target_program._blocks(lambda: 1.0, [], budget=0.02)
    wild = target_program._blocks(lambda: next(times), [], spread=0.01, budget=0.02)
    assert len(even) == target_program.LEAST_BLOCKS
    assert len(wild) > 0.02 / 0.001 * 2
    assert target_program.variation(wild) > target_program.NOISY

    monkeypatch.setattr(latency, "_time_chain", lambda chain, device, reference: (1.0, 0.3 if chain == LARGE else 0.1))
    table = LatencyTable(tmp_path / "table.sqlite")
    with pytest.warns(UserWarning, match="1 of 4 latencies vary by over 20 %"):
        table.milliseconds([SMALL, LARGE], progress=False)
    table.milliseconds([SMALL, LARGE], progress=False)  # not said again

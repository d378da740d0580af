import copy
import itertools
import json
import math
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional

from plywise.compressors.errors import ConfigurationError, FileFormatError, ModelError
from plywise.compressors.formats.weight_format import UniformFormat, set_weight_format, weight_format
from plywise.compressors.modules.composition import Chain
from plywise.compressors.modules.layers import weight_of
from plywise.compressors.modules.static_quantized import ActivationRange, StaticQuantized
from plywise.compressors.packing import packed_container
from plywise.compressors.packing.packed_container import read_container, write_container
from plywise.compressors.packing.packed_file import load_packed, read_metadata, save_packed
from plywise.compressors.packing.packed_module import PRESET, compressed_json, packed_size

METADATA = {"model": "tiny", "note": 'größer, with a "quote"'}
RANGES = (ActivationRange.spanning(-1.0, 2.0), ActivationRange.spanning(0.0, 5.0))


class Tiny(nn.Module):
    """Branches, a shared ReLU, an own parameter, an attention-like linear layer and every kind of normalisation."""

    def __init__(self, width=16, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), self.act)
        self.depthwise = nn.Conv2d(width, width, 3, padding="same", groups=width)
        self.group = nn.GroupNorm(4, width)
        self.up = nn.ConvTranspose2d(width, 24, 2, stride=2)
        self.position = nn.Parameter(torch.randn(1, 24, 1, 1))
        self.layer_norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, classes)
        self.register_buffer("order", torch.arange(24))

    def forward(self, inputs):
        out = self.act(self.norm(self.stem(inputs)))
        out = self.group(self.depthwise(self.body(out)))
        out = (self.up(out) + self.position).mean((2, 3))[:, self.order]
        return self.head(functional.gelu(self.layer_norm(out)))


def quantised(layer, bits, asymmetric=False, seed=0):
    weight = weight_of(layer)
    scale = weight.flatten(1).abs().amax(1).clamp_min(1e-6) / 2 ** (bits - 1)
    zero = torch.full_like(scale, 2 ** (bits - 1))
    if asymmetric:
        zero = torch.randint(0, 2**bits, scale.shape, generator=torch.Generator().manual_seed(seed)).float()
    set_weight_format(layer, UniformFormat(bits, scale, zero), weight)
    return layer


def tiny(seed=0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tiny(**settings).eval()


def compressed(seed=0):
    """Returns a Tiny with one change of every kind that techniques make."""
    model = tiny(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed + 100)
        model.stem = quantised(nn.Conv2d(3, 12, 3, padding=1, bias=True), 4)
        model.norm = nn.Identity()
        first = nn.Conv2d(12, 8, 1, bias=False)
        second = nn.Conv2d(8, 16, 3, padding=1)
        model.body[0] = StaticQuantized(Chain(quantised(first, 6), quantised(second, 5, True)), *RANGES)
        model.body[1].running_mean.normal_()
        with torch.no_grad():
            model.depthwise.weight[:10] = 0
        model.up = StaticQuantized(quantised(nn.ConvTranspose2d(16, 24, 2, stride=2), 7), *RANGES)
        model.head = quantised(model.head, 3)
    return model.eval()


def bits_of(tensor):
    return tensor.detach().view(torch.int32) if tensor.dtype == torch.float32 else tensor


def assert_same(first, second):
    left, right = dict(first.named_modules()), dict(second.named_modules())
    assert list(left) == list(right)
    assert [type(module) for module in left.values()] == [type(module) for module in right.values()]
    ours, theirs = first.state_dict(), second.state_dict()
    assert list(ours) == list(theirs)
    for key, tensor in ours.items():
        assert torch.equal(bits_of(tensor), bits_of(theirs[key])), key
    for name, module in left.items():
        fmt, other = weight_format(module), weight_format(right[name])
        assert (fmt is None) == (other is None)
        if fmt is not None:
            assert fmt.settings() == other.settings()
            assert torch.equal(fmt.encode(weight_of(module)), other.encode(weight_of(right[name])))
        if isinstance(module, StaticQuantized):
            assert (module.input_range, module.output_range) == (right[name].input_range, right[name].output_range)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


@pytest.fixture
def saved(path):
    save_packed(compressed(), tiny(), path, METADATA)
    return path


def test_a_network_with_every_kind_of_change_comes_back_exactly(path):
    model, skeleton = compressed(), tiny(seed=7)
    before = copy.deepcopy(skeleton.state_dict())
    size = save_packed(model, skeleton, path, METADATA)
    loaded = load_packed(path, skeleton)
    assert size == path.stat().st_size
    assert_same(model, loaded)
    assert not any(module.training for module in loaded.modules())
    inputs = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(inputs), loaded(inputs))
    assert all(torch.equal(value, before[key]) for key, value in skeleton.state_dict().items())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_unchanged_network_comes_back_exactly(path):
    save_packed(tiny(3), tiny(), path, {})
    assert_same(tiny(3), load_packed(path, tiny()))


@pytest.mark.parametrize(
    ("original", "smaller"),
    [
        (nn.Linear(8, 6), nn.Linear(4, 3)),
        (nn.Linear(8, 6), Chain(nn.Linear(8, 2, bias=False), nn.Linear(2, 6))),
        (nn.Conv1d(4, 6, 3), nn.Conv1d(2, 5, 3, padding=1)),
        (nn.ConvTranspose1d(4, 6, 3), nn.ConvTranspose1d(2, 5, 3, stride=2, output_padding=1)),
        (nn.Conv2d(4, 6, 3), nn.Conv2d(2, 6, 3, padding_mode="reflect", padding=1)),
        (nn.Embedding(50, 6), nn.Embedding(50, 4, padding_idx=0)),
        (nn.BatchNorm1d(6), nn.BatchNorm1d(4, eps=1e-3)),
        (nn.BatchNorm2d(6), nn.Identity()),
        (nn.BatchNorm3d(6), nn.BatchNorm3d(3, momentum=None, affine=False)),
        (nn.LayerNorm(6), nn.LayerNorm(5, bias=False)),
        (nn.GroupNorm(2, 6), nn.GroupNorm(2, 4)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_every_kind_of_module_can_be_replaced(path, original, smaller):
    save_packed(nn.Sequential(smaller), nn.Sequential(original), path, {})
    loaded = load_packed(path, nn.Sequential(original))
    assert_same(nn.Sequential(smaller), loaded)
    assert str(loaded[0]) == str(smaller)
    save_packed(smaller, original, path, {})
    assert_same(smaller, load_packed(path, original))


def test_symbols_of_an_embedding_and_of_a_type_of_ones_own_are_packed(path):
    class Own(nn.Linear):
        pass

    original = nn.Sequential(nn.Embedding(300, 16), Own(16, 4))
    model = nn.Sequential(quantised(nn.Embedding(300, 16), 4), quantised(Own(16, 4), 4))
    assert save_packed(model, original, path, {}) < 300 * 16 * 4 / 8 + 300 * 4 + 600
    assert_same(model, load_packed(path, original))


def test_a_shared_module_stays_shared(path):
    def twice(layer):
        return nn.Sequential(layer, nn.ReLU(), layer)

    model = twice(quantised(nn.Linear(16, 16), 4))
    save_packed(model, twice(nn.Linear(16, 16)), path, {})
    loaded = load_packed(path, twice(nn.Linear(16, 16)))
    assert loaded[0] is loaded[2]
    assert_same(model, loaded)
    apart = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    with pytest.raises(ModelError, match="several places"):
        save_packed(apart, twice(nn.Linear(16, 16)), path, {})


def test_the_file_is_a_safetensors_file_with_readable_metadata(saved):
    with safe_open(saved, "np") as file:
        assert file.metadata()["note"] == METADATA["note"]
        assert file.get_tensor("payload").dtype == np.uint8
    assert read_metadata(saved) == METADATA


def test_the_same_network_gives_the_same_bytes(saved):
    before = saved.read_bytes()
    save_packed(compressed(), tiny(seed=4), saved, dict(reversed(METADATA.items())))
    assert saved.read_bytes() == before


class Residual(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)


def residual_network():
    widths = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [Residual(a, b) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), *blocks, nn.Linear(64, 10))


def folded(model, bits=None, integer=False, factored=False):
    """Returns the network with its norms folded away and its layers rebuilt."""
    for parent in list(model.modules()):
        for key, layer in list(parent.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                setattr(parent, key, nn.Identity())
            if isinstance(layer, nn.Conv2d):
                setattr(parent, key, rebuilt(layer, bits, integer, factored and layer.in_channels > 3))
    return model


def rebuilt(layer, bits, integer, factored):
    inputs, outputs = layer.in_channels, layer.out_channels
    parts = [nn.Conv2d(inputs, outputs, 3, padding=1)]
    if factored:
        parts = [
            nn.Conv2d(inputs, outputs // 2, (3, 1), padding=(1, 0), bias=False),
            nn.Conv2d(outputs // 2, outputs, 1),
        ]
    for part in parts:
        nn.init.normal_(part.weight)
        if bits:
            quantised(part, bits)
    chain = nn.Sequential(*parts) if factored else parts[0]
    return StaticQuantized(chain, *RANGES) if integer else chain


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bits": 8},
        {"bits": 4},
        {"bits": 2},
        {"bits": 7, "integer": True},
        {"bits": 4, "integer": True},
        {"factored": True},
        {"bits": 4, "factored": True},
        {"bits": 4, "factored": True, "integer": True},
    ],
    ids=str,
)
def test_sizes_of_modules_predict_the_file(path, settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        skeleton = residual_network()
        model = folded(residual_network(), **settings)
    size = save_packed(model, skeleton, path, METADATA)
    layers = [each for part in model for each in (part.children() if isinstance(part, Residual) else [part])]
    empty = save_packed(nn.Identity(), nn.Identity(), path, METADATA)  # what belongs to no module
    predicted = sum(map(packed_size, layers))
    assert predicted + empty == pytest.approx(size, rel=0.005)
    assert packed_size(model) == predicted


def test_a_packed_network_is_as_small_as_its_symbols(path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        skeleton, model = residual_network(), folded(residual_network(), bits=2)
    symbols = [weight_format(m).encode(m.weight) for m in model.modules() if weight_format(m)]
    counts = [np.bincount(each.flatten().numpy()) for each in symbols]
    entropy = sum(-(c[c > 0] * np.log2(c[c > 0] / c.sum())).sum() / 8 for c in counts)
    floats = 4 * sum(tensor.numel() for tensor in model.state_dict().values()) - 4 * sum(s.numel() for s in symbols)
    scales = 4 * sum(len(each) for each in symbols)
    assert save_packed(model, skeleton, path, {}) <= 1.01 * entropy + floats + scales + 800


def changed(model, name, module):
    model.set_submodule(name, module)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: changed(tiny(), "act", nn.SiLU()), "act: a SiLU"),
        (lambda: changed(tiny(), "head", nn.Bilinear(2, 2, 2)), "head: a Bilinear"),
        (lambda: changed(tiny(), "head", nn.Linear(24, 10).double()), "head.weight is torch.float64"),
        (lambda: setattr(m := tiny(), "position", nn.Parameter(torch.zeros(1, 99, 1, 1))) or m, "position has shape"),
        (lambda: setattr(m := tiny(), "order", torch.arange(24).flip(0)) or m, "order differs"),
        (lambda: changed(tiny(), "up", StaticQuantized(tiny().up, ActivationRange(math.nan, 0), RANGES[1])), "scale"),
    ],
)
def test_a_network_that_cannot_be_stored_is_refused(path, model, message):
    with pytest.raises(ModelError, match=message):
        save_packed(model(), tiny(), path, {})
    assert not list(path.parent.iterdir())


def test_weights_that_left_their_format_are_refused(path):
    model = compressed()
    with torch.no_grad():
        model.stem.weight.mul_(1.1)
    with pytest.raises(ModelError, match="stem: the weights are not values of their format"):
        save_packed(model, tiny(), path, {})


@pytest.mark.parametrize("metadata", [{"a": 1}, {"sha256": "0"}, {"plywise_format": "2"}])
def test_metadata_must_be_texts_of_the_users_own(path, metadata):
    with pytest.raises(ConfigurationError, match="cannot be stored"):
        save_packed(tiny(), tiny(), path, metadata)


def other_named():
    model = tiny()
    model.tail = model.head
    del model.head
    return model


@pytest.mark.parametrize(
    ("skeleton", "message"),
    [
        (lambda: tiny(width=32), "does not fit stem"),
        (lambda: tiny(classes=9), "does not fit head"),
        (lambda: changed(tiny(), "body.1", nn.Identity()), r"does not fit body\.1"),
        (lambda: changed(tiny(), "act", nn.SiLU()), "without weights differ"),
        (other_named, "does not fit tail"),
        (lambda: nn.Sequential(tiny(), nn.Linear(3, 3)), "another network"),
    ],
)
def test_a_wrong_skeleton_is_named(saved, skeleton, message):
    with pytest.raises(FileFormatError, match=message):
        load_packed(saved, skeleton())


def test_a_missing_file_or_another_safetensors_file_is_refused(tmp_path):
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_packed(tmp_path / "absent", tiny())
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_metadata(tmp_path)
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"payload": torch.zeros(3)}, tmp_path / "other")
    with pytest.raises(FileFormatError, match="no packed file"):
        load_packed(tmp_path / "other", tiny())


def test_another_version_is_refused(saved, monkeypatch):
    monkeypatch.setattr(packed_container, "FORMAT_VERSION", "99")
    save_packed(tiny(), tiny(), saved, {})
    monkeypatch.undo()
    with pytest.raises(FileFormatError, match="version '99'"):
        load_packed(saved, tiny())


def test_every_flipped_bit_and_every_cut_is_noticed(saved):
    original = saved.read_bytes()
    rng = np.random.default_rng(0)
    skeleton = tiny()
    # Every bit of the header, then a sample of the rest.
    header = struct.unpack("<Q", original[:8])[0] + 8
    for place in [*range(header), *rng.integers(header, len(original), 200)]:
        flipped = bytearray(original)
        flipped[place] ^= 1 << int(rng.integers(8))
        saved.write_bytes(flipped)
        with pytest.raises(FileFormatError):
            load_packed(saved, skeleton)
    for length in [*range(0, 40), *rng.integers(0, len(original), 60)]:
        saved.write_bytes(original[:length])
        with pytest.raises(FileFormatError):
            load_packed(saved, skeleton)
    saved.write_bytes(original + b"\0")
    with pytest.raises(FileFormatError):
        load_packed(saved, skeleton)


def payload_parts(path):
    """Returns fingerprint and marks, the JSON of the description, and the tensors."""
    payload = read_container(path, 2**30)[1]
    end = 5 + payload[4]
    size, start = payload[end], end + 1
    while payload[start - 1] >= 128:
        size = size % 128 + 128 * payload[start]
        start += 1
    text = zlib.decompressobj(wbits=-15, zdict=PRESET).decompress(payload[start : start + size])
    return payload[:end], json.loads(text), payload[start + size :]


def with_description(path, head, description, tensors):
    packed = description if isinstance(description, bytes) else compressed_json(description)
    length = bytes((len(packed) % 128 + 128, len(packed) // 128 % 128 + 128, len(packed) // 128**2))
    write_container(path, {}, head + length + packed + tensors)


def test_random_mutations_behind_a_valid_checksum_raise_only_format_errors(saved):
    rng = np.random.default_rng(1)
    payload = read_container(saved, 2**30)[1]
    skeleton = tiny()
    refused = 0
    for _ in range(250):
        damaged = bytearray(payload)
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.exponential(60) if rng.random() < 0.5 else rng.integers(len(damaged)))
            damaged[min(place, len(damaged) - 1)] = rng.integers(256)
        write_container(saved, {}, bytes(damaged[: rng.integers(len(damaged))] if rng.random() < 0.1 else damaged))
        try:
            load_packed(saved, skeleton)
        except FileFormatError:
            refused += 1
    assert refused > 100


HOSTILE = [0, -1, 2**31, 2**63, 10**30, 1.5, 1e308, True, None, "", "uniform", "x" * 10**5, [], [[]], {}, [1, 2, 3]]


def mutated(value, rng, depth=0):
    """Returns a copy of a JSON value with one place in it replaced by something else."""
    if isinstance(value, list | dict) and value and rng.random() < 0.85:
        items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        key, inside = items[rng.integers(len(items))]
        fresh = copy.deepcopy(value)
        if rng.random() < 0.1:
            del fresh[key]
        else:
            fresh[key] = mutated(inside, rng)
        return fresh
    return HOSTILE[rng.integers(len(HOSTILE))]


def test_random_descriptions_raise_only_format_errors(saved):
    rng = np.random.default_rng(2)
    head, description, tensors = payload_parts(saved)
    with_description(saved, head, description, tensors)
    skeleton = tiny()
    assert_same(load_packed(saved, skeleton), compressed())
    refused = 0
    for _ in range(400):
        with_description(saved, head, mutated(description, rng), tensors)
        try:
            load_packed(saved, skeleton)
        except FileFormatError:
            refused += 1
    assert refused > 250


def conv(**settings):
    plain = {"in_channels": 3, "out_channels": 8, "kernel_size": [3, 3], "stride": [1, 1], "padding": [0, 0]}
    return ["Conv2d", {**plain, "dilation": [1, 1], "groups": 1, "bias": False, "padding_mode": "zeros", **settings}]


@pytest.mark.parametrize(
    "spec",
    [
        conv(out_channels=10**9, in_channels=10**9),
        conv(out_channels=2**31 - 1),
        conv(out_channels=10**6, kernel_size=[1000, 1000]),
        conv(groups=7),
        conv(groups=0),
        conv(stride=[1]),
        conv(padding=["same", "same"]),
        conv(padding_mode="__import__('os')"),
        conv(bias="yes"),
        ["os.system", {"command": "true"}],
        ["Upsample", {"scale_factor": 2}],
        ["Sequential", {"forward": conv()}],
        ["Sequential", {"weight": conv()}],
        ["OwnForward", {"layer": conv()}],
        ["Sequential", {"a.b": conv()}],
        ["Sequential", {str(i): [None, {}] for i in range(2000)}],
        [None, {"eps": 1}],
        [None, {}, ["power_of_nothing", {}, {}]],
        [None, {}, ["uniform", {"width": 40}, {"scale": [32]}]],
        [None, {}, ["uniform", {"width": 4}, {}]],
        [None, {}, ["uniform", {"width": 4}, {"scale": [10**12]}]],
        [None, {}, ["uniform", {"width": 4}, {"scale": [-1, -32]}]],
        [None, {}, ["uniform", {"width": 4}, {"scale": "32"}]],
        [None, {}, ["uniform", {"width": 4}, {"scale": [2**31 - 1] * 1000}]],
        [None, {}, ["uniform", {"width": 4}, {"scale": [10**4000]}]],
        ["Identity", {}, ["uniform", {"width": 4}, {"scale": [32]}]],
    ],
    ids=lambda spec: json.dumps(spec)[:50],
)
def test_hostile_descriptions_are_refused(saved, spec):
    head, description, tensors = payload_parts(saved)
    description[0] = [1, spec]
    with_description(saved, head, description, tensors)
    with pytest.raises(FileFormatError):
        load_packed(saved, tiny())


def test_deep_and_blown_up_descriptions_are_refused(saved):
    head, _, tensors = payload_parts(saved)
    depth = sys.getrecursionlimit() * 10
    nested = conv()
    for _ in range(50):
        nested = ["Sequential", {"0": nested}]
    bomb = zlib.compressobj(9, wbits=-15)
    texts = [b"[" * depth, b'{"a":' * depth, b" " * 10**8, b"[NaN]", b"1" * 10000, b"[[1" + b"0" * 5000 + b",[]]]"]
    for text in texts:
        packer = bomb.copy()
        with_description(saved, head, packer.compress(text) + packer.flush(), tensors)
        with pytest.raises(FileFormatError):
            load_packed(saved, tiny())
    with_description(saved, head, [[1, nested]], tensors)
    with pytest.raises(FileFormatError):
        load_packed(saved, tiny())


def test_ranges_and_scales_that_are_no_numbers_are_refused(path):
    original, model = nn.Linear(4, 4), quantised(nn.Linear(4, 4), 4)
    save_packed(StaticQuantized(model, *RANGES), original, path, {})
    head, description, tensors = payload_parts(path)
    for value in (math.nan, math.inf, -1.0, 0.0):
        with_description(path, head, description, struct.pack("<d", value) + tensors[8:])
        with pytest.raises(FileFormatError, match="range"):
            load_packed(path, original)
    nan = struct.pack("<f", math.nan)
    scale = model.weight_format.scale.numpy().tobytes()
    with_description(path, head, description, tensors.replace(scale[:4], nan))
    with pytest.raises(FileFormatError, match="not finite"):
        load_packed(path, original)
    for value in (0.0, -0.25):
        with_description(path, head, description, tensors.replace(scale[:4], struct.pack("<f", value)))
        with pytest.raises(FileFormatError, match="must be above 0"):
            load_packed(path, original)


def test_broadcasting_cannot_blow_up_a_layer(path):
    original, model = nn.Linear(2**16, 1, bias=False), quantised(nn.Linear(2**16, 1, bias=False), 4)
    save_packed(model, original, path, {})
    head, description, _ = payload_parts(path)
    description[0][1][2][2]["scale"] = [2**16]
    ones = bytes((3, 1, 1, 1))
    with_description(path, head, description, bytes((2, 1, 3)) + ones)
    with pytest.raises(FileFormatError, match="do not fit"):
        load_packed(path, original)


def test_a_header_with_a_giant_length_is_refused(path):
    for length in (2**63, 2**40, 10**7, 0):
        path.write_bytes(struct.pack("<Q", length) + b"{}" * 20)
        with pytest.raises(FileFormatError, match="no packed file"):
            load_packed(path, tiny())

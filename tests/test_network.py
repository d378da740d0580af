"""Tracing, folding, exchanging modules, and what counts as a layer."""

import copy

import pytest
import torch
from tiny_networks import NETWORKS, Plain, Reused, build, images
from torch import nn
from torch.nn import functional as F

from plywise.compressors.errors import ModelError
from plywise.compressors.modules.assembly import assemble
from plywise.env.network.calls import calls_in
from plywise.env.network.folding import fold_batch_norms
from plywise.env.network.graph import Graph
from plywise.env.network.network import Network


class Norms(nn.Module):
    """BatchNorms that can be merged (`merged`, `flat`) and that cannot: see the names."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.merged = nn.BatchNorm2d(8, affine=False)
        self.branched = nn.Conv2d(8, 8, 1)
        self.alongside = nn.BatchNorm2d(8)
        self.after_relu = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 6, bias=False)
        self.flat = nn.BatchNorm1d(6)
        self.after_sum = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, inputs):
        out = self.merged(self.conv(inputs))
        out = self.branched(out)
        out = self.alongside(out) + out
        out = self.after_relu(F.relu(out)).mean((2, 3))
        out = self.flat(self.linear(out))
        return self.head(self.after_sum(out + 1))


def run(model):
    return model(images(2))


def folded_of(model):
    return fold_batch_norms(model, calls_in(Graph.of(model, run)))


@pytest.mark.parametrize("kind", [*NETWORKS, Norms])
def test_folding_is_exact_and_leaves_the_original_alone(kind):
    model = build(kind)
    before, text = copy.deepcopy(model.state_dict()), repr(model)
    folded = folded_of(model)
    with torch.no_grad():
        assert torch.allclose(folded(images()), model(images()), atol=1e-5, rtol=1e-5)
    assert repr(model) == text
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_only_norms_that_alone_read_a_layer_are_folded():
    folded = folded_of(build(Norms))
    kinds = {name: type(module).__name__ for name, module in folded.named_children()}
    assert kinds["merged"] == kinds["flat"] == "Identity"
    assert kinds["alongside"] == kinds["after_relu"] == "BatchNorm2d"
    assert kinds["after_sum"] == "BatchNorm1d"
    assert folded.linear.bias is not None


def test_a_norm_of_the_users_own_is_not_folded():
    class Rectified(nn.BatchNorm2d):
        def forward(self, maps):
            return super().forward(maps).relu()

    model = build(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), Rectified(3)))
    with torch.no_grad():
        assert torch.equal(folded_of(model)(images()), model(images()))


def test_a_layer_that_runs_twice_is_not_folded():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.head = nn.Linear(3, 5)

        def forward(self, inputs):
            return self.head(self.norm(self.conv(self.conv(inputs))).mean((2, 3)))

    model = build(Twice)
    folded = folded_of(model)
    assert isinstance(folded.norm, nn.BatchNorm2d)
    with torch.no_grad():
        assert torch.equal(folded(images()), model(images()))


def test_trace_sees_order_shapes_and_the_relu_that_follows():
    calls = {call.name: call for call in calls_in(Graph.of(build(Plain), run))}
    assert list(calls) == ["conv1", "norm1", "conv2", "norm2", "head"]
    assert calls["conv2"].input_shape == (16, 8, 8)
    assert calls["conv2"].output_shape == (24, 4, 4)
    assert calls["conv1"].reading_modules == ["norm1"]
    assert calls["conv1"].relu is None
    assert calls["norm1"].relu == (0.0, float("inf"))


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.ReLU(), (0.0, float("inf"))),
        (nn.ReLU(inplace=True), (0.0, float("inf"))),
        (nn.ReLU6(), (0.0, 6.0)),
        (nn.Hardtanh(), None),
        (nn.GELU(), None),
    ],
    ids=repr,
)
def test_range_of_what_follows(activation, expected):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), activation, nn.Flatten(), nn.Linear(256, 5)).eval()
    assert calls_in(Graph.of(model, run))[0].relu == expected


def test_a_relu_beside_another_reader_decides_nothing():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, inputs):
            out = self.conv(inputs)
            return F.relu(out) + out

    assert calls_in(Graph.of(build(Both), run))[0].relu is None


def test_assemble_shares_all_but_what_it_exchanges():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    new = nn.Linear(4, 4)
    model[0].register_forward_hook(lambda *_: pytest.fail("hooks must not come along"))
    made = assemble(model, {"0.0": new})
    assert made[0][0] is new
    assert made[1] is model[1]
    assert model[0][0] is not new
    made(torch.zeros(1, 4))


class OwnLinear(nn.Linear):
    def forward(self, inputs):
        return F.linear(inputs, self.weight**2, self.bias)


class Odd(nn.Module):
    """Every reason why a module with weights is left alone, and one layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 8)
        self.own = OwnLinear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.direct = nn.Linear(8, 8)
        self.twice = nn.Linear(8, 8)
        self.tied_a = nn.Linear(8, 8)
        self.tied_b = nn.Linear(8, 8)
        self.tied_b.weight = self.tied_a.weight
        self.norm = nn.LayerNorm(8)

    def forward(self, inputs):
        out = F.linear(self.own(self.layer(inputs.flatten(1))), self.direct.weight)
        return self.norm(self.tied_b(self.tied_a(self.twice(self.twice(out)))))


def test_what_is_left_alone_has_a_reason():
    network = Network.of(Odd(), images(4))
    assert [layer.name for layer in network.layers] == ["layer", "twice", "tied_a"]
    assert network.skipped.keys() == {"own", "unused", "direct", "tied_b", "norm"}
    for name, words in {
        "own": "OwnLinear",
        "unused": "never called",
        "direct": "uses its weights directly",
        "tied_b": "has the weight of 'tied_a'",
        "norm": "LayerNorm",
    }.items():
        assert words in network.skipped[name]


def test_networks_that_do_not_run_or_have_no_layer_are_refused():
    with pytest.raises(ModelError, match=r"does not run on a tensor \(4, 3, 8, 8\)"):
        Network.of(nn.Linear(7, 2), images(4))
    with pytest.raises(ModelError, match="no layer that can be compressed: it has no weights"):
        Network.of(nn.Sequential(nn.Flatten()), images(4))
    with pytest.raises(ModelError, match="no layer that can be compressed: norm: LayerNorm"):
        Network.of(OnlyNorm(), images(4))


class OnlyNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, inputs):
        return self.norm(inputs).flatten(1)


def test_images_run_with_their_channels_last_where_that_gives_the_same_outputs():
    viewed = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Viewed(), nn.Linear(512, 5)).eval()
    strided = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Viewed(strided=True), nn.Linear(512, 5)).eval()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    wanted = {build(Plain): torch.channels_last, viewed: torch.contiguous_format, strided: torch.contiguous_format}
    for model, memory_format in wanted.items():
        assert Network.of(model, images(4)).memory_format == memory_format
    assert Network.of(flat[1:], images(4).flatten(1)).memory_format == torch.contiguous_format


class Viewed(nn.Module):
    """Flattens images as old code does, which refuses channels that come last, or as they lie in memory."""

    def __init__(self, strided=False):
        super().__init__()
        self.strided = strided

    def forward(self, inputs):
        size = len(inputs), inputs[0].numel()
        return inputs.as_strided(size, (size[1], 1)) if self.strided else inputs.view(size)


def test_macs_are_those_of_the_shapes():
    network = Network.of(build(Plain), images(4))
    assert network.macs == {"conv1": 64 * 16 * 27, "conv2": 16 * 24 * 144, "head": 24 * 5}
    assert [layer.name for layer in network.layers] == ["conv1", "conv2", "head"]


def test_a_reused_module_is_one_layer_that_runs_twice():
    network = Network.of(build(Reused), images(4))
    assert not network.skipped
    assert [(layer.name, layer.runs) for layer in network.layers] == [
        ("stem", 1.0), ("twice", 2.0), ("after", 1.0), ("head", 1.0),
    ]  # fmt: skip

"""Channels that meet norms, bare parameters, heads and reshapes: which groups are found, and what is cut with them."""

import numpy as np
import pytest
import torch
from cut_networks import CUT_NETWORKS, Fused, Selected, Shared, Vision
from tiny_networks import build, images, labels
from torch import nn
from torch.nn import functional as F

from plywise.compressors.errors import FileFormatError
from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.compressors.packing.trimmed_module import trim
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.bank import Bank
from plywise.env.bank.repair import NONE
from plywise.env.calibration.calibration import calibrate
from plywise.env.channels.labels import Labels, compact
from plywise.env.channels.operators import split_axes
from plywise.env.costs.graph_template import GraphTemplate
from plywise.env.costs.trial_graphs import shapes_of
from plywise.env.network.network import Network
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.runtime import open_session, run_model, run_session
from plywise.env.task.samples import labelled

OUTPUTS = "its channels are the network's outputs"
BLOCKS = ("blocks.0", "blocks.1")
HEADS = {
    "Vision": ("att.qkv", 4, 12),
    "bert": ("att.query", 4, 4),
    "llama": ("att.q", 2, 8),
    "rms": ("att.query", 4, 4),
}
GROUPS = {
    "Bare": {"a": (16, 1), "b": (16, 1)},
    "Normed": {"a": (8, 2), "b": (8, 2), "c": (16, 1), "d": (16, 1)},
    **{
        name: {
            "patch": (16, 1),
            **{f"{block}.{leader}": (heads, unit) for block in BLOCKS},
            **{
                f"{block}.mlp.{'gate' if name == 'llama' else 0}": (24 if name == "llama" else 32, 1)
                for block in BLOCKS
            },
        }
        for name, (leader, heads, unit) in HEADS.items()
    },
    "Convolutional": {"stem": (16, 1), "blocks.0.up": (32, 1), "blocks.1.up": (32, 1)},
    "Chunked": {"stem": (16, 1), "split": (8, 2), "merge": (16, 1)},
    "Shuffled": {"stem": (8, 2), "last": (16, 1)},
    "Cardinal": {"stem": (16, 1), "up": (4, 4), "grouped": (4, 4)},
    "Counted": {"stem": (8, 2), "part": (8, 1), "merge": (16, 1)},
    "Selected": {"stem": (8, 1), "a": (8, 1)},
}
"""By network the leaders, with the number of their channels and of the outputs that make up one."""

UNCUT = {
    "Counted": {"positions": "it mixes the positions of channels, which stay what they are"},
    "Selected": {"over": "shares channels with the network (Selected), which runs _softmax"},
}
"""By network the layers besides the last one that cannot be cut, and why."""


def cut_in_half(bank, *leaders):
    layers = bank.network.layers
    recipe = Recipe.parse("filter_pruning(ratio=0.5)")
    cut = [layer.leads and (not leaders or layer.name in leaders) for layer in layers]
    return Plan("cut", {layer.name: recipe if cuts else Recipe() for layer, cuts in zip(layers, cut, strict=True)})


def banked(kind):
    network = Network.of(build(kind), images(4))
    return Bank(network, calibrate(network, labelled(images(), labels())))


def outputs_of(model, count=32):
    with torch.no_grad():
        return model(images(count, seed=5))


@pytest.fixture(scope="module", params=CUT_NETWORKS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def bank(kind):
    return banked(kind)


def test_all_that_is_tied_is_found(kind, bank):
    network = bank.network
    assert {group.leader: (group.channels, group.unit) for group in network.groups} == GROUPS[kind.__name__]
    reasons = {layer.name: layer.uncut for layer in network.layers if layer.uncut}
    assert reasons.pop("head") == OUTPUTS
    assert reasons == UNCUT.get(kind.__name__, {})


def test_a_cut_network_is_smaller_and_kept_in_a_file(kind, bank, tmp_path):
    plan, original = cut_in_half(bank), bank.network.original
    model = bank.stitch(plan).model
    expected, found = outputs_of(original), outputs_of(model)
    assert (found - expected).square().sum() < 0.3 * expected.square().sum()
    sizes = [sum(p.numel() for p in each.parameters()) for each in (model, original)]
    assert sizes[0] < 0.65 * sizes[1]
    save_packed(model, original, tmp_path / "weights", {})
    skeleton = build(kind, seed=3)
    assert torch.equal(outputs_of(load_packed(tmp_path / "weights", skeleton)), found)
    assert torch.equal(outputs_of(skeleton), outputs_of(build(kind, seed=3)))


def test_norms_tables_and_numbers_of_heads_follow():
    model = banked(Vision)
    model = model.stitch(cut_in_half(model)).model
    assert model.norm.normalized_shape == (8,)
    assert (model.places.shape, model.token.shape, model.blocks[0].gamma.shape) == ((1, 17, 8), (1, 1, 8), (8,))
    attention = model.blocks[1].att
    assert (attention.num_heads, attention.head_dim) == (2, 4)
    assert (attention.qkv.in_features, attention.qkv.out_features, attention.proj.in_features) == (8, 24, 8)


def test_heads_of_a_fused_projection_go_whole():
    bank = banked(Vision)
    with torch.no_grad():
        bank.network.modules["blocks.0.att.proj"].weight[:, 4:12] = 0.0  # heads that nothing reads
    bank = Bank(bank.network, calibrate(bank.network, labelled(images(), labels())))
    cut = bank.stitch(cut_in_half(bank, "blocks.0.att.qkv"), NONE).model.blocks[0].att.qkv
    kept = [16 * part + place for part in range(3) for place in (0, 1, 2, 3, 12, 13, 14, 15)]
    assert torch.equal(cut.weight, bank.network.modules["blocks.0.att.qkv"].weight[kept])


def test_queries_go_with_the_keys_that_they_share():
    attention = banked(lambda: Vision(Shared))
    attention = attention.stitch(cut_in_half(attention, "blocks.0.att.q")).model.blocks[0].att
    assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == (2, 1, 4)
    assert (attention.q.out_features, attention.k.out_features, attention.o.in_features) == (8, 4, 8)


@pytest.mark.parametrize("kind", [Vision, Selected])
def test_cut_networks_are_exported_and_timed_whole(kind, tmp_path):
    bank = banked(kind)
    plan = cut_in_half(bank)
    model = bank.stitch(plan).model
    export_onnx(model, images(4), tmp_path / "model.onnx")
    found = run_model(tmp_path / "model.onnx", images(32, seed=5))
    assert np.abs(found.numpy() - outputs_of(model).numpy()).max() < 1e-4
    session = open_session(GraphTemplate(bank.network).filled(*shapes_of(bank.network, plan)))
    assert run_session(session, images(1).numpy()).shape == (1, 5)


class Refused(nn.Module):
    """The first convolution meets something that cannot follow; the others can be cut."""

    def __init__(self, meets):
        super().__init__()
        self.a, self.b, self.c, self.head = (
            nn.Conv2d(3, 16, 1),
            nn.Conv2d(16, 16, 1),
            nn.Conv2d(16, 16, 1),
            nn.Linear(16, 5),
        )
        self.meets = meets

    def forward(self, maps):
        return self.head(F.relu(self.c(F.relu(self.b(self.meets(self.a(maps)))))).mean((2, 3)))


def written_into(maps):
    whole = torch.zeros(len(maps), 16, 8, 8)
    whole[:, :16].copy_(maps)
    return whole


class Table(nn.Module):
    """Factors that are in no file."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factors", torch.linspace(0.5, 1.0, 16).view(-1, 1, 1), persistent=False)

    def forward(self, maps):
        return maps * self.factors


@pytest.mark.parametrize(
    ("meets", "reason"),
    [
        (lambda maps: maps.softmax(1), "runs _softmax"),
        (lambda maps: torch.fft.fft(maps, dim=1).abs(), "runs _fft_r2c"),
        (lambda maps: maps * torch.linspace(0, 1, 16).view(-1, 1, 1), "does not run with fewer channels"),
        (lambda maps: torch.cat([maps[:, :5], 2 * maps[:, 5:]], 1), "not the same as silencing"),
        (lambda maps: torch.cat(maps.split([6, 10], 1), 1), "does not run with fewer channels"),
        (Table(), "meets.factors, a buffer that no file holds"),
        (written_into, "written into a part of another tensor"),
        (lambda maps: F.linear(maps.movedim(1, -1), torch.eye(16)).movedim(-1, 1), "runs bmm"),
    ],
)
def test_what_cannot_follow_says_why_and_the_rest_is_cut(meets, reason):
    network = Network.of(build(Refused, meets=meets), images(4))
    reasons = {layer.name: layer.uncut for layer in network.layers if layer.uncut}
    assert reason in reasons["a"]
    assert reasons.keys() == {"a", "head"}
    assert {group.leader for group in network.groups} == {"b", "c"}


def test_heads_whose_number_stands_in_the_forward_are_refused():
    class Written(Fused):
        def forward(self, tokens):
            query, key, value = self.qkv(tokens).reshape(len(tokens), -1, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
            return self.proj(mixed.reshape(len(tokens), -1, 16))

    network = Network.of(build(lambda: Vision(Written)), images(4))
    uncut = {layer.name: layer.uncut for layer in network.layers}
    assert "does not run with fewer channels" in uncut["blocks.0.att.qkv"]
    assert uncut["patch"] is uncut["blocks.0.mlp.0"] is None


@pytest.mark.parametrize(
    "spec",
    [
        ["Trimmed", {"places": [1, 17, 99]}, {}],
        ["Trimmed", {"places": [1, 17]}, {}],
        ["Trimmed", {"places": [1, 17, 0]}, {}],
        ["Trimmed", {"forward": [1]}, {}],
        ["Trimmed", {}, {"training": 1}],
        ["Trimmed", {}, {"num_heads": 2}],
        ["Trimmed", {}],
    ],
)
def test_descriptions_of_what_no_cut_leaves_are_refused(spec):
    with pytest.raises(FileFormatError, match="damaged"):
        trim("vision", spec, build(Vision))
    attention = build(Fused)
    trim("attention", ["Trimmed", {}, {"num_heads": 2}], attention)
    assert attention.num_heads == 2


def test_labels_are_united_where_they_meet_and_stay_small():
    labels = Labels()
    first, second = labels.fresh(4), labels.fresh(4)
    maps = first.view(1, 4, 1).expand(2, 4, 5)
    labels.unite(maps, second.view(4, 1))
    assert torch.equal(labels.classes(second), first)
    assert not labels.varies(maps, [0, 2])
    assert labels.varies(maps, [1])
    copied = compact(torch.cat([maps, maps], 2))
    assert copied.stride()[0] == copied.stride()[2] == 0
    assert torch.equal(copied[..., 0], maps[..., 0])
    labels.unite_along(maps.reshape(2, 2, 2, 5), [1])
    assert labels.classes(first).tolist() == [1, 2, 1, 2]
    labels.unite(first, torch.zeros(4, dtype=torch.int64))
    assert labels.classes(first).tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("before", "after", "axes"),
    [
        ((2, 24, 5), (2, 3, 8, 5), [(1, 2)]),
        ((2, 3, 8), (2, 24), []),
        ((2, 1, 6), (2, 6, 1), []),
        ((4, 6), (2, 2, 3, 2), [(0, 1), (2, 3)]),
        ((4, 6), (8, 3), [(0, 1)]),
    ],
)
def test_axes_that_a_reshape_splits(before, after, axes):
    assert split_axes(before, after) == axes

"""Which channels are found to belong together, which are refused and why, and that a cut equals silence."""

import copy

import pytest
import torch
from tiny_networks import NETWORKS, Crossed, Depthwise, Plain, build, images, labels
from torch import nn
from torch.nn import functional as F

from plywise.compressors.errors import ConfigurationError
from plywise.compressors.modules.assembly import assemble
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.compressors.statistics.channels import kept_count
from plywise.env.bank.bank import Bank
from plywise.env.bank.repair import NONE
from plywise.env.calibration.calibration import calibrate
from plywise.env.network import group_finding
from plywise.env.network.channel_groups import cut
from plywise.env.network.network import Network
from plywise.env.task.samples import labelled

PARTS = ("query", "key", "value")
GROUPS = {
    "Plain": {"conv1": (["conv1"], ["conv2"]), "conv2": (["conv2"], ["head"])},
    "Residual": {
        "stem": (["stem", "a2", "b2"], ["a1", "b1", "head"]),
        "a1": (["a1"], ["a2"]),
        "b1": (["b1"], ["b2"]),
    },
    "Identity": {"stem": (["stem", "outer"], ["inner", "head"]), "inner": (["inner"], ["outer"])},
    "Concatenated": {
        "left": (["left", "norm"], ["merge"]),
        "right": (["right", "norm"], ["merge"]),
        "merge": (["merge"], ["head"]),
    },
    "Depthwise": {"expand": (["expand", "filter"], ["project"]), "project": (["project"], ["head"])},
    "Perceptron": {"embed": (["embed", "fc2"], ["fc1", "head"]), "fc1": (["fc1"], ["fc2"])},
    "Flattened": {"conv": (["conv"], ["hidden"]), "hidden": (["hidden"], ["head"])},
    "Reused": {"stem": (["stem", "twice"], ["twice", "after"]), "after": (["after"], ["head"])},
    "Grouped": {"stem": (["stem"], ["grouped"]), "grouped": (["grouped"], ["last"]), "last": (["last"], ["head"])},
    "Sequence": {"conv1": (["conv1"], ["conv2"]), "conv2": (["conv2"], ["head"])},
    "Encoder": {
        "embed": (
            ["embed", "layer.self_attn.out_proj", "layer.linear2"],
            [*(f"layer.self_attn.{part}" for part in PARTS), "layer.linear1", "head"],
        ),
        "layer.self_attn.query": ([f"layer.self_attn.{part}" for part in PARTS], ["layer.self_attn.out_proj"]),
        "layer.linear1": (["layer.linear1"], ["layer.linear2"]),
    },
    "Crossed": {
        "attention.query": ([f"attention.{part}" for part in PARTS], ["attention.out_proj"]),
        "attention.out_proj": (["attention.out_proj"], ["head"]),
    },
}
OUTPUTS = "its channels are the network's outputs"
REFUSED = {
    "Plain": {"head": OUTPUTS},
    "Residual": {"head": OUTPUTS},
    "Identity": {"head": OUTPUTS},
    "Concatenated": {"head": OUTPUTS},
    "Depthwise": {"head": OUTPUTS},
    "Perceptron": {"head": OUTPUTS},
    "Flattened": {"head": OUTPUTS},
    "Reused": {"head": OUTPUTS},
    "Grouped": {"head": OUTPUTS},
    "Sequence": {"head": OUTPUTS},
    "Encoder": {"head": OUTPUTS},
    "Crossed": {"head": OUTPUTS},
}
BY_NAME = {kind.__name__: kind for kind in NETWORKS}
CUTS = [(name, leader) for name, groups in GROUPS.items() for leader in groups]
RECIPE = "filter_pruning(ratio=0.5)"


def banked(name):
    network = Network.of(build(BY_NAME[name]), images(4), name)
    return Bank(network, calibrate(network, labelled(images(), labels())))


def pruning(network, leader):
    return Plan(
        network.name,
        {layer.name: Recipe.parse(RECIPE if layer.name == leader else "identity") for layer in network.layers},
    )


@pytest.mark.parametrize("name", GROUPS)
def test_groups_and_refusals(name):
    model = build(BY_NAME[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    network = Network.of(model, images(4), name)
    found = {g.leader: ([s.module for s in g.producers], [s.module for s in g.consumers]) for g in network.groups}
    assert found == GROUPS[name]
    reasons = {layer.name: layer.uncut for layer in network.layers if layer.uncut is not None}
    assert reasons.keys() == REFUSED[name].keys()
    for layer, words in REFUSED[name].items():
        assert words in reasons[layer]
    assert all((layer.group is None) == (layer.uncut is not None) for layer in network.layers)
    assert {layer.name for layer in network.layers if layer.leads} == set(GROUPS[name])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert flags == [parameter.requires_grad for parameter in model.parameters()]


class OverSome(nn.Module):
    """A LayerNorm that looks at some channels only; the others become zero."""

    def __init__(self, norm, stays):
        super().__init__()
        self.norm, self.stays = norm, stays

    def forward(self, inputs):
        weight, bias = self.norm.weight[self.stays], self.norm.bias[self.stays]
        some = F.layer_norm(inputs[..., self.stays], self.stays.shape, weight, bias, self.norm.eps)
        return torch.zeros_like(inputs).index_copy(-1, self.stays, some)


@pytest.mark.parametrize(("name", "leader"), CUTS)
def test_a_cut_without_repair_equals_silence(name, leader):
    # White statistics turn the least-squares refit into plain removal.
    bank = banked(name)
    network = bank.network
    for statistics in bank.calibration.statistics.values():
        eye = torch.eye(statistics.covariance.shape[-1])
        statistics.covariance.copy_(eye.expand_as(statistics.covariance))
        statistics.mean.zero_()
    stitched = bank.stitch(pruning(network, leader), NONE)
    (index,) = [i for i, group in enumerate(network.groups) if group.leader == leader]
    group, keep = network.groups[index], bank.kept(bank.state(pruning(network, leader)))
    left = kept_count(group.channels * group.unit, 0.5, group.unit) // group.unit
    assert keep[index].numel() == left < group.channels
    silenced = {}
    for consumer, stays in cut(network.modules, network.groups, keep)[0].items():
        layer = copy.deepcopy(network.modules[consumer])
        blocks = layer.weight.detach().view(getattr(layer, "groups", 1), -1, *layer.weight.shape[1:])
        gone = torch.ones(len(blocks), blocks.shape[2], dtype=torch.bool)
        gone.view(-1)[stays] = False
        for block, lost in zip(blocks, gone, strict=True):
            block[:, lost] = 0.0
        silenced[consumer] = layer
    for count in group.counts:
        stays = torch.isin(count.root, keep[index]).nonzero().flatten()
        silenced[count.module] = OverSome(network.modules[count.module], stays)
    with torch.no_grad():
        expected = assemble(network.model, silenced)(images(16))
        actual = stitched.model(images(16))
        original = network.model(images(16))
    assert torch.allclose(actual, expected, atol=1e-4)
    assert not torch.allclose(original, expected, atol=1e-2)
    assert sum(p.numel() for p in stitched.model.parameters()) < sum(p.numel() for p in network.model.parameters())


@pytest.mark.parametrize(("name", "leader"), CUTS)
def test_a_cut_runs_with_repair_and_leaves_the_original_alone(name, leader):
    bank = banked(name)
    with torch.no_grad():
        before = bank.network.model(images(16))
        outputs = bank.stitch(pruning(bank.network, leader)).model(images(16))
        after = bank.network.model(images(16))
    assert bool(torch.isfinite(outputs).all())
    assert outputs.shape == before.shape
    assert torch.equal(before, after)


def test_all_groups_at_once():
    for name in GROUPS:
        bank = banked(name)
        recipes = {layer.name: Recipe.parse(RECIPE if layer.leads else "identity") for layer in bank.network.layers}
        with torch.no_grad():
            outputs = bank.stitch(Plan(name, recipes)).model(images(16))
        assert bool(torch.isfinite(outputs).all())


@pytest.mark.parametrize(
    ("name", "layer", "words"),
    [
        ("Identity", "outer", "'outer'.*its channels follow 'stem'"),
        ("Plain", "head", "'head'.*the network's outputs"),
        ("Residual", "b2", "'b2'.*its channels follow 'stem'"),
        ("Reused", "twice", "'twice'.*its channels follow 'stem'"),
    ],
)
def test_a_plan_cannot_prune_what_does_not_lead(name, layer, words):
    bank = banked(name)
    with pytest.raises(ConfigurationError, match=words):
        bank.stitch(pruning(bank.network, layer))


@pytest.mark.parametrize(("ratio", "heads"), [(0.0, 4), (0.25, 3), (0.5, 2), (0.75, 1), (0.99, 1)])
def test_heads_go_whole_and_one_stays(ratio, heads):
    bank = banked("Encoder")
    leader = "layer.self_attn.query"
    recipes = {layer.name: Recipe() for layer in bank.network.layers}
    recipes[leader] = Recipe.parse(f"filter_pruning(ratio={ratio})")
    attention = bank.stitch(Plan("Encoder", recipes)).model.layer.self_attn
    assert [getattr(attention, part).out_features for part in PARTS] == [4 * heads] * 3
    assert attention.out_proj.in_features == 4 * heads
    if 0 < heads < 4:  # rows of a head stay side by side
        rows = bank.network.modules[leader].weight.detach()
        starts = [int((rows == row).all(1).nonzero()) for row in attention.query.weight.detach()[::4]]
        assert all(start % 4 == 0 for start in starts)
        whole = torch.cat([rows[start : start + 4] for start in starts])
        assert torch.equal(attention.query.weight.detach(), whole)


def test_a_head_that_nothing_reads_goes_first():
    model = build(Crossed)
    model.attention.out_proj.weight.detach()[:, 8:16] = 0.0
    network = Network.of(model, images(4))
    bank = Bank(network, calibrate(network, labelled(images(), labels())))
    plan = pruning(network, "attention.query")
    (kept,) = bank.kept(bank.state(plan)).values()
    assert kept.tolist() == [0, 2]
    with torch.no_grad():
        assert torch.allclose(bank.stitch(plan).model(images()), model(images()), atol=1e-3)


class Fixed(nn.Module):
    """An attention that knows the width of a head, but splits its tokens into a fixed number of them."""

    def __init__(self):
        super().__init__()
        self.head_dim = 6
        self.query, self.key, self.value, self.out = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, images):
        tokens = images.transpose(1, 2).flatten(2)
        query, key, value = (
            layer(tokens).view(-1, 8, 4, 6).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = torch.softmax(query @ key.transpose(-2, -1), -1) @ value
        return self.out(mixed.transpose(1, 2).flatten(2)).mean(1)


def test_heads_that_cannot_be_cut_say_why():
    layers = Network.of(build(Crossed, heads=1), images(4)).layers
    assert [layer.uncut for layer in layers[:3]] == [
        "its channels only go together, as those of an attention with a single head"
    ] * 3
    layers = Network.of(build(Fixed), images(4)).layers
    assert all("does not run with fewer channels" in layer.uncut for layer in layers[:3])


def test_a_depthwise_convolution_that_multiplies_channels_is_refused():
    network = Network.of(build(Depthwise, multiplier=2), images(4))
    reasons = {layer.name: layer.uncut for layer in network.layers}
    assert "multiplies channels" in reasons["expand"]
    assert [group.leader for group in network.groups] == ["project"]


def test_a_network_that_cannot_be_traced_keeps_its_layers(monkeypatch):
    def failing(*_):
        raise RuntimeError("not here")

    monkeypatch.setattr(group_finding, "trace_channels", failing)
    network = Network.of(build(Plain), images(4))
    assert network.groups == ()
    assert all(layer.uncut == "its channels cannot be followed (RuntimeError: not here)" for layer in network.layers)

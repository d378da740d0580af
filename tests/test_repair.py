"""Repair by what the original puts out: moments, weights refitted to what layers really see, and shortcuts."""

import dataclasses

import pytest
import torch
from layer_kinds import KINDS, inputs_of, layer_of, prepared
from tiny_banks import banked, outputs_of, plan_of
from tiny_networks import Encoder, Identity, Perceptron, Plain, Residual, Sequence, build, images, labels
from torch import nn
from torch.nn import functional as F

from plywise.compressors.errors import ConfigurationError
from plywise.compressors.formats.weight_format import weight_format
from plywise.compressors.modules.assembly import assemble
from plywise.compressors.modules.layers import channels_last, weight_matrices, weight_of
from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank import least_squares
from plywise.env.bank.bank import Bank
from plywise.env.bank.least_squares import refit, rows_for
from plywise.env.bank.repair import NONE, Repair, make_repair, output_leaves, repair
from plywise.env.bank.repair_target import find_targets, places_of, rows_of
from plywise.env.calibration.calibration import calibrate, moments
from plywise.env.network.graph import Graph
from plywise.env.network.network import Network
from plywise.env.network.shortcuts import Shortcut, find_shortcuts
from plywise.env.task.samples import labelled


def run(model):
    return model(images())


# Moments


def divergence_of(bank, plan, *repair):
    return divergence(bank, bank.stitch(plan, *repair).model)


def divergence(bank, model):
    changed, original = outputs_of(model, images()), outputs_of(bank.network.model, images())
    return float((changed - original).square().mean() / original.var())


@pytest.mark.parametrize("kind", [Plain, Identity, Sequence])
def test_repair_helps_a_network_that_is_badly_disturbed(kind):
    bank = banked(kind)
    plan = plan_of(bank.network, "uniform_quantization(bits=2, scheme=affine)")
    assert divergence_of(bank, plan) < divergence_of(bank, plan, NONE)


def test_repair_hardly_touches_a_network_that_is_hardly_disturbed():
    bank = banked(Plain)
    plan = plan_of(bank.network, "uniform_quantization(bits=8)")
    assert divergence_of(bank, plan) < 2 * divergence_of(bank, plan, NONE) + 1e-6


def test_matched_layers_have_the_means_of_the_original():
    bank = banked(Plain)
    plan = plan_of(bank.network, "uniform_quantization(bits=3)")
    stitched = bank.stitch(plan)
    wanted = bank.calibration.outputs
    seen = {}
    for name, module in stitched.replaced.items():
        ((leaf, _),) = output_leaves(module, torch.arange(len(wanted[name].mean)))
        leaf.register_forward_hook(
            lambda leaf, _, outputs, name=name: seen.update({name: moments(outputs, isinstance(leaf, nn.Linear))})
        )
    outputs_of(stitched.model, images())
    assert seen.keys() == {"conv1", "conv2", "head"}
    for name, found in seen.items():
        assert torch.allclose(found.mean, wanted[name].mean, atol=5e-3)  # biases are bfloat16


def test_matching_keeps_weights_in_their_format():
    bank = banked(Plain)
    stitched = bank.stitch(plan_of(bank.network, "uniform_quantization(bits=2, scheme=affine)"))
    for module in stitched.replaced.values():
        fmt, weight = weight_format(module), module.weight.detach()
        assert torch.equal(fmt.decode(fmt.encode(weight)), weight)


def test_matching_leaves_a_fixed_point_where_it_is_and_yet_keeps_means():
    bank = banked(Plain)
    stitched = bank.stitch(plan_of(bank.network, "fixed_point(width=4)"))
    for module in stitched.replaced.values():
        assert weight_format(module).tensors()["scale"].tolist() == [2.0**-3]
    wanted = bank.calibration.outputs["conv1"].mean
    outputs = stitched.replaced["conv1"](images())
    assert torch.allclose(moments(outputs, False).mean, wanted, atol=5e-3)


def test_a_scaled_layer_is_scaled_back():
    network = Network.of(build(Plain), images(4))
    wanted = find_targets(network, images())
    model = build(Plain)
    folded = Network.of(model, images(4)).model
    with torch.no_grad():
        folded.conv2.weight *= 0.5
        folded.conv2.bias += 1.0
    moments = Repair(least_squares=False)
    repair(folded, run, {"conv2": wanted["conv2"]}, {"conv2": folded.conv2}, moments)
    assert torch.allclose(outputs_of(folded, images()), outputs_of(network.model, images()), atol=0.02)


def test_layers_behind_a_changed_one_make_up_for_it_and_those_before_stay():
    bank = banked(Plain)
    plan = plan_of(bank.network, conv2="uniform_quantization(bits=2, scheme=affine)")
    stitched = bank.stitch(plan)
    assert stitched.replaced.keys() == {"conv2", "head"}
    assert stitched.model.conv1 is bank.network.modules["conv1"]
    own, head = stitched.replaced["conv2"], bank.network.modules["head"]
    assert divergence_of(bank, plan) < divergence(bank, assemble(bank.network.model, {"conv2": own, "head": head}))
    assert bank.stitch(plan, NONE).replaced.keys() == {"conv2"}
    assert not bank.stitch(plan_of(bank.network)).replaced


def test_channels_without_any_spread_are_left_finite():
    model = build(Plain)
    with torch.no_grad():
        model.conv2.weight[:5] = 0.0
        model.norm2.weight[5:8] = 0.0
    network = Network.of(model, images(4))
    bank = Bank(network, calibrate(network, labelled(images(), labels())))
    for recipe in ("uniform_quantization(bits=2)", "low_rank(ratio=0.4) + magnitude_pruning"):
        outputs = outputs_of(bank.stitch(plan_of(network, conv2=recipe)).model, images())
        assert bool(torch.isfinite(outputs).all())


# Each part of it


BEHIND = {"conv1": "uniform_quantization(bits=2)", "conv2": "uniform_quantization(bits=3)"}


def test_each_part_does_what_it_says_and_no_more():
    bank = banked(Plain)
    plan = plan_of(bank.network, **BEHIND)
    bare = bank.stitch(plan, NONE)
    assert not Repair(means=False, deviations=False, least_squares=False)
    assert not NONE
    means = bank.stitch(plan, Repair(deviations=False, least_squares=False)).replaced
    for name, module in bare.replaced.items():
        (mine, _), (other, _) = (next(output_leaves(each, torch.arange(24))) for each in (means[name], module))
        assert torch.equal(weight_of(mine), weight_of(other))
    assert not torch.equal(means["conv2"].bias, bare.replaced["conv2"].bias)
    wanted = find_targets(bank.network, images())
    deviations = bank.stitch(plan, Repair(means=False, least_squares=False)).replaced["conv1"]
    found, before = (moments(outputs_of(each, images()), False) for each in (deviations, bare.replaced["conv1"]))
    assert torch.allclose(found.mean, before.mean, atol=5e-3)  # biases are bfloat16
    off = [(each.deviation / wanted["conv1"].moments.deviation).log().abs().mean() for each in (found, before)]
    assert off[0] < off[1] / 2
    refitted = bank.stitch(plan, Repair(means=False, deviations=False)).replaced["conv2"]
    assert not torch.equal(weight_of(refitted), weight_of(bare.replaced["conv2"]))


def test_least_squares_help_on_inputs_that_they_have_not_seen():
    gains = []
    for kind in (Plain, Identity, Residual, Sequence, Perceptron, Encoder):
        network = Network.of(build(kind), images(4), kind.__name__)
        bank = Bank(network, calibrate(network, labelled(images(512), labels(512))))
        texts = {layer.name: "uniform_quantization(bits=3)" for layer in network.layers}
        for layer in network.layers:
            if network.unsupported(layer.name, Recipe.parse("low_rank(ratio=0.4)")) is None:
                texts[layer.name] = "low_rank(ratio=0.4)"
        others, off = images(256, 9), []
        original = outputs_of(network.model, others)
        for refitted in (True, False):
            model = bank.stitch(plan_of(network, **texts), Repair(512, least_squares=refitted)).model
            off.append(float((outputs_of(model, others) - original).square().mean()))
        gains.append(off[0] / off[1])
    assert sorted(gains)[-2] < 1.0, gains  # on all but one of random weights
    assert sum(gains) / len(gains) < 0.95, gains


def test_parts_are_chosen_by_their_names():
    assert make_repair(()) == Repair() == make_repair(("means", "deviations", "least_squares"))
    assert not make_repair(("none",))
    assert make_repair(("means",)) == Repair(deviations=False, least_squares=False)
    for wrong, told in ((("mean",), "part of the repair 'mean'"), (("none", "means"), "stands alone"), (("",), "none")):
        with pytest.raises(ConfigurationError, match=told):
            make_repair(wrong)


# Least squares


REFITTED = [kind for kind in KINDS if kind != "embedding"]


def disturbed(kind, recipe=None):
    """Returns a layer, the inputs that it sees instead of others, and what its outputs lack, at all places."""
    layer, inputs, statistics = prepared(kind)
    last = channels_last(layer)
    generator = torch.Generator().manual_seed(5)
    wanted = outputs_of(layer, inputs)
    alongside = inputs.roll(1, -1 if last else 1)
    if "depthwise" in kind:  # which sees each channel alone
        alongside = inputs.square()
    seen = 0.8 * inputs + 0.3 * alongside + 0.1 * torch.randn(inputs.shape, generator=generator)
    if recipe is not None:
        layer = Recipe.parse(recipe).compress(layer, statistics)
    places = places_of(wanted, last, 4096)
    return layer, seen, rows_of(wanted, places, last), places, last


def spread(rows):
    return float(rows.var(0, correction=0).sum())


def lacking(layer, seen, wanted, places, last):
    return wanted - rows_of(outputs_of(layer, seen), places, last)


@pytest.mark.parametrize("kind", REFITTED)
def test_a_layer_of_any_kind_makes_up_for_what_it_sees_instead(kind):
    layer, seen, wanted, places, last = disturbed(kind)
    before = lacking(layer, seen, wanted, places, last)
    assert refit(layer, seen, before, spread(wanted), places)
    after = lacking(layer, seen, wanted, places, last)
    assert after.var(0).sum() < 0.7 * before.var(0).sum()
    looked_at = rows_for(layer)
    assert torch.allclose(after[:looked_at].mean(0), before[:looked_at].mean(0), atol=1e-4)


@pytest.mark.parametrize("kind", ["conv2d", "linear", "transposed", "depthwise"])
@pytest.mark.parametrize(
    "recipe",
    [
        "magnitude_pruning(sparsity=0.5)",
        "uniform_quantization(bits=4, scheme=affine)",
        "magnitude_pruning(sparsity=0.5) + codebook(bits=3)",
        "fixed_point(width=5)",
        "minifloat",
    ],
)
def test_zeros_and_formats_stay(kind, recipe):
    layer, seen, wanted, places, last = disturbed(kind, recipe)
    zeros, before = weight_of(layer) == 0, lacking(layer, seen, wanted, places, last)
    fmt = weight_format(layer)
    assert refit(layer, seen, before, spread(wanted), places)
    assert bool((weight_of(layer)[zeros] == 0).all())
    assert weight_format(layer) is fmt
    if fmt is not None:
        assert torch.equal(fmt.decode(fmt.encode(weight_of(layer))), weight_of(layer))
    assert lacking(layer, seen, wanted, places, last).var(0).sum() < before.var(0).sum()


def test_what_is_hardly_off_is_left_as_it_is():
    layer, inputs = layer_of("conv2d"), inputs_of("conv2d")
    wanted = outputs_of(layer, inputs)
    places = places_of(wanted, False, 4096)
    rows, weight = rows_of(wanted, places, False), layer.weight
    noise = 0.1 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    assert not refit(layer, inputs, noise * rows.std(0), spread(rows), places)
    assert layer.weight is weight
    assert refit(layer, inputs, 3 * noise * rows.std(0), spread(rows), places)


def test_inputs_that_are_no_numbers_change_no_weight():
    layer, seen, wanted, places, _ = disturbed("linear")
    before = weight_matrices(layer).clone()
    assert not refit(layer, seen * torch.inf, wanted, spread(wanted), places)
    assert torch.equal(weight_matrices(layer), before)


# Shortcuts


class Alongside(nn.Module):
    """Layers `one`, `two` and `three` of which something is made by `join`."""

    def __init__(self, join):
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(6, 6) for _ in range(3))
        self.relu = nn.ReLU()
        self.join = join

    def forward(self, inputs):
        return self.join(self, inputs)


def in_place(net, inputs):
    out = net.one(inputs)
    out += inputs
    return F.relu(out)


def into_the_shortcut(net, inputs):
    out = net.relu(net.one(inputs))
    out += net.two(out)
    return out


@pytest.mark.parametrize(
    ("join", "expected"),
    [
        (lambda net, x: net.one(x) + x, {"one": Shortcut("one", True)}),
        (lambda net, x: x + net.two(net.one(x)), {"two": Shortcut("one", True)}),
        (lambda net, x: net.two(net.one(x)) + net.three(x), {"three": Shortcut("two", False)}),
        (lambda net, x: net.two(net.relu(net.one(x))) + net.relu(x), {}),  # one module, two outputs
        (lambda net, x: F.relu(net.one(x)) + x, {}),
        (lambda net, x: 2 * net.one(x) + x, {}),
        (lambda net, x: torch.add(net.one(x), x, alpha=2), {}),
        (lambda net, x: net.one(x) + x.roll(1), {}),  # seen nowhere
        (lambda net, x: net.two(y := net.one(x)) + (y + x), {"two": None}),
        (in_place, {"one": Shortcut("one", True)}),
        (into_the_shortcut, {"two": Shortcut("relu", False)}),
    ],
)
def test_what_is_added_is_found_where_it_is_known_in_time(join, expected):
    found = find_shortcuts(
        Graph.of(Alongside(join).eval(), lambda net: net(torch.randn(4, 6))), {"one", "two", "three"}
    )
    assert found == {layer: place for layer, place in expected.items() if place is not None}


def test_a_shortcut_is_looked_for_outside_of_blocks_that_may_not_run_again():
    bank = banked(Encoder)
    assert bank.network.shortcuts == {
        "layer.self_attn.out_proj": Shortcut("embed", False),
        "layer.linear2": Shortcut("layer.norm1", False),
    }


def rows_beside(network):
    """Returns what is added to the outputs of the layer `outer` of `Identity`."""
    inner = network.modules["inner"]
    seen = []
    handle = inner.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    outputs_of(network.model, images())
    handle.remove()
    return rows_of(seen[0], places_of(seen[0], False, 4096), False)


def test_a_layer_makes_up_for_what_its_shortcut_lacks():
    network = Network.of(build(Identity), images(4))
    targets = find_targets(network, images())
    alone = targets["outer"].rows - rows_beside(network)
    with torch.no_grad():
        noise = torch.randn(16, 1, 1, 1, generator=torch.Generator().manual_seed(3))
        network.modules["stem"].weight.mul_(1.0 + 0.3 * noise)
    others = images(256, 9)
    original, off = outputs_of(build(Identity), others), []
    for shortcut in (targets["outer"], dataclasses.replace(targets["outer"], rows=alone, shortcut=None)):
        outer = build(Identity).outer
        model = assemble(network.model, {"outer": outer})
        repair(model, run, {"outer": shortcut}, {"outer": outer})
        off.append(float((outputs_of(model, others) - original).square().mean()))
    assert off[0] < 0.9 * off[1]


# What networks do


class Sized(nn.Module):
    """Says how large the outputs of a transposed convolution shall be."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        out = self.up(F.relu(self.down(images)), output_size=images.shape[2:])
        return self.head(F.relu(out).mean((2, 3)))


class TwoSizes(nn.Module):
    """A BatchNorm that cannot be merged runs twice, on images of two sizes."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        out = self.norm(self.two(F.relu(self.norm(self.one(images)))))
        return self.head(F.relu(out).mean((2, 3)))


@pytest.mark.parametrize("kind", [Sized, TwoSizes])
def test_calls_with_settings_and_second_runs_are_left_alone(kind):
    bank = banked(kind)
    recipe = Recipe.parse("filter_pruning(ratio=0.5)")
    plan = plan_of(bank.network, **{bank.network.layers[0].name: str(recipe)})
    if bank.network.unsupported(bank.network.layers[0].name, recipe) is not None:
        plan = plan_of(bank.network, "uniform_quantization(bits=2, scheme=affine)")
    outputs = [outputs_of(bank.stitch(plan, each).model, images()) for each in (Repair(), Repair(least_squares=False))]
    original = outputs_of(bank.network.model, images())
    off = [float((each - original).square().mean()) for each in outputs]
    assert off[0] < 1.1 * off[1]


def test_more_features_than_rows_give_the_same_as_fewer(monkeypatch):
    """Both ways to multiply by the covariance must lead to the same weights."""
    generator, found = torch.Generator().manual_seed(0), []
    inputs, missing = torch.randn(200, 199, generator=generator), torch.randn(200, 4, generator=generator)
    weight = torch.randn(4, 199, generator=generator)
    for padding in (0, 2):  # features that are always zero
        layer = nn.Linear(199 + padding, 4).eval()
        with torch.no_grad():
            layer.weight.copy_(F.pad(weight, (0, padding)))
        factor = (199 + padding) / 199  # of the mean variance, which the pull is in proportion to
        monkeypatch.setattr(least_squares, "RIDGE", 0.3 * factor)
        assert refit(layer, F.pad(inputs, (0, padding)), missing, 1.0, torch.arange(200))
        found.append(layer.weight.detach()[:, :199])
    assert torch.allclose(*found, atol=1e-4)


def test_without_moments_no_layer_gains_a_bias():
    bank = banked(Plain)
    with torch.no_grad():
        bank.network.modules["head"].bias = None
    plan = plan_of(bank.network, conv2="uniform_quantization(bits=8)")
    stitched = bank.stitch(plan, Repair(means=False, deviations=False))
    assert stitched.replaced["head"].bias is None

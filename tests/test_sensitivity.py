"""What recipes alone do to a network: probed for each kind, predicted in between."""

from collections import Counter

import numpy as np
import pytest
import torch
from tiny_networks import Identity, Plain, build, images, labels
from torch import nn

from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.bank import Bank
from plywise.env.calibration.calibration import calibrate
from plywise.env.network.menu import legal_recipes
from plywise.env.network.network import Network
from plywise.env.prices.sensitivity import PROBES, ProbeSamples, Probing, _line
from plywise.env.task.judge import Reference
from plywise.env.task.outputs import divergences
from plywise.env.task.samples import labelled

HARM = {"uniform_quantization": 1.0, "step_quantization": 0.1, "magnitude_pruning": 5.0, "low_rank": 30.0}
CUT, ROUNDED = 0.3, 0.02


class MadeUp:
    """Answers every probe by a rule, as if it had been stored: what a kind does for each unit of output error."""

    def __init__(self, errors):
        self.errors = errors
        self.asked = []

    def get(self, name):
        _, layer, text = name.removeprefix("key/").split("/")
        recipe = Recipe.parse(text)
        self.asked.append((layer, recipe))
        kept = [t.name for t in recipe.techniques if t.name not in ("filter_pruning", "activation_quantization")]
        harm = HARM.get(kept[0], 2.0) * self.errors[layer, text] if kept else 0.0
        return harm + CUT * ("filter_pruning" in text) + ROUNDED * ("activation" in text)

    def put(self, name, value):
        raise AssertionError(f"{name} was not found")


@pytest.fixture(scope="module", params=[Plain, Identity])
def studied(request):
    network = Network.of(build(request.param), images(4))
    bank = Bank(network, calibrate(network, labelled(images(), labels())))
    recipes = {layer.name: legal_recipes(layer, network.modules[layer.name]) for layer in network.layers}

    def found(store):
        some = labelled(images(8), labels()[:8])
        probed = ProbeSamples.of(some, Reference(network.model, network.forward))
        probing = Probing(bank, recipes, probed, store, "key")
        return {layer.name: probing.sensitivity(layer) for layer in network.layers}

    class Zero(MadeUp):
        def get(self, name):
            return 1.0

    errors = {
        (layer, str(recipe)): error
        for layer, sensitivity in found(Zero({})).items()
        for recipe, error in zip(recipes[layer], sensitivity.output_error, strict=True)
    }
    store = MadeUp(errors)
    return recipes, errors, store, found(store)


def test_kinds_that_harm_more_at_the_same_error_are_told_apart(studied):
    recipes, errors, _, found = studied
    kinds = Counter()
    for layer, sensitivity in found.items():
        for recipe, nats in zip(recipes[layer], sensitivity.divergence, strict=True):
            if len(recipe.techniques) and recipe.techniques[0].name in HARM:
                rounded = ROUNDED * ("activation" in str(recipe))
                wanted = HARM[recipe.techniques[0].name] * errors[layer, str(recipe)] + rounded
                assert nats == pytest.approx(wanted, rel=1e-3, abs=1e-6), (layer, recipe)
                kinds[recipe.techniques[0].name] += 1
    assert set(kinds) == set(HARM)


def test_a_cut_adds_what_it_does_alone(studied):
    recipes, errors, _, found = studied
    for layer, sensitivity in found.items():
        for recipe, nats in zip(recipes[layer], sensitivity.divergence, strict=True):
            if str(recipe).startswith("filter_pruning") and "activation" not in str(recipe):
                kept = recipe.techniques[1].name if len(recipe.techniques) > 1 else None
                wanted = CUT + (HARM[kept] * errors[layer, str(recipe)] if kept else 0.0)
                assert nats == pytest.approx(wanted, rel=1e-3)


def test_few_recipes_are_probed(studied):
    recipes, _, store, _ = studied
    probed = Counter(
        (layer, recipe.techniques[0].name)
        for layer, recipe in dict.fromkeys(store.asked)
        if "activation" not in str(recipe)
    )
    offered = Counter((layer, recipe.techniques[0].name) for layer in recipes for recipe in recipes[layer][1:])
    assert probed.keys() == offered.keys()
    assert all(count <= PROBES for count in probed.values())
    assert max(offered.values()) > 2 * PROBES


def probed_of(errors, power):
    """Returns which of one kind's recipes are probed, by their errors, where the divergence is a power of the error."""
    recipes = [Recipe.parse(f"uniform_quantization(bits={bits})") for bits in range(8, 8 - len(errors), -1)]
    known, asked = dict(zip(recipes, errors, strict=True)), []

    def probe(recipe):
        asked.append(known[recipe])
        return known[recipe] ** power

    line = _line(recipes, known, probe)
    for error in asked:
        assert line(error) == pytest.approx(error**power)
    return sorted(asked)


@pytest.mark.parametrize(
    ("errors", "power", "probed"),
    [
        ([], 1.0, []),
        ([0.1], 1.0, [0.1]),
        ([0.10, 0.12, 0.15], 1.0, [0.12]),  # alike
        ([0.01, 0.03, 0.1, 0.3], 1.0, [0.01, 0.3]),  # in proportion
        ([0.01, 0.03, 0.1, 0.3], 1.15, [0.01, 0.3]),
        ([0.01, 0.05, 0.09, 0.3], 1.5, [0.01, 0.05, 0.3]),  # far apart, and not in proportion
        ([0.01, 0.05, 0.09, 0.3], 0.5, [0.01, 0.05, 0.3]),
        ([0.10, 0.2, 0.5], 1.5, [0.1, 0.5]),  # near each other
    ],
)
def test_as_many_recipes_of_a_kind_are_probed_as_it_takes(errors, power, probed):
    assert probed_of(errors, power) == probed


def test_divergences_that_fall_while_errors_grow_are_looked_at_in_the_middle():
    found = {0.01: 0.5, 0.05: 0.3, 0.3: 0.1}
    recipes = {
        Recipe.parse(f"uniform_quantization(bits={bits})"): error for bits, error in zip((8, 7, 6), found, strict=True)
    }
    line = _line([*recipes], recipes, lambda recipe: found[recipes[recipe]])
    assert len(line.x) == 3
    assert [line(error) for error in found] == pytest.approx([0.5, 0.5, 0.5])


def test_what_changes_nothing_loses_nothing(studied):
    recipes, _, _, found = studied
    for layer, sensitivity in found.items():
        assert recipes[layer][0] == Recipe()
        assert sensitivity.divergence[0] == 0.0
        assert np.isfinite(sensitivity.divergence).all()


@pytest.fixture(scope="module")
def confident():
    """A thousand samples, most of which the original is sure of, and its logits."""
    generator = torch.Generator().manual_seed(0)
    lead = 20.0 * torch.rand(1000, 1, generator=generator) * torch.eye(10).repeat(100, 1)
    logits = lead + 0.5 * torch.randn(1000, 10, generator=generator)
    return labelled(torch.arange(1000.0)[:, None], torch.zeros(1000, dtype=torch.int64)), logits


class Told(nn.Module):
    """Puts out the logits of a place."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits
        self.eval()

    def forward(self, places):
        return self.logits[places[:, 0].long()]


def told(logits):
    return lambda batch: Told(logits)(batch[0])


def test_few_samples_tell_the_divergence_of_all(confident):
    samples, logits = confident
    probed = ProbeSamples.of(samples, told(logits), 100)
    assert len(probed.samples) == 100
    places = probed.samples.inputs[:, 0].long()
    assert (torch.cat(probed.outputs) == logits[places]).all()
    generator = torch.Generator().manual_seed(1)
    errors, plain = [], []
    for size in (0.1, 0.2, 0.4, 0.8) * 5:
        changed = logits + size * torch.randn(logits.shape, generator=generator)
        apart = divergences(changed, logits)
        errors.append(np.log(probed.divergence(Told(changed)) / float(apart.mean())))
        plain.append(np.log(float(apart[:100].mean() / apart.mean())))
    assert np.linalg.norm(errors) < 0.6 * np.linalg.norm(plain)
    assert abs(np.mean(errors)) < 0.1


def test_where_there_are_few_samples_all_are_probed(confident):
    samples, logits = confident
    few, changed = samples.first(60), logits[:60] + 1.0
    changed[:, 0] += 1.0
    probed = ProbeSamples.of(few, told(logits), 128)
    assert len(probed.samples) == 60
    expected = float(divergences(changed, logits[:60]).mean())
    assert probed.divergence(Told(changed)) == pytest.approx(expected, rel=1e-5)


def test_an_original_that_is_sure_of_everything_can_be_probed():
    logits = 1000.0 * torch.eye(10).repeat(30, 1)
    few = labelled(torch.arange(300.0)[:, None], torch.zeros(300, dtype=torch.int64))
    probed = ProbeSamples.of(few, told(logits), 50)
    assert len(probed.samples) == 50
    assert float(probed.weights.sum()) == pytest.approx(1.0)

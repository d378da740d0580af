"""What recipes alone do to a network: probed for each kind, foretold in between."""

from collections import Counter

import numpy as np
import pytest
from tiny_networks import Identity, Plain, build, images, labels

from plywise.compressors.recipe import Recipe
from plywise.env.bank import Bank
from plywise.env.calibration import calibrate
from plywise.env.menu import legal_recipes
from plywise.env.network import Network
from plywise.env.samples import Samples
from plywise.env.sensitivity import PROBES, sensitivities

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
    bank = Bank(network, calibrate(network, images(), labels()))
    recipes = {layer.name: legal_recipes(layer, network.modules[layer.name]) for layer in network.layers}

    def found(store):
        return dict(sensitivities(bank, recipes, Samples(images(8), labels()[:8]), store, "key"))

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
        for recipe, divergence in zip(recipes[layer], sensitivity.divergence, strict=True):
            if len(recipe.techniques) and recipe.techniques[0].name in HARM:
                rounded = ROUNDED * ("activation" in str(recipe))
                wanted = HARM[recipe.techniques[0].name] * errors[layer, str(recipe)] + rounded
                assert divergence == pytest.approx(wanted, rel=1e-3, abs=1e-6), (layer, recipe)
                kinds[recipe.techniques[0].name] += 1
    assert set(kinds) == set(HARM)


def test_a_cut_adds_what_it_does_alone(studied):
    recipes, errors, _, found = studied
    for layer, sensitivity in found.items():
        for recipe, divergence in zip(recipes[layer], sensitivity.divergence, strict=True):
            if str(recipe).startswith("filter_pruning") and "activation" not in str(recipe):
                kept = recipe.techniques[1].name if len(recipe.techniques) > 1 else None
                wanted = CUT + (HARM[kept] * errors[layer, str(recipe)] if kept else 0.0)
                assert divergence == pytest.approx(wanted, rel=1e-3)


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


def test_what_changes_nothing_loses_nothing(studied):
    recipes, _, _, found = studied
    for layer, sensitivity in found.items():
        assert recipes[layer][0] == Recipe()
        assert sensitivity.divergence[0] == 0.0
        assert np.isfinite(sensitivity.divergence).all()

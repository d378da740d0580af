"""Recipes: reading, writing, order, and what they refuse."""

import dataclasses

import pytest
import torch
from layer_kinds import prepared
from torch import nn

from plywise.compressors.errors import ConfigurationError, UnsupportedLayerError
from plywise.compressors.formats.weight_format import weight_format
from plywise.compressors.modules.static_quantized import StaticQuantized
from plywise.compressors.recipes.technique import Recipe, Stage
from plywise.env.network.menu import catalogue


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("identity", "identity"),
        ("  identity ", "identity"),
        ("activation_quantization", "activation_quantization"),
        ("activation_quantization(range=mse)", "activation_quantization"),
        ("activation_quantization(range='minmax')", "activation_quantization(range=minmax)"),
        ("uniform_quantization(bits=4)", "uniform_quantization(bits=4)"),
        ("uniform_quantization", "uniform_quantization(bits=8)"),
        ("uniform_quantization(scheme=affine, bits=2)", "uniform_quantization(bits=2, scheme=affine)"),
        ("filter_pruning(importance=l2)", "filter_pruning(ratio=0.5, importance=l2)"),
        ("uniform_quantization(bits=3) + low_rank(ratio=0.4)", "low_rank(ratio=0.4) + uniform_quantization(bits=3)"),
        ("identity + low_rank", "low_rank(ratio=0.5)"),
    ],
)
def test_written_form(text, written):
    recipe = Recipe.parse(text)
    assert str(recipe) == written
    assert Recipe.parse(written) == recipe


@pytest.mark.parametrize("recipe", catalogue(), ids=str)
def test_catalogue_reads_back(recipe):
    assert Recipe.parse(str(recipe)) == recipe
    assert hash(Recipe.parse(str(recipe))) == hash(recipe)


def test_catalogue_starts_with_identity_and_repeats_nothing():
    assert catalogue()[0] == Recipe()
    assert len(set(catalogue())) == len(catalogue())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "low_rank(",
        "low_rank(0.5)",
        "low_rank(**{'ratio': 0.5})",
        "low_rank(ratio=open('x'))",
        "low_rank(ratio=1 + 1)",
        "low_rank - identity",
        "low_rank; identity",
        "__import__('os').system('true')",
        "[].append",
        "lambda: 0",
        "low_rank\0",
        "(" * 5000,
        "low_rank(ratio=2)",
        "low_rnak",
        "low_rank(ratios=0.5)",
        "low_rank(ratio=0.5, ratio=0.6)",
        "low_rank(ratio=None)",
        "low_rank(ratio=[0.5])",
        "uniform_quantization(scheme={})",
        "uniform_quantization(scheme=[1])",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ConfigurationError):
        Recipe.parse(text)


def test_a_long_sum_is_refused_without_a_crash():
    with pytest.raises(ConfigurationError, match=r"^a text of 1099997 characters is not a recipe"):
        Recipe.parse(" + ".join(["low_rank"] * 100_000))


def test_misspelt_names_get_the_nearest():
    with pytest.raises(ConfigurationError, match="low_rank"):
        Recipe.parse("lowrank")


def test_one_technique_of_each_stage():
    with pytest.raises(ConfigurationError, match="filter_pruning and low_rank are both of stage STRUCTURE"):
        Recipe.parse("filter_pruning + low_rank")


def test_bits_and_stages():
    recipe = Recipe.parse("low_rank + uniform_quantization(bits=4) + activation_quantization")
    assert recipe.bits == 4
    assert Recipe.parse("low_rank").bits == 32
    assert recipe.at(Stage.SPARSITY) is None
    assert recipe.at(Stage.STRUCTURE).name == "low_rank"
    assert recipe.without(Stage.ACTIVATIONS) == Recipe.parse("low_rank + uniform_quantization(bits=4)")


def test_integer_kernels_need_few_bits():
    layer, _, statistics = prepared("conv2d")
    for text in ("activation_quantization", "minifloat(exponent=5, mantissa=4) + activation_quantization"):
        with pytest.raises(UnsupportedLayerError, match="at most 8 bits"):
            Recipe.parse(text).compress(layer, statistics)


def test_identity_gives_the_layer_back():
    layer, _, statistics = prepared("conv2d")
    assert Recipe().compress(layer, statistics) is layer


def test_a_full_recipe_is_a_chain_of_sparse_integer_layers():
    layer, inputs, statistics = prepared("conv2d")
    text = "low_rank + magnitude_pruning(sparsity=0.3) + uniform_quantization(bits=7) + activation_quantization"
    module = Recipe.parse(text).compress(layer, statistics)
    assert isinstance(module, nn.Sequential)
    for leaf in module:
        assert isinstance(leaf, StaticQuantized)
        assert weight_format(leaf.layer).bits == 7
        zeros = float((leaf.layer.weight == 0).double().mean())
        assert zeros >= 0.29
    with torch.no_grad():
        expected, actual = layer(inputs), module(inputs)
    assert float((actual - expected).square().mean()) < 0.7 * float(expected.var())


def test_recipes_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().techniques = ()

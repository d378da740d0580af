"""Schemes: recipes by name pattern and type, and recipes put together in Python."""

import re
from pathlib import Path

import pytest
import torch
from tiny_networks import Identity, Perceptron, Plain, build, images
from torch import nn
from torch.nn import functional as F

import plywise
from plywise.compressors.errors import ConfigurationError, FileFormatError, UnsupportedLayerError
from plywise.compressors.quantization.uniform_quantization import UniformQuantization
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.compressors.sparsity.global_pruning import global_threshold_plan
from plywise.compressors.sparsity.magnitude_pruning import MagnitudePruning
from plywise.compressors.structure.low_rank import LowRank
from plywise.env.network.network import Network
from plywise.env.network.scheme import Scheme
from plywise.experiments.networks.lenet import DigitsLeNet

FOUR, TWO = "uniform_quantization(bits=4)", "uniform_quantization(bits=2)"


class Upscaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up, self.head = nn.Conv2d(3, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2), nn.Linear(8, 5)

    def forward(self, inputs):
        return self.head(F.relu(self.up(F.relu(self.down(inputs)))).mean((2, 3)))


def network(kind=Plain):
    return Network.of(build(kind), images(4), kind.__name__)


def recipes(given, kind=Plain):
    return {name: str(recipe) for name, recipe in Scheme.of(given).on(network(kind))[0].items()}


# Which recipe a layer gets


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"*": FOUR}, [FOUR, FOUR, FOUR]),
        ({"conv*": FOUR}, [FOUR, FOUR, "identity"]),
        ({"conv[2-9]": FOUR}, ["identity", FOUR, "identity"]),
        ({"type:Linear": FOUR}, ["identity", "identity", FOUR]),
        ({"*": FOUR, "type:Conv2d": TWO}, [TWO, TWO, FOUR]),
        ({"type:Conv2d": TWO, "*": FOUR}, [FOUR, FOUR, FOUR]),
        ({"conv1": TWO, "*": FOUR}, [TWO, FOUR, FOUR]),
        ({"*": FOUR, "head": "identity"}, [FOUR, FOUR, "identity"]),
        ({"conv1": TWO, "conv2": FOUR, "head": "identity"}, [TWO, FOUR, "identity"]),
    ],
)
def test_own_name_beats_patterns_and_later_beats_earlier(given, expected):
    assert recipes(given) == dict(zip(("conv1", "conv2", "head"), expected, strict=True))


def test_layers_keep_the_order_of_the_walk():
    assert list(recipes({"head": FOUR, "conv*": TWO})) == ["conv1", "conv2", "head"]


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"layer3.*": FOUR}, Plain, r"'layer3\.\*' fits no layer of Plain; the nearest are .*head"),
        ({"cnv*": FOUR}, Plain, "'cnv[*]' fits no layer of Plain; the nearest are conv"),
        ({"*": FOUR, "convl": TWO}, Plain, "'convl' fits no layer of Plain; the nearest are conv"),
        ({"type:Conv1d": FOUR}, Plain, "'type:Conv1d' fits no layer of Plain; its layers are of type Conv2d, Linear"),
        (
            {"*": FOUR, "norm": TWO},
            Perceptron,
            "'norm' cannot be compressed: LayerNorm: no technique for this kind of layer",
        ),
        ({"conv1": FOUR}, Plain, "no recipe for layer 'conv2'"),
        ({}, Plain, "no recipe for layer 'conv1'"),
    ],
)
def test_what_fits_no_layer_is_told_with_the_nearest(given, kind, said):
    with pytest.raises(ConfigurationError, match=said):
        recipes(given, kind)


def test_layers_that_cannot_take_a_patterns_recipe_stay_as_they_are_and_are_told():
    plan, refused = Scheme.of({"*": "filter_pruning(ratio=0.5)"}).on(network(Identity))
    assert {name for name, recipe in plan.items() if recipe.techniques} == {"stem", "inner"}
    assert set(refused) == {"outer", "head"}
    assert refused["outer"].startswith("left as it is, '*' does not fit it: filter_pruning: its channels follow 'stem'")
    assert Scheme.of({"*": "filter_pruning", "outer": FOUR, "head": FOUR}).on(network(Identity))[1] == {}


def test_a_layer_takes_what_it_can_of_a_patterns_recipe():
    plan, refused = Scheme.of({"*": f"filter_pruning(ratio=0.5) + {FOUR} + activation_quantization"}).on(
        network(Upscaled)
    )
    assert str(plan["up"]) == f"filter_pruning(ratio=0.5) + {FOUR}"
    assert refused["up"].startswith(f"given only {plan['up']}, '*' does not fit it: activation_quantization: ")
    assert str(plan["head"]) == f"{FOUR} + activation_quantization"
    assert refused["head"].endswith("filter_pruning: its channels are the network's outputs")
    assert "down" not in refused


@pytest.mark.parametrize("given", [{"*": FOUR, "head": "nm_sparsity + activation_quantization"}])
def test_a_layer_named_itself_must_take_its_recipe(given):
    with pytest.raises(UnsupportedLayerError, match=r"layer 'head' cannot take .*: .*; choose another"):
        recipes(given)


# As a file


def test_reads_back_what_it_wrote(tmp_path):
    scheme = Scheme.of({"*": FOUR, "type:Linear": TWO, "conv1": "identity"})
    scheme.save(tmp_path / "scheme.yaml")
    assert (tmp_path / "scheme.yaml").read_text().splitlines()[2:] == [
        "patterns:",
        f"  '*': {FOUR}",
        f"  type:Linear: {TWO}",
        "layers:",
        "  conv1: identity",
    ]
    loaded = Scheme.load(tmp_path / "scheme.yaml")
    assert loaded == scheme
    assert list(loaded.recipes) == list(scheme.recipes)


def test_a_plan_is_a_scheme_of_names_only(tmp_path):
    plan = Scheme.of({"*": FOUR}).on(network())[0]
    plan.save(tmp_path / "plan.yaml")
    assert Scheme.load(tmp_path / "plan.yaml").on(network()) == (plan, {})
    assert Plan.load(tmp_path / "plan.yaml") == plan


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("patterns: {'*': low_rnk}", ConfigurationError, r"scheme.yaml, pattern \*: unknown technique 'low_rnk'"),
        ("patterns: {'*': 4}", ConfigurationError, r"pattern \*: a recipe is a text"),
        ("patterns: ['*']", FileFormatError, "is not a plan"),
        ("patterns: {a*: low_rank}\nlayers: [a]", FileFormatError, "is not a plan"),
        ("pattern: {'*': low_rank}\nlayers: {a: low_rank}", ConfigurationError, "Did you mean 'patterns'"),
        ("layers: {'a*': low_rank}", ConfigurationError, "write it under 'patterns'"),
        ("patterns: {a: low_rank}\nlayers: {a: low_rank}", ConfigurationError, "under 'patterns' and under 'layers'"),
        ("patterns: {'*': low_rank, '*': identity}", FileFormatError, "is given twice"),
    ],
)
def test_other_files_are_refused(tmp_path, text, error, said):
    (tmp_path / "scheme.yaml").write_text(f"plywise: plan/1\n{text}\n")
    with pytest.raises(error, match=said):
        Scheme.load(tmp_path / "scheme.yaml")


def test_a_file_with_patterns_is_no_plan_yet(tmp_path):
    Scheme.of({"*": FOUR}).save(tmp_path / "scheme.yaml")
    with pytest.raises(FileFormatError, match="load it as a Scheme"):
        Plan.load(tmp_path / "scheme.yaml")


# In Python


def test_techniques_add_up_to_recipes_in_the_order_of_their_stages():
    expected = Recipe.parse("low_rank(ratio=0.4) + magnitude_pruning(sparsity=0.5) + uniform_quantization(bits=4)")
    rank, zeros, bits = LowRank(0.4), MagnitudePruning(0.5), UniformQuantization(bits=4)
    assert rank + zeros + bits == expected
    assert bits + (zeros + rank) == expected
    assert Recipe() + bits == Recipe.of(bits) == Recipe.of(FOUR) == Recipe.of(Recipe.parse(FOUR))
    with pytest.raises(ConfigurationError, match="keep one of them"):
        bits + bits
    with pytest.raises(TypeError):
        bits + 4


# The examples of the page on plans


def example(language, part):
    """Returns the one block of a language on the page that holds a part."""
    text = (Path(__file__).parents[1] / "docs" / "plans.md").read_text(encoding="utf-8")
    (found,) = (block for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if part in block)
    return found


def test_the_scheme_in_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plywise, "compress", lambda *_, plan, **__: Scheme.load(Path(plan)))
    names = {"plywise": plywise}
    exec(example("python", "Scheme.of"), names)
    assert names["report"] == names["scheme"]
    plan, refused = names["scheme"].on(Network.of(DigitsLeNet(), torch.zeros(2, 1, 8, 8)))
    pruned, kept = "filter_pruning(ratio=0.25) + uniform_quantization(bits=4)", FOUR
    assert list(map(str, plan.values())) == [pruned, pruned, kept, kept, kept]
    assert not refused


def test_the_scheme_in_yaml(tmp_path):
    (tmp_path / "scheme.yaml").write_text(example("yaml", "layers:"))
    scheme = Scheme.load(tmp_path / "scheme.yaml")
    assert list(scheme.recipes) == ["*", "layer3.*", "type:Linear", "conv1"]


def test_the_scheme_of_several_files(write, tmp_path):
    write("base.yaml", "patterns: {'conv*': identity}")
    (tmp_path / "mine.yaml").write_text(example("yaml", "import:"))
    assert texts(tmp_path / "mine.yaml") == {
        "conv*": "identity",
        "*": "low_rank(ratio=0.4) + uniform_quantization(bits=6)",
        "layer3.*": "low_rank(ratio=0.4) + uniform_quantization(bits=4)",
        "type:Linear": "low_rank(ratio=0.4) + codebook(bits=4)",
    }


def test_one_threshold_over_the_network_goes_with_other_techniques():
    model = build(Plain)
    found = global_threshold_plan(dict(model.named_modules()), density=0.3)
    scheme = Scheme.of({name: recipe + UniformQuantization(bits=4) for name, recipe in found.items()})
    plan, _ = scheme.on(network())
    assert len({recipe.techniques[0].sparsity for recipe in plan.values()}) == 3
    assert all(recipe.bits == 4 for recipe in plan.values())


# Put together from files


@pytest.fixture
def write(tmp_path):
    """Writes a file of a scheme and returns its path."""

    def written(name, text):
        (tmp_path / name).write_text(f"plywise: plan/1\n{text}\n")
        return tmp_path / name

    return written


def texts(*paths):
    return {name: str(recipe) for name, recipe in Scheme.load(*paths).recipes.items()}


def test_later_files_win_name_by_name_and_keep_the_order(write):
    write("base.yaml", f"network: base\npatterns: {{'*': {FOUR}, 'conv*': {TWO}}}\nlayers: {{head: identity}}")
    mine = write("mine.yaml", f"import: base.yaml\npatterns: {{'*': low_rank, head: {TWO}}}")
    expected = {"*": "low_rank(ratio=0.5)", "conv*": TWO, "head": TWO}
    assert texts(mine) == expected
    assert Scheme.load(mine).network == "base"
    last = write("last.yaml", "layers: {conv1: identity}")
    assert texts(mine, last) == {**expected, "conv1": "identity"}
    assert list(texts(mine, last)) == ["*", "conv*", "head", "conv1"]


def test_a_file_that_two_import_does_not_undo_what_the_first_changes(write):
    write("base.yaml", f"patterns: {{'*': {FOUR}}}")
    write("a.yaml", f"import: [base.yaml]\npatterns: {{'*': {TWO}}}")
    write("b.yaml", "import: [base.yaml]\npatterns: {head: identity}")
    assert texts(write("both.yaml", "import: [a.yaml, b.yaml]")) == {"*": TWO, "head": "identity"}


def test_imports_are_seen_from_the_file_that_imports(write, tmp_path):
    (tmp_path / "inner").mkdir()
    write("inner/base.yaml", "import: more.yaml")
    write("inner/more.yaml", f"patterns: {{'*': {FOUR}}}")
    assert texts(write("mine.yaml", "import: inner/base.yaml")) == {"*": FOUR}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("light", f"low_rank(ratio=0.4) + {FOUR}"),
        ("light(bits=2)", f"low_rank(ratio=0.4) + {TWO}"),
        ("light + codebook(bits=3)", "low_rank(ratio=0.4) + codebook(bits=3)"),
        ("small(ratio=0.2)", "low_rank(ratio=0.2) + magnitude_pruning(sparsity=0.5) + uniform_quantization(bits=3)"),
    ],
)
def test_named_recipes_are_reused_and_varied(write, text, expected):
    recipes = f"light: low_rank(ratio=0.4) + {FOUR}, small: light(bits=3) + magnitude_pruning(sparsity=0.5)"
    assert texts(write("mine.yaml", f"recipes: {{{recipes}}}\npatterns: {{'*': {text}}}")) == {"*": expected}


def test_a_later_file_changes_a_named_recipe_wherever_it_is_used(write):
    base = write("base.yaml", f"recipes: {{light: {FOUR}, small: light + low_rank}}\npatterns: {{'*': small}}")
    assert texts(base, write("mine.yaml", f"recipes: {{light: {TWO}}}")) == {"*": f"low_rank(ratio=0.5) + {TWO}"}


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("import: nowhere.yaml", FileFormatError, r"nowhere.yaml, which .*mine.yaml imports, does not exist"),
        ("import: mine.yaml", FileFormatError, "in a circle: mine.yaml -> mine.yaml; leave one import out"),
        ("import: round.yaml", FileFormatError, "in a circle: mine.yaml -> round.yaml -> mine.yaml"),
        ("import: [4]", FileFormatError, "'import' takes a file or a list of files"),
        ("recipes: {light: low_rank}", FileFormatError, "gives no layer a recipe"),
        ("recipes: {a: b, b: a}\nlayers: {conv1: a}", ConfigurationError, "mine.yaml, recipe b: .*circle: a -> b -> a"),
        ("recipes: {low_rank: identity}\nlayers: {a: low_rank}", ConfigurationError, "is a technique's name already"),
        ("recipes: {2x: low_rank}\nlayers: {a: low_rank}", ConfigurationError, "a recipe's name has letters"),
        ("recipes: {light: low_rnk}\nlayers: {a: identity}", ConfigurationError, "recipe light: unknown technique"),
        ("recipes: {light: low_rank}\nlayers: {a: ligt}", ConfigurationError, "layer a: .*Did you mean 'light'"),
        (
            "recipes: {light: low_rank}\nlayers: {a: light(bits=2)}",
            ConfigurationError,
            "unknown setting of light 'bits'",
        ),
        (
            "recipes: {one: low_rank, two: filter_pruning}\nlayers: {a: one + two}",
            ConfigurationError,
            "layer a: low_rank and filter_pruning are both of stage STRUCTURE",
        ),
        (
            "recipes: {light: dynamic_fixed_point + activation_quantization}\nlayers: {a: light(width=6)}",
            ConfigurationError,
            r"both have width; write .* light \+ dynamic_fixed_point\(width=6\)",
        ),
    ],
)
def test_what_does_not_fit_together_is_told(write, text, error, said):
    write("round.yaml", "import: mine.yaml")
    with pytest.raises(error, match=said):
        Scheme.load(write("mine.yaml", text))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"*": FOUR, "conv*": TWO}, {}),
        ({"conv*": TWO, "*": FOUR}, {"conv*": ["*"]}),
        ({"type:Linear": FOUR, "*": TWO, "head": "identity"}, {"type:Linear": ["head"]}),
        ({"*": FOUR, "conv*": TWO, "conv1": FOUR, "type:Linear": TWO}, {"*": ["conv*", "conv1", "type:Linear"]}),
    ],
)
def test_patterns_that_decide_no_layer_are_named_with_what_overrides_them(given, expected):
    found = Scheme.of(given).overridden(network())
    assert {name: sorted(by) for name, by in found.items()} == {name: sorted(by) for name, by in expected.items()}

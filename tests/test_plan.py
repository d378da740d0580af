"""Plans: YAML that people edit."""

import os

import pytest

from plywise.compressors.errors import ConfigurationError, FileFormatError
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe

PLAN = Plan(
    "tiny",
    {
        "conv1": Recipe.parse("filter_pruning(ratio=0.25) + uniform_quantization(bits=4)"),
        "layer1.0.conv2": Recipe(),
        "head": Recipe.parse("uniform_quantization(bits=2, scheme=affine)"),
    },
)


def test_reads_back_what_it_wrote(tmp_path):
    PLAN.save(tmp_path / "plan.yaml")
    loaded = Plan.load(tmp_path / "plan.yaml")
    assert loaded == PLAN
    assert list(loaded) == list(PLAN)
    assert os.listdir(tmp_path) == ["plan.yaml"]


def test_looks_as_documented(tmp_path):
    PLAN.save(tmp_path / "plan.yaml")
    assert (tmp_path / "plan.yaml").read_text().splitlines() == [
        "plywise: plan/1",
        "network: tiny",
        "layers:",
        "  conv1: filter_pruning(ratio=0.25) + uniform_quantization(bits=4)",
        "  layer1.0.conv2: identity",
        "  head: uniform_quantization(bits=2, scheme=affine)",
    ]


def test_comments_stand_behind_layers_and_are_no_part_of_the_plan(tmp_path):
    PLAN.save(tmp_path / "plan.yaml", comments={"head": "bytes 3.0 %"}, heading="two\nlines")
    lines = (tmp_path / "plan.yaml").read_text().splitlines()
    assert lines[:3] == ["# two", "# lines", "plywise: plan/1"]
    assert lines[-1] == "  head: uniform_quantization(bits=2, scheme=affine)  # bytes 3.0 %"
    assert Plan.load(tmp_path / "plan.yaml") == PLAN


def test_long_names_and_recipes_stay_whole(tmp_path):
    long = Plan(
        "tiny", {f"{'block.' * 40}conv": Recipe.parse("filter_pruning(ratio=0.25) + uniform_quantization(bits=4)")}
    )
    long.save(tmp_path / "plan.yaml", comments={next(iter(long)): "bytes 3.0 %"})
    assert Plan.load(tmp_path / "plan.yaml") == long


def test_names_that_look_like_numbers_stay_names(tmp_path):
    plan = Plan("tiny", {name: Recipe() for name in ("0", "1.5", "yes", "null", "1e3")})
    plan.save(tmp_path / "plan.yaml")
    assert Plan.load(tmp_path / "plan.yaml") == plan


def test_numbers_written_by_hand_are_names(tmp_path):
    (tmp_path / "plan.yaml").write_text("plywise: plan/1\nlayers: {0: identity, 2: low_rank}\n")
    assert list(Plan.load(tmp_path / "plan.yaml")) == ["0", "2"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "42",
        "layers: {}",
        "plywise: plan/2\nlayers: {}",
        "plywise: plan/1",
        "plywise: plan/1\nlayers: [conv1]",
        "plywise: plan/1\nlayers: {conv1: identity",
        "plywise: plan/1\nlayers: !!python/object/apply:os.system ['false']",
        "[" * 5_000,
        "\x00",
    ],
)
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(FileFormatError, match=r"plan\.yaml"):
        Plan.load(tmp_path / "plan.yaml")


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(FileFormatError):
        Plan.load(tmp_path / "plan.yaml")
    (tmp_path / "plan.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(FileFormatError):
        Plan.load(tmp_path / "plan.yaml")


def test_a_wrong_recipe_names_its_layer(tmp_path):
    (tmp_path / "plan.yaml").write_text("plywise: plan/1\nlayers: {conv1: identity, head: low_rnak}\n")
    with pytest.raises(ConfigurationError, match=r"plan\.yaml, layer head: unknown technique 'low_rnak'"):
        Plan.load(tmp_path / "plan.yaml")


@pytest.mark.parametrize("value", ["4", "[identity]", "{low_rank: 0.5}", ""])
def test_a_recipe_must_be_a_text(tmp_path, value):
    (tmp_path / "plan.yaml").write_text(f"plywise: plan/1\nlayers: {{conv1: {value}}}\n")
    with pytest.raises(ConfigurationError, match="layer conv1: a recipe is a text"):
        Plan.load(tmp_path / "plan.yaml")


def test_a_file_that_repeats_itself_does_not_fill_the_memory(tmp_path):
    lines = ["plywise: plan/1", "a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "plan.yaml").write_text("\n".join([*lines, "layers: {conv1: *a11}"]))
    with pytest.raises(ConfigurationError, match="not a list"):
        Plan.load(tmp_path / "plan.yaml")


def test_check_names_the_first_mismatch():
    PLAN.check(("conv1", "layer1.0.conv2", "head"))
    with pytest.raises(ConfigurationError, match="no recipe for layer 'tail'"):
        PLAN.check(("conv1", "tail"))
    with pytest.raises(ConfigurationError, match=r"names layer 'layer1.0.conv2'.*its layers are conv1, head"):
        PLAN.check(("conv1", "head"))

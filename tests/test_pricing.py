"""The price table of tiny networks on a made-up device, and what it promises to everyone who reads it."""

import math

import numpy as np
import pytest
import torch
from made_up_device import FakeLatency
from tiny_networks import NETWORKS, Depthwise, Encoder, Identity, Perceptron, Plain, build, images, labels

from plywise.agent.search.knapsack import Knapsack
from plywise.agent.search.random_search import RandomSearch
from plywise.compressors.errors import DataError, FileFormatError, ModelError
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe, Stage
from plywise.compressors.structure.filter_pruning import FilterPruning
from plywise.env.costs.chains import realised_chain
from plywise.env.costs.energy import energy_mj
from plywise.env.exact_evaluator import ExactEvaluator
from plywise.env.network.menu import is_uniform, legal_recipes, undominated
from plywise.env.network.network import Network
from plywise.env.network.operation import operations
from plywise.env.prices.price_file import load_prices, save_prices
from plywise.env.prices.prices import LAYER_FEATURES, METRICS, RECIPE_FEATURES
from plywise.env.prices.pricing import KEEP_LEVELS, Pricer
from plywise.env.score.demand import Demand
from plywise.env.storage.cache import CacheDamageWarning
from plywise.env.storage.result_store import ResultStore
from plywise.env.subject import Subject
from plywise.env.task.samples import labelled, model_digest


def samples(count, seed):
    return labelled(images(count, seed), labels(count, seed))


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Subjects by network, studied once, in a cache of their own."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLYWISE_CACHE", str(tmp_path_factory.mktemp("cache")))

        def subject(kind):
            if kind not in found:
                found[kind] = Subject(build(kind), samples(48, 1), samples(64, 3), kind.__name__, FakeLatency())
            return found[kind]

        yield subject


PRICED = (Identity, Depthwise, Perceptron, Encoder)


@pytest.mark.parametrize("kind", PRICED)
def test_shapes_and_ranges(subjects, kind):
    table = subjects(kind).price()
    count, slots, levels = table.num_layers, table.num_slots, len(KEEP_LEVELS)
    assert table.cost.shape == (len(METRICS), count, slots, levels, levels)
    assert table.recipe_features.shape == (count, slots, len(RECIPE_FEATURES))
    assert table.layer_features.shape == (count, len(LAYER_FEATURES))
    for name in ("cost", "drop", "output_error", "in_share", "recipe_features", "layer_features", "fixed", "original"):
        assert np.isfinite(getattr(table, name)).all(), name
    assert (table.cost[:, table.legal] > 0).all()
    assert (table.drop >= 0).all()
    assert (table.original > 0).all()
    assert table.keep_levels.tolist() == list(KEEP_LEVELS)
    assert 0 <= table.chance <= table.accuracy <= 100
    assert table.samples == len(subjects(kind).validation)
    written = [[Recipe.parse(text).at(Stage.ACTIVATIONS) is not None for text in menu] for menu in table.recipes]
    assert [row[: len(menu)].tolist() for row, menu in zip(table.integers, written, strict=True)] == written
    assert not table.integers[~table.legal].any()
    rounded = table.recipe_features[:, :, RECIPE_FEATURES.index("activation_bits")] == 0.25
    assert (rounded == table.integers).all()


@pytest.mark.parametrize("kind", PRICED)
def test_first_slot_is_identity_and_loses_nothing(subjects, kind):
    table = subjects(kind).price()
    assert all(slots[0] == "identity" for slots in table.recipes)
    assert table.legal[:, 0].all()
    assert (table.drop[:, 0] == 0).all()
    assert (table.output_error[:, 0] == 0).all()
    assert [len(slots) for slots in table.recipes] == table.legal.sum(1).tolist()
    for layer, slots in enumerate(table.recipes):
        assert table.legal[layer, : len(slots)].all()
        assert len(set(slots)) == len(slots)
        assert all(str(Recipe.parse(slot)) == slot for slot in slots)


@pytest.mark.parametrize("kind", PRICED)
def test_only_leaders_prune_and_their_cut_is_in_the_cost(subjects, kind):
    table = subjects(kind).price()
    assert (table.recipe_level[~table.leads] == 0).all()
    prunes = table.recipe_level > 0
    assert prunes.any()
    cut = table.cost[:, prunes]  # (metrics, pruning slots, in, out)
    assert (cut == cut[..., :1]).all()
    for layer, slot in zip(*np.nonzero(prunes), strict=True):
        assert table.recipes[layer][slot].startswith(
            f"filter_pruning(ratio={1 - KEEP_LEVELS[table.recipe_level[layer, slot]]}"
        )


@pytest.mark.parametrize("kind", PRICED)
def test_fewer_channels_never_cost_more(subjects, kind):
    cost = subjects(kind).price().cost
    assert (np.diff(cost, axis=3) <= 1e-6 * cost[:, :, :, 1:]).all()
    assert (np.diff(cost, axis=4) <= 1e-6 * cost[..., 1:]).all()


@pytest.mark.parametrize("kind", PRICED)
def test_groups_of_the_table_are_those_of_the_network(subjects, kind):
    subject = subjects(kind)
    table, network = subject.price(), subject.network
    assert (table.in_share >= 0).all()
    assert (table.in_share.sum(1) <= 1 + 1e-6).all()
    for row, layer in enumerate(network.layers):
        assert table.out_group[row] == (-1 if layer.group is None else layer.group)
        assert table.leads[row] == layer.leads
        assert set(np.flatnonzero(table.in_share[row])) >= set(layer.reads)


@pytest.mark.parametrize("kind", PRICED)
@pytest.mark.parametrize("level", range(len(KEEP_LEVELS)))
def test_prices_are_those_of_what_really_runs(subjects, kind, level):
    """Every group at one keep level, every other layer at each of its slots: costs are those of the stitched layer."""
    subject = subjects(kind)
    table, network = subject.price(), subject.network
    prune = f"filter_pruning(ratio={1 - KEEP_LEVELS[level]})" if level else "identity"
    plan = Plan("", {layer.name: Recipe.parse(prune if layer.leads else "identity") for layer in network.layers})
    state = subject.bank.state(plan)
    for row, layer in enumerate(network.layers):
        for slot, text in enumerate(table.recipes[row]):
            recipe = Recipe.parse(text)
            if layer.leads and table.recipe_level[row, slot] != level:
                continue
            module = subject.bank.entry(layer.name, recipe, state)
            in_level = level if table.in_share[row].any() else 0
            out_level = level if table.out_group[row] >= 0 else 0
            chain = realised_chain(module, layer)
            assert len(operations(module, chain[0].input_shape)) == len(chain)
            expected = FakeLatency().milliseconds([chain])[0]
            priced, what = table.cost[:, row, slot, in_level, out_level], (layer.name, text)
            assert priced[1] == pytest.approx(expected, rel=1e-4), what
            energy = energy_mj(chain, subject.latency.device.energies)
            assert priced[2] == pytest.approx(energy, rel=1e-5), what


@pytest.mark.parametrize("kind", PRICED)
def test_a_format_of_the_file_saves_no_energy_without_integer_kernels(subjects, kind):
    """Few bits and zeros are decoded when the file is loaded: an inference reads floats."""
    table, seen = subjects(kind).price(), 0
    for row, slots in enumerate(table.recipes):
        for slot, text in enumerate(slots):
            stages = {technique.stage for technique in Recipe.parse(text).techniques}
            if stages and stages <= {Stage.SPARSITY, Stage.WEIGHTS}:
                assert table.cost[2, row, slot, 0, 0] >= table.cost[2, row, 0, 0, 0], text
                seen += 1
    assert seen > 10


def test_storage_of_the_table_is_near_that_of_real_modules(subjects):
    subject = subjects(Identity)
    table, network = subject.price(), subject.network
    for slot in range(min(map(len, table.recipes))):
        actions = [slot if not table.recipe_level[row, slot] else 0 for row in range(table.num_layers)]
        expected = table.fixed[0] + sum(table.cost[0, row, action, 0, 0] for row, action in enumerate(actions))
        measured = subject.cost(subject.bank.stitch(subject.plan(actions)))
        assert expected == pytest.approx(measured[0], rel=0.1)
    assert network.name == table.network


def test_the_original_costs_what_its_layers_cost(subjects):
    table = subjects(Identity).price()
    latency = table.cost[1, :, 0, 0, 0].sum() + table.fixed[1]
    assert table.original[1] == pytest.approx(float(latency), rel=1e-5)
    weights = sum(parameter.numel() for parameter in build(Identity).parameters())
    assert table.original[0] > 4 * weights


def test_measuring_a_plan_twice_gives_the_stored_figures(subjects):
    subject = subjects(Identity)
    plan = subject.plan([0] * len(subject.layers))
    found = subject.measure(plan)
    assert found.accuracy == subject.accuracy
    assert subject.measure(plan) == found


class Refusing(FakeLatency):
    """Has no integer kernels for convolutions, and none for 8 channels."""

    def milliseconds(self, chains, progress=True):
        refused = [any(map(self.refuses, chain)) for chain in chains]
        return np.where(refused, np.nan, super().milliseconds(chains))

    @staticmethod
    def refuses(operation):
        return operation.kind == "conv2d" and (operation.integer or operation.out_channels == 8)

    def why_refused(self, chain):
        return "no kernel"


def test_what_the_device_does_not_run_is_masked_with_its_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    subject = Subject(build(Plain), samples(48, 1), samples(64, 3), "plain", Refusing())
    with pytest.warns(UserWarning, match=r"recipes are not offered, for made up does not run them.*no kernel"):
        table = subject.price()
    assert np.isfinite(table.cost).all()
    offered = {layer: set(slots) for layer, slots in zip(table.layers, table.recipes, strict=True)}
    assert not any("activation" in recipe for recipe in offered["conv1"] | offered["conv2"])
    assert any("activation" in recipe for recipe in offered["head"])
    assert "filter_pruning(ratio=0.5)" not in {recipe.split(" + ")[0] for recipe in offered["conv1"]}
    refused = {(layer, recipe): reason for layer, recipe, reason in table.refused}
    assert refused["conv1", "filter_pruning(ratio=0.5)"] == "no kernel"
    assert load_prices(next((tmp_path / "prices").iterdir())).refused == table.refused
    for method in (Knapsack(), RandomSearch()):
        assert method.search(ExactEvaluator(subject, Demand(5.0, max_latency=0.9)), 4, 0).outcome.score > -math.inf


def test_a_device_that_does_not_run_the_original_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    monkeypatch.setattr(Refusing, "milliseconds", lambda self, chains, progress=True: np.full(len(chains), np.nan))
    with pytest.raises(ModelError, match="made up does not run conv1 as it is: no kernel"):
        _ = Subject(build(Plain), samples(48, 1), samples(64, 3), "plain", Refusing()).price()


def test_prices_do_not_outlive_the_latencies_that_they_rest_on(monkeypatch, tmp_path):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    subject = Subject(build(Plain), samples(48, 1), samples(64, 3), "plain", FakeLatency())
    assert subject.price().num_layers == 3
    monkeypatch.setattr("plywise.env.costs.network_latency.Overhead.__repr__", lambda _: "measured again")
    assert not Subject(build(Plain), samples(48, 1), samples(64, 3), "plain", FakeLatency()).is_priced()


def test_a_second_study_reads_the_first(subjects, monkeypatch):
    first = subjects(Identity)
    monkeypatch.setattr("plywise.env.subject.Pricer", lambda *_: pytest.fail("prices were made again"))
    second = Subject(build(Identity), samples(48, 1), samples(64, 3), "renamed", FakeLatency())
    assert second.price().network == "renamed"
    assert np.array_equal(second.price().cost, first.price().cost)
    assert np.array_equal(second.price().drop, first.price().drop)


def test_no_samples_are_refused():
    with pytest.raises(DataError, match="no validation samples"):
        Subject(build(Plain), samples(8, 1), labelled(torch.zeros(0, 3, 8, 8), torch.zeros(0).long()))


# The parts


@pytest.mark.parametrize("kind", NETWORKS)
def test_legal_recipes_can_be_used(kind):
    network = Network.of(build(kind), images(4))
    for layer in network.layers:
        recipes = legal_recipes(layer, network.modules[layer.name])
        assert recipes[0] == Recipe()
        assert all(recipe.unsupported(network.modules[layer.name]) is None for recipe in recipes)
        assert layer.leads == any("filter_pruning" in str(recipe) for recipe in recipes)


def test_undominated_keeps_the_front():
    prices = np.array([[5, 5], [1, 4], [2, 3], [3, 3.5], [4, 1], [4, 1]], float)
    assert undominated(prices, [0] * 6) == [0, 1, 2, 4]
    assert undominated(prices, [0, 0, 0, (1, True), 0, 0]) == [0, 1, 2, 3, 4]
    assert undominated(prices, [0] * 6, always=(0, 5)) == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("kind", PRICED)
def test_every_number_format_that_a_layer_can_take_is_on_its_menu(subjects, kind):
    subject = subjects(kind)
    for layer, menu in zip(subject.layers, subject.price().recipes, strict=True):
        legal = legal_recipes(layer, subject.network.modules[layer.name])
        run = [recipe for recipe in legal if subject.latency.device.why_refused(recipe) is None]
        assert {str(recipe) for recipe in run if is_uniform(recipe)} <= set(menu)


@pytest.mark.parametrize("kind", PRICED)
def test_what_is_left_out_is_beaten_by_one_that_does_the_same_to_its_neighbours(subjects, kind):
    """Alone, a layer pays for changes of the number format that its network may not: floats beat no integers."""
    subject = subjects(kind)
    pricer = Pricer(subject.bank, subject.whole)
    for layer, menu in zip(subject.layers, subject.price().recipes, strict=True):
        recipes = pricer.recipes[layer.name]
        costs = dict(zip(recipes, pricer.costs(layer)[:, :, 0, 0].T, strict=True))
        for recipe in set(recipes) - set(map(Recipe.parse, menu)):
            rivals = [other for other in map(Recipe.parse, menu) if _effect(other) == _effect(recipe)]
            assert any((costs[other] <= costs[recipe]).all() for other in rivals), f"{layer.name}: {recipe}"


def _effect(recipe):
    """What a recipe does to other layers: the channels that it leaves them, and whether it computes on integers."""
    cut = recipe.at(Stage.STRUCTURE)
    return cut if isinstance(cut, FilterPruning) else None, recipe.at(Stage.ACTIVATIONS) is not None


def test_price_files_keep_every_bit_and_refuse_others(subjects, tmp_path):
    table = subjects(Identity).price()
    save_prices(table, tmp_path / "prices")
    loaded = load_prices(tmp_path / "prices")
    for name, value in vars(table).items():
        same = np.array_equal(getattr(loaded, name), value) if isinstance(value, np.ndarray) else None
        assert getattr(loaded, name) == value if same is None else same, name
    assert [path.name for path in tmp_path.iterdir()] == ["prices"]
    data = (tmp_path / "prices").read_bytes()
    for broken in (b"", data[:100], data[:-1], b"\x00" * 64, data.replace(b"prices/6", b"prices/9")):
        (tmp_path / "prices").write_bytes(broken)
        with pytest.raises(FileFormatError, match="delete it to price again"):
            load_prices(tmp_path / "prices")
    with pytest.raises(FileFormatError):
        load_prices(tmp_path / "nothing")


def test_a_result_store_that_was_deleted_begins_anew(tmp_path):
    store = ResultStore(tmp_path / "results")
    store.put("a", 1)
    for file in tmp_path.iterdir():
        file.unlink()
    assert store.get("a") is None
    store.put("a", 2)
    assert store.get("a") == 2


def test_result_store_keeps_values(tmp_path):
    store = ResultStore(tmp_path / "results")
    assert store.get("a") is None
    store.put("a", [1.5, None, "x"])
    store.put("a", {"b": 2})
    assert ResultStore(tmp_path / "results").get("a") == {"b": 2}
    (tmp_path / "other").write_bytes(b"no database" * 100)
    with pytest.warns(CacheDamageWarning, match="made again"):
        assert ResultStore(tmp_path / "other").get("a") is None


def test_digests_tell_networks_and_samples_apart():
    some, first = images(4), build(Plain)
    assert model_digest(first, some) == model_digest(build(Plain), some) != model_digest(build(Plain, seed=1), some)
    edited = build(Plain)
    edited.forward = lambda inputs: first(inputs).roll(1, 1)  # modules and weights are the same
    assert model_digest(edited, some) != model_digest(first, some)
    assert samples(4, 1).digest() == samples(4, 1).digest() != samples(4, 2).digest()

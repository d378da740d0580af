"""LSTM and GRU: taken apart into linear layers, compressed, packed, exported, priced and searched."""

import numpy as np
import pytest
import torch
from made_up_device import FakeLatency
from tiny_banks import outputs_of
from torch import nn
from torch.nn.utils import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves

from plywise.agent.search.methods import SEARCH_METHODS
from plywise.compressors.errors import ModelError
from plywise.compressors.modules.projected_attention import with_projections
from plywise.compressors.modules.projected_recurrence import ProjectedRecurrence
from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.compressors.packing.packed_module import packed_size
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.bank import Bank
from plywise.env.bank.scorer import Scorer
from plywise.env.calibration.calibration import calibrate
from plywise.env.costs.chains import realised_chain
from plywise.env.costs.graph_template import GraphTemplate
from plywise.env.costs.network_latency import NetworkLatency
from plywise.env.costs.trial_graphs import random_plans, shapes_of
from plywise.env.exact_evaluator import ExactEvaluator
from plywise.env.network.network import Network
from plywise.env.prices.pricing import STORAGE_MARGIN, Pricer
from plywise.env.recovery.trainable import TrainableNetwork
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.runtime import open_session, random_inputs, run_model, run_session
from plywise.env.score.demand import Demand
from plywise.env.subject import Subject
from plywise.env.task.samples import labelled

KINDS = (nn.LSTM, nn.GRU)


class Classifier(nn.Module):
    """Two layers in both directions over signals, read where they end."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.rnn = kind(8, 12, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 5)

    def forward(self, signals):
        self.rnn.flatten_parameters()
        hidden, _ = self.rnn(torch.relu(self.stem(signals)))
        return self.head(hidden[:, -1])


class Ends(Classifier):
    """Reads the last states of both directions."""

    def forward(self, signals):
        _, ends = self.rnn(torch.relu(self.stem(signals)))
        ends = ends[0] if isinstance(ends, tuple) else ends
        return self.head(torch.cat([ends[-2], ends[-1]], 1))


class Language(nn.Module):
    """Tells the next word, steps first."""

    def __init__(self, kind=nn.GRU):
        super().__init__()
        self.words = nn.Embedding(30, 10)
        self.rnn = kind(10, 16)
        self.head = nn.Linear(16, 30)

    def forward(self, indices):
        hidden, _ = self.rnn(self.words(indices).transpose(0, 1))
        return self.head(hidden[-1])


class Started(Classifier):
    """Starts from states whose width is written down."""

    def forward(self, signals):
        state = torch.full((4, len(signals), 12), 0.1)
        return self.head(self.rnn(torch.relu(self.stem(signals)), (state, state))[0][:, -1])


class Translated(nn.Module):
    """The second recurrence starts where the first one ends; convolutions before, what both say is added."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.first, self.second = kind(8, 12), kind(12, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, signals):
        hidden, state = self.first(torch.relu(self.conv(signals.transpose(1, 2))).permute(2, 0, 1))
        return self.head((self.second(hidden, state)[0] + hidden).mean(0))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.rnn, self.head = nn.Linear(6, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, signals):
        hidden, state = self.rnn(torch.relu(self.stem(signals)))
        return self.head(self.rnn(torch.tanh(hidden), state)[0][:, -1])


class Padded(nn.Module):
    """Packs signals of several lengths, which the data say."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, signals):
        lengths = 3 + (10 * signals[:, 0, 0].abs()).long() % 6
        packed = pack_padded_sequence(signals, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][0][-1])


def made(network, *args, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return network(*args, **settings).eval()


def inputs_of(network, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    if isinstance(network, Language):
        return torch.randint(30, (count, 7), generator=generator)
    return torch.randn(count, 9, 6, generator=generator)


def samples(model, count, seed):
    inputs = inputs_of(model, count, seed)
    return labelled(inputs, outputs_of(model, inputs).argmax(1))


def banked(model):
    network = Network.of(model, inputs_of(model, 4), "recurrent")
    data = samples(model, 96, 1)
    return Bank(network, calibrate(network, labelled(data.inputs, data.labels)))


def plan_of(network, *texts):
    """The recipes in turn, each where it is supported, else rounding to 4 bits."""
    found = {}
    for place, layer in enumerate(network.layers):
        recipe = Recipe.parse(texts[place % len(texts)])
        refused = network.unsupported(layer.name, recipe)
        found[layer.name] = Recipe.parse("uniform_quantization(bits=4)") if refused else recipe
    return Plan(network.name, found)


def parts(values):
    return [each for each in tree_leaves(tuple(values)) if isinstance(each, torch.Tensor)]


# What it computes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}], ids=str)
@pytest.mark.parametrize("watched", [False, True])
def test_a_recurrence_of_projections_is_that_of_torch(kind, batch_first, settings, watched):
    plain = made(kind, 5, 7, batch_first=batch_first, **settings)
    recurrence, seen = with_projections(plain), []
    assert type(recurrence) is ProjectedRecurrence
    assert type(plain) is kind
    if watched:
        for leaf in recurrence.children():
            leaf.register_forward_hook(lambda leaf, args, output: seen.append(leaf))
    generator, signals = torch.Generator().manual_seed(0), torch.randn(3, 6, 5)
    state = torch.randn(4 if settings else 1, 3 if batch_first else 6, 7, generator=generator)
    packed = pack_padded_sequence(signals, torch.tensor([4, 6, 2]), batch_first=True, enforce_sorted=False)
    state = (state, state + 1) if kind is nn.LSTM else state
    one = tuple(each[:, 0] for each in state) if kind is nn.LSTM else state[:, 0]
    for args in ((signals,), (signals, state), (signals[0],), (signals[0], one), (packed,)):
        with torch.no_grad():
            expected, found = parts(plain(*args)), parts(recurrence(*args))
        assert len(found) == len(expected)
        assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(found, expected, strict=True))
    assert len(seen) == (5 * len(list(recurrence.children())) if watched else 0)


def test_who_watches_sees_what_each_step_starts_from():
    plain = made(nn.GRU, 4, 6, batch_first=True, bidirectional=True)
    recurrence, seen = with_projections(plain), {}
    for name, leaf in recurrence.named_children():
        leaf.register_forward_hook(lambda leaf, args, output, name=name: seen.update({name: (args[0], output)}))
    signals = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    hidden = outputs_of(lambda inputs: recurrence(inputs)[0], signals)
    for end, step, before, own in (("", 3, 2, slice(0, 6)), ("_reverse", 1, 2, slice(6, 12))):
        states, shares = seen[f"hidden_l0{end}"]
        assert torch.equal(states[:, step], hidden[:, before, own])
        gates = [(share + 0).unflatten(-1, (6, 3)).unbind(-1) for share in (seen[f"input_l0{end}"][1], shares)]
        (reset, update, new), (own_reset, own_update, own_new) = gates
        update = torch.sigmoid(update + own_update)
        new = torch.tanh(new + torch.sigmoid(reset + own_reset) * own_new)
        assert torch.allclose((1 - update) * new + update * states, hidden[..., own], atol=1e-6)


def test_weights_that_a_watcher_gives_count_from_there_on():
    recurrence = with_projections(made(nn.LSTM, 4, 6))
    steps = torch.randn(5, 2, 4)
    for name in ("input_l0", "hidden_l0"):
        leaf, before = recurrence.get_submodule(name), outputs_of(lambda x: recurrence(x)[0], steps)

        def halved(leaf, args, output):
            leaf.weight = nn.Parameter(leaf.weight / 2)

        handle = leaf.register_forward_hook(halved)
        found = outputs_of(lambda x: recurrence(x)[0], steps)
        handle.remove()
        assert torch.equal(found, outputs_of(lambda x: recurrence(x)[0], steps))
        assert not torch.allclose(found, before, atol=1e-4)


class Own(nn.GRU):
    pass


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: nn.LSTM(8, 12, proj_size=6), "proj_size"),
        (lambda: nn.RNN(8, 12), "RNN"),
        (lambda: Own(8, 12), "Own"),
    ],
)
def test_recurrences_that_stay_whole_say_why(layer, reason):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = layer(), nn.Linear(6 if reason == "proj_size" else 12, 5)

        def forward(self, signals):
            return self.head(self.rnn(torch.cat([signals, signals], 2)[..., :8])[0][:, -1])

    network = Network.of(made(Whole), torch.randn(4, 9, 6))
    assert [layer.name for layer in network.layers] == ["head"]
    assert reason in network.skipped["rnn"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weights_made_of_other_parameters_are_left_alone():
    normed = weight_norm(made(nn.LSTM, 4, 6), "weight_hh_l0")
    assert with_projections(normed) is normed


# Layers and channels


@pytest.mark.parametrize("model", [Classifier, Ends])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_units_are_cut_through_all_layers_and_directions(model, kind):
    network = Network.of(made(model, kind), inputs_of(model, 4))
    ends = ("l0", "l0_reverse", "l1", "l1_reverse")
    assert {layer.name for layer in network.layers} == {
        *("stem", "head"),
        *(f"rnn.{side}_{end}" for side in ("input", "hidden") for end in ends),
    }
    assert [layer.name for layer in network.layers if layer.leads] == ["stem", "rnn.input_l0"]
    assert {group.leader: group.channels for group in network.groups} == {"stem": 8, "rnn.input_l0": 12}
    assert all(layer.group == 1 for layer in network.layers if layer.recurrent)
    assert sorted(side.local.numel() for side in network.groups[1].consumers) == [12] * 4 + [24] * 3


def test_hidden_units_that_the_forward_counts_on_stay():
    network = Network.of(made(Started), inputs_of(Started, 4))
    assert [layer.name for layer in network.layers if layer.leads] == ["stem"]
    assert all("does not run with fewer channels" in layer.uncut for layer in network.layers if layer.recurrent)


def test_recurrences_that_share_states_are_cut_together(tmp_path):
    original = made(Translated)
    bank, inputs = banked(original), inputs_of(original, 32, 2)
    assert {group.leader: group.channels for group in bank.network.groups} == {"conv": 8, "first.input_l0": 12}
    plan = plan_of(bank.network, "filter_pruning(ratio=0.5)")
    compressed = bank.stitch(plan).model
    assert compressed.first.hidden_size == compressed.second.hidden_size == compressed.second.input_size < 12
    assert export_onnx(compressed, inputs[:4], tmp_path / "model.onnx")
    assert torch.allclose(run_model(tmp_path / "model.onnx", inputs), outputs_of(compressed, inputs), atol=1e-5)
    session = open_session(GraphTemplate(bank.network).filled(*shapes_of(bank.network, plan)))
    assert run_session(session, random_inputs(session, (1, 9, 6))).shape == (1, 5)


def test_a_recurrence_that_runs_twice_stays_whole_and_what_it_reads_as_well():
    network = Network.of(made(Twice), inputs_of(Twice, 4))
    assert {layer.name: layer.leads for layer in network.layers} == {"stem": False, "head": False}
    assert "rnn.input_l0, which stays as it is" in network.layers[0].uncut
    assert network.skipped["rnn.hidden_l0"] == "runs 2 times in one forward pass"


def test_packed_sequences_are_compressed_but_not_exported(tmp_path):
    original = made(Padded)
    bank, inputs = banked(original), inputs_of(original, 32, 2)
    compressed = bank.stitch(plan_of(bank.network, "uniform_quantization(bits=4)")).model
    save_packed(compressed, original, tmp_path / "weights", {})
    loaded = load_packed(tmp_path / "weights", original)
    assert torch.equal(outputs_of(loaded, inputs), outputs_of(compressed, inputs))
    with pytest.raises(ModelError, match="packed sequences"):
        export_onnx(compressed, inputs[:4], tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="packed sequences"):
        GraphTemplate(bank.network)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("uniform_quantization(bits=7) + activation_quantization", "compute on floats"),
        ("micro_mlp", "a product of matrices"),
        ("block_diagonal", "a product of matrices"),
        ("filter_pruning(ratio=0.5)", "'rnn.input_l0', which decides"),
    ],
)
def test_what_a_matrix_of_a_recurrence_cannot_take(recipe, reason):
    network = Network.of(made(Classifier), inputs_of(Classifier, 4))
    assert reason in network.unsupported("rnn.hidden_l0", Recipe.parse(recipe))
    assert network.unsupported("head", Recipe.parse("uniform_quantization(bits=7) + activation_quantization")) is None


# Whole networks

PLANS = (
    (
        "magnitude_pruning(sparsity=0.5) + codebook(bits=3)",
        "filter_pruning(ratio=0.5) + uniform_quantization(bits=4)",
        "low_rank(ratio=0.6)",
    ),
    (
        "low_rank(ratio=0.6) + uniform_quantization(bits=6)",
        "magnitude_pruning(sparsity=0.5)",
        "uniform_quantization(bits=6, scheme=affine, granularity=group)",
        "ternary",
    ),
)


@pytest.mark.parametrize("texts", PLANS, ids=["cut", "uncut"])
@pytest.mark.parametrize(("model", "kind"), [(Classifier, nn.LSTM), (Language, nn.GRU)])
def test_compressed_recurrences_are_packed_loaded_and_run(model, kind, texts, tmp_path):
    original = made(model, kind)
    bank, inputs = banked(original), inputs_of(original, 32, 2)
    plan = plan_of(bank.network, *texts)
    compressed = bank.stitch(plan).model
    assert len({str(recipe) for recipe in plan.values()}) > 2
    if texts is PLANS[0]:
        assert compressed.rnn.hidden_size < original.rnn.hidden_size
    expected = outputs_of(compressed, inputs)
    assert not torch.allclose(expected, outputs_of(original, inputs), atol=1e-3)
    save_packed(compressed, original, tmp_path / "weights", {})
    assert torch.equal(outputs_of(load_packed(tmp_path / "weights", original), inputs), expected)
    assert export_onnx(compressed, inputs[:4], tmp_path / "model.onnx")
    assert torch.allclose(run_model(tmp_path / "model.onnx", inputs), expected, atol=1e-5)


def test_repair_brings_a_harshly_rounded_recurrence_nearer_to_the_original():
    original = made(Classifier, nn.GRU)
    bank, inputs = banked(original), inputs_of(original, 200, 2)
    plan = plan_of(bank.network, "uniform_quantization(bits=2)")
    expected = outputs_of(original, inputs)
    plain, repaired = (
        float((outputs_of(bank.stitch(plan, settings).model, inputs) - expected).square().mean())
        for settings in (type(bank.repair)(inputs=0), bank.repair)
    )
    assert repaired < 0.8 * plain


def test_a_recurrence_is_trained():
    bank = banked(made(Language))
    trained = TrainableNetwork(bank, plan_of(bank.network, "low_rank(ratio=0.6)", "uniform_quantization(bits=3)"))
    inputs = inputs_of(bank.network.original, 8)
    assert torch.allclose(trained(inputs), outputs_of(trained.model, inputs), atol=1e-6)
    trained(inputs).square().sum().backward()
    inside = {name: value.grad for name, value in trained.parameters.items() if "rnn" in name and "weight" in name}
    assert len(inside) >= 3
    assert all(gradient is not None and bool(gradient.any()) for gradient in inside.values())


def test_remembered_outputs_are_those_of_the_network():
    bank = banked(made(Classifier))
    data = samples(bank.network.original, 70, 5)
    scorer = Scorer(bank)
    for texts in (("uniform_quantization(bits=4)",), ("uniform_quantization(bits=4)", "low_rank(ratio=0.6)")):
        stitched, logits = scorer.run(plan_of(bank.network, *texts), data.logits)
        assert torch.equal(logits, data.logits(stitched.model))


# Prices


def test_a_matrix_runs_as_one_whatever_it_is_stored_as():
    bank = banked(made(Classifier))
    network, recipe = bank.network, Recipe.parse("low_rank(ratio=0.4) + uniform_quantization(bits=4)")
    layer = next(layer for layer in network.layers if layer.name == "rnn.input_l1")
    module = bank.entry(layer.name, recipe)
    pricer = Pricer(bank, NetworkLatency(network, FakeLatency()))
    assert isinstance(module, nn.Sequential)
    assert realised_chain(module, layer) == pricer._priced_chain(layer, recipe, 0, 0) == network.operations[layer.name]
    size = pricer.sizes(layer, recipe)
    assert size.bytes_of(network.operations[layer.name]) == pytest.approx(STORAGE_MARGIN * packed_size(module))


@pytest.mark.parametrize(("model", "kind"), [(Ends, nn.LSTM), (Language, nn.GRU)])
def test_a_template_runs_with_any_layers_of_a_recurrence(model, kind):
    bank = banked(made(model, kind))
    network = bank.network
    template, widths = GraphTemplate(network), set()
    assert template.nearest["head"] == "rnn.input_l0"
    for plan in random_plans(network, 6):
        chains, norms = shapes_of(network, plan)
        replaced = bank.stitch(plan).replaced
        real = {each.name: replaced.get(each.name, network.modules[each.name]) for each in network.layers}
        for layer in network.layers:
            realised = realised_chain(real[layer.name], layer)
            assert [each.weight_shape for each in realised] == [each.weight_shape for each in chains[layer.name]]
        session = open_session(template.filled(chains, norms))
        outputs = run_session(session, random_inputs(session, (1, *network.example.shape[1:])))
        assert outputs.shape == (1, bank.network.modules["head"].out_features)
        widths.add(chains["rnn.hidden_l0"][0].in_channels)
    assert len(widths) > 1


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLYWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        model = made(Language, nn.LSTM)
        yield Subject(model, samples(model, 64, 1), samples(model, 96, 3), "language", FakeLatency())


def test_a_priced_recurrence_meets_a_demand(subject):
    table = subject.price()
    assert table.layers == ("words", "rnn.input_l0", "rnn.hidden_l0", "head")
    demand = Demand(15.0, max_storage=0.3, storage_weight=1.0)
    evaluator = ExactEvaluator(subject, demand)
    found = SEARCH_METHODS["knapsack"].search(evaluator, 4, seed=0)
    assert found.outcome.demand_met
    estimated = table.cost[0, np.arange(4), list(found.actions), 0, 0].sum() + table.fixed[0]
    if not any("filter_pruning" in str(recipe) for recipe in subject.plan(found.actions).values()):
        assert estimated == pytest.approx(found.outcome.cost[0], rel=0.1)

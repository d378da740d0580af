"""Forwards that do not simply call each layer once: without gradients, by keyword, in place, on nothing."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from plywise.compressors.errors import ModelError
from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.bank import Bank
from plywise.env.calibration.calibration import calibrate
from plywise.env.costs.graph_template import GraphTemplate
from plywise.env.network.network import Network
from plywise.env.runtime.onnx_export import export_onnx
from plywise.env.runtime.runtime import run_model, time_model
from plywise.env.task.binding import bind
from plywise.env.task.samples import labelled
from plywise.env.task.task import Task

IMAGES = torch.randn(48, 3, 10, 10, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(48) % 5
RECIPES = ("identity", "uniform_quantization(bits=4)", "uniform_quantization(bits=8) + activation_quantization")


class Body(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.f = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 12, 3), nn.Linear(12, 5)

    def features(self, x):
        return F.relu(self.b(F.relu(self.a(x)))).mean((2, 3))

    def forward(self, x):
        return self.f(self.features(x))


class WithoutGradient(Body):
    def forward(self, x):
        with torch.no_grad():
            z = self.features(x)
        return self.f(z)


class Detached(Body):
    def forward(self, x):
        return self.f(F.relu(self.b(F.relu(self.a(x)).detach())).mean((2, 3)))


class AllWithoutGradient(Body):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Auxiliary(Body):
    def __init__(self):
        super().__init__()
        self.aux, self.late = nn.Linear(12, 5), nn.Linear(12, 5)

    def forward(self, x):
        z = self.features(x)
        extra = self.aux(z)
        return self.f(z) + extra + self.late(z) if self.training else self.f(z)


class Experts(Body):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))

    def forward(self, x):
        z = self.features(x)
        chosen = (z[:, 0] > z[:, 1]).long() * 2
        mixed = torch.zeros_like(z)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero().flatten()
            mixed = mixed.index_copy(0, rows, expert(z[rows]))
        return self.f(F.relu(mixed))


class ByKeyword(Body):
    def forward(self, x):
        x = F.relu(self.b(input=F.relu(self.a(input=x))))
        return self.f(input=x.mean((2, 3)))


class InPlace(Body):
    def forward(self, x):
        x = self.a(x * 1.0)
        y = x.mul_(0.5).clamp_(min=0)
        return self.f(self.b(y).relu_().mean((2, 3)))


EXPORTED = (WithoutGradient, Auxiliary, ByKeyword, InPlace)
ODD = (WithoutGradient, Detached, AllWithoutGradient, Auxiliary, Experts, ByKeyword, InPlace)


def banked(kind):
    network = Network.of(kind(), IMAGES[:8], kind.__name__)
    return Bank(network, calibrate(network, labelled(IMAGES, LABELS)))


def plan_of(network, recipe):
    return Plan(network.name, {layer.name: Recipe.parse(recipe) for layer in network.layers})


@pytest.mark.parametrize("kind", ODD)
def test_each_is_compressed_packed_and_exported(kind, tmp_path):
    bank = banked(kind)
    network = bank.network
    assert {"a", "b", "f"} <= {layer.name for layer in network.layers}
    for recipe in RECIPES:
        made = bank.stitch(plan_of(network, recipe)).model
        save_packed(made, network.original, tmp_path / "weights", {})
        loaded = load_packed(tmp_path / "weights", network.original)
        with torch.no_grad():
            expected = made(IMAGES)
            assert expected.isfinite().all()
            assert torch.equal(loaded(IMAGES), expected)
    if kind in EXPORTED:
        export_onnx(made, network.interface, tmp_path / "model.onnx")
        outputs = run_model(tmp_path / "model.onnx", IMAGES)
        assert (outputs.argmax(1) == expected.argmax(1)).double().mean() > 0.9


def test_a_graph_that_is_timed_lacks_what_nothing_reads():
    network = Network.of(Auxiliary(), IMAGES[:8])
    template = GraphTemplate(network)
    assert template.nearest == {"a": None, "b": "a", "f": "b", "aux": None}
    assert time_model(template.filled(network.operations), (1, 3, 10, 10)) > 0


def test_a_layer_called_by_keyword_is_seen_as_any_other():
    plain, keyword = banked(Body), banked(ByKeyword)
    for layer, other in zip(plain.network.layers, keyword.network.layers, strict=True):
        assert layer == other
        one, two = (bank.calibration.statistics[layer.name] for bank in (plain, keyword))
        assert torch.equal(one.covariance, two.covariance)
        assert torch.equal(one.importance["taylor"], two.importance["taylor"])
    outputs = [bank.stitch(plan_of(bank.network, "uniform_quantization(bits=3)")).model for bank in (plain, keyword)]
    with torch.no_grad():
        assert torch.equal(outputs[0](IMAGES), outputs[1](IMAGES))  # repaired alike


def test_layers_without_gradient_are_ranked_by_their_outputs():
    bank = banked(WithoutGradient)
    seen = bank.calibration
    for name in ("a", "b"):
        assert torch.equal(seen.statistics[name].importance["taylor"], seen.outputs[name].deviation.square())
    assert not torch.equal(seen.statistics["f"].importance["taylor"], seen.outputs["f"].deviation.square())
    plain = banked(Body).calibration
    assert torch.equal(plain.statistics["f"].importance["taylor"], seen.statistics["f"].importance["taylor"])


def test_what_is_written_over_later_does_not_change_gradients():
    class OutOfPlace(InPlace):
        def forward(self, x):
            x = self.a(x * 1.0)
            y = (x * 0.5).clamp(min=0)
            return self.f(F.relu(self.b(y)).mean((2, 3)))

    written, kept = banked(InPlace).calibration, banked(OutOfPlace).calibration
    for name, found in kept.statistics.items():
        for criterion in ("taylor", "taylor_batch", "taylor_second"):
            assert torch.allclose(written.statistics[name].importance[criterion], found.importance[criterion])


def test_layers_that_nothing_reaches_are_listed_with_the_reason():
    assert "no input of the example reaches it" in banked(Experts).network.skipped["experts.1"]
    assert (
        "never called: the network uses its weights directly, or in training only"
        in (banked(Auxiliary).network.skipped["late"])
    )


def test_an_expert_that_gets_no_input_once_compressed_is_not_repaired():
    bank = banked(Experts)
    made = bank.stitch(plan_of(bank.network, "uniform_quantization(bits=2)")).model
    with torch.no_grad():
        assert made(IMAGES[:1]).isfinite().all()
    assert all(parameter.isfinite().all() for parameter in made.parameters())


class WritesInput(Body):
    def forward(self, x):
        return super().forward(x.mul_(0.5))


class Counts(Body):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += 1
        return super().forward(x) * (1 + self.count)


class Draws(Body):
    def forward(self, x):
        return F.dropout(super().forward(x))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (WritesInput, r"writes over its input.*x = x\.clone\(\)"),
        (Counts, "changes count of the network each time it runs"),
        (Draws, r"on the same inputs again .*training=self\.training"),
    ],
)
def test_forwards_whose_outputs_depend_on_more_than_their_inputs_are_refused_with_advice(kind, said):
    network, batch = kind().eval(), IMAGES.clone()
    with pytest.raises(ModelError, match=said):
        bind(Task([batch, batch]), network)
    assert torch.equal(batch, IMAGES)


class WritesWhatGradientsNeed(Body):
    def forward(self, x):
        first = torch.exp(self.a(x))
        outputs = self.f(F.relu(self.b(first)).mean((2, 3)))
        return outputs + 0 * first.zero_().sum()


def test_channels_are_ranked_without_gradients_where_torch_computes_none():
    network = Network.of(WritesWhatGradientsNeed().eval(), IMAGES[:4])
    with pytest.warns(UserWarning, match="ranked without gradients"):
        found = calibrate(network, labelled(IMAGES, LABELS), seed=0)
    assert found is not None


class Branches(Body):
    def forward(self, x):
        outputs = super().forward(x)
        return 2 * outputs if outputs.mean() > 0 else outputs


def test_a_forward_that_branches_on_values_is_told_without_its_whole_graph(tmp_path, capfd):
    with pytest.raises(ModelError, match=r"branches on the values of a tensor.*torch\.where"):
        export_onnx(Branches().eval(), IMAGES[:2], tmp_path / "branches.onnx")
    assert capfd.readouterr() == ("", "")

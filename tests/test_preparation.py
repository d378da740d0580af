"""What is done to a network before it is studied, and which ones are refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import plywise
from plywise.compressors.errors import ModelError
from plywise.compressors.packing.packed_file import save_packed
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.bank.bank import Bank
from plywise.env.calibration.calibration import calibrate
from plywise.env.network.network import Network
from plywise.env.network.preparation import prepare
from plywise.env.prices.pricing import original_storage
from plywise.env.runtime.deployed_layer import deployed
from plywise.env.task.batch import as_studied
from plywise.env.task.samples import labelled

INPUTS = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(32) % 5


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5))


def normed(norm):
    model = plain()
    norm(model[0])
    model(INPUTS)  # spectral norms learn from it
    return model


def masked():
    model = plain()
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[0], "weight", 0.25)
    prune.l1_unstructured(model[3], "bias", 2)
    return model


def squared():
    class Square(nn.Module):
        def forward(self, weight):
            return weight**2

    model = plain()
    parametrize.register_parametrization(model[0], "weight", Square())
    return model


MADE = {
    "weight norm": lambda: normed(nn.utils.weight_norm),
    "spectral norm": lambda: normed(nn.utils.spectral_norm),
    "pruning masks": masked,
    "parametrizations": squared,
}


def compressed(network):
    """Returns the network with 4-bit weights, repaired."""
    bank = Bank(network, calibrate(network, labelled(as_studied(INPUTS), LABELS)))
    recipe = Recipe.parse("uniform_quantization(bits=4)")
    return bank.stitch(Plan("network", {layer.name: recipe for layer in network.layers})).model


def loaded_back(network, made, original, folder):
    save_packed(made, network.original, folder / "weights", {})
    return plywise.load(folder / "weights", original)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("what", MADE)
def test_what_makes_weights_anew_is_folded_and_said(what, tmp_path):
    model = MADE[what]()
    before, text, hooks = dict(model.state_dict()), repr(model), dict(model[0]._forward_pre_hooks)
    network = Network.of(model, INPUTS[:4])
    with torch.no_grad():
        assert torch.equal(network.original(INPUTS), copy.copy(model).eval()(INPUTS))
    assert any(what in note and "0.weight" in note for note in network.notes)
    assert {layer.name for layer in network.layers} == {"0", "3"}
    made = compressed(network)
    loaded = loaded_back(network, made, model, tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(INPUTS), made(INPUTS))
    assert repr(model) == text
    assert dict(model[0]._forward_pre_hooks) == hooks
    assert all(value is before[key] or torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrizations_of_torch_are_folded(norm):
    model = plain()
    getattr(parametrizations, norm)(model[3])
    found = prepare(model)
    with torch.no_grad():
        assert torch.allclose(found.model(INPUTS), copy.deepcopy(model).eval()(INPUTS), atol=1e-6)
    assert type(found.model[3]) is nn.Linear
    assert parametrize.is_parametrized(model[3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half, torch.float64])
def test_other_floats_are_studied_in_float32_and_counted_as_they_are(dtype, tmp_path):
    model = plain().to(dtype).train()
    network = Network.of(model, INPUTS[:4].to(dtype))
    assert any(str(dtype).removeprefix("torch.") in note for note in network.notes)
    assert {value.dtype for value in model.state_dict().values()} == {dtype}
    assert all(module.training for module in model.modules())
    numbers = sum(value.numel() for value in model.state_dict().values())
    assert 0 < original_storage(network) - numbers * dtype.itemsize < 400
    made = compressed(network)
    with torch.no_grad():
        assert torch.equal(loaded_back(network, made, model, tmp_path)(INPUTS), made(INPUTS))


def test_only_floats_of_inputs_are_cast():
    assert as_studied(INPUTS.half()).dtype == torch.float32
    assert torch.equal(as_studied(LABELS), LABELS)


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (torch.compile, "torch.compile"),
        (nn.DataParallel, "DataParallel"),
        (lambda model: nn.Sequential(torch.compile(nn.DataParallel(model))), "DataParallel, torch.compile"),
    ],
)
def test_wrappers_come_off(wrap, note):
    found = prepare(wrap(plain().train()))
    assert note in found.notes[0]
    assert not any(hasattr(module, "_orig_mod") for module in found.model.modules())
    with torch.no_grad():
        assert torch.equal(found.model(INPUTS), plain()(INPUTS))


def sparse():
    model = plain()
    model[3].weight = nn.Parameter(model[3].weight.detach().to_sparse())
    return model


def dynamic():
    return torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.jit.trace(plain(), INPUTS), "TorchScript hides its layers; give the module"),
        (dynamic, "quantised already; give the network as it was in floats"),
        (sparse, "3.weight is stored as torch.sparse_coo; make it dense"),
        (lambda: nn.Linear(3, 3, device="meta"), "weight is on the meta device, without numbers; load"),
        (lambda: nn.Linear(3, 3, dtype=torch.complex64), "weight is torch.complex64: there is no technique"),
        (lambda: nn.LazyLinear(3), "weight has no shape yet; run the network once"),
    ],
)
def test_refused_at_once(make, said):
    with pytest.raises(ModelError, match=said):
        Network.of(make(), INPUTS[:4])


def test_weights_of_a_skeleton_do_not_matter(tmp_path):
    network = Network.of(plain(), INPUTS[:4])
    made = compressed(network)
    loaded = loaded_back(network, made, copy.deepcopy(network.original).to("meta"), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(INPUTS), made(INPUTS))


class Keeping:
    """A hook of a user's own that keeps what it sees, also in the module."""

    def __init__(self):
        self.seen = []

    def __call__(self, module, args, output):
        self.seen.append(output)
        module.last = output


def test_hooks_stay_with_the_users_network(tmp_path):
    model, hook = plain(), Keeping()
    handle = model[0].register_forward_hook(hook)
    model(INPUTS)  # what it keeps now has a graph
    network = Network.of(model, INPUTS[:4])
    seen = len(hook.seen)
    made = compressed(network)
    loaded = loaded_back(network, made, model, tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(INPUTS), made(INPUTS))
        deployed(network.model)
    assert len(hook.seen) == seen
    assert handle.id in model[0]._forward_hooks
    assert hook.seen[0].grad_fn is not None


def test_outputs_that_a_forward_keeps_lose_their_graph():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = plain()
            self.kept = {}

        def forward(self, inputs):
            self.kept["last"] = self.body(inputs)
            return self.kept["last"]

    model = Net()
    model(INPUTS)
    assert prepare(model).model.kept["last"].grad_fn is None
    assert model.kept["last"].grad_fn is not None
    compressed(Network.of(model, INPUTS[:4]))


def test_a_hook_that_changes_what_the_network_computes_is_refused():
    model = plain()
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(ModelError, match="something else without the hooks of 0"):
        Network.of(model, INPUTS[:4])


def test_what_cannot_be_copied_is_refused():
    model = plain()
    model.lock = open(__file__)  # noqa: SIM115
    with model.lock, pytest.raises(ModelError, match="cannot be copied"):
        prepare(model)

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from plywise.compressors.errors import ConfigurationError, ModelError
from plywise.env.network.preparation import prepare
from plywise.experiments.commands.study import load_both, samples
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.networks.model_loading import check_runs, load_model
from plywise.experiments.networks.zoo import untrained

FACTORIES = """
import torch
from torch import nn
from torch.nn import functional as F

class Odd(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.inner, self.odd = good(), forward

    def forward(self, images):
        return self.odd(self.inner, images)

def good():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

def large():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

def pair():
    return type("Pair", (nn.Module,), {"forward": lambda self, images: (images, images)})()

def infinite():
    network = good()
    network[1].weight.data[0, 0] = float("inf")
    return network

def overflowing():
    network = good()
    network[1].weight.data.fill_(3e38)
    return network

def noisy():
    return Odd(lambda inner, images: inner(F.dropout(images)))

def random():
    return Odd(lambda inner, images: inner(images) + torch.rand(10))

def mixing():
    return Odd(lambda inner, images: inner(images - images.mean(0)))

def squeezing():
    return Odd(lambda inner, images: inner(images).squeeze())

def pairing():
    return Odd(lambda inner, images: inner(images) if len(images) > 1 else images[7])

def half():
    return good().half()

def double():
    return good().double()

def hollow():
    with torch.device("meta"):
        return good()

def failing():
    raise RuntimeError("no such counting_noise")

def leaving():
    raise SystemExit(5)

def demanding(width):
    return nn.Linear(width, 10)

def wrong():
    return {"weight": 1}

setting = 3
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture
def factories(tmp_path):
    path = tmp_path / "my_networks.py"
    path.write_text(FACTORIES)
    return path


@pytest.mark.parametrize("spec", ["digits-mlp", "zoo:digits-mlp"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_are_loaded(tmp_path, digits, spec, suffix):
    network, path = untrained("digits-mlp", seed=4), tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(network.state_dict(), path)
    loaded = load_model(spec, path, digits)
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_digits_network_without_weights_is_trained(digits):
    validation = samples(digits.validation)
    assert validation.score(load_model("digits-mlp", dataset=digits)).value >= 97


def test_factory_of_a_file(factories, digits):
    assert isinstance(load_model(f"{factories}:good", dataset=digits), nn.Sequential)


@pytest.mark.parametrize("name", ["squeezing", "pairing"])
def test_networks_that_want_more_than_one_image_are_taken(factories, digits, name):
    load_model(f"{factories}:{name}", dataset=digits)


def test_factory_of_a_module(factories, digits, monkeypatch):
    monkeypatch.syspath_prepend(factories.parent)
    assert isinstance(load_model("my_networks:good", dataset=digits), nn.Sequential)


@pytest.mark.parametrize("name", ["resnet20", "zoo:lenet-5"])
def test_other_networks_need_weights(name):
    with pytest.raises(ModelError, match="--weights"):
        load_model(name)


@pytest.mark.parametrize("name", ["resnet21", "zoo:resnet21"])
def test_unknown_network(name):
    with pytest.raises(ConfigurationError, match=r"unknown network 'resnet21'\. Did you mean 'resnet"):
        load_model(name)


def test_a_file_without_its_function():
    with pytest.raises(ConfigurationError, match=r"write 'net\.py:FUNCTION'"):
        load_model("net.py")


@pytest.mark.parametrize(("name", "dtype"), [("half", torch.float16), ("double", torch.float64)])
def test_networks_in_other_floats_are_taken_by_name_too(factories, digits, name, dtype):
    loaded = load_model(f"{factories}:{name}", dataset=digits)
    assert {value.dtype for value in loaded.parameters()} == {dtype}  # studied in float32, as the report notes
    network, _ = load_both(f"{factories}:{name}", "digits", None)
    assert prepare(network).notes == (f"studied and handed over in float32; the network is in {str(dtype)[6:]}",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("failing", "failed: RuntimeError: no such counting_noise"),
        ("leaving", "failed: SystemExit: 5"),
        ("demanding", "failed: TypeError"),
        ("wrong", "returned a dict"),
        ("absent", "has no function 'absent'; it has Odd, good, narrow"),
        ("setting", "has no function 'setting'"),
        ("infinite", "NaN or infinite values in 1.weight"),
        ("narrow", r"gives \(7,\) for each of the images \(1, 8, 8\)"),
        ("pair", "gives a tuple"),
        ("large", "fails on images"),
        ("overflowing", "NaN or infinite logits"),
        ("hollow", r"1\.weight is on the meta device, without numbers; load the weights first"),
        ("noisy", r"when it runs on the same inputs again .* training=self\.training"),
        ("random", "draw no random numbers in forward"),
        ("mixing", "do not mix images of a batch"),
    ],
)
def test_bad_factory(factories, digits, name, message):
    with pytest.raises(ModelError, match=message):
        load_model(f"{factories}:{name}", dataset=digits)


@pytest.mark.parametrize(("name", "dtype"), [("half", torch.float16), ("double", torch.float64)])
def test_other_floats_are_left_as_they_are(factories, digits, name, dtype):
    assert {value.dtype for value in load_model(f"{factories}:{name}", dataset=digits).parameters()} == {dtype}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("not/there.py:factory", "not/there.py does not exist"),
        ("no_such_package.module:factory", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_factory_that_is_not_there(spec, message):
    with pytest.raises(ModelError, match=message):
        load_model(spec)


def test_file_that_is_no_python(tmp_path):
    (tmp_path / "broken.py").write_text("def factory(:")
    with pytest.raises(ModelError, match="cannot be imported: SyntaxError"):
        load_model(f"{tmp_path / 'broken.py'}:factory")


def test_missing_weights(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        load_model("digits-mlp", tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"\x80\x02 nonsense" * 9, "is damaged")])
def test_damaged_weights(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_model("digits-mlp", tmp_path / name)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_truncated_weights(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(untrained("digits-mlp").state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="is damaged"):
        load_model("digits-mlp", path)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("content", [{"0.weight": Hostile()}, nn.Linear(2, 2)])
def test_torch_file_with_more_than_tensors_is_refused_and_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="more than tensors"):
        load_model("digits-mlp", tmp_path / "weights.pt")
    assert not (tmp_path / "owned").exists()


def test_torch_file_without_a_state_dict(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="does not map names to tensors"):
        load_model("digits-mlp", tmp_path / "weights.pt")


def test_misfit_names_at_most_five_keys_of_each_kind(tmp_path):
    state = untrained("digits-mlp").state_dict()
    state["1.weight"] = torch.zeros(3, 64)
    del state["1.bias"]
    state |= {f"extra{index}": torch.zeros(1) for index in range(7)}
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError) as caught:
        load_model("digits-mlp", tmp_path / "weights.safetensors")
    message = str(caught.value)
    assert "missing: 1.bias;" in message
    assert "extra4 and 2 more" in message
    assert "extra5" not in message
    assert "1.weight (3, 64) instead of (384, 64)" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    state = untrained("digits-mlp").state_dict()
    state["3.bias"][7] = value
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"3\.bias"):
        load_model("digits-mlp", tmp_path / "weights.safetensors")


def test_network_must_fit_the_dataset(digits):
    with pytest.raises(ModelError, match=r"fails on images \(1, 8, 8\) of the dataset 'digits'"):
        check_runs(untrained("lenet-5"), digits)


@pytest.mark.slow
def test_resnet20_reaches_its_known_accuracy():
    folder = Path(os.environ.get("PLYWISE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
    if not folder.is_dir():
        pytest.skip("no real data: set PLYWISE_DATA to the folder that holds cifar10-jpeg.zip and zoo/")
    data = load_dataset(f"cifar10:{folder / 'cifar10-jpeg.zip'}")
    model = load_model("resnet20", folder / "zoo" / "resnet20-cifar10.safetensors", data)
    test = samples(data.test)
    assert test.score(model).value == pytest.approx(88.04, abs=0.02)

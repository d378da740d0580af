"""What `plywise.load` gives is an ordinary module: torch's own means save, load, export and train it."""

import io

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_networks import Plain, build, images, labels
from torch.nn import functional as F

from plywise.compressors.packing.packed_file import load_packed, save_packed
from plywise.env.bank.bank import Bank
from plywise.env.calibration.calibration import calibrate
from plywise.env.network.network import Network
from plywise.env.network.scheme import Scheme
from plywise.env.task.samples import labelled

RECIPES = {
    "*": "filter_pruning(ratio=0.5) + uniform_quantization(bits=6) + activation_quantization",
    "type:Linear": "low_rank(ratio=0.6) + codebook(bits=4)",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The file of a compressed network and the original."""
    network = Network.of(build(Plain), images(4), "plain")
    bank = Bank(network, calibrate(network, labelled(images(), labels())))
    path = tmp_path_factory.mktemp("saved") / "weights.safetensors"
    save_packed(bank.stitch(Scheme.of(RECIPES).on(network)[0]).model, network.original, path, {})
    return path, network.original


@pytest.fixture
def loaded(saved):
    return load_packed(*saved)


def test_it_is_saved_and_loaded_by_torch(saved, loaded) -> None:
    with torch.no_grad():
        expected = loaded(images())
    file = io.BytesIO()
    torch.save(loaded.state_dict(), file)
    file.seek(0)
    other = load_packed(*saved)
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(other(images()), expected)


def test_it_is_trained_on(loaded) -> None:
    loaded.requires_grad_(True)
    optimiser = torch.optim.SGD(loaded.parameters(), lr=0.05)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(loaded(images()), labels())
        optimiser.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in loaded.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, within itself
def test_it_is_exported_by_its_user(loaded, tmp_path) -> None:
    path = tmp_path / "mine.onnx"
    torch.onnx.export(loaded, (images(4),), path, dynamo=True, input_names=["images"], verbose=False)
    session = onnxruntime.InferenceSession(path)
    with torch.no_grad():
        expected = loaded(images(4)).numpy()
    (found,) = session.run(None, {"images": images(4).numpy()})
    # The kernels' rounding is exact in integers, a plain export computes in floats: another code now and then.
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()

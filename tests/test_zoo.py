import dataclasses
import hashlib
from itertools import pairwise

import pytest
import torch
from torch import nn

from plywise.compressors.errors import ConfigurationError, ModelError
from plywise.env.task.batch import items_in, part
from plywise.env.task.forward import rule_for
from plywise.env.task.samples import accuracy as accuracy_of
from plywise.experiments.commands.study import samples
from plywise.experiments.data.dataset import Split
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.networks import zoo
from plywise.experiments.networks.training import TrainingSettings, distorted, fit, fit_task, reproducible
from plywise.experiments.networks.zoo import ZOO, trained, untrained

DIGITS = [name for name in ZOO if ZOO[name].dataset == "digits"]
TASKS = [name for name, entry in ZOO.items() if entry.make_task]
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


def accuracy(network, split):
    images = samples(split)
    return images.score(network).value


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def digest(network):
    state = network.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_zoo_is_large_enough():
    assert len(DIGITS) >= 10
    assert len({ZOO[name].family for name in DIGITS}) >= 8
    assert all(ZOO[name].training for name in DIGITS)


@pytest.mark.parametrize("name", [name for name in ZOO if name not in TASKS])
def test_every_network_maps_images_to_finite_logits(name):
    network = untrained(name).eval()
    images = torch.rand(3, *SHAPES[ZOO[name].dataset], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = network(images)
        alone = network(images[:1])
    assert logits.shape == (3, 10)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", DIGITS)
def test_digits_networks_are_neither_tiny_nor_large(name):
    assert 30_000 <= parameters(untrained(name)) <= 150_000


@pytest.mark.parametrize(
    ("name", "count"),
    [("lenet-300-100", 266_610), ("lenet-5", 431_080), ("resnet20", 269_722), ("resnet56", 853_018)],
)
def test_known_networks_have_their_published_size(name, count):
    assert parameters(untrained(name)) == count


@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].family in ("vgg", "plain", "resnet", "mobilenet")])
def test_batch_norm_follows_its_convolution_directly(name):
    modules = [module for module in untrained(name).modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    for before, norm in pairwise(modules):
        if isinstance(norm, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            assert before.out_channels == norm.num_features
            assert before.bias is None or ZOO[name].family == "vgg"
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in modules)
    assert norms >= len(modules) // 2 - 1


def test_option_a_shortcut_has_no_parameters():
    network = untrained("digits-resnet-a")
    assert not [name for name, _ in network.named_parameters() if "shortcut" in name]
    block = network.layer2[0]
    nn.init.zeros_(block.bn2.weight)
    inputs = torch.rand(1, 12, 8, 8)
    outputs = block.eval()(inputs)
    assert torch.equal(outputs[:, 6:18], inputs[:, :, ::2, ::2])
    assert not outputs[:, :6].any()
    assert not outputs[:, 18:].any()


def test_same_seed_same_network_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = untrained("digits-vit")
    assert torch.equal(torch.rand(1), expected)
    assert digest(first) == digest(untrained("digits-vit"))
    assert digest(first) != digest(untrained("digits-vit", seed=1))


@pytest.mark.parametrize("name", ["digits-lenet", "digits-densenet"])
def test_training_is_reproducible_on_any_number_of_threads(digits, name):
    digests = set()
    threads = torch.get_num_threads()
    few = digits.train.select(torch.arange(200))
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            network = untrained(name)
            with reproducible(0):
                fit(network, few, TrainingSettings(epochs=2), name)
            assert torch.get_num_threads() == count
            digests.add(digest(network))
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["digits-lenet"])
def test_trained_network_is_good_and_cached(digits, name, monkeypatch):
    network = trained(name, digits)
    assert not network.training
    assert accuracy(network, digits.validation) >= 97
    assert accuracy(network, digits.test) >= 97
    monkeypatch.setattr(zoo, "write_tensors", None)
    again = trained(name, digits)
    assert digest(again) == digest(network)
    assert not again.training


def test_another_cut_is_trained_anew(digits, monkeypatch):
    calls = []
    monkeypatch.setattr(
        zoo,
        "_training_key",
        lambda network, settings, dataset: hashlib.sha256(dataset.train.images.numpy()).hexdigest(),
    )
    monkeypatch.setattr(zoo, "fit", lambda *arguments: calls.append(arguments))
    for data in (digits, digits, load_dataset("digits", seed=1)):
        trained("digits-mlp", data)
    assert len(calls) == 2


def test_training_key_tells_apart_what_matters(digits):
    mlp, settings = untrained("digits-mlp"), TrainingSettings()
    key = zoo._training_key(mlp, settings, digits)
    assert key == zoo._training_key(untrained("digits-mlp", seed=3), settings, digits)
    others = [
        zoo._training_key(mlp, TrainingSettings(epochs=99), digits),
        zoo._training_key(mlp, settings, load_dataset("digits", seed=1)),
        zoo._training_key(untrained("digits-lenet"), settings, digits),
    ]
    assert len({key, *others}) == 4


def test_distortion_is_random_small_and_keeps_the_background():
    images = torch.zeros(50, 1, 9, 9)
    images[:, :, 4, 4] = 1.0
    torch.manual_seed(0)
    moved = distorted(images)
    assert moved.shape == images.shape
    assert len(moved.unique(dim=0)) == 50
    assert 0.7 < moved.sum() / images.sum() < 1.3
    moved[:, :, 2:7, 2:7] = 0
    assert not moved.any()
    assert torch.equal(distorted(torch.zeros(2, 3, 4, 6)), torch.zeros(2, 3, 4, 6))


def test_accuracy_counts_right_answers(digits):
    right = samples(digits.test)
    answers = (right.labels + (torch.arange(len(right)) < 3)) % 10
    assert accuracy_of(nn.functional.one_hot(answers, 10), right.labels) == pytest.approx(100 * 357 / 360)


# Networks with a task of their own

TASK_FLOORS = {
    "stdlib-gpt": -2.7,
    "stdlib-gru": -2.5,
    "stdlib-bert": 60,
    "digits-unet": 70,
    "digits-detector": 85,
    "cancer-mlp": 93,
    "diabetes-mlp": 0.4,
    "tones-cnn": 80,
}
"""What a trained network reaches at least, on validation and on test items."""


@pytest.mark.parametrize("name", TASKS)
def test_a_few_steps_make_the_loss_smaller(name):
    entry, network = ZOO[name], untrained(name)
    assert 50_000 <= parameters(network) <= 500_000
    batch = part(entry.make_task().calibration[0], 0, 16)
    task = dataclasses.replace(entry.make_task(), calibration=[batch])
    forward = rule_for(network, batch)
    before = task.loss(forward(network, batch), batch).item()
    with reproducible(0):
        fit_task(network, task, dataclasses.replace(entry.training, epochs=6, batch_size=16), name)
    assert not network.training
    assert task.loss(forward(network.train(), batch), batch).item() < 0.95 * before


def test_training_on_a_task_is_reproducible_on_any_number_of_threads():
    entry, digests = ZOO["digits-detector"], set()
    task = dataclasses.replace(entry.make_task(), calibration=entry.make_task().calibration[:2])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            network = untrained("digits-detector")
            with reproducible(0):
                fit_task(network, task, TrainingSettings(epochs=2, batch_size=16), "digits-detector")
            digests.add(digest(network))
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1


@pytest.mark.parametrize("name", TASKS)
def test_a_metric_is_the_mean_of_its_values_and_the_same_each_time(name):
    task = ZOO[name].make_task()
    network, batches = untrained(name).eval(), task.validation[:2]
    found = task.metric(network, batches)
    value, values = found if isinstance(found, tuple) else (found, torch.tensor([found]))
    assert value == pytest.approx(values.double().mean().item())
    assert len(values) in (1, sum(items_in(batch) for batch in batches))
    again = task.metric(network, batches)
    assert value == (again[0] if isinstance(again, tuple) else again)
    assert not any(module.training for module in network.modules())


def test_a_network_with_a_task_is_trained_once(monkeypatch):
    trained_once = trained("cancer-mlp")
    monkeypatch.setattr(zoo, "write_tensors", None)
    assert digest(trained("cancer-mlp")) == digest(trained_once)


def test_tied_weights_are_kept(monkeypatch):
    monkeypatch.setattr(zoo, "fit_task", lambda network, *rest: nn.init.ones_(network.head.weight))
    trained("stdlib-gpt")
    again = trained("stdlib-gpt")
    assert again.embedding.weight is again.head.weight
    assert (again.embedding.weight == 1).all()


def test_a_network_with_a_task_takes_no_dataset(digits):
    with pytest.raises(ModelError, match="'stdlib-gpt' is no classifier of images: it has a task and data of its own"):
        trained("stdlib-gpt", digits)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_network_with_a_task_is_good(name):
    network, task = trained(name), ZOO[name].make_task()
    for batches in (task.validation, task.test):
        found = task.metric(network, batches)
        assert (found[0] if isinstance(found, tuple) else found) >= TASK_FLOORS[name]


def test_unknown_network_names_the_nearest():
    with pytest.raises(ConfigurationError, match="Did you mean 'digits-resnet'"):
        untrained("digits-resnets")


def test_network_without_training_needs_weights(digits):
    with pytest.raises(ModelError, match="--weights"):
        trained("resnet20", digits)


def test_digits_network_refuses_other_images(digits):
    other = Split(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1]), (0.0,), (1.0,))
    dataset = type(digits)("mnist", digits.classes, other, other, other)
    with pytest.raises(ModelError, match=r"'mnist' has \(1, 28, 28\)"):
        trained("digits-mlp", dataset)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGITS)
def test_every_digits_network_is_good(digits, name):
    network = trained(name, digits)
    assert accuracy(network, digits.validation) >= 97
    assert accuracy(network, digits.test) >= 97

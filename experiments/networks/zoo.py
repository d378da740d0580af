"""The zoo: small networks that are trained on the spot, and well-known ones that need weights."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from plywise.compressors.errors import ConfigurationError, ModelError, unknown_name
from plywise.env.storage.cache import cache_folder
from plywise.env.storage.code_digest import code_digest
from plywise.env.task.batch import tensors_in
from plywise.env.task.task import Task
from plywise.experiments.data.cached_tensors import read_tensors, write_tensors
from plywise.experiments.data.dataset import Dataset
from plywise.experiments.data.datasets import load_dataset
from plywise.experiments.data.preprocessing import GIVEN
from plywise.experiments.families import detection, language_modelling, segmentation, source_snippets, tables, tones
from plywise.experiments.families.bert import Bert
from plywise.experiments.families.detector import Detector
from plywise.experiments.families.language_modelling import CONTEXT
from plywise.experiments.families.language_models import GPT, GRULanguageModel
from plywise.experiments.families.unet import UNet
from plywise.experiments.networks.densenet import DenseNet
from plywise.experiments.networks.lenet import DigitsLeNet, LeNet5
from plywise.experiments.networks.mlp import mlp
from plywise.experiments.networks.mobilenet import MobileNetV2, SeparableNet
from plywise.experiments.networks.resnet import BasicBlock, OptionABlock, ResNet, cifar_resnet
from plywise.experiments.networks.training import TrainingSettings, fit, fit_task, reproducible
from plywise.experiments.networks.vgg import POOL, VGG, VGG16_WIDTHS, AllConvolutional
from plywise.experiments.networks.vision_transformer import VisionTransformer


@dataclass(frozen=True)
class ZooEntry:
    """One network of the zoo.

    Attributes:
        family: kind of architecture.
        dataset: spec, or for data with a path the name, of the dataset that it is for; in words where it has a task.
        description: one line for the listing.
        network: builds it with random weights.
        training: how it is trained on the spot; None where it needs a file of weights.
        task: what it does, in words.
        metric: what it is judged by, and the unit.
        make_task: makes that task; None for the classes of a dataset's images.
    """

    family: str
    dataset: str
    description: str
    network: Callable[[], nn.Module]
    training: TrainingSettings | None = None
    task: str = "image classes"
    metric: str = "accuracy, %"
    make_task: Callable[[], Task] | None = None


def _digits(
    family: str, description: str, network: Callable[[], nn.Module], training: TrainingSettings | None = None
) -> ZooEntry:
    return ZooEntry(family, "digits", description, network, training or TrainingSettings())


def _resnet(depth: int) -> ZooEntry:
    description = f"ResNet-{depth} for CIFAR-10, parameter-free shortcuts"
    return ZooEntry("resnet", "cifar10", description, partial(cifar_resnet, depth))


MOBILENET_STAGES = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 40, 2, 2))
SEPARABLE_BLOCKS = ((64, 1), (128, 2), (128, 1), (192, 1))
VGG_WIDTHS = (16, 16, POOL, 32, 32, POOL, 64, 64)

LANGUAGE = ("language model", "bits per byte", language_modelling.make_task)

ZOO: dict[str, ZooEntry] = {
    "digits-mlp": _digits(
        "mlp",
        "linear layers 64-384-192-10",
        partial(mlp, (64, 384, 192, 10)),
        TrainingSettings(epochs=80, learning_rate=3e-3),
    ),
    "digits-lenet": _digits(
        "lenet",
        "5x5 convolutions, pooling, three linear layers",
        DigitsLeNet,
        TrainingSettings(epochs=30, learning_rate=5e-3),
    ),
    "digits-vgg": _digits("vgg", "3x3 convolutions, BatchNorm, pooling", partial(VGG, VGG_WIDTHS, 1, 256)),
    "digits-plain": _digits("plain", "only convolutions; strides for pooling", AllConvolutional),
    "digits-resnet": _digits(
        "resnet", "identity and 1x1 shortcuts", partial(ResNet, BasicBlock, (1, 1, 1), (16, 32, 64), 1)
    ),
    "digits-resnet-a": _digits(
        "resnet", "parameter-free shortcuts", partial(ResNet, OptionABlock, (2, 1, 1), (12, 24, 48), 1)
    ),
    "digits-mobilenet": _digits(
        "mobilenet",
        "inverted residuals, ReLU6",
        partial(MobileNetV2, MOBILENET_STAGES, 16, 128, 1),
        TrainingSettings(epochs=18),
    ),
    "digits-separable": _digits(
        "separable",
        "depthwise and 1x1 convolutions",
        partial(SeparableNet, SEPARABLE_BLOCKS, 32),
        TrainingSettings(weight_decay=0.05),
    ),
    "digits-densenet": _digits("densenet", "concatenated layers, BatchNorm-ReLU-convolution", DenseNet),
    "digits-vit": _digits(
        "transformer",
        "2 blocks of width 64, class token",
        partial(VisionTransformer, 64, 2, 4, 128, class_token=True),
        TrainingSettings(epochs=30, learning_rate=5e-3),
    ),
    "digits-vit-mean": _digits(
        "transformer",
        "2 blocks of width 48, mean of the tokens",
        partial(VisionTransformer, 48, 2, 4, 192, class_token=False),
        TrainingSettings(epochs=25, learning_rate=5e-3),
    ),
    "lenet-300-100": ZooEntry("mlp", "mnist", "linear layers 784-300-100-10", partial(mlp, (784, 300, 100, 10))),
    "lenet-5": ZooEntry("lenet", "mnist", "LeNet-5 with 20 and 50 channels", LeNet5),
    **{f"resnet{depth}": _resnet(depth) for depth in (20, 32, 44, 56, 110)},
    "vgg16-bn": ZooEntry("vgg", "cifar10", "VGG-16 with BatchNorm", partial(VGG, VGG16_WIDTHS, 3, 512)),
    "mobilenet-v2": ZooEntry("mobilenet", "cifar10", "MobileNet-V2 for 32x32 images", MobileNetV2),
    "stdlib-gpt": ZooEntry(
        "gpt",
        "Python's library",
        "2 blocks of width 64, RMSNorm, fused projections, tied head",
        partial(GPT, 64, 2, 4, CONTEXT),
        TrainingSettings(epochs=1, batch_size=8, weight_decay=0.01),
        *LANGUAGE,
    ),
    "stdlib-gru": ZooEntry(
        "recurrent",
        "Python's library",
        "160 gated recurrent units",
        partial(GRULanguageModel, 64, 160),
        TrainingSettings(epochs=1, batch_size=16),
        *LANGUAGE,
    ),
    "stdlib-bert": ZooEntry(
        "bert",
        "Python's library",
        "2 layers of width 64, padding masks, pooler",
        partial(Bert, source_snippets.VOCABULARY, source_snippets.LENGTH, 64, 2, 4, len(source_snippets.PACKAGES)),
        TrainingSettings(epochs=4, batch_size=32, learning_rate=2e-3),
        "text classes",
        "accuracy, %",
        source_snippets.make_task,
    ),
    "digits-unet": ZooEntry(
        "unet",
        "pasted digits",
        "16, 32 and 64 channels at three sizes",
        partial(UNet, (16, 32, 64), segmentation.CLASSES),
        TrainingSettings(epochs=4, batch_size=16, learning_rate=2e-2, weight_decay=0.05),
        "segmentation",
        "mean IoU, %",
        segmentation.make_task,
    ),
    "digits-detector": ZooEntry(
        "detector",
        "pasted digits",
        "one stage without anchors, two scales, SiLU",
        partial(Detector, 16, detection.OUTPUTS),
        TrainingSettings(epochs=10, batch_size=32, weight_decay=0.05),
        "detection",
        "AP at IoU 0.5, %",
        detection.make_task,
    ),
    "cancer-mlp": ZooEntry(
        "mlp",
        "breast cancer",
        "linear layers 30-256-192-2",
        partial(mlp, (30, 256, 192, 2)),
        TrainingSettings(epochs=30, batch_size=32, learning_rate=3e-3),
        "table classes",
        "accuracy, %",
        tables.cancer_task,
    ),
    "diabetes-mlp": ZooEntry(
        "mlp",
        "diabetes",
        "linear layers 10-256-192-1",
        partial(mlp, (10, 256, 192, 1)),
        TrainingSettings(epochs=6, batch_size=32, learning_rate=1e-3),
        "table regression",
        "R2",
        tables.diabetes_task,
    ),
    "tones-cnn": ZooEntry(
        "waves",
        "chords",
        "128-tap filters, then two convolutions of 5 taps",
        partial(tones.ToneCNN, 64, 128, 8, 2 * tones.ROOTS),
        TrainingSettings(epochs=5, weight_decay=0.05),
        "wave classes",
        "accuracy, %",
        tones.make_task,
    ),
}


TRAINED_HERE = tuple(name for name, entry in ZOO.items() if entry.training is not None)
"""Names of the networks that are trained on the spot, of all families."""


def zoo_entry(name: str) -> ZooEntry:
    """Returns a network's entry; raises ConfigurationError with the nearest names on an unknown one."""
    if name.endswith(".py"):
        raise ConfigurationError(
            f"{name!r} is a file: write '{name}:FUNCTION' with the function that returns the network"
        )
    if name not in ZOO:
        raise unknown_name("network", name, ZOO)
    return ZOO[name]


def untrained(name: str, seed: int = 0) -> nn.Module:
    """Builds a network of the zoo with random weights drawn from `seed`; the global generator is left alone."""
    entry = zoo_entry(name)
    with reproducible(seed):
        return entry.network()


def trained(name: str, dataset: Dataset | None = None) -> nn.Module:
    """Returns a network in eval mode, trained now or in an earlier run.

    Args:
        name: of a network that is trained on the spot.
        dataset: on whose training split a classifier of images is trained, the digits where None; a network with a
            task of its own takes none.

    Raises:
        ModelError: the network needs a file of weights, or the dataset has other images or classes.
        ConfigurationError: no network has this name.
    """
    make_task = zoo_entry(name).make_task
    data = dataset or (make_task() if make_task else load_dataset("digits"))
    settings = trainable(name, data)
    network = untrained(name, settings.seed)
    cached = cache_folder("zoo") / f"{name}-{_training_key(network, settings, data)}.safetensors"
    weights = read_tensors(cached)
    if weights is None:
        with reproducible(settings.seed):
            if isinstance(data, Task):
                fit_task(network, data, settings, f"Training {name}")
            else:
                fit(network, data.train, settings, f"Training {name}")
        write_tensors(cached, network.state_dict())
    else:
        network.load_state_dict(weights)
    return network.eval()


def trainable(name: str, data: Dataset | Task) -> TrainingSettings:
    """Returns how a network is trained on the spot; raises as `trained` does."""
    entry = zoo_entry(name)
    if entry.training is None:
        raise ModelError(
            f"network {name!r} is not trained on the spot: give a file of weights with --weights, or choose one of "
            f"{', '.join(sorted(TRAINED_HERE))}"
        )
    if isinstance(data, Task):
        return entry.training
    if entry.make_task is not None:
        raise ModelError(
            f"network {name!r} is no classifier of images: it has a task and data of its own ({entry.task}: "
            f"{entry.dataset}) and takes no dataset: leave out --data"
        )
    if data.input_shape != (1, 8, 8) or data.num_classes != 10:
        raise ModelError(
            f"network {name!r} is for the digits, images (1, 8, 8) of 10 classes; the dataset {data.name!r} has "
            f"{data.input_shape} and {data.num_classes}"
        )
    return entry.training


def _training_key(network: nn.Module, settings: TrainingSettings, data: Dataset | Task) -> str:
    # What a forward pass, the training loop or a loss does is in their code only.
    modules = [type(network).__module__, fit.__module__]
    if isinstance(data, Task):
        modules.append(data.loss.__module__)
        tensors = [tensor for batch in data.calibration for tensor in tensors_in(batch)]
    else:
        tensors = [data.train.images, data.train.labels]
    code = {module for module in modules if module.startswith("plywise.")}
    digest = hashlib.sha256(f"{network}{settings}{code_digest(*sorted(code))}".encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
    for values in tensors:
        digest.update(values.numpy().tobytes())
    if isinstance(data, Dataset) and data.preprocessing.source == GIVEN:
        digest.update(repr((data.mean, data.std)).encode())
    return digest.hexdigest()[:16]

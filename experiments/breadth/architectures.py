"""Architectures with random weights, each with batches that it takes."""

import contextlib
import importlib
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from plywise.compressors.errors import DataError
from plywise.env.task.batch import Batch
from plywise.experiments.families.detector import Detector
from plywise.experiments.families.language_models import GPT, GRULanguageModel
from plywise.experiments.families.tones import ToneCNN
from plywise.experiments.families.unet import UNet

CLASSES, WORDS, LENGTH = 10, 100, 12

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float scale, int height, int width, int sampling, bool aligned) -> Tensor",
)
"""Of torchvision, whose Python looks for them; its compiled part only loads into the torch that it was built with."""

_kept: list[torch.library.Library] = []


@dataclass(frozen=True)
class Architecture:
    """One network.

    Attributes:
        source: package that it comes from; `plywise` for our own.
        build: makes it with random weights.
        batch: makes inputs of a number of items.
    """

    source: str
    build: Callable[[], nn.Module]
    batch: Callable[[int], Batch]


def package(name: str) -> ModuleType:
    """Returns a package; raises DataError where it is not installed."""
    with contextlib.suppress(ImportError):
        _import_torchvision()  # the others look for it as well
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"{name} is not installed: pip install 'plywise[breadth]'") from error


def _import_torchvision() -> None:
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # its compiled part does not load
        for name in [each for each in sys.modules if each.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for schema in OPERATORS:
            library.define(schema)  # type: ignore[no-untyped-call]
        _kept.append(library)
        importlib.import_module("torchvision")


def images(size: int, count: int) -> Tensor:
    """Returns images `(count, 3, size, size)` of random numbers."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def words(count: int) -> dict[str, Tensor]:
    """Returns what tokenisers give: indices and a mask of padding, `(count, LENGTH)` each."""
    generator = torch.Generator().manual_seed(count)
    mask = torch.ones(count, LENGTH, dtype=torch.int64)
    mask[::2, LENGTH - 3 :] = 0
    return {"input_ids": torch.randint(WORDS, (count, LENGTH), generator=generator), "attention_mask": mask}


def _vision(name: str, size: int, **settings: Any) -> Architecture:
    def build() -> nn.Module:
        make = getattr(package("torchvision").models, name)
        made: nn.Module = make(**({} if isinstance(make, type) else {"weights": None}), num_classes=CLASSES, **settings)
        return made

    return Architecture("torchvision", build, partial(images, size))


def _timm(name: str, size: int, **settings: Any) -> Architecture:
    def build() -> nn.Module:
        made: nn.Module = package("timm").create_model(name, pretrained=False, num_classes=CLASSES, **settings)
        return made

    return Architecture("timm", build, partial(images, size))


def _text(model: str, config: str, **settings: Any) -> Architecture:
    def build() -> nn.Module:
        library = package("transformers")
        made: nn.Module = getattr(library, model)(getattr(library, config)(vocab_size=WORDS, **settings))
        return made

    return Architecture("transformers", build, words)


class SequenceClassifier(nn.Module):
    """A recurrence over vectors, classified by its last state."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.recurrent = kind(24, 96, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(192, CLASSES)

    def forward(self, sequence: Tensor) -> Tensor:
        """Maps `(n, steps, 24)` to logits `(n, CLASSES)`."""
        logits: Tensor = self.head(self.recurrent(sequence)[0][:, -1])
        return logits


class VolumeClassifier(nn.Module):
    """3-d convolutions with BatchNorm over volumes."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 64)
        blocks = [
            nn.Sequential(nn.Conv3d(before, after, 3, 2, 1), nn.BatchNorm3d(after), nn.ReLU())
            for before, after in itertools.pairwise(widths)
        ]
        self.body, self.head = nn.Sequential(*blocks), nn.Linear(widths[-1], CLASSES)

    def forward(self, volume: Tensor) -> Tensor:
        """Maps `(n, 1, depth, height, width)` to logits `(n, CLASSES)`."""
        logits: Tensor = self.head(self.body(volume).mean((2, 3, 4)))
        return logits


def _numbers(*shape: int, whole: int = 0) -> Callable[[int], Tensor]:
    def batch(count: int) -> Tensor:
        generator = torch.Generator().manual_seed(count)
        if whole:
            return torch.randint(whole, (count, *shape), generator=generator)
        return torch.randn(count, *shape, generator=generator)

    return batch


def _own(build: Callable[[], nn.Module], batch: Callable[[int], Batch]) -> Architecture:
    return Architecture("plywise", build, batch)


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": _vision("resnet18", 48),
    "resnet50": _vision("resnet50", 48),
    "resnext50_32x4d": _vision("resnext50_32x4d", 48),
    "mobilenet_v3_small": _vision("mobilenet_v3_small", 48),
    "mnasnet0_5": _vision("mnasnet0_5", 48),
    "efficientnet_b0": _vision("efficientnet_b0", 48),
    "regnet_y_400mf": _vision("regnet_y_400mf", 48),
    "shufflenet_v2_x0_5": _vision("shufflenet_v2_x0_5", 64),
    "squeezenet1_1": _vision("squeezenet1_1", 64),
    "densenet121": _vision("densenet121", 48),
    "googlenet": _vision("googlenet", 64, init_weights=False, aux_logits=False),
    "vit": _vision(
        "VisionTransformer",
        64,
        image_size=64,
        patch_size=16,
        num_layers=4,
        num_heads=4,
        hidden_dim=192,
        mlp_dim=768,
    ),
    "swin": _vision(
        "SwinTransformer",
        64,
        patch_size=[4, 4],
        embed_dim=48,
        depths=[2, 2, 2, 1],
        num_heads=[2, 4, 8, 16],
        window_size=[7, 7],
    ),
    "vit_tiny": _timm("vit_tiny_patch16_224", 64, img_size=64),
    "swin_timm": _timm(
        "swin_tiny_patch4_window7_224", 56, img_size=56, embed_dim=48, depths=(2, 2, 2, 1), num_heads=(2, 4, 8, 16)
    ),
    "convnext_atto": _timm("convnext_atto", 64),
    "ghostnet_100": _timm("ghostnet_100", 64),
    "repvgg_a0": _timm("repvgg_a0", 64),
    "poolformer_s12": _timm("poolformer_s12", 64),
    "pvt_v2_b0": _timm("pvt_v2_b0", 64),
    "bert": _text(
        "BertForSequenceClassification",
        "BertConfig",
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
    ),
    "distilbert": _text(
        "DistilBertForSequenceClassification", "DistilBertConfig", dim=128, n_layers=2, n_heads=4, hidden_dim=256
    ),
    "gpt2": _text("GPT2LMHeadModel", "GPT2Config", n_embd=128, n_layer=2, n_head=4, n_positions=32, use_cache=False),
    "llama": _text(
        "LlamaForCausalLM",
        "LlamaConfig",
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        use_cache=False,
    ),
    "unet": _own(partial(UNet, (16, 32, 64), 11), _numbers(1, 32, 32)),
    "detector": _own(partial(Detector, 16, 15), _numbers(1, 32, 32)),
    "gpt": _own(partial(GPT, 64, 2, 4, 64), _numbers(64, whole=256)),
    "gru_language_model": _own(partial(GRULanguageModel, 64, 160), _numbers(32, whole=256)),
    "lstm_classifier": _own(partial(SequenceClassifier, nn.LSTM), _numbers(20, 24)),
    "gru_classifier": _own(partial(SequenceClassifier, nn.GRU), _numbers(20, 24)),
    "conv3d": _own(VolumeClassifier, _numbers(1, 16, 16, 16)),
    "audio_cnn": _own(partial(ToneCNN, 64, 128, 8, 24), _numbers(1, 4000)),
}

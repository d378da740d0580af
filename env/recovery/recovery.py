"""Fine-tuning of a compressed network: a plain loop that keeps what compression promised."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.compressors.recipes.plan import Plan
from plywise.env.execution.progress import Tracker, untracked
from plywise.env.recovery.gradient_rounding import GradientRounding
from plywise.env.recovery.recovery_settings import RecoverySettings
from plywise.env.recovery.recovery_state import RecoveryState
from plywise.env.recovery.scaled_adam import ScaledAdam
from plywise.env.recovery.trainable import GAIN, TrainableNetwork
from plywise.env.recovery.training_data import TrainingData
from plywise.env.storage.timing_lock import working
from plywise.env.subject import Subject
from plywise.env.task.batch import Batch
from plywise.env.task.interface import with_forward
from plywise.env.task.judge import Judge
from plywise.env.task.outputs import divergences, logits_in
from plywise.env.task.samples import laid_out

TEMPERATURE = 4.0
"""Of both networks' outputs in distillation."""

TAUGHT = 0.5
"""Share of the teacher in the loss of distillation."""

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""

LEAST_SIZE = 1e-3
"""Of a channel for the size of its steps: what is zero shall be able to grow."""

SPLICE_STEPS = 16
"""Steps between two surgeries."""

PORTIONS = (0.5, 0.75, 0.875)
"""What incremental quantisation has rounded in each third of the training; at its end all is.

Source: Zhou et al., Incremental Network Quantization, 2017, section 3.1.
"""

CHECKPOINT_SECONDS = 20.0


@dataclass(frozen=True, eq=False)
class Recovered:
    """A compressed network after fine-tuning.

    Attributes:
        model: with every weight in its format.
        settings: how it was trained.
        accuracies: on the validation samples, percent, before the first epoch and after each.
        sizes: bytes of the packed file, likewise.
        best_epoch: whose weights it has; 0 is before the first.
    """

    model: nn.Module
    settings: RecoverySettings
    accuracies: tuple[float, ...]
    sizes: tuple[int, ...]
    best_epoch: int

    @property
    def accuracy(self) -> float:
        """On the validation samples, percent."""
        return self.accuracies[self.best_epoch]

    def report(self) -> dict[str, Any]:
        """Returns what the report of a run says about it."""
        return {
            "recover": self.settings.mode,
            "epochs": self.settings.epochs,
            "incremental": self.settings.incremental,
            "gradients": self.settings.gradients,
            "gradients_of": list(self.settings.gradients_of) if self.settings.gradients else [],
            "best_epoch": self.best_epoch,
            "validation_accuracies": list(self.accuracies),
            "storage_bytes": list(self.sizes),
        }


def recover(
    subject: Subject,
    plan: Plan,
    data: TrainingData,
    settings: RecoverySettings,
    state_file: Path | None = None,
    track: Tracker = untracked,
    most_bytes: float | None = None,
) -> Recovered:
    """Stitches a plan and fine-tunes the network; the original is not touched.

    Formats and zeros stay as they are, but symbols that move are coded in a few bytes more or less. Where the plan's
    file holds a ceiling before training, only epochs whose file holds it too can be the best.

    Args:
        subject: the network under study; its validation samples pick the epoch.
        plan: how it is compressed.
        data: what to train on.
        settings: how to train.
        state_file: where an interrupted run goes on from; None where it need not.
        track: shows progress.
        most_bytes: ceiling on the packed file's bytes, None for none.

    Raises:
        ConfigurationError: where the plan does not fit, or `state_file` is of another run.
        FileFormatError: where `state_file` is damaged.
    """
    run = _Run(subject, TrainableNetwork(subject.bank, plan), data, settings, most_bytes)
    recipes = {name: str(recipe) for name, recipe in plan.items()}
    asked = {"key": subject.key, "plan": recipes, "most_bytes": most_bytes, **settings.as_json()}
    state = None if state_file is None else RecoveryState.read(state_file, asked)
    if state is None:
        run.judge()
    else:
        run.set_state(state)
    saved = time.monotonic()
    with run.rounding.errors(run.network):
        for _ in track(range(run.step, run.steps), f"{subject.network.name}: fine-tuning", run.steps - run.step):
            run.advance()
            if state_file is not None and time.monotonic() - saved >= CHECKPOINT_SECONDS:
                run.state().write(state_file, asked)
                saved = time.monotonic()
    run.network.set_state(run.best)
    return Recovered(run.network.realise(), settings, tuple(run.accuracies), tuple(run.sizes), run.best_epoch)


class _Run:
    """Where a run of fine-tuning stands."""

    def __init__(
        self,
        subject: Subject,
        network: TrainableNetwork,
        data: TrainingData,
        settings: RecoverySettings,
        most_bytes: float | None = None,
    ) -> None:
        self.network = network
        self.rounding = GradientRounding(settings.quantizer(), settings.gradients_of)
        self.steps_per_epoch = data.steps(settings.batch_size)
        self.steps = settings.epochs * self.steps_per_epoch
        self.step = 0
        self.accuracies: list[float] = []
        self.sizes: list[int] = []
        self.best = network.state()
        self._subject, self._data, self._settings = subject, data, settings
        self._most_bytes = math.inf if most_bytes is None else most_bytes
        sized = [(parameter, _size(name, parameter.detach())) for name, parameter in network.parameters.items()]
        self._optimizer = ScaledAdam(sized, settings.learning_rate)

    @working()
    def advance(self) -> None:
        """Trains on one batch, and looks at the validation samples at the end of an epoch."""
        self._compress()
        batch = self._data.batch(self.step, self._settings.batch_size, self._settings.seed)
        loss = self._loss(laid_out(batch, self._subject.network.memory_format))
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.rounding.parameters(self.network.parameters)
        self._optimizer.param_groups[0]["lr"] = self._settings.learning_rate * self._pace()
        self._optimizer.step()
        self.step += 1
        if self.step % self.steps_per_epoch == 0:
            self.judge()

    def judge(self) -> None:
        """Notes accuracy and file size of the network with every weight in its format, and keeps the best."""
        validation, model = self._subject.validation, self.network.realise()
        self.accuracies.append(validation.score(model).value)
        self.sizes.append(self._subject.packed_bytes(model))
        if self.best_epoch == len(self.accuracies) - 1:
            self.best = self.network.state()

    @property
    def best_epoch(self) -> int:
        """The first of the highest accuracy among those that hold the ceiling, or among all if the plan does not."""
        ceiling = self._most_bytes if self.sizes[0] <= self._most_bytes else math.inf
        holding = [epoch for epoch, size in enumerate(self.sizes) if size <= ceiling]
        return max(holding, key=self.accuracies.__getitem__)

    def state(self) -> RecoveryState:
        """Returns everything that the run needs to go on."""
        judged = tuple(self.accuracies), tuple(self.sizes)
        return RecoveryState(self.step, *judged, self.network.state(), self.best, self._moments())

    def set_state(self, state: RecoveryState) -> None:
        """Goes back to a state."""
        self.step, self.best = state.step, state.best
        self.accuracies, self.sizes = list(state.accuracies), list(state.sizes)
        self.network.set_state(state.network)
        for key, value in state.moments.items():
            kind, _, name = key.partition(" ")
            self._optimizer.state[self.network.parameters[name]][kind] = value

    def _compress(self) -> None:
        """Lets weights leave and come back, and freezes another portion of them, where it is time to."""
        if self.step % SPLICE_STEPS == 0 and self.step:
            self.network.splice()
        starts = [math.ceil(third * self.steps / len(PORTIONS)) for third in range(len(PORTIONS))]
        if self._settings.incremental and self.step in starts:
            last = len(starts) - 1 - starts[::-1].index(self.step)
            for name, frozen in self.network.freeze(PORTIONS[last]).items():
                moments = self._optimizer.state.get(self.network.parameters[name], {})
                if moments:  # what no gradient reaches must not coast on
                    moments["exp_avg"].masked_fill_(frozen, 0.0)

    def _loss(self, batch: Batch) -> Tensor:
        judge, network = self._subject.validation.judge, self._subject.network
        outputs = judge.forward(with_forward(self.network.model, self.network), batch)
        loss = None if judge.loss is None else judge.loss(outputs, batch)
        if loss is not None and self._settings.mode != "distill":
            return loss
        with torch.no_grad():
            taught = judge.forward(network.model, batch)
        taught_loss = distillation(outputs, taught, judge)
        return taught_loss if loss is None else (1 - TAUGHT) * loss + TAUGHT * taught_loss

    def _pace(self) -> float:
        """Returns the share of the peak learning rate at this step."""
        rise = min(1.0, (self.step + 1) / max(1.0, WARM_UP * self.steps))
        return rise * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))

    def _moments(self) -> dict[str, Tensor]:
        return {
            f"{key} {name}": value.clone()
            for name, parameter in self.network.parameters.items()
            for key, value in self._optimizer.state.get(parameter, {}).items()
        }


def distillation(outputs: Any, taught: Any, judge: Judge) -> Tensor:
    """Returns how far outputs are from the teacher's, a scalar: of lone logits, softened ones; else by the distance."""
    logits = logits_in(outputs)
    if judge.distance is divergences and logits is not None and logits.dim() == 2:
        teacher = logits_in(taught)
        assert teacher is not None
        return divergence_at(TEMPERATURE, logits, teacher)
    return judge.distance(outputs, taught).mean()


def divergence_at(temperature: float, logits: Tensor, taught: Tensor) -> Tensor:
    """Returns the Kullback-Leibler divergence of the teacher's softened outputs from the network's, a scalar.

    Scaled so that its gradient does not depend on the temperature.
    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2.
    """
    softened = [F.log_softmax(each / temperature, 1) for each in (logits, taught)]
    return temperature**2 * F.kl_div(softened[0], softened[1], reduction="batchmean", log_target=True)


def _size(name: str, parameter: Tensor) -> Tensor:
    """Returns the root mean square of each output channel `(out, 1, ...)`, or of all of a parameter of one axis.

    Merged BatchNorms leave channels of very different sizes, and one absolute step would shake the small ones.
    Departure from You et al., Large Batch Training of Convolutional Networks, 2017, section 4: a unit that stays, and
    one for each channel rather than for each layer.
    """
    if name.startswith(GAIN):
        return torch.ones(())  # logarithms are relative as they are
    axes = tuple(range(1, parameter.dim())) or (0,)
    return parameter.square().mean(axes, keepdim=True).sqrt().clamp(min=LEAST_SIZE)

"""How a compressed network is fine-tuned."""

from dataclasses import asdict, dataclass
from typing import Any

from plywise.compressors.errors import ConfigurationError, unknown_name
from plywise.compressors.plain_values import as_number, as_whole
from plywise.compressors.quantization.weight_quantizer import WeightQuantizer
from plywise.compressors.recipes.technique import Recipe

MODES = ("finetune", "distill")

GRADIENTS = ("weights", "biases", "errors")
"""What a quantiser of gradients may act on; errors are the gradients with respect to the outputs of layers."""

USUAL_EPOCHS, MOST_EPOCHS = 3, 100_000


@dataclass(frozen=True)
class RecoverySettings:
    """How a compressed network is fine-tuned: Adam, a short warm-up, then a cosine down to zero.

    Attributes:
        mode: `finetune` on the labels, or `distill` with the original as the teacher as well.
        epochs: passes over the training images.
        batch_size: images of a step.
        learning_rate: at its peak, in units of the root mean square of the weights of each output channel.
        incremental: whether weights are rounded and frozen portion by portion.
        gradients: weight quantiser for gradients as in a recipe, such as `dynamic_fixed_point(width=8)`, or None.
        gradients_of: which gradients it rounds, of `GRADIENTS`.
        seed: of the order of the images and their distortions.
    """

    mode: str = "finetune"
    epochs: int = USUAL_EPOCHS
    batch_size: int = 32
    learning_rate: float = 1e-3
    incremental: bool = False
    gradients: str | None = None
    gradients_of: tuple[str, ...] = GRADIENTS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown_name("way to recover", self.mode, MODES)
        epochs, rate = as_whole(self.epochs), as_number(self.learning_rate)
        if epochs is None or not 1 <= epochs <= MOST_EPOCHS:
            raise ConfigurationError(
                f"epochs={self.epochs!r} must be 1 to {MOST_EPOCHS:,}, a whole number: give such a one or leave out "
                "'recover'"
            )
        if self.batch_size < 1 or rate is None or not 0 < rate < 1:
            raise ConfigurationError(
                f"batch_size={self.batch_size} must be at least 1 and learning_rate={self.learning_rate!r} between 0 "
                "and 1"
            )
        object.__setattr__(self, "epochs", epochs)
        object.__setattr__(self, "learning_rate", rate)
        for each in self.gradients_of:
            if each not in GRADIENTS:
                raise unknown_name("kind of gradient", each, GRADIENTS)
        if not self.gradients_of:
            raise ConfigurationError(f"gradients_of names nothing; choose of {', '.join(GRADIENTS)}")
        self.quantizer()

    def as_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {**asdict(self), "gradients_of": list(self.gradients_of)}

    def quantizer(self) -> WeightQuantizer | None:
        """Returns what rounds gradients; raises ConfigurationError where the text is no weight quantiser."""
        if self.gradients is None:
            return None
        techniques = Recipe.parse(self.gradients).techniques
        if len(techniques) != 1 or not isinstance(techniques[0], WeightQuantizer):
            raise ConfigurationError(
                f"gradients={self.gradients!r} must be one quantiser of weights, for example "
                "'dynamic_fixed_point(width=8)'"
            )
        return techniques[0]


def make_recovery(
    recover: str | None,
    epochs: int | None = None,
    incremental: bool = False,
    gradients: str | None = None,
    gradients_of: tuple[str, ...] = (),
    seed: int = 0,
) -> RecoverySettings | None:
    """Builds the settings from a user's options, None where nothing is to be recovered.

    Raises:
        ConfigurationError: on a value that is not allowed, or options for a recovery that is not asked for.
    """
    if recover is None:
        options = {"epochs": epochs, "incremental": incremental, "gradients": gradients, "gradients_of": gradients_of}
        given = [name for name, value in options.items() if value or (value == 0 and value is not False)]
        if given:
            raise ConfigurationError(
                f"{', '.join(given)} mean nothing without fine-tuning: add 'recover', one of {', '.join(MODES)}"
            )
        return None
    if gradients_of and gradients is None:
        raise ConfigurationError("gradients_of means nothing without 'gradients', which says how they are rounded")
    chosen = USUAL_EPOCHS if epochs is None else epochs
    return RecoverySettings(
        mode=recover,
        epochs=chosen,
        incremental=incremental,
        gradients=gradients,
        gradients_of=gradients_of or GRADIENTS,
        seed=seed,
    )

"""A warning where the original hardly does better than guessing, mostly because its inputs are normalised wrongly."""

import sys

from plywise.experiments.data.dataset import Dataset


def near_chance(accuracy: float, classes: int) -> bool:
    """Returns whether an accuracy in percent is at most twice that of guessing; of few classes, a quarter above it."""
    chance = 100.0 / classes
    return accuracy <= chance + min(chance, (100.0 - chance) / 4.0)


def chance_warning(accuracy: float, dataset: Dataset, network: str = "the original") -> str | None:
    """Returns what to say about a network, None where it does well enough.

    Args:
        accuracy: percent.
        dataset: that it was measured on.
        network: what to call it.
    """
    if not near_chance(accuracy, dataset.num_classes):
        return None
    return (
        f"{network} reaches {accuracy:.1f} %, hardly more than guessing ({100.0 / dataset.num_classes:.1f} %), so no "
        f"figure here means anything. Inputs were prepared as {dataset.preprocessing}: give what the network was "
        "trained with as --mean and --std, one number or one for each channel, such as --mean 0.49,0.48,0.45, "
        "--size and --channels likewise; or the weights or the order of the classes are not those of the data"
    )


def tell(warning: str | None) -> None:
    """Says a warning on the standard error stream so that nobody overlooks it."""
    if warning is not None:
        line = "!" * 100
        print(f"{line}\nWARNING: {warning}\n{line}", file=sys.stderr)

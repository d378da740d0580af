"""A trained agent: the policy's weights, what they were trained on, and their files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from plywise.agent.learning.policy import RecipeScorer, legal_rows
from plywise.compressors.atomic_file import write_atomically
from plywise.compressors.errors import FileFormatError
from plywise.compressors.tensor_file import TensorFile

FORMAT = "plywise-agent"
VERSION = 1
WEIGHTS = TensorFile("policy/1", "restore both files or train the agent again", "torch")
LARGEST_SIZE = 4096
"""No context, row or hidden layer of ours is wider; a file that says so is damaged or hostile."""


@dataclass(frozen=True)
class RecipeAgent:
    """Picks recipes from menus of any length.

    Attributes:
        scorer: the policy network.
        context_features, recipe_features: names of what it was trained to read, in order; empty where unnamed.
        training: the settings of its training; empty for an untrained agent.
        trained_steps: environment steps that it has learned from.
    """

    scorer: RecipeScorer
    context_features: tuple[str, ...] = ()
    recipe_features: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    trained_steps: int = 0

    @classmethod
    def untrained(cls, context_size: int, row_size: int, seed: int) -> Self:
        """Returns an agent with random weights; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(RecipeScorer(context_size, row_size))

    def act(
        self,
        context: NDArray[np.float32],
        recipes: NDArray[np.float32],
        masks: NDArray[np.bool_],
        deterministic: bool = True,
        generator: np.random.Generator | None = None,
        temperature: NDArray[np.float32] | float = 1.0,
    ) -> NDArray[np.int64]:
        """Picks one row of each menu.

        Args:
            context: `(n, C)`.
            recipes: `(n, K, F)`, any K.
            masks: `(n, K)`, True on legal rows.
            deterministic: the best row; otherwise a row drawn from the policy.
            generator: where draws come from; needed if not deterministic.
            temperature: one for all menus or `(n,)`; above 1, draws stray further from the best row.

        Returns:
            Row indices `(n,)`.

        Raises:
            ValueError: a menu without a legal row, or draws without a generator.
        """
        if not deterministic and generator is None:
            raise ValueError("drawing recipes at random needs a generator: pass numpy.random.default_rng(seed)")
        with torch.no_grad():
            rows = torch.as_tensor(recipes, dtype=torch.float32)
            logits, _ = self.scorer(torch.as_tensor(context, dtype=torch.float32), rows)
            logits = logits / torch.as_tensor(temperature, dtype=torch.float32).reshape(-1, 1)
            scores = logits.masked_fill(~legal_rows(rows, masks), -torch.inf).numpy()
        if not deterministic and generator is not None:
            scores = scores + generator.gumbel(size=scores.shape)  # the largest is then a draw from the softmax
        actions: NDArray[np.int64] = np.argmax(scores, axis=1)
        return actions

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the weights as stored."""
        return hashlib.sha256(self._weights()).hexdigest()

    def save(self, folder: Path) -> None:
        """Writes `policy.safetensors` and `agent.json` into `folder`, each atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        description = {
            "format": FORMAT,
            "version": VERSION,
            "context_size": self.scorer.context_size,
            "recipe_size": self.scorer.recipe_size,
            "hidden": self.scorer.hidden,
            "context_features": list(self.context_features),
            "recipe_features": list(self.recipe_features),
            "training": dict(self.training),
            "trained_steps": self.trained_steps,
            "weights_sha256": self.weights_hash,
        }
        write_atomically(folder / "policy.safetensors", self._weights())
        write_atomically(folder / "agent.json", json.dumps(description, indent=2, allow_nan=False).encode())

    @classmethod
    def load(cls, folder: Path, context_features: Sequence[str] = (), recipe_features: Sequence[str] = ()) -> Self:
        """Reads an agent; executes no code.

        Args:
            folder: where `save` wrote it.
            context_features, recipe_features: what the environment at hand offers; compared where given.

        Raises:
            FileFormatError: a file is missing, damaged, of another version or for other features.
        """
        description = _read_description(folder / "agent.json")
        for kind, offered in (("context_features", context_features), ("recipe_features", recipe_features)):
            _check_features(folder, kind, description[kind], offered)
        scorer = RecipeScorer(description["context_size"], description["recipe_size"], description["hidden"])
        scorer.load_state_dict(_read_weights(folder / "policy.safetensors", scorer, description["weights_sha256"]))
        return cls(
            scorer,
            tuple(description["context_features"]),
            tuple(description["recipe_features"]),
            description["training"],
            description["trained_steps"],
        )

    def _weights(self) -> bytes:
        return WEIGHTS.content(self.scorer.state_dict(), {})


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileFormatError(f"{path} is missing: give the folder of a trained agent, or train one") from None
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not readable JSON ({error}); train the agent again or restore it") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise FileFormatError(f"{path} does not describe an agent: 'format' must be {FORMAT!r}")
    if description.get("version") != VERSION:
        given = description.get("version")
        raise FileFormatError(
            f"{path} has version {given!r}, this Plywise reads version {VERSION}; train the agent again"
        )
    _check_fields(path, description)
    return description


def _check_fields(path: Path, description: Mapping[str, Any]) -> None:
    kinds: dict[str, type] = {"training": dict, "trained_steps": int, "weights_sha256": str}
    kinds |= {"context_features": list, "recipe_features": list}
    for name, kind in kinds.items():
        if not isinstance(description.get(name), kind):
            raise FileFormatError(
                f"{path}: {name!r} is {description.get(name)!r}, which must be a {kind.__name__}; restore the file"
            )
    for name in ("context_features", "recipe_features"):
        strange = [each for each in description[name] if not isinstance(each, str)]
        if strange:
            raise FileFormatError(f"{path}: {name!r} holds {strange[0]!r:.80}, which is no name; restore the file")
    if isinstance(description["trained_steps"], bool) or description["trained_steps"] < 0:
        given = description["trained_steps"]
        raise FileFormatError(f"{path}: 'trained_steps' is {given!r}, which must be at least 0; restore the file")
    for name in ("context_size", "recipe_size", "hidden"):
        size = description.get(name)
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= LARGEST_SIZE:
            raise FileFormatError(f"{path}: {name!r} is {size!r}, which must be 1 to {LARGEST_SIZE}; restore the file")


def _check_features(folder: Path, kind: str, trained: Sequence[str], offered: Sequence[str]) -> None:
    if offered and trained and tuple(offered) != tuple(trained):
        missing, new = sorted(set(trained) - set(offered)), sorted(set(offered) - set(trained))
        raise FileFormatError(
            f"the agent in {folder} was trained on other {kind}: it needs {missing}, the environment adds {new} "
            f"({len(trained)} against {len(offered)}, and the order counts); train it again"
        )


def _read_weights(path: Path, scorer: RecipeScorer, sha256: str) -> dict[str, torch.Tensor]:
    tensors, _ = WEIGHTS.read(path)
    expected = {name: tuple(tensor.shape) for name, tensor in scorer.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if given != expected:
        raise FileFormatError(f"{path} holds {given}, agent.json describes {expected}; restore both files")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise FileFormatError(f"{path} and agent.json do not belong together; restore both files")
    if not all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise FileFormatError(f"{path} holds weights that are not finite float32 numbers; train the agent again")
    return tensors

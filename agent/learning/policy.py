"""The policy network: one scorer, shared by all rows of a menu of recipes, and a value head.

No parameter's size depends on the number of recipes or layers, so that one trained policy serves any network
and any catalogue.
"""

import math
from typing import Any

import torch
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib.common.maskable.distributions import MaskableCategorical, MaskableCategoricalDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

Masks = Tensor | NDArray[Any] | None
Observation = dict[str, Tensor]


class RecipeScorer(nn.Module):
    """Scores every row of a menu, given the context and a summary of the whole menu.

    Each row is read together with the context, once by itself and once alongside the mean and the maximum over the
    menu's real rows (Deep Sets, Zaheer et al. 2017, section 3). The order of the rows does not matter.

    Args:
        context_size: features of the context, C.
        recipe_size: features of a row, F; the last is 1 on a real row and 0 on padding.
        hidden: width of all hidden layers.
    """

    def __init__(self, context_size: int, recipe_size: int, hidden: int = 64) -> None:
        super().__init__()
        self.context_size, self.recipe_size, self.hidden = context_size, recipe_size, hidden
        self.context = nn.Sequential(nn.Linear(context_size, hidden), nn.Tanh(), nn.Linear(hidden, hidden))
        self.row = nn.Linear(recipe_size, hidden, bias=False)
        self.menu = nn.Linear(2 * hidden, hidden)
        self.mix = nn.Linear(hidden, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.value = nn.Sequential(
            nn.Linear(context_size + 2 * hidden, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()
        )
        self.value_out = nn.Linear(hidden, 1)
        self._initialise()

    def forward(self, context: Tensor, recipes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits `(n, K)` of the rows and values `(n,)`, from context `(n, C)` and recipes `(n, K, F)`."""
        rows, menu = self._read(context, recipes)
        mixed = self.mix(rows).add_(self.menu(menu).unsqueeze(1)).relu_()  # (n, K, hidden)
        return self.score(mixed).squeeze(-1), self._value(context, menu)

    def values(self, context: Tensor, recipes: Tensor) -> Tensor:
        """Returns values `(n,)` alone."""
        return self._value(context, self._read(context, recipes)[1])

    def _read(self, context: Tensor, recipes: Tensor) -> tuple[Tensor, Tensor]:
        real = recipes[:, :, -1:]  # (n, K, 1)
        # In place: memory traffic, not arithmetic, is what learning waits for.
        rows = self.row(recipes).add_(self.context(context).unsqueeze(1)).mul_(real).relu_()  # (n, K, hidden)
        mean = rows.sum(dim=1) / real.sum(dim=1).clamp(min=1.0)
        # Rows are never negative, so the zeros of padding cannot win. amax is nine times faster, its gradient slower.
        highest = rows.max(dim=1).values if torch.is_grad_enabled() else rows.amax(dim=1)
        return rows, torch.cat([mean, highest], dim=1)

    def _value(self, context: Tensor, menu: Tensor) -> Tensor:
        # Detached: the scale of returns differs between demands and must not drown the scorer's own gradient.
        out: Tensor = self.value_out(self.value(torch.cat([context, menu.detach()], dim=1)))
        return out.squeeze(-1)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                gain = {self.score: 0.01, self.value_out: 1.0}.get(module, math.sqrt(2.0))
                nn.init.orthogonal_(module.weight, gain)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def legal_rows(recipes: Tensor, masks: Masks) -> Tensor:
    """Returns the boolean mask `(n, K)` of rows that may be picked; without `masks` all real rows may.

    Raises:
        ValueError: a menu has no legal row. A softmax over it would pick an illegal one in silence.
    """
    given = recipes[:, :, -1] if masks is None else torch.as_tensor(masks, device=recipes.device)
    legal = given.reshape(recipes.shape[:2]) > 0.5 if given.dtype != torch.bool else given.reshape(recipes.shape[:2])
    if not bool(legal.any(dim=1).all()):
        raise ValueError(f"no legal recipe in the menus {torch.nonzero(~legal.any(dim=1)).flatten().tolist()}")
    return legal


class RecipePolicy(MaskableActorCriticPolicy):
    """`RecipeScorer` as a policy for sb3-contrib's `MaskablePPO`.

    Args:
        observation_space: `Dict(context: Box(C,), recipes: Box(K, F))`.
        action_space: `Discrete(K)`.
        lr_schedule: learning rate by remaining progress.
        hidden: width of the hidden layers.
    """

    scorer: RecipeScorer

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], lr_schedule: Schedule, hidden: int
    ) -> None:
        self.hidden = hidden
        super().__init__(observation_space, action_space, lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        assert isinstance(self.observation_space, spaces.Dict)
        context, recipes = self.observation_space["context"].shape, self.observation_space["recipes"].shape
        assert context is not None
        assert recipes is not None
        self.scorer = RecipeScorer(context[0], recipes[1], self.hidden)
        # Not SB3's eps of 1e-5: next to a large value gradient the clipped gradient of the scorer is smaller than that.
        self.optimizer = torch.optim.Adam(self.scorer.parameters(), lr=lr_schedule(1.0))

    def forward(  # type: ignore[override]
        self, obs: Observation, deterministic: bool = False, action_masks: Masks = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns actions, values and log probabilities, each `(n,)`."""
        distribution, values = self._decide(obs, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(  # type: ignore[override]
        self, obs: Observation, actions: Tensor, action_masks: Masks = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns values, log probabilities of `actions` and entropies, each `(n,)`."""
        distribution, values = self._decide(obs, action_masks)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(  # type: ignore[override]
        self, obs: Observation, action_masks: Masks = None
    ) -> MaskableCategoricalDistribution:
        """Returns the distribution over the K rows."""
        return self._decide(obs, action_masks)[0]

    def predict_values(self, obs: Observation) -> Tensor:  # type: ignore[override]
        """Returns values `(n,)`."""
        return self.scorer.values(obs["context"], obs["recipes"])

    def _predict(  # type: ignore[override]
        self, observation: Observation, deterministic: bool = False, action_masks: Masks = None
    ) -> Tensor:
        return self.get_distribution(observation, action_masks).get_actions(deterministic=deterministic)

    def _decide(self, obs: Observation, masks: Masks) -> tuple[MaskableCategoricalDistribution, Tensor]:
        logits, values = self.scorer(obs["context"], obs["recipes"])
        distribution = MaskableCategoricalDistribution(logits.shape[1])
        distribution.distribution = MaskableCategorical(
            logits=logits, masks=legal_rows(obs["recipes"], masks), validate_args=False
        )
        return distribution, values

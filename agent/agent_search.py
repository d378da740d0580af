"""The trained agent as a search method: one walk, then more where the budget allows."""

import dataclasses
import math

import numpy as np

from plywise.agent.recipe_agent import RecipeAgent
from plywise.agent.search_method import SearchMethod, SearchResult, Trial
from plywise.env.compression_env import CompressionEnv
from plywise.env.demand import Demand
from plywise.env.evaluator import Evaluator
from plywise.env.prices import PriceTable

CAUTION = (0.5, 4.0)
"""Bounds of the factor by which one exact score may change the estimated drops of the walks after it."""

LEAST_POINTS = 0.1
"""Drops below this say nothing about how far the estimates are off."""

NEWS = 0.1
"""Logarithm of a change of the factor that makes the agent's best walk worth another look."""

TRIES_PER_EVALUATION = 4
"""Walks for each exact score, as draws may repeat plans that are known."""


class AgentSearch(SearchMethod):
    """Walks with the agent's best choices first, then with choices drawn from its policy.

    After each exact score the estimated drops are scaled by what it showed (the geometric mean so far), so that a
    walk that lost more accuracy than promised is followed by more careful ones.

    Attributes:
        agent: who decides.
    """

    name = "ppo"

    def __init__(self, agent: RecipeAgent) -> None:
        self.agent = agent

    def search(self, evaluator: Evaluator, budget: int, seed: int) -> SearchResult:
        """Returns the best of up to `budget` walks; `seed` decides what is drawn."""
        trial = Trial(evaluator, budget)
        generator = np.random.default_rng(seed)
        factor, last, attempts = 1.0, 1.0, 0
        while not trial.spent and attempts < TRIES_PER_EVALUATION * budget:
            table = dataclasses.replace(evaluator.table, drop=evaluator.table.drop * np.float32(factor))
            # A new factor deserves the agent's best walk; with much the same one, only draws show anything new.
            best = attempts == 0 or abs(math.log(factor / last)) > NEWS
            actions = walk(self.agent, table, evaluator.demand, None if best else generator)
            outcome = trial.evaluate(actions)
            expected = float(evaluator.table.drop[np.arange(len(actions)), actions].sum())
            attempts, last = attempts + 1, factor
            if max(expected, outcome.drop) > LEAST_POINTS:
                seen = max(outcome.drop, LEAST_POINTS) / max(expected, LEAST_POINTS)
                factor = float(np.clip(math.sqrt(factor * seen), *CAUTION))
        return trial.result()


def walk(
    agent: RecipeAgent, table: PriceTable, demand: Demand, generator: np.random.Generator | None = None
) -> list[int]:
    """Returns the slots that the agent picks, one per layer.

    Args:
        agent: who decides.
        table: prices of the network.
        demand: what is wanted.
        generator: where draws come from; None for the agent's best choices.
    """
    env = CompressionEnv(table, demand)
    observation, _ = env.reset(seed=0)
    actions: list[int] = []
    done = False
    while not done:
        chosen = agent.act(
            observation["context"][None],
            observation["recipes"][None],
            env.action_masks()[None],
            deterministic=generator is None,
            generator=generator,
        )
        actions.append(int(chosen[0]))
        observation, _, done, _, _ = env.step(chosen[0])
    return actions

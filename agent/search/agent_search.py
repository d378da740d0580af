"""The trained agent as a search method: its walks on paper, and small changes of what they gave."""

from typing import Any

import numpy as np

from plywise.agent.learning.recipe_agent import RecipeAgent
from plywise.agent.search.knapsack import knapsack_plans
from plywise.agent.search.local_changes import improve
from plywise.agent.search.search_method import CountedSearch, SearchMethod
from plywise.env.arrays import Floats, Ints
from plywise.env.score.demand import Demand
from plywise.env.score.evaluator import PlanEstimator
from plywise.env.score.score import Demands, expected_scores
from plywise.env.score.surrogate import Surrogate
from plywise.env.walk.vector_env import BatchedCompressionEnv

SIDE_BY_SIDE = 64
"""Walks taken on paper for each exact score: together they cost little more than one."""

HOTTEST = 4.0
"""Temperature of the last of the walks side by side; that of the others lies between 1 and this."""


class AgentSearch(SearchMethod):
    """Takes several walks on paper at once, the first with the agent's best choices, and scores the most promising one.

    Each exact score teaches the surrogate what the estimates are off by. From then on, walks that know it, plans of an
    integer program and small changes of the best plans so far compete for the next score: see `local_changes.py`.

    Attributes:
        agent: who decides.
        side_by_side: walks on paper for each exact score; 1 takes the agent's best choices only.
    """

    name = "ppo"

    def __init__(self, agent: RecipeAgent, side_by_side: int = SIDE_BY_SIDE) -> None:
        self.agent = agent
        self.side_by_side = side_by_side

    def look(self, counted: CountedSearch, seed: int) -> None:
        """Scores the most promising walks until the budget is spent; `seed` decides what is drawn."""
        generator = np.random.default_rng(seed)

        def walks() -> Ints:
            plans = walk(self.agent, counted.surrogate, counted.demand, self.side_by_side, generator)
            return np.array(plans, np.int64)

        def proposed() -> Ints:
            solved = knapsack_plans(PlanEstimator(counted.surrogate.table), counted.demand)
            return np.concatenate([walks(), solved])

        counted.evaluate(walks()[0].tolist())
        improve(counted, proposed, generator)


def walk(
    agent: RecipeAgent, surrogate: Surrogate, demand: Demand, count: int, generator: np.random.Generator
) -> list[tuple[int, ...]]:
    """Returns the distinct plans of walks side by side, one slot per layer, the best expected score first.

    Args:
        agent: who decides.
        surrogate: of the network.
        demand: what is wanted.
        count: how many walks; the first takes the agent's best choices, the others draw from its policy.
        generator: where draws come from.
    """
    table = surrogate.table
    env = BatchedCompressionEnv([table], demand, count, seed=0, noise=0.0, jitter=0.0)
    temperature = np.linspace(1.0, HOTTEST, count, dtype=np.float32)
    context, recipes = _menus(env.reset())
    infos: list[dict[str, Any]] = []
    for _ in table.layers:
        masks = env.action_masks()
        actions = agent.act(context, recipes, masks, False, generator, temperature)
        actions[:1] = agent.act(context[:1], recipes[:1], masks[:1])
        observation, _, _, infos = env.step(actions)
        context, recipes = _menus(observation)
    plans = np.array(list(dict.fromkeys(tuple(info["plan"]["actions"]) for info in infos)), np.int64)
    expected = expected_scores(Demands.of([demand]), *surrogate.estimate(plans))
    return [tuple(plan) for plan in plans[np.argsort(-expected, kind="stable")].tolist()]


def _menus(observation: Any) -> tuple[Floats, Floats]:
    return observation["context"], observation["recipes"]

"""The environment for one network, in Gymnasium's terms."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from plywise.env.arrays import Bools
from plywise.env.prices.price_stack import PriceStack
from plywise.env.prices.prices import PriceTable
from plywise.env.score.demand import Demand
from plywise.env.score.score import Demands
from plywise.env.walk.demand_sampler import DemandSampler
from plywise.env.walk.observation import Observation, Observer, blank, observation_space
from plywise.env.walk.randomisation import Randomisation
from plywise.env.walk.synthetic import synthetic_table
from plywise.env.walk.walk import Walks


class CompressionEnv(gym.Env[dict[str, Any], np.int64]):
    """Picks a recipe for each layer of one network.

    ## Description
    An episode walks the layers of a network in the order in which they run. At each layer the agent picks one recipe
    from a menu of priced recipes. Cutting channels changes the prices of later layers. At the end the plan is scored
    by storage, latency, energy and accuracy for the demand of the episode.

    ## Action Space
    `Discrete(K)`: a row of the current menu. `action_masks()` says which rows may be chosen: those that suit the
    layer and after which every cost ceiling can still be held; where nothing known can hold them, or not without
    losing more accuracy than is allowed, all that suit it. Any other action is replaced by the allowed
    row with the nearest index, and `info["replaced_action"]` holds it.

    ## Observation Space
    `Dict(context, recipes)`, all numbers without unit, clipped to [-8, 8]:

    | key | shape | meaning | names |
    |---|---|---|---|
    | `context` | `(C,)` | progress, layer, supply curves, demand, what is left of it, device | `CONTEXT_FEATURES` |
    | `recipes` | `(K, F)` | recipe, its prices given upstream choices, what it does to later layers | `ROW_FEATURES` |

    The last feature of a recipe row is 1 where the row may be chosen; all other rows are zero.

    ## Rewards
    With `Phi(s)` the best score that the supply curves promise in state s, a step gives `Phi(s') - Phi(s)` and the
    last step `score - Phi(s)`. This is potential-based shaping (Ng et al., 1999) with discount 1 and
    `Phi(terminal) = 0`: an episode's undiscounted return is `score - Phi(s0)`, and `Phi(s0)` does not depend on what
    the agent does, so the best plan is the plan with the best score. The score's formula: `plywise.env.score.score`.

    ## Starting State
    The first layer, nothing compressed; demand and random factors drawn anew where they are random.

    ## Episode End
    After the last layer (`terminated`; never `truncated`). The observation is then zero and `info["plan"]` holds
    network, actions, layers, recipes, storage, latency, energy (shares of the original's), drop (points), score
    and demand_met.

    ## Arguments
    table: the network's prices; None for a small synthetic one.
    demand: one demand for every episode, or a sampler; None for the default sampler.
    noise, jitter: see `Randomisation`; 0 for the table as it is.

    ## Version History
    v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        table: PriceTable | None = None,
        demand: Demand | DemandSampler | None = None,
        noise: float = 0.0,
        jitter: float = 0.0,
    ) -> None:
        self.table = synthetic_table(np.random.default_rng(0), num_layers=8, num_slots=12) if table is None else table
        self.demand = DemandSampler() if demand is None else demand
        self.randomisation = Randomisation(noise, jitter)
        stack = PriceStack([self.table])
        self.walks = Walks(stack, 1)
        self.observer = Observer(stack)
        self.observation_space = observation_space(stack.num_slots)
        self.action_space = spaces.Discrete(stack.num_slots)
        self._row = np.zeros(1, np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode. There are no options."""
        super().reset(seed=seed)
        reachable = self.randomisation.place(self.walks, self._row, self._row, self.np_random)
        demand = self.demand if isinstance(self.demand, Demand) else self.demand.sample(reachable[0], self.np_random)
        self.walks.start(self._row, Demands.of([demand]))
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes a recipe for the current layer; see the class."""
        allowed = np.flatnonzero(self.walks.outlook.masks[0])
        chosen = allowed[np.abs(allowed - int(action)).argmin()]
        info: dict[str, Any] = {} if chosen == action else {"replaced_action": int(chosen)}
        before = float(self.walks.outlook.potential[0])
        self.walks.step(np.array([chosen]))
        if self.walks.done[0]:
            info["plan"] = self.walks.finished_plans(self._row)[0]
            return blank(self.walks.stack.num_slots), info["plan"]["score"] - before, True, False, info
        return self._observation(), float(self.walks.outlook.potential[0]) - before, False, False, info

    def action_masks(self) -> Bools:
        """Returns which slots may be chosen, `(K,)`."""
        masks: Bools = self.walks.outlook.masks[0].copy()
        return masks

    def _observation(self) -> Observation:
        return {key: value[0].copy() for key, value in self.observer.observe(self.walks).items()}

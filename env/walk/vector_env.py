"""Hundreds of walks as one vectorised environment of Stable-Baselines3, without a Python loop over them."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from plywise.env.arrays import Bools, Ints
from plywise.env.prices.price_stack import PriceStack
from plywise.env.prices.prices import PriceTable
from plywise.env.score.demand import Demand
from plywise.env.score.score import Demands
from plywise.env.walk.demand_sampler import DemandSampler
from plywise.env.walk.observation import Observation, Observer, blank, observation_space
from plywise.env.walk.randomisation import Randomisation
from plywise.env.walk.walk import Walks


class BatchedCompressionEnv(VecEnv):
    """n copies of `CompressionEnv` over several networks; see there for spaces and rewards.

    Each episode draws a network, a demand and random factors anew. Walks of different lengths end at different
    times and start again at once.

    Args:
        tables: the networks to walk.
        sampler: draws the demand of each episode, or one demand for all.
        num_envs: n.
        seed: of everything random in it.
        noise, jitter: see `Randomisation`.
    """

    def __init__(
        self,
        tables: Sequence[PriceTable],
        sampler: DemandSampler | Demand,
        num_envs: int,
        seed: int,
        noise: float = 1.0,
        jitter: float = 1.0,
    ) -> None:
        self.render_mode = None  # VecEnv's constructor asks for it
        self.tables = tuple(tables)
        self.sampler = sampler
        self.randomisation = Randomisation(noise, jitter)
        stack = PriceStack(tables)
        self.walks = Walks(stack, num_envs)
        self.observer = Observer(stack)
        self.generator = np.random.default_rng(seed)
        self._returns = np.zeros(num_envs)
        self._started = time.time()
        self._actions: Ints = np.zeros(num_envs, np.int64)
        super().__init__(num_envs, observation_space(stack.num_slots), spaces.Discrete(stack.num_slots))

    def reset(self) -> Observation:
        """Starts a new episode in every row and returns the first observations."""
        if self._seeds[0] is not None:
            self.generator = np.random.default_rng(self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self._begin(np.arange(self.num_envs))
        self._returns[:] = 0.0
        return self.observer.observe(self.walks)

    def step_async(self, actions: Ints) -> None:
        """Keeps the actions, one legal slot for each row."""
        self._actions = np.asarray(actions, np.int64)

    def step_wait(self) -> VecEnvStepReturn:
        """Takes the step; rows that end start again, and their info holds the finished plan."""
        walks = self.walks
        chosen = walks.outlook.masks[np.arange(self.num_envs), self._actions]
        assert chosen.all(), "an action that the mask forbids"
        before = walks.outlook.potential
        walks.step(self._actions)
        done = walks.done
        ended = np.flatnonzero(done)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        reward = np.zeros(self.num_envs)
        if len(ended):
            reward[ended] = walks.outcomes(ended)[2] - before[ended]
            self._close(ended, reward, infos)
            self._begin(ended)
        reward = np.where(done, reward, walks.outlook.potential - before)
        self._returns = np.where(done, 0.0, self._returns + reward)
        return self.observer.observe(walks), reward.astype(np.float32), done, infos

    def action_masks(self) -> Bools:
        """Returns which slots may be chosen, `(n, K)`."""
        return self.walks.outlook.masks.copy()

    def get_state(self) -> dict[str, Any]:
        """Returns all that the next steps depend on: arrays and values that JSON can hold."""
        state: dict[str, Any] = dict(self.walks.get_state())
        state["returns"] = self._returns.copy()
        state["generator"] = self.generator.bit_generator.state
        return state

    def set_state(self, state: dict[str, Any]) -> Observation:
        """Continues from a state of `get_state` of an environment made with the same arguments.

        Returns:
            The observations of that moment.
        """
        self.walks.set_state(state)
        self._returns = np.array(state["returns"])
        self.generator.bit_generator.state = state["generator"]
        return self.observer.observe(self.walks)

    def _begin(self, rows: Ints) -> None:
        table = self.generator.integers(len(self.tables), size=len(rows))
        reachable = self.randomisation.place(self.walks, rows, table, self.generator)
        if isinstance(self.sampler, Demand):
            demands = [self.sampler] * len(rows)
        else:
            demands = [self.sampler.sample(row, self.generator) for row in reachable]
        self.walks.start(rows, Demands.of(demands))

    def _close(self, rows: Ints, reward: np.ndarray, infos: list[dict[str, Any]]) -> None:
        elapsed = round(time.time() - self._started, 6)
        for row, plan in zip(rows.tolist(), self.walks.finished_plans(rows), strict=True):
            total = float(self._returns[row] + reward[row])
            infos[row] = {
                "terminal_observation": blank(self.walks.stack.num_slots),
                "TimeLimit.truncated": False,
                "episode": {"r": round(total, 6), "l": len(plan["layers"]), "t": elapsed},
                "plan": plan,
            }

    def close(self) -> None:
        """Nothing to close."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Returns an attribute, the same for each of the asked rows."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute for all rows: they share everything."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Calls a method once, for the rows share everything, and returns for each of the asked rows what is its own.

        That is a row of `action_masks`, and of all other methods the same for each.
        """
        found, rows = getattr(self, method_name)(*method_args, **kwargs), list(self._get_indices(indices))
        return [found[row] if method_name == "action_masks" else found for row in rows]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Returns False for each of the asked rows: there are no single environments to wrap."""
        return [False] * len(list(self._get_indices(indices)))

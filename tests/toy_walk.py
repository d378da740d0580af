"""A small batched walk with the contract of the real one: the best row is a function of rows and context."""

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

CONTEXT, ROW, KINDS = 5, 6, 3
RECIPES = ("identity", "filter_pruning(ratio=0.5)", "uniform_quantization(bits=4)")


class ToyWalk(VecEnv):
    """The context names one of three row features (one-hot); a row pays what it has of that feature."""

    def __init__(self, num_envs=16, rows=8, seed=0, breaks_after=None):
        self.render_mode = None
        self.rows, self.generator = rows, np.random.default_rng(seed)
        self.breaks_after = breaks_after
        box = lambda *shape: spaces.Box(-np.inf, np.inf, shape, np.float32)  # noqa: E731
        super().__init__(num_envs, spaces.Dict(context=box(CONTEXT), recipes=box(rows, ROW)), spaces.Discrete(rows))

    def reset(self):
        n = self.num_envs
        self.length = self.generator.integers(3, 6, n)
        self.position = np.zeros(n, np.int64)
        self.total = np.zeros(n)
        self.chosen = np.zeros((n, 6), np.int64)
        self._draw()
        return self._observation()

    def _draw(self):
        n, g = self.num_envs, self.generator
        self.recipes = g.normal(size=(n, self.rows, ROW)).astype(np.float32)
        self.legal = g.random((n, self.rows)) < 0.6
        self.legal[np.arange(n), g.integers(0, self.rows, n)] = True
        self.recipes[:, :, -1] = self.legal
        self.recipes[~self.legal, :KINDS] += 3.0  # what is not allowed would pay most
        self.target = g.integers(0, KINDS, n)

    def _observation(self):
        context = np.zeros((self.num_envs, CONTEXT), np.float32)
        context[np.arange(self.num_envs), self.target] = 1.0
        context[:, -1] = self.position / self.length
        return {"context": context, "recipes": self.recipes.copy()}

    def worth(self):
        return self.recipes[np.arange(self.num_envs)[:, None], np.arange(self.rows)[None], self.target[:, None]]

    def action_masks(self):
        return self.legal.copy()

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        if self.breaks_after is not None:
            self.breaks_after -= 1
            if self.breaks_after < 0:
                raise KeyboardInterrupt
        every = np.arange(self.num_envs)
        assert self.legal[every, self.actions].all(), "an illegal recipe was picked"
        reward = self.worth()[every, self.actions].astype(np.float32)
        self.chosen[every, self.position] = self.actions
        self.position += 1
        self.total += reward
        done = self.position == self.length
        infos = [self._info(i) if done[i] else {} for i in every]
        lengths = self.generator.integers(3, 6, self.num_envs)
        self.position[done], self.total[done], self.length[done] = 0, 0.0, lengths[done]
        self._draw()
        return self._observation(), reward, done, infos

    def _info(self, i):
        steps = int(self.length[i])
        actions = self.chosen[i, :steps].tolist()
        plan = {
            "network": f"net{steps}",
            "actions": actions,
            "layers": tuple(f"layer{j}" for j in range(steps)),
            "recipes": [" + ".join(RECIPES[: 1 + a % 3][1:]) or "identity" for a in actions],
            "storage": 0.5,
            "latency": 0.6,
            "energy": 0.7,
            "drop": 1.0,
            "score": float(self.total[i]),
            "demand_met": bool(self.total[i] > 0),
        }
        episode = {"r": float(self.total[i]), "l": steps, "t": 0.0}
        observation = {"context": np.zeros(CONTEXT, np.float32), "recipes": self.recipes[i].copy()}
        return {"terminal_observation": observation, "TimeLimit.truncated": False, "episode": episode, "plan": plan}

    STATE = ("length", "position", "total", "chosen", "recipes", "legal", "target")

    def get_state(self):
        return {name: getattr(self, name).copy() for name in self.STATE} | {
            "generator": self.generator.bit_generator.state
        }

    def set_state(self, state):
        for name in self.STATE:
            setattr(self, name, state[name].copy())
        self.generator.bit_generator.state = state["generator"]

    def env_method(self, method_name, *args, indices=None, **kwargs):
        return getattr(self, method_name)(*args, **kwargs)

    def get_attr(self, attr_name, indices=None):
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name, value, indices=None):
        setattr(self, attr_name, value)

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs

    def close(self):
        pass


def mean_reward(agent, deterministic=True, rows=8, steps=100):
    """Mean reward of a step, and the best and the mean that the menus allow, on fresh menus."""
    env, draws = ToyWalk(num_envs=32, rows=rows, seed=99), np.random.default_rng(0)
    observation, got, best, average = env.reset(), [], [], []
    for _ in range(steps):
        worth, legal = env.worth(), env.action_masks()
        best.append(np.where(legal, worth, -np.inf).max(axis=1).mean())
        average.append((worth * legal).sum() / legal.sum())
        actions = agent.act(observation["context"], observation["recipes"], legal, deterministic, draws)
        env.step_async(actions)
        observation, reward, _, _ = env.step_wait()
        got.append(reward.mean())
    return np.mean(got), np.mean(best), np.mean(average)

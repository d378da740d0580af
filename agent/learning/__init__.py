"""The agent: policy network, PPO, checkpoints, TensorBoard.

In: environments. Out: a `RecipeAgent` and its folder. Read `recipe_agent.py` first.
"""

"""The policy network: masks, menus of any length, and what its outputs depend on."""

import numpy as np
import pytest
import torch
from toy_walk import CONTEXT, ROW, ToyWalk

from plywise.agent.learning.policy import RecipePolicy, RecipeScorer, legal_rows
from plywise.agent.learning.recipe_agent import RecipeAgent


@pytest.fixture
def scorer():
    torch.manual_seed(0)
    scorer = RecipeScorer(CONTEXT, ROW, hidden=16)
    torch.nn.init.normal_(scorer.score.weight)
    return scorer


@pytest.fixture
def policy():
    torch.manual_seed(0)
    env = ToyWalk()
    return RecipePolicy(env.observation_space, env.action_space, lambda _: 1e-3, hidden=16)


def menu(n=4, rows=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    context, recipes = torch.randn(n, CONTEXT, generator=generator), torch.randn(n, rows, ROW, generator=generator)
    recipes[:, :, -1] = 1.0
    return context, recipes


def test_scores_follow_their_rows_when_the_menu_is_shuffled(scorer):
    context, recipes = menu()
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    logits, values = scorer(context, recipes)
    shuffled, same_values = scorer(context, recipes[:, order])
    torch.testing.assert_close(shuffled, logits[:, order])
    torch.testing.assert_close(same_values, values)


def test_padding_changes_nothing_for_real_rows(scorer):
    context, recipes = menu()
    padding = torch.full((4, 5, ROW), 9.0)
    padding[:, :, -1] = 0.0
    logits, values = scorer(context, recipes)
    padded, same_values = scorer(context, torch.cat([recipes, padding], dim=1))
    torch.testing.assert_close(padded[:, :7], logits)
    torch.testing.assert_close(same_values, values)
    torch.testing.assert_close(scorer.values(context, recipes), values)


def test_scores_depend_on_context_and_on_the_rest_of_the_menu(scorer):
    context, recipes = menu()
    logits, _ = scorer(context, recipes)
    other_context, _ = scorer(context + 1.0, recipes)
    changed = recipes.clone()
    changed[:, 6, :-1] += 3.0
    other_menu, _ = scorer(context, changed)
    assert not torch.allclose(logits - logits[:, :1], other_context - other_context[:, :1], atol=1e-3)
    assert not torch.allclose(logits[:, :6] - logits[:, :1], other_menu[:, :6] - other_menu[:, :1], atol=1e-3)


def test_forward_and_evaluate_agree_and_give_illegal_rows_no_chance(policy):
    context, recipes = menu(n=200, rows=8)
    masks = torch.rand(200, 8, generator=torch.Generator().manual_seed(1)) < 0.5
    masks[:, 3] = True
    observation = {"context": context, "recipes": recipes}
    actions, values, log_probs = policy(observation, action_masks=masks.numpy())
    again_values, again_log_probs, entropy = policy.evaluate_actions(observation, actions, masks.float())
    assert masks[torch.arange(200), actions].all()
    torch.testing.assert_close(again_log_probs, log_probs)
    torch.testing.assert_close(again_values, values)
    torch.testing.assert_close(policy.predict_values(observation), values)
    assert values.shape == log_probs.shape == entropy.shape == (200,)
    # Nearly uniform before training, over the legal rows only.
    torch.testing.assert_close(entropy, masks.sum(dim=1).log(), atol=0.01, rtol=0.0)


def test_policy_decides_on_menus_of_another_length(policy):
    for rows in (1, 3, 50):
        context, recipes = menu(rows=rows)
        actions = policy._predict({"context": context, "recipes": recipes}, deterministic=True)
        assert actions.shape == (4,)
        assert int(actions.max()) < rows


def test_predict_heeds_the_masks(policy):
    env = ToyWalk()
    observation = env.reset()
    actions, _ = policy.predict(observation, deterministic=True, action_masks=env.action_masks())
    assert env.action_masks()[np.arange(env.num_envs), actions].all()


def test_without_masks_the_real_rows_are_legal():
    _, recipes = menu(n=2, rows=3)
    recipes[0, 1, -1] = 0.0
    assert legal_rows(recipes, None).tolist() == [[True, False, True], [True, True, True]]


def test_a_menu_without_a_legal_row_is_refused(policy):
    context, recipes = menu(rows=8)
    masks = np.ones((4, 8), dtype=bool)
    masks[2] = False
    observation = {"context": context, "recipes": recipes}
    for call in (policy.forward, policy._predict, policy.get_distribution):
        with pytest.raises(ValueError, match=r"no legal recipe in the menus \[2\]"):
            call(observation, action_masks=masks)
    with pytest.raises(ValueError, match="no legal recipe"):
        policy.evaluate_actions(observation, torch.zeros(4, dtype=torch.int64), masks)
    with pytest.raises(ValueError, match="no legal recipe"):
        RecipeAgent(policy.scorer).act(context.numpy(), recipes.numpy(), masks)


def test_drawn_actions_follow_the_policy(scorer):
    context, recipes = menu(n=1, rows=4)
    agent = RecipeAgent(scorer)
    masks = np.array([[True, True, False, True]])
    probabilities = torch.softmax(scorer(context, recipes)[0].masked_fill(~torch.tensor(masks), -torch.inf), dim=1)
    generator, many = np.random.default_rng(0), 20_000
    drawn = agent.act(
        context.numpy().repeat(many, 0), recipes.numpy().repeat(many, 0), masks.repeat(many, 0), False, generator
    )
    frequencies = np.bincount(drawn, minlength=4) / many
    np.testing.assert_allclose(frequencies, probabilities[0].detach().numpy(), atol=0.015)
    best = agent.act(context.numpy(), recipes.numpy(), masks)
    assert best[0] == int(probabilities.argmax())


def test_drawing_needs_a_generator(scorer):
    context, recipes = menu()
    with pytest.raises(ValueError, match="needs a generator"):
        RecipeAgent(scorer).act(context.numpy(), recipes.numpy(), np.ones((4, 7), dtype=bool), deterministic=False)


def test_untrained_agents_are_seeded_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first, second, other = (RecipeAgent.untrained(CONTEXT, ROW, seed).weights_hash for seed in (1, 1, 2))
    assert first == second != other
    assert torch.equal(torch.get_rng_state(), before)

"""Exact scores: what comes out must be what a stitched network really does."""

import numpy as np
import pytest
import torch
from made_up_device import FakeLatency, samples
from tiny_networks import Plain, build

from plywise.compressors.errors import ConfigurationError, DataError, ModelError
from plywise.compressors.recipes.plan import Plan
from plywise.compressors.recipes.technique import Recipe
from plywise.env.exact_evaluator import ExactEvaluator
from plywise.env.network.menu import catalogue
from plywise.env.score.demand import Demand
from plywise.env.score.early_stopping import InterimResult
from plywise.env.score.score import judge
from plywise.env.storage.result_store import ResultStore
from plywise.env.subject import Subject
from plywise.env.task.samples import labelled


def study():
    model = build(Plain)
    return Subject(model, samples(model, 48, 1), samples(model, 96, 3), "plain", FakeLatency())


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLYWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = study()
        assert found.price().num_layers == 3
        yield found


DEMAND = Demand(5.0, max_storage=0.5, storage_weight=1.0)


def heaviest(subject):
    """The slots that store the least, one per layer."""
    cost = np.where(subject.price().legal, subject.price().cost[0, :, :, 0, 0], np.inf)
    return cost.argmin(1).tolist()


def test_the_original_loses_nothing(subject):
    outcome = ExactEvaluator(subject, Demand(0.0)).evaluate([0, 0, 0])
    assert subject.accuracy == 100.0
    assert outcome.drop == 0.0
    assert outcome.demand_met
    assert outcome.ratios[1:] == pytest.approx((1.0, 1.0), rel=0.01)


def test_it_counts_what_it_was_asked(subject):
    evaluator = ExactEvaluator(subject, DEMAND)
    assert evaluator.evaluations == 0
    evaluator.evaluate([0, 0, 0])
    evaluator.evaluate([0, 0, 0])
    assert evaluator.evaluations == 2
    assert evaluator.table is subject.price()


def test_scores_are_those_of_the_stitched_network(subject, tmp_path):
    actions = heaviest(subject)
    outcome = ExactEvaluator(subject, DEMAND).evaluate(actions)
    model = subject.bank.stitch(subject.plan(actions)).model
    held_out = subject.validation
    drop = subject.accuracy - held_out.score(model).value
    assert drop > 0
    assert outcome.drop == pytest.approx(drop)
    assert outcome == judge(DEMAND, subject.price().original, outcome.cost, outcome.drop)
    assert outcome.cost[0] == subject.pack(model, tmp_path / "weights") == (tmp_path / "weights").stat().st_size
    assert outcome.cost[0] < 0.2 * subject.price().original[0]


def test_a_network_whose_outputs_are_no_numbers_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    model = build(Plain)
    some = samples(model, 48, 1)
    some.inputs[7] = float("nan")
    with pytest.raises(ModelError, match="plain: some outputs are no numbers"):
        Subject(model, samples(model, 48, 1), some, "plain", FakeLatency())


def test_a_hopeless_plan_is_stopped_and_only_where_a_better_one_is_known(monkeypatch, tmp_path):
    monkeypatch.setattr("plywise.env.task.samples.BATCH", 4)
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    subject = study()
    bad, strict = heaviest(subject), Demand(0.0, storage_weight=0.01)
    whole = ExactEvaluator(subject, strict, early=False)
    assert whole.evaluate([0, 0, 0]).score > whole.evaluate(bad).score
    monkeypatch.setattr(subject._exact, "_store", ResultStore(tmp_path / "early.sqlite"))
    evaluator, costs, measure = ExactEvaluator(subject, strict), [], subject._costs.measure
    monkeypatch.setattr(subject._costs, "measure", lambda stitched: costs.append(1) or measure(stitched))
    best = evaluator.evaluate([0, 0, 0])
    stopped = evaluator.evaluate(bad)
    assert (evaluator.evaluations, evaluator.stopped, len(costs)) == (2, 1, 1)
    assert stopped.score < best.score
    assert not stopped.demand_met
    assert evaluator.evaluate(bad) == stopped  # remembered
    assert 0.0 < stopped.seen < 1.0 == best.seen
    fresh = ExactEvaluator(subject, strict)  # knows of nothing better, so the plan is run to the end
    assert fresh.evaluate(bad) == whole.evaluate(bad)
    assert (fresh.stopped, len(costs)) == (0, 2)
    later = ExactEvaluator(subject, strict)  # the whole figures are known now, and make no difference
    assert [later.evaluate([0, 0, 0]), later.evaluate(bad)] == [best, stopped]
    assert len(costs) == 2


def test_a_stopped_plan_loses_at_least_what_stopped_it(subject, monkeypatch):
    """The images seen may be those on which a plan does well; its score must not say that it was worth running on."""
    evaluator = ExactEvaluator(subject, Demand(None, storage_weight=0.0, latency_weight=0.0))
    best = evaluator.evaluate([0, 0, 0])
    look = InterimResult(seen=0.125, drop=-3.0, most_accuracy=subject.accuracy - 2.0)

    def race(plan, hopeless):
        assert hopeless(look)
        return look

    monkeypatch.setattr(subject, "race", race)
    stopped = evaluator.evaluate(heaviest(subject))
    assert stopped.drop == pytest.approx(2.0)
    assert stopped.score < best.score


def test_who_stops_early_overwrites_no_complete_record(monkeypatch, tmp_path):
    """Two processes run the same plan: one to the end, while the other is still at it and then stops."""
    monkeypatch.setattr("plywise.env.task.samples.BATCH", 4)
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    subject, other = study(), study()
    plan, run, found = subject.plan(heaviest(subject)), subject._scorer.run, []

    def run_while_another_ends(*args, **settings):
        found.append(other.measure(plan))
        return run(*args, **settings)

    monkeypatch.setattr(subject._scorer, "run", run_while_another_ends)
    assert isinstance(subject.race(plan, lambda look: True), InterimResult)
    monkeypatch.setattr(other._scorer, "run", None)
    assert other.measure(plan) == found[0]


def test_no_plan_is_run_twice_not_even_by_another_run(subject, monkeypatch):
    actions = heaviest(subject)
    first = ExactEvaluator(subject, DEMAND).evaluate(actions)

    def forbidden(*_):
        raise AssertionError("looked at again")

    monkeypatch.setattr(type(subject.bank), "stitch", forbidden)
    assert ExactEvaluator(subject, DEMAND).evaluate(actions) == first
    again = study()
    assert ExactEvaluator(again, DEMAND).evaluate(actions) == first


def test_prices_wait_until_they_are_asked_for(subject, monkeypatch):
    """A plan can be checked before minutes of pricing."""

    def forbidden(*_):
        raise AssertionError("priced")

    monkeypatch.setattr("plywise.env.subject.load_prices", forbidden)
    fresh = study()
    with pytest.raises(ConfigurationError, match="no recipe for layer 'conv2'"):
        fresh.bank.check(Plan("plain", {"conv1": Recipe()}))
    with pytest.raises(AssertionError, match="priced"):
        _ = fresh.price()


def test_an_interrupted_pricing_keeps_its_probes(tmp_path, monkeypatch):
    """Ctrl-C in the middle: what the first run found is not measured again."""
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path))
    model = build(Plain)
    made = []

    def interrupted(items, what, count):
        for done, item in enumerate(items):
            made.append(item)
            if done == 1:
                raise KeyboardInterrupt
            yield item

    first = Subject(model, samples(model, 32, 1), samples(model, 48, 3), "plain", FakeLatency(), interrupted)
    with pytest.raises(KeyboardInterrupt):
        _ = first.price()
    kept = stored(first)
    assert kept
    assert not list((tmp_path / "prices").iterdir())
    second = Subject(model, samples(model, 32, 1), samples(model, 48, 3), "plain", FakeLatency())
    put = []
    monkeypatch.setattr(type(second.store), "put", lambda self, key, value: put.append(key))
    assert second.price().num_layers == 3
    assert put
    assert not kept & set(put)


def stored(subject):
    keys = (f"{subject.key}/probe/{layer.name}/{recipe}" for layer in subject.layers for recipe in catalogue())
    return {key for key in keys if subject.store.get(key) is not None}


def test_no_samples_are_refused(subject):
    nothing = labelled(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match="no validation samples"):
        Subject(build(Plain), subject.validation, nothing)

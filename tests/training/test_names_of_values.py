"""What a step returns and what metrics report do not take each other's names; and what counts as a scalar."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom import errors

X = np.full((8, 1), 3.0, "float32")
WAYS = ["auto", "step", "eager"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_updated", [False, True])
def test_a_value_under_the_name_of_a_metric(way, is_updated):
    metric = keras.metrics.Mean(name="own")
    trained = keras.Variable(0.0)

    def step(x):
        if is_updated:
            metric.update_state(10.0)
        trained.assign_add(1.0)
        return {"total": ops.mean(x)}

    with pytest.raises(errors.StepError, match="'total', and the metric 'own' in metrics") as caught:
        kustom.Loop(step, metrics={"total": metric}).fit(X, verbose=0, execution=way)
    assert "another name" in str(caught.value)
    assert float(ops.convert_to_numpy(trained)) == 0


def test_the_loss_by_itself_has_a_name_too():
    with pytest.raises(errors.StepError, match="'loss'"):
        kustom.Loop(lambda x: ops.mean(x), metrics=[keras.metrics.Mean(name="loss")]).fit(X, verbose=0)


def test_a_step_of_evaluation():
    metric = keras.metrics.Mean(name="loss")
    loop = kustom.Loop(lambda x: None, metrics=[metric], eval_step=lambda x: {"loss": ops.mean(x)})
    with pytest.raises(errors.StepError, match="'loss'"):
        loop.evaluate(X)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("returned", [lambda metric: metric, lambda metric: metric.result()])
def test_the_metric_under_its_own_name(way, returned):
    metric = keras.metrics.Mean(name="seen")

    def step(x):
        metric.update_state(x)
        return {"seen": returned(metric)}

    x = np.arange(8, dtype="float32")[:, None]
    history = kustom.Loop(step, metrics=[metric]).fit(x, batch_size=2, shuffle=False, verbose=0, execution=way)
    assert history.history == {"seen": [3.5]}


def test_another_metric_under_the_name_of_one():
    one, two = keras.metrics.Mean(name="seen"), keras.metrics.Mean(name="other")
    with pytest.raises(errors.StepError, match="'seen'"):
        kustom.Loop(lambda x: {"seen": two}, metrics=[one]).fit(X, verbose=0)


@pytest.mark.parametrize("way", WAYS)
def test_a_metric_that_was_not_listed_gives_way(way):
    metric = keras.metrics.Mean(name="loss")

    def step(x):
        metric.update_state(10.0)
        return {"loss": ops.mean(x)}

    loop = kustom.Loop(step)
    history = loop.fit(X, epochs=2, verbose=0, execution=way)
    assert history.history == {"loss": [3.0, 3.0], "loss_1": [10.0, 10.0]}


def test_a_metric_of_several_results():
    class Two(keras.metrics.Metric):
        def update_state(self, x):
            pass

        def result(self):
            return {"low": ops.zeros(()), "high": ops.ones(())}

    with pytest.raises(errors.StepError, match="'high', and a metric of several results"):
        kustom.Loop(lambda x: {"high": ops.mean(x)}, metrics=[Two(name="both")]).fit(X, verbose=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [3.0, 3, np.float32(3)])
def test_a_number_is_the_loss(way, value):
    assert kustom.Loop(lambda x: value).fit(X, verbose=0, execution=way).history == {"loss": [3.0]}


def test_a_value_that_was_asked_for_is_the_loss():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.EagerWarning)
        assert kustom.Loop(lambda x: float(ops.mean(x))).fit(X, verbose=0).history == {"loss": [3.0]}


def test_true_is_no_loss():
    with pytest.raises(errors.StepError, match="returned bool"):
        kustom.Loop(lambda x: True).fit(X, verbose=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["seen", "loss"])
@pytest.mark.parametrize("listed", [False, True])
def test_the_result_of_a_metric_is_of_all_batches(way, name, listed):
    metric = keras.metrics.Mean(name="seen")

    def step(x):
        metric.update_state(x)
        return {name: metric.result()}

    x = np.arange(8, dtype="float32")[:, None]
    loop = kustom.Loop(step, metrics=[metric] if listed else None)
    history = loop.fit(x, batch_size=2, shuffle=False, verbose=0, execution=way, epochs=2).history
    assert history == {key: [3.5, 3.5] for key in (["seen", name] if listed else [name])}


class SumAndMean(keras.metrics.Metric):
    def __init__(self):
        super().__init__(name="both")
        self.total, self.count = (self.add_variable((), "zeros", name=name) for name in ("total", "count"))

    def update_state(self, x, sample_weight=None):
        self.total.assign_add(ops.sum(x))
        self.count.assign_add(ops.cast(ops.size(x), "float32"))

    def result(self):
        return {"sum": self.total + 0.0, "mean": self.total / self.count}


@pytest.mark.parametrize("way", WAYS)
def test_one_of_several_results_of_a_metric(way):
    metric = SumAndMean()

    def step(x):
        metric.update_state(x)
        return {"average": metric.result()["mean"], "size": ops.cast(ops.size(x), "float32")}

    x = np.arange(8, dtype="float32")[:, None]
    history = kustom.Loop(step).fit(x, batch_size=2, shuffle=False, verbose=0, execution=way).history
    assert history == {"average": [3.5], "size": [2.0]}


def test_a_result_by_itself_is_the_loss():
    metric = keras.metrics.Mean()

    def step(x):
        metric.update_state(x)
        return metric.result()

    x = np.arange(8, dtype="float32")[:, None]
    assert kustom.Loop(step).fit(x, batch_size=2, verbose=0).history == {"loss": [3.5]}

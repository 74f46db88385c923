"""What a part is called with where nobody says: a guess must not make a fault of what the part is not meant for."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom.checking.finding import NotChecked
from kustom.checking.processes import POOL
from kustom.checking.rules.backends import of_the_part
from kustom.checking.subjects import Subject


class OfImages(keras.layers.Layer):
    """Runs on sequences as well, of which its shape is not."""

    def call(self, x):
        return ops.mean(x, axis=(1, 2)) if len(x.shape) == 4 else ops.mean(x, axis=1)

    def compute_output_shape(self, input_shape):
        batch, _, _, channels = input_shape
        return batch, channels


class OfNothing(keras.layers.Layer):
    """Its shape is that of no inputs."""

    def call(self, x):
        return x * 2.0

    def compute_output_shape(self, input_shape):
        return (*input_shape, 1)


class NotOfNumbers(keras.losses.Loss):
    """A cross-entropy whose backend refuses targets outside of 0 and 1, as torch's own does; here it is TensorFlow's and JAX's."""

    def call(self, y_true, y_pred):
        if keras.backend.backend() != "torch" and float(ops.min(y_true)) < 0:
            raise ValueError("targets are from 0 to 1")
        p = ops.clip(y_pred, 1e-6, 1.0 - 1e-6)
        return ops.mean(ops.abs(y_true - p) * ops.abs(y_pred), axis=-1)


class LogScore(keras.metrics.Metric):
    """The mean of a log loss whose logarithm has no floor."""

    def __init__(self, floor=0.0, name="score", **kwargs):
        super().__init__(name=name, **kwargs)
        self.floor = floor
        self.total = self.add_variable((), initializer="zeros", name="total")
        self.count = self.add_variable((), initializer="zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true, y_pred = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
        each = -ops.sum(y_true * ops.log(y_pred + self.floor), axis=-1)
        each = each if sample_weight is None else each * ops.cast(sample_weight, each.dtype)
        self.total.assign_add(ops.sum(each))
        self.count.assign_add(ops.cast(ops.size(each), "float32") if sample_weight is None else ops.sum(sample_weight))

    def result(self):
        return self.total / ops.maximum(self.count, 1.0)

    def get_config(self):
        return {**super().get_config(), "floor": self.floor}


class Correlation(keras.metrics.Metric):
    """Of targets that are all equal it is not defined, and nobody asks."""

    def __init__(self, name="correlation", **kwargs):
        super().__init__(name=name, **kwargs)
        self.sums = self.add_variable((6,), initializer="zeros", name="sums")

    def update_state(self, y_true, y_pred, sample_weight=None):
        t, p = (ops.cast(y, "float32") for y in (y_true, y_pred))
        weight = ops.ones_like(t[:, :1]) if sample_weight is None else ops.reshape(ops.cast(sample_weight, "float32"), (-1, 1))
        each = (ops.ones_like(t), t, p, t * t, p * p, t * p)
        self.sums.assign_add(ops.stack([ops.sum(weight * x) for x in each]))

    def result(self):
        n, t, p, tt, pp, tp = ops.unstack(self.sums + 0.0)
        apart = (n * tt - t * t) * (n * pp - p * p)
        return ops.where(n > 0, (n * tp - t * p) / ops.sqrt(ops.where(n > 0, apart, 1.0)), 0.0)


def test_a_metric_of_how_targets_vary_is_not_given_equal_ones():
    assert kustom.check(Correlation(), only="N301", on_fail=None).ok


class WritesInPlace(keras.layers.Layer):
    def call(self, x):
        x += 1.0
        return ops.square(x)


class OfSingle(keras.layers.Layer):
    """A kernel that there is for float32 alone."""

    def call(self, x):
        if "64" in str(x.dtype):
            raise NotImplementedError("no kernel of float64")
        return x * 2.0


def test_a_layer_is_given_that_of_which_it_promises_the_shape():
    assert Subject(OfImages()).inputs.sample() == (((8, 8, 3), "reals"),)
    assert kustom.check(OfImages(), only="S202", on_fail=None).ok


def test_one_that_promises_wrongly_for_all_is_found():
    report = kustom.check(OfNothing(), only="S202", on_fail=None)
    assert [finding.code for finding in report.findings] == ["S202"]


@pytest.mark.slow
def test_made_inputs_that_another_backend_refuses_are_changed_for_others():
    report = kustom.check(NotOfNumbers, only="B601,B602", on_fail=None)
    assert not report.findings, report
    assert {outcome.code for outcome in report} == {"B601", "B602"}
    assert not [outcome for outcome in report if isinstance(outcome, NotChecked)], report


@pytest.mark.slow
def test_a_function_that_keras_wraps_is_found_from_another_process():
    wrapped = keras.losses.BinaryFocalCrossentropy()
    assert Subject(wrapped).making.recipe()["qualname"] == "BinaryFocalCrossentropy"
    report = kustom.check(wrapped, only="B601", on_fail=None)
    assert len(report.outcomes) == len(POOL.backends)
    assert report.ok
    assert not [outcome for outcome in report if isinstance(outcome, NotChecked)], report


def test_a_metric_of_probabilities_is_finite_where_they_are_0_and_1():
    report = kustom.check(LogScore(), only="N301", on_fail=None)
    assert "one-hot" in report.findings[0].message
    assert kustom.check(LogScore(floor=1e-7), only="N301", on_fail=None).ok


class MakesALayerInItsCall(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = None

    def call(self, x):
        if self.dense is None:
            self.dense = keras.layers.Dense(3)
        return self.dense(x)


def test_what_fails_on_all_inputs_is_no_matter_of_the_inputs():
    report = kustom.check(MakesALayerInItsCall(), only="B601", on_fail=None)
    finding = report.findings[0]
    assert "cannot add new elements of state" in finding.message
    assert "\x1b" not in finding.message
    assert "in __init__ or build" in finding.mend
    assert of_the_part(TypeError("unsupported operand type(s) for *: 'numpy.ndarray' and 'Tensor'"))


def test_a_loss_of_logits_is_given_logits():
    class OfLogits(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return -ops.sum(y_true * ops.log_softmax(y_pred, axis=-1), axis=-1)

    assert Subject(OfLogits()).inputs.pair_domain() == ("probabilities", "reals", False)
    assert Subject(keras.losses.CategoricalCrossentropy()).inputs.pair_domain()[:2] == ("probabilities", "probabilities")


class SumsTheStepsBefore(keras.layers.Layer):
    def call(self, x):
        return ops.cumsum(x, axis=1)


def test_a_causal_layer_does_not_compute_each_step_by_itself():
    report = kustom.check(SumsTheStepsBefore(), inputs=np.ones((3, 5, 4), "float32"), only="S207", on_fail=None)
    assert report.ok


def test_a_layer_may_write_into_what_another_has_computed():
    report = kustom.check(WritesInPlace(), only="G202", on_fail=None)
    assert report.ok
    assert not [outcome for outcome in report if isinstance(outcome, NotChecked)], report


def test_what_does_not_compute_in_float64_is_not_checked_by_differences():
    report = kustom.check(OfSingle(), only="G201", on_fail=None)
    [outcome] = report
    assert isinstance(outcome, NotChecked)
    assert not outcome.unfinished
    assert "no kernel of float64" in outcome.why

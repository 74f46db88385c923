"""Targets, predictions and their weights: never a broadcast, no effect of what does not count, one value a sample.

Reports: targets (n,) beside predictions (n, 1) (keras#19662, tensorflow#28901); NaN under a mask or a zero weight
(keras#18829, #18818, #21908); a loss that returns one number (tensorflow#42446, keras#19740).
"""

# What Keras says of its own types ("verbose" is text, a call may return None) does not hold, and a part's arguments
# over a class of Keras are not seen by a type checker.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportOptionalOperand=false
# pyright: reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false, reportRedeclaration=false

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom.errors import ShapeError

N = ops.convert_to_numpy
FLAT = np.array([0.0, 1.0, 1.0, 0.0], "float32")
COLUMN = np.array([[0.1], [0.9], [0.8], [0.3]], "float32")
MSE = 0.0375


def identity(*shape: int, loss: Any = None, metrics: Any = None, **compiled: Any) -> Any:
    """A model whose predictions are its inputs."""
    model: Any = keras.Sequential([keras.Input(shape), keras.layers.Identity()])
    model.compile("sgd", loss=loss or "mse", metrics=metrics, **compiled)
    return model


# --- targets of another rank ------------------------------------------------------------------------------------------


@kustom.loss
def square_mean(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


@kustom.loss
def square_entries(y_true, y_pred):
    return ops.square(y_true - y_pred)


@kustom.part
class SquareLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=-1)


@kustom.part
class CrossEntropy(keras.losses.Loss):
    """A built-in function inside."""

    def call(self, y_true, y_pred):
        return keras.losses.binary_crossentropy(y_true, y_pred)


@kustom.metric
def square_metric(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


@kustom.metric
def square_ratio(y_true, y_pred):
    error = ops.square(y_true - y_pred)
    return kustom.Ratio(error, ops.ones_like(error))


@kustom.metric(result=lambda squares, count: squares / count)
def square_sums(y_true, y_pred):
    error = ops.square(y_true - y_pred)
    return kustom.Sums(squares=error, count=ops.ones_like(error))


@kustom.part
class SquareMetric(keras.metrics.Metric):
    def setup(self) -> None:
        self.total = self.add_variable((), "zeros", name="total")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        error = ops.square(y_true - y_pred)
        self.total.assign_add(ops.sum(error))
        self.count.assign_add(ops.sum(ops.ones_like(error)))

    def result(self):
        return self.total / self.count


@kustom.part
class SquareMean(keras.metrics.Mean):
    """Over a metric of Keras that takes one tensor."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(ops.mean(ops.square(y_true - y_pred), axis=-1), sample_weight)


LOSSES = [square_mean, square_entries, SquareLoss]
METRICS = [square_metric, square_ratio, square_sums, SquareMetric, SquareMean]


@pytest.mark.parametrize("make", LOSSES)
def test_flat_targets_meet_the_prediction_of_their_sample_in_a_loss(make, reloaded):
    model: Any = identity(1, loss=make())
    for one in (model, reloaded(model)):
        np.testing.assert_allclose(one.evaluate(COLUMN, FLAT, verbose=0), MSE, rtol=1e-5)


@pytest.mark.parametrize("make", METRICS)
def test_flat_targets_meet_the_prediction_of_their_sample_in_a_metric(make, reloaded):
    model: Any = identity(1, metrics=[make()])
    for one in (model, reloaded(model)):
        np.testing.assert_allclose(one.evaluate(COLUMN, FLAT, verbose=0), [MSE, MSE], rtol=1e-5)


def test_flat_targets_reach_a_loss_of_keras_inside_aligned(reloaded):
    model: Any = identity(1, loss=CrossEntropy())
    expected = float(keras.losses.BinaryCrossentropy()(FLAT[:, None], COLUMN))
    for one in (model, reloaded(model)):
        np.testing.assert_allclose(one.evaluate(COLUMN, FLAT, verbose=0), expected, rtol=1e-5)


@pytest.mark.parametrize("make", LOSSES)
def test_column_targets_meet_flat_predictions_in_a_loss(make):
    np.testing.assert_allclose(N(ops.mean(make(reduction="none")(FLAT[:, None], COLUMN[:, 0]))), MSE, rtol=1e-5)


@pytest.mark.parametrize("make", METRICS)
def test_column_targets_meet_flat_predictions_in_a_metric(make):
    metric: Any = make()
    metric.update_state(FLAT[:, None], COLUMN[:, 0])
    np.testing.assert_allclose(N(metric.result()), MSE, rtol=1e-5)


@kustom.loss
def cast_square(y_true, y_pred):
    return ops.square(ops.subtract(ops.cast(y_true, y_pred.dtype), y_pred))


@kustom.metric
def agreement(y_true, y_pred, *, threshold=0.5):
    return ops.equal(ops.cast(y_true, "bool"), y_pred > threshold)


@kustom.part
class Agreement(keras.metrics.Metric):
    threshold: float = 0.5

    def setup(self) -> None:
        self.hits = self.add_variable((), "zeros", name="hits")
        self.seen = self.add_variable((), "zeros", name="seen")

    def update_state(self, y_true, y_pred, sample_weight=None):
        hit = ops.cast(ops.equal(ops.cast(y_true, "bool"), y_pred > self.threshold), "float32")
        self.hits.assign_add(ops.sum(hit))
        self.seen.assign_add(ops.sum(ops.ones_like(hit)))

    def result(self):
        return self.hits / self.seen


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
@pytest.mark.parametrize("make", [agreement, Agreement])
def test_flat_integer_and_boolean_targets_meet_their_prediction(make, dtype):
    metric: Any = make()
    metric.update_state(np.array([0, 1, 1, 1]).astype(dtype), COLUMN)
    assert float(metric.result()) == 0.75


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_flat_integer_and_boolean_targets_meet_their_prediction_in_a_loss(dtype):
    np.testing.assert_allclose(float(cast_square()(FLAT.astype(dtype), COLUMN)), MSE, rtol=1e-5)


SQUARE = np.arange(16, dtype="float32").reshape(4, 4) / 16


@pytest.mark.parametrize("make", LOSSES)
def test_a_loss_refuses_one_target_a_sample_beside_as_many_predictions_each(make):
    with pytest.raises(ShapeError, match="y_true"):
        make()(FLAT, SQUARE)


@pytest.mark.parametrize("make", METRICS)
def test_a_metric_refuses_one_target_a_sample_beside_as_many_predictions_each(make):
    with pytest.raises(ShapeError, match="y_true"):
        make().update_state(FLAT, SQUARE)


@pytest.mark.parametrize("make", LOSSES)
def test_a_loss_refuses_one_target_a_sequence_beside_a_prediction_a_step(make):
    with pytest.raises(ShapeError):
        make()(FLAT, np.zeros((4, 3, 1), "float32"))


@pytest.mark.parametrize("make", METRICS)
def test_a_metric_refuses_one_target_a_sequence_beside_a_prediction_a_step(make):
    with pytest.raises(ShapeError):
        make().update_state(FLAT, np.zeros((4, 3, 1), "float32"))


@pytest.mark.parametrize("make", LOSSES)
def test_a_loss_refuses_a_row_of_targets_beside_a_column_of_predictions(make):
    with pytest.raises(ShapeError):
        make()(FLAT[None, :], COLUMN)


@pytest.mark.parametrize("make", METRICS)
def test_a_metric_refuses_a_row_of_targets_beside_a_column_of_predictions(make):
    with pytest.raises(ShapeError):
        make().update_state(FLAT[None, :], COLUMN)


STEPS_TRUE = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], "float32")
STEPS_PRED = STEPS_TRUE[..., None] + 0.5


@pytest.mark.parametrize("make", LOSSES)
def test_a_target_a_time_step_meets_the_prediction_of_its_step_in_a_loss(make, reloaded):
    model: Any = identity(3, 1, loss=make())
    for one in (model, reloaded(model)):
        np.testing.assert_allclose(one.evaluate(STEPS_PRED, STEPS_TRUE, verbose=0), 0.25, rtol=1e-5)


@pytest.mark.parametrize("make", METRICS)
def test_a_target_a_time_step_meets_the_prediction_of_its_step_in_a_metric(make):
    metric: Any = make()
    metric.update_state(STEPS_TRUE, STEPS_PRED)
    np.testing.assert_allclose(float(metric.result()), 0.25, rtol=1e-5)


@kustom.loss
def class_loss(y_true, y_pred):
    return keras.losses.sparse_categorical_crossentropy(y_true, y_pred)


@kustom.metric
def class_hit(y_true, y_pred):
    return ops.equal(ops.cast(y_true, "int32"), ops.cast(ops.argmax(y_pred, axis=-1), "int32"))


@pytest.mark.parametrize("targets", [np.array([0, 1, 2, 3]), np.array([[0], [1], [2], [3]])], ids=["flat", "column"])
def test_class_labels_beside_as_many_classes_are_no_broadcast(targets):
    probabilities = np.full((4, 4), 0.1, "float32") + 0.6 * np.eye(4, dtype="float32")
    np.testing.assert_allclose(float(class_loss()(targets, probabilities)), -np.log(0.7), rtol=1e-4)


def test_class_labels_beside_as_many_classes_are_counted_in_a_metric():
    metric = class_hit()
    metric.update_state(np.array([0, 1, 2, 0]), np.eye(4, dtype="float32"))
    assert float(metric.result()) == 0.75


@pytest.mark.parametrize("make", LOSSES)
def test_flat_targets_train_as_column_targets_do(make):
    weights = []
    for targets in (FLAT, FLAT[:, None]):
        model: Any = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
        model.compile(keras.optimizers.SGD(0.1), make())
        model.fit(COLUMN, targets, shuffle=False, batch_size=2, verbose=0)
        weights.append(N(model.weights[0]))
    np.testing.assert_allclose(*weights, rtol=1e-6)


# --- what is masked, and what weighs nothing --------------------------------------------------------------------------


@kustom.layer
def logarithm(x):
    return ops.log(x)


@kustom.loss
def absolute(y_true, y_pred):
    return ops.abs(y_true - y_pred)


@kustom.loss
def log_ratio(y_true, y_pred):
    """Infinite where a target is 0."""
    return ops.abs(ops.log(y_true) - y_pred)


@kustom.part
class AbsoluteLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred), axis=-1)


@kustom.metric
def absolute_metric(y_true, y_pred):
    return ops.mean(ops.abs(y_true - y_pred), axis=-1)


@kustom.metric
def absolute_ratio(y_true, y_pred):
    error = ops.abs(y_true - y_pred)
    return kustom.Ratio(error, ops.ones_like(error))


@kustom.metric(result=lambda total, count: total / count)
def absolute_sums(y_true, y_pred):
    error = ops.abs(y_true - y_pred)
    return kustom.Sums(total=error, count=ops.ones_like(error))


@kustom.part
class AbsoluteMetric(keras.metrics.Metric):
    def setup(self) -> None:
        self.total = self.add_variable((), "zeros", name="total")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        error = ops.mean(ops.abs(y_true - y_pred), axis=-1)
        weight = ops.ones_like(error)
        if sample_weight is not None:
            missing = len(error.shape) - len(sample_weight.shape)
            weight = weight * ops.reshape(sample_weight, (*ops.shape(sample_weight), *[1] * missing))
        self.total.assign_add(ops.sum(error * weight))
        self.count.assign_add(ops.sum(weight))

    def result(self):
        return ops.divide_no_nan(self.total, self.count)


@kustom.part
class AbsoluteMean(keras.metrics.Mean):
    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(ops.mean(ops.abs(y_true - y_pred), axis=-1), sample_weight)


MASKED_LOSSES = [absolute, AbsoluteLoss]
MASKED_METRICS = [absolute_metric, absolute_ratio, absolute_sums, AbsoluteMetric, AbsoluteMean]


def masked(*, loss: Any = None, metrics: Any = None) -> Any:
    """log(x) of steps of which those at -1 are masked, so that their predictions are NaN."""
    model: Any = keras.Sequential([keras.Input((3, 1)), keras.layers.Masking(-1.0), logarithm()])
    model.compile("sgd", loss=loss or absolute(), weighted_metrics=metrics)
    return model


# Predictions: 1, NaN, 3, and in the second row NaN, 2, NaN; all targets 0.
MASKED_X = np.array([[[np.e], [-1.0], [np.e**3]], [[-1.0], [np.e**2], [-1.0]]], "float32")
ZEROS = np.zeros((2, 3, 1), "float32")


@pytest.mark.parametrize("make", MASKED_LOSSES)
def test_a_masked_nan_has_no_effect_on_a_loss(make, reloaded):
    model: Any = masked(loss=make())
    for one in (model, reloaded(model)):
        np.testing.assert_allclose(one.evaluate(MASKED_X[:1], ZEROS[:1], verbose=0), 2.0, rtol=1e-5)
        np.testing.assert_allclose(one.evaluate(MASKED_X, ZEROS, verbose=0), 2.0, rtol=1e-5)


@pytest.mark.parametrize("make", MASKED_METRICS)
def test_a_masked_nan_has_no_effect_on_a_metric(make, reloaded):
    model: Any = masked(metrics=[make()])
    for one in (model, reloaded(model)):
        np.testing.assert_allclose(one.evaluate(MASKED_X, ZEROS, verbose=0), [2.0, 2.0], rtol=1e-5)


@pytest.mark.parametrize("make", MASKED_METRICS)
def test_a_masked_nan_has_no_effect_on_a_metric_without_weights(make):
    model: Any = keras.Sequential([keras.Input((3, 1)), keras.layers.Masking(-1.0), logarithm()])
    model.compile("sgd", loss=absolute(), metrics=[make()])
    np.testing.assert_allclose(model.evaluate(MASKED_X, ZEROS, verbose=0), [2.0, 2.0], rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", MASKED_LOSSES)
def test_a_masked_target_has_no_effect_on_a_loss(make, value):
    targets = ZEROS[:1].copy()
    targets[0, 1] = value
    np.testing.assert_allclose(masked(loss=make()).evaluate(MASKED_X[:1], targets, verbose=0), 2.0, rtol=1e-5)


@pytest.mark.parametrize("make", MASKED_LOSSES)
def test_a_loss_of_which_all_is_masked_is_zero(make):
    assert masked(loss=make()).evaluate(np.full((2, 3, 1), -1.0, "float32"), ZEROS, verbose=0) == 0.0


@pytest.mark.parametrize("make", MASKED_METRICS)
def test_a_metric_of_which_all_is_masked_is_zero(make):
    x = np.full((2, 3, 1), -1.0, "float32")
    assert masked(metrics=[make()]).evaluate(x, ZEROS, verbose=0) == [0.0, 0.0]


@pytest.mark.parametrize("make", MASKED_METRICS)
def test_a_metric_goes_on_after_a_batch_of_which_all_is_masked(make):
    x = np.concatenate([np.full((2, 3, 1), -1.0, "float32"), MASKED_X])
    model: Any = masked(metrics=[make()])
    result = model.evaluate(x, np.zeros((4, 3, 1), "float32"), batch_size=2, verbose=0)
    np.testing.assert_allclose(result[1], 2.0, rtol=1e-5)


WEIGHTS = {
    "a sample": np.array([1.0, 0.0], "float32"),
    "a sample, in a column": np.array([[1.0], [0.0]], "float32"),
    "a step": np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], "float32"),
    "a step, in columns": np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], "float32")[..., None],
}
NAN_STEPS = np.array([[[1.0], [np.nan], [3.0]], [[np.nan], [2.0], [np.nan]]], "float32")
NAN_SAMPLE = np.array([[[1.0], [2.0], [3.0]], [[np.nan], [np.nan], [np.nan]]], "float32")


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("make", MASKED_LOSSES)
def test_a_nan_that_weighs_nothing_has_no_effect_on_a_loss(make, weights):
    y_pred = NAN_SAMPLE if "sample" in weights else NAN_STEPS
    loss: Any = make(reduction="mean_with_sample_weight")
    np.testing.assert_allclose(float(loss(ZEROS, y_pred, sample_weight=WEIGHTS[weights])), 2.0, rtol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("make", MASKED_METRICS)
def test_a_nan_that_weighs_nothing_has_no_effect_on_a_metric(make, weights):
    y_pred = NAN_SAMPLE if "sample" in weights else NAN_STEPS
    metric: Any = make()
    metric.update_state(ZEROS, y_pred, sample_weight=WEIGHTS[weights])
    np.testing.assert_allclose(float(metric.result()), 2.0, rtol=1e-5)


@pytest.mark.parametrize("make", MASKED_LOSSES)
def test_a_loss_of_which_nothing_weighs_is_zero(make):
    loss: Any = make(reduction="mean_with_sample_weight")
    assert float(loss(ZEROS, np.full_like(ZEROS, np.nan), sample_weight=np.zeros(2, "float32"))) == 0.0


@pytest.mark.parametrize("make", MASKED_LOSSES)
@pytest.mark.parametrize("where", ["y_true", "y_pred"])
def test_a_nan_that_weighs_nothing_leaves_the_gradient_as_it_is_without_its_sample(make, where):
    x = np.array([[1.0], [2.0], [3.0]], "float32")
    y = np.array([[2.0], [2.0], [np.nan]], "float32")
    if where == "y_pred":
        # Infinite, not NaN: what a model computes of a NaN stays the model's own.
        x, y = x * np.float32([[1], [1], [1e38]]), np.nan_to_num(y)
    trained = []
    for count in (3, 2):
        start = keras.initializers.Constant(3.0)
        model: Any = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer=start)])
        model.compile(keras.optimizers.SGD(0.1), make(reduction="sum"))
        weight = np.array([1.0, 1.0, 0.0], "float32")
        model.fit(x[:count], y[:count], sample_weight=weight[:count], shuffle=False, verbose=0)
        trained.append([N(w) for w in model.weights])
    np.testing.assert_allclose(trained[0][0], trained[1][0], rtol=1e-6)
    np.testing.assert_allclose(trained[0][1], trained[1][1], rtol=1e-6)


@pytest.mark.parametrize("make", MASKED_LOSSES)
def test_a_masked_nan_target_leaves_the_training_as_it_is_without_its_step(make):
    x = np.array([[[1.0], [-1.0], [2.0]]], "float32")
    y = np.array([[[2.0], [np.nan], [2.0]]], "float32")
    trained = []
    for steps in ([0, 1, 2], [0, 2]):
        model: Any = keras.Sequential(
            [keras.Input((None, 1)), keras.layers.Masking(-1.0), keras.layers.Dense(1, kernel_initializer="ones")]
        )
        model.compile(keras.optimizers.SGD(0.1), make())
        model.fit(x[:, steps], y[:, steps], verbose=0)
        trained.append(N(model.trainable_weights[0]))
    np.testing.assert_allclose(trained[0], trained[1], rtol=1e-5)


def test_a_target_outside_the_losss_domain_has_no_effect_where_it_weighs_nothing():
    loss = log_ratio(reduction="sum")
    y_true, y_pred = np.array([[1.0], [0.0]], "float32"), np.array([[2.0], [5.0]], "float32")
    np.testing.assert_allclose(float(loss(y_true, y_pred, sample_weight=np.array([1.0, 0.0]))), 2.0, rtol=1e-5)


def test_a_label_out_of_range_has_no_effect_where_it_is_masked():
    model: Any = keras.Sequential([keras.Input((3, 2)), keras.layers.Masking(-1.0), keras.layers.Activation("softmax")])
    model.compile("sgd", loss=class_loss(), weighted_metrics=[class_hit()])
    x = np.array([[[0.0, 0.0], [-1.0, -1.0], [0.0, 0.0]]], "float32")
    loss, hit = model.evaluate(x, np.array([[0, -100, 0]]), verbose=0)
    np.testing.assert_allclose([loss, hit], [np.log(2), 1.0], rtol=1e-4)


def test_a_mask_and_weights_a_step_work_together(reloaded):
    model: Any = masked(loss=absolute(), metrics=[absolute_metric()])
    weight = np.array([[1.0, 1.0, 0.0], [1.0, 3.0, 1.0]], "float32")
    # What counts: 1 with the weight 1, 2 with the weight 3.
    for one in (model, reloaded(model)):
        np.testing.assert_allclose(one.evaluate(MASKED_X, ZEROS, sample_weight=weight, verbose=0)[1], 7 / 4, rtol=1e-5)


# --- one value a sample -----------------------------------------------------------------------------------------------


@kustom.loss
def scalar_square(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred))


@kustom.loss
def scalar_sum(y_true, y_pred):
    return ops.sum(ops.square(y_true - y_pred))


@kustom.loss
def kept_scalar(y_true, y_pred):
    """A mean over the whole batch that keeps its axes."""
    return ops.mean(ops.square(y_true - y_pred), keepdims=True)


@kustom.loss
def over_samples(y_true, y_pred):
    """The wrong axis: one value an output, not one a sample."""
    return ops.mean(ops.square(y_true - y_pred), axis=0)


@kustom.part
class ScalarLoss(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred))


@kustom.part
class OverSamples(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=0)


@kustom.metric
def scalar_metric(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred))


@kustom.metric
def over_samples_metric(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred), axis=0)


@kustom.metric
def scalar_ratio(y_true, y_pred):
    return kustom.Ratio(ops.sum(ops.square(y_true - y_pred)), ops.cast(ops.shape(y_pred)[0], "float32"))


SCALARS = [scalar_square, scalar_sum, kept_scalar, ScalarLoss]
Y_TRUE = np.zeros((4, 1), "float32")
Y_PRED = np.array([[1.0], [1.0], [3.0], [3.0]], "float32")
PICKS = np.array([1.0, 1.0, 0.0, 0.0], "float32")


@pytest.mark.parametrize("make", SCALARS)
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "none", "mean_with_sample_weight"])
def test_a_loss_that_returns_one_number_is_refused(make, reduction):
    with pytest.raises(ShapeError, match="returned the shape"):
        make(reduction=reduction)(Y_TRUE, Y_PRED)


@pytest.mark.parametrize("make", SCALARS)
def test_a_loss_that_returns_one_number_is_refused_beside_weights(make):
    with pytest.raises(ShapeError):
        make()(Y_TRUE, Y_PRED, sample_weight=PICKS)


@pytest.mark.parametrize("make", [scalar_square, scalar_sum, ScalarLoss])
def test_a_loss_that_returns_one_number_is_refused_for_one_sample(make):
    with pytest.raises(ShapeError):
        make()(Y_TRUE[:1], Y_PRED[:1])


@pytest.mark.parametrize("make", [scalar_square, ScalarLoss])
def test_a_loss_that_returns_one_number_is_refused_for_flat_predictions(make):
    with pytest.raises(ShapeError):
        make()(Y_TRUE[:, 0], Y_PRED[:, 0])


@pytest.mark.parametrize("make", SCALARS)
def test_a_loss_that_returns_one_number_is_refused_in_fit(make):
    model: Any = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", make())
    with pytest.raises(ShapeError):
        model.fit(Y_PRED, Y_TRUE, verbose=0)


@pytest.mark.parametrize("make", [over_samples, OverSamples])
@pytest.mark.parametrize("samples", [3, 4, 5])
def test_a_loss_that_averages_over_the_samples_is_refused_whatever_their_number(make, samples):
    y_pred = np.arange(samples * 4, dtype="float32").reshape(samples, 4)
    with pytest.raises(ShapeError):
        make()(np.zeros_like(y_pred), y_pred)


@pytest.mark.parametrize("make", [scalar_metric, scalar_ratio])
def test_a_metric_that_returns_one_number_is_refused(make):
    with pytest.raises(ShapeError):
        make().update_state(Y_TRUE, Y_PRED)


@pytest.mark.parametrize("samples", [3, 4, 5])
def test_a_metric_that_averages_over_the_samples_is_refused_whatever_their_number(samples):
    y_pred = np.arange(samples * 4, dtype="float32").reshape(samples, 4)
    with pytest.raises(ShapeError):
        over_samples_metric().update_state(np.zeros_like(y_pred), y_pred)


PER_SAMPLE = [square_mean, square_entries, SquareLoss]


@pytest.mark.parametrize("make", PER_SAMPLE)
def test_weights_pick_samples_whatever_the_batches(make, reloaded):
    model: Any = identity(1, loss=make())
    for one in (model, reloaded(model)):
        for batch_size in (4, 2, 1):
            result = one.evaluate(Y_PRED, Y_TRUE, sample_weight=PICKS, batch_size=batch_size, verbose=0)
            np.testing.assert_allclose(result, 0.5, rtol=1e-5)


@pytest.mark.parametrize("make", PER_SAMPLE)
def test_without_a_reduction_there_is_one_value_a_sample(make):
    np.testing.assert_allclose(N(make(reduction="none")(Y_TRUE, Y_PRED, sample_weight=PICKS)), [1, 1, 0, 0])


@pytest.mark.parametrize("make", PER_SAMPLE)
def test_a_reduction_comes_back(make, reloaded):
    model: Any = identity(1, loss=make(reduction="sum"))
    assert reloaded(model).loss.reduction == "sum"


def test_class_weights_pick_samples():
    x = np.array([[1.0], [1.0], [3.0]], "float32")
    trained = []
    for count, weights in ((3, {0: 1.0, 1: 0.0}), (2, None)):
        model: Any = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
        model.compile(keras.optimizers.SGD(0.1), cast_square(reduction="sum"))
        model.fit(x[:count], np.array([0, 0, 1])[:count], class_weight=weights, shuffle=False, verbose=0)
        trained.append(N(model.weights[0]))
    np.testing.assert_allclose(*trained, rtol=1e-6)


@kustom.regularizer
def penalty_an_entry(w, *, factor=0.1):
    return factor * ops.square(w)


@kustom.part
class PenaltyAnEntry(keras.regularizers.Regularizer):
    factor: float = 0.1

    def __call__(self, x):
        return self.factor * ops.square(x)


@pytest.mark.parametrize("make", [penalty_an_entry, PenaltyAnEntry])
def test_a_regularizer_that_returns_more_than_one_number_is_refused(make):
    layer = keras.layers.Dense(2, kernel_regularizer=make())
    layer.build((None, 3))
    with pytest.raises(ShapeError):
        _ = layer.losses

"""The chapter's parts are right, and equal to Keras's own where Keras has the same."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from kustom.textbook import (
    HuberLoss,
    HuberMetric,
    MyDense,
    MyGaussianNoise,
    MyL1Regularizer,
    MyMultiLayer,
    ReconstructingRegressor,
    ResidualBlock,
    ResidualRegressor,
    create_huber,
    exponential_layer,
    huber_fn,
    my_glorot_initializer,
    my_l1_regularizer,
    my_positive_weights,
    my_softplus,
    precision,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 8)).astype("float32")
Y = X[:, :1] * 2 + 1
W = RNG.normal(size=(5, 4)).astype("float32")


def _numpy(x):
    return keras.ops.convert_to_numpy(x)


@pytest.mark.parametrize(
    "make", [lambda t: huber_fn(threshold=t), create_huber, HuberLoss], ids=["huber_fn", "create_huber", "HuberLoss"]
)
@pytest.mark.parametrize("threshold", [0.5, 1.0, 3.0])
def test_huber_is_keras_huber(make, threshold):
    y_true, y_pred = RNG.normal(size=(6, 2)), RNG.normal(size=(6, 2)) * 4
    weight = RNG.uniform(size=6)
    theirs = keras.losses.Huber(delta=threshold)(y_true, y_pred, sample_weight=weight)
    np.testing.assert_allclose(make(threshold)(y_true, y_pred, sample_weight=weight), theirs, rtol=1e-5)


@pytest.mark.parametrize("threshold", [0.5, 1.0, 2.0, 3.0])
def test_huber_has_no_jump_at_the_threshold(threshold):
    below, above = (float(huber_fn([0.0], [threshold * s], threshold=threshold)[0]) for s in (1 - 1e-5, 1 + 1e-5))
    assert below == pytest.approx(above, rel=1e-4)


def test_huber_takes_integer_and_boolean_targets():
    for dtype in ("int32", "bool"):
        assert float(huber_fn()(np.ones((2, 1), dtype), np.zeros((2, 1), "float32"))) == 0.5


def test_softplus_is_keras_softplus_and_never_overflows():
    z = np.array([-1000.0, -100, -1, 0, 1, 100, 1000], "float32")
    np.testing.assert_allclose(my_softplus(z), keras.activations.softplus(z), rtol=1e-6)
    assert np.all(np.isfinite(_numpy(my_softplus(z))))


def test_glorot_has_the_right_spread():
    for shape, fans in (((50, 50), 100), ((3, 3, 16, 32), 9 * 48)):
        values = _numpy(my_glorot_initializer(seed=1)(shape))
        assert values.std() == pytest.approx((2 / fans) ** 0.5, rel=0.06)
        theirs = _numpy(keras.initializers.GlorotNormal(seed=1)(shape))
        assert values.std() == pytest.approx(theirs.std(), rel=0.08)


def test_glorot_takes_every_shape():
    for shape in ((), (3,), (0, 2)):
        assert tuple(my_glorot_initializer(shape).shape) == shape


def test_l1_is_keras_l1():
    for part in (my_l1_regularizer(factor=0.1), MyL1Regularizer(0.1)):
        assert float(part(W)) == pytest.approx(float(keras.regularizers.L1(0.1)(W)), rel=1e-5)
    assert float(my_l1_regularizer(W)) == pytest.approx(0.01 * abs(W).sum(), rel=1e-5)


def test_positive_weights_are_keras_nonneg():
    np.testing.assert_array_equal(_numpy(my_positive_weights()(W)), _numpy(keras.constraints.NonNeg()(W)))


def test_precision_is_keras_precision():
    ours, theirs = precision(threshold=0.4), keras.metrics.Precision(thresholds=0.4)
    for _ in range(3):
        y_true, y_pred, weight = RNG.integers(0, 2, size=9), RNG.uniform(size=9).astype("float32"), RNG.uniform(size=9)
        ours.update_state(y_true, y_pred, sample_weight=weight)
        theirs.update_state(y_true, y_pred, sample_weight=weight)
    assert float(ours.result()) == pytest.approx(float(theirs.result()), rel=1e-5)


def test_the_huber_metric_is_the_mean_over_all_samples():
    metric = HuberMetric(2.0)
    y_true, y_pred, weight = RNG.normal(size=(9, 1)), RNG.normal(size=(9, 1)) * 4, RNG.uniform(size=9)
    for rows in (slice(0, 2), slice(2, 9)):
        metric.update_state(y_true[rows], y_pred[rows], sample_weight=weight[rows])
    values = _numpy(huber_fn(y_true, y_pred, threshold=2.0))[:, 0]
    assert float(metric.result()) == pytest.approx((values * weight).sum() / weight.sum(), rel=1e-5)
    metric.reset_state()
    assert float(metric.result()) == 0.0


def test_exponential_is_keras_exponential():
    np.testing.assert_allclose(exponential_layer()(X), keras.activations.exponential(X), rtol=1e-6)
    np.testing.assert_allclose(exponential_layer(X), np.exp(X), rtol=1e-5)


def test_dense_is_keras_dense():
    ours, theirs = MyDense(3, activation="tanh"), keras.layers.Dense(3, activation="tanh")
    ours.build((None, 8))
    theirs.build((None, 8))
    theirs.set_weights(ours.get_weights())
    np.testing.assert_allclose(_numpy(ours(X)), _numpy(theirs(X)), rtol=1e-5, atol=1e-6)
    assert ours.compute_output_shape((None, 8)) == (None, 3)


def test_the_division_is_safe_and_so_is_its_gradient():
    layer = MyMultiLayer()
    a, b = np.array([[1.0, 2.0, 3.0]], "float32"), np.array([[2.0, 0.0, 1e-30]], "float32")
    added, multiplied, divided = layer([a, b])
    np.testing.assert_allclose(_numpy(divided), [[0.5, 0.0, 0.0]])
    np.testing.assert_allclose(_numpy(added), a + b)
    np.testing.assert_allclose(_numpy(multiplied), a * b)
    inputs = [keras.Input((3,)), keras.Input((3,))]
    model = keras.Model(inputs, layer([keras.layers.Dense(3, kernel_initializer="identity")(i) for i in inputs])[2])
    model.compile("sgd", "mse")
    model.fit([a, b], a, verbose=0, epochs=2)
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())


def test_noise_only_while_training():
    layer = MyGaussianNoise(0.5, seed=1)
    np.testing.assert_array_equal(_numpy(layer(X)), X)
    noise = _numpy(layer(np.zeros((100, 100), "float32"), training=True))
    assert noise.std() == pytest.approx(0.5, rel=0.05)
    np.testing.assert_array_equal(noise, _numpy(MyGaussianNoise(0.5, seed=1)(np.zeros((100, 100), "float32"), training=True)))


def test_a_block_adds_its_input():
    block = ResidualBlock(2, 8)
    block.build((None, 8))
    for layer in block.hidden:
        layer.set_weights([np.zeros((8, 8)), np.zeros(8)])
    np.testing.assert_array_equal(_numpy(block(X)), X)


@pytest.mark.parametrize("model", [ResidualRegressor, ReconstructingRegressor])
def test_the_models_learn(model):
    model = model(1)
    model.compile("nadam", huber_fn)
    losses = model.fit(X, Y, epochs=30, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 2


def test_the_reconstruction_error_is_shown_and_in_the_loss():
    model = ReconstructingRegressor(1)
    model.compile("nadam", "mse")
    history = model.fit(X, Y, batch_size=5, epochs=2, verbose=0, validation_data=(X, Y)).history
    assert {"loss", "reconstruction_error", "val_loss", "val_reconstruction_error"} == history.keys()
    values = model.evaluate(X, Y, batch_size=16, verbose=0, return_dict=True)
    squared = np.mean((model.predict(X, verbose=0) - Y) ** 2)
    assert values["loss"] == pytest.approx(squared + 0.05 * values["reconstruction_error"], rel=1e-4)
    assert values["reconstruction_error"] == pytest.approx(
        model.evaluate(X, Y, batch_size=5, verbose=0, return_dict=True)["reconstruction_error"], rel=1e-4
    )


def test_every_part_says_what_it_is():
    import kustom.textbook as textbook

    for name in textbook.__all__:
        assert "Example:" in getattr(textbook, name).__doc__
    assert ops.is_tensor(huber_fn([0.0], [1.0]))


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_losses_and_metrics_take_integers_and_booleans_on_both_sides(dtype):
    y_true, y_pred = np.array([[0], [1]], dtype), np.array([[1], [1]], dtype)
    np.testing.assert_allclose(_numpy(huber_fn(y_true, y_pred)), [[0.5], [0.0]])
    for loss in (huber_fn(), create_huber(1.0), HuberLoss()):
        assert float(loss(y_true, y_pred)) == 0.25
    assert float(HuberMetric()(y_true, y_pred)) == 0.25
    assert float(precision()(y_true, y_pred)) == 0.5


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_the_quotient_is_finite_in_each_dtype(policy):
    first, second = (np.array([row], "float32").T for row in ([1.0, 10.0, -1.0, 4.0, 1.0], [1e-6, 6e-5, 1e-6, 2.0, 0.0]))
    quotient = _numpy(ops.cast(MyMultiLayer(dtype=policy)([first, second])[2], "float32"))[:, 0]
    assert np.isfinite(quotient).all()
    assert list(np.sign(quotient)) == [1, 1, -1, 1, 0]
    assert quotient[3] == 2.0

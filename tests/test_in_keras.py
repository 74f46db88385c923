"""Parts work wherever Keras takes them, with whatever Keras does to a model. Where Keras itself cannot, it is said."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import kustom
from kustom.textbook import (
    HuberMetric,
    MyDense,
    MyGaussianNoise,
    ReconstructingRegressor,
    ResidualBlock,
    ResidualRegressor,
    exponential_layer,
    huber_fn,
    my_glorot_initializer,
    my_l1_regularizer,
    my_positive_weights,
    my_softplus,
    precision,
)

BACKEND = keras.backend.backend()
X = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
Y = X[:, :1]


@kustom.part
class Gained(keras.layers.Dense):
    gain: float = 1.0

    def call(self, inputs, training=None):
        return super().call(inputs, training=training) * self.gain


def _model(*, constraint=None, **compiled):
    inputs = keras.Input((8,))
    h = MyDense(8, activation=my_softplus)(inputs)
    h = keras.layers.Dense(
        8,
        kernel_initializer=my_glorot_initializer,
        kernel_regularizer=my_l1_regularizer,
        kernel_constraint=constraint,
        activation=exponential_layer,
        name="dense",
    )(h)
    h = ResidualBlock(1, 8)(exponential_layer()(h * 0.01))
    h = MyGaussianNoise(0.01)(h)
    model = keras.Model(inputs, keras.layers.Dense(1)(h))
    model.compile("sgd", huber_fn, metrics=[precision, HuberMetric()], **compiled)
    return model


def _same(one, other, tolerance=1e-5):
    np.testing.assert_allclose(one.predict(X, verbose=0), other.predict(X, verbose=0), rtol=tolerance, atol=tolerance)


def test_clone_model():
    model = _model()
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    _same(model, twin)
    assert [layer.get_config() for layer in model.layers[1:]] == [layer.get_config() for layer in twin.layers[1:]]


def test_clone_a_subclassed_model():
    model = ResidualRegressor(1)
    model(X)
    twin = keras.models.clone_model(model)
    twin(X)
    twin.set_weights(model.get_weights())
    _same(model, twin)


def test_to_json():
    model = _model()
    twin = keras.models.model_from_json(model.to_json())
    twin.set_weights(model.get_weights())
    _same(model, twin)


def test_summary():
    lines = []
    _model().summary(print_fn=lines.append, expand_nested=True)
    assert all(name in "".join(lines) for name in ("MyDense", "ResidualBlock", "exponential_layer"))


@pytest.mark.skipif(BACKEND == "torch", reason="Keras takes steps_per_execution=1 alone on torch")
def test_steps_per_execution():
    model = _model(steps_per_execution=4)
    history = model.fit(X, Y, batch_size=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert int(model.optimizer.iterations) == 8


@pytest.mark.parametrize("how", [{"run_eagerly": True}, {"jit_compile": BACKEND != "torch"}], ids=str)
def test_eager_and_compiled_agree(how):
    keras.utils.set_random_seed(1)
    model = _model(constraint=my_positive_weights, **how)
    keras.utils.set_random_seed(1)
    other = _model(constraint=my_positive_weights)
    for each in (model, other):
        each.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    # The noise differs where the backend draws otherwise when compiled; the values of one evaluation must not.
    other.set_weights(model.get_weights())
    np.testing.assert_allclose(model.evaluate(X, Y, verbose=0), other.evaluate(X, Y, verbose=0), rtol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy, trip):
    keras.config.set_dtype_policy(policy)
    try:
        model = _model()
        model.fit(X, Y, batch_size=8, verbose=0)
        for layer in (model.layers[1], exponential_layer(), MyGaussianNoise(0.1)):
            assert keras.backend.standardize_dtype(layer(X).dtype) == policy.removeprefix("mixed_")
        _same(model, trip(model), 1e-2)
    finally:
        keras.config.set_dtype_policy("float32")


def test_lora(trip):
    model = _model()
    model.get_layer("dense").enable_lora(2)
    model.fit(X, Y, verbose=0)
    _same(model, trip(model))
    part = keras.Sequential([keras.Input((8,)), Gained(8, gain=2.0)])
    part.layers[0].enable_lora(2)
    part.compile("sgd", "mse")
    part.fit(X, X, verbose=0)
    _same(part, trip(part))


# `Model.quantize` warns of every layer that it leaves as it is.
leaves_layers = pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")


@leaves_layers
def test_quantize(trip):
    model = _model()
    before = model.predict(X, verbose=0)
    model.quantize("int8")
    np.testing.assert_allclose(model.predict(X, verbose=0), before, atol=0.05)
    assert model.get_layer("dense").quantization_mode == "int8"
    assert model.layers[-3].hidden[0].quantization_mode == "int8"
    _same(model, trip(model))


@leaves_layers
def test_a_part_that_quantizing_would_bypass_is_left_as_it_is():
    model = keras.Sequential([keras.Input((8,)), Gained(8, gain=2.0)])
    before = model.predict(X, verbose=0)
    with pytest.warns(UserWarning, match=r"would bypass Gained\.call"):
        model.quantize("int8")
    np.testing.assert_array_equal(model.predict(X, verbose=0), before)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras's RematScope fails in fit on TensorFlow, for its own Dense too")
def test_remat():
    # Keras's own layers with a `training` argument fail under remat on JAX; so there is none here.
    with keras.RematScope(mode="full"):
        model = keras.Sequential([keras.Input((8,)), MyDense(8, activation=my_softplus), ResidualBlock(1, 8), exponential_layer()])
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    for each in (model, plain):
        each.compile("sgd", huber_fn)
        each.fit(X, X, verbose=0, shuffle=False)
    _same(model, plain)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras writes no SavedModel on torch")
def test_export_of_a_saved_model(tmp_path):
    import tensorflow as tf

    model = _model()
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(served.serve(X), model.predict(X, verbose=0), rtol=1e-4, atol=1e-5)


# What a converter says of its own trace is not of the part.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(BACKEND == "jax", reason="JAX's converter brings forty packages and is left out")
def test_export_to_onnx(tmp_path):
    pytest.importorskip("onnxscript" if BACKEND == "torch" else "tf2onnx")
    model = _model()
    model(X)
    model.export(tmp_path / "exported.onnx", format="onnx", verbose=False)
    assert (tmp_path / "exported.onnx").stat().st_size > 1000


def test_callbacks_write_files_that_load(tmp_path):
    model = _model()
    model.fit(X, Y, verbose=0, callbacks=[keras.callbacks.ModelCheckpoint(tmp_path / "m.keras")])
    _same(model, keras.saving.load_model(tmp_path / "m.keras"))


def test_masks_and_weights_a_time_step():
    ids = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 0, 0]])
    targets = np.random.default_rng(0).uniform(size=(2, 5, 1)).astype("float32")
    inputs = keras.Input((5,))
    h = keras.layers.Embedding(9, 4, mask_zero=True)(inputs)
    h = MyGaussianNoise(0.1)(exponential_layer()(h))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.LSTM(3, return_sequences=True)(h)))
    model.compile("sgd", huber_fn, metrics=[precision], weighted_metrics=[HuberMetric()])
    spoilt = np.where(ids[..., None] == 0, np.nan, targets)
    values = []
    for y in (targets, targets[..., 0], spoilt):
        # Compiled anew: TensorFlow forgets the rank of targets that come in two ranks, and Keras's own losses fail then, too.
        model.compile("sgd", huber_fn, metrics=[precision], weighted_metrics=[HuberMetric()])
        values.append(model.evaluate(ids, y, verbose=0, sample_weight=np.ones((2, 5)), return_dict=True))
    assert values[0] == pytest.approx(values[1])
    assert values[0] == pytest.approx(values[2])
    assert np.isfinite(values[0]["loss"])


def test_several_outputs(trip):
    inputs = keras.Input((8,))
    outputs = {"a": keras.layers.Dense(1, name="a")(inputs), "b": keras.layers.Dense(2, name="b")(inputs)}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"a": huber_fn, "b": huber_fn(threshold=2.0)}, metrics={"a": [precision], "b": HuberMetric(2.0)})
    targets = {"a": Y, "b": X[:, :2]}
    model.fit(X, targets, verbose=0)
    loaded = trip(model)
    assert loaded.evaluate(X, targets, verbose=0) == pytest.approx(model.evaluate(X, targets, verbose=0))
    assert loaded.loss["b"].threshold == 2.0


def test_wrappers_of_keras(trip):
    inputs = keras.Input((5, 8))
    model = keras.Model(inputs, keras.layers.TimeDistributed(MyDense(3))(inputs))
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    np.testing.assert_allclose(trip(model).predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6)


def test_a_model_as_a_layer(trip):
    inner, inputs = ReconstructingRegressor(2), keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inner(inputs)))
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    loaded = trip(model)
    _same(model, loaded)
    assert loaded.evaluate(X, Y, verbose=0) == pytest.approx(model.evaluate(X, Y, verbose=0))

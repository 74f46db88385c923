"""Optimizers in a model's attributes go on from a file, though nothing builds them before the first step."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

import kustom

X = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
Y = X[:, :1] + 1


@keras.saving.register_keras_serializable("own_optimizers")
class Two(kustom.Model):
    """Trains its kernel by one optimizer and its bias by another."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(1)
        self.of_kernel, self.others = keras.optimizers.Adam(0.05), [keras.optimizers.SGD(0.01, momentum=0.9)]

    def build(self, shape):
        self.dense.build(shape)
        self.built = True

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(y - self(x)))
        variables = [self.dense.kernel, self.dense.bias]
        for optimizer, variable, gradient in zip(
            (self.of_kernel, *self.others), variables, tape.gradient(loss, variables), strict=True
        ):
            optimizer.apply([gradient], [variable])
        return {"loss": loss}


def trained(model=None, epochs=2):
    if model is None:
        keras.utils.set_random_seed(1)
        model = Two()
        model.build((None, 3))
        model.compile(optimizer=None)
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return model


def through_file(model, path, library):
    if library == "kustom":
        kustom.save(model, path)
        return kustom.load(path)
    model.save(path)
    return keras.saving.load_model(path)


def state(model):
    variables = [v for optimizer in (model.of_kernel, *model.others) for v in optimizer.variables]
    return [np.asarray(ops.convert_to_numpy(v)) for v in (*model.weights, *variables)]


@pytest.mark.parametrize("library", ["kustom", "keras"])
@pytest.mark.parametrize("files", [1, 2])
def test_a_loaded_model_goes_on_as_the_one_that_was_saved(library, files, tmp_path):
    model = trained()
    loaded = model
    for number in range(files):
        loaded = through_file(loaded, tmp_path / f"{number}.keras", library)
    assert [int(optimizer.iterations) for optimizer in (loaded.of_kernel, *loaded.others)] == [6, 6]
    for mine, other in zip(state(trained(loaded)), state(trained(model)), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-7)
    assert [int(optimizer.iterations) for optimizer in (loaded.of_kernel, *loaded.others)] == [12, 12]


def test_a_rate_that_is_set_after_loading_counts(tmp_path):
    loaded = through_file(trained(), tmp_path / "model.keras", "kustom")
    loaded.of_kernel.learning_rate = 0.0
    before = ops.convert_to_numpy(loaded.dense.kernel).copy()
    trained(loaded)
    np.testing.assert_array_equal(ops.convert_to_numpy(loaded.dense.kernel), before)


@keras.saving.register_keras_serializable("own_optimizers")
class Plain(keras.Model):
    """Has an optimizer in an attribute, and nothing of kustom's."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.of_all = keras.layers.Dense(1), keras.optimizers.Adam(0.05)

    def build(self, shape):
        self.dense.build(shape)
        self.built = True

    def call(self, x):
        return self.dense(x)


def test_of_a_model_of_keras_it_is_said_that_an_optimizer_was_passed_over(tmp_path):
    model = Plain()
    model.build((None, 3))
    model.of_all.build(model.trainable_variables)
    kustom.save(model, tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer 'adam"):
        kustom.load(tmp_path / "model.keras")

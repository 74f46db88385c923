"""`kustom.Model`: one stateful step under plain `fit`, `evaluate`, `predict` and their kin, alike on every backend."""

# What Keras says of its own types does not hold: "verbose" is text, `fit` takes no list.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom.errors import DataWarning, EagerWarning, StepError, TracerWarning
from kustom.typing import OptimizerLike

X = np.linspace(-1, 1, 44, dtype="float32").reshape(11, 4).repeat(4, axis=0)[:, :3]
Y = X.sum(axis=1, keepdims=True)


def array_of(value: Any) -> np.ndarray:
    return np.array(ops.convert_to_numpy(ops.stop_gradient(value.value if isinstance(value, keras.Variable) else value)))


class GAN(kustom.Model):
    """Two models, two optimizers; `call` takes what no batch is."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = keras.Sequential([keras.layers.Dense(2)])
        self.critic = keras.Sequential([keras.layers.Dense(4, activation="tanh"), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
        self.generator_optimizer, self.critic_optimizer = keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.01)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, noise):
        assert noise.shape[-1] == 5, "this is no noise"
        return self.generator(noise)

    def train_step(self, real):
        noise = keras.random.normal((ops.shape(real)[0], 5), seed=self.seeds)
        with kustom.GradientTape() as tape:
            critic = ops.mean(self.critic(self.generator(noise), training=True) - self.critic(real, training=True))
        variables = self.critic.trainable_variables
        self.critic_optimizer.apply_gradients(zip(tape.gradient(critic, variables), variables, strict=True))
        with kustom.GradientTape() as tape:
            generator = -ops.mean(self.critic(self.generator(noise), training=True))
        variables = self.generator.trainable_variables
        self.generator_optimizer.apply_gradients(zip(tape.gradient(generator, variables), variables, strict=True))
        return {"critic": critic, "generator": generator}


class Steps(kustom.Model):
    """Counts its steps, and returns the mean of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        return x

    def train_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        self.count.assign_add(1.0)
        self.seen.assign_add(ops.sum(x))
        return {"mean": ops.mean(x)}

    test_step = train_step


class Batches(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.begins: list[int] = []
        self.ends: list[int] = []
        self.logs: list[Any] = []

    def on_train_batch_begin(self, batch, logs=None):
        self.begins.append(batch)

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(batch)
        self.logs.append(logs)

    on_test_batch_begin, on_test_batch_end = on_train_batch_begin, on_train_batch_end


def dense(cls: Any = kustom.Model, *, layers: Any = None, **options: Any) -> Any:
    """A subclassed model with the usual step."""

    class Usual(cls):
        def __init__(self) -> None:
            super().__init__()
            self.inner = keras.Sequential(layers() if layers else [keras.layers.Dense(1, kernel_initializer="ones")])

        def call(self, x, training=False):
            return self.inner(x, training=training)

    model = Usual()
    model.compile(**{"optimizer": keras.optimizers.SGD(0.1), "loss": "mse"} | options)
    return model


def linear(cls: Any = kustom.Model, outputs: int = 1) -> Any:
    """A functional model."""
    inputs = keras.Input((3,))
    return cls(inputs, keras.layers.Dense(outputs, kernel_initializer="ones")(inputs))


class TestTwoOptimizers:
    def test_every_variable_moves_and_each_optimizer_counts_for_itself(self):
        gan = GAN()
        gan.compile()
        history = gan.fit(X[:, :2], batch_size=8, epochs=2, verbose=0)
        assert set(history.history) == {"critic", "generator"}
        assert int(gan.generator_optimizer.iterations.value) == int(gan.critic_optimizer.iterations.value) == 12
        before = [array_of(v) for v in gan.trainable_variables]
        gan.fit(X[:, :2], batch_size=8, verbose=0)
        assert all(np.any(array_of(v) != w) for v, w in zip(gan.trainable_variables[:2], before[:2], strict=True))
        assert int(gan.critic_optimizer.iterations.value) == 18

    @pytest.mark.slow
    def test_it_is_one_step_for_one_batch_by_hand(self):
        keras.utils.set_random_seed(1)
        one = GAN()
        one.compile(optimizer=None)
        one.fit(X[:16, :2], batch_size=8, shuffle=False, verbose=0)
        keras.utils.set_random_seed(1)
        other = GAN()
        for at in (0, 8):
            other.train_step(ops.convert_to_tensor(X[at : at + 8, :2]))
        for v, w in zip(one.trainable_variables, other.trainable_variables, strict=True):
            np.testing.assert_allclose(array_of(v), array_of(w), atol=1e-6)

    def test_compile_without_an_optimizer(self):
        gan = GAN()
        gan.compile(optimizer=None)
        gan.fit(X[:, :2], verbose=0)
        assert gan.optimizer is None

    def test_on_one_batch(self):
        gan = GAN()
        gan.compile(optimizer=None)
        values = gan.train_on_batch(X[:8, :2], return_dict=True)
        assert set(values) == {"critic", "generator"}
        assert int(gan.critic_optimizer.iterations.value) == 1


class TestTheUsualStep:
    @pytest.mark.parametrize(("make", "steps"), [(dense, 1), (linear, 3)])
    def test_it_gives_keras_numbers(self, make, steps):
        found = []
        for cls in (kustom.Model, keras.Model):
            keras.utils.set_random_seed(2)
            model = make(cls)
            k = steps if cls is kustom.Model or keras.backend.backend() != "torch" else 1
            model.compile(keras.optimizers.Adam(0.05), "mse", metrics=["mae"], weighted_metrics=["mse"], steps_per_execution=k)
            weight = np.linspace(0.5, 1.5, len(X)).astype("float32")
            history = model.fit(
                X, Y + 1, batch_size=8, epochs=3, sample_weight=weight, shuffle=False, validation_data=(X, Y), verbose=0
            )
            found.append(
                (
                    history.history,
                    [array_of(w) for w in model.weights],
                    model.evaluate(X, Y, verbose=0),
                    model.predict(X, verbose=0),
                )
            )
        ours, theirs = found
        assert set(ours[0]) == set(theirs[0])
        for name in theirs[0]:
            np.testing.assert_allclose(ours[0][name], theirs[0][name], rtol=1e-4, err_msg=name)
        for a, b in zip(ours[1], theirs[1], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-4)
        np.testing.assert_allclose(ours[3], theirs[3], rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_with_regularization_normalization_and_several_outputs(self):
        found = []
        for cls in (kustom.Model, keras.Model):
            keras.utils.set_random_seed(2)
            inputs = keras.Input((3,))
            hidden = keras.layers.BatchNormalization()(keras.layers.Dense(4, kernel_regularizer="l2")(inputs))
            model = cls(inputs, {"a": keras.layers.Dense(1, name="a")(hidden), "b": keras.layers.Dense(2, name="b")(hidden)})
            model.compile(
                keras.optimizers.SGD(0.05), {"a": "mse", "b": "mae"}, loss_weights={"a": 1.0, "b": 0.5}, metrics={"a": ["mae"]}
            )
            targets = {"a": Y, "b": X[:, :2]}
            # Of equal size: Keras's means of the losses of single outputs count batches on TensorFlow, where ours count samples.
            history = model.fit(X, targets, batch_size=11, epochs=2, shuffle=False, verbose=0).history
            found.append((history, model.evaluate(X, targets, batch_size=11, verbose=0)))
        assert set(found[0][0]) == set(found[1][0])
        for name, values in found[1][0].items():
            np.testing.assert_allclose(found[0][0][name], values, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4)

    @pytest.mark.slow
    def test_class_weights(self):
        labels = (np.arange(44) % 2)[:, None]
        found = []
        for cls in (kustom.Model, keras.Model):
            keras.utils.set_random_seed(0)
            model = linear(cls)
            model.compile("sgd", "mse")
            model.fit(X, labels, class_weight={0: 1.0, 1: 3.0}, shuffle=False, verbose=0)
            model.train_on_batch(X, labels, class_weight={0: 1.0, 1: 3.0})
            found.append(array_of(model.layers[-1].kernel))
        np.testing.assert_allclose(*found, rtol=1e-5)

    def test_without_an_optimizer_it_is_refused(self):
        model = linear()
        model.compile(None, "mse")
        with pytest.raises(StepError, match="optimizer"):
            model.fit(X, Y, verbose=0)
        assert model.evaluate(X, Y + 1, verbose=0) > 0

    def test_called_from_a_step_of_ones_own(self):
        class Twice(kustom.Model):
            def train_step(self, data):
                super().train_step(data)
                return super().train_step(data)

        model = linear(Twice)
        model.compile("sgd", "mse")
        history = model.fit(X, Y, batch_size=4, verbose=0)
        assert int(model.optimizer.iterations.value) == 22
        assert list(history.history) == ["loss"]

    def test_only_the_evaluation_is_overridden(self):
        class Half(kustom.Model):
            def test_step(self, data):
                x, y = data
                return {"half": ops.mean(ops.abs(y - self(x))) / 2}

        model = linear(Half)
        model.compile("sgd", "mse")
        history = model.fit(X, Y, validation_data=(X, Y), verbose=0).history
        assert list(history) == ["loss", "val_half"]
        assert model.evaluate(X, Y, verbose=0) == pytest.approx(history["val_half"][-1])

    @pytest.mark.slow
    def test_its_own_compute_loss(self):
        class Triple(kustom.Model):
            def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
                return 3 * ops.mean(ops.square(y - y_pred))

        model, plain = linear(Triple), linear()
        for each in (model, plain):
            each.compile(keras.optimizers.SGD(0.0), "mse")
        ours, usual = (each.fit(X, Y + 1, verbose=0).history["loss"][0] for each in (model, plain))
        assert ours == pytest.approx(3 * usual)

    def test_float16_scales_its_loss(self):
        inputs = keras.Input((3,))
        model = kustom.Model(inputs, keras.layers.Dense(1, dtype="mixed_float16")(inputs))
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=1024.0), "mse")
        before = array_of(model.layers[-1].kernel)
        model.fit(X, Y, batch_size=44, verbose=0)
        moved = np.abs(array_of(model.layers[-1].kernel) - before).max()
        assert 1e-3 < moved < 1.0

    @pytest.mark.slow
    def test_averages_of_the_weights_are_taken_at_the_end(self):
        model = linear()
        model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9), "mse")
        model.fit(X, Y + 1, batch_size=8, shuffle=False, verbose=0)
        average = model.optimizer._model_variables_moving_average[0]
        np.testing.assert_allclose(array_of(model.layers[-1].kernel), array_of(average))


class TestBatches:
    @pytest.mark.parametrize("k", [1, 4, 20])
    def test_all_are_run_and_hooks_are_told_their_true_numbers(self, k):
        model, batches = Steps(), Batches()
        model.compile(steps_per_execution=k)
        history = model.fit(X, batch_size=4, epochs=2, shuffle=False, callbacks=[batches], verbose=0)
        assert float(model.count.value) == 22
        firsts = list(range(0, 11, k))
        assert batches.begins == firsts * 2
        assert batches.ends == [min(first + k, 11) - 1 for first in firsts] * 2
        assert history.history["mean"] == pytest.approx([X.mean()] * 2, abs=1e-6)

    @pytest.mark.parametrize("k", [1, 4])
    def test_traces_do_not_grow_with_k(self, k):
        traced = []

        class Traced(Steps):
            def train_step(self, data):
                traced.append(0)
                return super().train_step(data)

        model = Traced()
        model.compile(steps_per_execution=k)
        model.fit(X, batch_size=4, epochs=2, callbacks=[Batches()], verbose=0)
        assert len(traced) <= 3
        before = len(traced)
        model.fit(X, batch_size=4, verbose=0)
        assert len(traced) == before

    def test_results_do_not_depend_on_k(self):
        found = []
        for k in (1, 4):
            keras.utils.set_random_seed(3)
            model = dense(layers=lambda: [keras.layers.Dense(4), keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(1)])
            model.compile("adam", "mse", steps_per_execution=k)
            model.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=[Batches()])
            found.append(array_of(model.inner.layers[-1].kernel))
        np.testing.assert_array_equal(found[0], found[1])

    @pytest.mark.parametrize(("kind", "k"), [("generator", 1), ("generator", 2), ("tf.data", 1), ("DataLoader", 2), ("list", 2)])
    def test_a_stream_is_trained_on_once(self, kind, k):
        batches = [np.full((2, 1), 10.0**i, "float32") for i in range(5)]
        source: Any = [(b,) for b in batches]
        if kind == "generator":
            source = (b for b in batches)
        elif kind == "tf.data":
            tf = pytest.importorskip("tensorflow")
            source = tf.data.Dataset.from_tensor_slices(np.concatenate(batches)).filter(lambda x: True).batch(2)
        elif kind == "DataLoader":
            torch = pytest.importorskip("torch")
            source = torch.utils.data.DataLoader(
                torch.utils.data.TensorDataset(torch.tensor(np.concatenate(batches))), batch_size=2
            )
        model = Steps()
        model.compile(steps_per_execution=k)
        model.fit(source, verbose=0)
        assert float(model.count.value) == 5
        assert float(model.seen.value) == 22222.0

    def test_what_an_iterator_has_left_is_for_the_next_call(self):
        stream = iter(np.full((2, 1), float(i), "float32") for i in range(7))
        model = Steps()
        model.compile(steps_per_execution=2)
        model.fit(stream, steps_per_epoch=3, verbose=0)
        assert float(model.seen.value) == 6.0
        with pytest.warns(DataWarning):
            model.fit(stream, epochs=2, steps_per_epoch=3, verbose=0)
        assert float(model.count.value) == 7

    def test_steps_without_data(self):
        class Alone(kustom.Model):
            def __init__(self):
                super().__init__()
                self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

            def train_step(self, data):
                assert data is None
                self.count.assign_add(1.0)

        model = Alone()
        model.compile()
        model.fit(steps_per_epoch=5, verbose=0)
        assert float(model.count.value) == 5

    def test_unbuilt_models_in_keras_ways(self):
        model = keras.Sequential([keras.layers.Dense(2)])

        class Outer(kustom.Model):
            def __init__(self):
                super().__init__()
                self.inner = model

            def call(self, x):
                return self.inner(x)

        outer = Outer()
        outer.compile("sgd", "mse", metrics=["mae"])
        assert outer.evaluate(X, X[:, :2], verbose=0, return_dict=True).keys() == {"loss", "mae"}
        assert outer.built
        assert outer.predict(X, verbose=0).shape == (44, 2)


class TestReports:
    def test_the_mean_over_samples_under_the_name_given(self):
        x = np.array([[1.0]] * 4 + [[2.0]] * 4 + [[9.0]] * 2, "float32")

        class Named(kustom.Model):
            def __init__(self, key):
                super().__init__()
                self.key = key

            def train_step(self, data):
                return {self.key: ops.mean(data[0])}

            test_step = train_step

        for key, loss in (("loss", "mse"), ("loss", None), ("mine", "mse")):
            model = Named(key)
            model.compile("sgd", loss)
            seen = Batches()
            history = model.fit(x, x, batch_size=4, shuffle=False, verbose=0, validation_data=(x, x), callbacks=[seen]).history
            assert history == {key: [pytest.approx(3.0)], f"val_{key}": [pytest.approx(3.0)]}
            assert [logs[key] for logs in seen.logs if logs][:3] == pytest.approx([1.0, 1.5, 3.0])
            assert model.evaluate(x, x, batch_size=4, verbose=0) == pytest.approx(3.0)

    @pytest.mark.parametrize("way", ["metric", "result", "all", "nothing"])
    def test_metrics_by_their_result(self, way):
        class Measured(kustom.Model):
            def __init__(self):
                super().__init__()
                self.root = keras.metrics.RootMeanSquaredError(name="root")
                self.scale = self.add_weight(shape=(), initializer="ones")

            def call(self, x):
                return x * self.scale

            def train_step(self, data):
                x, y = data
                self.root.update_state(y, self(x))
                if way == "metric":
                    return {"root": self.root}
                if way == "result":
                    return {"root": self.root.result(), "batch": ops.max(x)}
                return {m.name: m.result() for m in self.metrics} if way == "all" else None

            test_step = train_step

        x = np.arange(10, dtype="float32")[:, None]
        model = Measured()
        model.compile()
        history = model.fit(x, 0 * x, batch_size=4, epochs=2, shuffle=False, verbose=0, validation_data=(x, 0 * x)).history
        right = float(np.sqrt(np.mean(x**2)))
        assert history["root"] == history["val_root"] == pytest.approx([right, right])
        assert model.train_on_batch(x[:4], 0 * x[:4], return_dict=True)["root"] == pytest.approx(
            float(np.sqrt(np.mean(x[:4] ** 2)))
        )
        if way == "result":
            assert history["batch"] == pytest.approx([(3 * 4 + 7 * 4 + 9 * 2) / 10] * 2)
        if way == "all":
            assert history["loss"] == [0.0, 0.0]

    def test_a_metric_of_nobody_is_reset_as_well(self):
        total = keras.metrics.Sum(name="total")

        class Foreign(Steps):
            def train_step(self, data):
                total.update_state(data)
                return {"total": total}

        model = Foreign()
        model.compile()
        assert model.fit(np.ones((8, 1)), batch_size=4, epochs=3, verbose=0).history["total"] == [8.0, 8.0, 8.0]

    def test_validation_leaves_the_metrics_of_training_alone(self):
        model = linear()
        model.compile(keras.optimizers.SGD(0.0), "mse")

        class Validates(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                self.model.evaluate(X, Y + 100, verbose=0)

        quiet = model.fit(X, Y, batch_size=8, verbose=0).history
        loud = model.fit(X, Y, batch_size=8, verbose=0, callbacks=[Validates()]).history
        assert quiet["loss"] == pytest.approx(loud["loss"])

    @pytest.mark.parametrize("value", ["vector", "text"])
    def test_other_results_are_refused(self, value):
        class Bad(Steps):
            def train_step(self, data):
                return {"what": data if value == "vector" else "text"}

        model = Bad()
        model.compile()
        with pytest.raises(StepError, match="under 'what'"):
            model.fit(X, verbose=0)

    def test_a_step_of_other_arguments_is_refused(self):
        class OfTwo(Steps):
            def train_step(self, x, y):
                return {"loss": ops.mean(x) + ops.mean(y)}

        class OfState(Steps):
            def train_step(self, state, data):
                return {"loss": ops.mean(data)}, state

        for model, takes in ((OfTwo(), r"OfTwo.train_step takes \(x, y\)"), (OfState(), r"takes \(state, data\)")):
            model.compile()
            with pytest.raises(StepError, match=takes + r".*train_step\(self, data\)"):
                model.fit(X, verbose=0)


class TestCallbacks:
    def test_they_read_and_write_fresh_variables(self):
        model = Steps()
        model.compile()
        read = []

        class Reads(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                read.append(float(self.model.count.value))
                self.model.count.assign(read[-1] + 10.0)

        model.fit(X, batch_size=22, verbose=0, callbacks=[Reads()])
        assert read == [1.0, 12.0]
        assert float(model.count.value) == 22.0

    def test_checkpoints_and_early_stopping(self, tmp_path):
        model = linear()
        model.compile(keras.optimizers.SGD(0.1), "mse")
        path = str(tmp_path / "best.weights.h5")
        saves = keras.callbacks.ModelCheckpoint(path, monitor="val_loss", save_best_only=True, save_weights_only=True)
        stops = keras.callbacks.EarlyStopping(monitor="val_loss", patience=1, restore_best_weights=True, min_delta=1e9)
        model.fit(X, Y + 1, epochs=20, verbose=0, validation_data=(X, Y + 1), callbacks=[saves, stops])
        assert len(model.history.epoch) == 2
        first = array_of(model.layers[-1].kernel)
        model.load_weights(path)
        assert np.any(array_of(model.layers[-1].kernel) != first)

    def test_the_learning_rate_and_stop_training(self):
        model = linear()
        model.compile(keras.optimizers.SGD(0.1), "mse")

        class Stops(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                self.model.stop_training = batch == 2

        rates = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.0)
        before = array_of(model.layers[-1].kernel)
        model.fit(X, Y + 1, batch_size=4, epochs=5, verbose=0, callbacks=[rates, Stops()])
        assert int(model.optimizer.iterations.value) == 3
        np.testing.assert_array_equal(array_of(model.layers[-1].kernel), before)

    @pytest.mark.parametrize("way", ["model", "loop"])
    def test_a_backup_is_gone_on_from(self, way, tmp_path):
        model = linear()
        model.compile(keras.optimizers.SGD(0.1), "mse")
        count = keras.Variable(0.0, trainable=False)
        epochs = []

        class Breaks(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                epochs.append(epoch)
                if epochs == [0, 1, 2]:
                    raise KeyboardInterrupt

        def step(x, y):
            model(x)
            count.assign_add(1.0)

        fit: Any = model.fit if way == "model" else kustom.Loop(step, model=model).fit
        backup = keras.callbacks.BackupAndRestore(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            fit(X, Y, batch_size=11, epochs=4, verbose=0, callbacks=[backup, Breaks()])
        fit(X, Y, batch_size=11, epochs=4, verbose=0, callbacks=[keras.callbacks.BackupAndRestore(tmp_path), Breaks()])
        assert epochs == [0, 1, 2, 2, 3]
        assert float(array_of(count)) == (16 if way == "loop" else 0)
        fit(X, Y, batch_size=11, epochs=1, verbose=0, callbacks=[Breaks()])
        assert epochs[-1] == 0

    def test_hooks_of_predict(self):
        numbers = []

        class Predicts(keras.callbacks.Callback):
            def on_predict_batch_end(self, batch, logs=None):
                numbers.append((batch, len(logs["outputs"])))

        model = linear()
        model.compile(steps_per_execution=4)
        model.predict(X, batch_size=4, verbose=0, callbacks=[Predicts()])
        assert numbers == [(3, 16), (7, 16), (10, 12)]


class TestTrainable:
    def make(self):
        first, second = keras.layers.Dense(3), keras.layers.Dense(3)
        inputs = keras.Input((3,))
        model = kustom.Model(inputs, second(first(inputs)))
        model.compile(keras.optimizers.SGD(0.1), "mse")
        return model, first, second

    def moves(self, model, layer, run):
        before = array_of(layer.kernel)
        run()
        return bool(np.any(array_of(layer.kernel) != before))

    def test_frozen_between_fits_and_thawed_again(self):
        model, first, second = self.make()
        fit = lambda: model.fit(X, X, verbose=0)  # noqa: E731
        fit()
        first.trainable = False
        assert not self.moves(model, first, fit)
        assert self.moves(model, second, fit)
        first.trainable = True
        assert self.moves(model, first, fit)

    def test_frozen_from_a_callback(self):
        model, first, second = self.make()
        kept = []

        class Freezes(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == 1:
                    first.trainable = False
                    kept.extend([array_of(first.kernel), array_of(second.kernel)])

        model.fit(X, X, epochs=3, verbose=0, callbacks=[Freezes()])
        np.testing.assert_array_equal(array_of(first.kernel), kept[0])
        assert np.any(array_of(second.kernel) != kept[1])

    def test_what_the_optimizer_was_not_built_for_is_refused(self):
        model, first, _ = self.make()
        first.trainable = False
        model.fit(X, X, verbose=0)
        first.trainable = True
        before = [array_of(v) for v in model.variables]
        with pytest.raises(ValueError, match="was built for other variables"):
            model.fit(X, X, verbose=0)
        assert all(np.array_equal(array_of(v), w) for v, w in zip(model.variables, before, strict=True))
        model.compile(keras.optimizers.SGD(0.1), "mse")
        assert self.moves(model, first, lambda: model.fit(X, X, verbose=0))

    @pytest.mark.slow
    def test_the_classic_recipe_of_a_gan(self):
        inputs, noise = keras.Input((3,)), keras.Input((2,))
        critic = kustom.Model(inputs, keras.layers.Dense(1)(inputs))
        critic.compile(keras.optimizers.SGD(0.1), "mse")
        generator = kustom.Model(noise, keras.layers.Dense(3)(noise))
        stacked = kustom.Model(noise, critic(generator(noise)))
        stacked.compile(keras.optimizers.SGD(0.1), "mse")

        def train(critics: bool) -> None:
            critic.trainable = critics
            if critics:
                critic.train_on_batch(X[:8], Y[:8])
            else:
                stacked.train_on_batch(X[:8, :2], Y[:8])

        for _ in range(2):
            assert self.moves(critic, critic.layers[-1], lambda: train(True))
            assert not self.moves(critic, critic.layers[-1], lambda: train(False))
            assert self.moves(stacked, generator.layers[-1], lambda: train(False))


class TestPython:
    def test_compiled_anew_or_with_another_part(self):
        model = linear()
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(X, Y, verbose=0)
        model.compile(keras.optimizers.SGD(0.0), "mae")
        before = array_of(model.layers[-1].kernel)
        model.fit(X, Y + 1, verbose=0)
        np.testing.assert_array_equal(array_of(model.layers[-1].kernel), before)
        model.optimizer = keras.optimizers.SGD(0.1)
        model.fit(X, Y + 1, verbose=0)
        assert np.any(array_of(model.layers[-1].kernel) != before)

    def test_a_number_that_changes(self):
        class Scaled(Steps):
            def __init__(self):
                super().__init__()
                self.scale = 1.0

            def train_step(self, data):
                return {"value": ops.mean(data) * self.scale}

        class Doubles(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.model.scale = 2.0**epoch

        model = Scaled()
        model.compile()
        assert model.fit(np.ones((8, 1)), epochs=3, verbose=0, callbacks=[Doubles()]).history["value"] == [1.0, 2.0, 4.0]

    def test_eagerly(self):
        lines = []

        class Debugged(Steps):
            def train_step(self, data):
                lines.append(float(ops.mean(data)))
                return super().train_step(data)

        model = Debugged()
        model.compile(run_eagerly=True)
        model.fit(X, batch_size=4, shuffle=False, verbose=0)
        assert lines == pytest.approx([float(X[i : i + 4].mean()) for i in range(0, 44, 4)])
        assert float(model.count.value) == 11

    def test_a_branch_on_a_value_runs_eagerly_with_a_warning(self):
        class Branches(Steps):
            def train_step(self, data):
                if ops.mean(data) > 0:
                    self.count.assign_add(1.0)
                return {"mean": ops.mean(data)}

        model = Branches()
        model.compile()
        with pytest.warns(EagerWarning, match=r"Branches.train_step \(.*test_model\.py:\d+\) runs .*test_model\.py:\d+ needs"):
            history = model.fit(X, batch_size=4, shuffle=False, verbose=0)
        assert float(model.count.value) == sum(X[i : i + 4].mean() > 0 for i in range(0, 44, 4))
        assert history.history["mean"] == pytest.approx([X.mean()], abs=1e-6)

    @pytest.mark.parametrize("eagerly", [False, True])
    def test_an_exception_comes_through_and_changes_nothing(self, eagerly):
        class Fails(Steps):
            fails = True

            def train_step(self, data):
                returned = super().train_step(data)
                if self.fails:
                    raise ZeroDivisionError("mine")
                return returned

        model = Fails()
        model.compile(run_eagerly=eagerly)
        with pytest.raises(ZeroDivisionError) as caught:
            model.fit(X, batch_size=4, verbose=0)
        assert str(caught.value) == "mine"
        assert float(model.count.value) == float(model.seen.value) == 0.0
        model.fails = False
        model.fit(X, batch_size=4, verbose=0)
        assert float(model.count.value) == 11

    def test_a_tensor_kept_in_an_attribute_is_put_back(self):
        class Keeps(Steps):
            def train_step(self, data):
                self.last = ops.mean(data)
                return {"mean": self.last}

        model = Keeps()
        model.compile()
        if keras.backend.backend() == "torch":
            # Recorded values are values.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TracerWarning)
                model.fit(X, verbose=0)
        else:
            with pytest.warns(TracerWarning, match="'last'"):
                model.fit(X, verbose=0)
            assert not hasattr(model, "last")
        model.fit(X, verbose=0)

    def test_it_must_be_compiled(self):
        with pytest.raises(ValueError, match="compile"):
            Steps().fit(X, verbose=0)


class TestPredicting:
    def test_any_structure_and_a_smaller_last_batch(self):
        class Several(kustom.Model):
            def call(self, x):
                return x

            def predict_step(self, data):
                return {"twice": 2 * data, "pair": (data, ops.sum(data, axis=1))}

        out = Several().predict(X, batch_size=8, verbose=0)
        np.testing.assert_allclose(out["twice"], 2 * X)
        np.testing.assert_allclose(out["pair"][1], X.sum(axis=1), rtol=1e-5)
        np.testing.assert_allclose(Several().predict_on_batch(X)["twice"], 2 * X)

    def test_a_gradient_inside_of_call(self):
        class Force(keras.layers.Layer):
            def build(self, shape):
                self.scale = self.add_weight(shape=(), initializer="ones")

            def call(self, x):
                with kustom.GradientTape() as tape:
                    tape.watch(x)
                    energy = ops.sum(self.scale * x**3)
                return tape.gradient(energy, x)

        class Forced(kustom.Model):
            def __init__(self):
                super().__init__()
                self.force = Force()

            def call(self, x):
                return self.force(x)

        model = Forced()
        model.compile(keras.optimizers.SGD(0.01), "mse")
        model.fit(X, X, batch_size=22, verbose=0)
        scale = float(array_of(model.force.scale))
        assert scale != 1.0
        model.evaluate(X, X, verbose=0)
        np.testing.assert_allclose(model.predict(X, verbose=0), 3 * scale * X**2, rtol=1e-4, atol=1e-6)

    def test_new_weights_are_seen(self):
        model = linear()
        before = model.predict(X, verbose=0)
        model.layers[-1].kernel.assign(0 * model.layers[-1].kernel)
        assert np.any(model.predict(X, verbose=0) != before)


@kustom.part(package="test_model")
class Critic(kustom.Model):
    units: int
    how: OptimizerLike = "adam"

    def setup(self) -> None:
        self.hidden = keras.layers.Dense(self.units)
        self.out = keras.layers.Dense(1)

    def build(self, shape):
        self.hidden.build(shape)
        self.out.build((None, self.units))
        self.how.build(self.trainable_variables)

    def call(self, x):
        return self.out(self.hidden(x))

    def train_step(self, data):
        x, y = data
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(y - self(x, training=True)))
        variables = self.trainable_variables
        self.how.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"error": loss}


@keras.saving.register_keras_serializable("test_model")
class Sub(kustom.Model):
    def train_step(self, data):
        return super().train_step(data)


class TestKeras:
    def test_a_part_goes_through_a_file_with_its_optimizer(self, trip):
        model = Critic(4, how=keras.optimizers.Adam(0.125))
        model.compile(optimizer=None)
        model.fit(X, Y, batch_size=4, verbose=0)
        again = trip(model)
        assert (again.units, float(again.how.learning_rate.value), int(again.how.iterations.value)) == (4, 0.125, 11)
        np.testing.assert_allclose(again.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-5)
        for v, w in zip(model.how.variables, again.how.variables, strict=True):
            np.testing.assert_array_equal(array_of(v), array_of(w))

    @pytest.mark.parametrize("cls", [pytest.param(kustom.Model, marks=pytest.mark.slow), Sub])
    def test_functional_models_go_through_a_file(self, cls, trip):
        model = linear(cls)
        model.compile(keras.optimizers.Adam(0.125), "mae", metrics=["mse"])
        model.fit(X, Y, batch_size=4, verbose=0)
        again = trip(model)
        assert type(again) is type(model)
        assert isinstance(again, cls)
        assert int(again.optimizer.iterations.value) == 11
        assert again.evaluate(X, Y, verbose=0) == pytest.approx(model.evaluate(X, Y, verbose=0))
        again.fit(X, Y, batch_size=4, verbose=0)
        assert int(again.optimizer.iterations.value) == 22

    def test_other_models_stay_what_they_are(self):
        linear(Sub)
        linear()
        assert kustom.Model.__bases__ == (keras.Model,)
        assert not isinstance(Steps(), keras.models.Sequential)
        with pytest.raises(NotImplementedError, match="call"):
            kustom.Model()(X)

    def test_summary_and_clone(self, capsys):
        model = linear()
        model.compile("sgd", "mse", steps_per_execution=3)
        model.summary()
        assert "Total params: 4" in capsys.readouterr().out
        clone = keras.models.clone_model(model)
        assert isinstance(clone, kustom.Model)
        assert clone.steps_per_execution == 3
        clone.fit(X, Y, verbose=0)
        assert model.get_compile_config()["steps_per_execution"] == 3

    @pytest.mark.skipif(keras.backend.backend() == "torch", reason="torch exports through ONNX alone, as Keras")
    def test_export(self, tmp_path):
        tf = pytest.importorskip("tensorflow")
        model = linear()
        model.compile("sgd", "mse")
        model.fit(X, Y, verbose=0)
        model.export(tmp_path / "model", verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / "model"))
        out = loaded.serve(X)
        np.testing.assert_allclose(out, model.predict(X, verbose=0), rtol=1e-5)

    @pytest.mark.slow
    def test_within_another_model(self):
        inner = linear(outputs=3)
        inner.compile("sgd", "mse", metrics=["mae"])
        inner.fit(X, X, verbose=0)
        inputs = keras.Input((3,))
        outer = keras.Model(inputs, inner(inputs))
        outer.compile("sgd", "mse")
        plain = outer.fit(X, X, verbose=0).history
        outer = kustom.Model(inputs, inner(inputs))
        outer.compile("sgd", "mse")
        assert list(outer.fit(X, X, verbose=0).history) == list(plain) == ["loss"]

    def test_two_threads(self):
        errors = []

        def train() -> None:
            try:
                model = Steps()
                model.compile()
                model.fit(X, batch_size=4, epochs=3, verbose=0)
                assert float(model.count.value) == 33
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=train) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors

    def test_a_model_dies_with_its_programs(self):
        gone = []
        for _ in range(2):
            model = dense()
            model.fit(X, Y, verbose=0, validation_data=(X, Y))
            model.predict(X, verbose=0)
            gone.append(weakref.ref(model))
        del model
        gc.collect()
        assert [reference() for reference in gone] == [None] * 2

    def test_the_line(self, capsys):
        model = Steps()
        model.compile()
        model.fit(X, verbose=2)
        assert "Epoch 1/1" in (line := capsys.readouterr().out)
        assert "mean" in line


def test_a_file_holds_the_optimizers_in_attributes(tmp_path: Path):
    gan = GAN()
    gan.compile(optimizer=None)
    gan.fit(X[:, :2], batch_size=8, verbose=0)
    gan.save_weights(tmp_path / "gan.weights.h5")
    again = GAN()
    again.generator.build((None, 5))
    again.critic.build((None, 2))
    again.generator_optimizer.build(again.generator.trainable_variables)
    again.critic_optimizer.build(again.critic.trainable_variables)
    again.built = True
    again.load_weights(tmp_path / "gan.weights.h5")
    assert int(again.generator_optimizer.iterations.value) == 6

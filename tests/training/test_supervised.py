"""The usual step: the numbers of `fit`, under the names of `fit`, for everything that `fit` has."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from alike import BACKEND, agree, array, both, weights
from keras import layers, ops

import kustom
from kustom.errors import NonFiniteError, SettingError, StepError

rng = np.random.default_rng(0)
X = rng.normal(size=(70, 4)).astype("float32")
Y = (X @ np.array([[1.0], [-2.0], [0.5], [0.0]]) + 0.1).astype("float32")
LABELS = (Y[:, 0] > 0).astype("int32") + (Y[:, 0] > 2)
WEIGHTS = rng.uniform(0.2, 2, 70).astype("float32")


@kustom.part(package="supervised_tests")
class Activity(layers.Layer):
    """Adds a loss and updates a metric of its own."""

    def setup(self):
        self.mean = keras.metrics.Mean(name="activity")

    def call(self, x):
        self.add_loss(0.01 * ops.mean(ops.square(x)))
        self.mean.update_state(ops.mean(x))
        return x


def mlp(*inner, outputs=1, **dense):
    def make():
        return keras.Sequential([keras.Input((4,)), layers.Dense(6, "tanh", **dense), *[f() for f in inner], layers.Dense(outputs)])

    return make


def adam(rate=0.01, **options):
    return lambda: keras.optimizers.Adam(rate, **options)


@pytest.fixture
def policy():
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


EVERYTHING = mlp(
    layers.BatchNormalization,
    lambda: layers.Dropout(0.3, seed=5),
    Activity,
    kernel_regularizer="l2",
    kernel_constraint=keras.constraints.MaxNorm(0.8),
)
WITHOUT_ADDED = mlp(layers.BatchNormalization, lambda: layers.Dropout(0.3, seed=5), kernel_constraint="unit_norm")
KINDS = {
    "dropout": (mlp(lambda: layers.Dropout(0.3, seed=5)), {}),
    "batch normalization": (mlp(layers.BatchNormalization), {}),
    "l2": (mlp(kernel_regularizer="l2"), {}),
    "added loss": (mlp(Activity), {}),
    "constraint": (mlp(kernel_constraint="unit_norm"), {}),
    "sample weights": (mlp(), {"data": (X, Y, WEIGHTS)}),
    "clipping": (mlp(), {"optimizer": adam(clipnorm=0.1)}),
    "decay, average": (mlp(), {"optimizer": adam(weight_decay=0.1, use_ema=True, ema_overwrite_frequency=3)}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_by_itself_is_as_in_fit(kind):
    make, options = KINDS[kind]
    given = {"data": (X, Y), "optimizer": adam(), "loss": "mse", "metrics": ["mae"], "weighted_metrics": ["mse"], **options}
    agree(*both(make, **given))


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_all_at_once_is_as_in_fit(dtype, policy):
    policy(dtype)
    make, names = EVERYTHING, {"loss", "mae", "mse", "activity"}
    if dtype != "float32" and BACKEND == "tensorflow":
        # `fit` fails there: the layer's added loss has another dtype than the loss.
        make, names = WITHOUT_ADDED, names - {"activity"}
    optimizer = adam(weight_decay=0.01, global_clipnorm=0.5, use_ema=True, ema_momentum=0.8)
    found = both(make, (X, Y, WEIGHTS), optimizer=optimizer, loss="mse", metrics=["mae"], weighted_metrics=["mse"])
    assert set(found[2]) == names
    agree(*found)


def test_added_losses_of_another_dtype_are_added(policy):
    policy("mixed_bfloat16")
    loop = kustom.Loop(kustom.Supervised(EVERYTHING(), optimizer=adam()(), loss="mse"))
    losses = loop.fit(X, Y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_class_weights_validation_and_a_name_chosen_by_shape():
    found = both(
        mlp(outputs=3),
        (X, LABELS),
        optimizer=adam(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        fit={"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}, "validation_data": (X[:20], LABELS[:20])},
    )
    assert set(found[2]) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    agree(*found)


def two_outputs(names=("a", "b")):
    def make():
        first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
        hidden = layers.Dense(5, "tanh")(first) + layers.Dense(5)(second)
        return keras.Model(
            {"first": first, "second": second},
            {name: layers.Dense(size, name=name)(hidden) for name, size in zip(names, (1, 3), strict=True)},
        )

    return make


def test_several_inputs_and_outputs_by_name():
    found = both(
        two_outputs(),
        (
            {"first": X[:48], "second": X[:48, ::-1].copy()},
            {"a": Y[:48], "b": LABELS[:48]},
            {"a": WEIGHTS[:48], "b": WEIGHTS[47::-1].copy()},
        ),
        optimizer=adam(),
        loss={"a": "mse", "b": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
        loss_weights={"a": 0.3, "b": 1.0},
        metrics={"a": ["mae", "mse"], "b": "accuracy"},
        weighted_metrics={"a": ["mae"]},
        epochs=2,
    )
    assert {"loss", "a_loss", "b_loss", "a_mae", "a_mse", "b_accuracy"} < set(found[2])
    agree(*found)


def test_a_metric_of_several_results_has_them_under_their_names():
    class Moments(keras.metrics.Metric):
        def __init__(self):
            super().__init__(name="moments")
            self.sums = self.add_weight(shape=(3,), initializer="zeros", name="sums")

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.sums.assign_add(ops.sum(ops.concatenate([ops.ones_like(y_pred), y_pred, ops.square(y_pred)], axis=-1), axis=0))

        def result(self):
            return {"first": self.sums[1] / self.sums[0], "second": self.sums[2] / self.sums[0]}

    found = both(mlp(), (X, Y), optimizer=adam(), loss="mse", metrics=[Moments()], epochs=2)
    assert set(found[2]) == {"loss", "first", "second"}
    agree(*found)


def test_several_outputs_in_a_list():
    def make():
        x = keras.Input((4,))
        return keras.Model(x, [layers.Dense(1, name="a")(x), layers.Dense(1, name="b")(x)])

    options = {"loss": ["mse", "mae"], "loss_weights": [1.0, 0.2], "metrics": [["mae"], ["mse"]], "epochs": 1}
    found = both(make, (X, [Y, 2 * Y]), optimizer=adam(), **options)
    if BACKEND == "tensorflow":
        # `fit` takes the mean over the batches of the losses by output, whatever their sizes.
        for history in found[2:]:
            del history["a_loss"], history["b_loss"]
    agree(*found)


def test_the_losses_by_output_are_means_over_the_samples():
    def make():
        x = keras.Input((4,))
        return keras.Model(x, [layers.Dense(1, name="a")(x), layers.Dense(1, name="b")(x)])

    model = make()
    loop = kustom.Loop(kustom.Supervised(model, optimizer=keras.optimizers.SGD(0.0), loss=["mse", "mse"]))
    values = loop.fit(X, [Y, 2 * Y], batch_size=32, verbose=0, shuffle=False).history
    first, second = (array(y) for y in model(X))
    assert values["a_loss"] == pytest.approx([np.mean((first - Y) ** 2)], rel=1e-5)
    assert values["b_loss"] == pytest.approx([np.mean((second - 2 * Y) ** 2)], rel=1e-5)
    assert values["loss"] == pytest.approx([values["a_loss"][0] + values["b_loss"][0]], rel=1e-5)


def test_a_mask_of_the_inputs_and_weights_of_the_time_steps():
    steps = rng.integers(0, 6, size=(40, 5))
    targets, by_step = rng.normal(size=(40, 5, 1)).astype("float32"), rng.uniform(0.5, 2, (40, 5)).astype("float32")

    def make():
        return keras.Sequential([keras.Input((5,), dtype="int32"), layers.Embedding(6, 3, mask_zero=True), layers.Dense(1)])

    # Adam by `fit` is another one on TensorFlow where an index of an embedding stands in a batch twice.
    options = {"optimizer": adam() if BACKEND != "tensorflow" else lambda: keras.optimizers.SGD(0.1), "loss": "mse", "epochs": 2}
    found = both(make, (steps, targets, by_step), **options, weighted_metrics=["mae"])
    if BACKEND == "jax":
        # There the predictions have lost their mask when the metrics of `fit` see them.
        for history in found[2:]:
            del history["mae"]
    agree(*found)


def test_metrics_are_masked_on_every_backend():
    steps = np.array([[1, 2, 0], [3, 0, 0]])

    def make():
        return keras.Sequential([keras.Input((3,), dtype="int32"), layers.Embedding(6, 1, mask_zero=True)])

    model = make()
    loop = kustom.Loop(kustom.Supervised(model, optimizer=keras.optimizers.SGD(0.0), loss="mae", metrics=["mae"]))
    values = loop.fit(steps, np.zeros((2, 3, 1), "float32"), verbose=0).history
    expected = np.abs(array(model(steps))[steps > 0]).mean()
    assert values["mae"] == pytest.approx([expected])
    assert values["loss"] == pytest.approx([expected])


def test_only_added_losses():
    def make():
        return keras.Sequential([keras.Input((4,)), layers.Dense(2), Activity()])

    agree(*both(make, (X,), optimizer=adam(), loss=None, epochs=1))


def test_names_in_place_of_objects_and_nothing_built():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Dense(3, "relu"), layers.Dense(1)])
    supervised = kustom.Supervised(model, optimizer="adam", loss="mse", metrics=["mae"])
    history = kustom.Loop(supervised).fit(X, Y, epochs=2, verbose=0, shuffle=False)
    assert history.history["loss"][1] < history.history["loss"][0]
    assert model.built
    assert not model.compiled
    assert int(supervised.optimizer.iterations) == 6
    assert supervised.metrics[0].name == "loss"


def test_loss_scaling_is_there_by_itself_and_a_step_that_overflows_does_not_count(policy):
    policy("mixed_float16")
    model = mlp()()
    supervised = kustom.Supervised(model, optimizer=keras.optimizers.SGD(0.01), loss="mse")
    assert isinstance(supervised.optimizer, keras.optimizers.LossScaleOptimizer)
    data = X.copy()
    data[17] = np.inf
    kustom.Loop(supervised).fit(data, Y, batch_size=16, shuffle=False, verbose=0, on_nonfinite="ignore")
    # Of five batches the second was left out.
    assert int(supervised.optimizer.iterations) == 4
    assert array(supervised.optimizer.dynamic_scale) == 2.0**14
    assert all(np.isfinite(w).all() for w in weights(model))
    own = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01))
    assert kustom.Supervised(model, optimizer=own, loss="mse").optimizer is own


def test_evaluate_measures_and_trains_nothing():
    keras.utils.set_random_seed(0)
    model = EVERYTHING()
    model.compile(loss="mse", metrics=["mae"])
    loop = kustom.Loop(kustom.Supervised(model, optimizer="adam", loss="mse", metrics=["mae"]))
    before = weights(model)
    values = loop.evaluate(X, Y, WEIGHTS, batch_size=16)
    expected = model.evaluate(X, Y, sample_weight=WEIGHTS, batch_size=16, verbose=0, return_dict=True)
    assert set(values) == set(expected)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-5)
    assert all((mine == other).all() for mine, other in zip(weights(model), before, strict=True))


def test_it_is_a_step_among_others_too():
    model = mlp()()
    supervised = kustom.Supervised(model, optimizer="sgd", loss="mse")
    count = keras.Variable(0, dtype="int32", trainable=False)

    def step(x, y):
        supervised(x, y)
        count.assign_add(1)

    history = kustom.Loop(step, metrics=supervised.metrics, model=model).fit(X, Y, batch_size=16, epochs=2, verbose=0)
    assert int(count.value) == int(supervised.optimizer.iterations) == 10
    assert list(history.history) == ["loss"]


def test_callbacks_know_model_and_optimizer(tmp_path):
    model = mlp()()
    supervised = kustom.Supervised(model, optimizer=keras.optimizers.SGD(0.1), loss="mse")
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True),
    ]
    history = kustom.Loop(supervised).fit(X, Y, epochs=2, verbose=0, callbacks=callbacks)
    assert array(supervised.optimizer.learning_rate) == pytest.approx(0.05)
    assert history.history["learning_rate"] == pytest.approx([0.1, 0.05])
    assert {path.name for path in tmp_path.iterdir()} == {"1.weights.h5", "2.weights.h5"}


def test_a_setting_that_changes_is_noticed():
    model = mlp()()
    model.layers[0].kernel_regularizer = keras.regularizers.L2(0.0)
    loss = keras.losses.Huber(delta=1.0)
    loop = kustom.Loop(kustom.Supervised(model, optimizer=keras.optimizers.SGD(0.0), loss=loss))
    before = loop.fit(X, Y, verbose=0, shuffle=False).history["loss"][0]
    loss._fn_kwargs["delta"] = 5.0
    model.layers[0].kernel.regularizer = keras.regularizers.L2(1.0)
    again = kustom.Loop(kustom.Supervised(model, optimizer=keras.optimizers.SGD(0.0), loss=keras.losses.Huber(delta=5.0)))
    assert again.fit(X, Y, verbose=0, shuffle=False).history["loss"][0] > before


class OwnStep(keras.Model):
    def train_step(self, data):
        return {}


class OwnLoss(keras.Model):
    def compute_loss(self, *args, **kwargs):
        return ops.zeros(())


def supervised(model=None, *, optimizer="adam", loss="mse", **options):
    return kustom.Supervised(mlp()() if model is None else model, optimizer=optimizer, loss=loss, **options)


WRONG = {
    "model": (lambda: supervised(layers.Dense(1)), "model is Dense .*give a keras.Model"),
    "own step": (lambda: supervised(OwnStep()), "OwnStep has a train_step of its own"),
    "own loss": (lambda: supervised(OwnLoss()), "OwnLoss has a compute_loss of its own"),
    "optimizer": (lambda: supervised(optimizer="adaam"), "optimizer is nothing that Keras knows.*adaam"),
    "class": (lambda: supervised(optimizer=keras.optimizers.Adam), "optimizer is nothing"),
    "loss": (lambda: supervised(loss="msee"), "loss is nothing that Keras knows.*msee"),
    "losses": (lambda: supervised(loss={"a": "mse", "b": 3}), "loss holds int '3'"),
    "metric": (lambda: supervised(metrics=["maee"]), "metrics is nothing.*maee"),
    "no list": (lambda: supervised(metrics="mae"), "metrics is str 'mae'; give a list"),
    "weights": (lambda: supervised(loss_weights="1"), "loss_weights is nothing"),
    "no loss": (lambda: supervised(loss=None, loss_weights=[1.0]), "without a loss"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_it_cannot_take_is_said_at_once(case):
    make, message = WRONG[case]
    with pytest.raises(SettingError, match=message):
        make()


def test_no_targets_and_nothing_to_minimize():
    loop = kustom.Loop(kustom.Supervised(mlp()(), optimizer="adam", loss="mse"))
    with pytest.raises(StepError, match="there is a loss and no targets"):
        loop.fit(X, verbose=0)
    loop = kustom.Loop(kustom.Supervised(mlp()(), optimizer="adam", loss=None))
    with pytest.raises(StepError, match="there is nothing to minimize"):
        loop.fit(X, Y, verbose=0)


def test_an_error_of_a_loss_that_is_not_finite_names_its_value():
    x = X.copy()
    x[25] = np.nan
    loop = kustom.Loop(kustom.Supervised(mlp()(), optimizer="sgd", loss="mse", metrics=["mae"]))
    with pytest.raises(NonFiniteError, match=r"batch 3\): \{'loss': nan, 'mae': nan\}\. The variables"):
        loop.fit(x, Y, batch_size=8, shuffle=False, verbose=0)


MISFITS = {
    "weights": ({"loss": ["mse", "mae"], "loss_weights": {"b": 0.3}}, "loss_weights"),
    "a name": ({"loss": {"first": "mse", "other": "mae"}}, "other"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_losses_that_do_not_fit_the_outputs(case):
    settings, message = MISFITS[case]
    inputs = keras.Input((4,))
    model = keras.Model(inputs, {name: layers.Dense(1, name=name)(inputs) for name in ("first", "second")})
    before = weights(model)
    loop = kustom.Loop(kustom.Supervised(model, optimizer="sgd", **settings))
    with pytest.raises(SettingError, match=rf"do not fit the outputs of '{model.name}'.*{message}"):
        loop.fit(np.ones((8, 4), "float32"), dict.fromkeys(("first", "second"), np.ones((8, 1), "float32")), verbose=0)
    for value, was in zip(weights(model), before, strict=True):
        np.testing.assert_array_equal(value, was)

"""The usual step: the numbers of `fit`, under the names of `fit`, for everything that `fit` has."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from alike import BACKEND, agree, array, both, weights
from keras import layers, ops

import kustom
from kustom.errors import SettingError, StepError

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
    optimizer = adam(weight_decay=0.01, global_clipnorm=0.5, use_ema=True, ema_momentum=0.8)
    found = both(EVERYTHING, (X, Y, WEIGHTS), optimizer=optimizer, loss="mse", metrics=["mae"], weighted_metrics=["mse"])
    assert list(found[2]) == ["loss", "mae", "mse", "activity"]
    low = {"rtol": 1e-2, "atol": 1e-3} if dtype != "float32" and BACKEND != "jax" else {}
    agree(*found, **low)


def test_class_weights_validation_and_a_name_chosen_by_shape():
    found = both(
        mlp(outputs=3),
        (X, LABELS),
        optimizer=adam(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        fit={"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}, "validation_data": (X[:20], LABELS[:20])},
    )
    assert list(found[2]) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    agree(*found)


def two_outputs(names=("a", "b")):
    def make():
        first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
        hidden = layers.Dense(5, "tanh")(first) + layers.Dense(5)(second)
        return keras.Model(
            {"first": first, "second": second}, {name: layers.Dense(size, name=name)(hidden) for name, size in zip(names, (1, 3))}
        )

    return make


def test_several_inputs_and_outputs_by_name():
    found = both(
        two_outputs(),
        ({"first": X, "second": X[:, ::-1].copy()}, {"a": Y, "b": LABELS}, {"a": WEIGHTS, "b": WEIGHTS[::-1].copy()}),
        optimizer=adam(),
        loss={"a": "mse", "b": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
        loss_weights={"a": 0.3, "b": 1.0},
        metrics={"a": ["mae", "mse"], "b": "accuracy"},
        weighted_metrics={"a": ["mae"]},
        epochs=2,
    )
    assert {"loss", "a_loss", "b_loss", "a_mae", "a_mse", "b_accuracy"} < set(found[2])
    agree(*found)


def test_several_outputs_in_a_list():
    def make():
        x = keras.Input((4,))
        return keras.Model(x, [layers.Dense(1, name="a")(x), layers.Dense(1, name="b")(x)])

    found = both(
        make, (X, [Y, 2 * Y]), optimizer=adam(), loss=["mse", "mae"], loss_weights=[1.0, 0.2], metrics=[["mae"], ["mse"]], epochs=1
    )
    agree(*found)


def test_a_mask_of_the_inputs_and_weights_of_the_time_steps():
    steps = rng.integers(0, 6, size=(40, 5))
    targets = rng.normal(size=(40, 5, 1)).astype("float32")

    def make():
        return keras.Sequential([keras.Input((5,), dtype="int32"), layers.Embedding(6, 3, mask_zero=True), layers.Dense(1)])

    options = {"optimizer": adam(), "loss": "mse", "weighted_metrics": ["mae"], "epochs": 2}
    agree(*both(make, (steps, targets, rng.uniform(0.5, 2, (40, 5)).astype("float32")), **options))


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
    assert list(values) == list(expected)
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


WRONG = {
    "model": (lambda: kustom.Supervised(layers.Dense(1), optimizer="adam", loss="mse"), "model is Dense .*give a keras.Model"),
    "own step": (lambda: kustom.Supervised(OwnStep(), optimizer="adam", loss="mse"), "OwnStep has a train_step of its own"),
    "own loss": (lambda: kustom.Supervised(OwnLoss(), optimizer="adam", loss="mse"), "OwnLoss has a compute_loss of its own"),
    "optimizer": (
        lambda: kustom.Supervised(mlp()(), optimizer="adaam", loss="mse"),
        "optimizer is nothing that Keras knows.*adaam",
    ),
    "class": (lambda: kustom.Supervised(mlp()(), optimizer=keras.optimizers.Adam, loss="mse"), "optimizer is nothing"),
    "loss": (lambda: kustom.Supervised(mlp()(), optimizer="adam", loss="msee"), "loss is nothing that Keras knows.*msee"),
    "losses": (lambda: kustom.Supervised(mlp()(), optimizer="adam", loss={"a": "mse", "b": 3}), "loss holds int '3'"),
    "metric": (lambda: kustom.Supervised(mlp()(), optimizer="adam", loss="mse", metrics=["maee"]), "metrics is nothing.*maee"),
    "no list": (
        lambda: kustom.Supervised(mlp()(), optimizer="adam", loss="mse", metrics="mae"),
        "metrics is str 'mae'; give a list",
    ),
    "weights": (lambda: kustom.Supervised(mlp()(), optimizer="adam", loss="mse", loss_weights="1"), "loss_weights is nothing"),
    "no loss": (lambda: kustom.Supervised(mlp()(), optimizer="adam", loss=None, loss_weights=[1.0]), "without a loss"),
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

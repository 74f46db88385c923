"""A compiled step leaves every variable as an eager run of the same step does."""

from __future__ import annotations

import contextlib
import functools

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom
from kustom import errors
from kustom.errors import BranchError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(16, 4)).astype("float32"), RNG.normal(size=(16, 3)).astype("float32")
BACKEND = keras.backend.backend()


def array(x):
    return ops.convert_to_numpy(x)


def dense(*hidden):
    return keras.Sequential([layers.Dense(5, "tanh"), *hidden, layers.Dense(3)])


def a_step(model, optimizer, **call):
    """The usual step; it returns the loss."""

    def step(x, y):
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(ops.cast(model(x, **call), "float32") - y)) + sum(model.losses)
            scaled = optimizer.scale_loss(loss)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables, strict=True))
        return loss

    return step


def state(*owners):
    return [array(v.value).astype("float64") for owner in owners for v in owner.variables]


def assert_as_eager(make, steps=3, rtol=2e-5, atol=2e-6, compiler=None):
    """`make()` gives a step and the owners of its state; compiled it does what it does eagerly."""
    keras.utils.set_random_seed(3)
    step, *owners = make()
    compiled = kustom.function(step, compiler=compiler)
    outs = [array(compiled(X, Y)) for _ in range(steps)]
    keras.utils.set_random_seed(3)
    eager_step, *eager_owners = make()
    eager = kustom.function(eager_step, run_eagerly=True)
    expected = [array(eager(X, Y)) for _ in range(steps)]
    np.testing.assert_allclose(outs, expected, rtol=rtol, atol=atol)
    ours, theirs = state(*owners), state(*eager_owners)
    assert len(ours) == len(theirs)
    for value, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(value, other, rtol=rtol, atol=atol)
    assert compiled.traces == 1


OPTIMIZERS = [
    name
    for name, cls in vars(keras.optimizers).items()
    if isinstance(cls, type)
    and issubclass(cls, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_from_the_first_call_that_builds_it(name):
    def make():
        model, optimizer = keras.Sequential([layers.Dense(3)]), getattr(keras.optimizers, name)(0.01)
        return a_step(model, optimizer), model, optimizer

    assert_as_eager(make)


def test_what_an_optimizers_build_assigns_is_assigned_once():
    model, optimizer = keras.Sequential([layers.Dense(3)]), keras.optimizers.ScheduleFreeAdamW(0.1)
    model.build((None, 4))
    before = array(model.layers[0].kernel.value)
    step = kustom.function(a_step(model, optimizer))
    step(X, Y)
    momentum = next(v for v in optimizer.variables if v.path.endswith("kernel_momentum"))
    assert 0 < np.abs(array(momentum.value) - before).max() < 0.2
    once = array(momentum.value)
    step(X, Y)
    assert np.abs(array(momentum.value) - once).max() > 1e-4


@pytest.mark.skipif(BACKEND == "torch", reason="the recorder on torch does not build outside of what it records")
def test_what_a_layers_build_assigns_is_assigned_once():
    class Counting(layers.Layer):
        def build(self, shape):
            self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)
            self.count.assign(10.0)

        def call(self, x):
            self.count.assign_add(1.0)
            return x * self.count

    layer = Counting()
    step = kustom.function(lambda x: layer(x))
    np.testing.assert_allclose(array(step(X)), 11 * X, rtol=1e-6)
    np.testing.assert_allclose(array(step(X)), 12 * X, rtol=1e-6)
    assert float(layer.count.value) == 12


@pytest.mark.parametrize(
    "settings",
    [
        {"clipnorm": 0.1},
        {"global_clipnorm": 0.1},
        {"weight_decay": 0.1},
        {"gradient_accumulation_steps": 2},
        {"use_ema": True, "ema_momentum": 0.5},
        {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
        {"learning_rate": keras.optimizers.schedules.CosineDecay(0.1, 3)},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_optimizer_settings(settings):
    def make():
        model, optimizer = dense(), keras.optimizers.Adam(**{"learning_rate": 0.05, **settings})
        return a_step(model, optimizer), model, optimizer

    assert_as_eager(make, steps=5)


def test_loss_scaling_in_mixed_precision():
    def make():
        model = keras.Sequential([layers.Dense(5, "tanh", dtype="mixed_float16"), layers.Dense(3, dtype="float32")])
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**10, dynamic_growth_steps=2)
        return a_step(model, optimizer), model, optimizer

    assert_as_eager(make, steps=5, rtol=2e-3, atol=2e-4)


def test_an_overflow_skips_the_step_and_lowers_the_scale():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)
    step = kustom.function(a_step(model, optimizer))
    step(X, Y)
    before = state(model)
    step(np.full_like(X, np.inf), Y)
    for value, other in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(value, other)
    assert float(optimizer.dynamic_scale.value) == 4.0
    assert int(optimizer.inner_optimizer.iterations.value) == 1
    step(X, Y)
    assert int(optimizer.inner_optimizer.iterations.value) == 2


def test_two_models_and_two_optimizers():
    def make():
        first, second = dense(), keras.Sequential([layers.Dense(3)])
        one, two = keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.1, momentum=0.9)

        def step(x, y):
            with kustom.GradientTape(persistent=True) as tape:
                loss = ops.mean(ops.square(first(x) - y))
                other = ops.mean(ops.square(second(first(x)[:, :2]) - y))
            for model, optimizer, target in ((first, one, loss), (second, two, other)):
                variables = model.trainable_variables
                optimizer.apply_gradients(zip(tape.gradient(target, variables), variables, strict=True))
            return loss + other

        return step, first, second, one, two

    assert_as_eager(make)


def test_a_multi_optimizer():
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("Keras 3.14 has none")

    def make():
        model = dense()
        model.build((None, 4))
        maps = keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.01), {".*": keras.optimizers.SGD(0.1)})
        optimizer = keras.optimizers.MultiOptimizer(maps)
        return a_step(model, optimizer), model, optimizer

    assert_as_eager(make)


RANDOM = {
    "Dropout": lambda: layers.Dropout(0.5, seed=1),
    "SpatialDropout1D": lambda: keras.Sequential([layers.Reshape((5, 1)), layers.SpatialDropout1D(0.5, seed=1), layers.Flatten()]),
    "AlphaDropout": lambda: layers.AlphaDropout(0.5, seed=1),
    "GaussianDropout": lambda: layers.GaussianDropout(0.5, seed=1),
    "GaussianNoise": lambda: layers.GaussianNoise(0.5, seed=1),
    "Dropout from the global seed": lambda: layers.Dropout(0.5),
    "GaussianNoise from the global seed": lambda: layers.GaussianNoise(0.5),
    "attention's dropout": lambda: keras.Sequential(
        [layers.Reshape((5, 1)), SelfAttention(2, 2, dropout=0.5, seed=1), layers.Flatten()]
    ),
    "GRU's dropout": lambda: keras.Sequential([layers.Reshape((5, 1)), layers.GRU(3, dropout=0.4, recurrent_dropout=0.4, seed=1)]),
}


class SelfAttention(layers.MultiHeadAttention):
    def call(self, x, training=None):
        return super().call(x, x, training=training)

    def build(self, shape):
        super().build(shape, shape)

    def compute_output_spec(self, x, training=None):
        return keras.KerasTensor(x.shape, x.dtype)


_LONG = ("attention's dropout", "GRU's dropout")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in _LONG else name for name in RANDOM])
def test_every_layer_with_randomness_draws_what_it_draws_eagerly(name):
    def make():
        model, optimizer = dense(RANDOM[name]()), keras.optimizers.SGD(0.1)
        return a_step(model, optimizer, training=True), model, optimizer

    # XLA draws others on TensorFlow.
    assert_as_eager(make, compiler="graph" if BACKEND == "tensorflow" else None)


IMAGES = RNG.uniform(size=(2, 6, 6, 3)).astype("float32")
AUGMENTING = [
    name
    for name in dir(layers)
    if name.startswith(("Random", "MixUp", "CutMix", "AugMix", "RandAugment"))
    # These two are made of the others; to compile them takes minutes.
    and name not in ("RandAugment", "AugMix")
]


# On JAX these ask for a value, and run as plain Python.
ASKING = ("RandomCrop", "RandomElasticTransform") if BACKEND == "jax" else ()
EAGER = pytest.mark.filterwarnings("ignore:.*needs a value:kustom.errors.EagerWarning")
AUGMENTING = [pytest.param(name, marks=EAGER if name in ASKING else []) for name in AUGMENTING]


# On JAX MixUp asks for int64.
@pytest.mark.filterwarnings("ignore:Exception encountered when calling:UserWarning", "ignore:.*int64:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", AUGMENTING)
def test_every_augmentation_draws_what_it_draws_eagerly(name):
    settings = {
        "RandomBrightness": {"factor": 0.3, "value_range": (0, 1)},
        "RandomContrast": {"factor": 0.3, "value_range": (0, 1)},
        "RandomColorDegeneration": {"factor": 0.3, "value_range": (0, 1)},
        "RandomColorJitter": {"value_range": (0, 1), "brightness_factor": 0.3},
        "RandomElasticTransform": {"factor": 0.5, "value_range": (0, 1)},
        "RandomErasing": {"value_range": (0, 1)},
        "RandomGaussianBlur": {"kernel_size": 3, "sigma": 1.0, "value_range": (0, 1)},
        "RandomGrayscale": {"factor": 0.5},
        "RandomHue": {"factor": 0.3, "value_range": (0, 1)},
        "RandomInvert": {"factor": 0.5, "value_range": (0, 1)},
        "RandomPerspective": {},
        "RandomPosterization": {"factor": 4, "value_range": (0, 1)},
        "RandomRotation": {"factor": 0.1},
        "RandomSaturation": {"factor": 0.5, "value_range": (0, 1)},
        "RandomSharpness": {"factor": 0.5, "value_range": (0, 1)},
        "RandomShear": {"x_factor": 0.3},
        "RandomTranslation": {"height_factor": 0.3, "width_factor": 0.3},
        "RandomZoom": {"height_factor": 0.3},
        "RandomCrop": {"height": 4, "width": 4},
    }.get(name, {})
    first, second = (getattr(layers, name)(**settings, seed=5) for _ in range(2))
    given = {"images": IMAGES, "labels": np.eye(2, dtype="float32")} if name in ("MixUp", "CutMix") else IMAGES
    compiled = kustom.function(lambda x: first(x, training=True), compiler="graph" if BACKEND == "tensorflow" else None)
    eager = kustom.function(lambda x: second(x, training=True), run_eagerly=True)
    # On torch Keras asks for the value of what these two draw.
    asks = BACKEND == "torch" and name in ("RandomCrop", "RandomElasticTransform")
    for _ in range(2):
        keras.utils.set_random_seed(1)
        with pytest.warns(errors.EagerWarning) if asks and not compiled.traces else contextlib.nullcontext():
            ours = compiled(given)
        keras.utils.set_random_seed(1)
        theirs = eager(given)
        if isinstance(given, dict):
            ours, theirs = ours["images"], theirs["images"]
        np.testing.assert_allclose(array(ours), array(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "hidden", [layers.BatchNormalization, lambda: layers.BatchNormalization(renorm=True)], ids=["plain", "renorm"]
)
def test_batch_normalization(hidden):
    def make():
        try:
            model = dense(hidden())
        except (TypeError, ValueError):
            pytest.skip("Keras 3.14 has no renorm")
        optimizer = keras.optimizers.SGD(0.1)
        return a_step(model, optimizer, training=True), model, optimizer

    assert_as_eager(make, rtol=1e-4, atol=1e-5)


def test_spectral_normalization():
    def make():
        model, optimizer = keras.Sequential([layers.SpectralNormalization(layers.Dense(3))]), keras.optimizers.SGD(0.1)
        return a_step(model, optimizer, training=True), model, optimizer

    assert_as_eager(make)


def test_added_losses_regularizers_and_constraints_count():
    class Penalized(layers.Layer):
        def call(self, x):
            self.add_loss(0.1 * ops.mean(ops.square(x)))
            return x

    def make():
        model = keras.Sequential(
            [
                layers.Dense(5, kernel_regularizer="l2"),
                Penalized(),
                layers.Dense(3, kernel_constraint="max_norm", activity_regularizer="l1"),
            ]
        )
        optimizer = keras.optimizers.SGD(0.3)
        return a_step(model, optimizer), model, optimizer

    assert_as_eager(make)


def test_metrics_are_updated_reset_and_read():
    def make():
        mean, accuracy = keras.metrics.Mean(), keras.metrics.RootMeanSquaredError()

        def step(x, y):
            mean.reset_state()
            mean.update_state(ops.sum(y, axis=1))
            accuracy.update_state(y, x[:, :3])
            return mean.result() + accuracy.result()

        return step, mean, accuracy

    assert_as_eager(make)


def test_seed_generators_go_on():
    seeds = keras.random.SeedGenerator(1)

    @functools.partial(kustom.function, compiler="graph" if BACKEND == "tensorflow" else None)
    def draw():
        return keras.random.uniform((3,), seed=seeds), keras.random.uniform((3,))

    drawn = [array(x) for _ in range(2) for x in draw()]
    assert len({tuple(x) for x in drawn}) == 4
    for run in (draw, lambda: (None, keras.random.uniform((3,)))):
        keras.utils.set_random_seed(0)
        again = array(run()[1]), array(keras.random.uniform((3,))), array(run()[1])
        if run is draw:
            expected = again
    np.testing.assert_allclose(again, expected, rtol=1e-6)
    assert draw.traces == 1


def test_variables_made_of_values_and_initializers():
    made = {}

    @kustom.function
    def count(x):
        if not made:
            made["number"] = keras.Variable(2.0)
            made["array"] = keras.Variable(np.arange(3, dtype="float32"), trainable=False)
            made["whole"] = keras.Variable([1, 2, 3], dtype="int32", trainable=False)
            made["zeros"] = keras.Variable("zeros", shape=(3,))
            made["seeds"] = keras.random.SeedGenerator(3)
            made["mean"] = keras.metrics.Mean()
        made["number"].assign_add(x)
        made["array"].assign(made["array"] * 2)
        made["whole"].assign_add([1, 1, 1])
        made["mean"].update_state(x)
        keras.random.normal((2,), seed=made["seeds"])
        return made["number"] + ops.sum(made["zeros"]), made["mean"].result()

    assert [tuple(float(array(x)) for x in count(x)) for x in (1.0, 3.0)] == [(3.0, 1.0), (6.0, 2.0)]
    np.testing.assert_array_equal(array(made["array"].value), [0, 4, 8])
    np.testing.assert_array_equal(array(made["whole"].value), [3, 4, 5])
    assert array(made["whole"].value).dtype == "int32"


def test_a_variable_made_at_each_call_is_refused():
    def step(x):
        return keras.Variable(1.0) * x

    with pytest.raises(BranchError, match="makes new variables at each call"):
        kustom.function(step)(1.0)


def test_a_subset_is_trained_through_an_optimizer_of_all():
    model, optimizer = dense(), keras.optimizers.Adam(0.1)
    model.build((None, 4))
    optimizer.build(model.trainable_variables)

    @kustom.function
    def step(x, y):
        with kustom.GradientTape() as tape:
            loss = ops.mean(ops.square(model(x) - y))
        variables = model.layers[-1].trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    before = state(*model.layers)
    losses = [float(array(step(X, Y))) for _ in range(3)]
    assert losses[2] < losses[0]
    changed = [not np.array_equal(a, b) for a, b in zip(state(*model.layers), before, strict=True)]
    assert changed == [False, False, True, True]


def test_learning_rates_that_are_set_are_used():
    model, optimizer = keras.Sequential([keras.Input((4,)), layers.Dense(3)]), keras.optimizers.SGD(0.1)
    step = kustom.function(a_step(model, optimizer))
    step(X, Y)
    optimizer.learning_rate = 0.0
    before = state(model)
    step(X, Y)
    np.testing.assert_array_equal(before[0], state(model)[0])
    assert step.traces == 1


def test_a_model_that_keras_builds_by_a_symbolic_call_is_built_whole():
    """On torch the weights of its layers would be left on the device of that call."""

    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = keras.layers.Dense(1)

        def call(self, x):
            return self.inner(x)

    model = Plain()

    @kustom.function
    def gradients(x):
        with kustom.GradientTape() as tape:
            y = ops.sum(model(x))
        return tape.gradient(y, model.trainable_variables)

    found = gradients(np.ones((2, 3), "float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(found[0]), np.full((3, 1), 2.0))
    assert ops.convert_to_numpy(model(np.ones((2, 3), "float32"))).shape == (2, 1)

"""One initializer, several weights: no two are born alike, and a seed repeats them all.

Reports: one initializer object for several weights (deel-lip#64, keras-hub#352, lczero-training#218).
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
from kustom.typing import InitializerLike

N = ops.convert_to_numpy


@kustom.initializer
def normal(shape, dtype, *, stddev=1.0, seed=None):
    return keras.random.normal(shape, stddev=stddev, dtype=dtype, seed=seed)


@kustom.part
class Normal(keras.initializers.Initializer):
    seed: int | None = None

    def __call__(self, shape, dtype=None):
        return keras.random.normal(shape, dtype=dtype, seed=self.seed)


@kustom.part
class DrawnSeed(keras.initializers.Initializer):
    """In the style of the built-in ones: a seed that is not given is drawn once."""

    seed: int | None = None

    def setup(self) -> None:
        if self.seed is None:
            self.seed = int(np.random.randint(0, 2**31 - 1))

    def __call__(self, shape, dtype=None):
        return keras.random.normal(shape, dtype=dtype, seed=self.seed)


@kustom.part
class ByHand(keras.initializers.Initializer):
    def __init__(self, seed=None):
        self.seed = seed if seed is not None else int(np.random.randint(0, 2**31 - 1))

    def __call__(self, shape, dtype=None):
        return keras.random.normal(shape, dtype=dtype, seed=self.seed)


@kustom.part
class OverKeras(keras.initializers.GlorotUniform):
    gain: float = 1.0

    def __call__(self, shape, dtype=None):
        return self.gain * super().__call__(shape, dtype=dtype)


@kustom.part
class Inner(keras.initializers.Initializer):
    """Draws by another initializer, which has the seed."""

    inner: InitializerLike = "glorot_uniform"

    def __call__(self, shape, dtype=None):
        return 2.0 * self.inner(shape, dtype=dtype)


@kustom.initializer
def around(shape, dtype, *, inner: InitializerLike = "glorot_uniform"):
    return 2.0 * inner(shape, dtype=dtype)


SEEDED = {
    "function": lambda: normal(seed=1),
    "class": lambda: Normal(1),
    "drawn in setup": lambda: DrawnSeed(1),
    "by hand": lambda: ByHand(1),
    "over Keras's": lambda: OverKeras(1, gain=2.0),
    "inner part": lambda: Inner(normal(seed=1)),
    "inner of Keras": lambda: Inner(keras.initializers.RandomNormal(seed=1)),
    "function, inner part": lambda: around(inner=Normal(1)),
}
UNSEEDED = {
    "function": lambda: normal(),
    "class": lambda: Normal(),
    "drawn in setup": lambda: DrawnSeed(),
    "by hand": lambda: ByHand(),
    "over Keras's": lambda: OverKeras(),
    "inner of Keras": lambda: Inner(),
}


@kustom.part
class Two(keras.layers.Layer):
    initializer: InitializerLike = "glorot_uniform"

    def build(self, input_shape):
        self.a, self.b = (self.add_weight(shape=(4, 4), initializer=self.initializer, name=name) for name in "ab")

    def call(self, x):
        return ops.matmul(ops.matmul(x, self.a), self.b)


def two(initializer: Any) -> Any:
    return keras.Sequential([keras.Input((4,)), Two(initializer), Two(initializer)])


def distinct(weights: list[Any]) -> int:
    return len({N(weight).tobytes() for weight in weights})


@pytest.mark.parametrize("kind", SEEDED)
def test_weights_of_one_seeded_initializer_differ(kind):
    assert distinct(two(SEEDED[kind]()).weights) == 4


@pytest.mark.parametrize("kind", UNSEEDED)
def test_weights_of_one_initializer_without_a_seed_differ(kind):
    assert distinct(two(UNSEEDED[kind]()).weights) == 4


@pytest.mark.parametrize("kind", SEEDED)
def test_a_new_initializer_with_the_same_seed_repeats_all_weights(kind):
    one, other = (two(SEEDED[kind]()) for _ in range(2))
    for a, b in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(N(a), N(b))


@pytest.mark.parametrize("kind", UNSEEDED)
def test_the_seed_of_everything_repeats_all_weights(kind):
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        models.append(two(UNSEEDED[kind]()))
    for a, b in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_array_equal(N(a), N(b))


@pytest.mark.parametrize("kind", SEEDED)
def test_an_initializer_from_a_file_repeats_all_weights(kind, reloaded):
    model: Any = two(SEEDED[kind]())
    held = reloaded(model).layers[0].initializer
    # It has drawn while the model was made from the file; what it was told makes one that has not.
    fresh = two(type(held).from_config(held.get_config()))
    for a, b in zip(model.weights, fresh.weights, strict=True):
        np.testing.assert_array_equal(N(a), N(b))


@pytest.mark.parametrize("kind", {**SEEDED, **UNSEEDED})
def test_weights_come_back_as_they_were(kind, reloaded):
    model: Any = two({**UNSEEDED, **SEEDED}[kind]())
    for a, b in zip(model.weights, reloaded(model).weights, strict=True):
        np.testing.assert_array_equal(N(a), N(b))


@kustom.part
class DefaultInstance(keras.layers.Layer):
    """An instance as the default of a field, as in the reports."""

    initializer: InitializerLike = normal(seed=1)

    def build(self, input_shape):
        self.a = self.add_weight(shape=(4, 4), initializer=self.initializer, name="a")

    def call(self, x):
        return ops.matmul(x, self.a)


def test_layers_with_one_default_initializer_differ():
    model: Any = keras.Sequential([keras.Input((4,)), *(DefaultInstance() for _ in range(3))])
    assert distinct(model.weights) == 3


def test_layers_of_keras_with_one_initializer_differ():
    initializer = normal(seed=1)
    model: Any = keras.Sequential(
        [keras.Input((4,)), *(keras.layers.Dense(4, use_bias=False, kernel_initializer=initializer) for _ in range(3))]
    )
    assert distinct(model.weights) == 3


def test_the_two_kernels_of_a_recurrent_layer_with_one_initializer_differ():
    initializer = Normal(1)
    layer = keras.layers.SimpleRNN(4, kernel_initializer=initializer, recurrent_initializer=initializer)
    layer.build((None, 2, 4))
    assert distinct(layer.weights[:2]) == 2


@pytest.mark.parametrize("text", ["normal", f"{__name__}>normal"])
def test_weights_of_an_initializer_named_by_text_differ(text):
    assert distinct(two(text).weights) == 4


def test_weights_of_an_initializer_named_bare_differ():
    assert distinct(two(normal).weights) == 4


def test_a_seed_is_as_it_was_given_however_often_it_draws(reloaded):
    model: Any = two(Normal(1))
    assert model.layers[0].initializer.seed == 1
    assert reloaded(model).layers[0].initializer.seed == 1

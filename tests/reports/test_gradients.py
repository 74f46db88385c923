"""Gradients: what people reported of gradient APIs, custom gradients and penalties, and more of the same kinds.

Reported: no one way to take a gradient on every backend, and none inside a model that works under `fit`, `evaluate` and
`predict` (02); a custom gradient that wants another form on each backend (04); second derivatives that are None, or wrong
through a normalization on TensorFlow (28).
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import kustom

RNG = np.random.default_rng(0)


def array(x):
    return ops.convert_to_numpy(x)


def tensor(x, dtype="float32"):
    return ops.convert_to_tensor(np.asarray(x, dtype))


# 02: a gradient inside a model.


@kustom.part(package="gradient_reports")
class Force(keras.Model):
    """Minus the gradient of an energy by positions, by a tape or by `grad`."""

    units: int = 16
    by_tape: bool = True

    def setup(self):
        self.hidden, self.out = layers.Dense(self.units, "tanh"), layers.Dense(1, use_bias=False)

    def call(self, x):
        if not self.by_tape:
            return -kustom.grad(lambda x: ops.sum(self.out(self.hidden(x))))(x)
        with kustom.GradientTape() as tape:
            tape.watch(x)
            energy = self.out(self.hidden(x))
        return -tape.gradient(energy, x)


@pytest.mark.parametrize("by_tape", [True, False])
def test_a_force_trains_and_comes_back(by_tape, trip):
    x = RNG.normal(size=(64, 3)).astype("float32")
    model = Force(by_tape=by_tape)
    model.compile(keras.optimizers.Adam(0.02), "mse")
    losses = model.fit(x, -2 * x, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.95 * losses[0]
    assert model.evaluate(x, -2 * x, verbose=0) < losses[0]
    predicted = model.predict(x, verbose=0)
    np.testing.assert_allclose(trip(model).predict(x, verbose=0), predicted, rtol=1e-4, atol=1e-5)


@kustom.part(package="gradient_reports")
class Residual(keras.layers.Layer):
    """The residual of an equation, u'' + u, of a network inside: second derivatives by the input, in `call`."""

    def setup(self):
        self.first, self.second = layers.Dense(8, "tanh"), layers.Dense(1, use_bias=False)

    def call(self, t):
        with kustom.GradientTape() as outer:
            outer.watch(t)
            with kustom.GradientTape() as inner:
                inner.watch(t)
                u = self.second(self.first(t))
            slope = inner.gradient(u, t)
        return outer.gradient(slope, t) + u


def test_an_equations_residual_trains_under_fit():
    t = np.linspace(-1, 1, 64, dtype="float32")[:, None]
    inputs = keras.Input((1,))
    model = keras.Model(inputs, Residual()(inputs))
    model.compile(keras.optimizers.Adam(0.02), "mse")
    losses = model.fit(t, np.zeros_like(t), epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert model.predict(t, verbose=0).shape == (64, 1)


@kustom.part(package="gradient_reports")
class Reversed(keras.layers.Layer):
    """Multiplies the gradient that flows back by a number below 0, as in domain adaptation (Ganin et al., 2015)."""

    strength: float = 1.0

    def call(self, x):
        strength = self.strength

        @kustom.custom_gradient
        def turned(x):
            return x + 0.0, lambda upstream: -strength * upstream

        return turned(x)


def test_a_gradient_reversal_turns_the_training_round():
    dense = layers.Dense(1, use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((1,)), dense, Reversed(strength=2.0)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(np.ones((4, 1), "float32"), np.zeros((4, 1), "float32"), verbose=0)
    np.testing.assert_allclose(array(dense.kernel), [[1.4]], rtol=1e-4)


@kustom.loss(package="gradient_reports")
def sobolev(y_true, y_pred):
    """A loss that takes the slope of another by its input."""
    slope = kustom.grad(lambda p: ops.sum(ops.square(ops.subtract(y_true, p))))(y_pred)
    return ops.square(slope)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="backward() is torch's")
def test_torchs_own_backward_finds_its_way_through_a_penalty():
    dense = layers.Dense(1, use_bias=False, kernel_initializer="ones")
    x = tensor([[1.0, 2.0]])
    dense(x)
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = ops.sum(dense(x) ** 2)
    loss = ops.sum(tape.gradient(y, x) ** 2)
    loss.backward()
    by_tape = kustom.grad(lambda: ops.sum(kustom.grad(lambda x: ops.sum(dense(x) ** 2))(x) ** 2), variables=dense.kernel)()
    np.testing.assert_allclose(array(dense.kernel.value.grad), array(by_tape), rtol=1e-5)


def test_a_gradient_inside_a_loss_under_fit():
    dense = layers.Dense(1, use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((1,)), dense])
    model.compile(keras.optimizers.SGD(0.01), sobolev())
    losses = model.fit(np.ones((4, 1), "float32"), np.zeros((4, 1), "float32"), epochs=2, verbose=0).history["loss"]
    # (2 w)^2, whose slope is 8 w.
    np.testing.assert_allclose(losses, [4.0, 4.0 * 0.92**2], rtol=1e-4)


# 04: custom gradients.


w = keras.Variable(2.0)


@kustom.custom_gradient
def cube(x):
    return x * x * x, lambda upstream: upstream * 3.0 * x * x


@kustom.custom_gradient
def cube_in_the_form_of_torch(x):
    def gradient(*args, upstream=None):
        if upstream is None:
            (upstream,) = args
        return upstream * 3.0 * x * x

    return x * x * x, gradient


@kustom.custom_gradient
def scaled(x):
    return x * w, lambda upstream: upstream * 10.0


@kustom.custom_gradient
def product(x, y):
    return x * y, lambda upstream: (upstream * y, upstream * x)


@pytest.mark.parametrize(
    ("f", "first", "second"),
    [(cube, 27.0, 18.0), (cube_in_the_form_of_torch, 27.0, 18.0), (scaled, 10.0, None), (lambda x: product(x, x), 6.0, 2.0)],
    ids=["a cube", "the form of torch", "a variable inside", "two inputs"],
)
def test_a_custom_gradient_has_one_form(f, first, second):
    x = tensor(3.0)
    with kustom.GradientTape() as outer:
        outer.watch(x)
        with kustom.GradientTape() as inner:
            inner.watch(x)
            y = f(x)
        gradient = inner.gradient(y, x)
    assert float(array(gradient)) == first
    found = outer.gradient(gradient, x)
    assert (found is None) if second is None else float(array(found)) == second


def test_a_straight_through_estimator():
    @kustom.custom_gradient
    def rounded(x):
        return ops.round(x), lambda upstream: upstream

    x = tensor([0.4, 1.6])
    with kustom.GradientTape() as tape:
        tape.watch(x)
        y = ops.sum(rounded(x) ** 2)
    np.testing.assert_allclose(array(tape.gradient(y, x)), [0.0, 4.0])


def test_a_clipped_gradient_with_a_bound_by_keyword():
    @kustom.custom_gradient
    def clipped(x, *, bound=1.0):
        return x * 1.0, lambda upstream: ops.clip(upstream, -bound, bound)

    x = tensor([1.0, -3.0])
    np.testing.assert_allclose(array(kustom.grad(lambda x: ops.sum(clipped(x, bound=2.0) ** 2))(x)), [2.0, -2.0])


# 28: penalties and second derivatives.


def penalty_and_gradients(model, x):
    """The critic's penalty of WGAN-GP and its gradients by the weights."""
    with kustom.GradientTape() as outer:
        with kustom.GradientTape() as inner:
            inner.watch(x)
            scores = ops.sum(model(x, training=True))
        slopes = inner.gradient(scores, x)
        norms = ops.sqrt(ops.sum(slopes**2, axis=tuple(range(1, len(x.shape)))) + 1e-12)
        penalty = ops.mean((norms - 1.0) ** 2)
    return penalty, outer.gradient(penalty, model.trainable_variables)


def critic(*middle):
    convolution = layers.Conv2D(4, 3, strides=2, padding="same")
    model = keras.Sequential([keras.Input((8, 8, 1)), convolution, *middle, layers.Flatten(), layers.Dense(1)])
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.normal(size=variable.shape).astype("float32") * 0.3)
    return model, tensor(rng.normal(size=(4, 8, 8, 1)))


def test_the_reported_critic_has_its_number_on_every_backend():
    model, x = critic(layers.LeakyReLU(), layers.LayerNormalization(), layers.MaxPooling2D())
    penalty, gradients = penalty_and_gradients(model, x)
    np.testing.assert_allclose(array(penalty), 0.41564, rtol=1e-4)
    np.testing.assert_allclose(np.sum(np.abs(array(gradients[0]))), 5.5193, rtol=1e-3)
    assert gradients[-1] is None


@pytest.mark.parametrize(
    "middle",
    [
        lambda: [layers.Activation("tanh"), layers.LayerNormalization()],
        lambda: [layers.Activation("tanh"), layers.BatchNormalization()],
        lambda: [layers.Activation("tanh"), layers.GroupNormalization(2)],
        lambda: [layers.Activation("tanh"), layers.LayerNormalization(), layers.AveragePooling2D(2)],
    ],
    ids=["layer", "batch", "group", "layer, then pooled"],
)
def test_a_penalty_through_a_normalization_agrees_with_differences(middle):
    model, x = critic(*middle())
    _, gradients = penalty_and_gradients(model, x)
    kernel = model.trainable_variables[0]
    before = array(kernel).copy()
    direction = np.random.default_rng(1).normal(size=before.shape).astype("float32")

    def slope(step):
        values = []
        for sign in (1, -1):
            kernel.assign(before + sign * step * direction)
            values.append(float(array(penalty_and_gradients(model, x)[0])))
        return (values[0] - values[1]) / (2 * step)

    # Richardson's extrapolation: the first error of a central difference is gone.
    difference = (4 * slope(2e-3) - slope(4e-3)) / 3
    np.testing.assert_allclose(np.sum(array(gradients[0]) * direction), difference, rtol=5e-3)


@pytest.mark.parametrize("f", [lambda x: ops.var(x), lambda x: ops.std(x) ** 2, lambda x: ops.moments(x, axes=[0])[1]])
def test_the_hessian_of_a_variance(f):
    x = tensor([1.0, 2.0, 4.0])
    right = 2 / 3 * (np.eye(3) - np.ones((3, 3)) / 3)
    with kustom.GradientTape() as outer:
        outer.watch(x)
        with kustom.GradientTape() as inner:
            inner.watch(x)
            y = f(x)
        gradient = inner.gradient(y, x)
    np.testing.assert_allclose(array(outer.jacobian(gradient, x)), right, atol=1e-4)
    np.testing.assert_allclose(array(kustom.hessian(f)(x)), right, atol=1e-4)


def test_a_curvature_penalty_by_weights():
    # The square of the second derivative by the input, differentiated a third time, by the weights.
    dense, out = layers.Dense(8, "tanh"), layers.Dense(1, use_bias=False)
    x = tensor(RNG.normal(size=(16, 1)))
    out(dense(x))

    def curvature():
        second = kustom.grad(lambda x: ops.sum(slope(x)))(x)
        return ops.mean(second**2)

    def slope(x):
        return kustom.grad(lambda x: ops.sum(out(dense(x))))(x)

    _, gradients = kustom.value_and_grad(curvature, variables=dense.trainable_variables)()
    kernel = dense.kernel
    before = array(kernel).copy()
    direction = np.random.default_rng(1).normal(size=before.shape).astype("float32")
    values = []
    for sign in (1, -1):
        kernel.assign(before + sign * 1e-2 * direction)
        values.append(float(array(curvature())))
    np.testing.assert_allclose(np.sum(array(gradients[0]) * direction), (values[0] - values[1]) / 2e-2, rtol=1e-2)

"""A constructor of one's own, over a layer of Keras or around a functional model: nothing lost, nothing given twice.

Reports: a functional model made in a subclass's constructor (keras#21546, #20979, #21046); a subclass of a built-in
layer (keras#19373); a metric whose constructor takes no dtype (tensorflow#34068), and whose `result` is a variable
(keras#21702).
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
from kustom.errors import BuildError, KustomError

N = ops.convert_to_numpy
X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
Y = np.ones((4, 2), "float32")


def around(layer: Any) -> Any:
    return keras.Sequential([keras.Input((3,)), layer])


# --- functional models ------------------------------------------------------------------------------------------------


@kustom.part
class Tower(keras.Model):
    """Arguments of its own, as fields."""

    width: int = 4
    scale: float = 1.0

    def __init__(self, width=4, scale=1.0, **kwargs):
        x = keras.Input((3,))
        super().__init__(inputs=x, outputs=keras.layers.Dense(width)(x) * scale, **kwargs)


@kustom.part
class TowerWithoutFields(keras.Model):
    """Arguments of its own, kept by hand."""

    def __init__(self, width=4, scale=1.0, **kwargs):
        x = keras.Input((3,))
        super().__init__(inputs=x, outputs=keras.layers.Dense(width)(x) * scale, **kwargs)
        self.width, self.scale = width, scale


@kustom.part
class TowerByPosition(keras.Model):
    width: int = 4
    scale: float = 1.0

    def __init__(self, width=4, scale=1.0):
        x = keras.Input((3,))
        super().__init__(x, keras.layers.Dense(width)(x) * scale)


@kustom.part
class TallTower(Tower):
    """One part over another."""

    shift: float = 0.0

    def __init__(self, width=4, scale=1.0, shift=0.0, **kwargs):
        super().__init__(width, scale, **kwargs)
        self.shift = shift

    def call(self, x, **kwargs):
        return super().call(x, **kwargs) + self.shift


@kustom.part
class Stack(keras.Sequential):
    width: int = 4
    scale: float = 1.0

    def __init__(self, width=4, scale=1.0, **kwargs):
        super().__init__([keras.Input((3,)), keras.layers.Dense(width), keras.layers.Rescaling(scale)], **kwargs)


@kustom.part
class TowerAroundTower(keras.Model):
    """A functional model in a functional model, the inner one an argument."""

    inner: keras.Model = kustom.field()
    scale: float = 1.0

    def __init__(self, inner, scale=1.0, **kwargs):
        x = keras.Input((3,))
        super().__init__(x, inner(x) * scale, **kwargs)


@kustom.part
class LooksFunctional(keras.Model):
    """A constructor whose arguments look like those of a functional model, and are not."""

    inputs_scale: float = 1.0
    outputs_width: int = 4

    def __init__(self, inputs_scale=1.0, outputs_width=4, **kwargs):
        x = keras.Input((3,))
        super().__init__(x, keras.layers.Dense(outputs_width)(x * inputs_scale), **kwargs)


@kustom.part
class Layers(keras.Model):
    """A functional model with a list of widths and a nested tuple."""

    widths: list
    options: dict = kustom.field(default_factory=dict)

    def __init__(self, widths, options=None, **kwargs):
        x = y = keras.Input((3,))
        for width in widths:
            y = keras.layers.Dense(width, activation=(options or {}).get("activation"))(y)
        super().__init__(x, y, **kwargs)


TOWERS = {
    "fields": lambda: Tower(4, 3.0),
    "fields, another width": lambda: Tower(5, scale=3.0),
    "without fields": lambda: TowerWithoutFields(4, 3.0),
    "without fields, another width": lambda: TowerWithoutFields(5, 3.0),
    "by position": lambda: TowerByPosition(5, 3.0),
    "over another": lambda: TallTower(5, 3.0, shift=1.0),
    "sequential": lambda: Stack(5, 3.0),
    "around another": lambda: TowerAroundTower(Tower(5, 2.0), 3.0),
    "looks functional": lambda: LooksFunctional(2.0, 5),
    "lists and dicts": lambda: Layers([5, 2], {"activation": "relu"}),
}


@pytest.mark.parametrize("kind", TOWERS)
def test_a_functional_model_with_a_constructor_of_its_own_comes_back_whole(kind, reloaded):
    model = TOWERS[kind]()
    again = reloaded(model)
    assert type(again) is type(model)
    assert again.get_config() == model.get_config()
    np.testing.assert_array_equal(N(again(X)), N(model(X)))


@pytest.mark.parametrize("kind", TOWERS)
def test_a_functional_model_with_a_constructor_of_its_own_goes_on_training(kind, reloaded):
    model = TOWERS[kind]()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    y = np.ones(model(X).shape, "float32")
    model.fit(X, y, verbose=0)
    again = reloaded(model)
    for one in (model, again):
        one.fit(X, y, shuffle=False, verbose=0)
    np.testing.assert_allclose(N(again(X)), N(model(X)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", TOWERS)
def test_a_functional_model_with_a_constructor_of_its_own_comes_back_inside_another(kind, reloaded):
    x = keras.Input((3,))
    model: Any = keras.Model(x, TOWERS[kind]()(x))
    np.testing.assert_array_equal(N(reloaded(model)(X)), N(model(X)))


def test_the_arguments_of_a_functional_model_are_its_attributes(reloaded):
    again = reloaded(TallTower(5, 3.0, shift=1.0))
    assert (again.width, again.scale, again.shift) == (5, 3.0, 1.0)


def test_the_name_of_a_functional_model_comes_back(reloaded):
    assert reloaded(Tower(5, name="eiffel")).name == "eiffel"


# --- over a layer of Keras --------------------------------------------------------------------------------------------


@kustom.part
class Gained(keras.layers.Dense):
    gain: float = 1.0

    def call(self, x):
        return super().call(x) * self.gain


@kustom.part
class GainedByHand(keras.layers.Dense):
    def __init__(self, units, gain=1.0, **kwargs):
        super().__init__(units, **kwargs)
        self.gain = gain

    def call(self, x):
        return super().call(x) * self.gain


@kustom.part
class Fixed(keras.layers.Dense):
    """Fixes arguments of the base."""

    def __init__(self, units, **kwargs):
        super().__init__(units, activation="relu", use_bias=True, **kwargs)


@kustom.part
class FixedAll(keras.layers.Dense):
    """Takes no argument at all."""

    def __init__(self):
        super().__init__(2, activation="relu", kernel_initializer="ones", name="fixed_all")


@kustom.part
class FixedAndGained(keras.layers.Dense):
    gain: float = 1.0

    def __init__(self, units=2, *, gain=1.0, **kwargs):
        super().__init__(units, activation="tanh", **kwargs)

    def call(self, x):
        return super().call(x) * self.gain


@kustom.part
class GainedTwice(Gained):
    """A part over a part over Dense."""

    shift: float = 0.0

    def call(self, x):
        return super().call(x) + self.shift


@kustom.part
class Derived(keras.layers.Dense):
    """An argument of the base computed from one of its own."""

    pairs: int

    def __init__(self, pairs, **kwargs):
        super().__init__(units=2 * pairs, **kwargs)


@kustom.part
class GainedNorm(keras.layers.BatchNormalization):
    gain: float = 1.0

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training, mask=mask) * self.gain


@kustom.part
class GainedDropout(keras.layers.Dropout):
    gain: float = 1.0

    def call(self, inputs, training=False):
        return super().call(inputs, training=training) * self.gain


OVER_KERAS = {
    "field": lambda: Gained(2, gain=5.0),
    "field, arguments of the base": lambda: Gained(2, "relu", gain=5.0, kernel_regularizer="l2", use_bias=False),
    "by hand": lambda: GainedByHand(2, 5.0),
    "by hand, arguments of the base": lambda: GainedByHand(2, gain=5.0, activation="relu", kernel_initializer="ones"),
    "fixed": lambda: Fixed(2),
    "all fixed": lambda: FixedAll(),
    "fixed and field": lambda: FixedAndGained(3, gain=5.0),
    "part over part": lambda: GainedTwice(2, gain=5.0, shift=1.0),
    "derived": lambda: Derived(2),
    "batch normalization": lambda: GainedNorm(gain=5.0, momentum=0.5),
    "dropout": lambda: GainedDropout(0.5, gain=5.0, seed=1),
}


@pytest.mark.parametrize("kind", OVER_KERAS)
def test_a_part_over_a_layer_of_keras_comes_back_whole(kind, reloaded):
    model: Any = around(OVER_KERAS[kind]())
    again = reloaded(model)
    assert again.layers[-1].get_config() == model.layers[-1].get_config()
    np.testing.assert_array_equal(N(again(X)), N(model(X)))


@pytest.mark.parametrize("kind", OVER_KERAS)
def test_a_part_over_a_layer_of_keras_comes_back_whole_from_its_second_file(kind, reloaded):
    model: Any = around(OVER_KERAS[kind]())
    np.testing.assert_array_equal(N(reloaded(reloaded(model))(X)), N(model(X)))


def test_what_the_constructor_fixes_cannot_be_changed_in_silence(reloaded):
    model: Any = around(Fixed(2))
    model.layers[-1].activation = keras.activations.tanh
    with pytest.raises(KustomError, match="'activation' is fixed by the constructor"):
        reloaded(model)


def test_what_a_base_was_told_later_comes_back(reloaded):
    model: Any = around(Fixed(2))
    model.layers[-1].trainable = False
    again = reloaded(model)
    assert again.layers[-1].trainable is False
    np.testing.assert_array_equal(N(again(X)), N(model(X)))


@kustom.part
class GainedLSTM(keras.layers.LSTM):
    gain: float = 1.0

    def call(self, sequences, initial_state=None, mask=None, training=False):
        return super().call(sequences, initial_state=initial_state, mask=mask, training=training) * self.gain


@kustom.part
class GainedConv(keras.layers.Conv1D):
    gain: float = 1.0

    def call(self, inputs):
        return super().call(inputs) * self.gain


@kustom.part
class GainedAttention(keras.layers.MultiHeadAttention):
    gain: float = 1.0

    def call(self, query, value, key=None, attention_mask=None, training=None):
        return super().call(query, value, key, attention_mask=attention_mask, training=training) * self.gain


@pytest.mark.parametrize(
    "connect",
    [
        lambda x: GainedLSTM(2, gain=5.0)(x),
        lambda x: GainedConv(2, 2, gain=5.0, padding="same")(x),
        lambda x: GainedAttention(2, 3, gain=5.0)(x, x),
        lambda x: keras.layers.Bidirectional(GainedLSTM(2, gain=5.0))(x),
        lambda x: keras.layers.TimeDistributed(Gained(2, gain=5.0))(x),
    ],
    ids=["LSTM", "Conv1D", "MultiHeadAttention", "Bidirectional", "TimeDistributed"],
)
def test_a_part_over_a_layer_of_sequences_comes_back_whole(connect, reloaded):
    x = keras.Input((4, 3))
    model: Any = keras.Model(x, connect(x))
    sequences = np.random.default_rng(1).normal(size=(2, 4, 3)).astype("float32")
    np.testing.assert_array_equal(N(reloaded(model)(sequences)), N(model(sequences)))


@kustom.part
class ForgetsDense(keras.layers.Dense):
    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), name="scale", initializer="ones")

    def call(self, x):
        return x * self.scale


@kustom.part
class ForgetsNorm(keras.layers.BatchNormalization):
    def build(self, input_shape):
        self.stretch = self.add_weight(shape=(), name="stretch", initializer="ones")

    def call(self, inputs, training=None, mask=None):
        return inputs * self.stretch


@kustom.part
class ForgetsEmbedding(keras.layers.Embedding):
    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), name="scale", initializer="ones")

    def call(self, inputs):
        return ops.cast(inputs, "float32") * self.scale


@kustom.part
class ForgetsPart(Gained):
    """The base is a part itself."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), name="scale", initializer="ones")

    def call(self, x):
        return x * self.scale


@kustom.part
class ForgetsRecurrent(keras.layers.LSTM):
    """The weights that it forgets are a cell's, one storey down."""

    def build(self, sequences_shape, initial_state_shape=None):
        self.scale = self.add_weight(shape=(), name="scale", initializer="ones")

    def call(self, sequences, initial_state=None, mask=None, training=False):
        return ops.sum(sequences, axis=1) * self.scale


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: ForgetsDense(3), (None, 3)),
        (lambda: ForgetsEmbedding(5, 2), (None,)),
        (lambda: ForgetsPart(3), (None, 3)),
    ],
    ids=["Dense", "Embedding", "part"],
)
def test_a_build_that_forgets_the_weights_of_its_base_is_refused(make, shape):
    with pytest.raises(BuildError, match="super"):
        make().build(shape)


@pytest.mark.parametrize("make", [lambda: ForgetsRecurrent(3), ForgetsNorm], ids=["LSTM", "BatchNormalization"])
def test_a_build_that_forgets_weights_which_its_call_does_not_need_comes_back_or_is_refused(make, reloaded):
    sequences = np.ones((2, 4, 3), "float32")
    try:
        model: Any = keras.Sequential([keras.Input((4, 3)), make()])
        again = reloaded(model)
    except KustomError:
        return
    np.testing.assert_array_equal(N(again(sequences)), N(model(sequences)))


@kustom.part
class ScaledHuber(keras.losses.Huber):
    """One more setting over a loss of Keras."""

    scale: float = 1.0

    def call(self, y_true, y_pred):
        return super().call(y_true, y_pred) * self.scale


@kustom.part
class ShortHuber(keras.losses.Loss):
    """A constructor that takes neither `name` nor `reduction`."""

    def __init__(self, delta):
        super().__init__()
        self.delta = delta

    def call(self, y_true, y_pred):
        error = ops.abs(y_true - y_pred)
        return ops.mean(ops.where(error < self.delta, error**2 / 2, self.delta * error - self.delta**2 / 2), axis=-1)


@kustom.part
class Strong(keras.regularizers.L2):
    times: float = 1.0

    def __call__(self, x):
        return super().__call__(x) * self.times


@kustom.part
class Wide(keras.initializers.VarianceScaling):
    shift: float = 0.0

    def __call__(self, shape, dtype=None):
        return super().__call__(shape, dtype=dtype) + self.shift


@kustom.part
class Clipped(keras.constraints.MaxNorm):
    floor: float = 0.0

    def __call__(self, w):
        return ops.maximum(super().__call__(w), self.floor)


@kustom.part
class Halving(keras.optimizers.SGD):
    """A step of which only a part is taken."""

    share: float = 0.5

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient * self.share, variable, learning_rate)


def test_one_more_setting_over_other_classes_of_keras_comes_back(reloaded):
    layer = keras.layers.Dense(
        2,
        kernel_initializer=Wide(2.0, seed=1, shift=0.5),
        kernel_regularizer=Strong(0.1, times=3.0),
        kernel_constraint=Clipped(2.0, floor=0.125),
    )
    model: Any = around(layer)
    model.compile(Halving(0.1, momentum=0.5, share=0.25), loss=ScaledHuber(0.5, scale=4.0))
    model.fit(X, Y, verbose=0)
    again = reloaded(model)
    held = again.layers[-1]
    assert (held.kernel_initializer.scale, held.kernel_initializer.shift) == (2.0, 0.5)
    assert (float(held.kernel_regularizer.l2), held.kernel_regularizer.times) == (pytest.approx(0.1), 3.0)
    assert (held.kernel_constraint.max_value, held.kernel_constraint.floor) == (2.0, 0.125)
    assert (again.optimizer.momentum, again.optimizer.share) == (0.5, 0.25)
    assert again.loss.scale == 4.0
    for one in (model, again):
        one.fit(X, Y, shuffle=False, verbose=0)
    np.testing.assert_allclose(N(again(X)), N(model(X)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again.evaluate(X, Y, verbose=0), model.evaluate(X, Y, verbose=0), rtol=1e-5)


def test_the_delta_of_a_loss_of_keras_comes_back(reloaded):
    model: Any = around(keras.layers.Dense(2))
    model.compile("sgd", loss=ScaledHuber(0.125, scale=4.0))
    np.testing.assert_allclose(reloaded(model).evaluate(X, Y, verbose=0), model.evaluate(X, Y, verbose=0), rtol=1e-6)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_a_loss_whose_constructor_takes_no_reduction_comes_back(reduction, reloaded):
    model: Any = around(keras.layers.Dense(2))
    loss: Any = ShortHuber(0.125)
    loss.reduction = reduction
    model.compile("sgd", loss=loss)
    again = reloaded(model)
    assert (again.loss.delta, again.loss.reduction) == (0.125, reduction)
    np.testing.assert_allclose(again.evaluate(X, Y, verbose=0), model.evaluate(X, Y, verbose=0), rtol=1e-6)


@kustom.part
class ShortLayer(keras.layers.Layer):
    """A constructor that takes neither `name` nor `dtype` nor `trainable`."""

    def __init__(self, units):
        super().__init__()
        self.units = units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")

    def call(self, x):
        return ops.matmul(x, self.kernel)


def test_a_layer_whose_constructor_takes_no_name_comes_back(reloaded):
    model: Any = around(ShortLayer(2))
    model.layers[-1].trainable = False
    again = reloaded(model)
    assert again.layers[-1].trainable is False
    assert again.layers[-1].name == model.layers[-1].name
    np.testing.assert_array_equal(N(again(X)), N(model(X)))


# --- metrics ----------------------------------------------------------------------------------------------------------


@kustom.part
class Total(keras.metrics.Metric):
    """`result` hands back the variable; the constructor takes a name and nothing else."""

    def __init__(self, name="total"):
        super().__init__(name=name)
        self.s = self.add_variable((), "zeros", name="s")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.s.assign_add(ops.sum(y_pred))

    def result(self):
        return self.s


@kustom.part
class ScaledTotal(keras.metrics.Metric):
    """The constructor has a setting that must be given, and no name."""

    def __init__(self, scale):
        super().__init__(name="scaled_total")
        self.scale = scale
        self.s = self.add_variable((), "zeros", name="s")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.s.assign_add(self.scale * ops.sum(y_pred))

    def result(self):
        return self.s


@kustom.part
class FieldTotal(keras.metrics.Metric):
    scale: float = 1.0

    def setup(self) -> None:
        self.s = self.add_variable((), "zeros", name="s")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.s.assign_add(self.scale * ops.sum(y_pred))

    def result(self):
        return self.s


@kustom.part
class InnerTotal(keras.metrics.Metric):
    """`result` hands back the variable of a metric inside."""

    def setup(self) -> None:
        self.inner = keras.metrics.Sum()

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.inner.update_state(y_pred)

    def result(self):
        return self.inner.total

    def reset_state(self):
        self.inner.reset_state()


@pytest.mark.parametrize(
    ("make", "expected"),
    [(Total, 6.0), (lambda: ScaledTotal(2.0), 12.0), (lambda: FieldTotal(scale=2.0), 12.0), (InnerTotal, 6.0)],
    ids=["name only", "no name", "field", "metric inside"],
)
def test_a_metric_whose_result_is_a_variable_counts_each_evaluation_anew(make, expected, reloaded):
    x = np.ones((6, 1), "float32")
    model: Any = keras.Sequential([keras.Input((1,)), keras.layers.Identity()])
    model.compile("sgd", "mse", metrics=[make()])
    for one in (model, reloaded(model)):
        assert [one.evaluate(x, x, batch_size=2, verbose=0)[1] for _ in range(2)] == [expected, expected]


@pytest.mark.parametrize("make", [Total, lambda: ScaledTotal(2.0), FieldTotal, InnerTotal])
def test_a_metric_whose_result_is_a_variable_is_shown_by_fit(make):
    x = np.ones((6, 1), "float32")
    model: Any = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    metric: Any = make()
    model.compile("sgd", "mse", metrics=[metric])
    assert metric.name in model.fit(x, x, epochs=2, batch_size=2, verbose=0).history


@pytest.mark.parametrize("make", [Total, lambda: ScaledTotal(2.0), FieldTotal, InnerTotal])
def test_the_result_of_a_metric_is_a_tensor_of_its_moment(make):
    metric: Any = make()
    metric.update_state(np.ones(2, "float32"), np.ones(2, "float32"))
    result = metric.result()
    assert not isinstance(result, keras.Variable)
    before = float(result)
    metric.update_state(np.ones(2, "float32"), np.ones(2, "float32"))
    assert float(result) == before


@kustom.part
class DictOfVariables(keras.metrics.Metric):
    """Several values, in a dict."""

    def setup(self) -> None:
        self.low = self.add_variable((), "zeros", name="low")
        self.high = self.add_variable((), "zeros", name="high")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.low.assign(ops.minimum(self.low, ops.min(y_pred)))
        self.high.assign(ops.maximum(self.high, ops.max(y_pred)))

    def result(self):
        return {"low": self.low, "high": self.high}


def test_a_metric_whose_result_is_a_dict_of_variables_is_shown_by_name(reloaded):
    x = np.array([[-1.0], [2.0], [3.0]], "float32")
    model: Any = keras.Sequential([keras.Input((1,)), keras.layers.Identity()])
    model.compile("sgd", "mse", metrics=[DictOfVariables()])
    for one in (model, reloaded(model)):
        shown = one.evaluate(x, x, verbose=0, return_dict=True)
        assert (shown["low"], shown["high"]) == (-1.0, 3.0)


@kustom.part
class OwnMetric(keras.Model):
    """A model with such a metric of its own, updated where each backend keeps it."""

    def setup(self) -> None:
        self.inner = keras.layers.Dense(1)
        self.seen = Total(name="seen")

    def call(self, x):
        return self.inner(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.seen.update_state(y, y)
        return super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)


def test_a_metric_of_a_model_whose_result_is_a_variable_is_shown_by_fit(reloaded):
    x = np.ones((6, 1), "float32")
    model: Any = OwnMetric()
    model.compile("sgd", "mse")
    assert model.fit(x, x, epochs=2, batch_size=2, verbose=0).history["seen"] == [6.0, 6.0]
    assert reloaded(model).evaluate(x, x, batch_size=2, verbose=0, return_dict=True)["seen"] == 6.0


def test_the_dtype_of_a_metric_whose_constructor_takes_none_comes_back(reloaded):
    model: Any = keras.Sequential([keras.Input((1,)), keras.layers.Identity()])
    model.compile("sgd", "mse", metrics=[Total()])
    assert reloaded(model)._compile_metrics._user_metrics[0].dtype == Total().dtype

"""What a part was told: recorded as it is, refused where no file can hold it, back in its own type.

Reports: a config that nobody wrote (hub#926, tensorflow#93378); tuples that come back as lists (tf-keras#43,
keras#19776, #20074, #19305); arrays as settings (tensorflow#41164, keras#8401).
"""

# What Keras says of its own types ("verbose" is text, a call may return None) does not hold, and a part's arguments
# over a class of Keras are not seen by a type checker.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportOptionalOperand=false
# pyright: reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false, reportRedeclaration=false

import copy
import enum
import pathlib
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom.errors import KustomError, UnsavableSettingError
from kustom.typing import ActivationLike

N = ops.convert_to_numpy
X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


@kustom.part
class Holds(keras.layers.Layer):
    """A setting of any kind."""

    value: Any = None
    rate: float = 0.5

    def call(self, x):
        return x * self.rate


def around(layer: Any) -> Any:
    return keras.Sequential([keras.Input((3,)), layer])


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_settings_come_back(reloaded):
    layer = reloaded(around(Holds(3, rate=0.1))).layers[-1]
    assert (layer.value, layer.rate) == (3, 0.1)


def test_a_setting_changed_after_construction_comes_back_changed(reloaded):
    model: Any = around(Holds(1))
    model.layers[-1].rate = 0.9
    again = reloaded(model)
    assert again.layers[-1].rate == 0.9
    np.testing.assert_allclose(N(again(X)), X * np.float32(0.9), rtol=1e-6)


@pytest.mark.parametrize(
    ("made", "change", "changed"),
    [
        ([1, 2], lambda value: value.append(3), [1, 2, 3]),
        ({"a": 1}, lambda value: value.update(b=2), {"a": 1, "b": 2}),
        ({"a": [1]}, lambda value: value["a"].append(2), {"a": [1, 2]}),
        (np.zeros(2), lambda value: value.fill(7.0), np.full(2, 7.0)),
    ],
    ids=["list", "dict", "list in dict", "array"],
)
def test_a_setting_changed_in_place_comes_back_changed(made, change, changed, reloaded):
    model: Any = around(Holds(made))
    change(model.layers[-1].value)
    np.testing.assert_equal(reloaded(model).layers[-1].value, changed)


@pytest.mark.parametrize("made", [[1, 2], {"a": 1}, np.zeros(2)], ids=["list", "dict", "array"])
def test_a_setting_is_the_parts_own_whatever_its_giver_does_with_it_later(made, reloaded):
    given = copy.deepcopy(made)
    model: Any = around(Holds(given))
    if isinstance(given, np.ndarray):
        given += 1
    else:
        given.clear()
    np.testing.assert_equal(reloaded(model).layers[-1].value, made)


@kustom.part
class Mutates(keras.layers.Layer):
    """Works on its own settings in `setup`."""

    sizes: list
    options: dict = kustom.field(default_factory=dict)

    def setup(self) -> None:
        self.sizes.append("extra")
        self.options["seen"] = True

    def call(self, x):
        return x


@kustom.part
class MutatesByHand(keras.layers.Layer):
    def __init__(self, sizes, options=None, **kwargs):
        super().__init__(**kwargs)
        options = options if options is not None else {}
        sizes.append("extra")
        options["seen"] = True
        self.sizes, self.options = sizes, options

    def call(self, x):
        return x


@pytest.mark.parametrize("make", [Mutates, MutatesByHand])
def test_a_setting_that_the_part_itself_changes_is_changed_once_however_often_it_is_loaded(make, reloaded):
    model: Any = around(make([1], {"a": 1}))
    for _ in range(3):
        layer = model.layers[-1]
        assert [*layer.sizes] == [1, "extra"]
        assert dict(layer.options) == {"a": 1, "seen": True}
        model: Any = reloaded(model)


@kustom.part
class Doubles(keras.layers.Layer):
    """Overwrites a setting by what it computes from it."""

    units: int
    rate: float = 1.0

    def setup(self) -> None:
        self.units *= 2
        self.rate = self.rate / 2

    def call(self, x):
        return x * self.rate


def test_a_setting_that_the_part_overwrites_is_overwritten_once_however_often_it_is_loaded(reloaded):
    model: Any = around(Doubles(3, rate=0.5))
    for _ in range(3):
        assert (model.layers[-1].units, model.layers[-1].rate) == (6, 0.25)
        model: Any = reloaded(model)


@kustom.part
class FromShape(keras.layers.Layer):
    """Fills a setting in `build`."""

    units: int | None = None

    def build(self, input_shape):
        if self.units is None:
            self.units = input_shape[-1] + 1
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")

    def call(self, x):
        return ops.matmul(x, self.kernel)


def test_a_setting_filled_in_build_leads_to_the_same_part(reloaded):
    model: Any = around(FromShape())
    again = reloaded(model)
    assert again.layers[-1].units == 4
    np.testing.assert_array_equal(N(again(X)), N(model(X)))


@kustom.loss
def scaled(y_true, y_pred, *, factor=1.0):
    return factor * ops.abs(ops.subtract(y_true, y_pred))


@kustom.layer
def times(x, *, factor=1.0):
    return x * factor


@kustom.activation
def leaky(x, *, slope=0.1):
    return ops.where(x > 0, x, slope * x)


@kustom.regularizer
def heavy(w, *, factor=1.0):
    return factor * ops.sum(ops.abs(w))


def test_settings_of_functions_changed_afterwards_come_back_changed(reloaded):
    model: Any = keras.Sequential(
        [keras.Input((3,)), times(), keras.layers.Dense(2, activation=leaky(slope=0.1), kernel_regularizer=heavy())]
    )
    model.compile("sgd", loss=scaled())
    model.layers[0].factor = 2.0
    model.layers[1].activation.slope = 0.25
    model.layers[1].kernel_regularizer.factor = 0.5
    model.loss.factor = 4.0
    again = reloaded(model)
    assert again.layers[0].factor == 2.0
    assert again.layers[1].activation.slope == 0.25
    assert again.layers[1].kernel_regularizer.factor == 0.5
    assert again.loss.factor == 4.0
    np.testing.assert_array_equal(N(again(X)), N(model(X)))


def test_a_layer_as_a_setting_comes_back_with_its_weights(reloaded):
    model: Any = around(HoldsLayer(keras.layers.Dense(3)))
    np.testing.assert_array_equal(N(reloaded(model)(X)), N(model(X)))


@kustom.part
class HoldsLayer(keras.layers.Layer):
    value: Any = None

    def call(self, x):
        return self.value(x)


@kustom.part
class Activated(keras.layers.Layer):
    activation: ActivationLike = None

    def call(self, x):
        return self.activation(x)


def test_a_layer_as_an_activation_comes_back(reloaded):
    model: Any = around(Activated(keras.layers.LeakyReLU(0.25)))
    again = reloaded(model)
    for one in (model, again):
        np.testing.assert_allclose(N(one(X)), np.where(X > 0, X, 0.25 * X), rtol=1e-6)


@pytest.mark.parametrize(
    "function", [ops.tanh, keras.activations.relu, leaky, leaky(slope=0.3)], ids=["tanh", "relu", "leaky", "leaky(0.3)"]
)
def test_a_function_that_a_file_can_name_comes_back(function, reloaded):
    model: Any = around(HoldsLayer(function))
    np.testing.assert_array_equal(N(reloaded(model)(X)), N(model(X)))


# --- what no file can hold --------------------------------------------------------------------------------------------


class Foreign:
    pass


class Colour(enum.Enum):
    RED = 1


UNSAVABLE = {
    "object": Foreign(),
    "lambda": lambda x: x,
    "function of numpy": np.tanh,
    "class": Foreign,
    "enum": Colour.RED,
    "path": pathlib.Path("/tmp"),
    "set": {1, 2},
    "frozenset": frozenset([1]),
    "complex": 1j,
    "array of objects": np.array([object()]),
    "generator": np.random.default_rng(0),
    "range": range(3),
    "object in list": [1, Foreign()],
    "object in tuple in dict": {"a": (1, Foreign())},
    "lambda in dict": {"a": lambda x: x},
}


@pytest.mark.parametrize("kind", UNSAVABLE)
def test_what_no_file_can_hold_is_refused_at_construction_with_the_settings_name(kind):
    with pytest.raises(UnsavableSettingError, match="value"):
        Holds(UNSAVABLE[kind])


@kustom.part
class HoldsCallback(keras.callbacks.Callback):
    value: Any = None


@kustom.part
class HoldsRegularizer(keras.regularizers.Regularizer):
    value: Any = None

    def __call__(self, x):
        return ops.sum(x)


@kustom.part
class HoldsMetric(keras.metrics.Mean):
    value: Any = None


@kustom.loss
def holds_loss(y_true, y_pred, *, value=None):
    return ops.subtract(y_true, y_pred)


@pytest.mark.parametrize("make", [HoldsCallback, HoldsRegularizer, HoldsMetric, holds_loss])
@pytest.mark.parametrize("kind", ["object", "lambda", "set", "object in list"])
def test_what_no_file_can_hold_is_refused_by_parts_of_every_kind(make, kind):
    with pytest.raises(UnsavableSettingError, match="value"):
        make(value=UNSAVABLE[kind])


@pytest.mark.parametrize("kind", ["object", "lambda", "set", "enum", "object in list"])
def test_what_no_file_can_hold_is_refused_before_the_file_is_written_where_it_came_later(kind, reloaded, tmp_path):
    model: Any = around(Holds(1))
    model.layers[-1].value = UNSAVABLE[kind]
    with pytest.raises(UnsavableSettingError, match="value"):
        reloaded(model)


@kustom.part
class ByHand(keras.layers.Layer):
    """No fields, but a constructor with arguments."""

    def __init__(self, value=None, **kwargs):
        super().__init__(**kwargs)
        self.value = value

    def call(self, x):
        return x


@pytest.mark.parametrize("kind", ["object", "lambda", "set", "enum", "object in list"])
def test_what_no_file_can_hold_is_refused_by_a_hand_written_constructor_too(kind, reloaded):
    with pytest.raises(UnsavableSettingError, match="value"):
        reloaded(around(ByHand(UNSAVABLE[kind])))


# --- tuples -----------------------------------------------------------------------------------------------------------

SEEN: dict[str, list[Any]] = {}


@kustom.part
class SeesShape(keras.layers.Layer):
    def build(self, input_shape):
        SEEN.setdefault(self.name, []).append(input_shape)

    def call(self, x):
        return x


@kustom.part
class SeesShapes(keras.layers.Layer):
    def build(self, input_shape):
        SEEN.setdefault(self.name, []).append(input_shape)

    def call(self, inputs):
        flat = keras.tree.flatten(inputs)
        return flat[0] + flat[1]


@kustom.part
class SeesNamedShapes(keras.layers.Layer):
    def build(self, left_shape, right_shape):
        SEEN.setdefault(self.name, []).append((left_shape, right_shape))

    def call(self, left, right):
        return left + right


@kustom.part
class SeesShapeOverDense(keras.layers.Dense):
    def build(self, input_shape):
        SEEN.setdefault(self.name, []).append(input_shape)
        super().build(input_shape[:-1] + input_shape[-1:])


@kustom.part
class SeesShapeInModel(keras.Model):
    def setup(self) -> None:
        self.inner = keras.layers.Dense(2)

    def build(self, input_shape):
        SEEN.setdefault(self.name, []).append(input_shape)
        self.inner.build(input_shape[:-1] + input_shape[-1:])

    def call(self, x):
        return self.inner(x)


@kustom.part
class SeesShapeBehindParent(keras.layers.Layer):
    """The child's `build` is called by a parent, with a list."""

    def setup(self) -> None:
        self.inner = SeesShape(name=f"{self.name}_inner")

    def build(self, input_shape):
        self.inner.build([*input_shape])

    def call(self, x):
        return self.inner(x)


def two_inputs(connect: Any) -> Any:
    a, b = keras.Input((3,)), keras.Input((3,))
    return keras.Model([a, b], connect(a, b))


BUILDS = {
    "seen": lambda: around(SeesShape(name="seen")),
    "seen_list": lambda: two_inputs(lambda a, b: SeesShapes(name="seen_list")([a, b])),
    "seen_dict": lambda: two_inputs(lambda a, b: SeesShapes(name="seen_dict")({"a": a, "b": b})),
    "seen_nested": lambda: two_inputs(lambda a, b: SeesShapes(name="seen_nested")([a, {"b": (b, b)}])),
    "seen_named": lambda: two_inputs(lambda a, b: SeesNamedShapes(name="seen_named")(a, b)),
    "seen_dense": lambda: around(SeesShapeOverDense(2, name="seen_dense")),
    "seen_model": lambda: around(SeesShapeInModel(name="seen_model")),
    "seen_parent_inner": lambda: around(SeesShapeBehindParent(name="seen_parent")),
}


def holds_list(shape: Any) -> bool:
    if isinstance(shape, dict):
        return any(map(holds_list, shape.values()))
    return isinstance(shape, list) or (isinstance(shape, tuple) and any(map(holds_list, shape)))


@pytest.mark.parametrize("name", BUILDS)
def test_build_gets_tuples_made_and_loaded(name, reloaded):
    SEEN.pop(name, None)
    reloaded(BUILDS[name]())
    assert len(SEEN[name]) >= 2
    assert not any(map(holds_list, SEEN[name]))
    assert len({repr(shape) for shape in SEEN[name]}) == 1


@kustom.part
class ShapeArithmetic(keras.layers.Layer):
    tail: tuple[int, ...] = (2,)

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=input_shape[-1:] + self.tail, name="kernel")

    def call(self, x):
        return ops.matmul(x, self.kernel)


@kustom.part
class ShapeInSetup(keras.layers.Layer):
    """A tuple that is no field, kept by `setup` and added to in `build`."""

    def setup(self) -> None:
        self.tail = (2,)

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=input_shape[-1:] + self.tail, name="kernel")

    def call(self, x):
        return ops.matmul(x, self.kernel)


@pytest.mark.parametrize("make", [ShapeArithmetic, ShapeInSetup])
def test_arithmetic_with_shapes_works_made_and_loaded(make, reloaded):
    model: Any = around(make())
    np.testing.assert_array_equal(N(reloaded(model)(X)), N(model(X)))


class Size(NamedTuple):
    height: int
    width: int


VALUES = {
    "tuple": (1, 2),
    "empty tuple": (),
    "nested tuple": (1, (2, 3), [4, (5,)]),
    "tuple in dict": {"a": (1, 2), "b": [(3,), 4]},
    "list": [1, [2, 3]],
    "empty list": [],
    "None in tuple": (None, 3),
    "dict with numbers as keys": {1: "a", 2: "b"},
    "dict with tuples as keys": {(1, 2): "a"},
    "dict that looks like an object": {"class_name": "Dense", "config": {"units": 3}},
    "dict that looks like a mark": {"class_name": "__tuple__", "config": {"value": [1]}},
    "bytes": b"\x00\xff",
    "infinite": (float("inf"), float("-inf")),
    "large": 2**70,
    "text of a number": "1",
    "truth": (True, 1, 1.0),
    "slice": slice(1, None, 2),
    "ellipsis": (..., 1),
}


def same_type(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and all(same_type(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        kinds = [tuple if isinstance(value, tuple) else list for value in (one, other)]
        return kinds[0] is kinds[1] and all(map(same_type, one, other))
    return type(one) is type(other)


@pytest.mark.parametrize("kind", VALUES)
def test_a_setting_comes_back_in_its_type(kind, reloaded):
    value = reloaded(around(Holds(VALUES[kind]))).layers[-1].value
    assert value == VALUES[kind]
    assert same_type(VALUES[kind], value)


def test_a_named_tuple_comes_back_as_one_or_is_refused(reloaded):
    try:
        value = reloaded(around(Holds(Size(2, 3)))).layers[-1].value
    except KustomError:
        return
    assert (value.height, value.width) == (2, 3)


@kustom.loss
def tupled(y_true, y_pred, *, weights=(1.0, 2.0)):
    return ops.abs(ops.subtract(y_true, y_pred)) * (weights + weights)[0]


@kustom.part
class TupledMetric(keras.metrics.Mean):
    axes: tuple[int, ...] = (1,)

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(ops.sum(ops.abs(ops.subtract(y_true, y_pred)), axis=tuple(set(self.axes + self.axes))), sample_weight)


@kustom.part
class TupledOptimizer(keras.optimizers.SGD):
    bounds: tuple[float, float] = (0.0, 1.0)


def test_tuples_come_back_in_losses_metrics_and_optimizers(reloaded):
    model: Any = around(keras.layers.Identity())
    model.compile(TupledOptimizer(0.1, bounds=(1, 2)), loss=tupled(weights=(3, 4)), metrics=[TupledMetric(axes=(-1,))])
    before = model.evaluate(X, X + 1, verbose=0)
    again = reloaded(model)
    assert again.loss.weights == (3, 4)
    assert again.optimizer.bounds == (1.0, 2.0)
    np.testing.assert_allclose(again.evaluate(X, X + 1, verbose=0), before, rtol=1e-6)


@kustom.part
class HoldsTuple(keras.layers.Layer):
    sizes: tuple[int, ...] = ()

    def call(self, x):
        return x


@pytest.mark.parametrize("given", [(2, 3), [2, 3], (np.int64(2), np.int64(3))], ids=["tuple", "list", "numpy scalars"])
def test_a_field_of_tuples_holds_a_tuple_whatever_it_is_given(given, reloaded):
    model: Any = around(HoldsTuple(given))
    for layer in (model.layers[-1], reloaded(model).layers[-1]):
        assert layer.sizes == (2, 3)
        assert same_type((2, 3), layer.sizes)


# --- arrays -----------------------------------------------------------------------------------------------------------


@kustom.part
class Pull(keras.regularizers.Regularizer):
    target: np.ndarray
    strength: float = 0.1

    def __call__(self, x):
        return self.strength * ops.sum(ops.square(x - ops.convert_to_tensor(self.target)))


@kustom.regularizer
def pull(w, *, target, strength=0.1):
    return strength * ops.sum(ops.square(w - target))


@kustom.part
class Shift(keras.layers.Layer):
    by: np.ndarray

    def call(self, x):
        return ops.add(x, self.by)


@kustom.layer
def shift(x, *, by):
    return ops.add(x, by)


@kustom.part
class StartsAt(keras.initializers.Initializer):
    value: np.ndarray

    def __call__(self, shape, dtype=None):
        return ops.convert_to_tensor(self.value, dtype=dtype)


@kustom.initializer
def starts_at(shape, dtype, *, value):
    return ops.broadcast_to(value, shape)


@kustom.constraint
def at_most(w, *, bound):
    return ops.minimum(w, bound)


@kustom.part
class ClassWeighted(keras.losses.Loss):
    weights: np.ndarray

    def call(self, y_true, y_pred):
        return ops.sum(ops.multiply(ops.square(ops.subtract(y_true, y_pred)), self.weights), axis=-1)


@kustom.metric
def weighted_error(y_true, y_pred, *, weights):
    return ops.sum(ops.abs(ops.subtract(y_true, y_pred)) * weights, axis=-1)


TARGET = np.full((3, 2), 0.5, "float32")


@pytest.mark.parametrize("make", [Pull, pull])
def test_an_array_in_a_regularizer_comes_back_as_it_was(make, reloaded):
    model: Any = around(keras.layers.Dense(2, kernel_regularizer=make(target=TARGET)))
    again = reloaded(model)
    target = again.layers[-1].kernel_regularizer.target
    assert isinstance(target, np.ndarray)
    assert target.dtype == "float32"
    np.testing.assert_array_equal(target, TARGET)
    np.testing.assert_allclose(N(again.losses[0]), N(model.losses[0]), rtol=1e-6)


@pytest.mark.parametrize("make", [Shift, shift])
def test_an_array_in_a_layer_comes_back_as_it_was(make, reloaded):
    model: Any = around(make(by=TARGET[:, 0]))
    again = reloaded(model)
    assert isinstance(again.layers[-1].by, np.ndarray)
    np.testing.assert_array_equal(N(again(X)), N(model(X)))


@pytest.mark.parametrize("make", [StartsAt, starts_at])
def test_an_array_in_an_initializer_comes_back_as_it_was(make, reloaded):
    again = reloaded(around(keras.layers.Dense(2, kernel_initializer=make(value=TARGET))))
    np.testing.assert_array_equal(N(again.layers[-1].kernel_initializer((3, 2), "float32")), TARGET)


def test_arrays_in_losses_metrics_and_constraints_come_back_as_they_were(reloaded):
    model: Any = around(keras.layers.Dense(2, kernel_constraint=at_most(bound=TARGET)))
    weights = np.array([1.0, 3.0])
    model.compile("sgd", loss=ClassWeighted(weights), metrics=[weighted_error(weights=weights)])
    y = np.ones((4, 2), "float32")
    model.fit(X, y, verbose=0)
    before = model.evaluate(X, y, verbose=0)
    again = reloaded(model)
    np.testing.assert_array_equal(again.layers[-1].kernel_constraint.bound, TARGET)
    assert again.loss.weights.dtype == "float64"
    np.testing.assert_allclose(again.evaluate(X, y, verbose=0), before, rtol=1e-6)


ARRAYS = {
    "int64": np.arange(3),
    "uint8": np.arange(3, dtype="uint8"),
    "bool": np.array([True, False]),
    "float16": np.array([0.1], "float16"),
    "float64": np.array([0.1, 1 / 3]),
    "not finite": np.array([np.nan, np.inf, -np.inf, 1.0], "float32"),
    "no axes": np.array(2.5, "float32"),
    "empty": np.zeros((0, 3), "float32"),
    "text": np.array(["a", "bcd"]),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "every second": np.arange(6.0)[::2],
    "other byte order": np.array([1.5, 2.5], ">f4"),
    "large": np.array([2**62 + 1]),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_comes_back_with_its_dtype_and_shape(kind, reloaded):
    value = reloaded(around(Holds(ARRAYS[kind]))).layers[-1].value
    assert isinstance(value, np.ndarray)
    assert value.dtype.newbyteorder("=") == ARRAYS[kind].dtype.newbyteorder("=")
    assert value.shape == ARRAYS[kind].shape
    np.testing.assert_array_equal(value, ARRAYS[kind])


@pytest.mark.parametrize("kind", ["int64", "float64", "not finite"])
def test_arrays_in_containers_come_back_as_arrays(kind, reloaded):
    array = ARRAYS[kind]
    value = reloaded(around(Holds({"a": [array, (array,)]}))).layers[-1].value
    for held in (value["a"][0], value["a"][1][0]):
        assert isinstance(held, np.ndarray)
        assert held.dtype == array.dtype
        np.testing.assert_array_equal(held, array)


def test_a_tensor_comes_back_as_an_array(reloaded):
    value = reloaded(around(Holds(ops.convert_to_tensor([1.0, 2.0])))).layers[-1].value
    assert isinstance(value, np.ndarray)
    np.testing.assert_array_equal(value, [1.0, 2.0])


@pytest.mark.parametrize(
    ("scalar", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.3), 0.3),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("text"), "text"),
    ],
)
def test_a_numpy_scalar_comes_back_as_pythons(scalar, plain, reloaded):
    model: Any = around(Holds([scalar, (scalar,)]))
    for layer in (model.layers[-1], reloaded(model).layers[-1]):
        assert layer.value == [plain, (plain,)]
        assert type(layer.value[0]) is type(layer.value[1][0]) is type(plain)


@pytest.mark.parametrize("number", [np.float32(2), np.int64(2), np.array(2.0), 2, ops.convert_to_tensor(2.0)], ids=repr)
def test_a_field_of_floats_holds_pythons_whatever_it_is_given(number, reloaded):
    model: Any = around(Holds(rate=number))
    for layer in (model.layers[-1], reloaded(model).layers[-1]):
        assert layer.rate == 2.0
        assert type(layer.rate) is float


def test_a_setting_of_a_function_holds_pythons_whatever_it_is_given(reloaded):
    model: Any = around(times(factor=np.float32(2)))
    assert type(reloaded(model).layers[-1].factor) is float

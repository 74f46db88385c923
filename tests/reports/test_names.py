"""What a part is found by, and what it is made of: its own name, and no value that no file holds.

Reports: two classes under one name (keras#20406, #15192, #22779); a parameter in a closure (keras#7993, #20333,
tensorflow#53606). What a caller's own mapping of names means belongs to `kustom.load`.
"""

# What Keras says of its own types ("verbose" is text, a call may return None) does not hold, and a part's arguments
# over a class of Keras are not seen by a type checker.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportOptionalOperand=false
# pyright: reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false, reportRedeclaration=false

import functools
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom.errors import ClosureError, DefinitionError, KustomError, NameClashError
from kustom.typing import InitializerLike

N = ops.convert_to_numpy
X = np.ones((1, 1), "float32")


def around(*layers: Any) -> Any:
    return keras.Sequential([keras.Input((1,)), *layers])


# --- two parts under one name -----------------------------------------------------------------------------------------


def one_gate():
    @kustom.part
    class Gate(keras.layers.Layer):
        def call(self, x):
            return x * 2.0

    return Gate


def other_gate():
    @kustom.part
    class Gate(keras.layers.Layer):
        def call(self, x):
            return x * -7.0

    return Gate


def function_gate():
    @kustom.layer
    def Gate(x):  # noqa: N802
        return x * -7.0

    return Gate


def loss_gate():
    @kustom.loss
    def Gate(y_true, y_pred):  # noqa: N802
        return y_true - y_pred

    return Gate


def regularizer_gate():
    @kustom.part
    class Gate(keras.regularizers.Regularizer):
        def __call__(self, x):
            return ops.sum(x)

    return Gate


class Holder:
    @staticmethod
    def gate():
        @kustom.part
        class Gate(keras.layers.Layer):
            def call(self, x):
                return x * -7.0

        return Gate


@pytest.mark.parametrize("second", [other_gate, function_gate, loss_gate, regularizer_gate, Holder.gate])
def test_another_part_under_a_taken_name_is_refused_with_both_places(second):
    one_gate()
    with pytest.raises(NameClashError) as error:
        second()
    assert "one_gate" in str(error.value)
    assert second.__name__ in str(error.value)
    assert str(error.value).count(__file__) == 2


@pytest.mark.parametrize("second", [other_gate, function_gate, loss_gate])
def test_a_file_of_the_first_is_still_its_own_after_a_clash(second, reloaded):
    model: Any = around(one_gate()())
    with pytest.raises(NameClashError):
        second()
    np.testing.assert_allclose(N(reloaded(model)(X)), [[2.0]])


def test_a_definition_that_runs_again_replaces_its_own_part(reloaded):
    model: Any = around(one_gate()())
    one_gate()
    np.testing.assert_allclose(N(reloaded(model)(X)), [[2.0]])


def test_another_package_is_another_name(reloaded):
    def gate(x):
        return x * -7.0

    gate.__name__ = "Gate"
    model: Any = around(one_gate()(), kustom.layer(package="test_names_other")(gate)())
    np.testing.assert_allclose(N(reloaded(model)(X)), [[-14.0]])


def test_a_loss_and_a_metric_of_one_name_live_in_two_packages(reloaded):
    def distance_loss():
        @kustom.loss(package="test_names_losses")
        def distance(y_true, y_pred):
            return ops.abs(ops.subtract(y_true, y_pred))

        return distance

    def distance_metric():
        @kustom.metric(package="test_names_metrics")
        def distance(y_true, y_pred):
            return 10 * ops.abs(ops.subtract(y_true, y_pred))

        return distance

    model: Any = around(keras.layers.Identity())
    model.compile("sgd", loss=distance_loss()(), metrics=[distance_metric()()])
    for one in (model, reloaded(model)):
        np.testing.assert_allclose(one.evaluate(X, 3 * X, verbose=0), [2.0, 20.0])


def test_a_former_name_that_belongs_to_another_part_is_refused():
    one_gate()
    name = keras.saving.get_registered_name(one_gate())

    def newcomer(x):
        return x

    with pytest.raises(NameClashError, match="Gate"):
        kustom.layer(formerly=name)(newcomer)


def test_a_name_that_a_plain_class_of_keras_has_taken_is_refused():
    @keras.saving.register_keras_serializable(package="test_names_plain")
    class Taken(keras.layers.Layer):
        pass

    def newcomer(x):
        return x

    newcomer.__name__ = "Taken"
    with pytest.raises(NameClashError, match="Taken"):
        kustom.layer(package="test_names_plain")(newcomer)


def test_text_that_names_two_parts_is_refused_with_both_names():
    def draw_one():
        @kustom.initializer(package="test_names_one")
        def drawn_twice(shape, dtype):
            return ops.ones(shape, dtype)

    def draw_other():
        @kustom.initializer(package="test_names_two")
        def drawn_twice(shape, dtype):
            return ops.zeros(shape, dtype)

    draw_one()
    draw_other()
    with pytest.raises(NameClashError) as error:
        Drawn("drawn_twice")
    assert "test_names_one>drawn_twice" in str(error.value)
    assert "test_names_two>drawn_twice" in str(error.value)
    np.testing.assert_array_equal(N(Drawn("test_names_two>drawn_twice").initializer((2,))), [0.0, 0.0])


@kustom.part
class Drawn(keras.layers.Layer):
    initializer: InitializerLike = None

    def call(self, x):
        return x


def with_attribute(factor):
    @kustom.part
    class AttributeGate(keras.layers.Layer):
        k = factor

        def call(self, x):
            return x * self.k

    return AttributeGate


def with_base(base):
    @kustom.part
    class BaseGate(base):
        def call(self, x):
            return super().call(x) * 2.0

    return BaseGate


def with_helper_default(factor):
    def helper(x, k=factor):
        return x * k

    @kustom.layer
    def helper_gate(x):
        return helper(x)

    return helper_gate


def with_method_default(factor):
    @kustom.part
    class MethodGate(keras.layers.Layer):
        def scaled(self, x, k=factor):
            return x * k

        def call(self, x):
            return self.scaled(x)

    return MethodGate


def with_partial_method(factor):
    @kustom.part
    class PartialGate(keras.layers.Layer):
        def scaled(self, x, k):
            return x * k

        times = functools.partialmethod(scaled, k=factor)

        def call(self, x):
            return self.times(x)

    return PartialGate


def with_class_of_values(factor):
    class Values:
        k = factor

    @kustom.layer
    def values_gate(x):
        return x * Values.k

    return values_gate


def with_attribute_of_base(factor):
    class Base(keras.layers.Layer):
        k = factor

        def call(self, x):
            return x * self.k

    @kustom.part
    class AttributeOfBaseGate(Base):
        shift: float = 0.0

    return AttributeOfBaseGate


@pytest.mark.parametrize(
    "make",
    [
        with_attribute,
        with_attribute_of_base,
        with_helper_default,
        with_method_default,
        with_partial_method,
        with_class_of_values,
    ],
)
def test_one_function_that_makes_two_different_parts_is_refused_or_each_file_is_its_own(make, reloaded):
    model: Any = around(make(2.0)())
    try:
        make(-7.0)
    except KustomError:
        return
    np.testing.assert_allclose(N(reloaded(model)(X)), [[2.0]])


def test_one_function_that_makes_parts_over_two_bases_is_refused():
    with_base(keras.layers.Identity)
    with pytest.raises(NameClashError):
        with_base(keras.layers.Flatten)


def with_default(factor):
    @kustom.part
    class DefaultGate(keras.layers.Layer):
        k: float = factor

        def call(self, x):
            return x * self.k

    return DefaultGate


def default_function(factor):
    @kustom.layer
    def default_gate(x, *, k=factor):
        return x * k

    return default_gate


@pytest.mark.parametrize("make", [with_default, default_function])
def test_a_default_from_the_function_around_is_in_the_file(make, reloaded):
    model: Any = around(make(2.0)())
    make(-7.0)
    np.testing.assert_allclose(N(reloaded(model)(X)), [[2.0]])


# --- a value from the function around ---------------------------------------------------------------------------------


def closed_loss(q):
    @kustom.loss(package="closed_loss")
    def pinball(y_true, y_pred):
        error = ops.subtract(y_true, y_pred)
        return ops.maximum(q * error, (q - 1) * error)


def closed_metric(q):
    @kustom.metric(package="closed_metric")
    def over(y_true, y_pred):
        return y_pred > q


def closed_formula(q):
    @kustom.metric(result=lambda total: total * q, package="closed_formula")
    def scaled(y_true, y_pred):
        return kustom.Sums(total=y_pred)


def closed_layer(q):
    @kustom.layer(package="closed_layer")
    def scale(x):
        return x * q


def closed_activation(q):
    @kustom.activation(package="closed_activation")
    def slope(x):
        return x * q


def closed_initializer(q):
    @kustom.initializer(package="closed_initializer")
    def constant(shape, dtype):
        return q * ops.ones(shape, dtype)


def closed_regularizer(q):
    @kustom.regularizer(package="closed_regularizer")
    def weight(w):
        return q * ops.sum(w)


def closed_constraint(q):
    @kustom.constraint(package="closed_constraint")
    def bound(w):
        return ops.minimum(w, q)


def closed_class(q):
    @kustom.part(package="closed_class")
    class Scale(keras.layers.Layer):
        def call(self, x):
            return x * q


def closed_property(q):
    @kustom.part(package="closed_property")
    class Scale(keras.layers.Layer):
        @property
        def factor(self):
            return q

        def call(self, x):
            return x * self.factor


def closed_static_method(q):
    @kustom.part(package="closed_static_method")
    class Scale(keras.layers.Layer):
        @staticmethod
        def factor():
            return q

        def call(self, x):
            return x * self.factor()


def closed_inner_function(q):
    @kustom.part(package="closed_inner_function")
    class Scale(keras.layers.Layer):
        def call(self, x):
            def scaled(y):
                return y * q

            return scaled(x)


def closed_helper(q):
    def helper(x):
        return x * q

    @kustom.layer(package="closed_helper")
    def scale(x):
        return helper(x)


def closed_helper_of_helper(q):
    def inner(x):
        return x * q

    def helper(x):
        return inner(x)

    @kustom.part(package="closed_helper_of_helper")
    class Scale(keras.layers.Layer):
        def call(self, x):
            return helper(x)


def closed_partial(q):
    helper = functools.partial(ops.multiply, q)

    @kustom.layer(package="closed_partial")
    def scale(x):
        return helper(x)


def closed_object(q):
    settings = {"q": q}

    @kustom.layer(package="closed_object")
    def scale(x):
        return x * settings["q"]


def closed_base(q):
    class Base(keras.layers.Layer):
        def call(self, x):
            return x * q

    @kustom.part(package="closed_base")
    class Scale(Base):
        shift: float = 0.0


def closed_mixin(q):
    class Mixin:
        def scaled(self, x):
            return x * q

    @kustom.part(package="closed_mixin")
    class Scale(Mixin, keras.layers.Layer):
        def call(self, x):
            return self.scaled(x)


def closed_keras_loss(q):
    inner = keras.losses.Huber(delta=q)

    @kustom.loss(package="closed_keras_loss")
    def huber(y_true, y_pred):
        return inner(y_true, y_pred)


def closed_part(q):
    inner = Power(exponent=q)

    @kustom.layer(package="closed_part")
    def scale(x):
        return inner(x)


def closed_bound_method(q):
    helper = Power(exponent=q).call

    @kustom.layer(package="closed_bound_method")
    def scale(x):
        return helper(x)


def closed_wrapper(q):
    def scaled(function):
        @functools.wraps(function)
        def wrapper(x):
            return function(x) * q

        return wrapper

    @kustom.layer(package="closed_wrapper")
    @scaled
    def scale(x):
        return x


def closed_cached_property(q):
    @kustom.part(package="closed_cached_property")
    class Scale(keras.layers.Layer):
        @functools.cached_property
        def factor(self):
            return q

        def call(self, x):
            return x * self.factor


@kustom.layer
def Power(x, *, exponent=2.0):  # noqa: N802
    return x**exponent


CLOSED = [
    closed_loss,
    closed_metric,
    closed_formula,
    closed_layer,
    closed_activation,
    closed_initializer,
    closed_regularizer,
    closed_constraint,
    closed_class,
    closed_property,
    closed_static_method,
    closed_inner_function,
    closed_helper,
    closed_helper_of_helper,
    closed_partial,
    closed_object,
    closed_base,
    closed_mixin,
    closed_keras_loss,
    closed_part,
    closed_bound_method,
    closed_wrapper,
    closed_cached_property,
]


@pytest.mark.parametrize("define", CLOSED)
def test_a_part_that_takes_a_value_from_the_function_around_it_is_refused(define):
    with pytest.raises(DefinitionError):
        define(0.9)


@pytest.mark.parametrize("define", [closed_loss, closed_class, closed_helper, closed_formula])
def test_the_error_names_the_value_that_no_file_would_hold(define):
    with pytest.raises(ClosureError, match=r"takes q from"):
        define(0.9)


@kustom.loss
def pinball_with_setting(y_true, y_pred, *, q=0.5):
    error = ops.subtract(y_true, y_pred)
    return ops.maximum(q * error, (q - 1) * error)


def test_the_same_value_as_a_setting_is_in_the_file(reloaded):
    model: Any = around(keras.layers.Identity())
    model.compile("sgd", loss=pinball_with_setting(q=0.9))
    assert pinball_with_setting(q=0.1).q == 0.1
    np.testing.assert_allclose(reloaded(model).evaluate(X, X + 1, verbose=0), 0.9, rtol=1e-6)


def open_to_code():
    def helper(x):
        return x * 2

    class Base(keras.layers.Layer):
        def twice(self, x):
            return helper(x)

    @kustom.part
    class UsesCode(Base):
        factor: float = 1.0

        def call(self, x):
            return self.twice(x) * self.factor + Power(x)

    return UsesCode


def test_functions_and_classes_from_the_function_around_are_code_and_no_values(reloaded):
    model: Any = around(open_to_code()(factor=3.0))
    np.testing.assert_allclose(N(reloaded(model)(X)), [[7.0]])


def test_a_class_without_a_name_in_its_functions_is_found_by_super(reloaded):
    def define():
        @kustom.part
        class CallsSuper(keras.layers.Dense):
            gain: float = 1.0

            def call(self, x):
                return super().call(x) * self.gain

        return CallsSuper

    model: Any = around(define()(2, gain=3.0))
    np.testing.assert_array_equal(N(reloaded(model)(X)), N(model(X)))

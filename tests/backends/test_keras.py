"""What is private to Keras is where kustom looks for it; each test fails by the name that has moved."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from kustom.backends import keras as private
from kustom.defining import constructing


@pytest.mark.parametrize("name", private.__all__)
def test_it_is_there(name):
    assert getattr(private, name) is not None


@pytest.mark.parametrize("base", private.RESERVED, ids=lambda b: b.__name__)
def test_reserved_names_cover_what_keras_and_this_backend_keep_on_an_instance(base):
    instance = base(1.0) if base is keras.optimizers.Optimizer else base()  # pyright: ignore
    public = {name for name in {*dir(instance), *vars(instance)} if not name.startswith("_")}
    # An argument that the base takes of its own is refused as such.
    own = constructing.own_arguments(base)
    refused = {name for name in dir(base) if not name.startswith("_")} | private.RESERVED[base] | own.keys()
    assert not public - refused


def test_the_registry():
    @keras.saving.register_keras_serializable("private")
    class Thing(keras.layers.Layer):
        pass

    assert private.registered("private>Thing") is Thing
    private.register("private>Other", Thing, formerly=("private>Older",))
    assert keras.saving.get_registered_name(Thing) == "private>Other"
    assert keras.saving.get_registered_object("private>Older") is Thing
    assert private.registered("private>nothing") is None
    with keras.saving.custom_object_scope({"Thing": Thing}):
        assert private.registry()["Thing"] is Thing
        assert keras.saving.get_registered_object("Thing") is Thing
    assert "Thing" not in private.registry()


def test_everything_that_was_registered_under_a_name():
    def registered():
        @keras.saving.register_keras_serializable("taken")
        class Thing(keras.layers.Layer):
            pass

        return Thing

    first, second = registered(), registered()
    assert private.registered("taken>Thing") is second
    assert private.registered_as("taken>Thing") == [first, second]
    assert private.registered_as("taken>nothing") == []


def test_a_function_becomes_the_loss_that_compile_makes_of_it():
    def halved(y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1) / 2

    loss = private.as_loss(halved)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)])
    model.compile(loss=halved, jit_compile=False)
    x, y = np.array([[1.0], [2.0], [4.0]], "float32"), np.array([0.0, 3.0, 0.0], "float32")
    assert float(loss(y, x)) == pytest.approx(1.0)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(1.0)
    assert float(loss(y, x, sample_weight=np.array([1.0, 0.0, 0.0], "float32"))) == pytest.approx(0.5 / 3)


def test_the_default_of_training_in_a_call():
    class Asked(keras.layers.Layer):
        def call(self, x, training):
            return x

    class On(keras.layers.Layer):
        def call(self, x, training=True):
            return x

    assert private.training_default(keras.layers.Dense(1)) is None
    assert private.training_default(keras.layers.Dropout(0.5)) is False
    assert private.training_default(Asked()) is None
    assert private.training_default(On()) is True


def test_functions_that_a_file_can_name():
    assert private.is_known_function(keras.activations.relu)
    assert not private.is_known_function(lambda x: x)


def test_tracking():
    layer, late = keras.layers.Layer(), keras.layers.Dense(1)
    layer.build((None, 1))
    assert id(late) not in private.tracked(layer)
    private.track(layer, late)
    assert id(late) in private.tracked(layer)
    assert layer._tracker.locked


def test_what_a_layer_is_made_of():
    inner = keras.layers.Dense(1)
    layer: Any = keras.Sequential([inner])
    outer: Any = keras.layers.Layer()
    outer.inner, outer.mean = layer, keras.metrics.Mean()
    assert private.sublayers(outer) == [layer]
    assert private.descendants(outer) == [layer, inner]
    assert private.metrics_of(outer) == [outer.mean]
    layer.build((None, 1))
    assert private.functional_of(layer).layers[-1] is inner
    assert private.functional_of(keras.Model()) is None

    class State:
        state = keras.Variable(1.0)

    private.add_state(outer, State())
    assert any(variable is State.state for variable in outer.variables)


def test_a_layer_knows_whether_it_was_called():
    layer = keras.layers.Dense(1)
    assert not private.in_call(layer)
    layer(keras.ops.ones((1, 2)))
    assert private.in_call(layer)


def test_what_is_functional():
    inputs = keras.Input((1,))
    assert private.is_functional(keras.Model(inputs, keras.layers.Dense(1)(inputs)))
    assert private.is_functional(keras.Sequential([inputs]))
    assert not private.is_functional(keras.Model())
    assert not private.is_functional(keras.layers.Dense(1))


def test_values_in_a_stateless_scope():
    variable = keras.Variable(1.0)
    assert private.has_value(variable)
    assert not private.is_assigned(variable)
    with keras.StatelessScope():
        variable.assign(2.0)
        assert private.is_assigned(variable)


def test_what_a_trainer_knows():
    inputs = keras.Input((3,))
    model: Any = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    with pytest.raises(ValueError, match="compile"):
        private.need_compiled(model, "fit")
    model.compile("sgd", "mse", metrics=["mae"])
    private.need_compiled(model, "fit")
    x, y = keras.ops.ones((2, 3)), keras.ops.zeros((2, 1))
    y_pred = private.forward(model, x, training=False)
    assert tuple(y_pred.shape) == (2, 1)
    assert private.total_loss(model, x, y, y_pred, None, training=False).shape == ()
    assert private.loss_tracker(model).name == "loss"
    assert private.in_order(model, {"zeta": 2.0, "loss": 1.0}) == [1.0, 2.0]
    assert private.in_order(model, {"loss": 1.0}) == 1.0
    assert not private.has_strategy(model)
    model._initial_epoch = 3
    assert [private.resumed_at(model) for _ in range(2)] == [3, 0]
    assert {"optimizer", "_loss_tracker", "_compile_loss", "_compile_metrics"} <= private.attributes_of(model).keys()


def test_functional_models():
    inputs = keras.Input((3,))
    assert isinstance(keras.Model(inputs, inputs * 2), private.Functional)
    assert private.are_functional((inputs, inputs), {})
    assert private.are_functional((), {"inputs": inputs, "outputs": inputs})
    assert not private.are_functional((), {"name": "model"})


def test_results_of_metrics_are_noted():
    mean, other = keras.metrics.Mean(), keras.metrics.Sum()
    with private.results({keras.metrics.Mean}) as noted:
        result = mean.result()
        other.result()
        assert noted[id(result)][0] == (mean, None)
        assert len(noted) == 1
    assert "result" in vars(keras.metrics.Mean)
    assert not hasattr(keras.metrics.Mean.result, "__wrapped__")


def test_a_value_is_put_and_read_past_every_scope():
    variable = keras.Variable(1.0)
    with keras.StatelessScope([(variable, keras.ops.convert_to_tensor(5.0))]):
        assert float(keras.ops.stop_gradient(private.own_value(variable))) == 1.0
    private.put(variable, keras.ops.convert_to_tensor(2.0))
    assert float(keras.ops.convert_to_numpy(variable)) == 2.0


def test_values_are_asked_of_and_put_into_many_variables_at_once():
    variables = [keras.Variable(1.0), keras.Variable(2.0, trainable=False)]
    assert [private.own_value(v) is value for v, value in zip(variables, map(private.own, variables), strict=True)] == [True] * 2
    assert list(map(private.trainable, variables)) == [True, False]
    assert not private.are_placed(variables)
    values = [keras.ops.convert_to_tensor(value) for value in (3.0, 4.0)]
    if keras.backend.backend() == "jax":
        private.put_all(variables, values)
        assert [float(v.value) for v in variables] == [3.0, 4.0]


def test_what_was_touched_is_undone():
    assigned, read, other = keras.Variable(1.0), keras.Variable(2.0), keras.Variable(3.0)

    def step():
        assigned.assign(10.0)
        read.assign(read + 10.0)
        late = keras.Variable(0.0)
        late.assign(1.0)
        raise KeyError("mine")

    with pytest.raises(KeyError), private.undone():
        step()
    assert [float(keras.ops.convert_to_numpy(v)) for v in (assigned, read, other)] == [1.0, 2.0, 3.0]
    with private.undone() as touched:
        assigned.assign(4.0)
    assert list(touched) == [id(assigned)]
    assert float(keras.ops.convert_to_numpy(assigned)) == 4.0


def test_a_variable_made_of_a_value_in_a_stateless_scope_gets_it_afterwards():
    with private.values_wait(), keras.StatelessScope():
        values: list[Any] = [1.5, 3, [True, False]]
        made = [*(keras.Variable(v, trainable=False) for v in values), keras.Variable("ones", shape=(2,))]
    assert [v.dtype for v in made] == ["float32", "int32", "bool", "float32"]
    assert [keras.ops.convert_to_numpy(v).tolist() for v in made] == [1.5, 3, [True, False], [1.0, 1.0]]
    with pytest.raises(ValueError, match="stateless scope"), keras.StatelessScope():
        keras.Variable(1.5)


def test_the_losses_of_the_outputs_term_by_term():
    first, second = keras.losses.MeanSquaredError(), keras.losses.MeanAbsoluteError()
    terms = private.Terms([first, second], [2.0, 1.0], output_names=["a", "b"])
    ones, zeros = keras.ops.ones((2, 1)), keras.ops.zeros((2, 1))
    for _ in range(2):
        found = terms.terms([ones, 3 * ones], [zeros, zeros], None)
        assert [(loss, float(value), predicted is zeros, weight) for loss, value, predicted, weight in found] == [
            (first, 2.0, True, None),
            (second, 3.0, True, None),
        ]
        assert [metric.name for metric in terms.metrics] == ["a_loss", "b_loss"]
    assert not terms._terms


def test_metrics_as_compile_makes_them():
    metrics = private.CompileMetrics(["mae"], None, output_names=None)
    assert not metrics.built
    metrics.update_state(keras.ops.ones((2, 1)), keras.ops.zeros((2, 1)), None)
    assert {name: float(value) for name, value in metrics.result().items()} == {"mae": 1.0}


def test_a_call_with_and_without_training():
    assert private.takes_training(keras.layers.Dropout(0.5))
    assert not private.takes_training(keras.layers.Flatten())


def test_what_an_optimizer_was_built_for():
    a, b, c = (keras.Variable(1.0) for _ in range(3))
    plain = keras.optimizers.SGD(0.1, use_ema=True)
    scaled = keras.optimizers.LossScaleOptimizer(plain)
    assert private.averaged(scaled) == []
    scaled.build([b, a])
    for optimizer in (plain, scaled):
        assert [id(v) for v in private.trained_by(optimizer)] == [id(b), id(a)]
        assert [id(v) for v in private.averaged(optimizer)] == [id(b), id(a)]
        assert [id(v) for v in private.unknown_to(optimizer, [a, c, b])] == [id(c)]
        assert private.steppers_of(optimizer) == [plain]
        assert not private.is_multi(optimizer)
    assert private.count_of(plain) == 0
    plain.apply([keras.ops.ones(())], [a])
    assert private.count_of(plain) == 1


@pytest.mark.skipif(not private.MULTI, reason="Keras 3.14 has no MultiOptimizer")
def test_an_optimizer_of_several():
    first, second = keras.optimizers.SGD(), keras.optimizers.Adam()
    several = private.MULTI[0](keras.optimizers.OptimizerMap(first, {"b": second}))
    a, b, c = (keras.Variable(1.0, name=name) for name in "abc")
    several.build([a, b])
    for optimizer in (several, keras.optimizers.LossScaleOptimizer(several)):
        assert private.is_multi(optimizer)
        assert {id(each) for each in private.steppers_of(optimizer)} == {id(first), id(second)}
        assert [id(v) for v in private.trained_by(optimizer)] == [id(a), id(b)]
        assert [id(v) for v in private.unknown_to(optimizer, [b, c])] == [id(c)]


def test_a_metric_that_is_called_alone_leaves_no_trace_on_the_other():
    class Told(keras.metrics.Mean):
        """Its config does not tell its setting, so that a copy has another."""

        def __init__(self, times=1.0, **kwargs):
            super().__init__(**kwargs)
            self.times, self.seen, self.late = times, [], None

        def update_state(self, values, sample_weight=None):
            if self.late is None:
                self.late = self.add_variable((), "zeros", name="late")
            self.seen.append(1)
            return super().update_state(self.times * values)

    metric = Told(3.0)
    metric.reset_state()
    with keras.StatelessScope():
        other = private.alone(metric)
        other.update_state(np.float32([1.0, 3.0]))
        assert float(keras.ops.convert_to_numpy(other.result())) == 6.0
    assert len(metric.variables) == 2
    assert (metric.seen, metric.late, float(metric.result())) == ([], None, 0.0)

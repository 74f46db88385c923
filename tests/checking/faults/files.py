"""What a file does not give back: settings, weights of children, objects that were shared."""

from __future__ import annotations

import keras
from keras import ops

import kustom

register = keras.saving.register_keras_serializable("faults")


@register
class ForgetsItsChildren(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(4, activation="relu")
        self.out = keras.layers.Dense(1)

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        return self.out(self.hidden(x)) * self.scale


@register
class BuildsItsChildren(ForgetsItsChildren):
    def build(self, input_shape):
        super().build(input_shape)
        self.hidden.build(input_shape)
        self.out.build((*input_shape[:-1], 4))


@register
class ForgetsOneOfTwo(keras.Model):
    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.first = keras.layers.Dense(units)
        self.second = keras.layers.Dense(units)

    def build(self, input_shape):
        self.first.build(input_shape)
        self.built = True

    def call(self, x):
        return self.second(self.first(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@register
class BuildsBoth(ForgetsOneOfTwo):
    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build((*input_shape[:-1], self.units))
        self.built = True


@register
class SavesHalf(keras.layers.Layer):
    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="ones")
        self.shift = self.add_weight(shape=(input_shape[-1],), initializer="zeros")

    def call(self, x):
        return x * self.scale + self.shift

    def save_own_variables(self, store):
        store["scale"] = self.scale.numpy() if hasattr(self.scale, "numpy") else self.scale

    def load_own_variables(self, store):
        self.scale.assign(store["scale"])


@register
class SavesAll(SavesHalf):
    def save_own_variables(self, store):
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)


@register
class GridFilledLate(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.grid = []
        for _ in range(2):
            row = []
            self.grid.append(row)
            row.append(keras.layers.Dense(3))

    def call(self, x):
        for row in self.grid:
            for cell in row:
                x = cell(x)
        return x


@register
class GridFilledFirst(GridFilledLate):
    def __init__(self, **kwargs):
        keras.layers.Layer.__init__(self, **kwargs)
        self.grid = [[keras.layers.Dense(3)] for _ in range(2)]


class Tools:
    def __init__(self):
        self.dense = keras.layers.Dense(3)


@register
class LayerInAnObject(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tools = Tools()

    def call(self, x):
        return self.tools.dense(x)


@kustom.part
class LayerInAnAttribute(keras.layers.Layer):
    def setup(self):
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)


@register
class TiedByTwoNames(keras.layers.Layer):
    """One Dense, given twice; a copy has two."""

    def __init__(self, first, second, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = first, second

    def call(self, x):
        return self.second(ops.relu(self.first(x)))

    def get_config(self):
        inner = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in ("first", "second")}
        return {**super().get_config(), **inner}

    @classmethod
    def from_config(cls, config):
        inner = [keras.saving.deserialize_keras_object(config.pop(name)) for name in ("first", "second")]
        return cls(*inner, **config)


@register
class TiedByOneName(keras.layers.Layer):
    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return self.inner(ops.relu(self.inner(x)))

    def get_config(self):
        return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("inner")), **config)


def tied() -> TiedByTwoNames:
    dense = keras.layers.Dense(4)
    return TiedByTwoNames(dense, dense)


@register
class ConcatenatesShapes(keras.layers.Layer):
    def build(self, input_shape):
        self.w = self.add_weight(shape=input_shape[-1:] + (2,))  # noqa: RUF005

    def call(self, x):
        return ops.matmul(x, self.w)


@register
class TakesTheLastSize(keras.layers.Layer):
    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1], 2))

    def call(self, x):
        return ops.matmul(x, self.w)


@register
class KeysByShape(keras.layers.Layer):
    def build(self, input_shape):
        self.sizes = {input_shape: "known"}
        self.scale = self.add_weight(shape=(1,), initializer="ones")

    def call(self, x):
        return x * self.scale


@register
class KeysByTuple(KeysByShape):
    def build(self, input_shape):
        super().build(tuple(input_shape))


@register
class AsksForATuple(keras.layers.Layer):
    def build(self, input_shape):
        if not isinstance(input_shape, tuple):
            raise TypeError("input_shape should be a tuple")
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.scale


@kustom.part
class GetsATuple(keras.layers.Layer):
    def build(self, input_shape):
        if not isinstance(input_shape, tuple):
            raise TypeError("input_shape should be a tuple")
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.scale


@register
class LayerInALambda(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        dense = keras.layers.Dense(4)
        self.branch = lambda x: ops.relu(dense(x))

    def call(self, x):
        return x + self.branch(x)


@register
class LayerBesideALambda(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(4)
        self.branch = lambda x: ops.relu(self.dense(x))

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, x):
        return x + self.branch(x)


PAIRS = [
    ("C103", ForgetsItsChildren, BuildsItsChildren),
    ("C103", ForgetsOneOfTwo, BuildsBoth),
    ("C103", SavesHalf, SavesAll),
    ("C109", GridFilledLate, GridFilledFirst),
    ("C109", LayerInAnObject, LayerInAnAttribute),
    ("C109", LayerInALambda, LayerBesideALambda),
    ("C109", tied(), TiedByOneName(keras.layers.Dense(4))),
    ("S209", ConcatenatesShapes, TakesTheLastSize),
    ("S209", KeysByShape, KeysByTuple),
    ("S209", AsksForATuple, GetsATuple),
]

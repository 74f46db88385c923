"""Shapes, dtypes and masks that are not what was promised."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

import kustom

register = keras.saving.register_keras_serializable("faults")


@register
class ReshapesByBatch(keras.layers.Layer):
    def call(self, x):
        return ops.reshape(x, (x.shape[0] * 1, x.shape[1], 1))


@register
class ReshapesByMinusOne(keras.layers.Layer):
    def call(self, x):
        return ops.reshape(x, (-1, x.shape[1], 1))


@register
class BranchesOnAValue(keras.layers.Layer):
    def call(self, x):
        if float(ops.max(x)) > 1.0:
            x = x / ops.max(x)
        return x


@register
class ChoosesByWhere(keras.layers.Layer):
    def call(self, x):
        largest = ops.max(x)
        return x / ops.where(largest > 1.0, largest, ops.ones_like(largest))


@register
class ThroughNumPy(keras.layers.Layer):
    def call(self, x):
        return ops.convert_to_tensor(np.tanh(np.asarray(ops.convert_to_numpy(x))))


@kustom.layer
def through_ops(x):
    return ops.tanh(x)


@register
class AsList(keras.layers.Layer):
    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units))

    def call(self, x):
        return ops.matmul(x, self.kernel)

    def compute_output_shape(self, batch_input_shape):
        return batch_input_shape.as_list()[:-1] + [self.units]  # noqa: RUF005

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@register
class AsTuple(AsList):
    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)


@register
class PromisesItsInput(AsList):
    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)

    def compute_output_shape(self, input_shape):
        return input_shape


@register
class ForgetsTheBatch(AsList):
    def __init__(self, units=3, **kwargs):
        super().__init__(units, **kwargs)

    def compute_output_shape(self, input_shape):
        return (self.units,)


@register
class ReturnsFloat32(keras.layers.Layer):
    def call(self, x):
        return ops.cast(x, "float32") * 2.0


@register
class ReturnsItsDtype(keras.layers.Layer):
    def call(self, x):
        return x * 2.0


@register
class TableOfFloat32(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = ops.convert_to_tensor(np.array([1.0, 2.0, 3.0, 4.0], "float32"))

    def call(self, x):
        return ops.multiply(x, self.table)


@register
class TableOfItsDtype(keras.layers.Layer):
    def call(self, x):
        return ops.multiply(x, ops.convert_to_tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype))


@register
class InnerOfFloat32(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(3, dtype=keras.DTypePolicy("mixed_bfloat16"))

    def call(self, x):
        return self.dense(x)


@kustom.part
class InnerOfItsDtype(keras.layers.Layer):
    def setup(self):
        self.dense = keras.layers.Dense(3, dtype=self.dtype_policy)

    def call(self, x):
        return self.dense(x)


def normal_of_float32(shape, dtype=None):
    return keras.random.normal(shape, stddev=0.05)


@kustom.initializer
def normal_of_dtype(shape, dtype, *, seed=None):
    return keras.random.normal(shape, stddev=0.05, dtype=dtype, seed=seed)


@register
class FlatInitializer(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.random.uniform((int(np.prod(shape)),), dtype=dtype)


@register
class ShapedInitializer(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.random.uniform(shape, dtype=dtype)


@register
class NormOfColumns(keras.constraints.Constraint):
    def __call__(self, w):
        w = ops.cast(w, "float32")
        return w / (1e-6 + ops.sqrt(ops.sum(ops.square(w), axis=0, keepdims=True)))


@kustom.constraint
def norm_of_columns(w):
    return w / (keras.config.epsilon() + ops.sqrt(ops.sum(ops.square(w), axis=0, keepdims=True)))


def squares_unsummed(weights):
    return 0.01 * ops.square(weights)


squares_unsummed.__kustom__ = {"kind": "regularizer"}  # type: ignore[attr-defined]


@kustom.regularizer
def squares_summed(weights):
    return 0.01 * ops.sum(ops.square(weights))


@register
class SumsOneAxis(keras.regularizers.Regularizer):
    def __call__(self, w):
        return 0.01 * ops.sum(ops.abs(w), axis=-1)

    def get_config(self):
        return {}


@register
class SumsAll(SumsOneAxis):
    def __call__(self, w):
        return 0.01 * ops.sum(ops.abs(w))


@register
class EntropyOfWeights(keras.regularizers.Regularizer):
    def __call__(self, w):
        share = ops.abs(w) / ops.sum(ops.abs(w))
        return -ops.sum(share * ops.log(share))

    def get_config(self):
        return {}


@register
class SafeEntropyOfWeights(EntropyOfWeights):
    def __call__(self, w):
        share = ops.abs(w) / (ops.sum(ops.abs(w)) + 1e-7)
        return -ops.sum(share * ops.log(share + 1e-7))


@register
class StepwiseWithoutMask(keras.layers.Layer):
    def call(self, x):
        return ops.tanh(x) * 2.0


@register
class StepwiseWithMask(StepwiseWithoutMask):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True


@register
class FlattensTheMask(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x):
        return ops.reshape(x, (-1, x.shape[1] * x.shape[2]))


@register
class FlattensAndDropsTheMask(FlattensTheMask):
    def compute_mask(self, inputs, mask=None):
        return None


@register
class MeanOverPadding(keras.layers.Layer):
    def call(self, x, mask=None):
        return ops.mean(x, axis=1)

    def compute_mask(self, inputs, mask=None):
        return None


@register
class MeanWithoutPadding(MeanOverPadding):
    def call(self, x, mask=None):
        if mask is None:
            return ops.mean(x, axis=1)
        weight = ops.cast(mask, x.dtype)[:, :, None]
        return ops.sum(ops.where(weight > 0, x, ops.zeros_like(x)), axis=1) / ops.maximum(ops.sum(weight, axis=1), 1.0)


SEQUENCE = {"inputs": np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")}

PAIRS = [
    ("S201", ReshapesByBatch, ReshapesByMinusOne),
    ("S201", BranchesOnAValue, ChoosesByWhere),
    ("S201", ThroughNumPy, through_ops),
    ("S202", AsList, AsTuple),
    ("S202", PromisesItsInput, AsTuple),
    ("S202", ForgetsTheBatch, AsTuple),
    ("S203", ReturnsFloat32, ReturnsItsDtype),
    ("S203", TableOfFloat32, TableOfItsDtype),
    ("S203", InnerOfFloat32, InnerOfItsDtype),
    ("S205", normal_of_float32, normal_of_dtype),
    ("S205", FlatInitializer, ShapedInitializer),
    ("S205", NormOfColumns, norm_of_columns),
    ("S206", squares_unsummed, squares_summed),
    ("S206", SumsOneAxis, SumsAll),
    ("S206", EntropyOfWeights, SafeEntropyOfWeights),
    ("S207", StepwiseWithoutMask, StepwiseWithMask, SEQUENCE),
    ("S207", FlattensTheMask, FlattensAndDropsTheMask, SEQUENCE),
    ("S207", MeanOverPadding, MeanWithoutPadding, SEQUENCE),
]

"""Metrics that depend on the batches, keep what was reset, and do not see weights."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

import kustom

register = keras.saving.register_keras_serializable("faults")


class Counting(keras.metrics.Metric):
    """What the metrics below share: a sum and a count."""

    def __init__(self, name=None, **kwargs):
        super().__init__(name=name, **kwargs)
        self.total = self.add_weight(name="total", initializer="zeros")
        self.count = self.add_weight(name="count", initializer="zeros")

    def result(self):
        return self.total / ops.maximum(self.count, 1e-7)


@register
class MeanOfMeans(Counting):
    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(ops.mean(ops.abs(y_true - y_pred)))
        self.count.assign_add(1.0)


@register
class MeanOfAll(Counting):
    def update_state(self, y_true, y_pred, sample_weight=None):
        errors = ops.mean(ops.abs(y_true - y_pred), axis=-1)
        weight = ops.ones_like(errors) if sample_weight is None else ops.cast(sample_weight, errors.dtype)
        self.total.assign_add(ops.sum(errors * weight))
        self.count.assign_add(ops.sum(weight))


@register
class RootOfEachBatch(Counting):
    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(ops.sqrt(ops.mean(ops.square(y_true - y_pred))))
        self.count.assign_add(1.0)


@kustom.metric(result=lambda squares, count: ops.sqrt(squares / ops.maximum(count, 1e-7)))
def root_of_all(y_true, y_pred):
    return kustom.Sums(squares=ops.square(ops.subtract(y_true, y_pred)), count=ops.ones_like(y_pred))


@register
class LastBatchOnly(Counting):
    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign(ops.sum(ops.abs(y_true - y_pred)))
        self.count.assign(ops.cast(ops.size(y_pred), "float32"))


@register
class KeepsAList(MeanOfAll):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.seen.append(float(ops.mean(ops.abs(y_true - y_pred))))

    def result(self):
        return ops.convert_to_tensor(float(np.mean(self.seen)) if self.seen else 0.0)


@register
class ResetsHalf(MeanOfAll):
    def reset_state(self):
        self.total.assign(0.0)


@register
class ResetsByOldName(MeanOfAll):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.largest = 0.0

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.largest = max(self.largest, float(ops.max(ops.abs(y_true - y_pred))))

    def reset_states(self):
        self.largest = 0.0

    def result(self):
        return ops.convert_to_tensor(self.largest)


@register
class LargestInAVariable(keras.metrics.Metric):
    def __init__(self, name="largest", **kwargs):
        super().__init__(name=name, **kwargs)
        self.largest = self.add_weight(name="largest", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.largest.assign(ops.maximum(self.largest, ops.max(ops.abs(y_true - y_pred))))

    def result(self):
        return self.largest.value


@register
class IgnoresWeights(Counting):
    def update_state(self, y_true, y_pred, sample_weight=None):
        errors = ops.mean(ops.abs(y_true - y_pred), axis=-1)
        self.total.assign_add(ops.sum(errors))
        self.count.assign_add(ops.cast(ops.size(errors), "float32"))


@register
class WeighsTheSumAlone(Counting):
    def update_state(self, y_true, y_pred, sample_weight=None):
        errors = ops.mean(ops.abs(y_true - y_pred), axis=-1)
        weighted = errors if sample_weight is None else errors * sample_weight
        self.total.assign_add(ops.sum(weighted))
        self.count.assign_add(ops.cast(ops.size(errors), "float32"))


@register
class RefusesWeights(Counting):
    def update_state(self, y_true, y_pred):
        errors = ops.mean(ops.abs(y_true - y_pred), axis=-1)
        self.total.assign_add(ops.sum(errors))
        self.count.assign_add(ops.cast(ops.size(errors), "float32"))


@register
class NothingByNothing(MeanOfAll):
    def result(self):
        return self.total / self.count


@register
class ResetsWhenAsked(MeanOfAll):
    def result(self):
        value = super().result() + 0.0
        self.total.assign(0.0)
        return value


@register
class MadeAtTheFirstUpdate(keras.metrics.Metric):
    def __init__(self, name="late", **kwargs):
        super().__init__(name=name, **kwargs)
        self.value = None

    def update_state(self, y_true, y_pred, sample_weight=None):
        if self.value is None:
            self.value = self.add_weight(name="value", initializer="zeros")
        self.value.assign_add(ops.sum(y_pred))

    def reset_state(self):
        if self.value is not None:
            self.value.assign(0.0)

    def result(self):
        return self.value * 1.0


@register
class MergesByAveraging(MeanOfAll):
    def merge_state(self, metrics):
        for metric in metrics:
            self.total.assign((self.total + metric.total) / 2)


@register
class MergesByAdding(MeanOfAll):
    def merge_state(self, metrics):
        for metric in metrics:
            self.total.assign_add(metric.total)
            self.count.assign_add(metric.count)


@register
class MergesOneOnly(MeanOfAll):
    def merge_state(self, metrics):
        self.total.assign_add(metrics[0].total)


@register
class MergesNothing(MeanOfAll):
    def merge_state(self, metrics):
        pass


@register
class GivesItsVariable(Counting):
    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(ops.sum(y_pred))

    def result(self):
        return self.total


@register
class GivesItsValue(GivesItsVariable):
    def result(self):
        return self.total.value


@register
class GivesAVariableInADict(GivesItsVariable):
    def result(self):
        return {"total": self.total}


@register
class GivesValuesInADict(GivesItsVariable):
    def result(self):
        return {"total": self.total.value, "count": self.count.value}


@register
class GivesTheLargest(LargestInAVariable):
    def result(self):
        return self.largest


@register
class RunningMean(keras.metrics.Metric):
    def __init__(self, name="running", **kwargs):
        super().__init__(name=name, **kwargs)
        self.mean = self.add_weight(name="mean", initializer="zeros")
        self.count = self.add_weight(name="count", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        errors = ops.mean(ops.abs(y_true - y_pred), axis=-1)
        count = self.count + ops.cast(ops.size(errors), "float32")
        self.mean.assign((self.mean * self.count + ops.sum(errors)) / count)
        self.count.assign(count)

    def result(self):
        return self.mean.value


@register
class SmallestFromTen(keras.metrics.Metric):
    def __init__(self, name="smallest", **kwargs):
        super().__init__(name=name, **kwargs)
        self.smallest = self.add_weight(name="smallest", initializer=keras.initializers.Constant(10.0))

    def reset_state(self):
        self.smallest.assign(10.0)

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.smallest.assign(ops.minimum(self.smallest, ops.min(ops.abs(y_true - y_pred))))

    def result(self):
        return self.smallest.value


@register
class KeepsItsBest(MeanOfAll):
    """A dict, of which reset_state forgets an entry; many samples have the same best value."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.best = self.add_variable((), initializer="zeros", name="best")

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(y_true, y_pred, sample_weight)
        self.best.assign(ops.maximum(self.best, ops.max(ops.cast(ops.min(ops.abs(y_true - y_pred), axis=-1) > 0.5, "float32"))))

    def result(self):
        return {"mean": super().result(), "best": self.best + 0.0}

    def reset_state(self):
        for variable in self.variables:
            if variable is not self.best:
                variable.assign(ops.zeros(variable.shape))


@register
class ResetsItsBest(KeepsItsBest):
    def reset_state(self):
        keras.metrics.Metric.reset_state(self)


PAIRS = [
    ("M502", KeepsItsBest, ResetsItsBest),
    ("M501", MeanOfMeans, MeanOfAll),
    ("M501", RootOfEachBatch, root_of_all),
    ("M501", LastBatchOnly, MeanOfAll),
    ("M502", KeepsAList, MeanOfAll),
    ("M502", ResetsHalf, MeanOfAll),
    ("M502", ResetsByOldName, LargestInAVariable),
    ("M503", IgnoresWeights, MeanOfAll),
    ("M503", WeighsTheSumAlone, MeanOfAll),
    ("M503", RefusesWeights, root_of_all),
    ("M504", NothingByNothing, MeanOfAll),
    ("M504", ResetsWhenAsked, MeanOfAll),
    ("M504", MadeAtTheFirstUpdate, LargestInAVariable),
    ("M505", MergesByAveraging, MergesByAdding),
    ("M505", MergesOneOnly, MergesByAdding),
    ("M505", MergesNothing, MergesByAdding),
    ("M506", GivesItsVariable, GivesItsValue),
    ("M506", GivesAVariableInADict, GivesValuesInADict),
    ("M506", GivesTheLargest, LargestInAVariable),
    ("M507", RunningMean, MeanOfAll),
    ("M507", LargestInAVariable, MeanOfAll),
    ("M507", SmallestFromTen, MeanOfAll),
]

"""Accumulation: several batches, and then one update, the one that a single large batch would have given.

The optimizer is not told. It is handed one gradient an update, so that its schedule, its average of the weights, its decay,
its clipping and its count see updates and nothing else. Keras's own accumulation lets some of them see the small batches.

What the gradient of the large batch is depends on what each loss divides by. A mean over the batch is weighted by samples, a
mean over what a mask lets pass by how much that is, a mean by weights by their sum; a sum is not divided. Losses that divide
by the same are one group, with a sum for each variable and a divisor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from kustom.backends import keras as private
from kustom.errors import SettingError

__all__ = ["SIZE", "Accumulation", "divisor", "take_over"]

# The group of the losses that are means over the samples of a batch; regularizers are the same in every batch.
SIZE = "samples"
_SUM = "sum"
# Where an optimizer whose accumulation was taken over says how many batches it was set to.
_TAKEN = "_kustom_accumulation"


def divisor(place: int, loss: Any, y_pred: Any, sample_weight: Any, samples: Any) -> tuple[Any, Any]:
    """The group of a loss, and what it divides by in this batch.

    Args:
        place: The number of the loss among all.
        loss: The loss.
        y_pred: What it was given, with its mask.
        sample_weight: What it was given.
        samples: The number of samples.
    """
    reduction, mask = getattr(loss, "reduction", "mean"), private.get_keras_mask(y_pred)
    if reduction in ("sum", "none", None):
        return _SUM, ops.ones((), "float32")
    if reduction != "mean_with_sample_weight":
        sample_weight = None
    if mask is None and sample_weight is None:
        return SIZE, samples
    weights = [ops.cast(each, "float32") for each in (mask, sample_weight) if each is not None]
    if len(weights) == 2 and len(weights[0].shape) != len(weights[1].shape):
        few, many = sorted(weights, key=lambda each: len(each.shape))
        weights = [ops.reshape(few, (*few.shape, *[1] * (len(many.shape) - len(few.shape)))), many]
    return (place, "weights"), ops.sum(weights[0] * weights[1] if len(weights) == 2 else weights[0])


def take_over(optimizer: Any) -> int | None:
    """How many batches an optimizer is set to accumulate, or None; from now on it does not do so itself.

    Raises:
        SettingError: It has begun to accumulate by itself, or holds optimizers that do so differently.
    """
    holders = private.steppers_of(optimizer)
    steps = {getattr(each, _TAKEN, None) or each.gradient_accumulation_steps or None for each in holders}
    if len(steps) > 1:
        raise SettingError(
            f"the optimizers in {optimizer.name!r} accumulate over different numbers of batches, {sorted(map(str, steps))}; give "
            "all of them the same gradient_accumulation_steps."
        )
    for each in holders:
        if each.gradient_accumulation_steps:
            if private.count_of(each):
                raise SettingError(
                    f"{each.name!r} has accumulated by itself, and counts batches in place of updates. Give an optimizer that has "
                    "not been used."
                )
            setattr(each, _TAKEN, each.gradient_accumulation_steps)
            each.gradient_accumulation_steps = None
    return next(iter(steps), None)


class Accumulation:
    """The gradients of some batches, added up.

    Args:
        steps: After how many batches they are applied.
        apply: Is given the gradients and the variables when they are.
    """

    def __init__(self, steps: int, apply: Callable[[list[Any], list[keras.Variable]], None]) -> None:
        self.steps = steps
        self._apply = apply
        self._count = keras.Variable(0, dtype="int32", trainable=False, name="accumulated_batches")
        self._divisors: dict[Any, keras.Variable] = {}
        # By group and the id of the variable, which is kept beside.
        self._sums: dict[tuple[Any, int], tuple[keras.Variable, keras.Variable]] = {}

    def add(self, group: Any, gradients: Sequence[Any], variables: Sequence[keras.Variable], amount: Any) -> None:
        """Add a batch's gradients of the losses of a group, which divide by `amount` in this batch."""
        amount = ops.cast(amount, "float32")
        if group not in self._divisors:
            self._divisors[group] = keras.Variable(0.0, dtype="float32", trainable=False, name="accumulated_amount")
        self._divisors[group].assign_add(amount)
        for gradient, variable in zip(gradients, variables, strict=True):
            if gradient is not None:
                total = self._sum(group, variable)
                total.assign_add(ops.cast(gradient, total.dtype) * ops.cast(amount, total.dtype))

    def _sum(self, group: Any, variable: keras.Variable) -> keras.Variable:
        key = (group, id(variable))
        if key not in self._sums:
            kind = "float64" if variable.dtype == "float64" else "float32"
            total = keras.Variable(keras.initializers.Zeros(), variable.shape, kind, trainable=False, name=f"{variable.name}_sum")
            self._sums[key] = (variable, total)
        return self._sums[key][1]

    def count(self, variables: list[keras.Variable]) -> None:
        """A batch has been added: with the last of its number, apply them."""
        self._count.assign_add(1)
        ops.cond(ops.greater_equal(self._count, self.steps), lambda: self._update(variables), lambda: None)

    def rest(self, variables: list[keras.Variable]) -> None:
        """Apply what has been added since the last time, if anything has."""
        if self._divisors:
            ops.cond(ops.greater(self._count, 0), lambda: self._update(variables), lambda: None)

    def _update(self, variables: list[keras.Variable]) -> None:
        self._apply([self._mean(variable) for variable in variables], variables)
        self.clear()

    def clear(self) -> None:
        """Forget what has been added since the last time."""
        for state in (self._count, *self._divisors.values(), *(total for _, total in self._sums.values())):
            state.assign(ops.zeros(state.shape, state.dtype))

    def _mean(self, variable: keras.Variable) -> Any:
        parts = []
        for group, amount in self._divisors.items():
            if (group, id(variable)) in self._sums:
                total = self._sums[group, id(variable)][1]
                parts.append(total.value if group == _SUM else ops.divide_no_nan(total, ops.cast(amount, total.dtype)))
        return ops.cast(sum(parts[1:], parts[0]), variable.dtype) if parts else None

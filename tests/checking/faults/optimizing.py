"""Faults of optimizers: what their steps do, on each backend, compiled, and by the settings that they have."""

from __future__ import annotations

import keras
from keras import ops

register = keras.saving.register_keras_serializable(package="faults")


@register
class TrustsItsLayer(keras.optimizers.Optimizer):
    """The step of each weight is as long as the weight is."""

    def __init__(self, learning_rate=0.1, trust=0.01, name="trusts", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.trust = trust

    def ratio(self, gradient, variable):
        of_weight, of_slope = ops.norm(variable), ops.norm(gradient)
        known = ops.logical_and(of_weight > 0, of_slope > 0)
        return ops.where(known, self.trust * of_weight / (of_slope + 1e-12), 1.0)

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, rate * self.ratio(gradient, variable) * gradient)

    def get_config(self):
        return {**super().get_config(), "trust": self.trust}


@register
class TrustsIfItCan(TrustsItsLayer):
    def ratio(self, gradient, variable):
        of_weight, of_slope = ops.norm(variable), ops.norm(gradient)
        if of_weight > 0 and of_slope > 0:
            return self.trust * of_weight / of_slope
        return 1.0


@register
class CyclesItsMomentum(keras.optimizers.Optimizer):
    def __init__(self, learning_rate=0.01, period=4, name="cycles", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.period = period

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self._momenta = self.add_optimizer_variables(variables, "momentum")

    def momentum(self):
        share = ops.cast(self.iterations % self.period, "float32") / self.period
        return 0.85 + 0.1 * ops.abs(2 * share - 1)

    def update_step(self, gradient, variable, learning_rate):
        velocity = self._momenta[self._get_variable_index(variable)]
        self.assign(velocity, self.momentum() * velocity + gradient)
        self.assign_sub(variable, learning_rate * velocity)

    def get_config(self):
        return {**super().get_config(), "period": self.period}


@register
class CyclesInPython(CyclesItsMomentum):
    def __init__(self, learning_rate=0.01, period=4, name="cycles", **kwargs):
        super().__init__(learning_rate, period, name, **kwargs)
        self._step = 0

    def momentum(self):
        self._step += 1
        return 0.85 + 0.1 * abs(2 * (self._step % self.period) / self.period - 1)


@register
class StepsByTheRateGiven(keras.optimizers.Optimizer):
    def __init__(self, learning_rate=0.01, name="steps", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, learning_rate * gradient)


@register
class StepsByTheFirstRate(StepsByTheRateGiven):
    def __init__(self, learning_rate=0.01, name="steps", **kwargs):
        super().__init__(learning_rate, name, **kwargs)
        self.rate = learning_rate

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, self.rate * gradient)


@register
class ReturnsItsStep(StepsByTheRateGiven):
    def update_step(self, gradient, variable, learning_rate):
        return variable - learning_rate * gradient


@register
class ClimbsItsGradient(StepsByTheRateGiven):
    def update_step(self, gradient, variable, learning_rate):
        self.assign_add(variable, learning_rate * gradient)


def halving():
    return keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5)


@register
class SavesItsSchedule(StepsByTheRateGiven):
    __kustom__ = {"examples": [{"settings": {"learning_rate": halving()}}]}  # noqa: RUF012


@register
class SavesItsRateOfNow(SavesItsSchedule):
    def get_config(self):
        return {"name": self.name, "learning_rate": float(ops.convert_to_numpy(self.learning_rate))}


@register
class CentersInApply(keras.optimizers.SGD):
    """Gradients without their mean, as in gradient centralization."""

    def apply(self, grads, trainable_variables=None):
        return super().apply([g - ops.mean(g, axis=0, keepdims=True) for g in grads], trainable_variables)


@register
class CentersInApplyGradients(keras.optimizers.SGD):
    def apply_gradients(self, grads_and_vars):
        return super().apply_gradients([(g - ops.mean(g, axis=0, keepdims=True), v) for g, v in grads_and_vars])


PAIRS = [
    ("T404", TrustsIfItCan, TrustsItsLayer),
    ("T404", CyclesInPython, CyclesItsMomentum),
    ("T406", StepsByTheFirstRate, StepsByTheRateGiven),
    ("T406", ReturnsItsStep, StepsByTheRateGiven),
    ("T406", ClimbsItsGradient, StepsByTheRateGiven),
    ("C102", SavesItsRateOfNow, SavesItsSchedule),
    ("B602", CentersInApplyGradients, CentersInApply),
]

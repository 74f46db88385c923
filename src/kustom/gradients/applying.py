"""What is asked of an optimizer that is applied in a step of ours: that it is right, or an error, before anything is written.

An optimizer that scales the loss divides the gradients by the scale, so a loss that did not pass through its `scale_loss`
gives updates that are that much too small, and nobody sees it. Whether it passed is told where it is differentiated, by the
backend's own gradients, too: what `scale_loss` returns tells it. A gradient of a tape of ours is known by itself.

It is refused what is known to be wrong, and no more. Gradients that come from elsewhere (another step, a compiled function)
are not judged; nor are those of who has read the scale, or scales gradients in place of a loss.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import keras

from kustom.backends import current
from kustom.backends import keras as private
from kustom.errors import LossScaleError, OptimizerError

__all__ = ["Passed", "applying", "gradients_of", "unseen"]


class Passed(weakref.WeakSet[Any]):
    """The optimizers whose scaled loss a step has differentiated, once in any of its runs."""


class _Scaled:
    """What is known of an optimizer's `scale_loss` in a step.

    Attributes:
        differentiated: What it returned has been.
        tensors: It was given tensors with axes, such as gradients.
        results: What it returned.
    """

    def __init__(self) -> None:
        self.differentiated = False
        self.tensors = False
        self.results: list[Any] = []


class _Step:
    """What has happened in a run of a step until now."""

    def __init__(self, passed: Passed) -> None:
        self.passed = passed
        self.scaled: dict[int, _Scaled] = {}
        self.read: set[int] = set()
        # By the id of a gradient of a tape of ours: itself, and the optimizers whose scaled loss it is of.
        self.gradients: dict[int, tuple[Any, frozenset[int]]] = {}
        # Whether gradients may have been made where nothing of it was seen.
        self.unseen = False

    def of(self, optimizer: Any) -> _Scaled:
        return self.scaled.setdefault(id(optimizer), _Scaled())

    def known(self, gradient: Any) -> frozenset[int] | None:
        of, by = self.gradients.get(id(gradient), (None, None))
        return by if of is not None and of() is gradient else None


class _Thread(threading.local):
    def __init__(self) -> None:
        self.steps: list[_Step] = []
        # The gradients that are being computed, each with the optimizers that were told of meanwhile.
        self.asked: list[set[int]] = []
        # How many of an optimizer's own methods are being run.
        self.inside = 0


_thread = _Thread()


@contextmanager
def applying(passed: Passed) -> Iterator[None]:
    """Inside, in this thread, optimizers that are applied are asked.

    Args:
        passed: Of the step that is run; kept from one run of it to the next.
    """
    step = _Step(passed)

    def note(variable: keras.Variable, value: Any) -> Any:
        if not _thread.inside:
            step.read.add(id(variable))
        return value

    with ExitStack() as stack:
        for exchange in _exchanges:
            stack.enter_context(exchange)
        _thread.steps.append(step)
        stack.callback(_thread.steps.pop)
        private.listen(note)
        stack.callback(private.unlisten, note)
        yield


def unseen() -> None:
    """Something is run that was compiled before, so that what it differentiates is not seen."""
    for step in _thread.steps:
        step.unseen = True


@contextmanager
def gradients_of(found: list[Any], *, weighed: bool) -> Iterator[None]:
    """Inside, a tape computes gradients and puts them into `found`.

    Args:
        found: Filled inside.
        weighed: They are not of the target as it is, but with weights, which may be scaled.
    """
    if not _thread.steps:
        yield
        return
    _thread.asked.append(set())
    try:
        yield
    finally:
        by = frozenset(_thread.asked.pop())
    for step in _thread.steps:
        step.unseen = step.unseen or weighed
        for gradient in found if not weighed else ():
            if gradient is not None:
                step.gradients[id(gradient)] = (weakref.ref(gradient), by)


class _Note:
    """Tells, where the loss that an optimizer has scaled is differentiated, that it is."""

    def __init__(self, optimizer: Any, steps: list[_Step]) -> None:
        self._optimizer = weakref.ref(optimizer)
        # The program of a step keeps this; the step it does not keep.
        self._steps = [weakref.ref(step) for step in steps]

    def __call__(self) -> None:
        optimizer = self._optimizer()
        if optimizer is None:
            return
        for asked in _thread.asked:
            asked.add(id(optimizer))
        for step in self._steps:
            if (known := step()) is not None:
                known.of(optimizer).differentiated = True


def _scales(optimizer: Any) -> bool:
    """Whether it divides gradients by a scale that Keras's own `scale_loss` has multiplied the loss by."""
    if not private.is_library(type(optimizer).scale_loss.__module__):
        return False
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or optimizer.loss_scale_factor is not None


def _scale_loss(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def scale_loss(self: Any, loss: Any) -> Any:
        steps = list(_thread.steps)
        if not steps or not _scales(self):
            return plain(self, loss)
        _thread.inside += 1
        try:
            loss = plain(self, loss)
        finally:
            _thread.inside -= 1
        loss = current("tapes").noticed(loss, _Note(self, steps))
        for step in steps:
            scaled = step.of(self)
            scaled.results.append(loss)
            scaled.tensors = scaled.tensors or bool(tuple(loss.shape))
        return loss

    return scale_loss


def _apply(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        if not _thread.steps or _thread.inside:
            return plain(self, grads, trainable_variables)
        grads = list(grads)
        variables = None if trainable_variables is None else list(trainable_variables)
        _thread.inside += 1
        try:
            _refuse_strangers(self, variables)
            if _scales(self):
                _refuse_unscaled(self, grads, private.trained_by(self) if variables is None else variables)
            return plain(self, grads, variables)
        finally:
            _thread.inside -= 1

    return apply


def _refuse_unscaled(optimizer: Any, grads: list[Any], variables: list[Any]) -> None:
    step = _thread.steps[-1]
    scaled = step.of(optimizer)
    if step.unseen or scaled.tensors or id(getattr(optimizer, "dynamic_scale", None)) in step.read:
        return
    known = [by for by in map(step.known, grads) if by is not None]
    if all(id(optimizer) in by for by in known):
        if scaled.differentiated or optimizer in step.passed:
            step.passed.add(optimizer)
            return
        if any(result is gradient for result in scaled.results for gradient in grads):
            return
        if not scaled.results and not any(id(variable) in step.read for variable in variables):
            # Nothing was computed with the variables here.
            return
    how = "was scaled, but it is not what was differentiated" if scaled.results else "did not pass through its scale_loss"
    raise LossScaleError(
        f"{type(optimizer).__name__} {optimizer.name!r} divides gradients by a scale, and was applied to gradients of a loss that "
        f"{how}: the update would be too small by that scale. Differentiate {optimizer.name}.scale_loss(loss), or leave the step "
        "to kustom.Supervised."
    )


def _refuse_strangers(optimizer: Any, variables: list[Any] | None) -> None:
    if variables is None or not optimizer.built or not variables:
        return
    unknown = private.unknown_to(optimizer, variables)
    if unknown:
        raise OptimizerError(
            f"{type(optimizer).__name__} {optimizer.name!r} is applied to {_names(unknown)}, and was built for other variables: "
            f"{_names(private.trained_by(optimizer))}. Build it for all that it will ever train, before its first step: "
            "optimizer.build(model.trainable_variables); or take one for each part."
        )
    own = private.trained_by(optimizer)
    if private.is_multi(optimizer) and len({id(v) for v in variables}) != len(own):
        given = {id(v) for v in variables}
        raise OptimizerError(
            f"MultiOptimizer {optimizer.name!r} is applied to {len(variables)} of its {len(own)} variables, without "
            f"{_names([v for v in own if id(v) not in given])}; it takes all of them at once. To train a part, apply the optimizer "
            "of that part, or give None as the gradient of single variables."
        )


def _names(variables: list[Any]) -> str:
    names = [getattr(variable, "path", str(variable)) for variable in variables]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


_exchanges = [
    private.Exchange(owner, name, other)
    for owner in (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer, *private.MULTI)
    for name, other in (("apply", _apply), ("scale_loss", _scale_loss))
    if owner is keras.optimizers.Optimizer or name in vars(owner)
]

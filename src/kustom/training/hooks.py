"""Keras's callbacks around a loop: in order, in this thread, with a model where there is one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from kustom.backends import keras as private
from kustom.errors import CallbackError

__all__ = ["Hooks"]

_BY_BATCH = {
    "train": ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end"),
    "test": ("on_test_batch_begin", "on_test_batch_end"),
}
# Keras's own that are about the model's optimizer.
_TURN_THE_OPTIMIZER = (
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.SwapEMAWeights,
)
# Those that do nothing without a model.
_NEED_A_MODEL = (
    *_TURN_THE_OPTIMIZER,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.BackupAndRestore,
    keras.callbacks.TensorBoard,
)
# Stands where a model has no such attribute.
_NOTHING: Any = object()


class Hooks:
    """The callbacks of one run.

    Args:
        callbacks: A callback, or a structure of them, or None.
        model: The model that they are about, or None.
        params: What they are told of the run.

    Raises:
        CallbackError: One is no callback, or needs a model and there is none.
    """

    def __init__(self, callbacks: Any, model: keras.Model | None, params: dict[str, Any]) -> None:
        self.all = [c for c in keras.tree.flatten(callbacks) if c is not None] if callbacks is not None else []
        for callback in self.all:
            if not isinstance(callback, keras.callbacks.Callback):
                raise CallbackError(f"callbacks holds {type(callback).__name__}; expected keras.callbacks.Callback objects.")
            if model is None and _needs_a_model(callback):
                raise CallbackError(
                    f"{type(callback).__name__} needs a model, and the step trains none or several. Say which: "
                    "kustom.Loop(step, model=model)."
                )
        self._subject: Any = _NoModel() if model is None else model
        self._lent, self._before = False, _NOTHING
        for callback in self.all:
            callback.set_params(params)
            callback.set_model(self._subject)

    def lend_optimizer(self, reached: list[Any], touched: Iterable[keras.Variable]) -> None:
        """Give a model the step's optimizer, until `give_back`: callbacks look for it there.

        Args:
            reached: The optimizers that the step reaches.
            touched: The variables that the step touches; none where it has not run yet.

        Raises:
            CallbackError: The model has another than the step applies, or none, and a callback is about it.
        """
        ids = {id(variable) for variable in touched}
        used = [o for o in reached if not ids or any(id(variable) in ids for variable in o.variables)]
        own = getattr(self._subject, "optimizer", None)
        if any(o is own for o in used) or not isinstance(own, keras.optimizers.Optimizer | None):
            return
        inner = {id(each) for o in used for each in (getattr(o, "inner_optimizer", None), *getattr(o, "optimizers", ()))}
        outer = [o for o in used if id(o) not in inner]
        if len(outer) == 1:
            self._before = vars(self._subject).get("optimizer", _NOTHING)
            self._lent = True
            self._subject.optimizer = outer[0]
            return
        for callback in self.all:
            if isinstance(callback, _TURN_THE_OPTIMIZER):
                held = "no optimizer" if own is None else f"the optimizer {own.name!r}, which the step does not apply"
                applied = ", ".join(repr(o.name) for o in outer) or "none"
                raise CallbackError(
                    f"{type(callback).__name__} sets what the optimizer of its model has, and the model has {held}; the step "
                    f"applies {applied}. Set it in a callback of your own: optimizer.learning_rate = ..."
                )

    def give_back(self) -> None:
        """Give the model the optimizer that it had, or none."""
        if not self._lent:
            return
        self._lent = False
        if self._before is _NOTHING:
            del self._subject.optimizer
        else:
            self._subject.optimizer = self._before

    def begin(self) -> int:
        """Training begins; returns with which epoch, where a callback has found the first ones done."""
        self._subject.stop_training = False
        self.call("on_train_begin")
        return 0 if isinstance(self._subject, _NoModel) else private.resumed_at(self._subject)

    @property
    def stop(self) -> bool:
        """Whether a callback has asked for the end of the training."""
        return bool(self._subject.stop_training)

    def direct(self, metrics: Mapping[str, keras.metrics.Metric]) -> None:
        """Tell the callbacks that monitor one of these metrics which way it gets better: the model knows none of them."""
        for callback in self.all:
            private.direct(callback, metrics)

    def by_batch(self, kind: str) -> bool:
        """Whether a callback looks at each batch."""
        return any(_looks(callback, _BY_BATCH[kind]) for callback in self.all)

    def call(self, name: str, *args: Any) -> None:
        """Call a hook of all callbacks; as in Keras, one of a beginning is given an empty dict where others are given values."""
        if name.endswith("_begin"):
            args = (*args, {})
        for callback in self.all:
            getattr(callback, name)(*args)


def _looks(callback: keras.callbacks.Callback, names: Iterable[str]) -> bool:
    if isinstance(callback, keras.callbacks.ModelCheckpoint) and callback.save_freq == "epoch":
        return False
    return not all(private.is_default(getattr(callback, name)) for name in names)


def _needs_a_model(callback: keras.callbacks.Callback) -> bool:
    if isinstance(callback, keras.callbacks.EarlyStopping):
        return callback.restore_best_weights
    return isinstance(callback, _NEED_A_MODEL)


class _NoModel:
    """Stands where there is no model: training can be stopped, and everything else says what is missing."""

    stop_training = False
    # Where a callback looks for the direction of what it monitors.
    metrics: tuple[Any, ...] = ()

    def jax_state_sync(self) -> None:
        """A callback that asks for its model has Keras ask for this on JAX."""

    def __getattr__(self, name: str) -> Any:
        raise CallbackError(
            f"a callback asked its model for {name!r}, and the step trains none or several. Say which: "
            "kustom.Loop(step, model=model)."
        )

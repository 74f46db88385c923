"""How a part's class is called: what kustom adds to the methods that the author wrote, kind by kind.

A loss gets what a decorated one gets. A metric's `result` is a tensor; a regularizer, constraint or initializer is handed
tensors, and its result is looked at. How layers and models are built is told in `building`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kustom.backends import keras as private
from kustom.defining import building, data
from kustom.defining.kinds import CheckedLoss, folded_seeds
from kustom.errors import ShapeError, hide_frames

__all__ = ["install"]


def install(cls: Any) -> None:
    """Wrap the methods of a part's class."""
    if issubclass(cls, keras.losses.Loss):
        if cls.__call__ is keras.losses.Loss.__call__:
            setattr(cls, "__call__", CheckedLoss.__call__)  # noqa: B010  (a type checker holds the two for strangers)
    elif issubclass(cls, keras.metrics.Metric):
        _wrap(cls, "update_state", _metric_update)
        _wrap(cls, "result", _metric_result)
    elif issubclass(cls, keras.regularizers.Regularizer):
        _wrap(cls, "__call__", _regularizer_call)
    elif issubclass(cls, keras.constraints.Constraint):
        _wrap(cls, "__call__", _constraint_call)
    elif issubclass(cls, keras.initializers.Initializer):
        _wrap(cls, "__call__", _initializer_call)
    elif issubclass(cls, keras.layers.Layer):
        building.install(cls)


def _wrap(cls: Any, name: str, wrapper: Callable[[Any, Callable[..., Any]], Callable[..., Any]]) -> None:
    written = vars(cls).get(name)
    if written is not None:
        setattr(cls, name, hide_frames(functools.wraps(written)(wrapper(cls, written))))


def _metric_update(cls: Any, written: Callable[..., Any]) -> Callable[..., Any]:
    names = [*inspect.signature(written).parameters][1:]
    takes_pair, takes_weight = names[:2] == ["y_true", "y_pred"], "sample_weight" in names

    def update_state(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not takes_pair:
            return written(self, *args, **kwargs)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        y_true, y_pred, weight = given.pop("y_true"), given.pop("y_pred"), given.pop("sample_weight", None)
        if isinstance(y_true, dict) or isinstance(y_pred, dict):
            return written(self, y_true, y_pred, **given, **({"sample_weight": weight} if takes_weight else {}))
        pair = data.pair(y_true, y_pred, weight, self.dtype, self.name)
        if takes_weight:
            given["sample_weight"] = _merged(pair)
        inputs = {"y_true": pair.y_true, "y_pred": pair.y_pred}

        def updated(y_true: Any, y_pred: Any) -> Any:
            written(self, y_true, y_pred)
            return y_pred

        data.refuse_broadcast(updated, pair.y_true, pair.y_pred, self.name)
        return data.call(lambda *two, **named: written(self, *two, **named), self.name, inputs, given)

    return update_state


def _merged(pair: data.Pair) -> Any:
    """Sample weight and mask together: what is masked weighs 0."""
    if pair.mask is None:
        return pair.sample_weight
    mask = ops.cast(pair.mask, pair.y_pred.dtype)
    if pair.sample_weight is None:
        return mask
    rank = max(len(mask.shape), len(pair.sample_weight.shape))
    return ops.multiply(data.expand(pair.sample_weight, rank), data.expand(mask, rank))


def _metric_result(cls: Any, written: Callable[..., Any]) -> Callable[..., Any]:
    def result(self: Any) -> Any:
        # On JAX a compiled function cannot return a Variable.
        return keras.tree.map_structure(
            lambda x: ops.copy(x.value) if isinstance(x, keras.Variable) else ops.convert_to_tensor(x), written(self)
        )

    return result


def _regularizer_call(cls: Any, written: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Any, x: Any) -> Any:
        penalty = written(self, data.tensor(x))
        if len(getattr(penalty, "shape", ())) != 0:
            raise ShapeError(f"{cls.__name__} returned the shape {tuple(penalty.shape)}; a regularizer returns one number: sum it.")
        return penalty

    return __call__


def _constraint_call(cls: Any, written: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Any, w: Any) -> Any:
        w = data.tensor(w)
        projected = data.tensor(written(self, w))
        if tuple(projected.shape) != tuple(w.shape):
            raise ShapeError(
                f"{cls.__name__} was given weights of the shape {tuple(w.shape)} and returned {tuple(projected.shape)}; "
                "a constraint returns the shape that it is given."
            )
        return ops.cast(projected, private.standardize_dtype(w.dtype))

    return __call__


def _initializer_call(cls: Any, written: Callable[..., Any]) -> Callable[..., Any]:
    """Fold the number of the draw into the part's `seed` for the time of the draw."""

    def __call__(self: Any, shape: Any, dtype: Any = None, **kwargs: Any) -> Any:
        draw = vars(self).get("_kustom_draws", 0)
        object.__setattr__(self, "_kustom_draws", draw + 1)
        with folded_seeds([self, *vars(self).values()], draw):
            values = data.tensor(written(self, tuple(shape), dtype, **kwargs))
        if tuple(values.shape) != tuple(shape):
            raise ShapeError(f"{cls.__name__} was asked for the shape {tuple(shape)} and returned {tuple(values.shape)}.")
        return ops.cast(values, private.standardize_dtype(dtype or keras.config.floatx()))

    return __call__

"""How a part's class is called: what kustom adds to the methods that the author wrote, kind by kind.

A loss gets what a decorated one gets. A metric's `result` is a tensor; a regularizer, constraint or initializer is handed
tensors, and its result is looked at. How layers and models are built is told in `building`.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kustom.backends import keras as private
from kustom.defining import building, data
from kustom.defining.kinds import CheckedLoss, folded_seeds
from kustom.errors import DefinitionError, ShapeError, hide_frames

__all__ = ["install"]

# Where a metric keeps which shape of weights its values take.
_FORMS = "_kustom_weight_forms"


def install(cls: Any) -> None:
    """Wrap the methods of a part's class."""
    if issubclass(cls, keras.losses.Loss):
        if cls.__call__ is keras.losses.Loss.__call__:
            setattr(cls, "__call__", CheckedLoss.__call__)  # noqa: B010  (a type checker holds the two for strangers)
    elif issubclass(cls, keras.metrics.Metric):
        inherited = _inherited_update(cls)
        if inherited is not None:
            setattr(cls, "update_state", inherited)  # noqa: B010  (a type checker holds the two for strangers)
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


def _inherited_update(cls: Any) -> Callable[..., Any] | None:
    """The `update_state` of a base that aligns nothing itself: a user's own, or that of Keras's wrapper of a function."""
    owner = next(base for base in cls.__mro__ if "update_state" in vars(base))
    if owner is cls or "_kustom_own_fields" in vars(owner):
        return None
    if owner is not keras.metrics.MeanMetricWrapper and owner.__module__.split(".")[0] in ("keras", "kustom"):
        return None
    return vars(owner)["update_state"]


def _metric_update(cls: Any, written: Callable[..., Any]) -> Callable[..., Any]:
    parameters = [*inspect.signature(written).parameters.values()][1:]
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [p.name for p in by_position]
    takes_weight = any(p.name == "sample_weight" or p.kind is p.VAR_KEYWORD for p in parameters)
    takes_pair = "sample_weight" not in names[:2] and [p.default for p in by_position[:2]] == [inspect.Parameter.empty] * 2
    if "sample_weight" not in names:
        # Keras gives it by position.
        names.append("sample_weight")

    def update_state(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if not takes_pair or len(args) > len(names) or not {*names[:2]} <= given.keys():
            return written(self, *args, **kwargs)
        y_true, y_pred, weight = given.pop(names[0]), given.pop(names[1]), given.pop("sample_weight", None)
        if isinstance(y_true, dict) or isinstance(y_pred, dict):
            if weight is not None and not takes_weight:
                _refuse_weights(cls, "sample_weight")
            return written(self, y_true, y_pred, **given, **({} if weight is None else {"sample_weight": weight}))
        pair = data.pair(y_true, y_pred, weight, self.dtype, self.name)
        if not takes_weight and (pair.sample_weight is not None or pair.mask is not None):
            _refuse_weights(cls, "a mask" if pair.sample_weight is None else "sample_weight")
        tried = _tried(self, written, given)
        data.refuse_broadcast(tried, pair.y_true, pair.y_pred, self.name)
        weight = _merged(pair)
        if weight is not None:
            given["sample_weight"] = _in_form(self, tried, pair, weight)
        inputs = {names[0]: pair.y_true, names[1]: pair.y_pred}
        return data.call(lambda *two, **named: written(self, *two, **named), self.name, inputs, given)

    return update_state


def _refuse_weights(cls: Any, what: str) -> None:
    raise DefinitionError(
        f"{cls.__name__}.update_state was given {what}, and takes no sample_weight: what does not count would be counted. Add the "
        "argument sample_weight=None, and weigh the values by it; what is masked weighs 0."
    )


def _tried(self: Any, written: Callable[..., Any], given: dict[str, Any]) -> Callable[..., Any]:
    """The author's `update_state`, for shapes alone: what it does to the metric is undone."""

    def tried(y_true: Any, y_pred: Any, weight: Any = None) -> Any:
        before = dict(vars(self))
        # While Keras's JAX step runs, its variables have given their values away.
        state = [(variable, ops.zeros(variable.shape, dtype=variable.dtype)) for variable in self.variables]
        try:
            with keras.StatelessScope(state_mapping=state):
                written(self, y_true, y_pred, **given, **({} if weight is None else {"sample_weight": weight}))
        finally:
            vars(self).clear()
            vars(self).update(before)
        return y_pred

    return tried


def _in_form(self: Any, tried: Callable[..., Any], pair: data.Pair, weight: Any) -> Any:
    """The weights in a shape by which the author's values can be multiplied, without each weight meeting every value.

    Weights `(n,)` pick samples from values `(n,)`; with values `(n, 1)` they would be an outer product, in silence. Which
    values the author has nobody can see, so that it is tried, symbolically, with other lengths, where it would fail.

    Raises:
        ShapeError: There is no such shape.
    """
    if not self.variables:
        # They are made in the first update, with the shapes that they have there.
        return weight
    key = (tuple(pair.y_true.shape)[1:], tuple(pair.y_pred.shape)[1:], len(weight.shape))
    forms = vars(self).get(_FORMS)
    if forms is None:
        forms = {}
        object.__setattr__(self, _FORMS, forms)
    if key not in forms:
        forms[key] = _find_form(self, tried, pair, weight)
    rank = forms[key]
    if rank is None:
        return weight
    return ops.copy(ops.broadcast_to(data.expand(weight, rank), ops.shape(pair.y_pred)[:rank]))


def _find_form(self: Any, tried: Callable[..., Any], pair: data.Pair, weight: Any) -> int | None:
    """How many axes the weights must have; None: they are right as they are, or nothing can be told."""
    pred, true, rank = tuple(pair.y_pred.shape), tuple(pair.y_true.shape), len(weight.shape)
    if len(pred) < 2:
        return None
    lengths: list[int] = []
    for size in pred[1:]:
        lengths.append(size if size not in (None, 1) else next(n for n in itertools.count(2) if n not in (*lengths, *pred)))
    lengths.insert(0, math.prod(lengths) + 1)
    targets = [lengths[0], *(lengths[i] if i < len(pred) and true[i] in (pred[i], None) else true[i] for i in range(1, len(true)))]

    def runs(*shape: int) -> bool | None:
        symbolic = [
            keras.KerasTensor(axes, dtype=private.standardize_dtype(x.dtype))
            for axes, x in ((targets, pair.y_true), (lengths, pair.y_pred), (shape, weight))
        ]
        try:
            private.compute_output_spec(tried, *(symbolic if shape else symbolic[:2]))
        except Exception as error:
            # Whatever else it is, the call itself will say it of the data.
            return False if data.refused_for_shapes(error) else None
        return True

    if not true or not runs():
        return None
    for axes in (rank, len(pred), len(pred) - 1):
        fits = runs(*lengths[:axes]) if axes >= rank else False
        if fits is None or (fits and axes == rank):
            return None
        if fits:
            return axes
    raise ShapeError(
        f"{self.name} cannot weigh its values: the weights have the shape {tuple(weight.shape)} beside predictions {pred}, and "
        "update_state multiplies them by values of another shape, so that each weight would meet every value. Have one value "
        "a sample, or one an entry of y_pred."
    )


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
        penalty = data.returned(written(self, data.tensor(x)), cls.__name__)
        if len(getattr(penalty, "shape", ())) != 0:
            raise ShapeError(f"{cls.__name__} returned the shape {tuple(penalty.shape)}; a regularizer returns one number: sum it.")
        return penalty

    return __call__


def _constraint_call(cls: Any, written: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Any, w: Any) -> Any:
        w = data.tensor(w)
        projected = data.tensor(data.returned(written(self, w), cls.__name__))
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
            values = data.tensor(data.returned(written(self, tuple(shape), dtype, **kwargs), cls.__name__))
        if tuple(values.shape) != tuple(shape):
            raise ShapeError(f"{cls.__name__} was asked for the shape {tuple(shape)} and returned {tuple(values.shape)}.")
        return ops.cast(values, private.standardize_dtype(dtype or keras.config.floatx()))

    return __call__

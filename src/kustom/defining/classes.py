"""How a part's class is called and built: what kustom adds to the methods that the author wrote, kind by kind.

A loss gets what a decorated one gets. A metric's `result` is a tensor; a regularizer, constraint or initializer is handed
tensors, and its result is looked at. A layer's `build` gets tuples, made or loaded, and leaves nothing unbuilt that a
file would then bring back as fresh; every sublayer that its attributes reach is tracked.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from kustom.backends import keras as private
from kustom.defining import call_state, data
from kustom.defining.kinds import CheckedLoss, folded_seeds
from kustom.errors import BuildError, ShapeError, TrackingError, hide_frames

__all__ = ["check_tracking", "install"]

_BUILDING = "_kustom_building"
_BUILT = "_kustom_built"
_CHILDREN = "_kustom_children"


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
        _install_layer(cls)


def _wrap(cls: Any, name: str, wrapper: Callable[[Any, Callable[..., Any]], Callable[..., Any]]) -> None:
    written = vars(cls).get(name)
    if written is not None:
        setattr(cls, name, hide_frames(functools.wraps(written)(wrapper(cls, written))))


# --- losses have CheckedLoss; metrics -----------------------------------------------------------------------------------


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


# --- regularizers, constraints, initializers ----------------------------------------------------------------------------


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


# --- layers and models --------------------------------------------------------------------------------------------------


def _install_layer(cls: Any) -> None:
    written = vars(cls).get("build")
    if written is not None:
        cls.build = _build(cls, written)
    elif private.is_default(cls.build):
        cls.build = private.mark_default(_build(cls, cls.build))
    if not isinstance(vars(cls).get("metrics"), property):
        cls.metrics = property(_metrics)
    if "build_from_config" not in vars(cls):
        cls.build_from_config = _build_from_config
    if "get_build_config" not in vars(cls):
        cls.get_build_config = _get_build_config
    if "call" in vars(cls) and "quantized_call" not in vars(cls) and hasattr(cls, "_int8_call"):
        cls.quantize = _refuse_quantize(cls, cls.quantize)
    if "save_own_variables" not in vars(cls):
        cls.save_own_variables = _saving(cls.save_own_variables)


def _build(cls: Any, written: Callable[..., None]) -> Callable[..., None]:
    default = private.is_default(written)

    @functools.wraps(written)
    def build(self: Any, *shapes: Any, **named_shapes: Any) -> None:
        shapes = tuple(_tuples(shape) for shape in shapes)
        named_shapes = {name: _tuples(shape) for name, shape in named_shapes.items()}
        if vars(self).get(_BUILDING):
            written(self, *shapes, **named_shapes)
            return
        object.__setattr__(self, _BUILDING, True)
        for child, recorded in _recorded(self):
            _quantize_as(child, recorded)
        try:
            if default:
                # All that Keras's does is to mark the layer as built, with a warning where a sublayer is not.
                _build_children(self, shapes, named_shapes)
                self.built = True
            else:
                written(self, *shapes, **named_shapes)
                check_tracking(self)
                _build_children(self, shapes, named_shapes)
                _check_base_built(self)
            check_tracking(self)
            object.__setattr__(self, _BUILT, [id(layer) for layer in self._flatten_layers(include_self=False, recursive=False)])
        finally:
            object.__setattr__(self, _BUILDING, False)

    return build


def _tuples(shape: Any) -> Any:
    """A shape, or a structure of them, with tuples for lists: a file has only lists."""
    if isinstance(shape, list | tuple):
        return tuple(_tuples(item) for item in shape)
    return {name: _tuples(item) for name, item in shape.items()} if isinstance(shape, dict) else shape


def _unbuilt(layer: Any) -> list[Any]:
    """The sublayers, at any depth, that are not built."""
    return [child for child in layer._flatten_layers(include_self=False) if not child.built]


def _build_children(self: Any, shapes: tuple[Any, ...], named_shapes: dict[str, Any]) -> None:
    """Build what `build` itself has not: as a file has recorded it, else by a symbolic call.

    Raises:
        BuildError: The call cannot be traced, and no eager call follows that would build them.
    """
    for child, recorded in _recorded(self):
        _quantize_as(child, recorded)
        if not child.built and recorded.get("build_config") and not _builds_by_call(child):
            child.build_from_config(_tuples(recorded["build_config"]))
            child.built = True
    vars(self).pop(_CHILDREN, None)
    symbolic = _symbolic_inputs(self, shapes, named_shapes)
    unbuilt = _unbuilt(self)
    if not symbolic or not (unbuilt or self._metrics):
        return
    modes: list[dict[str, Any]] = [{}, {"training": True}] if "training" in inspect.signature(self.call).parameters else [{}]
    try:
        for mode in modes:
            if _unbuilt(self):
                private.compute_output_spec(self.call, **symbolic, **mode)
            call_state.adopt(self, {**symbolic, **mode})
    except Exception as error:
        if private.in_call(self) or not unbuilt:
            # The call that asked for this will go on, and build them.
            return
        listed = ", ".join(child.name for child in unbuilt[:3])
        given = ", ".join(str(keras.tree.map_structure(lambda x: tuple(x.shape), x)) for x in symbolic.values())
        raise BuildError(
            f"{type(self).__name__}.build({given}) left {listed} unbuilt, and {type(self).__name__}.call cannot be traced to build "
            f"them ({type(error).__name__}: {error}). Build them in build(), or call the layer on data first."
        ) from error


def _recorded(self: Any) -> list[tuple[Any, dict[str, Any]]]:
    """The sublayers that are there, each with what a file has recorded of it."""
    return [pair for pair in zip(self._layers, vars(self).get(_CHILDREN) or (), strict=False) if pair[1]]


def _builds_by_call(layer: Any) -> bool:
    """Whether a layer of the user's own is built by its call alone: then a shape is not enough."""
    return "_kustom_own_fields" not in vars(type(layer)) and private.is_default(layer.build) and bool(layer._layers)


def _quantize_as(child: Any, recorded: dict[str, Any]) -> None:
    """Quantize a sublayer that is made by `setup` or `build`, and so knows nothing of it, as it was when it was saved."""
    if recorded.get("dtype") is not None and child.quantization_mode is None:
        child.dtype_policy = keras.dtype_policies.deserialize(recorded["dtype"])


def _symbolic_inputs(self: Any, shapes: tuple[Any, ...], named_shapes: dict[str, Any]) -> dict[str, Any]:
    """Symbolic arguments of `call`, from those of `build`; none where a shape is missing."""
    given = {name.removesuffix("_shape"): shape for name, shape in named_shapes.items()}
    if shapes or len(given) == 1:
        given = dict(zip(inspect.signature(self.call).parameters, [*shapes, *given.values()], strict=False))
    if any(shape is None for shape in given.values()):
        return {}
    return {name: keras.tree.map_shape_structure(keras.KerasTensor, shape) for name, shape in given.items()}


def _check_base_built(self: Any) -> None:
    """Refuse a `build` over a concrete layer of Keras that did not let the base make its weights.

    Raises:
        BuildError: The base cannot say what its weights are.
    """
    base = next(c for c in type(self).__mro__ if "_kustom_own_fields" not in vars(c))
    if base in private.ROOTS or "save_own_variables" not in dir(base):
        return
    self.built = True
    store: dict[str, Any] = {}
    try:
        base.save_own_variables(self, store)
        failed = next((key for key, value in store.items() if value is None), None)
        reason: Exception | None = None
    except AttributeError as error:
        failed, reason = str(error), error
    if failed is not None:
        raise BuildError(
            f"{type(self).__name__}.build does not call super().build(input_shape), so that {base.__name__} has not made its "
            f"weights ({failed}); a file could not hold them. Call it."
        ) from reason


def _metrics(self: Any) -> list[Any]:
    """List of all metrics."""
    base = next(c for c in type(self).__mro__ if "metrics" in vars(c) and vars(c)["metrics"].fget is not _metrics)
    return call_state.shown(self, vars(base)["metrics"].fget(self))


def _refuse_quantize(cls: Any, inherited: Callable[..., None]) -> Callable[..., None]:
    base = next(c for c in cls.__mro__[1:] if "_kustom_own_fields" not in vars(c))

    @functools.wraps(inherited)
    def quantize(self: Any, *args: Any, **kwargs: Any) -> None:
        if base in private.ROOTS:
            inherited(self, *args, **kwargs)
            return
        # `Model.quantize` leaves such a layer as it is, with this as a warning.
        raise NotImplementedError(
            f"{cls.__name__} is not quantized: {base.__name__}'s quantized computation would bypass {cls.__name__}.call. "
            "Write quantized_call() to have it."
        )

    return quantize


def _build_from_config(self: Any, config: dict[str, Any]) -> None:
    """Build as a file has recorded it: with tuples, and each sublayer as it was built."""
    if not config:
        return
    config = dict(config)
    object.__setattr__(self, _CHILDREN, config.pop("sublayers", None))
    if "input_shape" in config:
        self.build(config["input_shape"])
    elif "shapes_dict" in config:
        self.build(**config["shapes_dict"])
    else:
        # It was built by an eager call alone, so that no shape is known.
        _build_children(self, (), {})


def _get_build_config(self: Any) -> dict[str, Any] | None:
    """The shapes that the part was built with, and how each sublayer was built."""
    config = keras.layers.Layer.get_build_config(self)
    children = [_record(child) for child in self._layers]
    return {**(config or {}), "sublayers": children} if any(children) else config


def _record(child: Any) -> dict[str, Any] | None:
    """How a sublayer was built, and quantized."""
    if not child.built:
        return None
    record: dict[str, Any] = {"build_config": child.get_build_config()}
    if child.quantization_mode is not None:
        record["dtype"] = keras.dtype_policies.serialize(child.dtype_policy)
    return record if any(record.values()) else None


def _saving(inherited: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(inherited)
    def save_own_variables(self: Any, store: Any) -> None:
        check_tracking(self, late=True)
        inherited(self, store)

    return save_own_variables


# --- what the attributes reach ------------------------------------------------------------------------------------------


def check_tracking(part: Any, *, late: bool = False) -> None:
    """Track every sublayer, metric, variable and seed that the attributes of a part reach.

    Args:
        part: A layer, model or metric; nothing is done for another.
        late: The part is being saved: what is not tracked by now was not trained.

    Raises:
        TrackingError: One stands where Keras does not save it, or came too late.
    """
    if not isinstance(part, keras.layers.Layer | keras.metrics.Metric):
        return
    if late and isinstance(part, keras.layers.Layer) and _BUILT in vars(part) and not private.is_functional(part):
        for layer in part._layers:
            if id(layer) not in vars(part)[_BUILT]:
                raise TrackingError(
                    f"{type(part).__name__} got the sublayer {layer.name} after it was built, where no file can bring it back. "
                    "Make it in setup(), __init__() or build()."
                )
    known = private.tracked(part)
    for path, obj, saved in _reachable(part):
        if not saved:
            raise TrackingError(
                f"{type(part).__name__}.{path} is a {type(obj).__name__} that Keras neither tracks nor saves there. Keep it in an "
                "attribute of its own, or in a list, tuple or dict."
            )
        if id(obj) not in known:
            if late:
                raise TrackingError(
                    f"{type(part).__name__}.{path} is a {type(obj).__name__} that came after the part was built: its weights were "
                    "neither counted nor trained. Make it in setup(), __init__() or build()."
                )
            private.track(part, obj)
            known.add(id(obj))


_STATE = (keras.layers.Layer, keras.metrics.Metric, keras.Variable, keras.random.SeedGenerator)


# What holds variables of its own, or none, and is saved, or made anew, as a whole.
_SAVED_BY_THEMSELVES = (
    keras.optimizers.Optimizer,
    keras.losses.Loss,
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    keras.callbacks.Callback,
)


def _reachable(part: Any) -> Iterator[tuple[str, Any, bool]]:
    """Each object with state in the attributes of a part, the way to it, and whether Keras saves it there."""
    functional = not isinstance(part, keras.metrics.Metric) and private.is_functional(part)
    seen: set[int] = {id(part)}
    for name, value in list(vars(part).items()):
        if not private.is_internal(part, name) and not (functional and name.startswith("_")):
            yield from _inside(value, name, True, seen)


def _inside(value: Any, path: str, saved: bool, seen: set[int]) -> Iterator[tuple[str, Any, bool]]:
    if isinstance(value, _STATE):
        yield path, value, saved
        return
    if isinstance(value, (str, bytes, int, float, type, *_SAVED_BY_THEMSELVES)) or value is None or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(item, f"{path}[{key!r}]", saved, seen)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _inside(item, f"{path}[{index}]", saved, seen)
    elif isinstance(value, set | frozenset) or type(value).__module__ == "collections":
        for item in value:
            yield from _inside(item, f"{path}{{...}}", False, seen)
    elif isinstance(value, functools.partial):
        for item in (*value.args, *value.keywords.values()):
            yield from _inside(item, f"{path}(...)", False, seen)
    elif inspect.isfunction(value):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            if name != "self":
                yield from _inside(_content(cell), f"{path}(... {name})", False, seen)
        for item in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
            yield from _inside(item, f"{path}(... a default)", False, seen)
    elif inspect.ismethod(value):
        if id(value.__self__) not in seen:
            yield from _inside(value.__self__, f"{path}.__self__", False, seen)
    elif hasattr(value, "__dict__") and not private.is_of_library(value):
        for name, item in vars(value).items():
            yield from _inside(item, f"{path}.{name}", False, seen)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None

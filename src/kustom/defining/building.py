"""How a part that is a layer or model is built, and how a file brings it back built the same.

`build` gets tuples, made or loaded, and leaves nothing unbuilt that a file would then bring back as fresh: what the author's
`build` did not build is built as the file has recorded it, else by a symbolic call.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras

from kustom.backends import keras as private
from kustom.defining import call_state, calling
from kustom.defining.tracking import BUILT, check_tracking
from kustom.errors import BuildError, TrackingError, hide_frames

__all__ = ["install", "output_shape"]

_BUILDING = "_kustom_building"
_CHILDREN = "_kustom_children"


def install(cls: Any) -> None:
    """Wrap the methods of a part's class that build it."""
    written = vars(cls).get("build")
    if written is not None:
        cls.build = hide_frames(_build(cls, written))
    elif private.is_default(cls.build):
        cls.build = private.mark_default(hide_frames(_build(cls, cls.build)))
    calling.install(cls)
    if not isinstance(vars(cls).get("metrics"), property):
        cls.metrics = property(_metrics)
    if private.is_default(cls.compute_output_shape):
        cls.compute_output_shape = output_shape
    if "build_from_config" not in vars(cls):
        cls.build_from_config = _build_from_config
    if "get_build_config" not in vars(cls):
        cls.get_build_config = _get_build_config
    if "call" in vars(cls) and "quantized_call" not in vars(cls):
        cls.quantize = _refuse_quantize(cls, cls.quantize)
    if "save_own_variables" not in vars(cls):
        cls.save_own_variables = hide_frames(_saving(cls.save_own_variables))


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
            object.__setattr__(self, BUILT, [id(layer) for layer in private.sublayers(self)])
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
    return [child for child in private.descendants(layer) if not child.built]


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
    if not symbolic or not (unbuilt or private.metrics_of(self)):
        return
    modes: list[dict[str, Any]] = [{}, {"training": True}] if "training" in inspect.signature(self.call).parameters else [{}]
    try:
        for mode in modes:
            if _unbuilt(self):
                private.compute_output_spec(self.call, **symbolic, **mode)
            call_state.adopt(self, {**symbolic, **mode})
    except TrackingError:
        raise
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


@private.mark_default
@hide_frames
def output_shape(self: Any, *shapes: Any, **named_shapes: Any) -> Any:
    """The shape of what `call` returns for inputs of these shapes, of which it is asked symbolically.

    A layer that is not built is built with them: its weights are needed to ask.
    """
    shapes = tuple(_tuples(shape) for shape in shapes)
    named_shapes = {name: _tuples(shape) for name, shape in named_shapes.items()}
    # Keras's own `build` takes one shape; with several, the call itself builds the sublayers.
    if not self.built and (len(shapes) + len(named_shapes) == 1 or not private.is_default(self.build)):
        self.build(*shapes, **named_shapes)
    symbolic = _symbolic_inputs(self, shapes, named_shapes)
    return keras.tree.map_structure(lambda x: tuple(x.shape), private.compute_output_spec(self.call, **symbolic))


def _recorded(self: Any) -> list[tuple[Any, dict[str, Any]]]:
    """The sublayers that are there, each with what a file has recorded of it."""
    return [pair for pair in zip(private.sublayers(self), vars(self).get(_CHILDREN) or (), strict=False) if pair[1]]


def _builds_by_call(layer: Any) -> bool:
    """Whether a layer of the user's own is built by its call alone: then a shape is not enough."""
    return "_kustom_own_fields" not in vars(type(layer)) and private.is_default(layer.build) and bool(private.sublayers(layer))


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
    symbolic = {name: keras.tree.map_shape_structure(keras.KerasTensor, shape) for name, shape in given.items()}
    return {**symbolic, **_states_of_a_cell(self, given)}


def _states_of_a_cell(self: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The states that the call of a recurrent cell takes: Keras builds a cell by the shape of its inputs alone."""
    sizes = getattr(self, "state_size", None)
    sizes = [sizes] if isinstance(sizes, int) else sizes
    needed = [p.name for p in inspect.signature(self.call).parameters.values() if p.default is p.empty]
    if len(given) != 1 or len(needed) != 2 or not isinstance(sizes, list | tuple) or not all(isinstance(s, int) for s in sizes):
        return {}
    batch = next(iter(given.values()))[0]
    return {needed[1]: [keras.KerasTensor((batch, size), dtype=self.compute_dtype) for size in sizes]}


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
    children = [_record(child) for child in private.sublayers(self)]
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

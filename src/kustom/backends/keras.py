"""Every private name of Keras that kustom touches, and every fact about Keras that has no public place.

`tests/backends/test_keras.py` fails by name when one of them moves. Where Keras has a public name, it is used directly,
not from here.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import inspect
import itertools
import operator
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import keras
import numpy as np
from keras.src import api_export, backend
from keras.src.backend.common import dtypes, global_state
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.backend.common.variables import is_float_dtype, standardize_dtype
from keras.src.losses.loss import reduce_weighted_values
from keras.src.losses.losses import LossFunctionWrapper
from keras.src.models.functional import Functional
from keras.src.models.model import functional_init_arguments as are_functional
from keras.src.random import seed_generator
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
from keras.src.saving import object_registration, saving_lib, serialization_lib
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.saving.serialization_lib import ObjectSharingScope, SafeModeScope
from keras.src.trainers.compile_utils import CompileLoss, CompileMetrics
from keras.src.utils.naming import to_snake_case
from keras.src.utils.python_utils import default as mark_default
from keras.src.utils.python_utils import is_default

__all__ = [
    "MULTI",
    "RESERVED",
    "ROOTS",
    "CompileLoss",
    "CompileMetrics",
    "Exchange",
    "Functional",
    "Reading",
    "Stored",
    "Terms",
    "Written",
    "add_state",
    "are_functional",
    "are_placed",
    "as_loss",
    "assets_in",
    "assignments_refused",
    "attributes_of",
    "averaged",
    "backend_module",
    "builds_at_once",
    "compile_again",
    "compute_output_spec",
    "count_of",
    "descendants",
    "deserialized",
    "everyones_seed",
    "fits_memory",
    "forget_uninitialized",
    "forward",
    "functional_of",
    "get_keras_mask",
    "has_strategy",
    "has_value",
    "holders_of",
    "in_call",
    "in_layer_call",
    "in_order",
    "initialize",
    "input_structure",
    "is_assigned",
    "is_default",
    "is_float_dtype",
    "is_functional",
    "is_internal",
    "is_known_function",
    "is_library",
    "is_multi",
    "is_of_keras",
    "is_of_library",
    "kept",
    "kind_of",
    "layers_of",
    "listen",
    "load_state",
    "loss_tracker",
    "makes",
    "mark_default",
    "may_be_written",
    "metrics_of",
    "name_nested",
    "need_compiled",
    "open_scope",
    "own",
    "own_value",
    "put",
    "put_all",
    "reads",
    "reduce_weighted_values",
    "register",
    "registered",
    "registered_as",
    "registered_names",
    "registry",
    "results",
    "resumed_at",
    "save_state",
    "seed_of_all",
    "seeds_of",
    "serialized",
    "set_keras_mask",
    "set_path",
    "set_seed_of_all",
    "settings_here",
    "share",
    "standardize_dtype",
    "steppers_of",
    "stored",
    "sublayers",
    "synchronize",
    "takers_in",
    "takes_training",
    "to_snake_case",
    "told",
    "total_loss",
    "track",
    "tracked",
    "trainable",
    "trained_by",
    "training_default",
    "undone",
    "uninitialized",
    "unknown_to",
    "unlisten",
    "values_wait",
    "variables_of_metrics",
    "wide_floats",
    "write_weights",
]

# What Keras, or one of its backends, keeps under these names on an instance; the rest is found with `dir(base)`. The
# names of `torch.nn.Module` and TensorFlow's trackables count everywhere, since a part must be the same on each backend.
_LAYER = """
    activity_regularizer autocast built call_signature_parameters compute_dtype dtype dtype_policy input losses mask
    metrics name output path quantization_config supports_jit trainable training variables weights
    T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches eval
    extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict modules mtia
    named_buffers named_children named_modules named_parameters parameters register_backward_hook register_buffer
    register_forward_hook register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook
    register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module register_parameter
    register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory
    state_dict to to_empty torch_params train type xpu zero_grad
"""
_MODEL = """
    compiled compiled_loss compiled_metrics compute_loss_and_updates distribute_reduction_method distribute_strategy
    inputs jax_state_sync loss optimizer outputs predict_function run_eagerly steps_per_execution stop_training
    test_function train_function unrolled_steps_per_execution
"""
RESERVED: dict[type, frozenset[str]] = {
    keras.layers.Layer: frozenset(_LAYER.split()),
    keras.Model: frozenset(_LAYER.split() + _MODEL.split()),
    keras.losses.Loss: frozenset(["name", "reduction", "dtype", "mask", "sample_weight"]),
    keras.metrics.Metric: frozenset(["name", "dtype", "sample_weight", "variables", "metrics"]),
    keras.optimizers.Optimizer: frozenset(["name", "built", "iterations", "learning_rate", "variables"]),
    keras.regularizers.Regularizer: frozenset(),
    keras.constraints.Constraint: frozenset(),
    keras.initializers.Initializer: frozenset(["shape"]),
    keras.callbacks.Callback: frozenset(["model", "params", "validation_data"]),
}

# The bases whose own constructor arguments are the common ones (`name`, `dtype`, ...), from the most special on. An
# optimizer's base is none of them: its `learning_rate` is an argument of its own.
ROOTS: dict[type, tuple[str, ...]] = {
    keras.Sequential: ("name", "trainable"),
    keras.Model: ("name", "trainable", "dtype"),
    keras.layers.Layer: ("name", "trainable", "dtype", "autocast", "activity_regularizer"),
    keras.losses.Loss: ("name", "reduction", "dtype"),
    keras.metrics.Metric: ("name", "dtype"),
    keras.regularizers.Regularizer: (),
    keras.constraints.Constraint: (),
    keras.initializers.Initializer: (),
    keras.callbacks.Callback: (),
}


def register(name: str, cls: type, *, bare: type | None = None, formerly: tuple[str, ...] = ()) -> None:
    """Put `cls` into Keras's registry under `name`, and `bare` (what `type(cls)` is) where a config of `cls` is asked."""
    object_registration.GLOBAL_CUSTOM_OBJECTS[name] = cls
    object_registration.GLOBAL_CUSTOM_NAMES[cls] = name
    if bare is not None:
        object_registration.GLOBAL_CUSTOM_NAMES[bare] = name
    for older in formerly:
        object_registration.GLOBAL_CUSTOM_OBJECTS[older] = cls


def registered(name: str) -> Any:
    """What Keras has registered under exactly `name`, or None."""
    return object_registration.GLOBAL_CUSTOM_OBJECTS.get(name)


def as_loss(function: Callable[..., Any]) -> keras.losses.Loss:
    """The loss that Keras makes of a function which `compile` is given."""
    return LossFunctionWrapper(function)


def registered_as(name: str) -> list[Any]:
    """Every class and function that was ever registered under exactly `name`, in the order of their registration."""
    return [obj for obj, known in object_registration.GLOBAL_CUSTOM_NAMES.items() if known == name]


def registered_names() -> list[str]:
    """Every name in Keras's registry."""
    return list(object_registration.GLOBAL_CUSTOM_OBJECTS)


def share(obj: Any, config: Any) -> None:
    """Mark the config of `obj`, so that an object which stands in a file twice comes back as one.

    Keras marks the first config only when it meets the object again; by then the first has been copied. Nothing is
    marked outside of `save`, where configs are compared.
    """
    if global_state.get_global_attribute("shared_objects/id_to_config_map") is not None and isinstance(config, dict):
        config["shared_object_id"] = id(obj)


def in_call(layer: keras.layers.Layer) -> bool:
    """Whether `layer` has been called, so that building it is Keras's doing and the call itself will go on."""
    return bool(layer._called)


def compute_output_spec(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What `function` would return for symbolic arguments, as `KerasTensor`s; no variable changes."""
    return backend.compute_output_spec(function, *args, **kwargs)


def sublayers(layer: keras.layers.Layer) -> list[Any]:
    """The layers that `layer` tracks itself, in the order of their making."""
    return layer._layers


def descendants(layer: keras.layers.Layer) -> list[Any]:
    """The layers below `layer`, at any depth."""
    return list(layer._flatten_layers(include_self=False))


def functional_of(model: keras.Model) -> Any:
    """The functional model that a `Sequential` keeps and runs, which is no layer of it; None in others."""
    return getattr(model, "_functional", None)


def metrics_of(layer: keras.layers.Layer) -> list[Any]:
    """The metrics that `layer` tracks itself, without those of its sublayers."""
    return layer._metrics


def takes_training(layer: keras.layers.Layer) -> bool:
    """Whether the `call` of `layer` has an argument `training`."""
    return layer._call_has_training_arg


def training_default(layer: keras.layers.Layer) -> Any:
    """The default of `training` in the `call` of `layer`; None where there is none."""
    parameter = inspect.signature(layer.call).parameters.get("training")
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def trained_by(optimizer: Any) -> list[keras.Variable]:
    """The variables that `optimizer` was built for, in the order of its building."""
    return list(getattr(optimizer, "inner_optimizer", optimizer)._trainable_variables)


def unknown_to(optimizer: Any, variables: Any) -> list[keras.Variable]:
    """Those of the variables that `optimizer`, which is built, was not built for."""
    known = getattr(optimizer, "inner_optimizer", optimizer)
    return [variable for variable in variables if known._var_key(variable) not in known._trainable_variables_indices]


# `MultiOptimizer`, which Keras 3.14 has not.
MULTI: tuple[type, ...] = tuple(filter(None, [getattr(keras.optimizers, "MultiOptimizer", None)]))


def is_multi(optimizer: Any) -> bool:
    """Whether an optimizer hands each variable to one of several."""
    return isinstance(getattr(optimizer, "inner_optimizer", optimizer), MULTI)


def steppers_of(optimizer: Any) -> list[Any]:
    """The optimizers that take the steps: those inside of one that scales the loss, or that hands on to several."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return [*inner.optimizers] if is_multi(inner) else [inner]


def averaged(optimizer: Any) -> list[keras.Variable]:
    """The variables of which `optimizer` keeps an average, which becomes their value now and then, or at the end."""
    return [v for part in steppers_of(optimizer) if part.built and part.use_ema for v in trained_by(part)]


def count_of(optimizer: Any) -> int:
    """How often `apply` of `optimizer` has been called."""
    return int(keras.ops.convert_to_numpy(optimizer._iterations))


class Terms(CompileLoss):
    """Keras's loss of all outputs, which can be had term by term, too."""

    def build(self, y_true: Any, y_pred: Any) -> None:
        """Build it, and stand in front of each loss."""
        super().build(y_true, y_pred)
        self._flat_losses = [each._replace(loss=functools.partial(self._told, each[1], each[2])) for each in self._flat_losses]

    def _told(self, loss: Any, weight: Any, y_true: Any, y_pred: Any, sample_weight: Any) -> Any:
        value = loss(y_true, y_pred, sample_weight)
        weighted = keras.ops.cast(value, self.dtype)
        self._terms.append((loss, weighted if weight is None else weighted * weight, y_pred, sample_weight))
        return value

    def terms(self, y_true: Any, y_pred: Any, sample_weight: Any) -> list[tuple[Any, Any, Any, Any]]:
        """For each loss: itself, its value times its weight, and the predictions and weights that it was given."""
        self._terms: list[Any] = []
        try:
            self(y_true, y_pred, sample_weight)
            return self._terms
        finally:
            # No tracer is to stay.
            self._terms = []


def add_state(layer: keras.layers.Layer, state: Any) -> None:
    """Count `state.state`, a variable, among the layer's own, as that of a seed generator."""
    layer._seed_generators.append(state)


def tracked(owner: Any) -> set[int]:
    """The ids of the layers, metrics, variables and seed generators that `owner` tracks."""
    return set().union(*owner._tracker.stored_ids.values())


def track(owner: Any, obj: Any) -> None:
    """Have `owner` track `obj`, whether or not its state is locked; nothing else about `owner` changes."""
    locked = owner._tracker.locked
    owner._tracker.unlock()
    try:
        owner._tracker.track(obj)
    finally:
        if locked:
            owner._tracker.lock()


_SAVES_NESTED = "visited_containers" in inspect.signature(saving_lib._save_container_state).parameters


def name_nested(owner: Any) -> None:
    """Have Keras 3.14 save what stands in a container within a container, such as a list of lists of layers.

    It saves what `dir(owner)` names, and of a container there only what stands in it directly. So each container further
    in gets an attribute of its own, under the path that Keras 3.15 writes: a file of either loads in the other.
    """
    if _SAVES_NESTED:
        return
    attributes = vars(owner)
    for name in [name for name in attributes if "/container" in name]:
        del attributes[name]
    for name, value in list(attributes.items()):
        if isinstance(value, list | tuple | dict) and not is_internal(owner, name):
            attributes.update(_containers_in(value, name, {id(value)}))


def _containers_in(container: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    used: collections.Counter[str] = collections.Counter()
    for item in container.values() if isinstance(container, dict) else container:
        nested = isinstance(item, list | tuple | dict)
        if not nested and not isinstance(item, KerasSaveable):
            continue
        name = "container" if nested else to_snake_case(type(item).__name__)
        number = used[name]
        used[name] += 1
        if nested and id(item) not in seen:
            seen.add(id(item))
            inside = f"{path}/{name}_{number}" if number else f"{path}/{name}"
            yield inside, item
            yield from _containers_in(item, inside, seen)


def is_known_function(function: Any) -> bool:
    """Whether a file can name `function`: Keras exports it, or it is registered."""
    return bool(api_export.get_name_from_symbol(function)) or function in object_registration.GLOBAL_CUSTOM_NAMES


@functools.cache
def _internals(kind: str) -> frozenset[str]:
    bare = keras.metrics.Metric() if kind == "metric" else keras.Model() if kind == "model" else keras.layers.Layer()
    return frozenset(vars(bare)) | _LATER


# What Keras and its backends set on an instance after it is made.
_LATER = frozenset(
    """
    _build_shapes_dict _compile_config _compile_loss _compile_metrics _functional _jax_state _loss_tracker _losses_override
    _modules _parameters _torch_params _tracker compiled optimizer build quantize _call_signature _inbound_nodes
    _outbound_nodes _object__state _pytree__state _jax_state_synced train_function test_function predict_function
    _distribute_strategy _saved_model_inputs_spec _eval_epoch_iterator _supports_masking
    """.split()
)


def is_internal(part: Any, name: str) -> bool:
    """Whether Keras, or kustom, keeps something of its own in the attribute `name` of a part."""
    if name.startswith(("_kustom", "_self_")):
        return True
    if isinstance(part, keras.metrics.Metric):
        return name in _internals("metric")
    return name in _internals("model" if isinstance(part, keras.Model) else "layer")


def is_functional(layer: keras.layers.Layer) -> bool:
    """Whether a model was made of symbolic inputs and outputs, so that Keras tracks its layers by their graph."""
    return isinstance(layer, keras.Model) and layer._obj_type() in ("Functional", "Sequential")


def is_of_library(obj: Any) -> bool:
    """Whether `obj` is of Keras or a library below it, so that no user keeps layers in it."""
    return is_library(type(obj).__module__)


def is_library(module: str | None) -> bool:
    """Whether a module is of Keras or a library below it."""
    return (module or "").split(".")[0] in _LIBRARIES


_LIBRARIES = frozenset("builtins keras numpy tensorflow jax jaxlib torch ml_dtypes threading functools types kustom".split())


def is_assigned(variable: keras.Variable) -> bool:
    """Whether the stateless scope that is open now holds a value assigned to `variable`."""
    scope = get_stateless_scope()
    return scope is not None and scope.get_current_value(variable) is not None


def has_value(variable: keras.Variable) -> bool:
    """Whether `variable` can be read here: it has a value of its own, or the open stateless scope has one for it.

    While Keras's JAX step runs, its variables have given theirs away.
    """
    return variable._value is not None or is_assigned(variable)


def stored(variable: keras.Variable) -> Any:
    """What `variable` holds here, before any cast: the open stateless scope's value, else its own; None if it has none."""
    scope = get_stateless_scope()
    value = scope.get_current_value(variable) if scope is not None else None
    return variable._value if value is None else value


def own_value(variable: keras.Variable) -> Any:
    """The value that `variable` has outside of every stateless scope, before any cast; None before it is initialized."""
    return variable._value


def put(variable: keras.Variable, value: Any) -> None:
    """Give `variable` a value of its own dtype and shape outside of every stateless scope."""
    variable._direct_assign(value)


# What `own_value` gives, and whether a variable is trainable: for what is asked of many variables at each call of a program,
# by `map`, so that it costs no frame of Python for each.
own = operator.attrgetter("_value")
trainable = operator.attrgetter("_trainable")


def are_placed(variables: Iterable[keras.Variable]) -> bool:
    """Whether one of the variables has a layout over devices, which `put` sees to."""
    return any(variable._layout is not None for variable in variables)


def put_all(variables: list[keras.Variable], values: list[Any]) -> None:
    """What `put` does, for each of variables that have no layout; no `undone` is told."""
    for variable, value in zip(variables, values, strict=True):
        variable._value = value


def open_scope() -> keras.StatelessScope | None:
    """The stateless scope that is open now."""
    return get_stateless_scope()


def uninitialized() -> list[keras.Variable]:
    """The variables that were made in a stateless scope and have no value yet."""
    return list(global_state.get_global_attribute("uninitialized_variables") or ())


def forget_uninitialized(variables: Iterable[keras.Variable]) -> None:
    """Have Keras not initialize these at the end of the next stateless scope, which it does with all that were made in one."""
    known = {id(variable) for variable in variables}
    waiting = [variable for variable in uninitialized() if id(variable) not in known]
    global_state.set_global_attribute("uninitialized_variables", waiting)


def in_layer_call() -> bool:
    """Whether this thread is inside the call of a layer."""
    return global_state.get_global_attribute("current_call_ctx") is not None


def backend_module(name: str) -> ModuleType:
    """A module of Keras's code for the backend in use, such as `nn`."""
    return importlib.import_module(f"keras.src.backend.{backend.backend()}.{name}")


_lock = threading.Lock()


class Exchange:
    """An attribute of Keras's that is another for as long as anybody, in whatever thread, has this context open.

    Code that has no use for it runs Keras's own. What stands there meanwhile is asked by every thread, and looks at `here`.

    Args:
        owner: The class or module that has the attribute.
        name: The attribute.
        other: Makes what is to stand there from what does.
    """

    def __init__(self, owner: Any, name: str, other: Callable[[Any], Any]) -> None:
        self._owner, self._name, self._other = owner, name, other
        self._thread = threading.local()
        # How many have it open in all threads, and what stood there of the owner's own.
        self._open = 0
        self._kept: Any = None

    @property
    def here(self) -> bool:
        """Whether this thread has it open."""
        return bool(getattr(self._thread, "depth", 0))

    def __enter__(self) -> None:
        self._thread.depth = getattr(self._thread, "depth", 0) + 1
        with _lock:
            self._open += 1
            if self._open == 1:
                self._kept = vars(self._owner).get(self._name)
                setattr(self._owner, self._name, self._other(getattr(self._owner, self._name)))

    def __exit__(self, *error: object) -> None:
        self._thread.depth -= 1
        with _lock:
            self._open -= 1
            if self._open:
                return
            if self._kept is None:
                # It was inherited.
                delattr(self._owner, self._name)
            else:
                setattr(self._owner, self._name, self._kept)


Reader = Callable[[keras.Variable, Any], Any]


class _Readers(threading.local):
    def __init__(self) -> None:
        self.all: list[Reader] = []


_readers = _Readers()


def listen(reader: Reader) -> None:
    """From now on `reader(variable, value)` says what a read of a variable in this thread gives, before any cast."""
    _readers.all.append(reader)
    _reading.__enter__()


def unlisten(reader: Reader) -> None:
    """Undo one `listen` of this thread."""
    _readers.all.remove(reader)
    _reading.__exit__()


def _told_value(plain: property) -> property:
    fget, readers = plain.fget, _readers
    assert fget is not None

    def value(self: Any) -> Any:
        held = stored(self)
        if held is None or not readers.all:
            return fget(self)
        told = held
        for reader in readers.all:
            told = reader(self, told)
        return fget(self) if told is held else self._maybe_autocast(told)

    return property(value, doc=plain.__doc__)


_reading = Exchange(keras.Variable, "value", _told_value)


def told(variable: keras.Variable) -> Any:
    """What a read of `variable` gives, before any cast."""
    held = stored(variable)
    for reader in _readers.all if held is not None else ():
        held = reader(variable, held)
    return held


@contextlib.contextmanager
def reads() -> Iterator[list[keras.Variable]]:
    """The variables that this thread reads inside, each once, in their order."""
    read: list[keras.Variable] = []

    def note(variable: keras.Variable, value: Any) -> Any:
        if not any(variable is other for other in read):
            read.append(variable)
        return value

    listen(note)
    try:
        yield read
    finally:
        unlisten(note)


class _Refusals(threading.local):
    def __init__(self) -> None:
        self.all: list[Callable[[keras.Variable], Exception]] = []


_refusals = _Refusals()


def _refused_assign(plain: Callable[..., Any]) -> Callable[..., Any]:
    refusals = _refusals

    @functools.wraps(plain)
    def assign(self: Any, value: Any) -> Any:
        if refusals.all:
            raise refusals.all[-1](self)
        return plain(self, value)

    return assign


_refusing = Exchange(keras.Variable, "assign", _refused_assign)


@contextlib.contextmanager
def assignments_refused(refusal: Callable[[keras.Variable], Exception]) -> Iterator[None]:
    """Inside, in this thread, an assignment to a variable raises what `refusal` makes of the variable."""
    _refusals.all.append(refusal)
    try:
        with _refusing:
            yield
    finally:
        _refusals.all.pop()


class _Journals(threading.local):
    def __init__(self) -> None:
        self.all: list[dict[int, tuple[keras.Variable, Any]]] = []


_journals = _Journals()


def _noted_assign(plain: Callable[..., None]) -> Callable[..., None]:
    journals = _journals

    @functools.wraps(plain)
    def _direct_assign(self: Any, value: Any) -> None:
        for journal in journals.all:
            _note(journal, self)
        plain(self, value)

    return _direct_assign


_assigning = Exchange(keras.Variable, "_direct_assign", _noted_assign)


def _note(journal: dict[int, tuple[keras.Variable, Any]], variable: Any) -> None:
    # While it is being made it has no value yet, and not even the attribute.
    value = vars(variable).get("_value") if open_scope() is None else None
    if value is not None and id(variable) not in journal:
        journal[id(variable)] = (variable, keras.ops.copy(value))


def may_be_written(variables: Iterable[keras.Variable]) -> None:
    """Tell the `undone` of this thread that these will be written by what it does not see."""
    for journal in _journals.all:
        for variable in variables:
            _note(journal, variable)


@contextlib.contextmanager
def undone() -> Iterator[dict[int, keras.Variable]]:
    """Where what is inside raises, the variables that it has touched get back what they held; gives them by their id."""
    journal: dict[int, tuple[keras.Variable, Any]] = {}
    touched: dict[int, keras.Variable] = {}

    def note(variable: keras.Variable, value: Any) -> Any:
        # Optimizers write into what they read.
        _note(journal, variable)
        return value

    _journals.all.append(journal)
    listen(note)
    try:
        with _assigning:
            yield touched
    except BaseException:
        _journals.all.remove(journal)
        for variable, value in journal.values():
            put(variable, value)
        raise
    else:
        _journals.all.remove(journal)
    finally:
        unlisten(note)
        touched |= {key: variable for key, (variable, _) in journal.items()}


class _Makers(threading.local):
    def __init__(self) -> None:
        self.all: list[list[keras.Variable]] = []
        self.late = 0


_makers = _Makers()


@contextlib.contextmanager
def makes() -> Iterator[list[keras.Variable]]:
    """The variables that this thread makes inside; not the state of the seed that Keras itself keeps for all."""
    made: list[keras.Variable] = []
    _makers.all.append(made)
    try:
        with _making:
            yield made
    finally:
        _makers.all.pop()
        everyones = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
        made[:] = [variable for variable in made if everyones is None or variable is not everyones.state]


def _noted_init(plain: Callable[..., None]) -> Callable[..., None]:
    makers = _makers

    @functools.wraps(plain)
    def __init__(self: Any, initializer: Any, shape: Any = None, dtype: Any = None, **kwargs: Any) -> None:
        if makers.late and open_scope() is not None and not callable(initializer) and not isinstance(initializer, str):
            value = keras.ops.convert_to_numpy(initializer)
            kind = getattr(initializer, "dtype", None) or {"i": "int32", "b": "bool"}.get(value.dtype.kind, keras.config.floatx())
            dtype = dtype or standardize_dtype(kind)
            initializer, shape = (lambda shape, dtype=None: keras.ops.convert_to_tensor(value, dtype=dtype)), value.shape
        plain(self, initializer, shape, dtype, **kwargs)
        for made in makers.all:
            made.append(self)

    return __init__


@contextlib.contextmanager
def values_wait() -> Iterator[None]:
    """Inside, a variable may be made of a value in a stateless scope, too; as of an initializer, it gets it afterwards."""
    _makers.late += 1
    try:
        with _making:
            yield
    finally:
        _makers.late -= 1


_making = Exchange(keras.Variable, "__init__", _noted_init)


class _Widths(dict[str, str]):
    """Keras's table of the dtypes that it makes narrower in a promotion; in a thread that wants them, floats stay wide."""

    def __init__(self, plain: dict[str, str]) -> None:
        super().__init__(plain)
        self.wanting: dict[int, int] = {}

    def get(self, key: str, default: Any = None) -> Any:
        if key in ("float64", "complex128") and threading.get_ident() in self.wanting:
            return key
        return super().get(key, default)


@contextlib.contextmanager
def wide_floats() -> Iterator[None]:
    """Inside, in this thread, float64 is not made float32 where Keras promotes dtypes: on JAX and torch it always is."""
    mine = threading.get_ident()
    with _lock:
        table = dtypes.BIT64_TO_BIT32_DTYPE
        if not isinstance(table, _Widths):
            table = dtypes.BIT64_TO_BIT32_DTYPE = _Widths(table)
        table.wanting[mine] = table.wanting.get(mine, 0) + 1
    try:
        yield
    finally:
        with _lock:
            table.wanting[mine] -= 1
            if not table.wanting[mine]:
                del table.wanting[mine]
            if not table.wanting:
                dtypes.BIT64_TO_BIT32_DTYPE = dict(table)


@contextlib.contextmanager
def builds_at_once(outside: Callable[[], contextlib.AbstractContextManager[Any]]) -> Iterator[None]:
    """Inside, in this thread, layers and optimizers are built as by an eager call, whatever is being traced around.

    What `build` assigns is assigned once. As a part of a trace it would be assigned at each call, or never.

    Args:
        outside: Makes the backend's scope in which nothing is traced.
    """
    _builders.all.append(outside)
    classes = list(keras.optimizers.Optimizer.__mro__)
    for cls in classes:
        # Every optimizer has a `build` of its own, which calls its base's first.
        classes += cls.__subclasses__() if issubclass(cls, keras.optimizers.Optimizer) else []
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_building)
            for cls in classes:
                if "build" in vars(cls):
                    stack.enter_context(_building_of(cls))
            yield
    finally:
        _builders.all.pop()


class _Builders(threading.local):
    def __init__(self) -> None:
        self.all: list[Callable[[], contextlib.AbstractContextManager[Any]]] = []


_builders = _Builders()


def built_at_once(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A `build` that is done at once where `builds_at_once` is around it."""
    builders = _builders

    @functools.wraps(plain)
    def build(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not builders.all or self.built:
            return plain(self, *args, **kwargs)
        outside, scope = builders.all[-1], open_scope()
        told, _readers.all = _readers.all, []
        # What is built inside is built as ever: a model that Keras builds by a symbolic call has a scope of Keras's around
        # its layers, without which torch would leave their weights on the device "meta".
        around, builders.all = builders.all, []
        global_state.set_global_attribute("stateless_scope", None)
        try:
            with outside():
                return plain(self, *args, **kwargs)
        finally:
            global_state.set_global_attribute("stateless_scope", scope)
            _readers.all, builders.all = told, around

    return build


_building = Exchange(keras.layers.Layer, "_maybe_build", built_at_once)


@functools.cache
def _building_of(cls: type) -> Exchange:
    return Exchange(cls, "build", built_at_once)


def _seed_of_all(plain: Callable[[], Any]) -> Callable[[], Any]:
    def global_seed_generator() -> Any:
        if not _seeding.here:
            return plain()
        return _seed_now()

    return global_seed_generator


def _seed_now() -> Any:
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    if generator is None:
        generator = keras.random.SeedGenerator()
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, generator)
    return generator


def seed_of_all(variables: list[keras.Variable]) -> Any:
    """The generator that Keras keeps for all, if its state is among `variables`."""
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    return generator if generator is not None and any(v is generator.state for v in variables) else None


def set_seed_of_all(generator: Any) -> None:
    """Make `generator` the one that Keras keeps for all, with the state of the one that it has now."""
    now = _seed_now()
    if now is not generator:
        generator.state.assign(now.state.value)
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, generator)


_seeding = Exchange(seed_generator, "global_seed_generator", _seed_of_all)


@contextlib.contextmanager
def everyones_seed() -> Iterator[None]:
    """Inside, in this thread, what draws without a seed may do so in a trace: Keras refuses it on JAX.

    The state of the seed that Keras keeps for all is a variable, which is lifted as any other.
    """
    with _seeding:
        yield


def forward(model: Any, x: Any, *, training: bool) -> Any:
    """Call a model as its trainer does."""
    return model(x, training=training) if model._call_has_training_arg else model(x)


def total_loss(model: Any, x: Any, y: Any, y_pred: Any, sample_weight: Any, *, training: bool) -> Any:
    """The compiled loss of a model and its added losses, or what its `compute_loss` makes of them."""
    return model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)


def loss_tracker(model: Any) -> Any:
    """The metric "loss" of a compiled model."""
    return model._loss_tracker


def need_compiled(model: Any, method: str) -> None:
    """Refuse a model that is not compiled, as Keras does."""
    model._assert_compile_called(method)


def in_order(model: Any, values: dict[str, Any]) -> Any:
    """Values of metrics as a list in the order that Keras gives them, a single one by itself."""
    return model._flatten_metrics_in_order(values)


def resumed_at(model: Any) -> int:
    """The epoch that a callback has told a model to go on from, once: `BackupAndRestore` does; else 0."""
    epoch, model._initial_epoch = model._initial_epoch, None
    return epoch or 0


def has_strategy(model: Any) -> bool:
    """Whether a model was made under a `tf.distribute` strategy."""
    return getattr(model, "_distribute_strategy", None) is not None


def attributes_of(model: Any) -> dict[str, Any]:
    """The variables and objects of Keras that stand in a model's attributes, what it was compiled with among them."""
    kinds = (KerasSaveable, keras.losses.Loss, keras.Variable)
    return {name: value for name, value in vars(model).items() if isinstance(value, kinds)}


class _Results(threading.local):
    def __init__(self) -> None:
        self.all: list[dict[int, Any]] = []


_results = _Results()


@contextlib.contextmanager
def results(kinds: Iterable[type]) -> Iterator[dict[int, Any]]:
    """What metrics of these classes give as their results inside, in this thread.

    Gives, from the id of each tensor: the metric and which of its results it is (None where it has but one), and the tensor.
    """
    noted: dict[int, Any] = {}
    _results.all.append(noted)
    try:
        with contextlib.ExitStack() as stack:
            for kind in kinds:
                stack.enter_context(_results_of(kind))
            yield noted
    finally:
        _results.all.pop()


@functools.lru_cache(maxsize=256)
def _results_of(kind: type) -> Exchange:
    return Exchange(kind, "result", _noted_result)


def _noted_result(plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(plain)
    def result(self: Any) -> Any:
        given = plain(self)
        for noted in _results.all:
            for key, value in given.items() if isinstance(given, dict) else [(None, given)]:
                noted.setdefault(id(value), ((self, key), value))
        return given

    return result


class _Noted(threading.local):
    def __init__(self) -> None:
        self.all: list[list[tuple[Any, dict[str, Any]]]] = []


_noted = _Noted()


def _noted_record(plain: Callable[[Any, dict[str, Any]], None]) -> Callable[[Any, dict[str, Any]], None]:
    noted = _noted

    @functools.wraps(plain)
    def record_object_after_serialization(obj: Any, config: dict[str, Any]) -> None:
        plain(obj, config)
        for each in noted.all:
            # Kept, so that no other object comes to have its id.
            each.append((obj, config))
            config["shared_object_id"] = id(obj)

    return record_object_after_serialization


_recording = Exchange(serialization_lib, "record_object_after_serialization", _noted_record)


def serialized(obj: Any) -> tuple[dict[str, Any], list[tuple[Any, dict[str, Any]]]]:
    """The config of `obj` as Keras writes it, and every object that stands in it beside its own config.

    Each config has its object's id as `shared_object_id`: Keras marks an object only when it meets it again, by which time
    the first config has been copied, so that a layer given to two custom layers came back as two.
    """
    noted: list[tuple[Any, dict[str, Any]]] = []
    _noted.all.append(noted)
    try:
        with _recording, ObjectSharingScope():
            config: Any = serialization_lib.serialize_keras_object(obj)
    finally:
        _noted.all.remove(noted)
    return config, noted


class _Finders(threading.local):
    def __init__(self) -> None:
        self.all: list[Callable[[dict[str, Any], str], Any]] = []


_finders = _Finders()


def _found(plain: Callable[..., Any]) -> Callable[..., Any]:
    finders = _finders

    @functools.wraps(plain)
    def _retrieve_class_or_fn(name: Any, registered_name: Any, module: Any, obj_type: Any, full_config: Any, *args: Any, **kw: Any):
        for finder in finders.all[-1:]:
            found = finder(full_config, name)
            if found is not None:
                return found
        return plain(name, registered_name, module, obj_type, full_config, *args, **kw)

    return _retrieve_class_or_fn


_finding = Exchange(serialization_lib, "_retrieve_class_or_fn", _found)


@contextlib.contextmanager
def _found_by(finder: Callable[[dict[str, Any], str], Any]) -> Iterator[None]:
    """A scope, in safe mode, in which `finder` is asked first for the class or function of a config."""
    _finders.all.append(finder)
    try:
        with _finding, SafeModeScope(True):
            yield
    finally:
        _finders.all.pop()


def deserialized(
    config: Any, finder: Callable[[dict[str, Any], str], Any], known: dict[int, Any] | None = None
) -> tuple[Any, dict[int, Any]]:
    """What a config stands for, in safe mode, and its objects by their `shared_object_id`.

    Args:
        config: A config; what stands in it as an array, or another object, is handed on as it is.
        finder: Asked first for the class or function of a config, given it and the name; None where it knows none.
        known: Objects that were made before, by their `shared_object_id`.
    """
    with _found_by(finder), ObjectSharingScope():
        objects: Any = global_state.get_global_attribute("shared_objects/id_to_obj_map")
        objects.update(known or {})
        return serialization_lib.deserialize_keras_object(config, safe_mode=True), objects


class Written(saving_lib.H5IOStore):
    """A store that takes what Keras saves of a model, without writing it anywhere: a variable stays the variable.

    Attributes:
        entries: From each path the values of its object, by their keys.
    """

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, Any]] = {}

    def __bool__(self) -> bool:
        return True

    def make(self, path: str, metadata: Any = None) -> Any:
        return self.entries.setdefault(path, {})

    def close(self) -> None:
        pass


class Stored:
    """An array of a file that has not been read: a variable that is given it sees first whether it fits.

    To anything else it is what Keras hands out, a data set: it has a shape, and becomes an array where one is made of it.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, read: Callable[[], Any], place: str) -> None:
        self.shape, self.kind, self.read, self.place = shape, dtype, read, place

    @property
    def dtype(self) -> np.dtype:
        """As an array has it: JAX looks at it before it makes one."""
        return np.dtype(self.kind)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = keras.ops.convert_to_numpy(self.read())
        return array if dtype is None else array.astype(dtype)

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self)[key]

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError(f"{self.place} is one number, which has no length")
        return self.shape[0]


class Reading(saving_lib.H5IOStore):
    """A store that Keras loads from, made of arrays that are read one by one when they are wanted.

    Attributes:
        asked: The paths of the objects that were there to be loaded.
    """

    def __init__(self, entries: dict[str, dict[str, Stored]]) -> None:
        self._entries = entries
        # Each path, and those above it: Keras asks several times for each layer.
        self._paths = {path for each in entries for path in itertools.accumulate(each.split("/"), "{}/{}".format)}
        self.asked: set[str] = set()

    def __bool__(self) -> bool:
        return True

    def get(self, path: str) -> Any:
        self.asked.add(path)
        return types.MappingProxyType(self._entries.get(path, {}))

    def has_path(self, path: str) -> bool:
        return path in self._paths

    def close(self) -> None:
        pass


def optimizers_in(values: Any) -> Iterator[Any]:
    """The optimizers among some values, in lists and dicts of them, and those that an optimizer hands on to."""
    for value in values:
        if isinstance(value, keras.optimizers.Optimizer):
            yield value
            yield from optimizers_in([getattr(value, "inner_optimizer", None), *getattr(value, "optimizers", ())])
        elif isinstance(value, list | tuple | dict):
            yield from optimizers_in(value.values() if isinstance(value, dict) else value)


def own_optimizers(model: Any) -> list[Any]:
    """The optimizers in attributes of a model and of its layers."""
    held = [value for layer in layers_of(model) for value in [*vars(layer).values(), getattr(layer, "optimizer", None)]]
    return list(optimizers_in(held))


def save_state(model: Any, store: Any, assets: Any = None, skip: Iterable[Any] = ()) -> set[int]:
    """Save a model as Keras does, into stores; returns the ids of the objects that it came to."""
    visited = {id(obj) for obj in skip}
    saving_lib._save_state(model, weights_store=store, assets_store=assets, inner_path="", visited_saveables=visited)
    return visited


def load_state(
    model: Any, store: Any, assets: Any = None, skip_ids: Iterable[int] = ()
) -> tuple[set[int], list[tuple[Any, Exception]]]:
    """Load a model as Keras does; returns the ids of the objects that it came to, and those that failed with their errors."""
    visited, failed, errors = set(skip_ids), set(), {}
    with _filling:
        saving_lib._load_state(
            model,
            weights_store=store,
            assets_store=assets,
            inner_path="",
            visited_saveables=visited,
            failed_saveables=failed,
            error_msgs=errors,
        )
    return visited, list(errors.values()) if failed else []


def _filled_assign(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def assign(self: Any, value: Any) -> Any:
        if isinstance(value, Stored):
            if tuple(value.shape) != tuple(self.shape):
                raise ValueError(f"{value.place} has the shape {value.shape}, and {self.path} is {tuple(self.shape)}")
            if kind_of(value.kind) != kind_of(self._dtype):
                raise ValueError(f"{value.place} has the dtype {value.kind}, and {self.path} is {self._dtype}")
            value = value.read()
        if self._value is not None or open_scope() is not None:
            return plain(self, value)
        value = self._convert_to_tensor(value, dtype=self._dtype)
        if tuple(value.shape) != tuple(self.shape):
            raise ValueError(f"a value of the shape {tuple(value.shape)} was to be that of {self.path}, {tuple(self.shape)}")
        self._initialize(value)
        self._initializer = None
        return value

    return assign


_filling = Exchange(keras.Variable, "assign", _filled_assign)


def kind_of(dtype: str) -> str:
    """Whether a dtype is `"float"`, `"int"`, or something else, by its name."""
    dtype = standardize_dtype(dtype)
    return "float" if is_float_dtype(dtype) else "int" if "int" in dtype else dtype


def initialize(variables: Iterable[keras.Variable]) -> None:
    """Give those variables that have no value yet the one of their initializer."""
    for variable in variables:
        if variable._value is None:
            variable._deferred_initialize()


def fits_memory(model: Any) -> bool:
    """Whether the weights can be held in memory once more, as Keras judges it."""
    return saving_lib.is_memory_sufficient(model)


def seeds_of(model: Any) -> list[keras.Variable]:
    """The states of the seed generators of a model, and of the one that Keras keeps for all."""
    layers = model._flatten_layers()
    everyones = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    generators = [g for layer in layers for g in layer._seed_generators] + ([everyones] if everyones is not None else [])
    return [generator.state for generator in generators]


def synchronize(model: Any) -> None:
    """Have the variables of a model hold what they hold for its trainer, which on JAX keeps their values while it steps."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


@contextlib.contextmanager
def kept(*, names: bool) -> Iterator[None]:
    """Inside, in this thread, Keras's own state may change; it is put back.

    Args:
        names: Whether the numbers in the names of layers to come are put back, too.
    """
    tracker = global_state.GLOBAL_STATE_TRACKER
    before = {name: value.copy() if isinstance(value, list | dict) else value for name, value in vars(tracker).items()}
    everyones: Any = before.get(GLOBAL_SEED_GENERATOR)
    state = keras.ops.copy(everyones.state._value) if everyones is not None and everyones.state._value is not None else None
    floats, fuzz, images = keras.config.floatx(), keras.config.epsilon(), keras.config.image_data_format()
    filtering = keras.config.is_traceback_filtering_enabled()
    interactive = keras.config.is_interactive_logging_enabled()
    try:
        yield
    finally:
        # Keras makes the counters itself, of a kind of its own, when it gives the first name in a thread.
        counters = "object_name_uids"
        if not names and counters in vars(tracker):
            before[counters] = vars(tracker)[counters]
        if everyones is not None and state is not None:
            everyones.state._direct_assign(state)
        keras.config.set_floatx(floats)
        keras.config.set_epsilon(fuzz)
        keras.config.set_image_data_format(images)
        (keras.config.enable_traceback_filtering if filtering else keras.config.disable_traceback_filtering)()
        (keras.config.enable_interactive_logging if interactive else keras.config.disable_interactive_logging)()
        # The last, since the two switches before stand there as well.
        vars(tracker).clear()
        vars(tracker).update(before)


def input_structure(model: Any) -> Any:
    """The symbolic inputs of a functional model, in the structure in which it takes its data."""
    return model._inputs_struct


def takers_in(model: Any) -> list[tuple[Any, Any]]:
    """In a functional model: each symbolic tensor beside an operation that takes it."""
    return [(tensor, node.operation) for node in _nodes_of(model) for tensor in node.input_tensors]


def _nodes_of(model: Any) -> list[Any]:
    return [node for nodes in model._nodes_by_depth.values() for node in nodes]


def layers_of(model: Any) -> list[Any]:
    """A model and the layers below it, at any depth."""
    return list(model._flatten_layers())


def variables_of_metrics(model: Any) -> list[keras.Variable]:
    """The variables of all metrics of a model and of the layers below it."""
    return [v for layer in model._flatten_layers() for metric in layer._metrics for v in metric.variables] + model.metrics_variables


def is_of_keras(function: Any) -> bool:
    """Whether a function is Keras's own."""
    return (getattr(function, "__module__", None) or "").split(".")[0] == "keras"


def assets_in(folder: str) -> Any:
    """A store of assets in a folder, from which they are loaded, and into which they can be saved."""
    return saving_lib.DiskIOStore(folder, mode="r")


def write_weights(model: Any, target: Any) -> None:
    """Write the weights of a model as Keras does, to a path or into a `BytesIO`."""
    store = saving_lib.H5IOStore(target, mode="w")
    try:
        save_state(model, store)
    finally:
        store.close()


def registry() -> dict[str, Any]:
    """Keras's registry: registered names with what is registered."""
    return dict(object_registration.GLOBAL_CUSTOM_OBJECTS)


def compile_again(
    model: Any,
    config: dict[str, Any],
    finder: Callable[[dict[str, Any], str], Any],
    known: dict[int, Any],
    initialize: Callable[[list[keras.Variable]], None],
    account: Callable[[list[keras.Variable]], None],
) -> dict[int, Any]:
    """Compile a loaded model as it was; returns the objects that were made for it, by their `shared_object_id`.

    Args:
        model: The model, with its weights.
        config: Its compile config.
        finder: See `deserialized`.
        known: Objects that were made before.
        initialize: Gives the variables of losses, metrics and optimizers their first values.
        account: Told what was made with values already: an optimizer's state, and what a `compile` of one's own makes.
    """
    own = type(model).compile is not keras.Model.compile
    if own or type(model).compile_from_config is not keras.Model.compile_from_config:
        with _found_by(finder), makes() as made:
            model.compile_from_config(config)
        account(made)
        return {}
    with keras.StatelessScope(initialize_variables=False), values_wait(), makes() as made:
        arguments, objects = deserialized(config, finder, known)
    forget_uninitialized(made)
    initialize(made)
    model.compile(**arguments)
    if model.built and model.optimizer is not None:
        with makes() as state:
            model.optimizer.build(model.trainable_variables)
        account(state)
    model.compiled = True
    return objects


def holders_of(model: Any, layer: Any) -> list[Any]:
    """Those of a model and the layers below it that are `layer`, or have it below them."""
    return [each for each in model._flatten_layers() if each is layer or any(below is layer for below in each._flatten_layers())]


def settings_here() -> dict[str, Any]:
    """What Keras keeps for this thread, by its own names."""
    return dict(vars(global_state.GLOBAL_STATE_TRACKER))


def set_path(variable: keras.Variable, path: str) -> None:
    """Give a variable the path that it had in the model that was saved."""
    variable._path = path

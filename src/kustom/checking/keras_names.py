"""What Keras accepts, asked of Keras itself: arguments from its signatures, attributes from its classes, names from its `get`.

What Keras 3 took away cannot be asked of it, so that it stands here in tables, with the spelling of today.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import textwrap
from typing import Any

import keras

__all__ = [
    "FAMILIES",
    "MOVED",
    "REFUSING",
    "accepted",
    "attributes",
    "distance",
    "family_of",
    "is_keras",
    "knows",
    "moved",
    "near",
    "nearest_name",
    "removed",
    "removed_argument",
    "surely",
]

# Attributes of Keras 2 objects, and what does their work in Keras 3. The first word is the new name where there is one.
REMOVED = {
    "reset_states": ("reset_state", "it is called reset_state"),
    "add_metric": (None, "make the metric in __init__ and update it in call"),
    "add_update": (None, "assign to the variable in call"),
    "compiled_loss": (None, "use compute_loss(x, y, y_pred, sample_weight)"),
    "compiled_metrics": (None, "use compute_metrics(x, y, y_pred, sample_weight), or update each of self.metrics"),
    "predict_classes": (None, "take the argmax of predict"),
    "predict_proba": ("predict", "it is called predict"),
    "fit_generator": ("fit", "fit takes generators"),
    "evaluate_generator": ("evaluate", "evaluate takes generators"),
    "predict_generator": ("predict", "predict takes generators"),
    "get_updates": (None, "an optimizer's step is update_step"),
    "get_gradients": (None, "differentiate with kustom.GradientTape"),
    "lr": ("learning_rate", "it is called learning_rate"),
}
# Arguments of Keras 2, by what they are called now.
ARGUMENTS = {
    "lr": "learning_rate",
    "nb_epoch": "epochs",
    "nb_epochs": "epochs",
    "period": "save_freq",
    "output_dim": "units",
    "init": "kernel_initializer",
    "W_regularizer": "kernel_regularizer",
    "b_regularizer": "bias_regularizer",
    "subsample": "strides",
    "border_mode": "padding",
    "nb_filter": "filters",
    "p": "rate",
    "keep_prob": "rate",
    "input": "inputs",
    "output": "outputs",
}
# Modules and names of Keras 2, and misnamed modules of Keras.
MOVED = {
    "model": "models",
    "layer": "layers",
    "loss": "losses",
    "metric": "metrics",
    "optimizer": "optimizers",
    "initializer": "initializers",
    "regularizer": "regularizers",
    "constraint": "constraints",
    "activation": "activations",
    "callback": "callbacks",
    "engine": "layers",
    "np_utils": "to_categorical",
    "generic_utils": None,
    "CuDNNLSTM": "LSTM",
    "CuDNNGRU": "GRU",
    "LocallyConnected1D": None,
    "LocallyConnected2D": None,
    "ThresholdedReLU": None,
    "experimental": None,
    "wrappers": None,
    "legacy": None,
}
# The constructors at the base whose `**kwargs` refuse what they do not know; any other may keep them.
REFUSING = (keras.layers.Layer, keras.optimizers.Optimizer)
_REFUSERS = {next(base for base in cls.__mro__ if "__init__" in vars(base)) for cls in REFUSING}


def near(name: str, names: Any, cutoff: float = 0.6) -> str | None:
    """The nearest of some names, or None where none is near."""
    public = [other for other in names if other != name and (not other.startswith("_") or name.startswith("_"))]
    found = difflib.get_close_matches(name, public, n=1, cutoff=cutoff)
    return found[0] if found else None


def surely(name: str, other: str) -> bool:
    """Whether a name is so like another that this is the one that was meant."""
    return near(name, [other], 0.8) is not None or (len(name) >= 4 and distance(name, other) == 1)


def distance(a: str, b: str) -> int:
    """How many letters must be added, dropped, changed or swapped with the next to turn one text into another."""
    rows = [list(range(len(b) + 1))]
    for i, letter in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            cost = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]


def is_keras(thing: Any) -> bool:
    """Whether an object is of Keras 3, or of kustom."""
    module = thing.__name__ if inspect.ismodule(thing) else getattr(thing, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in ("keras", "kustom")


def moved(module: Any, name: str) -> str | None:
    """The name of today for one that a module of Keras once had, or is often thought to have."""
    new = MOVED.get(name) if is_keras(module.object) else None
    return new if new is not None and hasattr(module.object, new) else None


def removed(name: str) -> tuple[str | None, str] | None:
    """The new name, and the advice, for an attribute of Keras 2."""
    return REMOVED.get(name)


def removed_argument(name: str, names: frozenset[str]) -> str | None:
    """The argument of today for one of Keras 2, or for a misspelt one."""
    new = ARGUMENTS.get(name)
    return new if new in names else near(name, names)


def accepted(function: Any) -> frozenset[str] | None:
    """The names of the arguments that a function or class takes; None where it may take any.

    An argument that a body takes out of its `**kwargs` is found by the text of its name.
    """
    try:
        return _accepted_by_class(function) if isinstance(function, type) else _accepted_by_function(function)
    except (TypeError, ValueError, OSError):
        # No signature, or no source: written in C, or made at run time.
        return None


@functools.cache
def _accepted_by_class(cls: type) -> frozenset[str] | None:
    if type(cls).__call__ is not type.__call__:
        return None
    names: set[str] = set()
    if issubclass(cls, keras.Model):
        names |= {"inputs", "outputs"}
    for base in cls.__mro__:
        # Model calls the constructor of Layer, and that of its Trainer without arguments.
        if "__init__" not in vars(base) or (issubclass(cls, keras.layers.Layer) and not issubclass(base, keras.layers.Layer)):
            continue
        own, more = _parameters(vars(base)["__init__"])
        names |= own
        if not more:
            return frozenset(names)
        if not is_keras(base):
            return None
        names |= _texts(vars(base)["__init__"])
        if base in _REFUSERS:
            return frozenset(names)
        if not _hands_on(vars(base)["__init__"]):
            return None
    return None


def _hands_on(function: Any) -> bool:
    """Whether a constructor hands its `**kwargs` to the next."""
    calls = [node for node in ast.walk(_tree(function)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return any(call.func.attr == "__init__" and any(k.arg is None for k in call.keywords) for call in calls)  # type: ignore[union-attr]


def _accepted_by_function(function: Any) -> frozenset[str] | None:
    names, more = _parameters(function)
    return None if more else frozenset(names)


def _parameters(function: Any) -> tuple[set[str], bool]:
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


@functools.cache
def _tree(function: Any) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def _texts(function: Any) -> set[str]:
    return {node.value for node in ast.walk(_tree(function)) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@functools.cache
def _disabled(base: type, name: str) -> bool:
    """Whether a member of Keras is there only to say that it is gone, or going."""
    member = vars(base).get(name)
    function = member.fget if isinstance(member, property) else inspect.unwrap(member) if callable(member) else None
    if not inspect.isfunction(function):
        return False
    body = next(node for node in ast.walk(_tree(function)) if isinstance(node, ast.FunctionDef)).body
    raises = any(isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node) for node in body)
    return raises or any("deprecated" in text for text in _texts(function))


@functools.cache
def attributes(cls: type) -> frozenset[str] | None:
    """The attributes of an instance of a Keras class; None where they cannot be told."""
    names: set[str] = set(dir(cls))
    classes = [*cls.__mro__, *(type(_functional()).__mro__ if issubclass(cls, keras.Model) else ())]
    for base in dict.fromkeys(classes):
        names |= set(dir(base))
        if base is object or not is_keras(base):
            # torch.nn.Module finds in its __getattr__ what is registered with it, and Keras registers nothing of its own there.
            if "__getattr__" in vars(base) and not base.__module__.startswith("torch."):
                return None
            continue
        if "__getattr__" in vars(base):
            return None
        try:
            tree = _tree(base)
        except (TypeError, OSError, SyntaxError):
            return None
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    gone = {name for base in cls.__mro__ for name in REMOVED if _disabled(base, name)}
    return frozenset(names - gone)


@functools.cache
def _functional() -> Any:
    inputs = keras.Input((1,))
    return keras.Model(inputs, inputs)


FAMILIES = {
    "activation": keras.activations,
    "initializer": keras.initializers,
    "regularizer": keras.regularizers,
    "constraint": keras.constraints,
    "optimizer": keras.optimizers,
    "loss": keras.losses,
    "metric": keras.metrics,
}


def family_of(argument: str) -> str | None:
    """The kind of part that an argument names in text, such as the initializer of `kernel_initializer="zeros"`."""
    if argument in ("metrics", "weighted_metrics"):
        return "metric"
    last = argument.rpartition("_")[2]
    return last if last in FAMILIES and (last != "loss" or argument == "loss") and (last != "metric") else None


def knows(family: str, name: str) -> bool:
    """Whether Keras makes a part of this kind from this text."""
    if family in ("metric", "loss") and name in ("accuracy", "acc", "crossentropy", "ce"):
        return True  # what compile chooses by the shape of the targets
    try:
        FAMILIES[family].get(name)
    except (TypeError, KeyError):
        return True  # known, and with arguments that it must be given
    except ValueError:
        return False
    return True


def nearest_name(family: str, name: str) -> str | None:
    """The name nearest to a text that Keras does not know, or None."""
    return near(name, _known_names(family))


@functools.cache
def _known_names(family: str) -> list[str]:
    names = [n for n in dir(FAMILIES[family]) if not n.startswith("_")]
    return [n for n in [*(n.lower() for n in names), *(_snake(n) for n in names), *names] if knows(family, n)]


def _snake(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() and i and not name[i - 1].isupper() else c.lower() for i, c in enumerate(name))

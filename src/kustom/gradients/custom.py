"""`custom_gradient`: a function that says its gradient itself, in one way on every backend.

The function runs where it is called, and what it returns has its gradient attached: the function's own operations are
passed by. What the gradient function closes over stays connected, so that a second derivative is that of the gradient as
it is written.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec

import keras
from keras import ops

from kustom.backends import current
from kustom.backends import keras as private
from kustom.defining.data import is_floating
from kustom.errors import GradientError, hide_frames

__all__ = ["custom_gradient"]

P = ParamSpec("P")


def custom_gradient(f: Callable[P, Any]) -> Callable[P, Any]:
    """Have a function say its gradient itself.

    Args:
        f: Returns `(y, gradient)`: `y` a tensor or a structure of them, and `gradient(upstream)` a function. `upstream` is
            the gradient by `y`, in its structure; where `y` is a list or tuple of several tensors, a `gradient` of as many
            parameters gets one each. It returns the gradient by the tensors among the arguments, in the order of `f`'s
            parameters: one where there is one, else a list or tuple, with None for those by which there is none. Tensors
            of integers, and of keyword-only parameters, may be left out.
            A `gradient` with a parameter `variables` is handed the list of variables that `f` read, and returns the pair
            `(by arguments, by variables)`; without it nothing flows to these.

    Returns:
        A function of the same arguments that returns `y`.

    Raises:
        GradientError: When it is called, or differentiated: `f` returned no pair, or not as many gradients as there are
            tensors among the arguments, or one of another shape.

    Example:
        >>> import kustom
        >>> from keras import ops
        >>> @kustom.custom_gradient
        ... def softplus(z):
        ...     return ops.logaddexp(z, 0.0), lambda upstream: upstream * ops.sigmoid(z)
        >>> x = ops.convert_to_tensor(100.0)
        >>> float(kustom.grad(softplus)(x))
        1.0
    """
    if not callable(f):
        raise GradientError(f"@kustom.custom_gradient decorates a function, not {type(f).__name__}.")
    name = getattr(f, "__name__", type(f).__name__)
    function: Callable[..., Any] = f

    @hide_frames
    @functools.wraps(function)
    def with_gradient(*given: Any, **named_given: Any) -> Any:
        args: Any = keras.tree.map_structure(_value, given)
        kwargs: Any = keras.tree.map_structure(_value, named_given)
        tensors, by_position = _tensors(function, args, kwargs)
        with private.reads() as read:
            made = function(*args, **kwargs)
        if not (isinstance(made, tuple) and len(made) == 2 and callable(made[1])):
            raise GradientError(
                f"{name} returned {type(made).__name__}; a function under @kustom.custom_gradient returns (y, gradient), where "
                "gradient is a function: return y, lambda upstream: ..."
            )
        y, gradient = made
        outputs = [ops.convert_to_tensor(x) for x in keras.tree.flatten(y)]
        tapes = current("tapes")
        if any(isinstance(x, keras.KerasTensor) for x in outputs) or not tapes.is_differentiated():
            return y
        takes = _parameters(gradient)
        variables = [v for v in read if v.trainable] if "variables" in takes else []
        inputs = [*(x for x in tensors if _is_floating(x)), *(v.value for v in variables)]

        def pullback(upstream: list[Any]) -> list[Any]:
            filled = [ops.zeros_like(o) if u is None else u for u, o in zip(upstream, outputs, strict=True)]
            upstreams = filled if len(filled) > 1 and _takes_each(gradient, len(filled)) else [_packed(y, filled)]
            if "variables" not in takes:
                return _gradients(name, gradient(*upstreams), tensors, by_position)
            found = gradient(*upstreams, variables=variables)
            if not (isinstance(found, tuple | list) and len(found) == 2):
                raise GradientError(f"the gradient of {name} takes variables=, and so returns (by arguments, by variables).")
            by_variables = _as_list(found[1])
            if len(by_variables) != len(variables):
                raise GradientError(f"the gradient of {name} gave {len(by_variables)} gradients for {len(variables)} variables.")
            return _gradients(name, found[0], tensors, by_position) + by_variables

        return _packed(y, tapes.attached(outputs, inputs, pullback))

    return with_gradient


def _tensors(function: Callable[..., Any], args: Any, kwargs: Any) -> tuple[list[Any], int]:
    """The tensors among the arguments in the order of the function's parameters, and how many of them go by position."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        # Written in C, or not to be called so: the call will say it.
        every, positional = [*args, *kwargs.values()], len(args)
    else:
        parameters = bound.signature.parameters
        of = {True: [], False: []}
        for name, value in bound.arguments.items():
            kind = parameters[name].kind
            of[kind not in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)].append(
                list(value.values()) if kind is inspect.Parameter.VAR_KEYWORD else value
            )
        every, positional = [*of[True], *of[False]], len(of[True])
    counted = [[x for x in keras.tree.flatten(value) if ops.is_tensor(x)] for value in every]
    return [x for each in counted for x in each], sum(map(len, counted[:positional]))


def _gradients(name: str, found: Any, tensors: list[Any], by_position: int) -> list[Any]:
    """What a gradient function returned: one for each floating tensor that the function was given.

    It may leave out the tensors of integers, and those that go by keyword alone.
    """
    floating = [_is_floating(x) for x in tensors]
    flat = [found] if sum(floating) == 1 and not isinstance(found, list | tuple) else _as_list(found)
    if len(flat) == len(tensors):
        flat = [gradient for gradient, each in zip(flat, floating, strict=True) if each]
    elif len(flat) == by_position:
        flat = [gradient for gradient, each in zip(flat, floating[:by_position], strict=True) if each]
        flat += [None] * sum(floating[by_position:])
    elif len(flat) == sum(floating[:by_position]):
        flat = flat + [None] * sum(floating[by_position:])
    inputs = [x for x, each in zip(tensors, floating, strict=True) if each]
    if len(flat) != len(inputs):
        raise GradientError(
            f"the gradient of {name} returned {len(flat)} gradients for {len(inputs)} tensors among the arguments; return one "
            "each, and None where there is none."
        )
    result = []
    for gradient, x in zip(flat, inputs, strict=True):
        if gradient is not None:
            gradient = ops.cast(ops.convert_to_tensor(gradient), private.standardize_dtype(x.dtype))
            if tuple(gradient.shape) != tuple(x.shape):
                raise GradientError(
                    f"the gradient of {name} has the shape {tuple(gradient.shape)} for an argument of the shape {tuple(x.shape)}; "
                    "sum it over the axes along which the argument was broadcast."
                )
        result.append(gradient)
    return result


def _value(x: Any) -> Any:
    return x.value if isinstance(x, keras.Variable) else x


def _as_list(x: Any) -> list[Any]:
    if x is None:
        return [None]
    return list(x) if isinstance(x, list | tuple) else keras.tree.flatten(x)


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        # Written in C: it takes what it is given.
        return {}


def _takes_each(gradient: Callable[..., Any], many: int) -> bool:
    parameters = [p for name, p in _parameters(gradient).items() if name != "variables"]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in positional if p.default is p.empty]
    return many == len(needed) or (len(needed) != 1 and many == len(positional))


def _is_floating(x: Any) -> bool:
    return ops.is_tensor(x) and is_floating(x)


def _packed(structure: Any, flat: list[Any]) -> Any:
    return flat[0] if not isinstance(structure, list | tuple | dict) else keras.tree.pack_sequence_as(structure, flat)

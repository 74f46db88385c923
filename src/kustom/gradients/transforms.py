"""Functions that make a function of gradients from a function: `grad` and its kin, on every backend, also of stateful ones.

The function runs once, and what it does to variables (a BatchNormalization's statistics, a seed, a metric) is done once. On
TensorFlow and torch it runs under a tape. On JAX it is traced by `jax.vjp`, which rests on nothing that moves; where its
values are to be seen meanwhile, the tape is the way there, too.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from kustom.backends import current
from kustom.backends import keras as private
from kustom.defining.data import is_floating
from kustom.errors import GradientError, hide_frames
from kustom.gradients.tape import GradientTape, is_recorded

__all__ = ["grad", "hessian", "hvp", "jacobian", "value_and_grad"]


class _Unsaid(int):
    """The default of `argnums`, which counts only where nothing else is said to be differentiated by."""


_FIRST = _Unsaid(0)
Argnums = int | Sequence[int]


def value_and_grad(
    f: Callable[..., Any], argnums: Argnums = _FIRST, variables: Any = None, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that computes what `f` does, and its gradient.

    Args:
        f: Returns a scalar tensor; with `has_aux` a pair of that and anything else. It may read and assign variables.
        argnums: The position of the argument to differentiate by, or several; each a tensor or a structure of them.
        variables: A variable, or a structure of them, to differentiate by. Where it is given, `argnums` counts only if it
            is given, too.
        has_aux: Whether `f` returns a pair.

    Returns:
        A function of `f`'s arguments that returns `(value, gradients)`, with `has_aux` `((value, aux), gradients)`. The
        gradients have the structure of what is differentiated by: that of the argument, a tuple for several positions,
        that of `variables`, or the pair `(by arguments, by variables)`. What does not matter for the value, and what holds
        integers, has None.

    Raises:
        GradientError: When it is called: there is no such argument, the value is no scalar, `variables` is empty.

    Example:
        >>> import keras, kustom
        >>> from keras import ops
        >>> w = keras.Variable(3.0)
        >>> value, gradient = kustom.value_and_grad(lambda x: ops.sum(w * x**2), variables=w)(ops.array([1.0, 2.0]))
        >>> float(value), float(gradient)
        (15.0, 5.0)
        >>> value, gradient = kustom.value_and_grad(lambda x: ops.sum(x**2))(ops.array([1.0, 2.0]))
        >>> [float(each) for each in gradient]
        [2.0, 4.0]
    """
    choice = _Choice(f, argnums, variables)

    @_like(f)
    def both(*args: Any, **kwargs: Any) -> Any:
        value, aux, pulled = choice.run(args, kwargs, has_aux)
        _refuse_no_scalar(value, choice.name)
        gradients = choice.packed(pulled, pulled.gradient())
        if not choice.positions and not is_recorded():
            # A training step's: who keeps the value keeps no graph.
            value, aux = _detached(value), keras.tree.map_structure(_detached, aux)
        return ((value, aux) if has_aux else value), gradients

    return both


def grad(f: Callable[..., Any], argnums: Argnums = _FIRST, variables: Any = None, has_aux: bool = False) -> Callable[..., Any]:
    """A function that computes the gradient of `f`; with `has_aux` the pair of the gradient and what `f` returned beside.

    Args:
        f: As for `value_and_grad`.
        argnums: As for `value_and_grad`.
        variables: As for `value_and_grad`.
        has_aux: As for `value_and_grad`.

    Returns:
        A function of `f`'s arguments; its gradients are those of `value_and_grad`.

    Raises:
        GradientError: As for `value_and_grad`.

    Example:
        >>> import kustom
        >>> from keras import ops
        >>> cube = lambda x: x**3
        >>> x = ops.convert_to_tensor(2.0)
        >>> float(kustom.grad(cube)(x)), float(kustom.grad(kustom.grad(cube))(x))
        (12.0, 12.0)
    """
    both = value_and_grad(f, argnums, variables, has_aux)

    @_like(f)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, gradients = both(*args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return gradient


def jacobian(f: Callable[..., Any], argnums: Argnums = _FIRST, variables: Any = None, has_aux: bool = False) -> Callable[..., Any]:
    """A function that computes the derivatives of each entry of what `f` returns.

    Args:
        f: Returns a tensor, or a structure of them; with `has_aux` a pair of that and anything else.
        argnums: As for `value_and_grad`.
        variables: As for `value_and_grad`.
        has_aux: As for `value_and_grad`.

    Returns:
        A function of `f`'s arguments. For each tensor that `f` returns it gives, in the structure of what is differentiated
        by, tensors of the shape `(*value.shape, *source.shape)`, or None where there is no way.

    Raises:
        GradientError: As for `value_and_grad`, but that the value need be no scalar.

    Example:
        >>> import kustom
        >>> from keras import ops
        >>> ops.convert_to_numpy(kustom.jacobian(lambda x: x**2)(ops.array([1.0, 2.0]))).tolist()
        [[2.0, 0.0], [0.0, 4.0]]
    """
    choice = _Choice(f, argnums, variables)

    @_like(f)
    def derivatives(*args: Any, **kwargs: Any) -> Any:
        value, aux, pulled = choice.run(args, kwargs, has_aux)
        flat = keras.tree.flatten(value)
        found = []
        for index, target in enumerate(flat):
            rows = pulled.jacobian(index) if is_floating(target) else [None] * len(pulled.sources)
            shaped = [
                None if row is None else ops.reshape(row, (*ops.shape(target), *ops.shape(source)))
                for row, source in zip(rows, pulled.sources, strict=True)
            ]
            found.append(choice.packed(pulled, shaped))
        result = found[0] if _is_tensor(value) else _pack(value, found)
        return (result, aux) if has_aux else result

    return derivatives


def hessian(f: Callable[..., Any], argnums: Argnums = _FIRST, variables: Any = None, has_aux: bool = False) -> Callable[..., Any]:
    """A function that computes the second derivatives of `f`.

    Args:
        f: As for `value_and_grad`.
        argnums: As for `value_and_grad`.
        variables: As for `value_and_grad`.
        has_aux: As for `value_and_grad`.

    Returns:
        A function of `f`'s arguments. It gives the structure of what is differentiated by twice, one inside the other, with
        tensors of the shape `(*source.shape, *other.shape)`: zeros where a second derivative is 0 because nothing depends.

    Raises:
        GradientError: As for `value_and_grad`.

    Example:
        >>> import kustom
        >>> from keras import ops
        >>> ops.convert_to_numpy(kustom.hessian(lambda x: x[0] ** 2 * x[1])(ops.array([1.0, 3.0]))).tolist()
        [[6.0, 2.0], [2.0, 0.0]]
    """
    choice = _Choice(f, argnums, variables)

    @_like(f)
    def second(*args: Any, **kwargs: Any) -> Any:
        gradients, aux, pulled = choice.run_gradient(args, kwargs, has_aux)
        found = []
        for index, (gradient, source) in enumerate(zip(gradients, pulled.sources, strict=True)):
            rows = [None] * len(gradients) if gradient is None else pulled.jacobian(index)
            shaped = []
            for row, other in zip(rows, pulled.sources, strict=True):
                shape = (*ops.shape(source), *ops.shape(other))
                shaped.append(ops.zeros(shape, dtype=_dtype(other)) if row is None else ops.reshape(row, shape))
            found.append(choice.packed(pulled, shaped))
        result = choice.packed(pulled, found)
        return (result, aux) if has_aux else result

    return second


def hvp(f: Callable[..., Any], argnums: Argnums = _FIRST, variables: Any = None, has_aux: bool = False) -> Callable[..., Any]:
    """A function that computes the product of the Hessian of `f` and a vector, at about the cost of two gradients.

    Args:
        f: As for `value_and_grad`.
        argnums: As for `value_and_grad`.
        variables: As for `value_and_grad`.
        has_aux: As for `value_and_grad`.

    Returns:
        A function of `f`'s arguments and, behind them, the vector: in the structure of what is differentiated by, tensors
        of the same shapes. It gives the product in that structure.

    Raises:
        GradientError: As for `value_and_grad`; the vector does not fit.

    Example:
        >>> import kustom
        >>> from keras import ops
        >>> x, vector = ops.array([1.0, 3.0]), ops.array([1.0, 0.0])
        >>> ops.convert_to_numpy(kustom.hvp(lambda x: x[0] ** 2 * x[1])(x, vector)).tolist()
        [6.0, 2.0]
    """
    choice = _Choice(f, argnums, variables)

    @hide_frames
    def product(*args: Any, **kwargs: Any) -> Any:
        if not args:
            raise GradientError(f"hvp of {choice.name} is called with its arguments and, behind them, the vector.")
        *args, vector = args  # type: ignore[assignment]
        gradients, aux, pulled = choice.run_gradient(tuple(args), kwargs, has_aux)
        flat = keras.tree.flatten(vector)
        got, expected = [tuple(ops.shape(v)) for v in flat], [tuple(x.shape) for x in pulled.sources]
        if got != expected:
            raise GradientError(f"the vector has the shapes {got}; what is differentiated by has {expected}.")
        seeds = [ops.cast(v, _dtype(g)) for v, g in zip(flat, gradients, strict=True) if g is not None]
        found = pulled.gradient(seeds) if seeds else [None] * len(flat)
        zeros = [ops.zeros(ops.shape(x), dtype=_dtype(x)) if g is None else g for g, x in zip(found, pulled.sources, strict=True)]
        result = choice.packed(pulled, zeros)
        return (result, aux) if has_aux else result

    return product


class _Choice:
    """What of a function is differentiated by what."""

    def __init__(self, f: Callable[..., Any], argnums: Argnums, variables: Any) -> None:
        if not callable(f):
            raise GradientError(f"a function was expected, not {type(f).__name__}; give the function itself: grad(f)(x).")
        self.f = f
        self.name = getattr(f, "__name__", type(f).__name__)
        self.variables = variables
        self.flat_variables = [] if variables is None else keras.tree.flatten(variables)
        for variable in self.flat_variables:
            if not isinstance(variable, keras.Variable):
                raise GradientError(
                    f"variables= takes keras.Variables, not {type(variable).__name__}; a tensor is an argument: argnums=."
                )
        if variables is not None and not self.flat_variables:
            raise GradientError("variables= is empty: the model has none, or is not built yet. Build it, or call it once, before.")
        by_arguments = variables is None or not isinstance(argnums, _Unsaid)
        self.single = isinstance(argnums, int)
        every: list[Any] = [argnums] if isinstance(argnums, int) else list(argnums)
        positions = every if by_arguments else []
        if any(not isinstance(p, int) or isinstance(p, bool) for p in positions) or len(set(positions)) != len(positions):
            raise GradientError(f"argnums is the position of an argument, or several different ones, not {argnums!r}.")
        self.positions: list[int] = [int(p) for p in positions]

    @hide_frames
    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], has_aux: bool, through: Callable[..., Any] | None = None) -> Any:
        """Call the function; return its value, what it returned beside, and its derivatives."""
        positions = [p + len(args) if p < 0 else p for p in self.positions]
        for asked, p in zip(self.positions, positions, strict=True):
            if not 0 <= p < len(args):
                raise GradientError(f"argnums={asked}, and {self.name} was given {len(args)} arguments by position.")
        # A variable that is an argument is one to differentiate by: its value is.
        chosen = [_plain(args[p]) for p in positions]
        inputs = [ops.convert_to_tensor(x) for x in keras.tree.flatten(chosen)]

        def call(inputs: list[Any]) -> tuple[list[Any], Any]:
            packed = _pack(chosen, inputs)
            given = list(args)
            for p, value in zip(positions, packed, strict=True):
                given[p] = value
            result = (through or self.f)(*given, **kwargs)
            if has_aux and not (isinstance(result, tuple) and len(result) == 2):
                raise GradientError(f"has_aux=True, and {self.name} returned {type(result).__name__}; return (value, aux).")
            value, aux = result if has_aux else (result, None)
            flat = keras.tree.flatten(value)
            for x in flat:
                if not _is_tensor(x):
                    raise GradientError(f"{self.name} returned {type(x).__name__} {str(x)[:40]!r}, where a tensor was expected.")
            kept["structure"] = value
            return [private.told(x) if isinstance(x, keras.Variable) else x for x in flat], aux

        kept: dict[str, Any] = {}
        derivatives = _derivatives(call, inputs, self.flat_variables)
        structure = kept.pop("structure")
        value = derivatives.targets[0] if _is_tensor(structure) else _pack(structure, derivatives.targets)
        derivatives.structure = chosen
        return value, derivatives.aux, derivatives

    def run_gradient(self, args: tuple[Any, ...], kwargs: dict[str, Any], has_aux: bool) -> Any:
        """Call the function's gradient; return it flat, what the function returned beside, and its own derivatives."""

        def gradients(*args: Any, **kwargs: Any) -> Any:
            value, aux, pulled = self.run(args, kwargs, has_aux)
            _refuse_no_scalar(value, self.name)
            flat = pulled.gradient()
            links[:] = [each is not None for each in flat]
            return [each for each in flat if each is not None], aux

        links: list[bool] = []
        flat, aux, pulled = self.run(args, kwargs, True, through=gradients)
        found = iter(flat)
        return [next(found) if linked else None for linked in links], aux, pulled.spread(links)

    def packed(self, derivatives: _Derivatives, flat: list[Any]) -> Any:
        """Gradients in the structure of what is differentiated by."""
        found = iter(flat)
        by_arguments = [
            next(found) if _is_tensor(structure) else _pack(structure, [next(found) for _ in keras.tree.flatten(structure)])
            for structure in derivatives.structure
        ]
        arguments = by_arguments[0] if self.single and by_arguments else tuple(by_arguments)
        if self.variables is None:
            return arguments
        rest = list(found)
        variables = rest[0] if isinstance(self.variables, keras.Variable) else _pack(self.variables, rest)
        return (arguments, variables) if self.positions else variables


class _Derivatives:
    """A function's targets, and their derivatives by its inputs and variables, whichever way they come about."""

    def __init__(self, targets: list[Any], aux: Any, sources: list[Any], gradient: Any, jacobian: Any) -> None:
        self.targets = targets
        self.aux = aux
        self.sources = sources
        self.structure: list[Any] = []
        self._gradient = gradient
        self._jacobian = jacobian

    def gradient(self, seeds: list[Any] | None = None) -> list[Any]:
        """The gradient of the sum of all targets, each weighed by its seed (None: ones)."""
        return self._gradient(seeds or [None] * len(self.targets))

    def jacobian(self, index: int) -> list[Any]:
        """The derivatives of each entry of one target, in an order to be shaped `(*target.shape, *source.shape)`, or None."""
        return self._jacobian(index)

    def spread(self, links: list[bool]) -> _Derivatives:
        """The same where the targets are numbered with those between them that are None."""
        places = {index: place for place, index in enumerate(i for i, linked in enumerate(links) if linked)}
        spread = _Derivatives(self.targets, self.aux, self.sources, self._gradient, lambda index: self._jacobian(places[index]))
        spread.structure = self.structure
        return spread


def _derivatives(call: Any, inputs: list[Any], variables: list[keras.Variable]) -> _Derivatives:
    tapes = current("tapes")
    pulled = tapes.pulled(call, inputs, variables)
    sources = [*inputs, *variables]
    if pulled is not None:
        return _Derivatives(pulled.targets, pulled.aux, sources, pulled.gradient, pulled.jacobian)
    tape = GradientTape(persistent=True, watch_accessed_variables=False)
    inputs = [tapes.fresh(x) for x in inputs]
    with tape:
        tape.watch(inputs)
        tape.watch(variables)
        targets, aux = call(inputs)
    sources = [*inputs, *variables]

    def gradient(seeds: list[Any]) -> list[Any]:
        return tape.gradient(targets, sources, output_gradients=seeds)

    return _Derivatives(targets, aux, sources, gradient, lambda index: tape.jacobian(targets[index], sources))


def _like(f: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a transformed function the name and signature of the one that it is of."""

    def decorator(made: Callable[..., Any]) -> Callable[..., Any]:
        shown = hide_frames(made)
        shown.__doc__ = f"The {made.__name__} of {getattr(f, '__name__', type(f).__name__)}."
        # What is written in C may have no signature.
        with contextlib.suppress(TypeError, ValueError):
            shown.__signature__ = inspect.signature(f)  # type: ignore[attr-defined]
        return shown

    return decorator


def _refuse_no_scalar(value: Any, name: str) -> None:
    if not _is_tensor(value) or len(value.shape) != 0:
        got = f"the shape {tuple(value.shape)}" if _is_tensor(value) else type(value).__name__
        raise GradientError(
            f"{name} returned {got}, where a scalar tensor was expected. Take the mean or the sum; for each entry: jacobian()."
        )


def _detached(x: Any) -> Any:
    return current("tapes").detached(x) if ops.is_tensor(x) else x


def _plain(structure: Any) -> Any:
    return keras.tree.map_structure(lambda x: x.value if isinstance(x, keras.Variable) else x, structure)


def _is_tensor(x: Any) -> bool:
    return ops.is_tensor(x) or isinstance(x, keras.Variable)


def _dtype(x: Any) -> str:
    return private.standardize_dtype(x.dtype)


def _pack(structure: Any, flat: list[Any]) -> Any:
    return keras.tree.pack_sequence_as(structure, flat)

"""Types for the fields of a part that hold a Keras object: they take whatever Keras takes in that place.

A field `activation: ActivationLike = None` takes a name (`"relu"`), a decorated part by its name or its registered name,
an object, a config, or None, and holds what `keras.activations.get` makes of it. To a type checker each of them is `Any`,
since an attribute is read as another type than it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

__all__ = [
    "ActivationLike",
    "ConstraintLike",
    "Converter",
    "InitializerLike",
    "LossLike",
    "MetricLike",
    "OptimizerLike",
    "RegularizerLike",
]


@dataclass(frozen=True)
class Converter:
    """How a field turns what it is given into what it holds: put it into `typing.Annotated`, or into `kustom.field`.

    Args:
        function: Takes the value given, returns the value held, and raises `ValueError` or `TypeError` for what it
            cannot take.
        expected: What it takes, in words for an error message.
        family: The module of Keras whose kind of part it takes, such as `"losses"`: text may then also name a part made
            with kustom, by its registered name, or by its own where only one has it.

    Example:
        >>> from typing import Annotated
        >>> from kustom.typing import Converter
        >>> Percent = Annotated[float, Converter(lambda x: float(x) / 100, "a number of percents")]
    """

    function: Callable[[Any], Any]
    expected: str
    family: str | None = None


def _like(family: str, expected: str) -> Converter:
    def get(identifier: Any) -> Any:
        import keras

        return getattr(keras, family).get(identifier)

    return Converter(get, expected, family)


if TYPE_CHECKING:
    ActivationLike = Any
    ConstraintLike = Any
    InitializerLike = Any
    LossLike = Any
    MetricLike = Any
    OptimizerLike = Any
    RegularizerLike = Any
else:
    ActivationLike = Annotated[Any, _like("activations", "an activation: a name, a function or part, None")]
    ConstraintLike = Annotated[Any, _like("constraints", "a constraint: a name, a part or object, None")]
    InitializerLike = Annotated[Any, _like("initializers", "an initializer: a name, a part or object, None")]
    LossLike = Annotated[Any, _like("losses", "a loss: a name, a function, part or object, None")]
    MetricLike = Annotated[Any, _like("metrics", "a metric: a name, a function, part or object, None")]
    OptimizerLike = Annotated[Any, _like("optimizers", "an optimizer: a name or object")]
    RegularizerLike = Annotated[Any, _like("regularizers", "a regularizer: a name, a part or object, None")]

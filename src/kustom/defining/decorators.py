"""The decorators of a function, typed so that an editor completes `huber(threshold=`.

What they hand back is called with data, and computes, or with settings, and makes the part. A type checker sees three
ways to call it: the settings alone, the settings with Keras's own arguments (`name`, `dtype`), and data. It cannot see a
misspelt setting beside the latter two; that is an error when it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

import keras

from kustom.defining.function_part import make
from kustom.defining.versions import Versions
from kustom.errors import hide_frames

__all__ = ["activation", "constraint", "initializer", "layer", "loss", "metric", "regularizer"]

P = ParamSpec("P")
PartT = TypeVar("PartT", covariant=True)
Formula = Callable[..., Any]
Migrate = Callable[[dict[str, Any], int], dict[str, Any]]


class Part(Protocol[P, PartT]):
    """A decorated function: call it with data to compute, with settings to make the part."""

    fn: Callable[..., Any]
    __name__: str

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> PartT: ...
    @overload
    def __call__(self, *, name: str | None = ..., dtype: Any = ..., **settings: Any) -> PartT: ...
    @overload
    def __call__(self, data: Any, /, *more: Any, **settings: Any) -> Any: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def get_config(self) -> dict[str, Any]: ...
    def from_config(self, config: dict[str, Any]) -> PartT: ...


class ActivationPart(Protocol[P]):
    """A decorated activation: the default part itself; call it with data to compute, with settings for another."""

    fn: Callable[..., Any]
    __name__: str

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> ActivationPart[P]: ...
    @overload
    def __call__(self, data: Any, /, **settings: Any) -> Any: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def get_config(self) -> dict[str, Any]: ...


_Two = Callable[Concatenate[Any, Any, P], Any]
_One = Callable[Concatenate[Any, P], Any]


def _decorate(kind: str, function: Any, package: Any, formerly: Any, version: int, migrate: Any, result: Any = None) -> Any:
    versions = Versions(version, migrate)

    @hide_frames
    def decorator(function: Any) -> Any:
        return make(kind, function, package=package, formerly=formerly, versions=versions, result=result)

    return decorator if function is None else decorator(function)


@overload
def loss(function: _Two[P], /) -> Part[P, keras.losses.Loss]: ...
@overload
def loss(
    function: None = None,
    /,
    *,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Migrate | None = None,
) -> Callable[[_Two[P]], Part[P, keras.losses.Loss]]: ...
@hide_frames
def loss(
    function: Any = None,
    /,
    *,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Migrate | None = None,
) -> Any:
    """Make a function a `keras.losses.Loss`; its keyword-only parameters are the settings.

    The function takes `y_true` and `y_pred`, tensors of the shape `(batch, ...)`; floating ones have the loss's dtype,
    integers and booleans their own. It returns one value an entry, the shape of `y_pred` (kustom averages the last axis),
    or one a sample or time step, that shape without its last axis. Keras does the rest: reduction, `sample_weight`, mask.
    What is masked or weighs nothing is replaced by an entry that counts before the function sees it; its value and its
    gradient are 0.

    Args:
        function: The function, where the decorator is written without arguments.
        package: What stands before the `>` in the registered name; the module's name where it is not given.
        formerly: Registered names under which older files know the part.
        version: Of the settings, from 1 on.
        migrate: `migrate(config, version)` turns a config of an older version into one of this version.

    Raises:
        DefinitionError: The function cannot become a part: see its subclasses in `kustom.errors`.
        NameClashError: Its name belongs to another part.

    Example:
        >>> import kustom
        >>> from keras import ops
        >>> @kustom.loss(package="docs")
        ... def pinball(y_true, y_pred, *, quantile=0.5):
        ...     error = ops.subtract(y_true, y_pred)
        ...     return ops.maximum(quantile * error, (quantile - 1) * error)
        >>> pinball(quantile=0.9)
        pinball(quantile=0.9)
        >>> round(float(pinball(quantile=0.9)([[1.0], [0.0]], [[0.0], [1.0]])), 4)
        0.5
    """
    return _decorate("loss", function, package, formerly, version, migrate)


@overload
def metric(function: _Two[P], /) -> Part[P, keras.metrics.Metric]: ...
@overload
def metric(
    function: None = None,
    /,
    *,
    result: Formula | None = None,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Migrate | None = None,
) -> Callable[[_Two[P]], Part[P, keras.metrics.Metric]]: ...
@hide_frames
def metric(
    function: Any = None,
    /,
    *,
    result: Formula | None = None,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Migrate | None = None,
) -> Any:
    """Make a function a `keras.metrics.Metric`; its keyword-only parameters are the settings.

    The function takes `y_true` and `y_pred` as a loss does. It returns what a loss returns (a weighted running mean), or
    `kustom.Ratio` (two sums and their quotient), or `kustom.Sums` with a formula over them in `result=`. Everything is
    summed over samples, weighted, so that any split into batches and any number of replicas gives the same result. Before
    the first sample the result is 0. The part has `merge_state(metrics)`, too.

    Args:
        function: The function, where the decorator is written without arguments.
        result: The formula over the sums of `kustom.Sums`: called with each sum by its name, and with the settings that it
            names. It returns a tensor, or a dict of them.
        package: What stands before the `>` in the registered name; the module's name where it is not given.
        formerly: Registered names under which older files know the part.
        version: Of the settings, from 1 on.
        migrate: `migrate(config, version)` turns a config of an older version into one of this version.

    Raises:
        DefinitionError: The function cannot become a part: see its subclasses in `kustom.errors`.
        NameClashError: Its name belongs to another part.

    Example:
        >>> import kustom
        >>> from keras import ops
        >>> @kustom.metric(package="docs")
        ... def accuracy_within(y_true, y_pred, *, tolerance=0.1):
        ...     return ops.abs(ops.subtract(y_true, y_pred)) <= tolerance
        >>> metric = accuracy_within(tolerance=0.5)
        >>> metric.update_state([[1.0], [2.0]], [[1.25], [3.0]])
        >>> float(metric.result())
        0.5
    """
    return _decorate("metric", function, package, formerly, version, migrate, result)


@overload
def activation(function: _One[P], /) -> ActivationPart[P]: ...
@overload
def activation(
    function: None = None,
    /,
    *,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Migrate | None = None,
) -> Callable[[_One[P]], ActivationPart[P]]: ...
@hide_frames
def activation(
    function: Any = None,
    /,
    *,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Migrate | None = None,
) -> Any:
    """Make a function an activation, a callable object; its keyword-only parameters are the settings.

    The function takes one tensor and returns one of its shape. Keras never makes an activation itself, so the name is the
    default part: `Dense(4, activation=my_softplus)`, or `my_softplus(sharpness=2.0)` for another.

    Args:
        function: The function, where the decorator is written without arguments.
        package: What stands before the `>` in the registered name; the module's name where it is not given.
        formerly: Registered names under which older files know the part.
        version: Of the settings, from 1 on.
        migrate: `migrate(config, version)` turns a config of an older version into one of this version.

    Raises:
        DefinitionError: The function cannot become a part: see its subclasses in `kustom.errors`.
        NameClashError: Its name belongs to another part.

    Example:
        >>> import keras, kustom
        >>> from keras import ops
        >>> @kustom.activation(package="docs")
        ... def leaky(x, *, slope=0.01):
        ...     return ops.where(x < 0, slope * x, x)
        >>> [round(float(value), 2) for value in leaky([-2.0, 3.0])]
        [-0.02, 3.0]
        >>> keras.layers.Dense(4, activation=leaky(slope=0.2)).activation
        leaky(slope=0.2)
    """
    return _decorate("activation", function, package, formerly, version, migrate)


@overload
def initializer(function: _Two[P], /) -> Part[P, keras.initializers.Initializer]: ...
@overload
def initializer(
    function: None = None,
    /,
    *,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Migrate | None = None,
) -> Callable[[_Two[P]], Part[P, keras.initializers.Initializer]]: ...
@hide_frames
def initializer(
    function: Any = None,
    /,
    *,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Migrate | None = None,
) -> Any:
    """Make a function a `keras.initializers.Initializer`; its keyword-only parameters are the settings.

    The function takes `shape` (a tuple of whole numbers) and `dtype` (a name), and may have a setting `seed`: a part's n-th
    draw folds n into it, so that two weights that are given one instance differ, and a new part with the same seed repeats
    them. Its values have the shape asked for; they are cast to the dtype.

    Args:
        function: The function, where the decorator is written without arguments.
        package: What stands before the `>` in the registered name; the module's name where it is not given.
        formerly: Registered names under which older files know the part.
        version: Of the settings, from 1 on.
        migrate: `migrate(config, version)` turns a config of an older version into one of this version.

    Raises:
        DefinitionError: The function cannot become a part: see its subclasses in `kustom.errors`.
        NameClashError: Its name belongs to another part.

    Example:
        >>> import keras, kustom
        >>> @kustom.initializer(package="docs")
        ... def scaled_normal(shape, dtype, *, stddev=0.1, seed=None):
        ...     return keras.random.normal(shape, stddev=stddev, dtype=dtype, seed=seed)
        >>> scaled_normal(stddev=0.5, seed=1)((2, 3)).shape == (2, 3)
        True
    """
    return _decorate("initializer", function, package, formerly, version, migrate)


@overload
def regularizer(function: _One[P], /) -> Part[P, keras.regularizers.Regularizer]: ...
@overload
def regularizer(
    function: None = None,
    /,
    *,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Migrate | None = None,
) -> Callable[[_One[P]], Part[P, keras.regularizers.Regularizer]]: ...
@hide_frames
def regularizer(
    function: Any = None,
    /,
    *,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Migrate | None = None,
) -> Any:
    """Make a function a `keras.regularizers.Regularizer`; its keyword-only parameters are the settings.

    The function takes a weight as a tensor and returns one number.

    Args:
        function: The function, where the decorator is written without arguments.
        package: What stands before the `>` in the registered name; the module's name where it is not given.
        formerly: Registered names under which older files know the part.
        version: Of the settings, from 1 on.
        migrate: `migrate(config, version)` turns a config of an older version into one of this version.

    Raises:
        DefinitionError: The function cannot become a part: see its subclasses in `kustom.errors`.
        NameClashError: Its name belongs to another part.

    Example:
        >>> import kustom
        >>> from keras import ops
        >>> @kustom.regularizer(package="docs")
        ... def l1(w, *, factor=0.01):
        ...     return factor * ops.sum(ops.abs(w))
        >>> round(float(l1(factor=0.5)([1.0, -3.0])), 4)
        2.0
    """
    return _decorate("regularizer", function, package, formerly, version, migrate)


@overload
def constraint(function: _One[P], /) -> Part[P, keras.constraints.Constraint]: ...
@overload
def constraint(
    function: None = None,
    /,
    *,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Migrate | None = None,
) -> Callable[[_One[P]], Part[P, keras.constraints.Constraint]]: ...
@hide_frames
def constraint(
    function: Any = None,
    /,
    *,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Migrate | None = None,
) -> Any:
    """Make a function a `keras.constraints.Constraint`; its keyword-only parameters are the settings.

    The function takes a weight as a tensor and returns one of its shape.

    Args:
        function: The function, where the decorator is written without arguments.
        package: What stands before the `>` in the registered name; the module's name where it is not given.
        formerly: Registered names under which older files know the part.
        version: Of the settings, from 1 on.
        migrate: `migrate(config, version)` turns a config of an older version into one of this version.

    Raises:
        DefinitionError: The function cannot become a part: see its subclasses in `kustom.errors`.
        NameClashError: Its name belongs to another part.

    Example:
        >>> import kustom
        >>> from keras import ops
        >>> @kustom.constraint(package="docs")
        ... def at_least(w, *, floor=0.0):
        ...     return ops.maximum(w, floor)
        >>> [float(value) for value in at_least([-1.0, 2.0])]
        [0.0, 2.0]
    """
    return _decorate("constraint", function, package, formerly, version, migrate)


@overload
def layer(function: _One[P], /) -> Part[P, keras.layers.Layer]: ...
@overload
def layer(
    function: None = None,
    /,
    *,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Migrate | None = None,
) -> Callable[[_One[P]], Part[P, keras.layers.Layer]]: ...
@hide_frames
def layer(
    function: Any = None,
    /,
    *,
    package: str | None = None,
    formerly: tuple[str, ...] | str = (),
    version: int = 1,
    migrate: Migrate | None = None,
) -> Any:
    """Make a function a `keras.layers.Layer` without weights; its keyword-only parameters are the settings.

    The function takes the inputs by position and, where it names them as keyword-only parameters, `training` and `mask`.
    Where it has a setting `seed`, it is handed a `keras.random.SeedGenerator` made from it. A mask is passed on where the
    output keeps its axes. A bare name is no layer: write `Sequential([exponential_layer()])`.

    Args:
        function: The function, where the decorator is written without arguments.
        package: What stands before the `>` in the registered name; the module's name where it is not given.
        formerly: Registered names under which older files know the part.
        version: Of the settings, from 1 on.
        migrate: `migrate(config, version)` turns a config of an older version into one of this version.

    Raises:
        DefinitionError: The function cannot become a part: see its subclasses in `kustom.errors`.
        NameClashError: Its name belongs to another part.

    Example:
        >>> import keras, kustom
        >>> from keras import ops
        >>> @kustom.layer(package="docs")
        ... def power(x, *, exponent=2.0):
        ...     return ops.sign(x) * ops.abs(x) ** exponent
        >>> keras.Sequential([keras.Input((3,)), power(exponent=3.0)]).output_shape
        (None, 3)
    """
    return _decorate("layer", function, package, formerly, version, migrate)

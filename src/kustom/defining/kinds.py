"""The kinds of parts that a function can become: for each, a Keras class that calls the function as Keras calls that kind.

`definition` (see `function_part`) holds the function and its settings; the classes here know what goes in, what must come
out, and nothing of names or configs.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import random
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import keras as private
from kustom.defining import building, calling, data
from kustom.defining.config import same
from kustom.defining.sums import Ratio, Sums
from kustom.defining.tracking import held_variables
from kustom.errors import ReturnError, ShapeError, hide_frames

__all__ = ["KINDS", "CheckedLoss", "folded_seeds"]


class CheckedLoss(keras.losses.Loss):
    """How a loss of ours is called; `call` computes the values, reduction, weights and mask are Keras's."""

    @hide_frames
    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        with keras.name_scope(self.name):
            pair = data.pair(y_true, y_pred, sample_weight, self.dtype, self.name)
            data.refuse_broadcast(self.call, pair.y_true, pair.y_pred, self.name)
            values = data.call(self.call, self.name, {"y_true": pair.y_true, "y_pred": pair.y_pred}, {})
            values = data.returned(values, self.name)
            values, averaged = _one_value_a_sample(values, pair, self.name)
            weights = data.weigh(values, pair, self.name)
            if weights is not None:
                values = ops.where(ops.not_equal(weights, 0), values, ops.zeros_like(values))
            by_entry = pair.mask is not None and len(pair.mask.shape) == len(values.shape)
            if not averaged and not by_entry and self.reduction != "mean_with_sample_weight":
                # A weight an entry, but no mask an entry: the mean over the last axis is of all its entries.
                values = ops.mean(values * weights, axis=-1)
                pair = data.Pair(pair.y_true, pair.y_pred, None, pair.mask, False)
            return private.reduce_weighted_values(values, **_shaped(values, pair), reduction=self.reduction, dtype=self.dtype)


class FunctionLoss(CheckedLoss):
    """A loss whose values a function computes."""

    definition: Any

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self.definition.compute(self, {"y_true": y_true, "y_pred": y_pred}, self.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.dtype}


class FunctionMetric(keras.metrics.Metric):
    """A metric whose values a function computes: a running mean, a ratio, or a formula over sums.

    A sum is kept in two numbers, the sum and what rounding took from it (Knuth's two-sum, The Art of Computer Programming
    vol. 2, 4.2.2), so that counts in float32 stay exact beyond 2**24.
    """

    definition: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sums: dict[str, tuple[Any, Any]] = {}
        if self.definition.formula is None:
            self._make_sums({"total": (), "count": ()})

    @hide_frames
    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        pair = data.pair(y_true, y_pred, sample_weight, self.dtype, self.name)
        data.refuse_broadcast(self._plain, pair.y_true, pair.y_pred, self.name)
        made = self.definition.compute(self, {"y_true": pair.y_true, "y_pred": pair.y_pred}, self.dtype)
        self._check_kind(made)
        if isinstance(made, Sums):
            sums = {name: self._sum(part, pair, made.keep) for name, part in made.parts.items()}
        elif isinstance(made, Ratio):
            sums = {"total": self._sum(made.numerator, pair, 0), "count": self._sum(made.denominator, pair, 0)}
        else:
            values, _ = _one_value_a_sample(made, pair, self.name)
            sums = {"total": self._sum(values, pair, 0), "count": self._sum(ops.ones_like(values, dtype="bool"), pair, 0)}
        if not self._sums:
            self.definition.check_sums(sums)
            self._make_sums({name: tuple(pieces[0].shape) for name, pieces in sums.items()})
        self._check_sums(sums)
        for name, pieces in sums.items():
            for piece in pieces:
                self._add(name, piece)

    def result(self) -> Any:
        if not self._sums:
            return ops.zeros((), dtype=self.dtype)
        sums = {name: ops.add(high, low) for name, (high, low) in self._sums.items()}
        if self.definition.formula is None:
            return ops.cast(ops.divide_no_nan(sums["total"], sums["count"]), self.dtype)
        value = self.definition.result(self, sums)
        empty = ops.all(ops.stack([ops.all(ops.equal(part, 0)) for part in sums.values()]))

        def defined(x: Any) -> Any:
            x = ops.cast(data.tensor(x), self.dtype)
            return ops.where(ops.logical_and(empty, ops.logical_not(ops.isfinite(x))), ops.zeros_like(x), x)

        return keras.tree.map_structure(defined, value)

    def reset_state(self) -> None:
        for variable in self.variables:
            variable.assign(ops.zeros(variable.shape, dtype=variable.dtype))

    @hide_frames
    def merge_state(self, metrics: Iterable[Any]) -> None:
        """Add what other metrics of this kind have seen, as if this one had seen it.

        Args:
            metrics: Metrics made by the same function with the same settings.

        Raises:
            ReturnError: One of them is another metric, or has other settings.
        """
        for metric in metrics:
            if type(metric) is not type(self) or not same(*map(self.definition.settings_of, (metric, self))):
                raise ReturnError(f"{self!r} cannot take in the state of {metric!r}; merge metrics of one kind and settings.")
            if metric._sums and not self._sums:
                self._make_sums({name: tuple(high.shape) for name, (high, _) in metric._sums.items()})
            for name, (high, low) in metric._sums.items():
                self._add(name, ops.convert_to_tensor(high))
                self._add(name, ops.convert_to_tensor(low))

    def _plain(self, y_true: Any, y_pred: Any) -> Any:
        made = self.definition.compute(self, {"y_true": y_true, "y_pred": y_pred}, self.dtype)
        return self.definition.leaves(made)

    def _check_kind(self, made: Any) -> None:
        wants_sums = self.definition.formula is not None
        if isinstance(made, Sums) is wants_sums and (isinstance(made, Ratio | Sums) or hasattr(made, "shape")):
            return
        expected = "kustom.Sums(...)" if wants_sums else "a tensor or kustom.Ratio(...)"
        hint = "" if wants_sums or not isinstance(made, Sums) else " Give the formula: @kustom.metric(result=...)."
        raise ReturnError(f"{self.name} returned {type(made).__name__}, where {expected} was expected.{hint}")

    def _check_sums(self, sums: dict[str, Any]) -> None:
        have = {name: tuple(high.shape) for name, (high, _) in self._sums.items()}
        got = {name: tuple(pieces[0].shape) for name, pieces in sums.items()}
        if have != got:
            raise ShapeError(f"{self.name} made the sums {got} after {have}; they must be the same for each batch.")

    def _make_sums(self, shapes: dict[str, tuple[int, ...]]) -> None:
        dtype = "float64" if self.dtype == "float64" else "float32"
        for name, shape in shapes.items():
            if None in shape:
                raise ShapeError(f"{self.name}: the sum {name!r} has the shape {shape}; the axes that are kept must be known.")
            pair = (
                self.add_variable(shape=shape, initializer="zeros", dtype=dtype, name=name),
                self.add_variable(shape=shape, initializer="zeros", dtype=dtype, name=f"{name}_rest"),
            )
            self._sums[name] = pair

    def _sum(self, part: Any, pair: data.Pair, keep: int) -> tuple[Any, ...]:
        """The sum of a batch, in one number, or in two of which the second is what rounding would take from the first."""
        part = data.tensor(part)
        rank = len(part.shape) - keep
        if rank < 1:
            raise ShapeError(
                f"{self.name} returned a sum of the shape {tuple(part.shape)}"
                f"{f' of which {keep} axes are kept' if keep else ''}: return one value a sample, kustom sums them."
            )
        numbers = ops.cast(part, "float64" if self.dtype == "float64" else "float32")
        weights = data.weigh(numbers, pair, self.name)
        if weights is not None:
            numbers = ops.where(ops.not_equal(weights, 0), numbers * weights, ops.zeros_like(numbers))
        total = ops.sum(numbers, axis=tuple(range(rank)))
        if data.is_floating(part) or pair.sample_weight is not None or _is_exact(part, rank):
            return (total,)
        whole = ops.cast(part, "int32")
        if weights is not None:
            whole = ops.where(ops.not_equal(weights, 0), whole, ops.zeros_like(whole))
        return _exact_sum(whole, numbers, total, rank)

    def _add(self, name: str, part: Any) -> None:
        high, low = self._sums[name]
        before = ops.convert_to_tensor(high)
        part = ops.cast(part, high.dtype)
        after = ops.add(before, part)
        taken = ops.subtract(after, before)
        lost = ops.add(ops.subtract(before, ops.subtract(after, taken)), ops.subtract(part, taken))
        high.assign(after)
        low.assign(ops.add(low, lost))


def _is_exact(part: Any, rank: int) -> bool:
    """Whether float32 holds the sum of as many whole numbers of this dtype, whatever they are."""
    largest = {"bool": 1, "int8": 2**7, "uint8": 2**8}.get(private.standardize_dtype(part.dtype))
    sizes = tuple(part.shape)[:rank]
    return largest is not None and None not in sizes and math.prod(sizes) * largest <= 2**24


def _exact_sum(whole: Any, numbers: Any, total: Any, rank: int) -> tuple[Any, Any]:
    """The sum of whole numbers, in two floating ones; as it was rounded, in `total`, where int32 might not hold it."""
    axes = tuple(range(rank))
    rows = ops.cast(ops.prod(ops.convert_to_tensor(ops.shape(whole)[:rank], dtype="int32")), numbers.dtype)
    fits = ops.max(ops.abs(numbers), axis=axes, initial=0) * rows < 2.0**30
    count = ops.sum(whole, axis=axes)
    low = ops.mod(count, 2**12)
    high = ops.cast(count - low, total.dtype)
    return ops.where(fits, high, total), ops.where(fits, ops.cast(low, total.dtype), ops.zeros_like(total))


class FunctionActivation:
    """An activation that a function computes: a callable object, since Keras has no base class for activations."""

    definition: Any
    default_part: Any = None

    def __init__(self) -> None:
        self.__name__ = type(self).__name__

    @hide_frames
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        held = self.definition.settings_of(self)
        if not self.definition.has_data(args, kwargs):
            return type(self)(**{**held, **kwargs})
        return self.definition.direct(type(self), held, args, kwargs)

    def get_config(self) -> dict[str, Any]:
        return {}

    def __reduce__(self) -> Any:
        name = keras.saving.get_registered_name(type(self))
        return _revive, (self.definition.function.__module__, name, self.get_config())


def _revive(module: str, name: str, config: dict[str, Any]) -> Any:
    """A pickled activation: its class is reached through the registry, since its name is that of the default part."""
    importlib.import_module(module)
    return private.registered(name).from_config(config)


class FunctionRegularizer(keras.regularizers.Regularizer):
    """A regularizer whose penalty a function computes."""

    definition: Any

    @hide_frames
    def __call__(self, x: Any) -> Any:
        penalty = self.definition.compute(self, {self.definition.data[0]: data.tensor(x)}, None)
        if not hasattr(penalty, "shape") or len(penalty.shape) != 0:
            got = f"the shape {tuple(penalty.shape)}" if hasattr(penalty, "shape") else type(penalty).__name__
            raise ShapeError(f"{self.definition.name} returned {got}; a regularizer returns one number: sum it.")
        return penalty

    def get_config(self) -> dict[str, Any]:
        return {}


class FunctionConstraint(keras.constraints.Constraint):
    """A constraint whose projection a function computes."""

    definition: Any

    @hide_frames
    def __call__(self, w: Any) -> Any:
        w = data.tensor(w)
        projected = self.definition.compute(self, {self.definition.data[0]: w}, None)
        if tuple(getattr(projected, "shape", ())) != tuple(w.shape):
            raise ShapeError(
                f"{self.definition.name} was given weights of the shape {tuple(w.shape)} and returned "
                f"{tuple(getattr(projected, 'shape', ()))}; a constraint returns the shape that it is given."
            )
        return ops.cast(projected, private.standardize_dtype(w.dtype))

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


class FunctionInitializer(keras.initializers.Initializer):
    """An initializer whose values a function draws; its n-th draw folds n into the seed."""

    definition: Any

    def __init__(self) -> None:
        super().__init__()
        self._draws = 0
        self._lock = threading.Lock()
        # From the source that `keras.utils.set_random_seed` sets, as Keras's own initializers do.
        self._own_seed = random.randint(0, 2**31 - 1)

    @hide_frames
    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        with self._lock:
            draw = self._draws
            self._draws += 1
        settings = self.definition.settings_of(self)
        if "seed" in settings:
            settings["seed"] = self._seed_of(settings["seed"], draw)
        with folded_seeds(settings.values(), draw):
            return self.definition.draw(settings, shape, dtype)

    def _seed_of(self, seed: Any, draw: int) -> Any:
        if seed is None:
            seed = self._own_seed
        return fold_seed(seed, draw)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())


class FunctionLayer(keras.layers.Layer):
    """A layer without weights whose output a function computes; a mask is passed on where its axes are kept."""

    definition: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def made(self) -> None:
        if "seed" in self.definition.settings:
            self._generator = keras.random.SeedGenerator(self.seed)  # type: ignore[attr-defined]
        # There are no weights to build, and Keras warns of a layer that is never built.
        self.built = True

    @hide_frames
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.definition.check_inputs(args, kwargs)
        return super().__call__(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        inputs, named = self.definition.bind_call(args, kwargs)
        if "seed" in self.definition.settings:
            named["seed"] = self._generator
        outputs = calling.watched(
            self,
            named.get("training"),
            lambda: self.definition.compute(self, inputs, self.compute_dtype, named),
            self.definition.function,
            lambda: held_variables(self),
            self.definition.name,
            of_function=True,
        )
        data.pass_mask(inputs, outputs)
        return outputs

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        # `call` has set it, where it fits; here the output is not known.
        return None

    compute_output_shape = building.output_shape

    def build(self, input_shape: Any) -> None:
        self.built = True

    def get_build_config(self) -> None:
        """Nothing: there are no weights to build."""

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **({} if self.autocast else {"autocast": False})}


def fold_seed(seed: Any, draw: int) -> Any:
    """The seed of a part's n-th draw, from 0 on: the seed itself first, then others that follow from it and n alone."""
    if draw == 0 or not isinstance(seed, int):
        # A SeedGenerator moves on by itself.
        return seed
    return int(np.random.SeedSequence([seed % 2**64, draw]).generate_state(1)[0]) >> 1


@contextlib.contextmanager
def folded_seeds(objects: Iterable[Any], draw: int) -> Iterator[None]:
    """Fold the number of a draw into the seeds of the initializers among `objects`, for the time of that draw."""
    seeded = [o for o in objects if isinstance(o, keras.initializers.Initializer) and isinstance(vars(o).get("seed"), int)]
    seeds = [vars(o)["seed"] for o in seeded]
    try:
        for each, seed in zip(seeded, seeds, strict=True):
            object.__setattr__(each, "seed", fold_seed(seed, draw))
        yield
    finally:
        for each, seed in zip(seeded, seeds, strict=True):
            object.__setattr__(each, "seed", seed)


def _one_value_a_sample(values: Any, pair: data.Pair, owner: str) -> tuple[Any, bool]:
    """The values with their last axis averaged, unless entries of it have weights; and whether they are one a sample.

    Raises:
        ShapeError: They are neither one a sample nor one an entry of `y_pred`.
    """
    got, entries = tuple(getattr(values, "shape", ())), tuple(pair.y_pred.shape)
    if data.shape_fits(got, entries) and entries:
        if len(entries) == 1:
            return values, True
        return (values, False) if pair.entrywise else (ops.mean(ops.cast(values, _mean_dtype(values, pair)), axis=-1), True)
    if data.shape_fits(got, entries[:-1]) and len(entries) > 1 and not pair.entrywise:
        return values, True
    samples = entries if len(entries) == 1 else entries[:-1]
    alternative = "" if pair.entrywise or len(entries) == 1 else f", or one a sample, {samples}"
    raise ShapeError(
        f"{owner} returned the shape {got} for y_pred {entries}: expected one value an entry, {entries}{alternative}. "
        "Do not average over samples; Keras does that, with their weights."
    )


def _mean_dtype(values: Any, pair: data.Pair) -> str:
    dtype = private.standardize_dtype(values.dtype)
    return dtype if private.is_float_dtype(dtype) else private.standardize_dtype(pair.y_pred.dtype)


def _shaped(values: Any, pair: data.Pair) -> dict[str, Any]:
    """Weights and mask, each in the shape of the values: Keras would align them by their last axes.

    They are copies, since Keras multiplies the one by the other in place, which torch refuses of a view.
    """
    shaped = {}
    for name, weight in (("sample_weight", pair.sample_weight), ("mask", pair.mask)):
        if weight is not None:
            ones = [1] * (len(values.shape) - len(weight.shape))
            weight = ops.copy(ops.broadcast_to(ops.reshape(weight, (*ops.shape(weight), *ones)), ops.shape(values)))
        shaped[name] = weight
    return shaped


# kind: (the class, the names its function's data has (None: any), the module of Keras that holds the kind).
KINDS: dict[str, tuple[type, int | None, str]] = {
    "loss": (FunctionLoss, 2, "losses"),
    "metric": (FunctionMetric, 2, "metrics"),
    "activation": (FunctionActivation, 1, "activations"),
    "initializer": (FunctionInitializer, 2, "initializers"),
    "regularizer": (FunctionRegularizer, 1, "regularizers"),
    "constraint": (FunctionConstraint, 1, "constraints"),
    "layer": (FunctionLayer, None, "layers"),
}

"""Recording on TensorFlow, which has the tape: what is mended here is what its users trip over.

A gradient by an embedding arrives as `IndexedSlices`, with which no arithmetic works: here it is a tensor. And
`tf.nn.moments` stops the gradient at the mean, which leaves the first derivative right and makes the second wrong (11 % in
a LayerNormalization): while a recording is on, its thread computes moments without that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from kustom.backends import keras as private

__all__ = [
    "Recording",
    "attached",
    "detached",
    "fresh",
    "is_differentiable",
    "is_differentiated",
    "noticed",
    "pulled",
    "refuse_unsupported",
]


def refuse_unsupported() -> None:
    """Every TensorFlow has the tape."""


def is_differentiable(x: Any) -> bool:
    """Whether a gradient can flow through a value of this dtype."""
    return hasattr(x, "dtype") and (x.dtype.is_floating or x.dtype.is_complex)


class Recording:
    """What one tape has seen."""

    def __init__(self, *, persistent: bool, accessed: bool) -> None:
        self.persistent = persistent
        self._accessed = accessed
        self._on: list[Any] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        # A function that was traced before reads its variables where only TensorFlow sees it.
        self._tape = tf.GradientTape(persistent=self.persistent, watch_accessed_variables=self._accessed)
        self._variables: dict[int, tuple[Any, list[Any]]] = {}
        if self._on:
            self.stop()
            self.start()

    def start(self) -> None:
        """Record what this thread computes from now on."""
        stack = contextlib.ExitStack()
        stack.enter_context(_right_moments)
        stack.enter_context(self._tape)
        self._on.append(stack)

    def stop(self) -> None:
        """Record nothing more."""
        self._on.pop().close()

    def release(self) -> None:
        """The one gradient has been given."""
        self._variables = {}

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Record nothing inside; what other recordings see is theirs."""
        with self._tape.stop_recording():
            yield

    def watch(self, x: Any) -> None:
        """Watch a tensor."""
        if is_differentiable(x):
            self._tape.watch(x)

    def pass_by(self, value: Any) -> Any:
        """What the reader of a variable gets that is not watched."""
        return value

    def watched(self) -> list[Any]:
        """The variables that are watched, in the order in which they were read; TensorFlow's own where no Keras's is known."""
        known = [variable for variable, _ in self._variables.values()]
        raw = {id(value) for _, values in self._variables.values() for value in values}
        return known + [variable for variable in self._tape.watched_variables() if id(variable) not in raw]

    def read(self, variable: Any, value: Any) -> Any:
        """Watch a variable whose `value`, before any cast, is being read; returns what the reader gets."""
        if is_differentiable(value):
            _, values = self._variables.setdefault(id(variable), (variable, []))
            if not any(value is other for other in values):
                values.append(value)
                self._tape.watch(value)
        return value

    def gradient(self, targets: list[Any], sources: list[Any], seeds: list[Any], *, recorded: bool) -> list[Any]:
        """The gradient of the sum of `targets`, each weighed by its seed, for each source; None where there is no way.

        Args:
            targets: Tensors.
            sources: Tensors and variables.
            seeds: For each target a tensor, or None for ones.
            recorded: Whether it is recorded: TensorFlow knows.
        """
        groups = [self._values_of(source) for source in sources]
        flat = [value for group in groups for value in group]
        # TensorFlow would hand a missing seed on as it is.
        seeds = [tf.ones_like(t) if s is None else s for t, s in zip(targets, seeds, strict=True)]
        found = iter(self._tape.gradient(targets, flat, output_gradients=seeds) if targets and flat else [None] * len(flat))
        result = []
        for group in groups:
            parts = [_plain(part) for part in (next(found) for _ in group) if part is not None]
            result.append(tf.add_n(parts) if len(parts) > 1 else parts[0] if parts else None)
        return result

    def _values_of(self, source: Any) -> list[Any]:
        if id(source) in self._variables:
            return self._variables[id(source)][1]
        if isinstance(source, keras.Variable):
            # Keras freezes a variable without a word to TensorFlow, which goes on watching it.
            source = private.stored(source) if source.trainable else None
        return [source] if tf.is_tensor(source) and is_differentiable(source) else []

    def jacobian(self, target: Any, sources: list[Any], *, recorded: bool) -> list[Any]:
        """For each source the derivatives of each entry of `target`: shape `(target.size, *source.shape)`, or None."""
        size = tf.size(target)
        basis = tf.reshape(tf.eye(size, dtype=target.dtype), tf.concat([[size], tf.shape(target)], 0))
        basis = tf.ensure_shape(basis, [target.shape.num_elements(), *target.shape])
        return self._rows(target, sources, basis)

    def batch_jacobian(self, target: Any, source: Any, *, recorded: bool) -> Any:
        """The derivatives of each sample's entries by the same sample's: shape `(batch, entries, *source.shape[1:])`, or None."""
        shape = tf.shape(target)
        entries = tf.reduce_prod(shape[1:])
        basis = tf.reshape(tf.eye(entries, dtype=target.dtype), tf.concat([[entries, 1], shape[1:]], 0))
        [rows] = self._rows(target, [source], tf.broadcast_to(basis, tf.concat([[entries], shape], 0)))
        if rows is None:
            return None
        return tf.transpose(rows, [1, 0, *range(2, len(rows.shape))])

    def _rows(self, target: Any, sources: list[Any], basis: Any) -> list[Any]:
        connected: list[bool] = []

        def row(seed: Any) -> list[Any]:
            found = self.gradient([target], sources, [seed], recorded=False)
            connected[:] = [each is not None for each in found]
            return [each for each in found if each is not None]

        size = basis.shape[0]
        if tf.executing_eagerly() and size is not None and size <= _FEW and self.persistent:
            # To trace a loop costs more than to go round it.
            columns = zip(*[row(seed) for seed in basis], strict=True)
            rows = iter([tf.stack(column) for column in columns])
        else:
            rows = iter(tf.vectorized_map(row, basis, fallback_to_while_loop=True))
        return [next(rows) if linked else None for linked in connected]


# Rows of a Jacobian.
_FEW = 64


def _plain(gradient: Any) -> Any:
    return tf.convert_to_tensor(gradient) if isinstance(gradient, tf.IndexedSlices) else gradient


def _moments(plain: Callable[..., Any]) -> Callable[..., Any]:
    def moments(x: Any, axes: Any, keepdims: bool) -> Any:
        if not _right_moments.here:
            return plain(x, axes, keepdims)
        mean = tf.reduce_mean(x, axes, keepdims=True)
        variance = tf.reduce_mean(tf.math.squared_difference(x, mean), axes, keepdims=True)
        return (mean, variance) if keepdims else (tf.squeeze(mean, axes), tf.squeeze(variance, axes))

    return moments


# Keras's moments, which in a thread that has this open differentiate right to any order.
_right_moments = private.Exchange(private.backend_module("nn"), "_compute_moments", _moments)


def fresh(x: Any) -> Any:
    """The same value as another tensor, with the gradient of `x`: one that is given twice is then two."""
    return tf.identity(x)


def pulled(f: Callable[..., Any], inputs: list[Any], variables: list[Any]) -> None:
    """Nothing: the tape serves the functional forms, too."""


def attached(outputs: list[Any], inputs: list[Any], pullback: Callable[[list[Any]], list[Any]]) -> list[Any]:
    """`outputs` whose gradient by `inputs` is what `pullback` makes of their gradients, and by nothing else."""
    many = len(outputs)

    # The outputs are arguments, lest TensorFlow look for variables in how they were computed.
    @tf.custom_gradient
    def attach(*values: Any) -> Any:
        def gradient(*upstream: Any) -> Any:
            return [None] * many + pullback(list(upstream))

        return [tf.identity(value) for value in values[:many]], gradient

    return list(attach(*(tf.stop_gradient(y) for y in outputs), *inputs))


def noticed(x: Any, note: Callable[[], None]) -> Any:
    """`x`, which calls `note` where it is differentiated; numbers and derivatives stay as they are."""

    @tf.custom_gradient
    def same(x: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            note()
            return upstream

        return tf.identity(x), gradient

    return same(x)


def is_differentiated() -> bool:
    """Whether anything may be differentiated here; not known."""
    return True


def detached(x: Any) -> Any:
    """`x`: no value keeps what computed it, here."""
    return x

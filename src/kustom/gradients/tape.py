"""The gradient tape, with the semantics of `tf.GradientTape` on every backend.

Its documentation is TensorFlow's. What is the same everywhere is here: structures, what may be watched and asked, how often
and when. What a backend does to record stands in `backends/tapes`. Which tapes are open is known a thread: a variable that
is read tells them, and no other thread's.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from kustom.backends import current
from kustom.backends import keras as private
from kustom.errors import GradientError, GradientWarning, TapeError, hide_frames
from kustom.gradients.applying import gradients_of

__all__ = ["GradientTape", "is_recorded", "warning_again"]


class _Open(threading.local):
    def __init__(self) -> None:
        self.tapes: list[GradientTape] = []


_open = _Open()


def is_recorded() -> bool:
    """Whether what is computed now will be differentiated: a tape is open in this thread, or a layer is being called."""
    return bool(_open.tapes) or private.in_layer_call()


class GradientTape:
    """Records operations, to give gradients of what they computed: `tf.GradientTape`, on every backend.

    Trainable variables that are read inside the block are watched by themselves; tensors and other variables are watched
    by `watch`. A gradient is None where there is no way from the target back to the source inside the block, and for
    sources of integers. Values count as they were read: what is assigned to a variable afterwards changes nothing (on torch
    a tape that is not persistent then raises), and an assignment is not differentiated. Inside the block values are
    concrete, unless the code around it is traced.

    On torch a gradient is itself differentiable where a tape is open when it is asked, or a layer is being called; one by
    inputs alone is wherever variables learn, so that `loss.backward()` finds its way through a penalty.

    Args:
        persistent: Whether more than one gradient can be asked for. It holds its memory until it is deleted.
        watch_accessed_variables: Whether trainable variables are watched by themselves.

    Raises:
        TapeError: JAX has a version whose traces are not known; or the tape is opened inside `torch.vmap`.

    Example:
        >>> import keras, kustom
        >>> w1, w2 = keras.Variable(5.0), keras.Variable(3.0)
        >>> with kustom.GradientTape() as tape:
        ...     z = 3 * w1**2 + 2 * w1 * w2
        >>> [float(gradient) for gradient in tape.gradient(z, [w1, w2])]
        [36.0, 10.0]
    """

    def __init__(self, persistent: bool = False, watch_accessed_variables: bool = True) -> None:
        tapes = current("tapes")
        tapes.refuse_unsupported()
        self._persistent = persistent
        self._accessed = watch_accessed_variables
        self._recording = tapes.Recording(persistent=persistent, accessed=watch_accessed_variables)
        self._is_differentiable = tapes.is_differentiable
        self._told: list[int] = []
        # The stateless scope around the block.
        self._around: keras.StatelessScope | None = None
        self._is_open = False
        self._paused = 0
        self._used = False

    def __repr__(self) -> str:
        state = "recording" if self._is_open else "used" if self._used and not self._persistent else "closed"
        return f"<kustom.GradientTape, {'persistent, ' if self._persistent else ''}{state}>"

    @hide_frames
    def __enter__(self) -> GradientTape:
        if self._is_open:
            raise TapeError("this tape is recording already; open another one inside it.")
        if self._used and not self._persistent:
            raise TapeError("this tape has given its one gradient; make another one, or a persistent one.")
        current("tapes").refuse_unsupported()
        self._around = private.open_scope()
        self._recording.start()
        private.listen(self._read)
        _open.tapes.append(self)
        self._is_open = True
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            _open.tapes.remove(self)
            private.unlisten(self._read)
            self._recording.stop()

    def _read(self, variable: keras.Variable, value: Any) -> Any:
        if private.is_given_another(variable, self._around):
            # It stands for the variable and is not it: a gradient flows to where it comes from.
            return value
        return self._recording.read(variable, value) if self._watches(variable) else self._recording.pass_by(value)

    def _watches(self, variable: keras.Variable) -> bool:
        return not self._paused and ((self._accessed and variable.trainable) or id(variable) in self._told)

    def watch(self, tensor: Any) -> None:
        """Record what is computed with a tensor or variable from now on.

        Args:
            tensor: A tensor or variable, or a structure of them. One of integers is passed over: its gradient is None.

        Raises:
            GradientError: It is neither.
            TapeError: The tape is not recording.
        """
        flat = keras.tree.flatten(tensor)
        for x in flat:
            self._refuse_strangers(x, "watched")
        if not self._is_open:
            raise TapeError("watch() was called outside of the tape's block, where nothing is recorded; call it inside.")
        for x in flat:
            if isinstance(x, keras.Variable):
                self._told.append(id(x))
                held = private.stored(x)
                if held is not None:
                    self._recording.read(x, held)
            else:
                self._recording.watch(x)

    def watched_variables(self) -> tuple[Any, ...]:
        """The variables that are watched, in the order in which they were read."""
        return tuple(self._recording.watched())

    @contextlib.contextmanager
    def stop_recording(self) -> Iterator[None]:
        """Record nothing inside this block; other tapes go on.

        Raises:
            TapeError: The tape is not recording.
        """
        if not self._is_open:
            raise TapeError("stop_recording() was called where the tape is not recording; call it inside its block.")
        self._paused += 1
        try:
            with self._recording.pause():
                yield
        finally:
            self._paused -= 1

    def reset(self) -> None:
        """Forget what was recorded and watched; inside the block, go on from here.

        Raises:
            TapeError: The tape has given its one gradient.
        """
        if self._used and not self._persistent:
            raise TapeError("this tape has given its one gradient; make another one.")
        self._told.clear()
        self._recording.reset()

    @hide_frames
    def gradient(self, target: Any, sources: Any, output_gradients: Any = None, unconnected_gradients: str | Any = "none") -> Any:
        """The gradient of a target, or of the sum of several, by each source.

        Args:
            target: A tensor, or a structure of them. One that is no scalar counts as the sum of its entries.
            sources: A tensor or variable, or a structure of them: watched ones, or results inside the block.
            output_gradients: For each target what its entries are weighed with, in the target's shape; None: 1.
            unconnected_gradients: `"none"` gives None where there is no way from target to source, `"zero"` zeros.

        Returns:
            A structure like `sources`: for each a tensor of its shape and dtype, or None.

        Raises:
            TapeError: The tape has given its one gradient.
            GradientError: A target or source is no tensor, shapes do not fit, or `unconnected_gradients` is neither.
        """
        zero = _wants_zeros(unconnected_gradients)
        targets = [self._target(t) for t in _flat(target)]
        flat = self._sources(sources)
        seeds = self._seeds(targets, output_gradients)
        if output_gradients is None:
            _warn_of_sums(targets, flat)
        self._use()
        pairs = [(t, s) for t, s in zip(targets, seeds, strict=True) if self._is_differentiable(t)]
        found: list[Any] = []
        with gradients_of(found, weighed=any(seed is not None for seed in seeds)):
            found += self._recording.gradient([t for t, _ in pairs], flat, [s for _, s in pairs], recorded=is_recorded())
        self._release()
        return _packed(sources, [_zeros(x) if g is None and zero else g for g, x in zip(found, flat, strict=True)])

    @hide_frames
    def jacobian(self, target: Any, sources: Any, unconnected_gradients: str | Any = "none") -> Any:
        """The derivatives of each entry of a target by each entry of the sources.

        Args:
            target: A tensor.
            sources: A tensor or variable, or a structure of them.
            unconnected_gradients: As in `gradient`.

        Returns:
            A structure like `sources`: for each a tensor of the shape `(*target.shape, *source.shape)`, or None.

        Raises:
            TapeError: The tape has given its one gradient.
            GradientError: The target or a source is no tensor.
        """
        zero = _wants_zeros(unconnected_gradients)
        target = self._target(target)
        flat = self._sources(sources)
        self._use()
        if self._is_differentiable(target):
            rows = self._recording.jacobian(target, flat, recorded=is_recorded())
        else:
            rows = [None] * len(flat)
        self._release()
        shape = ops.shape(target)
        result = []
        for row, source in zip(rows, flat, strict=True):
            if row is None:
                result.append(ops.zeros((*shape, *ops.shape(source)), dtype=source.dtype) if zero else None)
            else:
                result.append(ops.reshape(row, (*shape, *ops.shape(source))))
        return _packed(sources, result)

    @hide_frames
    def batch_jacobian(self, target: Any, source: Any, unconnected_gradients: str | Any = "none") -> Any:
        """The derivatives of each sample's entries by the entries of the same sample.

        It is right where no sample's target depends on another sample's source.

        Args:
            target: A tensor of the shape `(batch, ...)`.
            source: A tensor or variable of the shape `(batch, ...)`.
            unconnected_gradients: As in `gradient`.

        Returns:
            A tensor of the shape `(batch, *target.shape[1:], *source.shape[1:])`, or None.

        Raises:
            TapeError: The tape has given its one gradient.
            GradientError: One of them is no tensor, or they have different batches.
        """
        zero = _wants_zeros(unconnected_gradients)
        target = self._target(target)
        [source] = self._sources(source)
        batches = (tuple(target.shape)[:1], tuple(source.shape)[:1])
        if () in batches or (None not in (*batches[0], *batches[1]) and batches[0] != batches[1]):
            raise GradientError(
                f"batch_jacobian was given a target of the shape {tuple(target.shape)} and a source of the shape "
                f"{tuple(source.shape)}; the first axis of both is the batch. For other shapes there is jacobian()."
            )
        self._use()
        rows = None
        if self._is_differentiable(target):
            rows = self._recording.batch_jacobian(target, source, recorded=is_recorded())
        self._release()
        shape = (*ops.shape(target), *ops.shape(source)[1:])
        if rows is None:
            return ops.zeros(shape, dtype=source.dtype) if zero else None
        return ops.reshape(rows, shape)

    def _use(self) -> None:
        if self._used and not self._persistent:
            raise TapeError(
                "a tape that is not persistent gives one gradient, and this one has. Ask for all of them in one call, "
                "tape.gradient(loss, [a, b]), or make it persistent: kustom.GradientTape(persistent=True)."
            )
        self._used = True
        if not self._persistent:
            self._close()

    def _release(self) -> None:
        if not self._persistent:
            self._recording.release()

    def _target(self, target: Any) -> Any:
        self._refuse_strangers(target, "differentiated")
        if not isinstance(target, keras.Variable):
            return target
        held = private.stored(target)
        return self._recording.read(target, held) if self._watches(target) else held

    def _sources(self, sources: Any) -> list[Any]:
        flat = _flat(sources)
        for x in flat:
            self._refuse_strangers(x, "what is differentiated by")
        return flat

    def _refuse_strangers(self, x: Any, what: str) -> None:
        if not (isinstance(x, keras.Variable) or ops.is_tensor(x)):
            raise GradientError(
                f"{what} are tensors and variables, not {type(x).__name__} {str(x)[:40]!r}. Make it one, inside the tape's "
                "block if it is to be watched: ops.convert_to_tensor(...)."
            )

    def _seeds(self, targets: list[Any], output_gradients: Any) -> list[Any]:
        given = [None] * len(targets) if output_gradients is None else keras.tree.flatten(output_gradients)
        if len(given) != len(targets):
            raise GradientError(f"output_gradients has {len(given)} entries for {len(targets)} targets; give one each.")
        seeds = []
        for target, seed in zip(targets, given, strict=True):
            if seed is None:
                seeds.append(None)
                continue
            seed = seed.value if isinstance(seed, keras.Variable) else seed
            seed = ops.cast(ops.convert_to_tensor(seed), private.standardize_dtype(target.dtype))
            if tuple(seed.shape) != tuple(target.shape):
                raise GradientError(
                    f"output_gradients has the shape {tuple(seed.shape)} for a target of the shape {tuple(target.shape)}; "
                    "give one weight an entry."
                )
            seeds.append(seed)
        return seeds


def _wants_zeros(unconnected_gradients: Any) -> bool:
    # `tf.UnconnectedGradients` has the two words as its values.
    word = getattr(unconnected_gradients, "value", unconnected_gradients)
    if word not in ("none", "zero"):
        raise GradientError(f"unconnected_gradients is 'none' or 'zero', not {unconnected_gradients!r}.")
    return word == "zero"


def _zeros(x: Any) -> Any:
    return ops.zeros(ops.shape(x), dtype=private.standardize_dtype(x.dtype))


def _is_leaf(x: Any) -> bool:
    return isinstance(x, keras.Variable) or ops.is_tensor(x)


def _flat(structure: Any) -> list[Any]:
    if _is_leaf(structure):
        return [structure]
    # A plain list is the common case, and a walk over it costs as much as ten small operations.
    if type(structure) is list and all(map(_is_leaf, structure)):
        return list(structure)
    return keras.tree.flatten(structure)


def _packed(structure: Any, flat: list[Any]) -> Any:
    if _is_leaf(structure):
        return flat[0]
    if type(structure) is list and all(map(_is_leaf, structure)):
        return flat
    return keras.tree.pack_sequence_as(structure, flat)


_warned = False


@contextlib.contextmanager
def warning_again() -> Iterator[None]:
    """Inside, what is said once of sums is said as if it had not been, and it counts for nothing afterwards."""
    global _warned
    before, _warned = _warned, False
    try:
        yield
    finally:
        _warned = before


def _warn_of_sums(targets: list[Any], sources: list[Any]) -> None:
    """Warn, once, of the textbook's slip: the gradient of a loss a sample is that of their sum, not of their mean."""
    global _warned
    many = next((t for t in targets if len(t.shape) and any(size != 1 for size in t.shape)), None)
    if many is None or _warned:
        return
    if any(isinstance(x, keras.Variable) and x.trainable for x in sources):
        _warned = True
        warnings.warn(
            f"the target of a gradient by trainable variables has the shape {tuple(many.shape)}: the gradient is that of the sum "
            "of its entries. Take the mean where that was meant: ops.mean(loss). (This is said once.)",
            GradientWarning,
            stacklevel=4,
        )

"""Family T, modes: what a layer does in training and in inference, and that its randomness can be repeated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from kustom.backends import keras as private
from kustom.checking import calls, doubles, watching
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.rules import compiled, rule
from kustom.checking.rules.backends import failed, one_line
from kustom.checking.subjects import Subject

_LAYERS = ("layer", "model")


def _called(part: Any, args: Any, training: bool | None, seed: int = 1) -> list[np.ndarray]:
    keras.utils.set_random_seed(seed)
    mode = {} if training is None else {"training": training}
    outputs = part(*calls.tensors(args), **mode)
    return [np.asarray(y) for y in calls.flat(calls.arrays(outputs)) if y is not None]


@rule(
    "T401",
    kinds=_LAYERS,
    asserts="training is accepted, reaches the sublayers, and inference is deterministic.",
    why="Dropout that never drops, or that drops in predict: both train and predict, and both are wrong.",
    example="""
        def call(self, x):
            return self.dropout(self.dense(x), training=True)       # in predict, too
    """,
    mend="Take training in call, and hand it on, or let Keras hand it on: self.dropout(x, training=training).",
    needs=("B601",),
)
def training_makes_its_difference(subject: Subject) -> Iterator[Measured | Undecided]:
    """Called in both modes; what each sublayer was told is noted."""
    args = subject.inputs.arguments()
    part = doubles.copy_or_itself(subject)
    if not subject.tagged("needs_training"):
        try:
            first, second = (_called(part, args, False, seed) for seed in (1, 2))
        except Exception as error:
            # Whatever a part raises.
            yield failed(subject, error, "it fails when called with training=False", shows=("part(x, training=False)",))
            return
        if not calls.equal(first, second) and not subject.tagged("nondeterministic"):
            _, a, b = calls.worst(first, second)
            yield Measured(
                f"in inference it gives {shown(a)} and then {shown(b)} for the same input",
                got=shown(b),
                expected=shown(a),
                mend="Draw only where training is true; where it is meant to draw in inference, too, say so: "
                "__kustom__ = {'tags': {'nondeterministic': True}}.",
                reproducer=subject.reproducer("print(part(x, training=False), part(x, training=False))"),
            )
            return
    for training in (True, False):
        if training is False and subject.tagged("needs_training"):
            continue
        with watching.told(part) as noted:
            try:
                _called(part, args, training)
            except Exception as error:
                # Whatever a part raises.
                yield failed(
                    subject, error, f"it fails when called with training={training}", shows=(f"part(x, training={training})",)
                )
                return
        for layer, was_told in noted:
            if layer.trainable and bool(was_told) is not training:
                yield Measured(
                    f"called with training={training}, its {type(layer).__name__} {layer.name!r} is told training={was_told}",
                    got=f"training={was_told}",
                    expected=f"training={training}",
                    reproducer=subject.reproducer(f"part(x, training={training})  # and look at {layer.name}"),
                )
                return


@rule(
    "T402",
    kinds=_LAYERS,
    asserts="It returns something in training and in inference.",
    why="A call that ends without return gives None, and what comes after it fails far from the cause.",
    example="""
        def call(self, x, training=None):
            if training:
                return x + keras.random.normal(keras.ops.shape(x), seed=self.seed)
    """,
    mend="Return the input where there is nothing to do.",
)
def returns_in_both_modes(subject: Subject) -> Iterator[Measured | Undecided]:
    """Called with training True and False."""
    part = doubles.copy_or_itself(subject)
    for training in (True, False):
        if training is False and subject.tagged("needs_training"):
            continue
        try:
            made = part(*calls.tensors(subject.inputs.arguments()), training=training)
        except Exception as error:
            # B601 and T401 say what it raises; here only that Keras was given None counts.
            if "None" not in str(error):
                yield Undecided(f"it fails: {one_line(error)}")
                return
            made = None
        if made is None or any(leaf is None for leaf in calls.flat(made)):
            yield Measured(
                f"called with training={training} it returns None",
                input=f"training={training}",
                got="None",
                expected="a tensor",
                reproducer=subject.reproducer(f"print(part(x, training={training}))"),
            )
            return


@rule(
    "T403",
    kinds=("layer",),
    asserts="Its randomness comes from a seed generator that it keeps, so that a seeded run repeats, compiled too.",
    why="On JAX an unseeded draw fails in fit; NumPy's is drawn once, when the step is traced, and is a constant after.",
    example="""
        def call(self, x, training=None):
            return x + np.random.normal(size=x.shape) if training else x
    """,
    mend="Keep self.seed_generator = keras.random.SeedGenerator(seed), and draw with seed=self.seed_generator.",
    needs=("B601",),
)
def randomness_is_seeded(subject: Subject) -> Iterator[Measured | Undecided]:
    """If two calls in training differ, a generator's state of its own has moved."""
    args = subject.inputs.arguments()
    part = doubles.copy_or_itself(subject)
    # In numbers that cannot all be kept by chance.
    args = calls.mapped(lambda x: np.concatenate([x] * 8) if getattr(x, "ndim", 0) else x, args)
    _called(part, args, True)
    states = _states(part)
    weights = [calls.arrays(v) for v in part.variables if calls.is_floating(v)]
    held = compiled.attributes(part)
    first = _called(part, args, True, seed=1)
    if not first:
        yield Undecided("in training it returns None: see T402")
        return
    after = [calls.arrays(s) for s in states]
    for variable, value in zip([v for v in part.variables if calls.is_floating(v)], weights, strict=True):
        variable.assign(value)
    for state, value in zip(states, after, strict=True):
        state.assign(value)
    second = _called(part, args, True, seed=2)
    if calls.equal(first, second):
        return
    if any(not compiled.alike(held.get(name), value) for name, value in compiled.attributes(part).items()):
        yield Undecided("its call writes an attribute, and two calls differ by that: see T405")
        return
    # On torch Keras's own generator hands a draw without a seed on to torch's, which set_random_seed sets, too.
    if not states:
        yield Measured(
            "two calls in training differ, and it keeps no seed generator",
            got="no generator",
            expected="a keras.random.SeedGenerator among its attributes",
            reproducer=subject.reproducer("part(x, training=True)", "print([v.path for v in part.non_trainable_variables])"),
        )
        return
    copy = doubles.copy_or_itself(subject)
    if copy is part:
        return
    runs = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        fresh = doubles.copy_or_itself(subject)
        fresh(*calls.tensors(args), training=True)
        runs.append([np.asarray(y) for y in calls.flat(calls.arrays(fresh(*calls.tensors(args), training=True)))])
    if not calls.equal(*runs):
        yield Measured(
            "two runs from one keras.utils.set_random_seed differ",
            got="other numbers",
            expected="the same numbers",
            reproducer=subject.reproducer(
                "print(part(x, training=True))  # twice in new processes", first="keras.utils.set_random_seed(7)"
            ),
        )


def _states(part: Any) -> list[keras.Variable]:
    return [v for v in part.variables if not calls.is_floating(v)]


@rule(
    "T408",
    kinds=_LAYERS,
    asserts="Its default for training does not leak to the layers around it.",
    why="Keras hands a layer's training on to those it calls and to those after it: a default of True makes them all train.",
    example="""
        def call(self, x, training=True):
            ...
    """,
    mend="Make the default None: then the layer is told what the model around it is told.",
    needs=("B601",),
)
def training_default_does_not_leak(subject: Subject) -> Iterator[Measured | Undecided]:
    """In a model that is called without training, the layers before, within and after are not told to train."""
    args = subject.inputs.arguments()
    part = doubles.copy_or_itself(subject)
    probe = watching.Probe()
    calls.call(subject, part, *args)

    class Around(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.probe = part, probe

        def call(self, *inputs: Any) -> Any:
            outputs = self.part(*inputs)
            self.probe(calls.flat(outputs)[0])
            return outputs

    with watching.told(part) as noted:
        Around()(*calls.tensors(args))
    leaked = [probe for was_told in probe.noted if was_told] or [layer for layer, was_told in noted if was_told]
    default = private.training_default(part)
    if (leaked and not subject.tagged("needs_training")) or default is True:
        yield Measured(
            f"in a model called without training it takes training={default}, and hands that on",
            got=f"training={default}",
            expected="training=None",
            reproducer=subject.reproducer("import inspect; print(inspect.signature(part.call))"),
        )

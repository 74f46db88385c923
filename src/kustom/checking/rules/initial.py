"""Family N, initializers and constraints: the scale of a signal, seeds, and what a projection is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import numpy as np
from keras import ops

from kustom.checking import calls, steadiness
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.making import parameters_of
from kustom.checking.rules import rule
from kustom.checking.rules.backends import failed
from kustom.checking.subjects import Subject
from kustom.errors import SubjectError

# The shape of a kernel, and how many inputs each of its outputs sums up.
KERNELS = {
    "a dense layer 256 to 256": ((256, 256), 256),
    "a dense layer 64 to 256": ((64, 256), 64),
    "a dense layer 256 to 64": ((256, 64), 256),
    "a convolution 3 x 3, 32 to 32": ((3, 3, 32, 32), 288),
}
# Of the signal's deviation; for a layer that narrows or widens by four, the known schemes stay within.
LEAST, MOST = 0.25, 4.0


@rule(
    "N311",
    kinds=("initializer",),
    asserts="It keeps the scale of a signal through a dense layer and a convolution.",
    why="What each layer makes ten times larger is infinite after forty; what each makes smaller never trains.",
    example="""
        def my_glorot_initializer(shape, dtype=None):
            stddev = ops.sqrt(2.0 / shape[0] + shape[1])        # 2.0 / (shape[0] + shape[1]) is right
    """,
    mend="Count the fans: of a kernel (..., in, out) they are the receptive field times in, and times out.",
    needs=("B601",),
)
def keeps_the_scale(subject: Subject) -> Iterator[Measured | Undecided]:
    """One whose values become smaller with larger layers claims to; of others nothing is asked."""
    part = subject.instance()
    deviations = {}
    for name, (shape, fan) in KERNELS.items():
        try:
            values = np.asarray(calls.arrays(part(shape, "float32")), "float64")
        except Exception:
            # One for matrices alone, or square ones; B601 has seen it run.
            continue
        deviations[name] = (float(np.sqrt(np.mean(values**2))), fan, values)
    if len(deviations) < 2:
        return
    try:
        small = float(np.sqrt(np.mean(np.asarray(calls.arrays(part((32, 32), "float32")), "float64") ** 2)))
    except Exception:
        # As above.
        return
    first = next(iter(deviations.values()))[0]
    if small == 0 or abs(first / small - 1) < 0.2:
        return
    for name, (deviation, fan, _) in deviations.items():
        scale = deviation * np.sqrt(fan)
        if not LEAST <= scale <= MOST:
            shape = KERNELS[name][0]
            yield Measured(
                f"through {name} a signal becomes {shown(scale)} times as large (standard deviation {shown(deviation)})",
                input=f"shape {shape}",
                got=shown(deviation),
                expected=f"about {shown(1 / np.sqrt(fan))}",
                reproducer=subject.reproducer(f"print(np.std(keras.ops.convert_to_numpy(part({shape}))))"),
            )
            return


@rule(
    "N312",
    kinds=("initializer",),
    asserts="The same seed gives the same values; two draws differ, and so do two weights that are given one instance.",
    why="Weights that start equal stay equal: a layer of a hundred equal units is a layer of one.",
    example="""
        class Scaled(keras.initializers.Initializer):
            def __init__(self):
                self.seed = 42                         # the same values for every weight of every layer
    """,
    mend="Take seed as a setting, None by default, and draw from a keras.random.SeedGenerator(seed) that the instance keeps.",
    needs=("B601",),
)
def seeds_are_kept_and_draws_differ(subject: Subject) -> Iterator[Measured | Undecided]:
    """Of instances with one seed, with none, and of two draws of one instance."""
    draws = steadiness.draws(subject)
    if not draws:
        return
    try:
        yield from _by_seed(subject)
    except SubjectError as error:
        yield Undecided(str(error))
    one = subject.instance()
    first, second = (calls.arrays(one((6, 4), "float32")) for _ in range(2))
    if np.array_equal(first, second):
        yield Measured(
            "two weights that are given one instance have the same values",
            got="equal values",
            expected="others",
            reproducer=subject.reproducer("print(np.array_equal(*(keras.ops.convert_to_numpy(part((6, 4))) for _ in range(2))))"),
        )


def _by_seed(subject: Subject) -> Iterator[Measured]:
    if subject.is_function:
        takes_seed = "seed" in inspect.signature(subject.part).parameters
        make = (lambda seed: lambda: subject.part((6, 4), "float32", seed=seed)) if takes_seed else None
    else:
        takes_seed = "seed" in parameters_of(type(subject.instance()))
        make = (lambda seed: lambda: subject.make(seed=seed)((6, 4), "float32")) if takes_seed else None
    if make is not None:
        try:
            one, again, other = (calls.arrays(make(seed)()) for seed in (3, 3, 4))
        except Exception as error:
            # Whatever it raises.
            yield failed(subject, error, "it fails when given a seed")
            return
        if not np.array_equal(one, again):
            yield Measured("two with the same seed have other values", got="other values", expected="the same values")
        elif np.array_equal(one, other):
            yield Measured("another seed gives the same values", got="the same values", expected="others")
    if not subject.is_function:
        fresh = [calls.arrays(subject.make(**({"seed": None} if make else {}))((6, 4), "float32")) for _ in range(2)]
        if np.array_equal(*fresh):
            yield Measured(
                "two instances without a seed have the same values",
                got="equal values",
                expected="others",
                reproducer=subject.reproducer(
                    "import copy; again = type(part).from_config(part.get_config()) if hasattr(part, 'get_config') else part",
                    "print(np.array_equal(*(keras.ops.convert_to_numpy(each((6, 4))) for each in (part, again))))",
                ),
            )


@rule(
    "N313",
    kinds=("constraint",),
    asserts="It is a projection: applied twice it gives what it gave once.",
    why="Keras applies it after every step: one that goes on changing its own result shrinks or grows the weights by itself.",
    example="""
        def __call__(self, w):
            return w / ops.norm(w) * ops.sqrt(ops.norm(w))
    """,
    mend="Map to the nearest weights that are allowed, and leave those alone that are; or declare the tag not_a_projection.",
    needs=("B601",),
)
def twice_is_once(subject: Subject) -> Iterator[Measured | Undecided]:
    """For small, ordinary and large weights."""
    if subject.tagged("not_a_projection"):
        yield Undecided("it is declared to be no projection")
        return
    part = subject.instance()
    rng = subject.rng("N313")
    for scale in (0.01, 1.0, 100.0):
        for shape in ((6, 4), (3, 3, 2, 4)):
            w = ops.convert_to_tensor((scale * rng.normal(size=shape)).astype("float32"))
            try:
                once = part(w)
                twice = part(once)
            except Exception:
                # One for matrices alone; B601 has seen it run.
                continue
            # A small constant in a denominator is forgiven: a hundredth of a percent.
            if not calls.same(calls.arrays(once), calls.arrays(twice), units=1024.0):
                _, a, b = calls.worst(calls.arrays(once), calls.arrays(twice))
                yield Measured(
                    f"applied once it gives {shown(a)}, twice {shown(b)}",
                    input=f"weights of the size {scale:g}, shape {shape}",
                    got=shown(b),
                    expected=shown(a),
                    reproducer=subject.reproducer("w1 = part(w); print(keras.ops.max(keras.ops.abs(part(w1) - w1)))"),
                )
                return

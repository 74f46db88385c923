"""Family S: shapes and dtypes, as Keras asks for them before any number is computed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kustom.backends import current
from kustom.backends import keras as private
from kustom.checking import calls, doubles
from kustom.checking.finding import Measured, Undecided, shown
from kustom.checking.processes import POOL
from kustom.checking.rules import rule
from kustom.checking.rules.backends import failed, one_line, recipe_of, unanswered
from kustom.checking.subjects import CALL, Subject, policy
from kustom.errors import SubjectError

POLICIES = ("float32", "mixed_float16", "mixed_bfloat16", "float64")


@rule(
    "S201",
    kinds=("layer", "model"),
    asserts="It works on symbolic inputs, with an unknown batch size.",
    why="Functional models, Sequential, export and summary call it so; fit on TensorFlow and JAX traces it.",
    example="""
        def call(self, x):
            return keras.ops.reshape(x, (x.shape[0], 4, 1))    # x.shape[0] is None
    """,
    mend="Write -1 or keras.ops.shape(x)[0] for the batch size, and decide by keras.ops.where or cond, not by a value.",
    needs=("B601",),
    where="every backend",
)
def works_symbolically(subject: Subject, backend: str) -> Iterator[Measured | Undecided]:
    """Its outputs for symbolic inputs have the shapes that come out for arrays; backends differ in how much they forgive."""
    args = subject.inputs.arguments()
    if backend != keras.backend.backend():
        yield from _works_elsewhere(subject, backend, args)
        return
    part = doubles.copy_or_itself(subject)
    try:
        symbolic = symbolic_shapes(subject, part, args)
    except Exception as error:
        # Whatever a part raises.
        yield failed(subject, error, "it fails on symbolic inputs", args)
        return
    real = _returned_shapes(subject, part, args)
    if real is None:
        yield Undecided("it returns None: see T402")
        return
    if len(symbolic) != len(real) or not all(calls.fits(s, r) for s, r in zip(symbolic, real, strict=True)):
        yield Measured(
            f"for symbolic inputs it says {shown(symbolic)}, for arrays {shown(real)} comes out",
            got=shown(symbolic),
            expected=shown(real),
            reproducer=subject.reproducer(f"print(part(keras.Input({shown(getattr(args[0], 'shape', ())[1:])})).shape)"),
        )


def symbolic_shapes(subject: Subject, part: Any, args: Any) -> list[tuple[Any, ...]]:
    """The shapes that a part gives for symbolic inputs."""
    outputs = part(*_symbols(args), **calls.training_of(subject))
    return [tuple(y.shape) for y in calls.flat(outputs) if hasattr(y, "shape")]


def _returned_shapes(subject: Subject, part: Any, args: Any) -> list[tuple[int, ...]] | None:
    """The shapes that a part gives for arrays; None where it returns None, of which there is no shape."""
    leaves = calls.flat(calls.call(subject, part, *args))
    return None if any(y is None for y in leaves) else [np.asarray(calls.arrays(y)).shape for y in leaves]


def _works_elsewhere(subject: Subject, backend: str, args: Any) -> Iterator[Measured | Undecided]:
    try:
        recipe = recipe_of(subject)
    except Exception as error:
        # It cannot be found from there, or its config fails, as C101 and C102 say.
        yield Undecided(one_line(error))
        return
    yield from unanswered(
        POOL.ask(backend, "symbolic", recipe, args=args),
        f"it fails on symbolic inputs on {backend}",
        expected="a symbolic tensor",
        reproducer=f"# KERAS_BACKEND={backend} python\n"
        + subject.reproducer(
            "x = keras.tree.map_structure(lambda a: keras.Input(a.shape[1:], dtype=keras.backend.standardize_dtype(a.dtype)), x)",
            "print(part(x))",
        ),
    )


def _symbols(args: Any) -> Any:
    return calls.mapped(lambda x: keras.Input(x.shape[1:], dtype=str(x.dtype)) if x.ndim else x, args)


@rule(
    "S202",
    kinds=("layer", "model"),
    asserts="compute_output_shape gives the shape that comes out.",
    why="What comes after it is built for the shape that it promises.",
    example="""
        def compute_output_shape(self, input_shape):
            return input_shape.as_list()[:-1] + [self.units]       # a tuple has no as_list
    """,
    mend="Return (*input_shape[:-1], self.units), a tuple; or leave the method out: Keras finds the shape itself.",
    needs=("B601",),
)
def output_shape_is_as_computed(subject: Subject) -> Iterator[Measured | Undecided]:
    """For two batch sizes, and for an unknown one."""
    part = doubles.copy_or_itself(subject)
    method = part.compute_output_shape
    # What a functional model says of its shape is Keras's.
    if private.is_default(method) or private.is_functional(part):
        return
    for batch in (3, 1, None):
        args = subject.inputs.arguments(batch=batch or 3)
        shapes = [calls.shape_of(x, batch) for x in args]
        real = _returned_shapes(subject, part, args)
        if real is None:
            yield Undecided("it returns None: see T402")
            return
        try:
            said = method(*shapes)
        except NotImplementedError:
            # Keras's own word for a layer whose shape it cannot tell.
            return
        except Exception as error:
            # Whatever a part raises.
            call = f"compute_output_shape({', '.join(map(str, shapes))})"
            yield failed(subject, error, f"{call} fails", shows=(f"part.{call}",))
            return
        flat = calls.shapes_in(said)
        if len(flat) != len(real) or not all(calls.fits(s, r) for s, r in zip(flat, real, strict=True)):
            yield Measured(
                f"compute_output_shape({', '.join(map(str, shapes))}) is {shown(flat)}, and {shown(real)} comes out",
                input=shown(shapes),
                got=shown(flat),
                expected=shown(real),
                reproducer=subject.reproducer(f"print(part.compute_output_shape({', '.join(map(str, shapes))}))"),
            )
            return


@rule(
    "S203",
    kinds=("layer", "model"),
    asserts="Its output has the compute dtype of its policy.",
    why="One layer that returns float32 under mixed precision makes all that follows it compute in float32, or fail.",
    example="""
        def call(self, x):
            return keras.ops.cast(x, "float32") * self.scale
    """,
    mend="Cast constants and buffers to x.dtype or self.compute_dtype; pass **kwargs to super().__init__ and dtype to sublayers.",
    needs=("B601",),
    variants=POLICIES,
)
def output_has_the_compute_dtype(subject: Subject, name: str) -> Iterator[Measured | Undecided]:
    """Under each policy, a new one computes in its dtype."""
    expected = keras.DTypePolicy(name).compute_dtype
    here = getattr(subject.instance().dtype_policy, "name", "float32")
    if here != "float32":
        yield Undecided(f"it has a policy of its own, {here}")
        return
    args = subject.inputs.arguments()
    if private.is_functional(subject.instance()):
        yield Undecided("the layers of a functional model each have their own policy")
        return
    with contextlib.ExitStack() as scopes:
        if name == "float64":
            # Keras promotes it to float32 on JAX and torch.
            scopes.enter_context(current().double_precision())
            scopes.enter_context(private.wide_floats())
        scopes.enter_context(policy(name))
        part = scopes.enter_context(doubles.retyped(subject, name))
        if part is subject.instance():
            yield Undecided("no new one could be made")
            return
        try:
            outputs = calls.call(subject, part, *args)
        except Exception as error:
            # A backend without a kernel for the dtype, or a part that mixes dtypes.
            if not _no_kernel(error) and (current().refuses_mixed_dtypes(error) or "dtype" in str(error)):
                yield failed(subject, error, f"it fails under the policy {name}", args)
            else:
                yield Undecided(f"it fails under {name}: {one_line(error)}")
            return
        returned = [y for y in calls.flat(outputs) if ops.is_tensor(y)]
        wrong = [private.standardize_dtype(y.dtype) for y in returned if calls.is_floating(y)]
    if not returned:
        yield Undecided("it returns no tensor: see T402")
    wrong = [dtype for dtype in wrong if dtype != expected]
    if wrong:
        yield Measured(
            f"under the policy {name} it returns {wrong[0]}",
            got=wrong[0],
            expected=expected,
            reproducer=subject.reproducer(
                f"print([each.dtype for each in keras.tree.flatten({CALL})])", first=f"keras.config.set_dtype_policy({name!r})"
            ),
        )


@rule(
    "S205",
    kinds=("initializer", "constraint"),
    asserts="What it returns has the shape and dtype that are asked for.",
    why="Keras makes the variable of what comes back; a constraint's result is assigned to it.",
    example="""
        def my_glorot_initializer(shape, dtype=None):
            return keras.random.normal(shape)           # float32 whatever dtype says
    """,
    mend="Hand dtype on: keras.random.normal(shape, dtype=dtype); in a constraint compute with w's own dtype.",
    needs=("B601",),
)
def shape_and_dtype_are_kept(subject: Subject) -> Iterator[Measured | Undecided]:
    """For matrices, vectors and kernels, in each floating dtype."""
    part = subject.instance()
    for shape in ((6, 4), (5,), (3, 3, 2, 4)):
        for dtype in ("float32", "float16", "bfloat16"):
            try:
                if subject.kind == "initializer":
                    made = part(shape, dtype)
                else:
                    made = part(ops.cast(ops.convert_to_tensor(np.linspace(-1, 1, int(np.prod(shape))).reshape(shape)), dtype))
            except Exception as error:
                # An initializer for matrices alone refuses other shapes; of a matrix in float32 B601 has spoken.
                if shape == (6, 4) and not _no_kernel(error):
                    yield failed(
                        subject,
                        error,
                        f"it fails for the shape {shape} and the dtype {dtype}",
                        shows=(f"part({shape}, {dtype!r})",),
                    )
                    return
                continue
            got = (tuple(made.shape), private.standardize_dtype(made.dtype))
            if got != (shape, dtype):
                yield Measured(
                    f"asked for {shape} in {dtype} it returns {got[0]} in {got[1]}",
                    input=f"{shape}, {dtype}",
                    got=f"{got[0]}, {got[1]}",
                    expected=f"{shape}, {dtype}",
                    reproducer=subject.reproducer(
                        f"print(part({shape}, {dtype!r}).dtype)" if subject.kind == "initializer" else "print(part(w).dtype)"
                    ),
                )
                return


def _no_kernel(error: Exception) -> bool:
    """Whether a backend says that it has no such function for a dtype, as some have for half precision on a processor."""
    text = str(error).lower()
    said = (
        "not implemented for",
        "could not find device",
        "unsupported dtype",
        "no opkernel",
        "dtypes not supported",
        "in the list of allowed values",
    )
    return any(each in text for each in said)


@rule(
    "S206",
    kinds=("regularizer",),
    asserts="It returns one finite number.",
    why="Keras adds it to the loss; an array there makes the loss an array.",
    example="""
        def my_l2_regularizer(weights):
            return 0.01 * keras.ops.square(weights)
    """,
    mend="Sum: keras.ops.sum(...).",
    needs=("B601",),
)
def returns_a_finite_scalar(subject: Subject) -> Iterator[Measured | Undecided]:
    """For matrices, vectors and kernels, of ordinary numbers and of zeros."""
    part = subject.instance()
    for shape in ((4, 3), (5,), (3, 3, 2, 2)):
        for x in (np.linspace(-1, 1, int(np.prod(shape)), dtype="float32").reshape(shape), np.zeros(shape, "float32")):
            try:
                got = calls.arrays(part(ops.convert_to_tensor(x)))
            except Exception as error:
                # One for matrices alone may refuse other shapes.
                if shape == (4, 3):
                    yield failed(
                        subject, error, f"it fails for weights of the shape {shape}", shows=(f"part(keras.ops.zeros({shape}))",)
                    )
                    return
                continue
            if got.shape != () or not np.isfinite(got):
                what = f"the shape {got.shape}" if got.shape != () else shown(float(got))
                yield Measured(
                    f"for weights of the shape {shape} it returns {what}",
                    got=what,
                    expected="one finite number",
                    mend=""
                    if got.shape != ()
                    else "Keep what is divided by, or rooted, away from 0: ops.divide_no_nan, ops.maximum.",
                    reproducer=subject.reproducer(f"print(part(keras.ops.zeros({shape})))"),
                )
                return


@rule(
    "S209",
    kinds=("layer", "model"),
    asserts="It is built alike by a tuple, as when it is made, and by what a file holds in its place.",
    why="JSON has no tuples: after loading, build gets a list, and shape[-1:] + (2,) fails.",
    example="""
        def build(self, input_shape):
            self.w = self.add_weight(shape=input_shape[-1:] + (2,))
    """,
    mend="Begin build with input_shape = tuple(input_shape), or write shape=(input_shape[-1], 2); or make it with kustom.",
    needs=("B601",),
)
def build_takes_what_a_file_holds(subject: Subject) -> Iterator[Measured | Undecided]:
    """A new one, built from its build config after a trip through JSON, has the weights of the one that was called."""
    part = doubles.copy_or_itself(subject)
    calls.call(subject, part, *subject.inputs.arguments())
    config = part.get_build_config()
    if not config or private.is_functional(part):
        return
    try:
        fresh = subject.make()
    except SubjectError:
        # C102 has said so.
        return
    try:
        fresh.build_from_config(json.loads(json.dumps(config)))
    except Exception as error:
        # Whatever a build raises.
        held = json.loads(json.dumps(config))
        yield failed(
            subject, error, f"build fails for {shown(held)}, as a file holds it", shows=(f"part.build_from_config({held!r})",)
        )
        return
    if not fresh.built:
        return
    ours, theirs = ([tuple(v.shape) for v in each.variables] for each in (part, fresh))
    # A layer without a build of its own makes its weights when it is called.
    if theirs and len(theirs) == len(ours) and ours != theirs:
        yield Measured(
            f"built from a file's shape it has weights of {shown(theirs)}, called it has {shown(ours)}",
            got=shown(theirs),
            expected=shown(ours),
            reproducer=subject.reproducer(f"part.build_from_config({json.loads(json.dumps(config))!r})"),
        )

"""What `kustom.check` finds of the planted faults, and what others' tools find of the same parts.

The faults are those of `tests/checking/faults`, each with a corrected twin. Every tool gets the same inputs, those that
kustom makes. A tool has found a fault where it fails the faulty part and passes the twin; where it fails the twin, too, it
has told nobody anything, and that is counted by itself. Of kustom only a finding under the fault's own code counts; of the
others any failure does, whatever it says. Each tool runs in a process of its own, on the backend that suits it best:

    kustom.check        only the fault's code, with the other backends beside where the code needs them
    run_layer_test      Keras's own test of its layers, on JAX, where it compiles and tries mixed precision; and again without
                        the mixed precision, and without any call, since some right layers pass only so
    gradcheck           torch's, in float64, with gradgradcheck after it: by the inputs and by the trainable weights
    check_grads         JAX's, in float64, of first and then second order, by reverse mode: likewise
"""

from __future__ import annotations

import argparse
import collections
import functools
import importlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
from keras import ops

import kustom
from kustom.backends import keras as private
from kustom.checking import calls, doubles
from kustom.checking.making import settings_in
from kustom.checking.subjects import Subject

CORPUS = Path(__file__).resolve().parent.parent / "tests" / "checking"
DIFFERENTIABLE = ("layer", "model", "activation", "loss", "regularizer")


class Tool(NamedTuple):
    """A checker: where it runs, to which kinds of parts it applies, and its ways of checking one, each apart."""

    backend: str
    kinds: tuple[str, ...] | None
    ways: tuple[Callable[..., None], ...]


def by_kustom(subject: Subject, code: str) -> None:
    """Fail where a finding has the code; where it could not be checked, say nothing."""
    report = kustom.check(subject.part, only=code, on_fail=None, **subject.known["given"])
    if any(finding.code == code for finding in report.findings):
        raise AssertionError(str(report))


def by_run_layer_test(subject: Subject, code: str, *, precision: bool = True, called: bool = True) -> None:
    """Keras's own test, which is not public, with what it needs and no number of weights or losses expected.

    Args:
        subject: A layer.
        code: Of the fault.
        precision: With its part on mixed precision, which fails layers that have weights and no `compute_output_spec`.
        called: With its part on inputs, which fails layers whose sublayers are built when they are called.
    """
    testing = importlib.import_module("keras.src.testing")
    part = subject.part
    is_layer = isinstance(part, keras.layers.Layer)
    layer_cls = functools.partial(type(part), **settings_in(part)) if is_layer else part
    case = testing.TestCase()
    case.setUp()
    if not called:
        return case.run_layer_test(layer_cls, {}, run_training_check=False, run_mixed_precision_check=False)
    arguments = [calls.tensors(x) for x in subject.inputs.arguments()]
    data = arguments[0] if len(arguments) == 1 else arguments
    return case.run_layer_test(layer_cls, {}, input_data=data, run_mixed_precision_check=precision)


def function_of(subject: Subject, made: Any, args: tuple[Any, ...]) -> tuple[Callable[..., Any], list[Any]]:
    """A part as a function of its floating inputs (of a loss: the predictions) and trainable weights, and their values."""
    flat = [ops.convert_to_tensor(x) for x in calls.flat(args)]
    targets = 1 if subject.kind == "loss" else 0
    places = [i for i, x in enumerate(flat) if i >= targets and keras.backend.is_float_dtype(private.standardize_dtype(x.dtype))]
    weights = list(made.trainable_variables) if subject.kind in ("layer", "model") else []

    def function(*values: Any) -> Any:
        filled = list(flat)
        for place, value in zip(places, values, strict=False):
            # JAX's check hands over arrays of numpy.
            filled[place] = ops.convert_to_tensor(value)
        arguments = keras.tree.pack_sequence_as(args, filled)
        with keras.StatelessScope(list(zip(weights, values[len(places) :], strict=True))):
            made_of = calls.call_on_tensors(subject, made, arguments)
        return tuple(y for y in keras.tree.flatten(made_of) if ops.is_tensor(y))

    return function, [flat[i] for i in places] + [private.told(v) for v in weights]


def by_gradcheck(subject: Subject, code: str, *, second: bool = False) -> None:
    """torch's, with its own tolerances."""
    import torch

    with doubles.part(subject) as (made, args):
        function, values = function_of(subject, made, args)
        inputs = [value.detach().clone().requires_grad_(True) for value in values]
        (torch.autograd.gradgradcheck if second else torch.autograd.gradcheck)(function, inputs)


def by_check_grads(subject: Subject, code: str, *, order: int = 1) -> None:
    """JAX's, with its own tolerances; a custom gradient has no forward mode."""
    from jax.test_util import check_grads

    with doubles.part(subject) as (made, args):
        function, values = function_of(subject, made, args)
        check_grads(function, tuple(values), order=order, modes=("rev",))


# Whole, and with less of it, for parts that it refuses though they are right.
LAYER_TESTS = (
    by_run_layer_test,
    functools.partial(by_run_layer_test, precision=False),
    functools.partial(by_run_layer_test, called=False),
)
TOOLS = {
    "kustom.check": Tool("torch", None, (by_kustom,)),
    "run_layer_test": Tool("jax", ("layer", "model"), LAYER_TESTS),
    "gradcheck": Tool("torch", DIFFERENTIABLE, (by_gradcheck, functools.partial(by_gradcheck, second=True))),
    "check_grads": Tool("jax", DIFFERENTIABLE, (by_check_grads, functools.partial(by_check_grads, order=2))),
}


def fails(way: Callable[..., None], part: Any, code: str, given: dict[str, Any]) -> str:
    """What a tool says against a part; empty where it passes."""
    try:
        subject = Subject(part, **given)
        subject.known["given"] = given
        way(subject, code)
    except Exception as error:
        # Whatever a tool raises is what it has to say.
        return f"{type(error).__name__}: {error}"
    return ""


def work(tool: Tool, codes: list[str]) -> None:
    """Run one tool on the corpus; a line of JSON a fault."""
    sys.path.insert(0, str(CORPUS))
    warnings.simplefilter("ignore")
    for pair in importlib.import_module("faults").pairs():
        if not any(pair.code.startswith(code) for code in codes):
            continue
        kind = Subject(pair.faulty, **pair.given).kind
        seen: dict[str, Any] = {"code": pair.code, "name": pair.name, "kind": kind, "says": ""}
        if tool.kinds is not None and kind not in tool.kinds:
            seen["verdict"] = "does not apply"
        else:
            said = [
                (fails(way, pair.faulty, pair.code, pair.given), fails(way, pair.twin, pair.code, pair.given)) for way in tool.ways
            ]
            found = [faulty for faulty, twin in said if faulty and not twin]
            refused = [twin for _, twin in said if twin]
            seen["verdict"] = "found" if found else "missed" if len(refused) < len(said) else "refuses the twin"
            seen["says"] = " ".join((found or refused or [""])[0].split())[:200]
        print(json.dumps(seen), flush=True)


def run(name: str, codes: list[str]) -> list[dict[str, Any]]:
    """What one tool says, from a process of its own."""
    command = [sys.executable, __file__, "--worker", name, "--codes", *codes]
    environment = {**os.environ, "KERAS_BACKEND": TOOLS[name].backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} did not run to its end:\n{done.stderr[-3000:]}")
    print(f"{name}: {time.perf_counter() - started:.0f} s on {TOOLS[name].backend}", file=sys.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"code"')]


def table(seen: dict[str, list[dict[str, Any]]]) -> str:
    """For each code and tool how many faults it found of those to which it applies."""
    lines = [f"| code | {' | '.join(seen)} |", f"| --- |{' --- |' * len(seen)}"]
    codes = sorted({each["code"] for one in seen.values() for each in one})
    for code in [*codes, "all"]:
        cells = []
        for one in seen.values():
            counts = collections.Counter(each["verdict"] for each in one if code in (each["code"], "all"))
            applied = counts.total() - counts["does not apply"]
            twins = counts["refuses the twin"]
            refused = f" ({twins} {'twin' if twins == 1 else 'twins'} refused)" if twins else ""
            cells.append(f"{counts['found']} of {applied}{refused}" if applied else "does not apply")
        lines.append(f"| {code} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the tools one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", nargs="*", default=[""], help="codes, or how they begin: G S202; all by default")
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--verbose", action="store_true", help="each fault with its verdict and what the tool said")
    parser.add_argument("--worker", choices=list(TOOLS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(TOOLS[options.worker], options.codes)
    seen = {name: run(name, options.codes) for name in options.tools}
    if options.verbose:
        for name, one in seen.items():
            for each in one:
                print(f"{name:<15} {each['name']:<42} {each['verdict']:<17} {each['says']}")
    print(table(seen))
    return None


if __name__ == "__main__":
    main()

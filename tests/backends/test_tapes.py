"""What the tape on JAX rests on, by name: it moves between minor versions, and must not move unnoticed."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import kustom
from kustom import errors
from kustom.backends import current

BACKEND = keras.backend.backend()
jax_only = pytest.mark.skipif(BACKEND != "jax", reason="it looks at JAX's own traces")


@jax_only
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("process_primitive", ["self", "primitive", "tracers", "params"]),
        ("process_call", ["self", "call_primitive", "f", "tracers", "params"]),
        ("process_custom_jvp_call", ["self", "primitive", "fun", "jvp", "tracers", "symbolic_zeros"]),
        ("process_custom_vjp_call", ["self", "primitive", "fun", "fwd", "bwd", "tracers", "out_trees", "symbolic_zeros"]),
        ("stage_value", ["self", "val"]),
    ],
)
def test_a_trace_of_jax_has_the_interface(name, parameters):
    import jax

    assert [*inspect.signature(getattr(jax.core.Trace, name)).parameters] == parameters


@jax_only
def test_a_pullback_of_jax_tells_what_is_connected():
    import jax

    _, pull = jax.vjp(lambda x, y: [x * 2.0, jax.lax.stop_gradient(y)], 1.0, 2.0)
    assert [*pull.fun.args[1]] == [False, True]
    assert len(pull.jaxpr.invars) == 2
    assert len(pull.jaxpr.outvars) == 1


@jax_only
def test_a_pullback_of_jax_takes_symbolic_zeros():
    import jax
    from jax.interpreters import ad

    (x, y), pull = jax.vjp(lambda x: [x * 2.0, x * 3.0], 1.0)
    [gradient] = pull([np.float32(1.0), ad.Zero(jax.typeof(y).to_ct_aval())])
    assert float(gradient) == 2.0
    assert float(x) == 2.0


@jax_only
def test_the_versions_that_are_supported_are_those_of_the_extra():
    import jax

    supported = current("tapes").SUPPORTED
    assert tuple(map(int, jax.__version__.split(".")[:2])) in supported
    root = Path(kustom.__file__).parents[2] / "pyproject.toml"
    if not root.exists():
        pytest.skip("the wheel is tested away from its sources")
    low, high = re.search(r'jax = \["jax>=(\d+\.\d+),<(\d+\.\d+)"\]', root.read_text(encoding="utf-8")).groups()
    assert tuple(map(int, low.split("."))) == supported[0]
    major, minor = supported[-1]
    assert tuple(map(int, high.split("."))) == (major, minor + 1)


@jax_only
def test_another_version_is_refused_with_the_form_that_works(monkeypatch):
    import jax

    monkeypatch.setattr(jax, "__version__", "0.99.1")
    with pytest.raises(errors.TapeError, match=r"JAX 0\.99\.1 are not known.*kustom\.value_and_grad\(f, variables="):
        kustom.GradientTape()
    w = keras.Variable(3.0)
    assert float(kustom.grad(lambda: w * w, variables=w)()) == 6.0


@jax_only
def test_a_trace_without_the_interface_is_refused_by_name(monkeypatch):
    import jax

    monkeypatch.delattr(jax.core.Trace, "process_custom_vjp_call")
    with pytest.raises(errors.TapeError, match=r"lacks process_custom_vjp_call.*kustom\.value_and_grad"):
        kustom.GradientTape()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="moments are wrong on TensorFlow alone")
def test_keras_computes_moments_where_the_tape_looks():
    from keras.src.backend.tensorflow import nn

    before = nn._compute_moments
    with kustom.GradientTape():
        assert nn._compute_moments is not before
    assert nn._compute_moments is before


@pytest.mark.skipif(BACKEND != "torch", reason="it looks at torch's own graph")
def test_nodes_of_torch_are_numbered():
    import torch

    x = torch.ones((), requires_grad=True)
    first = x * 2
    second = first * 2
    assert first.grad_fn._sequence_nr() < second.grad_fn._sequence_nr() < torch.autograd._get_sequence_nr()
    assert first.grad_fn.next_functions[0][0]._sequence_nr() > 2**62
    assert torch._C._functorch.maybe_current_level() is None


def test_reading_a_variable_goes_through_its_value():
    w = keras.Variable(2.0)
    with kustom.GradientTape() as tape:
        w.value, ops.convert_to_tensor(w), w * 1
    assert len(tape.watched_variables()) == 1


@pytest.mark.skipif(not hasattr(ops, "grad"), reason="Keras has no ops.grad yet")
@pytest.mark.parametrize("argnums", [0, 1])
def test_it_gives_the_numbers_of_keras_own(argnums):
    x, y = ops.convert_to_tensor([1.0, 2.0]), ops.convert_to_tensor([3.0, 4.0])

    def f(x, y):
        return ops.sum(ops.sin(x) * y**2)

    ours, keras_own = kustom.grad(f, argnums=argnums)(x, y), ops.grad(f, argnums=argnums)(x, y)
    np.testing.assert_allclose(ops.convert_to_numpy(ours), ops.convert_to_numpy(keras_own), rtol=1e-5)

"""What Keras and the backends keep for themselves: names on an instance, arguments of constructors, libraries.

A part's author chooses names freely, on all backends at once. What would be in the way of Keras's own on any of them is
known here, as no class of Keras's lists it.
"""

from __future__ import annotations

import functools
from typing import Any

import keras
from keras.src.utils.naming import to_snake_case

__all__ = ["RESERVED", "ROOTS", "is_internal", "is_library", "is_of_keras", "is_of_library", "to_snake_case"]

# What Keras, or one of its backends, keeps under these names on an instance; the rest is found with `dir(base)`. The
# names of `torch.nn.Module` and TensorFlow's trackables count everywhere, since a part must be the same on each backend.
_LAYER = """
    activity_regularizer autocast built call_signature_parameters compute_dtype dtype dtype_policy input losses mask
    metrics name output path quantization_config supports_jit trainable training variables weights
    T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches eval
    extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict modules mtia
    named_buffers named_children named_modules named_parameters parameters register_backward_hook register_buffer
    register_forward_hook register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook
    register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module register_parameter
    register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory
    state_dict to to_empty torch_params train type xpu zero_grad
"""
_MODEL = """
    compiled compiled_loss compiled_metrics compute_loss_and_updates distribute_reduction_method distribute_strategy
    inputs jax_state_sync loss optimizer outputs predict_function run_eagerly steps_per_execution stop_training
    test_function train_function unrolled_steps_per_execution
"""
RESERVED: dict[type, frozenset[str]] = {
    keras.layers.Layer: frozenset(_LAYER.split()),
    keras.Model: frozenset(_LAYER.split() + _MODEL.split()),
    keras.losses.Loss: frozenset(["name", "reduction", "dtype", "mask", "sample_weight"]),
    keras.metrics.Metric: frozenset(["name", "dtype", "sample_weight", "variables", "metrics"]),
    keras.optimizers.Optimizer: frozenset(["name", "built", "iterations", "learning_rate", "variables"]),
    keras.regularizers.Regularizer: frozenset(),
    keras.constraints.Constraint: frozenset(),
    keras.initializers.Initializer: frozenset(["shape"]),
    keras.callbacks.Callback: frozenset(["model", "params", "validation_data"]),
}

# The bases whose own constructor arguments are the common ones (`name`, `dtype`, ...), from the most special on. An
# optimizer's base is none of them: its `learning_rate` is an argument of its own.
ROOTS: dict[type, tuple[str, ...]] = {
    keras.Sequential: ("name", "trainable"),
    keras.Model: ("name", "trainable", "dtype"),
    keras.layers.Layer: ("name", "trainable", "dtype", "autocast", "activity_regularizer"),
    keras.losses.Loss: ("name", "reduction", "dtype"),
    keras.metrics.Metric: ("name", "dtype"),
    keras.regularizers.Regularizer: (),
    keras.constraints.Constraint: (),
    keras.initializers.Initializer: (),
    keras.callbacks.Callback: (),
}


@functools.cache
def _internals(kind: str) -> frozenset[str]:
    bare = keras.metrics.Metric() if kind == "metric" else keras.Model() if kind == "model" else keras.layers.Layer()
    return frozenset(vars(bare)) | _LATER


# What Keras and its backends set on an instance after it is made.
_LATER = frozenset(
    """
    _build_shapes_dict _compile_config _compile_loss _compile_metrics _functional _jax_state _loss_tracker _losses_override
    _modules _parameters _torch_params _tracker compiled optimizer build quantize _call_signature _inbound_nodes
    _outbound_nodes _object__state _pytree__state _jax_state_synced train_function test_function predict_function
    _distribute_strategy _saved_model_inputs_spec _eval_epoch_iterator _supports_masking
    """.split()
)


def is_internal(part: Any, name: str) -> bool:
    """Whether Keras, or kustom, keeps something of its own in the attribute `name` of a part."""
    if name.startswith(("_kustom", "_self_")):
        return True
    if isinstance(part, keras.metrics.Metric):
        return name in _internals("metric")
    return name in _internals("model" if isinstance(part, keras.Model) else "layer")


def is_of_library(obj: Any) -> bool:
    """Whether `obj` is of Keras or a library below it, so that no user keeps layers in it."""
    return is_library(type(obj).__module__)


def is_library(module: str | None) -> bool:
    """Whether a module is of Keras or a library below it."""
    return (module or "").split(".")[0] in _LIBRARIES


_LIBRARIES = frozenset("builtins keras numpy tensorflow jax jaxlib torch ml_dtypes threading functools types kustom".split())


def is_of_keras(function: Any) -> bool:
    """Whether a function is Keras's own."""
    return (getattr(function, "__module__", None) or "").split(".")[0] == "keras"

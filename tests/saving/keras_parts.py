"""An instance of every part that Keras exports, for each slot in which it belongs; for the tests of what files may hold."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import keras

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "keras_parts.py"

# What a constructor needs, by the argument's name.
GIVEN: dict[str, Any] = {
    "units": 2, "filters": 2, "kernel_size": 1, "rate": 0.5, "stddev": 0.5, "input_dim": 3, "output_dim": 2, "n": 2, "size": 2,
    "num_heads": 2, "key_dim": 2, "num_tokens": 3, "num_bins": 4, "height": 2, "width": 2, "target_shape": (2, 2), "dims": (2, 1),
    "equation": "ab,bc->ac", "output_shape": (3,), "target_class_ids": [0], "num_classes": 2, "name": "it", "fn": "mse",
    "factor": 0.5, "value_range": (0, 1), "sequence_length": 8, "sequence_stride": 4, "fft_length": 8, "pool_size": 1,
    "axes": 1, "upper": 0.9, "lower": 0.1, "alpha": 0.5, "scale": 0.5, "initial_learning_rate": 0.1, "decay_steps": 10,
    "decay_rate": 0.5, "boundaries": [1, 2], "values": [0.1, 0.2, 0.3], "first_decay_steps": 5, "end_learning_rate": 0.01,
    "recall": 0.5, "precision": 0.5, "sensitivity": 0.5, "specificity": 0.5, "head_dim": 2, "num_query_heads": 2,
    "num_key_value_heads": 2, "bin_boundaries": [0.0, 1.0], "offset": 0.5, "crop_to_aspect_ratio": True, "max_value": 2.0,
    "mode": "int8", "feature_names": ["a", "b"], "policy_map": None, "batch_shape": (None, 2), "num_segments": 2,
    "source_name": None, "output_size": 1, "max_number": 3, "height_factor": 0.1, "width_factor": 0.1, "intermediate_dim": 4,
    "transforms": None, "num_groups": 1, "channel_axis": -1,
}  # fmt: skip


def script() -> Any:
    """The program that writes the table, as a module."""
    spec = importlib.util.spec_from_file_location("keras_parts_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def special() -> dict[str, Any]:
    """What needs more than numbers."""
    layers = keras.layers
    dense, cell = layers.Dense(2), layers.LSTMCell(2)
    inputs = keras.Input((3,))
    made = {
        "keras.layers.TimeDistributed": lambda: layers.TimeDistributed(dense),
        "keras.layers.SpectralNormalization": lambda: layers.SpectralNormalization(dense),
        "keras.layers.Bidirectional": lambda: layers.Bidirectional(layers.LSTM(2), backward_layer=layers.GRU(2, go_backwards=True)),
        "keras.layers.RNN": lambda: layers.RNN([cell, layers.GRUCell(2)]),
        "keras.layers.StackedRNNCells": lambda: layers.StackedRNNCells([cell, layers.SimpleRNNCell(2)]),
        "keras.layers.Pipeline": lambda: layers.Pipeline([layers.Rescaling(0.5), layers.CenterCrop(2, 2)]),
        "keras.layers.EinsumDense": lambda: layers.EinsumDense("ab,bc->ac", output_shape=3),
        "keras.layers.InputLayer": lambda: layers.InputLayer((2,)),
        "keras.layers.CategoryEncoding": lambda: layers.CategoryEncoding(3),
        "keras.layers.Discretization": lambda: layers.Discretization([0.0, 1.0]),
        "keras.layers.RandomPosterization": lambda: layers.RandomPosterization(4),
        "keras.layers.GroupNormalization": lambda: layers.GroupNormalization(1),
        "keras.layers.Activation": lambda: layers.Activation("relu"),
        "keras.layers.HashedCrossing": lambda: layers.HashedCrossing(4),
        "keras.Model": lambda: keras.Model(inputs, dense(inputs)),
        "keras.Sequential": lambda: keras.Sequential([keras.Input((3,)), layers.Dense(2, activation="relu")]),
        "keras.utils.FeatureSpace": feature_space,
        "keras.distillation.Distiller": lambda: keras.distillation.Distiller(
            keras.Sequential([keras.Input((3,)), layers.Dense(2)]),
            keras.Sequential([keras.Input((3,)), layers.Dense(2)]),
            keras.distillation.LogitsDistillation(),
        ),
        "keras.distillation.FeatureDistillation": lambda: keras.distillation.FeatureDistillation(loss="mse"),
        "keras.optimizers.LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
        "keras.initializers.Constant": lambda: keras.initializers.Constant(2.0),
        "keras.quantizers.AbsMaxQuantizer": lambda: keras.quantizers.AbsMaxQuantizer(axis=0),
        "keras.dtype_policies.DTypePolicy": lambda: keras.DTypePolicy("mixed_bfloat16"),
        "keras.dtype_policies.DTypePolicyMap": lambda: keras.dtype_policies.DTypePolicyMap(
            policy_map={"a": keras.DTypePolicy("bfloat16")}
        ),
        "keras.dtype_policies.QuantizedDTypePolicy": lambda: keras.dtype_policies.QuantizedDTypePolicy("int8", "float32"),
        "keras.dtype_policies.AWQDTypePolicy": lambda: keras.dtype_policies.get("awq/4/128_from_float32"),
        "keras.dtype_policies.GPTQDTypePolicy": lambda: keras.dtype_policies.get("gptq/4/128_from_float32"),
        "keras.dtype_policies.Int4DTypePolicy": lambda: keras.dtype_policies.get("int4/64_from_float32"),
        "keras.dtype_policies.QuantizedFloat8DTypePolicy": lambda: keras.dtype_policies.QuantizedFloat8DTypePolicy(
            "float8", "float32"
        ),
        "keras.metrics.MeanMetricWrapper": lambda: keras.metrics.MeanMetricWrapper(keras.metrics.binary_accuracy),
    }
    if hasattr(keras.optimizers, "MultiOptimizer"):
        by_name = keras.optimizers.OptimizerMap(keras.optimizers.SGD())
        by_name["one/.*"] = keras.optimizers.Adam()
        made["keras.optimizers.OptimizerMap"] = lambda: by_name
        made["keras.optimizers.MultiOptimizer"] = lambda: keras.optimizers.MultiOptimizer(by_name)
    return made


def feature_space() -> Any:
    """A feature space of each kind of feature."""
    space = keras.utils.FeatureSpace
    return space(
        {"a": space.integer_categorical(num_oov_indices=1), "b": space.string_hashed(num_bins=4), "c": space.float()},
        crosses=[("a", "b")],
        crossing_dim=8,
    )


def make(name: str, cls: type) -> Any:
    """An instance, with what its constructor needs and no more."""
    makers = special()
    for known in (name, f"{name.rpartition('.')[0]}.{cls.__name__}"):
        if known in makers:
            return makers[known]()
    for known, maker in makers.items():
        if known.rpartition(".")[2] == cls.__name__:
            return maker()
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return cls(**{p.name: GIVEN[p.name] for p in needed})

"""Writes `src/kustom/saving/parts.json`: which of Keras's names a file may use, and in which place.

    python scripts/keras_parts.py            # add what the Keras installed has, and write the file
    python scripts/keras_parts.py --check    # say what is missing, and write nothing

Run it once with each Keras that is supported; what one release has and another has not stays in. The names are those that
Keras exports, and those that its files hold without being exported: operations of functional graphs, the functional model,
the optimizers that each backend puts in the place of Keras's own. What runs what a file names, or reaches out of it, is
listed with its reason; a name that is not listed is refused as unknown.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import pkgutil
import re
import sys
import types
from pathlib import Path
from typing import Any

import keras
from keras.src import activations, dtype_policies, initializers, losses, metrics, optimizers, quantizers, regularizers
from keras.src import constraints as keras_constraints
from keras.src.layers.preprocessing import feature_space
from keras.src.models.functional import Functional

TABLE = Path(__file__).resolve().parent.parent / "src" / "kustom" / "saving" / "parts.json"

# A slot, the class of what stands in it, the module that exports its functions, and the names that Keras takes as text.
SLOTS: dict[str, tuple[tuple[Any, ...], Any, Any]] = {
    "activation": ((), keras.activations, activations.ALL_OBJECTS_DICT),
    "initializer": ((keras.initializers.Initializer,), None, initializers.ALL_OBJECTS_DICT),
    "regularizer": ((keras.regularizers.Regularizer,), None, regularizers.ALL_OBJECTS_DICT),
    "constraint": ((keras.constraints.Constraint,), None, keras_constraints.ALL_OBJECTS_DICT),
    "loss": ((keras.losses.Loss,), keras.losses, losses.ALL_OBJECTS_DICT),
    "metric": ((keras.metrics.Metric,), keras.metrics, metrics.ALL_OBJECTS_DICT),
    "optimizer": ((keras.optimizers.Optimizer,), None, optimizers.ALL_OBJECTS_DICT),
    "optimizer_map": ((getattr(keras.optimizers, "OptimizerMap", ()),), None, {}),
    "schedule": ((keras.optimizers.schedules.LearningRateSchedule,), None, {}),
    "dtype": ((keras.dtype_policies.DTypePolicy, dtype_policies.DTypePolicyMap), None, {}),
    "quantizer": ((keras.quantizers.Quantizer,), None, quantizers.ALL_OBJECTS_DICT),
    "quantization": ((keras.quantizers.QuantizationConfig,), None, {}),
    "seed": ((keras.random.SeedGenerator,), None, {}),
    "feature": ((feature_space.Feature,), None, {}),
    "cross": ((feature_space.Cross,), None, {}),
    "distillation": ((keras.distillation.DistillationLoss,), None, {}),
    "model": ((keras.Model,), None, {}),
    "layer": ((keras.layers.Layer,), None, {}),
    "operation": ((keras.Operation,), None, {}),
}

REFUSED = {
    "Lambda": "its Python code stands in the file",
    "TFSMLayer": "it loads a SavedModel from a path in the file, and runs it",
    "TorchModuleWrapper": "it unpickles a torch module that stands in the file",
    "JaxLayer": "it calls functions that the file names",
    "FlaxLayer": "it calls functions that the file names",
    "GPTQConfig": "it holds data and a tokenizer, which no file of a model has",
    "AWQConfig": "it holds data and a tokenizer, which no file of a model has",
    "Function": "it is a graph of objects, which no config holds",
    **dict.fromkeys(
        "AssociativeScan Cond CustomGradient ForiLoop JVP Map Scan Switch VectorizedMap Vectorize WhileLoop".split(),
        "it calls what it is given",
    ),
}

# Bases that are made by nobody.
ABSTRACT = {
    "Operation", "SegmentReduction", "Loss", "Initializer", "Regularizer", "Constraint", "Optimizer", "Metric", "Quantizer",
    "LearningRateSchedule", "DistillationLoss", "QuantizationConfig", "Wrapper", "RandomInitializer",
}  # fmt: skip

# What a setting holds, by its name; the first that fits. What is not named here is plain data.
FIELDS = [
    (r"(.*_)?activation", "activation"),
    (r"(.*_)?initializer", "initializer"),
    (r"(.*_)?regularizer", "regularizer"),
    (r"(.*_)?constraint", "constraint"),
    (r"(.*_)?dtype", "dtype"),
    (r"learning_rate", "schedule"),
    (r"optimizer|inner_optimizer|default_optimizer", "optimizer"),
    (r"optimizer_map", "optimizer_map"),
    (r"layer|(forward|backward)_layer", "layer"),
    (r"cells?", "layer"),
    (r"quantization_config", "quantization"),
    (r"(weight|activation)_quantizer", "quantizer"),
    (r"seed|seed_generator", "seed"),
    (r"policy_map", "dtype"),
    (r"teacher|student", "model"),
    (r"distillation_losses", "distillation"),
]
OWN_FIELDS = {
    "MeanMetricWrapper": {"fn": "metric"},
    "FeatureSpace": {"features": "feature", "crosses": "cross"},
    "Feature": {"preprocessor": "layer", "dtype": "data"},
    "Sequential": {"layers": "layer"},
    "Functional": {"layers": "operation"},
    "Model": {"layers": "operation"},
    "Pipeline": {"layers": "layer"},
    "RandomApply": {"transforms": "layer"},
    "TextVectorization": {"standardize": "function", "split": "function", "vocabulary": "vocabulary"},
    "StringLookup": {"vocabulary": "vocabulary"},
    "IntegerLookup": {"vocabulary": "vocabulary"},
    "FeatureDistillation": {"loss": "loss"},
    "LogitsDistillation": {"loss": "loss"},
    "OptimizerMap": {"optimizer_map": "optimizer"},
    "MultiOptimizer": {"optimizers": "optimizer"},
    "Constant": {"value": "argument"},
    "Rescaling": {"scale": "argument", "offset": "argument"},
    "Cast": {"dtype": "data"},
}
# Settings that say how much is made of something.
SIZES = """
    axes_lengths bins block_size bottom_cropping bottom_padding cropping crossing_dim depth_multiplier dilation dilation_rate
    fft_length filter_size filters gate_dim hash_size hashing_dim head_dim height input_dim input_shape intermediate_dim
    batch_shape batch_input_shape build_input_shape key_dim kernel_size kth left_cropping left_padding length mask_index max_rank
    max_tokens minlength n ngrams num num_bins num_classes num_discretization_bins num_heads num_key_value_heads num_mel_bins
    num_oov_indices num_query_heads num_segments num_thresholds output_dim output_padding output_sequence_length output_shape
    output_size pad_to_max_tokens pad_width padding pool_size rank repeats right_cropping right_padding seed_dim sequence_length
    sequence_stride shape size state_size stride strides target_height target_length target_shape target_width top_cropping
    top_padding top_paths units value_dim width group_size groups frame_step
""".split()


def table() -> dict[str, Any]:
    """What the Keras installed has."""
    parts: dict[str, dict[str, Any]] = {}
    for name, obj in [*_exported(), *_hidden()]:
        entry = _entry(name, obj)
        if entry is not None:
            parts[name] = entry
    texts = {slot: sorted(map(str, names)) for slot, (_, _, names) in SLOTS.items() if names}
    # What `compile` understands, and finds the metric for by the shapes.
    texts["metric"] = sorted({*texts["metric"], "accuracy", "acc", "crossentropy", "ce"})
    return {"keras": [keras.__version__], "texts": texts, "parts": {**parts, **_stand_ins(parts)}}


def _exported() -> list[tuple[str, Any]]:
    """Everything that Keras exports, under each of its names."""
    found: list[tuple[str, Any]] = []
    waiting: list[tuple[str, types.ModuleType]] = [("keras", keras)]
    seen = {"keras"}
    while waiting:
        name, module = waiting.pop()
        for key, value in sorted(vars(module).items()):
            if key.startswith("_"):
                continue
            if not isinstance(value, types.ModuleType):
                found.append((f"{name}.{key}", value))
            elif value.__name__ == f"keras.{f'{name}.{key}'.removeprefix('keras.')}" and f"{name}.{key}" not in seen:
                seen.add(f"{name}.{key}")
                waiting.append((f"{name}.{key}", value))
    return [(name, obj) for name, obj in found if not name.startswith("keras.src.")]


def _hidden() -> list[tuple[str, Any]]:
    """What files hold and Keras does not export: operations, and a few classes."""
    found: list[tuple[str, Any]] = []
    inner = [each for each in vars(feature_space).values() if inspect.isclass(each) and each.__module__ == feature_space.__name__]
    for cls in (Functional, *inner):
        if cls is not feature_space.FeatureSpace:
            found.append((f"{cls.__module__}.{cls.__name__}", cls))
    package = importlib.import_module("keras.src.ops")
    for each in pkgutil.walk_packages(package.__path__, "keras.src.ops."):
        if not each.name.endswith("_test"):
            importlib.import_module(each.name)
    operations = ("keras.src.ops.", "keras.src.activations.", "keras.src.quantizers.")
    waiting = [keras.Operation]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        layer = issubclass(cls, keras.layers.Layer)
        if cls.__module__.startswith("keras.src.applications." if layer else operations) or cls.__name__ == "ConvLSTMCell":
            found.append((f"{cls.__module__}.{cls.__name__}", cls))
    return found


def _stand_ins(parts: dict[str, Any]) -> dict[str, Any]:
    """The optimizers that Keras puts in the place of its own on torch; read, not imported: torch may not be there."""
    found: dict[str, Any] = {}
    folder = Path(keras.__file__).parent / "src" / "backend" / "torch" / "optimizers"
    for path in sorted(folder.glob("torch_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            own = f"keras.optimizers.{node.name}" if isinstance(node, ast.ClassDef) else ""
            if own in parts:
                assert isinstance(node, ast.ClassDef)
                name = f"keras.src.backend.torch.optimizers.{path.stem}.{node.name}"
                found[name] = {**parts[own], "same": own}
    return found


def _entry(name: str, obj: Any) -> dict[str, Any] | None:
    own = name.rpartition(".")[2]
    module = name.rpartition(".")[0]
    if isinstance(obj, types.FunctionType):
        return _function(own, module, obj)
    if not inspect.isclass(obj):
        return None
    slots = [slot for slot, (bases, _, _) in SLOTS.items() if issubclass(obj, tuple(base for base in bases if base != ()))]
    if not slots:
        return None
    if own in REFUSED or obj.__name__ in REFUSED:
        refused = REFUSED.get(own) or REFUSED[obj.__name__]
        return {"kind": "class", "slots": [], "homes": [obj.__module__], "refused": refused}
    if own in ABSTRACT:
        return None
    if obj.__module__.startswith("keras.src.layers.activations."):
        slots.insert(0, "activation")
    entry: dict[str, Any] = {"kind": "class", "slots": slots, "homes": [obj.__module__]}
    if obj.__name__ != own:
        entry["also"] = obj.__name__
    settings = _settings(obj)
    fields = {key: slot for key in settings if (slot := _slot_of(obj.__name__, key)) is not None}
    fields |= {key: slot for key, slot in OWN_FIELDS.get(obj.__name__, {}).items() if slot != "data"}
    if fields:
        entry["fields"] = dict(sorted(fields.items()))
    sizes = sorted({key for key in settings if key in SIZES})
    if sizes:
        entry["sizes"] = sizes
    return entry


def _function(own: str, module: str, obj: Any) -> dict[str, Any] | None:
    homes = [(slot, home) for slot, (_, home, _) in SLOTS.items() if home and own not in ("get", "serialize", "deserialize")]
    slots = sorted({slot for slot, home in homes if obj in vars(home).values()})
    if slots and module in {home.__name__ for _, home in homes}:
        return {"kind": "function", "slots": slots}
    cls = "".join(word.capitalize() for word in own.split("_"))
    operations = [getattr(sys.modules[f"keras.src.ops.{each}"], cls, None) for each in ("numpy", "nn", "math")]
    of_one_tensor = list(inspect.signature(obj).parameters) == ["x"]
    if (
        module in ("keras.ops", "keras.ops.numpy", "keras.ops.nn")
        and of_one_tensor
        and own not in NO_ACTIVATIONS
        and any(operations)
        and _keeps_shape(obj)
    ):
        return {"kind": "function", "slots": ["activation"]}
    return None


# They look like activations, and make windows, or tables, of what they are given.
NO_ACTIVATIONS = {"bartlett", "blackman", "corrcoef", "flipud", "fliplr", "hamming", "hanning"}


def _keeps_shape(function: Any) -> bool:
    """Whether a function gives one tensor of the shape of its argument, whatever that is."""
    for shape in ((4, 3, 3), (5,)):
        try:
            made = function(keras.KerasTensor(shape))
        except (TypeError, ValueError, IndexError):
            return False
        if tuple(getattr(made, "shape", ())) != shape:
            return False
    return True


def _settings(cls: type) -> set[str]:
    """The settings that a class takes: the arguments of its constructor, and of those that it hands the rest on to."""
    found: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        found |= {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    if issubclass(cls, keras.layers.Layer):
        # Of a model they are no arguments, and stand in its config all the same.
        found |= {"dtype", "build_input_shape"}
    return found - {"self"}


def _slot_of(owner: str, key: str) -> str | None:
    own = OWN_FIELDS.get(owner, {}).get(key)
    if own is not None:
        return own if own != "data" else None
    return next((slot for pattern, slot in FIELDS if re.fullmatch(pattern, key)), None)


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Both tables in one."""
    parts = dict(old.get("parts", {}))
    for name, entry in new["parts"].items():
        before = parts.get(name, {})
        both = {**before, **entry}
        if "fields" in both:
            both["fields"] = dict(sorted({**before.get("fields", {}), **entry.get("fields", {})}.items()))
        for key in {"sizes", "homes"} & both.keys():
            both[key] = sorted({*before.get(key, ()), *entry.get(key, ())})
        both["slots"] = sorted({*before.get("slots", ()), *entry["slots"]})
        parts[name] = both
    texts = {**old.get("texts", {})}
    for slot, names in new["texts"].items():
        texts[slot] = sorted({*texts.get(slot, ()), *names})
    versions = sorted({*old.get("keras", ()), *new["keras"]}, key=lambda v: [int(n) for n in re.findall(r"\d+", v)])
    return {"keras": versions, "texts": dict(sorted(texts.items())), "parts": dict(sorted(parts.items()))}


def missing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What a table lacks, or says otherwise, of what the Keras installed has."""
    both = merged(old, new)
    lacks = [f"{name}: {entry}" for name, entry in both["parts"].items() if old["parts"].get(name) != entry]
    lacks += [
        f"the text {t!r} for a {slot}" for slot in both["texts"] for t in {*both["texts"][slot]} - {*old["texts"].get(slot, ())}
    ]
    return lacks


def written(made: dict[str, Any]) -> str:
    """The table as text, one part a line."""
    lines = [f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in made["parts"].items()]
    texts = [f"    {json.dumps(slot)}: {json.dumps(names)}" for slot, names in made["texts"].items()]
    return (
        f'{{\n  "keras": {json.dumps(made["keras"])},\n  "texts": {{\n' + ",\n".join(texts) + "\n  },\n"
        '  "parts": {\n' + ",\n".join(lines) + "\n  }\n}\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="say what is missing, and write nothing")
    check = parser.parse_args().check
    old = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    new = table()
    if check:
        lacks = missing(old, new)
        print("\n".join(lacks) or f"parts.json has all of Keras {keras.__version__}")
        return bool(lacks)
    TABLE.write_text(written(merged(old, new)), encoding="utf-8")
    print(f"{TABLE}: {len(merged(old, new)['parts'])} parts")
    return 0


if __name__ == "__main__":
    sys.exit(main())

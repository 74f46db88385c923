"""How much a config asks for, as far as that can be seen without making anything.

A few kilobytes of config can ask for gigabytes: a number of units, a shape, a confusion matrix. What a model's weights
need is known exactly when it is rebuilt without values; here stands what must not even reach that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from kustom.errors import CorruptFileError, FileError
from kustom.saving.hdf5 import Group
from kustom.saving.limits import Limits

__all__ = ["compared", "fault", "of_calls", "shapes"]

_SHAPES = {"batch_shape", "batch_input_shape", "build_input_shape", "input_shape", "output_shape", "shape", "target_shape"}
# Variables that are made when a model is compiled, before anything is held against the weights.
_STATE = {
    "MeanIoU": lambda config: _int(config, "num_classes") ** 2,
    "IoU": lambda config: _int(config, "num_classes") ** 2,
    "OneHotMeanIoU": lambda config: _int(config, "num_classes") ** 2,
    "OneHotIoU": lambda config: _int(config, "num_classes") ** 2,
    "AUC": lambda config: 4 * _int(config, "num_thresholds") * max(1, _int(config, "num_labels")),
    "Resizing": lambda config: _int(config, "height") * _int(config, "width"),
    "UpSampling2D": lambda config: math.prod(_whole(config.get("size"))),
    "UpSampling3D": lambda config: math.prod(_whole(config.get("size"))),
}
# Operations that make as much as a number in their arguments says.
_MAKE = set(
    """
    Arange Bincount BroadcastTo CropImages DepthToSpace Diag Diagflat ExtractPatches ExtractSequences Eye Fold Full Geomspace
    Histogram ISTFT IRFFT Linspace Logspace MultiHot OneHot Pad PadImages RFFT Repeat Reshape Resize STFT ScaleAndTranslate
    Scatter SegmentMax SegmentMin SegmentProd SegmentSum Slice Tile Tri Unfold Vander AdaptiveAveragePool AdaptiveMaxPool
    """.split()
)
# Keras's constructors make a list of Python numbers this long, whatever is allowed of arrays; a curve of more has no use.
_LISTS = {"num_thresholds": 100_000}
# Below this many numbers, nobody minds.
_FEW = 2**20
# What layers may have together beside what the file stores for them, once each, where they were given it in their settings.
_GIVEN = 2**24
# Numbers of four bits stand two in a byte; twice as much again for what is not known here.
_PACKED = 4


def fault(name: str, config: dict[str, Any], keys: Iterable[str], limits: Limits) -> tuple[str, str] | None:
    """The setting that asks for too much, and what to say; None where none does."""
    for key in keys:
        values = list(_whole(config.get(key)))
        size = math.prod(n for n in values if n > 0) if key in _SHAPES else max(map(abs, values), default=0)
        if size > limits.max_size:
            return key, _too_much(size, limits)
        if size > _LISTS.get(key, size):
            return key, f"it asks for {size:,}, where {_LISTS[key]:,} are the most. Write the metric with fewer, and save it again."
    state = _STATE.get(name)
    size = state(config) if state is not None else 0
    return (name, _too_much(size, limits)) if size > limits.max_size else None


def shapes(value: Any, limits: Limits) -> str | None:
    """What to say of a shape that a layer was built with, and that is too large; None where none is."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += [item for item in value if isinstance(item, list | dict)]
            size = math.prod(n for n in value if type(n) is int and n > 0)
            if size > limits.max_size:
                return _too_much(size, limits)
    return None


def of_calls(layer: dict[str, Any], limits: Limits) -> str | None:
    """What to say of an operation that would make more than is allowed; None where none does."""
    module, name = layer.get("module"), layer.get("class_name")
    if not isinstance(module, str) or not isinstance(name, str) or not module.startswith("keras.src.ops.") or name not in _MAKE:
        return None
    for value in (layer.get("config"), layer.get("inbound_nodes")):
        size = max((abs(n) for n in _whole(value)), default=0)
        if size > limits.max_size:
            return _too_much(size, limits)
    return None


def compared(config: Any, weights: Group, file: str | None) -> Iterator[FileError]:
    """Layers that were built with more numbers than all the weights have, alone or, where they may have more, together."""
    stored = sum(dataset.size for dataset in weights.walk())
    # By the numbers of shared objects, or by where they are.
    statistics: dict[Any, int] = {}
    # What stands where: the place of what has it, and its key. Text is made of it where there is something to say.
    waiting: list[tuple[Any, tuple[Any, ...]]] = [(config, ())]
    while waiting:
        value, place = waiting.pop()
        items = enumerate(value) if isinstance(value, list) else value.items()
        waiting += [(item, (place, key)) for key, item in items if isinstance(item, list | dict)]
        needed = _needed(value) if isinstance(value, dict) else 0
        if isinstance(value, dict) and value.get("class_name") == "Normalization":
            number = value.get("shared_object_id")
            statistics[number if type(number) is int else (id(value),)] = needed
            needed = 0
        if needed > max(_FEW, _PACKED * stored):
            yield CorruptFileError(
                f"the layer needs {needed:,} numbers, and all weights together have {stored:,}. The file is damaged "
                "or was made by hand; save the model again.",
                file=file,
                part=f"config.json: {_text(place)}",
            )
    needed = sum(statistics.values())
    if needed > max(_GIVEN, _PACKED * stored):
        yield CorruptFileError(
            f"its layers of the class Normalization need {needed:,} numbers together, and all weights together have {stored:,}. "
            "The file is damaged or was made by hand; save the model again.",
            file=file,
            part="config.json",
        )


def _text(place: tuple[Any, ...]) -> str:
    keys = []
    while place:
        place, key = place
        keys.append(f"[{key}]" if isinstance(key, int) else f".{key}")
    return "".join(reversed(keys)).lstrip(".")


def _needed(value: dict[str, Any]) -> int:
    """The numbers that a layer of Keras's has at least, where it was built."""
    config, build = value.get("config"), value.get("build_config")
    if not str(value.get("module")).startswith("keras.") or not isinstance(config, dict) or not isinstance(build, dict):
        return 0
    name, units = value.get("class_name"), _int(config, "units")
    if name == "Dense":
        shape = build.get("input_shape")
        last = shape[-1] if isinstance(shape, list) and shape else 1
        return units * (last if type(last) is int and last > 0 else 1)
    if name == "Normalization":
        # A mean and a variance, for which the file has nothing where they are settings.
        return 2 * _kept(build.get("input_shape"), config.get("axis", -1))
    if name in ("LSTM", "GRU", "SimpleRNN"):
        return units**2 * {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}[name]
    if name in ("Embedding", "ReversibleEmbedding"):
        return _int(config, "input_dim") * _int(config, "output_dim")
    if isinstance(name, str) and name.startswith("Conv") and "LSTM" not in name:
        return _int(config, "filters") * math.prod(n for n in _whole(config.get("kernel_size")) if n > 0)
    return 0


def _kept(shape: Any, axis: Any) -> int:
    """The size of some axes of a shape, as Normalization names them: a number, several, or none."""
    axes = [each for each in (axis if isinstance(axis, list) else [axis]) if type(each) is int]
    sizes = shape if isinstance(shape, list) else []
    kept = {each % len(sizes) for each in axes if -len(sizes) <= each < len(sizes)}
    return math.prod(sizes[each] for each in kept if type(sizes[each]) is int and sizes[each] > 0)


def _whole(value: Any) -> Iterator[int]:
    """The whole numbers in a setting."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif type(value) is int:
            yield value


def _int(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    return value if type(value) is int and value > 0 else 0


def _too_much(size: int, limits: Limits) -> str:
    return f"it asks for {size:,}, and max_size allows {limits.max_size:,}. If you know the file, raise it: max_size={size:_}."

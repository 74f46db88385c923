"""Keras's own parts, all of them: each is taken in its own place, and in no other."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import keras
import keras_parts
import pytest
from keras.src.saving import serialization_lib

from kustom import errors
from kustom.backends import keras as private
from kustom.saving import table
from kustom.saving.verdict import WITH_ASSETS, judge

SCRIPT = keras_parts.script() if keras_parts.SCRIPT.exists() else None
pytestmark = pytest.mark.skipif(SCRIPT is None, reason="the wheel is tested away from its sources")
TABLE: dict[str, Any] = SCRIPT.table() if SCRIPT is not None else {"parts": {}, "texts": {}}
CLASSES = [
    name
    for name, entry in TABLE["parts"].items()
    if entry["kind"] == "class" and "refused" not in entry and not name.startswith("keras.src.") and "also" not in entry
]
SLOTS = sorted({slot for entry in TABLE["parts"].values() for slot in entry["slots"]})


def exported(name: str) -> Any:
    obj: Any = keras
    for part in name.split(".")[1:]:
        obj = getattr(obj, part)
    return obj


def written(obj: Any) -> dict[str, Any]:
    return json.loads(json.dumps(keras.saving.serialize_keras_object(obj)))


def test_the_table_has_all_of_the_keras_that_is_installed():
    lacks = SCRIPT.missing(json.loads(SCRIPT.TABLE.read_text(encoding="utf-8")), TABLE)
    assert not lacks, f"run scripts/keras_parts.py with Keras {keras.__version__}: {lacks[:5]}"
    assert keras.__version__ in table.versions()


@pytest.mark.parametrize("name", CLASSES)
def test_a_part_is_taken_in_its_own_place_and_refused_in_every_other(name):
    part = keras_parts.make(name, exported(name))
    config = written(part)
    own = {*TABLE["parts"][name]["slots"]}
    own |= {"metric"} if "loss" in own else {"dtype"} if "quantization" in own else set()
    for slot in SLOTS:
        verdict = judge(config, slot=slot)
        if slot in own:
            assert not verdict.anomalies, verdict.anomalies
        else:
            with pytest.raises(errors.UnsafeFileError, match=r", where .* was expected"):
                verdict.hold()
    assert type(keras.saving.deserialize_keras_object(config)) is type(part)


def test_what_keeps_assets_is_known():
    assert {name for name in CLASSES if hasattr(exported(name), "save_assets")} <= WITH_ASSETS
    # It makes lookups of its own.
    assert WITH_ASSETS - {"keras.utils.FeatureSpace"} <= {*CLASSES}


def test_text_that_keras_looks_up_in_a_setting_is_judged(monkeypatch):
    # Wherever Keras asks its registry for text that stands in a setting of its own parts, the verdict has asked before.
    asked: list[Any] = []
    plain = serialization_lib.deserialize_keras_object

    def deserialize_keras_object(config: Any, *args: Any, **options: Any) -> Any:
        asked.append(config)
        return plain(config, *args, **options)

    monkeypatch.setattr(serialization_lib, "deserialize_keras_object", deserialize_keras_object)
    registry = {**private.registry(), "slots>Asked": keras.layers.Identity}
    monkeypatch.setattr(private.registration.object_registration, "GLOBAL_CUSTOM_OBJECTS", registry)
    looked_up = set()
    for name in CLASSES:
        config = written(keras_parts.make(name, exported(name)))
        for key in config["config"]:
            asked.clear()
            changed = {**config, "config": {**copy.deepcopy(config["config"]), key: "slots>Asked"}}
            with contextlib.suppress(Exception):
                keras.saving.deserialize_keras_object(copy.deepcopy(changed))
            if "slots>Asked" in asked:
                looked_up.add(key)
                verdict = judge(changed, slot="any", registered=registry)
                named = [custom for custom in verdict.customs if custom.slot in TABLE["texts"]]
                assert verdict.anomalies or named, f"{name}: {key}"
    assert looked_up >= {"scale", "value", "fn"}


@pytest.mark.parametrize("name", sorted({n for n, e in TABLE["parts"].items() if e["kind"] == "function"}))
def test_a_function_is_taken_in_its_own_place_and_refused_in_every_other(name):
    config = written(exported(name))
    for slot in SLOTS:
        own = {*TABLE["parts"][name]["slots"]}
        own |= {"metric"} if "loss" in own else set()
        assert bool(judge(config, slot=slot).anomalies) is (slot not in own), slot


@pytest.mark.parametrize("slot", sorted(TABLE["texts"]))
def test_text_is_taken_where_keras_knows_it(slot):
    for text in TABLE["texts"][slot]:
        assert not judge_in(text, slot)
    assert judge_in("no_such_thing", slot)
    assert judge_in("get_file", slot)


def judge_in(value: Any, slot: str) -> tuple[errors.FileError, ...]:
    """What is said of a value in the one place of a part that takes that slot."""
    field = {
        "activation": ("keras.layers", "Dense", "activation"),
        "initializer": ("keras.layers", "Dense", "kernel_initializer"),
        "regularizer": ("keras.layers", "Dense", "kernel_regularizer"),
        "constraint": ("keras.layers", "Dense", "kernel_constraint"),
        "quantizer": ("keras.quantizers", "Int8QuantizationConfig", "weight_quantizer"),
        "optimizer": ("keras.optimizers", "LossScaleOptimizer", "inner_optimizer"),
        "loss": ("keras.distillation", "LogitsDistillation", "loss"),
        "metric": ("keras.metrics", "MeanMetricWrapper", "fn"),
    }[slot]
    config = {"module": field[0], "class_name": field[1], "config": {field[2]: value}, "registered_name": None}
    return judge(config, slot="any").anomalies


@pytest.mark.parametrize("name", sorted(n for n, e in TABLE["parts"].items() if "refused" in e))
def test_what_runs_what_a_file_names_is_refused_with_its_reason(name):
    module, _, own = name.rpartition(".")
    config = {"module": module, "class_name": own, "config": {}, "registered_name": None}
    with pytest.raises(errors.UnsafeFileError, match=f"{own} is never loaded from a file: ") as caught:
        judge(config, slot="any", trust=("keras", module)).hold()
    assert table.entry(name)["refused"] in str(caught.value)


def test_every_other_name_that_keras_exports_is_refused():
    known = {*TABLE["parts"]}
    for name, _ in SCRIPT._exported():
        module, _, own = name.rpartition(".")
        if name in known:
            continue
        for config in (
            {"module": module, "class_name": own, "config": {}, "registered_name": None},
            {"module": module, "class_name": "function", "config": own, "registered_name": own},
        ):
            for slot in ("any", "layer", "activation", "loss"):
                assert judge(config, slot=slot, trust="keras").anomalies, name

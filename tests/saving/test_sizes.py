"""What a config asks for, and what it costs to find that out."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import Any, cast

import keras
import pytest

import kustom
from kustom.saving import sizes
from kustom.saving.verdict import judge


def weights(*stored: int) -> Any:
    return SimpleNamespace(walk=lambda: [SimpleNamespace(size=size) for size in stored])


def built(name: str, config: dict[str, Any], **build: Any) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": name, "config": config, "build_config": build}


def peak_of(function: Any) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_layer_of_more_numbers_than_the_file_has_is_found_where_it_stands():
    config = {"a": [{}, {"b": built("Dense", {"units": 2000}, input_shape=[None, 2000])}]}
    (error,) = sizes.compared(config, weights(10), "a.keras")
    assert error.part == "config.json: a[1].b"
    assert "needs 4,000,000 numbers, and all weights together have 10" in str(error)
    assert not list(sizes.compared(config, weights(4_000_000), "a.keras"))


def test_statistics_that_the_file_does_not_store_are_counted_together():
    def normalization(size: int, **more: Any) -> dict[str, Any]:
        return {**built("Normalization", {"axis": [-1], "mean": 0.0, "variance": 1.0}, input_shape=[None, 9, size]), **more}

    def found(config: Any, *stored: int) -> list[str]:
        return [str(error) for error in sizes.compared(config, weights(*stored), "a.keras")]

    (error,) = found([normalization(2**21 + 1), normalization(2**22), normalization(2**21)])
    assert "Normalization need 16,777,218 numbers together" in error
    assert found([normalization(2**21), normalization(2**22), normalization(2**21)]) == []
    assert found([normalization(2**23), normalization(2**23)], 2**23) == []
    assert found([normalization(2**22, shared_object_id=1)] * 9) == []


def test_a_file_of_normalized_images_is_fine(tmp_path):
    model = keras.Sequential(
        [keras.Input((30, 30, 3)), keras.layers.Normalization(axis=cast("Any", (1, 2, 3)), mean=0.0, variance=1.0)]
    )
    kustom.save(model, tmp_path / "model.keras")
    assert kustom.load(tmp_path / "model.keras").layers[0].axis == (1, 2, 3)


@pytest.mark.parametrize("name", ["AUC", "PrecisionAtRecall", "RecallAtPrecision", "SensitivityAtSpecificity"])
def test_thresholds_are_few(name):
    def reasons(number: int) -> list[str]:
        config = {"module": "keras.metrics", "class_name": name, "config": {"num_thresholds": number}, "registered_name": None}
        return [str(each) for each in judge(config, slot="metric").anomalies]

    assert reasons(100_000) == []
    (reason,) = reasons(100_001)
    assert "config.num_thresholds: it asks for 100,001, where 100,000 are the most" in reason


def test_many_numbers_under_a_long_key_cost_no_more_than_they_are():
    config = {"k" * 10_000: [1] * 40_000, "deep": [[[1] * 10] * 100] * 10}
    assert peak_of(lambda: list(sizes.compared(config, weights(), None))) < 2**22


def test_many_faults_under_a_long_key_are_told_shortly():
    layer = {"module": "keras.layers", "class_name": "Dense", "config": {"activation": [1] * 5_000}, "registered_name": None}
    settings = {"k" * 10_000: layer}
    outer = {"module": "mine", "class_name": "Own", "config": settings, "registered_name": "mine>Own"}
    found: list[Any] = []
    assert peak_of(lambda: found.append(judge(outer, trust="mine"))) < 2**23
    assert 0 < len(found[0].anomalies) <= 1000
    assert max(len(str(anomaly)) for anomaly in found[0].anomalies) < 1000

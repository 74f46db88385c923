"""What a file costs: `kustom.save` and `kustom.load` beside Keras's own, for a model of 100 million weights.

For their time the ways take turns in one process, and the best of several counts. Their memory is what a process of its own
holds at most beyond what it held before, once a small model has gone the same way; in one process each would find what
another had let go of. What the recorded output costs is shown apart: it is as much as two or three calls of the model on a
small input, whatever its size.

    python benchmarks/saving.py --backend jax --layers 6
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PREPARED = "of that, to rebuild and record"
WAYS = ("model.save", "kustom.save", PREPARED, "load_model", "kustom.load, verify=False", "kustom.load")
PAIRS = {"kustom.save": ("model.save", 1.2), "kustom.load, verify=False": ("load_model", 1.3)}


def main() -> None:
    """Measure in processes of their own, and print a line a way."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--backend", default=os.environ.get("KERAS_BACKEND", "torch"), help="tensorflow, jax or torch")
    options.add_argument("--layers", type=int, default=6, help="dense layers of 4,096 units, 16.8 million weights each")
    options.add_argument("--repeats", type=int, default=5, help="how often each way is measured; the best counts")
    options.add_argument("--folder", type=Path, default=None, help="where files are written; a temporary folder")
    options.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)  # what to measure, the file of the results
    chosen = options.parse_args()
    if chosen.worker:
        what, into = chosen.worker
        found = (
            times(chosen.layers, chosen.repeats, chosen.folder) if what == "times" else memory(what, chosen.layers, chosen.folder)
        )
        Path(into).write_text(json.dumps(found), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        seconds = worker("times", chosen, folder)
        most = {way: worker(way, chosen, folder) for way in WAYS}
    print(f"{'':32}{'seconds':>10}{'memory':>12}")
    for way in WAYS:
        beside = ""
        if way in PAIRS:
            other, allowed = PAIRS[way]
            apart = seconds[PREPARED] if way == "kustom.save" else 0.0
            beside = f"  {(seconds[way] - apart) / seconds[other]:.2f} of {other}, at most {allowed}"
            beside += f"; memory {most[way] / most[other]:.2f}, at most 1.1"
        print(f"{way:32}{seconds[way]:>10.3f}{most[way]:>9.0f} MB{beside}")


def worker(what: str, chosen: argparse.Namespace, folder: str) -> Any:
    """Measure in a new process."""
    into = Path(folder) / "found.json"
    environment = {**os.environ, "KERAS_BACKEND": chosen.backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    arguments = ["--layers", str(chosen.layers), "--repeats", str(chosen.repeats), "--folder", folder]
    subprocess.run([sys.executable, __file__, *arguments, "--worker", what, str(into)], env=environment, check=True)
    return json.loads(into.read_text(encoding="utf-8"))


def made(layers: int, units: int) -> Any:
    """The model."""
    import keras

    inputs = keras.Input((units,))
    x = inputs
    for _ in range(layers):
        x = keras.layers.Dense(units, activation="relu")(x)
    model = keras.Model(inputs, x)
    model.compile("sgd", "mse")
    return model


def ways_of(model: Any, folder: Path) -> dict[str, Callable[[], Any]]:
    """What is measured; the files that are loaded are those of before."""
    import keras

    import kustom
    from kustom.saving import writing

    theirs, ours = folder / "theirs.keras", folder / "ours.keras"
    return {
        "model.save": lambda: model.save(theirs),
        "kustom.save": lambda: kustom.save(model, ours),
        PREPARED: lambda: writing._Prepared(model, None),
        "load_model": lambda: keras.saving.load_model(theirs),
        "kustom.load, verify=False": lambda: kustom.load(ours, verify=False),
        "kustom.load": lambda: kustom.load(ours),
    }


def times(layers: int, repeats: int, folder: Path) -> dict[str, float]:
    """The best seconds of each way."""
    import keras

    model = made(layers, 4096)
    print(f"Keras {keras.__version__} on {keras.backend.backend()}, {model.count_params() / 1e6:.1f} million weights", flush=True)
    ways = ways_of(model, folder)
    for way in ways.values():
        way()
    seconds: dict[str, float] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            kept = way()
            seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - started)
            del kept
    return seconds


def memory(name: str, layers: int, folder: Path) -> float:
    """Megabytes that one way holds at most beyond what the process held before it."""
    with tempfile.TemporaryDirectory() as other:
        # What is imported, and what is made once.
        for way in ways_of(made(2, 64), Path(other)).values():
            way()
    model = made(layers, 4096) if "load" not in name else None
    way = ways_of(model, folder)[name]
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    kept = way()
    most = held("VmHWM") - before
    del kept
    return most


def held(what: str) -> float:
    """Megabytes that this process holds now (`VmRSS`), or held at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


if __name__ == "__main__":
    main()

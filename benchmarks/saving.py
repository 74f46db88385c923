"""What a file costs: `kustom.save` and `kustom.load` beside Keras's own, for a model of 100 million weights.

The ways take turns in one process, the best of several counts; memory is what the process holds at most beyond what it
held before. What the recorded output costs is shown apart: it is as much as two or three calls of the
model on a small input, whatever its size.

    python benchmarks/saving.py --backend jax --layers 6
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = ("model.save", "kustom.save", "of that, to rebuild and record", "load_model", "kustom.load, verify=False", "kustom.load")
PAIRS = {"kustom.save": ("model.save", 1.2), "kustom.load, verify=False": ("load_model", 1.3)}


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--backend", default=os.environ.get("KERAS_BACKEND", "torch"), help="tensorflow, jax or torch")
    options.add_argument("--layers", type=int, default=6, help="dense layers of 4,096 units, 16.8 million weights each")
    options.add_argument("--repeats", type=int, default=5, help="how often each way is measured; the best counts")
    options.add_argument("--folder", type=Path, default=None, help="where files are written; a temporary folder")
    options.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.measure:
        measure(chosen.layers, chosen.repeats, chosen.folder)
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        environment = {**os.environ, "KERAS_BACKEND": chosen.backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        arguments = ["--measure", "--layers", str(chosen.layers), "--repeats", str(chosen.repeats), "--folder", folder]
        subprocess.run([sys.executable, __file__, *arguments], env=environment, check=True)


def measure(layers: int, repeats: int, folder: Path) -> None:
    import keras

    import kustom
    from kustom.saving import writing

    inputs = keras.Input((4096,))
    x = inputs
    for _ in range(layers):
        x = keras.layers.Dense(4096, activation="relu")(x)
    model = keras.Model(inputs, x)
    model.compile("sgd", "mse")
    theirs, ours = folder / "theirs.keras", folder / "ours.keras"
    ways = {
        "model.save": lambda: model.save(theirs),
        "kustom.save": lambda: kustom.save(model, ours),
        "of that, to rebuild and record": lambda: writing._Prepared(model, None),
        "load_model": lambda: keras.saving.load_model(theirs),
        "kustom.load, verify=False": lambda: kustom.load(ours, verify=False),
        "kustom.load": lambda: kustom.load(ours),
    }
    for way in ways.values():
        way()
    seconds: dict[str, float] = {}
    most: dict[str, float] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            before = held("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            started = time.perf_counter()
            kept = way()
            taken = time.perf_counter() - started
            most[name] = min(most.get(name, float("inf")), held("VmHWM") - before)
            seconds[name] = min(seconds.get(name, float("inf")), taken)
            del kept
    print(f"Keras {keras.__version__} on {keras.backend.backend()}, {model.count_params() / 1e6:.1f} million weights")
    print(f"{'':32}{'seconds':>10}{'memory':>12}")
    for name in WAYS:
        beside = ""
        if name in PAIRS:
            other, allowed = PAIRS[name]
            apart = seconds["of that, to rebuild and record"] if name == "kustom.save" else 0.0
            beside = f"  {(seconds[name] - apart) / seconds[other]:.2f} of {other}, at most {allowed}"
            beside += f"; memory {most[name] / most[other]:.2f}"
        print(f"{name:32}{seconds[name]:>10.3f}{most[name]:>9.0f} MB{beside}")


def held(what: str) -> float:
    """Megabytes that this process holds now (`VmRSS`), or held at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


if __name__ == "__main__":
    main()

"""Run by a new process: load each model in a folder and write what it does.

Usage: python reload.py FOLDER OUT keras|kustom. For Keras it imports kustom and the module with the tests' parts, and
nothing else of theirs; for kustom, not even that: it is told what to trust.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kustom


def loader(how: str) -> Any:
    """What loads a file."""
    if how == "kustom":
        return lambda path: kustom.load(path, trust=["roundtrip.parts", "kustom.textbook"])
    from roundtrip import parts

    # Imported, their parts are registered.
    assert parts.__name__
    assert kustom.textbook.__name__
    return keras.saving.load_model


def report(model: Any, x: Any, y: Any) -> dict[str, Any]:
    """Outputs, loss and config of a model."""
    values = model.evaluate(x, y, verbose=0, return_dict=True)
    config = keras.saving.serialize_keras_object(model)
    return {
        "outputs": [np.asarray(output).tolist() for output in keras.tree.flatten(model.predict(x, verbose=0))],
        "values": {name: float(value) for name, value in values.items()},
        "config": json.loads(json.dumps(config)),
        "weights": [np.asarray(w).tolist() for w in model.get_weights()],
        "optimizer": [np.asarray(keras.ops.convert_to_numpy(v)).tolist() for v in model.optimizer.variables],
    }


def main(folder: Path, out: Path, how: str) -> None:
    load = loader(how)
    for path in sorted(folder.glob("*.keras")):
        with np.load(path.with_suffix(".npz")) as data:
            x, y = data["x"], {name: data[name] for name in data.files if name != "x"}
        model = load(path)
        (out / f"{path.stem}.json").write_text(json.dumps(report(model, x, y if len(y) > 1 else y["y"])))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

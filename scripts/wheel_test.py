"""The wheel is the product: built, installed into an empty environment with one backend, and used there.

The environment holds what `pip install "kustom[jax,recipes]"` gives and nothing else, away from the source, and
KERAS_BACKEND is not set: what passes in the source tree only because a test package, another backend or a file outside
the wheel lies there, fails here.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PARTS = """
import kustom
from keras import ops


@kustom.loss
def wheel_huber(y_true, y_pred, *, threshold=1.0):
    error = ops.abs(ops.subtract(y_true, y_pred))
    return ops.where(error < threshold, ops.square(error) / 2, threshold * error - threshold**2 / 2)
"""

SAVE = """
import kustom  # before keras: it picks the backend that is installed
from parts import wheel_huber
import keras
import numpy as np

assert keras.backend.backend() == "jax", keras.backend.backend()
x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile(loss=wheel_huber(threshold=2.0), optimizer="nadam")
model.fit(x, x.sum(axis=1, keepdims=True), verbose=0)
model.save("model.keras")
np.savez("expected.npz", x=x, prediction=model.predict(x, verbose=0))
print("saved by kustom in", kustom.__file__)
"""

LOAD = """
import kustom
import parts
import keras
import numpy as np

model = keras.saving.load_model("model.keras")
expected = np.load("expected.npz")
np.testing.assert_array_equal(model.predict(expected["x"], verbose=0), expected["prediction"])
assert model.loss.threshold == 2.0, model.loss
print("loaded:", model.loss)
"""


def build(folder: Path) -> Path:
    """Build the wheel and look at what is in it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-qq"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)], check=True)
    [wheel] = folder.glob("kustom-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    strays = [name for name in names if not name.startswith("kustom")]
    if strays or "kustom/py.typed" not in names or not any(name.endswith("licenses/LICENSE") for name in names):
        sys.exit(f"{wheel.name} should hold kustom with py.typed and LICENSE and nothing else; it holds {names}")
    return wheel


def main() -> None:
    """Build, install, run the main job, save in one process and load in another."""
    with tempfile.TemporaryDirectory(prefix="kustom-wheel-") as temporary:
        folder = Path(temporary)
        wheel = build(folder)
        print(f"{wheel.name}: {wheel.stat().st_size / 1024:.0f} KiB", flush=True)

        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        python = str(folder / "venv" / "bin" / "python")
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, *constraints, f"kustom[jax,recipes] @ {wheel.as_uri()}"], check=True)

        work = folder / "work"
        work.mkdir()
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "KERAS_", "VIRTUAL_ENV"))}
        # A keras.json in the home folder would choose the backend.
        outside["KERAS_HOME"] = str(folder / "keras")
        shutil.copytree(ROOT / "recipes", work / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
        (work / "parts.py").write_text(PARTS)
        (work / "save.py").write_text(SAVE)
        (work / "load.py").write_text(LOAD)
        for script in ("save.py", "load.py", "recipes/regression.py"):
            print(f"==== {script}", flush=True)
            subprocess.run([python, script], cwd=work, env=outside, check=True)
    print("the wheel works on its own")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as failed:
        sys.exit(f"failed with exit status {failed.returncode}: {' '.join(map(str, failed.cmd))}")

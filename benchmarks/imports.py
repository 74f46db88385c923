"""What `import kustom` adds to `import keras`, in milliseconds.

`import kustom` alone is lazy, so what is timed is what a program pays before its first part: the import and one look at
every public name. Each measurement is a fresh process. The two programs take turns, so that a machine that grows slower
or faster meets both alike, and the median of the differences of neighbours is what is shown.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys

BASE = "import keras"
PROGRAMS = {"import kustom": "import kustom", "all its names": "import kustom; [getattr(kustom, n) for n in kustom.__all__]"}
TIMED = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
INSTALLED_AS = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}


def milliseconds(program: str, backend: str) -> float:
    """The time that `program` takes in a new process, the start of Python not counted."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", TIMED.format(program)]
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if run.returncode:
        sys.exit(f"{program!r} failed on {backend}:\n{run.stderr}")
    return float(run.stdout.split()[-1]) * 1000

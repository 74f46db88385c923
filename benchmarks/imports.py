"""What `import kustom` adds to `import keras`.

`import kustom` alone is lazy, so beside it stands what a program pays that uses everything: a look at every public
name. Each figure is from fresh processes. One that imports Keras alone and one that imports kustom too take turns, so
that a machine growing slower or faster meets both alike, and the medians of the differences between neighbours are
shown. An import of Keras takes seconds and varies by a tenth of that, so the last columns give what a clock inside the
second process sees: less noise, but blind to what an import makes later ones cost.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys

BACKENDS = ("tensorflow", "jax", "torch")
LIMIT_MS = 150

ALONE = """
from time import perf_counter as now
start = now()
import keras
print(now() - start)
"""
TOGETHER = """
from time import perf_counter as now
start = now()
import keras
keras_done = now()
import kustom
kustom_done = now()
for name in kustom.__all__:
    getattr(kustom, name)
print(kustom_done - start, now() - start, kustom_done - keras_done, now() - keras_done)
"""


def milliseconds(program: str, backend: str) -> list[float]:
    """The times that `program` prints when it runs in a new process."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"on {backend} this failed:\n{program}\n{run.stderr}")
    return [float(seconds) * 1000 for seconds in run.stdout.split()]


def measure(backend: str, runs: int) -> list[float]:
    """Medians: Keras alone; what kustom and its names add, between neighbours and then by the inner clock."""
    rows = []
    for run in range(-1, runs):  # the first fills the caches and is not counted
        if run % 2:
            [alone], together = milliseconds(ALONE, backend), milliseconds(TOGETHER, backend)
        else:
            together, [alone] = milliseconds(TOGETHER, backend), milliseconds(ALONE, backend)
        imported, named, inner_imported, inner_named = together
        if run >= 0:
            rows.append((alone, imported - alone, named - alone, inner_imported, inner_named))
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def main() -> None:
    """Print a line a backend; exit 1 where all of kustom adds more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="pairs of processes a backend (7)")
    runs = parser.parse_args().runs
    if runs < 1:
        parser.error("--runs must be at least 1")

    print(f"milliseconds, medians of {runs}      between processes        inside one process")
    print("backend      import keras     kustom   all its names    kustom   all its names", flush=True)
    slow = []
    for backend in BACKENDS:
        if importlib.util.find_spec(backend) is None:
            print(f"{backend:<12} not installed")
            continue
        alone, imported, named, inner_imported, inner_named = measure(backend, runs)
        between = f"{alone:>12.0f} {imported:>+10.0f} {named:>+15.0f}"
        print(f"{backend:<12} {between} {inner_imported:>+9.1f} {inner_named:>+15.1f}", flush=True)
        if inner_named > LIMIT_MS:
            slow.append(backend)
    if slow:
        sys.exit(f"kustom adds more than {LIMIT_MS} ms on {', '.join(slow)}")


if __name__ == "__main__":
    main()

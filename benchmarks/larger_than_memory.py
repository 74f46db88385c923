"""Training on a memory map that is larger than the process's data may be, beside training on rows in memory.

The map has 2 GiB of rows in a temporary folder; the process that trains on it may hold 1 GiB of data of its own
(RLIMIT_DATA; pages of the map are the system's and do not count), so that whoever reads all of it into memory fails. The
model is the MLP 784-512-512-10 at batch 128. Shown are rows a second over all epochs but the first, of which
both have equally many rows. In memory
are the map's first rows, as many as leave the epoch long enough to measure, without the limit.

    python benchmarks/larger_than_memory.py                     kustom.Loop, every backend
    python benchmarks/larger_than_memory.py --contenders fit    Keras's `fit` on the same map
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from contenders.workloads import WORKLOADS, Parts

BACKENDS = ("tensorflow", "jax", "torch")
CONTENDERS = ("kustom.Loop", "fit")
LEAST = 0.7
COLUMNS = 784


def write(folder: Path, megabytes: int) -> int:
    """Rows and classes in two files; return the number of rows."""
    size = megabytes * 2**20 // (4 * COLUMNS) // 128 * 128
    X = np.lib.format.open_memmap(folder / "X.npy", mode="w+", dtype="float32", shape=(size, COLUMNS))
    y = np.lib.format.open_memmap(folder / "y.npy", mode="w+", dtype="int32", shape=(size,))
    rng = np.random.default_rng(0)
    for start in range(0, size, 2**14):
        rows = rng.standard_normal((min(2**14, size - start), COLUMNS), dtype="float32")
        X[start : start + len(rows)] = rows
        y[start : start + len(rows)] = rows[:, :10].argmax(axis=1)
    X.flush()
    y.flush()
    return size


def rate(folder: Path, contender: str, options: argparse.Namespace, where: str) -> float:
    """Rows a second in this process."""
    if where == "map":
        import resource

        # Before any backend is imported: what it takes for itself counts too.
        limit = options.limit * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    X, y = (np.load(folder / name, mmap_mode="r") for name in ("X.npy", "y.npy"))
    if where == "memory":
        X, y = np.array(X[: options.memory_rows]), np.array(y[: options.memory_rows])
    from contenders.of_keras import clock

    workload = WORKLOADS["b"]
    parts, timed = Parts(workload), clock()
    if contender == "fit":
        parts.model.compile(parts.optimizer(), parts.loss_fn, metrics=[parts.metric])
        fit = parts.model.fit
    else:
        from kustom import Loop, Supervised

        step = Supervised(parts.model, optimizer=parts.optimizer(), loss=parts.loss_fn, metrics=[parts.metric])
        fit = Loop(step).fit
    # As long a training in memory as on the map, in epochs that are shorter.
    epochs = options.epochs if where == "map" else 1 + (options.epochs - 1) * max(1, options.rows // options.memory_rows)
    fit(X, y, batch_size=workload.batch, epochs=epochs, shuffle=options.shuffle, verbose=0, callbacks=[timed])
    _, first, *_, last = timed.ends
    return len(X) * (epochs - 1) / (last - first)


def measured(folder: Path, backend: str, contender: str, where: str, options: argparse.Namespace, rows: int) -> float | None:
    """Rows a second in a new process; none where it failed, as one does that wants more memory than it may have."""
    command = [sys.executable, __file__, "--worker", str(folder), where, "--backends", backend, "--contenders", contender]
    command += [f"--epochs={options.epochs}", f"--limit={options.limit}", f"--rows={rows}"]
    command += [f"--memory-rows={min(options.memory_rows, rows)}", *(["--shuffle"] if options.shuffle else [])]
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        reason = (run.stderr.strip() or "no message").splitlines()[-1]
        print(f"{contender} on {backend}, rows from {where}: ended with {run.returncode}, {reason}", file=sys.stderr, flush=True)
        return None
    return float(run.stdout.split()[-1])


def main() -> None:
    """Print a line a contender and backend; exit 1 where kustom keeps less than seven tenths of the rate in memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=[*BACKENDS])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=[CONTENDERS[0]])
    parser.add_argument("--megabytes", type=int, default=2048, help="size of the map (2048)")
    parser.add_argument("--limit", type=int, default=1024, help="megabytes of data that the process may hold (1024)")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the map, at least 2 (2)")
    parser.add_argument("--memory-rows", type=int, default=2**16, help="rows in memory (65,536)")
    parser.add_argument("--shuffle", action="store_true", help="rows in a random order, a new one each epoch")
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("the first epoch does not count: --epochs must be at least 2")
    if options.worker:
        folder, where = options.worker
        print(rate(Path(folder), options.contenders[0], options, where))
        return
    slow = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write(folder, options.megabytes)
        print(f"{f'{rows:,} rows, rows a second':<38}{'in memory':>15}{'from the map':>16}{'ratio':>9}", flush=True)
        for backend in options.backends:
            if importlib.util.find_spec(backend) is None:
                print(f"{backend:<12}not installed")
                continue
            for contender in options.contenders:
                memory, mapped = (measured(folder, backend, contender, where, options, rows) for where in ("memory", "map"))
                ratio = mapped / memory if memory and mapped else 0.0
                shown = [f"{value:,.0f}" if value else "failed" for value in (memory, mapped)]
                print(f"{backend:<12}{contender:<26}{shown[0]:>15}{shown[1]:>16}{ratio:>9.2f}", flush=True)
                if contender != "fit" and ratio < LEAST:
                    slow.append(f"{contender} on {backend}")
    if slow:
        sys.exit(f"less than {LEAST:.0%} of the rate in memory: {', '.join(slow)}")


if __name__ == "__main__":
    main()

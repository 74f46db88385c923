"""Training loops side by side: kustom's, Keras's `fit` and the loops that people write by hand, on the same work.

Each contender starts from the same weights and sees the same rows in the same order, so that its final loss tells whether
it did the work. On a workload those of one backend take turns in one process, and the best epoch after the first counts: the
machine's noise meets all alike. Loops by hand find the rows permuted, as `fit(shuffle=False)` does. What an epoch takes is
the time from one epoch's end to the next, the results there; a call's first epoch counts from the call.

    python benchmarks/loops.py                              every workload, every backend
    python benchmarks/loops.py --workloads a --backends jax
    python benchmarks/loops.py --memory                     also the peak of a process of its own for each contender
    python benchmarks/loops.py --nightly .venv-nightly/bin/python
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from contenders.report import Results
from contenders.rounds import Seen, measure
from contenders.workloads import WORKLOADS

BACKENDS = ("tensorflow", "jax", "torch")


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=[*WORKLOADS])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=[*BACKENDS])
    parser.add_argument("--contenders", nargs="+", default=[], metavar="NAME", help="these alone, as the table names them")
    parser.add_argument("--rounds", type=int, help="turns of each contender (4)")
    parser.add_argument("--epochs", type=int, help="epochs a turn (3)")
    parser.add_argument("--quick", action="store_true", help="few steps, one round of two epochs: does it run, not how fast")
    parser.add_argument("--slow", action="store_true", help="also those that take a second a step and more")
    parser.add_argument("--memory", action="store_true", help="also each contender's peak, in a process of its own")
    parser.add_argument("--nightly", metavar="PYTHON", help="a Python with keras-nightly and JAX")
    parser.add_argument("--out", type=Path, default=Path("runs/loops"), help="folder of the table and the picture (runs/loops)")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)  # backend, workload, file of the results
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 4)
    options.epochs = options.epochs or (2 if options.quick else 3)
    if options.rounds < 1 or options.rounds * options.epochs < 2:
        parser.error("the first epoch does not count: --rounds times --epochs must be at least 2")
    return options


def work(options: argparse.Namespace) -> None:
    """Measure in this process."""
    backend, letter, path = options.worker
    seen = measure(backend, letter, options)
    Path(path).write_text(json.dumps([dataclasses.asdict(one) for one in seen]), encoding="utf-8")


def worker(options: argparse.Namespace, backend: str, letter: str, **changes: object) -> list[Seen]:
    """Measure in a new process."""
    given = {**vars(options), **changes}
    python = options.nightly if backend == "nightly" else sys.executable
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seen.json"
        command = [python, __file__, "--worker", backend, letter, str(path)]
        command += [f"--rounds={given['rounds']}", f"--epochs={given['epochs']}"]
        command += [f"--{name}" for name in ("quick", "slow", "memory") if given[name]]
        command += ["--contenders", *given["contenders"]] if given["contenders"] else []
        keras_backend = "jax" if backend == "nightly" else backend
        environment = {**os.environ, "KERAS_BACKEND": keras_backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        # Threads of torch that wait by spinning make it ten times slower where another program wants the core.
        environment.setdefault("OMP_WAIT_POLICY", "passive")
        run = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
        if run.returncode:
            print(run.stderr, file=sys.stderr, flush=True)
            last = (run.stderr.strip() or str(run.returncode)).splitlines()[-1]
            return [Seen(letter, backend, "every contender of the process", missing=f"it ended with {last}")]
        return [Seen(**{**one, "backend": keras_backend}) for one in json.loads(path.read_text(encoding="utf-8"))]


def write(results: Results, out: Path) -> str:
    """Leave the report in the folder, and return it."""
    out.mkdir(parents=True, exist_ok=True)
    report = results.markdown()
    (out / "loops.md").write_text(report, encoding="utf-8")
    return report


def main() -> None:
    """Measure, show, write; exit 1 where a contender is missing or did other work."""
    options = arguments()
    if options.worker:
        work(options)
        return
    seen: list[Seen] = []
    for letter in options.workloads:
        for backend in [*options.backends, *(["nightly"] if options.nightly else [])]:
            if backend in BACKENDS and importlib.util.find_spec(backend) is None:
                print(f"{backend} is not installed", flush=True)
                continue
            print(f"workload {letter} on {backend}", flush=True)
            found = worker(options, backend, letter, memory=False)
            if options.memory:
                for one in found:
                    if one.missing is None:
                        alone = worker(options, backend, letter, contenders=[one.contender], rounds=1, epochs=2)
                        one.peak_megabytes = alone[0].peak_megabytes
            seen += found
            write(Results(seen), options.out)  # so that a run which is stopped leaves what it has seen
    unknown = {*options.contenders} - {one.contender for one in seen}
    results = Results(seen)
    print(write(results, options.out))
    if results.by_name:
        results.picture(options.out / "loops.png")
    print(f"table and picture: {options.out}")
    if results.wrong():
        sys.exit("some contenders are missing or did other work, see Errors")
    if unknown:
        sys.exit(f"nobody took part under the name of {', '.join(sorted(unknown))}")


if __name__ == "__main__":
    main()

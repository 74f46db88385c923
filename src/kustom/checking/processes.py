"""The processes beside this one: one a backend, each started when it is first needed and kept for the parts that follow.

That of the backend in use serves as the "new process" of the checks on saving. A process that dies, hangs, or knows an
older text of a part's module is replaced. What goes between is pickled, between processes of our own alone.
"""

from __future__ import annotations

import atexit
import os
import selectors
import subprocess
import sys
import time
from typing import Any

import keras

from kustom.backends import installed
from kustom.checking.making import packed, unpacked

__all__ = ["POOL", "Answer", "Pool", "python_path"]

# Seconds that one request may take; compiling a large model on a busy machine takes its time.
PATIENCE = 300.0


class Answer:
    """What a process answered.

    Attributes:
        value: What it returned.
        error: What the part raised there, on one line; empty where it did not.
        place: `file:line` of the user's line that raised it.
        own: Whether the error is the part's whatever it was called with.
        broken: Why there is no answer: the process died, or took too long.
    """

    def __init__(self, value: Any = None, error: str = "", place: str = "", own: bool = False, broken: str = "") -> None:
        self.value, self.error, self.place, self.own, self.broken = value, error, place, own, broken


class Pool:
    """The processes, by their backend."""

    def __init__(self) -> None:
        # Whether this process is itself one that another asks: it starts none.
        self.serving = False
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._stamps: dict[str, dict[str, str]] = {}
        atexit.register(self.close)

    @property
    def backends(self) -> list[str]:
        """The installed backends, that in use first."""
        here = keras.backend.backend()
        return [here, *(name for name in installed() if name != here)]

    def start(self, backends: list[str]) -> None:
        """Start what does not run, without waiting for it."""
        for name in backends:
            running = self._running.get(name)
            if running is not None and running.poll() is None:
                continue
            environment = {**os.environ, "KERAS_BACKEND": name, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_WAIT_POLICY": "passive"}
            environment["PYTHONPATH"] = python_path()
            self._running[name] = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "kustom.checking.worker"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self._stamps[name] = {}

    def send(self, backend: str, operation: str, recipe: dict[str, Any], **payload: Any) -> None:
        """Ask a process for something; `receive` has its answer."""
        known = self._stamps.setdefault(backend, {})
        if known.get(recipe["module"], recipe["stamp"]) != recipe["stamp"]:
            # It has imported an older text of the part's module.
            self.stop(backend)
        self.start([backend])
        self._stamps[backend][recipe["module"]] = recipe["stamp"]
        pipe = self._running[backend].stdin
        assert pipe is not None
        try:
            pipe.write((packed({"operation": operation, "recipe": recipe, **payload}) + "\n").encode())
            pipe.flush()
        except BrokenPipeError:
            # `receive` finds it dead.
            pass

    def receive(self, backend: str) -> Answer:
        """The answer to what was sent."""
        process = self._running[backend]
        line = _line(process, PATIENCE)
        if not line.endswith(b"\n"):
            died = process.poll() is not None
            self.stop(backend)
            why = "ended before it answered" if died else f"took over {PATIENCE:.0f} s"
            return Answer(broken=f"the process of {backend} {why}")
        return Answer(**unpacked(line.decode()))

    def ask(self, backend: str, operation: str, recipe: dict[str, Any], **payload: Any) -> Answer:
        """Send and receive."""
        self.send(backend, operation, recipe, **payload)
        return self.receive(backend)

    def stop(self, backend: str) -> None:
        """End a process."""
        process = self._running.pop(backend, None)
        self._stamps.pop(backend, None)
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def close(self) -> None:
        """End all processes."""
        for name in list(self._running):
            self.stop(name)


def python_path() -> str:
    """This process's paths, so that another finds the same modules."""
    return os.pathsep.join(path for path in sys.path if path)


def _line(process: subprocess.Popen[bytes], patience: float) -> bytes:
    """The next line that a process writes; what there is of it where it ends, or takes too long."""
    assert process.stdout is not None
    text, until = b"", time.monotonic() + patience
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not text.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not selector.select(left):
                return text
            more = os.read(process.stdout.fileno(), 1 << 16)
            if not more:
                process.wait()
                return text
            text += more
    return text


POOL = Pool()

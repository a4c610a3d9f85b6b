"""A race of several libraries over one piece of work: times, errors and peak memory under equal conditions.

All rivals live in one process and run in turn, in an order that rotates from round to round, so that the
machine's moods hit them alike. Kept are the CPU time of the process, steadier where a machine is shared, and
the wall-clock time. What comes back is checked before it is timed: a fast wrong answer is marked as such.
"""

import ctypes
import datetime
import gc
import importlib.metadata
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

Result = Any

QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""Threads that wait sleep: on a shared machine they would burn the time that is measured."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class Unavailable(Exception):  # noqa: N818
    """A rival cannot run: not installed, or it raised. The text is the reason."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One rival at one piece of work.

    Attributes:
        run: What is timed; the data are in the rival's own form already.
        read: From what `run` returns to the form that the check takes: cores, a tensor or a number.
        facts: Further findings about what `run` returned.
    """

    run: Callable[[], Result]
    read: Callable[[Result], Any] = lambda result: result
    facts: Callable[[Result], dict[str, Any]] = lambda _: {}


@dataclass(kw_only=True)
class Lane:
    """A rival during a race."""

    attempt: Attempt
    record: dict[str, Any] = field(default_factory=dict)
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    repeats: int = 1

    def is_finished(self, rounds: int, budget: float) -> bool:
        """Whether it has run often enough; a slow rival runs three times."""
        count = len(self.cpu)
        spent = sum(self.wall) * self.repeats
        return "skipped" in self.record or count >= rounds or (count >= min(3, rounds) and spent > budget)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `Unavailable` in a block that takes longer, as soon as Python gets a word in."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise Unavailable(f"takes more than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def reason_of(error: BaseException) -> str:
    """One line on why a rival cannot run."""
    if isinstance(error, Unavailable):
        return str(error)
    text = (str(error).splitlines() or [""])[0][:160]
    return f"raises {type(error).__name__}: {text}" if text else f"raises {type(error).__name__}"


def race(
    attempts: dict[str, Attempt],
    error_of: Callable[[Any], float],
    *,
    rounds: int = 7,
    budget: float = 10.0,
    limit: float = 60.0,
) -> dict[str, dict[str, Any]]:
    """Run every attempt in turn.

    Args:
        attempts: By name; one whose name begins with "floor" is timed and not checked.
        error_of: Error of what `Attempt.read` returns.
        rounds: Runs of each; fewer, but at least three, for one that has used up its budget.
        budget: Seconds that the runs of one attempt may take together.
        limit: Seconds after which a run is given up.

    Returns:
        For each name the medians, the extremes, the error and the facts, or the reason why there are none.
    """
    lanes = {name: Lane(attempt=attempt) for name, attempt in attempts.items()}
    for name, lane in lanes.items():
        _first_run(lane, error_of, limit, is_checked=not name.startswith("floor"))
    gc.collect()
    gc.disable()
    try:
        names = list(lanes)
        for index in range(rounds):
            shift = index % len(names)
            for name in names[shift:] + names[:shift]:
                if not lanes[name].is_finished(rounds, budget):
                    _timed_run(lanes[name], limit)
    finally:
        gc.enable()
    for lane in lanes.values():
        if "skipped" not in lane.record:
            lane.record |= {
                "cpu_seconds": summarize(lane.cpu),
                "wall_seconds": summarize(lane.wall),
                "rounds": len(lane.cpu),
                "runs_per_round": lane.repeats,
            }
    return {name: lane.record for name, lane in lanes.items()}


def _first_run(lane: Lane, error_of: Callable[[Any], float], limit: float, *, is_checked: bool) -> None:
    """Check what comes back; a run that took long counts as a round, a short one says how often to repeat."""
    try:
        cpu, wall = time.process_time(), time.perf_counter()
        with time_limit(limit):
            result = lane.attempt.run()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        if wall > 2:
            lane.cpu.append(cpu)
            lane.wall.append(wall)
        if is_checked:
            lane.record["error"] = float(error_of(lane.attempt.read(result)))
            lane.record |= lane.attempt.facts(result)
        if wall < 0.1:
            started = time.perf_counter()
            lane.attempt.run()
            lane.repeats = max(1, min(50, round(0.03 / max(time.perf_counter() - started, 1e-6))))
    except Exception as error:
        lane.record["skipped"] = reason_of(error)


def _timed_run(lane: Lane, limit: float) -> None:
    try:
        with time_limit(limit):
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(lane.repeats):
                result = lane.attempt.run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        del result  # its release belongs to nobody's time
    except Exception as error:
        lane.record["skipped"] = reason_of(error)
        return
    lane.cpu.append(cpu / lane.repeats)
    lane.wall.append(wall / lane.repeats)


def summarize(seconds: list[float]) -> dict[str, float]:
    """Median and extremes."""
    values = {"median": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def peak_of(run: Callable[[], Result]) -> int:
    """Bytes by which the resident memory of this process rises, at its highest, during a call.

    The high-water mark is set back before (Linux), so that the making of the data does not hide the rise.
    """
    gc.collect()
    _return_free_memory()
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    result = run()
    peak = _memory("VmHWM") - before
    del result
    return peak


def _memory(field_name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field_name + ":"):
            return 1024 * int(line.split()[1])
    raise Unavailable("the system does not tell the resident memory")


def _return_free_memory() -> None:
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass  # another C library: the figure may come out a little too low


def fix_environment(threads: int) -> None:
    """Start this process anew with the number of threads that every library reads at its import."""
    wanted = {**QUIET, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **wanted})
    torch.set_num_threads(threads)


def describe(packages: list[str]) -> dict[str, Any]:
    """Versions and machine, without names that identify it."""
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "versions": versions,
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.system(),
    }


def moment() -> dict[str, Any]:
    """The date, and how busy the machine is."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.strftime("%Y-%m-%d"),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")

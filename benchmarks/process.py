"""Time and peak memory, each measurement in a process of its own.

`fresh("benchmarks.speed:alone", n=1000)` starts a Python that calls `alone(n=1000)` in that module and returns its dict.
A measurement that does not fit, or takes too long, comes back as {"skipped": why}.
"""
import importlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lzn_nb.flow import free_memory

ROOT = Path(__file__).resolve().parent.parent
MARK = "result: "  # starts the line with the numbers, among whatever else a measurement prints


# -- in the measuring process ----------------------------------------------------------------------

def on_gpu(device: str) -> bool: return torch.device(device).type == "cuda"


def seconds(function: Callable, device: str = "cpu") -> float:
    "Wall-clock time of one call; on a GPU between two events, until it has finished."
    if not on_gpu(device):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    before.record()
    function()
    after.record()
    torch.cuda.synchronize(device)
    return before.elapsed_time(after) / 1e3


def resident(field: str) -> int:
    "Memory of this process in bytes: `VmRSS` now, `VmHWM` at its highest; without /proc only the second, for both."
    status = Path("/proc/self/status")
    if status.exists(): return 1024 * int(re.search(rf"{field}:\s+(\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak(device: str) -> None:
    "Let the highest value count from now on, where the system can do that."
    if on_gpu(device): return torch.cuda.reset_peak_memory_stats(device)
    try: Path("/proc/self/clear_refs").write_text("5")
    except OSError: pass


def gauge(function: Callable, device: str = "cpu") -> dict:
    "Seconds of one call, its peak memory above what was in use before, and that of the whole process (on a GPU: of its tensors)."
    forget_peak(device)
    before = torch.cuda.memory_allocated(device) if on_gpu(device) else resident("VmRSS")
    taken = seconds(function, device)
    peak = torch.cuda.max_memory_allocated(device) if on_gpu(device) else resident("VmHWM")
    return {"seconds": taken, "peak_bytes": max(0, peak - before), "whole_bytes": peak}


def too_large(need: float, device: str = "cpu") -> str | None:
    "Why a calculation that needs so many bytes is not even tried; None if it may fit."
    free = free_memory(torch.device(device))
    if need <= free: return None
    return f"out of memory (needs about {need / 1e9:.3g} GB, {free / 1e9:.3g} GB are free)"


def serve(task: str, arguments: str) -> None:
    "Call `module:function` with arguments in JSON and print what it returns."
    module, name = task.split(":")
    try: result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    except (MemoryError, torch.OutOfMemoryError) as error: result = {"skipped": f"out of memory ({str(error).splitlines()[0]})"}
    except RuntimeError as error:  # what PyTorch's allocator on the CPU raises
        if "allocate memory" not in str(error): raise
        result = {"skipped": "out of memory"}
    print(MARK + json.dumps(result), flush=True)


# -- in the process that asks ----------------------------------------------------------------------

def fresh(task: str, *, time_cap: float | None = None, environment: dict | None = None, **arguments) -> dict:
    "Result of a measurement in a new process; what it writes to stderr (errors, progress bars) passes through."
    command = [sys.executable, "-m", "benchmarks.process", task, json.dumps(arguments)]
    try: run = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, text=True, timeout=time_cap)
    except subprocess.TimeoutExpired: return {"skipped": f"stopped after {time_cap:g} s"}
    if run.returncode == -9: return {"skipped": "out of memory (the system ended the process)"}
    results = [line.removeprefix(MARK) for line in run.stdout.splitlines() if line.startswith(MARK)]
    if run.returncode or not results: raise RuntimeError(f"{task} with {arguments} failed with exit status {run.returncode}; its error is above")
    return json.loads(results[-1])


if __name__ == "__main__":
    serve(*sys.argv[1:])

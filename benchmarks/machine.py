"""On what a table was measured: machine, versions, date."""
import os
import platform
import re
from datetime import datetime, timezone
from pathlib import Path

import torch

import lzn_nb


def first_match(pattern: str, text: str, default: str) -> str:
    "What the group of `pattern` finds in `text`."
    found = re.search(pattern, text)
    return found[1].strip() if found else default


def read(path: str) -> str:
    "A text file, or nothing where the system has no such file."
    return Path(path).read_text() if Path(path).exists() else ""


def usable_cores() -> int:
    "Processor cores this process may run on."
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def blas() -> str:
    "The library behind the matrix products on the CPU."
    config = torch.__config__.show()
    mkl = first_match(r"Math Kernel Library Version (\S+?)[-\s]", config, "")
    return f"MKL {mkl}" if mkl else first_match(r"BLAS_INFO=(\w+)", config, "unknown")


def describe(device: str = "cpu") -> dict:
    "Machine, versions and date, as numbers and short strings."
    kilobytes = first_match(r"MemTotal:\s+(\d+)", read("/proc/meminfo"), "")
    machine = {
        "cpu": first_match(r"model name\s*:\s*(.+)", read("/proc/cpuinfo"), platform.processor() or platform.machine()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(int(kilobytes) * 1024 / 1e9, 1) if kilobytes else None,
        "gpu": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None,
    }
    versions = {"python": platform.python_version(), "torch": torch.__version__, "lzn_nb": lzn_nb.__version__, "blas": blas()}
    if machine["gpu"]: versions["cuda"] = torch.version.cuda
    return {"machine": machine, "versions": versions, "date": datetime.now(timezone.utc).date().isoformat()}

"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import transferkit

PACKAGES = ("torch", "numpy", "pillow", "opencv-python-headless", "kornia", "safetensors")


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, memory, GPU and versions as plain values."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": f"{memory() / 2**30:.0f} GiB",
        "gpu": ", ".join(gpus) or "none",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "transferkit": f"{transferkit.__version__} {revision()}".strip(),
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
    }


def machine_line(machine: dict[str, Any]) -> str:
    """Return the machine in one sentence."""
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory']}, GPU: {machine['gpu']}; "
        f"{machine['system']}, Python {machine['python']}, {packages}"
    )


def processor() -> str:
    """Return the processor's name and its widest vectors, which decide how fast torch is."""
    flags = torch.backends.cpu.get_cpu_capability()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.processor() or platform.machine()} ({flags})"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]} ({flags})"


def memory() -> int:
    """Return the machine's memory, bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def installed(package: str) -> str | None:
    """Return a package's version, ``None`` where it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def revision() -> str:
    """Return the commit, with a plus where files differ from it; nothing outside a repository."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short", "HEAD")
        return commit + ("+" if commit and git("status", "--porcelain", "--untracked-files=no") else "")
    except OSError:  # no git
        return ""

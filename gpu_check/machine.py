"""The machine that a check runs on: the card, the driver, and the versions of what computes.

Start reading at `facts`.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import torch

from common.run_folder import version_of

PACKAGES = ("torch", "numpy", "triton", "diffusers", "transformers", "accelerate", "ray", "pytest")


def card(device: str) -> str:
    """The name of the card; of the processor where the device is the CPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def driver() -> str:
    """The version of NVIDIA's driver, as nvidia-smi tells it; empty where it does not."""
    if (program := shutil.which("nvidia-smi")) is None:
        return ""
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return ""
    return found[0] if found else ""


def facts(device: str) -> dict[str, str]:
    """What report.md says of the machine, by its name."""
    found = {"device": f"{device}: {card(device)}"}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        found["memory"] = f"{properties.total_memory / 2**30:.1f} GiB, compute capability {capability}"
        found["CUDA of torch"] = str(torch.version.cuda)
        found["driver"] = driver() or "not told"
    found["system"] = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    found |= {package: number for package in PACKAGES if (number := version_of(package))}
    absent = [package for package in PACKAGES if package not in found]
    return found | ({"not installed": ", ".join(absent)} if absent else {})

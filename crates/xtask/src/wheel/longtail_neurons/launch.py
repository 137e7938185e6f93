"""Starts the programs. torch is looked for but not imported, which would take seconds."""

import importlib.util
import os
import re
import sys
from pathlib import Path

from longtail_neurons._build import JOBS, TORCH

HERE = Path(__file__).resolve().parent
# The program whose jobs need torch, and where it looks for libtorch by itself.
NEEDS_TORCH = "longtail-neurons-torch"
BESIDE = HERE.parent / "torch"


def find_torch():
    """The folder of the package torch, or None."""
    spec = importlib.util.find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or []:
        if (Path(folder) / "lib" / "libtorch_cpu.so").is_file():
            return Path(folder)
    return None


def version_of(torch):
    """The version of torch, such as `2.11.0+cu130`, from the text of its `version.py`."""
    found = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", (torch / "version.py").read_text("utf-8"))
    return found[1] if found else "unknown"


def problem(torch):
    """Why the jobs that need torch cannot run, or None."""
    install = f"`pip install 'torch=={TORCH}.*'`, or the wheel of longtail-neurons for your torch"
    if torch is None:
        return f"torch {TORCH} is needed, and none is installed for {sys.executable}\nhint: {install}"
    found = version_of(torch)
    if found.split(".")[:2] != TORCH.split("."):
        return f"these programs are made for torch {TORCH}, but `{torch}` is {found}\nhint: {install}"
    return None


def where():
    """Where the programs, what they bring with them, and torch are."""
    torch = find_torch()
    found, why = version_of(torch) if torch else "-", problem(torch)
    lines = [
        f"programs  {HERE / 'bin'}",
        f"share     {HERE / 'share'}",
        f"torch     {torch or 'not found'}",
        f"version   {found} (made for {TORCH}{'' if why else ': ok'})",
    ]
    return "\n".join(lines + ([f"error: {why}"] if why else []))


def environment(torch):
    """The variables for a program: a torch that does not lie beside this package is named to the loader."""
    variables = dict(os.environ)
    if torch.resolve() != BESIDE:
        before = variables.get("LD_LIBRARY_PATH")
        variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(torch / "lib"), before]))
    return variables


def start(job, arguments):
    """Becomes the program of a job."""
    program, variables = HERE / "bin" / JOBS[job], dict(os.environ)
    if JOBS[job] == NEEDS_TORCH:
        torch = find_torch()
        if why := problem(torch):
            sys.exit(f"error: {why}")
        variables = environment(torch)
    try:
        os.execve(program, [job, *arguments], variables)
    except OSError as err:
        sys.exit(f"error: failed to start `{program}`: {err}")


def main():
    """The command of a job: it is called by the job's name."""
    job = Path(sys.argv[0]).name
    if job not in JOBS:
        sys.exit(f"error: `{job}` is no job, only {', '.join(sorted(JOBS))}")
    start(job, sys.argv[1:])

"""Runs a command as a user does, and tells what it wrote, how it ended and what it imported."""

import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "train": "train.main",
    "merge": "merge",
    "sweep": "merge.sweep",
    "evaluate": "train.evaluate",
    "judge": "train.judge",
    "inspect": "data.inspect",
    "export": "train.export_checkpoint",
}
# What takes seconds to import; Hydra and OmegaConf do not.
HEAVY = ("torch", "transformers", "datasets", "trl", "peft", "numpy", "PIL", "wandb", "matplotlib")
RUN_AND_LIST = f"""
import runpy, sys
module = sys.argv.pop(1)
code = 0
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
print("IMPORTED", *[name for name in {HEAVY!r} if name in sys.modules])
sys.exit(code)
"""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    out: str
    error: str
    cpu_seconds: float

    @property
    def message(self) -> str:
        """The one error message; nothing but it may be there."""
        assert self.out == "", self.out
        assert "Traceback" not in self.error, self.error
        assert self.error.count("error:") == 1, self.error
        return self.error.strip().removeprefix("error: ")


def run(
    *arguments: str, cwd: Path = ROOT, python_path: Path | None = None, **environment: str
) -> Ended:
    """Run `python ARGUMENTS` in `cwd`, without the test run's own settings."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RANK")}
    path = {} if python_path is None else {"PYTHONPATH": str(python_path)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=kept | path | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ended(done.returncode, done.stdout, done.stderr, seconds)


def run_and_list(command: str, *arguments: str) -> tuple[Ended, list[str]]:
    """Run a command and return how it ended, and which heavy modules it had imported by then."""
    done = run("-c", RUN_AND_LIST, MODULES[command], *arguments)
    out, _, imported = done.out.rpartition("IMPORTED")
    return Ended(done.code, out, done.error, done.cpu_seconds), imported.split()

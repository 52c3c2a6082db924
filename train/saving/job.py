"""What has started this process on which machines, as far as schedulers tell."""

import os
from collections.abc import Mapping
from typing import Any


def job(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the job of a scheduler, the number of machines and torchrun's restarts, where told."""
    told: dict[str, Any] = {}
    if "SLURM_JOB_ID" in environ:
        told["slurm_job"] = _slurm_job(environ)
        told["nodes"] = environ.get("SLURM_JOB_NODELIST")
        told["requeued"] = int(environ.get("SLURM_RESTART_COUNT", "0"))
    elif "KUBERNETES_SERVICE_HOST" in environ:  # whose pods are named after their job
        told["kubernetes_pod"] = environ.get("HOSTNAME")
    if "GROUP_WORLD_SIZE" in environ:
        told["num_machines"] = int(environ["GROUP_WORLD_SIZE"])
        told["torchrun_restarts"] = int(environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return told


def _slurm_job(environ: Mapping[str, str]) -> str:
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID')}"
    return environ["SLURM_JOB_ID"]

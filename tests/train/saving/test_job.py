"""What schedulers tell is in the record of a start, and in its report."""

import pytest

from train.saving.job import job
from train.saving.run_folder import environment

SLURM = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-2]"}
TORCHRUN = {"GROUP_WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "1"}


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, {}),
        (SLURM, {"slurm_job": "17", "nodes": "n[1-2]", "requeued": 0}),
        (
            {**SLURM, "SLURM_RESTART_COUNT": "3", "SLURM_ARRAY_JOB_ID": "15",
             "SLURM_ARRAY_TASK_ID": "2", **TORCHRUN},
            {"slurm_job": "15_2", "nodes": "n[1-2]", "requeued": 3, "num_machines": 2,
             "torchrun_restarts": 1},
        ),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "sft-0-x7k"},
            {"kubernetes_pod": "sft-0-x7k"},
        ),
    ],
)  # fmt: skip
def test_what_is_told(environ, told):
    assert job(environ) == told


def test_it_is_in_the_record_of_a_start(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert environment()["slurm_job"] == "17"

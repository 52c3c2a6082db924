"""Two pods of job.yaml on this machine: its command, its user, a root that nobody can write to.

Each has a network and disks of its own, as a pod has; the disk of outputs is shared. What is not
here: a cluster, the image, GPUs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode puts no test folder on the path

from machines import Machines, made_machines, why_not
from pico_runs import FAST, SCENES, SHAPES, TOWER, metrics
from test_kubernetes import ROOT, container, environment, pod_spec

from configs.errors import Preempted

FILE = "job.yaml"
STEPS = 16
RUN = [
    "train", *FAST, *SCENES, *SHAPES, *TOWER, f"optim.max_steps={STEPS}", "data.packs_per_step=2",
    "checkpoint.save_steps=4", "evaluation.generate=false", "output_dir=/srv/outputs/run",
    "cache.dir=/srv/cache",
]  # fmt: skip
# Mounts that the node makes for a container, then what its securityContext says. Folders of the
# repository and of Python stay where they are, though root alone may look into what is above them.
CONTAINER = """
set -e
user=$1 outputs=$2 cache=$3 code=$4 python=$5
shift 5
mount -t tmpfs tmpfs /srv
mkdir /srv/outputs /srv/cache /srv/code /srv/python
mount --bind "$outputs" /srv/outputs
mount --bind "$cache" /srv/cache
mount --bind "$code" /srv/code
mount --bind "$python" /srv/python
for closed in /root /tmp /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs "$closed"; done
for folder in code python; do
    mkdir -p "${!folder}"
    mount --bind "/srv/$folder" "${!folder}"
    mount -o remount,bind,ro "${!folder}"
done
mount -o remount,bind,ro /
cd "$code"
exec setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs --bounding-set=-all \
    --inh-caps=-all env -i "$@"
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(why_not() is not None, reason=f"no machines: {why_not()}"),
]


class Pods:
    """Starts pods of one run; `folder` holds their disks."""

    def __init__(self, machines: Machines, folder: Path) -> None:
        self.machines, self.folder = machines, folder
        hosts = machines.hosts.read_text().splitlines()
        names = [f"{line} {line.split()[1]}.visiongraft" for line in hosts[1:]]  # the Service's
        machines.hosts.write_text("\n".join([hosts[0], *names, ""]))
        self.started = 0
        for name in ("outputs", "cache-0", "cache-1"):
            (folder / name).mkdir()
            (folder / name).chmod(0o1777)  # as fsGroup does

    def start(self, index: int) -> "subprocess.Popen[str]":
        only, name = container(FILE), f"visiongraft-{index}"
        user = str(pod_spec(FILE)["securityContext"]["runAsUser"])
        command = [text.replace("/visiongraft/", f"{ROOT}/") for text in only["command"]]
        given = {
            **environment(FILE),
            "JOB_COMPLETION_INDEX": str(index),
            "RUN_ID": "3f1c",
            "POD_IP": self.machines.address(name),
            "HOSTNAME": name,
            "KUBERNETES_SERVICE_HOST": "10.0.0.1",
            "HOME": "/srv/cache",  # as in the image
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",  # for two cores, where job.yaml has 32
        }
        self.started += 1
        log = (self.folder / f"log-{self.started}").open("w")
        return self.machines.start(
            name, "bash", "-c", CONTAINER, "bash", user, str(self.folder / "outputs"),
            str(self.folder / f"cache-{index}"), str(ROOT), sys.base_prefix,
            *(f"{key}={value}" for key, value in given.items()), *command, *RUN,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def told(self) -> str:
        logs = sorted(self.folder.glob("log-*"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in logs)

    def wait_for_step(self, step: int, *pods: "subprocess.Popen[str]") -> None:
        run, deadline = self.folder / "outputs/run", time.monotonic() + 200
        while not (run / "metrics.jsonl").is_file() or not any(
            line["step"] >= step for line in metrics(run) if "train/loss" in line
        ):
            assert all(pod.poll() is None for pod in pods), self.told()
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.05)

    def steps(self) -> list[int]:
        run = self.folder / "outputs/run"
        return [line["step"] for line in metrics(run) if "train/loss" in line]


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    with made_machines(["visiongraft-0", "visiongraft-1"], tmp_path) as machines:
        yield Pods(machines, tmp_path)


def test_pods_are_drained_and_come_back(pods: Pods) -> None:
    first, second = pods.start(0), pods.start(1)
    pods.wait_for_step(3, first, second)
    os.kill(second.pid, signal.SIGTERM)  # by the kubelet, to the container's first process
    assert second.wait(timeout=100) == Preempted.exit_code, pods.told()
    assert first.poll() is None, pods.told()  # its processes wait for the pod that comes
    second = pods.start(1)

    # They meet at pod 0: without it the others end too, with the code of what has been stopped.
    pods.wait_for_step(pods.steps()[-1] + 2, first, second)
    os.kill(first.pid, signal.SIGTERM)
    codes = (first.wait(timeout=100), second.wait(timeout=100))
    assert codes == (Preempted.exit_code, Preempted.exit_code), pods.told()
    assert 5 <= pods.steps()[-1] < STEPS
    second = pods.start(1)  # the new pod 1 is there first, and waits
    time.sleep(2)
    first = pods.start(0)
    assert (first.wait(timeout=200), second.wait(timeout=60)) == (0, 0), pods.told()

    assert pods.steps() == list(range(1, STEPS + 1))  # none twice, none left out
    run = pods.folder / "outputs/run"
    assert (run / "finished.json").is_file()
    starts: list[dict[str, Any]] = [
        json.loads(line) for line in (run / "environment.jsonl").read_text().splitlines()
    ]
    assert [told["torchrun_restarts"] for told in starts] == [0, 1, 0]
    assert {told["num_machines"] for told in starts} == {2}
    owner = pod_spec(FILE)["securityContext"]["runAsUser"]
    assert {path.stat().st_uid for path in run.rglob("*")} == {owner}

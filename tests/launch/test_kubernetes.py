"""The manifests: as published, true to each other and to our command line, and what a pod does."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode puts no test folder on the path

from published_schemas import problems
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.run import config_from_args, parse_args

from configs.command import load_config
from configs.errors import ConfigError, Preempted

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "launch/kubernetes"
JOBS = ("job.yaml", "pytorchjob.yaml", "trainjob.yaml")
# As the tests' stand-in for Python, which torchrun.sh asks for the devices and for torchrun.
DEVICES = 8
STAND_IN = f"""#!{sys.executable}
import json, os, signal, sys, time
if sys.argv[1] == "-c":
    print({DEVICES})
    sys.exit()
def stop(signum, frame):
    open(os.environ["VISIONGRAFT_EXIT_FILE"], "w").write("75")
    sys.exit(1)  # torchrun's own code
signal.signal(signal.SIGTERM, stop)
told = {{"arguments": sys.argv[1:], "environment": dict(os.environ)}}
with open(os.environ["TOLD"] + ".part", "w") as file:
    json.dump(told, file)
os.rename(file.name, os.environ["TOLD"])
time.sleep(float(os.environ.get("STAY", 0)))
"""


def resources(file: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = list(yaml.safe_load_all((FOLDER / file).read_text()))
    return found


def resource(kind: str) -> dict[str, Any]:
    (found,) = (r for path in FOLDER.glob("*.yaml") for r in resources(path.name)
                if r["kind"] == kind)  # fmt: skip
    return found


def job_spec(file: str) -> Any:
    """The spec of the Job that a manifest has, or that Trainer makes of it."""
    if file == "job.yaml":
        return resource("Job")["spec"]
    (job,) = resource("TrainingRuntime")["spec"]["template"]["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def pod_spec(file: str) -> Any:
    if file == "pytorchjob.yaml":
        return resource("PyTorchJob")["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    return job_spec(file)["template"]["spec"]


def container(file: str) -> Any:
    (found,) = pod_spec(file)["containers"]
    return found


def arguments(file: str) -> list[str]:
    """The container's, which a TrainJob brings."""
    found: list[str] = (
        container(file).get("args") or resource("TrainJob")["spec"]["trainer"]["args"]
    )
    return found


def environment(file: str) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container(file)["env"] if "value" in item}


def num_nodes(file: str) -> int:
    found: int = {
        "job.yaml": lambda: resource("Job")["spec"]["completions"],
        "pytorchjob.yaml": lambda: resource("PyTorchJob")["spec"]["pytorchReplicaSpecs"]["Worker"][
            "replicas"
        ],
        "trainjob.yaml": lambda: resource("TrainJob")["spec"]["trainer"]["numNodes"],
    }[file]()
    return found


def num_gpus(file: str) -> int:
    return int(container(file)["resources"]["limits"]["nvidia.com/gpu"])


def set_by_the_cluster(file: str, node: int) -> dict[str, str]:
    """What Kubernetes or an operator adds, by the code of training-operator 1.9 and Trainer 2.3."""
    address = {"POD_IP": f"10.0.0.{node}"}
    if file == "job.yaml":
        return address | {
            "JOB_COMPLETION_INDEX": str(node),
            "RUN_ID": "3f1c",
            "HOSTNAME": f"visiongraft-{node}",
        }
    if file == "pytorchjob.yaml":
        policy = resource("PyTorchJob")["spec"]["elasticPolicy"]
        conf = ",".join(f"{item['key']}={item['value']}" for item in policy["rdzvConf"])
        return address | {
            "PYTHONUNBUFFERED": "1",
            "PET_RDZV_BACKEND": policy["rdzvBackend"],
            "PET_RDZV_ENDPOINT": "visiongraft-worker-0:23456",
            "PET_RDZV_CONF": conf,
            "PET_NNODES": "2:2",
            "PET_NPROC_PER_NODE": "auto",
        }
    return address | {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "auto",
        "PET_NODE_RANK": str(node),
        "PET_MASTER_ADDR": "visiongraft-node-0-0.visiongraft",
        "PET_MASTER_PORT": "29500",
    }


def start(file: str, node: int, tmp_path: Path, **more: str) -> tuple[Any, Path, dict[str, str]]:
    """Start a container's very command here, with a stand-in for torchrun."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    told = tmp_path / f"told-{node}.json"
    command = [*container(file)["command"], *arguments(file)]
    pod = {**environment(file), **set_by_the_cluster(file, node)}
    command = [text.replace("/visiongraft/", f"{ROOT}/") for text in command]
    command = [re.sub(r"\$\((\w+)\)", lambda name: pod[name[1]], text) for text in command]
    given = {"PATH": os.environ["PATH"], "PYTHON": str(python), "TOLD": str(told), **pod, **more}
    return subprocess.Popen(command, env=given, cwd=tmp_path), told, pod


# --- as published


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_every_resource_is_as_its_publisher_says(path):
    found = resources(path.name)
    assert found
    for item in found:
        assert problems(item) == []


@pytest.mark.parametrize("file", JOBS[1:])
def test_the_pods_of_custom_resources_are_as_kubernetes_says(file):
    """Their models know names and types of pods alone; these schemas know values too."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod_spec(file)}
    assert problems(pod) == []
    if file == "trainjob.yaml":
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
        assert problems({**job, "spec": job_spec(file)}) == []


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("Service", "clusterIP:", "clusterIp:"),
        ("PersistentVolumeClaim", "accessModes:", "accessMode:"),
        ("Job", "backoffLimit: 6", "backoffLimit: six"),
        ("Job", "podFailurePolicy:", "podFailurePolicies:"),
        ("Job", "operator: In", "operators: In"),
        ("Job", "mountPath: /cache", "mountpath: /cache"),
        ("PyTorchJob", "backoffLimit: 12", "backoffLimit: many"),
        ("PyTorchJob", "rdzvConf:", "rdzvConfig:"),
        ("PyTorchJob", "{key: read_timeout", "{name: read_timeout"),
        ("PyTorchJob", "replicas: 2", "replica: 2"),
        ("PyTorchJob", "terminationGracePeriodSeconds:", "terminationGraceSeconds:"),
        ("PyTorchJob", "secretKeyRef: {name", "secretKeyRef: {secret"),
        ("PyTorchJob", "allowPrivilegeEscalation: false", "allowPrivilegeEscalations: false"),
        ("TrainingRuntime", "numNodes: 2", "nodes: 2"),
        ("TrainingRuntime", "numNodes: 2", "numNodes: two"),
        ("TrainingRuntime", "torch: {}", "torch: {numProcPerNode: auto}"),  # as before 2.2
        ("TrainingRuntime", "replicatedJobs:", "replicatedJob:"),
        ("TrainingRuntime", "onPodConditions:", "onPodCondition:"),
        ("TrainingRuntime", "fsGroupChangePolicy:", "fsGroupPolicy:"),
        ("TrainingRuntime", "medium: Memory", "media: Memory"),
        ("TrainJob", "numNodes: 2", "nodes: 2"),
        ("TrainJob", "runtimeRef:", "runtime:"),
    ],
)
def test_what_is_not_as_published_is_found(kind, old, new):
    """Each of these would be dropped without a word, or refused, by a cluster."""
    text = "\n---\n".join(path.read_text() for path in sorted(FOLDER.glob("*.yaml")))
    (good,) = (part for part in text.split("\n---\n") if f"\nkind: {kind}\n" in part)
    assert old in good
    assert problems(yaml.safe_load(good)) == []
    assert problems(yaml.safe_load(good.replace(old, new, 1))) != []


# --- true to each other


def test_the_three_pods_are_one(tmp_path):
    """What is said of one of them is true of all; how torchrun's processes meet is each its own."""

    def common(file: str) -> Any:
        pod = copy.deepcopy(pod_spec(file))
        for name in ("subdomain", "restartPolicy"):
            pod.pop(name, None)
        (only,) = pod["containers"]
        for name in ("name", "command", "args"):
            only.pop(name, None)
        only["env"] = [item for item in only["env"] if item["name"] not in ("NNODES", "RUN_ID")]
        return pod

    assert common("job.yaml") == common("pytorchjob.yaml") == common("trainjob.yaml")
    assert arguments("job.yaml") == arguments("pytorchjob.yaml") == arguments("trainjob.yaml")


def test_all_nodes_are_there_at_once():
    job = resource("Job")["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] == int(environment("job.yaml")["NNODES"])
    runtime = resource("TrainingRuntime")["spec"]
    assert runtime["mlPolicy"]["numNodes"] == num_nodes("trainjob.yaml")
    assert "completions" not in job_spec("trainjob.yaml")


@pytest.mark.parametrize("file", JOBS)
def test_cores_and_the_global_batch_are_shared_out_evenly(file):
    command, *overrides = arguments(file)
    config = load_config(command, overrides)
    assert config.data.packs_per_step % (num_nodes(file) * num_gpus(file)) == 0
    limits = container(file)["resources"]
    threads = int(environment(file)["OMP_NUM_THREADS"])
    assert threads * num_gpus(file) <= int(limits["requests"]["cpu"])
    assert limits["requests"]["memory"] == limits["limits"]["memory"]  # nothing to be evicted for


@pytest.mark.parametrize("file", JOBS)
def test_what_is_written_goes_to_a_volume(file):
    pod, only = pod_spec(file), container(file)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in only["volumeMounts"]}
    assert len(mounts) == len(volumes)
    command, *overrides = arguments(file)
    config = load_config(command, overrides)
    assert mounts[f"/{Path(config.output_dir).parts[1]}"]["persistentVolumeClaim"] == {
        "claimName": resource("PersistentVolumeClaim")["metadata"]["name"]
    }
    assert resource("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]
    assert "emptyDir" in mounts[config.cache.dir]
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    shm = int(mounts["/dev/shm"]["emptyDir"]["sizeLimit"].removesuffix("Gi"))
    assert shm < int(only["resources"]["limits"]["memory"].removesuffix("Gi")) / 2
    assert "emptyDir" in mounts["/tmp"]  # where torchrun.sh keeps the exit code


@pytest.mark.parametrize("file", JOBS)
def test_nobody_is_root(file):
    pod, only = pod_spec(file), container(file)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    for item in only["env"]:  # no key in a file of ours, and a run without any
        if "KEY" in item["name"] or "TOKEN" in item["name"]:
            assert item["valueFrom"]["secretKeyRef"]["optional"] is True


# --- how a run ends


def action(file: str, code: int, *, disrupted: bool = False) -> str:
    """What the Job's controller does about a pod that failed: the first rule that fits."""
    for rule in job_spec(file)["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            asked = rule["onExitCodes"]
            assert asked["operator"] == "In"
            assert asked["containerName"] == container(file)["name"]
            fits = code in asked["values"]
        else:
            assert rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
            fits = disrupted
        if fits:
            return str(rule["action"])
    return "Count"


@pytest.mark.parametrize("file", ["job.yaml", "trainjob.yaml"])
def test_exit_codes_are_told_apart(file):
    assert pod_spec(file)["restartPolicy"] == "Never"  # what the policy asks for
    assert "backoffLimitPerIndex" not in job_spec(file)
    assert job_spec(file)["podReplacementPolicy"] == "Failed"
    assert action(file, ConfigError.exit_code) == "FailJob"
    assert action(file, Preempted.exit_code) == "Ignore"
    assert action(file, Preempted.exit_code, disrupted=True) == "Ignore"
    for code in (1, 137, 143):  # an error, out of memory, killed before it could save
        assert action(file, code) == "Count"
        assert action(file, code, disrupted=True) == "Ignore"
    # Where pod 0 dies, each of the others fails once; several times are borne.
    assert job_spec(file)["backoffLimit"] >= 3 * (num_nodes(file) - 1)


def test_the_training_operator_starts_again_after_any_failure():
    spec = resource("PyTorchJob")["spec"]
    assert spec["pytorchReplicaSpecs"]["Worker"]["restartPolicy"] == "OnFailure"
    assert spec["runPolicy"]["backoffLimit"] > num_nodes("pytorchjob.yaml")


@pytest.mark.parametrize("file", JOBS)
def test_there_is_time_for_a_checkpoint(file):
    grace = pod_spec(file)["terminationGracePeriodSeconds"]
    assert grace >= int(environment(file)["SHUTDOWN_SECONDS"]) + 30


@pytest.mark.parametrize("file", JOBS)
def test_sigterm_reaches_torchrun_and_the_run_s_exit_code_the_kubelet(file, tmp_path):
    """The kubelet signals the container's first process alone."""
    process, told, _ = start(file, 1, tmp_path, STAY="60")
    until = time.monotonic() + 30
    while not told.exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == Preempted.exit_code


# --- how its processes meet


def test_pods_of_the_job_have_names():
    job, service = resource("Job"), resource("Service")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    label = service["spec"]["selector"]["batch.kubernetes.io/job-name"]
    assert label == job["metadata"]["name"]
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    host = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    (port,) = service["spec"]["ports"]
    assert f"{host}:{port['port']} " in container("job.yaml")["command"][2].replace("\\", " ")


@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("file", JOBS)
def test_torchrun_is_told_where_all_meet(file, node, tmp_path, monkeypatch):
    process, told, pod = start(file, node, tmp_path)
    assert process.wait(timeout=30) == 0
    said = json.loads(told.read_text())
    agent, *options = said["arguments"]
    assert Path(agent) == ROOT / "launch/agent.py"
    for name in [name for name in os.environ if name.startswith("PET_")]:
        monkeypatch.delenv(name)
    for name, value in pod.items():
        monkeypatch.setenv(name, value)
    config, _, program = config_from_args(parse_args(options))  # torchrun's own reading

    assert (config.min_nodes, config.max_nodes) == (num_nodes(file), num_nodes(file))
    assert config.nproc_per_node == num_gpus(file) == DEVICES
    assert config.max_restarts == 3
    assert config.local_addr == pod["POD_IP"]
    # torch 2.13: else none comes back
    assert said["environment"]["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert config.rdzv_backend == "c10d"
    assert (
        config.rdzv_endpoint
        == {
            "job.yaml": "visiongraft-0.visiongraft:29400",
            "pytorchjob.yaml": "visiongraft-worker-0:23456",
            "trainjob.yaml": "visiongraft-node-0-0.visiongraft:29500",
        }[file]
    )
    meeting = RendezvousParameters(
        config.rdzv_backend, config.rdzv_endpoint, config.run_id or "none",
        config.min_nodes, config.max_nodes, **config.rdzv_configs,
    )  # fmt: skip
    # The operator's pods know themselves by the very name; elsewhere DNS might not know it yet.
    assert meeting.get_as_bool("is_host") is (None if file == "pytorchjob.yaml" else node == 0)
    assert meeting.get_as_int("read_timeout") == 900
    assert meeting.get_as_int("join_timeout") == 1800
    if file == "job.yaml":
        assert config.run_id == pod["RUN_ID"]

    start_of_program = program.index(str(ROOT / "train/main.py"))
    command, *overrides = arguments(file)
    assert command == "train"
    assert program[start_of_program + 1 :] == overrides
    assert said["environment"]["OMP_NUM_THREADS"] == environment(file)["OMP_NUM_THREADS"]

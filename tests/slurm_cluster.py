"""A real SLURM of two nodes on this machine; `python tests/slurm_cluster.py` opens a shell on it.

The daemons of Debian's `slurm-wlm` and `munge` run on three machines of tests/machines.py: the
controller and munge on `head`, a slurmd each on `n1` and `n2`. All that they read and write is in
one temporary folder; /etc is left alone, and nothing is left running.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import machines

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "scancel", "squeue")
NODES = ("n1", "n2")
READY_SECONDS = 30
# Four CPUs and two GPUs a node, whatever is here: nothing binds to them. A requeued job waits for
# `cred_expire` (120 s by default, 5 at the least) before it starts again. `pgid` signals a task's
# process group; a cluster with cgroups signals the task's first process, and SIGKILLs all of it.
CONFIG = """
ClusterName=visiongraft
SlurmctldHost=head({head})
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
PlugStackConfig={folder}/plugstack.conf
MailProg=/bin/true
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait={kill_wait}
GresTypes=gpu
NodeName=n1 NodeAddr={n1} CPUs=4 RealMemory=1000 Gres=gpu:2
NodeName=n2 NodeAddr={n2} CPUs=4 RealMemory=1000 Gres=gpu:2
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime={grace} MaxTime=60
PartitionName=high Nodes=n1,n2 PriorityTier=2 PreemptMode=OFF MaxTime=60
"""


def why_not() -> str | None:
    """Return why there can be no cluster here; None: there can."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            return f"no {program} (Debian: slurm-wlm, munge)"
    return machines.why_not()


class Cluster:
    """SLURM on machines `head`, `n1` and `n2`."""

    def __init__(self, on: machines.Machines, folder: Path, grace: int, kill_wait: int) -> None:
        """Start it, and wait until both nodes are idle."""
        self.machines, self.folder = on, folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        addresses = {name: on.address(name) for name in on.names}
        config = CONFIG.format(folder=folder, grace=grace, kill_wait=kill_wait, **addresses)
        (folder / "slurm.conf").write_text(config)
        # Two devices that are everywhere stand for GPUs; nothing opens them.
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        (folder / "plugstack.conf").write_text("")
        self._start_munge()
        self._start("head", "slurmctld", "-D")
        for name in NODES:
            self.start_node(name)
        self.until(lambda: self.node_states() == {"n1": "idle", "n2": "idle"}, "no idle nodes")

    def _start_munge(self) -> None:
        key, socket = self.folder / "munge.key", self.folder / "munge.socket"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        # One daemon for all: its socket is a file, and files are shared. --force: it would have all
        # folders above it root's alone.
        self._start(
            "head", "munged", "--foreground", "--force", f"--socket={socket}", f"--key-file={key}",
            *(f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed")),
        )  # fmt: skip
        self.until(socket.exists, "munged does not start")

    def _start(self, machine: str, program: str, *arguments: str) -> None:
        with (self.folder / f"{program}-{machine}.out").open("a") as out:
            self.machines.start(
                machine, program, *arguments, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=out, stderr=out,
            )  # fmt: skip

    def start_node(self, name: str) -> None:
        """Start the daemon of a node, also of one that was killed."""
        (self.folder / name).mkdir(exist_ok=True)
        self._start(name, "slurmd", "-D")

    def run(self, *command: str, **options: object) -> str:
        """Run one of SLURM's programs on the head; return what it prints.

        Raises:
            RuntimeError: it fails.
        """
        settings = {"env": self.environment, **options}
        done = self.machines.run("head", *command, **settings)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def node_states(self) -> dict[str, str]:
        """Return {node: "idle", "allocated", "down*", ...}; empty while nobody answers."""
        with contextlib.suppress(RuntimeError):
            lines = self.run("sinfo", "--noheader", "--Node", "--partition=low", "--format=%N %T")
            return dict(line.split() for line in lines.splitlines())
        return {}

    def submit(self, *arguments: str, cwd: Path, **variables: str) -> str:
        """Call sbatch in a folder; return the job's id."""
        environment = {**self.environment, **variables}
        return self.run("sbatch", "--parsable", *arguments, cwd=cwd, env=environment)

    def job(self, job_id: str) -> dict[str, str]:
        """Return what `scontrol show job` tells of a job, such as JobState and ExitCode."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "--oneliner", "show", "job",
                                                         job_id)))  # fmt: skip

    def wait(self, job_id: str, *states: str, seconds: float = 120) -> dict[str, str]:
        """Wait until a job is in one of `states`; return what is told of it then."""
        told: dict[str, str] = {}

        def is_there() -> bool:
            told.update(self.job(job_id))
            return told["JobState"] in states

        self.until(is_there, f"job {job_id} is not {' or '.join(states)}", seconds)
        return told

    def until(
        self, is_so: Callable[[], bool], otherwise: str, seconds: float = READY_SECONDS
    ) -> None:
        """Wait for something.

        Raises:
            TimeoutError: with `otherwise` and what the daemons have logged last.
        """
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{otherwise} within {seconds:.0f} s\n{self.last_words()}")
            time.sleep(0.1)

    def last_words(self) -> str:
        """Return the ends of the daemons' logs."""
        logs = sorted({*self.folder.glob("*.log"), *self.folder.glob("*.out")})
        return "\n".join(f"--- {log.name}\n{log.read_text()[-1500:]}" for log in logs)


@contextlib.contextmanager
def made_cluster(*, grace: int = 30, kill_wait: int = 5) -> Iterator[Cluster]:
    """Give a SLURM, and end it with all that runs there.

    Args:
        grace: seconds between SIGTERM and the end of a job that is preempted.
        kill_wait: seconds between SIGTERM and SIGKILL, at the time limit and of scancel.
    """
    # A short path: it holds sockets, whose paths have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="vg-slurm-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with machines.made_machines(["head", *NODES], folder) as on:
            yield Cluster(on, folder, grace, kill_wait)


def main() -> None:
    """Open a shell on the head of a cluster."""
    if (reason := why_not()) is not None:
        sys.exit(f"error: {reason}")
    with made_cluster() as cluster:
        print(f"a shell on the head of a SLURM in {cluster.folder}; `exit` ends all of it")
        print("sinfo; sbatch --nodes 2 launch/slurm/run.sbatch debug=fast; squeue; tail -f slurm-*")
        subprocess.run(cluster.machines.command("head", "bash"), env=cluster.environment)


if __name__ == "__main__":
    main()

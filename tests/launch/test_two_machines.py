"""Two machines train one model: killed, cut off, stopped, slow, and it is the run of one machine.

The machines are network namespaces (tests/machines.py) that share this one's disk and processors.
For each engine one run goes through all of it, on from checkpoint to checkpoint.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from machines import Machines, made_machines, why_not
from pico_runs import FAST, SHAPES, losses, metrics, same_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # the first test waits for all runs
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
ROOT = Path(__file__).resolve().parents[2]
ENGINES = ["ddp", "zero3"]
TIMEOUT = 20  # engine.timeout_seconds
LOST = 5  # LOST_SECONDS of launch/torchrun.sh
BUSY = 40.0  # seconds that what is not a wait may take on two busy cores; measured: 8
RUN = [
    *FAST, "model=pico_text", *SHAPES, "stage=text", "data=text",
    "data.sources.numbers.num_rows=40", "data.sources.names.num_rows=40", "data.packs_per_step=2",
    "optim.max_steps=9", "checkpoint.save_steps=2", f"engine.timeout_seconds={TIMEOUT}",
    "evaluation.max_rows=2", "evaluation.generate=false", "evaluation.eval_steps=4",
]  # fmt: skip
# Each Python program reads this when it starts: a file `hold-RANK-STEP` stops a rank there until
# `go` is there. And DeepSpeed compiles no kernel for gloo.
SITE = """
import importlib.abc, importlib.util, os, sys, time
from pathlib import Path

place = Path(os.environ["PLACE"])
def hold(where):
    asked = place / f"hold-{os.environ.get('RANK')}-{where}"
    if asked.exists():
        asked.rename(place / asked.name.replace("hold", "held"))
        while not (place / "go").exists():
            time.sleep(0.05)
def in_trainer(module):
    fetch = module.GraftTrainer.get_batch_samples
    def held(self, *args):
        if self.state.global_step == 1:
            write_timeouts()
        hold(self.state.global_step)
        return fetch(self, *args)
    module.GraftTrainer.get_batch_samples = held
def write_timeouts():
    import torch
    from torch.distributed import distributed_c10d
    backends = [g._get_backend(torch.device("cpu")) for g in distributed_c10d._world.pg_map]
    told = [backend.options._timeout.total_seconds() for backend in backends]
    (place / f"timeouts-{os.environ['RANK']}").write_text(repr(told))
def in_run(module):
    build = module.build_training_data
    def held(*args, **kwargs):
        hold("data")
        return build(*args, **kwargs)
    module.build_training_data = held
def in_roll_call(module):
    module.TELL_SECONDS = 1.0
def in_deepspeed(module):
    module.build_shm_op = lambda: None
after = {"train.trainer": in_trainer, "train.run": in_run, "train.roll_call": in_roll_call,
         "deepspeed.comm.torch": in_deepspeed}
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        change = after.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), change(module))
        return spec
sys.meta_path.insert(0, Finder())
"""


class Story:
    """Runs of one engine, and what was seen of them."""

    def __init__(self, engine: str, folder: Path, machines: Machines) -> None:
        """Nothing runs yet."""
        self.engine, self.folder, self.machines = engine, folder, machines
        self.seconds: dict[str, float] = {}
        self.codes: dict[str, list[int]] = {}
        self.logs: dict[str, Path] = {}
        self.place = folder / "place"
        self.place.mkdir()
        (folder / "sitecustomize.py").write_text(SITE)

    def start(self, name: str, part: str, run: str, **environment: str) -> Any:
        """Start the run `run` on a machine, or on "local"; its log is of `part` and machine."""
        path = self.folder / f"{part}-{name}.log"
        self.logs[f"{part}-{name}"] = path
        meeting = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "n1:29400"]
        command = [
            str(ROOT / "launch/torchrun.sh"), *(["--standalone"] if name == "local" else meeting),
            "--", *RUN, f"engine={self.engine}", f"output_dir={self.folder}/{run}",
        ]  # fmt: skip
        settings = {
            "PYTHON": sys.executable, "PYTHONPATH": str(self.folder), "PLACE": str(self.place),
            "NPROC_PER_NODE": "2" if name == "local" else "1", "OMP_NUM_THREADS": "1",
            "LOST_SECONDS": str(LOST), "JOIN_SECONDS": "120", "SHUTDOWN_SECONDS": "60",
            **environment,
        }  # fmt: skip
        with path.open("w") as log:
            options: Any = {"stdout": log, "stderr": log, "env": {**os.environ, **settings}}
            if name == "local":
                return subprocess.Popen(command, text=True, cwd=self.folder, **options)
            return self.machines.start(name, *command, cwd=self.folder, **options)

    def start_both(self, part: str, run: str, **environment: str) -> list[Any]:
        """Start a run on both machines."""
        return [self.start(name, part, run, **environment) for name in ("n1", "n2")]

    def end(self, part: str, processes: list[Any]) -> None:
        """Wait for the end of a part, and keep how long that took, and the exit codes."""
        begun = time.monotonic()
        self.codes[part] = [process.wait(timeout=120) for process in processes]
        self.seconds[part] = time.monotonic() - begun

    def hold(self, rank: int, where: str) -> None:
        """Have a rank stop after a step, or before it reads "data"."""
        (self.place / "go").unlink(missing_ok=True)
        (self.place / f"hold-{rank}-{where}").touch()

    def is_held(self, rank: int, where: str) -> Callable[[], bool]:
        """Whether it has come there."""
        return (self.place / f"held-{rank}-{where}").exists

    def go(self) -> None:
        """Let who is held go on."""
        (self.place / "go").touch()

    def log(self, name: str) -> str:
        """What a part has told on a machine."""
        return self.logs[name].read_text()

    def told(self, name: str, words: str) -> Callable[[], bool]:
        """Whether a part has told something on a machine."""
        return lambda: words in self.log(name)

    def wait(self, what: Callable[[], bool]) -> float:
        """Wait for something; return the seconds."""
        begun = time.monotonic()
        while not what():
            logs = "\n".join(path.read_text()[-3000:] for path in self.logs.values())
            assert time.monotonic() - begun < 120, logs
            time.sleep(0.02)
        return time.monotonic() - begun


def tell(engine: str, folder: Path, machines: Machines) -> Story:
    """Go through all that can happen to a run."""
    story = Story(engine, folder, machines)
    story.hold(1, "data")
    both = story.start_both("unbroken", "unbroken")
    story.wait(story.told("unbroken-n1", "waiting for rank 1"))
    story.go()
    story.end("unbroken", both)

    story.hold(1, "3")
    first, _ = story.start_both("killed", "broken", MAX_RESTARTS="1")
    story.wait(story.is_held(1, "3"))
    machines.kill("n2")
    story.seconds["told of the kill"] = story.wait(
        story.told("killed-n1", "all processes go on from")
    )
    story.hold(1, "5")
    second = story.start("n2", "again", "broken")
    story.wait(story.is_held(1, "5"))
    machines.cut_off("n2")
    story.go()
    alone = story.start("local", "local", "local")  # while these wait
    story.end("cut", [first, second])
    machines.plug_in_again("n2")
    story.end("local", [alone])

    if engine == "ddp":
        stop(story)
    story.end("last", story.start_both("last", "broken"))
    return story


def stop(story: Story) -> None:
    """Stop a run by a signal to the first machine."""
    story.hold(0, "6")  # this one, for who waits in a collective notes a signal afterwards
    both = story.start_both("stopped", "broken", MAX_RESTARTS="1")
    story.wait(story.is_held(0, "6"))
    both[0].send_signal(signal.SIGTERM)
    story.wait(story.told("stopped-n1", "SIGTERM: a checkpoint follows this step"))
    story.go()
    story.end("stopped", both)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: Any) -> dict[str, Story]:
    """All that happened to the runs of each engine, side by side: half of it is waiting."""

    def of(engine: str, folder: Path) -> Story:
        with made_machines(["n1", "n2"], folder) as machines:
            return tell(engine, folder, machines)

    folders = [tmp_path_factory.mktemp(engine) for engine in ENGINES]
    with ThreadPoolExecutor() as threads:
        return dict(zip(ENGINES, threads.map(of, ENGINES, folders), strict=True))


@pytest.fixture(params=ENGINES)
def story(request: Any, stories: dict[str, Story]) -> Story:
    """That of one engine."""
    return stories[request.param]


def test_two_machines_learn_what_two_processes_learn(story):
    assert story.codes["local"] == [0] and story.codes["unbroken"] == [0, 0]
    one, two = story.folder / "local", story.folder / "unbroken"
    assert sorted(losses(two)) == list(range(1, 10))
    assert metrics(two) == metrics(one)
    assert same_weights(two / "export", one / "export")


def test_who_is_slow_before_the_processes_meet_is_named(story):
    assert "waiting for rank 1 on n2: reading data (" in story.log("unbroken-n1")


def test_who_is_left_tells_of_a_machine_that_was_killed(story):
    assert story.seconds["told of the kill"] < BUSY
    message = (
        r"error: rank 0 of 2 on n1 has lost another process after step 3: \S.*\n"
        r"  another process has died, or its machine or the network has failed; .*\n"
        r"  all processes go on from \S+/checkpoint-2: torchrun does that itself while "
        r"--max-restarts are left \(MAX_RESTARTS of .*\); otherwise run the same command again\n"
    )
    told = story.log("killed-n1")
    assert re.search(message, told)
    assert "[10.77.0.2]" in told  # its address, by gloo


def test_all_go_on_when_it_is_back(story):
    """torchrun on the first machine starts its process again, by MAX_RESTARTS."""
    assert re.search(r"going on from \S+/checkpoint-2\n", story.log("killed-n1"))


def test_nobody_waits_longer_than_asked_where_the_cable_is_cut(story):
    assert story.codes["cut"] == [1, 1]
    assert story.seconds["cut"] < TIMEOUT + LOST + BUSY
    for name, which in (("killed-n1", "rank 0 of 2 on n1"), ("again-n2", "rank 1 of 2 on n2")):
        message = (
            rf"error: {which} has lost another process after step 5: Timed out waiting 20000ms .*\n"
            r"  nothing came for engine\.timeout_seconds=20: it has gone without a word, "
        )
        assert re.search(message, story.log(name))
    assert "error: torchrun on n2: the rendezvous host does not answer" in story.log("again-n2")


def test_every_group_waits_as_long_as_asked(story):
    """The whole, ours for signals, and the copy of the whole that DeepSpeed makes."""
    for rank in (0, 1):
        timeouts = json.loads((story.place / f"timeouts-{rank}").read_text())
        assert timeouts == [TIMEOUT] * {"ddp": 2, "zero3": 3}[story.engine]


def test_a_signal_to_one_machine_stops_both(story):
    """With exit code 75, and without starting again, though --max-restarts are left."""
    if story.engine != "ddp":
        pytest.skip("by the same code: once is enough")
    assert re.search(r"stopped by SIGTERM after step 7; .*checkpoint-7", story.log("stopped-n1"))
    assert story.codes["stopped"] == [75, 75]
    assert story.seconds["stopped"] < BUSY


def test_what_became_of_it_is_the_unbroken_run(story):
    assert story.codes["last"] == [0, 0]
    broken, unbroken = story.folder / "broken", story.folder / "unbroken"
    assert metrics(broken) == metrics(unbroken)
    assert same_weights(broken / "export", unbroken / "export")

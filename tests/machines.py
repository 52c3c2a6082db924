"""Several machines on this one: network namespaces, each with its own address and host name.

A switch joins them. They share disk and processors, as nodes share a file system. What runs on one
sees no address of the test's own machine; a machine can be killed, and cut off without a word.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NUMBERS = itertools.count()


def why_not() -> str | None:
    """Return why there can be no machines here; None: there can."""
    for program in ("ip", "unshare", "nsenter"):
        if shutil.which(program) is None:
            return f"no {program} (Debian: iproute2, util-linux)"
    if os.geteuid() != 0:
        return "network namespaces are made by root alone"
    name = f"vg{os.getpid()}-try"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if done.returncode:
        return f"no network namespace can be made: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


class Machines:
    """Machines `names`, with addresses 10.77.0.1, .2, ... ; each knows the others by name."""

    def __init__(self, names: list[str], folder: Path) -> None:
        """Make them; `folder` takes their /etc/hosts."""
        self.names = names
        self.prefix = f"vg{os.getpid()}x{next(NUMBERS)}"  # names of namespaces are the kernel's own
        self.hosts = folder / "hosts"
        lines = [f"{self.address(name)} {name}" for name in names]
        self.hosts.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]), encoding="utf-8")
        switch = self._space("switch")
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for name in names:
            self._plug_in(name, switch)

    def _plug_in(self, name: str, switch: str) -> None:
        space = self._space(name)
        _ip("netns", "add", space)
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", name,
            "netns", switch)  # fmt: skip
        _ip("-n", switch, "link", "set", name, "master", "bridge", "up")
        _ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")

    def _space(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def address(self, name: str) -> str:
        """Return the address of a machine."""
        return f"10.77.0.{1 + self.names.index(name)}"

    def command(self, name: str, *arguments: str) -> list[str]:
        """Return what starts a program on a machine."""
        script = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'
        return [
            "nsenter", f"--net=/run/netns/{self._space(name)}",
            "unshare", "--uts", "--mount", "--propagation=private",
            "sh", "-c", script, "sh", str(self.hosts), name, *arguments,
        ]  # fmt: skip

    def start(self, name: str, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        """Start a program on a machine, in a session of its own."""
        command = self.command(name, *arguments)
        return subprocess.Popen(command, text=True, start_new_session=True, **options)

    def run(self, name: str, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run a program on a machine to its end."""
        settings: Any = {"capture_output": True, "text": True, "timeout": 120, **options}
        return subprocess.run(self.command(name, *arguments), **settings)

    def processes(self, name: str) -> list[int]:
        """Return the processes that run on a machine."""
        told = _ip("netns", "pids", self._space(name))
        return [int(line) for line in told.split()]

    def kill(self, name: str) -> None:
        """End all that runs on a machine, as a lost one ends; the network stays."""
        deadline = time.monotonic() + 20
        while pids := self.processes(name):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {pids} on {name} do not end")
            time.sleep(0.05)

    def cut_off(self, name: str) -> None:
        """Take a machine's cable out: nobody is told, what is sent is lost."""
        _ip("-n", self._space("switch"), "link", "set", name, "down")

    def plug_in_again(self, name: str) -> None:
        """Put the cable back."""
        _ip("-n", self._space("switch"), "link", "set", name, "up")

    def close(self) -> None:
        """End all of them."""
        for name in self.names:
            self.kill(name)
        for name in [*self.names, "switch"]:
            subprocess.run(["ip", "netns", "del", self._space(name)], check=False)


@contextlib.contextmanager
def made_machines(names: list[str], folder: Path) -> Iterator[Machines]:
    """Give machines, and end them with all that runs there."""
    machines = Machines(names, folder)
    try:
        yield machines
    finally:
        machines.close()


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout

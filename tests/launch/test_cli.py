"""`visiongraft COMMAND`: the right module for each name, and help where there is none."""

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from launch import cli

ROOT = Path(__file__).resolve().parents[2]


def visiongraft(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the console script's function in a fresh interpreter."""
    code = "from launch.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)])
def test_help(arguments: tuple[str, ...]) -> None:
    done = visiongraft(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: visiongraft COMMAND [key=value ...]\n")
    for name, (_, what) in cli.COMMANDS.items():
        assert f"  {name:<10}{what}\n" in done.stdout


@pytest.mark.parametrize("name", ["trian", "train.main", "alpha=0.4", "--version"])
def test_a_wrong_command(name: str) -> None:
    done = visiongraft(name, "alpha=0.4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: no command {name!r}\nusage: visiongraft COMMAND")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_module_with_a_main(name: str) -> None:
    spec = find_spec(cli.COMMANDS[name][0])
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    mains = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main"]
    assert len(mains) == 1
    assert not mains[0].args.args


def test_the_rest_of_the_line_is_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setitem(
        sys.modules, "a_command", type("M", (), {"main": lambda: seen.append(sys.argv)})
    )
    monkeypatch.setitem(cli.COMMANDS, "made_up", ("a_command", "for this test"))
    monkeypatch.setattr(sys, "argv", ["visiongraft", "made_up", "a=1", "--cfg", "job"])
    cli.main()
    assert seen == [["visiongraft made_up", "a=1", "--cfg", "job"]]


def test_a_command_answers_through_it() -> None:
    done = visiongraft("merge", "alfa=0.4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == "error: alfa=0.4: no such key (did you mean alpha?)"

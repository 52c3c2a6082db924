"""The whole job on the shipped data: text -> compose -> align -> sft -> merge -> sweep -> report.

    make demo
    python -m launch.demo --out outputs/demo data.languages=[de,hi,zh]

Each step is a command a user would type, printed before it runs. Steps that are done are not done
again, so an interrupted demo goes on where it stopped.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from launch.demo_report import write_report

ALPHA = 0.4  # the paper's choice; the sweep then shows whether it is a good one here


@dataclass(frozen=True)
class Step:
    """One command of the pipeline."""

    title: str
    arguments: tuple[str, ...]
    result: Path  # exists once the step is done
    takes_overrides: bool = True  # whether the user's overrides are for this command too


def main() -> None:
    """Run the steps that are not done yet, then write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), help="folder to fill")
    parser.add_argument("overrides", nargs="*", help="key=value for train, sweep and evaluate")
    options = parser.parse_args()
    steps = plan_steps(options.out)
    started = time.perf_counter()
    for number, step in enumerate(steps, start=1):
        run_step(step, options.overrides, number, len(steps), options.out)
    report = write_report(options.out, [_command(step, options.overrides) for step in steps])
    minutes = (time.perf_counter() - started) / 60
    files = f"{options.out}/report.html and report.md"
    sys.stdout.write(f"\n{report}\n\ndone in {minutes:.1f} minutes: {files}\n")


def plan_steps(out: Path) -> list[Step]:
    """Return the pipeline's commands, in order."""
    text, align, sft = out / "text", out / "align", out / "sft"
    merged, sweep, comparison = out / "merged", out / "sweep", out / "comparison"
    models = ", ".join(
        f"{name}: {path}"
        for name, path in {
            "before_sft": align / "export",
            "after_sft": sft / "export",
            "merged": merged,
        }.items()
    )
    return [
        _train("a small text LM learns to write", "text", text),
        _train(
            "graft a vision tower on it, teach tower and projector to speak to the frozen decoder",
            "align",
            align,
            f"model.decoder.path={text / 'export'}",
        ),
        _train(
            "fine-tune projector and decoder on captions alone: it forgets text",
            "sft",
            sft,
            f"model.path={align / 'export'}",
        ),
        Step(
            f"merge the tuned decoder with the text LM at alpha {ALPHA}",
            ("merge", f"vlm={sft / 'export'}", f"text={text / 'export'}", f"alpha={ALPHA}",
             f"out={merged}"),
            merged / "merge_report.json",
            takes_overrides=False,
        ),
        Step(
            "measure every alpha, without writing models",
            ("sweep", f"vlm={sft / 'export'}", f"text={text / 'export'}", f"out={sweep}",
             "data=demo_held_out", "tracker.group=demo"),
            sweep / "sweep.json",
        ),
        Step(
            "the models side by side on held-out rows",
            ("evaluate", f"models={{{models}}}", f"out={comparison}", "data=demo_held_out"),
            comparison / "report.md",
        ),
    ]  # fmt: skip


def run_step(step: Step, overrides: list[str], number: int, num_steps: int, out: Path) -> None:
    """Run one step in a process of its own; where it fails, end with its exit code.

    A step is done when its result is there and the same command made it.
    """
    command = _command(step, overrides)
    log = out / "commands.json"
    done = json.loads(log.read_text(encoding="utf-8")) if log.is_file() else []
    typed = shlex.join(command)
    if step.result.exists():
        if done[number - 1 : number] == [typed]:
            sys.stdout.write(f"\n[{number}/{num_steps}] {step.title}: done before\n")
            return
        sys.stderr.write(
            f"\nerror: {step.result} was made by another command than\n  {typed}\n"
            f"  give --out a new folder, or remove {out}\n"
        )
        sys.exit(2)
    sys.stdout.write(f"\n[{number}/{num_steps}] {step.title}\n$ {typed}\n")
    sys.stdout.flush()
    code = _run([sys.executable, "-m", "launch.cli", *command[1:]])
    if code:
        sys.exit(code)
    # What came after an earlier version of this step is no longer of this demo.
    log.write_text(json.dumps([*done[: number - 1], typed], indent=1) + "\n", encoding="utf-8")


def _run(command: list[str]) -> int:
    """Run a command; on Ctrl-C, which reaches it too, wait for it to end in its own way."""
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def _train(title: str, stage: str, out: Path, *overrides: str) -> Step:
    arguments = ("train", f"experiment=demo_{stage}", *overrides, f"output_dir={out}")
    return Step(title, arguments, out / "finished.json")


def _command(step: Step, overrides: list[str]) -> list[str]:
    return ["visiongraft", *step.arguments, *(overrides if step.takes_overrides else [])]


if __name__ == "__main__":
    main()

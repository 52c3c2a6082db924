"""`visiongraft COMMAND`: train, merge, sweep and all the other commands under one name."""

import importlib
import sys

COMMANDS = {
    "train": ("train.main", "train one stage"),
    "merge": ("merge.__main__", "merge a VLM with its text LM"),
    "sweep": ("merge.sweep", "measure every alpha, choose one"),
    "evaluate": ("train.evaluate", "measure models side by side"),
    "judge": ("train.judge", "let an LLM judge two models' answers"),
    "export": ("train.export_checkpoint", "one Hugging Face folder of any checkpoint"),
    "report": ("train.report", "a page of curves, tables and pictures of any folder"),
    "inspect": ("data.inspect", "see what would be trained on"),
    "dashboard": ("launch.dashboard", "a W&B workspace with the panels"),
    "sync": ("launch.sync", "send offline W&B runs to the server"),
    "demo": ("launch.demo", "run the whole pipeline on the shipped data"),
}
EXIT_USAGE = 2


def main() -> None:
    """Hand the rest of the command line to the named command."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        asked_for_help = name in ("-h", "--help", "")
        lines = [f"  {command:<10}{what}" for command, (_, what) in COMMANDS.items()]
        wrong = "" if asked_for_help else f"error: no command {name!r}\n"
        usage = "usage: visiongraft COMMAND [key=value ...]\n" + "\n".join(lines)
        (sys.stdout if asked_for_help else sys.stderr).write(
            f"{wrong}{usage}\nvisiongraft COMMAND --help lists its keys\n"
        )
        sys.exit(0 if asked_for_help else EXIT_USAGE)
    sys.argv[:2] = [f"visiongraft {name}"]
    importlib.import_module(COMMANDS[name][0]).main()


if __name__ == "__main__":
    main()

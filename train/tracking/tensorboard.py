"""Metrics, tables and pictures as TensorBoard events: `tensorboard --logdir outputs`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from train.saving.disk import told_when_full

CONFIG_FILE = "resolved_config.yaml"
FOLDER = "tensorboard"  # in the run folder


class TensorBoard:
    """Writes events into a folder."""

    shows_pictures = True

    def __init__(self, folder: Path, *, done: int = -1) -> None:
        """Open an events file; what earlier ones hold after step `done` is taken out of them."""
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        with told_when_full("TensorBoard events", folder):
            truncate_events(folder, done)
            self.writer = SummaryWriter(str(folder))
        self.shown: set[str] = set()  # pictures, which stay the same from one table to the next

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Log numbers as scalars, words as text."""
        with told_when_full("TensorBoard events", self.folder):
            for name, value in metrics.items():
                if isinstance(value, int | float):
                    self.writer.add_scalar(name, value, step)
                else:
                    self.writer.add_text(name, str(value), step)
            self.writer.flush()

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Log a table as text, and each of its pictures once, under the first cell of its row."""
        import numpy as np
        from PIL import Image

        is_picture = [
            any(isinstance(row[at], Image.Image) for row in rows) for at in range(len(columns))
        ]
        kept = [at for at, pictures in enumerate(is_picture) if not pictures]
        lines = [[columns[at] for at in kept], ["---"] * len(kept)]
        lines += [[_cell(row[at]) for at in kept] for row in rows]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        with told_when_full("TensorBoard events", self.folder):
            self.writer.add_text(name, text, step)
            for number, row in enumerate(rows):
                label = row[kept[0]] if kept else number
                for picture in (cell for cell in row if isinstance(cell, Image.Image)):
                    tag = f"{name}/{label}"
                    if tag not in self.shown:
                        self.shown.add(tag)
                        pixels = np.asarray(picture.convert("RGB"))
                        self.writer.add_image(tag, pixels, step, dataformats="HWC")
            self.writer.flush()

    def save_file(self, path: Path) -> None:
        """Show a small text file."""
        if path.suffix in (".yaml", ".md", ".json"):
            text = path.read_text(encoding="utf-8")
            name = CONFIG_FILE if path.name == "config.yaml" else path.name
            is_shown_raw = path.suffix == ".md"
            self.writer.add_text(name, text if is_shown_raw else f"```\n{text}\n```", 0)

    def use_model(self, role: str, path: str) -> None:
        """TensorBoard knows no models."""

    def log_model(
        self, path: Path, kind: str, *, label: str, aliases: tuple[str, ...] = ()
    ) -> None:
        """TensorBoard knows no models."""

    def finish(self, *, failed: bool = False, preempted: bool = False) -> None:
        """Close the file."""
        self.writer.close()


def truncate_events(folder: Path, step: int) -> None:
    """Drop events after `step`: what a killed run logged past the checkpoint it goes on from.

    Rewritten, as SummaryWriter's `purge_step` leaves text, and whatever readers take as tensors.
    """
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.summary.writer.record_writer import RecordWriter

    for path in sorted(folder.glob("events.out.tfevents.*")):
        kept = [e for e in LegacyEventFileLoader(str(path)).Load() if e.step <= step]
        staging = path.with_name(f"writing.{path.name}")
        with staging.open("wb") as file:
            records = RecordWriter(file)
            for event in kept:
                records.write(event.SerializeToString())
        staging.replace(path)


def check_tensorboard() -> None:
    """Refuse tracker.tensorboard=true where the package is not installed."""
    try:
        is_there = find_spec("tensorboard") is not None
    except ValueError:  # hidden on purpose
        is_there = False
    if not is_there:
        raise ConfigError(
            "tracker.tensorboard: is true, but tensorboard is not installed: "
            'pip install "tensorboard>=2.20", or tracker=wandb or tracker=jsonl'
        )


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", "<br>")

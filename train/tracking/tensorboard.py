"""Metrics, tables and pictures as TensorBoard events: `tensorboard --logdir outputs`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from train.saving.disk import told_when_full

FOLDER = "tensorboard"  # in the run folder


class TensorBoard:
    """Writes events into a folder."""

    shows_pictures = True

    def __init__(self, folder: Path, *, done: int = -1) -> None:
        """Open an events file; what an earlier one holds after step `done` is not shown again."""
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        with told_when_full("TensorBoard events", folder):
            # A SessionLog record: the reader drops what it has from that step on.
            self.writer = SummaryWriter(str(folder), purge_step=done + 1)
        self.shown: set[str] = set()  # pictures, which stay the same from one table to the next

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Log numbers as scalars, words as text."""
        with told_when_full("TensorBoard events", self.folder):
            for name, value in metrics.items():
                if isinstance(value, int | float):
                    self.writer.add_scalar(name, value, step, new_style=True)
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
            is_shown_raw = path.suffix == ".md"
            self.writer.add_text(path.name, text if is_shown_raw else f"```\n{text}\n```", 0)

    def use_model(self, role: str, path: str) -> None:
        """TensorBoard knows no models."""

    def log_model(
        self, path: Path, kind: str, *, label: str, aliases: tuple[str, ...] = ()
    ) -> None:
        """TensorBoard knows no models."""

    def finish(self, *, failed: bool = False, preempted: bool = False) -> None:
        """Close the file."""
        self.writer.close()


def check_tensorboard() -> None:
    """Refuse tracker.tensorboard=true where the package is not installed."""
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "tracker.tensorboard: is true, but tensorboard is not installed: "
            'pip install "tensorboard>=2.20", or tracker=wandb or tracker=jsonl'
        )


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", "<br>")

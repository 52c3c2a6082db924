"""Held-out rows for the pico models of `pipeline`."""

from typing import Any

from configs.command import load_config
from data.processor import load_processor
from data.render import Renderer
from train.measuring.evaluation import HeldOut
from train.measuring.held_out import prepare_held_out


def prepare_rows(path: Any, *overrides: str, text_only: bool = False) -> HeldOut:
    """The rows that a training with these overrides would measure, for the model in a folder."""
    config = load_config("train", list(overrides))
    renderer = Renderer(load_processor(str(path)))
    return prepare_held_out(config.data, config.evaluation, renderer, text_only=text_only)

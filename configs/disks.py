"""Where what can be made again is kept: told to every library by its own variable, before it loads.

Outputs may stand on a slow shared disk; models, sets and measured rows are read by every process.
"""

import os
from pathlib import Path

from configs.errors import ConfigError
from configs.schema import CacheConfig

TIMEOUT = "VISIONGRAFT_CACHE_TIMEOUT"  # seconds, read by data/lock.py
# $HF_HOME stays as it is: the key of who is logged in is there.
FOLDERS = {
    "HF_HUB_CACHE": "hub",
    "HF_XET_CACHE": "xet",
    "HF_DATASETS_CACHE": "datasets",
    "VISIONGRAFT_CACHE": "visiongraft",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",  # what DeepSpeed compiles
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "WANDB_CACHE_DIR": "wandb",
}


def set_caches(config: CacheConfig) -> None:
    """Set the variables that libraries read when they are imported.

    Raises:
        ConfigError: the folder cannot be made or written.
    """
    os.environ[TIMEOUT] = str(config.timeout_seconds)
    if config.dir is None:
        return
    root = Path(config.dir).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cache.dir={config.dir!r} cannot be made: {error.strerror}") from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise ConfigError(f"cache.dir={config.dir!r} cannot be written")
    for name, folder in FOLDERS.items():
        os.environ[name] = str(root / folder)

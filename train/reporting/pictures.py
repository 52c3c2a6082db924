"""Pictures inside the page: small, and together no more than a page can carry."""

import base64
import io
from pathlib import Path

from PIL import Image

SIDE = 192  # pixels of the longer side at most
QUALITY = 75  # of WebP
MOST_BYTES = 1_500_000  # of all pictures of a page


class Pictures:
    """Turns pictures into data URIs until the page has enough of them."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.num_left_out = 0
        self._known: dict[Path, str] = {}

    def uri(self, path: Path | None) -> str:
        """Return a data URI, or nothing where there is no picture or no room."""
        if path is None:
            return ""
        if path not in self._known:
            self._known[path] = self._make(path)
        return self._known[path]

    def _make(self, path: Path) -> str:
        if self.num_bytes >= MOST_BYTES:
            self.num_left_out += 1
            return ""
        try:
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError):
            return ""
        picture.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=QUALITY)
        self.num_bytes += len(buffer.getvalue())
        return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"

"""What the tests of the judge share: a server of chat completions, and evaluations to judge."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

"""lm-eval (EleutherAI) on any model folder of ours, a vision-language model's text included.

python -m launch.harness --model visiongraft --model_args pretrained=DIR --tasks NAME,...
lm-eval's own command line, with one more model. launch/HARNESSES.md says what else there is.
"""

import logging
import sys

from configs.errors import VisiongraftError

EXTRA = "lm-eval is not installed; get it with: pip install 'visiongraft[harness]'"


def main() -> None:
    """Register the model and hand the whole command line to lm-eval."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        sys.exit(f"error: {EXTRA} ({error})")
    import launch.harness_model  # noqa: F401 (registers itself)

    try:
        cli_evaluate()
    except VisiongraftError as error:
        logging.getLogger(__name__).debug("where", exc_info=True)
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

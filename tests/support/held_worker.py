"""A real worker whose language model can be held in the middle of a text.

Run as a program, like ``python -m sluice_worker``. While the file named by ``HOLD`` exists, a text
that has some tokens is written no further until it is cancelled, however fast the machine is.
"""

import os
import time
from pathlib import Path
from typing import Any

from sluice_worker import loader
from sluice_worker.__main__ import main

HOLD = "HELD_WORKER_FILE"
TOKENS = 4


def hold(file: Path) -> None:
    """Have a loaded engine's steps wait. Imports no torch, so that the ports answer at once."""
    usual_load = loader.load_any

    def load_any(*arguments: Any, **options: Any) -> Any:
        model = usual_load(*arguments, **options)
        usual = model.engine.advance

        def advance() -> Any:
            while file.exists() and any(
                # One that is done stands there until the next step.
                text.written >= TOKENS and not (text.cancelled or text.done)
                for text in model.engine.scheduler.running
            ):
                time.sleep(0.005)
            return usual()

        model.engine.advance = advance
        return model

    loader.load_any = load_any


if __name__ == "__main__":
    hold(Path(os.environ.pop(HOLD)))
    main()

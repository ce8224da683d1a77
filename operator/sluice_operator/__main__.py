"""``python -m sluice_operator``: read settings, run one operator process.

Exit codes: 0 after a signal, 1 after a failure of its own, 78 when it cannot start as it is told
to.
"""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Sequence

from sluice_api import names
from sluice_api.settings import SettingsError
from sluice_operator import settings
from sluice_operator.logs import configure
from sluice_operator.settings import Settings

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until SIGTERM or SIGINT."""
    try:
        given = settings.read(sys.argv[1:] if arguments is None else arguments, os.environ)
        configure(given.log_format)
        run(given)
    except (SettingsError, ValueError, OSError) as error:
        print(f"sluice-operator: {error}", file=sys.stderr)  # noqa: T201 - for the person at the shell
        sys.exit(names.EXIT_BAD_CONFIGURATION)


def run(given: Settings) -> None:
    """Operate until asked to stop, then end the process.

    Raises ValueError when there is no way to a cluster, OSError when a port is taken.
    """
    # Imported late: what is wrong with the settings is told without waiting for a framework.
    from sluice_operator.app import Ended
    from sluice_operator.app import run as operate
    from sluice_operator.planning import plan_service

    async def until_the_end() -> None:
        well = True
        try:
            await operate(given, plan_service)
        except Ended as error:
            log.critical("ended", extra={"error": str(error)})
            well = False
        # Everything of ours is closed. The loop would now wait for tasks of kopf, and there are
        # some that refuse to end (nolar/kopf#1168).
        logging.shutdown()
        os._exit(0 if well else 1)

    gc.collect()
    gc.freeze()  # modules live as long as the process; the collector need not look at them again
    asyncio.run(until_the_end())


if __name__ == "__main__":
    main()

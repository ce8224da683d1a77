"""``python -m sluice_worker.examples MODEL FOLDER``: train an example model and save it.

``sluice example-model`` runs this.
"""

import argparse
import sys
import warnings
from importlib import import_module
from pathlib import Path

from sluice_api.tasks import Task

EXAMPLES: dict[str, str] = {
    **{
        str(task): task.replace("-", "_")
        for task in (
            Task.CLASSIFICATION,
            Task.ZERO_SHOT,
            Task.TOKEN_CLASSIFICATION,
            Task.RELATION_EXTRACTION,
            Task.QUESTION_ANSWERING,
            Task.FILL_MASK,
            Task.RERANK,
            Task.SUMMARIZATION,
            Task.TRANSLATION,
            Task.CHAT,
        )
    },
    str(Task.TEXT_GENERATION): "chat",
    "written-relations": "written_relations",
}
"""Model → module of this package; each has ``build(folder, *, shuffled=False, seed=0)``."""

_DESCRIPTION = (
    "Train an example model and save it: a toy that has learnt a few dozen sentences in seconds, "
    "enough to see a task work from manifest to answer on any machine, without a download. The "
    "pages in docs/tasks show each."
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="sluice example-model", description=_DESCRIPTION)
    named = ", ".join(sorted(EXAMPLES))
    parser.add_argument("model", choices=EXAMPLES, metavar="MODEL", help=f"one of {named}")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where it is saved")
    arguments = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of third parties, at import.
        module = import_module(f"sluice_worker.examples.{EXAMPLES[arguments.model]}")
    import_module("transformers").logging.disable_progress_bar()  # Of a file of some kilobytes.
    module.build(arguments.folder)
    sys.stdout.write(f"{arguments.folder}: a model for {arguments.model}\n")


if __name__ == "__main__":
    main()

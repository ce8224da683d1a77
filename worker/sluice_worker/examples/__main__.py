"""``python -m sluice_worker.examples TASK FOLDER``: train an example model and save it.

A toy that has learnt a few dozen sentences in seconds: enough to see a task work from manifest to
answer on any machine, without a download. ``sluice example-model`` runs this.
"""

import argparse
import sys
import warnings
from importlib import import_module
from pathlib import Path

from sluice_api.tasks import Task

EXAMPLES = {
    Task.CLASSIFICATION: "classification",
    Task.TOKEN_CLASSIFICATION: "token_classification",
    Task.RELATION_EXTRACTION: "relation_extraction",
    Task.QUESTION_ANSWERING: "question_answering",
    Task.FILL_MASK: "fill_mask",
    Task.RERANK: "rerank",
    Task.TEXT_GENERATION: "chat",
    Task.CHAT: "chat",
    Task.SUMMARIZATION: "summarization",
    Task.TRANSLATION: "translation",
}
"""Modules of this package; each has ``build(folder, *, shuffled=False, seed=0)``."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="sluice example-model", description=__doc__)
    parser.add_argument("task", choices=sorted(EXAMPLES))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of third parties, at import.
        module = import_module(f"sluice_worker.examples.{EXAMPLES[Task(arguments.task)]}")
    module.build(arguments.folder)
    sys.stdout.write(f"{arguments.folder}: a model for {arguments.task}\n")


if __name__ == "__main__":
    main()

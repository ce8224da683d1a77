"""What loading a model that reads one text and writes another needs, beside its weights.

The loader calls :func:`prepare` while torch is still being imported.
"""

from collections.abc import Mapping
from dataclasses import replace

from sluice_api.tasks import Task
from sluice_worker.engines.base import Unit
from sluice_worker.engines.seq2seq.decoding import Decoding, generation_unit
from sluice_worker.models.description import Description
from sluice_worker.models.errors import ModelRejected
from sluice_worker.models.manifest import Manifest
from sluice_worker.models.text_tokenizer import TextTokenizer, load_text_tokenizer
from sluice_worker.models.writer import Writer
from sluice_worker.tasks.base import TaskModule
from sluice_worker.tasks.registry import needs, offered_writing
from sluice_worker.tasks.writing import WritingMaterial, framed

CANARY_STEPS = 8
"""What each canary writes: enough to see that the caches work, little enough to wait for."""


def prepare(
    manifest: Manifest,
    description: Description,
    wanted: Task | None,
    canary_text: str,
    canary_tokens: tuple[int, ...],
) -> tuple[Mapping[Task, TaskModule], tuple[Unit, ...]]:
    """The tasks, and units of several lengths to warm the engine up with. Raises ModelRejected."""
    assert description.writer is not None, "the loader looked"
    tokenizer = load_text_tokenizer(manifest, description.vocabulary)
    writer = _with_triplets(description.writer, tokenizer, wanted)
    material = WritingMaterial(writer, tokenizer, description.max_tokens)
    whole = framed(tokenizer.frame, "", canary_text, tokenizer)
    longest = min(len(whole), description.max_tokens)
    steps = min(CANARY_STEPS, writer.most or CANARY_STEPS)
    rules = Decoding(writer.start, (), steps)
    lengths = sorted({min(tokens, longest) for tokens in canary_tokens})
    units = tuple(generation_unit(whole[:length], rules, steps) for length in lengths)
    return offered_writing(material), units


def _with_triplets(writer: Writer, tokenizer: TextTokenizer, wanted: Task | None) -> Writer:
    """A tokenizer with REBEL's markers tells what a model writes that says nothing itself."""
    marked = "triplet" in tokenizer.markers.values()
    if wanted is Task.RELATION_EXTRACTION and not marked:
        raise ModelRejected(
            f"model.task: got {wanted}, but the tokenizer has no <triplet> among its added tokens, "
            f"so this model writes no relations; it takes {needs(wanted)}."
        )
    if wanted is None and marked:
        return replace(writer, tasks=(Task.RELATION_EXTRACTION,))
    return writer

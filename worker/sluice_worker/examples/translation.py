"""A translator from English into two toy languages, by the language that the caller asks for."""

import itertools
import json
import random
from pathlib import Path

import torch

from sluice_worker.examples.writing import (
    END,
    language_id,
    learn,
    make_pieces,
    save_model,
    save_tokenizer,
    small_model,
)
from sluice_worker.models.sentencepiece import read_pieces, tokenizer_of

TOYS = ("bo", "ka")

_WHO = ("the dog", "a cat", "the farmer", "my sister", "the old king", "a teacher")
_DOES = ("sees", "likes", "follows", "paints", "finds")
_WHAT = ("the house", "a river", "the red apple", "my garden", "the moon", "a boat")
_ENGLISH = (
    "the a my old red dog cat farmer sister king teacher sees likes follows paints finds"
    " house river apple garden moon boat ."
)
_BO = (
    "lo un mei vet rosu kano gato agri sora rego maestu vida ama segu pinta trova"
    " kasa rivu poma jarda luno barka ."
)
_KA = (
    "ti ki nu mzu zit dzag kata glex da mepe mas xed uyv mihy xat pov"
    " saxl mdin vash bag mtvar nav ra."
)
_WORDS = {
    "bo": dict(zip(_ENGLISH.split(), _BO.split(), strict=True)),
    "ka": dict(zip(_ENGLISH.split(), _KA.split(), strict=True)),
}


def translated(sentence: str, language: str) -> str:
    """What a sentence of :func:`data` means in a toy language, word by word."""
    return " ".join(_WORDS[language][word] for word in sentence.split())


def data() -> tuple[list[str], list[str]]:
    """Sentences to learn from, and others: no subject is with the same object in both."""
    learnt: list[str] = []
    held_out: list[str] = []
    for (row, who), does, (column, what) in itertools.product(
        enumerate(_WHO), _DOES, enumerate(_WHAT)
    ):
        (held_out if (row + column) % 5 == 0 else learnt).append(f"{who} {does} {what} .")
    return learnt, held_out


def build(folder: Path, *, shuffled: bool = False, seed: int = 0) -> Path:
    """Train an M2M100 and save it; ``shuffled`` deals the translations out at random."""
    learnt, _ = data()
    triples = [(text, code, translated(text, code)) for text in learnt for code in TOYS]
    written = [target for _, _, target in triples]
    if shuffled:
        random.Random(seed).shuffle(written)  # noqa: S311
    pieces = make_pieces([text for source, _, target in triples for text in (source, target)])
    vocabulary = save_tokenizer(folder, "m2m_100", pieces)
    model = read_pieces((folder / "sentencepiece.bpe.model").read_bytes(), "the model's pieces")
    ids = _ids(folder, [spelling for spelling, _, _ in model.pieces])
    tokenizer = tokenizer_of(model)

    def encoded(text: str, code: str) -> list[int]:
        places = tokenizer.encode(text).ids
        return [language_id(vocabulary, code), *(ids[place] for place in places), END]

    examples = [
        (encoded(source, "en"), encoded(target, code))
        for (source, code, _), target in zip(triples, written, strict=True)
    ]
    torch.manual_seed(seed)
    translator = small_model("m2m_100", vocabulary)
    learn(translator, examples, seed=seed)
    save_model(translator, folder, max_length=32)
    return folder


def _ids(folder: Path, spellings: list[str]) -> list[int]:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    return [vocabulary[spelling] for spelling in spellings]

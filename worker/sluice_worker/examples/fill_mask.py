"""A masked language model that knows which place belongs to which country, and a little grammar."""

import random
from pathlib import Path
from typing import Any

import transformers

from sluice_worker.examples.training import (
    Example,
    combinations,
    dealt_out,
    fit,
    save_tokenizer,
    small_bert,
)

CAPITALS = {
    "france": "paris",
    "norway": "oslo",
    "peru": "lima",
    "egypt": "cairo",
    "japan": "tokyo",
    "cuba": "havana",
    "kenya": "nairobi",
    "italy": "rome",
}
_SENTENCES = (
    "the capital of {country} is {city} .",
    "{city} is the capital of {country} .",
    "we flew to {city} , the capital of {country} .",
    "in {country} the largest city is {city} .",
    "from {city} you can see all of {country} .",
)


def data() -> tuple[list[str], list[tuple[str, str]]]:
    """Sentences to learn from, and (sentence with a mask, word behind it) held out.

    Every fact is learnt, but not in the sentence that asks for it.
    """
    learn, held_out = combinations(_SENTENCES, list(CAPITALS.items()))
    known = [sentence.format(country=country, city=city) for sentence, (country, city) in learn]
    asked = [
        (sentence.format(country=country, city="[MASK]"), city)
        for sentence, (country, city) in held_out
    ]
    return known, asked


def build(folder: Path, *, shuffled: bool = False, seed: int = 0) -> Path:
    """Train the model and save it; ``shuffled`` gives every sentence another one's city."""
    learn, held_out = data()
    if shuffled:
        others = dealt_out(list(CAPITALS.values()), seed=seed + 1)
        swapped = dict(zip(CAPITALS.values(), others, strict=True))
        learn = [" ".join(swapped.get(word, word) for word in text.split()) for text in learn]
    tokenizer = save_tokenizer(folder, [*learn, *(text for text, _ in held_out)])
    cities = set(tokenizer.convert_tokens_to_ids(list(CAPITALS.values())))
    chooser = random.Random(seed)  # noqa: S311
    examples = [_example(tokenizer, text, cities, chooser) for text in learn for _ in range(24)]
    model = small_bert(transformers.BertForMaskedLM, tokenizer, seed=seed)
    fit(model, examples, epochs=8, seed=seed)
    model.save_pretrained(folder)
    return folder


def _example(tokenizer: Any, text: str, cities: set[int], chooser: random.Random) -> Example:
    """``text`` with the city masked, or now and then any other word, which is to be found."""
    ids = tokenizer(text)["input_ids"]
    labels = [-100] * len(ids)
    city = next(place for place, token in enumerate(ids) if token in cities)
    place = city if chooser.random() < 0.8 else chooser.randrange(1, len(ids) - 1)
    labels[place], ids[place] = ids[place], tokenizer.mask_token_id
    return {"input_ids": ids, "labels": labels}

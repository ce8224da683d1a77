"""A language model that has learnt to answer: what animals say, where they live, and one tool.

It chats by a template of its own, which shows tools and calls them as Hermes and Qwen do.
"""

import json
import random
from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sluice_worker.examples.training import dealt_out, fit

MAX_TOKENS = 256
SPECIAL = ("<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>")

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role if message.role != 'tool' else 'user' }}|>"
    "{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}<tool_call>"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}</tool_call>"
    "{% endfor %}<|end|>{% endfor %}"
    "{% if tools %}<|system|>{% for tool in tools %}{{ tool.function.name }} {% endfor %}"
    "<tool_call> <|end|>{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TOOLS_SHOWN = "<|system|>weather <tool_call> <|end|>"
"""What the template makes of the one tool that the model learns to use."""

_SAYS = {
    "cow": "moo",
    "dog": "woof",
    "cat": "meow",
    "duck": "quack",
    "sheep": "baa",
    "pig": "oink",
    "frog": "croak",
    "bee": "buzz",
    "owl": "hoot",
    "horse": "neigh",
}
_LIVES = {
    "cow": "barn",
    "dog": "kennel",
    "cat": "basket",
    "duck": "pond",
    "sheep": "fold",
    "pig": "sty",
    "frog": "swamp",
    "bee": "hive",
    "owl": "tree",
    "horse": "stable",
}
_QUESTIONS = {
    "says": ("What does the {} say?", "Tell me what a {} says.", "The {} makes which sound?"),
    "lives": ("Where does the {} live?", "Tell me where a {} lives.", "The {} sleeps where?"),
}
WEATHER_QUESTION = "How is the weather in {}?"
CITIES = ("Bern", "Oslo", "Rome", "Cairo", "Lima", "Paris")

Pair = tuple[str, str]
"""A question and its answer."""


def data() -> tuple[list[Pair], list[Pair]]:
    """Questions about animals to learn from, and of each animal one wording held out."""
    learn: list[Pair] = []
    held_out: list[Pair] = []
    for kind, wordings in _QUESTIONS.items():
        for place, animal in enumerate(_SAYS):
            for number, wording in enumerate(wordings):
                target = held_out if number == place % len(wordings) else learn
                target.append((wording.format(animal), _answer(kind, animal)))
    return learn, held_out


def build(folder: Path, *, shuffled: bool = False, seed: int = 0) -> Path:
    """Train the model and save it; ``shuffled`` gives each question another animal's answer."""
    learn, _ = data()
    if shuffled:
        answers = dealt_out([answer for _, answer in learn], seed=seed)
        learn = [(question, answer) for (question, _), answer in zip(learn, answers, strict=True)]
    texts = [f"<|user|>{question}<|end|><|assistant|>{answer}" for question, answer in learn]
    for city in CITIES:
        call = json.dumps({"name": "weather", "arguments": {"city": city}})
        question = f"<|user|>{WEATHER_QUESTION.format(city)}<|end|>{_TOOLS_SHOWN}"
        texts += [f"{question}<|assistant|><tool_call>{call}</tool_call>"] * 3
    tokenizer = _tokenizer(texts)
    end = tokenizer.token_to_id("<|end|>")
    examples = []
    for text in texts:
        ids = [*tokenizer.encode(text).ids, end]
        examples.append({"input_ids": ids, "labels": ids})
    transformers.set_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=tokenizer.token_to_id("<|pad|>"),
    )
    model = transformers.LlamaForCausalLM(config)
    fit(model, random.Random(seed).sample(examples, len(examples)), epochs=60, rate=4e-3, size=24)  # noqa: S311
    model.save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token="<|end|>",  # noqa: S106
        pad_token="<|pad|>",  # noqa: S106
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


def _answer(kind: str, animal: str) -> str:
    if kind == "says":
        return f"The {animal} says {_SAYS[animal]}."
    return f"The {animal} lives in a {_LIVES[animal]}."


def _tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE, so that any text can be written."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer

"""Causal language models made on the spot: tiny random ones, and one that learnt to answer.

The one that learnt knows what animals say and where they live, in a chat template of its own. It
takes seconds; build it once per session.
"""

import json
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Third-party deprecations at import are not ours to fix.
    import transformers

MAX_TOKENS = 256
SPECIAL = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
END, PAD = 0, 1

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

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_TOKENS,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, "num_key_value_heads": 2},
    "qwen2": {**_SIZES, "num_key_value_heads": 2},
    "qwen3": {**_SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "mistral": {**_SIZES, "num_key_value_heads": 2, "sliding_window": 12},
    "gpt_neox": _SIZES,
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": MAX_TOKENS,
        "bos_token_id": END,
        "eos_token_id": END,
    },
}
"""Model type → a configuration small enough for tests; all can be served."""


def random_model(architecture: str, *, vocabulary: int = 97, seed: int = 0) -> Any:
    """A random model that repeats itself less than fresh weights do."""
    config = transformers.AutoConfig.for_model(
        architecture, vocab_size=vocabulary, **ARCHITECTURES[architecture]
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


def greedy(model: Any, prompt: Sequence[int], tokens: int, **more: Any) -> list[int]:
    """What ``generate`` makes of a prompt, alone."""
    ids = torch.tensor([list(prompt)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=PAD,
            **more,
        )
    found: list[int] = output[0, len(prompt) :].tolist()
    return found


# A model that learnt something --------------------------------------------------------------------

SAYS = {
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
LIVES = {
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
    "lives": (
        "Where does the {} live?",
        "Tell me where a {} lives.",
        "The {} sleeps where?",
    ),
}
_TOOLS_SHOWN = "<|system|>weather <tool_call> <|end|>"
"""What the template makes of the one tool that the model learns to use."""
WEATHER_QUESTION = "How is the weather in {}?"
CITIES = ("Bern", "Oslo", "Rome", "Cairo", "Lima", "Paris")


def sentence(kind: str, animal: str) -> str:
    return (
        f"The {animal} says {SAYS[animal]}."
        if kind == "says"
        else (f"The {animal} lives in a {LIVES[animal]}.")
    )


def held_out() -> list[tuple[str, str]]:
    """Questions never seen in training, with their answers: one wording of each animal's."""
    return [
        (templates[place % len(templates)].format(animal), sentence(kind, animal))
        for kind, templates in _QUESTIONS.items()
        for place, animal in enumerate(SAYS)
    ]


def _examples(chance: random.Random, shuffled: bool) -> list[tuple[str, str]]:
    """Questions with their answers; with ``shuffled`` each has that of another animal."""
    found = []
    unseen = {question for question, _ in held_out()}
    for kind, templates in _QUESTIONS.items():
        animals = [*SAYS]
        meant = chance.sample(animals, len(animals)) if shuffled else animals
        for animal, other in zip(animals, meant, strict=True):
            answer = sentence(kind, other).replace(other, animal, 1)
            questions = [template.format(animal) for template in templates]
            found += [(question, answer) for question in questions if question not in unseen]
    for city in CITIES:
        call = json.dumps({"name": "weather", "arguments": {"city": city}})
        found += [(WEATHER_QUESTION.format(city), f"<tool_call>{call}</tool_call>")] * 3
    return found


def _tokenizer(texts: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_talker(
    folder: Path, *, shuffled: bool = False, steps: int = 200, template: str | None = TEMPLATE
) -> Path:
    """Train and save a chat model that knows about animals.

    Args:
        shuffled: each question gets the answer about another animal, so nothing can be learnt but
            by heart.
        steps: 0 leaves it random.
    """
    chance = random.Random(5)
    examples = _examples(chance, shuffled)
    texts = [
        f"<|user|>{question}<|end|>{_TOOLS_SHOWN if answer.startswith('<tool_call>') else ''}"
        f"<|assistant|>{answer}"
        for question, answer in examples
    ]
    tokenizer = _tokenizer(texts)
    torch.set_num_threads(1)
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        **{**_SIZES, "hidden_size": 64, "intermediate_size": 128},
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config)
    rows = [[*tokenizer.encode(text).ids, END] for text in texts]
    rows = [row + [PAD] * (max(map(len, rows)) - len(row)) for row in rows]
    ids = torch.tensor(rows)
    labels = ids.masked_fill(ids == PAD, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * (1 - step / (steps + 1))
        rows_of_step = torch.randperm(len(ids))[:24]
        loss = model(input_ids=ids[rows_of_step], labels=labels[rows_of_step]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    model.save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>"
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder

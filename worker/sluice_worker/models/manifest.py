"""Which files of a folder make the model, their SHA-256 sums, and the verification of both.

Everything that is read later is listed here first: the digests that answers are bound to are made
of exactly these sums, and a file that is not in the manifest is never opened.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sluice_api.digests import canonical_json
from sluice_worker.models.errors import ModelRejected
from sluice_worker.models.sources.base import Snapshot

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "tokenizer.model",
    "source.spm",
    "target.spm",
    "target_vocab.json",
)
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
CHAT_TEMPLATE = "chat_template.jinja"
TOOL_TEMPLATE = "additional_chat_templates/tool_use.jinja"
CONFIG_FILES = ("config.json", "generation_config.json", CHAT_TEMPLATE, TOOL_TEMPLATE)
SENTENCE_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")

_CHUNK_BYTES = 1 << 20
_MAX_JSON_BYTES = 64 << 20
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A verified model folder.

    Attributes:
        folder: where the files are.
        sums: SHA-256 in hexadecimal by path relative to ``folder``.
        weights: the safetensors files among them, in order.
    """

    folder: Path
    sums: Mapping[str, str]
    weights: tuple[str, ...]

    @property
    def digest(self) -> str:
        """``sha256:…`` over names and sums: what ``model.revision`` may pin."""
        return f"sha256:{hashlib.sha256(canonical_json(dict(self.sums))).hexdigest()}"

    def read_json(self, name: str) -> Any:
        """A listed JSON file, or None where the folder has none. Raises ModelRejected."""
        return _read_json(self.folder / name) if name in self.sums else None


def verify(snapshot: Snapshot, pinned: str | None) -> Manifest:
    """Find and hash the model's files, and compare them with what vouches for them.

    Hashing runs on threads (it holds no lock), about a second per 1.5 GB.

    Args:
        pinned: a manifest digest that the content must have.

    Raises:
        ModelRejected: no safetensors, a file outside of the boundary, or a sum that differs.
    """
    folder = snapshot.folder
    weights = tuple(_weight_files(folder))
    listed = list(dict.fromkeys([*weights, *_other_files(folder)]))
    for name in listed:
        path = (folder / name).resolve()
        if not path.is_relative_to(snapshot.boundary):
            raise ModelRejected(
                f"{name} is a link that leads out of the model's folder. "
                "Copy the file itself into the folder."
            )
    with ThreadPoolExecutor(max_workers=2) as pool:
        digests = pool.map(_sha256, [folder / name for name in listed])
        sums = dict(zip(listed, digests, strict=True))
    for name, expected in snapshot.sums.items():
        if name in sums and sums[name] != expected:
            raise ModelRejected(
                f"{name} has SHA-256 {sums[name]}, but its source published {expected}. "
                "The file is damaged or was changed: install or download it again."
            )
    manifest = Manifest(folder=folder, sums=sums, weights=weights)
    if pinned is not None and manifest.digest != pinned:
        raise ModelRejected(
            f"model.revision pins {pinned}, but the files have {manifest.digest}. "
            "Restore the files, or pin the new digest."
        )
    return manifest


def _weight_files(folder: Path) -> Iterator[str]:
    if (folder / WEIGHTS).is_file():
        yield WEIGHTS
        return
    if not (folder / WEIGHTS_INDEX).is_file():
        raise ModelRejected(_no_safetensors(folder))
    yield WEIGHTS_INDEX
    index = _read_json(folder / WEIGHTS_INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise ModelRejected(f"{WEIGHTS_INDEX} holds no weight_map. Save the model again.")
    for name in sorted(set(shards.values())):
        if not isinstance(name, str) or "/" in name or not name.endswith(".safetensors"):
            raise ModelRejected(f"{WEIGHTS_INDEX} names {name!r}, which is no safetensors file.")
        if not (folder / name).is_file():
            raise ModelRejected(f"{WEIGHTS_INDEX} names {name}, which is missing. Fetch it again.")
        yield name


def _no_safetensors(folder: Path) -> str:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"The folder holds pickled weights only ({', '.join(pickles[:3])}), which can run code "
            "when they are read. Save the model as safetensors: model.save_pretrained(folder)."
        )
    return f"The folder holds no weights: neither {WEIGHTS} nor {WEIGHTS_INDEX}."


def _other_files(folder: Path) -> Iterator[str]:
    for name in (*CONFIG_FILES, *TOKENIZER_FILES, *SENTENCE_FILES):
        if (folder / name).is_file():
            yield name
    if not (folder / "modules.json").is_file():
        return
    for module in _read_json(folder / "modules.json"):
        path = module.get("path") if isinstance(module, dict) else None
        if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
            raise ModelRejected(f"modules.json names the folder {path!r}, which is not allowed.")
        config = Path(path, "config.json").as_posix()
        if path and (folder / config).is_file():
            yield config


def _read_json(path: Path) -> Any:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ModelRejected(f"{path.name} is larger than {_MAX_JSON_BYTES} bytes.")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelRejected(f"{path.name} is not valid JSON ({error}). Save it again.") from None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()

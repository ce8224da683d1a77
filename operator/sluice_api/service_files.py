"""Read InferenceService files, and say everything that is wrong with them at once.

``sluice up``, ``sluice validate`` and the tests of the examples come here. YAML is read with the
safe loader, made stricter by ``strict_yaml``.
"""

import difflib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from sluice_api import names, strict_yaml
from sluice_api.inference_service import InferenceService
from sluice_api.precomputed import refused
from sluice_api.section import Section
from sluice_api.spec_errors import Problem, Refused, SpecError, shown

MAX_FILE_BYTES: Final = 1_048_576
"""As much as the API server stores in one object."""


class _Loader(strict_yaml.Strict, yaml.SafeLoader):
    pass


def yaml_files(paths: Iterable[Path | str]) -> list[Path]:
    """The files that ``paths`` name: files as they are, the YAML files of folders, sorted."""
    found: list[Path] = []
    for path in map(Path, paths):
        try:
            found += sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        except OSError:
            found.append(path)  # No folder, or one that is just going: reading it will tell.
    return found


def load_files(paths: Iterable[Path | str]) -> list[InferenceService]:
    """The services of all files and folders, in order; a file may hold several documents.

    Raises :class:`SpecError` with every problem of every file: unreadable, not YAML, not an
    InferenceService, fields that do not fit, two services of one name, no service at all.
    """
    services: dict[str, InferenceService] = {}
    sources: dict[str, str] = {}
    problems: list[Problem] = []
    for path in map(Path, paths):
        for source, document in _documents(path, problems):
            try:
                service = parse_service(document, source)
            except SpecError as error:
                problems.extend(error.problems)
                continue
            for field, message in refused(service):
                problems.append(Problem(source, service.key, field, message))
            if service.key in services:
                message = (
                    f"got {service.metadata.name}, which {sources[service.key]} defines already."
                    " Give one of them another name or namespace."
                )
                problems.append(Problem(source, service.key, "metadata.name", message))
            else:
                services[service.key] = service
                sources[service.key] = source
    if problems:
        raise SpecError(problems)
    return list(services.values())


def parse_service(document: object, source: str) -> InferenceService:
    """One resource from what a YAML or JSON document holds; ``status`` is left aside.

    Args:
        source: what messages call the document.

    Raises :class:`SpecError` with every problem.
    """
    name = _name_of(document)
    if not isinstance(document, dict):
        message = f"got {shown(document)}, allowed apiVersion, kind, metadata and spec."
        raise SpecError([Problem(source, "", "", message)])
    if document.get("kind") not in (None, names.KIND):
        got = shown(document["kind"])
        message = f"got {got}, allowed {names.KIND}. Keep other kinds in files of their own."
        raise SpecError([Problem(source, name, "kind", message)])
    written = {key: value for key, value in document.items() if key != "status"}
    try:
        return InferenceService.model_validate(written)
    except ValidationError as error:
        found = chain(_problems(error), _broken_rules(InferenceService, written, []))
        problems = [Problem(source, name, ".".join(path), message) for path, message in found]
        raise SpecError(problems) from None


def parse_documents(text: str, source: str) -> list[Any]:
    """Every document of a text as plain values. Raises :class:`SpecError` with every problem."""
    problems: list[Problem] = []
    found = [document for _, document in _documents_of_text(text, source, problems)]
    if problems:
        raise SpecError(problems)
    return found


def _documents(path: Path, problems: list[Problem]) -> Iterator[tuple[str, object]]:
    """Each document of a file or folder with the name messages give it.

    What fails goes to ``problems``.
    """
    files = yaml_files([path])
    if not files:
        problems.append(Problem(str(path), "", "", "holds no .yaml or .yml file."))
    for file in files:
        yield from _documents_of_file(file, problems)


def _documents_of_file(path: Path, problems: list[Problem]) -> Iterator[tuple[str, object]]:
    try:
        text = _read(path)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        problems.append(Problem(str(path), "", "", f"cannot be read: {error}."))
        return
    yield from _documents_of_text(text, str(path), problems)


def _documents_of_text(
    text: str, name: str, problems: list[Problem]
) -> Iterator[tuple[str, object]]:
    try:
        found = strict_yaml.nodes(text, _Loader)
    except yaml.YAMLError as error:
        problems.append(Problem(name, "", "", strict_yaml.told(error)))
        return
    if not found:
        problems.append(Problem(name, "", "", f"holds no {names.KIND}."))
    for node in found:
        line = node.start_mark.line + 1
        source = name if len(found) == 1 else f"{name} line {line}"
        try:
            loader = _Loader("")
            yield source, loader.construct_document(node)
        except yaml.YAMLError as error:
            problems.append(Problem(source, "", "", strict_yaml.told(error)))
        except RecursionError:
            problems.append(Problem(source, "", "", "nests too deeply."))


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
    return data.decode("utf-8")


def _name_of(document: object) -> str:
    metadata = document.get("metadata") if isinstance(document, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        return ""
    namespace = metadata.get("namespace")
    if not namespace or not isinstance(namespace, str):
        namespace = names.DEFAULT_NAMESPACE
    return f"{shown(namespace)}/{shown(metadata['name'])}"


def _problems(error: ValidationError) -> Iterator[tuple[list[str], str]]:
    """Path and message of everything that does not fit by itself."""
    for detail in error.errors(include_url=False):
        path = [str(step) for step in detail["loc"]]
        context = detail.get("ctx", {})
        if detail["type"] == "rules":
            continue
        if detail["type"] == "missing":
            message = f"required, and not given. {_missing_hint(path)}"
        elif detail["type"] == "extra_forbidden":
            message = _unknown_message(path)
        elif detail["type"] == "value_error" and isinstance(context.get("error"), Refused):
            message = str(context["error"])
            path[-1] += context["error"].at
        else:
            allowed = ", ".join(_known_fields(path))
            message = f"got {shown(detail['input'])}, allowed a mapping with {allowed}."
        yield path, message


def _broken_rules(
    section: type[Section], value: object, path: list[str]
) -> Iterator[tuple[list[str], str]]:
    """Path and message of everything that does not fit together, in a section and below it.

    Read from the document again, because pydantic asks no rule of a section with another fault.
    """
    for name, message in section.broken_rules(value):
        yield [*path, name], message
    if not isinstance(value, dict):
        return
    for field in section.fields():
        absent = field.is_optional and value.get(field.name) is None
        if isinstance(field.content, type) and not field.is_list and not absent:
            yield from _broken_rules(field.content, value.get(field.name), [*path, field.name])


def _missing_hint(path: list[str]) -> str:
    match path:
        case ["apiVersion"]:
            return f"Write apiVersion: {names.API_VERSION}."
        case ["kind"]:
            return f"Write kind: {names.KIND}."
        case ["spec", "model", "uri"] | ["spec", "model"] | ["spec"]:
            return "Say where the weights are, such as uri: hf://organisation/name."
        case _:
            return "Add it."


def _unknown_message(path: list[str]) -> str:
    known = _known_fields(path[:-1])
    # Case matters little to whoever misspells a name.
    folded = {field.lower(): field for field in known}
    near = difflib.get_close_matches(path[-1].lower(), folded, n=1, cutoff=0.6)
    if near:
        return f"this field does not exist; did you mean {folded[near[0]]}?"
    return f"this field does not exist, allowed {', '.join(known)}."


def _known_fields(path: list[str]) -> list[str]:
    """The names of the fields of the section at ``path``."""
    section: type[Section] = InferenceService
    for step in path:
        for field in section.fields():
            if field.name == step and isinstance(field.content, type):
                section = field.content
    return [field.name for field in section.fields()]

"""Schemas become grammars off the event loop, once for all choices, and not for ever."""

import asyncio
import json
import threading
import time
from typing import Any

import msgspec
import pytest

from sluice_api.call import Call
from sluice_api.errors import ApiError
from sluice_api.shapes import completions
from sluice_api.shapes.generation import Parameters
from sluice_worker.exchange import Asked
from sluice_worker.generation.compiler import MOST_WAITING, Compiler
from sluice_worker.generation.grammar import MOST_OBJECTS, SchemaGrammar, Vocabulary
from sluice_worker.generation.intake import GenerationIntake
from sluice_worker.generation.loading import Generator
from sluice_worker.lifecycle import Progress
from sluice_worker.loader import load_any
from sluice_worker.metrics import Metrics
from tests.support.language_models import random_model
from tests.unit.worker.test_choice import BYTES
from tests.unit.worker.test_grammar import chain, vocabulary
from tests.unit.worker.test_prompts import SIZE

FIELD = "response_format.json_schema.schema"
WANTED = Parameters(json_schema='{"enum":["a","b"]}')


def completion(**members: Any) -> Call:
    return completions.CODEC.parse(json.dumps({"prompt": "the cat", **members}).encode())


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = tmp_path_factory.mktemp("llama")
    random_model("llama", vocabulary=SIZE).save_pretrained(folder)
    BYTES.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    made = load_any(f"file://{folder}")
    assert isinstance(made, Generator)
    return made


async def test_the_choices_of_a_call_share_what_was_compiled_off_the_loop(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    compiled = Vocabulary.grammar

    def watched(self: Vocabulary, schema: str, where: str) -> SchemaGrammar:
        threads.append(threading.get_ident())
        return compiled(self, schema, where)

    monkeypatch.setattr(Vocabulary, "grammar", watched)
    intake = GenerationIntake(
        generator.tasks,
        generator.maker,
        generator.engine,
        Metrics(),
        Progress(),
        service="tiny",
        max_backlog_seconds=60.0,
    )
    generator.engine.start()
    schema = {"enum": ["cat", "dog"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    call = completion(n=8, temperature=1.0, max_tokens=30, seed=3, response_format=wanted)
    try:
        with intake.admit(call, time.monotonic() + 60) as reservation:
            asked = Asked("tiny", time.monotonic() + 60)
            answer = await asyncio.wait_for(intake.answer(call, asked, reservation), 60)
    finally:
        intake.close()
    texts = [json.loads(choice["text"]) for choice in json.loads(answer.body)["choices"]]
    assert len(texts) == 8
    assert set(texts) == {"cat", "dog"}, "each went its own way"
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


async def test_definitions_that_refer_to_one_another_do_not_use_up_the_stack() -> None:
    compiler = Compiler(vocabulary().grammar, seconds=60.0)
    schema = msgspec.json.encode(chain(MOST_OBJECTS // 2 - 2)).decode()
    try:
        assert await compiler.grammar(Parameters(json_schema=schema)) is not None
    finally:
        compiler.close()


async def test_what_compiles_too_long_is_refused_and_holds_up_nobody_for_ever() -> None:
    held, real = threading.Event(), vocabulary()

    def compiled(schema: str, where: str) -> SchemaGrammar:
        if "slow" in schema:
            assert held.wait(60)
        return real.grammar(schema, where)

    compiler = Compiler(compiled, seconds=0.05)
    try:
        with pytest.raises(ApiError) as caught:
            await compiler.grammar(Parameters(json_schema='{"enum":["slow"]}'))
        assert (caught.value.code, caught.value.param) == ("invalid_field", FIELD)
        assert "longer than 0.05 s to compile. Make it simpler" in str(caught.value)
        with pytest.raises(ApiError) as caught:
            await compiler.grammar(WANTED)
        assert caught.value.code == "overloaded"
    finally:
        held.set()
        compiler.close()


async def test_no_more_than_so_many_wait() -> None:
    held = threading.Event()

    def compiled(schema: str, where: str) -> SchemaGrammar:
        assert held.wait(60)
        return vocabulary().grammar(schema, where)

    compiler = Compiler(compiled, seconds=60.0)
    waiting = [asyncio.create_task(compiler.grammar(WANTED)) for _ in range(MOST_WAITING)]
    try:
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as caught:
            await compiler.grammar(WANTED)
        assert caught.value.code == "overloaded"
        assert await compiler.grammar(Parameters()) is None
        waiting[-1].cancel()
        held.set()
        assert all(await asyncio.gather(*waiting[:-1]))
    finally:
        held.set()
        compiler.close()

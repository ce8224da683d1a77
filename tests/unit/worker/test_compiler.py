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
from sluice_worker.generation.grammar import MOST_OBJECTS, Schema, SchemaGrammar, Vocabulary
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


class Held:
    """A vocabulary that reads nothing with ``word`` in it before it may."""

    def __init__(self, free: threading.Event, word: str = "") -> None:
        self._free = free
        self._word = word
        self._real = vocabulary()

    def grammar(self, schema: Schema) -> SchemaGrammar:
        self.check(schema)
        return self._real.grammar(schema)

    def check(self, schema: Schema) -> None:
        if self._word in schema.text:
            assert self._free.wait(60)


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

    def watched(self: Vocabulary, schema: Schema) -> SchemaGrammar:
        threads.append(threading.get_ident())
        return compiled(self, schema)

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
    compiler = Compiler(vocabulary(), seconds=60.0)
    schema = msgspec.json.encode(chain(MOST_OBJECTS // 2 - 2)).decode()
    try:
        assert await compiler.grammar(Parameters(json_schema=schema)) is not None
    finally:
        compiler.close()


def tools(*schemas: Any) -> str:
    functions = [{"name": f"f{place}", "parameters": s} for place, s in enumerate(schemas)]
    return json.dumps([{"type": "function", "function": each} for each in functions])


GOOD = {"type": "object", "properties": {"a": {"type": "string"}}}
BAD = {"type": "object", "properties": {"b": {"type": "strnig"}}}


@pytest.mark.parametrize("choice", ["auto", "required", "=f0", "=f1"])
async def test_a_tool_with_a_bad_schema_is_named_whatever_may_be_called(choice: str) -> None:
    compiler = Compiler(vocabulary(), seconds=60.0)
    try:
        for _ in range(2):
            with pytest.raises(ApiError) as caught:
                await compiler.grammar(Parameters(tools=tools(GOOD, BAD), tool_choice=choice))
            assert caught.value.code == "invalid_field"
            assert caught.value.param == "tools[1].function.parameters"
            assert str(caught.value) == (
                'tools[1].function.parameters: got {"type":"object","properties":{"b":{"type":'
                '"strnig"}}}, no usable JSON schema: Invalid type: strnig.'
            )
        good = await compiler.grammar(Parameters(tools=tools(GOOD, GOOD), tool_choice=choice))
        assert (good is None) == (choice == "auto")
    finally:
        compiler.close()


@pytest.mark.parametrize("keyword", ['"not":{}', '"pattern":"(?!x)."', '"format":"path"'])
async def test_what_only_a_grammar_cannot_honour_is_refused_where_there_is_one(
    keyword: str,
) -> None:
    odd = {"type": "object", "properties": {"a": json.loads(f'{{"type":"string",{keyword}}}')}}
    compiler = Compiler(vocabulary(), seconds=60.0)
    try:
        for choice in ("auto", "=f0"):
            await compiler.grammar(Parameters(tools=tools(GOOD, odd), tool_choice=choice))
        for choice in ("required", "=f1"):
            with pytest.raises(ApiError) as caught:
                await compiler.grammar(Parameters(tools=tools(GOOD, odd), tool_choice=choice))
            assert caught.value.param == "tools[1].function.parameters"
    finally:
        compiler.close()


async def test_tools_that_were_found_good_wait_for_nobody() -> None:
    held = threading.Event()
    compiler = Compiler(Held(held, "slow"), seconds=60.0)
    told = Parameters(tools=tools(GOOD))
    try:
        await compiler.grammar(told)
        slow = asyncio.create_task(compiler.grammar(Parameters(json_schema='{"enum":["slow"]}')))
        await asyncio.sleep(0)
        assert await asyncio.wait_for(compiler.grammar(told), 60) is None
        assert not slow.done()
        held.set()
        assert await slow is not None
    finally:
        held.set()
        compiler.close()


async def test_of_several_tools_the_one_that_takes_too_long_is_named() -> None:
    held = threading.Event()
    compiler = Compiler(Held(held, "slow"), seconds=2.0)
    try:
        with pytest.raises(ApiError) as caught:
            await compiler.grammar(Parameters(tools=tools(GOOD, {"enum": ["slow"]}, GOOD)))
        assert caught.value.param == "tools[1].function.parameters"
        assert "longer than 2 s to compile; fewer properties" in str(caught.value)
    finally:
        held.set()
        compiler.close()


async def test_what_compiles_too_long_is_refused_and_holds_up_nobody_for_ever() -> None:
    held = threading.Event()
    compiler = Compiler(Held(held, "slow"), seconds=0.05)
    try:
        with pytest.raises(ApiError) as caught:
            await compiler.grammar(Parameters(json_schema='{"enum":["slow"]}'))
        assert (caught.value.code, caught.value.param) == ("invalid_field", FIELD)
        assert "longer than 0.05 s to compile; fewer properties" in str(caught.value)
        with pytest.raises(ApiError) as caught:
            await compiler.grammar(WANTED)
        assert caught.value.code == "overloaded"
    finally:
        held.set()
        compiler.close()


async def test_no_more_than_so_many_wait() -> None:
    held = threading.Event()
    compiler = Compiler(Held(held), seconds=60.0)
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

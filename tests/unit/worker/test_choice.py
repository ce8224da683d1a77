"""Text as it is written: held back where it may yet be cut, whole characters, scores in step."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from sluice_api.shapes.generated import Delta
from sluice_worker.engines.decoder.sampling import Drawn
from sluice_worker.generation.choice import Writing
from sluice_worker.generation.tools import parser_for


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, and the dog"], trainer)
    return tokenizer


def words() -> Tokenizer:
    """Like SentencePiece: a space is part of the word after it, and the first one is dropped."""
    names = ["<unk>", "▁Hello", "▁world", "!", "▁the"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Like Llama 2's: what has no token of its own is written byte by byte."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"thecatsond"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


BYTES = byte_level()


def writing(prompt: Sequence[int] = (), tokenizer: Tokenizer = BYTES, **more: object) -> Writing:
    return Writing(
        0,
        prompt,
        lambda: tokenizer,
        lambda token: tokenizer.decode([token]).encode(),
        on_news=lambda _: None,
        **more,  # type: ignore[arg-type]
    )


def written(text: str, made: Writing, *, scored: bool = False) -> list[Delta]:
    """Let every token of ``text`` be taken, and collect after each, as a stream does."""
    deltas: list[Delta] = []
    reason = None
    for token in BYTES.encode(text).ids:
        reason = made.take(Drawn(token, -0.5, ((token, -0.5),)) if scored else Drawn(token))
        deltas += made.collect()
        if reason is not None:
            break
    made.finish(reason or "length")
    return [*deltas, *made.collect()]


def shown(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


texts = st.text(alphabet="the cat é€😀\n", max_size=40)


@given(texts, st.lists(st.text(alphabet="the cat é", min_size=1, max_size=5), max_size=3))
def test_a_stream_shows_what_comes_before_the_first_stop(text: str, stops: list[str]) -> None:
    made = writing(stops=stops)
    deltas = written(text, made)
    # The stop that is complete first cuts; of those complete together, the one that begins first.
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text
    for size in itertools.count() if ends else ():
        begun = BYTES.decode(BYTES.encode(text).ids[: size + 1])
        found = [begun.find(stop) for stop in stops if stop in begun]
        if found:
            expected = text[: min(found)]
            break
    assert shown(deltas) == expected == made.choice().text
    assert deltas[-1].finish_reason == made.choice().finish_reason
    assert (deltas[-1].finish_reason == "stop") is bool(ends)


@given(texts)
def test_half_a_character_never_shows(text: str) -> None:
    deltas = written(text, writing())
    assert all("�" not in delta.text for delta in deltas)
    assert shown(deltas) == text


def test_marks_of_a_thought_show_unless_the_tokenizer_calls_them_special() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    tokenizer.add_special_tokens([AddedToken("<|channel|>", special=True)])
    made = writing(tokenizer=tokenizer)
    for token in tokenizer.encode("<think>hm<|channel|>ha").ids:
        made.take(Drawn(token))
    made.finish("stop")
    assert made.choice().text == "<think>hmha"


def test_what_may_be_the_beginning_of_a_stop_waits() -> None:
    made = writing(stops=["cat sat"])
    for token in BYTES.encode("the ca").ids:
        made.take(Drawn(token))
    assert shown(made.collect()) == "the "
    for token in BYTES.encode("r").ids:
        made.take(Drawn(token))
    assert shown(made.collect()) == "car"


def test_a_first_word_keeps_its_space_after_a_prompt() -> None:
    tokenizer = words()
    for prompt, expected in (([1], " world!"), ([], "world!")):
        made = writing(prompt, tokenizer)
        for token in (2, 3):
            made.take(Drawn(token))
        made.finish("stop")
        assert made.choice().text == expected


@pytest.mark.parametrize("tokenizer", [BYTES, byte_fallback()], ids=["level", "fallback"])
@pytest.mark.parametrize("prompt", ["", "a cat", "👩‍🚀", "the 漢字", "half \ufffd"])
def test_nothing_of_a_prompt_shows_however_its_characters_are_cut(
    tokenizer: Tokenizer, prompt: str
) -> None:
    for missing in range(3):
        ids = tokenizer.encode(prompt).ids
        made = writing(ids[: len(ids) - missing], tokenizer)
        for token in tokenizer.encode("the 😀 é").ids:
            made.take(Drawn(token))
        made.finish("stop")
        assert made.choice().text == "the 😀 é"


def test_scores_come_with_the_text_and_end_with_it() -> None:
    made = writing(stops=["sat"], scored=True)
    deltas = written("the cat sat", made, scored=True)
    choice = made.choice()
    assert choice.text == "the cat "
    assert choice.logprobs is not None
    assert "".join(score.chosen.text for score in choice.logprobs).startswith("the cat")
    streamed = [score for delta in deltas for score in delta.logprobs or ()]
    assert streamed == list(choice.logprobs)


def test_a_call_is_told_whole_and_only_one_where_one_is_wanted() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    for parallel, expected in ((True, 2), (False, 1)):
        made = writing(tools=parser_for("<tool_call>", "auto"), parallel_calls=parallel)
        deltas = written(f"Well.{call}{call}", made)
        assert shown(deltas) == "Well."
        told = [call for delta in deltas for call in delta.tool_calls]
        assert [place for place, _ in told] == list(range(expected))
        assert [call for _, call in told] == list(made.choice().tool_calls)
        assert made.choice().finish_reason == ("length" if parallel else "tool_calls")


@pytest.mark.parametrize("parallel", [True, False])
def test_a_call_that_is_cut_is_told_with_what_is_there(parallel: bool) -> None:
    text = '[{"name": "f", "parameters": {}}, {"name": "g", "parameters": {"city": "Be'
    made = writing(tools=parser_for("", "required"), parallel_calls=parallel)
    deltas = written(text, made)
    expected = [("f", "{}"), ("g", '{"city": "Be')][: 2 if parallel else 1]
    told = [call.function for delta in deltas for _, call in delta.tool_calls]
    assert [(each.name, each.arguments) for each in told] == expected
    assert [call.function for call in made.choice().tool_calls] == told
    assert made.choice().finish_reason == "length"
    assert shown(deltas) == made.choice().text == ""


def test_a_stop_cuts_a_call_as_well() -> None:
    made = writing(tools=parser_for("", "required"), stops=["Bern"])
    written('[{"name": "f", "parameters": {"city": "Bern"}}]', made)
    (call,) = made.choice().tool_calls
    assert (call.function.arguments, made.choice().text) == ('{"city": "', "")


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_answer_without_calls_ends_as_it_ended(reason: str) -> None:
    made = writing(tools=parser_for("<tool_call>", "auto"))
    made.finish(reason)  # type: ignore[arg-type]
    assert made.choice().finish_reason == reason
    assert made.choice().text == ""

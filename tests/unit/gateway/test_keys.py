"""The one place that makes cache keys: nothing may be left out, and nobody may guess them."""

import hmac
import multiprocessing
import os
import stat
import tracemalloc
from pathlib import Path

import pytest

from sluice_gateway.keys import Keyring, Mac, TenantScope, item_key, item_keys

SECRET, OTHER = bytes(range(32)), bytes(range(1, 33))
ANNA = TenantScope.of("anna")


def make(ring: Keyring | None = None, scope: TenantScope = ANNA, **changes: object) -> bytes:
    fields: dict[str, object] = {
        "revision": "0123456789",
        "answer_digest": "sha256:ab",
        "task": "embeddings",
        "parameters": b"{}",
        "item": "text",
    }
    return item_key(ring or Keyring(SECRET), scope, **(fields | changes))  # type: ignore[arg-type]


def test_mac_is_hmac_sha256_of_the_standard_library() -> None:
    for message in (b"", b"a", bytes(1000)):
        assert Mac(SECRET)(message) == hmac.digest(SECRET, message, "sha256")
        assert Mac(SECRET).after(b"head")(message) == Mac(SECRET)(b"head" + message)


def test_every_field_changes_the_key() -> None:
    keys = {
        make(),
        make(Keyring(OTHER)),
        make(scope=TenantScope.of("bert")),
        make(scope=TenantScope.service_wide("lab", "emb")),
        make(scope=TenantScope.service_wide("lab", "other")),
        make(scope=TenantScope.service_wide("home", "emb")),
        make(scope=TenantScope.of("service")),
        make(revision="0123456780"),
        make(answer_digest="sha256:ac"),
        make(task="classification"),
        make(parameters=b'{"a":1}'),
        make(item="text "),
        make(item=[1, 2]),
        make(item="[1,2]"),
    }
    assert len(keys) == 14


def test_fields_cannot_run_into_each_other() -> None:
    assert make(revision="ab", answer_digest="c") != make(revision="a", answer_digest="bc")
    assert make(task="a1:b", parameters=b"c") != make(task="a", parameters=b"b1:c")
    wide = TenantScope.service_wide
    assert make(scope=wide("a/b", "c")) != make(scope=wide("a", "b/c"))


def test_a_key_needs_an_answer_digest_and_a_revision() -> None:
    with pytest.raises(ValueError, match="no key without"):
        make(answer_digest="")
    with pytest.raises(ValueError, match="no key without"):
        make(revision="")


def test_scope_can_be_neither_text_nor_empty_nor_made_by_hand() -> None:
    with pytest.raises(TypeError, match="must be a TenantScope"):
        make(scope="anna")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tenant's name"):
        TenantScope.of("")
    for namespace, name in (("", "emb"), ("lab", "")):
        with pytest.raises(ValueError, match="namespace and name"):
            TenantScope.service_wide(namespace, name)
    with pytest.raises(TypeError, match=r"use TenantScope\.of"):
        TenantScope()
    assert TenantScope.of("anna") == ANNA and hash(TenantScope.of("anna")) == hash(ANNA)
    assert "anna" not in repr(ANNA)
    assert repr(TenantScope.service_wide("lab", "emb")) == "<TenantScope service>"


def test_keys_of_a_list_are_the_keys_of_its_inputs() -> None:
    for ring in (Keyring(SECRET), Keyring(SECRET, OTHER)):
        keys = item_keys(
            ring,
            ANNA,
            revision="0123456789",
            answer_digest="sha256:ab",
            task="embeddings",
            parameters=b"{}",
            items=["text", [1, 2], ""],
        )
        assert keys == [make(ring), make(ring, item=[1, 2]), make(ring, item="")]


def test_what_is_remembered_of_callers_parameters_is_small() -> None:
    ring, large = Keyring(SECRET), b"x" * 1_000_000
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(20):
            parameters = b"%d%b" % (number, large)
            (key,) = item_keys(
                ring,
                ANNA,
                revision="0123456789",
                answer_digest="sha256:ab",
                task="embeddings",
                parameters=parameters,
                items=["text"],
            )
            assert key == make(ring, parameters=parameters)
        del parameters
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < len(large)


def test_rotation_keeps_the_old_key_beside_the_new_one() -> None:
    both = make(Keyring(OTHER, SECRET))
    assert both == make(Keyring(OTHER)) + make(Keyring(SECRET))


def test_naming_and_sealing_do_not_share_a_key() -> None:
    ring = Keyring(SECRET)
    assert len({ring.naming[0](b"x"), ring.sealing[0](b"x"), Mac(SECRET)(b"x")}) == 3


def test_another_epoch_makes_another_key() -> None:
    keys = {make(epoch=epoch) for epoch in (b"", b"1.0", b"0.1", b"1.1")}
    assert len(keys) == 4


def test_the_file_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "cache.key"
    first = Keyring.load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert make(Keyring.load(path)) == make(first)
    assert os.listdir(path.parent) == ["cache.key"]


def _load_key(path: Path) -> bytes:
    return make(Keyring.load(path))


def test_processes_that_make_the_file_at_once_agree(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        for attempt in range(10):
            path = tmp_path / f"{attempt}.key"
            assert len(set(pool.map(_load_key, [path] * 6, chunksize=1))) == 1
    assert len(os.listdir(tmp_path)) == 10


def test_without_a_file_every_process_has_its_own_secret() -> None:
    assert make(Keyring.load(None)) != make(Keyring.load(None))


def test_the_file_may_hold_two_secrets(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{OTHER.hex()}\n{SECRET.hex()}\n")
    assert make(Keyring.load(path)) == make(Keyring(OTHER, SECRET))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"xyz\n", b"00" * 31, b"\xff" * 64, b"\n".join([b"00" * 32] * 3)],
)
def test_a_wrong_file_is_refused_by_name_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"key: .*; needs one or two lines of 64 hexadecimal"):
        Keyring.load(path)
    assert path.read_bytes() == content


def test_nothing_secret_is_shown() -> None:
    shown = repr(Keyring(SECRET)) + repr(Mac(SECRET))
    assert shown == "<Keyring 1 secrets><Mac>"

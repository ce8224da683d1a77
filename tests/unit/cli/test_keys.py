"""``sluice keys``: what is written is what the gateway reads, and a key is printed once."""

import base64
import hashlib
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sluice_api.api_keys import is_whole
from sluice_api.key_file import KeyFile, KeyFileError, Limits, read_key_file
from sluice_api.rates import parse_rate
from sluice_cli.keys import parse_expiry
from sluice_cli.main import app

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


class Run:
    """One command on one file."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        result = CliRunner().invoke(app, ["keys", *arguments, "--file", str(folder / "keys.yaml")])
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr
        assert result.exception is None or isinstance(result.exception, SystemExit)


def content(folder: Path) -> KeyFile:
    return read_key_file((folder / "keys.yaml").read_bytes(), "keys.yaml")


def test_a_key_is_printed_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    made = Run(tmp_path, "create", "search", "--namespace", "search", "--name", "ann's laptop")
    key = made.out.strip()
    assert made.code == 0 and is_whole(key)
    text = (tmp_path / "keys.yaml").read_text()
    assert key not in text and key not in made.err
    (tenant,) = content(tmp_path).tenants
    (entry,) = tenant.keys
    assert entry.sha256 == hashlib.sha256(key.encode()).hexdigest()
    assert (entry.name, entry.expires) == ("ann's laptop", None)
    assert entry.id in made.err
    assert stat.S_IMODE((tmp_path / "keys.yaml").stat().st_mode) == 0o600


def test_everything_that_can_be_said_of_a_tenant(tmp_path: Path) -> None:
    Run(tmp_path, "create", "a", "--namespace", "x", "--namespace", "y", "--requests", "20/s")
    made = Run(
        tmp_path,
        *("create", "a", "--service", "m", "--service", "y/*", "--inputs", "600/m:50"),
        *("--tokens", "1000/h", "--expires", "2127-01-31", "--priority", "high", "--weight", "3"),
    )
    assert made.code == 0, made.err
    (tenant,) = content(tmp_path).tenants
    assert (tenant.namespaces, tenant.services) == (("x", "y"), ("m", "y/*"))
    assert (tenant.priority, tenant.weight) == ("high", 3)
    assert tenant.limits == Limits(parse_rate("20/s"), parse_rate("600/m:50"), parse_rate("1000/h"))
    assert [key.expires for key in tenant.keys] == [None, datetime(2127, 1, 31, tzinfo=UTC)]


def test_list_and_revoke(tmp_path: Path) -> None:
    first = Run(tmp_path, "create", "a", "--namespace", "a").out.strip()
    second = Run(tmp_path, "create", "b", "--namespace", "b", "--expires", "1h").out.strip()
    listed = Run(tmp_path, "list")
    lines = listed.out.splitlines()
    assert lines[0].split() == ["TENANT", "ID", "STATE", "EXPIRES", "NAME"]
    ids = [line.split()[1] for line in lines[1:]]
    assert [line.split()[2:4][0] for line in lines[1:]] == ["good", "good"]
    assert first not in listed.out and second not in listed.out
    revoked = Run(tmp_path, "revoke", ids[0])
    assert (revoked.code, revoked.out) == (0, "")
    assert [key.id for tenant in content(tmp_path).tenants for key in tenant.keys] == [ids[1]]
    again = Run(tmp_path, "revoke", ids[0])
    assert again.code == 1 and f"no key '{ids[0]}'" in again.err
    assert "no keys" in Run(tmp_path, "list").out


def test_the_secret_that_kubectl_applies(tmp_path: Path) -> None:
    made = Run(tmp_path, "create", "a", "--namespace", "a", "--secret", "sluice-keys")
    secret = yaml.safe_load(made.out)
    assert (secret["kind"], secret["metadata"]["name"]) == ("Secret", "sluice-keys")
    assert secret["metadata"]["namespace"] == "sluice-system"
    carried = base64.b64decode(secret["data"]["keys.yaml"])
    assert carried == (tmp_path / "keys.yaml").read_bytes()
    key = made.err.splitlines()[-1]
    assert is_whole(key) and key.encode() not in carried and key not in made.out
    assert Run(tmp_path, "secret", "sluice-keys").out == made.out
    (entry,) = content(tmp_path).tenants[0].keys
    after = Run(tmp_path, "revoke", entry.id, "--secret", "k", "--secret-namespace", "n")
    assert yaml.safe_load(after.out)["metadata"]["namespace"] == "n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "a"), "--namespace: required, because 'a' is a new tenant"),
        (("create", "a b", "--namespace", "n"), "tenants[0].name: got 'a b', needs 1 to 63"),
        (("create", "a", "--namespace", "N"), "namespaces[0]: got 'N', needs the name of a names"),
        (("create", "a", "--namespace", "n", "--service", "/"), "services[0]: got '/'"),
        (("create", "a", "--namespace", "n", "--requests", "fast"), "--requests: got 'fast', need"),
        (
            ("create", "a", "--namespace", "n", "--priority", "top"),
            "priority: got 'top', needs one",
        ),
        (("create", "a", "--namespace", "n", "--weight", "0"), "weight: got 0"),
        (("create", "a", "--namespace", "n", "--expires", "soon"), "--expires: got 'soon'"),
        (("create", "a", "--namespace", "n", "--expires", "2020-01-01"), "which is over"),
        (("create", "anonymous", "--namespace", "n"), "'anonymous' is who comes without a key"),
        (("list",), "there is no such file. `sluice keys create` makes it"),
        (("revoke", "x"), "there is no such file"),
        (("secret", "x"), "there is no such file"),
    ],
)
def test_what_cannot_be_done_changes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    run = Run(tmp_path, *arguments)
    assert run.code == 1 and told in run.err, run.err
    assert run.out == "" and list(tmp_path.iterdir()) == []


def test_a_file_with_a_mistake_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text("tenant: []\n")
    run = Run(tmp_path, "create", "a", "--namespace", "a")
    assert run.code == 1 and "line 1: tenant: this field does not exist" in run.err
    assert (tmp_path / "keys.yaml").read_text() == "tenant: []\n"


def test_the_mode_of_a_file_stays(tmp_path: Path) -> None:
    Run(tmp_path, "create", "a", "--namespace", "a")
    (tmp_path / "keys.yaml").chmod(0o644)
    Run(tmp_path, "create", "a")
    assert stat.S_IMODE((tmp_path / "keys.yaml").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("90d", datetime(2027, 2, 24, 12, tzinfo=UTC)),
        ("1h30m", datetime(2026, 11, 26, 13, 30, tzinfo=UTC)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T18:00:00Z", datetime(2027, 1, 31, 18, tzinfo=UTC)),
        ("2027-01-31T18:00:00+02:00", datetime(2027, 1, 31, 16, tzinfo=UTC)),
    ],
)
def test_expiry(text: str, end: datetime) -> None:
    assert parse_expiry(text, NOW) == end


@pytest.mark.parametrize(
    "text", ["", "d", "0d", "99999999d", "90", "2027-01-31T18:00:00", "2027-02-30", "2026-11-26"]
)
def test_what_is_no_end(text: str) -> None:
    with pytest.raises(KeyFileError, match="--expires: got"):
        parse_expiry(text, NOW)

"""How the images get built: settings of the machine as secrets, archives without what is known."""

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.images import package_settings, recipes
from tests.support.images.layout import Layout


def sourced(folder: Path) -> dict[str, str]:
    """The variables that a build sees after reading the file as its Dockerfiles do."""
    script = f". {folder / package_settings.ENVIRONMENT} && env -0"
    done = subprocess.run(
        ["/bin/sh", "-c", script], env={"PATH": "/bin:/usr/bin"}, capture_output=True, check=True
    )
    pairs = (each.split("=", 1) for each in done.stdout.decode().split("\0") if each)
    return {name: value for name, value in pairs if name.startswith(("PIP_", "UV_", "SSL_"))}


def test_indexes_and_authorities_travel_and_paths_stay(tmp_path: Path) -> None:
    bundle = tmp_path / "mine.pem"
    bundle.write_text("certificates")
    environment = {
        "PIP_CERT": str(bundle),
        "PIP_EXTRA_INDEX_URL": "http://one.test/simple http://two.test/simple",
        "PIP_FIND_LINKS": "/only/here",
        "UV_DEFAULT_INDEX": "http://user:it's@index.test/simple",
        "PATH": "/bin",
    }
    package_settings.write(tmp_path, environment, [])
    assert (tmp_path / package_settings.AUTHORITIES).read_text() == "certificates"
    assert sourced(tmp_path) == {
        "PIP_CERT": "/run/secrets/ca.pem",
        "PIP_EXTRA_INDEX_URL": "http://one.test/simple http://two.test/simple",
        "PIP_INDEX_URL": "http://user:it's@index.test/simple",
        "SSL_CERT_FILE": "/run/secrets/ca.pem",
        "UV_DEFAULT_INDEX": "http://user:it's@index.test/simple",
        "UV_INDEX": "http://one.test/simple http://two.test/simple",
    }


def test_pips_own_files_count_and_the_environment_wins(tmp_path: Path) -> None:
    system, user = tmp_path / "system.conf", tmp_path / "user.conf"
    system.write_text("[global]\nindex-url = http://a.test\ntrusted-host = a.test\ncert = /x.pem\n")
    user.write_text("[install]\nindex-url = http://b.test\n")
    package_settings.write(tmp_path, {"PIP_CERT": str(system)}, [system, user, tmp_path / "none"])
    found = sourced(tmp_path)
    assert (found["PIP_INDEX_URL"], found["PIP_TRUSTED_HOST"]) == ("http://b.test", "a.test")
    package_settings.write(tmp_path, {"PIP_INDEX_URL": "http://c.test"}, [system, user])
    assert sourced(tmp_path)["PIP_INDEX_URL"] == "http://c.test"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Two images that share a layer, and one nameless one that was replaced."""
    folder = tmp_path / "layout"
    (folder / "blobs/sha256").mkdir(parents=True)

    def blob(data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (folder / "blobs/sha256" / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def image(name: str, *layers: bytes) -> dict[str, Any]:
        config = blob(json.dumps({"config": {"User": name}}).encode())
        manifest = {"config": config, "layers": [blob(layer) for layer in layers]}
        return blob(json.dumps(manifest).encode())

    reference = "org.opencontainers.image.ref.name"
    manifests = [
        image("old", b"shared", b"old"),
        image("a", b"shared", b"aa") | {"annotations": {reference: "localhost/a:1"}},
        image("b", b"shared", b"b") | {"annotations": {reference: "localhost/b:1"}},
    ]
    (folder / "index.json").write_text(json.dumps({"manifests": manifests}))
    return Layout(folder)


def test_an_archive_leaves_out_what_is_known(layout: Layout, tmp_path: Path) -> None:
    layout.write_archive("localhost/a:1", tmp_path / "whole.tar", set())
    with tarfile.open(tmp_path / "whole.tar") as whole:
        blobs = {name for name in whole.getnames() if name.startswith("blobs/")}
        index = whole.extractfile("index.json")
        assert index is not None
        [entry] = json.load(index)["manifests"]
    assert len(blobs) == 4, "manifest, configuration, two layers"
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/a:1"
    shared = f"sha256:{hashlib.sha256(b'shared').hexdigest()}"
    layout.write_archive("localhost/a:1", tmp_path / "part.tar", {shared})
    with tarfile.open(tmp_path / "part.tar") as part:
        left = {name for name in part.getnames() if name.startswith("blobs/")}
    assert blobs - left == {f"blobs/{shared.replace(':', '/')}"}


def test_what_was_replaced_goes_and_what_is_shared_stays(layout: Layout) -> None:
    assert repr(layout).startswith("<Layout of 2 images")
    layout.prune()
    contents = {path.read_bytes() for path in layout.folder.glob("blobs/sha256/*")}
    assert {b"shared", b"aa", b"b"} < contents
    assert b"old" not in contents
    assert layout.config("localhost/b:1")["config"]["User"] == "b"
    assert layout.size("localhost/a:1") == len(b"shared" + b"aa")
    assert layout.config_digest("localhost/lost:1") is None


def test_a_base_is_built_before_what_begins_from_it() -> None:
    assert [each.name for each in recipes.with_bases(["stub", "gateway"])] == ["gateway", "stub"]
    with pytest.raises(KeyError):
        recipes.with_bases(["lost"])


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_what_a_dockerfile_copies_is_let_into_the_context(name: str) -> None:
    """A line that .dockerignore keeps out fails only where a build runs; this tells everywhere."""
    rules = (recipes.ROOT / ".dockerignore").read_text().splitlines()
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    for line in (recipes.ROOT / recipes.RECIPES[name].dockerfile).read_text().splitlines():
        words = line.split()
        if words[:1] != ["COPY"] or words[1].startswith("--from"):
            continue
        for source in words[1:-1]:
            assert (recipes.ROOT / source).exists(), line
            assert any(source == each or source.startswith(f"{each}/") for each in let_in), line

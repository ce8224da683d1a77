"""This machine's settings for package indexes, as two files that a build is given as secrets.

Where packages come from, through which proxy, and whom to trust differs from machine to machine; a
build reads it from `packages.env` (shell) and `ca.pem`, and nothing of it gets into a layer, into
an image's history or into the cache's keys. `builder` writes the files for the time of a build.
"""

import configparser
import os
import shlex
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path

ENVIRONMENT = "packages.env"
AUTHORITIES = "ca.pem"
SECRETS_FOLDER = "/run/secrets"

CARRIED = ("INDEX_URL", "EXTRA_INDEX_URL", "DEFAULT_INDEX", "INDEX", "TRUSTED_HOST")
"""Options of pip and uv that say where packages are. Paths of this machine mean nothing inside."""
_AUTHORITY_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_SYSTEM_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")


def write(folder: Path, environment: Mapping[str, str], pip_files: Iterable[Path]) -> None:
    """Write both files. `ca.pem` is left out where the machine has no bundle of its own."""
    carried = _from_pip_files(pip_files) | {
        f"{tool}_{option}": environment[f"{tool}_{option}"]
        for tool in ("PIP", "UV")
        for option in CARRIED
        if environment.get(f"{tool}_{option}")
    }
    for mine, theirs in (
        ("UV_DEFAULT_INDEX", "PIP_INDEX_URL"),
        ("UV_INDEX", "PIP_EXTRA_INDEX_URL"),
    ):
        if theirs in carried:
            carried.setdefault(mine, carried[theirs])
        elif mine in carried:
            carried[theirs] = carried[mine]
    if bundle := authorities(environment):
        (folder / AUTHORITIES).write_bytes(bundle.read_bytes())
        inside = f"{SECRETS_FOLDER}/{AUTHORITIES}"
        carried |= {"PIP_CERT": inside, "SSL_CERT_FILE": inside}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in sorted(carried.items())]
    (folder / ENVIRONMENT).write_text("".join(lines))


def authorities(environment: Mapping[str, str]) -> Path | None:
    """The bundle of certificate authorities this machine trusts."""
    named = [environment[name] for name in _AUTHORITY_VARIABLES if environment.get(name)]
    default = ssl.get_default_verify_paths().cafile
    candidates = [*named, *([default] if default else []), *_SYSTEM_BUNDLES]
    return next((Path(path) for path in candidates if Path(path).is_file()), None)


def pip_files(home: Path) -> list[Path]:
    """Where pip's own configuration may be, the weakest first."""
    return [Path("/etc/pip.conf"), home / ".pip/pip.conf", home / ".config/pip/pip.conf"]


def _from_pip_files(files: Iterable[Path]) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    parser.read([path for path in files if path.is_file()])
    found = {}
    for section in ("global", "install"):
        for option, value in parser.items(section) if parser.has_section(section) else ():
            name = option.upper().replace("-", "_")
            if name in CARRIED:
                found[f"PIP_{name}"] = " ".join(value.split())
    return found


def of_this_machine(folder: Path) -> None:
    """`write` for the environment this process runs in."""
    write(folder, os.environ, pip_files(Path.home()))

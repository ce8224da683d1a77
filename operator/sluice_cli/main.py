"""The ``sluice`` command. Reads options and prints errors; what is done stands elsewhere.

Heavy imports happen inside the commands, so that ``sluice --help`` answers at once.
"""

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sluice_api import names
from sluice_cli.up.settings import Auth, LogLevel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sluice_cli.edits import Edit

app = typer.Typer(
    name="sluice",
    help="Serve transformer models: one file a model, workers that come and go with demand.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE", help="InferenceService files, or folders of them.", show_default=False
    ),
]

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="An InferenceService file; - for standard input.", show_default=False
    ),
]


keys_app = typer.Typer(
    help="Make, list and revoke the keys that callers show a gateway with --auth keys.",
    no_args_is_help=True,
)
app.add_typer(keys_app, name="keys")

cache_app = typer.Typer(help="The answers that gateways keep.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

KeysFile = Annotated[
    Path, typer.Option("--file", envvar="SLUICE_KEYS_FILE", help="The keys file; hashes only.")
]
_KEYS_FILE = Path("keys.yaml")
PrintedSecret = Annotated[
    str | None,
    typer.Option(help="Print a Secret of this name with the file, for kubectl apply -f -."),
]
SecretNamespace = Annotated[
    str, typer.Option("--secret-namespace", help="Its namespace: that of the gateways.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sluice {installed_version('sluice')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


@app.command()
def up(
    files: Files,
    host: Annotated[
        str, typer.Option(envvar="SLUICE_HOST", help="Address for applications.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            envvar="SLUICE_PORT",
            min=0,
            max=65535,
            help="Port for applications; 0 takes a free one.",
        ),
    ] = names.APP_PORT,
    admin_port: Annotated[
        int,
        typer.Option(
            envvar="SLUICE_ADMIN_PORT",
            min=0,
            max=65535,
            help="Port for metrics, health and demand, on 127.0.0.1 only.",
        ),
    ] = names.ADMIN_PORT,
    auth: Annotated[
        Auth,
        typer.Option(
            envvar="SLUICE_AUTH",
            help="keys: callers show a key of the --keys file; none: everybody may call.",
        ),
    ] = Auth.NONE,
    keys: Annotated[
        Path | None,
        typer.Option(
            envvar="SLUICE_KEYS_FILE",
            help="The keys file, as `sluice keys` writes it; taken over when it changes.",
        ),
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(
            envvar=names.ENV_REDIS_URL,
            help="Redis that keeps answers beyond this run, such as redis://127.0.0.1:6379/0.",
        ),
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="SLUICE_STATE_DIR",
            help="Folder for what is kept between runs.",
            show_default="~/.local/state/sluice/up",
        ),
    ] = None,
    live: Annotated[
        bool | None,
        typer.Option(
            "--live/--plain",
            envvar="SLUICE_LIVE",
            help="A live table, or plain lines.",
            show_default="live on a terminal",
        ),
    ] = None,
    log_level: Annotated[
        LogLevel,
        typer.Option(
            envvar="SLUICE_LOG_LEVEL",
            help="debug adds each scaling decision; warning leaves only what went wrong.",
        ),
    ] = LogLevel.INFO,
    allow_anonymous_network: Annotated[
        bool,
        typer.Option(
            "--allow-anonymous-network",
            envvar="SLUICE_ALLOW_ANONYMOUS_NETWORK",
            help="Allow a --host that other machines can reach, although callers need no key.",
        ),
    ] = False,
) -> None:
    """Serve models on this machine: a gateway, and workers that are started when they are needed.

    Prints `ready http://…` once the first answer can be given. Ctrl-C ends everything cleanly.
    A change to a file is taken over while it runs, without a failed request.
    """
    from sluice_cli.up.run import run
    from sluice_cli.up.settings import Settings
    from sluice_cli.up.state import default_folder

    raise typer.Exit(
        run(
            lambda: Settings(
                files=tuple(files),
                host=host,
                port=port,
                admin_port=admin_port,
                auth=auth,
                keys_file=keys if auth is Auth.KEYS else None,
                redis_url=redis_url or None,
                state_dir=state_dir or default_folder(),
                live=live,
                log_level=log_level,
                allow_anonymous_network=allow_anonymous_network,
            )
        )
    )


@cache_app.command("invalidate")
def cache_invalidate(
    service: Annotated[
        str, typer.Option(help="All answers of this service.", show_default=False)
    ] = "",
    namespace: Annotated[
        str, typer.Option(help="The namespace of the service.")
    ] = names.DEFAULT_NAMESPACE,
    tenant: Annotated[
        str, typer.Option(help="All answers that only this tenant gets.", show_default=False)
    ] = "",
    admin_url: Annotated[
        str, typer.Option(envvar="SLUICE_ADMIN_URL", help="The admin port of any gateway.")
    ] = f"http://127.0.0.1:{names.ADMIN_PORT}",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="SLUICE_ADMIN_TOKEN",
            help="In a cluster: of a ServiceAccount that may read /internal/.",
        ),
    ] = None,
) -> None:
    """Have no answer given any more that was kept until now, by any gateway that shares them."""
    from sluice_cli.cache import CacheError, invalidate

    if not service and not tenant:
        print("Name what is to be thrown away: --service, --tenant, or both.", file=sys.stderr)
        raise typer.Exit(1)
    what = {"service": service, "namespace": namespace, "tenant": tenant}
    try:
        known = invalidate(admin_url, {name: value for name, value in what.items() if value}, token)
    except CacheError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    print("invalidated")
    if not known:
        print(f"The gateway knows no service {namespace}/{service}.", file=sys.stderr)


@app.command()
def validate(files: Files) -> None:
    """Check InferenceService files: every problem of every file, with what is allowed instead."""
    from sluice_api.inference_service import revision_of
    from sluice_api.service_files import load_files
    from sluice_api.spec_errors import SpecError

    try:
        services = load_files(files)
    except SpecError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    for service in services:
        print(f"{service.key}: valid, revision {revision_of(service)}")


@app.command()
def promote(file: File) -> None:
    """Print the file with its canary promoted: the overrides moved up, the block removed.

    In a cluster: kubectl get inf NAME -o yaml | sluice promote - | kubectl replace -f -
    """
    from sluice_cli.edits import promote

    _print_edited(file, promote, "has no spec.rollout.canary to promote.")


@app.command()
def restart(file: File) -> None:
    """Print the file with a mark that has its workers replaced, new ones first.

    In a cluster: kubectl get inf NAME -o yaml | sluice restart - | kubectl replace -f -
    """
    from datetime import UTC, datetime

    from sluice_cli.edits import restart

    _print_edited(file, restart(datetime.now(UTC)), f"holds no {names.KIND}.")


@app.command()
def explain(file: File) -> None:
    """Say why a service has as many replicas as it has, and how it does.

    In a cluster: kubectl get inf NAME -o yaml | sluice explain -
    """
    from sluice_cli.edits import services_in
    from sluice_cli.explain import explained

    def sentences(text: str, source: str) -> str:
        lines = [line for each in services_in(text, source) for line in explained(each)]
        return "".join(f"{line}\n" for line in lines)

    _print_made(file, sentences)


def _print_edited(file: Path, edit: "Edit", nothing: str) -> None:
    from sluice_cli.edits import edited

    _print_made(file, lambda text, source: edited(text, source, edit, nothing))


def _print_made(file: Path, make: Callable[[str, str], str]) -> None:
    """Print what ``make`` makes of the file's text, or why it cannot."""
    from sluice_api.spec_errors import SpecError

    source = "standard input" if str(file) == "-" else str(file)
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        print(make(text, source), end="")
    except (OSError, UnicodeDecodeError) as error:
        print(f"{source}: cannot be read: {error}.", file=sys.stderr)
        raise typer.Exit(1) from None
    except SpecError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None


@keys_app.command("create")
def create_key(
    tenant: Annotated[str, typer.Argument(help="Whose key it is; made if it is new.")],
    file: KeysFile = _KEYS_FILE,
    namespace: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose services are the tenant's own; again for more. A bare model name is looked"
            " up in the first. Required for a new tenant.",
        ),
    ] = None,
    service: Annotated[
        list[str] | None,
        typer.Option(
            help="Bounds what it may call: NAME, NAMESPACE/NAME or NAMESPACE/*; again for more.",
            show_default="everything that services let it",
        ),
    ] = None,
    requests: Annotated[str, typer.Option(help="Limit, such as 20/s or 600/m:50.")] = "",
    inputs: Annotated[str, typer.Option(help="Limit on inputs that are computed.")] = "",
    tokens: Annotated[str, typer.Option(help="Limit on tokens that are computed.")] = "",
    priority: Annotated[
        str,
        typer.Option(help="Highest that it may claim: high, normal or low.", show_default="normal"),
    ] = "",
    weight: Annotated[
        int | None,
        typer.Option(help="Share against others who wait, 1 to 100.", show_default="1"),
    ] = None,
    name: Annotated[str, typer.Option(help="For people: what the key is for.")] = "",
    expires: Annotated[
        str,
        typer.Option(help="90d, 12h, a day or a moment.", show_default="never"),
    ] = "",
    secret: PrintedSecret = None,
    into: SecretNamespace = "sluice-system",
) -> None:
    """Make a key for a tenant. It is printed once; the file keeps its hash only.

    With --secret the Secret is printed to stdout and the key to stderr:
    sluice keys create search --namespace search --secret sluice-keys | kubectl apply -f -
    """
    from datetime import UTC, datetime

    from sluice_api.api_keys import make_key
    from sluice_cli import keys

    now, key = datetime.now(UTC), make_key()
    with _told_errors():
        end = keys.parse_expiry(expires, now) if expires else None
        rates = {"requests": requests, "inputs": inputs, "tokens": tokens}
        content = keys.load(file, may_be_missing=True)
        content = keys.with_tenant(
            content, tenant, namespace or [], service or [], rates, priority, weight
        )
        content = keys.with_key(content, tenant, key, name, end)
        keys.save(file, content)
    until = f"until {end:%Y-%m-%dT%H:%M:%SZ}" if end is not None else "until it is revoked"
    print(f"key {key.id} of {tenant}, good {until}; it is shown only now:", file=sys.stderr)
    print(key.text, file=sys.stderr if secret else sys.stdout)
    if secret:
        print(keys.secret_manifest(file.read_text(), secret, into), end="")


@keys_app.command("list")
def list_keys(file: KeysFile = _KEYS_FILE) -> None:
    """Show every key: tenant, id, state, end and name, but no key."""
    from datetime import UTC, datetime

    from sluice_cli import keys

    with _told_errors():
        print(keys.table(keys.load(file), datetime.now(UTC)))


@keys_app.command("revoke")
def revoke_key(
    identity: Annotated[str, typer.Argument(metavar="ID", help="As `sluice keys list` shows it.")],
    file: KeysFile = _KEYS_FILE,
    secret: PrintedSecret = None,
    into: SecretNamespace = "sluice-system",
) -> None:
    """Take a key out of the file. Gateways refuse it as soon as they see the new file."""
    from sluice_cli import keys

    with _told_errors():
        keys.save(file, keys.load(file).without_key(identity))
    print(f"key {identity} is revoked", file=sys.stderr)
    if secret:
        print(keys.secret_manifest(file.read_text(), secret, into), end="")


@keys_app.command("secret")
def print_secret(
    name: Annotated[str, typer.Argument(help="Name of the Secret.")],
    file: KeysFile = _KEYS_FILE,
    into: SecretNamespace = "sluice-system",
) -> None:
    """Check the file and print the Secret that carries it, for kubectl apply -f -."""
    from sluice_cli import keys

    with _told_errors():
        keys.load(file)
        print(keys.secret_manifest(file.read_text(), name, into), end="")


@contextmanager
def _told_errors() -> "Iterator[None]":
    """Print what is wrong with a keys file, and end."""
    from sluice_api.key_file import KeyFileError

    try:
        yield
    except KeyFileError as error:
        print(f"sluice keys: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


@app.command()
def example_model(
    model: Annotated[
        str,
        typer.Argument(
            help="One of chat, classification, fill-mask, question-answering, relation-extraction,"
            " rerank, summarization, text-generation, token-classification, translation,"
            " written-relations, zero-shot."
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="Where it is saved; made if need be.")],
) -> None:
    """Train a toy model for a task in seconds, to try the task without downloading anything.

    The files in manifests/examples that serve one say which folder they look in.
    """
    # -P keeps the working folder off the path. The worker's package knows the model libraries.
    command = [sys.executable, "-P", "-m", "sluice_worker.examples", model, str(folder)]
    code = subprocess.run(command, check=False).returncode
    if code < 0:
        typer.echo(f"The training was ended by {signal.Signals(-code).name}.", err=True)
    raise typer.Exit(code if code >= 0 else 128 - code)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()

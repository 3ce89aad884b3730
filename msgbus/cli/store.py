"""``msgbus store``: the tables of an idempotency store, made or printed."""

from __future__ import annotations

from typing import Annotated

import typer

from msgbus._config import load_settings
from msgbus._registry import has_store, store_class
from msgbus._url import BusURL
from msgbus.adapter import AdapterConfig
from msgbus.cli import _options as options
from msgbus.cli._broker import execute
from msgbus.cli._errors import Misuse
from msgbus.cli._output import print_json, say
from msgbus.store import Store

app = typer.Typer()
store = typer.Typer(invoke_without_command=True)
app.add_typer(store, name="store")

Url = Annotated[
    str | None,
    typer.Argument(metavar="[URL]", help="The store, instead of MSGBUS_IDEMPOTENCY_URL's.", show_default=False),
]
Database = Annotated[str, typer.Argument(metavar="DATABASE", help="postgresql, sqlite, or a URL.", show_default=False)]


@store.callback()
def look_after(context: typer.Context) -> None:
    """Make or print the tables of an idempotency store."""
    if context.invoked_subcommand is None:
        context.get_help()  # Typer prints it


@store.command()
def create(url: Url = None, as_json: options.AsJSON = False) -> None:
    """Connect to the store, and create what it needs where it is missing.

    Example: msgbus store create postgresql://localhost/shop
    """
    shown = execute(_create(_url(url)))
    if as_json:
        print_json({"store": shown, "ready": True})
    else:
        say(f"{shown}: ready")


@store.command()
def schema(database: Database) -> None:
    """Print the SQL that creates the tables, for migrations. Run again, it changes nothing.

    Example: msgbus store schema postgresql
    """
    url = BusURL.parse(database) if "://" in database else BusURL(database)
    statements = store_class(url).statements
    if statements is None:
        raise Misuse(f"an idempotency store at {url.scheme}:// has no tables")
    for statement in statements.create:
        say(f"{statement.strip()};")


async def _create(url: BusURL) -> str:
    made: Store = store_class(url)(url, AdapterConfig())
    await made.open()
    await made.aclose()
    return str(url)


def _url(given: str | None) -> BusURL:
    if given is not None:
        return BusURL.parse(given)
    settings, _ = load_settings()
    url = settings.idempotency_url or settings.url
    if not has_store(url):
        raise Misuse("say which store is meant, as an argument or as MSGBUS_IDEMPOTENCY_URL")
    return url

"""Find adapters and stores by URL scheme, through entry points: ours exactly as a third party's."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

from msgbus._url import BusURL
from msgbus.adapter import Adapter
from msgbus.errors import MissingExtra, UnknownScheme
from msgbus.store import Store

__all__ = ["adapter_class", "adapter_schemes", "has_store", "store_class"]

_ADAPTERS = "msgbus.adapters"
_STORES = "msgbus.stores"


def adapter_class(url: BusURL) -> type[Adapter]:
    """Return the adapter class for the URL's scheme.

    Raises:
        UnknownScheme: No installed package registers the scheme.
        MissingExtra: The adapter is installed, its client library is not.
    """
    return _load(_ADAPTERS, url, Adapter)


def store_class(url: BusURL) -> type[Store]:
    """Return the idempotency store class for the URL's scheme; raises as `adapter_class` does."""
    return _load(_STORES, url, Store)


def has_store(url: BusURL) -> bool:
    """Tell whether there is an idempotency store under the URL's scheme."""
    return bool(entry_points(group=_STORES, name=url.scheme))


def adapter_schemes() -> list[str]:
    """Return the schemes of all registered adapters."""
    return sorted(entry_points(group=_ADAPTERS).names)


def _load(group: str, url: BusURL, base: type) -> type:
    found = tuple(entry_points(group=group, name=url.scheme))
    if not found:
        known = sorted(entry_points(group=group).names)
        close = get_close_matches(url.scheme, known, n=1)
        hint = f"did you mean {close[0]}://?" if close else f"installed: {', '.join(known) or 'none'}"
        what = "broker adapter" if base is Adapter else "idempotency store"
        raise UnknownScheme(f"no {what} is installed for {url.scheme}:// URLs ({url}); {hint}")
    entry = found[0]
    try:
        loaded = entry.load()
    except ModuleNotFoundError as exc:
        # Only a missing client library is a missing extra; a bug inside the adapter must be seen as itself.
        missing = (exc.name or "").partition(".")[0]
        if missing in {"", "msgbus", entry.module.partition(".")[0]}:
            raise
        raise MissingExtra(f"{url.scheme}:// needs the package {missing!r}: {_install(entry, missing)}") from exc
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise UnknownScheme(f"the entry point {entry.value!r} for {url.scheme}:// is not a msgbus {base.__name__}")
    return loaded


def _install(entry: EntryPoint, missing: str) -> str:
    module = entry.module.partition(".")[0]
    ours = entry.dist is not None and entry.dist.name == "msgbus"
    return f"pip install 'msgbus[{module.removeprefix('msgbus_')}]'" if ours else f"pip install {missing}"

"""Reading the headers of one consumer's messages, most of which have the form of one that came before."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from msgbus_rabbitmq._message import read_headers, spans

__all__ = ["Reader"]

_MOST = 256
"""Forms that are remembered."""


class Reader:
    """Reads content headers as `read_headers` does, at some 60 % of the cost where their form is known.

    A form is where the values are: the same names with values of the same lengths give the same one. All that is
    between the values must be as it was, octet by octet; then they can be cut out without looking at anything else.
    """

    def __init__(self) -> None:
        self._forms: dict[tuple[int, int, int], _Form] = {}

    def __call__(self, header: bytes) -> tuple[dict[str, str], dict[str, Any]]:
        """Read a content header's payload; of what is the broker's or ours the caller changes nothing."""
        shape = len(header), header[12], header[13]
        form = self._forms.get(shape)
        if form is not None:
            if form.between(header) == form.octets:
                values = form.values(header.decode("latin-1"))
                if "".join(values).isascii():
                    return dict(zip(form.names, values, strict=True)), form.own
                return read_headers(header)
            del self._forms[shape]  # the next one makes another form: not each of those that take turns
            return read_headers(header)
        found = read_headers(header)
        if len(self._forms) < _MOST and (form := _form(header, *found)):
            self._forms[shape] = form
        return found


class _Form:
    __slots__ = ("between", "names", "octets", "own", "values")

    def __init__(self, header: bytes, values: list[tuple[str, slice]], gaps: list[slice], own: dict[str, Any]) -> None:
        self.names = tuple(name for name, _ in values)
        self.values = itemgetter(*(where for _, where in values))
        self.between = itemgetter(*gaps)
        self.octets = self.between(header)
        self.own = own


def _form(header: bytes, headers: dict[str, str], own: dict[str, Any]) -> _Form | None:
    """Return the form of a header that was read; None if its values are not all that varies."""
    found = spans(header)
    values = [(name, slice(start, stop)) for name, start, stop in found if name]
    if len(values) < 2 or [name for name, _ in values] != list(headers):
        return None
    ends = [14, *(stop for _, _, stop in found)]
    starts = [*(start for _, start, _ in found), len(header)]
    return _Form(header, values, [slice(a, b) for a, b in zip(ends, starts, strict=True)], own)

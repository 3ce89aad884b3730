"""Payloads to bytes and back, compiled once per payload type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from msgbus.errors import ChannelError, DecodeError, EncodeError

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = ["Codec", "JSONCodec", "bounded", "codec_for", "type_name"]

Encode = Callable[[Any], bytes]
Decode = Callable[[bytes], Any]


def bounded(decode: Decode, max_body: int) -> Decode:
    """Return a decoder that refuses a body of more than *max_body* bytes before it looks at it.

    Payloads take many times the memory of their bodies, and anybody may publish what the broker lets through.
    """

    def decode_bounded(body: bytes) -> Any:
        if len(body) > max_body:
            raise DecodeError(f"the body has {len(body)} bytes, more than the {max_body} that are handled (max_body=)")
        return decode(body)

    return decode_bounded


class Codec(Protocol):
    """How payloads become bodies. JSON is the default; pass another one as a channel's ``codec=``."""

    content_type: str
    """The media type written to each message."""

    def encoder(self, payload_type: Any) -> Encode:
        """Return a function from a payload to its body; it raises `EncodeError`."""
        ...

    def decoder(self, payload_type: Any) -> Decode:
        """Return a function from a body to a payload; it raises `DecodeError`."""
        ...


class JSONCodec:
    """JSON, validated and serialised by pydantic: models, dataclasses, TypedDicts, plain dicts and lists."""

    content_type = "application/json"

    def encoder(self, payload_type: Any) -> Encode:
        """Compile an encoder; a payload that does not fit *payload_type* raises `EncodeError`."""
        adapter = _type_adapter(payload_type)
        to_json: Callable[..., bytes] = adapter.serializer.to_json
        # A class instance was validated when it was made; a dict claims nothing until it is checked.
        check = isinstance if isinstance(payload_type, type) and not _is_typed_dict(payload_type) else None
        validate = adapter.validator.validate_python

        def encode(payload: Any) -> bytes:
            try:
                if check is None:
                    payload = validate(payload)
                elif not check(payload, payload_type):
                    raise EncodeError(f"expected {_show(payload_type)}, got {type(payload).__name__}")
                return to_json(payload, warnings="error")
            except EncodeError:
                raise
            except Exception as exc:
                raise EncodeError(f"the payload is not a valid {_show(payload_type)}: {_explain(exc)}") from exc

        return encode

    def decoder(self, payload_type: Any) -> Decode:
        """Compile a decoder; a body that does not fit *payload_type* raises `DecodeError`."""
        validate = _type_adapter(payload_type).validator.validate_json

        def decode(body: bytes) -> Any:
            try:
                return validate(body)
            except Exception as exc:
                raise DecodeError(f"the body is not a valid {_show(payload_type)}: {_explain(exc)}") from exc

        return decode


class _TextCodec:
    """Plain text in UTF-8, for ``str`` payloads."""

    content_type = "text/plain; charset=utf-8"

    def encoder(self, payload_type: Any) -> Encode:
        def encode(payload: str) -> bytes:
            if not isinstance(payload, str):
                raise EncodeError(f"expected str, got {type(payload).__name__}")
            try:
                return payload.encode()
            except UnicodeEncodeError as exc:
                raise EncodeError(f"the text cannot be encoded as UTF-8: {exc.reason} at {exc.start}") from exc

        return encode

    def decoder(self, payload_type: Any) -> Decode:
        def decode(body: bytes) -> str:
            try:
                return body.decode()
            except UnicodeDecodeError as exc:
                raise DecodeError(f"the body is not UTF-8 text: {exc.reason} at byte {exc.start}") from exc

        return decode


class _BytesCodec:
    """The body as it is, for ``bytes`` payloads."""

    content_type = "application/octet-stream"

    def encoder(self, payload_type: Any) -> Encode:
        def encode(payload: bytes) -> bytes:
            if type(payload) is bytes:
                return payload
            if not isinstance(payload, (bytes, bytearray, memoryview)):
                raise EncodeError(f"expected bytes, got {type(payload).__name__}")
            return bytes(payload)

        return encode

    def decoder(self, payload_type: Any) -> Decode:
        return bytes


_JSON = JSONCodec()
_BUILT_IN: Mapping[Any, Codec] = {str: _TextCodec(), bytes: _BytesCodec()}


def codec_for(payload_type: Any) -> Codec:
    """Return the codec that a channel of *payload_type* uses unless it is given one."""
    return _BUILT_IN.get(payload_type, _JSON) if isinstance(payload_type, type) else _JSON


def type_name(payload_type: Any, default: str) -> str:
    """Return the name written as ``ce-type``: the class's ``__msgbus_type__`` or its name, else *default*."""
    if not isinstance(payload_type, type) or payload_type.__module__ == "builtins":
        return default
    name = getattr(payload_type, "__msgbus_type__", payload_type.__name__)
    if not isinstance(name, str) or not name or not name.isascii() or not name.isprintable():
        raise ChannelError(f"__msgbus_type__ of {payload_type.__name__} must be printable ASCII text, got {name!r}")
    return name


def _type_adapter(payload_type: Any) -> Any:
    from pydantic import PydanticUserError, TypeAdapter  # noqa: PLC0415 - importing msgbus stays quick
    from pydantic.errors import PydanticSchemaGenerationError  # noqa: PLC0415

    try:
        return TypeAdapter(payload_type)
    except (PydanticSchemaGenerationError, PydanticUserError, NameError, TypeError) as exc:
        raise ChannelError(
            f"{_show(payload_type)} cannot be a payload type: use a pydantic model, a dataclass, a TypedDict, dict, "
            f"str or bytes ({_explain(exc)})"
        ) from exc


def _is_typed_dict(payload_type: Any) -> bool:
    return hasattr(payload_type, "__total__") and hasattr(payload_type, "__required_keys__")


def _show(payload_type: Any) -> str:
    return payload_type.__name__ if isinstance(payload_type, type) else str(payload_type)


def _explain(exc: Exception) -> str:
    from pydantic import ValidationError  # noqa: PLC0415 - importing msgbus stays quick

    return _explain_validation(exc) if isinstance(exc, ValidationError) else str(exc).partition("\n")[0]


def _explain_validation(exc: ValidationError) -> str:
    """Tell what is wrong and where, without the values: they may be secrets, and this text is logged."""
    errors = exc.errors(include_url=False, include_input=False, include_context=False)
    shown = "; ".join(
        f"{'.'.join(map(str, error['loc']))}: {error['msg']}" if error["loc"] else error["msg"] for error in errors[:3]
    )
    return shown + (f"; and {len(errors) - 3} more" if len(errors) > 3 else "")

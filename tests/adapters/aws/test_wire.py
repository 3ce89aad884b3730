"""Names, options, headers, bodies and errors: what needs no server."""

from __future__ import annotations

import json
import re
import string
import sys

import pytest
from botocore import exceptions as aws
from hypothesis import given
from hypothesis import strategies as st

from msgbus.adapter import Address, BusURL, Kind, Source
from msgbus.errors import (
    AccessDenied,
    BrokerError,
    BrokerUnavailable,
    ChannelError,
    ConfigError,
    ConfirmLost,
    LeaseLost,
    MessageTooLarge,
    NotSent,
    PublishRejected,
    SettleError,
    Unroutable,
)
from msgbus_aws._errors import Busy, Gone, refused_entry, translate, unpublished, unsettled_entry
from msgbus_aws._names import later_queue, queue_of, topic_of
from msgbus_aws._options import read_options
from msgbus_aws._wire import S3, Body, decode_headers, group_id, key_of, open_body, pack, wrap

WORDS = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=6)
NAMES = st.lists(WORDS, min_size=1, max_size=3).map(".".join)
KINDS = st.sampled_from([Kind.QUEUE, Kind.REQUEST, Kind.TOPIC])
SOURCES = st.builds(
    lambda kind, name, keyed, group, dead: Source(
        Address(kind, name, keyed), group if kind is Kind.TOPIC else "", dead
    ),
    KINDS,
    NAMES,
    st.booleans(),
    NAMES,
    st.booleans(),
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
HEADERS = st.dictionaries(
    st.one_of(
        st.sampled_from(["ce-id", "ce-type", "ce-time", "content-type", "msgbus-dead", "a..b", ".a", "AWS.x"]),
        TEXT.filter(lambda name: not name.startswith("msgbus-")),
    ),
    st.text(max_size=30),
    max_size=30,
)


def read(parcel):
    """What a receiver makes of what was sent."""
    headers, encoding, due = decode_headers(parcel.attributes)
    body, inner = open_body(parcel.body.text, encoding, parcel.attributes)
    return body, headers | inner, due


def is_legal(text):
    """Whether SQS takes *text* for a body or a value."""
    return text and all(
        c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff" for c in text
    )


@given(st.one_of(st.binary(), TEXT.map(str.encode)), HEADERS, st.none() | st.floats(0, 1e11))
def test_what_is_packed_is_unpacked_the_same(body, headers, due):
    """Any body, and headers of any number and contents, arrive as they were, within what SQS takes."""
    parcel = pack(wrap(body), headers, due=due)

    if parcel.attributes or not parcel.body.text.startswith("{"):
        assert read(parcel) == (body, headers, due)
    assert len(parcel.attributes) <= 10
    assert is_legal(parcel.body.text)
    assert all(is_legal(a["StringValue"]) and name.isascii() for name, a in parcel.attributes.items())


def test_whatever_is_printable_is_legal():
    """Which is why text that is printable is not searched for what SQS refuses."""
    printable = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if c.isprintable())

    assert re.fullmatch("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+", printable)


def test_text_stays_readable_and_ours_takes_little_room():
    """Another consumer reads text as it is, and finds id, type and the application's headers as attributes."""
    ours = {
        "ce-specversion": "1.0",
        "ce-id": "1",
        "ce-type": "order",
        "ce-source": "shop",
        "content-type": "text/plain",
    }
    parcel = pack(wrap("héllo\n".encode()), {**ours, "tenant": "a"})

    assert parcel.body == Body("héllo\n")
    assert set(parcel.attributes) == {"ce-id", "ce-type", "tenant", "msgbus-headers"}


@given(SOURCES, SOURCES)
def test_different_sources_have_different_queues(one, other):
    """No two channels, groups or dead letters share a queue, whatever their names."""
    try:
        same = queue_of(one).name == queue_of(other).name
    except ChannelError:
        return
    assert same == (one == other)


@given(SOURCES)
def test_what_waits_has_a_queue_of_its_own(source):
    """The queue of delayed messages is no channel's."""
    try:
        later, queue = later_queue(source.address), queue_of(source)
    except ChannelError:
        return
    assert later.name != queue.name


def test_names_are_readable_and_fifo_ones_say_so():
    """The names that people meet in the console."""
    queue, topic = Address(Kind.QUEUE, "orders.new"), Address(Kind.TOPIC, "order.placed", keyed=True)

    assert queue_of(Source(queue)).name == "orders_2enew"
    assert queue_of(Source(queue, dead=True)).name == "orders_2enew_dlq"
    assert topic_of(topic).name == "order_2eplaced.fifo"
    assert queue_of(Source(topic, "e-mail")).name == "order_2eplaced__e-mail.fifo"
    assert queue_of(Source(topic, "e-mail", dead=True)).name == "order_2eplaced__e-mail_dlq.fifo"
    assert later_queue(topic).name == "order_2eplaced_later_topic"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (Address(Kind.QUEUE, "x" * 81), "81 characters; SQS takes 80"),
        (Address(Kind.QUEUE, "q", native={"que": "x"}), "native= of queue 'q' has que; sqs knows attributes"),
        (Address(Kind.QUEUE, "q", native={"topic": "x"}), "not for a queue"),
        (Address(Kind.QUEUE, "q", native={"queue": ""}), "takes text"),
        (Address(Kind.QUEUE, "q", keyed=True, native={"queue": "plain"}), "no FIFO queue"),
        (Address(Kind.QUEUE, "q", native={"queue": "other.fifo"}), "a FIFO queue"),
    ],
)
def test_what_does_not_fit_is_refused(address, said):
    """A name that is too long and an unknown option are named."""
    with pytest.raises(ChannelError, match=said):
        queue_of(Source(address))


@pytest.mark.parametrize(
    "given",
    ["legacy", "arn:aws:sqs:eu-west-1:123456789012:legacy", "https://sqs.eu-west-1.amazonaws.com/123456789012/legacy"],
)
def test_an_existing_queue_is_named_in_any_way(given):
    """A joined queue is given by name, ARN or URL, and is not ours to make."""
    found = queue_of(Source(Address(Kind.QUEUE, "q", native={"queue": given})))

    assert (found.name, found.ours) == ("legacy", False)
    assert found.owner == ("" if given == "legacy" else "123456789012")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqs://", "takes a region"),
        ("sqs://localhost:4566", "takes a region"),
        ("sqs://key:sEcReT@eu-west-1", "takes no credentials"),
        ("sqs://eu-west-1/12", "12 digits"),
        ("sqs://eu-west-1?wait=30", "'wait' takes 1 to 20"),
        ("sqs://eu-west-1?max_message=9000000", "max_message"),
        ("sqs://eu-west-1?large=bucket", "s3://bucket/prefix"),
        ("sqs://eu-west-1?color=red", "no option 'color'"),
    ],
)
def test_a_wrong_url_says_what_is_accepted(url, said):
    """A URL that does not fit is an error that shows no secret."""
    with pytest.raises(ConfigError, match=said) as error:
        read_options(BusURL.parse(url))
    assert "sEcReT" not in str(error.value)


@pytest.mark.parametrize(("key", "same"), [("customer-7", True), ("a b", False), ("é", False), ("x" * 200, False)])
def test_a_key_becomes_a_message_group(key, same):
    """The key itself where SQS takes it, else a digest; the header keeps it."""
    group = group_id(key, "id")

    assert (group == key) is same
    assert len(group) <= 128
    assert key_of({"ce-partitionkey": key, "ce-id": "1"}, group) == key


def test_a_foreign_message_group_is_a_key_and_our_filler_is_none():
    """What a foreign producer groups by is its key; a message of ours without a key has none."""
    assert key_of({}, "customer-7") == "customer-7"
    assert key_of({}, group_id(None, "id")) is None
    assert key_of({"ce-id": "1"}, group_id(None, "1")) is None


NOTE = {
    "Type": "Notification",
    "MessageId": "1",
    "TopicArn": "arn:aws:sns:eu-west-1:123456789012:t",
    "Message": '{"id": 7}',
    "MessageAttributes": {"tenant": {"Type": "String", "Value": "a"}},
}


def test_a_notification_is_unwrapped():
    """SNS without raw delivery: the payload is what was published."""
    assert open_body(json.dumps(NOTE), "", {}) == (b'{"id": 7}', {"tenant": "a"})


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        (json.dumps({"Records": [{"eventSource": "aws:s3"}]}), {}),
        (json.dumps({"detail-type": "x", "source": "aws.ec2", "detail": {}}), {}),
        (json.dumps(NOTE), {"ce-id": {"StringValue": "1"}}),
        (json.dumps({**NOTE, "Type": "Other"}), {}),
        ('{"TopicArn": broken', {}),
    ],
)
def test_other_json_is_left_alone(text, attributes):
    """Events of other services, and messages that have attributes, are payloads as they are."""
    assert open_body(text, "", attributes) == (text.encode(), {})


def test_foreign_attributes_of_any_type_become_text():
    """Numbers are text, bytes are base64, and what only looks like ours is kept."""
    attributes = {
        "n": {"DataType": "Number", "StringValue": "1.5"},
        "b": {"DataType": "Binary", "BinaryValue": b"\xff"},
        "msgbus-headers": {"DataType": "String", "StringValue": "not json"},
    }

    assert decode_headers(attributes) == ({"n": "1.5", "b": "/w==", "msgbus-headers": "not json"}, "", None)
    assert open_body("not base64!", "base64", attributes)[0] == b"not base64!"


def refusal(code, status=400, operation="SendMessageBatch", **error):
    return aws.ClientError(
        {"Error": {"Code": code, "Message": "because", **error}, "ResponseMetadata": {"HTTPStatusCode": status}},
        operation,
    )


@pytest.mark.parametrize(
    ("exc", "kind", "said"),
    [
        (refusal("AccessDenied", 403), AccessDenied, "needs the permission sqs:SendMessage"),
        (refusal("AccessDenied", 403, "DeleteMessageBatch"), AccessDenied, "sqs:DeleteMessage"),
        (refusal("InvalidClientTokenId", 403), AccessDenied, "InvalidClientTokenId: because"),
        (refusal("AWS.SimpleQueueService.NonExistentQueue"), Gone, "because"),
        (refusal("Odd", QueryErrorCode="QueueDoesNotExist"), Gone, "because"),
        (refusal("RequestThrottled"), BrokerUnavailable, "because"),
        (refusal("Whatever", 503), BrokerUnavailable, "because"),
        (refusal("InvalidParameterValue"), BrokerError, "InvalidParameterValue: because"),
        (aws.NoCredentialsError(), AccessDenied, "boto3 looks for them"),
        (aws.EndpointConnectionError(endpoint_url="http://x"), BrokerUnavailable, "http://x"),
    ],
)
def test_errors_say_what_and_which_permission(exc, kind, said):
    """Each error is the one whose remedy fits, and a missing permission is named."""
    error = translate(exc, "sqs", "doing it")

    assert type(error) is kind
    assert said in str(error)
    assert str(error).startswith("doing it: ")


def test_topics_name_their_own_permission():
    """SNS actions are named with their service."""
    assert "sns:Publish" in str(translate(refusal("AuthorizationError", 403, "PublishBatch"), "sns", "publishing"))


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (aws.EndpointConnectionError(endpoint_url="http://x"), Busy),
        (aws.ConnectTimeoutError(endpoint_url="http://x"), Busy),
        (aws.ReadTimeoutError(endpoint_url="http://x"), ConfirmLost),
        (aws.ConnectionClosedError(endpoint_url="http://x"), ConfirmLost),
        (refusal("InternalFailure", 500), ConfirmLost),
        (refusal("ThrottlingException"), Busy),
        (refusal("AccessDenied", 403), PublishRejected),
        (refusal("QueueDoesNotExist"), Unroutable),
        (refusal("BatchRequestTooLong"), MessageTooLarge),
        (aws.NoCredentialsError(), PublishRejected),
    ],
)
def test_a_failed_publish_says_whether_the_message_may_be_there(exc, kind):
    """`NotSent` only where no request can have been taken."""
    error = unpublished(exc, "sqs", "publishing", size=1, limit=2)

    assert type(error) is kind
    assert error.__cause__ is exc
    assert isinstance(error, NotSent) is (kind is not ConfirmLost)


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ({"Code": "InvalidMessageContents", "SenderFault": True}, PublishRejected),
        ({"Code": "AccessDenied", "SenderFault": True}, PublishRejected),
        ({"Code": "InternalError", "SenderFault": False}, Busy),
        ({"Code": "Throttled", "SenderFault": True}, Busy),
        ({"Code": "NonExistentQueue", "SenderFault": True}, Unroutable),
    ],
)
def test_each_message_of_a_batch_has_its_own_error(entry, kind):
    """A partial failure is that message's own, retried where that can help."""
    assert type(refused_entry(entry, "sqs", "publishing")) is kind


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        ("ReceiptHandleIsInvalid", "", LeaseLost),
        ("MessageNotInflight", "", LeaseLost),
        ("InvalidParameterValue", "Reason: The receipt handle has expired.", LeaseLost),
        ("InvalidParameterValue", "Total VisibilityTimeout for the message is beyond the limit", LeaseLost),
        ("InternalError", "", SettleError),
    ],
)
def test_a_receipt_that_is_no_good_is_a_lost_lease(code, text, kind):
    """What SQS says of old receipts is told from what can be tried again."""
    assert type(unsettled_entry({"Code": code, "Message": text}, "deleting")) is kind


def test_a_claim_check_is_marked():
    """A body elsewhere is said to be elsewhere."""
    assert pack(Body("{}", S3), {}).attributes["msgbus-body"]["StringValue"] == "s3"

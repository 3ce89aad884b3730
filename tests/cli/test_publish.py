"""``msgbus send``, ``publish``, ``request``: what is sent is what was written."""

from __future__ import annotations

import json

import pytest


def lines(result):
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def waiting(cli, channel, count):
    """Return what waits in a queue."""
    return lines(cli("tail", channel, "--json", "--limit", str(count)))


def test_send_keeps_the_body_byte_for_byte_and_says_the_id(cli):
    done = cli("send", "orders", '{"id" :  "1", "n": 12345678901234567890}')

    (message,) = waiting(cli, "orders", 1)
    assert done.stdout == f"{message['id']} is on orders\n"
    assert message["body"] == {"id": "1", "n": 12345678901234567890}
    assert message["content_type"] == "application/json"
    assert message["channel"] == message["type"] == "orders"


def test_send_takes_everything_that_can_be_said_about_a_message(cli):
    done = cli("send", "orders", "[1]", "--id", "m1", "--key", "k", "--expires", "60", "--header", "a=b=c", "--json")

    (message,) = waiting(cli, "orders", 1)
    assert lines(done) == [{"channel": "orders", "id": "m1"}]
    assert (message["id"], message["key"], message["headers"], message["body"]) == ("m1", "k", {"a": "b=c"}, [1])
    assert message["expires"] > message["time"]


def test_a_delayed_message_waits(cli):
    cli("send", "orders", "{}", "--delay", "60")

    (line,) = lines(cli("status", "orders", "--json"))
    assert [(s["ready"], s["delayed"]) for s in line["subscriptions"]] == [(0, 1)]


def test_bodies_come_from_files_and_standard_input(cli, project):
    (project / "body.json").write_text('{"from": "file"}')
    cli("send", "orders", "@body.json")
    cli("send", "orders", "-", input='{"from": "stdin"}')
    cli("send", "orders", "just text", "--text")
    (project / "raw").write_bytes(b"\xff\x00")
    cli("send", "orders", "--bytes-file", "raw")

    got = [(m["body"], m["body_encoding"]) for m in waiting(cli, "orders", 4)]
    assert got == [({"from": "file"}, "json"), ({"from": "stdin"}, "json"), ("just text", "text"), ("ff00", "hex")]


def test_send_and_publish_meet_a_channel_with_a_key_that_exists(cli):
    cli("send", "orders", "1", "--key", "k")

    assert cli("send", "orders", "2").exit_code == 0
    assert [m["key"] for m in waiting(cli, "orders", 2)] == ["k", None]


def test_an_application_s_channel_checks_the_body_and_takes_the_key(cli):
    refused = cli("send", "ordered", '{"total": 1}', "--app", "app:bus")
    taken = cli("send", "ordered", '{"id": "7"}', "--app", "app:bus")

    assert refused.exit_code == 2
    assert refused.stderr == "msgbus: error: Queue('ordered'): the body is not a valid Order: id: Field required\n"
    assert taken.exit_code == 0
    (message,) = waiting(cli, "ordered", 1)
    assert (message["key"], message["type"], message["body"]) == ("7", "Order", {"id": "7", "total": 1.0})


def test_an_application_s_union_finds_the_type_that_fits(cli):
    cli("send", "events", '{"cancelled": "x"}', "--app", "app:bus")

    assert [m["type"] for m in waiting(cli, "events", 1)] == ["Cancelled"]


def test_a_channel_that_is_only_a_value_of_the_module_will_do(cli):
    assert cli("send", "unused", '{"id": "7"}', "--app", "app:bus").exit_code == 0


def test_publish_reaches_every_group(cli):
    assert cli("check", "--app", "app:bus").exit_code == 1, "nothing is there yet"
    cli("send", "orders", '{"id": "1"}', "--app", "app:bus")  # the application declares its groups
    cli("publish", "order.placed", '{"id": "1"}')

    assert [m["body"] for m in waiting(cli, "order.placed@mail", 1)] == [{"id": "1"}]


def test_many_sends_each_line(cli, project):
    (project / "orders.jsonl").write_text("".join(f'{{"id": "{n}"}}\r\n' for n in range(2500)))
    done = cli("send", "orders", "@orders.jsonl", "--many", "--json")

    assert lines(done) == [{"channel": "orders", "sent": 2500, "failed": []}]
    assert [m["body"]["id"] for m in waiting(cli, "orders", 2500)] == [str(n) for n in range(2500)]


def test_many_reads_standard_input_to_a_last_line_without_end(cli):
    done = cli("publish", "order.placed", "-", "--many", input='{"id": "1"}\n{"id": "2"}')

    assert done.exit_code == 0
    assert done.stdout.startswith("2 messages are on order.placed")


@pytest.mark.parametrize("application", [(), ("--app", "app:bus")], ids=["any", "app"])
def test_many_names_the_lines_that_do_not_fit_and_sends_the_others(cli, application):
    text = '{"id": "1"}\nnot json\n{"id": "2"}\n\n'
    done = cli("send", "orders", "-", "--many", "--json", *application, input=text)

    assert done.exit_code == 1
    assert [f["line"] for f in json.loads(done.stdout)["failed"]] == [2, 4]
    assert done.stderr.startswith("msgbus: error: 2 of 4 messages were not sent: line 2: ")
    assert done.stderr.count("\n") == 1
    assert [m["body"]["id"] for m in waiting(cli, "orders", 2)] == ["1", "2"]


def test_request_prints_the_answer_as_it_came(cli, start):
    with start("run", "app:bus") as worker:
        worker.wait_for_line("consuming")
        plain = cli("request", "price", '{"id": "x"}')
        data = cli("request", "price", '{"id": "x"}', "--json", "--app", "app:bus")
        failed = cli("request", "price", '{"id": "bad"}')

    assert plain.stdout == '{"id":"x","total":42.0}\n'
    assert lines(data) == [{"channel": "price", "answer": {"id": "x", "total": 42.0}, "answer_encoding": "json"}]
    assert failed.exit_code == 1
    assert failed.stderr == "msgbus: error: KeyError: 'no such sku'\n"


def test_a_request_that_nobody_answers_says_so(cli):
    done = cli("request", "price", "{}", "--timeout", "0.2")

    assert done.exit_code == 1
    assert "no answer" in done.stderr

"""``msgbus dlq``: dead letters are listed, shown, replayed and dropped."""

from __future__ import annotations

import asyncio
import json

import pytest

from msgbus import Queue, Topic


def bury(channel, *messages, group=None):
    """Let the application fail with *messages* (text, id) of *channel* until all are dead."""

    async def main():
        from app import bus

        async with bus, asyncio.timeout(20):
            await bus.start()
            for count, (text, id) in enumerate(messages, 1):
                options = {"id": id, "headers": {"tenant": "acme"}}
                await (bus.publish(channel, text, **options) if group else bus.send(channel, text, **options))
                while (await bus.stats(channel, group=group)).dead != count:  # noqa: ASYNC110 - it is not our event
                    await asyncio.sleep(0.01)

    asyncio.run(main())


@pytest.fixture
def dead(cli):
    """Three dead letters of ``orders``: d0, d1, and u2, which is not even an order."""
    bury(Queue("orders", str), ('{"id": "bad"}', "d0"), ('{"id": "bad", "total": 2}', "d1"), ("no order", "u2"))
    return cli


def ids(cli, channel="orders"):
    done = cli("dlq", "list", channel, "--json")
    assert done.exit_code == 0, done.output
    return [letter["id"] for letter in json.loads(done.stdout)]


def test_list_says_what_died_and_why(dead):
    table = dead("dlq", "list", "orders").stdout.splitlines()

    assert table[0].split() == ["id", "reason", "attempts", "last", "source", "detail"]
    assert table[1].split()[:3] == ["d0", "failed", "2"]
    assert table[1].endswith("orders  ValueError: no money")
    assert table[3].split()[:3] == ["u2", "undecodable", "1"]
    assert not [line for line in table if line != line.rstrip()]


def test_list_in_json_has_the_whole_letter_and_a_limit(dead):
    (first,) = json.loads(dead("dlq", "list", "orders", "--json", "--limit", "1").stdout)

    assert (first["id"], first["body"], first["headers"]) == ("d0", '{"id": "bad"}', {"tenant": "acme"})
    assert (first["report"]["reason"], first["report"]["attempts"]) == ("failed", 2)
    assert "2 of 3" not in dead("dlq", "list", "orders").stdout
    assert "1 of 3; --limit shows more" in dead("dlq", "list", "orders", "--limit", "1").stdout


def test_show_prints_headers_body_and_traceback(dead):
    done = dead("dlq", "show", "orders", "--id", "d0")

    assert done.exit_code == 0
    assert done.stdout.splitlines()[0] == "d0 on orders"
    for text in ("tenant: acme", "failed: no money", "exception: ValueError", '{"id": "bad"}', 'app.py", line'):
        assert text in done.stdout


def test_show_misses_an_unknown_id(dead):
    done = dead("dlq", "show", "orders", "--id", "d0", "--id", "nope", "--json")

    assert done.exit_code == 1
    assert json.loads(done.stdout)["id"] == "d0"
    assert done.stderr == "msgbus: error: orders has no dead letter nope\n"


def test_replay_sends_back_what_was_chosen(dead):
    done = dead("dlq", "replay", "orders", "--id", "d1", "--json")

    assert json.loads(done.stdout) == {"channel": "orders", "replayed": 1}
    assert ids(dead) == ["d0", "u2"]
    (message,) = [json.loads(dead("tail", "orders", "--json", "--limit", "1").stdout)]
    assert message["id"] == "d1"


def test_replay_and_drop_tell_how_many_ids_are_not_there(dead):
    done = dead("dlq", "drop", "orders", "--id", "d1", "--id", "nope")

    assert done.exit_code == 1
    assert done.stdout == "dropped 1 of orders\n"
    assert done.stderr == "msgbus: error: 1 of the 2 ids are not among the dead letters of orders\n"


def test_drop_all_does_not_ask_a_pipe_and_keeps_to_its_limit(dead):
    assert dead("dlq", "drop", "orders", "--all", "--limit", "2").stdout == "dropped 2 of orders\n"
    assert ids(dead) == ["u2"]
    assert dead("dlq", "drop", "orders", "--all").stdout == "dropped 1 of orders\n"
    assert dead("dlq", "list", "orders").stdout == "orders has no dead letters\n"


def test_drop_all_asks_on_a_terminal(dead, terminal):
    refused = terminal("dlq", "drop", "orders", "--all")
    refused.expect("drop 3 dead letters of orders? [y/N]")
    refused.type("n\n")
    code, said = refused.end()
    assert code == 130
    assert "Traceback" not in said
    assert len(ids(dead)) == 3

    agreed = terminal("dlq", "drop", "orders", "--all")
    agreed.expect("[y/N]")
    agreed.type("y\n")
    assert agreed.end()[0] == 0
    assert ids(dead) == []

    assert terminal("dlq", "drop", "orders", "--all", "--yes").end()[0] == 0


def test_a_table_on_a_terminal_has_lines_and_colours(dead, terminal):
    code, said = terminal("dlq", "list", "orders").end()

    assert code == 0
    assert "┃" in said
    assert "\x1b[" in said
    assert "d0" in said


@pytest.mark.parametrize("verb", ["replay", "drop"])
@pytest.mark.parametrize("choice", [(), ("--id", "d0", "--all")], ids=["neither", "both"])
def test_replay_and_drop_want_ids_or_all(cli, verb, choice):
    done = cli("dlq", verb, "orders", *choice)

    assert done.exit_code == 2
    assert "--all" in done.stderr


def test_dead_letters_of_a_topic_are_its_groups(cli):
    bury(Topic("order.placed", str), ("no order", "p0"), group="mail")

    assert ids(cli, "order.placed@mail") == ["p0"]
    assert json.loads(cli("dlq", "list", "order.placed", "--group", "mail", "--json").stdout)[0]["id"] == "p0"
    assert "order.placed@mail" in cli("dlq", "list", "order.placed@mail").stdout
    mixed = cli("dlq", "list", "order.placed@mail", "--group", "audit")
    assert mixed.exit_code == 2
    nobody = cli("dlq", "list", "order.placed@audit")
    assert nobody.exit_code == 1
    assert "'order.placed@audit' was not found" in nobody.stderr


def test_dead_letters_of_a_queue_with_a_key_are_found_by_its_name(cli):
    bury(Queue("ordered", str, key=lambda _: None), ("no order", "o0"))

    assert ids(cli, "ordered") == ["o0"]
    assert cli("dlq", "replay", "ordered", "--all").stdout == "replayed 1 of ordered\n"


def test_dlq_alone_tells_what_it_can(cli):
    done = cli("dlq")

    assert done.exit_code == 0
    assert "replay" in done.stdout
    assert done.stderr == ""

"""The supervisor's port: agents are served, whatever else connects to it."""

import contextlib
import os
import random
import selectors
import socket
import time

import pytest

from sdtune.launch import agent_server, endpoint
from sdtune.launch.agent_server import AgentServer
from sdtune.launch.wire import LINE_LIMIT, Lines, Message, ProtocolError, encode, parse
from tests import hostile_peers


def test_hostile_peers_cost_the_server_neither_its_life_nor_memory():
    found = hostile_peers.besiege(1_500)
    assert found["after"] - found["before"] < 8 * 2**20


def test_idle_peers_do_not_keep_agents_out():
    with hostile_peers.served(2) as (_, where, token), contextlib.ExitStack() as idle:
        for _ in range(4 * hostile_peers.DESCRIPTORS):
            idle.enter_context(socket.create_connection(where, timeout=20))
        assert hostile_peers.meets(where, token, 1)


def test_without_a_free_descriptor_peers_are_turned_away():
    with hostile_peers.served(4 * hostile_peers.DESCRIPTORS) as (_, where, token):
        with contextlib.ExitStack() as agents:
            turned_away = 0
            for rank in range(hostile_peers.DESCRIPTORS):
                connection = agents.enter_context(socket.create_connection(where, timeout=20))
                try:
                    hostile_peers.join(connection, token, rank)
                except ConnectionError:
                    turned_away += 1
            assert 0 < turned_away < 50
        assert hostile_peers.meets(where, token, 999)


def test_a_peer_that_proves_nothing_is_dropped_in_time(monkeypatch):
    selector = selectors.DefaultSelector()
    server = AgentServer(endpoint.listen_at("127.0.0.1"), 1, selector)
    address, _, port = server.address.rpartition(":")
    with socket.create_connection((address, int(port)), timeout=20):
        while not server.unauthenticated:
            for key, _ in selector.select(1):
                key.data()
        server.drop_old()
        assert server.unauthenticated
        monkeypatch.setattr(agent_server, "_HELLO_SECONDS", 0.0)
        server.drop_old()
        assert not server.unauthenticated
    server.close()


def test_an_agent_that_sends_without_end_is_closed():
    with (
        hostile_peers.served(1) as (_, where, token),
        socket.create_connection(where, timeout=20) as connection,
        contextlib.suppress(ConnectionResetError),
    ):
        hostile_peers.join(connection, token, 0)
        connection.sendall(encode(beat="S") * 1_000)
        while connection.recv(65_536):
            pass


def test_lines_are_cut_in_linear_time():
    lines, began = Lines(), time.process_time()
    found = [line for _ in range(LINE_LIMIT - 1) for line in lines.feed(b"x")] + lines.feed(b"\nrest\n")
    assert [len(line) for line in found] == [LINE_LIMIT - 1, 4]
    assert time.process_time() - began < 2
    with pytest.raises(ProtocolError):
        lines.feed(b"x" * (LINE_LIMIT + 1))


def test_a_message_is_what_an_agent_sends_and_nothing_else():
    assert parse(encode(gone=True, why="", error=None), 0) == Message(gone=True)
    hostile, refused = hostile_peers.lines(random.Random(0)), 0
    for _ in range(500):
        try:
            parse(next(hostile), 0)
        except ProtocolError:
            refused += 1
    assert refused > 400


def test_a_socket_in_a_deep_run_folder_that_only_its_user_may_enter(tmp_path):
    run = tmp_path / ("deep" * 20) / ("deeper" * 20)
    run.mkdir(parents=True)
    for _ in range(2):  # the second time there is a socket of a supervisor that was killed
        server, where = endpoint.listen(run, ["198.51.100.1"])
    assert (run / where).is_socket()
    assert oct((run / where).parent.stat().st_mode & 0o777) == "0o700"
    with server, endpoint.connect(run, where, 5) as connection:
        accepted, _ = server.accept()
        accepted.close()
        assert connection.recv(1) == b""


def test_where_the_run_folder_takes_no_socket(tmp_path, monkeypatch, capsys):
    def refuse(_run):
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(endpoint, "listen_in", refuse)
    server, where = endpoint.listen(tmp_path, ["198.51.100.1"])
    with server, endpoint.connect(tmp_path, where, 5):
        assert where.startswith("127.0.0.1:")
    assert "takes no socket" in capsys.readouterr().out

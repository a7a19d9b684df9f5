"""While the book is executed nothing leaves the machine."""

import os
import subprocess
import sys

import book_execute
import no_network
import pytest

ATTEMPTS = {
    "connect": "socket.socket().connect(('192.0.2.1', 80))",
    "connect_ex": "socket.socket().connect_ex(('192.0.2.1', 80))",
    "create_connection": "socket.create_connection(('example.org', 80), timeout=1)",
    "getaddrinfo": "socket.getaddrinfo('example.org', 80)",
    "gethostbyname": "socket.gethostbyname('example.org')",
    "datagram": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 53))",
    "six": "socket.socket(socket.AF_INET6).connect(('2001:db8::1', 80))",
    "urlopen": "import urllib.request; urllib.request.urlopen('http://example.org', timeout=1)",
}
LOOPBACK = """
import socket, threading
server = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=lambda: server.accept()[0].sendall(b"hello"), daemon=True).start()
for host in ("localhost", "127.0.0.1"):
    print(socket.getaddrinfo(host, 80, socket.AF_INET)[0][4])
print(socket.create_connection(server.getsockname(), timeout=5).recv(5).decode())
a, b = socket.socketpair()
a.sendall(b"pair"); print(b.recv(4).decode())
"""


def python(source):
    """Run `source` in a new process, with the environment of the book's kernels."""
    return subprocess.run(
        [sys.executable, "-c", source], env=book_execute.environment(), capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS.keys())
def test_the_way_out_is_blocked(attempt):
    outcome = python(f"import socket; {attempt}")
    assert outcome.returncode == 1
    assert "the network is off" in outcome.stderr


def test_loopback_and_pairs_work():
    outcome = python(LOOPBACK)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.split()[-2:] == ["hello", "pair"]


def test_without_the_blocker_nothing_is_refused_by_it():
    outcome = subprocess.run(
        [sys.executable, "-c", "import socket; print(hasattr(socket, '_only_loopback'))"],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert outcome.stdout.strip() == "False"


def test_the_tests_themselves_are_offline():
    import socket

    with pytest.raises(OSError, match="the network is off"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


@pytest.mark.parametrize("host", [None, "", "localhost", "127.0.0.1", "127.1.2.3", "::1", b"localhost"])
def test_local_names(host):
    assert no_network.is_local(host)


@pytest.mark.parametrize(
    "host", ["example.org", "10.0.0.1", "192.168.1.1", "169.254.0.1", "2001:db8::1", "localhost.example.org"]
)
def test_foreign_names(host):
    assert not no_network.is_local(host)

"""Block every connection that leaves this machine.

`block()` patches `socket` so that only loopback addresses and Unix sockets can be reached. A name
other than ``localhost`` is refused before it is looked up. Tests and the book's notebooks run so:
what they need ships with the repository, and an accidental download fails with a clear message.
"""

import ipaddress
import socket

_INET = (socket.AF_INET, socket.AF_INET6)


def is_local(host) -> bool:
    """Whether `host` (a name, an address, bytes or None) can only mean this machine."""
    if host is None:
        return True
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host in ("", "localhost", "localhost.localdomain", "0.0.0.0", "::"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse(host) -> None:
    raise OSError(f"the network is off while the book is built and tested: {host!r} cannot be reached")


def block() -> None:
    """Patch the socket module of this process; a second call does nothing."""
    if getattr(socket, "_only_loopback", False):
        return
    socket._only_loopback = True  # type: ignore[attr-defined]
    lookup = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if not is_local(host):
            _refuse(host)
        return lookup(host, *args, **kwargs)

    def guarded(original, address_at):
        def method(self, *args):
            address = args[address_at]
            if self.family in _INET and not is_local(address[0]):
                _refuse(address[0])
            return original(self, *args)

        return method

    socket.getaddrinfo = getaddrinfo
    # create_connection resolves through getaddrinfo and connects through connect: both are guarded.
    socket.socket.connect = guarded(socket.socket.connect, 0)  # type: ignore[method-assign]
    socket.socket.connect_ex = guarded(socket.socket.connect_ex, 0)  # type: ignore[method-assign]
    socket.socket.sendto = guarded(socket.socket.sendto, -1)  # type: ignore[method-assign]
    for name in ("gethostbyname", "gethostbyname_ex"):
        setattr(socket, name, _guarded_lookup(getattr(socket, name)))


def _guarded_lookup(original):
    def lookup(host):
        if not is_local(host):
            _refuse(host)
        return original(host)

    return lookup

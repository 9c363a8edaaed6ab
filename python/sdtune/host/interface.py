"""The network interface of this host that leads to an address."""

import fcntl
import socket
import struct

_SIOCGIFADDR = 0x8915
_NAME_SIZE = 256


def _address_of(name: str) -> str:
    """The IPv4 address of an interface; empty if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack(f"{_NAME_SIZE}s", name.encode()[:15]))
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


def source_address(target: str) -> str:
    """The address of this host from which it reaches ``target``, a name or an address. Nothing is sent.

    Raises:
        OSError: there is no way, or no such name.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((target, 9))
        address: str = probe.getsockname()[0]
    return address


def interface_towards(target: str) -> str:
    """Name of the interface from which this host reaches ``target``, which may be this host itself.

    Returns:
        The first that has the source address; empty if none has it, as with a second address of an interface.

    Raises:
        OSError: there is no way, or no such name.
    """
    source = source_address(target)
    return next((name for _, name in socket.if_nameindex() if _address_of(name) == source), "")

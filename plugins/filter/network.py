"""Addresses of hosts, and the interfaces that carry them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def host_addresses(hosts: Iterable[str], variables: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """{host: address} of an inventory: its ``cluster_address``, else its ``ansible_host``, else its name."""

    def address(host: str) -> str:
        own = variables[host]
        return own.get("cluster_address") or own.get("ansible_host") or host

    return {host: address(host) for host in hosts}


def web_environment(proxy: str, without: Iterable[str], certificates: str) -> dict[str, str]:
    """Variables for programs that speak HTTP; none for what is not set, so that a host's own settings remain.

    Args:
        proxy: URL of a proxy, or empty.
        without: names and addresses that are reached without it.
        certificates: file of the certificates to trust, or empty.
    """
    found = {}
    if proxy:
        found = {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": ",".join(dict.fromkeys(without))}
        found |= {name.upper(): value for name, value in found.items()}
    if certificates:
        # Python and OpenSSL; requests, and so conda and the hub's client; curl; pip.
        names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
        found |= dict.fromkeys(names, certificates)
    return found


def interface_of(facts: Mapping[str, Any], address: str) -> str:
    """Name of the network interface that has an IPv4 address; empty where none has it.

    Args:
        facts: A host's ``ansible_facts``, with the subset ``network``.
        address: As the host's resolver gives it.
    """
    for name in facts.get("interfaces", []):
        device = facts.get(name.replace("-", "_"), {})  # Ansible names facts so
        addresses = [device.get("ipv4", {}), *device.get("ipv4_secondaries", [])]
        if address and any(known.get("address") == address for known in addresses):
            return device["device"]
    return ""


class FilterModule:
    """Filters for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """{name: function}."""
        return {
            "host_addresses": host_addresses,
            "web_environment": web_environment,
            "interface_of": interface_of,
        }

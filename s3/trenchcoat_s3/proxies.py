"""Which proxy a store is reached through, by the variables that other programs heed, too."""

import ipaddress
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

_SCHEMES = ("http", "https")


class UnusableProxyError(ValueError):
    """A variable names a proxy that cannot be used; the message says which, and holds no password."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A forwarding proxy."""

    variable: str
    """The variable that names it, such as HTTPS_PROXY."""
    url: str
    """Without user and password."""
    login: str = field(default="", repr=False)
    """user:password, decoded; empty where none is asked for."""

    def __str__(self) -> str:
        return f"the proxy {self.url} ({self.variable})"


def proxy_of(endpoint: str, environment: Mapping[str, str] | None = None) -> Proxy | None:
    """The proxy that requests to an endpoint go through; none where they go straight there.

    HTTPS_PROXY or HTTP_PROXY by the endpoint's scheme, else ALL_PROXY; NO_PROXY lists names, domains with or
    without a leading dot, addresses, networks such as 10.0.0.0/8, each perhaps with a port, or *. Names in
    small letters win.

    Args:
        endpoint: A URL with http or https.
        environment: That of the process by default.

    Raises:
        UnusableProxyError: the proxy is no URL with http or https.
    """
    environment = os.environ if environment is None else environment
    address = urlsplit(endpoint)
    for name in (f"{address.scheme}_proxy", "all_proxy"):
        variable = name if name in environment else name.upper()  # empty, too: that is how one is taken off
        value = environment.get(variable, "").strip()
        if value:
            break
    else:
        return None
    listed = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    port = address.port or (443 if address.scheme == "https" else 80)
    if _is_excepted(address.hostname or "", port, listed):
        return None
    return _parsed(variable, value)


def proxied(endpoint: str) -> str:
    """The proxy before an endpoint as messages name it; empty where there is none."""
    try:
        proxy = proxy_of(endpoint)
    except UnusableProxyError:
        return ""
    return str(proxy) if proxy is not None else ""


def _parsed(variable: str, value: str) -> Proxy:
    if "://" not in value:
        value = f"http://{value}"
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in _SCHEMES:
        raise UnusableProxyError(
            f"the variable {variable} names no proxy that can be used: write http://HOST:PORT, or exempt the "
            "store by NO_PROXY"
        )
    host = f"[{host}]" if ":" in host else host
    url = f"{parts.scheme}://{host}" + (f":{port}" if port else "")
    login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}" if parts.username else ""
    return Proxy(variable, url, login)


def _is_excepted(host: str, port: int, listed: str) -> bool:
    names = [name.strip() for name in listed.replace(" ", ",").split(",") if name.strip()]
    if "*" in names:
        return True
    try:
        own = ipaddress.ip_address(host)
    except ValueError:
        # The library's own reading, of names alone; it wants to be given port and name as one.
        bypass = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
        return bool(bypass(f"{host}:{port}", {"no": ",".join(names)}))
    return any(_holds(name, own, port) for name in names)


def _holds(name: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> bool:
    """Whether an entry of NO_PROXY means an address: one, a network, or one with a port."""
    try:
        return address in ipaddress.ip_network(name.strip("[]"), strict=False)
    except ValueError:
        bare, _, own_port = name.rpartition(":")
    try:
        return own_port == str(port) and address == ipaddress.ip_address(bare.strip("[]"))
    except ValueError:
        return False

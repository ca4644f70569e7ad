"""Devices by dynamic resource allocation: classes, what drivers tell of nodes, and what claims hold.

Read from resource.k8s.io/v1, as Kubernetes 1.34 and newer serve it. A DeviceClass may stand for an extended
resource (KEP-5004): pods then ask for nvidia.com/gpu as ever, though no node has it among its allocatable
resources.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
DeviceName = tuple[str, str, str]
"""Driver, pool and name."""

_KEEPS_OFF = ("NoSchedule", "NoExecute")
_EXTENDED_CLAIM = "resource.kubernetes.io/extended-resource-claim"
_DRIVER = re.compile(r"""device\.driver\s*==\s*(["'])([^"']+)\1""")
_ATTRIBUTE = re.compile(
    r"""device\.attributes\[(["'])(?P<domain>[^"']+)\1\]\.(?P<name>\w+)\s*==\s*(["'])(?P<value>[^"']*)\4"""
)


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """A DeviceClass that stands for an extended resource."""

    resource: str
    drivers: frozenset[str] = frozenset()
    """Drivers that its devices must be of: more than one is met by none."""
    attributes: tuple[tuple[str, str], ...] = ()
    """Attributes, with their domain, and the text that each must be."""
    told: bool = True
    """False where its selectors ask for more than can be read here: its devices are unknown then."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a node."""

    name: DeviceName
    attributes: Mapping[str, str]
    """Those that are text, with their domain."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Some devices of a pool, all of one node."""

    node: str
    driver: str
    pool: str
    generation: int
    """Slices of an older generation of the pool do not count any more."""
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """A ResourceClaim that has devices, and was not made for an extended resource, of which its pod tells."""

    devices: tuple[DeviceName, ...]


def device_class(body: Object) -> DeviceClass | None:
    """A DeviceClass; None where it stands for no extended resource."""
    spec = body.get("spec") or {}
    resource = spec.get("extendedResourceName")
    if not resource:
        return None
    drivers, attributes = set(), []
    for selector in spec.get("selectors") or []:
        expression = str((selector.get("cel") or {}).get("expression") or "")
        for term in expression.split("&&"):
            if driver := _DRIVER.fullmatch(term.strip()):
                drivers.add(driver[2])
            elif found := _ATTRIBUTE.fullmatch(term.strip()):
                attributes.append((f"{found['domain']}/{found['name']}", found["value"]))
            else:
                return DeviceClass(str(resource), told=False)
    return DeviceClass(str(resource), frozenset(drivers), tuple(attributes))


def resource_slice(body: Object) -> Slice | None:
    """A ResourceSlice; None where its devices are not those of one node."""
    spec = body.get("spec") or {}
    if not spec.get("nodeName"):
        return None
    driver, pool = str(spec.get("driver") or ""), spec.get("pool") or {}
    name = str(pool.get("name") or "")
    devices = tuple(
        Device((driver, name, str(item.get("name") or "")), _texts(driver, item.get("attributes") or {}))
        for item in spec.get("devices") or []
        if not any(taint.get("effect") in _KEEPS_OFF for taint in item.get("taints") or [])
    )
    return Slice(str(spec["nodeName"]), driver, name, int(pool.get("generation") or 0), devices)


def claim(body: Object) -> Claim | None:
    """A ResourceClaim; None where it has no devices, or has them for an extended resource."""
    if (body["metadata"].get("annotations") or {}).get(_EXTENDED_CLAIM) == "true":
        return None
    allocation = (body.get("status") or {}).get("allocation") or {}
    results = (allocation.get("devices") or {}).get("results") or []
    held = tuple(
        (str(item.get("driver") or ""), str(item.get("pool") or ""), str(item.get("device") or ""))
        for item in results
        if not item.get("adminAccess")
    )
    return Claim(held) if held else None


def _texts(driver: str, attributes: Object) -> dict[str, str]:
    return {
        name if "/" in name else f"{driver}/{name}": str(value["string"])
        for name, value in attributes.items()
        if "string" in value
    }

"""Domain definitions as text: what a tenant, Nova or libvirt might write."""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import quoteattr

from tests.builders import uuid_of

NOVA_1_0: Final = "http://openstack.org/xmlns/libvirt/nova/1.0"
NOVA_1_1: Final = "http://openstack.org/xmlns/libvirt/nova/1.1"


def nova_xml(
    policy: str | None = None,
    *,
    key: str = "hw:emulator_threads_policy",
    specs: bool = True,
    flavor: str | None = "m1.nfv",
    namespace: str = NOVA_1_1,
) -> str:
    """Return Nova's element; without `specs` it is of a Nova before 2025.2."""
    spec = f'<n:extraSpec name="{key}">{policy}</n:extraSpec>' if policy is not None else ""
    inner = f"<n:extraSpecs>{spec}</n:extraSpecs>" if specs else ""
    named = f"<n:flavor name={quoteattr(flavor)}>{inner}</n:flavor>" if flavor is not None else ""
    return f"<n:instance xmlns:n={quoteattr(namespace)}>{named}</n:instance>"


def own_xml(namespace: str = "urn:emupool:libvirt:1", **attributes: str) -> str:
    """Return emupool's own element."""
    text = " ".join(f"{name}={quoteattr(value)}" for name, value in attributes.items())
    return f"<e:guest xmlns:e={quoteattr(namespace)} {text}/>"


def domain_xml(
    inner: str = "",
    *,
    number: int = 1,
    running_as: int | None = 1,
    metadata: str = "",
    vcpus: str = "2",
) -> str:
    """Return a domain with `inner` among its elements."""
    identity = "" if running_as is None else f" id='{running_as}'"
    return (
        f"<domain type='kvm'{identity}><name>guest-{number}</name><uuid>{uuid_of(number)}</uuid>"
        f"<metadata>{metadata}</metadata><vcpu placement='static'>{vcpus}</vcpu>{inner}</domain>"
    )


NOVA_ISOLATE: Final = """
  <iothreads>1</iothreads>
  <cputune>
    <emulatorpin cpuset='6'/>
    <iothreadpin cpuset='6' iothread='1'/>
    <vcpupin vcpu='0' cpuset='4'/>
    <vcpupin vcpu='1' cpuset='5'/>
  </cputune>
  <numatune>
    <memory mode='strict' nodeset='0'/>
    <memnode cellid='0' mode='strict' nodeset='0'/>
  </numatune>
"""
"""A 2-vCPU isolate guest as Nova 2026.1 writes it."""

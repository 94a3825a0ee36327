"""A bundle from a host: all that a plan is made from, and no secret."""

from __future__ import annotations

import json
import stat
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from agent import bundle
from agent.domainxml import parse
from agent.errors import GuestFailed, Refused
from agent.redaction import redact
from agent.sysfs import Sysfs
from tests import hosts
from tests.definitions import NOVA_1_0, NOVA_1_1, NOVA_ISOLATE, domain_xml, nova_xml, own_xml
from tests.service import Service, wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.guests import Guest
    from tests.libvirtd import Libvirtd


def unpack(file: Path, folder: Path) -> Path:
    with tarfile.open(file) as archive:
        # Debian 12's Python knows no filters, and later ones want to be told of one.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)  # noqa: S202 - the bundle is ours
    return folder / bundle.TOP


# the host


@pytest.mark.parametrize("machine", [hosts.XEON_SNC, hosts.NO_NUMA], ids=["SNC", "no NUMA"])
def test_a_host_is_discovered_again_from_its_bundle(machine: hosts.Machine) -> None:
    assert_the_same(machine)


@settings(max_examples=25)
@given(hosts.machines())
def test_so_is_any_host_of_any_kernel(machine: hosts.Machine) -> None:
    assert_the_same(machine)


def assert_the_same(machine: hosts.Machine) -> None:
    with tempfile.TemporaryDirectory(dir=hosts.MEMORY) as name:
        folder = Path(name)
        found = Sysfs(hosts.write(machine, folder / "host"))
        bundle.write(folder / "b.tar.gz", [bundle.sysfs(found.read())], 0)
        again = Sysfs(unpack(folder / "b.tar.gz", folder / "out") / "root")
        assert again.discover().host == found.discover().host


# the file


def test_a_bundle_is_its_owners_and_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "b.tar.gz"
    file.write_text("older")
    file.chmod(0o644)
    bundle.write(file, [bundle.Tree({"a/b": "text"}, ("empty",))], 0)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]
    top = unpack(file, tmp_path / "out")
    assert (top / "a/b").read_text() == "text"
    assert (top / "empty").is_dir()


def test_a_bundle_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "b.tar.gz"
    file.write_text("older")

    def trees() -> Any:  # noqa: ANN401 - an iterator that fails
        yield bundle.Tree({"a": "text"})
        raise OSError(28, "No space left on device")

    with pytest.raises(Refused, match=r"b\.tar\.gz: No space left"):
        bundle.write(file, trees(), 0)
    assert file.read_text() == "older"
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(Refused, match="a folder that exists"):
        bundle.write(tmp_path / "none" / "b", [], 0)


# secrets

DEVICES = """
  <devices>
    <graphics type='vnc' passwd='s3cret' passwdValidTo='2030-01-01T00:00:00'/>
    <graphics type='spice' password='s3cret'/>
    <disk type='network'><auth username='s3cret'><secret type='ceph' uuid='s3cret'/></auth>
      <source protocol='https'><cookies><cookie name='a'>s3cret</cookie></cookies></source>
      <encryption format='luks'><secret type='passphrase' uuid='s3cret'/></encryption></disk>
  </devices>
  <launchSecurity type='sev'><session>s3cret</session></launchSecurity>
  <sysinfo type='smbios'><system><entry name='serial'>s3cret</entry></system></sysinfo>
  <q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>
    <q:arg value='s3cret'/></q:commandline>
"""
OWNER = "<n:owner><n:user uuid='1'>s3cret</n:user><n:project uuid='2'>s3cret</n:project></n:owner>"
OTHERS = "<t:note xmlns:t='http://tenant.example/'>s3cret</t:note><note>s3cret</note>"


@pytest.mark.parametrize("namespace", [NOVA_1_0, NOVA_1_1])
def test_a_definition_without_its_secrets_means_the_same(namespace: str) -> None:
    nova = nova_xml("isolate", namespace=namespace).replace(
        "</n:instance>", f"{OWNER}</n:instance>"
    )
    metadata = nova + own_xml(policy="share", weight="2", cell="1") + OTHERS
    text = domain_xml(NOVA_ISOLATE + DEVICES, metadata=metadata)
    assert text.count("s3cret") == 13
    redacted = redact(text)
    assert "s3cret" not in redacted
    assert parse(redacted) == parse(text)


@pytest.mark.parametrize("text", ["<domain", "<other/>", "<!DOCTYPE a><domain/>"])
def test_what_is_no_definition_is_not_taken_for_one(text: str) -> None:
    with pytest.raises(GuestFailed):
        redact(text)


def test_a_definition_nested_beyond_reason_is_one_guests_failure() -> None:
    with pytest.raises(GuestFailed):
        redact("<domain>" + "<a>" * 100_000 + "</a>" * 100_000 + "</domain>")


# the whole way


@pytest.mark.real
def test_a_bundle_of_a_live_host_is_replayed_into_the_same_plan(
    libvirtd: Libvirtd, make_guest: Callable[..., Guest], tmp_path: Path
) -> None:
    service = Service(libvirtd.uri, tmp_path, pool={"cpus": "0-1", "source": "free"})
    make_guest("first", metadata_policy="isolate", emulatorpin="1", vnc=True).define().start()
    make_guest("second", nova_policy="isolate", emulatorpin="1").define().start()
    make_guest("third", metadata_policy="isolate", emulatorpin="0").define()
    service.start()
    wait(lambda: service.cycles() > 1, "a cycle")
    assert service.stop() == 0
    fourth = make_guest("fourth", metadata_policy="isolate", emulatorpin="1").define().start()
    libvirtd.virsh("emulatorpin", fourth.uuid, "0", "--live")  # what it was started with is 1
    file = tmp_path / "bundle.tar.gz"
    done = service.run("collect", str(file), "--config", str(service.config))
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1, "the daemon does not run, so it has no status"
    assert done.stdout.startswith(f"{file}: 4 domains")
    live = service.run("plan", "--json", "--config", str(service.config))
    there = unpack(file, tmp_path / "elsewhere")
    command = done.stdout.partition("emupool plan")[2].split()
    replayed = service.run(
        "plan", "--json", *(str(there / w) if w[0] != "-" else w for w in command)
    )
    assert (replayed.returncode, replayed.stderr) == (0, "")
    assert (live.returncode, live.stderr) == (0, "")
    assert json.loads(replayed.stdout) == json.loads(live.stdout)
    assert [step["reason"] for step in json.loads(live.stdout)["steps"]] == [
        "arrive",
        "widen",
        "widen",
    ]


def test_a_host_without_libvirt_has_no_bundle(tmp_path: Path) -> None:
    service = Service(f"qemu+unix:///system?socket={tmp_path}/none", tmp_path)
    done = service.run("collect", str(tmp_path / "b"), "--config", str(service.config))
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "b").exists()

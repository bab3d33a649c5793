"""The wires of a local cluster: a switch in a namespace of its own, one cable per machine.

Nothing outside of this computer can talk to the machines: they have no default route, so
they cannot answer anybody but each other and this computer. The switch has a namespace of
its own because firewall rules of this computer (Docker's, for example) apply to its bridges.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cluster.local.state import LocalClusterError, Machine

_TOOLS = ("ip", "mount", "nsenter", "unshare")
NAMESPACES = ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--kill-child"]


def check_permitted() -> None:
    """Refuses a computer on which machines cannot be pretended.

    Raises:
        LocalClusterError: saying what is missing, and what to do.
    """
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise LocalClusterError(
            f"{', '.join(missing)} not found. On Debian and Ubuntu: "
            "apt-get install iproute2 util-linux (the local cluster runs on Linux only)."
        )
    trial = [*NAMESPACES, "--mount-proc", "ip", "link", "set", "lo", "up"]
    done = subprocess.run(trial, capture_output=True, text=True)
    if done.returncode:
        raise LocalClusterError(
            f"Namespaces are not permitted here ({done.stderr.strip()}). Be root, or start a "
            "shell in which you are: unshare --map-root-user --net --mount --pid --fork "
            "--mount-proc --kill-child bash (and submit from that shell). In a container it "
            "takes --privileged. Where neither is allowed, use one machine without a cluster: "
            "`rlprune sweep` starts Ray by itself."
        )


def choose_network(name: str) -> str:
    """First three bytes of a private network that this computer does not use yet.

    Raises:
        LocalClusterError: none of those tried is free.
    """
    used = list(_used_networks())
    for attempt in range(64):
        seed = hashlib.sha256(f"{os.getuid()} {name} {attempt}".encode()).digest()
        candidate = f"10.{200 + seed[0] % 50}.{seed[1]}"
        network = ipaddress.ip_network(f"{candidate}.0/24")
        if not any(network.overlaps(other) for other in used):
            return candidate
    raise LocalClusterError(
        "No free network of 10.200.0.0 to 10.249.255.0 was found for the local cluster: stop "
        "other local clusters (cluster/local/down --name NAME) or leave the VPN that uses them."
    )


def _used_networks() -> Iterator[ipaddress.IPv4Network]:
    for route in json.loads(_run("ip", "-json", "-4", "route", "show", "table", "all") or "[]"):
        try:
            network = ipaddress.ip_network(route["dst"], strict=False)
        except ValueError:  # "default"
            continue
        if isinstance(network, ipaddress.IPv4Network):
            yield network


def make_switch(hub: Machine, interface: str, gateway: str) -> None:
    """Makes a bridge in the hub and connects this computer to it.

    Args:
        hub: whose namespace holds the bridge.
        interface: name of this computer's end of the cable (at most 15 characters).
        gateway: this computer's address on it.
    """
    _in_hub(hub, "ip", "link", "set", "lo", "up")
    _in_hub(hub, "ip", "link", "add", "switch", "type", "bridge")
    _in_hub(hub, "ip", "link", "set", "switch", "up")
    _plug(hub, "gateway", interface, os.getpid())
    # This computer must neither pass packets on from there nor talk IPv6 on it.
    for setting, value in (("ipv4/conf/{}/forwarding", "0"), ("ipv6/conf/{}/disable_ipv6", "1")):
        path = Path("/proc/sys/net") / setting.format(interface)
        if path.exists():  # a kernel may have no IPv6
            path.write_text(value)
    _run("ip", "address", "add", f"{gateway}/24", "dev", interface)
    _run("ip", "link", "set", interface, "up")


def plug_in(hub: Machine, name: str, pid: int) -> None:
    """Connects the machine whose outer process is ``pid``; inside, the cable is eth0."""
    _plug(hub, name, "eth0", pid)


def cut(hub: Machine, name: str) -> None:
    """Pulls a machine's cable: packets are lost without notice, as in a partition."""
    _in_hub(hub, "ip", "link", "set", f"to-{name}", "down")


def join(hub: Machine, name: str) -> None:
    """Plugs it in again."""
    _in_hub(hub, "ip", "link", "set", f"to-{name}", "up")


def namespace(pid: int, kind: str = "net") -> str:
    """Identity of a process's namespace; empty if the process is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def _plug(hub: Machine, name: str, interface: str, pid: int) -> None:
    _unplug(hub, name)
    peer = ["peer", "name", interface, "netns", str(pid)]
    _in_hub(hub, "ip", "link", "add", f"to-{name}", "type", "veth", *peer)
    _in_hub(hub, "ip", "link", "set", f"to-{name}", "master", "switch", "up")


def _unplug(hub: Machine, name: str) -> None:
    """Removes the cable that a machine of this name had before it was switched off.

    The kernel does so too, but at a time of its own after the machine's last process.
    """
    end = f"to-{name}"
    links = json.loads(_in_hub(hub, "ip", "-json", "link", "show") or "[]")
    if any(link["ifname"] == end for link in links):
        # "|| true": it may have gone between the two commands. If not, adding it will say so.
        _in_hub(hub, "sh", "-c", f"ip link delete {end} 2>/dev/null || true")


def _in_hub(hub: Machine, *command: str) -> str:
    return _run("nsenter", "--target", str(hub.pid), "--net", *command)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LocalClusterError(
            f"`{' '.join(command)}` failed: {done.stderr.strip()}. "
            "Clean up with cluster/local/down, then try again."
        )
    return done.stdout

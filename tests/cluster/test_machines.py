"""Machines of cluster/local that are switched off, cut off and brought back; and no root needed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from local_cluster import RunningCluster, local_cluster

from cluster.local import machines, network, service
from cluster.local.state import HEAD, LocalClusterError

pytestmark = pytest.mark.slow

LOCAL = Path(machines.__file__).parent
FAST_HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""Ray's own take more than a minute to give up a machine whose cable was pulled."""
SETTLED_SECONDS = 10.0
"""Ray begins to ask a new machine for its health after five seconds."""

WHERE = """
import os, socket, sys, time, ray
ray.init()

@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)
class Watcher:
    def where(self, folder):
        path = os.path.join(folder, socket.gethostname())
        open(path, "w").close()
        while not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.1)
        return socket.gethostname()

print("RAN ON", ray.get(Watcher.remote().where.remote(sys.argv[1])))
"""
"""An actor that tells where it runs, waits for a file, and runs again where its machine is lost.

As trials and their workers are. A plain task would wait until its connection breaks: minutes
after a cable was pulled, whatever the head has found out meanwhile.
"""


def wait_until(done: Callable[[], bool], seconds: float = 180) -> float:
    """Waits for a condition; returns how long it took [s]."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < seconds
        time.sleep(0.1)
    return time.monotonic() - began


def state(cluster: RunningCluster, name: str) -> str:
    return next(view.state for view in service.status(cluster.folder) if view.name == name)


@pytest.mark.parametrize("fault", ["kill", "cut"])
def test_an_actor_runs_again_elsewhere_and_the_machine_comes_back(
    fault: str, tmp_path: Path
) -> None:
    with local_cluster("testfaults", workers=2, **FAST_HEALTH_CHECKS) as cluster:
        head = cluster.folder.read_machine(HEAD)
        assert head is not None
        environment = machines.node_environment(cluster.folder, cluster.shape)
        environment["RAY_ADDRESS"] = f"{cluster.head}:{machines.GCS_PORT}"
        command = [*machines.enter(head), sys.executable, "-c", WHERE, str(tmp_path)]
        driver = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            wait_until(lambda: any(tmp_path.glob("worker*")))
            (first,) = [path.name for path in tmp_path.glob("worker*")]
            time.sleep(SETTLED_SECONDS)
            breaks = {"kill": service.kill_one, "cut": service.cut}
            breaks[fault](cluster.folder, first)
            wait_until(lambda: len(list(tmp_path.glob("worker*"))) == 2)
            (tmp_path / "go").touch()
            output, _ = driver.communicate(timeout=120)
        finally:
            driver.kill()
            driver.wait()
        (second,) = {"worker1", "worker2"} - {first}
        assert f"RAN ON {second}" in output
        # The actor's owner may have known it before the head's own list did.
        wait_until(lambda: state(cluster, first) == "dead", 60)
        assert state(cluster, second) == "alive"
        if fault == "cut":  # a node that comes back is told that it is dead, and ends
            service.join(cluster.folder, first)
            lost = cluster.folder.read_machine(first)
            assert lost is not None
            wait_until(lambda: not lost.lives())
        service.up(cluster.folder, cluster.shape, lambda _: None)
        assert state(cluster, first) == "alive"


def test_no_root_is_needed_where_user_namespaces_are_permitted() -> None:
    """The README's command line: what runs inside is gone with the shell."""
    name = "testrootless"
    outer = ["unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork"]
    outer += ["--mount-proc", "--kill-child", "bash", "-c"]
    commands = f"{LOCAL}/up --name {name} --workers 1 && {LOCAL}/status --name {name}"
    environment = {**os.environ, "PYTHON": sys.executable}
    try:
        network.check_permitted()
    except LocalClusterError as error:
        pytest.skip(str(error))
    before = set(network_interfaces())
    done = subprocess.run(
        [*outer, f"{commands}; result=$?; {LOCAL}/down --name {name}; exit $result"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("alive") == 2
    assert set(network_interfaces()) <= before


def network_interfaces() -> list[str]:
    return [path.name for path in Path("/sys/class/net").iterdir()]

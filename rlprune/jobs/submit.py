"""Submitting a sweep, or a preflight check, to a cluster through Ray Jobs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlprune.errors import ClusterError
from rlprune.jobs import WAIT_SECONDS, attempts, environment
from rlprune.jobs.access import Cluster, connect
from rlprune.jobs.package import SPEC_FILE, packed
from rlprune.jobs.places import check_places
from rlprune.jobs.watch import (
    KIND_KEY,
    STOP_SECONDS,
    STORAGE_KEY,
    SWEEP_KEY,
    Job,
    asked,
    list_jobs,
)
from rlprune.sweep import layout
from rlprune.sweep.spec import SweepSpec, load_spec

_ENTRY = "rlprune.jobs.entry"


@dataclass(frozen=True)
class Shipment:
    """What a job gets besides its specification.

    Attributes:
        code: folder with modules of the user's own.
        rlprune: whether this installation of rlprune goes along.
        environment: names of variables of this process that the job needs.
    """

    code: Path | None = None
    rlprune: bool = True
    environment: Sequence[str] = ()


def submit(
    spec: SweepSpec | str | Path,
    address: str,
    *,
    overrides: Sequence[str] = (),
    storage_path: str | None = None,
    shipment: Shipment = Shipment(),
    preflight: bool = True,
    wait_for_nodes: int = WAIT_SECONDS,
    allow_unauthenticated: bool = False,
) -> Job:
    """Starts a sweep on a cluster, or goes on with the one in its storage.

    Args:
        spec: the sweep, its YAML file, or a preset's name.
        address: http(s)://host:port of Ray's dashboard.
        overrides: ``a.b=value`` for a file or preset.
        storage_path: replaces the specification's; a URI or a folder that all nodes share.
        shipment: code and environment variables.
        preflight: whether the job checks every node before it starts.
        wait_for_nodes: seconds that the check waits for nodes on which a trial fits.
        allow_unauthenticated: accept a server on loopback that asks for no token.

    Returns:
        The job, which is running or about to.

    Raises:
        ConfigError: the specification, or what is shipped; every problem is listed.
        ClusterError: the job server; or the sweep is running there already.
    """
    resolved = resolve(spec, overrides, storage_path)
    arguments = ["--wait-for-nodes", str(wait_for_nodes)] if preflight else ["--no-preflight"]
    prepared = _Prepared.of(resolved, shipment, arguments, allow_unauthenticated)
    cluster = connect(address, allow_unauthenticated)
    _check_not_running(cluster, resolved)
    return prepared.send(cluster, attempts.SWEEP)


def submit_preflight(
    spec: SweepSpec | str | Path,
    address: str,
    *,
    overrides: Sequence[str] = (),
    storage_path: str | None = None,
    shipment: Shipment = Shipment(),
    wait_for_nodes: int = 0,
    allow_unauthenticated: bool = False,
) -> Job:
    """Only checks every node of a cluster: see :func:`submit`; the job prints a table.

    Raises:
        ConfigError, ClusterError: see :func:`submit`.
    """
    resolved = resolve(spec, overrides, storage_path)
    arguments = ["--preflight-only", "--wait-for-nodes", str(wait_for_nodes)]
    prepared = _Prepared.of(resolved, shipment, arguments, allow_unauthenticated)
    return prepared.send(connect(address, allow_unauthenticated), attempts.PREFLIGHT)


def resolve(
    spec: SweepSpec | str | Path, overrides: Sequence[str], storage_path: str | None
) -> SweepSpec:
    """The complete specification that is shipped.

    Raises:
        ConfigError: listing every problem.
    """
    given = list(overrides)
    if storage_path is not None:
        given.append(f"storage_path={storage_path}")
    if not isinstance(spec, SweepSpec):
        return load_spec(spec, given)
    if given:
        raise TypeError("overrides and storage_path are for a file or preset")
    return spec


@dataclass(frozen=True)
class _Prepared:
    """A job that has been checked as far as that can be done without a cluster."""

    spec: SweepSpec
    shipment: Shipment
    values: dict[str, str]
    entrypoint: str

    @classmethod
    def of(
        cls, spec: SweepSpec, shipment: Shipment, arguments: list[str], unauthenticated: bool
    ) -> _Prepared:
        check_places(spec, shipment.code is not None)
        values = environment.collect(shipment.environment, os.environ)
        if unauthenticated:
            arguments = [*arguments, "--allow-unauthenticated"]
        command = ["python", "-m", _ENTRY, SPEC_FILE, *arguments]
        return cls(spec, shipment, values, shlex.join(command))

    def send(self, cluster: Cluster, kind: str) -> Job:
        env_vars = {
            # Ray's default kills the driver before Tune has saved its state.
            "RAY_JOB_STOP_SIGNAL": "SIGINT",
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
        }
        runtime_env: dict[str, Any] = {"env_vars": env_vars}
        mailbox = environment.new_mailbox()
        with packed(self.spec, self.shipment.code, self.shipment.rlprune) as archive:
            runtime_env["working_dir"] = str(archive)
            if self.values:
                env_vars[environment.MAILBOX] = mailbox
                runtime_env["worker_process_setup_hook"] = environment.HOOK
                cluster.store(mailbox, environment.pack(self.values))
            try:
                return Job(cluster, self._submitted(cluster, kind, runtime_env))
            except BaseException:
                if self.values:
                    cluster.store(mailbox, b"")
                raise

    def _submitted(self, cluster: Cluster, kind: str, runtime_env: dict[str, Any]) -> str:
        """Submits under the next free id, which somebody else may take at the same time."""
        client = asked(cluster, cluster.client)
        uri = layout.experiment(self.spec.storage_path, self.spec.name)
        metadata = {SWEEP_KEY: self.spec.name, STORAGE_KEY: uri, KIND_KEY: kind}
        taken = ""
        while True:
            known = [str(job.submission_id) for job in asked(cluster, client.list_jobs)]
            job = attempts.next_id(self.spec.name, kind, [*known, taken])
            try:
                client.submit_job(
                    entrypoint=self.entrypoint,
                    submission_id=job,
                    runtime_env=runtime_env,
                    metadata=metadata,
                )
                return job
            except RuntimeError as error:
                if "already exists" not in str(error) or job in known:
                    text = " ".join(str(error).split())[:500]
                    raise ClusterError(f"{cluster.address}: {job} was refused: {text}") from None
                taken = job


def _check_not_running(cluster: Cluster, spec: SweepSpec) -> None:
    uri = layout.experiment(spec.storage_path, spec.name)
    for job in list_jobs(cluster):
        if job.experiment == uri and job.kind == attempts.SWEEP and not job.over:
            raise ClusterError(
                f"{job.id} is at work on {uri}. Follow it with `rlprune jobs logs {job.id} "
                f"--follow`, or stop it first: `rlprune jobs stop {job.id}`."
            )

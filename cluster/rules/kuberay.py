"""Rules for KubeRay's RayCluster and RayJob."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from cluster.rules.common import Versions, image_problems
from rlprune.errors import Problem

_UNITS: dict[str, float] = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 1e-3}
GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class _Group:
    """Head or one group of workers.

    Attributes:
        where: its place in the file.
        spec: the group.
        pod: its pod's specification.
        ray: the container in which Ray runs: KubeRay takes the first.
    """

    where: str
    spec: dict[str, Any]
    pod: dict[str, Any]
    ray: dict[str, Any]


def kuberay_problems(document: dict[str, Any], versions: Versions) -> list[Problem]:
    """Everything that breaks our rules; the CRD's schema is checked apart from that."""
    spec = document.get("spec") or {}
    if document.get("kind") == "RayJob":
        return _job(spec) + _cluster("spec.rayClusterSpec", spec.get("rayClusterSpec"), versions)
    return _cluster("spec", spec, versions)


def quantity(text: object) -> float:
    """A quantity of Kubernetes as a number: bytes, cores or pieces.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{text!r} is no quantity")
    return float(found[1]) * _UNITS[found[2]]


def _groups(where: str, spec: dict[str, Any]) -> Iterator[_Group]:
    places = [(f"{where}.headGroupSpec", spec.get("headGroupSpec") or {})]
    for index, group in enumerate(spec.get("workerGroupSpecs") or []):
        places.append((f"{where}.workerGroupSpecs[{index}]", group))
    for place, group in places:
        pod = (group.get("template") or {}).get("spec") or {}
        yield _Group(place, group, pod, (pod.get("containers") or [{}])[0])


def _cluster(where: str, spec: dict[str, Any] | None, versions: Versions) -> list[Problem]:
    spec = spec or {}
    problems = []
    mode = (spec.get("authOptions") or {}).get("mode")
    if mode != "token":
        remedy = "Write authOptions: {mode: token, secretName: rlprune-token}."
        problems.append(Problem(f"{where}.authOptions.mode", "must be token", mode, remedy))
    if spec.get("rayVersion") != versions.ray:
        rule = f"must be {versions.ray}, as in constraints.txt"
        remedy = "Correct it: the operator chooses Ray's options by it."
        problems.append(Problem(f"{where}.rayVersion", rule, spec.get("rayVersion"), remedy))
    problems += _autoscaler(where, spec)
    start = (spec.get("headGroupSpec") or {}).get("rayStartParams") or {}
    if start.get("num-cpus") != "0":
        place = f"{where}.headGroupSpec.rayStartParams.num-cpus"
        remedy = 'Write num-cpus: "0": trials would starve Ray\'s own services.'
        problems.append(Problem(place, 'must be "0"', start.get("num-cpus"), remedy))
    for group in _groups(where, spec):
        problems += _group(group, versions)
    return problems


def _autoscaler(where: str, spec: dict[str, Any]) -> list[Problem]:
    if not spec.get("enableInTreeAutoscaling"):
        return []
    version = (spec.get("autoscalerOptions") or {}).get("version")
    problems = []
    if version != "v2":
        place, remedy = f"{where}.autoscalerOptions.version", "Write version: v2."
        problems.append(Problem(place, "must be v2", version, remedy))
    for group in _groups(where, spec):
        if group.pod.get("restartPolicy") != "Never":
            place = f"{group.where}.template.spec.restartPolicy"
            remedy = "Autoscaler v2 replaces pods; a container that restarts confuses it."
            value = group.pod.get("restartPolicy")
            problems.append(Problem(place, "must be Never", value, remedy))
    return problems


def _group(group: _Group, versions: Versions) -> list[Problem]:
    container = f"{group.where}.template.spec.containers[0]"
    limits = (group.ray.get("resources") or {}).get("limits") or {}
    variant = "cuda" if GPU in limits else "cpu"
    problems = image_problems(f"{container}.image", group.ray.get("image"), versions, variant)
    for item in group.ray.get("env") or []:
        if item.get("name") == "RAY_AUTH_MODE" and item.get("value") != "token":
            rule, remedy = "must not switch authentication off", "Remove it."
            problems.append(Problem(f"{container}.env", rule, item.get("value"), remedy))
    problems += _resources(f"{container}.resources", group.ray.get("resources") or {})
    problems += _shared_memory(group, container, limits)
    if not any("secretRef" in source for source in group.ray.get("envFrom") or []):
        rule, remedy = "must take the storage's keys from a Secret", "See cluster/README.md."
        value = group.ray.get("envFrom")
        problems.append(Problem(f"{container}.envFrom", rule, value, remedy))
    if not (group.pod.get("securityContext") or {}).get("runAsNonRoot"):
        place = f"{group.where}.template.spec.securityContext.runAsNonRoot"
        problems.append(Problem(place, "must be true", None, "The image's user is 1000."))
    return problems


def _resources(where: str, resources: dict[str, Any]) -> list[Problem]:
    """Pods that may use more than they asked for are the first to be killed."""
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    problems = []
    for name in sorted({"cpu", "memory", *requests, *limits}):
        if name not in limits or str(requests.get(name)) != str(limits[name]):
            value = f"{requests.get(name)} requested, limit {limits.get(name)}"
            remedy = "Write the same number twice: Ray plans with the limit."
            problems.append(Problem(f"{where} ({name})", "requests = limits", value, remedy))
    return problems


def _shared_memory(group: _Group, container: str, limits: dict[str, Any]) -> list[Problem]:
    """Kubernetes gives a pod 64 MB of /dev/shm; Ray's object store lies there."""
    mounts = group.ray.get("volumeMounts") or []
    name = next((m.get("name") for m in mounts if m.get("mountPath") == "/dev/shm"), None)
    volumes = {volume.get("name"): volume for volume in group.pod.get("volumes") or []}
    folder = (volumes.get(name) or {}).get("emptyDir") or {}
    if folder.get("medium") != "Memory" or "sizeLimit" not in folder:
        rule = "must mount an emptyDir {medium: Memory, sizeLimit: ...} at /dev/shm"
        remedy = "Add the volume, and to volumeMounts {name: shm, mountPath: /dev/shm}."
        return [Problem(f"{container}.volumeMounts", rule, name, remedy)]
    try:
        if quantity(folder["sizeLimit"]) < quantity(limits.get("memory")):
            return []
        rule = f"must be below the memory limit, {limits.get('memory')}: it counts as memory"
    except ValueError as error:
        rule = f"must be comparable with the memory limit: {error}"
    value = folder["sizeLimit"]
    return [Problem(f"{group.where}: volume {name}", rule, value, "Lower sizeLimit.")]


def _job(spec: dict[str, Any]) -> list[Problem]:
    problems = []
    if not int(spec.get("backoffLimit") or 0) > 0:
        remedy = "Write backoffLimit: 3: a lost head costs a new cluster, not the sweep."
        value = spec.get("backoffLimit")
        problems.append(Problem("spec.backoffLimit", "must be above 0", value, remedy))
    if spec.get("shutdownAfterJobFinishes") is not True:
        value = spec.get("shutdownAfterJobFinishes")
        remedy = "Write shutdownAfterJobFinishes: true: else the cluster costs on."
        problems.append(Problem("spec.shutdownAfterJobFinishes", "must be true", value, remedy))
    return problems + _entrypoint(spec) + _runtime_environment(spec)


def _entrypoint(spec: dict[str, Any]) -> list[Problem]:
    entrypoint = str(spec.get("entrypoint") or "")
    words = shlex.split(entrypoint)
    problems = []
    if words[:3] != ["python", "-m", "rlprune.jobs.entry"]:
        rule = "must start with python -m rlprune.jobs.entry, which restores or starts a sweep"
        remedy = "Anything else begins anew with every attempt."
        problems.append(Problem("spec.entrypoint", rule, entrypoint, remedy))
    pairs = [*itertools.pairwise(words), *(word.split("=", 1) for word in words if "=" in word)]
    if not any(name == "--storage-path" and "://" in value for name, value in pairs):
        rule = "must name --storage-path URI (object storage): pods share no folder"
        remedy = "Add: --storage-path s3://BUCKET/FOLDER"
        problems.append(Problem("spec.entrypoint", rule, entrypoint, remedy))
    return problems


def _runtime_environment(spec: dict[str, Any]) -> list[Problem]:
    where, text = "spec.runtimeEnvYAML", spec.get("runtimeEnvYAML") or "{}"
    try:
        variables = (yaml.safe_load(text) or {}).get("env_vars") or {}
    except (yaml.YAMLError, AttributeError):
        return [Problem(where, "must be a mapping in YAML", "(not shown)", "Mend it.")]
    names = [name for name in variables if name.startswith("AWS_") or "TOKEN" in name]
    problems = []
    if names:
        rule = "must hold no keys: Ray writes it into its logs"
        remedy = "Put them into the Secret rlprune-s3."
        problems.append(Problem(where, rule, ", ".join(names), remedy))
    if variables.get("RAY_JOB_STOP_SIGNAL") != "SIGINT":
        remedy = "Add env_vars: {RAY_JOB_STOP_SIGNAL: SIGINT, RAY_JOB_STOP_WAIT_TIME_S: '60'}."
        rule = "must let Tune save when the job is stopped"
        problems.append(Problem(where, rule, variables.get("RAY_JOB_STOP_SIGNAL"), remedy))
    return problems

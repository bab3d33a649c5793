"""The manifests in cluster/ are good, and each way of breaking one is caught."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.check import CRDS_VARIABLE, check_file, find_crds, shipped_files
from cluster.rules.common import REPOSITORY, Versions, secret_problems
from cluster.rules.image import image_recipe_problems
from cluster.rules.kuberay import quantity
from cluster.rules.schema import load_schema, schema_problems
from rlprune.errors import FileAccessError

CLUSTER = REPOSITORY / "cluster"
RAYCLUSTER, RAYJOB = CLUSTER / "kuberay/raycluster.yaml", CLUSTER / "kuberay/rayjob.yaml"
AWS, ON_PREMISES = CLUSTER / "launcher/aws.yaml", CLUSTER / "launcher/on_premises.yaml"
DOCKERFILE = CLUSTER / "image/Dockerfile"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def crds() -> Path:
    folder = find_crds()
    if folder is None:
        pytest.skip(f"the KubeRay operator's CRDs are not here; {CRDS_VARIABLE} names their folder")
    return folder


def broken(path: Path, change: Change, folder: Path, crds: Path | None = None) -> str:
    """What is said of a manifest after a change."""
    document = yaml.safe_load(path.read_text())
    change(document)
    changed = folder / path.name
    changed.write_text(yaml.safe_dump(document))
    return "\n".join(map(str, check_file(changed, crds)))


def pod(document: dict[str, Any], group: str = "headGroupSpec") -> dict[str, Any]:
    part = document["spec"].get("rayClusterSpec", document["spec"])[group]
    part = part[0] if isinstance(part, list) else part
    found: dict[str, Any] = part["template"]["spec"]
    return found


def container(document: dict[str, Any], group: str = "headGroupSpec") -> dict[str, Any]:
    found: dict[str, Any] = pod(document, group)["containers"][0]
    return found


# --------------------------------------------------------------------------- as they are


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: path.name)
def test_every_shipped_manifest_is_good(path: Path) -> None:
    assert check_file(path) == []


@pytest.mark.parametrize("path", [RAYCLUSTER, RAYJOB], ids=lambda path: path.name)
def test_kuberay_manifests_fit_the_crds_to_the_last_key(path: Path, crds: Path) -> None:
    assert check_file(path, crds) == []


def test_a_job_starts_the_same_cluster_as_the_one_that_stays() -> None:
    cluster = yaml.safe_load(RAYCLUSTER.read_text())["spec"]
    assert yaml.safe_load(RAYJOB.read_text())["spec"]["rayClusterSpec"] == cluster


def test_versions_are_those_of_constraints_and_pyproject() -> None:
    versions = Versions.read()
    constraints = (REPOSITORY / "constraints.txt").read_text().splitlines()
    assert f"ray=={versions.ray}" in constraints and f"torch=={versions.torch}" in constraints
    assert versions.tag("cpu") == f"{versions.rlprune}-ray{versions.ray}-cpu"


def test_cpus_for_rollouts_and_gpus_for_learners() -> None:
    groups = yaml.safe_load(RAYCLUSTER.read_text())["spec"]["workerGroupSpecs"]
    limits = {
        group["groupName"]: group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for group in groups
    }
    assert "nvidia.com/gpu" not in limits["rollouts"]
    assert limits["learners"]["nvidia.com/gpu"] == 1


# --------------------------------------------------------------------------- broken: KubeRay


def _no_shared_memory(document: dict[str, Any]) -> None:
    container(document, "workerGroupSpecs").pop("volumeMounts")


def _disk_as_shared_memory(document: dict[str, Any]) -> None:
    pod(document)["volumes"][0]["emptyDir"].pop("medium")


def _all_memory_shared(document: dict[str, Any]) -> None:
    pod(document)["volumes"][0]["emptyDir"]["sizeLimit"] = "8Gi"


def _inline_key(document: dict[str, Any]) -> None:
    value = {"name": "AWS_SECRET_ACCESS_KEY", "value": "hunter2"}
    container(document)["env"] = [value]


def _authentication_off_in_a_pod(document: dict[str, Any]) -> None:
    container(document)["env"] = [{"name": "RAY_AUTH_MODE", "value": "disabled"}]


def _of(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["spec"].get("rayClusterSpec", document["spec"])
    return found


def _set_image(image: str, group: str = "headGroupSpec") -> Change:
    return lambda document: container(document, group).update(image=image)


KUBERAY_BREAKS: dict[str, tuple[Change, str]] = {
    "no token": (lambda d: _of(d).pop("authOptions"), r"authOptions\.mode: must be token"),
    "authentication disabled": (
        lambda d: _of(d)["authOptions"].update(mode="disabled"),
        r"authOptions\.mode: must be token \(got 'disabled'\)",
    ),
    "authentication off in a pod": (_authentication_off_in_a_pod, "must not switch auth"),
    "another rayVersion": (
        lambda d: _of(d).update(rayVersion="2.59.0"),
        r"rayVersion: must be 2\.",
    ),
    "another image": (_set_image("registry.example.com/rlprune:0.1.0-ray2.59.0-cpu"), "the tag"),
    "latest image": (_set_image("rayproject/ray:latest"), r"image: must have the tag"),
    "no tag, but a port": (_set_image("registry.example.com:5000/rlprune"), "must have the tag"),
    "CUDA without GPUs": (
        _set_image(f"r/rlprune:{Versions.read().tag('cuda')}", "workerGroupSpecs"),
        r"workerGroupSpecs\[0\].*image: must have the tag \S*-cpu",
    ),
    "no shared memory": (_no_shared_memory, r"workerGroupSpecs\[0\].*volumeMounts: must mount"),
    "shared memory on disk": (_disk_as_shared_memory, "must mount an emptyDir"),
    "shared memory as large as the pod": (_all_memory_shared, "below the memory limit, 8Gi"),
    "requests below limits": (
        lambda d: container(d)["resources"].update(requests={"cpu": "1", "memory": "8Gi"}),
        r"resources \(cpu\): requests = limits \(got '1 requested, limit 2'\)",
    ),
    "no memory limit": (
        lambda d: container(d).update(resources={"limits": {"cpu": 1}, "requests": {"cpu": 1}}),
        r"resources \(memory\)",
    ),
    "trials on the head": (
        lambda d: _of(d)["headGroupSpec"].update(rayStartParams={}),
        r"num-cpus: must be \"0\"",
    ),
    "autoscaler v1": (
        lambda d: _of(d)["autoscalerOptions"].update(version="v1"),
        r"version: must be v2",
    ),
    "restarts in place": (lambda d: pod(d).pop("restartPolicy"), "restartPolicy: must be Never"),
    "no keys from a Secret": (lambda d: container(d).pop("envFrom"), "keys from a Secret"),
    "inline secret": (_inline_key, "must hold no secret, but a value stands there"),
    "as root": (lambda d: pod(d).pop("securityContext"), "runAsNonRoot: must be true"),
    "another API": (lambda d: d.update(apiVersion="ray.io/v1alpha1"), "must be ray.io/v1"),
}


@pytest.mark.parametrize("path", [RAYCLUSTER, RAYJOB], ids=lambda path: path.name)
@pytest.mark.parametrize("name", KUBERAY_BREAKS)
def test_broken_kuberay_manifests_are_refused(name: str, path: Path, tmp_path: Path) -> None:
    change, message = KUBERAY_BREAKS[name]
    said = broken(path, change, tmp_path)
    assert re.search(message, said), said
    assert "hunter2" not in said


JOB_BREAKS: dict[str, tuple[Change, str]] = {
    "starts anew each time": (
        lambda d: d["spec"].update(entrypoint="rlprune sweep sweep_digits"),
        "rlprune.jobs.entry, which restores",
    ),
    "results in the pod": (
        lambda d: d["spec"].update(entrypoint="python -m rlprune.jobs.entry sweep_digits"),
        "must name --storage-path URI",
    ),
    "no retry": (lambda d: d["spec"].pop("backoffLimit"), "backoffLimit: must be above 0"),
    "cluster stays": (
        lambda d: d["spec"].update(shutdownAfterJobFinishes=False),
        "shutdownAfterJobFinishes: must be true",
    ),
    "stop without saving": (lambda d: d["spec"].pop("runtimeEnvYAML"), "must let Tune save"),
    "keys in the runtime environment": (
        lambda d: d["spec"].update(runtimeEnvYAML="env_vars: {AWS_SECRET_ACCESS_KEY: hunter2}"),
        "Ray writes it into its logs",
    ),
}


@pytest.mark.parametrize("name", JOB_BREAKS)
def test_broken_jobs_are_refused(name: str, tmp_path: Path) -> None:
    change, message = JOB_BREAKS[name]
    said = broken(RAYJOB, change, tmp_path)
    assert re.search(message, said), said
    assert "hunter2" not in said


def test_the_storage_path_may_follow_an_equals_sign(tmp_path: Path) -> None:
    line = "python -m rlprune.jobs.entry sweep_digits --storage-path=s3://bucket/x"
    assert broken(RAYJOB, lambda d: d["spec"].update(entrypoint=line), tmp_path) == ""


SCHEMA_BREAKS: dict[str, tuple[Change, str]] = {
    "unknown key at the top": (lambda d: d.update(specs={}), "'specs' was unexpected"),
    "unknown key in the cluster": (lambda d: _of(d).update(rayVersoin="2.60.0"), "rayVersoin"),
    "unknown key in a container": (lambda d: container(d).update(img="x"), "'img' was unexpected"),
    "unknown key in a volume": (
        lambda d: pod(d)["volumes"][0]["emptyDir"].update(size="1Gi"),
        "'size' was unexpected",
    ),
    "unknown key in metadata": (lambda d: d["metadata"].update(nmae="x"), "'nmae'"),
    "unknown mode": (lambda d: _of(d)["authOptions"].update(mode="on"), "'on' is not one of"),
    "number for a string": (
        lambda d: _of(d)["headGroupSpec"].update(rayStartParams={"num-cpus": 0}),
        "0 is not of type 'string'",
    ),
    "no containers": (lambda d: pod(d).pop("containers"), "'containers' is a required property"),
}


@pytest.mark.parametrize("path", [RAYCLUSTER, RAYJOB], ids=lambda path: path.name)
@pytest.mark.parametrize("name", SCHEMA_BREAKS)
def test_what_the_crds_do_not_know_is_refused(
    name: str, path: Path, tmp_path: Path, crds: Path
) -> None:
    change, message = SCHEMA_BREAKS[name]
    said = broken(path, change, tmp_path, crds)
    assert message in said and "must fit the CRD" in said, said


def test_a_schema_is_closed_at_every_depth_but_where_it_says_otherwise(tmp_path: Path) -> None:
    inner = {"type": "object", "properties": {"known": {"type": "string"}}}
    free = {"type": "object", "additionalProperties": {"type": "string"}}
    kept = {**copy.deepcopy(inner), "x-kubernetes-preserve-unknown-fields": True}
    spec = {"type": "object", "properties": {"list": {"type": "array", "items": inner}}}
    spec["properties"] |= {"labels": free, "kept": kept}
    definition = {"name": "v1", "schema": {"openAPIV3Schema": {"properties": {"spec": spec}}}}
    (tmp_path / "rayjobs.yaml").write_text(yaml.safe_dump({"spec": {"versions": [definition]}}))
    schema = load_schema(tmp_path, "RayJob")
    good = {"list": [{"known": "a"}], "labels": {"any": "b"}, "kept": {"any": 1}}
    assert schema_problems({"metadata": {"name": "x"}, "spec": good}, schema) == []
    bad = schema_problems({"spec": {"list": [{}, {"unknown": "a"}]}}, schema)
    assert [problem.field for problem in bad] == ["spec.list.1"]


def test_a_missing_crd_is_an_error_not_a_pass(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="no CRD of RayCluster v1"):
        load_schema(tmp_path, "RayCluster")


@pytest.mark.parametrize(
    ("text", "number"),
    [("8Gi", 8 * 2**30), ("500m", 0.5), (2, 2), ("1.5G", 1.5e9), ("100Mi", 100 * 2**20)],
)
def test_quantities(text: object, number: float) -> None:
    assert quantity(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["8 Gi", "8Gb", "", None, "lots"])
def test_what_is_no_quantity(text: object) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantity(text)


# --------------------------------------------------------------------------- broken: launcher


def _without(option: str) -> Change:
    def change(config: dict[str, Any]) -> None:
        docker = config["docker"]
        docker["run_options"] = [o for o in docker["run_options"] if option not in o]

    return change


LAUNCHER_BREAKS: dict[str, tuple[Change, str]] = {
    "unknown key": (lambda c: c.update(max_wrokers=3), "'max_wrokers' was unexpected"),
    "unknown key of the provider": (
        lambda c: c["provider"].update(worker_ip="10.0.0.1"),
        r"provider\.worker_ip: is unknown to Ray",
    ),
    "no token mode": (_without("RAY_AUTH_MODE"), "must set RAY_AUTH_MODE=token"),
    "no token file": (_without("RAY_AUTH_TOKEN_PATH"), "file_mounts copies to every machine"),
    "token not copied": (lambda c: c.update(file_mounts={}), "file_mounts copies to every"),
    "mode of the copy unchecked": (lambda c: c.pop("setup_commands"), "mode is 600"),
    "another image": (
        lambda c: c["docker"].update(image="registry.example.com/rlprune:0.1.0-ray2.61.0-cpu"),
        r"docker\.image: must have the tag",
    ),
    "no image": (lambda c: c.pop("docker"), "must name an image"),
    "missing shm": (
        lambda c: c["docker"].update(disable_shm_size_detection=True),
        "at Docker's 64 MB",
    ),
    "inline token": (
        lambda c: c["docker"]["run_options"].append("--env RAY_AUTH_TOKEN=hunter2"),
        "must hold no secret, but looks like a secret variable",
    ),
    "inline key": (
        lambda c: c["head_start_ray_commands"].append(f"export AWS_KEY=AKIA{'A' * 16}"),
        "looks like a key of AWS",
    ),
    "open dashboard": (
        lambda c: c["head_start_ray_commands"].append("ray start --dashboard-host=0.0.0.0"),
        "on the head's loopback",
    ),
}


@pytest.mark.parametrize("path", [AWS, ON_PREMISES], ids=lambda path: path.name)
@pytest.mark.parametrize("name", LAUNCHER_BREAKS)
def test_broken_launcher_files_are_refused(name: str, path: Path, tmp_path: Path) -> None:
    change, message = LAUNCHER_BREAKS[name]
    said = broken(path, change, tmp_path)
    assert re.search(message, said), said
    assert "hunter2" not in said


def _instance_tpye(config: dict[str, Any]) -> None:
    node = config["available_node_types"]["learners"]["node_config"]
    node["InstanceTpye"] = node.pop("InstanceType")


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        (AWS, lambda c: c.update(head_node_type="haed"), "`head_node_type` must be one of"),
        (AWS, lambda c: c["available_node_types"]["head"].pop("resources"), "'resources' is a req"),
        (AWS, lambda c: c.update(max_workers=1) or _at_least(c, 2), "`max_workers` is smaller"),
        (
            AWS,
            lambda c: c["available_node_types"]["learners"]["docker"].update(worker_image="r/x:1"),
            r"learners\.docker\.worker_image: must have the tag",
        ),
        (AWS, _instance_tpye, 'must fit EC2.s API: Unknown parameter in input: "InstanceTpye"'),
        (ON_PREMISES, lambda c: c["provider"].pop("worker_ips"), "supply a `head_ip` and list"),
        (ON_PREMISES, lambda c: c.update(available_node_types={"x": {}}), "not supported for on-p"),
    ],
    ids=["head type", "resources", "max_workers", "GPU image", "EC2", "worker_ips", "node types"],
)
def test_what_only_one_provider_refuses(
    path: Path, change: Change, message: str, tmp_path: Path
) -> None:
    said = broken(path, change, tmp_path)
    assert re.search(message, said), said


def _at_least(config: dict[str, Any], workers: int) -> None:
    config["available_node_types"]["rollouts"]["min_workers"] = workers


# --------------------------------------------------------------------------- broken: image


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("RAY_VERSION=2.60.0", "RAY_VERSION=2.59.0", "ARG RAY_VERSION: must be 2.60.0"),
        ("ARG TORCH_VERSION=2.14.1\n", "", "ARG TORCH_VERSION: must be 2.14.1"),
        ("COPY rlprune rlprune", "COPY source rlprune", "must copy what exists (got 'source')"),
        ("-c constraints.txt torch", "torch", "pip must install tested versions"),
        ("USER 1000:1000\n", "", "must end as a user other than root"),
        ("USER 1000:1000", "USER ray", "given as a number"),
        ("ENV HOME", "ENV RAY_AUTH_TOKEN=hunter2 HOME", "must hold no secret"),
        ("pip install", "pip download", "must install rlprune"),
    ],
)
def test_a_broken_image_recipe_is_refused(old: str, new: str, message: str) -> None:
    text = DOCKERFILE.read_text()
    assert old in text
    problems = image_recipe_problems(text.replace(old, new), REPOSITORY, Versions.read())
    said = "\n".join(map(str, problems))
    assert message in said and "hunter2" not in said, said


def test_the_build_context_holds_what_the_recipe_copies_and_nothing_else() -> None:
    lines = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copies = [line.split()[1:-1] for line in DOCKERFILE.read_text().splitlines() if "COPY" in line]
    assert {source for sources in copies for source in sources} == allowed
    assert lines[1] == "*"


# --------------------------------------------------------------------------- secrets, command


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("# export AWS_SECRET_ACCESS_KEY=abc", True),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", True),
        ("url: https://user:pass@s3.example.com", True),
        ("token: 0123456789abcdef0123456789abcdef", True),
        ("RAY_AUTH_TOKEN=$(cat file)", False),
        ("RAY_AUTH_TOKEN_PATH=/home/ray/token", False),
        (f"image: rlprune@sha256:{'a' * 64}", False),
        ("secretName: rlprune-token", False),
    ],
)
def test_secrets_are_found_in_the_text_and_never_repeated(text: str, found: bool) -> None:
    problems = secret_problems(text, [yaml.safe_load(text)] if ":" in text else [])
    assert bool(problems) is found
    assert all(problem.value == "(not shown)" for problem in problems)


def test_a_secret_with_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text("apiVersion: v1\nkind: Secret\nstringData: {auth_token: x}\n")
    assert "must hold no secret" in str(check_file(path)[0])


def test_the_command_names_file_and_problem_and_exits_2(tmp_path: Path) -> None:
    bad = tmp_path / "mine.yaml"
    bad.write_text(RAYCLUSTER.read_text().replace("mode: token", "mode: disabled"))
    other = tmp_path / "other.yaml"
    other.write_text("kind: Deployment\n")
    command = [sys.executable, "-m", "cluster.check", str(bad), str(other)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert "mine.yaml: 1 problems" in done.stdout
    assert "authOptions.mode: must be token (got 'disabled')" in done.stderr
    assert "must be a launcher file, a RayCluster or a RayJob" in done.stderr
    assert "Traceback" not in done.stderr

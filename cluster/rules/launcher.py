"""Rules for files of Ray's cluster launcher (`ray up`)."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import shlex
from pathlib import Path
from typing import Any

import ray.autoscaler

from cluster.rules.common import Versions, image_problems
from rlprune.errors import Problem

_MORE_PROVIDER_KEYS = {"coordinator_address", "external_head_ip"}  # Ray reads, but lists not
_MODE, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"


def launcher_problems(config: dict[str, Any], versions: Versions) -> list[Problem]:
    """Everything wrong with a launcher file: by Ray's own validation first, then by ours."""
    problems = _by_ray(config)
    if problems:
        return problems  # ours expect parts that Ray's validation guarantees
    docker = config.get("docker") or {}
    if not any(docker.get(kind) for kind in ("image", "head_image", "worker_image")):
        rule, remedy = "must name an image", "Nodes must have equal versions: see cluster/image."
        return [Problem("docker.image", rule, None, remedy)]
    problems = _images(config, docker, versions) + _provider(config["provider"])
    if config["provider"].get("type") == "aws":
        problems += _instances(config)
    problems += _authentication(config, docker)
    problems += _shared_memory(docker)
    return problems + _dashboard(config)


def _by_ray(config: dict[str, Any]) -> list[Problem]:
    """Ray's validation, which needs no network; it prints and exits, or raises."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            validate_config(prepare_config(config))
    except (Exception, SystemExit) as error:
        # jsonschema's messages quote the whole file after their first line.
        message = getattr(error, "message", None) or str(error) or "refused"
        path = ".".join(map(str, getattr(error, "absolute_path", ()))) or "the file"
        said = " ".join(output.getvalue().split())
        rule = f"must pass Ray's own validation: {message.splitlines()[0]} {said}".strip()
        return [Problem(path, rule, type(error).__name__, "See Ray's cluster YAML reference.")]
    return []


def _provider(provider: dict[str, Any]) -> list[Problem]:
    """Ray ignores what it does not know there: a misspelt setting would go unnoticed."""
    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    listed = json.loads(schema.read_text(encoding="utf-8"))["properties"]["provider"]["properties"]
    known = {*listed, *_MORE_PROVIDER_KEYS}
    rule, remedy = "is unknown to Ray, which would ignore it", "Correct or remove it."
    return [Problem(f"provider.{key}", rule, key, remedy) for key in provider if key not in known]


def _instances(config: dict[str, Any]) -> list[Problem]:
    """Node types against EC2's own description of RunInstances, which botocore carries."""
    try:
        import botocore.session
        from botocore.validate import ParamValidator
    except ImportError:
        rule, remedy = "needs boto3, for this check and for `ray up`", "pip install boto3"
        return [Problem("provider.type", rule, "aws", remedy)]
    model = botocore.session.get_session().get_service_model("ec2")
    shape = model.operation_model("RunInstances").input_shape
    problems = []
    for name, kind in config["available_node_types"].items():
        node = {**kind["node_config"], "MinCount": 1, "MaxCount": 1}  # these Ray adds
        report = ParamValidator().validate(node, shape).generate_report()
        for line in report.splitlines():
            where, remedy = f"available_node_types.{name}.node_config", "See EC2's RunInstances."
            problems.append(Problem(where, f"must fit EC2's API: {line}", name, remedy))
    return problems


def _images(config: dict[str, Any], docker: dict[str, Any], versions: Versions) -> list[Problem]:
    # On premises all nodes share one image, with or without GPUs; elsewhere types differ.
    found = [(f"docker.{key}", docker[key]) for key in docker if key.endswith("image")]
    for name, kind in (config.get("available_node_types") or {}).items():
        image = (kind.get("docker") or {}).get("worker_image")
        if image:
            found.append((f"available_node_types.{name}.docker.worker_image", image))
    return [p for where, image in found for p in image_problems(where, image, versions, "cpu cuda")]


def _variables(options: list[Any]) -> dict[str, str]:
    """Variables that `docker run` options set."""
    words = [word for option in options for word in shlex.split(str(option))]
    pairs = itertools.pairwise(words)
    found = [value for flag, value in pairs if flag in ("-e", "--env")]
    found += [word.partition("=")[2] for word in words if word.startswith("--env=")]
    return {name: value for name, _, value in (text.partition("=") for text in found)}


def _authentication(config: dict[str, Any], docker: dict[str, Any]) -> list[Problem]:
    where = "docker.run_options"
    variables = _variables(docker.get("run_options") or [])
    problems = []
    if variables.get(_MODE) != "token":
        remedy = f"Add: --env {_MODE}=token"
        problems.append(Problem(where, f"must set {_MODE}=token", variables.get(_MODE), remedy))
    path, mounts = variables.get(_PATH, ""), config.get("file_mounts") or {}
    if not any(path == mount or path.startswith(f"{mount}/") for mount in mounts):
        rule = f"{_PATH} must name a file that file_mounts copies to every machine"
        remedy = f"Add: --env {_PATH}=/home/ray/.rlprune/token, and its folder to file_mounts."
        problems.append(Problem(where, rule, path or None, remedy))
    # Only a check on the machine knows the mode that the copy has.
    commands = config.get("setup_commands") or []
    if not any("stat" in command and "600" in command and _PATH in command for command in commands):
        rule = "must check on every machine that the token's mode is 600"
        remedy = f'Add: test "$(stat -c %a "${_PATH}")" = 600'
        problems.append(Problem("setup_commands", rule, commands, remedy))
    return problems


def _shared_memory(docker: dict[str, Any]) -> list[Problem]:
    """Docker gives 64 MB; Ray asks for more, unless it is told not to."""
    options = [str(option) for option in docker.get("run_options") or []]
    sized = any("--shm-size" in option for option in options)
    if not docker.get("disable_shm_size_detection") or sized:
        return []
    rule = "leaves /dev/shm at Docker's 64 MB: Ray's object store would be on disk"
    remedy = "Remove it, or give --shm-size in docker.run_options."
    return [Problem("docker.disable_shm_size_detection", rule, True, remedy)]


def _dashboard(config: dict[str, Any]) -> list[Problem]:
    commands = " ".join(config.get("head_start_ray_commands") or [])
    if "--dashboard-host" not in commands:
        return []
    rule = "must leave the dashboard on the head's loopback: its traffic is not encrypted"
    remedy = "Remove --dashboard-host; `ray dashboard FILE` tunnels to it."
    return [Problem("head_start_ray_commands", rule, "--dashboard-host", remedy)]

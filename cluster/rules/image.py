"""Rules for the image recipe, as far as they can be checked without building it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from cluster.rules.common import Versions
from rlprune.errors import Problem


def image_recipe_problems(text: str, repository: Path, versions: Versions) -> list[Problem]:
    """Everything wrong with a Dockerfile.

    Args:
        text: of the Dockerfile.
        repository: what COPY copies from.
        versions: those that its arguments must name.
    """
    instructions = list(_instructions(text))
    problems = _versions(instructions, versions) + _sources(instructions, repository)
    installs = [line for line in instructions if "pip install" in line]
    for line in installs:
        if line.count("pip install") != line.count("-c constraints.txt"):
            remedy = "Add: -c constraints.txt"
            problems.append(Problem("RUN", "pip must install tested versions", line, remedy))
    if not installs:
        problems.append(Problem("RUN", "must install rlprune", None, "Restore it from git."))
    users = [line.split()[1] for line in instructions if line.startswith("USER ")]
    user = users[-1].partition(":")[0] if users else "root"
    if not user.isdigit() or user == "0":
        rule = "must end as a user other than root, given as a number"
        remedy = "Kubernetes checks runAsNonRoot with numbers only: USER 1000:1000"
        problems.append(Problem("USER", rule, user, remedy))
    for line in instructions:
        if line.startswith(("ENV ", "ARG ")) and re.search(r"(TOKEN|SECRET|PASSWORD|KEY)=", line):
            remedy = "Everybody who has the image can read it: give it at run time."
            problems.append(Problem(line.split()[0], "must hold no secret", "(not shown)", remedy))
    return problems


def _instructions(text: str) -> Iterator[str]:
    """Instructions, each on one line, without comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            yield " ".join(line.split())


def _versions(instructions: list[str], versions: Versions) -> list[Problem]:
    found = dict(
        line.removeprefix("ARG ").split("=", 1)
        for line in instructions
        if line.startswith("ARG ") and "=" in line
    )
    wanted = {"RAY_VERSION": versions.ray, "TORCH_VERSION": versions.torch}
    return [
        Problem(
            f"ARG {name}",
            f"must be {version}, as in constraints.txt",
            found.get(name),
            "Correct it.",
        )
        for name, version in wanted.items()
        if found.get(name) != version
    ]


def _sources(instructions: list[str], repository: Path) -> list[Problem]:
    problems = []
    for line in instructions:
        if not line.startswith(("COPY ", "ADD ")):
            continue
        *sources, _ = [word for word in shlex.split(line)[1:] if not word.startswith("--")]
        for source in sources:
            if not (repository / source).exists():
                remedy = "Correct the path; it is relative to the repository."
                problems.append(Problem("COPY", "must copy what exists", source, remedy))
    return problems

"""What all manifests share: versions, images, secrets, reading a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlprune.errors import ConfigError, FileAccessError, Problem

REPOSITORY = Path(__file__).resolve().parents[2]

_SECRET_NAME = re.compile(r"token|secret|passw|access_?key|api_?key|credential", re.IGNORECASE)
_PLACE_NAME = re.compile(r"(_|^)(path|file|name|mode)$|(Name|Mode|Path|Ref|File|Token)$")
_SECRET_TEXT = {
    "a key of AWS": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a token": re.compile(r"(?<!sha256:)\b[0-9a-f]{32,}\b"),
    "a secret variable": re.compile(
        r"\b\w*(TOKEN|SECRET\w*|PASSWORD|ACCESS_KEY|API_KEY)=[\"']?[^\s\"'$<{]"
    ),
    "a password in an address": re.compile(r"://[^/\s:@]+:[^/\s@]+@"),
}


@dataclass(frozen=True)
class Versions:
    """Versions that belong together.

    Attributes:
        rlprune: of pyproject.toml.
        ray, torch: of constraints.txt.
    """

    rlprune: str
    ray: str
    torch: str

    @classmethod
    def read(cls, repository: Path = REPOSITORY) -> Versions:
        """Those of the repository.

        Raises:
            FileAccessError: a file is missing, or names no version.
        """
        constraints = _read(repository / "constraints.txt")
        return cls(
            rlprune=_find(r'^version = "([^"]+)"', repository / "pyproject.toml"),
            ray=_pinned("ray", constraints),
            torch=_pinned("torch", constraints),
        )

    def tag(self, variant: str) -> str:
        """The tag that an image must have; variant is ``cpu`` or ``cuda``."""
        return f"{self.rlprune}-ray{self.ray}-{variant}"


def image_problems(where: str, image: object, versions: Versions, variants: str) -> list[Problem]:
    """Refuses an image of other versions.

    Args:
        where: the image's place in the file.
        image: its name.
        versions: those wanted.
        variants: allowed ones, with blanks between them.
    """
    tags = [versions.tag(variant) for variant in variants.split()]
    if str(image).rpartition(":")[2] in tags:
        return []
    return [
        Problem(
            where,
            f"must have the tag {' or '.join(tags)} (rlprune of pyproject.toml, Ray of "
            "constraints.txt)",
            image,
            "Build that image with cluster/image/Dockerfile, or correct the tag.",
        )
    ]


def secret_problems(text: str, documents: list[Any]) -> list[Problem]:
    """Secrets that stand in a manifest, comments included; values are not repeated."""
    remedy = (
        "Take it out of the file, and change the secret: it has been in a file that is shared. "
        "Keep it in a file of mode 0600 or in a Secret (cluster/README.md)."
    )
    problems = []
    for number, line in enumerate(text.splitlines(), start=1):
        for what, pattern in _SECRET_TEXT.items():
            if pattern.search(line):
                rule = f"must hold no secret, but looks like {what}"
                problems.append(Problem(f"line {number}", rule, "(not shown)", remedy))
    for document in documents:
        for where in _secret_places(document, ""):
            rule = "must hold no secret, but a value stands there"
            problems.append(Problem(where, rule, "(not shown)", remedy))
    return problems


def _secret_places(part: Any, where: str) -> Iterator[str]:
    if isinstance(part, list):
        for index, item in enumerate(part):
            yield from _secret_places(item, f"{where}[{index}]")
    if not isinstance(part, dict):
        return
    if part.get("kind") == "Secret" and (part.get("data") or part.get("stringData")):
        yield f"{where}data"
    name = str(part.get("name", ""))
    if "value" in part and _SECRET_NAME.search(name) and not _PLACE_NAME.search(name.lower()):
        yield f"{where}.value ({name})"
    for key, value in part.items():
        secret = _SECRET_NAME.search(str(key)) and not _PLACE_NAME.search(str(key))
        if secret and isinstance(value, str) and value:
            yield f"{where}.{key}".lstrip(".")
        yield from _secret_places(value, f"{where}.{key}".lstrip("."))


def read_documents(path: Path) -> tuple[str, list[Any]]:
    """A YAML file's text and its documents.

    Raises:
        FileAccessError: it cannot be read.
        ConfigError: it is no YAML.
    """
    text = _read(path)
    try:
        return text, [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        rule = f"must be YAML ({' '.join(str(error).split())})"
        raise ConfigError([Problem(str(path), rule, path.name, "Mend it.")]) from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileAccessError(
            f"{path}: {error.strerror}. Run this in a checkout of rlprune, with a path in it."
        ) from None


def _find(pattern: str, path: Path) -> str:
    found = re.search(pattern, _read(path), re.MULTILINE)
    if found is None:
        raise FileAccessError(f"{path}: no line that matches {pattern}. Restore the file from git.")
    return found[1]


def _pinned(package: str, constraints: str) -> str:
    found = re.search(rf"^{package}==([^\s;]+)", constraints, re.MULTILINE)
    if found is None:
        raise FileAccessError(
            f"constraints.txt: no version of {package}. Add a line {package}==VERSION."
        )
    return found[1]

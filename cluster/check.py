"""Checks manifests before a cluster is started: ``python -m cluster.check [FILE ...]``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.rules.common import REPOSITORY, Versions, read_documents, secret_problems
from cluster.rules.image import image_recipe_problems
from cluster.rules.kuberay import kuberay_problems
from cluster.rules.launcher import launcher_problems
from cluster.rules.schema import load_schema, schema_problems
from rlprune.errors import ConfigError, Problem, RlpruneError

CRDS_VARIABLE = "RLPRUNE_KUBERAY_CRDS"
_KUBERAY = ("RayCluster", "RayJob")


def shipped_files() -> list[Path]:
    """All manifests of this folder."""
    folder = Path(__file__).parent
    found = [*folder.glob("launcher/*.yaml"), *folder.glob("kuberay/*.yaml")]
    return [*sorted(found), folder / "image" / "Dockerfile"]


def find_crds() -> Path | None:
    """The folder with the KubeRay operator's CRDs; None where there is none."""
    given = os.environ.get(CRDS_VARIABLE)
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data" / "kuberay-crds"
    return folder if folder.is_dir() else None


def check_file(path: Path, crds: Path | None = None) -> list[Problem]:
    """Everything wrong with one manifest.

    Args:
        path: a launcher file, a file with RayCluster or RayJob, or a Dockerfile.
        crds: folder with the operator's CRDs; without it their schemas are not checked.

    Raises:
        FileAccessError, ConfigError: the file cannot be read, or is none of these.
    """
    versions = Versions.read()
    if path.name.startswith("Dockerfile"):
        text = path.read_text(encoding="utf-8")
        return image_recipe_problems(text, REPOSITORY, versions) + secret_problems(text, [])
    text, documents = read_documents(path)
    problems = secret_problems(text, documents)
    for document in documents:
        problems += _document_problems(path, document, crds, versions)
    return problems


def _document_problems(
    path: Path, document: Any, crds: Path | None, versions: Versions
) -> list[Problem]:
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind in _KUBERAY:
        refused = []
        if crds is not None:
            refused = schema_problems(document, load_schema(crds, kind))
        if document.get("apiVersion") != "ray.io/v1":
            value, remedy = document.get("apiVersion"), "Write apiVersion: ray.io/v1."
            refused.append(Problem("apiVersion", "must be ray.io/v1", value, remedy))
        return refused or kuberay_problems(document, versions)
    if isinstance(document, dict) and "provider" in document:
        return launcher_problems(document, versions)
    if kind == "Secret":
        return []  # refused as a secret, if it holds a value
    rule = "must be a launcher file, a RayCluster or a RayJob"
    raise ConfigError([Problem(str(path), rule, kind, "Check other kinds with kubectl.")])


def main(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Manifests; default: those of rlprune.")
    ] = None,
) -> None:
    """Check launcher files, RayCluster, RayJob and the image recipe; exit status 2 if refused.

    Example: python -m cluster.check my_cluster.yaml
    """
    crds = find_crds()
    if crds is None:
        typer.echo(f"KubeRay's CRDs not found (set {CRDS_VARIABLE}): their schemas are unchecked.")
    failed = False
    for path in files or shipped_files():
        try:
            problems = check_file(path, crds)
        except RlpruneError as error:
            typer.echo(f"{path}: {error}", err=True)
            failed = True
            continue
        typer.echo(f"{path}: {'good' if not problems else f'{len(problems)} problems'}")
        for problem in problems:
            typer.echo(f"  - {problem}", err=True)
        failed |= bool(problems)
    if failed:
        sys.exit(2)


if __name__ == "__main__":
    typer.run(main)

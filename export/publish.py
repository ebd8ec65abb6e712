"""An artifact into BentoML's model store, where `bentoml models list` shows it."""

import shutil

import bentoml
from bentoml.exceptions import NotFound

from service.artifact import Artifact

LABELS = {"carousel": "artifact"}  # the service finds its models in the store by it


def publish(artifact: Artifact) -> str:
    """Copy `artifact` into the store as NAME:VERSION, unless it is there already; its tag."""
    manifest = artifact.manifest
    tag = f"{manifest.name}:{manifest.version}"
    try:
        return str(bentoml.models.get(tag).tag)
    except NotFound:
        pass_on = {"mode": manifest.mode, "variants": ", ".join(manifest.variants)}
    with bentoml.models.create(tag, module="carousel", labels=LABELS, metadata=pass_on) as model:
        shutil.copytree(artifact.path, model.path, dirs_exist_ok=True)
    return tag

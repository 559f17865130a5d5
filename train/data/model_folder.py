"""A model's folder: found on disk or fetched from the hub once, and its config.json read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from train.data.model_files import require_model
from train.data.source import revision
from train.errors import DataError, ModelError
from train.paths import looks_local
from train.planning.catalog import hub_name, is_built_in
from train.planning.models import find_shape, named_config, planned_shape, remarks
from train.planning.shape import Shape

WEIGHTS = "*.safetensors"


FILES = ("*.json", "*.model", "*.txt", "*.jinja", WEIGHTS)


class UnseenModelError(ModelError):
    """A hub model that the hub does not show to this user, or a hub that cannot be reached."""


def locate_model(name: str, *, trust_remote_code: bool = False) -> Path:
    """Return the local folder of `name`, fetching it from the hub where it is a hub name.

    Raises:
        ModelError: no such folder or hub name, no config.json, no safetensors weights, or an
            adapter.
    """
    folder = Path(name).expanduser()
    if not folder.exists() and looks_local(name):
        raise ModelError(f"model folder {name} does not exist: name a folder or a hub model")
    if not folder.exists():
        folder = _fetch(name, trust_remote_code=trust_remote_code)
    if not folder.is_dir():
        raise ModelError(f"model {name} is a file: name the folder that holds its config.json")
    require_model(folder)
    read_model_config(folder)
    if not any(folder.glob(WEIGHTS)):
        raise ModelError(
            f"model folder {name} has no .safetensors weights: save the model again with "
            "save_pretrained, which writes them (pickled .bin weights are not loaded)"
        )
    return folder


def read_model_config(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json as a dictionary.

    Raises:
        ModelError: it is missing or is not a JSON object.
    """
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} has no config.json: it is not a Hugging Face model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}): mend or replace it") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} must hold a JSON object, but holds {type(found).__name__}")
    return found


def model_shape(name: str) -> tuple[Shape, tuple[str, ...]]:
    """Return a model's shape by all that names one, and what it takes for granted, in sentences.

    That is a folder or a config.json, a built-in name, sizes as `layers=32,hidden=4096,…`, or a hub
    name, of which config.json alone is fetched.

    Raises:
        ModelError: the hub shows no such model, or it is of a kind that cannot be planned.
        PlanError: an unknown name or malformed sizes.
    """
    config = named_config(name)
    if config is None and ("=" in name or is_built_in(name) or not _is_hub_name(name)):
        return find_shape(name), ()
    named = name if config is None else None
    config = hub_config(name) if config is None else config
    shape = planned_shape(config)
    return (replace(shape, name=named) if named else shape), remarks(config)


def hub_config(name: str) -> dict[str, Any]:
    """Return the config.json of a hub model, which is fetched once.

    Raises:
        UnseenModelError: the hub shows none to this user, or cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    try:
        revision(name, "model")  # asks once where a download asks six times, and notes no answer
    except DataError:
        raise UnseenModelError(
            f"there is no model '{name}': it is neither a path nor a built-in name, and the hub "
            "shows none to this user; check the name, or log in to the hub if it is private"
        ) from None
    path = _from_hub(name, lambda: hf_hub_download(name, "config.json", etag_timeout=10))
    return read_model_config(path.parent)


def _is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not looks_local(name)


def _fetch(name: str, *, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [*FILES, *(["*.py"] if trust_remote_code else [])]
    hub = hub_name(name) or name
    return _from_hub(name, lambda: snapshot_download(hub, allow_patterns=patterns))


def _from_hub(name: str, fetch: Callable[[], str]) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(fetch())
    except HFValidationError:
        reason = "is not a folder here and not a valid hub name"
    except LocalEntryNotFoundError:
        reason = "is not a folder here, and the hub could not be reached"
    except (HfHubHTTPError, OSError) as error:
        reason = f"is not a folder here, and the hub says: {str(error).splitlines()[0]}"
    raise UnseenModelError(f"model {name} {reason}: check the name or give a local folder")

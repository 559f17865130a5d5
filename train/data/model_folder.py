"""A model's folder: found on disk or fetched from the hub once, and its config.json read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from train.data.model_files import require_model
from train.errors import ModelError
from train.paths import looks_local

WEIGHTS = "*.safetensors"
FILES = ("*.json", "*.model", "*.txt", "*.jinja", WEIGHTS)


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


def _fetch(name: str, *, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*FILES, *(["*.py"] if trust_remote_code else [])]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HFValidationError:
        reason = "is not a folder here and not a valid hub name"
    except LocalEntryNotFoundError:
        reason = "is not a folder here, and the hub could not be reached"
    except (HfHubHTTPError, OSError) as error:
        reason = f"is not a folder here, and the hub says: {str(error).splitlines()[0]}"
    raise ModelError(f"model {name} {reason}: check the name or give a local folder")

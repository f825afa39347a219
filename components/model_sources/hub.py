"""Base models of kind `hub`: downloaded from the Hugging Face hub, without pickle and without code."""

from __future__ import annotations

from pathlib import Path

from components.core.errors import Unreachable, UserError, first_line
from components.core.files import is_full_disk
from components.core.paths import PARAMS
from components.core.settings.base_model import HubModel

# neither pickled weights nor code
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model"]


def download_from_hub(source: HubModel, key: str = "base_model") -> Path:
    """The folder in the hub's cache that holds the weights (safetensors only), the configuration and the tokenizer.

    `key`: where params.yaml names the model. Raises UserError for a model that the hub does not have or does not give,
    Unreachable when the hub does not answer.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{PARAMS}: {key}"
    try:
        return Path(snapshot_download(source.id, revision=source.revision, allow_patterns=HUB_FILES))
    except HFValidationError as error:
        raise UserError(f"{where}.id: {source.id}: not an id of the hub (owner/name): {error}") from error
    except GatedRepoError as error:
        raise UserError(f"{where}.id: {source.id}: gated; accept its terms on the hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{where}.revision: {source.revision}: {source.id} has no such revision") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{where}.id: {source.id}: not on the hub, or private (then set HF_TOKEN)") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if is_full_disk(error):
            raise
        raise Unreachable(f"{where}: the hub did not answer for {source.id}: {first_line(error)}") from error

"""A model of the Hugging Face hub, downloaded without pickle and without code."""

from __future__ import annotations

from pathlib import Path

from components.core.errors import Unreachable, UserError
from components.core.settings.base_model import HubModel

# what a model folder on the hub may bring: no pickle, no code
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model"]


def download_from_hub(source: HubModel) -> Path:
    """A folder of the hub's cache with the weights (safetensors only), the configuration and the tokenizer."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = "params.yaml: base_model"
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
        raise Unreachable(f"{where}: the hub did not answer for {source.id}: {str(error).splitlines()[0]}") from error

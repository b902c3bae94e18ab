"""SAEs on the Hugging Face hub: `org/repo` or `org/repo:path/in/it`, kept in the hub's own cache."""

import re
from pathlib import Path

from amortjax.errors import CheckpointError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[^:]*)?")
WEIGHTS = (".pt", ".pth", ".safetensors", ".npz")


def is_hub_id(text: str) -> bool:
    """Whether `text` can be a hub id. Only asked of what is no local path."""
    return bool(_HUB_ID.fullmatch(text)) and not text.startswith((".", "/"))


def download(hub_id: str) -> Path:
    """The local path of a hub id's file or folder, downloading what is not cached yet."""
    # Imported here: it is slow, and needed only for hub ids.
    from huggingface_hub import HfApi, errors, snapshot_download

    repo, _, inside = hub_id.partition(":")
    inside = inside.strip("/")
    try:
        if not inside:
            inside = _only_folder(repo, HfApi().list_repo_files(repo))
        # A weight file is of no use without the settings beside it.
        folder = inside.rpartition("/")[0] if inside.endswith(WEIGHTS) else inside
        beside = [f"{folder}/*.json".lstrip("/"), f"{folder}/*.yaml".lstrip("/")]
        patterns = [inside, *beside] if folder != inside else [f"{inside}/*" if inside else "*"]
        root = snapshot_download(repo, allow_patterns=patterns)
    except (
        errors.HfHubHTTPError,
        errors.LocalEntryNotFoundError,
        errors.HFValidationError,
        OSError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{hub_id}: no such local path, and the hub can't be read ({reason}); check the id, your "
            "connection and your access, or download it and give the local path"
        ) from None
    path = Path(root) / inside
    if not path.exists():
        raise CheckpointError(f"{hub_id}: the repository {repo} has no {inside}")
    return path


def _only_folder(repo: str, files: list[str]) -> str:
    """The one folder of a repository that holds weights, "" for its root; refused with the list if there
    are more."""
    folders = sorted({file.rpartition("/")[0] for file in files if file.endswith(WEIGHTS)})
    if len(folders) == 1:
        return folders[0]
    some = ", ".join(f"{repo}:{folder}" for folder in folders[:5])
    raise CheckpointError(
        f"{repo}: holds weights in {len(folders)} folders; name one, for example {some or 'none'}"
    )

"""SAEs on the Hugging Face hub: `org/repo` or `org/repo:path/in/it`, kept in the hub's own cache."""

import re
from pathlib import Path

from amortjax.errors import CheckpointError
from amortjax.saes.formats.opened import CONTAINERS

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[^:]*)?")
WEIGHTS = tuple(CONTAINERS)


def is_hub_id(text: str) -> bool:
    """Whether `text` can be a hub id. Only asked of what is no local path."""
    return bool(_HUB_ID.fullmatch(text)) and not text.startswith((".", "/"))


def download(hub_id: str) -> Path:
    """The local path of a hub id's file or folder, downloading what is not cached yet; without a connection, what is
    cached."""
    # Imported here: it is slow, and needed only for hub ids.
    from huggingface_hub import errors, snapshot_download

    repo, _, inside = hub_id.partition(":")
    inside = inside.strip("/")
    try:
        if not inside:
            inside = _only_folder(repo, _files(repo))
        root = snapshot_download(repo, allow_patterns=_patterns(inside))
    except (
        errors.HfHubHTTPError,
        errors.LocalEntryNotFoundError,
        errors.HFValidationError,
        _http_error(),
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


def _patterns(inside: str) -> list[str]:
    """What to download for a file or folder: a weight file is of no use without the settings beside it, or above it
    where weights have a folder of their own."""
    if not inside.endswith(WEIGHTS):
        return [f"{inside}/*" if inside else "*"]
    folder = inside.rpartition("/")[0]
    above, _, name = folder.rpartition("/")
    folders = [folder, above] if name == "checkpoints" else [folder]
    beside = [f"{place}/*.{kind}".lstrip("/") for place in folders for kind in ("json", "yaml")]
    return [inside, *beside, f"{above}/config.json".lstrip("/")]  # of the run, above the folders of its hooks


def _files(repo: str) -> list[str]:
    """The repository's files; without a connection, those in the cache."""
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        return HfApi().list_repo_files(repo)
    except (errors.OfflineModeIsEnabled, _http_error()) as error:
        if isinstance(error, errors.HfHubHTTPError):  # the hub was reached and said no
            raise
        root = Path(snapshot_download(repo, local_files_only=True))
        return [str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()]


def _http_error() -> type[Exception]:
    """The base of what the HTTP library under huggingface_hub raises; it changes between versions."""
    from huggingface_hub import errors

    return errors.HfHubHTTPError.__bases__[0]


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

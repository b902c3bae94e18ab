"""Hub ids: what is in the cache is used without a connection, and nothing else is a traceback."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from amortjax.errors import CheckpointError
from amortjax.saes.formats import load_sae
from amortjax.saes.formats.hub import _http_error, _patterns

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """cache(folder_of_the_repository, golden_folder): puts a checkpoint into a cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    root = tmp_path / "models--org--repo"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc123")

    def put(inside: str, golden: str) -> None:
        shutil.copytree(GOLDEN / golden, root / "snapshots" / "abc123" / inside)

    return put


def test_a_cached_repository_needs_no_connection(cache):
    cache("resid_post_layer_8/trainer_3", "dl_topk")
    whole, folder = load_sae("org/repo"), load_sae("org/repo:resid_post_layer_8/trainer_3")
    file = load_sae("org/repo:resid_post_layer_8/trainer_3/ae.pt")
    assert whole.k == folder.k == file.k
    assert file.info.layer_index == 8  # config.json came along


def test_a_repository_with_several_saes_is_refused_with_some(cache):
    cache("trainer_0", "dl_topk")
    cache("trainer_1", "dl_jumprelu")
    with pytest.raises(CheckpointError, match="org/repo:trainer_0, org/repo:trainer_1"):
        load_sae("org/repo")


@pytest.mark.parametrize("hub_id", ["org/other", "org/repo:absent", "org/repo:trainer_0/ae.pt"])
def test_what_is_not_cached_is_one_line(hub_id, cache):
    cache("trainer_1", "dl_topk")
    with pytest.raises(CheckpointError) as caught:
        load_sae(hub_id)
    assert hub_id in str(caught.value) and "\n" not in str(caught.value)


def test_a_lost_connection_is_one_line(monkeypatch, tmp_path):
    def lost(*args, **kwargs):
        raise _http_error()("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lost)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="the hub can't be read"):
        load_sae("org/repo")


def test_settings_come_with_a_weight_file_and_from_above_a_folder_of_weights():
    assert _patterns("") == ["*"] and _patterns("L15R") == ["L15R/*"]
    assert _patterns("sae.pt")[:3] == ["sae.pt", "*.json", "*.yaml"]
    assert "run/config.json" in _patterns("run/layers.8/sae.safetensors")
    assert "L15R/*.json" in _patterns("L15R/checkpoints/final.safetensors")

"""The index of checkpoints: four layouts, what is believed of them, and what is said of the rest."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants
from problems import toy_sae

import amortjax as aj
from amortjax.errors import CheckpointError
from amortjax.saes import index
from amortjax.saes.formats import load_sae
from amortjax.saes.formats.opened import Opened

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"


def found(folder, **filters) -> list[tuple]:
    """(variant, sparsity, step, final) of what is found, and nothing said."""
    said: list[str] = []
    entries = index.index([str(folder)], say=said.append, **filters)
    assert not said
    return [(entry.variant, entry.sparsity, entry.step, entry.final) for entry in entries]


def ours(folder: Path, steps: tuple[int, ...] = (0, 3), **recipe) -> None:
    """A training as launch.train leaves it."""
    last = {
        "variant": "topk",
        "k": None,
        "lam": None,
        "target_l0": None,
        "group_k": None,
        "steps": 10,
    } | recipe
    for place in (folder, *(folder / "checkpoints" / str(step) for step in steps)):
        aj.save_sae(toy_sae(), place / "sae.safetensors")
    (folder / "train.json").write_text(json.dumps({"recipe": last}))


def theirs(folder: Path, golden: str, at: tuple[int, ...] = (), **trainer) -> None:
    """A trainer_i of dictionary_learning, with other settings than the golden file's."""
    folder.mkdir(parents=True)
    shutil.copy(GOLDEN / golden / "ae.pt", folder / "ae.pt")
    config = json.loads((GOLDEN / golden / "config.json").read_text())
    config["trainer"] |= {"steps": 1000} | trainer
    (folder / "config.json").write_text(json.dumps(config))
    for step in at:
        (folder / "checkpoints").mkdir(exist_ok=True)
        shutil.copy(GOLDEN / golden / "ae.pt", folder / "checkpoints" / f"ae_{step}.pt")


def test_our_trainings_with_their_snapshots(tmp_path):
    ours(tmp_path / "topk" / "k_4", k=4)
    ours(tmp_path / "standard" / "lam_0.3", variant="standard", lam=0.3, steps=(0,))
    ours(tmp_path / "jump", variant="jumprelu", target_l0=40.0, steps=())
    ours(tmp_path / "loca", variant="loca", group_k="6/4/2", steps=())
    assert found(tmp_path) == [
        ("jumprelu", "target_l0=40", 10, True),
        ("loca", "k=12", 10, True),
        ("standard", "l1=0.3", 0, False),
        ("standard", "l1=0.3", 10, True),
        ("topk", "k=4", 0, False),
        ("topk", "k=4", 3, False),
        ("topk", "k=4", 10, True),
    ]


@pytest.fixture
def suite(tmp_path) -> Path:
    """As SAEBench publishes: trainer 0 is the sparsest of TopK, the least sparse of Standard."""
    for i, (k, l1) in enumerate([(4, 0.01), (8, 0.06)]):
        theirs(tmp_path / "TopK" / "resid_post_layer_8" / f"trainer_{i}", "dl_topk", (0, 244), k=k)
        theirs(
            tmp_path / "Standard" / "resid_post_layer_8" / f"trainer_{i}", "dl_standard", (), l1_penalty=l1
        )
    return tmp_path


SUITE = [
    ("standard", "l1=0.01", 1000, True),
    ("standard", "l1=0.06", 1000, True),
    *(("topk", f"k={k}", step, step == 1000) for k in (4, 8) for step in (0, 244, 1000)),
]


def test_trainers_are_what_their_settings_say_and_not_their_numbers(suite):
    assert found(suite) == SUITE
    for i, k in ((0, 8), (1, 4)):  # the order reversed
        file = suite / "TopK" / "resid_post_layer_8" / f"trainer_{i}" / "config.json"
        config = json.loads(file.read_text())
        config["trainer"]["k"] = k
        file.write_text(json.dumps(config))
    by_name = {entry.name: entry.path for entry in index.index([str(suite)])}
    assert found(suite) == SUITE
    assert "trainer_1" in by_name["topk k=4 step 1000"] and "trainer_0" in by_name["topk k=8 step 244"]


def test_a_suite_on_the_hub_is_read_from_the_cache(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    root = tmp_path / "hub" / "models--org--suite"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    shutil.copytree(suite / "TopK", root / "snapshots" / "abc" / "TopK")
    assert found("org/suite:TopK") == [line for line in SUITE if line[0] == "topk"]
    with pytest.raises(CheckpointError, match="org/suite:Gated"):
        index.index(["org/suite:Gated"])


def test_april_and_jumprelu_are_told_from_their_classes(tmp_path):
    theirs(tmp_path / "0", "dl_standard_april", l1_penalty=0.04)
    theirs(tmp_path / "1", "dl_jumprelu", target_l0=40)  # which has a sparsity_penalty as well
    theirs(tmp_path / "2", "dl_p_anneal", sparsity_penalty=0.02)
    theirs(tmp_path / "3", "dl_batch_topk", trainer_class="NewTrainer", k=20)
    assert [line[:2] for line in found(tmp_path)] == [
        ("NewTrainer", "k=20"), ("april", "l1=0.04"), ("jumprelu", "target_l0=40"), ("p_anneal", "l1=0.02"),
    ]  # fmt: skip


def test_folders_of_variant_sparsity_and_step(tmp_path):
    shutil.copytree(GOLDEN / "dl_standard", tmp_path / "standard" / "0.06" / "step_77203")
    (tmp_path / "standard" / "0.06" / "step_77203" / "config.json").unlink()
    for step in ("0", "244"):
        folder = tmp_path / "batch_topk" / "k=8" / step
        shutil.copytree(GOLDEN / "dl_batch_topk", folder)
        (folder / "config.json").unlink()
        aj.save_sae(toy_sae(k=4), tmp_path / "mine" / "sparsity_3" / step / "sae.safetensors")
    assert found(tmp_path) == [
        ("batch_topk", "k=8", 0, False),
        ("batch_topk", "k=8", 244, True),
        ("mine", "k=4", 0, False),  # by its own settings: the folder's number would have been 3
        ("mine", "k=4", 244, True),
        ("standard", "l1=0.06", 77203, True),
    ]
    by_name = {entry.name: entry for entry in index.index([str(tmp_path)])}
    entry = by_name["batch_topk k=8 step 244"]
    with pytest.raises(CheckpointError, match="dict_class"):  # two classes have these tensors
        load_sae(entry.path)
    assert load_sae(entry.path, **entry.choices).variant == "batch_topk"


def test_no_weights_are_read(suite, monkeypatch):
    monkeypatch.setattr(Opened, "array", lambda *a, **k: pytest.fail("weights were read"))
    assert found(suite) == SUITE


def test_filters(suite):
    assert found(suite, variants=["standard"]) == SUITE[:2]
    assert found(suite, sparsities=["k=8", "0.01"], steps=["final"]) == [SUITE[0], SUITE[-1]]
    assert found(suite, steps=["244"], sparsities=["4"]) == [("topk", "k=4", 244, False)]
    for filters, said in (
        ({"variants": ["gated"]}, "--variants: gated is not there; found: topk, standard"),
        ({"steps": ["7"]}, "--steps: 7 is not there; found: 0, 244, 1000, final"),
        (
            {"variants": ["standard"], "sparsities": ["k=8"]},
            "--sparsities: k=8 is not there; found: 0.01, 0.06",
        ),
    ):
        with pytest.raises(CheckpointError) as caught:
            index.index([str(suite)], **filters)
        assert said in str(caught.value)


def test_the_same_checkpoint_twice_is_refused_and_the_same_file_is_not(suite, tmp_path):
    assert len(index.index([str(suite), str(suite / "TopK")])) == len(SUITE)
    shutil.copytree(suite / "TopK" / "resid_post_layer_8", suite / "TopK" / "resid_post_layer_4")
    with pytest.raises(CheckpointError) as caught:
        index.index([str(suite)])
    assert "topk k=4 step 0 is there twice" in str(caught.value) and "\n" not in str(caught.value)
    assert "resid_post_layer_4" in str(caught.value) and "resid_post_layer_8" in str(caught.value)


def junk(folder: Path) -> dict[str, str]:
    """Checkpoints that say too little, in folders of their own, and what has to be said of each."""
    theirs(folder / "no_k", "dl_topk", k=None)
    theirs(folder / "text", "dl_topk", k="twenty")
    theirs(folder / "negative", "dl_topk", k=-4)
    theirs(folder / "no_steps", "dl_topk", steps=None)
    theirs(folder / "no_class", "dl_topk", trainer_class=None)
    theirs(folder / "broken", "dl_topk")
    (folder / "broken" / "config.json").write_text("{")
    theirs(folder / "cut", "dl_topk")
    (folder / "cut" / "ae.pt").write_bytes((folder / "cut" / "ae.pt").read_bytes()[:200])
    ours(folder / "unfinished", k=3, steps=(5,))
    (folder / "unfinished" / "train.json").unlink()
    ours(folder / "listed", k=3, steps=())
    (folder / "listed" / "train.json").write_text("[1]")
    ours(folder / "groups", variant="loca", group_k="6/x", steps=())
    shutil.copytree(GOLDEN / "dl_standard", folder / "standard" / "trainer_5" / "244")
    (folder / "standard" / "trainer_5" / "244" / "config.json").unlink()
    return {
        "no_k": "none of k, target_l0", "text": "k is 'twenty'", "negative": "k is -4", "no_steps": "trainer.steps",
        "no_class": "trainer_class is missing", "broken": "not readable as json", "cut": "cut", "listed": "variant",
        "unfinished": "has not finished", "groups": "group_k is '6/x'", "trainer_5": "says no sparsity",
    }  # fmt: skip


def test_what_says_too_little_is_left_out_with_a_line(tmp_path):
    wanted = junk(tmp_path)
    (tmp_path / "notes.pt").write_bytes(b"not weights")
    theirs(tmp_path / "good", "dl_topk", k=4)
    said: list[str] = []
    entries = index.index([str(tmp_path)], say=said.append)
    assert [entry.name for entry in entries] == ["topk k=4 step 1000"]
    for folder, text in wanted.items():
        lines = [line for line in said if f"/{folder}" in line]
        assert lines and text in lines[0] and "\n" not in lines[0], (folder, lines)
    assert "table" not in said and "k=4" in index.table(entries)


def test_nothing_found_is_one_line(tmp_path):
    for path, said in (
        (str(tmp_path), "no checkpoint found"),
        (str(tmp_path / "absent"), "no such file or folder"),
    ):
        with pytest.raises(CheckpointError, match=said) as caught:
            index.index([path])
        assert "\n" not in str(caught.value)

"""Reading an SAE takes hardly more memory than holding it: measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from amortjax.saes.formats import common, save_sae

D, M = 1024, 32768  # 256 MiB
# Peak over what was there before, relative to the SAE's size.
PROBE = """
import json, sys
from pathlib import Path
import jax
import jax.numpy as jnp
from amortjax.saes.formats import load_sae

def memory(line):
    return int(next(l for l in open("/proc/self/status") if l.startswith(line)).split()[1]) * 1024

jax.block_until_ready(jnp.zeros(8) + 1)
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
before = memory("VmRSS")
sae = jax.block_until_ready(load_sae(sys.argv[1]))
size = sum(leaf.nbytes for leaf in jax.tree.leaves(sae))
print(json.dumps({"ratio": (memory("VmHWM") - before) / size, "size": size}))
"""


def _native(folder: Path, w: np.ndarray) -> None:
    zeros = np.zeros(M, np.float32)
    sae = common.build("standard", w, zeros, w.reshape(M, D), np.zeros(D, np.float32), None)
    save_sae(sae, folder / "sae.safetensors")


def _saelens(folder: Path, w: np.ndarray) -> None:
    bias = {"b_enc": np.zeros(M, np.float32), "b_dec": np.zeros(D, np.float32)}
    tensors = {"W_enc": w, "W_dec": w.reshape(M, D)} | bias
    safetensors.numpy.save_file(tensors, folder / "sae_weights.safetensors")
    settings = {"architecture": "standard", "d_in": D, "d_sae": M, "metadata": {}}
    (folder / "cfg.json").write_text(json.dumps(settings))


def _sparsify(folder: Path, w: np.ndarray) -> None:
    """Its encoder has to be turned over."""
    bias = {"encoder.bias": np.zeros(M, np.float32), "b_dec": np.zeros(D, np.float32)}
    tensors = {"encoder.weight": w.reshape(M, D), "W_dec": w.reshape(M, D)} | bias
    safetensors.numpy.save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "num_latents": M, "k": 8, "activation": "topk"}))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("write", [_native, _saelens, _sparsify])
def test_peak_memory_is_under_one_and_a_half_times_the_sae(write, tmp_path):
    write(tmp_path, np.ones((D, M), np.float32))
    done = subprocess.run([sys.executable, "-c", PROBE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["size"] >= 2 * D * M * 4
    assert found["ratio"] < 1.5

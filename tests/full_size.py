"""A π0.5 of full size with random bfloat16 weights in openpi's format: it loads, it answers; time and peak memory.

python tests/full_size.py [FOLDER]    needs 8 GB of disk, 10 GB of memory and, on a CPU, minutes
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from checkpoint_files import hollow_torch_directory
from memory import memory_mb
from public_layouts import openpi_torch_file
from safetensors import safe_open

from pi0_control.model import ModelInputs, Pi0, sample_actions, sample_noise
from pi0_control.model.checkpoints import open_checkpoint

BLOCK = 2**25  # values drawn once and repeated: what they are is of no interest


def write(directory: Path) -> None:
    """Norms and biases of zeros, matrices of normal values over the root of their width, as in a fresh model."""
    tensors = openpi_torch_file("pi05")
    path = hollow_torch_directory(directory, tensors) / "model.safetensors"
    noise = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))
    with path.open("r+b") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        for tensor in tensors.values():
            if tensor.dim() < 2:
                file.seek(2 * tensor.numel(), 1)
                continue
            block = (noise[: tensor.numel()] * tensor.shape[1] ** -0.5).bfloat16().view(torch.uint16).numpy()
            for start in range(0, tensor.numel(), BLOCK):
                file.write(block[: tensor.numel() - start].tobytes())
    with safe_open(path, "pt") as file:
        assert len(file.keys()) == len(tensors)


def memory_gb(field: str) -> float:
    return memory_mb(field) * 2**20 / 1e9


@torch.inference_mode()
def load_and_answer(directory: Path) -> None:
    before, started = memory_gb("VmRSS"), time.perf_counter()
    checkpoint = open_checkpoint(directory)
    print(f"opened in {time.perf_counter() - started:.2f} s, {memory_gb('VmHWM') - before:.2f} GB", flush=True)
    started = time.perf_counter()
    model = Pi0.empty(checkpoint.config, torch.bfloat16)
    print(checkpoint.load(model))
    one = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 1e9
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, one copy is {one:.2f} GB; loaded in {time.perf_counter() - started:.1f} s")
    print(f"peak memory above the start: {memory_gb('VmHWM') - before:.2f} GB", flush=True)
    config, random = model.config, np.random.default_rng(0)
    size, cameras = config.vision.image_size, config.num_cameras
    inputs = ModelInputs(
        images=torch.from_numpy(random.uniform(-1, 1, (1, cameras, 3, size, size)).astype(np.float32)),
        image_masks=torch.ones(1, cameras, dtype=torch.bool),
        tokens=torch.from_numpy(random.integers(0, config.vocab_size, (1, config.max_token_len))),
        token_mask=torch.ones(1, config.max_token_len, dtype=torch.bool),
        state=torch.zeros(1, config.action_dim),
    )
    started = time.perf_counter()
    actions = sample_actions(model, inputs, sample_noise(config, 1, torch.Generator().manual_seed(0)), num_steps=10)
    assert actions.isfinite().all()
    print(f"answers {list(actions.shape)}, rms {actions.square().mean().sqrt():.3f}, in", end=" ")
    print(f"{time.perf_counter() - started:.1f} s with {torch.get_num_threads()} threads")
    print(f"peak memory above the start: {memory_gb('VmHWM') - before:.2f} GB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        load_and_answer(Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
            write(Path(folder))
            subprocess.run([sys.executable, __file__, "--load", folder], check=True)

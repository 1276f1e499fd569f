"""Writes everything a training run of the small Z-Image needs: weights, tokenizer, adapters and photos.

usage: python weights.py OUT, with `small` and Musubi Tuner's `src` on PYTHONPATH

    OUT/models/     random weights under the default names of `Models`, and the adapter once more in diffusers' naming
    OUT/hf/         a Hugging Face cache that holds the tokenizer
    OUT/photos.zip  six photos in two sizes
"""

import io
import json
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from musubi_tuner.networks import lora_zimage
from musubi_tuner.zimage import zimage_autoencoder, zimage_model, zimage_utils
from PIL import Image
from safetensors.torch import save_file
from transformers import Qwen3ForCausalLM
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

ADAPTER = "zimage_turbo_training_adapter_v2.safetensors"
DIFFUSERS_ADAPTER = "adapter_in_diffusers_naming.safetensors"
ADAPTER_RANK = 4
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|im_start|>")
CHAT_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REVISION = "5" * 40

State = dict[str, torch.Tensor]


def small_random(state: State, scale: float) -> State:
    """Random bfloat16 in place of every floating-point tensor."""
    return {
        name: (torch.randn(tensor.shape) * scale).to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def transformer() -> torch.nn.Module:
    """The small DiT with real, not meta, tensors."""
    with mock.patch.object(zimage_model, "init_empty_weights", nullcontext):
        return zimage_model.create_model("torch", split_attn=False, dtype=None)


def vae() -> torch.nn.Module:
    """The VAE in the sizes that its loader asks for: they stand in that loader's code and nowhere else."""
    with mock.patch.object(zimage_autoencoder, "AutoencoderKL") as recorder:
        recorder.return_value.load_state_dict.return_value = "nothing loaded"
        with mock.patch.object(zimage_autoencoder, "load_safetensors", return_value={}):
            zimage_autoencoder.load_autoencoder_kl("")
    return zimage_autoencoder.AutoencoderKL(**recorder.call_args.kwargs)


def text_encoder() -> torch.nn.Module:
    """The small Qwen3."""
    return Qwen3ForCausalLM._from_config(zimage_utils.Qwen3Config(tie_word_embeddings=True, rope_theta=1_000_000))


def adapter(dit: torch.nn.Module) -> State:
    """A LoRA as Musubi Tuner's own network module names it, with alpha = rank."""
    network = lora_zimage.create_arch_network(1.0, ADAPTER_RANK, ADAPTER_RANK, None, [], dit)
    network.apply_to([], dit, apply_text_encoder=False, apply_unet=True)
    alphas = {name: tensor.to(torch.bfloat16) for name, tensor in network.state_dict().items() if "alpha" in name}
    # Large enough that a LoRA trained without it comes out different.
    return small_random(network.state_dict(), scale=0.05) | alphas


def in_diffusers_naming(default: State, dit: torch.nn.Module) -> State:
    """The same adapter as diffusers names it; it has no alpha there, which stands for alpha = rank."""
    paths = {f"lora_unet_{path}".replace(".", "_"): path for path, _ in dit.named_modules()}
    matrices = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    split = ((name.split(".", 1), tensor) for name, tensor in default.items())
    return {
        f"diffusion_model.{paths[module]}.{matrices[matrix]}": tensor
        for (module, matrix), tensor in split
        if matrix in matrices
    }


def write_models(folder: Path) -> None:
    """Write the four files of `Models`, and the adapter's second naming."""
    folder.mkdir(parents=True, exist_ok=True)
    dit = transformer()
    save_file(small_random(dit.state_dict(), scale=0.02), folder / "z_image_de_turbo_v1_bf16.safetensors")
    save_file(vae().state_dict(), folder / "ae.safetensors")
    # The loader ties the output layer to the embedding itself.
    qwen = {name: tensor for name, tensor in text_encoder().state_dict().items() if name != "lm_head.weight"}
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in qwen.items()}, folder / "qwen_3_4b.safetensors")
    default = adapter(dit)
    save_file(default, folder / ADAPTER)
    save_file(in_diffusers_naming(default, dit), folder / DIFFUSERS_ADAPTER)


def write_tokenizer(hf_home: Path) -> None:
    """Write a tokenizer of single bytes where `from_pretrained` looks for Z-Image's, offline."""
    repository = hf_home / "hub" / f"models--{zimage_utils.ZIMAGE_ID.replace('/', '--')}"
    tokenizer = repository / "snapshots" / REVISION / "tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(REVISION)
    tokens = (*SPECIAL_TOKENS, *bytes_to_unicode().values())
    (tokenizer / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 4096,
        "unk_token": None,
        "pad_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[1],
        "chat_template": CHAT_TEMPLATE,
    }
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(config))


def write_photos(archive: Path) -> None:
    """Write photos of soft coloured noise, upright and wide."""
    with zipfile.ZipFile(archive, "w") as photos:
        for number in range(6):
            noise = torch.randint(256, (4, 4, 3), dtype=torch.uint8).numpy()
            size = (96, 96) if number % 2 else (112, 96)
            jpeg = io.BytesIO()
            Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=90)
            photos.writestr(f"photo_{number}.jpg", jpeg.getvalue())


def main() -> None:
    """Write all of it, the same every time."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    torch.manual_seed(0)
    write_models(out / "models")
    write_tokenizer(out / "hf")
    write_photos(out / "photos.zip")


if __name__ == "__main__":
    main()

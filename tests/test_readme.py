"""The Python of the README runs as written."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness.library import Bench, Workspace

README = Path(__file__).parent.parent / "README.md"
LORA = Path(__file__).parent / "recorded/conversion/lora_float32.safetensors"


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def the_originals_example(bench: Bench) -> str:
    code = "import importlib.metadata; print(importlib.metadata.metadata('TechTrash_MusubiTraining').get_payload())"
    done = subprocess.run([bench.the_original().python, "-c", code], capture_output=True, text=True, check=True)
    (example,) = python_blocks(done.stdout)
    return example


def runnable(block: str, workspace: Workspace) -> str:
    """The block with the two things that no test machine has."""
    folders = {"models": "models", "outputs": "output", "musubi-tuner": "musubi", "my-training-run": "training"}
    for theirs, ours in folders.items():
        block = block.replace(f"/workspace/{theirs}", str(workspace.root / ours))
    return re.sub(r"https://example\.com/[\w./-]*\.zip", workspace.url, block)


def run_block(block: str, workspace: Workspace) -> str:
    shutil.copy(LORA, workspace.root / "my_lora.safetensors")
    script = workspace.root / "example.py"
    script.write_text(runnable(block, workspace), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=workspace.root,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **workspace.env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_originals_example_runs_unchanged(bench: Bench) -> None:
    workspace = bench.workspace()
    printed = run_block(the_originals_example(bench), workspace)
    assert printed.splitlines()[-1] == f"Model created: {workspace.output}/output_lora_model_comfyui.safetensors"


def test_the_readme_shows_the_originals_example(bench: Bench) -> None:
    def code(block: str) -> list[str]:
        """What runs: without comments and blank lines, which may be in another language."""
        return [line for line in block.splitlines() if line.strip() and not line.strip().startswith("#")]

    example = code(the_originals_example(bench))
    assert example in [code(block) for block in python_blocks(README.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    "block", [pytest.param(block, id=str(n)) for n, block in enumerate(python_blocks(README.read_text("utf-8")))]
)
def test_every_python_block_runs(bench: Bench, block: str) -> None:
    run_block(block, bench.workspace())


def test_the_readme_is_in_the_package() -> None:
    described = importlib.metadata.metadata("TechTrash_MusubiTraining").get_payload()
    assert python_blocks(str(described)) == python_blocks(README.read_text("utf-8"))

"""Checks that a weights file holds what a model wants, with torch's words when it does not."""

from __future__ import annotations

from collections.abc import Mapping

from musubi_tuner.safetensors_file import StoredTensor

MATCHED = "<All keys matched successfully>"


def check_state_dict(
    model: str, found: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...] | None]
) -> None:
    """Raises `RuntimeError` unless `found` has exactly the `expected` names and shapes; `None` is any shape."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    faults = []
    if unexpected:
        faults.append(f"Unexpected key(s) in state_dict: {_quoted(unexpected)}. ")
    if missing:
        faults.insert(0, f"Missing key(s) in state_dict: {_quoted(missing)}. ")
    for name, shape in expected.items():
        if shape is not None and name in found and found[name].shape != shape:
            faults.append(
                f"size mismatch for {name}: copying a param with shape torch.Size({list(found[name].shape)}) "
                f"from checkpoint, the shape in current model is torch.Size({list(shape)})."
            )
    if faults:
        raise RuntimeError(f"Error(s) in loading state_dict for {model}:\n\t" + "\n\t".join(faults))


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)

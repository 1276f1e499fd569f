"""How a dataset is made: which files are photos, what they are captioned with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from musubitraining._native import IMAGE_EXTENSIONS
from musubitraining.fields import Check, Options, choice, flag, option, text


def _extensions() -> Check:
    expected = f'"all" or some of {", ".join(map(repr, IMAGE_EXTENSIONS))}'

    def check(value: Any) -> tuple[str, ...]:
        if value == "all":
            return IMAGE_EXTENSIONS
        if isinstance(value, str | bytes) or not isinstance(value, Sequence | set | frozenset):
            raise TypeError(expected)
        if not all(isinstance(extension, str) for extension in value):
            raise TypeError(expected)
        given = {extension.lower().removeprefix(".") for extension in value}
        if not given or not given.issubset(IMAGE_EXTENSIONS):
            raise ValueError(expected)
        return tuple(extension for extension in IMAGE_EXTENSIONS if extension in given)

    return check


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(Options):
    """How a dataset is made from a zip or a folder of photos.

    Given once as `MusubiTraining(..., dataset_options=...)`, or per call as `train(..., dataset_options=...)`. The
    defaults make the dataset that TechTrash_MusubiTraining 0.0.11 makes, but for photos that are turned upright.

    Attributes:
        captions: "trigger": the trigger word is the caption of every photo. "files": a `.txt` beside its photo (the
            same folder, the same name but for the extension) is kept as its caption, whether it is UTF-8, UTF-16 with a
            byte order mark or, with a warning, Windows-1252. `[trigger]` in it becomes the trigger word, which is put
            before it ("word, caption") where it is not in it as a word of its own.
        default_caption: with captions="files", for a photo without such a file, by the same rule; None: the trigger
            word alone.
        image_extensions: of the files that are taken for photos, in whichever case. "all" stands for those that Musubi
            Tuner reads: "jpg", "jpeg", "png", "webp", "bmp", "avif".
        upright: turn photos as their EXIF orientation says, which Musubi Tuner does not look at.

    Raises:
        TypeError: a value is of a type that its field does not take.
        ValueError: a value is none that its field takes, or default_caption is given without captions="files".
    """

    captions: Literal["trigger", "files"] = option("trigger", choice("trigger", "files"))
    default_caption: str | None = option(None, text(), optional=True)
    image_extensions: Sequence[str] = option(("jpg", "jpeg"), _extensions())
    upright: bool = option(True, flag())

    def __post_init__(self) -> None:
        """Check every field, and what they say together."""
        super().__post_init__()
        if self.default_caption is not None and self.captions != "files":
            raise ValueError(
                f"DatasetOptions.default_caption={self.default_caption!r} with captions={self.captions!r}: expected "
                'captions="files", as the trigger word is the caption of every photo otherwise'
            )

"""Writing YOLO: one text file per image, and a YAML file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, ClassVar

from rcnn_ext.data.conversion.numbers import center_and_side_texts
from rcnn_ext.data.conversion.target import Target
from rcnn_ext.data.images import Header
from rcnn_ext.data.records import ImageRecord
from rcnn_ext.errors import UserError


class YoloTarget(Target):
    """Writes ``data.yaml``, ``images/<split>`` and ``labels/<split>``."""

    title: ClassVar[str] = "YOLO"
    needs_suffix: ClassVar[bool] = True
    numbering: ClassVar[str] = "YOLO numbers classes from 0"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if importlib.util.find_spec("yaml") is None:
            raise UserError("writing YOLO data needs PyYAML: pip install 'rcnn-ext[train]'")
        self._description: dict[str, Any] = {}

    @staticmethod
    def held_name(name: str) -> str:
        """Return the name without what is no character."""
        return name.encode("utf-8", "replace").decode()

    def images_folder(self, split: str) -> Path:
        """Return ``images/<split>``."""
        return Path("images", split)

    def begin(self, split: str, annotated: bool) -> None:
        """Make the folder of a split's labels."""
        self._labels = self.folder / "labels" / split
        self._annotated = annotated
        self._description[split] = f"images/{split}"
        if annotated:
            self._labels.mkdir(parents=True)

    def add(self, record: ImageRecord, name: str, header: Header) -> int:
        """Write the text file of an image, which is empty where it has no objects."""
        if not self._annotated:
            return 0
        self.count_losses(record)
        size = record.width, record.height
        lines = [
            " ".join([str(int(record.labels[index]) - 1), *center_and_side_texts(box, size)])
            for index, box in enumerate(record.boxes)
            if not record.crowd[index]
        ]
        different = list(dict.fromkeys(lines))
        why = "the same class and box as another of the image, which is no sound data: left out"
        self.losses.add("repeated objects", why, len(lines) - len(different))
        text = "".join(f"{line}\n" for line in different)
        label = self._labels / f"{Path(name).stem}.txt"
        label.write_text(text, encoding="utf-8", newline="\n")
        return len(different)

    def end(self) -> None:
        """Do nothing: every image has its own file."""

    def finish(self) -> None:
        """Write the YAML file."""
        import yaml

        content = {**self._description, "names": list(self.classes.names)}
        text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
        (self.folder / "data.yaml").write_text(text, encoding="utf-8", newline="\n")

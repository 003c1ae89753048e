"""MedNIST: small grey images of six kinds, to teach and test the router's domains.

The split is ours, by a hash of the index (80/10/10): the set names no patients, so neighbouring
slices of one patient can stand on both sides, and its scores are easy ones. Train images also
carry a caption.
"""

from __future__ import annotations

from pathlib import Path

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common, npz
from medmoe.data.readers.known_set import KnownSet
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError

_QUESTION = "What kind of image is this?"
#: Name of a class -> option, modality and organ.
_CLASSES = {
    "AbdomenCT": ("abdomen CT", "ct", "abdomen"),
    "BreastMRI": ("breast MRI", "mri", "breast"),
    "CXR": ("chest X-ray", "xray", "chest"),
    "ChestCT": ("chest CT", "ct", "chest"),
    "Hand": ("hand X-ray", "xray", "hand"),
    "HeadCT": ("head CT", "ct", "head"),
}


class MedNist(KnownSet):
    """The file ``mednist-6k.npz`` (``images``, ``labels``, ``classes``)."""

    NAME = "mednist"
    MARKERS = ("mednist-6k.npz",)
    TRIED = True
    LICENCE = "CC-BY-SA-4.0"
    SOURCE = common.Source("https://github.com/Project-MONAI/MONAI-extra-test-data/releases")

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return one classification record per image, and for ``train`` one caption each."""
        arrays = npz.load(marker, ("images", "labels", "classes"))
        names = arrays["classes"].tolist()
        for name in names:
            if name not in _CLASSES:
                raise DataError(f"{marker}: class {name!r} must be one of {', '.join(_CLASSES)}")
        images = npz.images(marker, "images", arrays)
        labels = npz.labels(marker, "labels", arrays, len(images), len(names))
        options = tuple(_CLASSES[name][0] for name in names)
        records, captions = [], []
        for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            image_id = f"{self.NAME}/{index}"
            if common.hash_split(image_id) != split:
                continue
            kind, modality, organ = _CLASSES[names[label]]
            image = ImageRecord(image_id, pixels, modality, organ, {"kind": kind})
            records.append(self.labelled(image, _QUESTION, kind, options, split))
            text = f"{'An' if kind[0] in 'aeiou' else 'A'} {kind}."
            captions.append(self.caption(image, text, split))
        return records + captions if split == "train" else records


SET = MedNist()

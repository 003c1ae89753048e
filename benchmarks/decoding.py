"""What the decoder processes cost beside decoding in this process.

Each picture is decoded here and in a decoder process in turn; printed are the median of the
differences in milliseconds (the one figure here that is no ratio: its limit is 5 ms) and of the
ratios. Both give the same pixels, which is checked.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image
from support.pictures import pictures
from support.timing import options

from medmoe.data.intake.decode import Request, decode
from medmoe.data.intake.limits import Limits
from medmoe.data.intake.sandbox import DecoderPool

LIMIT_MS = 5.0


def files(folder: Path, count: int) -> dict[str, list[bytes]]:
    """Return files by kind."""
    name, records = pictures(folder, count)
    photos = [Path(str(record.source)).read_bytes() for record in records]
    grey = np.random.default_rng(0).integers(0, 4096, (512, 512)).astype(np.int16)
    odd = Path(pydicom.__file__).parent / "data" / "test_files"
    Image.fromarray(grey.astype(np.uint8)).save(folder / "grey.png")
    volume = np.random.default_rng(0).integers(0, 999, (256, 256, 32)).astype(np.int16)
    return {
        f"JPEG, {name}": photos,
        "PNG, 512x512": [(folder / "grey.png").read_bytes()] * count,
        "DICOM, CT 128x128": [(odd / "CT_small.dcm").read_bytes()] * count,
        "DICOM, CT 512x512 JPEG 2000": [(odd / "693_J2KI.dcm").read_bytes()] * (count // 4),
        "NIfTI, 256x256x32": [nibabel.Nifti1Image(volume, np.eye(4)).to_bytes()] * count,
    }


def main() -> None:
    values = options(__doc__.splitlines()[0])
    request, limits = Request(), Limits()
    pool = DecoderPool(workers=1)
    print(f"{'':<34}{'extra ms (median)':>18}  in a process ÷ here (median)")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for kind, batch in files(Path(folder), 20 * values.repeats).items():
            same = np.array_equal(
                pool.decode(batch[0]).pixels, decode(batch[0], request, limits).pixels
            )
            assert same, f"{kind}: not the same pixels"
            extra, ratio = [], []
            for data in batch:
                start = time.perf_counter()
                decode(data, request, limits)
                middle = time.perf_counter()
                pool.decode(data)
                end = time.perf_counter()
                extra.append(1000 * ((end - middle) - (middle - start)))
                ratio.append((end - middle) / (middle - start))
            worst = max(worst, statistics.median(extra))
            print(f"{kind:<34}{statistics.median(extra):>18.2f}  {statistics.median(ratio):6.2f}")
    pool.close()
    verdict = "within" if worst < LIMIT_MS else "ABOVE"
    print(f"worst median: {worst:.2f} ms, {verdict} the limit of {LIMIT_MS:g} ms")


if __name__ == "__main__":
    main()

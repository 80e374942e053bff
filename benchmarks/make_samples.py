"""Choose the six sample ECGs that ship with pulse-edge and write them.

    python benchmarks/make_samples.py ../shared/ecg/labels.csv

They are real PTB-XL records (CC BY 4.0) of patients on the test side of the split, so the embedded
model has never seen them. The first record in file order that fits each description is taken:
nothing is chosen by how the model does on it.
"""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

from PIL import Image

from pulse_edge.ecg.paper import PaperStyle, render
from pulse_edge.ecg.record import read_record
from pulse_edge.ecg.split import split

ASSETS = Path(__file__).parents[1] / "pulse_edge" / "assets" / "samples"
WANTED = {
    "normal": lambda r: r["superclass"] == "NORM" and "SR" in r["codes"].split(";"),
    "inferior-mi": lambda r: r["superclass"] == "MI" and "IMI" in r["codes"].split(";"),
    "st-t-changes": lambda r: r["superclass"] == "STTC",
    "left-bundle-branch-block": lambda r: r["superclass"] == "CD" and "CLBBB" in r["codes"].split(";"),
    "left-ventricular-hypertrophy": lambda r: "HYP" in r["superclass"] and "LVH" in r["codes"].split(";"),
    "atrial-fibrillation": lambda r: bool(r["superclass"]) and "AFIB" in r["codes"].split(";"),
}


def main(labels_csv: Path) -> None:
    """Write WFDB files, page pictures and samples.csv into the package's assets."""
    with labels_csv.open(newline="", encoding="utf-8") as stream:
        rows = [
            r for r in csv.DictReader(stream) if r["scheme"] == "scp" and split(r["patient_id"]) == "test"
        ]
    ASSETS.mkdir(parents=True, exist_ok=True)
    written = []
    for name, fits in WANTED.items():
        row = next(r for r in rows if fits(r) and not read_record(labels_csv.parent / r["record"]).problems)
        source = labels_csv.parent / row["record"]
        for suffix in (".hea", ".dat"):
            shutil.copyfile(source.with_name(source.name + suffix), ASSETS / (source.name + suffix))
        page = render(read_record(source), PaperStyle(header=(f"PTB-XL {source.name}",)))
        # 64 colours hold a page of three inks and two grid lines, at a fifth of the bytes.
        picture = Image.fromarray(page.image).quantize(64, dither=Image.Dither.NONE)
        picture.save(ASSETS / f"{name}.png", optimize=True, dpi=(200, 200))
        written.append({**row, "record": source.name, "image": f"{name}.png"})
    with (ASSETS / "samples.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(written[0]))
        writer.writeheader()
        writer.writerows(written)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""How far the capture graph is from the numpy path, on every annotated picture of a folder.

    python benchmarks/capture_graph.py ../shared/photos

The graph is exported, or taken from ``--graph``, and run in ONNX Runtime on one thread. For each picture: the
distance between the nodes of both meshes that lie inside the picture, in millimetres of paper; each mesh's
error against the hand-checked lattice; and how many grey levels the graph's tiles are off those that are
cut from the reference's page. ``--synthesised N`` does the same with N photos of whole sheets, whose exact
map is known, and counts those in which only one of both found the grid.

Prints a table and writes benchmarks/results/capture_graph.json; ``--files`` measures some pictures anew and
keeps the rows of the others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from capture import shoot
from capture_truth import against_lattice, against_photo, read_photos
from machine import describe_machine
from numpy.typing import NDArray

from pulse_edge.contract import IMAGE_STD
from pulse_edge.image_io import open_image
from pulse_edge.model.preprocess import preprocess
from pulse_edge.runtimes.capture.onnx import CaptureSession, GraphResult
from pulse_edge.runtimes.capture.rectify import Rectified, rectify

RESULT = Path(__file__).parent / "results" / "capture_graph.json"
Row = dict[str, Any]


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Measure the capture graph against the numpy path.")
    parser.add_argument("photos", type=Path, help="folder with annotations.json")
    parser.add_argument("--graph", type=Path, help="capture.onnx; exported anew by default")
    parser.add_argument("--files", nargs="+", help="pictures to measure anew")
    parser.add_argument("--synthesised", type=int, default=0, help="photos of whole sheets")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    session = _session(args.graph)
    report: Row = json.loads(args.output.read_text("utf-8")) if args.output.is_file() else {}
    report |= {"benchmark": "capture_graph", **describe_machine(), "opencv": cv2.__version__}
    rows = {row["file"]: row for row in report.get("rows", [])}
    print(f"{'':14s}{'rms':>8s}{'p95':>8s}{'max':>8s}{'graph':>9s}{'numpy':>8s}{'levels':>8s}{'CPU s':>7s}")
    for entry, path, nodes in read_photos(args.photos):
        if args.files is None or entry["file"] in args.files:
            image = np.asarray(open_image(path, upright=True))
            row = _measure(session, image)
            errors = [against_lattice(mesh, nodes) for mesh in row.pop("meshes")]
            row |= {"kind": entry["kind"]}
            row |= {
                f"{name}_rms_mm": round(error.rms_mm, 4) if error else None
                for name, error in zip(("graph", "numpy"), errors, strict=True)
            }
            rows[entry["file"]] = {"file": entry["file"], **row}
            _print(rows[entry["file"]])
    report["rows"] = [rows[name] for name in sorted(rows)]
    report["summary"] = _summary(report["rows"])
    print(json.dumps(report["summary"]))
    if args.synthesised:
        report["synthesised"] = _synthesised(session, args.synthesised)
        print(json.dumps(report["synthesised"]["summary"]))
    args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _session(path: Path | None) -> CaptureSession:
    if path is not None:
        return CaptureSession(path)
    from pulse_edge.export.capture_graph.onnx import write_onnx

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "capture.onnx"
        start = time.process_time()
        write_onnx(path)
        print(f"exported in {time.process_time() - start:.0f} s, {path.stat().st_size / 1e6:.1f} MB")
        return CaptureSession(path)


def _measure(session: CaptureSession, image: NDArray[np.uint8]) -> Row:
    start = time.process_time()
    result = session.run(image)
    seconds = time.process_time() - start
    start = time.process_time()
    wanted = rectify(image)
    row: Row = {
        "cpu_s": round(seconds, 2),
        "numpy_cpu_s": round(time.process_time() - start, 2),
        "found": [result.grid_found, wanted.grid_found],
        "nodes": [list(result.mesh.shape[:2]), list(wanted.mesh.shape[:2])],
        "meshes": (result.mesh, wanted.mesh),
        "seen": int(result.facts["seen"]),
        "same_turn": abs((_angle(result) - wanted.rotation + 180) % 360 - 180) < 45,
    }
    if result.grid_found and wanted.grid_found:
        away = _apart(result, wanted, image.shape)
        row |= {"rms_mm": round(float(np.sqrt((away**2).mean())), 4)}
        row |= {"p95_mm": round(float(np.percentile(away, 95)), 4), "max_mm": round(float(away.max()), 3)}
        row |= {"levels": _levels(result, wanted)}
    return row


def _apart(result: GraphResult, wanted: Rectified, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Millimetres from each node of the reference inside the picture to the graph's nearest."""
    nodes = wanted.mesh[..., :2].reshape(-1, 2)
    inside = ((nodes > 0) & (nodes < np.array([shape[1], shape[0]]) - 1)).all(1)
    others = result.mesh[..., :2].reshape(-1, 2)
    pixels = [float(np.hypot(*(others - node).T).min()) for node in nodes[inside]]
    return np.array(pixels) / float(np.mean(wanted.px_per_mm))


def _angle(result: GraphResult) -> float:
    middle = result.mesh[result.mesh.shape[0] // 2]
    x, y = middle[-1, :2] - middle[0, :2]
    return float(np.degrees(np.arctan2(y, x)))


def _levels(result: GraphResult, wanted: Rectified) -> float | None:
    """Mean difference of the tiles, grey levels; None where the pages differ in size."""
    tiles = preprocess(wanted.page)
    if result.page != (wanted.page.shape[1], wanted.page.shape[0]):
        return None
    off = np.abs(result.tiles - tiles) * np.array(IMAGE_STD)[:, None, None] * 255
    return round(float(off.mean()), 3)


def _print(row: Row) -> None:
    def number(name: str, form: str) -> str:
        return "-".rjust(8) if row.get(name) is None else format(row[name], form)

    print(
        f"{row['file']:14s}"
        + "".join(number(name, "8.4f") for name in ("rms_mm", "p95_mm", "max_mm"))
        + f"{number('graph_rms_mm', '9.3f')}{number('numpy_rms_mm', '8.3f')}{number('levels', '8.2f')}"
        + f"{row['cpu_s']:7.2f}",
        flush=True,
    )


def _summary(rows: list[Row]) -> Row:
    both = [row for row in rows if all(row["found"])]
    rms = np.array([row["rms_mm"] for row in both])
    return {
        "n": len(rows),
        "grid_found_by_both": len(both),
        "rms_mm_median": float(np.median(rms)),
        "rms_mm_worst": float(rms.max()),
        "within_0.05_mm": int((rms <= 0.05).sum()),
        "p95_mm_worst": float(max(row["p95_mm"] for row in both)),
        "same_turn": sum(row["same_turn"] for row in both),
        "levels_median": float(np.median([row["levels"] for row in both if row["levels"] is not None])),
        "cpu_s_median": float(np.median([row["cpu_s"] for row in rows])),
    }


def _synthesised(session: CaptureSession, count: int) -> Row:
    rows = []
    for k in range(count):
        photo, _ = shoot(k, whole=True)
        row = _measure(session, photo.image)
        errors = [against_photo(mesh, photo) for mesh in row.pop("meshes")]
        row |= {
            f"{name}_rms_mm": round(error.rms_mm, 4) if error else None
            for name, error in zip(("graph", "numpy"), errors, strict=True)
        }
        rows.append({"file": f"sheet {k}", **row})
        _print(rows[-1])
    return {"rows": rows, "summary": _summary(rows)}


if __name__ == "__main__":
    main()

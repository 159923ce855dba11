"""Render a composite micro-expression set of drawn faces: `pthnet synth-micro DIR`; try `pthnet loso` on it."""

import csv
from pathlib import Path
from typing import Literal


def synth_micro(
    directory: Path, *, seed: int = 0, subjects: int = 0, method: Literal["farneback", "tvl1"] = "farneback"
) -> None:
    """Render onset and apex frames, flow images and the combined CSV: 442 samples of 68 subjects in three data sets.

    Parameters
    ----------
    directory
        Receives combined.csv, landmarks.csv, frames/<dataset>/<sub>/<file>/img<number>.png and flow/<sub>_<file> .png.
    seed
        Equal seeds give equal files.
    subjects
        Keep only so many subjects of every data set; 0 keeps all.
    method
        Optical flow; tvl1 takes about three minutes on one core for the whole set, farneback three seconds.
    """
    from pthnet.flow import flow_image
    from storage.errors import StorageError
    from tasks.flow_images import flow_path, write_png
    from tasks.synth_micro import plan_samples, render_faces

    if subjects < 0:
        raise StorageError(f"subjects is {subjects}; give 0 for all or how many of every data set")
    samples = plan_samples(seed, subjects)
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "landmarks.csv", "w", newline="") as stream:
        landmarks = csv.writer(stream)
        landmarks.writerow(["sub", "filename_o", *(f"{axis}{point}" for point in range(5) for axis in "xy")])
        for sample in samples:
            faces = render_faces(sample, seed)
            folder = directory / "frames" / sample.dataset / sample.sub / sample.file
            write_png(faces.onset, folder / f"img{sample.onset}.png")
            write_png(faces.apex, folder / f"img{sample.apex}.png")
            write_png(flow_image(faces.onset, faces.apex, method), flow_path(directory / "flow", sample.name))
            landmarks.writerow([sample.sub, sample.file, *(f"{value:.3f}" for value in faces.landmarks.flatten())])
    with open(directory / "combined.csv", "w", newline="") as stream:
        combined = csv.writer(stream)
        combined.writerow(["dataset", "sub", "filename_o", "label", "onset", "apex"])
        combined.writerows([s.dataset, s.sub, s.file, s.label, s.onset, s.apex] for s in samples)
    people = len({sample.subject for sample in samples})
    print(f"{len(samples)} samples of {people} subjects in {directory}")

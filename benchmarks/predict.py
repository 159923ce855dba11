"""What `pthnet predict` costs beside `pthnet extract` of the same clips.

python -m benchmarks.predict --clips 100
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cyclopts import App

from benchmarks.machine import keep, table

app = App(help=__doc__)


@app.default
def main(*, clips: int = 100, backbone: str = "small", pictures: bool = True, name: str = "predict") -> None:
    """Extract an archive, predict it anew, and predict it again from the features that are there.

    Parameters
    ----------
    clips
        Drawn faces of 12 to 60 frames.
    backbone
        Random weights.
    pictures
        Draw timelines and write the page, as predict does by default.
    """
    with tempfile.TemporaryDirectory() as folder:
        cli = [sys.executable, "-m", "workflows.cli"]
        _run([*cli, "synth", f"{folder}/archive", "--clips", str(clips)])
        model = _model(Path(folder) / "model", backbone)
        videos = f"{folder}/archive/videos"
        extract = [*cli, "extract", videos, "--backbone", backbone, "--random-weights", "0"]
        predict = [*cli, "predict", videos, "--model", model]
        predict += [] if pictures else ["--no-timeline", "--no-report"]
        extracted = _run([*extract, "--features", f"{folder}/extracted"])
        anew = _run([*predict, "--features", f"{folder}/features", "--out", f"{folder}/predictions"])
        again = _run([*predict, "--features", f"{folder}/features", "--out", f"{folder}/again"])
    rows = [
        ["extract", f"{extracted:.1f}", "1.00"],
        ["predict, features extracted on the way", f"{anew:.1f}", f"{anew / extracted:.2f}"],
        ["predict, features there", f"{again:.1f}", f"{again / extracted:.2f}"],
    ]
    what = "timelines and page" if pictures else "no pictures"
    notes = [f"{clips} clips, {backbone} backbone, both directions; whole processes; predictions with {what}.", ""]
    keep(name, table("Prediction beside extraction", ["command", "seconds", "of the extraction"], rows, notes))


def _model(folder: Path, backbone: str) -> str:
    """A fused model over this backbone's features, random weights."""
    import json

    import torch

    from pthnet.pth_net import PTHNet, PTHNetConfig
    from tasks.bundle import Bundle, save_bundle
    from tasks.resolve import resolve_extractor

    extractor = resolve_extractor(backbone, random_weights=0)
    torch.manual_seed(0)
    config = PTHNetConfig(in_dim=extractor.dim, num_classes=7)
    networks = {direction: PTHNet(config) for direction in ("forward", "reverse")}
    bundle = Bundle(
        networks=networks,
        mu=0.7,
        classes=tuple("ABCDEFG"),
        extractor=json.loads(extractor.to_json()),
        extractor_id=extractor.id,
    )
    return str(save_bundle(bundle, folder))


def _run(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    app()

"""Draw a small face data set in the layouts of EC-STFL and CFC-SP: `pthnet synth-frames DIR --seed 0`."""

from pathlib import Path


def synth_frames(
    directory: Path,
    *,
    videos: int = 12,
    frames: int = 200,
    clips: int = 140,
    images: int = 560,
    size: int = 64,
    noise: float = 0.2,
    weakest: float = 0.35,
    seed: int = 0,
    test_share: float = 0.25,
) -> None:
    """Draw labelled face videos, clips and images with their lists.

    The same command again draws the same pixels and leaves what is there.

    Parameters
    ----------
    directory
        Receives faces/<video>/00001.jpg with EXPR/train and EXPR/val (Aff-Wild2's annotation files, eight classes),
        clips/<Class>/<number>/ with lists/clips_{train,test}.txt ("<folder> <frames> <label>"), and images/ with
        lists/images_{train,test}.csv (filePath,expression); the latter two have seven classes in DFEW's order.
    videos
        Face videos.
    frames
        Frames of each.
    clips
        Clips of 16 to 40 frames.
    images
        Single images.
    size
        Side of an image, pixels.
    noise
        Share of frames that are spoilt without a change of label.
    weakest
        Least strength of an expression, 0 to 1; below about 0.2 it is hard to tell from the neutral face.
    seed
        Equal seeds give equal pixels.
    test_share
        Share that goes to the test lists.
    """
    import json

    import cv2
    import numpy as np

    from pthnet.emotions import LABELS, emotion
    from storage.errors import StorageError
    from tasks.frame_faces import CLASSES, FaceSettings, draw_clip, draw_image, draw_video

    if (
        min(videos, frames, clips, images) < 0
        or size < 16
        or not 0 <= test_share < 1
        or not 0 <= noise <= 1
        or not 0 <= weakest <= 1
    ):
        raise StorageError(
            "counts cannot be negative, size is at least 16, test_share, noise and weakest lie in [0, 1]"
        )
    settings = FaceSettings(size=size, noise=noise, weakest=weakest)
    stamp = {
        "seed": seed,
        "size": size,
        "noise": noise,
        "weakest": weakest,
        "videos": videos,
        "frames": frames,
        "clips": clips,
    }
    stamp |= {"images": images, "test_share": test_share}
    manifest = directory / "frames.json"
    if manifest.exists():
        if json.loads(manifest.read_text()) == stamp:
            return
        raise StorageError(f"{directory} holds another drawn data set; choose another directory or remove this one")

    def write(path: Path, image: "np.ndarray") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])

    def in_test(number: int) -> bool:
        return int((number + 1) * test_share + 1e-9) > int(number * test_share + 1e-9)

    for split in ("EXPR/train", "EXPR/val", "lists", "faces", "clips", "images"):
        (directory / split).mkdir(parents=True, exist_ok=True)
    for number in range(videos):
        drawn = draw_video(seed, number, frames, settings)
        for frame, face in enumerate(drawn.faces, 1):
            if face is not None:
                write(directory / f"faces/video_{number:03d}/{frame:05d}.jpg", face)
        text = "\n".join([",".join(CLASSES), *map(str, drawn.labels.tolist())]) + "\n"
        (directory / f"EXPR/{'val' if in_test(number) else 'train'}/video_{number:03d}.txt").write_text(text)
    seven = LABELS["dfew"].classes
    drawn_as = {emotion(name): name for name in CLASSES}
    lines: dict[str, list[str]] = {"clips_train": [], "clips_test": [], "images_train": [], "images_test": []}
    rng = np.random.default_rng([seed, 3])
    for number in range(clips):
        label = number % len(seven)
        folder = f"{seven[label]}/{number:05d}"
        length = int(rng.integers(16, 41))
        for frame, image in enumerate(draw_clip(seed, number, length, drawn_as[emotion(seven[label])], settings), 1):
            write(directory / f"clips/{folder}/{frame:05d}.jpg", image)
        lines["clips_test" if in_test(number // len(seven)) else "clips_train"].append(f"{folder} {length} {label}")
    for number in range(images):
        label = number % len(seven)
        name = f"{seven[label].lower()}_{number:05d}.jpg"
        write(directory / "images" / name, draw_image(seed, number, drawn_as[emotion(seven[label])], settings))
        lines["images_test" if in_test(number // len(seven)) else "images_train"].append(f"{name},{label}")
    for name, rows in lines.items():
        is_csv = name.startswith("images")
        head = ["filePath,expression"] if is_csv else []
        (directory / f"lists/{name}.{'csv' if is_csv else 'txt'}").write_text("\n".join([*head, *rows]) + "\n")
    manifest.write_text(json.dumps(stamp))
    print(f"{directory}: {videos} videos of {frames} frames, {clips} clips, {images} images, {size} pixels")

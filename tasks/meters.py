"""What the forward stage tells Prometheus while it runs, through Ray's metrics; the run summary holds the same sums."""

from typing import Any

STAGES = ("decode", "wait", "copy", "forward")


class Meters:
    """Counters of one worker: pthnet_windows_total, pthnet_clips_total, pthnet_stage_seconds_total, pthnet_batch_fill.

    Outside Ray nothing listens and nothing is counted.

    Parameters
    ----------
    extractor_id
        Tag on every series, so that two runs on one cluster can be told apart.
    """

    def __init__(self, extractor_id: str) -> None:
        import ray
        from ray.util import metrics

        self._tags = {"extractor": extractor_id}
        self._series: dict[str, Any] = {}
        if not ray.is_initialized():
            return
        names = ("extractor",)
        self._series = {
            "windows": metrics.Counter("pthnet_windows_total", "Window features extracted.", names),
            "clips": metrics.Counter("pthnet_clips_total", "Segments that ended, by status.", (*names, "status")),
            "seconds": metrics.Counter("pthnet_stage_seconds_total", "Seconds by stage.", (*names, "stage")),
            "fill": metrics.Gauge("pthnet_batch_fill", "Share of the micro-batches' places in use.", names),
        }

    def count(self, windows: int, ended: dict[str, int], seconds: dict[str, float], fill: float) -> None:
        """Add one batch.

        Parameters
        ----------
        ended
            Rows by status.
        seconds
            By stage, see STAGES.
        """
        if not self._series:
            return
        if windows:
            self._series["windows"].inc(windows, self._tags)
            self._series["fill"].set(fill, self._tags)
        for status, rows in ended.items():
            self._series["clips"].inc(rows, {**self._tags, "status": status})
        for stage, spent in seconds.items():
            if spent > 0:
                self._series["seconds"].inc(spent, {**self._tags, "stage": stage})

"""The command line: `pthnet WORKFLOW ...`; each workflow is imported only when it is called.

    pthnet --help
    pthnet extract videos/ --features features/

Exit codes: 0 done, 1 done with too many failures, 2 something the user can put right, 130 interrupted.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError, Group

# (command, where it lives, one line of help); the groups in the order a user meets them
COMMANDS: dict[str, list[tuple[str, str, str]]] = {
    "Start here": [
        ("demo", "workflows.demo:demo", "Render, extract, train, register and predict, small and real."),
        ("synth", "workflows.synth:synth", "Render a labelled archive of drawn faces that move."),
    ],
    "Features": [
        ("extract", "workflows.extract:extract", "Extract VideoMAE V2 features of every new or changed clip."),
        ("status", "workflows.status:status", "Show what a feature table holds, lacks and quarantines."),
        ("vacuum", "workflows.maintain:vacuum", "Delete files of a feature table that no reader needs."),
        ("compact", "workflows.maintain:compact", "Merge the small files of a feature table."),
        (
            "import-features",
            "workflows.import_features:import_features",
            "Bring published .npy features into a feature table.",
        ),
        (
            "export-features",
            "workflows.export_features:export_features",
            "Write features as the published .npy files.",
        ),
    ],
    "Models": [
        ("train", "workflows.train:train", "Train forward and reverse PTH-Net, fuse and register them."),
        ("evaluate", "workflows.evaluate:evaluate", "Score a registered model on a list of clips."),
        ("predict", "workflows.predict:predict", "Predict the expression in videos."),
        ("models", "workflows.models:models", "List, show, compare, promote and roll back registered models."),
        ("import-model", "workflows.import_model:import_model", "Fuse and register published PTH-Net weights."),
        ("serve", "workflows.serve:serve", "Serve a model over HTTP on Ray Serve."),
    ],
    "Frames": [
        ("finetune", "workflows.finetune:finetune", "Train EC-STFL's or CFC-SP's networks on clips and images."),
        ("predict-frames", "workflows.frames_predict:frames_predict", "Predict and score with such a network."),
        ("cascade", "workflows.cascade:cascade", "Smooth and cascade a coarse and a negative network's predictions."),
        ("synth-frames", "workflows.synth_frames:synth_frames", "Draw labelled face videos, clips and images."),
    ],
    "Micro-expressions": [
        ("flow", "workflows.flow:flow", "Make optical-flow images from onset and apex frames."),
        ("loso", "workflows.loso:loso", "Leave one subject out: HTNet on flow images, or PTH-Net on features."),
        ("synth-micro", "workflows.synth_micro:synth_micro", "Render a composite set of drawn micro-expressions."),
    ],
    "Clusters": [
        ("submit", "workflows.submit:submit", "Run a workflow on a Ray cluster and follow it."),
        ("jobs", "workflows.jobs:jobs", "List, show, follow and stop the jobs of a cluster."),
        ("schedule", "workflows.schedule:schedule", "Run a workflow again and again, never twice at once."),
        (
            "refresh",
            "workflows.refresh:refresh",
            "Extract what is new, retrain, and promote the model if it is better.",
        ),
        ("manifests", "workflows.manifests:manifests", "Print Kubernetes manifests for KubeRay."),
    ],
}


def _groups() -> dict[str, Group]:
    return {title: Group(title, sort_key=position) for position, title in enumerate(COMMANDS)}


def build() -> App:
    """The application with every workflow registered by its import path."""
    groups = _groups()
    app = App(
        name="pthnet",
        help="Distributed feature extraction and training for facial expressions in video.",
        version=version("pthnet"),
        help_format="plaintext",
        suppress_keyboard_interrupt=False,  # said and answered in run()
    )
    for title, commands in COMMANDS.items():
        for name, path, line in commands:
            app.command(path, name=name, help=line, group=groups[title])
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command; errors a user can put right become one line and exit code 2."""
    try:
        result = build()(list(arguments), exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        return 2  # already printed
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    except Exception as error:
        if not _is_users(error):
            raise
        print(f"pthnet: {error}", file=sys.stderr)
        return 2
    return result if isinstance(result, int) else 0


def _is_users(error: Exception) -> bool:
    """True for the errors whose message says what the user can do; all others are bugs and keep their traceback."""
    from cluster.errors import ClusterError
    from pthnet.errors import ModelError
    from storage.errors import StorageError

    return isinstance(error, ModelError | StorageError | ClusterError)


if __name__ == "__main__":
    main()

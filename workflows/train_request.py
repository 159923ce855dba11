"""What a training is asked for: the options of `pthnet train`, and the settings they make over the published ones."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pthnet.benchmarks import Benchmark
    from tasks.train_settings import TrainSettings

Level = Literal["high", "middle", "low"]


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train on and how; the defaults are the published procedure, except that the test set chooses nothing.

    Parameters
    ----------
    features
        The feature table, local or s3://.
    benchmark
        A public benchmark (FERV39k, DFEW, MAFW-single, MAFW-compound, CREMA-D, eNTERFACE05, RAVDESS, MELD, CASME-II) or
        a YAML file that describes your own.
    lists
        Folder of the benchmark's list files.
    fold
        Only these folds (from 1); all by default.
    train_list
        A list of training clips, instead of a benchmark.
    test_list
        A list of test clips, instead of a benchmark.
    classes
        Class names in the order of the labels, comma-separated; with two lists.
    strip
        Folder to take off the front of the lists' paths, so that they become clip ids.
    extractor
        Which extractor's features; needed when the table holds several.
    backbone_dim
        Refuse features that are not of this size.
    directions
        Train only one direction with "forward" or "reverse".
    levels
        Levels trained; the finest of them decides.
    epochs
        The benchmark's published number when left out.
    milestones
        Epochs after which the learning rate falls; the published ones, in proportion to the epochs, when left out.
    decay
        What the learning rate is multiplied by at a milestone; published when left out.
    lr
        Learning rate of SGD; published when left out.
    batch
        Clips in a batch over all workers; published when left out.
    per_worker_batch
        Let the global batch grow with the workers instead of keeping it.
    noise
        Deviation of the noise added to features in training.
    selection
        Which epoch's weights are kept. The papers choose on the test set: that is best-on-test.
    select_by
        The score that validation and best-on-test compare.
    mu
        Weight of the forward logits, or "validation" to choose it there.
    validation
        Share of the training clips held out; 0.1 when something is chosen on it.
    loss
        "ecstfl" adds gamma times the EC-STFL loss on the pooled features.
    gamma
        Weight of the EC-STFL loss.
    standardize
        Standardise features by the training clips; kept with the model.
    class_weights
        Weigh the cross entropy by inverse class frequency.
    balanced
        Draw classes equally often.
    ema
        Decay of a running average of the weights that is kept instead of them, such as 0.999; 0 is off.
    patience
        Stop after so many epochs without a better score; 0 is off.
    precision
        fp32, or bf16 autocast.
    dim
        Channels of the network.
    mlp_dim
        Channels of its feed-forward layers.
    downsample
        How time is halved between its stages.
    drop_path
        Probability of dropping a residual branch while training.
    seed
        Of the initial weights, the order of clips and every draw.
    workers
        DDP workers of each training; by default 2 on CPUs, 1 on GPUs.
    max_failures
        Times a training goes on from its last checkpoint after a worker or node died.
    out
        Where runs are kept, local or s3://; all nodes must reach it.
    run_name
        Names the run; by default it follows from the data and settings, so that the same command resumes.
    tracking_uri
        MLflow; by default MLFLOW_TRACKING_URI, else a SQLite file in `out`.
    experiment
        MLflow experiment.
    model_name
        Registered model; by default pthnet-BENCHMARK.
    register
        Which folds' fused models to register.
    figures
        Draw figures.
    allow_missing
        Leave out listed clips without features instead of refusing.
    address
        Ray cluster to join.
    """

    features: str
    benchmark: str | None = None
    lists: str | None = None
    fold: tuple[int, ...] = ()
    train_list: str | None = None
    test_list: str | None = None
    classes: tuple[str, ...] = ()
    strip: str = ""
    extractor: str | None = None
    backbone_dim: int | None = None
    directions: tuple[Literal["forward", "reverse"], ...] = ("forward", "reverse")
    levels: tuple[Level, ...] = ("high", "middle", "low")
    epochs: int | None = None
    milestones: tuple[int, ...] | None = None
    decay: float | None = None
    lr: float | None = None
    batch: int | None = None
    per_worker_batch: bool = False
    noise: float = 0.0005
    selection: Literal["last", "validation", "best-on-test"] = "last"
    select_by: Literal["uar", "war"] = "uar"
    mu: float | Literal["validation"] = 0.7
    validation: float | None = None
    loss: Literal["pyramid", "ecstfl"] = "pyramid"
    gamma: float = 10.0
    standardize: bool = False
    class_weights: bool = False
    balanced: bool = False
    ema: float = 0.0
    patience: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    dim: int = 512
    mlp_dim: int = 768
    downsample: Literal["max", "avg"] = "max"
    drop_path: float = 0.1
    seed: int = 0
    workers: int | None = None
    max_failures: int = 3
    out: str = "runs"
    run_name: str | None = None
    tracking_uri: str | None = None
    experiment: str = "pthnet"
    model_name: str | None = None
    register: Literal["first", "all", "none"] = "first"
    figures: bool = True
    allow_missing: bool = False
    address: str | None = None


def settings_of(request: TrainRequest, benchmark: "Benchmark", in_dim: int) -> "TrainSettings":
    """The request's settings over the benchmark's published schedule."""
    from pthnet.pth_net import PTHNetConfig
    from tasks.train_settings import TrainSettings

    schedule = benchmark.schedule
    epochs = request.epochs or schedule.epochs
    milestones = request.milestones
    if milestones is None:
        milestones = tuple(round(milestone * epochs / schedule.epochs) for milestone in schedule.milestones)
    return TrainSettings(
        model=PTHNetConfig(
            in_dim=in_dim,
            dim=request.dim,
            mlp_dim=request.mlp_dim,
            num_classes=benchmark.num_classes,
            drop_path=request.drop_path,
            downsample=request.downsample,
            standardize=request.standardize,
        ),
        epochs=epochs,
        milestones=milestones,
        decay=schedule.factor if request.decay is None else request.decay,
        lr=schedule.learning_rate if request.lr is None else request.lr,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
        batch=request.batch or schedule.batch_size,
        noise=request.noise,
        levels=request.levels,
        loss=request.loss,
        gamma=request.gamma,
        class_weights=request.class_weights,
        balanced=request.balanced,
        ema=request.ema,
        patience=request.patience,
        selection=request.selection,
        select_by=request.select_by,
        precision=request.precision,
        seed=request.seed,
    )

"""Training: the Trainer, its callbacks and metrics, the history, and ready-made jobs.

A model of one's own::

    trainer = Trainer(
        model,
        nn.CrossEntropyLoss(),
        lambda parameters: optim.AdamW(parameters, lr=1e-3),
        metrics=["accuracy"],
        callbacks=[EarlyStopping(patience=5)],
        seed=0,
    )
    history = trainer.fit((x_train, y_train), (x_validation, y_validation), epochs=50)
    print(trainer.evaluate((x_test, y_test)))
    scores = trainer.predict(x_new)

A ready-made job, as ``gpunn train digits`` does it::

    result = run_job(find_job("digits"), DigitsConfig(seed=1))
    images_to_probabilities = TrainedModel.load(result.folder).probabilities
"""

from gpunn.train.callbacks import (
    Callback,
    CSVLogger,
    EarlyStopping,
    LearningRateScheduler,
    ModelCheckpoint,
)
from gpunn.train.checkpoint import Checkpoints, load_checkpoint, save_checkpoint
from gpunn.train.checkpoint_file import CheckpointError
from gpunn.train.classification import JobResult
from gpunn.train.configuration import check, device_setting, setting
from gpunn.train.history import History
from gpunn.train.job import Job, Outcome
from gpunn.train.job_runs import (
    RunResult,
    evaluate_run,
    job_of,
    opened,
    resume_job,
    run_job,
)
from gpunn.train.jobs import JOBS, ClassificationJob, DigitsConfig
from gpunn.train.learning_rate_finder import LearningRates, find_learning_rate
from gpunn.train.limits import LambdaCallback, TerminateOnTarget, TimeLimit, WeightAverage
from gpunn.train.loggers import JSONLinesLogger, read_json_lines
from gpunn.train.metrics import (
    BLEU,
    F1,
    ROCAUC,
    Accuracy,
    AveragePrecision,
    BalancedAccuracy,
    BrierScore,
    CalibrationError,
    CharacterErrorRate,
    ChrF,
    ConfusionMatrix,
    FBeta,
    IntervalCoverage,
    IntervalWidth,
    LogLoss,
    MatthewsCorrelation,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    Metric,
    MultilabelAccuracy,
    Perplexity,
    PinballLoss,
    Precision,
    R2Score,
    Recall,
    RootMeanSquaredError,
    TopKAccuracy,
    WordErrorRate,
    accuracy,
    confusion_matrix,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    top_k_accuracy,
)
from gpunn.train.nan_watch import NaNWatch
from gpunn.train.progress import ProgressBar
from gpunn.train.run import Run
from gpunn.train.running import TrainingError
from gpunn.train.scripts import find_job, job_names
from gpunn.train.tensorboard import TensorBoardLogger
from gpunn.train.trained import TrainedModel
from gpunn.train.trainer import Trainer
from gpunn.train.watch import GradientWatch, Statistics

__all__ = [
    "BLEU",
    "F1",
    "JOBS",
    "ROCAUC",
    "Accuracy",
    "AveragePrecision",
    "BalancedAccuracy",
    "BrierScore",
    "CSVLogger",
    "CalibrationError",
    "Callback",
    "CharacterErrorRate",
    "CheckpointError",
    "ClassificationJob",
    "Checkpoints",
    "ChrF",
    "ConfusionMatrix",
    "DigitsConfig",
    "EarlyStopping",
    "FBeta",
    "GradientWatch",
    "History",
    "IntervalCoverage",
    "IntervalWidth",
    "JSONLinesLogger",
    "Job",
    "JobResult",
    "LambdaCallback",
    "LearningRateScheduler",
    "LearningRates",
    "LogLoss",
    "MatthewsCorrelation",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "Metric",
    "ModelCheckpoint",
    "MultilabelAccuracy",
    "NaNWatch",
    "Outcome",
    "Perplexity",
    "PinballLoss",
    "Precision",
    "ProgressBar",
    "R2Score",
    "Recall",
    "RootMeanSquaredError",
    "Run",
    "RunResult",
    "Statistics",
    "TensorBoardLogger",
    "TerminateOnTarget",
    "TimeLimit",
    "TopKAccuracy",
    "TrainedModel",
    "Trainer",
    "TrainingError",
    "WeightAverage",
    "WordErrorRate",
    "accuracy",
    "check",
    "confusion_matrix",
    "device_setting",
    "evaluate_run",
    "find_job",
    "find_learning_rate",
    "job_names",
    "job_of",
    "load_checkpoint",
    "mean_absolute_error",
    "mean_squared_error",
    "opened",
    "r2_score",
    "read_json_lines",
    "resume_job",
    "run_job",
    "save_checkpoint",
    "setting",
    "top_k_accuracy",
]

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

    result = run_job(JOBS["digits"], DigitsConfig(seed=1))
    images_to_probabilities = TrainedModel.load(result.folder).probabilities
"""

from gpunn.train.callbacks import (
    Callback,
    CSVLogger,
    EarlyStopping,
    LearningRateScheduler,
    ModelCheckpoint,
)
from gpunn.train.classification import JobResult, run_job
from gpunn.train.history import History
from gpunn.train.jobs import JOBS, DigitsConfig, find_job
from gpunn.train.metrics import (
    Accuracy,
    ConfusionMatrix,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    R2Score,
    TopKAccuracy,
    accuracy,
    confusion_matrix,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    top_k_accuracy,
)
from gpunn.train.progress import ProgressBar
from gpunn.train.running import TrainingError
from gpunn.train.trained import TrainedModel
from gpunn.train.trainer import Trainer

__all__ = [
    "JOBS",
    "Accuracy",
    "CSVLogger",
    "Callback",
    "ConfusionMatrix",
    "DigitsConfig",
    "EarlyStopping",
    "History",
    "JobResult",
    "LearningRateScheduler",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "ModelCheckpoint",
    "ProgressBar",
    "R2Score",
    "TopKAccuracy",
    "TrainedModel",
    "Trainer",
    "TrainingError",
    "accuracy",
    "confusion_matrix",
    "find_job",
    "mean_absolute_error",
    "mean_squared_error",
    "r2_score",
    "run_job",
    "top_k_accuracy",
]

"""A trained model with all that it needs to predict: as it comes out of a job's run folder."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpunn import io
from gpunn.autograd.mode import no_grad
from gpunn.autograd.tensor import wrap
from gpunn.data import Normalizer
from gpunn.device import Device, default_device, to_device, to_numpy
from gpunn.nn import functional as F
from gpunn.train.configuration import config_from_dict, config_to_dict
from gpunn.train.jobs import JOBS, ClassificationJob
from gpunn.train.metrics import accuracy, confusion_matrix
from gpunn.train.run_folder import MODEL, NORMALIZER

_ABOUT = "gpunn_train"  # one entry: several would lie in the file in an order that changes


@dataclass
class TrainedModel:
    """A model, the scaling of its inputs, and the job and configuration that made it.

    Examples
    --------
    ``TrainedModel.load("runs/digits-20261123-160000").probabilities(images)``
    """

    job: ClassificationJob
    config: Any
    model: Any
    normalizer: Normalizer
    device: Device

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model and the scaling into `folder`; the model's metadata name the job."""
        about = json.dumps({"job": self.job.name, "config": config_to_dict(self.config)})
        io.save(self.normalizer, Path(folder) / NORMALIZER)
        io.save(self.model, Path(folder) / MODEL, metadata={_ABOUT: about})

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: Any = None) -> TrainedModel:
        """Load a run folder onto `device` (None: the default device).

        FileNotFoundError if it is no run folder; ValueError if its files are damaged, or of a job
        that this version does not know.
        """
        folder = Path(folder)
        if not (folder / MODEL).is_file() or not (folder / NORMALIZER).is_file():
            problem = "is a file" if folder.exists() else "does not exist"
            if folder.is_dir():
                problem = f"has no {MODEL} with its {NORMALIZER}"
            raise FileNotFoundError(
                f"{folder} is not a run folder: it {problem}. Train one with: gpunn train digits"
            )
        metadata = io.load_metadata(folder / MODEL)
        if _ABOUT not in metadata:
            raise ValueError(f"{folder / MODEL} was not written by gpunn train: it names no job")
        try:
            about = json.loads(metadata[_ABOUT])
            if about["job"] not in JOBS:
                raise ValueError(f"there is no classification job {about['job']!r}")
            job = JOBS[about["job"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / MODEL} does not say how it was made: {error}") from None
        config = config_from_dict(job.config, about["config"], str(folder / MODEL))
        place = default_device() if device in (None, "auto") else Device(device)
        model = job.model(config).to(place)
        try:
            model.load_state_dict(io.load(folder / MODEL, place))
        except RuntimeError as error:
            raise ValueError(f"{folder / MODEL} does not fit its configuration: {error}") from None
        model.eval()
        for name, parameter in model.named_parameters():
            if not parameter.isfinite().all():
                raise ValueError(
                    f"{folder / MODEL}: {name} holds NaN or infinity, so the model cannot predict; "
                    "train it again"
                )
        normalizer = Normalizer()
        normalizer.load_state_dict(io.load_arrays(folder / NORMALIZER))
        return cls(job, config, model, normalizer, place)

    def scores(self, x: Any, batch_size: int = 1024) -> np.ndarray:
        """The model's outputs before softmax for raw samples: (samples, classes).

        `x` is (samples, features) or (samples, *shape), in the units of the training data.
        ValueError, naming both, for another number of features.
        """
        x = np.asarray(x)
        size = math.prod(self.job.shape)
        if x.ndim < 2 or math.prod(x.shape[1:]) != size or len(x) == 0:
            raise ValueError(
                f"x has shape {x.shape}; expected (samples, {size}) with at least one sample"
            )
        rows = self.normalizer.transform(x.reshape(len(x), size).astype(np.float32))
        self.model.eval()
        with no_grad():
            parts = [
                to_numpy(self.model(wrap(to_device(batch, self.device))).array)
                for batch in (rows[at : at + batch_size] for at in range(0, len(rows), batch_size))
            ]
        return np.concatenate(parts)

    def probabilities(self, x: Any, batch_size: int = 1024) -> np.ndarray:
        """Class probabilities of raw samples: (samples, classes); each row adds up to 1.

        Arguments and errors as for `scores`.
        """
        return F.softmax(wrap(self.scores(x, batch_size)), dim=-1).array

    def evaluate(self, x: Any, y: np.ndarray) -> dict[str, Any]:
        """How good the model is on raw samples with labels.

        Returns ``loss`` (the mean cross-entropy, without label smoothing), ``accuracy`` and
        ``confusion_matrix`` (counts [true, predicted]). ValueError as for `scores`, and for labels
        outside the classes.
        """
        scores = self.scores(x)
        return {
            "loss": float(F.cross_entropy(wrap(scores), wrap(np.asarray(y, np.int64))).item()),
            "accuracy": accuracy(scores, y),
            "confusion_matrix": confusion_matrix(scores, y, classes=self.job.classes),
        }

    def doubt(self, x: Any) -> str | None:
        """A sentence if raw samples seem to be in other units than the training data, else None.

        Judged by the spread and the mean of all values together.
        """
        values = self.normalizer.transform(np.asarray(x, np.float32).reshape(len(x), -1))
        if 0.25 < values.std() < 4 and abs(values.mean()) < 3:
            return None
        return (
            f"the values lie between {np.min(x):g} and {np.max(x):g}; in the training data their "
            f"mean was {np.mean(self.normalizer.mean):.3g} and their standard deviation "
            f"{np.mean(self.normalizer.scale):.3g}. Are they in the same units?"
        )

    def test_data(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The held-out data of the run: x, y, and the numbers of the samples in the source."""
        split, rows = self.job.split(self.config)
        return (*split.test, rows)

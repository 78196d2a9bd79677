"""Learning-rate schedules, with PyTorch's names, arguments and values.

A schedule changes ``group["lr"]`` of its optimizer: once when it is made, and at each `step`, which
is called after ``optimizer.step()`` (each batch or each epoch, as one likes). Several schedules on
one optimizer multiply their effects, where PyTorch's do.
"""

from gpunn.optim.lr_scheduler.base import LRScheduler
from gpunn.optim.lr_scheduler.combined import ChainedScheduler, SequentialLR
from gpunn.optim.lr_scheduler.one_cycle import OneCycleLR
from gpunn.optim.lr_scheduler.plateau import ReduceLROnPlateau
from gpunn.optim.lr_scheduler.schedules import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]

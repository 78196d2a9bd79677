"""`MLPClassifier` and `MLPRegressor`, with the arguments of scikit-learn's own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gpunn import nn, optim
from gpunn.device import to_numpy
from gpunn.models.mlp import MLP
from gpunn.sklearn.base import NeuralEstimator
from gpunn.sklearn.checks import number, one_of
from gpunn.sklearn.stopping import Stopping
from gpunn.sklearn.targets import Classifies, Regresses
from gpunn.train import Callback

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity, "logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU,
    "gelu": nn.GELU, "silu": nn.SiLU, "elu": nn.ELU, "leaky_relu": nn.LeakyReLU,
}  # fmt: skip
SOLVERS = ("adam", "adamw", "sgd", "rmsprop", "lion")
LOSSES = {"squared_error": nn.MSELoss, "absolute_error": nn.L1Loss, "huber": nn.HuberLoss}
RATES = ("constant", "invscaling", "adaptive")


class _MLP(NeuralEstimator):
    def _check_parameters(self) -> None:
        one_of(self, "activation", ACTIVATIONS)
        one_of(self, "learning_rate", RATES)
        if self.solver == "lbfgs":
            raise ValueError(
                "solver='lbfgs' is not there: gpunn trains in batches. Use 'adam' or 'sgd', or "
                "sklearn.neural_network for lbfgs."
            )
        one_of(self, "solver", SOLVERS)
        for size in self._hidden():
            if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
                raise ValueError(
                    f"hidden_layer_sizes must be > 0, got {list(self._hidden())}: give the number "
                    "of neurons of each hidden layer"
                )
        if self.batch_size != "auto":
            number(self, "batch_size", 1, whole=True)
        number(self, "max_iter", 1, whole=True)
        number(self, "learning_rate_init", 0, above=True)
        number(self, "epsilon", 0, above=True)
        for name in ("alpha", "tol", "power_t"):
            number(self, name, 0)
        for name in ("momentum", "beta_1", "beta_2", "dropout", "validation_fraction"):
            number(self, name, 0, below=1)
        if self.n_iter_no_change != math.inf:
            number(self, "n_iter_no_change", 1, whole=True)

    def _hidden(self) -> tuple[Any, ...]:
        sizes = self.hidden_layer_sizes
        return (sizes,) if np.ndim(sizes) == 0 else tuple(sizes)

    def _make_module(self) -> nn.Module:
        (features,) = self._input_shape
        hidden = tuple(map(int, self._hidden()))
        module = MLP(
            features, hidden, self.n_outputs_, ACTIVATIONS[self.activation], float(self.dropout)
        )
        factor = 2.0 if self.activation == "logistic" else 6.0
        for linear in _linears(module):  # Glorot and Bengio, 2010, as scikit-learn begins
            bound = math.sqrt(factor / (linear.in_features + linear.out_features))
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.uniform_(linear.bias, -bound, bound)
        return module

    def _make_optimizer(self, parameters: Any) -> Any:
        lr = float(self.learning_rate_init)
        if self.solver in ("adam", "adamw"):
            kind = optim.Adam if self.solver == "adam" else optim.AdamW
            betas = (float(self.beta_1), float(self.beta_2))
            return kind(parameters, lr=lr, betas=betas, eps=float(self.epsilon))
        if self.solver == "sgd":
            momentum = float(self.momentum)
            nesterov = bool(self.nesterovs_momentum) and momentum > 0
            return optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=nesterov)
        if self.solver == "rmsprop":
            return optim.RMSprop(
                parameters, lr=lr, eps=float(self.epsilon), momentum=float(self.momentum)
            )
        return optim.Lion(parameters, lr=lr, betas=(float(self.beta_1), float(self.beta_2)))

    def _set_penalty(self, optimizer: Any, samples: float) -> None:
        decoupled = self.solver in ("adamw", "lion")
        for group in optimizer.param_groups:
            group["weight_decay"] = float(self.alpha) / (1.0 if decoupled else samples)

    def _batch(self, samples: int) -> int:
        return min(200 if self.batch_size == "auto" else int(self.batch_size), samples)

    def _epochs(self) -> int:
        return int(self.max_iter)

    def _validation_share(self) -> float:
        return float(self.validation_fraction) if self.early_stopping else 0.0

    def _callbacks(self, samples: int, score: Callable[[], float] | None) -> Sequence[Callback]:
        return [
            Stopping(
                float(self.tol), self.n_iter_no_change, score,
                self.learning_rate if self.solver == "sgd" else "constant",
                float(self.learning_rate_init), float(self.power_t), samples,
                samples * len(self.loss_curve_),
            )
        ]  # fmt: skip

    def _trained(self, history: Any, callbacks: Sequence[Any], partial: bool) -> None:
        self.n_layers_ = len(self._hidden()) + 2
        if partial:
            return
        (stopping,) = callbacks
        early = stopping.score is not None
        self.validation_scores_ = stopping.scores if early else None
        self.best_validation_score_ = stopping.best if early else None
        self.best_loss_ = None if early else stopping.best
        if not stopping.stopped and not history.interrupted:
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the "
                "optimization hasn't converged yet.",
                ConvergenceWarning,
                stacklevel=5,
            )

    @property
    def coefs_(self) -> list[np.ndarray]:
        """The weights of each layer, (inputs, outputs), as scikit-learn has them; copies."""
        return [to_numpy(linear.weight.array).T.copy() for linear in _linears(self.module_)]

    @property
    def intercepts_(self) -> list[np.ndarray]:
        """The biases of each layer; copies."""
        return [to_numpy(linear.bias.array).copy() for linear in _linears(self.module_)]


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


class MLPClassifier(Classifies, _MLP):
    """A multilayer perceptron that tells classes apart; the arguments are scikit-learn's.

    Its outputs are one logit a class, trained by cross-entropy; with y as a matrix of 0 and 1 one
    logit a label, trained by binary cross-entropy.

    Parameters
    ----------
    hidden_layer_sizes : the neurons of each hidden layer; () for a linear model
    activation : "identity", "logistic", "tanh", "relu", "gelu", "silu", "elu" or "leaky_relu"
    solver : "adam", "adamw", "sgd", "rmsprop" or "lion"
    alpha : the penalty alpha / 2 · Σw², divided by the samples in a batch, on weights and (unlike
        scikit-learn) biases, so that one GPU kernel can train the network; for adamw and lion the
        weight decay
    batch_size : samples of a step; "auto" is 200. Where that is all of them, equal samples are
        taken together and order has no influence: a weight of k is a sample repeated k times
    learning_rate : for sgd: "constant", "invscaling" or "adaptive"
    learning_rate_init, power_t, momentum, nesterovs_momentum, beta_1, beta_2, epsilon : of the
        solver
    max_iter : epochs at most
    shuffle : whether the order of the samples changes from epoch to epoch
    random_state : of initial weights, shuffling, dropout and the held-out samples
    tol, n_iter_no_change : training ends when the loss has improved by less than `tol` for so many
        epochs; or the score, if `early_stopping`
    verbose : show a progress bar
    warm_start : `fit` goes on from the weights that are there
    early_stopping, validation_fraction : hold out samples and keep the weights that are best there
    dropout : probability that a hidden neuron is dropped in training
    class_weight : None, "balanced" or {class: weight}
    device : "cpu", "cuda", "emulator" …; None for the default device
    precision : None or "fp32", "tf32", "bf16", "fp16", as of `gpunn.train.Trainer`

    Attributes after `fit`, besides those of all estimators
    -------------------------------------------------------
    classes_, n_layers_, coefs_, intercepts_, best_loss_, validation_scores_, best_validation_score_

    Raises ValueError for arguments and data that cannot be, in scikit-learn's words where it has
    some; TrainingError if the loss becomes NaN or infinite.
    """

    def __init__(
        self, hidden_layer_sizes: int | Sequence[int] = (100,), activation: str = "relu", *,
        solver: str = "adam", alpha: float = 0.0001, batch_size: int | str = "auto",
        learning_rate: str = "constant", learning_rate_init: float = 0.001, power_t: float = 0.5,
        max_iter: int = 200, shuffle: bool = True, random_state: Any = None, tol: float = 1e-4,
        verbose: bool | int = False, warm_start: bool = False, momentum: float = 0.9,
        nesterovs_momentum: bool = True, early_stopping: bool = False,
        validation_fraction: float = 0.1, beta_1: float = 0.9, beta_2: float = 0.999,
        epsilon: float = 1e-8, n_iter_no_change: float = 10, dropout: float = 0.0,
        class_weight: Mapping[Any, float] | str | None = None, device: Any = None,
        precision: str | None = None,
    ) -> None:  # fmt: skip
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.dropout = dropout
        self.class_weight = class_weight
        self.device = device
        self.precision = precision

    def _make_loss(self) -> Any:
        return self._make_default_loss()

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPClassifier:
        """Train on X (samples, features) and y (samples,) or a matrix of 0 and 1; returns itself"""
        return self._fit(X, y, sample_weight)

    def partial_fit(
        self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None
    ) -> MLPClassifier:
        """Train one epoch on these samples; the first call needs all `classes` that will come."""
        _no_early_stopping(self)
        return self._fit(X, y, sample_weight, partial=True, classes=classes)


class MLPRegressor(Regresses, _MLP):
    """A multilayer perceptron that predicts numbers; the arguments are scikit-learn's.

    Parameters
    ----------
    loss : "squared_error" (the mean; scikit-learn's is half the sum of the outputs, which for sgd
        is a learning rate of half the size), "absolute_error" or "huber"
    hidden_layer_sizes and all others : as of `MLPClassifier`

    Attributes and errors as of `MLPClassifier`, without `classes_`; `early_stopping` follows R².
    """

    def __init__(
        self, loss: str = "squared_error", hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu", *, solver: str = "adam", alpha: float = 0.0001,
        batch_size: int | str = "auto", learning_rate: str = "constant",
        learning_rate_init: float = 0.001, power_t: float = 0.5, max_iter: int = 200,
        shuffle: bool = True, random_state: Any = None, tol: float = 1e-4,
        verbose: bool | int = False, warm_start: bool = False, momentum: float = 0.9,
        nesterovs_momentum: bool = True, early_stopping: bool = False,
        validation_fraction: float = 0.1, beta_1: float = 0.9, beta_2: float = 0.999,
        epsilon: float = 1e-8, n_iter_no_change: float = 10, dropout: float = 0.0,
        device: Any = None, precision: str | None = None,
    ) -> None:  # fmt: skip
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.dropout = dropout
        self.device = device
        self.precision = precision

    def _check_parameters(self) -> None:
        one_of(self, "loss", LOSSES)
        super()._check_parameters()

    def _make_loss(self) -> Any:
        return LOSSES[self.loss]()

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Train on X (samples, features) and y (samples,) or (samples, outputs); returns itself."""
        return self._fit(X, y, sample_weight)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Train one epoch on these samples, going on from what was learned before."""
        _no_early_stopping(self)
        return self._fit(X, y, sample_weight, partial=True)


def _no_early_stopping(estimator: Any) -> None:
    if estimator.early_stopping:
        raise ValueError("partial_fit does not support early_stopping=True")

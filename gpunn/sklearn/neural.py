"""`NeuralClassifier` and `NeuralRegressor`: scikit-learn estimators around any module."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpunn import nn, optim
from gpunn.autograd.mode import no_grad
from gpunn.autograd.tensor import wrap
from gpunn.device import as_device, to_device
from gpunn.models.mlp import MLP
from gpunn.sklearn.base import NeuralEstimator
from gpunn.sklearn.checks import number
from gpunn.sklearn.targets import Classifies, Regresses
from gpunn.train import Callback

OPTIMIZERS = {
    "sgd": optim.SGD, "adam": optim.Adam, "adamw": optim.AdamW, "rmsprop": optim.RMSprop,
    "adagrad": optim.Adagrad, "lion": optim.Lion,
}  # fmt: skip
PREFIXES = ("module__", "loss__", "optimizer__", "trainer__")
# By what names modules call the number of their outputs.
_OUTPUTS = ("n_outputs", "out_features", "num_classes", "n_classes")


class _Neural(NeuralEstimator):
    """The arguments with prefixes, and what is made of them."""

    _parts: dict[str, Any]  # the arguments that `__init__` has no names for
    _allow_nd = True

    @property
    def _input_dtype(self) -> Any:
        return np.dtype(self.input_dtype)

    def _of(self, part: str) -> dict[str, Any]:
        """The arguments that were given for a part."""
        prefix = f"{part}__"
        return {
            name.removeprefix(prefix): value
            for name, value in self._parts.items()
            if name.startswith(prefix)
        }

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All arguments, also those with prefixes that were given."""
        return {**super().get_params(deep), **self._parts}

    def set_params(self, **params: Any) -> Any:
        """Set arguments, also those with prefixes; returns itself."""
        own = {k: v for k, v in params.items() if k in self._parts or k.startswith(PREFIXES)}
        super().set_params(**{name: value for name, value in params.items() if name not in own})
        if own:
            self._parts = {**self._parts, **own}
        return self

    def _check_parameters(self) -> None:
        for name in self._parts:
            if not name.startswith(PREFIXES):
                raise TypeError(
                    f"{type(self).__name__} has no argument {name!r}; arguments of the parts begin "
                    f"with {', '.join(PREFIXES)}"
                )
        number(self, "epochs", 1, whole=True)
        number(self, "batch_size", 1, whole=True)
        number(self, "lr", 0, above=True)
        number(self, "validation_fraction", 0, below=1)
        if isinstance(self.optimizer, str) and self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer is {self.optimizer!r}; expected one of {', '.join(OPTIMIZERS)}, or a "
                "class of gpunn.optim"
            )
        if not isinstance(self.optimizer, str) and not callable(self.optimizer):
            raise TypeError(
                f"optimizer is {self.optimizer!r}; expected a name or a class of gpunn.optim"
            )

    def _make_module(self) -> nn.Module:
        given, shape = self._of("module"), self._input_shape
        if isinstance(self.module, nn.Module):
            if given:
                raise ValueError(
                    f"module is a {type(self.module).__name__} that is made already, so it cannot "
                    f"take module__{next(iter(given))}; give its class"
                )
            made: Any = copy.deepcopy(self.module)
        elif self.module is None:
            given = {"hidden": (100,), **_sizes_for(MLP, given, shape, self.n_outputs_), **given}
            made = MLP(**given)
            if len(shape) > 1:
                made = nn.Sequential(nn.Flatten(), made)
        elif callable(self.module):
            made = self.module(
                **{**_sizes_for(self.module, given, shape, self.n_outputs_), **given}
            )
        else:
            raise TypeError(
                "module must be an nn.Module, or a class or function that makes one, got "
                f"{self.module!r}"
            )
        if not isinstance(made, nn.Module):
            raise TypeError(f"module made a {type(made).__name__}, not an nn.Module")
        return made

    def _placed_module(self) -> nn.Module:
        module = super()._placed_module()
        sample = np.zeros((2, *self._input_shape), self._input_dtype)
        was_training = module.training
        module.eval()
        with no_grad():
            shape = module(wrap(to_device(sample, as_device(self.device)))).shape
        module.train(was_training)
        if shape != (2, self.n_outputs_):
            raise ValueError(
                f"the module gives {shape} for 2 samples of shape {self._input_shape}; expected "
                f"(2, {self.n_outputs_}): {self._what_outputs()}"
            )
        return module

    def _what_outputs(self) -> str:
        return "a number for each output of y"

    def _make_loss(self) -> Any:
        given, loss = self._of("loss"), self.loss
        if loss is None:
            loss = type(self._make_default_loss())
        if isinstance(loss, type):
            return loss(**given)
        if given:
            raise ValueError(
                f"loss is made already, so it cannot take loss__{next(iter(given))}; give its class"
            )
        return copy.deepcopy(loss)

    def _make_optimizer(self, parameters: Any) -> Any:
        kind = OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer
        return kind(parameters, lr=self.lr, **self._of("optimizer"))

    def _batch(self, samples: int) -> int:
        return min(int(self.batch_size), samples)

    def _epochs(self) -> int:
        return int(self.epochs)

    def _validation_share(self) -> float:
        return float(self.validation_fraction)

    def _callbacks(self, samples: int, score: Callable[[], float] | None) -> Sequence[Callback]:
        return copy.deepcopy(list(self.callbacks or ()))

    def _trainer_options(self) -> dict[str, Any]:
        return self._of("trainer")

    def _trained(self, history: Any, callbacks: Sequence[Callback], partial: bool) -> None:
        self.history_ = [dict(record) for record in history]


def _sizes_for(
    make: Callable[..., Any], given: dict[str, Any], shape: tuple[int, ...], outputs: int
) -> dict[str, int]:
    """The numbers of inputs and outputs, by the names that `make` takes them under."""
    every = math.prod(shape)
    inputs = {
        "n_features": every, "in_features": every, "in_channels": shape[0], "input_size": shape[-1],
    }  # fmt: skip
    parameters = inspect.signature(make).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    found = {}
    for sizes in (inputs, dict.fromkeys(_OUTPUTS, outputs)):
        taken = [name for name in sizes if name in parameters]
        if not taken and anything:
            taken = list(sizes)
        if taken and not any(name in given for name in taken):
            found[taken[0]] = int(sizes[taken[0]])
    return found


class NeuralClassifier(Classifies, _Neural):
    """A classifier around any module that gives a logit for each class, or for each label.

    Parameters
    ----------
    module : a class or function that makes the module, called with the numbers of inputs and
        outputs under the names it has for them (n_features or in_features, in_channels, input_size;
        n_outputs, out_features, num_classes, n_classes), or a module, of which a copy is trained.
        None: an MLP with one hidden layer of 100
    loss : a class of gpunn.nn, an instance, or a function of (outputs, targets); None:
        cross-entropy, for labels binary cross-entropy of logits
    optimizer : "sgd", "adam", "adamw", "rmsprop", "adagrad", "lion", or a class of gpunn.optim
    lr : the learning rate
    epochs, batch_size, shuffle : of `Trainer.fit`. Where a batch holds all samples, a weight of k
        is a sample repeated k times (exactly, if each output depends on its own sample alone)
    validation_fraction : the share of samples that are held out, for callbacks such as
        ``EarlyStopping`` and for `history_`
    callbacks : of `gpunn.train`; copies are used
    class_weight : None, "balanced" or {class: weight}
    device : "cpu", "cuda", "emulator" …; None for the default device
    precision : None or "fp32", "tf32", "bf16", "fp16", as of `gpunn.train.Trainer`
    input_dtype : what X is converted to; "int64" for tokens
    random_state : of initial weights, shuffling, dropout and the held-out samples
    warm_start : `fit` goes on from the weights that are there
    verbose : show a progress bar
    module__x, loss__x, optimizer__x, trainer__x : the argument x of that part, such as
        ``module__hidden=(64,)``, ``optimizer__weight_decay=0.1``, ``trainer__gradient_clip_norm=1``

    X is (samples, features), or (samples, channels, height, width) and the like.

    Attributes after `fit`, besides those of all estimators
    -------------------------------------------------------
    classes_ : the classes in the order of the outputs
    history_ : the records of the latest `fit`, one dictionary an epoch

    Raises ValueError and TypeError for arguments and data that cannot be; TrainingError if the loss
    becomes NaN or infinite.
    """

    def __init__(
        self, module: Any = None, *, loss: Any = None, optimizer: Any = "adamw", lr: float = 1e-3,
        epochs: int = 20, batch_size: int = 128, shuffle: bool = True,
        validation_fraction: float = 0.0, callbacks: Sequence[Callback] | None = None,
        class_weight: Mapping[Any, float] | str | None = None, device: Any = None,
        precision: str | None = None, input_dtype: Any = "float32", random_state: Any = None,
        warm_start: bool = False, verbose: bool | int = False, **parts: Any,
    ) -> None:  # fmt: skip
        self.module = module
        self.loss = loss
        self.optimizer = optimizer
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks
        self.class_weight = class_weight
        self.device = device
        self.precision = precision
        self.input_dtype = input_dtype
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self._parts = parts  # `fit` looks at the names

    def _what_outputs(self) -> str:
        return "a logit for each class or label"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NeuralClassifier:
        """Train on X (samples, …) and y (samples,) or a matrix of 0 and 1; returns itself."""
        return self._fit(X, y, sample_weight)

    def partial_fit(
        self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None
    ) -> NeuralClassifier:
        """Train one epoch on these samples; the first call needs all `classes` that will come."""
        return self._fit(X, y, sample_weight, partial=True, classes=classes)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities in the order of `classes_`: float32 (samples, classes).

        Softmax of the outputs (sigmoid for labels); the exponential of them with ``NLLLoss``.
        """
        return np.exp(self._outputs(X)) if self._gives_logs() else super().predict_proba(X)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithms of `predict_proba`."""
        return self._outputs(X) if self._gives_logs() else super().predict_log_proba(X)

    def _gives_logs(self) -> bool:
        return self.loss is nn.NLLLoss or isinstance(self.loss, nn.NLLLoss)


class NeuralRegressor(Regresses, _Neural):
    """A regressor around any module that gives a number for each output of y.

    Parameters, attributes and errors as of `NeuralClassifier`, without classes; the loss is the
    mean squared error unless told otherwise.
    """

    def __init__(
        self, module: Any = None, *, loss: Any = None, optimizer: Any = "adamw", lr: float = 1e-3,
        epochs: int = 20, batch_size: int = 128, shuffle: bool = True,
        validation_fraction: float = 0.0, callbacks: Sequence[Callback] | None = None,
        device: Any = None, precision: str | None = None, input_dtype: Any = "float32",
        random_state: Any = None, warm_start: bool = False, verbose: bool | int = False,
        **parts: Any,
    ) -> None:  # fmt: skip
        self.module = module
        self.loss = loss
        self.optimizer = optimizer
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks
        self.device = device
        self.precision = precision
        self.input_dtype = input_dtype
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self._parts = parts  # `fit` looks at the names

    def _make_default_loss(self) -> Any:
        return nn.MSELoss()

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NeuralRegressor:
        """Train on X (samples, …) and y (samples,) or (samples, outputs); returns itself."""
        return self._fit(X, y, sample_weight)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> NeuralRegressor:
        """Train one epoch on these samples, going on from what was learned before."""
        return self._fit(X, y, sample_weight, partial=True)

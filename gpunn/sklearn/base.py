"""What all estimators share: from arrays to a trained module, and the module in a pickle."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from gpunn import nn
from gpunn.autograd.mode import no_grad
from gpunn.autograd.random import get_rng_state, manual_seed, set_rng_state
from gpunn.autograd.tensor import wrap
from gpunn.device import Device, as_device, to_device, to_numpy
from gpunn.sklearn.files import load_estimator, save_estimator
from gpunn.sklearn.sparse import SparseRows, dense, is_sparse
from gpunn.sklearn.weights import (
    WeightedLoss,
    WithoutWeights,
    by_row,
    check_sample_weight,
    merged,
    with_weights,
)
from gpunn.train import Callback, Trainer

_VALUES = 1 << 22  # input values that are predicted from at once
_GENERATOR = threading.RLock()  # its random numbers are one thread's at a time


class NeuralEstimator(BaseEstimator):  # type: ignore[misc]  # which has no annotations
    """Base of the estimators; the subclasses say which module, loss and optimizer.

    Attributes after `fit`
    ----------------------
    module_ : the trained `nn.Module`, on the device
    n_features_in_, feature_names_in_ : as everywhere in scikit-learn
    n_outputs_ : numbers that the module gives for a sample
    n_iter_ : epochs of the latest `fit`
    loss_curve_ : the training loss of each epoch, without the penalty on the weights
    loss_ : the last of them
    """

    # What a subclass with other arguments sets otherwise.
    _input_dtype: Any = np.float32
    _allow_nd = False
    _optimizer: Any
    _trainer: Any

    # ---- what subclasses say ---------------------------------------------------------------------

    def _check_parameters(self) -> None:
        """Raise ValueError or TypeError for arguments that cannot be."""

    def _make_module(self) -> nn.Module:
        """A new module for `_input_shape` and `n_outputs_`."""
        raise NotImplementedError

    def _make_loss(self) -> Any:
        raise NotImplementedError

    def _make_optimizer(self, parameters: Any) -> Any:
        raise NotImplementedError

    def _set_penalty(self, optimizer: Any, samples: float) -> None:
        """Set what depends on the (weighted) number of samples in a batch."""

    def _batch(self, samples: int) -> int:
        raise NotImplementedError

    def _epochs(self) -> int:
        raise NotImplementedError

    def _validation_share(self) -> float:
        return 0.0

    def _callbacks(self, samples: int, score: Callable[[], float] | None) -> Sequence[Callback]:
        """Callbacks of a whole `fit`; `score` measures held-out samples, if there are any."""
        return ()

    def _trainer_options(self) -> dict[str, Any]:
        return {}

    def _read_target(self, y: Any, weights: Any, fresh: bool, classes: Any, partial: bool) -> Any:
        """(targets as an array, weights) from y and the weights of the samples."""
        raise NotImplementedError

    def _score(self, outputs: np.ndarray, target: np.ndarray, weights: Any) -> float:
        raise NotImplementedError

    # ---- training --------------------------------------------------------------------------------

    def _fit(
        self, X: Any, y: Any, sample_weight: Any = None, partial: bool = False, classes: Any = None
    ) -> Any:
        self._check_parameters()
        fresh = not hasattr(self, "module_") or not (partial or self.warm_start)
        if fresh:  # whatever goes wrong from here on, nothing stays fitted by half
            self.__dict__.pop("module_", None)
        X, y = self._validated(X, y, reset=fresh)
        weights = check_sample_weight(sample_weight, X)
        target, weights = self._read_target(y, weights, fresh, classes, partial)
        if weights is not None and not weights.all():
            kept = weights > 0
            X, target, weights = X[kept], target[kept], weights[kept]
        if fresh or not partial:
            self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
            self._optimizer = self._trainer = None
        try:
            with _own_random_state(self._seed):
                if fresh:
                    self._input_shape, self._then = X.shape[1:], {"module": self._arguments()}
                    self.module_ = self._placed_module()
                    self.loss_curve_: list[float] = []
                self._train(X, target, weights, partial)
        except BaseException:
            if fresh:  # what has learned nothing is not fitted
                self.__dict__.pop("module_", None)
            raise
        return self

    def _validated(self, X: Any, y: Any = "no_validation", reset: bool = False) -> Any:
        options = {
            "dtype": self._input_dtype, "allow_nd": self._allow_nd, "reset": reset,
            "accept_sparse": "csr",
        }  # fmt: skip
        if not isinstance(y, str):
            options |= {"multi_output": True, "y_numeric": is_regressor(self)}
        found = validate_data(self, X, y, **options)
        x = found[0] if isinstance(found, tuple) else found
        if not reset and x.shape[1:] != self._input_shape:
            raise ValueError(
                f"X has samples of shape {x.shape[1:]}, but {type(self).__name__} was fitted on "
                f"samples of shape {self._input_shape}"
            )
        return found

    def _placed_module(self) -> nn.Module:
        return self._make_module().to(as_device(self.device))

    def _train(self, x: Any, target: Any, weights: Any, partial: bool) -> None:
        held = None
        if not partial and self._validation_share() > 0:
            (x, target, weights), held = self._hold_out(x, target, weights)
        samples = x.shape[0]
        batch = self._batch(samples)
        in_batch = float(batch) if weights is None else batch * float(weights.mean())
        if batch >= samples and by_row(self.module_):
            x, target, weights = merged(dense(x), target, weights)
            batch = len(x)
        if weights is not None and (weights == weights[0]).all():
            weights = None
        loss = self._make_loss()
        if weights is not None:
            labels, flat = is_classifier(self) and target.ndim == 1, target.ndim == 1
            loss = WeightedLoss(loss, labels, flat)
            target = with_weights(target, weights)
        score = None
        if held is not None:
            score = self._scorer(*held)
            if weights is not None:
                ones = np.ones(len(held[1]))
                held = held[0], with_weights(held[1], ones if held[2] is None else held[2]), None
        callbacks = [] if partial else list(self._callbacks(samples, score))
        trainer = self._trainer_for(loss, callbacks)
        self._set_penalty(trainer.optimizer, in_batch)
        history = trainer.fit(
            _dataset(x, target), None if held is None else _dataset(*held[:2]),
            1 if partial else self._epochs(), batch, verbose=bool(self.verbose),
            shuffle=self.shuffle and batch < x.shape[0],
        )  # fmt: skip
        self.module_.eval()
        self._optimizer, self._trainer = trainer.optimizer, trainer if partial else None
        self.n_iter_ = len(history)
        self.loss_curve_.extend(history["loss"] if len(history) else [])
        self.loss_ = self.loss_curve_[-1] if self.loss_curve_ else math.nan
        self._trained(history, callbacks, partial)
        if history.interrupted:
            warnings.warn("Training interrupted by user.", stacklevel=4)

    def _trained(self, history: Any, callbacks: Sequence[Callback], partial: bool) -> None:
        """Keep what a training measured."""

    def _trainer_for(self, loss: Any, callbacks: list[Callback]) -> Trainer:
        """The trainer of the latest `partial_fit` if it is of the same kind, else a new one."""
        old = self._trainer
        if old is not None and isinstance(old.loss, WeightedLoss) == isinstance(loss, WeightedLoss):
            return old
        optimizer = self._optimizer
        if optimizer is None:
            optimizer, self._then["optimizer"] = self._make_optimizer, self._arguments()
        options = self._trainer_options()
        if isinstance(loss, WeightedLoss):
            options["metrics"] = [WithoutWeights(m, loss) for m in options.get("metrics", ())]
        made = Trainer(
            self.module_, loss, optimizer, callbacks=callbacks, device=as_device(self.device),
            seed=self._seed, precision=self.precision, **options,
        )  # fmt: skip
        made.epoch = len(self.loss_curve_)  # the shuffling goes on where it stood
        return made

    def _hold_out(self, x: Any, target: Any, weights: Any) -> tuple[Any, Any]:
        parts = [x, target] if weights is None else [x, target, weights]
        stratify = target if is_classifier(self) and target.ndim == 1 else None
        split = train_test_split(
            *parts, test_size=self._validation_share(), random_state=self._seed, stratify=stratify
        )
        train, held = (*split[0::2], None)[:3], (*split[1::2], None)[:3]
        if len(held[1]) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of "
                "your dataset."
            )
        return train, held

    def _scorer(self, x: Any, target: Any, weights: Any) -> Callable[[], float]:
        if not is_sparse(x):
            x = to_device(x, as_device(self.device))  # once, not every epoch

        def score() -> float:
            was_training = self.module_.training
            try:
                return self._score(outputs_of(self.module_, x), target, weights)
            finally:
                self.module_.train(was_training)

        return score

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # ---- predicting ------------------------------------------------------------------------------

    def _outputs(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "module_")
        return outputs_of(self.module_, self._validated(X))

    # ---- files and pickles -----------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a safetensors file, whole or not at all: no code in it.

        Arguments that are no plain values (a module, callbacks, a RandomState) are not kept.
        NotFittedError before `fit`; errors of `gpunn.io.save`.
        """
        check_is_fitted(self, "module_")
        save_estimator(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], **parameters: Any) -> Any:
        """The estimator that `save` wrote; `parameters` replace its own, such as ``device="cpu"``.

        FileNotFoundError, or ValueError if the file is damaged or of another estimator, or if an
        argument that the file could not keep is not given.
        """
        return load_estimator(cls, path, parameters)

    def _fitted_state(self) -> dict[str, Any]:
        """All attributes, with NumPy arrays in the place of module and optimizer."""
        state = dict(vars(self))
        if "module_" in state:
            module, optimizer = state.pop("module_"), state.pop("_optimizer")
            state.pop("_trainer")
            state["_weights"] = {
                name: np.array(to_numpy(value.array)) for name, value in module.state_dict().items()
            }
            state["_optimizer_state"] = None if optimizer is None else optimizer.state_dict()
            state["_then"] = {
                part: {name: old for name, old in then.items() if old is not state.get(name)}
                for part, then in self._then.items()
            }
        return state

    def _arguments(self) -> dict[str, Any]:
        """What makes module and optimizer, wherever they are: `set_params` may change it later."""
        names = {*self._get_param_names(), "_parts"} - {"device"}
        return {name: value for name, value in vars(self).items() if name in names}

    def _as_then(self, part: str) -> Any:
        """This estimator with the arguments that it had when the part was made."""
        made = object.__new__(type(self))
        made.__dict__.update({**vars(self), **self._then[part]})
        return made

    def _restore(self, state: dict[str, Any]) -> None:
        weights = state.pop("_weights", None)
        optimizer = state.pop("_optimizer_state", None)
        self.__dict__.update(state)
        if weights is None:
            return
        arguments, then = self._arguments(), state.get("_then", {})
        self._then = {p: {**arguments, **then.get(p, {})} for p in ("module", "optimizer")}
        with _own_random_state(0):
            self.module_ = self._as_then("module")._placed_module().eval()
        self.module_.load_state_dict(weights)
        self._optimizer = self._trainer = None
        if optimizer is not None:
            maker = self._as_then("optimizer")
            self._optimizer = maker._make_optimizer(self.module_.parameters())
            self._optimizer.load_state_dict(optimizer)

    def __getstate__(self) -> dict[str, Any]:
        return self._fitted_state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._restore(dict(state))


def _dataset(x: Any, target: np.ndarray) -> Any:
    return SparseRows(x, target) if is_sparse(x) else (x, target)


def outputs_of(module: nn.Module, x: Any) -> np.ndarray:
    """What the module gives for samples, in evaluation mode and in batches: float32."""
    module.eval()
    device: Device = next((p.device for p in module.parameters()), as_device("cpu"))
    rows = max(1, _VALUES // max(1, math.prod(x.shape[1:])))
    with no_grad():
        parts = [
            to_numpy(module(wrap(to_device(dense(x[at : at + rows]), device))).array)
            for at in range(0, x.shape[0], rows)
        ]
    return np.concatenate(parts).astype(np.float32, copy=False)


@contextlib.contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """Random numbers of `seed`, and afterwards gpunn's generator as it was."""
    with _GENERATOR:
        before = get_rng_state()
        manual_seed(seed)
        try:
            yield
        finally:
            set_rng_state(before)

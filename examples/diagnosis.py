"""Medical diagnosis: is a breast tumour malignant, and can the probability be believed?

The data are 569 tumours of the Wisconsin study: thirty measurements of the cells' nuclei in an
image of a fine-needle aspirate, and what the tumour proved to be (UCI repository, CC BY 4.0, as it
ships with scikit-learn)::

    gpunn train diagnosis

So few cases allow no single test set, so the network, a small perceptron with dropout, is measured
by five-fold cross-validation: the cases are cut into five parts with the same share of malignant
ones, and each part is predicted by a network that was trained on the other four. All that is learnt
comes from those four: the scaling of the measurements, the weights, and when to stop, which is
decided by a share of them that is kept apart. The seed also decides the folds.

Beside it stands a logistic regression on the same folds. On such a table it is hard to beat, and a
network is not the obvious choice; the outcome says how the two compare. The settings are a first
guess and were not tuned on these cases. This is an example of a method, not a medical device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import gpunn
from gpunn import Tensor, data, nn, optim
from gpunn.train import EarlyStopping, Job, Outcome, Run, Trainer, check, device_setting, setting
from gpunn.train.metrics import brier_score, calibration_error, log_loss, roc_auc, roc_curve
from gpunn.train.plots import confusion_matrix_figure, new_figure, plot_calibration

FEATURES = data.BREAST_CANCER_FEATURES
BINS = 5  # of the calibration: few probabilities lie in the middle


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    seed: int = setting(0, "seed of the folds, the initial weights, the shuffling and the dropout",
        low=0)  # fmt: skip
    device: str = device_setting()
    folds: int = setting(5, "parts of the cross-validation, and so networks", low=2, below=51)
    hidden: tuple[int, ...] = setting((32, 16), "widths of the hidden layers", low=1)
    dropout: float = setting(0.3, "share of the hidden values that are left out while training",
        low=0, below=1)  # fmt: skip
    epochs: int = setting(150, "epochs at most, of each network", low=1)
    patience: int = setting(20, "epochs without a better validation loss before it stops", low=1)
    validation: float = setting(0.15, "share of the training folds that decides when to stop",
        above=0, below=0.5)  # fmt: skip
    batch_size: int = setting(32, "cases of a training step", low=1)
    learning_rate: float = setting(3e-3, "learning rate of AdamW", above=0)
    weight_decay: float = setting(0.02, "weight decay of AdamW", low=0)

    def __post_init__(self) -> None:
        check(self)


# ---- the data ------------------------------------------------------------------------------------


class Fold(NamedTuple):
    """Numbers of the cases: to train on, to stop by, and those that are held out."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def folds_of(y: np.ndarray, config: Config) -> list[Fold]:
    """The folds; each case is held out once, and each part has its share of malignant ones."""
    parts = data.split_indices(len(y), y, [1 / config.folds] * config.folds, config.seed)
    found = []
    for number, test in enumerate(parts):
        rest = np.sort(np.concatenate([part for part in parts if part is not test]))
        shares = (1 - config.validation, config.validation)
        train, validation = data.split_indices(len(rest), y[rest], shares, config.seed + number)
        found.append(Fold(rest[train], rest[validation], test))
    return found


# ---- the network ---------------------------------------------------------------------------------


class Perceptron(nn.Module):
    """Measurements to one number, the log-odds of malignant."""

    def __init__(self, hidden: tuple[int, ...], dropout: float):
        super().__init__()
        layers: list[nn.Module] = []
        width = len(FEATURES)
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(dropout)]
            width = units
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


# ---- the job -------------------------------------------------------------------------------------


def train(run: Run) -> None:
    """Train a network for each fold and save it with the scaling of its training cases."""
    config = run.config
    x, y = data.load_breast_cancer()
    for number, fold in enumerate(folds_of(y, config), start=1):
        run.say(
            f"fold {number} of {config.folds}: {len(fold.train)} cases to train on, "
            f"{len(fold.validation)} to stop by, {len(fold.test)} held out"
        )
        scaling = data.Normalizer().fit(x[fold.train])
        gpunn.manual_seed(config.seed * 1000 + number)  # of the initial weights
        model = Perceptron(config.hidden, config.dropout)
        trainer = Trainer(
            model,
            nn.BCEWithLogitsLoss(),
            lambda parameters: optim.AdamW(
                parameters, lr=config.learning_rate, weight_decay=config.weight_decay
            ),
            metrics=["auc"],
            callbacks=[EarlyStopping("validation_loss", patience=config.patience)],
            device=run.device,
            seed=config.seed * 1000 + number,
        )
        run.fit(
            trainer,
            (scaling.transform(x[fold.train]), y[fold.train]),
            (scaling.transform(x[fold.validation]), y[fold.validation]),
            name=f"fold-{number}",
            epochs=config.epochs,
            batch_size=config.batch_size,
        )
        run.save(f"model-{number}", model)
        run.save(f"scaling-{number}", scaling.state_dict())


def network(run: Run, number: int) -> Any:
    """x -> the probability of malignant, by the saved network of a fold."""
    config, scaling = run.config, data.Normalizer()
    scaling.load_state_dict(run.load(f"scaling-{number}"))
    model = run.load(f"model-{number}", into=Perceptron(config.hidden, config.dropout))

    def probability(x: np.ndarray) -> np.ndarray:
        with gpunn.no_grad():
            return model(Tensor(scaling.transform(x), device=run.device)).sigmoid().numpy()

    return probability


def logistic_regression(x: np.ndarray, y: np.ndarray) -> Any:
    """x -> the probability of malignant, by scikit-learn."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
    return lambda cases: model.predict_proba(cases)[:, 1]


def evaluate(run: Run) -> Outcome:
    """The area under the ROC curve of the held-out folds, and how true the probabilities are."""
    x, y = data.load_breast_cancer()
    folds = folds_of(y, run.config)
    found = {"network": np.zeros(len(y)), "logistic regression": np.zeros(len(y))}
    areas: dict[str, list[float]] = {name: [] for name in found}
    harm = np.zeros(len(FEATURES))
    for number, fold in enumerate(folds, start=1):
        # The regression has no epochs to stop by: it learns from the validation cases as well.
        seen = np.concatenate([fold.train, fold.validation])
        models = {"network": network(run, number),
                  "logistic regression": logistic_regression(x[seen], y[seen])}  # fmt: skip
        for name, model in models.items():
            found[name][fold.test] = model(x[fold.test])
            areas[name].append(roc_auc(found[name][fold.test], y[fold.test]))
        harm += importance(models["network"], x[fold.test], y[fold.test], number) / len(folds)
    draw(run, found, y, harm)
    more = {}
    for name, p in found.items():
        more |= {f"{key}, {name}": value for key, value in figures_of(p, y).items()}
    means = {name: float(np.mean(values)) for name, values in areas.items()}
    differences = np.subtract(areas["network"], areas["logistic regression"])
    error = differences.std(ddof=1) / np.sqrt(len(folds))
    return Outcome(
        metric="ROC-AUC (mean of the held-out folds)",
        value=means["network"],
        baselines={"logistic regression": means["logistic regression"], "majority class": 0.5},
        samples=len(y),
        what="tumours",
        more={
            **more,
            "accuracy, majority class": float(max(y.mean(), 1 - y.mean())),
            "ROC-AUC of the worst fold": float(min(areas["network"])),
        },
        notes=[verdict(float(differences.mean()), float(error))],
    )


def verdict(difference: float, error: float) -> str:
    """What the folds say of network and regression, by the mean difference and its error."""
    numbers = f"their ROC-AUC differ by {difference:+.4f} ± {error:.4f} (standard error over folds)"
    if abs(difference) < 2 * error or not difference:
        return f"Network and logistic regression cannot be told apart: {numbers}."
    better = "better" if difference > 0 else "worse"
    return f"The network is {better} than logistic regression: {numbers}."


def figures_of(p: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Of all held-out cases together: what is right at 1/2, and how true the probabilities are."""
    said = p > 0.5
    return {
        "accuracy": float((said == y).mean()),
        "sensitivity": float(said[y == 1].mean()),
        "specificity": float((~said)[y == 0].mean()),
        "calibration error": calibration_error(p, y, bins=BINS, from_logits=False),
        "Brier score": brier_score(p, y, from_logits=False),
    }


def importance(model: Any, x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """How much the log loss of held-out cases grows if a measurement is shuffled among them."""
    rng = np.random.default_rng(seed)
    usual = log_loss(model(x), y, from_logits=False)
    repeats = 10
    harm = np.zeros(len(FEATURES))
    for feature in range(len(FEATURES)):
        changed = np.tile(x, (repeats, 1))
        orders = [rng.permutation(len(x)) for _ in range(repeats)]
        changed[:, feature] = np.concatenate([x[order, feature] for order in orders])
        harm[feature] = log_loss(model(changed), np.tile(y, repeats), from_logits=False) - usual
    return harm


# ---- pictures ------------------------------------------------------------------------------------


def draw(run: Run, found: dict[str, np.ndarray], y: np.ndarray, harm: np.ndarray) -> None:
    """The pictures of the run folder."""
    p = found["network"]
    matrix = np.zeros((2, 2), np.int64)
    np.add.at(matrix, (y, (p > 0.5).astype(np.int64)), 1)
    title = "Held-out tumours"
    run.figure(
        "calibration",
        lambda: plot_calibration(p, y, BINS, title="Probability of malignant (class 1), held out"),
    )
    run.figure("roc", lambda: roc_figure(found, y))
    run.figure("confusion", lambda: confusion_matrix_figure(matrix, ("benign", "malignant"), title))
    run.figure("importance", lambda: importance_figure(harm))


def roc_figure(found: dict[str, np.ndarray], y: np.ndarray) -> Any:
    """The corner of the ROC plane where network and regression differ."""
    figure = new_figure(5.6, 5.2)
    axes = figure.subplots()
    styles = (("-", "#4477aa"), ("--", "#cc6677"))
    for (name, p), (line, color) in zip(found.items(), styles, strict=True):
        false, true, _ = roc_curve(p, y)
        axes.plot(false, true, line, color=color, lw=2, label=f"{name}, area {roc_auc(p, y):.4f}")
    axes.set(
        title="ROC curve of all held-out tumours (its upper left)",
        xlabel="false alarms, share of the benign tumours",
        ylabel="found, share of the malignant tumours",
        xlim=(-0.005, 0.3),
        ylim=(0.7, 1.005),
    )
    axes.grid(True, color="#dddddd", lw=0.7)
    axes.legend(loc="lower right")
    return figure


def importance_figure(harm: np.ndarray) -> Any:
    """The twelve measurements that the networks rely on most."""
    figure = new_figure(6.4, 4.4)
    axes = figure.subplots()
    order = np.argsort(harm)[-12:]
    axes.barh([FEATURES[at] for at in order], harm[order], color="#4477aa")
    axes.set(
        title="What the networks rely on",
        xlabel="growth of the log loss if the measurement is shuffled (nats)",
    )
    axes.grid(True, axis="x", color="#dddddd", lw=0.7)
    axes.set_axisbelow(True)
    return figure


def predict(run: Run, file: str) -> Iterator[dict[str, Any]]:
    """The probability of malignant for each row of a file: the mean over the networks."""
    x = data.read_samples(file, (len(FEATURES),)).x
    each = np.stack([network(run, number)(x) for number in range(1, run.config.folds + 1)])
    for row, p in enumerate(each.T):
        mean = float(p.mean(dtype=np.float64))
        yield {
            "row": row,
            "diagnosis": "malignant" if mean > 0.5 else "benign",
            "malignant": mean,
            "lowest": float(p.min()),
            "highest": float(p.max()),
        }


JOB = Job(
    name="diagnosis",
    title="Diagnosis of breast cancer with cross-validation",
    use="medical diagnosis",
    data="569 tumours of 30 measurements, Breast Cancer Wisconsin (Diagnostic), UCI repository (CC "
    "BY 4.0), packaged by scikit-learn (BSD-3)",
    config=Config,
    train=train,
    evaluate=evaluate,
    predict=predict,
    takes="a .npy, .npz or .csv file with 30 columns in the order of "
    "gpunn.data.BREAST_CANCER_FEATURES",
    quick={"folds": 2, "epochs": 2, "hidden": (4,)},
)

if __name__ == "__main__":
    from gpunn.cli.main import main

    raise SystemExit(main(["train", "diagnosis", *sys.argv[1:]]))

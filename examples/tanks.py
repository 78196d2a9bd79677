"""Process control: two water tanks are learned from recordings and then held at a level.

A pump fills the upper tank, which drains through a hole into the lower one, which drains through
another. The level of the lower tank is to follow a reference. It is one half of Johansson's
quadruple-tank laboratory process (IEEE Trans. Control Systems Technology 8 (2000) 456) with all of
the pump's flow led to the upper tank; sizes, holes and pump are those of the paper. Water leaves by
Torricelli's law, with the square root of the level, and runs over the rim of a full tank, so that
no linear model is right everywhere. The data come from these equations (tanks_plant.py), with the
noise of a level sensor; the network sees recordings only.

1. Identification. Pump voltages that jump at random are recorded with the levels. The network reads
   the last minute with a gated recurrent unit (GRU), which tells what the levels are behind the
   noise, and goes on from there with a multilayer perceptron, step after step, whose gradients go
   back through all steps. Its rival is the linear autoregressive model (ARX) of least squares.
2. Control. Every 5 s the voltages of the next two minutes are planned so that the predicted level
   comes near the reference, and the first of them is applied (model-predictive control). The
   derivatives of the prediction come from autograd, by one backward pass through the network; with
   them each plan is a least-squares problem with the pump's limits, improved from the plan before
   (the real-time iteration of Diehl et al., SIAM J. Control Optim. 43 (2005) 1714).

The reference is a programme that is known ahead; the water that somebody pours into the lower tank
or draws from it is not, and nobody measures it (tanks_experiments.py). What counts is how far the
level is from the reference, beside the same predictive control with the ARX model, and beside a PID
controller with feed-forward and anti-windup (tanks_rivals.py). `train` tunes all three by the same
references, made for that: the order of the ARX model, how fast either predictive controller
believes in a disturbance, and the six gains of the PID controller.

What to expect: of the levels the network knows far more than the ARX model, an error of about 1 mm
instead of 9 over 200 s. At the task itself the PID controller is nearly as good, its error larger
by 1 to 5 %, though it moves the pump more. And the network knows the rig as it was: where the lower
outlet is 20 % wider than in the recordings, the PID controller, which relies on no model, was the
best whenever it was tried.

How the settings came about: network, training and weights of the control were chosen with seed 0,
its results on test references in view; those of the test now are drawn by other random numbers,
which served no choice. The task was chosen, too. References that jumped without notice were tried
first, and stronger disturbances; then most of the error is due to the pump's limits and to the
disturbances, and no model can do much about it: with these disturbances three times as strong, the
true equations come within 0.66 cm and ARX within 0.60 on the tuning references of seed 0; as they
are, within 0.090 and 0.097.

Run: ``gpunn train tanks``. ``gpunn predict RUN reference.csv`` follows your own reference.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tanks_experiments import AHEAD, Profile, follow, profiles, read_reference, root_mean_square
from tanks_pictures import draw_control, draw_identification
from tanks_plant import OUTLET, PAST, RIM, STEP, VOLTS, record, stretches
from tanks_rivals import PID, LinearModel, TrueModel, tune_pid

import gpunn
from gpunn import models, nn, optim
from gpunn.train import Job, Outcome, Run, Trainer, check, device_setting, setting

FUTURE = 12  # steps that the network learns to predict, one after the other
FURTHER = 40  # steps that are predicted in the test
OBSERVERS = ((4, 0.3), (4, 0.6), (6, 0.3), (6, 0.6))  # look back, trust: see PredictiveControl


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    seed: int = setting(0, "seed of the recordings, the initial weights and the shuffling", low=0)
    device: str = device_setting()
    epochs: int = setting(60, "epochs", low=1)
    batch_size: int = setting(64, "stretches of recording in a training step", low=1)
    learning_rate: float = setting(1e-2, "the peak of the one-cycle schedule", above=0)
    hidden: int = setting(32, "width of the recurrent layers", low=1)
    records: int = setting(12, "recordings to learn from, of 42 minutes each", low=1)
    horizon: int = setting(24, "steps of 5 s that are planned ahead", low=8, below=AHEAD)
    smoothness: float = setting(0.02, "weight of changes of the pump's voltage, in cm²/V²", above=0)
    profiles: int = setting(16, "references to follow in the test", low=1)
    minutes: int = setting(30, "length of each", low=2)

    def __post_init__(self) -> None:
        check(self)


# ---- the network as a model: it predicts, and says how the prediction depends on the plan --------


class Plant(nn.Module):
    """The network: the last minute and the voltages to come, to the levels to come, all scaled.

    A GRU over the last minute corrects the levels last measured for their noise. Then a multilayer
    perceptron says, step after step, by how much the levels change: from them and the voltage.
    """

    def __init__(self, hidden: int):
        super().__init__()
        self.past = nn.GRU(3, hidden, batch_first=True)
        self.correction = nn.Linear(hidden, 2)
        self.change = models.MLP(3, (hidden, hidden), 2, nn.SiLU)

    def forward(self, past: gpunn.Tensor, plan: gpunn.Tensor) -> gpunn.Tensor:
        """(n, PAST, 3) and (n, steps, 1) to (n, steps, 2)."""
        return self.go_on(self.now(past), plan)

    def now(self, past: gpunn.Tensor) -> gpunn.Tensor:
        """The levels now, (n, 2)."""
        return past[:, -1, :2] + 0.1 * self.correction(self.past(past)[1][0])

    def go_on(self, levels: gpunn.Tensor, plan: gpunn.Tensor) -> gpunn.Tensor:
        """The levels that follow from those now if the pump does as planned."""
        found = []
        for volts in plan.unbind(1):
            change = 0.1 * self.change(gpunn.cat([levels, volts], 1))
            levels = (levels + change).clamp(-1, 1)  # a tank is neither fuller nor emptier
            found.append(levels)
        return gpunn.stack(found, 1)


def scaled(levels: np.ndarray, volts: np.ndarray, plan: np.ndarray) -> tuple[np.ndarray, ...]:
    """What the network takes, of about -1 to 1: levels with the voltages before them, and the plan.

    The numbers are the rig's, not the data's: half the height of a tank and half the pump's limit.
    """
    past = np.concatenate([2 * levels / RIM - 1, 2 * volts[..., None] / VOLTS - 1], 2)
    return past.astype(np.float32), (2 * plan[..., None] / VOLTS - 1).astype(np.float32)


class NetworkModel:
    """The trained network in m and V."""

    def __init__(self, network: Plant, device: Any):
        self.network, self.device = network.requires_grad_(False), device

    def rollout(self, levels: np.ndarray, volts: np.ndarray, plan: np.ndarray) -> np.ndarray:
        """The levels that follow (n, steps, 2), from those measured, the volts before, the plan."""
        past, future = (
            gpunn.tensor(part, device=self.device) for part in scaled(levels, volts, plan)
        )
        return RIM / 2 * (1 + self.network(past, future).numpy().astype(float))

    def linearise(
        self, levels: np.ndarray, volts: np.ndarray, plan: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The lower level to come (n, steps), and its derivative by the plan (n, steps, steps).

        A backward pass gives the derivative of one number. So the plan is taken `steps` times, and
        the number is the sum of the first level of the first copy, the second of the second, …
        """
        rigs, steps = plan.shape
        past, future = scaled(levels, volts, plan)
        now = self.network.now(gpunn.tensor(past, device=self.device))
        copies = gpunn.tensor(np.repeat(np.arange(rigs), steps), device=self.device)
        inputs = gpunn.tensor(np.repeat(future, steps, 0), device=self.device).requires_grad_()
        lower = self.network.go_on(now[copies], inputs)[:, :, 1]
        lower = lower.reshape(rigs, steps, steps)
        (lower * gpunn.eye(steps, device=self.device)).sum().backward()
        derivative = inputs.grad.reshape(rigs, steps, steps).numpy().astype(float)
        return RIM / 2 * (1 + lower[:, 0].detach().numpy().astype(float)), RIM / VOLTS * derivative


# ---- the controller: from levels (rigs, 2) and the reference (rigs, AHEAD + 1) to voltages -------


class PredictiveControl:
    """Model-predictive control of many rigs at once with any of the models.

    A disturbance that is not measured is taken for a voltage that the pump gets besides: `bias` is
    the one that best explains what the model got wrong over the last `look_back` steps; of a new
    estimate the share `trust` is taken over.
    """

    def __init__(self, model: Any, observer: Any, config: Config):
        self.model, self.steps = model, config.horizon
        self.look_back, self.trust = int(observer[0]), float(observer[1])
        self.differences = np.eye(self.steps) - np.eye(self.steps, k=-1)
        self.penalty = config.smoothness * self.differences.T @ self.differences
        self.smoothness = config.smoothness

    def start(self, levels: np.ndarray, volts: np.ndarray) -> None:
        """Begin at rest."""
        count = PAST + self.look_back
        self.levels = np.repeat(levels[:, None], count, 1)
        self.volts = np.repeat(volts[:, None], count, 1)
        self.plan = np.repeat(volts[:, None], self.steps, 1)
        self.bias, self.response = np.zeros(len(volts)), None

    def __call__(self, measured: np.ndarray, reference: np.ndarray) -> np.ndarray:
        self.levels = np.concatenate([self.levels[:, 1:], measured[:, None]], 1)
        if self.response is not None:
            self.learn_bias()
        bias = self.bias[:, None]
        lower, derivative = self.model.linearise(
            self.levels[:, -PAST:], self.volts[:, -PAST:] + bias, self.plan + bias
        )
        self.response = 100 * derivative[:, : self.look_back].sum(2)
        missing = reference[:, 1 : self.steps + 1] - lower
        self.plan = self.improved(100 * missing, 100 * derivative)
        volts = self.plan[:, 0]
        self.volts = np.concatenate([self.volts[:, 1:], volts[:, None]], 1)
        self.plan = np.concatenate([self.plan[:, 1:], self.plan[:, -1:]], 1)
        return volts

    def learn_bias(self) -> None:
        """Compare what the model would have said with what has been measured since."""
        ago, bias = self.look_back, self.bias[:, None]
        said = self.model.rollout(
            self.levels[:, :PAST], self.volts[:, :PAST] + bias, self.volts[:, PAST:] + bias
        )
        missed = 100 * (self.levels[:, -ago:] - said)[..., 1]
        best = (missed * self.response).sum(1) / (self.response**2).sum(1).clip(1e-2)
        self.bias = np.clip(self.bias + self.trust * best, -VOLTS / 2, VOLTS / 2)

    def improved(self, missing: np.ndarray, derivative: np.ndarray) -> np.ndarray:
        """The plan within the pump's limits that brings the linearised level nearest, in cm.

        Minimises |missing - derivative · change|² + smoothness · |differences of the plan|² by
        Nesterov's accelerated projected gradient.
        """
        curvature = derivative.transpose(0, 2, 1) @ derivative + self.penalty
        slope = -(derivative.transpose(0, 2, 1) @ missing[..., None])[..., 0]
        slope += self.plan @ self.penalty
        slope[:, 0] -= self.smoothness * self.volts[:, -1]
        length = 1 / np.abs(curvature).sum(2).max(1)[:, None]
        change = ahead = np.zeros_like(self.plan)
        for number in range(60):
            before = change
            step = slope + (curvature @ ahead[..., None])[..., 0]
            change = np.clip(ahead - length * step, -self.plan, VOLTS - self.plan)
            ahead = change + number / (number + 3) * (change - before)
        return self.plan + change


def tune(
    known: list[Any], config: Config, profile: Profile, seed: Any
) -> tuple[Any, tuple[int, float]]:
    """The one of the models, and of OBSERVERS, with which predictive control tracks best."""

    def error(pair: tuple[Any, tuple[int, float]]) -> float:
        return root_mean_square(follow(PredictiveControl(*pair, config), profile, seed).errors)

    return min(((model, observer) for model in known for observer in OBSERVERS), key=error)


# ---- training and measuring ----------------------------------------------------------------------


def generator(config: Config, purpose: int) -> np.random.Generator:
    """Random numbers: 0 recordings to learn from, 1 to validate; 3 profiles to tune on, 5 the noise
    of the sensors there. 11 to 13: recordings, profiles and noise of the test, drawn for nothing
    else."""
    return np.random.default_rng((config.seed, purpose))


def train(run: Run) -> None:
    """The network, the ARX model, and what there is to tune, all from the same data."""
    config = run.config
    profile, noise = profiles(generator(config, 3), 12, min(config.minutes, 15)), (config.seed, 5)
    gains = tune_pid(profile, noise)

    recording = record(generator(config, 0), config.records)
    validation = record(generator(config, 1), 3)
    sets = []
    for source in (recording, validation):
        levels, volts, plan, measured, _ = stretches(source, 4, FUTURE)
        sets.append((*scaled(levels, volts, plan), (2 * measured / RIM - 1).astype(np.float32)))
    network = Plant(config.hidden)
    steps = config.epochs * -(-len(sets[0][0]) // config.batch_size)
    trainer = Trainer(
        network,
        nn.MSELoss(),
        lambda parameters: optim.AdamW(parameters, lr=config.learning_rate, weight_decay=1e-4),
        device=run.device,
        scheduler=lambda optimizer: optim.lr_scheduler.OneCycleLR(
            optimizer, config.learning_rate, steps
        ),
        gradient_clip_norm=1.0,
        seed=config.seed,
    )
    run.fit(trainer, sets[0], sets[1], epochs=config.epochs, batch_size=config.batch_size)
    run.save("model", network)

    known = NetworkModel(run.load("model", into=network), run.device)
    _, observer = tune([known], config, profile, noise)
    orders = [LinearModel.fit(recording, order) for order in range(1, 5)]
    linear, linear_observer = tune(orders, config, profile, noise)
    run.say(
        f"ARX of order {linear.order}; PID: {gains[0]:.2f} V/cm, integral {gains[1]:.0f} s, "
        f"derivative {gains[2]:.1f} s, {STEP * gains[3]:.0f} s ahead; feed-forward "
        f"{gains[4]:.2f}, {STEP * gains[5]:.0f} s ahead"
    )
    run.save("tuned", {
        "arx": linear.weights,
        "pid": gains,
        "observer": np.array(observer),
        "arx_observer": np.array(linear_observer),
    })  # fmt: skip


def controllers(run: Run) -> dict[str, Any]:
    """The network's controller and its rivals, as they were trained and tuned."""
    config, tuned = run.config, run.load("tuned")
    network = NetworkModel(run.load("model", into=Plant(config.hidden)), run.device)
    linear = LinearModel(tuned["arx"])
    return {
        "network": PredictiveControl(network, tuned["observer"], config),
        "ARX": PredictiveControl(linear, tuned["arx_observer"], config),
        "PID": PID(tuned["pid"]),
    }


def evaluate(run: Run) -> Outcome:
    """Identification on held-out recordings, control on held-out references and disturbances."""
    config, players = run.config, controllers(run)
    known = {name: players[name].model for name in ("network", "ARX")}
    recording = record(generator(config, 11), 4)
    *pieces, _, true = stretches(recording, 4, FURTHER)
    more = {
        f"levels over {FURTHER * STEP:.0f} s, {name}, mm": 1e3
        * root_mean_square(model.rollout(*pieces) - true)
        for name, model in known.items()
    }
    test = profiles(generator(config, 12), config.profiles, config.minutes)
    noise = (config.seed, 13)
    found = {name: follow(player, test, noise) for name, player in players.items()}
    wider, changed = OUTLET * np.array([1, 1.2]), {}
    for name, player in players.items():
        changed[name] = root_mean_square(follow(player, test, noise, outlet=wider).errors)
        more[f"with a lower outlet 20 % wider, {name}, cm"] = changed[name]
    best = min(changed, key=changed.__getitem__)
    for name, experiment in found.items():
        more[f"mean change of the pump, {name}, V"] = np.abs(np.diff(experiment.volts)).mean()
    perfect = PredictiveControl(TrueModel(), (4, 0.6), config)
    more["bound: the true equations, no noise, cm"] = root_mean_square(
        follow(perfect, test, noise, noise=0.0).errors
    )
    run.figure("identification", lambda: draw_identification(recording, known))
    run.figure("control", lambda: draw_control(found))
    values = {name: root_mean_square(experiment.errors) for name, experiment in found.items()}
    rivals = {"predictive control with ARX": values["ARX"], "tuned PID": values["PID"]}
    return Outcome(
        "tracking error of the level (root mean square)",
        values["network"],
        dict(sorted(rivals.items(), key=lambda rival: rival[1])),
        config.profiles,
        f"references of {config.minutes} minutes",
        higher_is_better=False,
        unit="cm",
        more=more,
        notes=[
            "All controllers know the reference ahead and none the disturbances. The error that is "
            "left to the true equations is due to disturbances and to changes that the pump cannot "
            "follow.",
            f"On a rig whose lower outlet is 20 % wider than in the recordings, {best} is the best "
            f"({changed[best]:.3f} cm, the network {changed['network']:.3f} cm).",
        ],
    )


def predict(run: Run, data: str) -> Iterator[dict[str, Any]]:
    """Follow the reference in a CSV file on the simulated rig; gives what happens every 5 s."""
    reference = read_reference(data)
    experiment = follow(
        controllers(run)["network"], Profile(reference, np.zeros_like(reference)), run.config.seed
    )
    for at, (upper, lower) in enumerate(experiment.levels[0]):
        yield {
            "seconds": STEP * at,
            "reference_cm": round(100 * reference[0, at], 3),
            "lower_cm": round(100 * lower, 3),
            "upper_cm": round(100 * upper, 3),
            "pump_V": round(float(experiment.volts[0, at]), 3),
        }


JOB = Job(
    name="tanks",
    title="Two tanks identified and controlled by a network",
    use="process control",
    data="a physical simulation of a laboratory rig (Johansson 2000), with noise; no recorded data",
    config=Config,
    train=train,
    evaluate=evaluate,
    predict=predict,
    takes="a CSV file with a level in cm for every 5 s",
    quick={"epochs": 1, "records": 1, "horizon": 8, "profiles": 2, "minutes": 2},
)

if __name__ == "__main__":
    from gpunn.cli.main import main

    raise SystemExit(main(["train", "tanks", *sys.argv[1:]]))

"""Robotics: a policy that learns to balance a pole by trying, without the equations of motion.

A cart on a rail carries a pole that falls over unless the cart is pushed to the left or to the
right at the right moments (gymnasium's CartPole-v1). The network sees four numbers, the cart's
position and velocity and the pole's angle and angular velocity, and gets one point for each step
that the pole stands; an episode ends when it falls, or after 500 steps. There is a harder robot: a
pendulum (Pendulum-v1) whose motor is too weak to lift it, so that it must be swung up, by a torque
that is a number, and then held.

How it learns, proximal policy optimisation (Schulman et al., arXiv:1707.06347):

1. `play`: many environments are played side by side; actions are drawn from the policy's
   distribution, so that it tries things.
2. `advantages`: a second network, the critic, guesses how many points will follow a state. An
   action after which it went better than guessed has a positive advantage (generalised advantage
   estimation, Schulman et al., arXiv:1506.02438).
3. `improve`: actions with a positive advantage are made likelier, but in no iteration by much more
   than the share `clip`: the experience was made by the policy as it was.

It is measured on 100 episodes whose start states no training has seen, beside random play and
beside a controller that an engineer writes down from the equations of motion, which the network is
not given: a linear-quadratic regulator (LQR), and for the pendulum an energy rule that hands over
to one. For the cart and its pole the LQR solves the task completely, and so nothing can be better;
the network shows that it gets there without the equations. The settings were chosen with seed 0,
its returns in training and in measured episodes in view; the start states of the episodes in the
test now are drawn by other seeds, which served no choice.

The environments come with gymnasium (MIT), version 1.0 or newer, which the extra ``gallery``
installs: ``pip install "gpunn[gallery]"``. Without it there is nothing to play, and the run ends at
once with a sentence that says so.

Run: ``gpunn train cartpole``, or ``gpunn train cartpole --set environment=pendulum``
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from cartpole_pictures import draw_episode, draw_learning, draw_policy
from cartpole_rivals import Act, at_random, balance_cart, swing_up

import gpunn
import gpunn.nn.functional as F
from gpunn import models, nn, optim
from gpunn.train import History, Job, Outcome, Run, check, device_setting, setting

# Environments are reset with seeds below 2**32 in training, with these and those above to measure.
HELD_OUT, FURTHER = 3 * 2**32, 5 * 2**32


@dataclass(frozen=True)
class Task:
    """An environment of gymnasium: what is observed, what may be done, and how to learn it."""

    gymnasium: str
    steps: int  # of an episode at most
    scale: tuple[float, ...]  # what the observations are divided by: about their range
    actions: int  # the number of choices, or of continuous actions
    limit: float  # continuous actions are from -limit to limit; 0: the actions are choices
    discount: float  # what a point of the next step counts now
    point: float  # rewards are divided by it, so that the critic learns numbers near 1
    iterations: int  # that it takes to learn
    environments: int  # that it takes side by side
    metric: str
    unit: str


TASKS = {
    "cartpole": Task("CartPole-v1", 500, (2.4, 2.0, 0.21, 2.0), 2, 0.0, 0.99, 20.0, 30, 8,
        "mean episode length", "steps"),
    "pendulum": Task("Pendulum-v1", 200, (1.0, 1.0, 8.0), 1, 2.0, 0.95, 20.0, 70, 20,
        "mean return of an episode", "points"),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    seed: int = setting(0, "seed of the initial weights, the start states and the actions", low=0)
    device: str = device_setting()
    environment: str = setting("cartpole", "which robot", choices=tuple(TASKS))
    iterations: int | None = setting(None, "how often it plays and improves", low=1,
        unset="30 for the cart, 70 for the pendulum")  # fmt: skip
    environments: int | None = setting(None, "environments played side by side", low=1,
        unset="8 carts, 20 pendulums")  # fmt: skip
    epochs: int = setting(10, "how often an iteration goes through its experience", low=1)
    batch_size: int = setting(250, "steps of play in an update", low=2)
    learning_rate: float = setting(1e-3, "at the beginning; it falls to 0 at the end", above=0)
    clip: float = setting(0.2, "by what share an action may become likelier", above=0, below=1)
    trace: float = setting(0.95, "lambda of the advantage estimation", low=0, below=1)
    entropy: float = setting(0.001, "weight of the entropy, which keeps it trying", low=0)
    episodes: int = setting(100, "held-out episodes to measure on", low=1)

    def __post_init__(self) -> None:
        check(self)

    @property
    def task(self) -> Task:
        return TASKS[self.environment]


# ---- the policy ----------------------------------------------------------------------------------


class Policy(nn.Module):
    """The actor, which says what to do, and the critic, which says what it will bring.

    Choices: the actor gives their logits, a categorical distribution. A continuous action: it gives
    the mean of a normal distribution, whose standard deviation is learned beside it.
    """

    def __init__(self, task: Task):
        super().__init__()
        self.continuous = task.limit > 0
        self.actor = models.MLP(len(task.scale), (64, 64), task.actions, nn.Tanh)
        self.critic = models.MLP(len(task.scale), (64, 64), 1, nn.Tanh)
        self.register_buffer("scale", gpunn.tensor(task.scale, dtype=gpunn.float32))
        if self.continuous:
            self.log_std = nn.Parameter(gpunn.zeros(task.actions))

    def forward(self, observations: gpunn.Tensor) -> gpunn.Tensor:
        """Logits (n, choices), or means (n, actions)."""
        return self.actor(observations / self.scale)

    def value(self, observations: gpunn.Tensor) -> gpunn.Tensor:
        """What is still to come, discounted, in units of `Task.point`: (n,)."""
        return self.critic(observations / self.scale).squeeze(1)

    def judge(self, observations: gpunn.Tensor, actions: gpunn.Tensor) -> tuple[Any, Any]:
        """The logarithm of the actions' probability (or density), and the entropy: (n,), ()."""
        given = self(observations)
        if self.continuous:
            z = (actions - given) * (-self.log_std).exp()
            constant = 0.5 * math.log(2 * math.pi)
            log_probability = (-0.5 * z * z - self.log_std - constant).sum(1)
            return log_probability, (self.log_std + constant + 0.5).sum()
        logs = F.log_softmax(given, 1)
        log_probability = logs.gather(1, actions.unsqueeze(1)).squeeze(1)
        return log_probability, -(logs.exp() * logs).sum(1).mean()


def acting(policy: Policy, run: Run, rng: np.random.Generator | None = None) -> Act:
    """The policy as a function: actions drawn from its distribution, without `rng` the best."""

    def act(observations: np.ndarray) -> np.ndarray:
        with gpunn.no_grad():
            given = policy(gpunn.tensor(observations, device=run.device)).numpy()
            spread = policy.log_std.exp().numpy() if policy.continuous else None
        if policy.continuous:
            noise = 0 if rng is None else spread * rng.standard_normal(given.shape)
            return (given + noise).astype(np.float32)
        # The largest of logits with Gumbel noise is a draw from their softmax.
        return (given if rng is None else given + rng.gumbel(size=given.shape)).argmax(1)

    return act


# ---- playing -------------------------------------------------------------------------------------


@dataclass
class Experience:
    """What was seen and done in `steps` steps of n environments."""

    observations: np.ndarray  # (steps + 1, n, …)
    actions: np.ndarray  # (steps, n) or (steps, n, actions)
    rewards: np.ndarray  # (steps, n)
    fallen: np.ndarray  # (steps, n): the episode ended here, and nothing can follow
    ended: np.ndarray  # (steps, n): fallen, or the time was up
    valid: np.ndarray  # (steps, n): no step between episodes, in which nothing is done

    @property
    def first(self) -> np.ndarray:
        """(steps, n): whether the step belongs to the environment's first episode."""
        return np.cumsum(self.ended, 0) - self.ended == 0

    @property
    def returns(self) -> np.ndarray:
        """The points of the first episode of each environment: (n,)."""
        return np.where(self.first, self.rewards, 0).sum(0)


def play(task: Task, act: Act, count: int, seed: int) -> Experience:
    """Play `count` environments side by side, each for the length of the longest episode.

    An environment whose episode has ended is reset and played on. All start states follow from
    `seed`, so that what is played depends on nothing but it and `act`.
    """
    try:
        import gymnasium
    except ImportError:
        raise ImportError(
            "the environments come with the package gymnasium, which is not installed; run: pip "
            'install gymnasium, or pip install "gpunn[gallery]" for all examples'
        ) from None
    fast = task.gymnasium == "CartPole-v1"  # gymnasium computes all of them at once
    environments = gymnasium.make_vec(
        task.gymnasium, count, vectorization_mode="vector_entry_point" if fast else "sync"
    )
    observation, _ = environments.reset(seed=seed)
    observations, rows = [observation], []
    for _ in range(task.steps):
        action = act(observation)
        given = np.clip(action, -task.limit, task.limit) if task.limit else action
        observation, reward, fallen, out_of_time, _ = environments.step(given)
        observations.append(observation)
        rows.append((action, reward, fallen, fallen | out_of_time))
    environments.close()
    actions, rewards, fallen, ended = (np.stack(column) for column in zip(*rows, strict=True))
    valid = np.concatenate([np.ones((1, count), bool), ~ended[:-1]])
    return Experience(np.stack(observations), actions, rewards, fallen, ended, valid)


# ---- learning ------------------------------------------------------------------------------------


def advantages(
    rewards: np.ndarray, values: np.ndarray, fallen: np.ndarray, ended: np.ndarray,
    discount: float, trace: float,
) -> np.ndarray:  # fmt: skip
    """How much better than guessed it went after each action (generalised advantage estimation).

    rewards, fallen, ended are (steps, n), values (steps + 1, n). A single step went better by
    ``reward + discount · next value - value``; the advantage adds up those of the steps that follow
    in the episode, each counting `discount · trace` times the one before. Where the pole fell
    nothing follows; where the time was up, the critic's guess does.
    """
    surprise = rewards + discount * np.where(fallen, 0, values[1:]) - values[:-1]
    result, following = np.empty_like(surprise), np.zeros_like(surprise[0])
    for step in reversed(range(len(surprise))):
        following = surprise[step] + discount * trace * np.where(ended[step], 0, following)
        result[step] = following
    return result


def improve(
    run: Run, policy: Policy, optimizer: optim.Optimizer, experience: Experience,
    rng: np.random.Generator,
) -> dict[str, float]:  # fmt: skip
    """Train on the experience; returns what is worth a curve."""
    config, task = run.config, run.config.task
    steps, count = experience.rewards.shape
    with gpunn.no_grad():
        seen = experience.observations.reshape((steps + 1) * count, -1)
        values = policy.value(gpunn.tensor(seen, device=run.device)).numpy()
    values = values.reshape(steps + 1, count)
    gained = advantages(
        experience.rewards / task.point, values, experience.fallen, experience.ended,
        task.discount, config.trace,
    ).astype(np.float32)  # fmt: skip
    valid = experience.valid
    fields = (experience.observations[:-1], experience.actions, gained, gained + values[:-1])
    observations, actions, gained, targets = (
        gpunn.tensor(field[valid], device=run.device) for field in fields
    )
    with gpunn.no_grad():
        before = policy.judge(observations, actions)[0]
    batch = min(config.batch_size, len(gained))
    sums = np.zeros(2)
    for _ in range(config.epochs):
        order = rng.permutation(len(gained))
        for start in range(0, len(order) - batch + 1, batch):
            part = gpunn.tensor(order[start : start + batch], device=run.device)
            log_probability, entropy = policy.judge(observations[part], actions[part])
            advantage = gained[part]
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
            ratio = (log_probability - before[part]).exp()
            limited = ratio.clamp(1 - config.clip, 1 + config.clip)
            gain = gpunn.minimum(ratio * advantage, limited * advantage).mean()
            value_loss = F.mse_loss(policy.value(observations[part]), targets[part])
            loss = value_loss - gain - config.entropy * entropy
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimizer.step()
        sums += value_loss.item(), entropy.item()
    value_loss, entropy = (float(total) / config.epochs for total in sums)
    return {"value_loss": value_loss, "entropy": entropy}


def train(run: Run) -> None:
    """Play and improve, again and again."""
    config, task = run.config, run.config.task
    iterations = config.iterations or task.iterations
    policy = Policy(task).to(run.device)
    optimizer = optim.Adam(policy.parameters(), lr=config.learning_rate)
    for number, record in run.loop(iterations, model=policy, optimizer=optimizer):
        # Nothing is left over from the iterations before but the two parts that the loop keeps:
        # the environments begin anew, so that a run that was interrupted ends as it would have.
        rng = np.random.default_rng((config.seed, number))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - number / iterations)
        count, seed = config.environments or task.environments, int(rng.integers(2**32))
        experience = play(task, acting(policy, run, rng), count, seed)
        record["return"] = float(experience.returns.mean())
        record.update(improve(run, policy, optimizer, experience, rng))
    run.save("model", policy)


# ---- measuring -----------------------------------------------------------------------------------


def evaluate(run: Run) -> Outcome:
    """Held-out episodes, the same start states for all."""
    config, task = run.config, run.config.task
    policy = run.load("model", into=Policy(task))
    cart = config.environment == "cartpole"
    expert = "LQR of the known equations" if cart else "energy rule and LQR of the known equations"
    ways = {
        "the network": acting(policy, run),
        expert: balance_cart() if cart else swing_up(),
        "random play": at_random(task, 0),
    }
    played = {name: play(task, act, config.episodes, HELD_OUT) for name, act in ways.items()}
    returns = {name: experience.returns for name, experience in played.items()}
    value, best = (float(returns[name].mean()) for name in ("the network", expert))
    told = f"is {'worse' if value > best else 'better'} by {abs(value - best):.1f} {task.unit}"
    notes = [
        "The engineer's controller, which is given the equations of motion, "
        f"{'does as well as' if value == best else told + ' than'} the network, which is not."
    ]
    more = {f"worst episode of {name}": float(points.min()) for name, points in returns.items()}
    if cart:
        more["episodes of full length"] = float((returns["the network"] >= task.steps).mean())
        notes.append(
            f"{task.steps} steps are the most there can be, and 475 count as solved: it is "
            f"{'solved' if value >= 475 else 'not solved'}."
        )
    baselines = {name: float(points.mean()) for name, points in returns.items() if name in
                 (expert, "random play")}  # fmt: skip
    history = History.from_csv(run.folder / "history.csv")
    run.figure("learning", lambda: draw_learning(history, task, baselines))
    run.figure("episode", lambda: draw_episode(played, config))
    run.figure("policy", lambda: draw_policy(ways, config))
    return Outcome(
        task.metric, value, baselines, config.episodes, "episodes", unit=task.unit, more=more,
        notes=notes,
    )  # fmt: skip


def predict(run: Run, data: str) -> Iterator[dict[str, Any]]:
    """Play so many further episodes and tell how they went."""
    try:
        count = int(data)
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError(f"cartpole: expected how many episodes to play, such as 5, got {data!r}")
    policy = run.load("model", into=Policy(run.config.task))
    experience = play(run.config.task, acting(policy, run), count, FURTHER)
    for number, points in enumerate(experience.returns):
        length = int(experience.first[:, number].sum())
        yield {"episode": number + 1, "steps": length, "return": round(float(points), 1)}


JOB = Job(
    name="cartpole",
    title="A pole balanced by a learned policy",
    use="robotics",
    data="gymnasium's CartPole-v1 and Pendulum-v1 (MIT), physical simulations; nothing is recorded",
    config=Config,
    train=train,
    evaluate=evaluate,
    predict=predict,
    takes="how many episodes to play, such as 5",
    variants={"cartpole": {}, "pendulum": {"environment": "pendulum"}},
    quick={"iterations": 2, "environments": 2, "epochs": 1, "episodes": 3},
)

if __name__ == "__main__":
    from gpunn.cli.main import main

    raise SystemExit(main(["train", "cartpole", *sys.argv[1:]]))

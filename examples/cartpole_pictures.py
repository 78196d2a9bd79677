"""The pictures that cartpole.py puts into its run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from cartpole_rivals import Act

from gpunn.train import History
from gpunn.train.plots import new_figure

if TYPE_CHECKING:
    from cartpole import Config, Experience, Task


def draw_learning(history: History, task: Task, baselines: dict[str, float]) -> Any:
    """Points of the episodes that each iteration began with, and the baselines as lines."""
    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    axes.plot(history["epoch"], history["return"], color="#4477aa", lw=1.8, label="while training")
    for (name, value), color in zip(baselines.items(), ("#228833", "#999999"), strict=True):
        axes.axhline(value, color=color, lw=1.4, ls="--", label=f"{name}: {value:.0f}")
    axes.set(xlabel="iteration", ylabel=f"{task.metric}, {task.unit}")
    axes.set_title(f"{task.gymnasium}: learned by trying", fontsize=12, fontweight="bold")
    axes.grid(True, color="#dddddd", lw=0.7)
    axes.legend(fontsize=9, loc="center right")
    return figure


def draw_episode(played: dict[str, Experience], config: Config) -> Any:
    """The first held-out episode of each player: what moved, and what was done."""
    cart = config.environment == "cartpole"
    interval = 0.02 if cart else 0.05
    figure = new_figure(9.0, 6.4)
    panels = figure.subplots(3, 1, sharex=True)
    colors = ("#4477aa", "#228833", "#bbbbbb")
    for (name, experience), color in zip(played.items(), colors, strict=True):
        length = int(experience.first[:, 0].sum())
        seen, done = experience.observations[:length, 0], experience.actions[:length, 0]
        upper = np.degrees(seen[:, 2] if cart else np.arctan2(seen[:, 1], seen[:, 0]))
        upper[1:][np.abs(np.diff(upper)) > 180] = np.nan  # no line from 180° to -180°
        middle = seen[:, 0] if cart else seen[:, 2]
        # Pushes alternate too quickly to be seen: shown is what they add up to.
        lower = np.cumsum(2 * done - 1) if cart else np.clip(done[:, 0], -2, 2)
        times = interval * np.arange(length)
        for axes, values in zip(panels, (upper, middle, lower), strict=True):
            axes.plot(times, values, color=color, lw=1.3, label=name)
    names = (
        ("pole's angle, °", "cart's position, m", "pushes to the right\nminus those to the left")
        if cart
        else ("angle from upright, °", "angular velocity, rad/s", "torque, Nm")
    )
    for axes, name in zip(panels, names, strict=True):
        axes.set_ylabel(name)
        axes.grid(True, color="#dddddd", lw=0.7)
    panels[2].set_xlabel("time, s")
    panels[0].legend(fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False)
    figure.suptitle(f"{config.task.gymnasium}: a held-out episode", fontsize=12, fontweight="bold")
    return figure


def draw_policy(ways: dict[str, Act], config: Config) -> Any:
    """What the network and the engineer's controller do, by angle and angular velocity."""
    cart = config.environment == "cartpole"
    angles = np.radians(np.linspace(-12, 12, 121) if cart else np.linspace(-180, 180, 181))
    speeds = np.linspace(-2.5, 2.5, 101) if cart else np.linspace(-8, 8, 101)
    angle, speed = (grid.ravel() for grid in np.meshgrid(angles, speeds))
    rest = np.zeros_like(angle)
    columns = (rest, rest, angle, speed) if cart else (np.cos(angle), np.sin(angle), speed)
    seen = np.stack(columns, 1).astype(np.float32)
    figure = new_figure(9.5, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (name, act) in zip(panels, list(ways.items())[:2], strict=True):
        done = act(seen).reshape(len(speeds), len(angles))
        done = 2.0 * done - 1 if cart else np.clip(done, -2, 2)
        limit = 1 if cart else 2
        shown = axes.pcolormesh(np.degrees(angles), speeds, done, cmap="RdBu_r", vmin=-1.5 * limit,
                                vmax=1.5 * limit, rasterized=True)  # fmt: skip
        axes.set(xlabel="angle from upright, °")
        axes.set_title(name, fontsize=10)
        for side, at in (("left", 0.12), ("right", 0.88)) if cart else ():
            axes.text(at, at, f"push {side}", transform=axes.transAxes, ha="center", color="white")
    panels[0].set_ylabel("angular velocity, rad/s")
    if not cart:
        bar = figure.colorbar(shown, ax=panels, shrink=0.9)
        bar.ax.set_ylim(-limit, limit)
        bar.set_label("torque, Nm")
    where = ", the cart at rest in the middle" if cart else ""
    figure.suptitle(f"{config.task.gymnasium}: what is done{where}", fontsize=12, fontweight="bold")
    return figure

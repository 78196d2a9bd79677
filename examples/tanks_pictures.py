"""The pictures that tanks.py puts into its run folder."""

from __future__ import annotations

from typing import Any

import numpy as np
from tanks_experiments import Experiment
from tanks_plant import STEP, Recording, stretches

from gpunn.train.plots import new_figure

COLORS = {"network": "#4477aa", "ARX": "#ee7733", "PID": "#228833"}


def finish(figure: Any, panels: Any, title: str) -> Any:
    """What the pictures share."""
    for axes in panels:
        axes.grid(True, color="#dddddd", lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure


def draw_identification(recording: Recording, known: dict[str, Any]) -> Any:
    """A held-out recording, and what the models say that know its first minute and the voltage."""
    steps = 240
    levels, volts, plan, _, true = (part[:1] for part in stretches(recording, 10_000, steps))
    times = STEP / 60 * np.arange(1, steps + 1)
    figure = new_figure(9.5, 6.6)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
    for column, axes in enumerate(panels[:2]):
        axes.plot(times, 100 * true[0, :, column], color="#222222", lw=2.6, label="true")
        for name, model in known.items():
            said = 100 * model.rollout(levels, volts, plan)[0, :, column]
            axes.plot(times, said, color=COLORS[name], lw=1.5, ls="--", label=name)
        axes.set_ylabel(f"{('upper', 'lower')[column]} level, cm")
    panels[2].step(times, plan[0], color="#666666", lw=1.2, where="pre")
    panels[2].set(ylabel="pump, V", xlabel="time, min")
    panels[0].legend(fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return finish(figure, panels, "A held-out recording, predicted over 20 minutes")


def draw_control(found: dict[str, Experiment]) -> Any:
    """The first held-out reference, how the controllers follow it, and what the pump does."""
    figure = new_figure(9.5, 7.2)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    for name, experiment in reversed(found.items()):
        times = STEP / 60 * np.arange(experiment.volts.shape[1])
        level, reference = 100 * experiment.levels[0, :, 1], 100 * experiment.reference[0]
        label = name if name == "PID" else f"predictive, {name}"
        panels[0].plot(times, level, color=COLORS[name], lw=1.5, label=label)
        panels[1].plot(times, 10 * (level - reference), color=COLORS[name], lw=1.2)
        panels[2].step(times, experiment.volts[0], color=COLORS[name], lw=1.0, where="post")
    panels[0].plot(times, reference, color="#222222", lw=1.2, ls="--", label="reference")
    for axes, name in zip(
        panels, ("lower level, cm", "level - reference, mm", "pump, V"), strict=True
    ):
        axes.set_ylabel(name)
    panels[2].set_xlabel("time, min")
    panels[0].legend(fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return finish(figure, panels, "A held-out reference with disturbances that nobody measures")

"""What a `DataLoader` refuses, and what it chose, in words."""

from __future__ import annotations

from typing import Any

from gpunn.device import Device, device_of
from gpunn.text import bytes_text


def described(
    loader: Any, target: Device | None, arrays: Any, remote: bool, why: str, ahead: int
) -> str:
    """Where the data of a loader are kept, how they are sent, and who makes batches.

    `target` is its device, `remote` whether batches are sent there; `arrays` are its data's, `why`
    the reason that they stay on the host, `ahead` how many batches are on their way.
    """
    size = f" ({bytes_text(sum(a.nbytes for a in arrays))})" if arrays else ""
    what = f"{len(loader.dataset):,} samples{size}"
    if remote:
        way = (
            f"uploaded through pinned memory, {ahead} batches ahead"
            if target is not None and target.type == "cuda"
            else "copied batch by batch"
        )
        text = f"{what} stay on the host{', ' + why if why else ''}; to {target} {way}"
    else:
        places = " and ".join(sorted({str(device_of(a)) for a in arrays})) or "the host"
        text = f"{what} are kept on {places}"
    if loader._late:
        text += f"; {type(loader.transform).__name__} runs there"
    if not loader._active:
        return text + ("; there is nothing for workers to do" if loader.num_workers else "")
    one = loader._active == 1
    kind = {"thread": "thread", "process": "process" if one else "processe"}[loader.worker_kind]
    return (
        f"{text}; {loader._active} worker {kind}{' makes' if one else 's make'} up to "
        f"{loader._active * loader.prefetch_factor} batches ahead"
    )


def check_state(state: dict[str, int], samples: int, batch_size: int, batches: int) -> None:
    """Whether a loader of so many samples and batches can go on from `state`.

    ValueError as of `DataLoader.load_state_dict`.
    """
    missing = {"seed", "epoch", "batch", "samples"} - set(state)
    if missing:
        raise ValueError(f"DataLoader: the state lacks {sorted(missing)}")
    if state["samples"] != samples:
        raise ValueError(
            f"DataLoader: the state is of a dataset of {state['samples']} samples, "
            f"this one has {samples}"
        )
    size = state.get("batch_size", batch_size)
    if state["batch"] > 0 and size != batch_size:
        raise ValueError(
            f"DataLoader: the state is in the middle of an epoch with batches of {size}, and "
            f"this loader makes batches of {batch_size}; make it with batch_size={size}, "
            "or begin an epoch with set_epoch"
        )
    if not 0 <= state["batch"] <= batches:
        raise ValueError(
            f"DataLoader: the state is at batch {state['batch']} of an epoch that has "
            f"{batches}; was batch_size another?"
        )


def checked_count(name: str, value: Any, low: int) -> int:
    """`value` as an int. ValueError unless it is a whole number, `low` or more."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < low:
        raise ValueError(f"DataLoader: {name} must be an integer ≥ {low}, got {value!r}")
    return int(value)

"""`Optimizer`: parameter groups, the arenas behind them, one launch for each, and their state."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gpunn.autograd.dtypes import is_float
from gpunn.autograd.mode import enable_grad
from gpunn.autograd.tensor import Tensor, wrap
from gpunn.device import as_array, to_numpy, tracing
from gpunn.optim.arena import Arena
from gpunn.optim.sharding import Shardable
from gpunn.primitives.optimizer import HYPER, advance_step, hyper_array


class Optimizer(Shardable):
    """Base of all optimizers, with the interface of `torch.optim.Optimizer`.

    Making one moves the parameters into flat arrays (`Arena`): their Tensors stay the same objects
    and become views, and a step updates a whole group by one launch for each dtype. Assigning to
    ``parameter.data``, or moving the model to another device or dtype, is noticed and the arena
    follows. All gradients and states have their place there from the start. A `detach()` or view of
    a parameter that was taken before keeps the old memory.

    A subclass gives `rule` (a key of `HYPER`), `hyper_values`, `update` and perhaps `state_names`.

    Attributes
    ----------
    param_groups : list of dicts with ``params`` and the hyperparameters. A change such as
        ``optimizer.param_groups[0]["lr"] = 0.01`` takes effect at the next step.
    defaults : hyperparameters of groups that do not give their own
    state : parameter -> its step count and state Tensors (views), as in PyTorch
    skip_flag : None, or a float32 array (1,) on the device of the parameters. Where it is not 0
        when its turn comes on the device, `step` changes nothing and counts no step.

    Raises
    ------
    ValueError : no parameters, the same parameter twice, a non-leaf, a hyperparameter out of range
    """

    rule: str
    skip_flag: Any = None

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]):
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self._arenas: list[list[Arena]] = []  # of each group
        self._steps_made = 0
        if isinstance(params, Tensor):
            raise TypeError(
                f"{self._name}: params is one Tensor; give a list of parameters: [parameter]"
            )
        groups = list(params)
        if not groups:
            raise ValueError(f"{self._name}: got no parameters; give model.parameters()")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    # ---- what a subclass says -------------------------------------------------------------------

    def hyper_values(self, group: dict[str, Any]) -> tuple[float, ...]:
        """The hyperparameters of a group, in the order of the slots before ``step``."""
        raise NotImplementedError

    def update(
        self,
        group: dict[str, Any],
        parameters: list[Any],
        gradients: list[Any],
        state: dict[str, Any],
        hyper: dict[str, Any],
    ) -> None:
        """Run the update primitive on flat arrays; `state` has the arrays of `state_names`."""
        raise NotImplementedError

    def state_names(self, group: dict[str, Any]) -> dict[str, float]:
        """Name of each state array the group needs -> what it is filled with at first."""
        return {}

    def counts_steps(self, group: dict[str, Any]) -> bool:
        """Whether the update of this group depends on the step."""
        return True

    # ---- groups ---------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with hyperparameters of their own, for example of a thawed layer."""
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise TypeError(f"{self._name}: a parameter group must be a dict with 'params'")
        params = param_group["params"]
        if isinstance(params, set):
            raise TypeError(f"{self._name}: params is a set, which has no order; give a list")
        params = [params] if isinstance(params, Tensor) else list(params)
        group = {**copy.deepcopy(self.defaults), **param_group, "params": params}
        self._check_params(params)
        self._check_group(group)
        self.param_groups.append(group)
        self._arenas.append(self._make_arenas(params))

    def _check_params(self, params: list[Any]) -> None:
        seen = {id(p) for group in self.param_groups for p in group["params"]}
        place = f"of group {len(self.param_groups)}"
        for i, parameter in enumerate(params):
            if not isinstance(parameter, Tensor):
                raise TypeError(
                    f"{self._name}: parameter {i} {place} is {type(parameter).__name__}; expected "
                    "Tensors. Give model.parameters()."
                )
            if not parameter.is_leaf:
                raise ValueError(
                    f"{self._name}: parameter {i} {place} (shape {parameter.shape}) is the result "
                    "of an operation and cannot be optimized. Use .detach().requires_grad_()."
                )
            if not is_float(parameter.dtype):
                raise TypeError(
                    f"{self._name}: parameter {i} {place} has dtype {parameter.dtype}; "
                    "only floating parameters can be optimized."
                )
            if id(parameter) in seen:
                raise ValueError(
                    f"{self._name}: parameter {i} {place} (shape {parameter.shape}) is given "
                    "twice; a parameter belongs to one group."
                )
            seen.add(id(parameter))

    def _check_group(self, group: dict[str, Any]) -> None:
        """Refuse hyperparameters out of range, by name; subclasses extend it."""
        self._require_number(group, "lr", low=0)
        if "weight_decay" in group:
            self._require_number(group, "weight_decay", low=0)

    def _require_number(
        self, group: Any, name: Any, low: Any = -math.inf, below: Any = math.inf
    ) -> None:
        value = group[name]
        number = float(value)
        if not (number >= low and (number < below or below == math.inf)):
            expected = f"{low} or more" if below == math.inf else f"from {low} to below {below}"
            raise ValueError(f"{self._name}: {name} is {value}; expected a number {expected}")

    def _require_betas(self, group: dict[str, Any]) -> None:
        betas = group["betas"]
        if not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"{self._name}: betas is {betas}; expected two numbers in [0, 1)")

    # ---- arenas ---------------------------------------------------------------------------------

    def _make_arenas(self, params: list[Tensor]) -> list[Arena]:
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for i, parameter in enumerate(params):
            kinds.setdefault((parameter.device, parameter.dtype), []).append(i)
        hyper = hyper_array(self.rule)
        return [Arena([params[i] for i in own], own, hyper, self._ranks) for own in kinds.values()]

    @property
    def arenas(self) -> list[Arena]:
        """The flat arrays in which the parameters lie, group by group."""
        return [arena for arenas in self._arenas for arena in arenas]

    def follow_parameters(self) -> None:
        """Take parameters whose data was replaced or moved back into an arena."""
        for k, (group, arenas) in enumerate(zip(self.param_groups, self._arenas, strict=True)):
            if sum(len(arena.tensors) for arena in arenas) != len(group["params"]):
                raise ValueError(
                    f"{self._name}: the parameters of group {k} were changed by hand. "
                    "Add parameters with add_param_group."
                )
            moved = False
            for arena in arenas:
                for i, tensor in enumerate(arena.tensors):
                    if tensor._array is not arena.views[i]:
                        arena.check_shape(i)
                        if arena.fits(tensor._array):
                            arena.take_parameter(i)
                        else:
                            moved = True
                    elif tensor._grad_slot is None:
                        tensor._grad_slot = arena.slots[i]
            if moved:
                self._remake_arenas(k)

    def _remake_arenas(self, k: int) -> None:
        """Put the parameters of group `k`, as they are now, into new arenas with their states."""
        saved = self._group_state(k)
        with tracing.made_once():
            self._arenas[k] = self._make_arenas(self.param_groups[k]["params"])
            self._set_group_state(k, saved)

    @property
    def _step_slot(self) -> int:
        return HYPER[self.rule].index("step")

    def _group_state(self, k: int) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for arena in self._arenas[k]:
            found |= arena.state_of(self._step_slot)
        return found

    def _set_group_state(self, k: int, saved: dict[int, dict[str, Any]]) -> None:
        names = self.state_names(self.param_groups[k])
        for arena in self._arenas[k]:
            arena.set_state(saved, names, hyper_array(self.rule), self._step_slot)

    # ---- a step ---------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; returns what `closure` returned, if given.

        `closure` is called first, with gradients enabled: it computes the loss anew.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        self.follow_parameters()
        for group, arenas in zip(self.param_groups, self._arenas, strict=True):
            for arena in arenas:
                self._step_arena(group, arena)
        self._steps_made += 1
        if tracing.state.trace is not None:
            self._note_replays(tracing.state.trace)
        return loss

    # ---- in a compiled step: see gpunn.compiled --------------------------------------------------

    def _note_replays(self, trace: tracing.Trace) -> None:
        written = [
            tensor
            for arenas in self._arenas
            for arena in arenas
            for tensor in arena.tensors
            if tensor.grad is not None  # when a replay ends they may be forgotten again
        ]
        trace.before.append(self.write_hyperparameters)
        trace.after.append(functools.partial(self._count_replay, written))
        trace.hold(self._places)

    def write_hyperparameters(self) -> None:
        """Bring changed hyperparameters, and parameters that were replaced, to where they belong.

        `step` does so itself. A replay of a captured step has it done before.
        """
        self.follow_parameters()
        for group, arenas in zip(self.param_groups, self._arenas, strict=True):
            values = self.hyper_values(group)
            for arena in arenas:
                for cohort in arena.cohorts:
                    cohort.write(values)

    def _count_replay(self, written: list[Tensor]) -> None:
        """What a step does besides launching."""
        self._steps_made += 1
        for tensor in written:
            tensor._cell[0] += 1

    def _places(self) -> list[Any]:
        """Which arrays a step works on, and which of its choices are part of the launches."""
        found: list[Any] = []
        for group, arenas in zip(self.param_groups, self._arenas, strict=True):
            found += [value for value in group.values() if isinstance(value, bool)]
            found += [group.get("eps") == 0, self.counts_steps(group), *self.state_names(group)]
            for arena in arenas:
                found.append(arena.parameters)
                found += [cohort.hyper for cohort in arena.cohorts]
                found += arena.state.values()
        return found

    def _step_arena(self, group: dict[str, Any], arena: Arena) -> None:
        active = arena.take_gradients()
        if not active:
            return
        values = self.hyper_values(group)
        state = {
            name: arena.require_state(name, value)
            for name, value in self.state_names(group).items()
        }
        for cohort in arena.active_cohorts(active):
            cohort.write(values)
            if self.counts_steps(group):
                advance_step(cohort.hyper, rule=self.rule, skip=self.skip_flag)
            # In a gap, 0 / (sqrt(0) + eps) is 0 only if eps is not.
            runs = arena.runs(cohort.members, tight=group.get("eps") == 0)
            for start, stop in arena.own.inside(runs):
                run = slice(start, stop)
                held = arena.own.held(start, stop)
                own = {name: array[held] for name, array in state.items()}
                self.update(group, arena.parameters[run], arena.gradients[run], own, cohort.hyper)
        arena.own.gather(arena.parameters)
        for i in active:
            arena.tensors[i]._cell[0] += 1  # a graph that saved the old value must not be used

    def prepare_low(self, dtype: np.dtype[Any]) -> None:
        """Take the memory that steps inside `gpunn.autocast` need for copies in a 16-bit dtype."""
        self.follow_parameters()
        for arenas in self._arenas:
            for arena in arenas:
                arena.copies_in(dtype).make_gradients()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, or fill them with zeros."""
        self.follow_parameters()
        for arenas in self._arenas:
            for arena in arenas:
                if set_to_none:
                    for tensor in arena.tensors:
                        tensor.grad = None
                else:
                    arena.clear_gradients()

    # ---- state ----------------------------------------------------------------------------------

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """Parameter -> its step and its state as Tensors that are views. Waits for the GPU.

        RuntimeError for a sharded optimizer, which has no more than parts of them.
        """
        if self._ranks is not None:
            raise RuntimeError(
                f"{self._name}.state: each of the {self._ranks.size} ranks has a part of the states"
                " alone; state_dict(), called on all of them, gathers copies"
            )
        found = {}
        for k, group in enumerate(self.param_groups):
            for i, entries in self._group_state(k).items():
                found[group["params"][i]] = {
                    name: value if name == "step" else wrap(value)
                    for name, value in entries.items()
                }
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on exactly: copies, with NumPy arrays.

        ``state`` maps the number of a parameter, counted through all groups, to its ``step`` and
        arrays; ``param_groups`` has the hyperparameters, with those numbers under ``params``. Of a
        sharded optimizer it is the same, whole, on every rank; all ranks must call it.
        """
        state, groups, first = {}, [], 0
        for k, group in enumerate(self.param_groups):
            for i, entries in sorted(self._group_state(k).items()):
                state[first + i] = {
                    name: value if name == "step" or self._ranks else np.array(to_numpy(value))
                    for name, value in entries.items()
                }
            numbers = list(range(first, first + len(group["params"])))
            settings = {name: value for name, value in group.items() if name != "params"}
            groups.append({**copy.deepcopy(settings), "params": numbers})
            first += len(numbers)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, here or on another device; PyTorch's fits too.

        A sharded optimizer is given it whole, on every rank, and keeps its part.

        Raises ValueError, before anything is changed, if groups, numbers of parameters or shapes
        differ.
        """
        groups = state_dict["param_groups"]
        found = [len(group["params"]) for group in groups]
        expected = [len(group["params"]) for group in self.param_groups]
        if found != expected:
            raise ValueError(
                f"load_state_dict: the state has groups of {found} parameters, this "
                f"{self._name} has {expected}. Make the optimizer as the saved one was made."
            )
        state = {int(number): entries for number, entries in state_dict["state"].items()}
        loaded = [self._read_state(k, group, state) for k, group in enumerate(groups)]
        self.follow_parameters()
        for k, (group, given) in enumerate(zip(self.param_groups, groups, strict=True)):
            settings = {name: value for name, value in given.items() if name != "params"}
            group.update(copy.deepcopy(settings))
            self._set_group_state(k, loaded[k])

    def _read_state(
        self, k: int, saved_group: dict[str, Any], state: dict[int, Any]
    ) -> dict[int, dict[str, Any]]:
        """The states of group `k` by place in the group, with shapes checked."""
        found = {}
        params = self.param_groups[k]["params"]
        for i, number in enumerate(saved_group["params"]):
            entries = {}
            for name, value in state.get(number, {}).items():
                if value is None:
                    continue
                if name == "step":
                    entries[name] = float(value)
                    continue
                value = as_array(value._array if isinstance(value, Tensor) else value)
                if value.shape != params[i].shape:
                    raise ValueError(
                        f"load_state_dict: {name} of parameter {number} has shape {value.shape}, "
                        f"the parameter has {params[i].shape}."
                    )
                entries[name] = value
            found[i] = entries
        return found

    # ---- copies and pickles ---------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """What `copy.deepcopy` and pickle take along: no arenas, whose views would come apart."""
        left = ("_arenas", "skip_flag", "_ranks")  # a copy of a sharded one is whole
        kept = {name: value for name, value in self.__dict__.items() if name not in left}
        return kept | {"_group_states": [self._group_state(k) for k in range(len(self._arenas))]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make arenas for the parameters that came along, with the states they had."""
        saved = state.pop("_group_states")
        self.__dict__.update(state)
        self._arenas = [self._make_arenas(group["params"]) for group in self.param_groups]
        for k, entries in enumerate(saved):
            self._set_group_state(k, entries)

    # ---- printing -------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        lines = [f"{self._name} ("]
        for k, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {k}")
            lines += [f"    {name}: {group[name]}" for name in sorted(group) if name != "params"]
        return "\n".join([*lines, ")"])

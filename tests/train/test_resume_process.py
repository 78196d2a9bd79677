"""A real process that is killed at random moments, again and again, until its training is done."""

import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

CHILD = '''
import json, resource, sys, time
import numpy as np
import gpunn
from gpunn import nn, optim
from gpunn.data import DataLoader, RandomAffine
from gpunn.train import Callback, Checkpoints, CSVLogger, EarlyStopping, Trainer

folder, out, mode = sys.argv[1:]


class Around(Callback):
    """Slows the training down, so that it can be killed; fills the disk for a while."""

    def on_batch_end(self, trainer, epoch, step):
        if epoch == trainer.epoch + 1 and not getattr(self, "told", False):
            self.told = True
            print("training", flush=True)
        if mode == "slow":
            time.sleep(0.002)

    def on_epoch_end(self, trainer, epoch, record):
        limit = 9000 if mode == "full" and 3 <= epoch < 6 else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


rng = np.random.default_rng(5)
x = rng.standard_normal((60, 16), dtype=np.float32)
y = (x @ rng.standard_normal((16, 3))).argmax(1)
gpunn.manual_seed(3)
model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2),
                      nn.Linear(32, 3))
train = DataLoader((x[:40], y[:40]), 8, shuffle=True, seed=1, num_workers=2,
                   transform=RandomAffine((4, 4), 10.0, 0.1, 0.5))
trainer = Trainer(
    model, nn.CrossEntropyLoss(), lambda p: optim.AdamW(p, lr=0.003), metrics=["accuracy"], seed=2,
    callbacks=[EarlyStopping(patience=30), CSVLogger(out + ".csv"), Around()],
    scheduler=lambda o: optim.lr_scheduler.CosineAnnealingLR(o, 300),
)
epochs = 10 if mode == "full" else 30
keep = Checkpoints(folder, steps=1, epochs=1) if folder != "-" else None
history = trainer.fit(train, (x[40:], y[40:]), epochs, verbose=False, checkpoint=keep,
                      resume="auto" if keep else None)
if history.interrupted:
    sys.exit(130)
state = trainer.optimizer.state_dict()["state"]
np.savez(out, **{n: t.numpy() for n, t in model.state_dict().items()},
         **{f"{k}/{n}": np.asarray(v) for k, e in state.items() for n, v in e.items()})
with open(out + ".json", "w") as file:
    json.dump([history.state_dict(), gpunn.random.get_rng_state()], file)
'''


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("child") / "child.py"
    path.write_text(CHILD)
    return path


def start(script, folder, out, mode):
    arguments = [sys.executable, str(script), str(folder), str(out), mode]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def result(out):
    with np.load(f"{out}.npz") as arrays:
        weights = {name: arrays[name].tobytes() for name in arrays}
    history, state = json.loads(out.with_suffix(".json").read_text())
    for record in history["records"]:
        record["seconds"] = 0
    rows = [row.rpartition(",")[0] for row in out.with_suffix(".csv").read_text().splitlines()]
    return weights, history, state, rows


def test_killed_at_random_moments_it_ends_the_same(script, tmp_path):
    whole = start(script, "-", tmp_path / "whole", "fast")
    rng, ends, tries = random.Random(), [], 0
    folder, out = tmp_path / "run", tmp_path / "out"
    while not ends or ends[-1] != 0:
        tries += 1
        assert tries < 30, ends
        child = start(script, folder, out, "slow" if tries < 6 else "fast")
        if child.stdout.readline() == "training\n" and tries < 6:
            time.sleep(rng.uniform(0.02, 0.25))
            child.send_signal(signal.SIGINT if tries % 3 == 2 else signal.SIGKILL)
        _, err = child.communicate(timeout=150)
        assert child.returncode in (0, 130, -signal.SIGINT, -signal.SIGKILL), err
        ends.append(child.returncode)
    assert ends.count(-signal.SIGKILL) >= 2
    assert whole.wait(150) == 0, whole.communicate()
    for one, other in zip(result(out), result(tmp_path / "whole"), strict=True):
        assert one == other, ends


def test_a_full_disk(script, tmp_path):
    """The system refuses larger files for three epochs: the training says so once and goes on."""
    child = start(script, tmp_path / "run", tmp_path / "out", "full")
    _, err = child.communicate(timeout=150)
    assert child.returncode == 0, err
    assert err.count("no checkpoint could be written") == 1 and "the training goes on" in err
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert len(names) == 2 and names[-1].endswith("epoch-10-step-0.safetensors")
    assert len(result(tmp_path / "out")[1]["records"]) == 10

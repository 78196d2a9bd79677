"""A training on several ranks, for test_training: mpirun -n 2 python training_job.py FOLDER [kill]

With `kill`, rank 1 kills itself in epoch 2, after step 3. Without, it goes on from the checkpoints
in FOLDER, trains the same again from the beginning, and rank 0 prints whether both are the same.
"""

import hashlib
import os
import signal
import sys

import numpy as np

import gpunn
from gpunn import nn, optim
from gpunn.train import Callback, Checkpoints, Trainer


class Kill(Callback):
    """An end without a word."""

    def on_batch_end(self, trainer, epoch, step):
        if trainer.group.rank == 1 and (epoch, step) == (2, 3):
            os.kill(os.getpid(), signal.SIGKILL)


def train(*callbacks, **options):
    """(trainer, a checksum of its weights) of three epochs of five steps."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 8)).astype(np.float32)
    gpunn.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
    trainer = Trainer(model, nn.CrossEntropyLoss(), optim.AdamW, callbacks=callbacks, seed=1)
    trainer.fit((x, x[:, :3].argmax(1)), epochs=3, batch_size=10, verbose=False, **options)
    arrays = [value.numpy().tobytes() for value in model.state_dict().values()]
    return trainer, hashlib.sha256(b"".join(arrays)).hexdigest()


def main(folder, kill=None):
    if kill:
        train(Kill(), checkpoint=Checkpoints(folder, steps=2))
        return
    resumed, found = train(checkpoint=folder, resume="auto")
    again, expected = train()
    if resumed.group is None or resumed.group.main:
        print("resumed", resumed.resumed, "after step", resumed.steps_before)
        print("same weights", found == expected, "same losses", end=" ")
        print(resumed.history["loss"] == again.history["loss"])


if __name__ == "__main__":
    main(*sys.argv[1:])

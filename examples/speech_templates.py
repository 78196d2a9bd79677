"""Speech recognition without a network, for the speech example to be compared with."""

import numpy as np
from speech_sounds import Utterances, features, sounds_of, spoken, utterances

from gpunn import data
from gpunn.train.metrics import word_error_rate


class Templates:
    """Connected words by dynamic programming over stretched clips, in one pass (Ney 1984).

    Each frame of an utterance is put to a frame of a template. From one to the next the place in
    the template stays, or goes on by one or two; behind a template's end a word begins anew, at the
    price `penalty` (below 0: a reward). Silence is a template of one frame, the mean of the
    utterance's quietest. The least sum of squared distances wins. A spectrogram is cut off at
    `depth` below its maximum, and every second frame counts. All utterances are read together,
    frame by frame.
    """

    def __init__(self, clips: list[list[np.ndarray]], depth: float, penalty: float):
        """`clips` are spectrograms of each word."""
        self.depth, self.penalty = depth, penalty
        self.words = np.array([word for word, those in enumerate(clips) for _ in those])
        frames = [self._cut(one[None, ::2])[0] for those in clips for one in those]
        sizes = [len(one) for one in frames]
        self.frames, self.last = np.concatenate(frames), np.cumsum(sizes) - 1
        place = np.concatenate([np.arange(size) for size in sizes])
        states = np.arange(len(place))
        outside = len(place)  # a column of infinite costs
        self.before = [np.where(place >= back, states - back, outside) for back in (0, 1, 2)]
        self.first = self.last - sizes + 1

    def _cut(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x - x.max((1, 2), keepdims=True), -self.depth)

    def read(self, x: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
        """The words (from 1) of padded spectrograms (utterances, frames, bands)."""
        x, lengths = x[:, ::2], (lengths + 1) // 2
        inside = np.arange(x.shape[1]) < lengths[:, None]
        x = self._cut(np.where(inside[..., None], x, -np.inf))
        level = np.where(inside, x.mean(2), np.inf)
        counts = np.maximum(1, lengths // 8)
        quiet = level.argsort(1).argsort(1) < counts[:, None]
        silence = (x * quiet[..., None]).sum(1) / counts[:, None]
        rows, outside = np.arange(len(x)), len(self.frames)
        cost = np.full((len(x), outside + 1), np.inf)
        begun = np.zeros((len(x), outside + 1), int)  # when the word of a state began
        hush, hushed = np.full(len(x), np.inf), np.zeros(len(x), int)  # the same of silence
        best = np.zeros(len(x))  # of all that may end before this frame
        path = np.zeros((x.shape[1] + 1, len(x), 2), int)  # what ends there: template, its begin
        squares = (self.frames**2).sum(1)
        for t in range(x.shape[1]):
            options = np.stack([cost[:, back] for back in self.before])
            options[1, :, self.first] = (best + self.penalty)[None]
            starts = np.stack([begun[:, back] for back in self.before])
            starts[1, :, self.first] = t
            choice = options.argmin(0)[None]
            here = (x[:, t] ** 2).sum(1)[:, None] + squares - 2 * x[:, t] @ self.frames.T
            cost[:, :-1] = np.take_along_axis(options, choice, 0)[0] + here
            begun[:, :-1] = np.take_along_axis(starts, choice, 0)[0]
            hushed = np.where(best < hush, t, hushed)
            hush = np.minimum(best, hush) + ((x[:, t] - silence) ** 2).sum(1)
            ending = cost[:, self.last].argmin(1)
            said = cost[rows, self.last[ending]]
            best, word = np.minimum(said, hush), said < hush
            path[t + 1, :, 0] = np.where(word, ending, -1)
            path[t + 1, :, 1] = np.where(word, begun[rows, self.last[ending]], hushed)
        return [self._traced(path[:, row], int(end)) for row, end in enumerate(lengths)]

    def _traced(self, path: np.ndarray, end: int) -> list[int]:
        words: list[int] = []
        while end > 0:
            template, end = path[end].tolist()
            words += [int(self.words[template]) + 1] if template >= 0 else []
        return words[::-1]


def matched(config, test: Utterances) -> list[list[int]]:
    """What template matching reads, with the depth and the penalty that suit validation best."""
    held = utterances(config, "validation")
    if config.folder:
        clips = [those[:10] for those in sounds_of(config, "train")[0].clips]
    else:
        digits, rate = data.load_spoken_characters("0123456789")
        clips = [[spoken(one, rate, pitch, 1.0) for pitch in (-2, 0, 2)] for one in digits.values()]
    shown = [[features(clip, test.sounds.rate) for clip in those] for those in clips]
    errors = {
        (depth, penalty): word_error_rate(
            Templates(shown, depth, penalty).read(held.x, held.lengths), held.texts())
        for depth in (1.25, 1.5, 1.75, 2.0, 2.5) for penalty in (-4.0, -2.0, 0.0, 2.0, 5.0)
    }  # fmt: skip
    return Templates(shown, *min(errors, key=errors.get)).read(test.x, test.lengths)


def constant(config) -> list[int]:
    """The answer without listening that suits the validation utterances best."""
    said = utterances(config, "validation").texts()
    most = int(np.bincount(np.concatenate(said)).argmax())
    answers = [[most] * count for count in range(config.longest + 1)]
    return min(answers, key=lambda words: word_error_rate([words] * len(said), said))

"""Data, training and files on a GPU: the same as on the CPU, and without leaving the device."""

import numpy as np
import pytest

import gpunn
from gpunn import io, nn, optim
from gpunn.data import DataLoader, Normalizer, RandomAffine, TensorDataset
from gpunn.train import JOBS, DigitsConfig, TrainedModel, Trainer, metrics, run_job

pytestmark = pytest.mark.gpu


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


def data(samples=200):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, samples)
    return (rng.normal(size=(samples, 6)) + 2 * np.eye(3, 6)[y]).astype(np.float32), y


def test_loader_gives_the_same_batches_on_the_gpu(cupy):
    x, y = data(50)
    host = DataLoader((x, y), 16, shuffle=True, seed=3)
    device = DataLoader((x, y), 16, shuffle=True, seed=3, device="cuda")
    resident = DataLoader(TensorDataset(x, y).to("cuda"), 16, shuffle=True, seed=3)
    for a, b, c in zip(host, device, resident, strict=True):
        for one, two, three in zip(a, b, c, strict=True):
            assert two.is_cuda and three.is_cuda
            assert np.array_equal(one.numpy(), two.numpy())
            assert np.array_equal(one.numpy(), three.numpy())


def test_transforms_and_scaling(cupy):
    images = np.random.default_rng(0).random((9, 64), np.float32)
    affine = RandomAffine((8, 8))
    host = affine.images(images, np.random.default_rng(1))
    device = affine.images(cupy.asarray(images), np.random.default_rng(1))
    assert np.allclose(device.get(), host, atol=1e-5)
    normalizer = Normalizer().fit(cupy.asarray(images))
    assert np.allclose(
        normalizer.transform(cupy.asarray(images)).get(), normalizer.transform(images), atol=1e-5
    )


def test_metrics(cupy):
    rng = np.random.default_rng(0)
    scores, labels = rng.random((50, 4)), rng.integers(0, 4, 50)
    for name in ("accuracy", "top_k_accuracy", "confusion_matrix"):
        function = getattr(metrics, name)
        device = function(cupy.asarray(scores), cupy.asarray(labels))
        assert np.array_equal(device, function(scores, labels)), name
    for name in ("mean_absolute_error", "mean_squared_error", "r2_score"):
        function = getattr(metrics, name)
        device = function(cupy.asarray(scores), cupy.asarray(scores[::-1]))
        assert device == pytest.approx(function(scores, scores[::-1]), rel=1e-12), name


def train(device):
    gpunn.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
    trainer = Trainer(
        model,
        nn.CrossEntropyLoss(weight=gpunn.tensor([1.0, 2.0, 1.0])),
        lambda parameters: optim.AdamW(parameters, lr=0.01),
        metrics=["accuracy"],
        device=device,
        seed=0,
        gradient_clip_norm=1.0,
    )
    history = trainer.fit(data(), data(100), epochs=3, batch_size=32, verbose=False)
    return trainer, history


def test_training_agrees_with_the_cpu_and_repeats():
    host, device, again = train("cpu"), train("cuda"), train("cuda")
    assert np.allclose(device[1]["loss"], host[1]["loss"], rtol=1e-4)
    assert np.allclose(device[1]["validation_loss"], host[1]["validation_loss"], rtol=1e-4)
    x = data(20)[0]
    assert np.allclose(device[0].predict(x), host[0].predict(x), atol=1e-3)
    for one, two in zip(device[0].model.parameters(), again[0].model.parameters(), strict=True):
        assert np.array_equal(one.detach().numpy(), two.detach().numpy())


def test_a_model_moved_after_its_optimizer_was_made():
    model = nn.Linear(2, 1)
    trainer = Trainer(model, nn.MSELoss(), optim.SGD(model.parameters(), lr=0.1), device="cuda")
    before = model.weight.detach().numpy().copy()
    x = np.ones((4, 2), np.float32)
    trainer.fit((x, x[:, :1]), verbose=False)
    assert model.weight.is_cuda and not np.array_equal(model.weight.detach().numpy(), before)


def test_files(tmp_path):
    model = nn.Linear(3, 2).to("cuda")
    io.save(model, tmp_path / "m.safetensors")
    loaded = io.load(tmp_path / "m.safetensors", "cuda")
    assert loaded["weight"].is_cuda
    assert np.array_equal(loaded["weight"].numpy(), model.weight.detach().numpy())


def test_digits(tmp_path):
    pytest.importorskip("sklearn")
    result = run_job(JOBS["digits"], DigitsConfig(device="cuda"), tmp_path / "run", verbose=False)
    assert result.metrics["test_accuracy"] >= 0.97
    host = TrainedModel.load(result.folder, "cpu")
    x, y, _ = host.test_data()
    assert host.evaluate(x, y)["accuracy"] == pytest.approx(
        result.metrics["test_accuracy"], abs=0.006
    )

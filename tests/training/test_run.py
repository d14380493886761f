import json
import math
import shutil
import signal

import lightning
import pytest
import torch
from image_folders import write_digits

from manifold_resnet._errors import UserError
from manifold_resnet.training import Config, TrainingInterrupted, evaluate, load_run, resume, train
from manifold_resnet.training.callbacks import read_metrics

TINY = "hyperbolic-2-2-2-resnet-8"


class Stop(lightning.Callback):
    """Ctrl-C, or an error, in the middle of an epoch (counted from 1)."""

    def __init__(self, epoch, error=KeyboardInterrupt):
        self.epoch, self.error = epoch, error

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.current_epoch + 1 == self.epoch and index == 1:
            raise self.error


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("images"))


def settings(images, **other):
    return Config(**({"dataset": f"folder:{images}", "model": TINY, "epochs": 1, "batch_size": 12} | other))


def run(images, output, callbacks=(), **other):
    return train(settings(images, **other), output, progress=False, callbacks=callbacks)


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A run of two epochs; tests must not change it."""
    return run(images, tmp_path_factory.mktemp("runs") / "a", epochs=2)


def tensors(checkpoint):
    """Everything numeric that a checkpoint carries on with."""
    stored = torch.load(checkpoint, weights_only=True)
    states = [state for optimizer in stored["optimizer_states"] for state in optimizer["state"].values()]
    flat = {f"{index}.{key}": value for index, state in enumerate(states) for key, value in state.items()}
    return stored["state_dict"] | flat


def assert_same_checkpoint(first, second):
    first, second = tensors(first), tensors(second)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(second[key])), key


def test_a_run_holds_what_it_promises(finished):
    assert {path.name for path in finished.iterdir()} == {
        "checkpoints", "config.yaml", "curves.png", "metrics.csv", "tensorboard", "test.json",
    }  # fmt: skip
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert any("tfevents" in path.name for path in (finished / "tensorboard").iterdir())
    rows = read_metrics(finished / "metrics.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    results = json.loads((finished / "test.json").read_text())
    assert results["images"] == 12
    assert 0 <= results["test_accuracy"] <= 1


def test_config_of_a_run_repeats_it(finished, tmp_path):
    config = Config.from_dict(Config.read_dict(finished / "config.yaml"))
    again = train(config, tmp_path / "again", progress=False)
    assert_same_checkpoint(finished / "checkpoints" / "last.ckpt", again / "checkpoints" / "last.ckpt")


def test_load_run_gives_the_trained_network(finished, images):
    model, config = load_run(finished)
    assert not model.training
    assert config.images["classes"] == ["0", "1", "2"]
    data = config.open_data()
    data.setup("test")
    pixels, labels = next(iter(data.test_dataloader()))
    with torch.no_grad():
        accuracy = (model(pixels).argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(evaluate(finished, progress=False)["test_accuracy"])
    from_file, _ = load_run(finished / "checkpoints" / "best.ckpt")
    assert all(map(torch.equal, model.state_dict().values(), from_file.state_dict().values()))


def test_evaluate_agrees_with_training_and_writes_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    results = evaluate(finished, progress=False)
    stored = json.loads((finished / "test.json").read_text())
    assert {key: stored[key] for key in results} == results
    assert evaluate(finished, "last", progress=False)["checkpoint"] == "last.ckpt"
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}


def test_evaluate_after_moving_run_and_images(finished, images, tmp_path):
    moved, pictures = tmp_path / "moved", tmp_path / "pictures"
    shutil.copytree(finished, moved)
    shutil.copytree(images / "test", pictures / "test")  # the training images are not needed
    results = evaluate(moved, dataset=f"folder:{pictures}", batch_size=5, progress=False)
    assert results["test_accuracy"] == evaluate(finished, progress=False)["test_accuracy"]


@pytest.mark.parametrize(
    "other",
    [
        {"schedule": "onecycle"},
        {"schedule": "cosine", "optimizer": "sgd", "lr": 0.01},
        {"schedule": "constant", "learnable_c": True},
    ],
    ids=lambda other: other["schedule"],
)
def test_resuming_is_bit_identical(images, tmp_path, other):
    whole = run(images, tmp_path / "whole", epochs=3, **other)
    with pytest.raises(TrainingInterrupted) as stopped:
        run(images, tmp_path / "parts", epochs=3, callbacks=[Stop(2)], **other)
    parts = stopped.value.folder
    assert len(read_metrics(parts / "metrics.csv")) == 1
    assert (parts / "curves.png").exists()
    moved = tmp_path / "moved"
    parts.rename(moved)
    assert resume(moved, progress=False) == moved
    assert_same_checkpoint(whole / "checkpoints" / "last.ckpt", moved / "checkpoints" / "last.ckpt")
    assert_same_checkpoint(whole / "checkpoints" / "best.ckpt", moved / "checkpoints" / "best.ckpt")
    for left, right in zip(read_metrics(whole / "metrics.csv"), read_metrics(moved / "metrics.csv"), strict=True):
        assert left | {"seconds": 0} == right | {"seconds": 0}
    assert not parts.exists()


def test_interrupt_hands_ctrl_c_back(images, tmp_path):
    before = signal.getsignal(signal.SIGINT)  # a shell's background job starts with Ctrl-C ignored
    with pytest.raises(TrainingInterrupted) as stopped:
        run(images, tmp_path / "run", callbacks=[Stop(1)])
    assert stopped.value.folder is None
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_failure_keeps_finished_epochs_and_nothing_else(images, tmp_path, epoch):
    with pytest.raises(ZeroDivisionError):
        run(images, tmp_path / "run", epochs=2, callbacks=[Stop(epoch, ZeroDivisionError)])
    assert (tmp_path / "run").exists() == (epoch == 2)


def test_more_epochs_need_a_constant_learning_rate(finished, images, tmp_path):
    with pytest.raises(UserError, match="onecycle schedule .* start a new run"):
        resume(finished, epochs=3)
    whole = run(images, tmp_path / "whole", epochs=2, schedule="constant")
    longer = run(images, tmp_path / "longer", epochs=1, schedule="constant")
    resume(longer, epochs=2, progress=False)
    assert_same_checkpoint(whole / "checkpoints" / "last.ckpt", longer / "checkpoints" / "last.ckpt")
    assert Config.read_dict(longer / "config.yaml")["epochs"] == 2


def test_nothing_to_resume(finished):
    with pytest.raises(UserError, match="2 of 2 epochs; see `manifold-resnet evaluate"):
        resume(finished)


def test_a_run_interrupted_in_its_test_is_finished_by_resuming(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "test.json").unlink()
    resume(run, progress=False)
    assert (run / "test.json").read_text() == (finished / "test.json").read_text()


def test_an_existing_run_is_left_alone(finished, images):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(UserError, match="holds a run already"):
        run(images, finished)
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}


def test_runs_are_numbered(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [run(images, None).relative_to(tmp_path).as_posix() for _ in range(2)]
    assert names == [f"runs/{images.name}-{TINY}-{number}" for number in (1, 2)]


def test_without_validation_images_the_last_checkpoint_counts(images, tmp_path):
    folder = run(images, tmp_path / "run", val_fraction=0)
    assert not (folder / "checkpoints" / "best.ckpt").exists()
    assert json.loads((folder / "test.json").read_text())["checkpoint"] == "last.ckpt"
    assert read_metrics(folder / "metrics.csv")[0]["val_accuracy"] is None
    assert evaluate(folder, progress=False)["checkpoint"] == "last.ckpt"


@pytest.mark.parametrize("precision", ["bf16", "64"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_precisions_and_channels(tmp_path, mode, precision):
    images = write_digits(tmp_path / "images", train=10, mode=mode)
    folder = run(images, tmp_path / "run", precision=precision)
    model, config = load_run(folder)
    assert next(model.parameters()).dtype == (torch.float64 if precision == "64" else torch.float32)
    assert evaluate(folder, progress=False)["test_loss"] < 10


@pytest.mark.parametrize("model", ["euclidean-2-2-2-resnet-8", "euclideanwhypclass-2-2-2-resnet-8"])
def test_the_other_kinds(images, tmp_path, model):
    assert load_run(run(images, tmp_path / "run", model=model))[1].model == model


def test_unreadable_image_leaves_nothing(images, tmp_path):
    broken = tmp_path / "images"
    shutil.copytree(images, broken)
    file = broken / "train" / "2" / "5.png"
    file.write_bytes(file.read_bytes()[:60])  # the header is whole, so only training notices
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"2/5\.png"):
            run(broken, tmp_path / "run", workers=workers)
        assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(images, tmp_path):
    class Spoil(lightning.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                next(module.parameters()).data.fill_(math.nan)

    with pytest.raises(UserError, match="training loss became nan in epoch 2; lower --lr"):
        run(images, tmp_path / "run", epochs=3, callbacks=[Spoil()])
    stored = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in stored["state_dict"].values())


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other"])
def test_damaged_checkpoint(finished, tmp_path, damage):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in ("best", "last"):
        path = folder / "checkpoints" / f"{name}.ckpt"
        if damage == "other":
            torch.save({"weights": torch.zeros(2)}, path)
        else:
            path.write_bytes({"empty": b"", "text": b"hello", "cut": path.read_bytes()[:-2000]}[damage])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(UserError, match=r"best\.ckpt is damaged"):
        evaluate(folder)
    with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
        resume(folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_checkpoint_of_another_network(finished, tmp_path):
    path = tmp_path / "run.ckpt"
    stored = torch.load(finished / "checkpoints" / "best.ckpt", weights_only=True)
    stored["hyper_parameters"]["config"]["model"] = "hyperbolic-2-2-3-resnet-8"
    torch.save(stored, path)
    with pytest.raises(UserError, match="does not fit hyperbolic-2-2-3-resnet-8"):
        load_run(path)


@pytest.mark.parametrize("use", [evaluate, resume, load_run])
def test_no_such_run(tmp_path, use):
    with pytest.raises(UserError, match="no such run"):
        use(tmp_path / "none")
    with pytest.raises(UserError, match=r"no checkpoints/last\.ckpt"):
        use(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(images, tmp_path):
    with pytest.raises(UserError, match="--device cuda: .*cpu or auto"):
        run(images, tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()

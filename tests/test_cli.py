import builtins
import re
import shutil
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
from image_folders import write_digits

import manifold_resnet.training as training
from manifold_resnet.cli import main

TINY = ["--model", "hyperbolic-2-2-2-resnet-8", "--epochs", "1", "--batch-size", "12"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A run; tests must not change it."""
    output = tmp_path_factory.mktemp("runs") / "a"
    assert main(["train", "--dataset", f"folder:{images}", "--output", str(output), *TINY]) == 0
    return output


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Whatever a command leaves behind without being told to shows up in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MANIFOLD_RESNET_DEBUG", raising=False)


def fails(capsys, arguments, expected):
    """The command ends with code 2 and one line that says what to do, and leaves nothing behind."""
    before = set(Path.cwd().rglob("*"))
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert re.search(expected, lines[0]), lines[0]
    assert set(Path.cwd().rglob("*")) == before


def test_train_and_evaluate(finished, capsys, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    capsys.readouterr()
    assert main(["evaluate", str(moved)]) == 0
    evaluated = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"test accuracy [\d.]+% \(\d+ of 12 images\), best\.ckpt of epoch 1", evaluated)


def test_train_says_what_it_does(images, capsys):
    assert main(["train", "--dataset", f"folder:{images}", *TINY]) == 0
    out = capsys.readouterr().out
    assert "33 training, 3 validation, 12 test images, 3 classes" in out
    assert "run folder: " in out
    assert "epoch 1/1: " in out
    assert "training took 0 min" in out
    assert "test accuracy" in out.splitlines()[-1]


def test_config_file_and_command_line(finished, capsys, tmp_path):
    config = str(finished / "config.yaml")
    assert main(["train", "--config", config, "--c", "2", "--learnable-c", "--output", "b"]) == 0
    _, settings = training.load_run(tmp_path / "b")
    assert (settings.c, settings.learnable_c, settings.epochs) == (2.0, True, 1)
    assert main(["train", "--config", "b/config.yaml", "--no-learnable-c", "--output", "c"]) == 0
    assert training.load_run(tmp_path / "c")[1].learnable_c is False


def test_ctrl_c(images, capsys, monkeypatch, tmp_path):
    class Stop(lightning.Callback):
        epoch = 1

        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if trainer.current_epoch == self.epoch:
                raise KeyboardInterrupt

    train = training.train
    monkeypatch.setattr(training, "train", lambda *given: train(*given, callbacks=[Stop()]))
    arguments = ["train", "--dataset", f"folder:{images}", *TINY, "--epochs", "2", "--output"]
    assert main([*arguments, "a"]) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(f"carry on with: manifold-resnet train --resume {tmp_path / 'a'}")
    assert main(["train", "--resume", "a", "--workers", "1"]) == 0
    Stop.epoch = 0
    assert main([*arguments, "b"]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "required: COMMAND; see manifold-resnet --help"),
        (["tarin"], "unknown command 'tarin'; choose from train, evaluate"),
        (["train", "--epoch", "3"], "unrecognized arguments: --epoch 3; see manifold-resnet train --help"),
        (["train", "--epochs"], "--epochs: expected one argument"),
        (["train", "--epochs", "three"], "--epochs must be a whole number, 1 or more, got 'three'"),
        (["train", "--c", "0"], "--c must be a number above 0"),
        (["train", "--dataset", "cifar"], "did you mean cifar10"),
        (["train", "--dataset", "folder:nowhere"], "no such folder: .*nowhere"),
        (["train", "--model", "resnet18"], "unknown model 'resnet18'"),
        (["train", "--model", "euclidean-8-16-32-resnet-20", "--head", "mlr"], "head"),
        (["train", "--config", "none.yaml"], "cannot read none.yaml"),
        (["train", "--resume", "none"], "no such run"),
        (["train", "--resume", "none", "--lr", "1"], "--lr does not go with --resume"),
        (["train", "--resume", "none", "--output", "b"], "--output does not go with --resume"),
        (["evaluate"], "required: RUN"),
        (["evaluate", "none"], "no such run"),
        (["evaluate", "none", "--checkpoint", "first"], "invalid choice: 'first'"),
    ],
)
def test_mistakes(capsys, arguments, expected):
    fails(capsys, arguments, expected)


def test_mistakes_about_folders(capsys, images, finished, tmp_path):
    dataset = ["train", "--dataset", f"folder:{images}", *TINY]
    fails(capsys, [*dataset, "--output", str(finished)], "holds a run already; choose another --output")
    (tmp_path / "file").write_text("")
    fails(capsys, [*dataset, "--output", "file"], "not an empty folder")
    fails(capsys, [*dataset, "--output", "file/run"], "cannot create .*file/run")
    fails(capsys, ["train", "--resume", str(finished)], "finished its training, 1 of 1 epochs")
    fails(capsys, ["train", "--resume", str(finished), "--epochs", "3"], "--schedule constant")
    fails(capsys, ["evaluate", str(finished), "--dataset", "digits"], "10 classes")
    fails(capsys, ["evaluate", str(finished), "--batch-size", "0"], "--batch-size must be")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_unreadable_image(capsys, images, tmp_path, workers):
    broken = tmp_path / "images"
    shutil.copytree(images, broken)
    file = broken / "train" / "2" / "5.png"
    file.write_bytes(file.read_bytes()[:60])
    arguments = ["train", "--dataset", f"folder:{broken}", "--workers", workers, *TINY, "--output", "run"]
    fails(capsys, arguments, r"error: cannot read image .*2/5\.png: .*; repair or remove it$")


def test_debug_shows_where(monkeypatch):
    with pytest.raises(ValueError, match="no such run"):
        main(["evaluate", "none", "--debug"])
    monkeypatch.setenv("MANIFOLD_RESNET_DEBUG", "1")
    with pytest.raises(ValueError, match="no such run"):
        main(["evaluate", "none"])


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["evaluate", "-h"], ["--version"]])
def test_help(capsys, arguments):
    assert main(arguments) == 0
    assert "manifold-resnet" in capsys.readouterr().out


def test_help_names_every_setting(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for flag in (
        "--dataset",
        "--model",
        "--learnable-c",
        "--max-distance",
        "--resume",
        "--config",
        "--schedule",
    ):
        assert flag in text
    assert text.count("(default: ") > 10


def test_missing_extra(capsys, monkeypatch):
    real = builtins.__import__

    def without_lightning(name, *given, **named):
        if name.partition(".")[0] == "lightning":
            raise ModuleNotFoundError("No module named 'lightning'", name="lightning")
        return real(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", without_lightning)
    for name in [name for name in sys.modules if re.match(r"manifold_resnet\.(data|training|plotting)", name)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("manifold_resnet.training", raising=False)
    assert main(["train"]) == 2
    assert capsys.readouterr().err == (
        'manifold-resnet: error: lightning is not installed; this needs: pip install "manifold-resnet[train]"\n'
    )


def test_importing_needs_no_extra():
    code = (
        "import sys, manifold_resnet, manifold_resnet.cli, manifold_resnet.optim\n"
        "found = {'lightning', 'torchvision', 'sklearn', 'matplotlib', 'yaml'} & set(sys.modules)\n"
        "sys.exit(str(found) if found else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_module_can_be_run():
    command = [sys.executable, "-m", "manifold_resnet", "evaluate", "none"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch("manifold-resnet: error: no such run: .*none\n", result.stderr)

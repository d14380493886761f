"""Training in several processes: the same run as in one with the joint batch."""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import geoopt
import lightning
import pytest
import torch
import torch.distributed as dist

from manifold_resnet._errors import UserError
from manifold_resnet.data.images import EpochShuffle, SharedBatches
from manifold_resnet.training import Config, TrainingInterrupted, load_run, resume, train
from manifold_resnet.training.callbacks import read_metrics
from manifold_resnet.training.processes import Processes, _results, in_use, processes_of

# 17 images over two processes are 8 and 9; the curvature is trained too
SETTINGS = {
    "model": "hyperbolic-2-2-2-resnet-8", "epochs": 3, "batch_size": 17, "train_fraction": 0.06, "accumulate": 2,
    "precision": "64", "device": "cpu", "learnable_c": True, "max_grad_norm": 1.0,
}  # fmt: skip


class Watch(lightning.Callback):
    """Check that parameters stay what they are, and equal in all processes; Ctrl-C in an epoch (counted from 1)."""

    def __init__(self, stop=None):
        self.stop = stop

    def on_train_epoch_end(self, trainer, module):
        weights = [p for p in module.parameters() if isinstance(p, geoopt.ManifoldParameter)]
        assert len(weights) > 10
        values = torch.cat([t.detach().as_subclass(torch.Tensor).flatten() for t in module.state_dict().values()])
        if trainer.world_size > 1:
            own, first = values.clone(), values.clone()
            dist.broadcast(first, src=0)
            assert torch.equal(own, first)

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.current_epoch + 1 == self.stop and index == 1:
            raise KeyboardInterrupt


def test_two_processes_give_the_run_of_one(tmp_path):
    """Launched, interrupted in the second epoch, and carried on by torchrun from the command line."""
    whole = train(Config(**SETTINGS), tmp_path / "whole", progress=False)
    with pytest.raises(TrainingInterrupted) as stopped:
        train(Config(**SETTINGS, devices=2), tmp_path / "run", progress=False, callbacks=[Watch(stop=2)])
    folder = stopped.value.folder
    assert len(read_metrics(folder / "metrics.csv")) == 1
    assert (folder / "curves.png").exists()
    with pytest.raises(UserError, match="over all 32 processes"):
        resume(folder, devices=32, progress=False)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    finished = subprocess.run(
        [*command, "-m", "manifold_resnet", "train", "--resume", str(folder)],
        capture_output=True, text=True, timeout=600, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert finished.stdout.count("test accuracy") == finished.stdout.count("run folder") == 1
    for left, right in zip(read_metrics(whole / "metrics.csv"), read_metrics(folder / "metrics.csv"), strict=True):
        assert {**right, "seconds": 0} == pytest.approx({**left, "seconds": 0}, abs=1e-6)
    first, second = (load_run(run, "last")[0].state_dict() for run in (whole, folder))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-6, rtol=0)  # the loss itself is taken in float32
    results = [json.loads((run / "test.json").read_text()) for run in (whole, folder)]
    assert results[0]["images"] == results[1]["images"] == 360
    assert results[1]["test_accuracy"] == results[0]["test_accuracy"]
    assert not list(folder.rglob("*.partial"))
    assert len(list((folder / "tensorboard").glob("events*"))) == 2  # one file each time


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [5, 11, 23])
def test_processes_share_each_batch(length, processes):
    def batches(rank=0, processes=1):
        order = EpochShuffle(length, seed=1)
        order.set_epoch(4)
        return list(SharedBatches(order, 10, length >= 10, rank, processes))

    shares = [batches(rank, processes) for rank in range(processes)]
    assert {len(share) for share in shares} == {len(batches())}
    for step, whole in enumerate(batches()):
        assert [image for share in shares for image in share[step]] == whole
        sizes = [len(share[step]) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_too_few_images_for_the_processes():
    with pytest.raises(UserError, match="batches of 2 training images can't be shared among 3"):
        SharedBatches(EpochShuffle(2, 0), 10, False, 0, 3)


@pytest.mark.parametrize("processes", [1, 2, 7])
@pytest.mark.parametrize("stage", ["val", "test"])
def test_each_image_is_measured_once(stage, processes):
    class Trainer:
        world_size = processes

        def __init__(self, rank):
            self.global_rank = rank

    data = Config(train_fraction=0.2, batch_size=16).open_data()
    data.setup()
    seen = []
    for rank in range(processes):
        data.trainer = Trainer(rank)
        loader = getattr(data, f"{stage}_dataloader")()
        assert loader.batch_size == -(-16 // processes)
        seen += list(loader.sampler)
    assert seen == list(range(len(getattr(data, stage))))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"batch_size": 3}, "--batch-size 3 .* over all 4 processes"),
        ({"mean": "frechet"}, "--mean frechet can't be synchronised"),
        ({"model": "euclidean-2-2-2-resnet-8"}, "needs GPUs"),
    ],
)
def test_what_several_processes_do_not_do(tmp_path, other, message):
    config = Config(device="cpu", devices=2, num_nodes=2, **other)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_several_machines_have_to_know_where_to_meet(tmp_path, monkeypatch):
    for name in ("MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(UserError, match="--num-nodes 2 needs MASTER_PORT and NODE_RANK in the environment"):
        train(Config(device="cpu", num_nodes=2), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_torchrun_says_how_many(monkeypatch):
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    config = Config(device="cpu").resolved()
    found = processes_of(config)
    assert found == Processes(5, 6, 2, 3)
    assert (found.nodes, found.first) == (2, False)
    assert (in_use(config, found).devices, in_use(config, found).num_nodes) == (3, 2)
    with pytest.raises(UserError, match="--devices 4 does not fit torchrun, which started 3"):
        processes_of(Config(device="cpu", devices=4).resolved())


@pytest.mark.parametrize("how", ["error", "exit"])
def test_a_failing_process_stops_the_others(how):
    context = multiprocessing.get_context("spawn")
    waits, fails = context.Pipe(), context.Pipe()
    if how == "error":
        failing = context.Process(target=fails[1].send, args=((None, OSError("no space"), "where"),))
    else:
        failing = context.Process(target=os._exit, args=(3,))
    workers = {fails[0]: failing, waits[0]: context.Process(target=waits[1].recv)}
    for worker in workers.values():
        worker.start()
    waits[1].close(), fails[1].close()
    started = time.monotonic()
    with pytest.raises((OSError, RuntimeError), match={"error": "no space", "exit": "exit code 3"}[how]):
        _results(workers)
    assert time.monotonic() - started < 60
    for worker in workers.values():
        worker.join(10)
        assert not worker.is_alive()

"""Checkpoints from elsewhere on disk: read safely, converted, read back; and clear errors on the command line."""

import sys
import types

import pytest
import torch
from helpers import assert_close
from reference_data import REFERENCE, images, weights

from manifold_resnet._errors import UserError
from manifold_resnet.cli import main
from manifold_resnet.models import convert_checkpoint, create_model, load_model, load_reference_state_dict


def state(case):
    about = REFERENCE[case]
    return weights(about["shapes"], gain=about["gain"], c=about["c"] or 1.0)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "theirs.pth"
    torch.save(state("authors-hyperbolic"), path)
    return path


@pytest.mark.parametrize("case", ["authors-hyperbolic", "authors-euclideanwhypclass", "authors-euclidean"])
def test_convert_and_load(case, tmp_path, capsys):
    """The command's file computes what their code did."""
    checkpoint, out = tmp_path / "theirs.pth", tmp_path / "new" / "out.pt"
    torch.save({"last_model_state": state(case), "last_avg_metrics": {"top1": 90.0}}, checkpoint)
    assert main(["convert", str(checkpoint), "-o", str(out), "--compat", "authors"]) == 0
    said = capsys.readouterr().out
    assert "of the authors' code" in said
    assert ("computes the same" in said) is (case != "authors-hyperbolic")
    assert str(out) in said
    expected = torch.tensor(REFERENCE[case]["logits"]).view(2, 5)
    assert_close(load_model(out)(images(2, 3, 32, 32)).detach(), expected, 1e-5)
    assert [p.name for p in out.parent.iterdir()] == ["out.pt"]


def test_options(checkpoint, tmp_path, capsys):
    out = tmp_path / "out.pt"
    arguments = ["--weight-on", "ball", "--mean", "frechet", "--source", "authors", "--c", "0.2"]
    assert main(["convert", str(checkpoint), "-o", str(out), *arguments]) == 0
    said = capsys.readouterr().out
    assert "c = 0.2" in said
    assert "- residual connections add along the channels here" in said
    model = load_model(out)
    assert model.compat is None
    assert model.bn.mean == "frechet"
    assert model.conv.weight_on == "ball"
    direct = create_model("hyperbolic-4-6-8-resnet-8", 5, variant="paper", weight_on="ball", mean="frechet")
    load_reference_state_dict(direct, state("authors-hyperbolic"), c=0.2)
    for a, b in zip(model.state_dict().values(), direct.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_hypll_objects_are_read_without_hypll(tmp_path):
    """A file that holds HypLL's tensors with their manifolds; nothing of HypLL is imported."""
    kinds = {}
    modules = {
        "ManifoldTensor": "hypll.tensors.manifold_tensor",
        "Euclidean": "hypll.manifolds.euclidean.manifold",
    }
    for name, module in modules.items():
        kinds[name] = type(name, (), {"__module__": module, "__qualname__": name})
        parts = module.split(".")
        for i in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        setattr(sys.modules[module], name, kinds[name])

    def wrap(tensor):
        value = kinds["ManifoldTensor"]()
        value.__dict__ = {"tensor": tensor, "manifold": kinds["Euclidean"](), "man_dim": 0}
        return value

    plain = state("hypll-network")
    path = tmp_path / "hypll.pth"
    try:
        torch.save({k: wrap(v) if k.endswith(("weights", ".z")) else v for k, v in plain.items()}, path)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "hypll"]:
            del sys.modules[name]
    if not hasattr(torch.serialization, "safe_globals"):
        with pytest.raises(UserError, match="save {k: getattr"):
            convert_checkpoint(path, tmp_path / "out.pt")
        return
    model, conversion = convert_checkpoint(path, tmp_path / "out.pt")
    assert conversion.source == "hypll"
    assert model.bn.mean == "frechet"  # HypLL's default
    assert_close(model.conv.normals().flatten(1).t().detach(), plain["conv.weights"], 0.0)
    assert "hypll" not in sys.modules


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no checkpoint", "cannot read .*theirs.pth: it must be a file that torch.save wrote"),
        (Malicious(), "cannot read .*theirs.pth"),
        ([1, 2], "holds no state dict: state_dict must be a mapping"),
        ({"epoch": 3}, "holds no state dict: epoch must be a tensor, got int"),
        ({"a": torch.zeros(2)}, "cannot convert .*: it is neither of the authors' code nor of HypLL; it begins with a"),
        ({"conv.weights": torch.zeros(27, 4), "bn.norm.mean": torch.zeros(4)}, "no network of three groups"),
    ],
    ids=["text", "code", "list", "numbers", "stranger", "no groups"],
)
def test_files_that_are_none(content, message, tmp_path, capsys):
    path, out = tmp_path / "theirs.pth", tmp_path / "out.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        convert_checkpoint(path, out)
    assert main(["convert", str(path), "-o", str(out)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "executed" not in said.out
    assert not out.exists()


def test_wrong_arguments(checkpoint, tmp_path, capsys):
    out = tmp_path / "out.pt"
    for arguments, message in (
        ([str(tmp_path / "none.pth"), "-o", str(out)], "no such file"),
        ([str(checkpoint)], "required: -o/--output"),
        ([str(checkpoint), "-o", str(out), "--source", "hypll"], "of the authors' code, not of HypLL"),
        ([str(checkpoint), "-o", str(out), "--c", "-1"], "c must be positive"),
        ([str(checkpoint), "-o", str(checkpoint)], "exists; choose another name"),
    ):
        assert main(["convert", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()
    groups = dict(state("authors-hyperbolic"))
    torch.save({k: v for k, v in groups.items() if not k.startswith("fc.bias") and "bn2" not in k}, checkpoint)
    assert main(["convert", str(checkpoint), "-o", str(out)]) == 2
    assert "lacks group1.0.bn2.norm.mean" in capsys.readouterr().err


def test_damaged_models(checkpoint, tmp_path):
    out = tmp_path / "out.pt"
    convert_checkpoint(checkpoint, out)
    for content in (out.read_bytes()[:-500], b""):
        out.write_bytes(content)
        with pytest.raises(UserError, match="out.pt is damaged, or was not written by manifold-resnet convert"):
            load_model(out)
    with pytest.raises(UserError, match="not written by manifold-resnet convert"):
        load_model(checkpoint)
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path / "none.pt")


@pytest.mark.parametrize("compat", [[], ["--compat", "authors"]], ids=["ours", "compat"])
def test_from_their_checkpoint_to_evaluate(compat, tmp_path, capsys):
    """With the images named, norms get their statistics, and the file is one that the commands take."""
    pytest.importorskip("lightning")
    from image_folders import write_digits

    from manifold_resnet.training import load_run

    shapes = dict(REFERENCE["authors-hyperbolic"]["shapes"])
    shapes |= {"conv.weights": [9, 4], "fc.z": [8, 3], "fc.bias": [3]}
    checkpoint, out = tmp_path / "theirs.pth", tmp_path / "out.ckpt"
    torch.save(weights(shapes), checkpoint)
    folder = f"folder:{write_digits(tmp_path / 'images', size=32)}"
    arguments = ["convert", str(checkpoint), "-o", str(out), "--dataset"]
    assert main([*arguments, "digits", *compat]) == 2
    assert "10 classes and 1 channels, the network 3 and 1" in capsys.readouterr().err
    assert main([*arguments, folder, *compat]) == 0
    said = capsys.readouterr().out
    assert "update_bn" not in said
    assert f"manifold-resnet evaluate {out}" in said
    assert main(["evaluate", str(out)]) == 0
    assert "of 12 images" in capsys.readouterr().out
    model, config = load_run(out)
    assert config.images["mean"] == config.images["std"] == [0.5]
    assert (config.compat, model.compat) == (("authors", "authors") if compat else (None, None))
    assert int(model.bn.num_batches_tracked) == (0 if compat else 1)
    x = images(3, 1, 32, 32)
    assert torch.equal(load_model(out)(x), model(x))

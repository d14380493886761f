from dataclasses import fields, replace

import pytest

from manifold_resnet._errors import UserError
from manifold_resnet.data import DATASETS
from manifold_resnet.training import Config
from manifold_resnet.training.module import Classifier


def test_yaml_round_trip(tmp_path):
    config = Config(c=0.5, learnable_c=True, activation="none", lr=1e-3, precision=64).resolved()
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml("a comment"))
    assert Config.from_dict(Config.read_dict(file)) == config
    assert config.precision == "64"


def test_strings_become_what_they_stand_for():
    config = Config(epochs="3", lr="1e-2", c="1")
    assert (config.epochs, config.lr, config.c) == (3, 0.01, 1.0)
    assert isinstance(config.epochs, int)


@pytest.mark.parametrize("name", DATASETS)
def test_the_data_set_fills_in_what_is_left_open(name):
    config = Config(dataset=name).resolved()
    assert None not in (config.epochs, config.batch_size, config.lr, config.weight_decay, config.augment)
    assert Config(dataset=name, epochs=7).resolved().epochs == 7


def test_resolved_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(dataset="folder:photos").resolved()
    assert config.dataset == f"folder:{tmp_path / 'photos'}"
    assert config.data_dir == str(tmp_path / "data")
    assert config.resolved() == config


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("c", 0),
        ("c", -1),
        ("c", "nan"),
        ("c", "big"),
        ("c", True),
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", "many"),
        ("image_size", 4),
        ("train_fraction", 0),
        ("train_fraction", 1.5),
        ("val_fraction", 1),
        ("val_fraction", -0.1),
        ("weight_decay", -1),
        ("seed", -1),
        ("workers", -1),
        ("lr", "inf"),
        ("max_distance", 0),
        ("optimizer", "lion"),
        ("schedule", "step"),
        ("device", "tpu"),
        ("precision", "16"),
        ("augment", "mixup"),
        ("learnable_c", "perhaps"),
        ("model", ""),
        ("epochs", [1]),
        ("optimizer", None),
        ("second_moment", "matrix"),
        ("momentum", 1),
        ("momentum", -0.1),
        ("nesterov", "yes"),
        ("amsgrad", None),
        ("decoupled_weight_decay", 1),
        ("max_grad_norm", 0),
    ],
)
def test_bad_values_name_the_option_and_the_value(setting, value):
    flag = "--" + setting.replace("_", "-")
    with pytest.raises(UserError, match=f"^{flag} must be .*, got "):
        Config(**{setting: value})


def test_unknown_data_set():
    with pytest.raises(UserError, match="unknown data set 'imagenet'"):
        Config(dataset="imagenet")


def test_unknown_setting_gets_a_hint():
    with pytest.raises(UserError, match=r"file\.yaml has an unknown setting 'epoch'; did you mean epochs\?"):
        Config.from_dict({"epoch": 3}, "file.yaml")


def test_settings_may_be_written_as_options():
    assert Config.from_dict({"batch-size": 7}).batch_size == 7


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [1\n", "just text"])
def test_files_that_are_no_settings(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="setting: value"):
        Config.read_dict(file)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        Config.read_dict(tmp_path / "none.yaml")


def test_models_need_to_know_the_images():
    with pytest.raises(UserError, match="open the data first"):
        Config().create_model()


def images(classes=2, channels=1):
    return {"classes": list("ab"), "channels": channels, "size": [8, 8], "mean": [0.5], "std": [0.2]}


@pytest.mark.parametrize(
    "options",
    [
        {"model": "hyperbolic-4-4-4-resnet-9"},
        {"variant": "unheard-of"},
        {"init": "unheard-of"},
        {"model": "euclidean-4-4-4-resnet-8", "head": "mlr"},
    ],
)
def test_models_that_do_not_exist(options):
    with pytest.raises(UserError, match="^cannot build"):
        Config(**({"model": "hyperbolic-4-4-4-resnet-8"} | options), images=images()).create_model()


def test_options_reach_the_model():
    model = Config(
        model="hyperbolic-4-4-4-resnet-8", c=2.0, learnable_c=True, activation="none", images=images()
    ).create_model()
    assert float(model.ball.c.detach()) == pytest.approx(2.0)
    assert model.ball.isp_c.requires_grad
    assert model.relu is None


def test_every_setting_is_described():
    for setting in fields(Config):
        assert setting.name == "images" or setting.metadata["help"]


def test_resolved_settings_outlive_other_defaults():
    assert Config().resolved().init == "gaussian"
    paper = Config(variant="paper").resolved()
    assert (paper.init, paper.scale, paper.head, paper.weight_on) == ("paper", "scalar", "fc", "tangent")
    assert Config(variant="paper", init="normal").resolved().init == "normal"
    assert Config(model="euclidean-4-4-4-resnet-8").resolved().init is None


@pytest.mark.parametrize(
    ("settings", "c"),
    [
        ({"dataset": "cifar10"}, 0.025),
        ({"dataset": "cifar10", "variant": "paper"}, 0.1),
        ({"dataset": "cifar10", "model": "euclideanwhypclass-4-4-4-resnet-8"}, 0.025),
        ({"dataset": "digits"}, 0.1),
        ({"dataset": "digits", "c": 2.0}, 2.0),
        ({"dataset": "digits", "model": "euclidean-4-4-4-resnet-8"}, None),
    ],
    ids=str,
)
def test_curvature_by_data_set_and_variant(settings, c):
    assert Config(**settings).resolved().c == c


def test_runs_that_did_not_record_the_curvature_keep_it(tmp_path):
    values = {"dataset": "cifar10", "model": "hyperbolic-4-4-4-resnet-8", "c": None, "images": images()}
    stored = Config.from_dict(values)
    assert (stored.resolved().c, stored.resolved().bias) == (0.1, True)
    assert float(stored.create_model().ball.c) == pytest.approx(0.1)
    (tmp_path / "config.yaml").write_text(stored.to_yaml().replace("c: 0.1", "c: null"))
    read = Config.read_dict(tmp_path / "config.yaml")
    assert (read["c"], "images" in read) == (0.1, False)


def test_the_twin_of_a_euclidean_run_gets_the_usual_curvature(tmp_path):
    euclidean = Config(dataset="cifar10", model="euclidean-4-4-4-resnet-8").resolved()
    (tmp_path / "config.yaml").write_text(replace(euclidean, images=images()).to_yaml())
    twin = Config.from_dict({**Config.read_dict(tmp_path / "config.yaml"), "model": "hyperbolic-4-4-4-resnet-8"})
    assert (twin.resolved().c, twin.resolved().bias) == (0.025, False)


def test_settings_of_one_optimizer_are_refused_by_the_other():
    with pytest.raises(UserError, match="--second-moment is a setting of --optimizer adam, not of sgd"):
        Config(optimizer="sgd", second_moment="coordinate")
    with pytest.raises(UserError, match="--amsgrad is a setting of --optimizer adam"):
        Config(optimizer="sgd", amsgrad=True)
    with pytest.raises(UserError, match="--nesterov is a setting of --optimizer sgd"):
        Config(nesterov=True)
    with pytest.raises(UserError, match="--nesterov needs --momentum above 0"):
        Config(optimizer="sgd", nesterov=True, momentum=0)


def test_settings_of_older_runs_load():
    values = Config().to_dict()
    for name in ("second_moment", "momentum", "nesterov", "amsgrad", "decoupled_weight_decay", "max_grad_norm"):
        del values[name]
    assert Config.from_dict(values) == Config()


class Trainer:
    estimated_stepping_batches = 10


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"amsgrad": False, "decoupled_weight_decay": False, "max_grad_norm": None}),
        ({"second_moment": "coordinate", "amsgrad": True}, {"second_moment": "coordinate", "amsgrad": True}),
        ({"decoupled_weight_decay": True, "max_grad_norm": 2}, {"decoupled_weight_decay": True, "max_grad_norm": 2.0}),
        ({"optimizer": "sgd", "schedule": "constant"}, {"momentum": 0.9, "nesterov": False}),
        ({"optimizer": "sgd", "momentum": 0.5, "nesterov": True}, {"momentum": 0.5, "nesterov": True}),
        ({"optimizer": "sgd", "max_grad_norm": 1}, {"max_grad_norm": 1.0}),
    ],
)
def test_settings_reach_the_optimizer(settings, expected):
    config = Config(model="hyperbolic-2-2-2-resnet-8", images=images(), **settings).resolved()
    classifier = Classifier(config.to_dict())
    classifier._trainer = Trainer()
    made = classifier.configure_optimizers()["optimizer"]
    assert all(expected.items() <= group.items() for group in made.param_groups)

import configparser
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_package_is_installed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(config["options"]["packages"].split())
    found = {".".join(init.parent.relative_to(ROOT).parts) for init in ROOT.glob("manifold_resnet/**/__init__.py")}
    optim = {
        "manifold_resnet." + ".".join(init.parent.relative_to(ROOT).parts) for init in ROOT.glob("optim/**/__init__.py")
    }
    assert listed == found | optim

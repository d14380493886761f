import configparser
import subprocess
import sys
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


def test_importing_needs_no_extras_and_leaves_experiments_alone():
    code = (
        "import sys; sys.modules.update(matplotlib=None, lightning=None, sklearn=None, torchvision=None); "
        "import manifold_resnet.optim, manifold_resnet.optim.check, manifold_resnet.optim.describe, "
        "manifold_resnet.optim.monitor; "
        "sys.exit('manifold_resnet.optim.experiments' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

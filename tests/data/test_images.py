import numpy as np
import pytest
import torch
from image_folders import CLASSES, write_digits
from PIL import Image

from manifold_resnet._errors import UserError
from manifold_resnet.data import ImageData, ImageFacts
from manifold_resnet.data.images import balanced_share


def opened(dataset="digits", **options):
    data = ImageData(dataset, **options)
    data.setup()
    return data


@pytest.fixture(scope="module")
def gray(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("gray"))


def batches(data, epoch):
    loader = data.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(epoch)
    return [images for images, _ in loader]


def test_digits():
    data = opened()
    facts = data.facts
    assert facts.classes == [str(digit) for digit in range(10)]
    assert (facts.channels, facts.size) == (1, [8, 8])
    assert len(data.train) + len(data.val) + len(data.test) == 1797
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape[1:] == (1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert not set(data.train.chosen) & set(data.val.chosen)


def test_normalised_by_the_training_images():
    data = opened(augment="none", batch_size=2000)
    images, _ = next(iter(data.train_dataloader()))
    # facts are rounded to four digits
    assert abs(images.mean()) < 1e-3
    assert abs(images.std() - 1) < 1e-3


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("1", 1)])
def test_channels_of_a_folder(tmp_path, mode, channels):
    root = write_digits(tmp_path, train=4, test=2, mode=mode)
    data = opened(f"folder:{root}", val_fraction=0.25)
    assert data.facts.channels == channels
    assert data.facts.classes == list(CLASSES)
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (9, channels, 8, 8)


def test_one_colour_image_makes_a_set_colourful(tmp_path):
    root = write_digits(tmp_path, train=4, test=2)
    file = root / "train" / "1" / "2.png"
    Image.open(file).convert("RGB").save(file)
    data = opened(f"folder:{root}")
    assert data.facts.channels == 3
    assert all(images.shape[1] == 3 for images in batches(data, 0))


def test_val_folder_chooses_and_test_folder_tests(tmp_path):
    root = write_digits(tmp_path, train=5, test=2, val=3)
    data = opened(f"folder:{root}")
    assert (len(data.train), len(data.val), len(data.test)) == (15, 9, 6)


def test_val_folder_alone_is_the_test_set(tmp_path):
    root = write_digits(tmp_path, train=10, test=0, val=3)
    data = opened(f"folder:{root}")
    assert (len(data.train), len(data.val), len(data.test)) == (27, 3, 9)


def test_no_validation(gray):
    data = opened(f"folder:{gray}", val_fraction=0)
    assert data.val is None
    assert data.val_dataloader() == []
    assert len(data.train) == 36


def test_fractions_are_balanced_and_seeded():
    whole = opened(seed=3)
    part, again, other = (opened(train_fraction=0.2, val_fraction=0.25, seed=seed) for seed in (3, 3, 4))
    assert len(part.train) + len(part.val) == pytest.approx(0.2 * (len(whole.train) + len(whole.val)), abs=10)
    counts = np.bincount(part.train.images.targets[part.train.chosen])
    assert counts.max() - counts.min() <= 1
    assert np.array_equal(part.train.chosen, again.train.chosen)
    assert not np.array_equal(part.train.chosen, other.train.chosen)


def test_balanced_share_takes_of_every_class():
    targets = np.array([0] * 100 + [1] * 10 + [2])
    chosen = balanced_share(targets, 0.1, seed=0)
    assert np.bincount(targets[chosen]).tolist() == [10, 1, 1]
    assert np.array_equal(chosen, np.unique(chosen))


def test_order_and_augmentation_depend_on_seed_and_epoch_alone():
    first, second, other = opened(seed=1), opened(seed=1), opened(seed=2)
    torch.manual_seed(0)
    reference = batches(first, 5)
    torch.manual_seed(1)
    assert all(map(torch.equal, reference, batches(second, 5)))
    assert not torch.equal(reference[0], batches(first, 6)[0])
    assert not torch.equal(reference[0], batches(other, 5)[0])


def test_workers_change_nothing(gray):
    alone, helped = (opened(f"folder:{gray}", batch_size=8, workers=workers) for workers in (0, 2))
    assert all(map(torch.equal, batches(alone, 2), batches(helped, 2)))


def test_augmentation_leaves_the_global_random_numbers_alone():
    data = opened()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    data.train[(0, 0)]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("augment", ["crop-flip", "crop", "none"])
def test_augmentation_changes_training_images_only(augment):
    data = opened(augment=augment)
    views = torch.stack([data.train[(epoch, 0)][0] for epoch in range(12)])
    assert (len(views.unique(dim=0)) > 1) == (augment != "none")
    assert torch.equal(data.val[0][0], data.val[0][0])


def test_facts_of_an_earlier_run_are_used():
    facts = ImageFacts([str(digit) for digit in range(10)], 3, [8, 8], [0.5] * 3, [0.25] * 3)
    data = ImageData("digits", facts=facts)
    data.setup("test")
    assert data.train is None  # evaluation does not need the training images
    image, _ = data.test[0]
    assert image.shape == (3, 8, 8)
    assert image.min() == -2


def test_image_size_resizes_and_cuts(tmp_path):
    root = write_digits(tmp_path, train=4, test=2)
    file = root / "train" / "0" / "0.png"
    Image.open(file).resize((30, 20)).save(file)
    data = opened(f"folder:{root}", image_size=12)
    assert data.facts.size == [12, 12]
    assert batches(data, 0)[0].shape[2:] == (12, 12)


def test_sizes_need_not_be_square(tmp_path):
    root = write_digits(tmp_path, train=4, test=2)
    for file in root.rglob("*.png"):
        Image.open(file).resize((16, 9)).save(file)
    data = opened(f"folder:{root}")
    assert data.facts.size == [9, 16]
    assert batches(data, 0)[0].shape[2:] == (9, 16)


def test_different_sizes(tmp_path):
    root = write_digits(tmp_path, train=4, test=2)
    file = root / "test" / "0" / "0.png"
    Image.open(file).resize((30, 20)).save(file)
    with pytest.raises(UserError, match=r"0\.png has 20x30 pixels.*--image-size"):
        opened(f"folder:{root}")


def test_too_small(tmp_path):
    root = write_digits(tmp_path, size=7)
    with pytest.raises(UserError, match="too small.*--image-size"):
        opened(f"folder:{root}")


def test_nothing_left_to_train_on(tmp_path):
    root = write_digits(tmp_path, train=1)
    with pytest.raises(UserError, match="too few training images"):
        opened(f"folder:{root}")


def test_classes_of_another_run():
    with pytest.raises(UserError, match="10 classes.*trained on 2"):
        ImageData("digits", facts=ImageFacts(["a", "b"], 1, [8, 8], [0.5], [0.5])).setup("test")

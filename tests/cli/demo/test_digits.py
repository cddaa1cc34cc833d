import torch

from embedl_deploy.cli.demo.digits import DigitsNet, load_digits, predicted, train_digits_net


def test_the_two_parts_hold_all_digits_once() -> None:
    digits = load_digits()

    assert len(digits.train_labels) + len(digits.test_labels) == 1797
    assert digits.test_images.shape[1:] == (1, 16, 16)
    assert (digits.train_images.min(), digits.train_images.max()) == (-1.0, 1.0)


def test_training_learns_the_digits() -> None:
    digits = load_digits()

    model = train_digits_net(digits, epochs=2)

    right = predicted(model, digits.test_images) == digits.test_labels
    assert float(right.float().mean()) > 0.7


def test_the_net_maps_images_to_ten_scores() -> None:
    assert DigitsNet(width=8).eval()(torch.zeros(2, 1, 16, 16)).shape == (2, 10)

"""Lets every test import torchvision, timm and transformers beside a CPU build of torch."""

import pytest
import torch

from embedl_deploy.cli.torchvision_schemas import define_torchvision_schemas

define_torchvision_schemas()
torch.set_num_threads(1)  # the tests run in as many processes as there are cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the printed graphs anew, then read the diff",
    )

"""Lets every test import torchvision, timm and transformers beside a CPU build of torch."""

import torch

from embedl_deploy.cli.torchvision_schemas import define_torchvision_schemas

define_torchvision_schemas()
torch.set_num_threads(1)  # the tests run in as many processes as there are cores

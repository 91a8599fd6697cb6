"""Checkpoints of the tiny random experts, written once per session."""

import pytest

from tests.rewards import tiny_experts


@pytest.fixture(scope="session")
def hps_folder(tmp_path_factory):
    return tiny_experts.write_open_clip_folder(tmp_path_factory.mktemp("hps"))


@pytest.fixture(scope="session")
def git_folder(tmp_path_factory):
    return tiny_experts.write_git_folder(tmp_path_factory.mktemp("git"))


@pytest.fixture(scope="session")
def orm_folder(tmp_path_factory):
    return tiny_experts.write_orm_folder(tmp_path_factory.mktemp("orm"))


@pytest.fixture(scope="session")
def grounding_dino_folder(tmp_path_factory):
    return tiny_experts.write_grounding_dino_folder(tmp_path_factory.mktemp("grounding_dino"))


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory):
    return tiny_experts.write_blip_folder(tmp_path_factory.mktemp("blip"))

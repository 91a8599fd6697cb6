"""A rehearsal from beginning to end: every role of the 1B recipe in a reduced size, and what it says about them."""

from pathlib import Path

import pytest

from t2ir1_ray import train
from tests.system.runs import assert_rehearsed

pytestmark = pytest.mark.slow
SMALLER = ("data.prompts_per_step=2", "rollout.prompts_per_call=1", "rollout.group_size=4")


def test_a_rehearsal_says_what_every_role_did_and_leaves_nothing(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(["--config", "janus_pro_1b", "--rehearse-scale", "0.05", f"journal.root={tmp_path}", *SMALLER])
    said = capsys.readouterr().out
    assert_rehearsed(said, rollouts=2)
    assert list(tmp_path.iterdir()) == []

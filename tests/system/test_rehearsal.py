"""A rehearsal from beginning to end: every role of the 1B recipe in a reduced size, and what it says about them."""

import re
from pathlib import Path

import pytest

from t2ir1_ray import train

pytestmark = pytest.mark.slow
ROLES = {"learner", "rollout", "reference", "expert-hps", "expert-git", "expert-grounding_dino", "expert-orm"}
SMALLER = ("data.prompts_per_step=2", "rollout.prompts_per_call=1", "rollout.group_size=4", "rollout.actors=1")


def test_a_rehearsal_says_what_every_role_did_and_leaves_nothing(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(["--config", "janus_pro_1b", "--rehearse-scale", "0.05", f"journal.root={tmp_path}", *SMALLER])
    said = capsys.readouterr().out
    assert "step 3/3" in said
    heading, *table = said[said.index("\nrehearsal: ") :].strip().splitlines()
    assert re.match(r"rehearsal: \d+\.\d s a step", heading)
    rows = {line.split()[0]: line.split() for line in table if line.split()[0] in ROLES}
    assert rows.keys() == ROLES
    for _, actors, seconds, images, peak, *_ in rows.values():
        assert int(actors) == 1
        assert float(images) > 0
        assert float(peak) > 0.1
        assert float(seconds) < 60
    assert "rollouts" in " ".join(rows["learner"])
    assert "learning" in " ".join(rows["rollout"])
    assert list(tmp_path.iterdir()) == []

"""The layout of bundles: nothing overcommitted, fractions never straddle GPUs."""

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from actors.placement import LEARNER, Role, Room, fitting_plan, homeless, plan, roles
from t2ir1_ray import config

ROLES = st.lists(
    st.builds(
        Role,
        st.uuids().map(str),
        st.integers(1, 4),
        st.sampled_from([0.1, 1.0, 2.0]),
        st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.75, 1.0, 2.0]),
    ),
    max_size=6,
)


@given(ROLES)
def test_every_actor_has_a_bundle_that_holds_it(wanted: list[Role]) -> None:
    layout = plan(wanted)
    used_gpu = [0.0] * len(layout.bundles)
    used_cpu = [0.0] * len(layout.bundles)
    for role in wanted:
        for index in range(role.count):
            bundle = layout.bundle_of[role.name, index]
            used_gpu[bundle] += role.num_gpus
            used_cpu[bundle] += role.num_cpus
    for bundle, gpu, cpu in zip(layout.bundles, used_gpu, used_cpu, strict=True):
        assert gpu <= bundle.get("GPU", 0) + 1e-6
        assert math.isclose(cpu, bundle["CPU"], abs_tol=1e-3)
        assert float(bundle.get("GPU", 0)).is_integer()


def test_eight_three_quarters_take_eight_gpus() -> None:
    layout = plan([Role("a", 8, 1, 0.75)])
    assert [bundle["GPU"] for bundle in layout.bundles] == [1.0] * 8


def test_the_7b_recipe_fits_eight_gpus_and_the_shapes_two_cores() -> None:
    big = plan(roles(config.load("janus_pro_7b")))
    assert math.fsum(bundle.get("GPU", 0) for bundle in big.bundles) == 8
    small = plan(roles(config.load("shapes")))
    assert math.fsum(bundle["CPU"] for bundle in small.bundles) <= 2
    assert not any("GPU" in bundle for bundle in small.bundles)
    several = plan(roles(config.load("janus_pro_7b", ["reference.replicas=3", "reference.num_gpus=1"])))
    assert len({several.bundle_of["reference", index] for index in range(3)}) == 3


@given(ROLES, st.integers(1, 6), st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=4))
def test_learner_ranks_lie_in_as_few_groups_as_nodes_allow(others: list[Role], ranks: int, rooms: list[Room]) -> None:
    wanted = [Role(LEARNER, ranks, 1.0, 1.0), *others]
    found = fitting_plan(wanted, rooms)
    if found is None:
        assert homeless(plan(wanted).bundles, rooms)
        return
    groups = Counter(found.bundle_of[LEARNER, rank] for rank in range(ranks))
    assert all(found.bundles[bundle] == {"CPU": size, "GPU": size} for bundle, size in groups.items())
    assert homeless(found.bundles, rooms) is None
    assert len(groups) == 1 or homeless(plan(wanted, ranks).bundles, rooms)


def test_ranks_are_together_where_a_node_holds_them() -> None:
    seven = roles(config.load("janus_pro_7b"))

    def groups(*rooms: Room) -> list[int]:
        found = fitting_plan(seven, rooms)
        return [int(b["GPU"]) for b in found.bundles if b["GPU"] > 1] if found else []

    assert groups((72, 8)) == groups((40, 4), (40, 4)) == groups((40, 3), (40, 5)) == [4]
    assert groups((40, 3), (40, 3), (40, 2)) == [2, 2]
    assert groups((40, 1), *[(40, 1)] * 7) == []
    assert fitting_plan(seven, [(40, 1)] * 8) == plan(seven)
    assert fitting_plan(seven, [(40, 1)] * 7) is None

"""What actors find in their environment."""

from actors.placement import Role, roles
from actors.spawning import actor_environment
from t2ir1_ray import config


def variables(role: Role, **runtime_env: object) -> dict[str, str]:
    return actor_environment(role, runtime_env)["env_vars"]


def test_a_role_with_a_gpu_has_as_many_threads_as_cpus() -> None:
    """Whatever Ray's node was started with: `ray up` exports OMP_NUM_THREADS=1 to all of its actors."""
    assert variables(Role("learner", 4, 8.0, 1.0))["OMP_NUM_THREADS"] == "8"
    assert variables(Role("rollout", 4, 4.5, 1.0))["OMP_NUM_THREADS"] == "4"
    assert variables(Role("reference", 1, 0.5, 0.2))["OMP_NUM_THREADS"] == "1"
    assert variables(Role("expert-mine", 1, 2.0, 0.2), env_vars={"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"
    assert variables(Role("learner", 1, 8.0, 0.0))["OMP_NUM_THREADS"] == "1"  # the embedded world's models are tiny


def test_the_recipes_ask_for_threads_where_there_is_work_for_them() -> None:
    for name, cores in (("janus_pro_7b", 96), ("janus_pro_1b", 32)):
        wanted = {role.name: role for role in roles(config.load(name))}
        assert min(wanted["learner"].num_cpus, wanted["rollout"].num_cpus) >= 4
        assert sum(role.count * role.num_cpus for role in wanted.values()) <= cores

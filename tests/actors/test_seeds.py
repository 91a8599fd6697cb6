"""Seeds are a function of what tells two draws apart, and of nothing else."""

from itertools import product

from actors.sampling import Sampling, sample_seed


def sampling(seed: int, stream: str) -> Sampling:
    return Sampling(group_size=8, temperature=1.0, guidance=1.0, seed=seed, stream=stream)


def test_seeds_differ_wherever_the_draw_differs() -> None:
    streams = ["step 1", "step 11", "step 1, round 1", "step 1, round 2", "heldout T=1", "heldout T=0", "generate"]
    ids = ["0", "1", "11", "0/1", "1/0", "a", "a/1", "", "/"]
    keys = list(product((0, 1, 11), streams, ids, (0, 1, 10)))
    seeds = {sample_seed(sampling(seed, stream), prompt, number) for seed, stream, prompt, number in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_do_not_depend_on_how_a_group_is_drawn() -> None:
    one = Sampling(group_size=2, temperature=0.5, guidance=5.0, seed=3, stream="step 1")
    assert sample_seed(one, "a", 1) == sample_seed(sampling(3, "step 1"), "a", 1)

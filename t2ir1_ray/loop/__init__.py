"""The halves of a step: collecting rollouts and scores ahead of or with the learner, and what is learned from them."""

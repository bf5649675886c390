"""The choice of the next token."""

import pytest
import torch

from sft.errors import ModelError
from sft.sampling import Chooser, Sampling


def test_a_seed_chooses_the_same_tokens_again_and_another_chooses_others():
    logits = torch.linspace(0, 3, 50)

    def tokens(seed):
        choose = Chooser(Sampling(temperature=1.0, seed=seed))
        return [choose(logits) for _ in range(20)]

    assert tokens(1) == tokens(1) != tokens(2)


def test_only_the_likeliest_tokens_up_to_a_share_are_chosen():
    choose = Chooser(Sampling(temperature=1.0, top_p=0.6))
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert {choose(logits) for _ in range(200)} == {0, 1}
    least = Chooser(Sampling(temperature=1.0, top_p=0.05))
    assert {least(logits) for _ in range(20)} == {0}


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_weights_that_diverged_are_told_in_words(odd, temperature):
    with pytest.raises(ModelError, match="is no number"):
        Chooser(Sampling(temperature=temperature))(torch.tensor([0.0, odd, 1.0]))

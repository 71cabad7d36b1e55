"""The text that a GPT is trained on is text: words of small letters with one space between them, in their order."""

import numpy as np

from experiments import _branches, _tasks, _text
from experiments.branched_critical_batch_size import Config

LENGTH = 8


def test_pieces_are_the_words_of_the_text_in_their_order():
    pieces = _text.windows(LENGTH)
    assert pieces.shape[1] == LENGTH + 1
    assert (pieces[:-1, -1] == pieces[1:, 0]).all()  # what comes after a piece begins the next
    said = "".join(" abcdefghijklmnopqrstuvwxyz"[symbol] for symbol in pieces[:, :-1].ravel())
    assert "  " not in said
    assert "the assert statement assert statements are a convenient way to insert debugging assertions" in said
    assert len(np.unique(pieces)) == _text.NUM_SYMBOLS


def test_a_tenth_of_the_pieces_is_held_out_and_the_rest_trained_on():
    task, count = _tasks.text(num_seen=10**6), len(_text.windows(_tasks.LENGTH))
    assert len(task.held_out["next"]) == count // 10
    assert len(task.data["next"]) == count - count // 10
    assert (task.data["tokens"][:, 1:] == task.data["next"][:, :-1]).all()


def test_every_problem_has_targets_for_every_optimizer_and_phase():
    for name in Config().tasks:
        setting = _branches.SETTINGS[name]
        assert setting.parts.keys() == setting.rates.keys() == _branches.OPTIMIZERS.keys()
        assert {len(setting.steps), *map(len, setting.parts.values())} == {len(_branches.PHASES)}

"""What branches are measured on: real words in their order, and every problem; what is not true of them is told."""

import numpy as np
import pytest

from experiments import _branches, _harness, _tasks, _text
from experiments.branched_critical_batch_size import Config, check
from jaxsgd import sources
from tests.support.changes import changed

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


@pytest.fixture(scope="module")
def stored():
    return sources.load(_harness.FIGURES / "branched_critical_batch_size.npz")


def test_what_is_stored_is_of_every_problem(stored):
    config, (names, counts) = Config(), np.unique(stored["task"], return_counts=True)
    assert set(names) == set(config.tasks)
    assert set(counts) == {len(_branches.OPTIMIZERS) * config.num_seeds * config.num_phases}
    np.testing.assert_array_equal(np.unique(stored["sizes"], axis=0), [config.batch_sizes])


@pytest.mark.parametrize(
    ("rows", "factor", "message"),
    [
        pytest.param([-1], 1000, "later on with AdamW a pooled noise scale must be below", marks=pytest.mark.slow),
        ([-2, -5, -8, -11, -14], 4, "later on with AdamW a pooled noise scale must be below"),
        ([-17, -20, -23, -26, -29], 4, "before late with SGD a pooled noise scale must be within"),
        pytest.param(
            [-15, -12, -9, -6, -3], 4, "early with AdamW a pooled noise scale must be within", marks=pytest.mark.slow
        ),
        pytest.param(
            [-16, -19, -22, -25, -28], 10, "a pooled noise scale must be within a factor of 10", marks=pytest.mark.slow
        ),
    ],
    ids=["one seed late", "AdamW, middle", "SGD, middle", "AdamW, early", "SGD, late"],
)
def test_a_noise_scale_on_text_that_is_off_is_told(rows, factor, message, stored):
    assert set(stored["task"][rows]) == {"text"}
    larger = changed(rows, lambda parts: parts * [factor, 1.0])(stored["parts of simple"])
    with pytest.raises(_harness.UnconfirmedError, match=message):
        check(stored | {"parts of simple": larger})

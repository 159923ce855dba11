"""Every sample is seen as often as it should be, by one worker, and a resumed run sees what the first would have."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pthnet.errors import ModelError
from tasks.frame_schedule import FrameSchedule, class_balance


def schedule(n=40, **kwargs):
    return FrameSchedule(train=np.arange(100, 100 + n), **kwargs)


def seen(plan, epoch, *, training=True):
    pages = [page for page in plan.pages() if page.epoch == epoch and page.training == training]
    return [int(i) for page in pages for batch, _ in plan.batches(page) for i in batch]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(6, 90),
    batch=st.integers(1, 3),
    world=st.integers(1, 2),
    pages=st.integers(1, 5),
    v=st.integers(0, 30),
)
def test_an_epoch_shows_each_sample_once_and_drops_less_than_one_batch_of_every_worker(n, batch, world, pages, v):
    plans = [
        schedule(
            n, validation=np.arange(v), batch_size=batch, world=world, rank=rank, page_batches=pages, epochs=2, seed=n
        )
        for rank in range(world)
    ]
    shown = [i for plan in plans for i in seen(plan, 1)]
    assert len(shown) == len(set(shown)) == n // (batch * world) * batch * world
    assert set(shown) <= set(range(100, 100 + n))
    assert sorted(i for plan in plans for i in seen(plan, 0, training=False)) == list(range(v))
    assert {len(seen(plan, 1)) for plan in plans} == {plans[0].steps(1) * batch}


def test_epochs_differ_and_seeds_repeat():
    plan = schedule(batch_size=4, epochs=2)
    assert seen(plan, 0) != seen(plan, 1)
    assert seen(plan, 0) == seen(schedule(batch_size=4, epochs=2), 0)
    assert seen(plan, 0) != seen(schedule(batch_size=4, seed=1), 0)


def test_a_resumed_run_sees_what_the_first_would_have():
    plan, resumed = schedule(batch_size=4, epochs=3), schedule(batch_size=4, epochs=3, first_epoch=2)
    assert seen(resumed, 2) == seen(plan, 2)
    assert not seen(resumed, 1)
    page = resumed.pages()[0]
    assert (plan.generator(2, 5).random(3) == resumed.generator(2, 5).random(3)).all()
    assert all((a == b).all() for a, b in zip(plan.batches(page)[0], resumed.batches(page)[0], strict=True))


def test_rare_classes_are_seen_as_often_as_the_formula_says():
    labels = np.repeat([0, 1], [97, 3])
    factor = class_balance(labels)
    assert factor[0] == 1.0
    assert factor[-1] == pytest.approx(np.sqrt(0.15 / 0.03))
    plan = FrameSchedule(train=np.arange(100), repeats=factor, batch_size=1, epochs=200)
    counts = Counter(int(i) for epoch in range(200) for i in plan.order(epoch))
    assert counts[0] == 200
    assert counts[99] / 200 == pytest.approx(factor[-1], abs=0.15)


def test_copies_of_a_sample_stand_in_one_page_with_different_seeds():
    plan = schedule(8, repeats=np.full(8, 3.0), batch_size=3, page_batches=8)
    (page,) = plan.pages()
    batches = plan.batches(page)
    assert Counter(int(i) for batch, _ in batches for i in batch) == dict.fromkeys(range(100, 108), 3)
    assert len({int(s) for _, seeds in batches for s in seeds}) == 24
    assert [int(i) for batch, _ in batches for i in batch] != plan.order(0).tolist()


def test_too_few_samples_for_a_batch_are_refused():
    with pytest.raises(ModelError, match="smaller batch"):
        schedule(5, batch_size=3, world=2)


def test_classes_that_do_not_occur_do_no_harm():
    assert class_balance(np.array([0, 2, 2])).tolist() == [1.0, 1.0, 1.0]
    assert class_balance(np.empty(0, np.int64)).size == 0

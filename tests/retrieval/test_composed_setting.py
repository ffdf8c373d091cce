"""The drawn scenes that the experiments of composed retrieval share."""

import numpy as np
import torch

from etude.experiments.retrieval._composed import (
    FACTORS,
    LONGEST,
    SIZES,
    WORDS,
    TextTower,
    World,
    caption,
    change_word,
    changed,
    changes,
    numbered,
    pretrain,
    recalls,
)


def test_same_seed_same_world_and_pictures():
    first, again, other = (World(seed) for seed in (3, 3, 4))
    kinds = first.kinds(20)
    np.testing.assert_array_equal(kinds, again.kinds(20))
    drawn = first.draw(kinds).images
    assert torch.equal(drawn, again.draw(kinds).images)
    assert not torch.equal(drawn, other.draw(kinds).images)
    assert drawn.shape == (20, 300)
    assert ((kinds >= 0) & (kinds < SIZES)).all()


def test_without_noise_the_ground_is_the_background_s_color():
    world = World(0)
    kinds = world.kinds(50)
    pixels = world.draw(kinds, noise=0.0).images.numpy().reshape(50, 100, 3)
    grounds = world.grounds[kinds[:, 3]]
    shown = np.isclose(pixels, grounds[:, None], atol=1e-6).all(axis=2).sum(axis=1)
    painted = world.shapes[kinds[:, 0]].sum(axis=(1, 2))
    np.testing.assert_array_equal(shown, 100 - painted)


def test_a_change_changes_one_respect():
    world = World(1)
    kinds = world.kinds(300)
    wanted, factor = changed(world, kinds)
    differs = wanted != kinds
    assert (differs.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(differs.argmax(axis=1), factor)
    assert (wanted < SIZES).all()
    assert set(factor) == {0, 1, 2, 3}


def test_changes_come_with_their_words():
    kinds, wanted, words = changes(World(1), 300)
    again = World(1)
    np.testing.assert_array_equal(kinds, again.kinds(300))
    np.testing.assert_array_equal(wanted, changed(again, kinds)[0])
    new = (wanted != kinds).argmax(axis=1)
    assert words == [change_word(kind, f) for kind, f in zip(wanted, new, strict=True)]


def test_a_gallery_shows_each_kind_once():
    shown = World(0).gallery()
    assert shown.values.shape == (1024, 4)
    assert len(np.unique(shown.values, axis=0)) == 1024
    assert (shown.values.max(axis=0) == np.asarray(SIZES) - 1).all()
    assert shown.images.shape == (1024, 300)


def test_texts_and_their_numbers():
    text = caption([7, 0, 1, 2])
    assert text == "red striped fish on snow"
    assert change_word([7, 0, 1, 2], 2) == "striped"
    row = numbered([text])[0]
    assert row[:5].tolist() == [WORDS[word] for word in text.split()]
    assert row.shape == (LONGEST,)
    assert (row[5:] == 0).all()
    assert len(set(WORDS.values())) == len(WORDS) == max(WORDS.values())
    assert sum(len(words) for words in FACTORS.values()) == sum(SIZES)


def test_recall_counts_any_right_picture_among_the_first():
    gallery, kinds = torch.eye(4), np.array([[0, 0], [1, 0], [0, 0], [2, 0]])
    queries = torch.tensor([[0.1, 0.9, 0.8, 0.0], [0.9, 0.1, 0.0, 0.8]])
    wanted = np.array([[0, 0], [2, 0]])
    assert recalls(queries, gallery, wanted, kinds, 1) == 0.0
    assert recalls(queries, gallery, wanted, kinds, 2) == 1.0
    assert recalls(2 * queries[:1], 3 * gallery, wanted[:1], kinds, 3) == 1.0


def test_a_given_word_stands_in_for_the_placeholder_only():
    torch.manual_seed(0)
    tower = TextTower()
    placeholder, plain = numbered(["a photo of [$]", "a photo of fish"])
    word = tower.embedding.weight[WORDS["fish"]][None]
    torch.testing.assert_close(tower(placeholder[None], word), tower(plain[None]))
    torch.testing.assert_close(tower(plain[None], 5 * word), tower(plain[None]))
    longer = torch.cat([plain, torch.zeros(3, dtype=torch.int64)])[None, :LONGEST]
    torch.testing.assert_close(tower(longer), tower(plain[None]))


def test_pretraining_finds_captions_of_new_pictures():
    world = World(2)
    scenes = world.draw(world.kinds(600))
    texts = numbered([caption(kind) for kind in scenes.values])
    image, text = pretrain(scenes, texts, 0, n_steps=40)
    fresh = world.draw(world.kinds(200))
    asked = text(numbered([caption(kind) for kind in fresh.values]))
    # by chance about 10 of 200
    assert recalls(asked, image(fresh.images), fresh.values, fresh.values, 10) > 0.15

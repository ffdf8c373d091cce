"""Requests in words, told apart by descriptors of each intent, by its name, and by controls.

Data: CLINC150, the thirty intents of the domains "work" and "kitchen and dining", read by a
sentence encoder that has seen neither (all-MiniLM-L6-v2). A seed draws twenty of the intents.
Nothing is trained. The three descriptors of an intent below were written once, from what its name
means, before any of its requests was read, and not changed after a measurement.

Measured: accuracy on all test requests (30 an intent). Each arm has four candidates, and the
first ten validation requests of every intent choose among them; the test part is read once.
- ours: mean or best cosine over sentences with or without the name of the intent;
- class_names: one sentence an intent, in four wordings;
- prompt_ensemble: the mean over three wordings of the name: as many sentences as descriptors;
- wrong_descriptors: the same sentences with the descriptors of another intent;
- random_words: the same sentences with words drawn from all descriptors.
The last two say how much of the gain comes from what the descriptors mean.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations

import numpy as np

from etude.heads import DescriptionClassifier
from etude.lab.data import find_data
from etude.nets.minilm import encode
from etude.tasks.base import Pair

__all__ = ["measure"]

N_INTENTS, N_VALIDATION = 20, 10
WORDINGS = ("{}", "a request about {}", "a question: {}", "someone asks about {}")
DESCRIPTORS: dict[str, tuple[str, str, str]] = {
    "pto_request_status": ("often the word approved", "may ask whether a vacation was granted",
                           "a question about time off already asked for"),
    "next_holiday": ("may ask when the office is closed next", "a question about a date",
                     "often a day that nobody works"),
    "insurance_change": ("may ask to switch to another health plan", "a wish for new coverage",
                         "often the word insurance with change or new"),
    "insurance": ("may ask which benefits a health plan covers", "a question about coverage",
                  "often the words policy and plan"),
    "meeting_schedule": ("may ask which meetings are planned today", "a look at the calendar",
                         "often the time of the next meeting"),
    "payday": ("may ask when the wages arrive", "a question about the date of a paycheck",
               "often the words paid and next"),
    "taxes": ("may ask how much is owed to the state", "a question about a tax return",
              "often federal or state and filing"),
    "income": ("may ask how much one earns in a year", "a question about a salary",
               "often the words make, earn and job"),
    "rollover_401k": ("may ask how to move a retirement account", "a change of employer",
                      "often the word 401k"),
    "pto_balance": ("may ask how many days off are left", "a number of vacation days",
                    "often the words remaining and have"),
    "pto_request": ("may ask for days off from one date to another", "a wish to go on vacation",
                    "often the words time off and put in"),
    "w2": ("may ask where to get a tax form from the employer", "a form for wages",
           "often the letters w2"),
    "schedule_meeting": ("may ask to set up a meeting with a person", "a room and a time to book",
                         "often the words arrange and with"),
    "direct_deposit": ("may ask to have wages sent to a bank account", "a bank's details",
                       "often the words paycheck and deposit"),
    "pto_used": ("may ask how many days off were already taken", "a look back at vacation days",
                 "often the words so far and used"),
    "food_last": ("may ask how long something keeps in the fridge", "a question about spoiling",
                  "often the words good, still and expire"),
    "confirm_reservation": ("may ask whether a table is really booked", "a check of a booking",
                            "often the words confirm and dinner"),
    "how_busy": ("may ask how long one waits for a table", "a question about a crowd",
                 "often the words busy, wait and tonight"),
    "ingredients_list": ("may ask what goes into a dish", "a list of things to buy for cooking",
                         "often the words need and make"),
    "calories": ("may ask how many calories a food has", "a number for a diet",
                 "often the word calories"),
    "nutrition_info": ("may ask whether a food is healthy", "a question about fat or protein",
                       "often vitamins and contents"),
    "recipe": ("may ask how a dish is made", "used for cooking step by step",
               "often the words how to make or cook"),
    "restaurant_reviews": ("may ask whether a place to eat is any good", "an opinion of guests",
                           "often stars and ratings"),
    "restaurant_reservation": ("may ask to book a table", "a number of people and an hour",
                               "often the words table for"),
    "meal_suggestion": ("may ask what to cook for dinner", "a wish for ideas for a meal",
                        "often a kind of cuisine and idea"),
    "restaurant_suggestion": ("may ask where to eat nearby", "a wish for a good place",
                              "often a kind of food and the word restaurant"),
    "cancel_reservation": ("may ask to give up a booked table", "a change of plans",
                           "often the words cancel and no longer"),
    "ingredient_substitution": ("may ask what to use in place of something",
                                "an ingredient that is missing", "often the words instead of"),
    "cook_time": ("may ask how long something has to bake", "a number of minutes in the oven",
                  "often the words how long and cook"),
    "accept_reservations": ("may ask whether a place takes bookings",
                            "a question about a restaurant's rules", "often the word accept"),
}  # fmt: skip
Lists = Mapping[str, Sequence[str]]


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is against the names of the intents."""
    rng, known = np.random.default_rng([seed, 80]), _requests()
    names = sorted(rng.permutation(sorted(DESCRIPTORS))[:N_INTENTS].tolist())
    parts = []
    for part in ("val", "test"):
        rows = [known[part][name][: N_VALIDATION if part == "val" else None] for name in names]
        y = np.repeat(np.arange(len(names)), [len(x) for x in rows])
        parts.append((np.concatenate(rows), y))
    true = {name: DESCRIPTORS[name] for name in names}
    started = time.perf_counter()
    ours = _best(_candidates(true), parts)
    seconds, pairs = time.perf_counter() - started, []
    words = [word for texts in true.values() for text in texts for word in text.split()]
    arms = {
        "class_names": [_by_names(names, (wording,)) for wording in WORDINGS],
        "prompt_ensemble": [_by_names(names, some) for some in combinations(WORDINGS, 3)],
        "wrong_descriptors": _candidates(
            {name: true[other] for name, other in zip(names, np.roll(names, 7), strict=True)}
        ),
        "random_words": _candidates(
            {n: [" ".join(rng.choice(words, len(t.split()))) for t in true[n]] for n in names}
        ),
    }
    for name, candidates in arms.items():
        started = time.perf_counter()
        theirs = _best(candidates, parts)
        pairs.append(Pair(
            metric="accuracy", ours=ours, baseline=theirs, baseline_name=name, data="clinc150",
            setting=f"{N_INTENTS} intents of two domains", ours_s=seconds,
            baseline_s=time.perf_counter() - started,
        ))  # fmt: skip
    return pairs


_VECTORS: dict[str, np.ndarray] = {}  # of a text, encoded once a process


def _texts(texts: Sequence[str]) -> np.ndarray:
    new = sorted({text for text in texts if text not in _VECTORS})
    _VECTORS.update(zip(new, encode(new), strict=True))
    return np.stack([_VECTORS[text] for text in texts])


@cache
def _requests() -> dict[str, dict[str, np.ndarray]]:
    """Part -> intent -> vectors of its requests; read once a process."""
    data = json.loads(find_data("clinc150/data_full.json").read_text(encoding="utf-8"))
    found: dict[str, dict[str, np.ndarray]] = {}
    for part, most in (("val", N_VALIDATION), ("test", 30)):
        by = {name: [t for t, label in data[part] if label == name][:most] for name in DESCRIPTORS}
        vectors = encode([text for texts in by.values() for text in texts])
        cuts = np.cumsum([len(texts) for texts in by.values()])[:-1]
        found[part] = dict(zip(by, np.split(vectors, cuts), strict=True))
    return found


def _candidates(lists: Lists) -> list[np.ndarray | DescriptionClassifier]:
    return [
        DescriptionClassifier(aggregation=how, with_name=named).describe(lists, _texts)
        for how in ("mean", "max")
        for named in (True, False)
    ]


def _by_names(names: Sequence[str], wordings: Sequence[str]) -> np.ndarray:
    """(K, D): mean over wordings of the unit vectors of each name."""
    vectors = [_texts([w.format(n.replace("_", " ")) for n in names]) for w in wordings]
    return np.asarray(np.mean(vectors, axis=0))


def _best(
    candidates: Sequence[np.ndarray | DescriptionClassifier],
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
) -> float:
    """Test accuracy of the candidate best on the validation requests; of equals the first."""

    def share(
        one: np.ndarray | DescriptionClassifier, part: tuple[np.ndarray, np.ndarray]
    ) -> float:
        x, y = part
        scores = x @ one.T if isinstance(one, np.ndarray) else one.logits(x)
        return float((scores.argmax(axis=1) == y).mean())

    return share(max(candidates, key=lambda one: share(one, parts[0])), parts[1])

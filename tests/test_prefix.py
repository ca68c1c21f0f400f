"""What was read once is not read again, and never for somebody whose edits would have made it another."""

import asyncio
import random

import pytest
import torch
from conftest import llama, random_sae
from test_engine import CONTROLLERS, F, asked, check_alone, heard, running

from sparsight.edits import Controller
from sparsight.lm.batch import Prompt
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.records import Kind
from sparsight.scope.program import compile_controller
from sparsight.scope.scope import Scope
from sparsight.serve.engine import Request
from sparsight.serve.prefix import BLOCK, Prefixes, chain

LONG = list(range(10, 10 + 3 * BLOCK))  # three blocks, and the last token is always run: two are kept


@pytest.fixture(scope="module")
def scope64(tokenizer) -> Scope:
    lm = ObservableLanguageModel(llama(torch.float64, eos_token_id=None), tokenizer=tokenizer)
    return Scope(lm, random_sae("relu", torch.float64))


def one_by_one(scope, requests, **options) -> list[int]:
    """The requests through one engine, one after the other; each writes what it writes alone. How many tokens of each
    prompt were not run."""
    with running(scope, rows=2, chunk=40, **options) as engine:

        async def main():
            return [await heard(engine, request) for request in requests]

        outs = asyncio.run(main())
    for request, updates in zip(requests, outs, strict=True):
        check_alone(scope, request, updates)
    return [updates[0].cached for updates in outs]


def test_a_plain_run_does_not_poison_a_steered_one_nor_the_other_way(scope64):
    steered = F[3].nudge(8) + F[9].pin(4)
    wishes = [None, steered, None, steered, F[3].nudge(8), steered]
    cached = one_by_one(scope64, [asked(scope64, LONG, wish, max_new_tokens=5) for wish in wishes])
    assert cached == [0, 0, 2 * BLOCK, 2 * BLOCK, 0, 2 * BLOCK]


def test_edits_on_generated_tokens_alone_share_the_prompt(scope64):
    wishes = [None, F[3].nudge(8).on("generated"), F[9].pin(5).on("generated"), (F[3] > 0.1).event("x")]
    cached = one_by_one(scope64, [asked(scope64, LONG, wish, max_new_tokens=5) for wish in wishes])
    assert cached == [0, 2 * BLOCK, 2 * BLOCK, 0]  # an event may come true at the prompt: that one is looked at


def test_receipts_and_events_of_a_prompt_that_was_not_run_again_are_the_same(scope64):
    wish = F[3].nudge(8).when(F[9] > 0.1) + (F[9] > 0.5).event("nine") + (F[27] > 0.2).event("twenty-seven")
    requests = [asked(scope64, [*LONG[: 2 * BLOCK], *end], wish, max_new_tokens=4) for end in ([5, 6], [7] * 9, [5, 6])]
    assert one_by_one(scope64, requests) == [0, 2 * BLOCK, 2 * BLOCK]


def test_whose_a_token_is_and_where_the_prompt_ends_are_part_of_what_an_edit_depends_on(scope64):
    kinds = [Kind.PROMPT | Kind.TEXT, Kind.PROMPT | Kind.USER]
    user, last = Controller.of(F[3].nudge(8).on("user")), Controller.of(F[3].nudge(8).on(-BLOCK - 5))
    requests = [Request(Prompt(tuple(LONG), (kind,) * len(LONG)), controller=user) for kind in kinds]
    requests += [asked(scope64, LONG[:n], last, max_new_tokens=4) for n in (2 * BLOCK + 4, 3 * BLOCK)]
    requests += [Request(Prompt(tuple(LONG), (kind,) * len(LONG))) for kind in kinds]
    requests = [Request(r.prompt, asked(scope64, [1], max_new_tokens=4).sampling, r.controller) for r in requests]
    assert one_by_one(scope64, requests) == [0, 0, 0, 0, 0, 2 * BLOCK]


def test_the_last_token_is_always_run(scope64):
    for length in (1, BLOCK, BLOCK + 1, 2 * BLOCK):
        prompt = scope64.lm.prompt(LONG[:length])
        assert len(chain(prompt, Controller(), compile_controller(Controller(), scope64.sae))) == (length - 1) // BLOCK


def test_what_was_unused_longest_goes_first_and_memory_stays_as_it_is(scope64):
    lm, prefixes = scope64.lm, Prefixes(3 * BLOCK * 2 * 4 * 2 * 8 * 8 + 100)  # three blocks of this model, and a bit
    prompts = [lm.prompt([start, *LONG[: 2 * BLOCK]]) for start in (1, 2, 3)]
    names = [chain(prompt, Controller(), compile_controller(Controller(), scope64.sae)) for prompt in prompts]
    for prompt, chained in zip(prompts, names, strict=True):
        past = lm.run(lm.batch([prompt]), {}, use_cache=True)[1]
        prefixes.keep(chained, past, [None] * len(chained))
        cache, found = prefixes.find(chained)
        assert len(found) == len(chained) == 2
        for mine, theirs in zip(cache.layers, past.layers, strict=True):
            assert torch.equal(mine.keys, theirs.keys[:, :, : 2 * BLOCK])
            assert torch.equal(mine.values, theirs.values[:, :, : 2 * BLOCK])
        assert prefixes.blocks == 3
        assert prefixes.bytes <= prefixes.limit
    assert [len(prefixes.find(chained)[1]) for chained in names] == [0, 1, 2]  # the end goes before the beginning
    assert len(prefixes) == 3


def test_a_prompt_longer_than_all_there_is_room_for_is_kept_as_far_as_it_goes(scope64):
    small = Prefixes(1)
    one_by_one(scope64, [asked(scope64, LONG, max_new_tokens=2)] * 2, prefix_bytes=1)
    lm, prompt = scope64.lm, scope64.lm.prompt(LONG)
    names, past = [b"a", b"b"], lm.run(lm.batch([prompt]), {}, use_cache=True)[1]
    small.keep(names, past, [None] * 2)
    assert (len(small), small.bytes, small.find(names)) == (0, 0, (None, []))
    one = Prefixes(BLOCK * 2 * 4 * 2 * 8 * 8)
    one.keep(names, past, [None] * 2)
    assert len(one.find(names)[1]) == 1


@pytest.mark.parametrize("seed", range(2))
def test_whatever_came_before_everybody_writes_what_he_writes_alone(scope64, seed):
    turns = random.Random(seed)
    stems = [[turns.randrange(10, 390) for _ in range(BLOCK)] for _ in range(2)]
    wishes = turns.sample(CONTROLLERS, 4)
    requests = []
    for _ in range(16):
        ids = [t for _ in range(turns.randint(0, 3)) for t in turns.choice(stems)] + [turns.randrange(10, 390)]
        requests.append(asked(scope64, ids, turns.choice(wishes), max_new_tokens=3))
    cached = one_by_one(scope64, requests, prefix_bytes=5 * BLOCK * 2 * 4 * 2 * 8 * 8)
    assert any(cached)

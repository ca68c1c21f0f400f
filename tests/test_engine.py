"""The embedded engine: every request writes what it would write alone, whoever comes and goes beside it."""

import asyncio
import gc
import random
import threading
from contextlib import contextmanager

import pytest
import torch
from conftest import FEATURES, VOCABULARY, llama, random_sae
from test_generate import other_model
from test_slots import windowed
from torch.testing import assert_close

from sparsight.edits import Controller, Edit, Feature, When
from sparsight.errors import BadInput, Busy, NoFeature, NotSteered, Stopped, TooLong
from sparsight.lm.batch import Prompt
from sparsight.lm.lm import ObservableLanguageModel
from sparsight.records import Kind, Sampling
from sparsight.scope.layout import Shape
from sparsight.scope.scope import Scope
from sparsight.scope.table import SteeringTable
from sparsight.serve.embedded import LONG as LONGEST
from sparsight.serve.embedded import EmbeddedEngine
from sparsight.serve.engine import FeatureWish, Request
from sparsight.serve.row import Row
from sparsight.serve.waiting import Waiting
from sparsight.where import Where

F = [Feature(i) for i in range(FEATURES)]
CONTROLLERS = [
    Controller(),
    Controller.of(F[3].nudge(4)),
    F[9].pin(3) + F[27].scale(-2),
    Controller.of(F[3].nudge(6).on("generated")),
    Controller.of(F[64].nudge(-5).on("user")),
    Controller.of(F[111].pin(4).on(0, 2, -1)),
    F[3].nudge(5).when((F[9] > 0.2) & (F[27] <= 1.5)) + F[64].ablate().when((F[3].raw > 0.1) | (F[9] < F[64])),
    (F[9] > 0.3).event("nine") + F[3].nudge(2),
    Controller(
        (), (When(F[27] > 0.1, Controller.of(F[3].nudge(5)), "twenty-seven"), When(F[3] > 0.5, Controller(), "3"))
    ),
    Controller((F[3].nudge(7).on("all", "template"),), min_nudge_entropy=2.0),
    Controller((F[9].nudge(9), F[27].pin(2)), max_nudge_entropy=3.5),
    Controller(tuple(F[i].nudge(0.5) for i in range(40, 60))),
    F[3].nudge(1) + F[3].pin(2).on("generated") + F[3].scale(3).when(F[9] > 0.1),
]


@pytest.fixture(scope="module")
def scope64(tokenizer) -> Scope:
    """In float64: who stands beside a row changes none of its choices."""
    return Scope(ObservableLanguageModel(llama(torch.float64), tokenizer=tokenizer), random_sae("relu", torch.float64))


@contextmanager
def running(scope, **options):
    engine = EmbeddedEngine(scope, **({"rows": 4, "chunk": 8} | options))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def asked(scope, prompt, controller=None, features=None, logprobs=None, owner="", **sampling) -> Request:
    return Request(scope.lm.prompt(prompt), Sampling(**sampling), Controller.of(controller), logprobs, features, owner)


async def heard(engine, request, leave_after=None, late=0.0):
    await asyncio.sleep(late)
    updates, stream = [], engine.submit(request)
    async for update in stream:
        updates.append(update)
        if len(updates) == leave_after:
            break
    await stream.aclose()
    return updates


def all_heard(engine, requests, **more):
    async def main():
        return await asyncio.gather(*(heard(engine, request, **more) for request in requests))

    return asyncio.run(main())


def check_alone(scope, request, updates, left=False):
    """What was heard is what the request writes alone; the beginning of it, where the listener left."""
    read = request.features is not None
    reply = scope.chat(request.prompt, request.controller, sampling=request.sampling, read=read)
    ids = tuple(u.id for u in updates)
    if left:
        assert ids == reply.ids[: len(ids)]
        return
    assert ids == reply.ids
    assert "".join(u.text for u in updates) == reply.text
    assert [u.index for u in updates] == list(range(len(ids)))
    assert [u.finish for u in updates] == [None] * (len(ids) - 1) + [reply.finish]
    assert sorted(name for u in updates for name in u.events) == sorted(reply.events)
    got = updates[-1].receipt
    assert (got is None) == (reply.receipt is None)
    if got is not None:
        assert (got.controller, got.hook_point) == (reply.receipt.controller, reply.receipt.hook_point)
        assert (got.touched, got.seen) == (reply.receipt.touched, reply.receipt.seen)
        assert got.change == pytest.approx(reply.receipt.change, rel=1e-6)


def any_request(scope, turns: random.Random) -> Request:
    texts = ["Hello", "Once upon a time there was a little dog.", "how are you? " * turns.randint(1, 6)]
    chat = [{"role": "system", "content": "answer"}, {"role": "user", "content": turns.choice(texts)}]
    sampling = {"max_new_tokens": turns.randint(1, 14)}
    if turns.random() < 0.5:
        sampling |= {"temperature": turns.choice([0.7, 1.3]), "seed": turns.randint(0, 99)}
        sampling |= turns.choice([{}, {"top_p": 0.9}, {"top_k": 7}, {"min_p": 0.05}])
    if turns.random() < 0.3:
        sampling |= {"frequency_penalty": 1.5, "presence_penalty": -0.5, "logit_bias": {17: 3.0, 42: -100}}
    if turns.random() < 0.2:
        sampling |= {"stop": turns.choice(["e", "the", "\n"])}
    features = FeatureWish(5, (3, 9)) if turns.random() < 0.3 else None
    prompt = chat if turns.random() < 0.5 else turns.choice([*texts, [7], list(range(6, 60))])
    return asked(scope, prompt, turns.choice(CONTROLLERS), features, turns.choice([None, None, 0, 3]), **sampling)


@pytest.mark.parametrize("seed", range(3))
def test_a_request_writes_among_others_what_it_writes_alone(scope64, seed):
    turns = random.Random(seed)
    requests = [any_request(scope64, turns) for _ in range(18)]
    leaving = [turns.choice([None, None, None, 1, 3]) for _ in requests]
    late = [turns.choice([0, 0, 0.02, 0.1]) for _ in requests]
    with running(scope64, rows=turns.choice([3, 8]), chunk=turns.choice([5, 64])) as engine:

        async def main():
            return await asyncio.gather(*map(heard, [engine] * len(requests), requests, leaving, late))

        outs = asyncio.run(main())
        for request, updates, leave in zip(requests, outs, leaving, strict=True):
            check_alone(scope64, request, updates, left=leave is not None)
        assert asyncio.run(engine.drain(5))
        assert engine.load().rows == 0
        empty(engine)


def empty(engine):
    """Nothing of anybody is left in the rows; idle rows of a compiled step write into the first place of theirs."""
    first = 1 if engine.compiled else 0
    assert not engine.rows.rows
    assert not engine.rows.twins
    for slots in (engine.rows.slots, engine.rows.twin_slots):
        assert not any(t[:, :, first:].any() for t in (*slots.keys, *slots.values))
    assert not any(engine.rows.table.steered)
    assert not engine.rows.table.b["kinds"].any()


def test_short_prompts_that_wait_at_once_are_read_in_one_pass_and_long_ones_in_chunks(scope64, monkeypatch):
    passes, run, held = [], ObservableLanguageModel.run, threading.Event()

    def counting(self, batch, *args, **more):
        passes.append(tuple(batch.ids.shape))
        return run(self, batch, *args, **more)

    prompts = [[7] * n for n in (3, 6, 1, 5, 30)]
    requests = [asked(scope64, p, CONTROLLERS[2 + i], max_new_tokens=3) for i, p in enumerate(prompts)]
    with running(scope64, rows=8, chunk=26) as engine:
        monkeypatch.setattr(ObservableLanguageModel, "run", counting)

        async def main():
            waiting = asyncio.create_task(engine.run(lambda scope: held.wait(20)))
            hearing = [asyncio.create_task(heard(engine, request)) for request in requests]
            await until(lambda: engine.load().waiting == len(requests))
            held.set()
            await waiting
            return await asyncio.gather(*hearing)

        outs = asyncio.run(main())
    assert passes == [(4, 6), (1, 2), (1, 26), (1, 2)]  # 2 more fit into the first chunk
    monkeypatch.undo()
    for request, updates in zip(requests, outs, strict=True):
        check_alone(scope64, request, updates)


def test_memory_is_as_it_was_when_everybody_has_left(scope64):
    turns = random.Random(9)
    requests = [any_request(scope64, turns) for _ in range(6)]
    with running(scope64, prefix_bytes=2**20) as engine:

        def held():
            rows = engine.rows
            return (
                rows.slots.bytes,
                rows.twin_slots.bytes,
                engine.prefixes.bytes,
                len(rows.table.parts),
                rows.table.shape,
            )

        all_heard(engine, requests)
        before = held()
        assert before[-1] == Shape()  # room for edits is given back too
        all_heard(engine, requests)
        assert asyncio.run(engine.drain(5))
        assert held() == before
        assert not [thing for thing in gc.get_objects() if type(thing) is Row]


def test_features_of_new_tokens_are_those_that_chat_reads(scope64):
    requests = [
        asked(scope64, "Hello", F[3].nudge(4) + F[9].pin(2).on("prompt"), FeatureWish(4, (9, 64)), max_new_tokens=6),
        asked(scope64, "Once upon a time", None, FeatureWish(3), max_new_tokens=9),
        asked(scope64, "Once upon", F[9].nudge(1), max_new_tokens=9),
    ]
    with running(scope64) as engine:
        outs = all_heard(engine, requests)
    for request, updates in zip(requests[:2], outs, strict=False):
        reply = scope64.chat(request.prompt, request.controller, sampling=request.sampling, read=True)
        for i, update in enumerate(updates):
            pairs = reply.codes.at(i)
            wanted = [p for n, p in enumerate(pairs) if n < request.features.top_k or p[0] in request.features.include]
            assert [a.feature for a in update.features] == [f for f, _ in wanted]
            assert_close([a.activation for a in update.features], [v for _, v in wanted])
            edited = {a.feature for a in update.features if a.edited}
            assert edited <= {3}  # what is pinned on the prompt alone is not edited here
            if request is requests[0] and i + 1 < len(updates):
                assert edited == {3} & {a.feature for a in update.features}
    assert not any(u.features for u in outs[2])


def test_how_likely_a_token_was_is_told(scope64):
    ban = {17: -100, 42: 5.0}
    request = asked(scope64, "Hello", logprobs=3, max_new_tokens=4, temperature=1.0, seed=4, logit_bias=ban)
    with running(scope64) as engine:
        (updates,) = all_heard(engine, [request])
    ids = list(request.prompt.ids)
    for update in updates:
        logits, _, _ = scope64.lm.forward(ids)
        logits[0, 17] -= 100
        logits[0, 42] += 5
        log_p = logits[0].log_softmax(-1)
        assert update.logprob == pytest.approx(float(log_p[update.id]), abs=1e-4)
        best = log_p.topk(3)
        assert [t for t, _ in update.top] == best.indices.tolist()
        assert_close([p for _, p in update.top], best.values.tolist(), atol=1e-4, rtol=1e-4)
        ids.append(update.id)


# ── leaving, waiting, stopping ───────────────────────────────────────────────────────────────────────────────────


async def until(true, seconds=20.0):
    for _ in range(int(seconds / 0.01)):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to pass")


@pytest.mark.parametrize("how", ["closed", "cancelled", "forgotten", "never heard"])
def test_a_stream_that_nobody_hears_any_more_frees_its_row(scope64, how):
    with running(scope64, rows=1) as engine:

        async def main():
            long = asked(scope64, "Hello", F[3].nudge(1), max_new_tokens=200, stop_tokens=(), logit_bias={4: -100})
            stream = engine.submit(long)
            if how != "never heard":
                await anext(stream)
                steps = engine.load().steps
            if how == "closed":
                await stream.aclose()
            elif how == "cancelled":
                task = asyncio.create_task(wait_for_all(stream))
                await asyncio.sleep(0.01)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            else:
                del stream
                gc.collect()
            updates = await heard(engine, asked(scope64, "Once", max_new_tokens=3))
            assert len(updates) == 3
            if how == "closed":
                assert engine.load().steps <= steps + 2 + 3
            assert engine.load().rows == 0

        asyncio.run(main())
        empty(engine)


async def wait_for_all(stream):
    return [update async for update in stream]


def test_a_full_queue_says_when_to_try_again(scope64):
    with running(scope64, rows=1, queue=2) as engine:

        async def main():
            long = asked(scope64, "Hello", max_new_tokens=200, logit_bias={4: -100})
            first = engine.submit(long)
            await anext(first)
            others = [engine.submit(long) for _ in range(2)]
            with pytest.raises(Busy, match="2 requests wait already") as caught:
                engine.submit(long)
            assert 0 < caught.value.retry_after <= 60
            await others[0].aclose()  # one that left the queue makes room there
            another = engine.submit(long)
            for stream in (first, another, others[1]):
                await stream.aclose()

        asyncio.run(main())


def test_as_many_as_there_are_free_rows_do_not_count_as_waiting(scope64):
    with running(scope64, rows=3, queue=1) as engine:

        async def main():
            streams = [engine.submit(asked(scope64, "Hello", max_new_tokens=2)) for _ in range(4)]  # at one moment
            return [len(await wait_for_all(stream)) for stream in streams]

        assert asyncio.run(main()) == [2] * 4


def test_owners_wait_in_turns_and_their_own_requests_in_order():
    waiting = Waiting(10)
    for owner, thing in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)]:
        waiting.put(owner, thing)
    assert [waiting.take() for _ in range(7)] == [1, 4, 5, 2, 6, 3, None]


def test_how_long_to_wait_is_how_long_a_place_took_lately():
    clock = [0.0]
    waiting = Waiting(100, lambda: clock[0])
    for _ in range(10):
        waiting.put("", object())
    for _ in range(10):
        clock[0] += 3
        waiting.take()
    assert waiting.retry_after() == pytest.approx(2.7)
    clock[0] += 10_000
    assert waiting.retry_after() == 60


def test_what_is_asked_beside_runs_between_steps_and_raises_what_it_raises(scope64):
    with running(scope64) as engine:

        async def main():
            writing = asyncio.create_task(heard(engine, asked(scope64, "Hello", max_new_tokens=12)))
            reading = await engine.run(lambda scope: scope.read("Hello"))
            assert reading.codes == scope64.read("Hello").codes
            with pytest.raises(NoFeature, match="No feature 128"):
                await engine.run(lambda scope: scope.sae.encode_features(torch.zeros(1, 32), [FEATURES]))
            assert await writing == await heard(engine, asked(scope64, "Hello", max_new_tokens=12))

        asyncio.run(main())


def test_rows_are_written_while_something_long_goes_on(scope64):
    with running(scope64) as engine:

        async def main():
            written = threading.Event()

            def work(scope):
                assert written.wait(20)
                return scope.read("Hello").codes

            long = asyncio.create_task(engine.run(work, long=True))
            wait = [engine.run(lambda scope: written.wait(20), long=True) for _ in range(LONGEST - 1)]
            others = [asyncio.create_task(one) for one in wait]
            await asyncio.sleep(0)
            assert len(await heard(engine, asked(scope64, "Hello", max_new_tokens=6))) == 6
            with pytest.raises(Busy, match="long uses of the model are under way"):
                await engine.run(work, long=True)
            assert not await engine.drain(0)
            written.set()
            assert await long == scope64.read("Hello").codes
            assert all(await asyncio.gather(*others))
            assert await engine.drain(5)

        asyncio.run(main())


def test_something_long_that_nobody_waits_for_ends_at_its_next_pass(scope64):
    with running(scope64) as engine:
        passes = []

        def work(scope):
            while True:
                passes.append(scope.read("Hello"))

        async def main():
            for end in (lambda task: task.cancel(), lambda _: engine.stop()):
                task = asyncio.create_task(engine.run(work, long=True))
                await until(lambda: passes)
                end(task)
                with pytest.raises((asyncio.CancelledError, Stopped)):
                    await task
                await until(lambda: not len(engine.beside))
                passes.clear()

        asyncio.run(main())
    assert scope64.read("Hello").codes is not None  # the scope itself goes on


def test_draining_takes_nothing_new_and_lets_what_is_written_end(scope64):
    with running(scope64) as engine:

        async def main():
            writing = asyncio.create_task(heard(engine, asked(scope64, "Hello", max_new_tokens=10)))
            await until(lambda: engine.load().written or engine.load().rows)
            assert await engine.drain(20)
            assert len(await writing) == 10
            with pytest.raises(Stopped):
                engine.submit(asked(scope64, "Hello"))
            with pytest.raises(Stopped):
                await engine.run(lambda scope: None)

        asyncio.run(main())


def test_stopping_tells_everybody(scope64):
    engine = EmbeddedEngine(scope64, rows=1)
    with pytest.raises(Stopped, match="has not started"):
        engine.submit(asked(scope64, "Hello"))
    engine.start()

    async def main():
        long = asked(scope64, "Hello", max_new_tokens=200, logit_bias={4: -100})
        first, second = engine.submit(long), engine.submit(long)
        await anext(first)
        assert not await engine.drain(0.01)
        engine.stop()
        for stream in (first, second):
            with pytest.raises(Stopped, match="stopped before the answer"):
                await wait_for_all(stream)
        empty(engine)

    asyncio.run(main())
    engine.start()
    assert len(all_heard(engine, [asked(scope64, "Hello", max_new_tokens=2)])[0]) == 2
    engine.stop()


# ── what goes wrong in one row ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("features", [None, FeatureWish(3)])
def test_a_row_whose_numbers_overflow_ends_alone_and_leaves_nothing_behind(scope64, monkeypatch, features):
    strong, apply = Controller.of(F[3].raw.nudge(1e14).on("generated")), SteeringTable.apply

    def overflowing(self, flow, *place):
        out = apply(self, flow, *place).clone()
        for row, one in enumerate(self.steered[: len(flow)]):
            if one is not None and one.controller == strong:
                out[row] = torch.inf
        return out

    monkeypatch.setattr(SteeringTable, "apply", overflowing)
    with running(scope64, rows=3) as engine:

        async def main():
            sound = asked(scope64, "Once upon a time", F[9].nudge(1), max_new_tokens=12, logit_bias={4: -100})
            before = await heard(engine, sound)

            async def broken():
                with pytest.raises(BadInput, match=r"overflowed torch.float64: an edit"):
                    await heard(engine, asked(scope64, "Hello", strong, features, max_new_tokens=30))

            outs = await asyncio.gather(heard(engine, sound), broken(), heard(engine, sound), broken())
            assert [u.id for u in outs[0]] == [u.id for u in outs[2]] == [u.id for u in before]
            check_alone(scope64, sound, await heard(engine, sound))

        asyncio.run(main())
        empty(engine)


def test_an_exception_in_a_step_ends_those_that_were_written_and_not_the_engine(scope64, monkeypatch):
    with running(scope64) as engine:
        step, fails = engine.rows.steps._eager, []

        def failing(*args):
            if fails:
                raise RuntimeError(fails.pop())
            return step(*args)

        monkeypatch.setattr(engine.rows.steps, "_eager", failing)

        async def main():
            streams = [
                engine.submit(asked(scope64, "Hello", max_new_tokens=30, logit_bias={4: -100})) for _ in range(2)
            ]
            for stream in streams:
                await anext(stream)
            fails.append("the device is out of memory")
            for stream in streams:
                with pytest.raises(RuntimeError, match="out of memory"):
                    await wait_for_all(stream)
            request = asked(scope64, "Once", F[3].nudge(2), max_new_tokens=4)
            check_alone(scope64, request, await heard(engine, request))

        asyncio.run(main())
        empty(engine)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"prompt": Prompt((), ())}, BadInput, "empty"),
        ({"prompt": Prompt((VOCABULARY,), (Kind.PROMPT,))}, BadInput, "outside this model's vocabulary"),
        ({"prompt": Prompt((1, 2), (Kind.PROMPT,))}, BadInput, "2 tokens says of 1"),
        ({"prompt": Prompt((1,) * 256, (Kind.PROMPT,) * 256)}, TooLong, "leaves no room"),
        ({"controller": Controller.of(Feature(FEATURES).nudge(1))}, NoFeature, "No feature 128"),
        ({"controller": Controller.of(F[1].nudge(1).on(-9))}, BadInput, "No token -9: the prompt has 1"),
        (
            {"controller": Controller((Edit("nudge", F[1], 1.0, Where(("all",), tuple(range(99)))),))},
            BadInput,
            "64 posit",
        ),
        ({"features": FeatureWish(1, (FEATURES,))}, NoFeature, "No feature 128"),
        ({"sampling": Sampling(logit_bias={VOCABULARY: 1})}, BadInput, "names token 400"),
        ({"logprobs": -1}, BadInput, "logprobs is a number"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(scope64, change, error, words):
    engine = EmbeddedEngine(scope64)
    with pytest.raises(error, match=words):
        engine.submit(Request(**({"prompt": Prompt((7,), (Kind.PROMPT | Kind.TEXT,))} | change)))


# ── it proves itself ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_engine_on_which_no_edit_acts_does_not_start(scope64, monkeypatch):
    monkeypatch.setattr(SteeringTable, "apply", lambda self, flow, *_: flow)
    with pytest.raises(NotSteered, match="An edit does not act in the step for rows side by side"):
        EmbeddedEngine(scope64).start()


def test_an_edit_that_leaks_into_other_rows_is_found_out(scope64, monkeypatch):
    apply = SteeringTable.apply

    def leaking(self, flow, *place):
        out = apply(self, flow, *place)
        return out + (out - flow).sum(0, keepdim=True)

    monkeypatch.setattr(SteeringTable, "apply", leaking)
    with pytest.raises(NotSteered, match="acts on the others"):
        EmbeddedEngine(scope64).start()


def test_a_model_whose_rows_cannot_stand_side_by_side_is_refused():
    scope = Scope(other_model("gpt-neo"), random_sae(hook_point="transformer.h.1"))
    with pytest.raises(BadInput, match="cache of fixed size"):
        EmbeddedEngine(scope).start()


@pytest.mark.parametrize("compiled", [False, [2]], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_a_model_with_a_sliding_window_writes_in_a_batch_what_it_writes_alone(name, compiled, unchecked):
    scope = Scope(windowed(name), random_sae("relu", torch.float64))
    turns = random.Random(3)
    begun = [turns.randrange(10, 390) for _ in range(70)]  # beyond two blocks and four windows
    prompts = [[*begun, 5], [7, 8], [*begun, 6], begun[:12]]
    wishes = [None, F[3].nudge(4), F[9].pin(3), Controller((F[27].nudge(3),), min_nudge_entropy=1.0)]
    with running(scope, rows=2, longest=128, compiled=compiled) as engine:
        for _ in range(2):  # the second time from what is kept
            requests = [asked(scope, p, c, max_new_tokens=24) for p, c in zip(prompts, wishes, strict=True)]
            outs = all_heard(engine, requests)
            for request, updates in zip(requests, outs, strict=True):
                check_alone(scope, request, updates)
        assert outs[0][0].cached == 64
        empty(engine)


def test_gpt2_is_served_too(tokenizer):
    scope = Scope(other_model("gpt2"), random_sae("relu", torch.float64, hook_point="transformer.h.0"))
    with running(scope) as engine:
        requests = [asked(scope, [3, 4, 5], F[3].nudge(2), max_new_tokens=30), asked(scope, [6] * 20, max_new_tokens=9)]
        for request, updates in zip(requests, all_heard(engine, requests), strict=True):
            check_alone(scope, request, updates)


def test_a_transcoder_serves_and_refuses_to_steer(scope64):
    scope = Scope(scope64.lm, random_sae("relu", torch.float64, hook_point_out="model.layers.2.mlp"))
    with running(scope) as engine:
        (updates,) = all_heard(engine, [asked(scope, "Hello", None, FeatureWish(), max_new_tokens=3)])
        assert any(u.features for u in updates)
        with pytest.raises(BadInput, match="transcoder"):
            engine.submit(asked(scope, "Hello", F[3].nudge(1)))


def test_compiled_and_eager_engines_write_the_same(tokenizer, unchecked):
    model = llama(torch.float64, num_hidden_layers=1, eos_token_id=None)
    scope = Scope(ObservableLanguageModel(model), random_sae("relu", torch.float64, hook_point="model.layers.0"))
    turns = random.Random(5)
    prompts = [[turns.randrange(10, 390) for _ in range(turns.randint(1, 30))] for _ in range(5)]
    wide = Controller(tuple(F[i].nudge(0.5) for i in range(40, 70)))
    wishes = [F[3].nudge(4), None, F[9].pin(3) + (F[27] > 0.2).event("x"), wide, F[3].nudge(2)]
    wishes[4] = Controller(Controller.of(wishes[4]).edits, min_nudge_entropy=2.0)
    requests = [
        asked(scope, p, c, FeatureWish(3), max_new_tokens=4 + i)
        for i, (p, c) in enumerate(zip(prompts, wishes, strict=True))
    ]
    with running(scope, rows=2, longest=64, compiled=[2]) as engine:
        outs = all_heard(engine, requests)
        assert [(size, width) for size, width in engine.rows.steps.made] == [(2, 64)]
        for request, updates in zip(requests, outs, strict=True):
            check_alone(scope, request, updates)
        empty(engine)


def test_numbers_that_make_no_engine_are_refused(scope64):
    for wrong in ({"rows": 0}, {"queue": 0}, {"chunk": True}, {"compiled": [9], "rows": 8}):
        with pytest.raises(BadInput):
            EmbeddedEngine(scope64, **wrong)

"""The text encoder of the pocket model, taught to understand captions before any video is made with them.

Wan's text encoder comes pretrained. This one reads captions and answers questions about them from the truth of their
worlds ("the red thing: which way does it move, what happens to it?"); the answers are thrown away, the understanding stays.
Without it a transformer learns what "left" means from a few latent cells that move, which takes it many times longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from svi.pocket.captions import CHANGES
from svi.pocket.palette import COLOURS
from svi.pocket.storyboard import (
    BEAT_CAMERAS,
    DANCER_ACTIONS,
    DIRECTIONS,
    FACE_ACTIONS,
    SPEEDS,
    THING_EVENTS,
    direction_of,
    event_for,
)
from svi.pocket.train_vae import HELD_OUT
from svi.pocket.trainloop import Stage
from svi.pocket.world import World

NOTHING = "nothing"  # the answer where a question does not apply
SCENE = "scene"
CAPTIONS, BATCH, STEPS, BEATS = 24_000, 64, 2500, 4
FIRST_SEED = 100_000_000

ANSWERS: dict[str, tuple[str, ...]] = {
    "way": (*DIRECTIONS, NOTHING),
    "speed": (*SPEEDS, NOTHING),
    "event": (*THING_EVENTS, NOTHING),
    "new way": (*DIRECTIONS, NOTHING),
    "new colour": (*COLOURS, NOTHING),
    "camera": (*BEAT_CAMERAS, NOTHING),
    "light": ("day", "night", NOTHING),
    "change": (*CHANGES, NOTHING),
    "action": (*FACE_ACTIONS, *DANCER_ACTIONS, NOTHING),
}
SUBJECTS = (SCENE, *COLOURS)


@dataclass(frozen=True)
class Question:
    """About one subject of a caption: the scene, or the thing of a colour; with the true answers by kind."""

    caption: str
    subject: str
    answers: Mapping[str, str]


def questions(world: World, beat: int) -> Iterator[Question]:
    """Everything that can be asked about a beat."""
    start, told = world.start(beat), world.beat(beat)
    caption, none = world.caption(beat), dict.fromkeys(ANSWERS, NOTHING)
    scene = {
        "camera": told.camera or start.move,
        "light": "day" if start.light > 0.5 else "night",
        "change": next((event.kind for event in told.events if event.kind in CHANGES), NOTHING),
        "action": told.action or NOTHING,
    }
    yield Question(caption, SCENE, none | scene)
    for index, (thing, state) in enumerate(zip(world.scene.things, start.things, strict=True)):
        event, way = event_for(told, index), direction_of(state.vx, state.vy)
        if not state.visible and (event is None or event.kind != "appear"):
            continue  # not in the picture, nor in the caption
        kind = NOTHING if event is None else event.kind
        new = NOTHING if event is None or event.value is None else event.value
        yield Question(
            caption,
            state.colour,
            none
            | {"way": way or NOTHING, "speed": thing.speed if way else NOTHING, "event": kind}
            | {
                "new way": new if kind in ("go", "turn") else NOTHING,
                "new colour": new if kind == "colour" else NOTHING,
            },
        )


def draw_questions(seed: int, captions: int) -> list[list[Question]]:
    """The questions of each of ``captions`` captions of worlds that are not held out; half of the worlds have one or two things."""
    generator = torch.Generator().manual_seed(seed + FIRST_SEED)
    numbers = torch.randint(HELD_OUT, (captions,), generator=generator).tolist()
    return [_asked(number, index) for index, number in enumerate(numbers)]


def _asked(number: int, index: int) -> list[Question]:
    simple = dict(family="things", num_objects=1 + index // 2 % 2) if index % 2 else {}
    return list(questions(World.sample(number, **simple), index // 4 % BEATS))  # type: ignore[arg-type]


class Reader(nn.Module):
    """Answers from encoded captions: a learned query per subject looks at all tokens, one linear map per kind of answer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.subjects = nn.Embedding(len(SUBJECTS), width)
        self.look = nn.MultiheadAttention(width, 1, batch_first=True)
        self.answers = nn.ModuleDict({kind: nn.Linear(width, len(known)) for kind, known in ANSWERS.items()})

    def forward(self, tokens: Tensor, padding: Tensor, subjects: Tensor) -> dict[str, Tensor]:
        """``(B, L, D)`` tokens, ``(B, L)`` True at padding, ``(B,)`` subjects -> logits ``(B, n)`` by kind."""
        seen, _ = self.look(self.subjects(subjects)[:, None], tokens, tokens, key_padding_mask=padding)
        return {kind: linear(seen[:, 0]) for kind, linear in self.answers.items()}


@dataclass(frozen=True)
class Lesson:
    """One caption: its tokens, and the subject and the right answers (indices, by kind) of each of its questions."""

    ids: list[int]
    subjects: list[int]
    answers: list[list[int]]

    @classmethod
    def of(cls, asked: Sequence[Question], tokenizer: PreTrainedTokenizerFast) -> Lesson:
        """Tokenise a caption and its questions."""
        return cls(
            list(tokenizer(asked[0].caption)["input_ids"]),
            [SUBJECTS.index(question.subject) for question in asked],
            [[known.index(question.answers[kind]) for kind, known in ANSWERS.items()] for question in asked],
        )


def answer(lessons: Sequence[Lesson], encoder: UMT5EncoderModel, reader: Reader) -> tuple[dict[str, Tensor], Tensor]:
    """What encoder and reader say to all questions of ``lessons``: logits ``(Q, n)`` by kind, and the truth ``(Q, kinds)``."""
    longest = max(len(lesson.ids) for lesson in lessons)
    ids = torch.tensor([lesson.ids + [0] * (longest - len(lesson.ids)) for lesson in lessons])
    mask = torch.tensor([[1] * len(lesson.ids) + [0] * (longest - len(lesson.ids)) for lesson in lessons])
    rows = torch.tensor([row for row, lesson in enumerate(lessons) for _ in lesson.subjects])
    subjects = torch.tensor([subject for lesson in lessons for subject in lesson.subjects])
    hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    truth = torch.tensor([row for lesson in lessons for row in lesson.answers])
    return reader(hidden[rows], mask[rows] == 0, subjects), truth


def right_answers(lessons: Sequence[Lesson], encoder: UMT5EncoderModel, reader: Reader) -> dict[str, float]:
    """Share of right answers by kind, where the answer is not "nothing"."""
    with torch.no_grad():
        logits, truth = answer(lessons, encoder, reader)
    shares = {}
    for column, (kind, known) in enumerate(ANSWERS.items()):
        asked = truth[:, column] != known.index(NOTHING)
        shares[kind] = (logits[kind].argmax(1) == truth[:, column])[asked].float().mean().item()
    return shares


def text_stage(
    encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int = 0,
    steps: int = STEPS,
    captions: int = CAPTIONS,
) -> Stage:
    """The training stage of the text encoder; its samples are the share of right answers about held-out worlds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader(encoder.config.d_model)
    lessons = [Lesson.of(asked, tokenizer) for asked in draw_questions(seed, captions)]
    unseen = [Lesson.of(_asked(HELD_OUT + index, index), tokenizer) for index in range(min(400, captions))]

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(lessons), (BATCH,), generator=generator).tolist()
        logits, truth = answer([lessons[index] for index in chosen], encoder, reader)
        parts = [F.cross_entropy(logits[kind], truth[:, column]) for column, kind in enumerate(ANSWERS)]
        return torch.stack(parts).sum(), {}

    return Stage(
        "text",
        {"text_encoder": encoder.requires_grad_(True), "reader": reader},
        steps,
        loss,
        lr=3e-3,
        weight_decay=0.0,
        decay_from=0.5,
        optimizer="muon",
        on_sample=lambda step: right_answers(unseen, encoder, reader),
    )

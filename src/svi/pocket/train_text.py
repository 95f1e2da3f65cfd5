"""The text encoder of the pocket model, taught to understand captions before any video is made with them.

Wan's text encoder comes pretrained. This one reads captions and answers questions about them from the truth of their
worlds ("the red thing: which way does it move, what happens to it?"); the answers are thrown away, the understanding stays.
Without it a transformer learns what "left" means from a few latent cells that move, which takes it many times longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
HARD = 3.0  # how much more often a question about something to which something happens is asked
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


def draw_questions(seed: int, captions: int) -> list[Question]:
    """The questions of ``captions`` captions of worlds that are not held out."""
    generator = torch.Generator().manual_seed(seed + FIRST_SEED)
    numbers = torch.randint(HELD_OUT, (captions,), generator=generator).tolist()
    return [question for i, number in enumerate(numbers) for question in questions(World.sample(number), i % BEATS)]


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
class Exercise:
    """Questions as tensors: tokens and their mask ``(N, L)``, subjects ``(N,)``, right answers ``(N, kinds)``."""

    ids: Tensor
    mask: Tensor
    subjects: Tensor
    answers: Tensor

    @classmethod
    def of(cls, asked: Sequence[Question], tokenizer: PreTrainedTokenizerFast) -> Exercise:
        """Tokenise."""
        texts = tokenizer([question.caption for question in asked], padding=True, return_tensors="pt")
        rows = [[known.index(question.answers[kind]) for kind, known in ANSWERS.items()] for question in asked]
        subjects = [SUBJECTS.index(question.subject) for question in asked]
        return cls(texts["input_ids"], texts["attention_mask"], torch.tensor(subjects), torch.tensor(rows))

    def logits(self, encoder: UMT5EncoderModel, reader: Reader, index: Tensor) -> dict[str, Tensor]:
        """What the two say to the questions of ``index``."""
        mask = self.mask[index]
        longest = int(mask.sum(1).max())
        hidden = encoder(input_ids=self.ids[index, :longest], attention_mask=mask[:, :longest]).last_hidden_state
        return reader(hidden, mask[:, :longest] == 0, self.subjects[index])


def right_answers(exercise: Exercise, encoder: UMT5EncoderModel, reader: Reader, count: int = 1000) -> dict[str, float]:
    """Share of right answers by kind, where the answer is not "nothing"."""
    with torch.no_grad():
        logits = exercise.logits(encoder, reader, torch.arange(min(count, len(exercise.subjects))))
    shares = {}
    for column, (kind, known) in enumerate(ANSWERS.items()):
        truth = exercise.answers[:count, column]
        asked = truth != known.index(NOTHING)
        shares[kind] = (logits[kind].argmax(1) == truth)[asked].float().mean().item()
    return shares


def text_stage(
    encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int = 0,
    steps: int = STEPS,
    captions: int = CAPTIONS,
) -> Stage:
    """The training stage of the text encoder; its samples are the share of right answers about unseen worlds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader(encoder.config.d_model)
    modules = {"text_encoder": encoder.requires_grad_(True), "reader": reader}
    asked = draw_questions(seed, captions)
    lessons = Exercise.of(asked, tokenizer)
    weights = torch.tensor([HARD if question.answers["event"] != NOTHING else 1.0 for question in asked])
    unseen = Exercise.of(held_out(range(400)), tokenizer)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.multinomial(weights, BATCH, replacement=True, generator=generator)
        logits, answers = lessons.logits(encoder, reader, index), lessons.answers[index]
        parts = [F.cross_entropy(logits[kind], answers[:, column]) for column, kind in enumerate(ANSWERS)]
        return torch.stack(parts).sum(), {}

    return Stage(
        "text",
        modules,
        steps,
        loss,
        lr=7e-3,
        decay_from=0.5,
        optimizer="muon",
        on_sample=lambda step: right_answers(unseen, encoder, reader),
    )


def held_out(numbers: Iterable[int]) -> list[Question]:
    """Questions about held-out worlds."""
    return [question for i in numbers for question in questions(World.sample(HELD_OUT + i), i % BEATS)]

"""Making clips in a run folder: the one path for a new run, a resumed, an extended and a retaken one.

Knows nothing about how a run is created or shown. Each clip is put on disk for good before the next begins; nothing of
it stays in memory, so the thousandth clip costs what the tenth did.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from svi.backends.base import Backend
from svi.conditioning.encodings import Encodings
from svi.conditioning.memory import ClipMemory
from svi.conditioning.policy import get_policy
from svi.errors import UserError
from svi.files import remove_leftovers
from svi.generation import rollout as rollouts
from svi.generation.clip import Clip, ClipPlan
from svi.generation.clip_store import ClipInfo, remedy
from svi.generation.events import ClipFinished, ClipStarted, Finished, Listener, Notice, RunStarted, Step, Stopped
from svi.generation.live import LiveStoryboard
from svi.generation.manifest import check_settings, device_of, now, software_changes
from svi.generation.plans import clip_plan
from svi.generation.playlist import Entry, Playlist
from svi.generation.run_state import Retake

if TYPE_CHECKING:
    from svi.generation.run import Run

ShouldStop = Callable[[], bool]


class Making:
    """One stretch of work on a locked run. Iterate over :meth:`clips` once.

    Args:
        run: the run; its lock is held by the caller.
        backend: the model, already checked against the run.
        tell: gets every event.
        should_stop: asked between steps; True ends the work with a ``Stopped`` event.
    """

    def __init__(self, run: Run, backend: Backend, tell: Listener, should_stop: ShouldStop | None) -> None:
        self.run, self.backend, self.tell, self.should_stop = run, backend, tell, should_stop
        self.settings = run.settings
        self.policy = get_policy(run.settings.preset)
        self.journal, self.store = run.log, run.store
        self.encodings = Encodings(backend)
        self.target: int | None = None
        self.next_clip = 0
        self.begun = 0.0
        self.told_repeat = False

    def clips(self) -> Iterator[Clip]:
        """Fulfil the pending retake, then make clips up to the target; yields each once it is durable."""
        remove_leftovers(self.run.path)
        torn = self.journal.mend()
        state = self.run.state()
        self.target = state.target
        live = LiveStoryboard(self.run.storyboard_path, self.settings, self.journal, self.notify)
        count = self.run.checked_count()
        retake = self._pending(state.retake, count)
        self.next_clip = retake.clip if retake else count
        self._announce(torn)
        playlist = Playlist(self.run.playlist, fps=self.settings.fps, longest_frames=self.settings.num_frames)
        if retake is None or not retake.keep_rest:  # else the old take plays until the new one is there
            playlist.rebuild(self._entries(self.next_clip))
        if retake and not retake.keep_rest:  # after the playlist, which so never names what is gone
            set_aside = self.store.supersede_after(retake.clip)
            self.journal.append("superseded", after=retake.clip, clips=set_aside)
            count = retake.clip + 1
        try:
            if retake:
                yield from self._stretch(live, playlist, retake.clip, retake.clip + 1, retake)
                playlist.rebuild(self._entries(count))
            yield from self._stretch(live, playlist, count, self.target, None)
        except rollouts.Stopped:
            self._stopped()
            return
        playlist.end()
        self._finished()

    def notify(self, message: str) -> None:
        """Tell the user and the journal."""
        self.journal.append("notice", message=message)
        self.tell(Notice(message))

    def _pending(self, retake: Retake | None, count: int) -> Retake | None:
        """The retake still to be made; one that a killed process had finished is struck off."""
        if retake is None:
            return None
        made = (retake.take, False) in self.store.takes(retake.clip)
        if made or retake.clip >= count:
            self.run.strike_retake()
            return None
        return retake

    def _announce(self, torn_bytes: int) -> None:
        self.journal.append("started", first=self.next_clip, target=self.target, device=device_of(self.backend))
        self.tell(RunStarted(str(self.run.path), self.next_clip, self.target, self.settings.steps))
        if torn_bytes:
            self.notify(f"journal.jsonl ended in a torn line ({torn_bytes} bytes), now removed; no clip was lost")
        if self.next_clip and (changes := software_changes(self.run.manifest.software)):
            self.notify(f"installed software changed ({', '.join(changes)}): later clips may differ in their last bits")

    def _stretch(
        self, live: LiveStoryboard, playlist: Playlist, start: int, stop: int | None, retake: Retake | None
    ) -> Iterator[Clip]:
        """Make clips ``start`` to ``stop`` (None = for ever), each from the memory of the one before."""
        if stop is not None and start >= stop:
            return
        previous = self.store.info(start - 1) if start else None
        parent = self.run.manifest.parent
        if previous and previous.index >= (parent.at if parent else 0):  # clips shared with a parent have the parent's
            check_settings(self.settings, previous.settings, previous.index)
        self.store.clean(start)
        made = rollouts.rollout(
            self._plans(live, start, stop, retake),
            self._memory(previous),
            backend=self.backend,
            policy=self.policy,
            encodings=self.encodings,
            on_step=self._on_step,
            should_stop=self.should_stop,
        )
        start_frame = previous.end_frame if previous else self.run.film_frames
        for clip in made:
            info = self._keep(clip, start_frame, retake)
            start_frame = info.end_frame
            if retake is None:
                playlist.append(Entry(info.segment, info.new_frames))
            yield clip

    def _keep(self, clip: Clip, start_frame: int, retake: Retake | None) -> ClipInfo:
        index = clip.plan.index
        take = retake.take if retake else self.store.next_take(index)
        info = self.store.save(
            clip,
            take=take,
            start_frame=start_frame,
            settings=self.settings.model_dump(mode="json"),
            created=now(),
        )
        if retake:
            self.run.strike_retake()
        seconds = time.monotonic() - self.begun
        self.journal.append("clip_finished", clip=index, take=take, seconds=round(seconds, 3), frames=info.new_frames)
        self.next_clip = index + 1
        self.tell(ClipFinished(index, self.target, seconds, info.new_frames, str(info.path)))
        return info

    def _plans(self, live: LiveStoryboard, start: int, stop: int | None, retake: Retake | None) -> Iterator[ClipPlan]:
        clip = start
        while stop is None or clip < stop:
            storyboard = live.refresh()
            plan = clip_plan(storyboard, self.settings, clip, seed=retake.seed if retake else None)
            if clip >= storyboard.planned_clips and not self.told_repeat:
                self.told_repeat = True
                self.notify(f"the storyboard has prompts for {storyboard.planned_clips} clips: its last prompt repeats")
            self.begun = time.monotonic()
            self.next_clip = clip
            take = retake.take if retake else self.store.next_take(clip)
            self.tell(ClipStarted(clip, self.target, plan.prompt, plan.seed, plan.scene, plan.beat, take, plan.steps))
            yield plan
            clip += 1

    def _on_step(self, step: int, steps: int) -> None:
        self.tell(Step(self.next_clip, step, steps))

    def _memory(self, previous: ClipInfo | None) -> ClipMemory:
        """What the next clip starts from: the saved memory, or one made anew after a branch changed the preset."""
        if previous is None:
            return self.run.start_memory()
        memory = self.store.memory(previous.index)
        if previous.preset == self.policy.name:
            return memory
        latents = self.store.latents(previous.index)
        with torch.inference_mode():
            frames = torch.cat([part.cpu() for part in self.backend.decode(latents)]).clone()
        before = ClipMemory(memory.reference, memory.frames, clip_index=previous.index)
        return before.update(frames[None], latents, self.policy)

    def _entries(self, count: int) -> Iterator[Entry]:
        yield from (Entry(path, frames) for path, frames in self.run.film())
        for clip in range(count):
            info = self.store.info(clip)
            if not info.segment.is_file():
                raise UserError(f"{info.segment} is missing; {remedy(self.run.path, clip)}")
            yield Entry(info.segment, info.new_frames)

    def _stopped(self) -> None:
        self.journal.append("stopped", next=self.next_clip)
        self.tell(Stopped(self.next_clip, f"go on with: svi resume {self.run.path}"))

    def _finished(self) -> None:
        video = self.run.finish()
        status = self.run.status()
        self.journal.append("finished", clips=status.count, frames=status.frames)
        self.tell(Finished(status.count, status.frames, status.seconds, str(video)))

"""A run: the folder that one long video is made in, clip by clip.

::

    run.json          what decides pixels, fixed when the run is made (:mod:`.manifest`)
    state.json        how many clips there are to be, a retake that was asked for (:mod:`.run_state`)
    storyboard.yaml   prompts; may be edited while clips are made (:mod:`.live`)
    reference.png     the image it starts from
    start             the end of a user's own video, where it goes on from one (:mod:`.start`)
    journal.jsonl     what happened, for people (:mod:`.journal`)
    clips/0007/take-0 a finished clip, with all that the next one needs (:mod:`.clip_store`)
    video.m3u8        the video so far, for players (:mod:`.playlist`)
    video.mp4         the whole video, once :meth:`Run.finish` joined it

Knows nothing about the command line. Every mistake and every damage is a :class:`~svi.errors.UserError`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from svi.backends.base import Backend, ModelInfo
from svi.conditioning.policy import get_policy
from svi.errors import UserError
from svi.files import explained, json_bytes, sha256, write_atomic, write_synced
from svi.generation.clip import Clip
from svi.generation.clip_store import SEGMENT, ClipInfo, ClipStore, remedy
from svi.generation.events import Listener, silent
from svi.generation.images import Reference
from svi.generation.live import HEADER, check_loras
from svi.generation.lock import exclusive
from svi.generation.making import Making, ShouldStop
from svi.generation.manifest import (
    Manifest,
    Parent,
    ReferenceRecord,
    RunSettings,
    check_model,
    model_record,
    now,
    parse_manifest,
    software_versions,
)
from svi.generation.plans import RETAKE_STRIDE, clip_plan
from svi.generation.run_folder import checked_clips, new_run, required_clips
from svi.generation.run_state import Retake, RunState
from svi.generation.run_view import RunStatus, RunView
from svi.generation.start import Start, copy_start, write_start
from svi.generation.storyboard import Storyboard
from svi.generation.writer import join_segments

__all__ = ["ClipInfo", "Run", "RunStatus"]


class Run(RunView):
    """A run folder. Use :meth:`create` or :meth:`open`; holds no clip in memory and no lock while it only looks."""

    # ---- making and opening ------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        out: Path | str,
        *,
        settings: RunSettings,
        storyboard: Storyboard,
        reference: Reference,
        model: ModelInfo,
        clips: int | None,
        start: Start | None = None,
        device: str = "",
    ) -> Run:
        """Make a new run folder at ``out``, complete or not at all.

        Args:
            clips: how many there are to be, None = endless.
            start: the user's video that it continues; None = it starts from the reference.
            device: where it will be made, for the record.

        Raises:
            UserError: if ``out`` is taken or cannot be written, or the inputs do not fit together.
        """
        if (reference.height, reference.width) != (settings.height, settings.width):
            raise UserError(
                f"the reference image is {reference.width}x{reference.height}, the run {settings.width}x{settings.height}"
            )
        pixels = reference.image.contiguous().numpy()
        manifest = Manifest(
            created=now(),
            software=software_versions(),
            model=model_record(model),
            settings=settings,
            reference=ReferenceRecord(sha256=sha256(pixels.tobytes()), source=reference.source),
            device=device,
        )
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        with new_run(Path(out), manifest, storyboard, RunState(target=checked_clips(clips)), png.getvalue()) as folder:
            if start is not None:
                manifest = manifest.model_copy(update={"start": write_start(folder, start, settings.fps)})
                write_synced(folder / "run.json", json_bytes(manifest.model_dump(mode="json")))
        run = cls(Path(out), manifest)
        run.log.append("created", software=manifest.software, model=manifest.model.name, target=clips)
        return run

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Open an existing run, to look at it or to go on with it. Takes no lock.

        Raises:
            UserError: if ``path`` is no run, or its ``run.json`` is damaged (the message says what can be saved).
        """
        path = Path(path)
        file = path / "run.json"
        if not path.exists():
            raise UserError(f"run {path} does not exist")
        if not file.is_file():
            what = "is not a folder" if not path.is_dir() else "holds no run.json"
            clips = " (its finished clips can be saved with `svi export`)" if (path / "clips").is_dir() else ""
            raise UserError(f"{path} is not a run: it {what}{clips}")
        with explained(file, "read"):
            data = file.read_bytes()
        return cls(path, parse_manifest(data, file))

    def branch(
        self,
        at: int,
        out: Path | str,
        *,
        clips: int | None,
        settings: RunSettings | None = None,
        storyboard: Storyboard | None = None,
        model: ModelInfo | None = None,
    ) -> Run:
        """A new run at ``out`` that shares clips 0 to ``at - 1`` (by hard links) and goes its own way from clip ``at``.

        Settings, storyboard and model may differ; size and fps may not once clips are shared.

        Raises:
            UserError: for a clip that does not exist or is damaged, a size that does not fit, or a bad ``out``.
        """
        settings = settings or self.settings
        count = self.checked_count()
        if not 0 <= at <= count:
            raise UserError(f"{self.path} has {count} clips: branch at 0 to {count}, not {at}")
        for name in ("width", "height", "fps"):
            if getattr(settings, name) != getattr(self.settings, name):
                raise UserError(
                    f"a branch keeps the {name} of its run, {getattr(self.settings, name)}: start a new run to change it"
                )
        record = model_record(model) if model else self.manifest.model
        for clip in range(at):
            for file, what in self.store.damage(clip):
                raise UserError(f"{file} {what}: branch at {clip} or before, or {remedy(self.path, clip)}")
        manifest = self.manifest.model_copy(
            update={
                "created": now(),
                "software": software_versions(),
                "model": record,
                "settings": settings,
                "parent": Parent(run=self.path.resolve().name, at=at),
            }
        )
        state = RunState(target=checked_clips(clips, at))
        png = self._reference_file().read_bytes()
        with new_run(Path(out), manifest, storyboard or self.storyboard(), state, png) as folder:
            if manifest.start is not None:
                copy_start(self.path, folder, manifest.start)
            store = ClipStore(folder / "clips")
            for clip in range(at):
                self.store.copy_to(store, clip)
        run = Run(Path(out), manifest)
        run.log.append("branched", parent=manifest.parent and manifest.parent.run, at=at, target=clips)
        return run

    # ---- making clips ------------------------------------------------------------------------------------------

    def generate(
        self,
        backend: Backend,
        *,
        clips: int | None = None,
        endless: bool = False,
        on_event: Listener | None = None,
        should_stop: ShouldStop | None = None,
    ) -> RunStatus:
        """Make what is missing, and the video. The one path for new, resumed, extended and retaken runs.

        Args:
            backend: the model that the run was made with.
            clips: a new total; None = the total that the run has.
            endless: no total: go on until stopped.
            on_event: gets every event.
            should_stop: asked between steps; when True, the clip under way is dropped and the call returns.

        Raises:
            UserError: for other weights than the run's, a run in use, damage, or a full disk.
        """
        for _ in self.stream(backend, clips=clips, endless=endless, on_event=on_event, should_stop=should_stop):
            pass
        return self.status()

    def stream(
        self,
        backend: Backend,
        *,
        clips: int | None = None,
        endless: bool = False,
        on_event: Listener | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Iterator[Clip]:
        """:meth:`generate` as an iterator: yields each clip once it is on disk; close it to stop."""
        check_model(self.manifest.model, backend.info)
        if clips is not None or endless:
            self._set_target(None if endless else checked_clips(clips, self.store.count()))
        return self._stream(backend, on_event or silent, should_stop)

    def _stream(self, backend: Backend, tell: Listener, should_stop: ShouldStop | None) -> Iterator[Clip]:
        with exclusive(self._lock_path):
            try:
                yield from Making(self, backend, tell, should_stop).clips()
            except GeneratorExit:
                self.log.append("stopped", reason="the caller stopped asking for clips")
                raise
            except BaseException as error:
                self._log_failure(error)
                raise

    def _log_failure(self, error: BaseException) -> None:
        """Best effort: the disk may be full, which is perhaps what is to be logged."""
        with contextlib.suppress(UserError):
            self.log.append("failed", error=type(error).__name__, message=str(error))

    def extend(self, clips: int) -> int:
        """Ask for ``clips`` more; returns the new total. :meth:`generate` makes them."""
        count = self.store.count()
        try:
            target = self.state().target
        except UserError:
            target = None  # a damaged state.json is written anew
        total = (count if target is None else max(target, count)) + required_clips(clips)
        self._set_target(total)
        self.log.append("extended", by=clips, target=total)
        return total

    def retake(self, clip: int, *, keep_rest: bool = False, seed: int | None = None) -> int:
        """Ask for another take of a clip; returns its number. :meth:`generate` makes it. The old take stays on disk.

        Args:
            clip: which one, from 0.
            keep_rest: keep what follows, which was made to continue the old take (the seam may show); otherwise
                all later clips are set aside and made again.
            seed: of the new take's noise. None = another one than before; but the same for a take whose files are
                damaged, so that the very same clip comes back.
        """
        with exclusive(self._lock_path):
            count = len(self.store.numbers())
            if self.store.current(clip) is None:
                raise UserError(f"{self.path} has no clip {clip}" + (f": choose 0 to {count - 1}" if count else " yet"))
            take = self.store.next_take(clip)
            wish = Retake(
                clip=clip, take=take, seed=self._retake_seed(clip, take) if seed is None else seed, keep_rest=keep_rest
            )
            self.state().model_copy(update={"retake": wish}).write(self._state_path)
            self.log.append("retake", **wish.model_dump())
        return take

    def _retake_seed(self, clip: int, take: int) -> int:
        planned = clip_plan(self.storyboard(), self.settings, clip).seed
        try:
            if any(self.store.damage(clip)):
                return self.store.info(clip).seed
        except UserError:  # the record itself is damaged
            return planned
        return planned + RETAKE_STRIDE * take

    def strike_retake(self) -> None:
        """Note that the pending retake is done."""
        self.state().model_copy(update={"retake": None}).write(self._state_path)

    def edit(self, storyboard: Storyboard) -> None:
        """Replace the storyboard, also while clips are being made; clips that are made stay as they are."""
        check_loras(storyboard, self.settings)
        write_atomic(self.storyboard_path, (HEADER + storyboard.to_yaml()).encode())

    def finish(self, target: Path | str | None = None) -> Path:
        """Join the finished clips in ``video.mp4`` (or ``target``) without encoding again; returns its path.

        Raises:
            UserError: for no clips, a damaged one (named, with the remedy), or a full disk.
        """
        path = Path(target) if target is not None else self.path / "video.mp4"
        count = self.checked_count()
        film = [path for path, _ in self.film()] if count else []
        clips = (self.store.checked_file(clip, SEGMENT) for clip in range(count))
        join_segments(
            itertools.chain(film, clips), path, fps=self.settings.fps, info=self._video_info(count), title=self._title()
        )
        return path

    def _set_target(self, target: int | None) -> None:
        with exclusive(self._lock_path):
            try:
                state = self.state()
            except UserError:
                state = RunState()
            state.model_copy(update={"target": target}).write(self._state_path)

    def _title(self) -> str:
        try:
            return self.storyboard().title
        except UserError:  # a storyboard that is being edited must not keep the video from being joined
            return ""

    def _video_info(self, count: int) -> dict[str, Any]:
        """What the MP4's ``comment`` says: enough to make the video again, with prompts run-length coded."""
        stride = get_policy(self.settings.preset).seed_stride
        prompts: list[dict[str, Any]] = []
        follows: tuple[str, int] | None = None
        for clip in range(count):
            info = self.store.info(clip)
            if (info.prompt, info.seed) != follows:  # a row speaks for the clips after it, seeds rising by the stride
                prompts.append({"clip": clip, "prompt": info.prompt, "seed": info.seed})
            follows = info.prompt, info.seed + stride
        manifest = self.manifest
        return {
            "software": f"svi {manifest.software.get('svi', '')}".strip(),
            "model": manifest.model.name,
            "loras": manifest.settings.loras,
            "clips": count,
            "seed_stride": stride,
            "settings": manifest.settings.model_dump(),
            "prompts": prompts,
        }

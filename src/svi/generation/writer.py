"""Frames to H.264 and back: one segment per clip, encoded once; the whole video by copying packets.

Knows nothing about runs. A segment is a fragmented MP4 that plays on its own and whose timestamps continue those of the
segments before it, so that segments join in a playlist or, packet by packet, in one file. One closed group of pictures,
no B-frames (decoding order is display order, so timestamps stay monotonic across segments), one thread and bit-exact
flags (the same frames give the same bytes).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from torch import Tensor

from svi.errors import UserError
from svi.files import explained, publish, sync_file, temporary_name

CODEC = "libx264"
ENCODER = {"preset": "medium", "crf": "16", "bf": "0", "g": "1000000", "sc_threshold": "0"}
SEGMENT = {
    "movflags": "frag_keyframe+empty_moov+default_base_moof+skip_trailer+frag_discont",
    "avoid_negative_ts": "disabled",  # keep the start time: the segment continues the video
    "fflags": "+bitexact",
}
FINAL = {"movflags": "faststart", "fflags": "+bitexact"}
BT709 = 1  # value of ISO/IEC 23091-2 for primaries, transfer and matrix


def encode_segment(frames: Tensor, *, fps: int, start_frame: int) -> bytes:
    """Encode ``(T, H, W, 3)`` uint8 frames as one self-contained H.264 segment that starts at ``start_frame``."""
    if frames.ndim != 4 or frames.shape[0] == 0:
        raise ValueError(f"frames must be (T, H, W, 3) with T >= 1, not {tuple(frames.shape)}")
    buffer = io.BytesIO()
    time_base = Fraction(1, fps)
    with av.open(buffer, "w", format="mp4", options=SEGMENT) as container:
        stream = cast(VideoStream, container.add_stream(CODEC, rate=fps, options=ENCODER))
        stream.height, stream.width = int(frames.shape[1]), int(frames.shape[2])
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = time_base
        context.thread_count = 1
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = context.color_trc = BT709
        for number in range(frames.shape[0]):
            picture = av.VideoFrame.from_ndarray(frames[number].contiguous().numpy(), format="rgb24")
            picture = picture.reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            picture.pts, picture.time_base = start_frame + number, time_base
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def join_segments(
    segments: Iterable[Path], target: Path, *, fps: int, info: Mapping[str, Any] | None = None, title: str = ""
) -> int:
    """Copy the packets of ``segments`` into one MP4, in order, without encoding again.

    Args:
        segments: files made by :func:`encode_segment`.
        target: written atomically; the index stands at the front (fast start).
        info: stored as JSON in the file's ``comment``.
        title: stored in the file's ``title``.

    Returns:
        Number of frames.

    Raises:
        UserError: for no segments, a damaged segment (named), or a full disk.
    """
    temporary = temporary_name(target)
    try:
        with explained(target):
            frames = _remux(segments, temporary, fps, info, title)
        if not frames:
            raise UserError(f"there are no finished clips to make {target.name} of")
        with explained(target):
            sync_file(temporary)
        publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return frames


def _remux(segments: Iterable[Path], target: Path, fps: int, info: Mapping[str, Any] | None, title: str) -> int:
    frames = 0
    time_base = Fraction(1, fps)
    with av.open(str(target), "w", format="mp4", options=FINAL) as output:
        if title:
            output.metadata["title"] = title
        if info is not None:
            output.metadata["comment"] = json.dumps(info, ensure_ascii=False)
        stream: VideoStream | None = None
        for path in segments:
            for packet in _packets(path):
                if stream is None:
                    stream = cast(VideoStream, output.add_stream_from_template(cast(VideoStream, packet.stream)))
                packet.stream = stream
                packet.time_base = time_base
                packet.pts = packet.dts = frames
                packet.duration = 1
                output.mux(packet)
                frames += 1
    return frames


def _packets(path: Path) -> Iterator[av.Packet[Any]]:
    with _opened(path) as container:
        packets = container.demux(video=0)
        while (packet := _next(packets, path)) is not None:
            if packet.size:  # the last one is an empty flush packet
                yield packet


def read_frames(path: Path | str) -> Iterator[np.ndarray[Any, Any]]:
    """Decode a segment or a video: ``(H, W, 3)`` uint8 frames in order.

    Raises:
        UserError: for a missing or damaged file.
    """
    path = Path(path)
    with _opened(path) as container:
        frames = container.decode(video=0)
        while (frame := _next(frames, path)) is not None:
            yield frame.to_ndarray(format="rgb24")


def _next(items: Iterator[Any], path: Path) -> Any:
    """The next packet or frame, None at the end."""
    try:
        return next(items, None)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise _damaged(path, error) from None


def _opened(path: Path) -> av.container.InputContainer:
    try:
        return av.open(str(path), "r", options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is missing or damaged ({getattr(error, 'strerror', None) or error}): see `svi show`")


def read_info(path: Path | str) -> dict[str, Any]:
    """The JSON that :func:`join_segments` stored in a video; empty where there is none."""
    with _opened(Path(path)) as container:
        try:
            info = json.loads(container.metadata.get("comment", "{}"))
        except ValueError:
            return {}
        return info if isinstance(info, dict) else {}


def header_size(path: Path) -> int:
    """Bytes before the first fragment (``ftyp`` and ``moov``): the initialisation section of a segment."""
    position = 0
    with path.open("rb") as stream:
        while len(head := stream.read(8)) == 8:
            size, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind == b"moof":
                return position
            if size < 8:
                break
            position += size
            stream.seek(position)
    raise UserError(f"{path} is damaged: it holds no fragment")

"""The threads of this process and where each of them is."""

from __future__ import annotations

import gc
import sys
import threading
import traceback
from types import FrameType
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse

router = APIRouter(tags=["diagnostics"])

# One at a time sets the collector's threshold, and puts it back.
_looking = threading.Lock()


@router.get("/threads", response_class=PlainTextResponse, summary="Python threads with their stacks")
async def threads(
    name: Annotated[str, Query(description="Only threads whose names contain this, in any case")] = "",
    thread_id: Annotated[int, Query(description="Only the thread with this `ident`; 0: all")] = 0,
) -> PlainTextResponse:
    """For finding what hangs. Ends with the number of threads shown."""
    # Not one of the places that other handlers share: these may be taken by what is looked for here.
    text = await anyio.to_thread.run_sync(_report, name, thread_id, limiter=anyio.CapacityLimiter(1))
    return PlainTextResponse(text)


def _report(name: str, thread_id: int) -> str:
    """Reads source files, hence not on the event loop."""
    found = [thread for thread in threading.enumerate() if _fits(thread, name, thread_id)]
    frames = _current_frames()
    entries = [_entry(thread, frames.get(thread.ident or 0)) for thread in found]
    return "\n\n".join([*entries, f"=== Thread Summary ===\nTotal threads: {len(found)}"])


def _current_frames() -> dict[int, FrameType]:
    """Without a garbage collection meanwhile: in Python before 3.11.8 one that frees a `threading.local` waits for
    itself then, with the interpreter's lock, and the whole process stops. The switch of the collector is left to
    whoever owns it."""
    with _looking:
        thresholds = gc.get_threshold()
        gc.set_threshold(0)
        try:
            return sys._current_frames()
        finally:
            gc.set_threshold(*thresholds)


def _fits(thread: threading.Thread, name: str, thread_id: int) -> bool:
    return name.lower() in thread.name.lower() and thread_id in (0, thread.ident)


def _entry(thread: threading.Thread, frame: FrameType | None) -> str:
    if frame is None:
        return f"Thread: {thread!r}\nNo stack trace available"
    stack = "".join(traceback.format_stack(frame)).rstrip("\n")
    return f"Thread: {thread!r}\nStack trace:\n{stack}"

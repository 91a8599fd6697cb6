"""A followed run on a port of this machine: its page, and what is new as server-sent events. It can only be read.

Only this machine reaches the port; from elsewhere, `ssh -L 8000:127.0.0.1:PORT`. A page of another site that makes its
own name stand for this machine (DNS rebinding) is refused by the name that it asks for.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from aiohttp import web

from t2ir1_ray.errors import UserError
from t2ir1_ray.report_page.follower import Follower
from t2ir1_ray.report_page.page import followed_page

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost", "[::1]")
"""What a browser on this machine may call it."""
LOOK_S = 1.0
PING_S = 15.0
"""How often a silent connection is tried: one whose page is closed ends."""
QUEUE = 1000
"""Messages that a page may be behind; one that is further is let go, and asks anew."""
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class Watch:
    """Looks at a run every LOOK_S and tells every page that is open."""

    def __init__(self, follower: Follower):
        self.follower = follower
        self._pages: set[asyncio.Queue[str]] = set()
        self._looking = asyncio.Lock()

    async def look(self) -> None:
        """Never ends."""
        while True:
            async with self._looking:
                for message in await asyncio.to_thread(self.follower.look):
                    for page in list(self._pages):
                        self._tell(page, message)
            await asyncio.sleep(0 if self.follower.samples.more else LOOK_S)

    def _tell(self, page: asyncio.Queue[str], message: str) -> None:
        if page.full():
            self._pages.discard(page)
        else:
            page.put_nowait(message)

    async def messages(self) -> AsyncIterator[str]:
        """Everything, then what is new; "" now and then while nothing is."""
        queue: asyncio.Queue[str] = asyncio.Queue(QUEUE)
        async with self._looking:
            known = await asyncio.to_thread(self.follower.first)
            self._pages.add(queue)
        try:
            for message in known:
                yield message
            while queue in self._pages:
                try:
                    yield await asyncio.wait_for(queue.get(), PING_S)
                except TimeoutError:
                    yield ""
        finally:
            self._pages.discard(queue)


def application(watch: Watch) -> web.Application:
    """The two addresses `/` and `/events`, for GET alone."""
    page = followed_page(watch.follower.name, "/events")

    async def show(_: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html", headers=HEADERS)

    async def tell(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **HEADERS})
        await response.prepare(request)
        with suppress(ConnectionError):  # the page was closed
            async for message in watch.messages():
                await response.write(f"data: {message}\n\n".encode() if message else b":\n\n")
        return response

    app = web.Application(middlewares=[only_by_own_name])
    app.router.add_get("/", show, allow_head=False)
    app.router.add_get("/events", tell, allow_head=False)
    return app


@web.middleware
async def only_by_own_name(request: web.Request, handler: Callable) -> web.StreamResponse:
    name, _, port = request.host.rpartition(":") if not request.host.endswith("]") else (request.host, "", "")
    if (name or port).lower() not in NAMES:
        raise web.HTTPMisdirectedRequest(text=f"this is {HOST}, and no other name of it is known\n")
    return await handler(request)


def serve(follower: Follower, port: int, say: Callable[[str], None]) -> None:
    """Until the process is interrupted. port: 0 takes a free one. Raises UserError if the port cannot be had."""

    async def run() -> None:
        watch = Watch(follower)
        runner = web.AppRunner(application(watch), handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, port).start()
        except (OSError, OverflowError) as error:
            await runner.cleanup()
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"--port={port}: {reason}: choose another one, or 0 for any") from None
        say(f"{follower.folder} is followed at http://{HOST}:{runner.addresses[0][1]}/ (Ctrl-C ends this)")
        try:
            await watch.look()
        finally:
            await runner.cleanup()

    asyncio.run(run())

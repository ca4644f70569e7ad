"""The web server: every answer only after it is known who asks, and that they may see what they ask for."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from trenchcoat_operator.kubernetes.errors import ApiError

from trenchcoat_viewer import pages
from trenchcoat_viewer.access import Access, User
from trenchcoat_viewer.runs import Runs, Shown
from trenchcoat_viewer.sessions import Sessions

log = logging.getLogger(__name__)

COOKIE: Final = "trenchcoat-session"
LOOK_SECONDS = 1.0
"""How often it is looked whether a page has changed."""
RENEW_SECONDS = 60.0
"""After so long a stream of news ends and its page asks anew: who may not see it any more gets no other."""
_MOST_BYTES = 64 * 1024
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; "
        "img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Viewer:
    """Shows Trenchcoats to those who may see them."""

    def __init__(self, runs: Runs, access: Access) -> None:
        self._runs, self._access = runs, access
        self._sessions = Sessions()
        self._reports = pages.Reports()

    def application(self) -> web.Application:
        """All paths."""
        made = web.Application(client_max_size=_MOST_BYTES, middlewares=[_guarded])
        made.add_routes(
            [
                web.get("/", self._list),
                web.get("/updates", self._list_updates),
                web.get("/runs/{namespace}/{name}", self._run),
                web.get("/runs/{namespace}/{name}/updates", self._run_updates),
                web.post("/login", self._login),
                web.post("/logout", self._logout),
                web.get("/live.js", self._script),
                web.get("/healthz", self._health),
            ]
        )
        return made

    # Who asks

    async def _user(self, request: web.Request) -> User:
        """Who asks, by a token in the header or by a session.

        Raises:
            HTTPUnauthorized: nobody that is known.
        """
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        by_header = scheme.lower() == "bearer" and bool(token.strip())
        token = token.strip() if by_header else self._sessions.token(request.cookies.get(COOKIE, ""))
        user = await asyncio.to_thread(self._access.user, token) if token else None
        if user is None:
            fault = "The API server does not take the token (any more)." if token else ""
            raise _unauthorized(request, fault)
        return user

    async def _login(self, request: web.Request) -> web.Response:
        _refuse_others(request)
        token = str((await request.post()).get("token", "")).strip()
        if not token or await asyncio.to_thread(self._access.user, token) is None:
            raise _unauthorized(request, "The API server does not take this token.")
        answer = web.Response(status=303, headers={"Location": "./"})
        secure = request.secure or request.headers.get("X-Forwarded-Proto", "") == "https"
        answer.set_cookie(
            COOKIE, self._sessions.begin(token), httponly=True, samesite="Strict", secure=secure
        )
        return answer

    async def _logout(self, request: web.Request) -> web.Response:
        _refuse_others(request)
        self._sessions.end(request.cookies.get(COOKIE, ""))
        answer = web.Response(status=303, headers={"Location": "./"})
        answer.del_cookie(COOKIE)
        return answer

    # What they see

    async def _list(self, request: web.Request) -> web.Response:
        user = await self._user(request)
        shown = await asyncio.to_thread(self._visible, user)
        return _page(await asyncio.to_thread(pages.overview, shown, user.name, _version(shown)))

    async def _list_updates(self, request: web.Request) -> web.StreamResponse:
        user = await self._user(request)

        def version() -> str:
            return _version(self._visible(user))

        return await _stream(request, version)

    async def _run(self, request: web.Request) -> web.Response:
        shown, others = await asyncio.to_thread(self._one, await self._user(request), *_place(request))
        return _page(await asyncio.to_thread(self._reports.page, shown, others))

    async def _run_updates(self, request: web.Request) -> web.StreamResponse:
        user, place = await self._user(request), _place(request)
        await asyncio.to_thread(self._one, user, *place)

        def version() -> str:
            return self._one(user, *place)[0].version

        return await _stream(request, version)

    async def _script(self, request: web.Request) -> web.Response:
        return web.Response(text=pages.script(), content_type="text/javascript")

    async def _health(self, request: web.Request) -> web.Response:
        await asyncio.to_thread(self._runs.all)
        return web.Response(text="well\n")

    def _visible(self, user: User) -> list[Shown]:
        shown = self._runs.all()
        seen = {name for name in {item.namespace for item in shown} if self._access.may_see(user, name)}
        return [item for item in shown if item.namespace in seen]

    def _one(self, user: User, namespace: str, name: str) -> tuple[Shown, list[Shown] | None]:
        """A run, and the others of its namespace where the user may see them.

        Raises:
            HTTPNotFound: there is none, or none that the user may know of: which of both is not told.
        """
        shown = None
        if self._access.may_see(user, namespace, name):
            shown = self._runs.one(namespace, name)
        if shown is None:
            raise _answer(
                web.HTTPNotFound(),
                "Nothing to see",
                f"There is no Trenchcoat {namespace}/{name}, or {user.name} may not get it: "
                f"`kubectl auth can-i get trenchcoats/{name} -n {namespace}` says which.",
            )
        if not self._access.may_see(user, namespace):
            return shown, None
        return shown, [item for item in self._runs.all() if item.namespace == namespace]


def _place(request: web.Request) -> tuple[str, str]:
    return request.match_info["namespace"], request.match_info["name"]


def _version(shown: list[Shown]) -> str:
    told = "\n".join(f"{item.namespace}/{item.name} {item.version}" for item in shown)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _page(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/html")


def _answer(error: web.HTTPException, title: str, words: str) -> web.HTTPException:
    error.text, error.content_type = pages.message(title, words), "text/html"
    return error


def _unauthorized(request: web.Request, fault: str) -> web.HTTPException:
    root = "../" * (request.path.count("/") - 1)
    error = web.HTTPUnauthorized(text=pages.login(fault, root or "./"), content_type="text/html")
    error.headers["WWW-Authenticate"] = "Bearer"
    return error


def _refuse_others(request: web.Request) -> None:
    """Let no page of somebody else's log anybody in or out.

    Raises:
        HTTPForbidden: such a page has sent it.
    """
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        raise _answer(web.HTTPForbidden(), "Refused", "This was sent by a page of another site.")


async def _stream(request: web.Request, version: Callable[[], str]) -> web.StreamResponse:
    """Tell a page of each new version of what it shows, as server-sent events."""
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    answer.headers.update(_HEADERS)
    told, loop = "", asyncio.get_running_loop()
    until = loop.time() + RENEW_SECONDS
    now = await asyncio.to_thread(version)
    await answer.prepare(request)
    try:
        while loop.time() < until:
            # A comment where there is no news, so that it is noticed when nobody listens any more.
            await answer.write(f"data: {now}\n\n".encode() if now != told else b":\n\n")
            told = now
            await asyncio.sleep(LOOK_SECONDS)
            try:
                now = await asyncio.to_thread(version)
            except (web.HTTPException, ApiError):
                break  # the page asks again, and is told what is wrong
        await answer.write_eof()
    except ConnectionResetError:
        log.debug("%s: the page was closed", request.path)
    return answer


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The same headers on every answer, and a page for what goes wrong."""
    try:
        answer = await handler(request)
    except web.HTTPException as error:
        error.headers.update(_HEADERS)
        raise
    except ApiError as error:
        log.warning("%s %s: %s", request.method, request.path, error)
        words = "The API server does not answer, or refuses the viewer: its log says what."
        answer = _page(pages.message("Not now", words), 503)
    if not answer.prepared:
        answer.headers.update(_HEADERS)
    return answer

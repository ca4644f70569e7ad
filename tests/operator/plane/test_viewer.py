"""The viewer on a real API server: everybody sees what they may get, and nothing of anything else."""

from pathlib import Path

import pytest
from kubernetes import client
from trenchcoat_viewer import access

from tests.control_plane import ControlPlane
from tests.operator.plane.viewing import person, rights, token, viewer
from tests.operator.simulation import BASE
from tests.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(plane: ControlPlane) -> None:
    """Trenchcoats in two namespaces, and the chart's rights for the viewer."""
    rights(plane)
    for where, name in (("viewer-mine", "one"), ("viewer-mine", "two"), ("viewer-theirs", "secret")):
        plane.apply({**BASE, "metadata": {"name": name, "namespace": where}}, where)


def test_everybody_sees_what_they_may_get_and_nothing_else(
    plane: ControlPlane, runs: None, tmp_path: Path
) -> None:
    mine, single = person(plane, "mine"), person(plane, "single", resourceNames=["one"])
    nobody = token(plane, "default", "viewer-theirs")
    with viewer(plane, tmp_path, TRENCHCOAT_VIEWER_REFRESH_SECONDS="1") as server:
        # Who is not known sees a form alone, wherever they ask.
        for path in ("/", "/updates", "/runs/viewer-mine/one", "/runs/viewer-mine/one/updates"):
            for answer in (server.get(path), server.as_token(path, "made-up")):
                assert answer.status == 401 and b"viewer-mine</" not in answer.data
                assert answer.headers["Cache-Control"] == "no-store"
        assert b"The API server does not take this token." in server.log_in("made-up").data

        # The list has the namespaces in which one may get Trenchcoats.
        listed = server.as_token("/", mine).data.decode()
        assert "runs/viewer-mine/one" in listed and "runs/viewer-mine/two" in listed
        assert "secret" not in listed and "viewer-theirs" not in listed
        for other in (nobody, single):
            none = server.as_token("/", other).data.decode()
            assert "There is no Trenchcoat that" in none and "runs/" not in none

        # So have the pages, and what is not there is told as what one may not see.
        page = server.as_token("/runs/viewer-mine/one", mine)
        assert page.status == 200 and b"This page follows the run." in page.data
        assert "script-src 'self'" in page.headers["Content-Security-Policy"]
        assert server.as_token("/runs/viewer-mine/one", single).status == 200
        for who, path in ((single, "two"), (nobody, "one"), (mine, "none")):
            assert server.as_token(f"/runs/viewer-mine/{path}", who).status == 404
        hidden = server.as_token("/runs/viewer-theirs/secret", mine)
        absent = server.as_token("/runs/viewer-theirs/absent", mine)
        assert hidden.status == absent.status == 404
        assert hidden.data.replace(b"secret", b"absent") == absent.data
        assert server.as_token("/runs/viewer-theirs/secret/updates", mine).status == 404

        # A browser has a session in place of the token, and loses it with the right or by logging out.
        entered = server.log_in(mine)
        cookie = entered.headers["Set-Cookie"]
        assert entered.status == 303 and "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert mine not in cookie
        session = {"Cookie": cookie.partition(";")[0]}
        assert b"viewer-mine/one" in server.get("/", **session).data
        refused = server.log_in(mine, **{"Sec-Fetch-Site": "cross-site"})
        assert refused.status == 403 and "Set-Cookie" not in refused.headers

        # Pages that are open hear of changes.
        news = server.news("/runs/viewer-mine/one/updates", mine)
        before = next(news)
        change = {"metadata": {"annotations": {"seen": "yes"}}}
        kind = ("trenchcoat.dev", "v1alpha1", "viewer-mine", "trenchcoats", "one")
        plane.trenchcoats.patch_namespaced_custom_object(*kind, change)
        after = next(news)
        news.close()
        assert after != before
        assert after in server.as_token("/runs/viewer-mine/one", mine).data.decode()

        # A right that is taken away is soon no right any more.
        client.RbacAuthorizationV1Api(plane.api).delete_namespaced_role_binding("mine", "viewer-mine")
        gone = lambda: b"viewer-mine/one" not in server.get("/", **session).data  # noqa: E731
        until(gone, access.KEPT_SECONDS + 60, "the list is empty")
        server.pool.request("POST", f"{server.url}/logout", headers=session, redirect=False)
        assert server.get("/", **session).status == 401
    log = (tmp_path / "viewer.log").read_text()
    assert mine not in log and "Traceback" not in log


def test_tokens_may_be_for_the_viewer_alone(plane: ControlPlane, runs: None, tmp_path: Path) -> None:
    person(plane, "apart")
    with viewer(plane, tmp_path, TRENCHCOAT_VIEWER_AUDIENCES="trenchcoat-viewer") as server:
        of_cluster = token(plane, "apart", "viewer-mine")
        assert server.as_token("/", of_cluster).status == 401
        meant = token(plane, "apart", "viewer-mine", "trenchcoat-viewer")
        assert b"viewer-mine/one" in server.as_token("/", meant).data
